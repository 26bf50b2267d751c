// Control flow: switches, nested divergence, break and continue, irreducible loops, early returns, odd blocks.

extern "C" __global__ void switches(int n, const int *x, int *y) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    int v = x[i];
    switch (v & 15) {
        case 0: v = 17; break;
        case 1: v *= 3;  // falls through
        case 2: v += 5; break;
        case 3: v = -v; break;
        case 5: v ^= 0xff; break;
        case 6: v <<= 2; break;
        case 7: v = v / 3 + v % 3; break;
        case 8: v = v * v; break;
        case 9: v -= 1000; break;
        case 12: return;
        default: v = 1;
    }
    y[i] = v;
}

extern "C" __global__ void nested_divergence(int n, const int *x, int *y) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    int v = x[i], r = 0;
    if (v > 0) {
        if (v & 1) {
            for (int k = 0; k < (v & 7); k++) r += k & 1 ? v : -k;
        } else {
            r = v & 2 ? v / 2 : v & 4 ? v * 2 : -1;
        }
        r += 10;
    } else if (v < -50) {
        while (v < -50) {
            v += 13;
            if (v % 5 == 0) continue;
            r--;
        }
    } else {
        r = 3;
    }
    y[i] = r;
}

extern "C" __global__ void break_continue(int n, const int *x, int *y) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    int sum = 0;
    for (int k = 0; k < 64; k++) {
        int v = x[(i + k) % n];
        if (v == 0) continue;
        if (v > 95) break;
        for (int j = 0;; j++) {
            if (j * j > v) break;
            if ((j & 3) == 2) continue;
            sum += j;
        }
        if (sum > 500) goto done;
    }
    sum = -sum;
done:
    y[i] = sum;
}

// Two entries into one loop: irreducible.
extern "C" __global__ void irreducible(int n, const int *x, int *y) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    int v = x[i], steps = 0;
    if (v & 1) goto second;
first:
    v = v * 3 + 1;
    steps++;
    if (v > 5000) goto out;
second:
    v = v + 7;
    steps += 100;
    if (v < 4000 || (v & 3)) goto first;
out:
    y[i] = v + steps;
}

// Threads past the end leave before the barrier (legal from Volta on: exited threads do not count).
extern "C" __global__ void early_return(int n, const int *x, int *y) {
    __shared__ int tile[128];
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    tile[threadIdx.x] = x[i];
    __syncthreads();
    int last = min((int)blockDim.x, n - (int)(blockIdx.x * blockDim.x)) - 1;
    y[i] = tile[last - threadIdx.x];
}

// Any block shape: every thread writes the place its indices say.
extern "C" __global__ void odd_blocks(int *out) {
    __shared__ int count;
    int t = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
    int size = blockDim.x * blockDim.y * blockDim.z;
    int block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
    if (t == 0) count = 0;
    __syncthreads();
    atomicAdd(&count, t);
    __syncthreads();
    out[block * size + t] = count + threadIdx.x * 1000000 + threadIdx.y * 100000 + threadIdx.z * 10000;
}

// A barrier inside a loop whose trip count is the same for all threads of a block but differs between blocks.
extern "C" __global__ void barrier_in_loop(const int *rounds, int *out) {
    __shared__ int ring[96];
    int t = threadIdx.x, n = blockDim.x;
    ring[t] = t;
    for (int k = 0; k < rounds[blockIdx.x]; k++) {
        __syncthreads();
        int v = ring[(t + 1) % n];
        __syncthreads();
        ring[t] = v + k;
    }
    out[blockIdx.x * n + t] = ring[t];
}

// Each thread runs a small interpreter: data-dependent jumps in a loop.
extern "C" __global__ void interpreter(const int *program, int length, const int *input, int *output) {
    int t = blockIdx.x * blockDim.x + threadIdx.x;
    int accumulator = input[t], counter = 8;
    for (int pc = 0; pc >= 0 && pc < length;) {
        int opcode = program[2 * pc], operand = program[2 * pc + 1];
        pc++;
        if (opcode == 0) accumulator += operand;
        else if (opcode == 1) accumulator *= operand;
        else if (opcode == 2) { if (accumulator & 1) pc = operand; }
        else if (opcode == 3) { if (--counter > 0) pc = operand; }
        else if (opcode == 4) accumulator ^= operand;
        else break;
    }
    output[t] = accumulator;
}

// Named barriers: two halves of the block hand data over with bar.arrive and bar.sync.
extern "C" __global__ void named_barriers(const int *x, int *y) {
    __shared__ int slot[64];
    int t = threadIdx.x;
    if (t < 64) {
        slot[t] = x[t] * 2;
        __threadfence_block();
        asm volatile("bar.arrive 1, 128;" ::: "memory");
    } else {
        asm volatile("bar.sync 1, 128;" ::: "memory");
        y[t - 64] = slot[127 - t] + 1;
    }
}

// Eight queens: depth-first search with an explicit stack, one first move per thread.
extern "C" __global__ void queens(int size, int *solutions) {
    int first = threadIdx.x;
    if (first >= size) return;
    unsigned columns[16], left[16], right[16], free_[16];
    unsigned all = (1u << size) - 1, bit = 1u << first;
    int depth = 1, found = 0;
    columns[1] = bit;
    left[1] = bit << 1;
    right[1] = bit >> 1;
    free_[1] = all & ~(columns[1] | left[1] | right[1]);
    while (depth > 0) {
        if (free_[depth] == 0) {
            depth--;
            continue;
        }
        unsigned place = free_[depth] & -free_[depth];
        free_[depth] ^= place;
        if (depth + 1 == size) {
            found++;
            continue;
        }
        columns[depth + 1] = columns[depth] | place;
        left[depth + 1] = (left[depth] | place) << 1;
        right[depth + 1] = (right[depth] | place) >> 1;
        depth++;
        free_[depth] = all & ~(columns[depth] | left[depth] | right[depth]);
    }
    solutions[first] = found;
}
