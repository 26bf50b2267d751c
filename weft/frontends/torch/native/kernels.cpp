// Kernels for the CUDA dispatch key in C++: what weft/frontends/torch/dispatch.py writes in Python, for the plain case.
//
// An operator's arguments come in on the dispatcher's stack. CUDA tensors become CPU tensors on the same memory, the CPU
// kernel runs, its results become CUDA tensors on the memory that it made, the allocator and the timeline hear of them.
// Whatever is not plain (other devices, sparse or conjugated tensors, a listener other than the timeline, an error of
// the CPU kernel) goes to the Python kernel that was registered before, which does it again from the beginning.
#include "blocks.h"

#include <ATen/Context.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/_local_scalar_dense.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <pthread.h>
#include <torch/csrc/Exceptions.h>
#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/Dtype.h>
#include <torch/csrc/DynamicTypes.h>
#include <torch/library.h>

#include <atomic>
#include <string>
#include <unordered_map>

using c10::DispatchKey;
using c10::DispatchKeySet;
using c10::IValue;
using torch::jit::Stack;

namespace weft {
namespace {

// What listens to operators: something that only Python kernels can serve, nobody, or the timeline.
enum Mode : int { kOff, kSilent, kRecording };

struct State {
  std::atomic<int> mode{kOff};
  std::vector<Blocks *> allocators;  // by device index
  PyObject *to_cuda = nullptr;       // (host tensor, device index) -> CUDA tensor, for results that are not plain
  PyObject *describe = nullptr;      // (name, arguments, results, keywords, stream, device) -> number of the work
  PyObject *needs = nullptr;         // name -> bits of Needs
  PyObject *settle = nullptr;        // called once in a while
  PyObject *timeline = nullptr;
  uint64_t generation = 0;            // of the timeline; numbers of another one are forgotten
  std::atomic<uint64_t> switches{1};  // rises when PyTorch's switches are turned: needs are asked for again
  std::unordered_map<int64_t, int64_t> lanes;
  int64_t unsettled = 0;
  DispatchKeySet plain;  // keys that a plain CUDA tensor may have
};

State &state() {
  static auto *kept = new State();
  return *kept;
}

// kPython: with PyTorch's switches as they are, only the Python kernel does what CUDA's does.
enum Needs : int { kFree = 1, kStrides = 2, kOutputs = 4, kMultiplies = 8, kPython = 16 };
// kNoIntegers, kNoHalf: calls with a first tensor of such a type are Python's, which refuses it or computes otherwise.
enum Flags : int { kView = 1, kFactory = 2, kUnrecorded = 4, kSameDevice = 8, kNoIntegers = 16, kNoHalf = 32 };

constexpr int64_t kLaneBits = 16;
constexpr int64_t kSettleAfter = 1 << 16;
constexpr int64_t kLarge = 64 << 20;  // factories of so many bytes ask the allocator first, in Python
constexpr int64_t kUnknown = -2;

class PythonLock {
 public:
  PythonLock() : state_(PyGILState_Ensure()) {}
  ~PythonLock() { PyGILState_Release(state_); }

 private:
  PyGILState_STATE state_;
};

[[noreturn]] void raise_python() {
  python_error error;
  error.persist();
  throw std::move(error);
}

// ---------------------------------------------------------------- tensors
struct Owned {
  c10::intrusive_ptr<c10::StorageImpl> host;
  Blocks *blocks;
  Block *block;
};

void let_go(void *context) {
  auto *owned = static_cast<Owned *>(context);
  if (owned->block != nullptr) give_back(owned->blocks, owned->block);
  delete owned;
}

// One call: the device that it runs on, and which host storages and tensors stand for which CUDA ones.
struct Call {
  int device = -1;
  struct Pair {
    const c10::TensorImpl *host;
    at::Tensor cuda;
  };
  struct StoragePair {
    const c10::StorageImpl *host;
    c10::Storage cuda;
  };
  c10::SmallVector<Pair, 4> tensors;
  c10::SmallVector<StoragePair, 4> storages;
  c10::SmallVector<c10::Storage, 4> hosts;

  // False where the tensor is not plain.
  bool to_host(const at::Tensor &tensor, IValue &result, bool same_device) {
    if (!tensor.defined()) {
      result = tensor;
      return true;
    }
    c10::TensorImpl *impl = tensor.unsafeGetTensorImpl();
    if (!impl->is_cuda()) {
      if (same_device || !impl->is_wrapped_number()) return false;
      result = tensor;
      return true;
    }
    if ((impl->key_set().raw_repr() & ~state().plain.raw_repr()) != 0 || !impl->has_storage() ||
        impl->has_symbolic_sizes_strides())
      return false;
    int index = impl->device().index();
    if (device < 0)
      device = index;
    else if (device != index)
      return false;
    for (size_t place = 0; place < tensors.size(); ++place) {
      if (tensors[place].cuda.unsafeGetTensorImpl() == impl) {
        result = at::Tensor(c10::intrusive_ptr<c10::TensorImpl, c10::UndefinedTensorImpl>::unsafe_reclaim_from_nonowning(
            const_cast<c10::TensorImpl *>(tensors[place].host)));
        return true;
      }
    }
    const c10::Storage &storage = impl->storage();
    c10::Storage host_storage;
    for (size_t place = 0; place < storages.size(); ++place)
      if (storages[place].cuda.unsafeGetStorageImpl() == storage.unsafeGetStorageImpl()) host_storage = hosts[place];
    if (!host_storage) {
      host_storage = c10::Storage(c10::make_intrusive<c10::StorageImpl>(
          c10::StorageImpl::use_byte_size_t(), storage.nbytes(),
          c10::DataPtr(const_cast<void *>(storage.data()), c10::Device(c10::kCPU)), nullptr, false));
      storages.push_back({host_storage.unsafeGetStorageImpl(), storage});
      hosts.push_back(host_storage);
    }
    at::Tensor host = at::detail::make_tensor<c10::TensorImpl>(std::move(host_storage),
                                                               DispatchKeySet(DispatchKey::CPU), impl->dtype());
    c10::TensorImpl *made = host.unsafeGetTensorImpl();
    made->set_sizes_and_strides(impl->sizes(), impl->strides(), impl->storage_offset());
    if (impl->is_wrapped_number()) made->set_wrapped_number(true);
    tensors.push_back({made, tensor});
    result = std::move(host);
    return true;
  }

  bool values_to_host(IValue &value, bool same_device) {
    if (value.isTensor()) {
      at::Tensor tensor = value.toTensor();
      return to_host(tensor, value, same_device);
    }
    if (value.isTensorList()) {
      c10::List<at::Tensor> hosts_list;
      const auto list = value.toTensorList();
      hosts_list.reserve(list.size());
      for (size_t place = 0; place < list.size(); ++place) {
        IValue host;
        if (!to_host(list.get(place), host, same_device)) return false;
        hosts_list.push_back(std::move(host).toTensor());
      }
      value = std::move(hosts_list);
      return true;
    }
    if (value.isOptionalTensorList()) {
      c10::List<std::optional<at::Tensor>> hosts_list;
      const auto list = value.toOptionalTensorList();
      hosts_list.reserve(list.size());
      for (size_t place = 0; place < list.size(); ++place) {
        std::optional<at::Tensor> one = list.get(place);
        if (!one.has_value()) {
          hosts_list.push_back(std::nullopt);
          continue;
        }
        IValue host;
        if (!to_host(*one, host, same_device)) return false;
        hosts_list.push_back(std::move(host).toTensor());
      }
      value = std::move(hosts_list);
      return true;
    }
    return !value.isGenerator() && !value.isStorage();
  }

  // Needs Python's lock.
  at::Tensor to_cuda(const at::Tensor &host) {
    if (!host.defined()) return host;
    c10::TensorImpl *impl = host.unsafeGetTensorImpl();
    for (const Pair &pair : tensors)
      if (pair.host == impl) return pair.cuda;
    DispatchKeySet keys = impl->key_set();
    if (host.layout() != c10::kStrided || host.is_quantized() || host.is_nested() || !impl->has_storage() ||
        keys.has_any(DispatchKeySet({DispatchKey::Conjugate, DispatchKey::Negative, DispatchKey::ZeroTensor})))
      return to_cuda_slowly(host);
    c10::StorageImpl *source = impl->storage().unsafeGetStorageImpl();
    c10::Storage storage;
    for (const StoragePair &pair : storages)
      if (pair.host == source) storage = pair.cuda;
    if (!storage) {
      Blocks *blocks = state().allocators[device];
      Block *block = nullptr;
      if (source->nbytes() != 0) {
        block = take_block(blocks, static_cast<int64_t>(source->nbytes()), stream());
        if (block == nullptr && PyErr_Occurred()) raise_python();
      }
      auto *owned = new Owned{c10::intrusive_ptr<c10::StorageImpl>::reclaim_copy(source), blocks, block};
      storage = c10::Storage(c10::make_intrusive<c10::StorageImpl>(
          c10::StorageImpl::use_byte_size_t(), source->nbytes(),
          c10::DataPtr(source->mutable_data(), owned, &let_go, c10::Device(c10::kCUDA, device)), nullptr, false));
      storages.push_back({source, storage});
    }
    at::Tensor cuda = at::detail::make_tensor<c10::TensorImpl>(std::move(storage), DispatchKeySet(DispatchKey::CUDA),
                                                               impl->dtype());
    c10::TensorImpl *made = cuda.unsafeGetTensorImpl();
    made->set_sizes_and_strides(impl->sizes(), impl->strides(), impl->storage_offset());
    if (impl->is_wrapped_number()) made->set_wrapped_number(true);
    return cuda;
  }

  at::Tensor to_cuda_slowly(const at::Tensor &host) const {
    PyObject *object = THPVariable_Wrap(host);
    PyObject *made = object ? PyObject_CallFunction(state().to_cuda, "Oi", object, device) : nullptr;
    Py_XDECREF(object);
    if (made == nullptr) raise_python();
    at::Tensor cuda = THPVariable_Unpack(made);
    Py_DECREF(made);
    return cuda;
  }

  IValue results_to_cuda(const IValue &value) {
    if (value.isTensor()) return to_cuda(value.toTensor());
    if (value.isTensorList()) {
      c10::List<at::Tensor> list;
      for (const at::Tensor &host : value.toTensorVector()) list.push_back(to_cuda(host));
      return list;
    }
    return value;
  }

  int64_t stream() const {
    return c10::impl::getDeviceGuardImpl(c10::kCUDA)->getStream(c10::Device(c10::kCUDA, device)).id();
  }
};

// ---------------------------------------------------------------- what the timeline is told
template <typename T>
void put(std::string &key, T value) {
  key.append(reinterpret_cast<const char *>(&value), sizeof(value));
}

void put_tensor(std::string &key, const at::Tensor &tensor, bool strides) {
  if (!tensor.defined()) {
    key.push_back('u');
    return;
  }
  c10::TensorImpl *impl = tensor.unsafeGetTensorImpl();
  key.push_back('t');
  key.push_back(static_cast<char>(c10::typeMetaToScalarType(impl->dtype())));
  if (impl->is_wrapped_number()) {
    key.push_back('w');
    if (c10::isIntegralType(tensor.scalar_type(), true)) put(key, tensor.item().toLong());
    return;
  }
  put(key, static_cast<int32_t>(impl->dim()));
  for (int64_t length : impl->sizes()) put(key, length);
  if (strides)
    for (int64_t step : impl->strides()) put(key, step);
}

// False where a value cannot be put into a key.
bool put_value(std::string &key, const IValue &value, bool strides) {
  if (value.isTensor()) {
    put_tensor(key, value.toTensor(), strides);
  } else if (value.isInt()) {
    key.push_back('i');
    put(key, value.toInt());
  } else if (value.isBool()) {
    key.push_back(value.toBool() ? '1' : '0');
  } else if (value.isNone()) {
    key.push_back('n');
  } else if (value.isDouble() || value.isComplexDouble()) {
    key.push_back('f');
  } else if (value.isIntList()) {
    const auto list = value.toIntVector();
    key.push_back('l');
    put(key, static_cast<int32_t>(list.size()));
    for (int64_t one : list) put(key, one);
  } else if (value.isTensorList()) {
    const auto list = value.toTensorVector();
    key.push_back('L');
    put(key, static_cast<int32_t>(list.size()));
    for (const at::Tensor &one : list) put_tensor(key, one, strides);
  } else if (value.isOptionalTensorList()) {
    const auto list = value.toOptionalTensorVector();
    key.push_back('O');
    put(key, static_cast<int32_t>(list.size()));
    for (const auto &one : list) put_tensor(key, one.value_or(at::Tensor()), strides);
  } else if (value.isString()) {
    key.push_back('s');
    put(key, static_cast<int32_t>(value.toStringRef().size()));
    key.append(value.toStringRef());
  } else if (value.isList()) {
    const auto list = value.toListRef();
    key.push_back('g');
    put(key, static_cast<int32_t>(list.size()));
    for (const IValue &one : list)
      if (!put_value(key, one, strides)) return false;
  } else if (value.isDevice()) {
    key.push_back('d');
  } else {
    return false;
  }
  return true;
}

// The value as Python kernels would tell it to the timeline; null with a Python error set.
PyObject *to_python(const IValue &value) {
  if (value.isTensor()) {
    const at::Tensor &tensor = value.toTensor();
    if (!tensor.defined()) Py_RETURN_NONE;
    if (tensor.unsafeGetTensorImpl()->is_wrapped_number() && !tensor.is_cuda()) {
      c10::Scalar number = tensor.item();
      if (number.isBoolean()) return PyBool_FromLong(number.toBool());
      if (number.isIntegral(false)) return PyLong_FromLongLong(number.toLong());
      if (number.isComplex())
        return PyComplex_FromDoubles(number.toComplexDouble().real(), number.toComplexDouble().imag());
      return PyFloat_FromDouble(number.toDouble());
    }
    return THPVariable_Wrap(tensor);
  }
  if (value.isInt()) return PyLong_FromLongLong(value.toInt());
  if (value.isBool()) return PyBool_FromLong(value.toBool());
  if (value.isDouble()) return PyFloat_FromDouble(value.toDouble());
  if (value.isComplexDouble())
    return PyComplex_FromDoubles(value.toComplexDouble().real(), value.toComplexDouble().imag());
  if (value.isString()) return PyUnicode_FromString(value.toStringRef().c_str());
  if (value.isList()) {
    const auto list = value.toListRef();
    PyObject *made = PyList_New(static_cast<Py_ssize_t>(list.size()));
    for (size_t place = 0; made != nullptr && place < list.size(); ++place) {
      PyObject *one = to_python(list[place]);
      if (one == nullptr) {
        Py_DECREF(made);
        return nullptr;
      }
      PyList_SET_ITEM(made, static_cast<Py_ssize_t>(place), one);
    }
    return made;
  }
  Py_RETURN_NONE;
}

bool is_default(const c10::Argument &argument, const IValue &value) {
  const auto &given = argument.default_value();
  if (!given.has_value() || value.isTensor() || value.isTensorList()) return false;
  return given->type()->kind() == value.type()->kind() && *given == value;
}

PyObject *to_python_text(const char *text) { return PyUnicode_InternFromString(text); }

class Operator {
 public:
  Operator(c10::OperatorHandle handle, std::string name, int flags)
      : handle_(std::move(handle)),
        fallback_(handle_.getComputedKernelForDispatchKey(DispatchKey::CUDA)),
        name_(std::move(name)),
        flags_(flags),
        argument_count_(handle_.schema().arguments().size()) {}

  void run(const c10::OperatorHandle &op, DispatchKeySet keys, Stack *stack) {
    if (state().mode.load(std::memory_order_relaxed) == kOff) return fallback_.callBoxed(op, keys, stack);
    if (flags_ & kView) return op.redispatchBoxed(DispatchKeySet(DispatchKey::CPU), stack);
    if (asked_.load(std::memory_order_relaxed) != state().switches.load(std::memory_order_relaxed)) ask_needs();
    if ((needs_ & kPython) || ((flags_ & (kNoIntegers | kNoHalf)) && is_special(*stack)))
      return fallback_.callBoxed(op, keys, stack);
    Call call;
    Stack values(stack->end() - static_cast<std::ptrdiff_t>(argument_count_), stack->end());
    bool plain = true;
    if (flags_ & kFactory) {
      plain = take_factory(values, call);
    } else {
      for (IValue &value : values) {
        if (!call.values_to_host(value, flags_ & kSameDevice)) {
          plain = false;
          break;
        }
      }
    }
    if (!plain || call.device < 0 || call.device >= static_cast<int>(state().allocators.size()))
      return fallback_.callBoxed(op, keys, stack);
    try {
      at::AutoDispatchBelowADInplaceOrView below;
      op.redispatchBoxed(DispatchKeySet(DispatchKey::CPU), &values);
    } catch (const std::exception &) {
      return fallback_.callBoxed(op, keys, stack);
    }
    PythonLock lock;
    for (IValue &value : values) value = call.results_to_cuda(value);
    if (!(flags_ & kUnrecorded) && state().mode.load(std::memory_order_relaxed) == kRecording)
      record(*stack, values, call);
    stack->erase(stack->end() - static_cast<std::ptrdiff_t>(argument_count_), stack->end());
    for (IValue &value : values) stack->push_back(std::move(value));
  }

 private:
  bool is_special(const Stack &stack) const {
    for (size_t place = stack.size() - argument_count_; place < stack.size(); ++place) {
      if (!stack[place].isTensor()) continue;
      const auto type = stack[place].toTensor().scalar_type();
      if (flags_ & kNoIntegers) return c10::isIntegralType(type, true);
      return type == at::kHalf || type == at::kBFloat16;
    }
    return false;
  }

  bool take_factory(Stack &values, Call &call) const {
    const auto &arguments = handle_.schema().arguments();
    int64_t count = 16;
    call.device = c10::impl::getDeviceGuardImpl(c10::kCUDA)->getDevice().index();
    for (size_t place = 0; place < values.size(); ++place) {
      IValue &value = values[place];
      if (value.isDevice()) {
        c10::Device device = value.toDevice();
        if (!device.is_cuda()) return false;
        if (device.has_index()) call.device = device.index();
        value = c10::Device(c10::kCPU);
      } else if (arguments[place].name() == "pin_memory") {
        if (value.isBool() && value.toBool()) return false;
      } else if (arguments[place].name() == "layout") {
        if (value.isInt() && value.toLayout() != c10::kStrided) return false;
      } else if (value.isIntList()) {
        for (int64_t length : value.toIntVector()) {
          if (length < 0 || count > kLarge || length > kLarge) return false;
          if (length > 0) count *= length;
        }
      } else if (value.isTensor() || value.isList()) {
        return false;
      }
    }
    return count <= kLarge;
  }

  void record(const Stack &stack, const Stack &results, const Call &call) {
    State &now = state();
    if (needs_ & kFree) return;
    const IValue *arguments = stack.data() + (stack.size() - argument_count_);
    bool strides = needs_ & kStrides, known = true;
    thread_local std::string key;
    key.clear();
    if (needs_ & kMultiplies) {
      auto &context = at::globalContext();
      using at::Float32Backend, at::Float32Op, at::Float32Precision;
      key.push_back(context.float32Precision(Float32Backend::CUDA, Float32Op::MATMUL) == Float32Precision::TF32);
      key.push_back(context.float32Precision(Float32Backend::CUDA, Float32Op::CONV) == Float32Precision::TF32);
    }
    for (size_t place = 0; known && place < argument_count_; ++place)
      known = put_value(key, arguments[place], strides);
    if (known && (needs_ & kOutputs))
      for (const IValue &result : results) known = known && put_value(key, result, strides);
    int64_t number = kUnknown;
    if (generation_ != now.generation) {
      numbers_.clear();
      generation_ = now.generation;
    }
    if (known) {
      auto found = numbers_.find(key);
      if (found != numbers_.end()) number = found->second;
    }
    int64_t stream = call.stream();
    if (number == kUnknown) {
      std::string kept = key;  // describing may run operators
      number = describe(arguments, results, stream, call.device);
      if (known) numbers_.emplace(std::move(kept), number);
    }
    if (number >= 0) append(number, stream, call.device);
  }

  void ask_needs() {
    PythonLock lock;
    uint64_t now = state().switches.load();
    PyObject *answer = PyObject_CallFunction(state().needs, "s", name_.c_str());
    if (answer == nullptr) raise_python();
    needs_ = static_cast<int>(PyLong_AsLong(answer));
    Py_DECREF(answer);
    asked_.store(now);
  }

  int64_t describe(const IValue *arguments, const Stack &results, int64_t stream, int device) const {
    const auto &schema = handle_.schema().arguments();
    size_t positional = 0, needed = 0;
    for (; positional < schema.size() && !schema[positional].kwarg_only(); ++positional)
      if (!is_default(schema[positional], arguments[positional])) needed = positional + 1;
    PyObject *args = PyTuple_New(static_cast<Py_ssize_t>(needed)), *kwargs = PyDict_New();
    PyObject *outputs = PyTuple_New(static_cast<Py_ssize_t>(results.size()));
    bool fine = args != nullptr && kwargs != nullptr && outputs != nullptr;
    for (size_t place = 0; fine && place < needed; ++place) {
      PyObject *value = to_python(arguments[place]);
      fine = value != nullptr;
      if (fine) PyTuple_SET_ITEM(args, static_cast<Py_ssize_t>(place), value);
    }
    for (size_t place = positional; fine && place < schema.size(); ++place) {
      if (is_default(schema[place], arguments[place])) continue;
      PyObject *value = schema[place].name() == "dtype" && arguments[place].isInt()
                            ? python_dtype(arguments[place].toScalarType())
                            : to_python(arguments[place]);
      fine = value != nullptr && PyDict_SetItemString(kwargs, schema[place].name().c_str(), value) == 0;
      Py_XDECREF(value);
    }
    for (size_t place = 0; fine && place < results.size(); ++place) {
      PyObject *value = to_python(results[place]);
      fine = value != nullptr;
      if (fine) PyTuple_SET_ITEM(outputs, static_cast<Py_ssize_t>(place), value);
    }
    PyObject *answer = nullptr;
    if (fine)
      answer = PyObject_CallFunction(state().describe, "sOOOLi", name_.c_str(), args, outputs, kwargs,
                                     static_cast<long long>(stream), device);
    Py_XDECREF(args);
    Py_XDECREF(outputs);
    Py_XDECREF(kwargs);
    if (answer == nullptr) raise_python();
    int64_t number = PyLong_AsLongLong(answer);
    Py_DECREF(answer);
    return number;
  }

  static PyObject *python_dtype(c10::ScalarType type) {
    auto *made = reinterpret_cast<PyObject *>(torch::getTHPDtype(type));
    Py_XINCREF(made);
    return made;
  }

  static void append(int64_t number, int64_t stream, int device) {
    State &now = state();
    auto found = now.lanes.find(stream * 64 + device);
    if (found == now.lanes.end()) {
      PyObject *lane = PyObject_CallMethod(now.timeline, "_add_lane", "iL", device, static_cast<long long>(stream));
      if (lane == nullptr) raise_python();
      found = now.lanes.emplace(stream * 64 + device, PyLong_AsLongLong(lane)).first;
      Py_DECREF(lane);
    }
    static PyObject *attribute = to_python_text("_append");
    PyObject *function = PyObject_GetAttr(now.timeline, attribute);
    PyObject *record = function ? PyLong_FromLongLong(number << kLaneBits | found->second) : nullptr;
    PyObject *done = record ? PyObject_CallOneArg(function, record) : nullptr;
    Py_XDECREF(record);
    Py_XDECREF(function);
    if (done == nullptr) raise_python();
    Py_DECREF(done);
    if (++now.unsettled >= kSettleAfter) {
      now.unsettled = 0;
      PyObject *settled = PyObject_CallNoArgs(now.settle);
      if (settled == nullptr) raise_python();
      Py_DECREF(settled);
    }
  }

  c10::OperatorHandle handle_;
  c10::SafeKernelFunction fallback_;
  std::string name_;
  int flags_;
  size_t argument_count_;
  std::atomic<int> needs_{0};
  std::atomic<uint64_t> asked_{0};
  uint64_t generation_ = 0;
  std::unordered_map<std::string, int64_t> numbers_;
};

// The dispatcher owns its functors; ours point to operators that live as long as the process.
class Functor : public c10::OperatorKernel {
 public:
  explicit Functor(Operator *target) : target_(target) {}
  void operator()(const c10::OperatorHandle &op, DispatchKeySet keys, Stack *stack) { target_->run(op, keys, stack); }

 private:
  Operator *target_;
};

class SilentHandler : public c10::WarningHandler {
 public:
  void process(const c10::Warning &) override {}
};

// ---------------------------------------------------------------- the module
PyObject *install(PyObject *, PyObject *operators) {
  static auto *library = new torch::Library(torch::Library::IMPL, "aten", DispatchKey::CUDA, __FILE__, __LINE__);
  SilentHandler silent;  // the dispatcher warns of kernels that replace others, which is what is wanted here
  c10::WarningUtils::WarningHandlerGuard quiet(&silent);
  HANDLE_TH_ERRORS
  PyObject *iterator = PyObject_GetIter(operators);
  if (iterator == nullptr) return nullptr;
  long count = 0;
  while (PyObject *entry = PyIter_Next(iterator)) {
    const char *name;
    int flags;
    if (!PyArg_ParseTuple(entry, "si", &name, &flags)) return nullptr;
    std::string base(name), overload;
    if (auto dot = base.find('.'); dot != std::string::npos) {
      overload = base.substr(dot + 1);
      base.resize(dot);
    }
    auto handle = c10::Dispatcher::singleton().findSchemaOrThrow(("aten::" + base).c_str(), overload.c_str());
    auto *target = new Operator(handle, name, flags);
    library->impl(name, torch::CppFunction::makeFromBoxedFunctor(std::make_unique<Functor>(target)));
    Py_DECREF(entry);
    ++count;
  }
  Py_DECREF(iterator);
  if (PyErr_Occurred()) return nullptr;
  at::Tensor sample = at::detail::make_tensor<c10::TensorImpl>(
      c10::Storage(c10::make_intrusive<c10::StorageImpl>(c10::StorageImpl::use_byte_size_t(), 0,
                                                         c10::DataPtr(nullptr, c10::Device(c10::kCUDA, 0)), nullptr,
                                                         false)),
      DispatchKeySet(DispatchKey::CUDA), c10::scalarTypeToTypeMeta(c10::kFloat));
  state().plain = sample.key_set() | DispatchKeySet(DispatchKey::ADInplaceOrView);
  return PyLong_FromLong(count);
  END_HANDLE_TH_ERRORS
}

PyObject *connect(PyObject *, PyObject *args, PyObject *keywords) {
  static const char *names[] = {"allocators", "to_cuda", "describe", "needs", "settle", "timeline", nullptr};
  PyObject *allocators, *to_cuda, *describe, *needs, *settle, *timeline;
  if (!PyArg_ParseTupleAndKeywords(args, keywords, "O!OOOOO", const_cast<char **>(names), &PyList_Type, &allocators,
                                   &to_cuda, &describe, &needs, &settle, &timeline))
    return nullptr;
  State &now = state();
  std::vector<Blocks *> found;
  for (Py_ssize_t place = 0; place < PyList_GET_SIZE(allocators); ++place) {
    PyObject *one = PyList_GET_ITEM(allocators, place);
    if (!is_blocks(one)) {
      PyErr_SetString(PyExc_TypeError, "allocators must be made of this module's Blocks");
      return nullptr;
    }
    Py_INCREF(one);  // for good: tensors point to it
    found.push_back(reinterpret_cast<Blocks *>(one));
  }
  now.allocators = std::move(found);
  for (auto [place, value] : {std::pair{&now.to_cuda, to_cuda}, {&now.describe, describe}, {&now.needs, needs},
                              {&now.settle, settle}, {&now.timeline, timeline}}) {
    PyObject *old = *place;
    Py_INCREF(value);
    *place = value;
    Py_XDECREF(old);
  }
  now.lanes.clear();
  now.generation += 1;
  Py_RETURN_NONE;
}

PyObject *set_mode(PyObject *, PyObject *value) {
  long mode = PyLong_AsLong(value);
  if (mode == -1 && PyErr_Occurred()) return nullptr;
  state().mode.store(static_cast<int>(mode));
  Py_RETURN_NONE;
}

PyObject *ask_again(PyObject *, PyObject *) {
  state().switches += 1;
  Py_RETURN_NONE;
}

// Gives back the block that a storage of ours holds, before the storage changes its size; whether it held one.
PyObject *release_storage(PyObject *, PyObject *address) {
  auto *storage = static_cast<c10::StorageImpl *>(PyLong_AsVoidPtr(address));
  if (storage == nullptr) return nullptr;
  auto *owned = storage->data_ptr().cast_context<Owned>(&let_go);
  if (owned == nullptr || owned->block == nullptr) Py_RETURN_FALSE;
  give_back(owned->blocks, owned->block);
  owned->block = nullptr;
  Py_RETURN_TRUE;
}

PyMethodDef methods[] = {
    {"install", install, METH_O, "Registers kernels over those of (name, flags); returns how many."},
    {"connect", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(connect)), METH_VARARGS | METH_KEYWORDS,
     "Names the allocators of the GPUs, and what Python does for the kernels."},
    {"set_mode", set_mode, METH_O, "0: Python's kernels run; 1: nobody listens; 2: the timeline does."},
    {"ask_again", ask_again, METH_NOARGS, "What was learned of operators' needs may be out of date."},
    {"release_storage", release_storage, METH_O, "Gives back the block of the storage at an address; whether it had one."},
    {nullptr}};

PyModuleDef definition = {PyModuleDef_HEAD_INIT, "weft_torch_helper", "The compiled helper of weft.frontends.torch.",
                          -1, methods, nullptr, nullptr, nullptr, nullptr};

}  // namespace
}  // namespace weft

PyMODINIT_FUNC PyInit_weft_torch_helper() {
  PyObject *module = PyModule_Create(&weft::definition);
  if (module == nullptr) return nullptr;
  PyObject *blocks = PyImport_ImportModule("weft.frontends.torch.counters");
  PyObject *counter = blocks ? PyObject_GetAttrString(blocks, "Counter") : nullptr;
  Py_XDECREF(blocks);
  if (counter == nullptr || !weft::add_block_types(module, counter)) {
    Py_XDECREF(counter);
    Py_DECREF(module);
    return nullptr;
  }
  Py_DECREF(counter);
  pthread_atfork(nullptr, nullptr, [] { weft::state().mode.store(weft::kOff); });
  return module;
}
