"""Gather, scatter, embedding, index: traffic of the elements that are named, and of their indices."""

from __future__ import annotations

from weft.model.families.shapes import operands_of, plain_pipe, reads, total_bytes, writes
from weft.model.operators import rule
from weft.model.profile import Profile
from weft.model.work import Call, Operand

INDEX_TYPES = ("int64", "int32", "bool", "uint8", "int16", "int8")


def _row_access(width_bytes: float) -> str:
    """Rows of at least a few sectors are read straight on."""
    return "stream" if width_bytes >= 128 else "random"


def _indices(call: Call) -> float:
    """Bytes of the index tensors: all integer tensors but the first argument."""
    tensors = list(operands_of(call.inputs))
    return sum(operand.nbytes for operand in tensors[1:] if operand.dtype in INDEX_TYPES)


def _has_mask(call: Call) -> bool:
    """Whether an index is a mask: its true elements are counted first, and the host waits for the count."""
    return any(operand.dtype in ("bool", "uint8") for operand in list(operands_of(call.inputs))[1:])


@rule("gather", "embedding")
def price_embedding(call: Call) -> Profile:
    """embedding(weight, indices): the rows that are asked for"""
    weight, indices = call.inputs[0], call.inputs[1]
    out = writes(call)
    return Profile("embedding", "gather", (), out + indices.nbytes, out,
                   access=_row_access(weight.shape[-1] * weight.itemsize))  # fmt: skip


@rule("gather", "embedding_dense_backward _embedding_bag_dense_backward _embedding_bag_backward")
def price_embedding_backward(call: Call) -> list[Profile]:
    """(grad, indices, num_weights, ...): zeros, a sort of the indices, then sums of equal rows"""
    grad, indices = call.inputs[0], call.inputs[1]
    out = call.results()[0]
    width = grad.shape[-1]
    rows = max(indices.count, 1)
    found = [Profile("fill", "copy", (), 0.0, out.nbytes)]
    if rows > 3072:  # fewer are summed by one kernel without sorting (EmbeddingBackwardKernel.cu of PyTorch)
        found.append(Profile("sort_indices", "sort", (), 16.0 * rows, 16.0 * rows, kernels=6))
    found.append(
        Profile("embedding_backward", "gather", ((plain_pipe(grad.dtype), 1.0 * rows * width),),
                grad.nbytes + indices.nbytes, grad.nbytes, access=_row_access(width * grad.itemsize))
    )  # fmt: skip
    return found


@rule("gather", "_embedding_bag_per_sample_weights_backward")
def price_bag_weights(call: Call) -> Profile:
    """A dot product per index"""
    grad, weight, indices = call.inputs[:3]
    read = grad.nbytes + indices.count * weight.shape[-1] * weight.itemsize + indices.nbytes
    flops = 2.0 * indices.count * weight.shape[-1]
    return Profile("embedding_bag_weights", "gather", ((plain_pipe(grad.dtype), flops),), read, writes(call),
                   access="random")  # fmt: skip


@rule("gather", "gather index_select take index _unsafe_index _unsafe_masked_index take_along_dim", waits=_has_mask)
def price_gather(call: Call) -> list[Profile]:
    """What is asked for is read and written; a mask is counted first"""
    out = call.results()[0]
    source = call.inputs[0]
    row = 1.0
    if "select" in call.name or "index" in call.name:
        row = source.shape[-1] * source.itemsize if source.shape else source.itemsize
    main = Profile("gather", "gather", (), out.nbytes + _indices(call), out.nbytes, access=_row_access(row))
    if not _has_mask(call):
        return [main]
    mask = next(operand for operand in list(operands_of(call.inputs))[1:] if operand.dtype in ("bool", "uint8"))
    return [_count_mask(mask), main]


def _count_mask(mask: Operand) -> Profile:
    """nonzero: one kernel counts, two write the indices."""
    return Profile("nonzero", "gather", (("int32", 2.0 * mask.count),), mask.nbytes, 2.0 * mask.count, kernels=3)


@rule(
    "gather",
    "scatter scatter_add scatter_reduce index_add index_copy index_fill index_put _index_put_impl "
    "_unsafe_index_put _unsafe_masked_index_put_accumulate put index_reduce scatter_ scatter_add_ "
    "scatter_reduce_",
    waits=_has_mask,
)
def price_scatter(call: Call) -> list[Profile]:
    """What is named is read and written; forms that are not in place copy the target first"""
    target = call.inputs[0]
    tensors = list(operands_of(call.inputs))
    source = max((operand for operand in tensors[1:] if operand.dtype not in INDEX_TYPES), default=None,
                 key=lambda operand: operand.count)  # fmt: skip
    index = max((operand.count for operand in tensors[1:]), default=0)
    moved = source.nbytes if source is not None and source.count > 1 else index * target.itemsize
    base = call.name.rpartition("::")[2].partition(".")[0]
    adds = any(word in base for word in ("add", "reduce", "accumulate")) or any(value is True for value in call.inputs)
    found = []
    if not base.endswith("_"):
        found.append(Profile("copy", "copy", (), target.nbytes, target.nbytes))
    flops = ((plain_pipe(target.dtype), moved / max(target.itemsize, 1)),) if adds else ()
    read = moved + _indices(call) + (moved if adds else 0.0)
    found.append(Profile("scatter", "gather", flops, read, moved, access="random"))
    if _has_mask(call):
        mask = next(operand for operand in tensors[1:] if operand.dtype in ("bool", "uint8"))
        found.insert(0, _count_mask(mask))
    return found


@rule("gather", "nonzero argwhere", waits=True)
def price_nonzero(call: Call) -> Profile:
    """Counts, then writes the indices; the host waits for the count"""
    x = call.inputs[0]
    return Profile("nonzero", "gather", (("int32", 2.0 * x.count),), 2 * x.nbytes / 3, writes(call) / 3, kernels=3)


@rule("gather", "nonzero_static")
def price_nonzero_static(call: Call) -> Profile:
    """As nonzero, but of a size that is known"""
    x = call.inputs[0]
    return Profile("nonzero", "gather", (("int32", 2.0 * x.count),), 2 * x.nbytes / 3, writes(call) / 3, kernels=3)


@rule("gather", "masked_select", waits=True)
def price_masked_select(call: Call) -> list[Profile]:
    """A mask is counted, then its elements are gathered"""
    x, mask = call.inputs[0], call.inputs[1]
    out = writes(call)
    return [_count_mask(mask), Profile("gather", "gather", (), out + x.nbytes, out)]


@rule("gather", "masked_scatter masked_scatter_backward")
def price_masked_scatter(call: Call) -> list[Profile]:
    """A scan over the mask, then one pass"""
    mask = next(operand for operand in call.tensors() if operand.dtype == "bool")
    return [
        Profile("scan", "reduction", (), mask.nbytes, 8.0 * mask.count),
        Profile("masked_scatter", "gather", (), reads(call) + 8.0 * mask.count, writes(call)),
    ]


@rule("gather", "repeat_interleave", waits=True)
def price_repeat_interleave(call: Call) -> list[Profile]:
    """A scan over the counts, then the copies; without a size the host waits for the sum"""
    out = writes(call)
    return [
        Profile("scan", "reduction", (), total_bytes(call.inputs), total_bytes(call.inputs)),
        Profile("gather", "gather", (), out, out),
    ]
