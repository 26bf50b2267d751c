"""Operators and what they launch: counts worked out by hand, PyTorch's own FLOP counter, and that nothing is free by
mistake."""

from __future__ import annotations

import pytest

from weft.model.operators import base_name, covered, needs_of, profiles_of, waits_for_device
from weft.model.profile import FAMILIES
from weft.model.work import Call, Operand, describe_dtype, describe_tensor

torch = pytest.importorskip("torch")


def tensor(*shape: int, dtype: str = "float32", strides: tuple[int, ...] | None = None) -> Operand:
    sizes = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2, "int64": 8, "bool": 1, "float8_e4m3fn": 1,
             "complex64": 8, "int8": 1, "int32": 4}  # fmt: skip
    return Operand(tuple(shape), dtype, sizes[dtype], strides)


def call(name: str, inputs: tuple, outputs: tuple | Operand, **kwargs) -> Call:
    tf32 = kwargs.pop("tf32", False)
    return Call(name, inputs, outputs if isinstance(outputs, tuple) else (outputs,), kwargs, tf32_matmul=tf32,
                tf32_convolution=kwargs.pop("tf32_convolution", True))  # fmt: skip


def only(made: Call):
    (profile,) = profiles_of(made)
    return profile


# ---------------------------------------------------------------- by hand
def test_matrix_product() -> None:
    profile = only(call("aten::mm", (tensor(128, 512), tensor(512, 64)), tensor(128, 64)))
    assert profile.family == "gemm" and profile.gemm == (1, 128, 64, 512)
    assert profile.flops == (("fp32", 2 * 128 * 64 * 512),)
    assert profile.bytes_read == 4 * (128 * 512 + 512 * 64) and profile.bytes_written == 4 * 128 * 64


@pytest.mark.parametrize(
    "dtype, tf32, unit, factor",
    [("float32", False, "fp32", 1), ("float32", True, "tc_tf32", 1), ("bfloat16", False, "tc_bf16", 1),
     ("float16", True, "tc_fp16", 1), ("float64", False, "tc_fp64", 1), ("complex64", False, "fp32", 4)],
)  # fmt: skip
def test_units_of_products(dtype: str, tf32: bool, unit: str, factor: int) -> None:
    made = call("mm", (tensor(8, 16, dtype=dtype), tensor(16, 4, dtype=dtype)), tensor(8, 4, dtype=dtype), tf32=tf32)
    assert only(made).flops == ((unit, factor * 2 * 8 * 16 * 4),)


def test_bias_is_read_and_batches_multiply() -> None:
    bias = tensor(64)
    profile = only(call("addmm", (bias, tensor(128, 512), tensor(512, 64)), tensor(128, 64)))
    assert profile.bytes_read == 4 * (64 + 128 * 512 + 512 * 64)
    profile = only(call("bmm", (tensor(7, 8, 9), tensor(7, 9, 5)), tensor(7, 8, 5)))
    assert profile.gemm == (7, 8, 5, 9) and profile.flops[0][1] == 2 * 7 * 8 * 9 * 5


def test_fp8_product_runs_on_fp8_cores() -> None:
    kind = "float8_e4m3fn"
    a, b, scale = tensor(64, 256, dtype=kind), tensor(256, 32, dtype=kind), tensor(1)
    profile = only(call("_scaled_mm", (a, b, scale, scale), tensor(64, 32, dtype="bfloat16")))
    assert profile.flops == (("tc_fp8", 2 * 64 * 256 * 32),)


def test_convolution() -> None:
    x, w, out = tensor(8, 3, 32, 32), tensor(16, 3, 3, 3), tensor(8, 16, 32, 32)
    made = call("convolution", (x, w, None, (1, 1), (1, 1), (1, 1), False, (0, 0), 1), out, tf32_convolution=False)
    profile = only(made)
    assert profile.flops == (("fp32", 2 * 8 * 32 * 32 * 16 * 27),) and profile.gemm == (1, 8 * 32 * 32, 16, 27)
    # TF32: the tensors, which are not channels last, are transposed before and after.
    names = [profile.name for profile in profiles_of(call("convolution", made.inputs, out))]
    assert names == ["transpose_layout", "convolution", "transpose_layout"]


def test_channels_last_needs_no_transposing() -> None:
    x = tensor(8, 64, 32, 32, dtype="bfloat16", strides=(65536, 1, 2048, 64))
    out = tensor(8, 64, 32, 32, dtype="bfloat16", strides=(65536, 1, 2048, 64))
    made = call("convolution", (x, tensor(64, 64, 3, 3, dtype="bfloat16"), None, (1, 1), (1, 1), (1, 1), False,
                                (0, 0), 1), out)  # fmt: skip
    assert [profile.name for profile in profiles_of(made)] == ["convolution"]


def test_depthwise_convolution_uses_no_tensor_cores() -> None:
    x = tensor(2, 32, 16, 16, dtype="float16")
    made = call("convolution", (x, tensor(32, 1, 3, 3, dtype="float16"), None, (1, 1), (1, 1), (1, 1), False, (0, 0),
                                32), x)  # fmt: skip
    assert only(made).flops == (("fp32", 2 * 2 * 16 * 16 * 32 * 9),)


def test_transposed_convolution() -> None:
    # Each input element meets out channels x kernel.
    x, w, out = tensor(2, 8, 5, 5), tensor(8, 4, 2, 2), tensor(2, 4, 10, 10)
    made = call("convolution", (x, w, None, (2, 2), (0, 0), (1, 1), True, (0, 0), 1), out, tf32_convolution=False)
    assert only(made).flops == (("fp32", 2 * (2 * 8 * 25) * 4 * 4),)


def test_attention() -> None:
    q = tensor(2, 4, 128, 64, dtype="bfloat16")
    full = only(call("_scaled_dot_product_flash_attention", (q, q, q, 0.0, False, False), (q, tensor(2, 4, 128))))
    assert dict(full.flops)["tc_bf16"] == 4 * 2 * 4 * 128 * 128 * 64
    causal = only(call("_scaled_dot_product_flash_attention", (q, q, q, 0.0, True, False), (q, tensor(2, 4, 128))))
    # Of 128 x 128 scores those on and under the diagonal: 128 * 129 / 2.
    assert dict(causal.flops)["tc_bf16"] == pytest.approx(4 * 2 * 4 * (128 * 129 / 2) * 64)
    back = profiles_of(
        call("_scaled_dot_product_flash_attention_backward", (q, q, q, q, q, tensor(2, 4, 128), None, None, 128, 128,
                                                              0.0, False), (q, q, q))
    )  # fmt: skip
    assert dict(back[-1].flops)["tc_bf16"] == 2.5 * 4 * 2 * 4 * 128 * 128 * 64


def test_pointwise_reads_expanded_sides_once() -> None:
    row = tensor(1024, 64, strides=(0, 1))
    profile = only(call("add.Tensor", (tensor(1024, 64), row), tensor(1024, 64)))
    assert profile.bytes_read == 4 * (1024 * 64 + 64) and profile.bytes_written == 4 * 1024 * 64
    assert profile.family == "pointwise" and profile.kernels == 1


def test_fill_reads_nothing() -> None:
    profile = only(call("zero_", (tensor(1000),), tensor(1000)))
    assert (profile.bytes_read, profile.bytes_written, profile.family) == (0, 4000, "copy")


def test_transposing_copy_is_strided() -> None:
    straight = only(call("clone", (tensor(64, 32, strides=(32, 1)),), tensor(64, 32, strides=(32, 1))))
    turned = only(call("clone", (tensor(64, 32, strides=(1, 64)),), tensor(64, 32, strides=(32, 1))))
    assert (straight.access, turned.access) == ("stream", "strided")


def test_embedding_reads_only_its_rows() -> None:
    weight, indices = tensor(50000, 256), tensor(8, 16, dtype="int64")
    profile = only(call("embedding", (weight, indices), tensor(8, 16, 256)))
    assert profile.bytes_read == 8 * 16 * (256 * 4 + 8)


def test_fused_adamw() -> None:
    sizes = [1000, 300_000, 70_000]
    lists = tuple(tuple(tensor(size) for size in sizes) for _ in range(4))
    steps = tuple(tensor() for _ in sizes)
    made = call("_fused_adamw_", (*lists, (), steps), ())
    profile = only(made)
    assert profile.kernels == 1 and profile.family == "optimiser"
    assert profile.bytes_read == 4 * 4 * sum(sizes) and profile.bytes_written == 3 * 4 * sum(sizes)


def test_many_tensors_take_several_kernels() -> None:
    tensors = tuple(tensor(10) for _ in range(200))
    # 64 tensors of two lists fit in a kernel: 200 take 4.
    assert only(call("_foreach_add_.List", (tensors, tensors), ())).kernels == 4


def test_lstm_is_steps_of_products() -> None:
    length, batch, features, hidden = 10, 4, 8, 16
    made = call(
        "_cudnn_rnn",
        (tensor(length, batch, features), (), 4, None, tensor(1, batch, hidden), None, 2, hidden, 0, 1, False, 0.0,
         True, False, (), None),
        (tensor(length, batch, hidden),), tf32_convolution=False,
    )  # fmt: skip
    first, steps = profiles_of(made)
    assert first.gemm == (1, length * batch, 4 * hidden, features)
    assert steps.kernels == length and steps.gemm == (1, batch, 4 * hidden, hidden)


def test_sort_takes_passes() -> None:
    short = profiles_of(call("sort", (tensor(64, 1000), -1, False), (tensor(64, 1000), tensor(64, 1000))))
    assert len(short) == 1
    long = profiles_of(call("sort", (tensor(1 << 20), -1, False), (tensor(1 << 20), tensor(1 << 20))))
    assert sum(profile.kernels for profile in long) == 1 + 4  # a histogram, four digits of 8 bits


@pytest.mark.parametrize("name", ["view", "aten::t", "expand", "detach", "empty.memory_format", "slice.Tensor"])
def test_views_launch_nothing(name: str) -> None:
    assert profiles_of(call(name, (tensor(3, 4),), tensor(3, 4))) == [] and needs_of(name).free


@pytest.mark.parametrize(
    "name, inputs, waits",
    [("nonzero", (tensor(100),), True), ("relu", (tensor(100),), False), ("equal", (tensor(9), tensor(9)), True),
     ("index.Tensor", (tensor(100), (tensor(100, dtype="bool"),)), True),
     ("index.Tensor", (tensor(100), (tensor(10, dtype="int64"),)), False)],
)  # fmt: skip
def test_operators_for_which_the_host_waits(name: str, inputs: tuple, waits: bool) -> None:
    assert waits_for_device(call(name, inputs, tensor(10))) is waits


def test_unknown_operator_is_priced_by_bytes_and_says_so() -> None:
    profile = only(call("mylib::strange_op", (tensor(10), (tensor(5), tensor(6))), (tensor(7), tensor(8))))
    assert (profile.family, profile.basis) == ("unknown", "bytes only")
    assert profile.bytes_read == 4 * 21 and profile.bytes_written == 4 * 15 and profile.name == "mylib::strange_op"


def test_odd_arguments_of_a_known_operator_are_priced_by_bytes() -> None:
    profile = only(call("convolution", (tensor(3),), tensor(3)))
    assert profile.basis == "bytes only"


@pytest.mark.parametrize(
    "name, base",
    [("aten::add_.Tensor", "add"), ("mm.out", "mm"), ("aten::__lshift__.Scalar", "__lshift__"),
     ("c10d::gather_", "c10d::gather"), ("quantized::relu6", "quantized::relu6"), ("relu6", "relu6")],
)  # fmt: skip
def test_base_names(name: str, base: str) -> None:
    assert base_name(name) == base


# ---------------------------------------------------------------- against PyTorch
def test_tensors_of_pytorch_and_numpy_are_understood() -> None:
    import numpy as np

    meta = torch.empty(4, 6, device="meta", dtype=torch.bfloat16).t()
    assert describe_tensor(meta) == Operand((6, 4), "bfloat16", 2, (1, 6))
    assert describe_tensor(np.zeros((2, 3), "f4")) == Operand((2, 3), "float32", 4, (3, 1))
    assert [describe_dtype(kind) for kind in (torch.int64, np.dtype("f8"), np.float32)] == [
        "int64", "float64", "float32",
    ]  # fmt: skip


# Operators of libraries that no GPU program uses, or that are communication (weft.model.collectives).
ELSEWHERE = ("c10d", "_c10d", "mkldnn", "mps", "lstm_mps", "_lstm_mps", "_mps", "_test", "_foobar", "_nnpack",
             "quantized",
             "_weight_int4pack_mm_for_cpu", "_scaled_dot_product_attention_math_for_mps",
             "_nested_from_padded_and_nested_example")  # fmt: skip


def test_every_aten_operator_has_a_rule() -> None:
    """All that reach a backend; those made of others never arrive."""
    missing = set()
    for full in torch._C._dispatch_get_all_op_names():
        if not full.startswith("aten::"):
            continue
        if torch._C._dispatch_has_kernel_for_dispatch_key(full, "CompositeImplicitAutograd"):
            continue
        name = full.removeprefix("aten::").partition(".")[0]
        if not name.startswith(ELSEWHERE) and not covered(full):
            missing.add(name)
    assert missing <= {"_local_scalar_dense"}, sorted(missing)  # a copy to the host: Timeline.operator


def test_flops_agree_with_pytorchs_counter() -> None:
    """The oracle is torch.utils.flop_counter, on meta tensors; it miscounts the gradients of grouped convolutions."""
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils.flop_counter import FlopCounterMode, flop_registry

    counted: list[tuple[str, float, float]] = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            packet = function._overloadpacket
            if packet in flop_registry:
                expected = flop_registry[packet](*args, **(kwargs or {}), out_val=result)
                results = result if isinstance(result, tuple) else (result,)
                from weft.model.work import describe_value

                made = Call(function.name(), tuple(map(describe_value, args)), tuple(map(describe_value, results)), {})
                own = sum(
                    value * profile.kernels
                    for profile in profiles_of(made)
                    for unit, value in profile.flops
                    if unit != "sfu" and profile.family in ("gemm", "convolution", "attention")
                )
                counted.append((str(function), own, float(expected)))
            return result

    make = {"device": "meta", "dtype": torch.bfloat16, "requires_grad": True}
    x = torch.empty(4, 16, 20, 20, **make)
    net = torch.nn.Sequential(
        torch.nn.Conv2d(16, 32, 3, stride=2), torch.nn.ReLU(), torch.nn.Conv2d(32, 32, 3, padding=1),
        torch.nn.ConvTranspose2d(32, 8, 2, stride=2), torch.nn.Flatten(), torch.nn.Linear(2592, 10),
    ).to(device="meta", dtype=torch.bfloat16)  # fmt: skip
    with FlopCounterMode(display=False), Watch():
        net(x).sum().backward()
        torch.bmm(torch.empty(3, 4, 5, **make), torch.empty(3, 5, 6, **make))
        torch.baddbmm(torch.empty(3, 4, 6, **make), torch.empty(3, 4, 5, **make), torch.empty(3, 5, 6, **make))
    assert len(counted) >= 9
    for name, own, expected in counted:
        assert own == pytest.approx(expected, rel=1e-6), name


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_samples_of_every_operator_are_priced_by_their_rules() -> None:
    """PyTorch's OpInfo database, forward and backward: no rule stumbles over real arguments, no count is negative."""
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch_opinfo import operators

    from weft.model.operators import UNKNOWN
    from weft.model.work import describe_value

    seen, wrong = set(), {}

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            name = function.name()
            seen.add(name)
            results = result if isinstance(result, (tuple, list)) else (result,)
            made = Call(name, tuple(map(describe_value, args)), tuple(map(describe_value, results)),
                        {option: describe_value(value) for option, value in (kwargs or {}).items()})  # fmt: skip
            rule = needs_of(name)
            if rule is UNKNOWN or rule.free:
                return result
            try:
                found = rule.price(made)
            except Exception as error:
                wrong[name] = repr(error)
                return result
            for profile in found if isinstance(found, list) else [found]:
                if profile.bytes_read < 0 or profile.bytes_written < 0 or any(count < 0 for _, count in profile.flops):
                    wrong[name] = repr(profile)
            return result

    for entry in operators():
        if torch.float32 not in entry.dtypes:
            continue
        for _, sample in zip(
            range(2), entry.sample_inputs("cpu", torch.float32, requires_grad=entry.supports_autograd)
        ):
            try:
                with Watch():
                    out = entry(sample.input, *sample.args, **sample.kwargs)
                    if isinstance(out, torch.Tensor) and out.requires_grad:
                        out.abs().sum().backward()
            except Exception:
                continue  # a sample that the operator itself refuses
    assert wrong == {} and len(seen) > 400


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_described(family: str) -> None:
    assert FAMILIES[family]
