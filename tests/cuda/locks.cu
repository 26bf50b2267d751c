// Locks and loops of compare-and-swap: progress between blocks, warps and lanes.

// One thread a block takes the lock.
extern "C" __global__ void lock_between_blocks(int *lock, int *value, int rounds) {
    if (threadIdx.x == 0) {
        for (int k = 0; k < rounds; k++) {
            while (atomicCAS(lock, 0, 1) != 0) {
            }
            __threadfence();
            int seen = *(volatile int *)value;
            *(volatile int *)value = seen + 1;
            __threadfence();
            atomicExch(lock, 0);
        }
    }
}

// Every lane takes the lock in turn; independent thread scheduling makes this safe from Volta on.
extern "C" __global__ void lock_between_lanes(int *lock, int *value) {
    bool done = false;
    while (!done) {
        if (atomicCAS(lock, 0, 1) == 0) {
            __threadfence();
            *(volatile int *)value = *(volatile int *)value + 1;
            __threadfence();
            atomicExch(lock, 0);
            done = true;
        }
        __syncwarp(__activemask());
    }
}

// The naive form, in which the lock is released after the spin loop.
extern "C" __global__ void lock_naive(int *lock, int *value) {
    while (atomicCAS(lock, 0, 1) != 0) {
    }
    __threadfence();
    *(volatile int *)value += 1;
    __threadfence();
    atomicExch(lock, 0);
}

extern "C" __global__ void ticket_lock(unsigned *next, volatile unsigned *serving, int *log, int *count) {
    if (threadIdx.x != 0) return;
    unsigned mine = atomicAdd(next, 1u);
    while (*serving != mine) {
    }
    __threadfence();
    log[*count] = blockIdx.x;
    *count = *count + 1;
    __threadfence();
    *serving = mine + 1;
}

__device__ double atomic_max_double(double *address, double value) {
    unsigned long long *bits = (unsigned long long *)address, old = *bits, assumed;
    do {
        assumed = old;
        if (__longlong_as_double(assumed) >= value) break;
        old = atomicCAS(bits, assumed, __double_as_longlong(value));
    } while (assumed != old);
    return __longlong_as_double(old);
}

extern "C" __global__ void max_double(int n, const double *x, double *best) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) atomic_max_double(best, x[i]);
}

extern "C" __global__ void max_float(int n, const float *x, float *best) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    int *bits = (int *)best, old = *bits, assumed;
    do {
        assumed = old;
        old = atomicCAS(bits, assumed, __float_as_int(fmaxf(x[i], __int_as_float(assumed))));
    } while (assumed != old);
}

// A producer block hands numbers to consumer blocks through flags.
extern "C" __global__ void producer_consumer(volatile int *mailbox, volatile int *flags, int *out) {
    if (threadIdx.x != 0) return;
    if (blockIdx.x == gridDim.x - 1) {
        for (unsigned b = 0; b < gridDim.x - 1; b++) {
            mailbox[b] = 100 + b * b;
            __threadfence();
            flags[b] = 1;
        }
    } else {
        while (flags[blockIdx.x] == 0) {
        }
        __threadfence();
        out[blockIdx.x] = mailbox[blockIdx.x];
    }
}

// Warps of one block wait for one another through shared memory, not a barrier.
extern "C" __global__ void warp_relay(int *out) {
    __shared__ volatile int turn;
    if (threadIdx.x == 0) turn = 0;
    __syncthreads();
    int warp = threadIdx.x / 32;
    if (threadIdx.x % 32 == 0) {
        while (turn != warp) {
        }
        out[warp] = turn * 10;
        __threadfence_block();
        turn = warp + 1;
    }
}

// Open addressing: insert keys with atomicCAS, count duplicates.
extern "C" __global__ void hash_insert(int n, const unsigned *keys, unsigned *slots, unsigned *counts, unsigned mask) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    unsigned key = keys[i], slot = (key * 2654435761u) & mask;
    while (true) {
        unsigned seen = atomicCAS(&slots[slot], 0xffffffffu, key);
        if (seen == 0xffffffffu || seen == key) {
            atomicAdd(&counts[slot], 1u);
            return;
        }
        slot = (slot + 1) & mask;
    }
}

extern "C" __global__ void every_atomic(int *i, unsigned *u, unsigned long long *w, float *f, double *d) {
    int t = blockIdx.x * blockDim.x + threadIdx.x;
    atomicAdd(&i[0], t);
    atomicSub(&i[1], t);
    atomicMin(&i[2], -t);
    atomicMax(&i[3], t);
    atomicAnd(&i[4], ~(1 << (t & 7)));
    atomicOr(&i[5], 1 << (t & 31));
    atomicXor(&i[6], t);
    atomicAdd(&u[0], 3u);
    atomicInc(&u[1], 9u);
    atomicDec(&u[2], 9u);
    atomicMin(&u[3], (unsigned)t + 5u);
    atomicMax(&u[4], (unsigned)t);
    atomicAdd(&w[0], 0x100000001ull);
    atomicMax(&w[1], (unsigned long long)t << 33);
    atomicMin(&w[2], (unsigned long long)(t + 1) << 33);
    atomicAnd(&w[3], ~(1ull << (t & 63)));
    atomicOr(&w[4], 1ull << (t & 63));
    atomicXor(&w[5], (unsigned long long)t << 20);
    atomicAdd(f, 0.5f);
    atomicAdd(d, 0.25);
}
