"""What the kernels of tests/cuda should compute, in NumPy or plain Python: one function per kernel whose result needs
more than a line. Each takes the kernel's arguments and returns the arrays after the launch, by argument index."""

from __future__ import annotations

import math
import zlib

import numpy as np
from cuda_cases import filled, int_zeros, ints, normal, softmax64, truncated_division, wrap, zeros

f64 = np.float64


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
    return [n, ints(rng, -50, 50, n), int_zeros(n), zeros(40, dtype=np.uint64), int_zeros(1)]


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
        u[1:-1, 1:-1, :-2]
        + u[1:-1, 1:-1, 2:]
        + u[1:-1, :-2, 1:-1]
        + u[1:-1, 2:, 1:-1]
        + u[:-2, 1:-1, 1:-1]
        + u[2:, 1:-1, 1:-1]
    ) / 6
    return {2: new}


def march(nx, ny, nz, u, v):
    c = u.astype(f64)
    around = (
        c[1:-1, 1:-1, :-2]
        + c[1:-1, 1:-1, 2:]
        + c[1:-1, :-2, 1:-1]
        + c[1:-1, 2:, 1:-1]
        + c[:-2, 1:-1, 1:-1]
        + c[2:, 1:-1, 1:-1]
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
    return {2: np.array([zlib.crc32(row.tobytes()) for row in data], np.uint32)}


def number_inputs(rng):
    values = rng.integers(-99999, 99999, 200)
    words = [str(v).encode() for v in values]
    start = np.concatenate([[0], np.cumsum([len(w) for w in words])]).astype(np.int32)
    return [200, start, np.frombuffer(b"".join(words), np.int8).copy(), int_zeros(200)]


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
            (low & -low).bit_length(), (v & -v).bit_length(), int(f"{low:032b}"[::-1], 2),
            int(f"{v:064b}"[::-1], 2) >> 32,
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
        5: wrap(
            [-(2**63) if math.isnan(v) else t for v, t in zip(x, saturate(np.floor(clean), -(2**63), 2**63 - 1))],
            np.int64,
        ),  # fmt: skip
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
        table = {
            0: 17,
            1: v * 3 + 5,
            2: v + 5,
            3: -v,
            5: v ^ 0xFF,
            6: v << 2,
            7: quotient + (v - 3 * quotient),
            8: v * v,
            9: v - 1000,
        }
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
        0: [
            i[0] + t.sum(),
            i[1] - t.sum(),
            min(i[2], -255),
            max(i[3], 255),
            i[4] & ~0xFF,
            -1,
            i[6] ^ np.bitwise_xor.reduce(t),
        ],
        1: [int(u[0]) + 768, 256 % 10, (0 - 256) % 10, min(int(u[3]), 5), 255],
        2: wrap(
            [wide64[0] + 256 * 0x100000001, max(wide64[1], 255 << 33), min(wide64[2], 1 << 33), 0, ones64, wide64[5]],
            np.uint64,
        ),
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
