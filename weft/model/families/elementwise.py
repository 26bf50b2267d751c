"""Operators that treat each element by itself: one kernel, each argument read once, the result written once."""

from __future__ import annotations

from weft.model.families.shapes import main_operand, plain_pipe, streaming, total_bytes, writes
from weft.model.operators import rule
from weft.model.profile import Profile
from weft.model.work import Call

# One arithmetic instruction or a few.
SIMPLE = """
abs add sub mul rsub neg positive sign sgn signbit ceil floor round trunc frac relu clamp clamp_max clamp_min maximum
minimum fmax fmin eq ne lt le gt ge isnan isinf isneginf isposinf isfinite logical_and logical_or logical_xor
logical_not bitwise_and bitwise_or bitwise_xor bitwise_not bitwise_left_shift bitwise_right_shift __lshift__
__rshift__ __ilshift__ __irshift__ copysign heaviside nan_to_num where lerp addcmul deg2rad rad2deg threshold
threshold_backward hardtanh hardtanh_backward hardsigmoid hardsigmoid_backward hardswish hardswish_backward hardshrink
hardshrink_backward softshrink softshrink_backward leaky_relu leaky_relu_backward _prelu_kernel _prelu_kernel_backward
prelu mse_loss mse_loss_backward smooth_l1_loss_backward huber_loss_backward masked_fill conj_physical _conj_physical
real imag complex angle sigmoid_backward tanh_backward native_dropout_backward _masked_scale masked_scale relu6
_add_relu nextafter ldexp frexp int_repr glu glu_backward glu_jvp glu_backward_jvp float_power square
rrelu_with_noise_backward _to_fp8 sub_scalar _test_autograd_multiple_dispatch linalg_cross
"""
# Division, roots, special functions: the special-function unit takes part; so many of its operations per element.
SPECIAL = {
    1: "reciprocal rsqrt sqrt exp exp2 sin cos tanh log2 div true_divide divide log log10 tan addcdiv",
    2: "expm1 log1p sigmoid silu elu celu selu softplus mish log_sigmoid_forward log_sigmoid_backward logit "
       "sinh cosh sinc hypot silu_backward elu_backward softplus_backward mish_backward gelu gelu_backward "
       "logit_backward atan2 atan asin acos logaddexp logaddexp2 xlogy special_xlog1py special_entr floor_divide "
       "remainder fmod",
    4: "pow erf erfc erfinv asinh acosh atanh polar special_log_ndtr special_ndtri special_erfcx special_expit",
    12: "lgamma digamma polygamma mvlgamma i0 special_i0 special_i0e special_i1 special_i1e igamma igammac "
        "special_zeta special_airy_ai special_bessel_j0 special_bessel_j1 special_bessel_y0 special_bessel_y1 "
        "special_modified_bessel_i0 special_modified_bessel_i1 special_modified_bessel_k0 special_modified_bessel_k1 "
        "special_scaled_modified_bessel_k0 special_scaled_modified_bessel_k1 special_spherical_bessel_j0 "
        "_standard_gamma_grad _dirichlet_grad",
    16: "gcd lcm special_chebyshev_polynomial_t special_chebyshev_polynomial_u special_chebyshev_polynomial_v "
        "special_chebyshev_polynomial_w special_hermite_polynomial_h special_hermite_polynomial_he "
        "special_laguerre_polynomial_l special_legendre_polynomial_p special_shifted_chebyshev_polynomial_t "
        "special_shifted_chebyshev_polynomial_u special_shifted_chebyshev_polynomial_v "
        "special_shifted_chebyshev_polynomial_w",
}  # fmt: skip


@rule("pointwise", SIMPLE)
def price_simple(call: Call) -> Profile:
    """Two operations per element"""
    return streaming(call, "pointwise", "elementwise", operations=2.0)


def _register_special(count: int, names: str) -> None:
    @rule("pointwise", names)
    def price_special(call: Call) -> Profile:
        """Some special-function operations per element, and as many multiply-adds around each"""
        return streaming(call, "pointwise", "elementwise", operations=4.0 * count, special=float(count))


for _count, _names in SPECIAL.items():
    _register_special(_count, _names)


@rule(
    "pointwise",
    "binary_cross_entropy binary_cross_entropy_with_logits smooth_l1_loss huber_loss soft_margin_loss "
    "binary_cross_entropy_backward soft_margin_loss_backward kl_div poisson_nll_loss",
)
def price_loss(call: Call) -> list[Profile]:
    """Element by element; where the result is smaller a sum follows"""
    first = streaming(call, "pointwise", "loss", operations=6.0, special=2.0)
    largest = main_operand(call)
    out = call.results()[0]
    if out.count >= largest.count:
        return [first]
    return [
        Profile("loss", "pointwise", first.flops, total_bytes(call.inputs), largest.nbytes),
        Profile("sum", "reduction", ((plain_pipe(largest.dtype), 1.0 * largest.count),), largest.nbytes, writes(call)),
    ]


@rule(
    "pointwise",
    "_fake_quantize_learnable_per_channel_affine _fake_quantize_learnable_per_tensor_affine "
    "_fake_quantize_learnable_per_channel_affine_backward _fake_quantize_learnable_per_tensor_affine_backward "
    "_fake_quantize_per_tensor_affine_cachemask_tensor_qparams fake_quantize_per_channel_affine_cachemask "
    "fake_quantize_per_tensor_affine_cachemask quantize_per_channel quantize_per_tensor "
    "quantize_per_tensor_dynamic dequantize _make_per_channel_quantized_tensor _make_per_tensor_quantized_tensor "
    "fake_quantize_per_channel_affine_cachemask_backward fake_quantize_per_tensor_affine_cachemask_backward "
    "_fused_moving_avg_obs_fq_helper _fused_moving_avg_obs_fq_helper_functional",
)
def price_quantise(call: Call) -> Profile:
    """Scaling, rounding and clamping"""
    return streaming(call, "pointwise", "quantise", operations=5.0, special=1.0)


@rule("pointwise", "_amp_update_scale")
def price_scale_update(call: Call) -> Profile:
    """One thread updates the scale"""
    return Profile("amp_update_scale", "pointwise", (), 12, 8, blocks=1, threads=1)


@rule("pointwise", "isin")
def price_isin(call: Call) -> Profile:
    """Every element is compared with every test element"""
    operands = call.tensors()
    size, tests = operands[0].count, operands[-1].count if len(operands) > 1 else 1
    return Profile("isin", "pointwise", ((plain_pipe(operands[0].dtype), 2.0 * size * tests),), total_bytes(operands),
                   writes(call))  # fmt: skip
