"""Recurrent layers: cuDNN's, and PyTorch's fused cells."""

from __future__ import annotations

from weft.model.families.matrix import gemm
from weft.model.families.shapes import plain_pipe, streaming, total_bytes, writes
from weft.model.operators import rule
from weft.model.profile import Profile
from weft.model.work import Call, Operand

# Gates per cell by cuDNN's mode: RNN with relu, with tanh, LSTM, GRU (cudnnRNNMode_t).
GATES = {0: 1, 1: 1, 2: 4, 3: 3}


def recurrent_layers(name: str, x: Operand, gates: int, hidden: int, layers: int, directions: int, batch_first: bool,
                     tf32: bool, factor: float = 1.0) -> list[Profile]:  # fmt: skip
    """x[length, batch, features]. Per layer and direction: one product for all inputs, then per step a product with the
    state and the gates, which cuDNN runs as one kernel. factor: 2 for backward, which has two products for each."""
    length, batch = (x.shape[1], x.shape[0]) if batch_first else (x.shape[0], x.shape[1])
    features = x.shape[-1]
    pipe_type, size = x.dtype, x.itemsize
    found = []
    for layer in range(layers):
        inside = features if layer == 0 else hidden * directions
        width = gates * hidden
        product = gemm(
            f"{name}_input",
            1,
            length * batch,
            width,
            inside,
            pipe_type,
            tf32,
            (length * batch * inside + inside * width) * size,
            length * batch * width * size,
            "rnn",
        )
        repeated = int(directions * factor)
        found += [product] * repeated
        step = gemm(
            f"{name}_step",
            1,
            batch,
            width,
            hidden,
            pipe_type,
            tf32,
            (batch * (width + 2 * hidden) + hidden * width) * size,
            2 * batch * hidden * size,
            "rnn",
        )
        flops = (*step.flops, ("sfu", 1.0 * batch * width))
        found.append(
            Profile(
                step.name,
                "rnn",
                flops,
                step.bytes_read,
                step.bytes_written,
                int(length * directions * factor),
                gemm=step.gemm,
            )
        )
    return found


@rule("rnn", "_cudnn_rnn miopen_rnn")
def price_cudnn_rnn(call: Call) -> list[Profile]:
    """(input, weights, weight_stride0, weight_buf, hx, cx, mode, hidden, proj, layers, batch_first, dropout, train,
    bidirectional, batch_sizes, dropout_state)"""
    x = call.inputs[0]
    mode, hidden, _, layers, batch_first = call.inputs[6:11]
    sizes = call.inputs[14] if len(call.inputs) > 14 else ()
    if len(x.shape) == 2 and sizes:  # packed: [sum of lengths, features]
        x = Operand((len(sizes), max(1, x.shape[0] // len(sizes)), x.shape[1]), x.dtype, x.itemsize)
        batch_first = False
    return recurrent_layers("rnn", x, GATES[mode], hidden, layers, 2 if call.inputs[13] else 1, bool(batch_first),
                            call.tf32_convolution)  # fmt: skip


@rule("rnn", "_cudnn_rnn_backward miopen_rnn_backward")
def price_cudnn_rnn_backward(call: Call) -> list[Profile]:
    """(input, weights, weight_stride0, weight_buf, hx, cx, output, grad_output, grad_hy, grad_cy, mode, hidden, proj,
    layers, batch_first, dropout, train, bidirectional, ...)"""
    x = call.inputs[0]
    mode, hidden, _, layers, batch_first = call.inputs[10:15]
    return recurrent_layers("rnn_backward", x, GATES[mode], hidden, layers, 2 if call.inputs[17] else 1,
                            bool(batch_first), call.tf32_convolution, 2.0)  # fmt: skip


@rule("rnn", "lstm gru rnn_tanh rnn_relu quantized_lstm quantized_gru")
def price_recurrent(call: Call) -> list[Profile]:
    """lstm(input, hx, params, has_biases, layers, dropout, train, bidirectional, batch_first), or with batch_sizes
    after the input"""
    base = call.name.rpartition("::")[2].partition(".")[0]
    gates = 4 if "lstm" in base else 3 if "gru" in base else 1
    x = call.inputs[0]
    packed = call.name.endswith(".data")
    if packed:
        steps = max(1, call.inputs[1].count)
        x = Operand((steps, max(1, x.shape[0] // steps), x.shape[-1]), x.dtype, x.itemsize)
    params = call.inputs[3 if packed else 2]
    layers = int(call.inputs[5 if packed else 4])
    bidirectional = bool(call.inputs[8 if packed else 7])
    hidden = params[1].shape[1]
    batch_first = not packed and bool(call.inputs[8])
    return recurrent_layers(base, x, gates, hidden, layers, 2 if bidirectional else 1, batch_first,
                            call.tf32_convolution)  # fmt: skip


@rule("rnn", "mkldnn_rnn_layer")
def price_layer(call: Call) -> list[Profile]:
    """(input, w_input, w_hidden, bias, bias, hx, cx, reverse, batch_sizes, mode, hidden, layers, ...): one layer"""
    x, weight = call.inputs[0], call.inputs[2]
    hidden = weight.shape[1]
    return recurrent_layers("rnn", x, weight.shape[0] // hidden, hidden, 1, 1, False, call.tf32_convolution)


@rule("rnn", "mkldnn_rnn_layer_backward")
def price_layer_backward(call: Call) -> list[Profile]:
    """(input, w_input, w_hidden, ...): one layer, two products for each forward"""
    x = call.inputs[0]
    weight = next(operand for operand in call.tensors()[2:] if len(operand.shape) == 2)
    hidden = weight.shape[1]
    return recurrent_layers("rnn_backward", x, max(1, weight.shape[0] // hidden), hidden, 1, 1, False,
                            call.tf32_convolution, 2.0)  # fmt: skip


@rule("rnn", "_thnn_fused_lstm_cell _thnn_fused_gru_cell")
def price_cell(call: Call) -> Profile:
    """The gates of one step, element by element"""
    gates = call.inputs[0]
    return Profile("rnn_cell", "rnn", ((plain_pipe(gates.dtype), 10.0 * gates.count), ("sfu", 1.0 * gates.count)),
                   total_bytes(call.inputs), writes(call))  # fmt: skip


@rule(
    "rnn",
    "_thnn_fused_lstm_cell_backward_impl _thnn_fused_lstm_cell_backward _thnn_fused_gru_cell_backward "
    "_thnn_differentiable_lstm_cell_backward _thnn_differentiable_gru_cell_backward",
)
def price_cell_backward(call: Call) -> Profile:
    """The gates' gradients, element by element, and the bias's sum"""
    return streaming(call, "rnn", "rnn_cell_backward", operations=20.0, special=1.0)


@rule("rnn", "_cudnn_rnn_flatten_weight")
def price_flatten(call: Call) -> Profile:
    """All weights are copied into one buffer"""
    return Profile("flatten_weights", "copy", (), total_bytes(call.inputs), writes(call))
