#include "blocks.h"

#include <structmember.h>

#include <algorithm>
#include <thread>

namespace weft {
namespace {

constexpr int64_t kMinBlock = 512;
constexpr int64_t kSmall = 1 << 20;
constexpr int64_t kHostCheck = 64 << 20;

PyTypeObject *kind_type, *block_type, *allocation_type, *blocks_type;
PyObject *counter_class;

bool is_set(PyObject *object) { return object != nullptr && object != Py_None; }

template <typename T>
T *retain(T *object) {
  Py_XINCREF(reinterpret_cast<PyObject *>(object));
  return object;
}

bool is_finalizing() {
#if PY_VERSION_HEX >= 0x030D0000
  return !Py_IsInitialized() || Py_IsFinalizing();
#else
  return !Py_IsInitialized() || _Py_IsFinalizing();
#endif
}

// ---------------------------------------------------------------- Kind
PyObject *kind_new(PyTypeObject *type, PyObject *, PyObject *) {
  auto *self = reinterpret_cast<Kind *>(type->tp_alloc(type, 0));
  if (self == nullptr) return nullptr;
  self->free = PyDict_New();
  self->segments = PyObject_CallNoArgs(counter_class);
  self->reserved = PyObject_CallNoArgs(counter_class);
  return reinterpret_cast<PyObject *>(self);
}

int kind_init(PyObject *object, PyObject *args, PyObject *) {
  int small = 0;
  if (!PyArg_ParseTuple(args, "p", &small)) return -1;
  reinterpret_cast<Kind *>(object)->small = small;
  return 0;
}

void kind_dealloc(PyObject *object) {
  auto *self = reinterpret_cast<Kind *>(object);
  Py_XDECREF(self->free);
  Py_XDECREF(self->segments);
  Py_XDECREF(self->reserved);
  PyTypeObject *type = Py_TYPE(object);
  type->tp_free(object);
  Py_DECREF(type);
}

#define NUMBER(owner, name) {#name, T_LONGLONG, offsetof(owner, name), 0, nullptr}
#define OBJECT(owner, name, flags) {#name, T_OBJECT, offsetof(owner, name), flags, nullptr}
#define WITH_PEAK(name) NUMBER(Kind, name), NUMBER(Kind, name##_peak), NUMBER(Kind, name##_total)

PyMemberDef kind_members[] = {
    {"small", T_BOOL, offsetof(Kind, small), READONLY, nullptr},
    WITH_PEAK(bytes), WITH_PEAK(count), WITH_PEAK(requested), WITH_PEAK(inactive), WITH_PEAK(inactive_bytes),
    OBJECT(Kind, free, READONLY), OBJECT(Kind, segments, READONLY), OBJECT(Kind, reserved, READONLY), {nullptr}};

PyType_Slot kind_slots[] = {{Py_tp_new, reinterpret_cast<void *>(kind_new)},
                            {Py_tp_init, reinterpret_cast<void *>(kind_init)},
                            {Py_tp_dealloc, reinterpret_cast<void *>(kind_dealloc)},
                            {Py_tp_members, kind_members},
                            {0, nullptr}};
PyType_Spec kind_spec = {"weft_torch_helper.Kind", sizeof(Kind), 0, Py_TPFLAGS_DEFAULT, kind_slots};

// ---------------------------------------------------------------- Block
Block *make_block(int64_t address, int64_t size, int64_t stream, Kind *kind, PyObject *free_list, PyObject *pool) {
  auto *self = reinterpret_cast<Block *>(block_type->tp_alloc(block_type, 0));
  if (self == nullptr) return nullptr;
  self->address = address;
  self->size = size;
  self->stream = stream;
  self->kind = retain(kind);
  self->free_list = retain(free_list);
  self->pool = retain(pool);
  return self;
}

PyObject *block_new(PyTypeObject *, PyObject *args, PyObject *) {
  long long address, size, stream;
  PyObject *kind, *free_list, *pool;
  if (!PyArg_ParseTuple(args, "LLLO!O!O", &address, &size, &stream, kind_type, &kind, &PyList_Type, &free_list, &pool))
    return nullptr;
  return reinterpret_cast<PyObject *>(
      make_block(address, size, stream, reinterpret_cast<Kind *>(kind), free_list, pool));
}

void block_dealloc(PyObject *object) {
  auto *self = reinterpret_cast<Block *>(object);
  Py_XDECREF(reinterpret_cast<PyObject *>(self->kind));
  Py_XDECREF(self->free_list);
  Py_XDECREF(self->pool);
  Py_XDECREF(reinterpret_cast<PyObject *>(self->previous));
  Py_XDECREF(reinterpret_cast<PyObject *>(self->next));
  PyTypeObject *type = Py_TYPE(object);
  type->tp_free(object);
  Py_DECREF(type);
}

PyMemberDef block_members[] = {NUMBER(Block, address), NUMBER(Block, size), NUMBER(Block, requested),
                               NUMBER(Block, stream),
                               {"allocated", T_BOOL, offsetof(Block, allocated), READONLY, nullptr},
                               OBJECT(Block, kind, READONLY), OBJECT(Block, free_list, READONLY),
                               {"private", T_OBJECT, offsetof(Block, pool), READONLY, nullptr},
                               OBJECT(Block, previous, READONLY), OBJECT(Block, next, READONLY), {nullptr}};

PyType_Slot block_slots[] = {{Py_tp_new, reinterpret_cast<void *>(block_new)},
                             {Py_tp_dealloc, reinterpret_cast<void *>(block_dealloc)},
                             {Py_tp_members, block_members},
                             {0, nullptr}};
PyType_Spec block_spec = {"weft_torch_helper.Block", sizeof(Block), 0, Py_TPFLAGS_DEFAULT, block_slots};

// ---------------------------------------------------------------- Allocation
struct Allocation {
  PyObject_HEAD
  Blocks *allocator;
  Block *block;
};

void allocation_dealloc(PyObject *object) {
  auto *self = reinterpret_cast<Allocation *>(object);
  give_back(self->allocator, self->block);
  Py_DECREF(reinterpret_cast<PyObject *>(self->allocator));
  PyTypeObject *type = Py_TYPE(object);
  type->tp_free(object);
  Py_DECREF(type);
}

PyMemberDef allocation_members[] = {OBJECT(Allocation, allocator, READONLY), OBJECT(Allocation, block, READONLY),
                                    {nullptr}};
PyType_Slot allocation_slots[] = {{Py_tp_dealloc, reinterpret_cast<void *>(allocation_dealloc)},
                                  {Py_tp_members, allocation_members},
                                  {0, nullptr}};
PyType_Spec allocation_spec = {"weft_torch_helper.Allocation", sizeof(Allocation), 0,
                               Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION, allocation_slots};

// ---------------------------------------------------------------- free lists: (size, address, block), sorted
Py_ssize_t find_place(PyObject *list, int64_t size, int64_t address) {
  Py_ssize_t low = 0, high = PyList_GET_SIZE(list);
  while (low < high) {
    Py_ssize_t middle = (low + high) / 2;
    PyObject *entry = PyList_GET_ITEM(list, middle);
    int64_t its = PyLong_AsLongLong(PyTuple_GET_ITEM(entry, 0));
    if (its < size || (its == size && PyLong_AsLongLong(PyTuple_GET_ITEM(entry, 1)) < address))
      low = middle + 1;
    else
      high = middle;
  }
  return low;
}

void list_free(PyObject *list, Block *block) {
  PyObject *entry = PyTuple_New(3);
  PyTuple_SET_ITEM(entry, 0, PyLong_FromLongLong(block->size));
  PyTuple_SET_ITEM(entry, 1, PyLong_FromLongLong(block->address));
  PyTuple_SET_ITEM(entry, 2, reinterpret_cast<PyObject *>(retain(block)));
  PyList_Insert(list, find_place(list, block->size, block->address), entry);
  Py_DECREF(entry);
}

void unlist_free(PyObject *list, Block *block) {
  Py_ssize_t place = find_place(list, block->size, block->address);
  PyList_SetSlice(list, place, place + 1, nullptr);
}

void raise_to(int64_t &peak, int64_t value) {
  if (value > peak) peak = value;
}

void count_inactive(Blocks *self, Kind *kind, int64_t blocks, int64_t size) {
  kind->inactive += blocks;
  if (blocks > 0) {
    kind->inactive_total += blocks;
    raise_to(kind->inactive_peak, kind->inactive);
    raise_to(self->inactive_peak, self->small->inactive + self->large->inactive);
  }
  kind->inactive_bytes += size;
  if (size > 0) {
    kind->inactive_bytes_total += size;
    raise_to(kind->inactive_bytes_peak, kind->inactive_bytes);
    raise_to(self->inactive_bytes_peak, self->small->inactive_bytes + self->large->inactive_bytes);
  }
}

bool trace(Blocks *self, const char *action, int64_t address, int64_t size, int64_t stream) {
  PyObject *done = PyObject_CallMethod(reinterpret_cast<PyObject *>(self), "_trace", "sLLL", action,
                                       static_cast<long long>(address), static_cast<long long>(size),
                                       static_cast<long long>(stream));
  Py_XDECREF(done);
  return done != nullptr;
}

// Takes the caller's reference.
void free_block(Blocks *self, Block *block) {
  Kind *kind = block->kind;
  PyObject *free = block->free_list;
  int64_t size = block->size;
  kind->bytes -= size;
  kind->count -= 1;
  kind->requested -= block->requested;
  block->allocated = false;
  if (is_set(self->trace) && !trace(self, "free_completed", block->address, block->requested, block->stream))
    PyErr_WriteUnraisable(reinterpret_cast<PyObject *>(self));
  Block *previous = block->previous, *following = block->next;
  if (previous != nullptr || following != nullptr) {
    int64_t blocks = 1, merged = size;
    if (previous != nullptr && !previous->allocated) {
      unlist_free(free, previous);
      blocks = 0;
      block->address = previous->address;
      size += previous->size;
      Block *before = previous->previous;  // its reference moves along
      previous->previous = nullptr;
      Block *gone_next = previous->next;  // this block
      previous->next = nullptr;
      block->previous = before;
      if (before != nullptr) {
        Block *old = before->next;
        before->next = retain(block);
        Py_XDECREF(reinterpret_cast<PyObject *>(old));
      } else {
        PyObject *address = PyLong_FromLongLong(block->address);
        PyDict_SetItem(self->heads, address, reinterpret_cast<PyObject *>(block));
        Py_DECREF(address);
      }
      Py_XDECREF(reinterpret_cast<PyObject *>(gone_next));
      Py_DECREF(reinterpret_cast<PyObject *>(previous));
      previous = before;
    }
    if (following != nullptr && !following->allocated) {
      unlist_free(free, following);
      blocks -= 1;
      size += following->size;
      Block *after = following->next;
      following->next = nullptr;
      Block *gone_previous = following->previous;  // this block
      following->previous = nullptr;
      block->next = after;
      if (after != nullptr) {
        Block *old = after->previous;
        after->previous = retain(block);
        Py_XDECREF(reinterpret_cast<PyObject *>(old));
      }
      Py_XDECREF(reinterpret_cast<PyObject *>(gone_previous));
      Py_DECREF(reinterpret_cast<PyObject *>(following));
      following = after;
    }
    block->size = size;
    if (previous == nullptr && following == nullptr) {
      blocks -= 1;
      merged -= size;
    }
    count_inactive(self, kind, blocks, merged);
  }
  list_free(free, block);
  Py_DECREF(reinterpret_cast<PyObject *>(block));
}

void take_back(Blocks *self) {
  for (;;) {
    std::vector<Block *> waiting;
    {
      std::lock_guard<std::mutex> guard(*self->returned_lock);
      waiting.swap(*self->returned);
    }
    if (waiting.empty()) return;
    for (Block *block : waiting) free_block(self, block);
  }
}

// False with a Python error set where this thread is busy with it already.
bool enter(Blocks *self) {
  unsigned long thread = PyThread_get_thread_ident();
  while (self->busy) {
    if (self->owner == thread) {
      PyErr_SetString(PyExc_RuntimeError, "the allocator was entered from within itself");
      return false;
    }
    Py_BEGIN_ALLOW_THREADS;
    std::this_thread::yield();
    Py_END_ALLOW_THREADS;
  }
  self->busy = true;
  self->owner = thread;
  return true;
}

PyObject *free_list_of(PyObject *pool, int64_t stream) {
  PyObject *key = PyLong_FromLongLong(stream);
  PyObject *list = PyDict_GetItemWithError(pool, key);
  if (list == nullptr && !PyErr_Occurred()) {
    list = PyList_New(0);
    PyDict_SetItem(pool, key, list);
    Py_DECREF(list);
  }
  Py_DECREF(key);
  return list;
}

Block *take_in_place(Blocks *self, Kind *kind, int64_t size, int64_t requested, int64_t stream) {
  auto *object = reinterpret_cast<PyObject *>(self);
  PyObject *found = nullptr, *pool = kind->free, *private_pool = Py_None;
  if (is_set(self->capture)) {
    found = PyObject_CallMethod(object, "_pool_in_capture", "OL", kind, static_cast<long long>(stream));
    if (found == nullptr) return nullptr;
    pool = PyTuple_GetItem(found, 0);
    private_pool = PyTuple_GetItem(found, 1);
  }
  PyObject *free = free_list_of(pool, stream);
  Block *block = nullptr;
  if (free != nullptr) {
    Py_ssize_t place = find_place(free, size, -1);
    if (place < PyList_GET_SIZE(free)) {
      block = retain(reinterpret_cast<Block *>(PyTuple_GET_ITEM(PyList_GET_ITEM(free, place), 2)));
      PyList_SetSlice(free, place, place + 1, nullptr);
    } else {
      block = reinterpret_cast<Block *>(PyObject_CallMethod(object, "_reserve", "OLLOOL", kind,
                                                            static_cast<long long>(size),
                                                            static_cast<long long>(stream), free, private_pool,
                                                            static_cast<long long>(requested)));
    }
  }
  if (block == nullptr) {
    Py_XDECREF(found);
    return nullptr;
  }
  int64_t rest = block->size - size;
  Block *following = block->next;
  if (kind->small ? rest >= kMinBlock : rest > kSmall) {
    Block *other = make_block(block->address + size, rest, stream, kind, free, private_pool);
    other->previous = retain(block);
    other->next = following;  // its reference moves along
    block->next = retain(other);
    block->size = size;
    list_free(free, other);
    if (following != nullptr) {
      Block *old = following->previous;
      following->previous = retain(other);
      Py_XDECREF(reinterpret_cast<PyObject *>(old));
      kind->inactive_bytes -= size;
    } else if (block->previous != nullptr) {
      kind->inactive_bytes -= size;
    } else {
      count_inactive(self, kind, 1, rest);
    }
    Py_DECREF(reinterpret_cast<PyObject *>(other));
  } else {
    size = block->size;
    if (following != nullptr || block->previous != nullptr) {
      kind->inactive -= 1;
      kind->inactive_bytes -= size;
    }
  }
  Py_XDECREF(found);
  block->allocated = true;
  block->requested = requested;
  kind->bytes_total += size;
  kind->count_total += 1;
  kind->requested_total += requested;
  raise_to(kind->bytes_peak, kind->bytes += size);
  raise_to(kind->count_peak, kind->count += 1);
  raise_to(kind->requested_peak, kind->requested += requested);
  raise_to(self->bytes_peak, self->small->bytes + self->large->bytes);
  raise_to(self->count_peak, self->small->count + self->large->count);
  raise_to(self->requested_peak, self->small->requested + self->large->requested);
  return block;
}

// ---------------------------------------------------------------- Blocks
PyObject *blocks_new(PyTypeObject *type, PyObject *, PyObject *) {
  auto *self = reinterpret_cast<Blocks *>(type->tp_alloc(type, 0));
  if (self == nullptr) return nullptr;
  PyObject *yes = Py_True, *no = Py_False;
  self->small = reinterpret_cast<Kind *>(PyObject_CallOneArg(reinterpret_cast<PyObject *>(kind_type), yes));
  self->large = reinterpret_cast<Kind *>(PyObject_CallOneArg(reinterpret_cast<PyObject *>(kind_type), no));
  self->heads = PyDict_New();
  self->returned_lock = new std::mutex();
  self->returned = new std::vector<Block *>();
  return reinterpret_cast<PyObject *>(self);
}

int blocks_init(PyObject *, PyObject *, PyObject *) { return 0; }

// Allocators live as long as the process, or as the last allocation that names them.
void blocks_dealloc(PyObject *object) {
  auto *self = reinterpret_cast<Blocks *>(object);
  Py_XDECREF(reinterpret_cast<PyObject *>(self->small));
  Py_XDECREF(reinterpret_cast<PyObject *>(self->large));
  Py_XDECREF(self->heads);
  Py_XDECREF(self->capture);
  Py_XDECREF(self->trace);
  delete self->returned_lock;
  delete self->returned;
  PyTypeObject *type = Py_TYPE(object);
  type->tp_free(object);
  Py_DECREF(type);
}

PyObject *blocks_allocate(PyObject *object, PyObject *const *args, Py_ssize_t count) {
  if (count < 1 || count > 2) {
    PyErr_SetString(PyExc_TypeError, "allocate takes a number of bytes and a stream");
    return nullptr;
  }
  int64_t requested = PyLong_AsLongLong(args[0]);
  int64_t stream = count > 1 ? PyLong_AsLongLong(args[1]) : 0;
  if (PyErr_Occurred()) return nullptr;
  auto *self = reinterpret_cast<Blocks *>(object);
  Block *block = take_block(self, requested, stream);
  if (block == nullptr) {
    if (PyErr_Occurred()) return nullptr;
    Py_RETURN_NONE;
  }
  auto *held = reinterpret_cast<Allocation *>(allocation_type->tp_alloc(allocation_type, 0));
  if (held == nullptr) return nullptr;
  held->allocator = retain(self);
  held->block = block;
  return reinterpret_cast<PyObject *>(held);
}

PyObject *blocks_take_back(PyObject *object, PyObject *) {
  take_back(reinterpret_cast<Blocks *>(object));
  Py_RETURN_NONE;
}

PyObject *blocks_enter(PyObject *object, PyObject *) {
  if (!enter(reinterpret_cast<Blocks *>(object))) return nullptr;
  Py_RETURN_NONE;
}

PyObject *blocks_exit(PyObject *object, PyObject *) {
  reinterpret_cast<Blocks *>(object)->busy = false;
  Py_RETURN_NONE;
}

PyObject *blocks_lock(PyObject *object, void *) { return retain(object); }

PyMethodDef blocks_methods[] = {
    {"allocate", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(blocks_allocate)), METH_FASTCALL,
     "A block for so many bytes (more than 0), held by what is returned; None while suspended."},
    {"_take_back", blocks_take_back, METH_NOARGS, "Frees what was given back meanwhile."},
    {"__enter__", blocks_enter, METH_NOARGS, "Waits until nobody else is busy with the blocks."},
    {"__exit__", blocks_exit, METH_VARARGS, "Lets others in."},
    {nullptr}};
PyGetSetDef blocks_getters[] = {{"_lock", blocks_lock, nullptr, "A context in which nobody else changes the blocks.",
                                 nullptr},
                                {nullptr}};
PyMemberDef blocks_members[] = {
    {"suspended", T_BOOL, offsetof(Blocks, suspended), 0, nullptr},
    OBJECT(Blocks, small, READONLY), OBJECT(Blocks, large, READONLY), OBJECT(Blocks, heads, READONLY),
    OBJECT(Blocks, capture, 0), OBJECT(Blocks, trace, 0),
    NUMBER(Blocks, bytes_peak), NUMBER(Blocks, count_peak), NUMBER(Blocks, requested_peak),
    NUMBER(Blocks, inactive_peak), NUMBER(Blocks, inactive_bytes_peak), {nullptr}};
PyType_Slot blocks_slots[] = {{Py_tp_new, reinterpret_cast<void *>(blocks_new)},
                              {Py_tp_init, reinterpret_cast<void *>(blocks_init)},
                              {Py_tp_dealloc, reinterpret_cast<void *>(blocks_dealloc)},
                              {Py_tp_methods, blocks_methods},
                              {Py_tp_getset, blocks_getters},
                              {Py_tp_members, blocks_members},
                              {0, nullptr}};
PyType_Spec blocks_spec = {"weft_torch_helper.Blocks", sizeof(Blocks), 0, Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE,
                           blocks_slots};

}  // namespace

Block *take_block(Blocks *self, int64_t requested, int64_t stream) {
  if (self->suspended) return nullptr;
  if (requested >= kHostCheck) {
    PyObject *checked = PyObject_CallMethod(reinterpret_cast<PyObject *>(self), "_check_host", "L",
                                            static_cast<long long>(requested));
    if (checked == nullptr) return nullptr;
    Py_DECREF(checked);
  }
  int64_t size = (requested + kMinBlock - 1) & -kMinBlock;
  if (!enter(self)) return nullptr;
  take_back(self);
  Block *block = take_in_place(self, size <= kSmall ? self->small : self->large, size, requested, stream);
  self->busy = false;
  if (block != nullptr && is_set(self->trace) && !trace(self, "alloc", block->address, requested, stream)) {
    give_back(self, block);
    return nullptr;
  }
  return block;
}

void give_back(Blocks *self, Block *block) {
  if (is_finalizing()) return;
  if (PyGILState_Check() && !self->busy) {
    // What an exception left behind stays as it is.
    PyObject *type, *value, *traceback;
    PyErr_Fetch(&type, &value, &traceback);
    self->busy = true;
    self->owner = PyThread_get_thread_ident();
    free_block(self, block);
    take_back(self);
    self->busy = false;
    PyErr_Restore(type, value, traceback);
    return;
  }
  std::lock_guard<std::mutex> guard(*self->returned_lock);
  self->returned->push_back(block);
}

bool is_blocks(PyObject *object) { return PyObject_TypeCheck(object, blocks_type); }

bool add_block_types(PyObject *module, PyObject *counter) {
  counter_class = retain(counter);
  struct {
    PyTypeObject **type;
    PyType_Spec *spec;
  } all[] = {{&kind_type, &kind_spec},
             {&block_type, &block_spec},
             {&allocation_type, &allocation_spec},
             {&blocks_type, &blocks_spec}};
  for (auto &entry : all) {
    *entry.type = reinterpret_cast<PyTypeObject *>(PyType_FromSpec(entry.spec));
    if (*entry.type == nullptr || PyModule_AddType(module, *entry.type) < 0) return false;
  }
  return true;
}

}  // namespace weft
