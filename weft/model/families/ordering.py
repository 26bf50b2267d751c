"""Random numbers; sorting, selection and unique values."""

from __future__ import annotations

import math

from weft.model.families.shapes import main_operand, plain_pipe, reads, streaming, total_bytes, writes
from weft.model.operators import rule
from weft.model.profile import Profile
from weft.model.work import Call, Operand

# Rows that one block sorts in shared memory (PyTorch's bitonic and block radix sorts go up to 4,096 elements).
SMALL_ROW = 4096
RADIX_BITS = 8


@rule(
    "random",
    "normal uniform bernoulli random exponential geometric cauchy log_normal rand randn randint rand_like "
    "randn_like randint_like normal_functional poisson binomial _standard_gamma _sample_dirichlet _philox_normal "
    "_philox_uniform _philox_key_split _philox_key_fold_in _cudnn_init_dropout_state",
    outputs=True,
)
def price_random(call: Call) -> Profile:
    """Philox makes four numbers in about 60 integer operations; most distributions add a special function or two"""
    out = main_operand(call)
    written = writes(call) or out.nbytes
    flops = (("int32", 15.0 * out.count), ("sfu", 1.0 * out.count))
    read = 0.0 if call.name.endswith("_") or "like" in call.name else total_bytes(call.inputs)
    return Profile("random", "random", flops, read, written)


@rule("random", "native_dropout _fused_dropout dropout rrelu_with_noise rrelu_with_noise_functional")
def price_dropout(call: Call) -> Profile:
    """Random numbers and a product in one pass; the mask is written beside the result"""
    x = call.inputs[0]
    return Profile("dropout", "random", (("int32", 15.0 * x.count), ("fp32", 2.0 * x.count)), x.nbytes, writes(call))


@rule("random", "multinomial")
def price_multinomial(call: Call) -> list[Profile]:
    """Sums and a scan of the weights, then draws"""
    x = call.inputs[0]
    return [
        Profile("scan", "reduction", ((plain_pipe(x.dtype), 3.0 * x.count),), x.nbytes, x.nbytes, kernels=2),
        Profile("draw", "random", (), x.nbytes, writes(call), kernels=2),
    ]


@rule("random", "randperm", outputs=True)
def price_randperm(call: Call) -> list[Profile]:
    """Random keys, sorted"""
    out = call.results()[0]
    keys = Operand(out.shape, "int32", 4)
    return [Profile("random", "random", (("int32", 15.0 * out.count),), 0.0, keys.nbytes), *_sort(keys, out.count, 1)]


def _sort(x: Operand, row: int, rows: int) -> list[Profile]:
    """Keys with 8-byte indices: in one block where the row is short, else radix passes of 8 bits."""
    total = row * rows
    pair = x.itemsize + 8.0
    work = 2.0 * total * max(1.0, math.log2(max(row, 2)))
    if row <= SMALL_ROW:
        return [Profile("sort_block", "sort", (("int32", work),), total * x.itemsize, total * pair)]
    passes = max(1, math.ceil(x.itemsize * 8 / RADIX_BITS))
    # A segmented sort of many rows sorts by value, then stably by row: twice the passes for the row numbers.
    passes += 2 if rows > 1 else 0
    histogram = Profile("sort_histogram", "sort", (("int32", 4.0 * total),), total * x.itemsize, 0.0)
    one = Profile("sort_pass", "sort", (("int32", 12.0 * total),), total * pair, total * pair, kernels=passes)
    return [histogram, one]


@rule("sort", "sort argsort msort")
def price_sort(call: Call) -> list[Profile]:
    """sort(x, dim)"""
    x = call.inputs[0]
    row = _row(call, x)
    return _sort(x, row, max(1, x.count // max(row, 1)))


def _row(call: Call, x: Operand) -> int:
    if not x.shape:
        return 1
    dims = [value for value in (*call.inputs[1:], call.kwargs.get("dim")) if type(value) is int]
    dim = dims[-1] if dims and -len(x.shape) <= dims[-1] < len(x.shape) else -1
    return x.shape[dim]


@rule("sort", "topk kthvalue mode median nanmedian")
def price_select(call: Call) -> list[Profile]:
    """Radix selection reads the rows once per digit of 8 bits; topk sorts the few that it found"""
    x = call.inputs[0]
    row = x.shape[-1] if x.shape else 1
    passes = max(1, math.ceil(x.itemsize * 8 / RADIX_BITS))
    if row <= SMALL_ROW:
        passes = 1
    found = [
        Profile("radix_select", "sort", (("int32", 8.0 * x.count * passes),), x.nbytes * (passes + 1), writes(call))
    ]
    out = call.results()[0]
    if "topk" in call.name and out.shape and out.shape[-1] > 1:
        found += _sort(out, out.shape[-1], max(1, out.count // out.shape[-1]))
    return found


@rule("sort", "_unique _unique2 unique_dim unique_dim_consecutive unique_consecutive", waits=True)
def price_unique(call: Call) -> list[Profile]:
    """A sort, then neighbours are compared and the first of each run is kept; the host waits for the count"""
    x = call.inputs[0]
    found = [] if "consecutive" in call.name else _sort(x, x.count, 1)
    compare = Profile("unique_runs", "sort", (("int32", 4.0 * x.count),), x.nbytes, writes(call) + 8.0 * x.count / 2,
                      kernels=3)  # fmt: skip
    return [*found, compare]


@rule("sort", "searchsorted bucketize")
def price_search(call: Call) -> Profile:
    """A binary search per value; the upper levels stay in the cache"""
    tensors = call.tensors()
    boundaries = min(tensors, key=lambda operand: operand.count) if len(tensors) > 1 else tensors[0]
    out = call.results()[0]
    steps = math.log2(max(boundaries.shape[-1] if boundaries.shape else 2, 2))
    return Profile("searchsorted", "sort", (("int32", 4.0 * steps * out.count),), reads(call), writes(call),
                   access="random")  # fmt: skip


@rule("sort", "_assert_async _functional_assert_async")
def price_assert(call: Call) -> Profile:
    """One thread looks at one value"""
    return streaming(call, "pointwise", "assert", operations=1.0)
