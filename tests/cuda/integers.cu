// Integers: wide products, division (by zero too), bit counting and permuting, shifts past the width.

extern "C" __global__ void divide(int n, const int *a, const int *b, int *quotient, int *remainder, unsigned *uq, unsigned *ur) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    quotient[i] = a[i] / b[i];
    remainder[i] = a[i] % b[i];
    uq[i] = (unsigned)a[i] / (unsigned)b[i];
    ur[i] = (unsigned)a[i] % (unsigned)b[i];
}

extern "C" __global__ void divide_64(int n, const long long *a, const long long *b, long long *q, long long *r, unsigned long long *uq) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    q[i] = a[i] / b[i];
    r[i] = a[i] % b[i];
    uq[i] = (unsigned long long)a[i] / (unsigned long long)b[i];
}

extern "C" __global__ void divide_constants(int n, const int *x, int *out) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    out[4 * i] = x[i] / 7;
    out[4 * i + 1] = x[i] % 10;
    out[4 * i + 2] = (int)((unsigned)x[i] / 641u);
    out[4 * i + 3] = x[i] / 16;
}

extern "C" __global__ void multiply_high(int n, const long long *a, const long long *b, long long *s, unsigned long long *u, int *s32,
                                         unsigned *u32) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    s[i] = __mul64hi(a[i], b[i]);
    u[i] = __umul64hi((unsigned long long)a[i], (unsigned long long)b[i]);
    s32[i] = __mulhi((int)a[i], (int)b[i]);
    u32[i] = __umulhi((unsigned)a[i], (unsigned)b[i]);
}

extern "C" __global__ void count_bits(int n, const unsigned long long *x, int *out) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    unsigned low = (unsigned)x[i];
    out[8 * i] = __popc(low);
    out[8 * i + 1] = __popcll(x[i]);
    out[8 * i + 2] = __clz((int)low);
    out[8 * i + 3] = __clzll((long long)x[i]);
    out[8 * i + 4] = __ffs((int)low);
    out[8 * i + 5] = __ffsll((long long)x[i]);
    out[8 * i + 6] = (int)__brev(low);
    out[8 * i + 7] = (int)(__brevll(x[i]) >> 32);
}

extern "C" __global__ void permute_bits(int n, const unsigned *a, const unsigned *b, const unsigned *s, unsigned *out) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    out[8 * i] = __byte_perm(a[i], b[i], s[i]);
    out[8 * i + 1] = __funnelshift_l(a[i], b[i], s[i]);
    out[8 * i + 2] = __funnelshift_r(a[i], b[i], s[i]);
    out[8 * i + 3] = __funnelshift_lc(a[i], b[i], s[i]);
    out[8 * i + 4] = __funnelshift_rc(a[i], b[i], s[i]);
    out[8 * i + 5] = __sad((int)a[i], (int)b[i], s[i]);
    out[8 * i + 6] = __vadd4(a[i], b[i]);
    out[8 * i + 7] = __hadd((int)a[i], (int)b[i]) ^ __rhadd((int)a[i], (int)b[i]);
}

extern "C" __global__ void power_modulus(int n, const unsigned long long *base, const unsigned *exponent, unsigned modulus, unsigned *out) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    unsigned long long result = 1, b = base[i] % modulus;
    for (unsigned e = exponent[i]; e; e >>= 1) {
        if (e & 1) result = result * b % modulus;
        b = b * b % modulus;
    }
    out[i] = (unsigned)result;
}

extern "C" __global__ void wide_sum(int n, const unsigned long long *a, const unsigned long long *b, unsigned long long *out) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    // 256-bit sum, limb by limb
    unsigned carry = 0;
    for (int k = 0; k < 4; k++) {
        unsigned long long x = a[4 * i + k], y = b[4 * i + k], s = x + y;
        unsigned overflow = s < x;
        s += carry;
        overflow += s < carry;
        out[4 * i + k] = s;
        carry = overflow;
    }
}

extern "C" __global__ void collatz(int n, int *steps) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    unsigned long long v = i + 1;
    int count = 0;
    while (v != 1) {
        v = v & 1 ? 3 * v + 1 : v / 2;
        count++;
    }
    steps[i] = count;
}

extern "C" __global__ void greatest_divisor(int n, const unsigned *a, const unsigned *b, unsigned *out) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    unsigned x = a[i], y = b[i];
    while (y) {
        unsigned rest = x % y;
        x = y;
        y = rest;
    }
    out[i] = x;
}

extern "C" __global__ void sieve(int n, unsigned char *composite) {
    int i = blockIdx.x * blockDim.x + threadIdx.x + 2;
    if ((long long)i * i >= n) return;
    for (int k = i * i; k < n; k += i) composite[k] = 1;
}

extern "C" __global__ void float_to_int(int n, const float *x, int *truncated, int *nearest, unsigned *u, long long *wide) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    truncated[i] = __float2int_rz(x[i]);
    nearest[i] = __float2int_rn(x[i]);
    u[i] = __float2uint_rz(x[i]);
    wide[i] = __float2ll_rd(x[i]);
}
