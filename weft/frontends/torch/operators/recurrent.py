"""Recurrent networks: cuDNN's whole-sequence operator and the fused cells, with the CPU's layers computing the numbers.

cuDNN keeps what the backward pass needs in a reserve; here the reserve's storage holds the graph that autograd made of
the host's computation, so nothing is computed twice.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from weft.frontends.torch.gpus import gpus
from weft.frontends.torch.graphs import is_capturing
from weft.frontends.torch.operators.attention import with_autograd
from weft.frontends.torch.recording import record
from weft.frontends.torch.tensors import Tensor, to_cuda, to_host

_C = torch._C
_aten = torch.ops.aten
RELU, TANH, LSTM, GRU = range(4)  # cudnnRNNMode_t
_MODES = {"rnn_relu": RELU, "rnn_tanh": TANH, "lstm": LSTM, "gru": GRU}
_NAMES = {mode: name for name, mode in _MODES.items()}


# ---------------------------------------------------------------- from nn.LSTM and its kin to cuDNN's operator
def _uses_cudnn(tensor: Tensor) -> bool:
    return _C._get_cudnn_enabled() and tensor.dtype in (
        torch.float16, torch.bfloat16, torch.float32, torch.float64,
    )  # fmt: skip


def _call_cudnn(mode: int, data: Tensor, sizes: list[int], hx: Tensor, cx: Tensor | None, params: list[Tensor],
                has_biases: bool, layers: int, dropout: float, train: bool, bidirectional: bool,
                batch_first: bool) -> tuple:  # fmt: skip
    hidden = params[1].size(1)
    projected = hx.size(2) if mode == LSTM and cx is not None and cx.size(2) != hx.size(2) else 0
    if projected:
        hidden = cx.size(2) if cx is not None else hidden
    stride = 2 + 2 * has_biases + bool(projected)
    output, hy, cy, _, _ = _aten._cudnn_rnn(
        data, params, stride, None, hx, cx, mode, hidden, projected, layers, batch_first, dropout, train, bidirectional,
        sizes, None,
    )  # fmt: skip
    return (output, hy, cy) if mode == LSTM else (output, hy)


def _make_composite(name: str, packed: bool) -> Callable[..., Any]:
    """aten::lstm.input and the like, composed of _cudnn_rnn."""
    mode = _MODES[name]
    plain = getattr(getattr(_aten, name), "data" if packed else "input")

    def on_sequences(data: Tensor, hx: Any, params: list[Tensor], has_biases: bool, layers: int, dropout: float,
                     train: bool, bidirectional: bool, batch_first: bool) -> tuple:  # fmt: skip
        hidden, cell = hx if mode == LSTM else (hx, None)
        if not _uses_cudnn(data):
            return plain.decompose(data, hx, params, has_biases, layers, dropout, train, bidirectional, batch_first)
        return _call_cudnn(mode, data, [], hidden, cell, params, has_biases, layers, dropout, train, bidirectional,
                           batch_first)  # fmt: skip

    def on_packed(data: Tensor, batch_sizes: Tensor, hx: Any, params: list[Tensor], has_biases: bool, layers: int,
                  dropout: float, train: bool, bidirectional: bool) -> tuple:  # fmt: skip
        hidden, cell = hx if mode == LSTM else (hx, None)
        if not _uses_cudnn(data):
            return plain.decompose(data, batch_sizes, hx, params, has_biases, layers, dropout, train, bidirectional)
        return _call_cudnn(mode, data, batch_sizes.tolist(), hidden, cell, params, has_biases, layers, dropout, train,
                           bidirectional, False)  # fmt: skip

    return on_packed if packed else on_sequences


# ---------------------------------------------------------------- cuDNN's operator
class _Graph:
    """What a forward pass leaves for its backward pass: leaves and results of the host's autograd graph."""

    __slots__ = ("leaves", "results")

    def __init__(self, leaves: list[Tensor], results: list[Tensor]):
        self.leaves, self.results = leaves, results


def _compute(mode: int, data: Tensor, hx: Tensor, cx: Tensor | None, weights: list[Tensor], stride: int, layers: int,
             batch_first: bool, dropout: float, train: bool, bidirectional: bool, sizes: list[int],
             index: int) -> list[Tensor]:  # fmt: skip
    """The host's computation; random numbers for dropout come from the GPU's generator."""
    operator = getattr(_aten, _NAMES[mode])
    states = [hx, cx] if mode == LSTM else hx
    has_biases = stride >= 4
    draws = dropout > 0 and train and layers > 1
    if draws:
        state = _C.default_generator.get_state()
        seed = int(torch.randint(0, 2**62, (), generator=gpus[index].generator._host))
        _C.default_generator.manual_seed(seed)
    try:
        if sizes:
            result = operator.data(
                data, torch.tensor(sizes), states, weights, has_biases, layers, dropout, train, bidirectional
            )
        else:
            result = operator.input(
                data, states, weights, has_biases, layers, dropout, train, bidirectional, batch_first
            )
    finally:
        if draws:
            _C.default_generator.set_state(state)
    return list(result)


def cudnn_rnn(data: Tensor, weight: list[Tensor], weight_stride0: int, weight_buf: Tensor | None, hx: Tensor,
              cx: Tensor | None, mode: int, hidden_size: int, proj_size: int, num_layers: int, batch_first: bool,
              dropout: float, train: bool, bidirectional: bool, batch_sizes: list[int],
              dropout_state: Tensor | None) -> tuple:  # fmt: skip
    """aten::_cudnn_rnn: (output, hy, cy, reserve, weight_buf)."""
    index = data.get_device()
    with _C.DisableTorchFunction():
        hosts = [to_host(data), to_host(hx), *([to_host(cx)] if cx is not None else []), *map(to_host, weight)]
        first = 2 + (cx is not None)
        options = (weight_stride0, num_layers, batch_first, dropout, train, bidirectional, list(batch_sizes), index)
        graph = None
        if train and torch.is_grad_enabled():
            if is_capturing():
                raise RuntimeError(
                    "the training of a recurrent network cannot be captured in a CUDA graph on a virtual GPU: capture "
                    "the rest, or set torch.backends.cudnn.enabled = False"
                )
            with with_autograd():
                leaves = [host.detach().requires_grad_() for host in hosts]
                cell = leaves[2] if first == 3 else None
                found = _compute(mode, leaves[0], leaves[1], cell, leaves[first:], *options)
                graph = _Graph(leaves, found)
            found = [result.detach() for result in found]
        else:
            found = _compute(mode, hosts[0], hosts[1], hosts[2] if first == 3 else None, hosts[first:], *options)
        output, hy = to_cuda(found[0].contiguous(), index), to_cuda(found[1].contiguous(), index)
        cy = to_cuda(found[2].contiguous() if mode == LSTM else torch.empty(0, dtype=data.dtype), index)
        reserve = to_cuda(torch.empty(_reserve_bytes(found[0], num_layers, train), dtype=torch.uint8), index)
        if graph is not None:
            reserve.untyped_storage()._graph = graph
        buffer = to_cuda(torch.empty(0, dtype=data.dtype), index)
    result = (output, hy, cy, reserve, buffer)
    record(
        "_cudnn_rnn",
        (data, weight, weight_stride0, weight_buf, hx, cx, mode, hidden_size, proj_size, num_layers, batch_first,
         dropout, train, bidirectional, batch_sizes, dropout_state), {}, result, index,
    )  # fmt: skip
    return result


def _reserve_bytes(output: Tensor, layers: int, train: bool) -> int:
    """Bytes that cuDNN keeps for the backward pass: about what one layer's gates take, per layer."""
    return 4 * output.numel() * output.element_size() * layers if train else 1


def cudnn_rnn_backward(data: Tensor, weight: list[Tensor], weight_stride0: int, weight_buf: Tensor, hx: Tensor,
                       cx: Tensor | None, output: Tensor, grad_output: Tensor | None, grad_hy: Tensor | None,
                       grad_cy: Tensor | None, mode: int, hidden_size: int, proj_size: int, num_layers: int,
                       batch_first: bool, dropout: float, train: bool, bidirectional: bool, batch_sizes: list[int],
                       dropout_state: Tensor | None, reserve: Tensor, output_mask: list[bool]) -> tuple:  # fmt: skip
    if not train:
        raise RuntimeError("cudnn RNN backward can only be called in training mode")
    index = data.get_device()
    graph = reserve.untyped_storage().__dict__.get("_graph")
    assert graph is not None, "the reserve of an RNN that kept no graph"
    with _C.DisableTorchFunction():
        given = [grad_output, grad_hy, *([grad_cy] if mode == LSTM else [])]
        pairs = [(result, to_host(gradient)) for result, gradient in zip(graph.results, given) if gradient is not None]
        with with_autograd():
            found = torch.autograd.grad(
                [result for result, _ in pairs], graph.leaves, [gradient for _, gradient in pairs],
                retain_graph=True, allow_unused=True,
            )  # fmt: skip
        found = [torch.zeros_like(leaf) if gradient is None else gradient
                 for gradient, leaf in zip(found, graph.leaves)]  # fmt: skip
        moved = [to_cuda(gradient, index) for gradient in found]
    first = 2 + (cx is not None)
    result = (
        moved[0] if output_mask[0] else None, moved[1] if output_mask[1] else None,
        moved[2] if cx is not None and output_mask[2] else None, moved[first:] if output_mask[3] else [],
    )  # fmt: skip
    record(
        "_cudnn_rnn_backward",
        (data, weight, weight_stride0, weight_buf, hx, cx, output, grad_output, grad_hy, grad_cy, mode, hidden_size,
         proj_size, num_layers, batch_first, dropout, train, bidirectional, batch_sizes), {}, result, index,
    )  # fmt: skip
    return result


def flatten_weight(weight_arr: list[Tensor], weight_stride0: int, input_size: int, mode: int, hidden_size: int,
                   proj_size: int, num_layers: int, batch_first: bool, bidirectional: bool) -> Tensor:  # fmt: skip
    """aten::_cudnn_rnn_flatten_weight: moves the weights into one buffer and makes them views of it."""
    buffer = torch.empty(
        sum(weight.numel() for weight in weight_arr), dtype=weight_arr[0].dtype, device=weight_arr[0].device
    )
    place = 0
    for weight in weight_arr:
        part = buffer[place : place + weight.numel()].view(weight.shape)
        part.copy_(weight)
        weight.set_(part)
        place += weight.numel()
    return buffer


def init_dropout_state(dropout: float, train: bool, dropout_seed: int, *, dtype: Any = None, layout: Any = None,
                       device: Any = None, pin_memory: bool | None = None) -> Tensor:  # fmt: skip
    return torch.empty(0, dtype=torch.uint8, device=device or "cuda")


# ---------------------------------------------------------------- cells
def lstm_cell(input_gates: Tensor, hidden_gates: Tensor, cx: Tensor, input_bias: Tensor | None = None,
              hidden_bias: Tensor | None = None) -> tuple:  # fmt: skip
    """aten::_thnn_fused_lstm_cell: (hy, cy, workspace), the workspace being the four activated gates."""
    index = cx.get_device()
    with _C.DisableTorchFunction():
        gates = to_host(input_gates) + to_host(hidden_gates)
        if input_bias is not None and hidden_bias is not None:
            gates = gates + to_host(input_bias) + to_host(hidden_bias)
        i, f, g, o = gates.chunk(4, 1)
        i, f, g, o = i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()
        cy = f * to_host(cx) + i * g
        hy = o * cy.tanh()
        result = tuple(to_cuda(host, index) for host in (hy, cy, torch.cat((i, f, g, o), 1)))
    record("_thnn_fused_lstm_cell", (input_gates, hidden_gates, cx, input_bias, hidden_bias), {}, result, index)
    return result


def lstm_cell_backward(grad_hy: Tensor | None, grad_cy: Tensor | None, cx: Tensor, cy: Tensor, workspace: Tensor,
                       has_bias: bool) -> tuple:  # fmt: skip
    """aten::_thnn_fused_lstm_cell_backward_impl: gradients of the gates, the cell state and the bias."""
    index = cx.get_device()
    with _C.DisableTorchFunction():
        c, new, (i, f, g, o) = to_host(cx), to_host(cy), to_host(workspace).chunk(4, 1)
        tanh = new.tanh()
        dh = to_host(grad_hy) if grad_hy is not None else torch.zeros_like(new)
        dc = to_host(grad_cy) if grad_cy is not None else torch.zeros_like(new)
        dc = dc + dh * o * (1 - tanh * tanh)
        gates = torch.cat(
            (dc * g * i * (1 - i), dc * c * f * (1 - f), dc * i * (1 - g * g), dh * tanh * o * (1 - o)), 1
        )
        bias = gates.sum(0) if has_bias else torch.empty(0, dtype=gates.dtype)
        result = tuple(to_cuda(host, index) for host in (gates, dc * f, bias))
    record("_thnn_fused_lstm_cell_backward_impl", (grad_hy, grad_cy, cx, cy, workspace, has_bias), {}, result, index)
    return result


def gru_cell(input_gates: Tensor, hidden_gates: Tensor, hx: Tensor, input_bias: Tensor | None = None,
             hidden_bias: Tensor | None = None) -> tuple:  # fmt: skip
    """aten::_thnn_fused_gru_cell: (hy, workspace)."""
    index = hx.get_device()
    with _C.DisableTorchFunction():
        given, hidden, old = to_host(input_gates), to_host(hidden_gates), to_host(hx)
        if input_bias is not None and hidden_bias is not None:
            given, hidden = given + to_host(input_bias), hidden + to_host(hidden_bias)
        (ir, iz, inew), (hr, hz, hnew) = given.chunk(3, 1), hidden.chunk(3, 1)
        r, z = (ir + hr).sigmoid(), (iz + hz).sigmoid()
        n = (inew + r * hnew).tanh()
        result = tuple(to_cuda(host, index) for host in (n + z * (old - n), torch.cat((r, z, n, old, hnew), 1)))
    record("_thnn_fused_gru_cell", (input_gates, hidden_gates, hx, input_bias, hidden_bias), {}, result, index)
    return result


def gru_cell_backward(grad_hy: Tensor, workspace: Tensor, has_bias: bool) -> tuple:
    """aten::_thnn_fused_gru_cell_backward: gradients of both gates, the hidden state and both biases."""
    index = grad_hy.get_device()
    with _C.DisableTorchFunction():
        (r, z, n, old, hnew), dh = to_host(workspace).chunk(5, 1), to_host(grad_hy)
        dz = dh * (old - n) * z * (1 - z)
        dn = dh * (1 - z) * (1 - n * n)
        dr = dn * hnew * r * (1 - r)
        given, hidden = torch.cat((dr, dz, dn), 1), torch.cat((dr, dz, dn * r), 1)
        biases = (given.sum(0), hidden.sum(0)) if has_bias else (torch.empty(0), torch.empty(0))
        result = tuple(to_cuda(host, index) for host in (given, hidden, dh * z, *biases))
    record("_thnn_fused_gru_cell_backward", (grad_hy, workspace, has_bias), {}, result, index)
    return result


KERNELS: dict[str, Callable[..., Any]] = {
    "_cudnn_rnn": cudnn_rnn,
    "_cudnn_rnn_backward": cudnn_rnn_backward,
    "_cudnn_rnn_flatten_weight": flatten_weight,
    "_cudnn_init_dropout_state": init_dropout_state,
    "_thnn_fused_lstm_cell": lstm_cell,
    "_thnn_fused_lstm_cell_backward_impl": lstm_cell_backward,
    "_thnn_fused_gru_cell": gru_cell,
    "_thnn_fused_gru_cell_backward": gru_cell_backward,
}
COMPOSITES: dict[str, Callable[..., Any]] = {
    f"{name}.{kind}": _make_composite(name, kind == "data") for name in _MODES for kind in ("input", "data")
}
