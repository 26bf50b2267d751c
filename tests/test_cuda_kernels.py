"""Realistic CUDA C++ kernels (tests/cuda/*.cu) against NumPy, through NVRTC and, where a kernel needs no NVIDIA header,
clang."""

from __future__ import annotations

import math

import numpy as np
import pytest
from cuda_cases import (
    NVRTC,
    Case,
    blocks_of,
    csr,
    csr_product,
    filled,
    ints,
    normal,
    run_case,
    softmax64,
    truncated_division,
    wrap,
    zeros,
)

f64 = np.float64


# ---------------------------------------------------------------- expected results that need more than a line
def adamw(n, p, g, m, v, rate, beta1, beta2, eps, decay, step):
    p, g, m, v = (a.astype(f64) for a in (p, g, m, v))
    m = beta1 * m + (1 - beta1) * g
    v = beta2 * v + (1 - beta2) * g * g
    update = m / (1 - beta1**step) / (np.sqrt(v / (1 - beta2**step)) + eps)
    return {1: p - rate * (update + decay * p), 3: m, 4: v}


def phi(x):
    return np.vectorize(lambda v: 0.5 * math.erfc(-v / math.sqrt(2)))(x)


def gelu_backward(n, x, dy, dx):
    x = x.astype(f64)
    return {3: dy * (phi(x) + x * np.exp(-0.5 * x * x) / math.sqrt(2 * math.pi))}


def black_scholes(n, spot, strike, years, rate, volatility, call):
    s, k, t = (a.astype(f64) for a in (spot, strike, years))
    d1 = (np.log(s / k) + (rate + 0.5 * volatility**2) * t) / (volatility * np.sqrt(t))
    d2 = d1 - volatility * np.sqrt(t)
    return {6: s * phi(d1) - k * np.exp(-rate * t) * phi(d2)}


def lookback_inputs(rng):
    n = 128 * 40 - 9
    return [n, ints(rng, -50, 50, n), zeros(n, dtype=np.int32), zeros(40, dtype=np.uint64), zeros(1, dtype=np.int32)]


def lookback(n, x, out, status, ticket):
    sums = np.add.reduceat(x, np.arange(0, n, 128))
    state = (np.uint64(2) << np.uint64(32)) | np.cumsum(sums).astype(np.int32).view(np.uint32).astype(np.uint64)
    return {2: np.cumsum(x), 3: state, 4: [40]}


def odd_even_expected(n, x):
    return {1: np.sort(x)}


def stencil_1d(n, x, y):
    padded = np.pad(x.astype(f64), 3)
    return {2: sum(padded[k : k + n] for k in range(7))}


def heat(nx, ny, k, u, v):
    new = u.astype(f64)
    c = u.astype(f64)
    new[1:-1, 1:-1] += k * (c[1:-1, :-2] + c[1:-1, 2:] + c[:-2, 1:-1] + c[2:, 1:-1] - 4 * c[1:-1, 1:-1])
    return {4: new}


def jacobi(n, u, v):
    new = v.copy()
    new[1:-1, 1:-1, 1:-1] = (
        u[1:-1, 1:-1, :-2] + u[1:-1, 1:-1, 2:] + u[1:-1, :-2, 1:-1] + u[1:-1, 2:, 1:-1] + u[:-2, 1:-1, 1:-1] + u[2:, 1:-1, 1:-1]
    ) / 6
    return {2: new}


def march(nx, ny, nz, u, v):
    c = u.astype(f64)
    around = (
        c[1:-1, 1:-1, :-2] + c[1:-1, 1:-1, 2:] + c[1:-1, :-2, 1:-1] + c[1:-1, 2:, 1:-1] + c[:-2, 1:-1, 1:-1] + c[2:, 1:-1, 1:-1]
    )
    new = v.astype(f64)
    new[1:-1, 1:-1, 1:-1] = 0.4 * c[1:-1, 1:-1, 1:-1] + 0.1 * around
    return {4: new}


def binomial_blur(width, height, x, y):
    taps = np.outer([1, 4, 6, 4, 1], [1, 4, 6, 4, 1]) / 256
    padded = np.pad(x.astype(f64), 2, mode="edge")
    return {3: sum(taps[r, c] * padded[r : r + height, c : c + width] for r in range(5) for c in range(5))}


def sobel(width, height, image, edges):
    p = image.astype(int)
    gx = p[:-2, 2:] + 2 * p[1:-1, 2:] + p[2:, 2:] - p[:-2, :-2] - 2 * p[1:-1, :-2] - p[2:, :-2]
    gy = p[2:, :-2] + 2 * p[2:, 1:-1] + p[2:, 2:] - p[:-2, :-2] - 2 * p[:-2, 1:-1] - p[:-2, 2:]
    out = np.zeros_like(p)
    out[1:-1, 1:-1] = np.minimum(255, abs(gx) + abs(gy))
    return {3: out}


def life(width, height, now, following):
    alive = sum(np.roll(now, (r, c), (0, 1)) for r in (-1, 0, 1) for c in (-1, 0, 1) if r or c)
    return {3: (alive == 3) | ((alive == 2) & (now == 1))}


def nbody(n, body, force, soft):
    p, m = body[:, :3].astype(f64), body[:, 3].astype(f64)
    d = p[None] - p[:, None]
    w = m[None] / ((d**2).sum(-1) + soft) ** 1.5
    return {2: (d * w[..., None]).sum(1)}


def mandelbrot(width, height, limit, out):
    c = (-2 + 3 * np.arange(width) / width)[None] + 1j * (-1.5 + 3 * np.arange(height) / height)[:, None]
    x, y, count = np.zeros(c.shape), np.zeros(c.shape), np.zeros(c.shape, int)
    for _ in range(limit):
        going = x * x + y * y <= 4
        count += going
        x, y = np.where(going, x * x - y * y + c.real, x), np.where(going, 2 * (x * y) + c.imag, y)
    return {3: count}


def monte_carlo(samples, seed, inside):
    state = (np.uint32(seed) + np.uint32(7919) * np.arange(256, dtype=np.uint32) + np.uint32(1)).astype(np.uint32)
    hits = 0

    def draw(s):
        s = s ^ (s << np.uint32(13))
        s = s ^ (s >> np.uint32(17))
        return s ^ (s << np.uint32(5))

    for _ in range(samples):
        state = draw(state)
        x = (state >> np.uint32(8)).astype(np.uint64)
        state = draw(state)
        y = (state >> np.uint32(8)).astype(np.uint64)
        hits += int((x * x + y * y < np.uint64(1 << 48)).sum())
    return {2: [hits]}


def philox(key0, key1, out):
    """Against NumPy's own Philox generator would need its counter order; ten rounds in Python integers instead."""
    rows = []
    for i in range(len(out)):
        c, k0, k1 = (i, 0, 0, 0), int(key0), int(key1)
        for _ in range(10):
            a, b = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
            c = ((b >> 32) ^ c[1] ^ k0, b & 0xFFFFFFFF, (a >> 32) ^ c[3] ^ k1, a & 0xFFFFFFFF)
            k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
        rows.append(c)
    return {2: np.array(rows, np.uint32)}


def kmeans(n, k, dims, points, centres, label, sums, counts):
    distance = ((points[:, None].astype(f64) - centres[None]) ** 2).sum(-1)
    nearest = distance.argmin(1)
    total = np.zeros((k, dims))
    np.add.at(total, nearest, points)
    return {5: nearest, 6: total, 7: np.bincount(nearest, minlength=k)}


def fft(x, out):
    return {1: np.fft.fft(x, axis=1)}


def spd_inputs(rng):
    n = 24
    a = normal(rng, 3, n, n, dtype=f64) + 4 * n * np.eye(n)
    return [n, a]


def lu(n, matrices):
    out = matrices.copy()
    for a in out:
        for k in range(n):
            a[k + 1 :, k] /= a[k, k]
            a[k + 1 :, k + 1 :] -= np.outer(a[k + 1 :, k], a[k, k + 1 :])
    return {1: out}


def edit_distance(length, left, right, out):
    def distance(a, b):
        row = list(range(length + 1))
        for i in range(1, length + 1):
            previous, row[0] = row[0], i
            for j in range(1, length + 1):
                change = previous + (a[i - 1] != b[j - 1])
                previous, row[j] = row[j], min(change, row[j] + 1, row[j - 1] + 1)
        return row[length]

    return {3: [distance(a, b) for a, b in zip(left, right)]}


def layer_norm(cols, x, gain, bias, y, mean, rstd):
    wide = x.astype(f64)
    m = wide.mean(1)
    r = 1 / np.sqrt(wide.var(1) + 1e-5)
    return {4: (wide - m[:, None]) * r[:, None] * gain + bias, 5: m, 6: r}


def cross_entropy(classes, logits, target, loss, gradient):
    p = softmax64(logits)
    rows = np.arange(len(target))
    hot = np.zeros_like(p)
    hot[rows, target] = 1
    return {3: -np.log(p[rows, target]), 4: p - hot}


def attention(tokens, scale, q, k, v, out):
    scores = np.einsum("hid,hjd->hij", q.astype(f64), k.astype(f64)) * scale
    scores = np.where(np.tril(np.ones((tokens, tokens), bool)), scores, -np.inf)
    return {5: softmax64(scores) @ v}


def embedding_backward(width, token, gradient, table):
    out = table.astype(f64)
    np.add.at(out, token, gradient)
    return {3: out}


def rotary(heads, half, x, y):
    position = np.arange(len(x))[:, None, None]
    angle = position * 10000.0 ** (-np.arange(half) / half)
    a, b = x[..., :half].astype(f64), x[..., half:].astype(f64)
    return {3: np.concatenate([a * np.cos(angle) - b * np.sin(angle), a * np.sin(angle) + b * np.cos(angle)], -1)}


def gemv_int8(rows, quads, weight, x, scale, out):
    w = weight.view(np.int8).reshape(rows, -1).astype(np.int64)
    return {5: (w @ x.view(np.int8).astype(np.int64)).astype(np.float32) * scale}


# ---------------------------------------------------------------- halves, in float32 steps rounded to float16
def h(x):
    return x.astype(np.float16)


def wide(x):
    return x.astype(np.float64)


def half2_arithmetic(pairs, x, y, out):
    total = h(wide(x) + wide(y))
    product = h(wide(x) * wide(y))
    fused = h(wide(x) * wide(y) + wide(total))
    last = h(wide(fused) - np.array([1.0, -2.0]))
    return {3: np.stack([total, product, fused, last], 1).reshape(-1, 2)}


def half_operators(n, x, y, out):
    # a real GPU may fuse products with sums: the tolerance allows for it
    c = h(wide(h(wide(h(wide(x) * wide(y))) + wide(x))) - wide(y))
    c = np.where(x > y, -c, c)
    c = np.where(c == x, np.float16(0), c)
    return {3: h(wide(c) / wide(h(wide(y) * wide(y) + 1.0)))}


def half_convert(n, x, bits, back, rounded):
    half = x.astype(np.float16)
    return {2: half.view(np.uint16), 3: half.astype(np.float32), 4: np.rint(half.astype(f64)).astype(np.int32)}


def to_bfloat(x):
    """Bit patterns of float32 values rounded to bfloat16, ties to even."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def from_bfloat(bits):
    return (bits.astype(np.uint32) << 16).view(np.float32)


def bfloat_axpy(n, a, x, y):
    fused = wide(np.float32(a) * wide(from_bfloat(x)) + wide(from_bfloat(y)))
    return {3: to_bfloat(fused.astype(np.float32))}


def bfloat_packed(pairs, x, y, out):
    a, b = wide(from_bfloat(x)), wide(from_bfloat(y))
    rows = np.stack([to_bfloat((a * b + a).astype(np.float32)), to_bfloat((a * b).astype(np.float32))], 1)
    return {3: rows.reshape(-1, 2)}


# ---------------------------------------------------------------- memory
PARTICLE = np.dtype(
    {
        "names": ["position", "mass", "tag", "energy"],
        "formats": [(np.float32, 3), np.float32, np.int16, f64],
        "offsets": [0, 12, 16, 24],
        "itemsize": 32,
    }
)


def particles(rng, count):
    out = np.zeros(count, PARTICLE)
    out["position"] = normal(rng, count, 3)
    out["mass"] = rng.random(count)
    out["tag"] = rng.integers(-5, 5, count)
    out["energy"] = rng.random(count)
    return out


def struct_by_value(p, n, others, force, energy):
    d = others["position"].astype(f64) - p["position"]
    return {
        3: p["mass"] * others["mass"].astype(f64) / ((d**2).sum(1) + 1) + p["tag"],
        4: p["energy"] + others["energy"],
    }


def most_frequent_digit(n, x, y):
    out = []
    for v in x.tolist():
        digits = [str(v).count(str(d)) for d in range(10)]
        best = digits.index(max(digits))
        out.append(best * 100 + digits[best])
    return {2: out}


def rc4(key, length, text, out, count):
    rows = []
    for k, plain in zip(key, text):
        state, j = list(range(256)), 0
        for i in range(256):
            j = (j + state[i] + int(k[i % length])) & 255
            state[i], state[j] = state[j], state[i]
        a = b = 0
        row = []
        for byte in plain:
            a = (a + 1) & 255
            b = (b + state[a]) & 255
            state[a], state[b] = state[b], state[a]
            row.append(int(byte) ^ state[(state[a] + state[b]) & 255])
        rows.append(row)
    return {3: np.array(rows, np.uint8)}


def generic_pointers(x, out):
    rows = []
    for t in range(32):
        source = [x, x * 2, np.array([x[(t + k) & 31] * 3 for k in range(4)])][t % 3]
        rows.append(int(source[:4].sum()))
    return {1: rows}


# ---------------------------------------------------------------- calls
def fibonacci(n):
    a, b = 0, 1
    for _ in range(n):
        a, b = b, a + b
    return a


def ackermann(m, n):
    return (n + 1, n + 2, 2 * n + 3)[m]


def virtual_calls(kind, size, area, sides):
    return {2: np.choose(kind, [3 * size * size, size * 2, 6 * size * size]), 3: np.choose(kind, [0, 4, 4])}


def struct_results(low, high, middle, names):
    rows = []
    for i in range(64):
        lo, hi, name, mid = i, 2 * i, [0] * 5, 0.0
        for k in range(i % 4):
            by = i + k
            lo, hi = lo - by, hi + by
            name[by % 5] = 97 + by % 26
            mid = 0.5 * (lo + hi)
        rows.append((lo, hi, mid, sum(name) + 1000 * (i % 4)))
    return dict(enumerate(map(np.array, zip(*rows))))


# ---------------------------------------------------------------- bytes and integers
def text_of(rng, count):
    return rng.choice(np.frombuffer(b"abcdef xyz  Q", np.int8), count)


def find_pattern(n, text, length, pattern, matches):
    found = [int((text[i : i + length] == pattern).all()) if i + length <= n else 0 for i in range(n)]
    return {4: found}


def crc32(length, data, out):
    import zlib

    return {2: np.array([zlib.crc32(row.tobytes()) for row in data], np.uint32)}


def number_inputs(rng):
    values = rng.integers(-99999, 99999, 200)
    words = [str(v).encode() for v in values]
    start = np.concatenate([[0], np.cumsum([len(w) for w in words])]).astype(np.int32)
    return [200, start, np.frombuffer(b"".join(words), np.int8).copy(), zeros(200, dtype=np.int32)]


def parse_numbers(count, start, text, out):
    raw = text.tobytes()
    return {3: [int(raw[start[i] : start[i + 1]]) for i in range(count)]}


def division_inputs(rng):
    a = ints(rng, -(2**31), 2**31 - 1, 500)
    b = ints(rng, -1000, 1000, 500)
    b[b == 0] = 3
    return [500, a, b, *(zeros(500, dtype=t) for t in (np.int32, np.int32, np.uint32, np.uint32))]


def division(n, a, b, q, r, uq, ur):
    quotient, remainder = truncated_division(a, b)
    ua, ub = a.view(np.uint32), b.view(np.uint32)
    return {3: wrap(quotient, np.int32), 4: wrap(remainder, np.int32), 5: ua // ub, 6: ua % ub}


def wide_division_inputs(rng):
    a = ints(rng, -(2**63), 2**63 - 1, 300, dtype=np.int64)
    b = ints(rng, -(2**40), 2**40, 300, dtype=np.int64) >> rng.integers(0, 38, 300)
    b[b == 0] = -7
    return [300, a, b, *(zeros(300, dtype=t) for t in (np.int64, np.int64, np.uint64))]


def wide_division(n, a, b, q, r, uq):
    quotient, remainder = truncated_division(a, b)
    return {3: wrap(quotient, np.int64), 4: wrap(remainder, np.int64), 5: a.view(np.uint64) // b.view(np.uint64)}


def divide_constants(n, x, out):
    seven, _ = truncated_division(x, np.full(n, 7))
    _, ten = truncated_division(x, np.full(n, 10))
    sixteen, _ = truncated_division(x, np.full(n, 16))
    return {2: np.stack([wrap(seven, np.int32), wrap(ten, np.int32), (x.view(np.uint32) // 641).view(np.int32),
                         wrap(sixteen, np.int32)], 1)}  # fmt: skip


def multiply_high(n, a, b, s, u, s32, u32):
    pairs = [(int(p), int(q)) for p, q in zip(a, b)]
    low = [(wrap([p], np.int32)[0], wrap([q], np.int32)[0]) for p, q in pairs]
    return {
        3: wrap([(p * q) >> 64 for p, q in pairs], np.int64),
        4: wrap([((p % 2**64) * (q % 2**64)) >> 64 for p, q in pairs], np.uint64),
        5: wrap([(int(p) * int(q)) >> 32 for p, q in low], np.int32),
        6: wrap([((int(p) % 2**32) * (int(q) % 2**32)) >> 32 for p, q in low], np.uint32),
    }


def count_bits(n, x, out):
    rows = []
    for v in map(int, x):
        low = v & 0xFFFFFFFF
        rows.append([
            low.bit_count(), v.bit_count(), 32 - low.bit_length(), 64 - v.bit_length(),
            (low & -low).bit_length(), (v & -v).bit_length(), int(f"{low:032b}"[::-1], 2), int(f"{v:064b}"[::-1], 2) >> 32,
        ])  # fmt: skip
    return {2: wrap(rows, np.int32).reshape(-1, 8)}


def permute_bits(n, a, b, s, out):
    rows = []
    for x, y, k in zip(map(int, a), map(int, b), map(int, s)):
        both = (y << 32) | x
        picked = [(both >> (8 * ((k >> (4 * i)) & 7))) & 255 for i in range(4)]
        shift, clamped = k & 31, min(k, 32)
        signed = [v - 2**32 if v >> 31 else v for v in (x, y)]
        rows.append([
            sum(v << (8 * i) for i, v in enumerate(picked)),
            (both << shift) >> 32, both >> shift, (both << clamped) >> 32, both >> clamped,
            abs(signed[0] - signed[1]) + k,
            sum((((x >> (8 * i)) + (y >> (8 * i))) & 255) << (8 * i) for i in range(4)),
            ((signed[0] + signed[1]) >> 1) ^ ((signed[0] + signed[1] + 1) >> 1),
        ])  # fmt: skip
    return {4: wrap(rows, np.uint32).reshape(-1, 8)}


def wide_sum(n, a, b, out):
    rows = []
    for x, y in zip(a, b):
        total = sum((int(p) + int(q)) << (64 * k) for k, (p, q) in enumerate(zip(x, y)))
        rows.append([total >> (64 * k) for k in range(4)])
    return {3: wrap(rows, np.uint64).reshape(-1, 4)}


def collatz(n, steps):
    out = []
    for v in range(1, n + 1):
        count = 0
        while v != 1:
            v = 3 * v + 1 if v & 1 else v // 2
            count += 1
        out.append(count)
    return {1: out}


def sieve(n, composite):
    out = np.zeros(n, np.uint8)
    for i in range(2, math.isqrt(n) + 1):
        if i * i < n:
            out[i * i :: i] = 1
    return {1: out}


def float_to_int(n, x, truncated, nearest, u, w):
    clean = np.nan_to_num(x.astype(f64), nan=0.0, posinf=1e30, neginf=-1e30)

    def saturate(v, low, high):
        return np.array([min(max(int(t), low), high) for t in v], dtype=object)

    return {
        2: wrap(saturate(np.trunc(clean), -(2**31), 2**31 - 1), np.int32),
        3: wrap(saturate(np.rint(clean), -(2**31), 2**31 - 1), np.int32),
        4: wrap(saturate(np.trunc(clean), 0, 2**32 - 1), np.uint32),
        5: wrap([-(2**63) if math.isnan(v) else t for v, t in zip(x, saturate(np.floor(clean), -(2**63), 2**63 - 1))],
                np.int64),  # fmt: skip
    }


# ---------------------------------------------------------------- warps (32 lanes each)
def per_warp(function):
    """Applies a function of one warp's values to every warp and joins what it returns along lanes."""

    def apply(x):
        return np.concatenate([np.broadcast_to(function(w), w.shape) for w in x.reshape(-1, 32)])

    return apply


def bits_of(flags):
    return sum(1 << i for i, f in enumerate(flags) if f)


def votes(x, ballot, any_, all_):
    return {
        1: per_warp(lambda w: np.uint32(bits_of(w > 0)))(x),
        2: per_warp(lambda w: np.int32((w > 5).any()))(x),
        3: per_warp(lambda w: np.int32((w > -5).all()))(x),
    }


def shuffles(x, out):
    lane = np.arange(32)
    pick = [
        (lane * 5) & 31,
        np.where(lane % 16 >= 3, lane - 3, lane),
        np.where(lane % 8 + 2 < 8, lane + 2, lane),
        lane ^ 5,
        lane // 4 * 4 + 1,
    ]
    return {1: np.concatenate([per_warp(lambda w, p=p: w[p])(x) for p in pick])}


def matches(x, any_, all_, equal):
    same = per_warp(lambda w: np.int32(len(set(w >> 8)) == 1))(x)
    return {
        1: per_warp(lambda w: np.array([bits_of(w == v) for v in w], np.uint32))(x),
        2: np.where(same, np.uint32(0xFFFFFFFF), np.uint32(0)),
        3: same,
    }


def reductions(x, out):
    operations = (np.sum, np.min, np.max, np.bitwise_and.reduce, np.bitwise_or.reduce, np.bitwise_xor.reduce)
    return {1: np.concatenate([per_warp(lambda w, op=op: np.int32(op(w)))(x) for op in operations])}


def partial_masks(x, out):
    result = np.zeros(32, np.int32)
    odd = np.arange(1, 32, 2)
    v = x.copy()
    v[odd] += x[odd ^ 2]
    result[odd] = (v[odd] > 0).sum()
    result[::2] = x[4] * 2 + 16
    return {1: result}


def shared_exchange(x, y):
    # lane t reads its neighbour's slot, doubles it, and writes it back there
    return {1: x * 2}


# ---------------------------------------------------------------- control flow
def switches(n, x, y):
    out = []
    for v, old in zip(x.tolist(), y.tolist()):
        key = v & 15
        if key == 12:
            out.append(old)
            continue
        quotient = int(v / 3)
        table = {0: 17, 1: v * 3 + 5, 2: v + 5, 3: -v, 5: v ^ 0xFF, 6: v << 2, 7: quotient + (v - 3 * quotient), 8: v * v, 9: v - 1000}
        out.append(table.get(key, 1))
    return {2: out}


def nested_divergence(n, x, y):
    out = []
    for v in x.tolist():
        r = 0
        if v > 0:
            if v & 1:
                for k in range(v & 7):
                    r += v if k & 1 else -k
            else:
                r = v // 2 if v & 2 else v * 2 if v & 4 else -1
            r += 10
        elif v < -50:
            while v < -50:
                v += 13
                if math.fmod(v, 5) == 0:
                    continue
                r -= 1
        else:
            r = 3
        out.append(r)
    return {2: out}


def break_continue(n, x, y):
    values, out = x.tolist(), []
    for i in range(n):
        total, jumped = 0, False
        for k in range(64):
            v = values[(i + k) % n]
            if v == 0:
                continue
            if v > 95:
                break
            j = 0
            while j * j <= v:
                if j & 3 != 2:
                    total += j
                j += 1
            if total > 500:
                jumped = True
                break
        out.append(total if jumped else -total)
    return {2: out}


def irreducible(n, x, y):
    out = []
    for v in x.tolist():
        steps, second = 0, bool(v & 1)
        while True:
            if not second:
                v = v * 3 + 1
                steps += 1
                if v > 5000:
                    break
            second = False
            v += 7
            steps += 100
            if not (v < 4000 or v & 3):
                break
        out.append(v + steps)
    return {2: out}


def odd_blocks(block, grid):
    def expect(out):
        bx, by, bz = block
        size = bx * by * bz
        t = np.arange(size)
        x, y, z = t % bx, t // bx % by, t // (bx * by)
        one = size * (size - 1) // 2 + x * 1000000 + y * 100000 + z * 10000
        return {0: np.tile(one, grid[0] * grid[1] * grid[2])}

    return expect


def early_return(n, x, y):
    return {2: np.concatenate([x[i : i + 128][::-1] for i in range(0, n, 128)])}


def barrier_in_loop(rounds, out):
    rows = []
    for count in rounds:
        ring = np.arange(96)
        for k in range(count):
            ring = np.roll(ring, -1) + k
        rows.append(ring)
    return {1: np.concatenate(rows)}


PROGRAM = np.array([[0, 5], [2, 4], [1, 3], [4, 0x55], [0, -2], [3, 1], [1, 7], [9, 0]], np.int32)


def interpreter(program, length, given, output):
    out = []
    for a in given.tolist():
        counter, pc = 8, 0
        while 0 <= pc < length:
            op, operand = (int(v) for v in program[pc])
            pc += 1
            if op == 0:
                a += operand
            elif op == 1:
                a *= operand
            elif op == 2:
                if a & 1:
                    pc = operand
            elif op == 3:
                counter -= 1
                if counter > 0:
                    pc = operand
            elif op == 4:
                a ^= operand
            else:
                break
            a = (a + 2**31) % 2**32 - 2**31
        out.append(a)
    return {3: out}


QUEENS_8 = [4, 8, 16, 18, 18, 16, 8, 4]  # solutions by column of the first queen; 92 in all


# ---------------------------------------------------------------- atomics
def every_atomic(i, u, w, f, d):
    t = np.arange(256)
    ones64, wide64 = 2**64 - 1, [int(v) for v in w]
    return {
        0: [i[0] + t.sum(), i[1] - t.sum(), min(i[2], -255), max(i[3], 255), i[4] & ~0xFF, -1, i[6] ^ np.bitwise_xor.reduce(t)],
        1: [int(u[0]) + 768, 256 % 10, (0 - 256) % 10, min(int(u[3]), 5), 255],
        2: wrap([wide64[0] + 256 * 0x100000001, max(wide64[1], 255 << 33), min(wide64[2], 1 << 33), 0, ones64, wide64[5]], np.uint64),
        3: f + 128,
        4: d + 64,
    }


def hash_inputs(rng):
    keys = ints(rng, 0, 400, 1000, dtype=np.uint32)
    return [1000, keys, filled(0xFFFFFFFF, 1024, dtype=np.uint32), zeros(1024, dtype=np.uint32), np.uint32(1023)]


def julia(n, limit, out):
    result = []
    for i in range(n):
        z, k = complex(np.float32(-1.5) + np.float32(3.0) * i / n, 0.25), 0
        while k < limit and abs(z) ** 2 < 16:
            z = z * z + complex(-0.8, 0.156)
            k += 1
        result.append(k)
    return {2: result}


def pipeline_stages(tiles, x, out):
    rows = x.reshape(tiles, 64).astype(f64)
    return {2: sum(np.roll(rows[k], -k) for k in range(tiles))}


CASES = [
    # ---- one thread per element
    Case("elementwise.cu", "saxpy", 8, 128, lambda r: [1000, 2.5, normal(r, 1000), normal(r, 1000)],
         lambda n, a, x, y: {3: np.float32(a) * wide(x) + y}, rtol=1e-6, atol=1e-7),
    Case("elementwise.cu", "grid_stride", 3, 96, lambda r: [5001, -1.5, normal(r, 5001), normal(r, 5001)],
         lambda n, a, x, y: {3: a * wide(x) + y}, rtol=1e-6, atol=1e-7),
    Case("elementwise.cu", "saxpy_float4", 2, 64, lambda r: [100, 3.0, normal(r, 100, 4), normal(r, 100, 4)],
         lambda n, a, x, y: {3: a * wide(x) + y}, rtol=1e-6, atol=1e-6),
    Case("elementwise.cu", "add_3d", (3, 2, 2), (8, 4, 2),
         lambda r: [19, 7, 3, *(normal(r, 3, 7, 19, dtype=f64) for _ in range(3))], lambda x, y, z, a, b, c: {5: a + b}),
    Case("elementwise.cu", "gelu", 4, 256, lambda r: [1000, 3 * normal(r, 1000), zeros(1000)],
         lambda n, x, y: {2: 0.5 * wide(x) * (1 + np.tanh(0.7978845608028654 * (wide(x) + 0.044715 * wide(x) ** 3)))},
         rtol=2e-6, atol=1e-6),
    Case("elementwise.cu", "gelu_backward", 4, 256, lambda r: [1000, 2 * normal(r, 1000), normal(r, 1000), zeros(1000)],
         gelu_backward, rtol=3e-6, atol=1e-6),
    Case("elementwise.cu", "silu_mul", 4, 256, lambda r: [1000, 2 * normal(r, 1000), normal(r, 1000), zeros(1000)],
         lambda n, g, u, o: {3: wide(g) / (1 + np.exp(-wide(g))) * u}, rtol=2e-6),
    Case("elementwise.cu", "adamw", 4, 256,
         lambda r: [777, normal(r, 777), normal(r, 777), normal(r, 777) / 10, normal(r, 777) ** 2, 1e-2, 0.9, 0.999, 1e-8, 0.1, 3],
         adamw, rtol=2e-4, atol=1e-6),
    Case("elementwise.cu", "polynomial_double", 4, 100, lambda r: [377, normal(r, 377, dtype=f64), zeros(377, dtype=f64)],
         lambda n, x, y: {2: np.polyval([2.0, -0.75, 0.125, 3.0, -1.25, 0.5], x)}, rtol=1e-13, atol=1e-13),
    # ---- reductions
    Case("reduce.cu", "reduce_shared", 5, 256, lambda r: [3000, ints(r, -9, 9, 3000).astype(np.float32), zeros(5)],
         lambda n, x, p: {2: [sum(x[b * 256 + k * 1280 : b * 256 + k * 1280 + 256].sum() for k in range(3)) for b in range(5)]}),
    Case("reduce.cu", "reduce_interleaved", 4, 128, lambda r: [ints(r, -99, 99, 512), zeros(4, dtype=np.int32)],
         lambda x, p: {1: blocks_of(x, 128).sum(1)}, shared_bytes=512),
    Case("reduce.cu", "reduce_shuffle", 6, 256, lambda r: [10007, ints(r, -9, 9, 10007).astype(np.float32), zeros(1)],
         lambda n, x, t: {2: [x.sum()]}),
    Case("reduce.cu", "dot_xor", 3, 128, lambda r: [1000, normal(r, 1000, dtype=f64), normal(r, 1000, dtype=f64), zeros(1, dtype=f64)],
         lambda n, x, y, o: {3: [x @ y]}, rtol=1e-12),
    Case("reduce.cu", "arg_max", 1, 128, lambda r: [5000, normal(r, 5000), zeros(1), zeros(1, dtype=np.int32)],
         lambda n, x, b, w: {2: [x.max()], 3: [x.argmax()]}),
    Case("reduce.cu", "min_max_atomic", 4, 256, lambda r: [900, ints(r, -5000, 5000, 900), filled(0, 1), filled(0, 1)],
         lambda n, x, lo, hi: {2: [min(0, x.min())], 3: [max(0, x.max())]}),
    Case("reduce.cu", "reduce_last_block", 7, 128, lambda r: [4000, ints(r, -9, 9, 4000).astype(np.float32), zeros(7), zeros(1)],
         lambda n, x, p, t: {2: [x[[i for i in range(4000) if i // 128 % 7 == b]].sum() for b in range(7)], 3: [x.sum()]}),
    Case("reduce.cu", "block_votes", 3, 128, lambda r: [300, ints(r, -6, 100, 300), zeros(9, dtype=np.int32)],
         lambda n, x, o: {2: [f for b in np.split(np.pad(x, (0, 84), constant_values=1), 3)
                              for f in ((b > 0).sum(), (b > -5).all(), (b > 90).any())]}),
    # ---- cooperative groups and CUB
    Case("reduce_groups.cu", "tile_sums", 2, 64, lambda r: [ints(r, -9, 9, 128), zeros(16, dtype=np.int32)],
         lambda x, o: {1: blocks_of(x, 8).sum(1)}, compilers=NVRTC),
    Case("reduce_groups.cu", "group_reduce", 4, 64, lambda r: [200, ints(r, 0, 50, 200).astype(np.float32), zeros(1), filled(-1, 1)],
         lambda n, x, s, m: {2: [x.sum()], 3: [int(x.max() * 100)]}, compilers=NVRTC),
    Case("reduce_groups.cu", "group_scan", 2, 64, lambda r: [ints(r, -9, 9, 128), *(zeros(128, dtype=np.int32) for _ in range(2))],
         lambda x, i, e: {1: blocks_of(x, 16).cumsum(1).ravel(), 2: (blocks_of(x, 16).cumsum(1) - blocks_of(x, 16)).ravel()},
         compilers=NVRTC),
    Case("reduce_groups.cu", "labelled", 1, 32, lambda r: [ints(r, 0, 5, 32), zeros(5, dtype=np.int32)],
         lambda x, s: {1: np.bincount(x, minlength=5)}, compilers=NVRTC),
    Case("cub_block.cu", "cub_reduce", 3, 128, lambda r: [ints(r, -9, 9, 384).astype(np.float32), zeros(3)],
         lambda x, o: {1: blocks_of(x, 128).sum(1)}, compilers=NVRTC),
    Case("cub_block.cu", "cub_scan", 3, 128, lambda r: [ints(r, -9, 9, 384), *(zeros(384, dtype=np.int32) for _ in range(2)), zeros(3, dtype=np.int32)],
         lambda x, i, e, t: {1: blocks_of(x, 128).cumsum(1).ravel(), 2: (blocks_of(x, 128).cumsum(1) - blocks_of(x, 128)).ravel(),
                             3: blocks_of(x, 128).sum(1)}, compilers=NVRTC),
    Case("cub_block.cu", "cub_radix_sort", 2, 64, lambda r: [ints(r, 0, 2**32, 512, dtype=np.uint32), np.arange(512, dtype=np.int32)],
         lambda k, v: {0: np.sort(blocks_of(k, 256), 1).ravel(),
                       1: (np.argsort(blocks_of(k, 256), 1, kind="stable") + [[0], [256]]).ravel()}, compilers=NVRTC),
    Case("cub_block.cu", "cub_warp_scan", 1, 128, lambda r: [ints(r, -99, 99, 128), zeros(128, dtype=np.int32)],
         lambda x, o: {1: np.maximum.accumulate(blocks_of(x, 32), 1).ravel()}, compilers=NVRTC),
    Case("cub_block.cu", "cub_histogram", 2, 128, lambda r: [ints(r, 0, 256, 1024, dtype=np.uint8), zeros(256, dtype=np.int32)],
         lambda x, o: {1: np.bincount(x, minlength=256)}, compilers=NVRTC),
    Case("cub_block.cu", "cub_merge_sort", 2, 64, lambda r: [normal(r, 256, dtype=f64)],
         lambda x: {0: np.sort(blocks_of(x, 128), 1).ravel()}, compilers=NVRTC),
    # ---- scans
    Case("scan.cu", "scan_hillis_steele", 3, 96, lambda r: [ints(r, -50, 50, 288), zeros(288, dtype=np.int32)],
         lambda x, o: {1: blocks_of(x, 96).cumsum(1).ravel()}, shared_bytes=96 * 8),
    Case("scan.cu", "scan_blelloch", 2, 128, lambda r: [ints(r, -50, 50, 512).astype(np.float32), zeros(512)],
         lambda x, o: {1: (blocks_of(x, 256).cumsum(1) - blocks_of(x, 256)).ravel()}),
    Case("scan.cu", "scan_shuffle", 2, 256, lambda r: [500, ints(r, -50, 50, 500), zeros(500, dtype=np.int32)],
         lambda n, x, o: {2: np.concatenate([x[:256].cumsum(), x[256:].cumsum()])}),
    Case("scan.cu", "scan_lookback", 40, 128, lookback_inputs, lookback),
    # ---- sorting within a launch
    Case("sort.cu", "bitonic_shared", 3, 128, lambda r: [normal(r, 384)], lambda x: {0: np.sort(blocks_of(x, 128), 1).ravel()},
         shared_bytes=512),
    Case("sort.cu", "merge_path", 2, 32,
         lambda r: [np.sort(ints(r, 0, 999, 300)), 300, np.sort(ints(r, 0, 999, 207)), 207, zeros(507, dtype=np.int32), 8],
         lambda a, na, b, nb, o, p: {4: np.sort(np.concatenate([a, b]))}),
    Case("sort.cu", "odd_even_sort", 1, 64, lambda r: [101, ints(r, -999, 999, 101, dtype=np.int16)], odd_even_expected),
    Case("sort.cu", "insertion_sort", 2, 33, lambda r: [ints(r, -999, 999, 66, 16)], lambda x: {0: np.sort(x, 1)}),
    # ---- histograms
    Case("histogram.cu", "histogram_global", 8, 128, lambda r: [1000, ints(r, 0, 256, 1000, dtype=np.uint8), zeros(256, dtype=np.uint32)],
         lambda n, x, b: {2: np.bincount(x, minlength=256)}),
    Case("histogram.cu", "histogram_shared", 3, 96, lambda r: [9000, ints(r, 0, 256, 9000, dtype=np.uint8), zeros(256, dtype=np.uint32)],
         lambda n, x, b: {2: np.bincount(x, minlength=256)}),
    Case("histogram.cu", "histogram_match", 8, 128, lambda r: [1001, ints(r, 0, 256, 1001, dtype=np.uint8), zeros(16, dtype=np.uint32)],
         lambda n, x, b: {2: np.bincount(x & 15, minlength=16)}),
    Case("histogram.cu", "histogram_float", 8, 128, lambda r: [1000, (ints(r, -40, 40, 1000) / 8).astype(np.float32), -4.0, 4.0, 16, zeros(16, dtype=np.uint64)],
         lambda n, x, lo, hi, c, b: {5: np.bincount(np.clip(np.floor((wide(x) + 4) * 2), 0, 15).astype(int), minlength=16)}),
    # ---- transposition
    *(Case("transpose.cu", f"transpose_{kind}", grid, block, lambda r: [70, 45, normal(r, 70, 45), zeros(45, 70)],
           lambda rows, cols, x, y: {3: x.T})
      for kind, grid, block in (("naive", (3, 5), (16, 16)), ("tiled", (2, 3), (32, 8)), ("padded", (2, 3), (32, 8)))),
    Case("transpose.cu", "transpose_in_place", (3, 5), (16, 8), lambda r: [37, normal(r, 37, 37, dtype=f64)], lambda n, x: {1: x.T}),
    Case("transpose.cu", "transpose_shuffle", 1, 32, lambda r: [ints(r, 0, 999, 32, 32), zeros(32, 32, dtype=np.int32)],
         lambda x, y: {1: x.T}),
    # ---- stencils and convolutions
    Case("stencil.cu", "stencil_1d", 4, 128, lambda r: [450, normal(r, 450), zeros(450)], stencil_1d, rtol=1e-5, atol=1e-5),
    Case("stencil.cu", "heat_2d", (3, 6), (16, 8), lambda r: [41, 43, 0.2, normal(r, 43, 41), zeros(43, 41)], heat, rtol=1e-5, atol=1e-6),
    Case("stencil.cu", "jacobi_3d", (3, 3, 5), (8, 4, 2), lambda r: [12, normal(r, 12, 12, 12, dtype=f64), zeros(12, 12, 12, dtype=f64)],
         jacobi, rtol=1e-13, atol=1e-15),
    Case("stencil.cu", "stencil_3d_march", (2, 3), (16, 8), lambda r: [30, 20, 9, normal(r, 9, 20, 30), zeros(9, 20, 30)], march,
         rtol=1e-5, atol=1e-6),
    Case("stencil.cu", "convolve_2d", (3, 5), (16, 8), lambda r: [37, 35, normal(r, 35, 37), zeros(35, 37)], binomial_blur, rtol=1e-5, atol=1e-6),
    Case("stencil.cu", "sobel_u8", (3, 5), (16, 8), lambda r: [40, 35, ints(r, 0, 256, 35, 40, dtype=np.uint8), zeros(35, 40, dtype=np.uint8)], sobel),
    Case("stencil.cu", "life", (3, 5), (16, 8), lambda r: [40, 35, ints(r, 0, 2, 35, 40, dtype=np.uint8), zeros(35, 40, dtype=np.uint8)], life),
    # ---- physics and numerics
    Case("physics.cu", "nbody", 3, 64, lambda r: [150, normal(r, 150, 4), zeros(150, 3), 0.1], nbody, rtol=1e-4, atol=1e-4),
    Case("physics.cu", "mandelbrot", (4, 12), (16, 4), lambda r: [60, 45, 80, zeros(45, 60, dtype=np.int32)], mandelbrot),
    Case("physics.cu", "monte_carlo_pi", 4, 64, lambda r: [100, np.uint32(12345), zeros(1, dtype=np.uint32)], monte_carlo),
    Case("physics.cu", "philox", 2, 32, lambda r: [np.uint32(0xDEADBEEF), np.uint32(7), zeros(64, 4, dtype=np.uint32)], philox),
    Case("physics.cu", "kmeans_assign", 4, 64,
         lambda r: [250, 5, 3, ints(r, -20, 20, 250, 3).astype(np.float32), (ints(r, -20, 20, 5, 3) + 0.25).astype(np.float32),
                    zeros(250, dtype=np.int32), zeros(5, 3), zeros(5, dtype=np.int32)], kmeans),
    Case("physics.cu", "fft_256", 2, 128, lambda r: [(normal(r, 2, 256) + 1j * normal(r, 2, 256)).astype(np.complex64), zeros(2, 256, dtype=np.complex64)],
         fft, rtol=1e-4, atol=1e-4),
    Case("physics.cu", "black_scholes", 4, 128,
         lambda r: [500, *(np.float32(lo) + np.float32(hi - lo) * r.random(500, np.float32) for lo, hi in ((5, 30), (1, 100), (0.25, 10))), 0.02, 0.3, zeros(500)],
         black_scholes, rtol=1e-4, atol=1e-4),
    # ---- linear algebra
    Case("linear.cu", "sgemm_naive", (3, 3), (16, 16), lambda r: [45, 37, 29, normal(r, 45, 29), normal(r, 29, 37), zeros(45, 37)],
         lambda m, n, k, a, b, c: {5: wide(a) @ b}, rtol=1e-5, atol=1e-5),
    Case("linear.cu", "sgemm_tiled", (2, 3), (32, 32), lambda r: [70, 50, 90, normal(r, 70, 90), normal(r, 90, 50), zeros(70, 50)],
         lambda m, n, k, a, b, c: {5: wide(a) @ b}, rtol=1e-5, atol=1e-5),
    Case("linear.cu", "sgemm_register", (2, 1), 64, lambda r: [64, 128, 40, 1.5, normal(r, 64, 40), normal(r, 40, 128), 0.5, normal(r, 64, 128)],
         lambda m, n, k, al, a, b, be, c: {7: al * (wide(a) @ b) + be * c}, rtol=1e-4, atol=1e-5),
    Case("linear.cu", "gemv_batched", (2, 3), 64, lambda r: [100, 33, normal(r, 3, 100, 33), normal(r, 3, 33), zeros(3, 100)],
         lambda m, n, a, x, y: {4: np.einsum("bij,bj->bi", wide(a), wide(x))}, rtol=1e-5, atol=1e-5, shared_bytes=33 * 4),
    Case("linear.cu", "gemv_warp", 13, 128, lambda r: [50, 77, normal(r, 50, 77), normal(r, 77), zeros(50)],
         lambda m, n, a, x, y: {4: wide(a) @ x}, rtol=1e-5, atol=1e-5),
    *(Case("linear.cu", f"spmv_{kind}", grid, 64, lambda r: [120, *csr(r, 120, 90, 40), normal(r, 90), zeros(120)],
           lambda n, s, c, v, x, y: {5: csr_product(s, c, v, x)}, rtol=1e-4, atol=1e-5) for kind, grid in (("scalar", 2), ("vector", 60))),
    Case("linear.cu", "coo_scatter", 8, 64,
         lambda r: [500, ints(r, 0, 40, 500), ints(r, 0, 30, 500), normal(r, 500, dtype=f64), normal(r, 30, dtype=f64), zeros(40, dtype=f64)],
         lambda n, i, j, v, x, y: {5: np.bincount(i, v * x[j], 40)}, rtol=1e-12, atol=1e-12),
    Case("linear.cu", "lu_block", 3, 32, spd_inputs, lu, rtol=1e-10, atol=1e-12),
    Case("linear.cu", "edit_distance", 3, 32,
         lambda r: [25, ints(r, 97, 101, 3, 25, dtype=np.int8), ints(r, 97, 101, 3, 25, dtype=np.int8), zeros(3, dtype=np.int32)],
         edit_distance, shared_bytes=3 * 26 * 4),
    # ---- transformers
    Case("transformer.cu", "softmax", 5, 96, lambda r: [200, 3 * normal(r, 5, 200), zeros(5, 200)],
         lambda n, x, y: {2: softmax64(x)}, rtol=2e-6, atol=1e-8),
    Case("transformer.cu", "layer_norm", 5, 128, lambda r: [300, normal(r, 5, 300), normal(r, 300), normal(r, 300), zeros(5, 300), zeros(5), zeros(5)],
         layer_norm, rtol=2e-5, atol=2e-6),
    Case("transformer.cu", "rms_norm", 5, 64, lambda r: [100, normal(r, 5, 100), normal(r, 100), zeros(5, 100)],
         lambda n, x, g, y: {3: x / np.sqrt((wide(x) ** 2).mean(1, keepdims=True) + 1e-6) * g}, rtol=2e-6, atol=1e-7),
    Case("transformer.cu", "cross_entropy", 6, 64, lambda r: [50, 2 * normal(r, 6, 50), ints(r, 0, 50, 6), zeros(6), zeros(6, 50)],
         cross_entropy, rtol=1e-5, atol=1e-6),
    Case("transformer.cu", "attention_row", (20, 2), 32, lambda r: [20, 0.125, *(normal(r, 2, 20, 64) for _ in range(3)), zeros(2, 20, 64)],
         attention, rtol=1e-5, atol=1e-5),
    Case("transformer.cu", "embedding", 7, 32, lambda r: [50, ints(r, 0, 11, 7), normal(r, 11, 50), normal(r, 7, 50), zeros(7, 50)],
         lambda w, t, table, p, o: {4: table[t] + p}),
    Case("transformer.cu", "embedding_backward", 7, 32, lambda r: [50, ints(r, 0, 3, 7), normal(r, 7, 50), normal(r, 3, 50)],
         embedding_backward, rtol=1e-5, atol=1e-5),
    Case("transformer.cu", "rotary", (9, 2), 32, lambda r: [2, 32, normal(r, 9, 2, 64), zeros(9, 2, 64)], rotary, rtol=1e-5, atol=1e-5),
    Case("transformer.cu", "gemv_int8", 2, 64,
         lambda r: [100, 20, ints(r, -(2**31), 2**31, 2000), ints(r, -(2**31), 2**31, 20), normal(r, 100), zeros(100)],
         gemv_int8, rtol=1e-6),
    # ---- half precision
    Case("halves.cu", "half_axpy", 4, 64, lambda r: [200, np.float16(1.5), h(normal(r, 200)), h(normal(r, 200))],
         lambda n, a, x, y: {3: h(1.5 * wide(x) + wide(y))}),
    Case("halves.cu", "half2_arithmetic", 4, 32, lambda r: [100, h(normal(r, 100, 2)), h(normal(r, 100, 2)), zeros(400, 2, dtype=np.float16)],
         half2_arithmetic),
    Case("halves.cu", "half_operators", 4, 64, lambda r: [200, h(normal(r, 200)), h(normal(r, 200)), zeros(200, dtype=np.float16)],
         half_operators, rtol=2e-3, atol=2e-3),
    Case("halves.cu", "half_convert", 4, 64, lambda r: [200, 1000 * normal(r, 200), zeros(200, dtype=np.uint16), zeros(200), zeros(200, dtype=np.int32)],
         half_convert),
    Case("halves.cu", "half_dot", 1, 64, lambda r: [100, h(normal(r, 100, 2)), h(normal(r, 100, 2)), zeros(1)],
         lambda n, x, y, o: {3: [(wide(x) * wide(y)).sum()]}, rtol=1e-5, atol=1e-5),
    Case("halves.cu", "half_extremes", 4, 64, lambda r: [200, h(normal(r, 200)), h(normal(r, 200)), *(zeros(200, dtype=np.float16) for _ in range(3))],
         lambda n, x, y, lo, hi, m: {3: np.minimum(x, y), 4: np.maximum(x, y), 5: abs(x)}),
    Case("halves.cu", "bfloat_axpy", 4, 64, lambda r: [200, 1.5, to_bfloat(normal(r, 200)), to_bfloat(normal(r, 200))], bfloat_axpy),
    Case("halves.cu", "bfloat_packed", 4, 32, lambda r: [100, to_bfloat(normal(r, 100, 2)), to_bfloat(normal(r, 100, 2)), zeros(200, 2, dtype=np.uint16)],
         bfloat_packed),
    Case("halves.cu", "half_atomic", 4, 32, lambda r: [100, ints(r, -3, 4, 100, 2).astype(np.float16), zeros(1, 2, dtype=np.float16)],
         lambda n, x, t: {2: [wide(x).sum(0)]}),
    # ---- memory
    Case("memory.cu", "dynamic_shared", 2, 64, lambda r: [128, normal(r, 128), zeros(128)],
         lambda n, x, y: {2: 3 * blocks_of(x, 64)[:, ::-1].ravel()}, rtol=1e-6, shared_bytes=64 * 12),
    Case("memory.cu", "struct_by_value", 2, 64, lambda r: [particles(r, 1)[0], 100, particles(r, 100), zeros(100), zeros(100, dtype=f64)],
         struct_by_value, rtol=1e-6, atol=1e-6),
    Case("memory.cu", "large_parameter", 12, 128,
         lambda r: [np.array([(ints(r, 0, 9999, 1500),)], np.dtype([("numbers", np.int32, 1500)]))[0], 11, zeros(1500, dtype=np.int32)],
         lambda d, o, out: {2: d["numbers"][(np.arange(1500) * 7 + o) % 1500]}),
    Case("memory.cu", "local_array", 4, 64, lambda r: [200, ints(r, 0, 2**31 - 1, 200), zeros(200, dtype=np.int32)], most_frequent_digit),
    Case("memory.cu", "byte_local", 2, 16, lambda r: [ints(r, 0, 256, 32, 7, dtype=np.uint8), 7, ints(r, 0, 256, 32, 20, dtype=np.uint8), zeros(32, 20, dtype=np.uint8), 20],
         rc4),
    Case("memory.cu", "generic_pointers", 1, 32, lambda r: [ints(r, -99, 99, 32), zeros(32, dtype=np.int32)], generic_pointers),
    Case("memory.cu", "heap", 4, 64, lambda r: [200, zeros(200, dtype=np.int32)],
         lambda n, o: {1: [sum(i + k for k in range(i % 7 + 1)) for i in range(200)]}),
    Case("memory.cu", "copy_bytes", 2, 32, lambda r: [zeros(1000, dtype=np.int8), ints(r, -99, 99, 1000, dtype=np.int8), 1000],
         lambda to, source, n: {0: np.where(np.arange(1000) < 984, source, 0)}),
    # ---- locks and atomics
    Case("locks.cu", "lock_between_blocks", 12, 32, lambda r: [filled(0, 1), filled(0, 1), 10], lambda k, v, n: {1: [120]}),
    Case("locks.cu", "lock_between_lanes", 3, 64, lambda r: [filled(0, 1), filled(5, 1)], lambda k, v: {1: [197]}),
    Case("locks.cu", "lock_naive", 3, 64, lambda r: [filled(0, 1), filled(5, 1)], lambda k, v: {1: [197]}),
    Case("locks.cu", "max_double", 8, 64, lambda r: [500, normal(r, 500, dtype=f64), filled(-9, 1, dtype=f64)], lambda n, x, b: {2: [x.max()]}),
    Case("locks.cu", "max_float", 8, 64, lambda r: [500, normal(r, 500), filled(-9, 1, dtype=np.float32)], lambda n, x, b: {2: [x.max()]}),
    Case("locks.cu", "producer_consumer", 20, 32, lambda r: [filled(0, 19), filled(0, 19), filled(0, 19)],
         lambda m, f, o: {0: 100 + np.arange(19) ** 2, 1: np.ones(19), 2: 100 + np.arange(19) ** 2}),
    Case("locks.cu", "warp_relay", 1, 256, lambda r: [filled(-1, 8)], lambda o: {0: np.arange(8) * 10}),
    Case("locks.cu", "every_atomic", 2, 128,
         lambda r: [np.array([1, 2, 3, 4, -1, 0, 6], np.int32), np.array([1, 0, 0, 2**32 - 1, 0], np.uint32),
                    np.array([5, 0, 2**64 - 1, 2**64 - 1, 0, 77], np.uint64), zeros(1), zeros(1, dtype=f64)], every_atomic),
    # ---- calls
    Case("calls.cu", "recurse_fibonacci", 1, 64, lambda r: [zeros(64, dtype=np.int32)], lambda o: {0: [fibonacci(t % 13) for t in range(64)]}),
    Case("calls.cu", "recurse_ackermann", 1, 40, lambda r: [zeros(40, dtype=np.int32)], lambda o: {0: [ackermann(t % 3, t % 5) for t in range(40)]}),
    Case("calls.cu", "recurse_quicksort", 2, 20, lambda r: [ints(r, -99, 99, 40, 25), 25], lambda x, n: {0: np.sort(x, 1)}),
    Case("calls.cu", "recurse_mutual", 1, 50, lambda r: [ints(r, 0, 40, 50, dtype=np.uint32), zeros(50, dtype=np.int32)], lambda x, o: {1: x % 2 == 0}),
    Case("calls.cu", "function_pointers", 2, 64, lambda r: [100, ints(r, 0, 3, 100), normal(r, 100), normal(r, 100), zeros(100)],
         lambda n, w, a, b, o: {4: np.choose(w, [a + b, a * b, np.maximum(a, b)])}),
    Case("calls.cu", "virtual_calls", 1, 64, lambda r: [ints(r, 0, 3, 64), ints(r, 1, 9, 64).astype(np.float32), zeros(64), zeros(64, dtype=np.int32)],
         virtual_calls),
    Case("calls.cu", "lambdas", 1, 64, lambda r: [3, ints(r, -99, 99, 64), zeros(64, dtype=np.int32)],
         lambda f, x, y: {2: (x * f + np.arange(64)) * f + np.arange(64)}),
    Case("calls.cu", "struct_results", 1, 64, lambda r: [zeros(64, dtype=np.int64), zeros(64, dtype=np.int64), zeros(64, dtype=f64), zeros(64, dtype=np.int32)],
         struct_results),
    # ---- compaction
    Case("compaction.cu", "compact_block", 1, 256, lambda r: [700, ints(r, 0, 99, 700), filled(-1, 700), filled(0, 1)],
         lambda n, x, o, c: {2: np.concatenate([x[x % 3 == 0], filled(-1, (x % 3 != 0).sum())]), 3: [(x % 3 == 0).sum()]}),
    Case("compaction.cu", "run_heads", 4, 64,
         lambda r: (lambda x: [200, x, np.cumsum(np.diff(x, prepend=-1) != 0).astype(np.int32), filled(-1, 200), filled(-1, 200)])(np.sort(ints(r, 0, 40, 200))),
         lambda n, x, p, v, s: {3: np.pad(np.unique(x), (0, 200 - p[-1]), constant_values=-1),
                                4: np.pad(np.unique(x, return_index=True)[1], (0, 200 - p[-1]), constant_values=-1)}),
    # ---- bytes
    Case("bytes.cu", "upper_case", 2, 128, lambda r: [200, text_of(r, 200)], lambda n, t: {1: np.frombuffer(t.tobytes().upper(), np.int8)}),
    Case("bytes.cu", "count_words", 4, 64, lambda r: [230, text_of(r, 230), filled(0, 1)], lambda n, t, c: {2: [len(t.tobytes().split(b" ")) - t.tobytes().split(b" ").count(b"")]}),
    Case("bytes.cu", "find_pattern", 4, 64, lambda r: [230, ints(r, 97, 99, 230, dtype=np.int8), 3, np.frombuffer(b"aba", np.int8).copy(), filled(0, 230)], find_pattern),
    Case("bytes.cu", "grey", 2, 64, lambda r: [100, ints(r, 0, 256, 100, 4, dtype=np.uint8), zeros(100, dtype=np.uint8)],
         lambda n, c, o: {2: (c[:, :3].astype(int) @ [77, 150, 29]) >> 8}),
    Case("bytes.cu", "saturate_add", 2, 64,
         lambda r: [100, ints(r, -128, 128, 100, dtype=np.int8), ints(r, -128, 128, 100, dtype=np.int8), zeros(100, dtype=np.int8), ints(r, -400, 400, 100, dtype=np.int16), zeros(100, dtype=np.int16)],
         lambda n, a, b, o, s, q: {3: np.clip(a.astype(int) + b, -128, 127), 5: wrap(s.astype(int) ** 2, np.int16)}),
    Case("bytes.cu", "crc32", 2, 20, lambda r: [30, ints(r, 0, 256, 40, 30, dtype=np.uint8), zeros(40, dtype=np.uint32)], crc32),
    Case("bytes.cu", "parse_numbers", 4, 64, number_inputs, parse_numbers),
    # ---- integers
    Case("integers.cu", "divide", 4, 128, division_inputs, division),
    Case("integers.cu", "divide_64", 3, 128, wide_division_inputs, wide_division),
    Case("integers.cu", "divide_constants", 2, 128, lambda r: [200, ints(r, -(2**31), 2**31 - 1, 200), zeros(200, 4, dtype=np.int32)], divide_constants),
    Case("integers.cu", "multiply_high", 2, 128,
         lambda r: [200, *(ints(r, -(2**63), 2**63 - 1, 200, dtype=np.int64) for _ in range(2)), *(zeros(200, dtype=t) for t in (np.int64, np.uint64, np.int32, np.uint32))],
         multiply_high),
    Case("integers.cu", "count_bits", 2, 64,
         lambda r: [100, np.array([0, 1, 2**31, 2**32, 2**63, 2**64 - 1, *(r.integers(0, 2**63, 94) >> r.integers(0, 62, 94))], np.uint64), zeros(100, 8, dtype=np.int32)],
         count_bits),
    Case("integers.cu", "permute_bits", 2, 64,
         lambda r: [100, ints(r, 0, 2**32, 100, dtype=np.uint32), ints(r, 0, 2**32, 100, dtype=np.uint32), ints(r, 0, 2**32, 100, dtype=np.uint32) >> ints(r, 0, 32, 100, dtype=np.uint32) & np.uint32(0x77777777), zeros(100, 8, dtype=np.uint32)],
         permute_bits),
    Case("integers.cu", "power_modulus", 2, 64,
         lambda r: [100, ints(r, 0, 2**63, 100, dtype=np.uint64), ints(r, 0, 2**32, 100, dtype=np.uint32), np.uint32(1000003), zeros(100, dtype=np.uint32)],
         lambda n, b, e, m, o: {4: [pow(int(p), int(q), 1000003) for p, q in zip(b, e)]}),
    Case("integers.cu", "wide_sum", 1, 64, lambda r: [50, *(ints(r, 0, 2**64, 50, 4, dtype=np.uint64) | ints(r, 0, 2, 50, 1, dtype=np.uint64) * np.uint64(2**64 - 1) for _ in range(2)), zeros(50, 4, dtype=np.uint64)],
         wide_sum),
    Case("integers.cu", "collatz", 4, 128, lambda r: [400, zeros(400, dtype=np.int32)], collatz),
    Case("integers.cu", "greatest_divisor", 2, 64, lambda r: [100, ints(r, 0, 9999, 100, dtype=np.uint32), ints(r, 0, 9999, 100, dtype=np.uint32), zeros(100, dtype=np.uint32)],
         lambda n, a, b, o: {3: np.gcd(a, b)}),
    Case("integers.cu", "sieve", 1, 64, lambda r: [2000, zeros(2000, dtype=np.uint8)], sieve),
    Case("integers.cu", "float_to_int", 1, 64,
         lambda r: [40, np.concatenate([[np.nan, np.inf, -np.inf, 0.5, 1.5, 2.5, -0.5, -1.5, 3e9, -3e9, 1e19, -1e19, 5e9, -0.0], 100 * normal(r, 26)]).astype(np.float32),
                    *(zeros(40, dtype=t) for t in (np.int32, np.int32, np.uint32, np.int64))], float_to_int),
    # ---- warps
    Case("warp.cu", "votes", 1, 96, lambda r: [ints(r, -9, 9, 96), zeros(96, dtype=np.uint32), *(zeros(96, dtype=np.int32) for _ in range(2))], votes),
    Case("warp.cu", "shuffles", 1, 64, lambda r: [ints(r, -999, 999, 64), zeros(320, dtype=np.int32)], shuffles),
    Case("warp.cu", "shuffle_wide", 1, 64, lambda r: [normal(r, 64, dtype=f64), zeros(64, dtype=f64)], lambda x, o: {1: blocks_of(x, 32)[:, ::-1].ravel()}),
    Case("warp.cu", "matches", 1, 96,
         lambda r: [np.concatenate([ints(r, 0, 9, 32), ints(r, 0, 900, 32), filled(256, 32)]), *(zeros(96, dtype=np.uint32) for _ in range(2)), zeros(96, dtype=np.int32)], matches),
    Case("warp.cu", "reductions", 1, 64, lambda r: [ints(r, -9999, 9999, 64), zeros(384, dtype=np.int32)], reductions),
    Case("warp.cu", "partial_masks", 1, 32, lambda r: [ints(r, -99, 99, 32), zeros(32, dtype=np.int32)], partial_masks),
    Case("warp.cu", "active_masks", 1, 64, lambda r: [ints(r, -9, 9, 64), zeros(64, dtype=np.uint32)], lambda x, o: {1: np.where(x > 0, 1, 7)}),
    Case("warp.cu", "warp_sort", 2, 64, lambda r: [ints(r, -999, 999, 128)], lambda x: {0: np.sort(blocks_of(x, 32), 1).ravel()}),
    Case("warp.cu", "shared_exchange", 1, 64, lambda r: [ints(r, -999, 999, 64), zeros(64, dtype=np.int32)], shared_exchange),
    # ---- control flow
    Case("control.cu", "switches", 3, 100, lambda r: [250, ints(r, -5000, 5000, 250), filled(-77, 250)], switches),
    Case("control.cu", "nested_divergence", 3, 100, lambda r: [250, ints(r, -200, 200, 250), zeros(250, dtype=np.int32)], nested_divergence),
    Case("control.cu", "break_continue", 3, 100, lambda r: [250, ints(r, 0, 100, 250), zeros(250, dtype=np.int32)], break_continue),
    Case("control.cu", "irreducible", 3, 100, lambda r: [250, ints(r, 0, 3000, 250), zeros(250, dtype=np.int32)], irreducible),
    Case("control.cu", "early_return", 3, 128, lambda r: [300, ints(r, -999, 999, 300), zeros(300, dtype=np.int32)], early_return),
    *(Case("control.cu", "odd_blocks", grid, block,
           lambda r, size=math.prod(block) * math.prod(grid): [zeros(size, dtype=np.int32)], odd_blocks(block, grid))
      for grid, block in (((2, 1, 1), (100, 1, 1)), ((2, 2, 1), (7, 5, 3)), ((3, 1, 2), (1, 1, 1)), ((1, 1, 1), (33, 31, 1)), ((2, 1, 1), (4, 4, 64)))),
    Case("control.cu", "barrier_in_loop", 4, 96, lambda r: [np.array([0, 3, 50, 1], np.int32), zeros(384, dtype=np.int32)], barrier_in_loop),
    Case("control.cu", "interpreter", 2, 64, lambda r: [PROGRAM, 8, ints(r, -99, 99, 128), zeros(128, dtype=np.int32)], interpreter),
    Case("control.cu", "named_barriers", 1, 128, lambda r: [ints(r, -99, 99, 64), zeros(64, dtype=np.int32)], lambda x, y: {1: x[::-1] * 2 + 1}),
    Case("control.cu", "queens", 1, 32, lambda r: [8, zeros(8, dtype=np.int32)], lambda n, s: {1: QUEENS_8}),
    # ---- asynchronous copies, tensor cores, the device's C++ library
    Case("async.cu", "barrier_copy", 3, 128, lambda r: [ints(r, -99, 99, 384), zeros(384, dtype=np.int32)],
         lambda x, y: {1: 3 * blocks_of(x, 128)[:, ::-1].ravel()}, compilers=NVRTC),
    Case("async.cu", "barrier_phases", 1, 64, lambda r: [5, zeros(64, dtype=np.int32)], lambda n, o: {1: (np.arange(64) + 5) % 64}, compilers=NVRTC),
    Case("async.cu", "pipeline_stages", 1, 64, lambda r: [7, ints(r, -9, 9, 448).astype(np.float32), zeros(64)], pipeline_stages, compilers=NVRTC),
    Case("async.cu", "copy_primitives", 1, 32, lambda r: [6, normal(r, 192, 4), zeros(192, 4)],
         lambda n, x, y: {2: x.reshape(6, 32, 4)[:, ::-1].reshape(192, 4)}, compilers=NVRTC),
    Case("async.cu", "group_copy", 2, 100, lambda r: [ints(r, -99, 99, 200), zeros(200, dtype=np.int32)],
         lambda x, y: {1: np.roll(blocks_of(x, 100), -1, 1).ravel()}, compilers=NVRTC, shared_bytes=400),
    Case("atomics_std.cu", "atomic_ref_sum", 4, 64, lambda r: [200, ints(r, -99, 99, 200), filled(0, 1), filled(-999, 1)],
         lambda n, x, t, p: {2: [x.sum()], 3: [x.max()]}, compilers=NVRTC),
    Case("atomics_std.cu", "atomic_handover", 2, 32, lambda r: [filled(0, 1), filled(0, 1), filled(0, 1)], lambda d, f, o: {0: [42], 1: [1], 2: [42]}, compilers=NVRTC),
    Case("atomics_std.cu", "complex_julia", 2, 64, lambda r: [100, 12, zeros(100, dtype=np.int32)], julia, compilers=NVRTC),
    Case("atomics_std.cu", "tuples", 1, 32, lambda r: [ints(r, 0, 99, 32), zeros(32, dtype=np.int32)], lambda x, y: {1: x + (x * 2.5).astype(int) + 7}, compilers=NVRTC),
    Case("tensor.cu", "wmma_gemm", (2, 3), 32, lambda r: [48, 32, 64, h(normal(r, 48, 64)), h(normal(r, 64, 32)), zeros(48, 32)],
         lambda m, n, k, a, b, c: {5: wide(a) @ wide(b)}, rtol=1e-5, atol=1e-5, compilers=NVRTC),
    Case("tensor.cu", "wmma_relu", 1, 32, lambda r: [h(normal(r, 16, 16)), h(normal(r, 16, 16)), zeros(16, 16, dtype=np.float16)],
         lambda a, b, c: {2: np.maximum(wide(a).T @ wide(b).T, 0)}, rtol=4e-3, atol=1e-2, compilers=NVRTC),
    Case("grid.cu", "grid_sum", 6, 64, lambda r: [5000, ints(r, -99, 99, 5000), zeros(6, dtype=np.int32), filled(0, 1)],
         lambda n, x, p, t: {2: [x[[i for i in range(5000) if i // 64 % 6 == b]].sum() for b in range(6)], 3: [x.sum()]},
         compilers=NVRTC, cooperative=True),
]  # fmt: skip

TABLE = [pytest.param(case, compiler, id=f"{case.kernel}-{compiler}") for case in CASES for compiler in case.compilers]


@pytest.mark.parametrize("case, compiler", TABLE)
def test_kernel(case, compiler):
    run_case(case, compiler)
