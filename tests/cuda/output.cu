// What a kernel says: printf, assert, trap.
#include <assert.h>
#include <stdio.h>

extern "C" __global__ void print_hello(int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) printf("thread %d of %d says %s, %.3f and %c at %5u|%-4d|%lld\n", i, n, i & 1 ? "odd" : "even", i * 0.5, 'a' + i, i, i, 1ll << 40);
}

extern "C" __global__ void print_plain(void) {
    printf("no arguments, 100%%\n");
}

extern "C" __global__ void assert_positive(const int *x) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    assert(x[i] > 0);
}

extern "C" __global__ void trap_on(int which) {
    if ((int)(blockIdx.x * blockDim.x + threadIdx.x) == which) __trap();
}

extern "C" __global__ void out_of_bounds(int *x, long long index) {
    x[index] = 1;
}

extern "C" __global__ void misaligned(char *x) {
    *(int *)(x + 1) = 5;
}

extern "C" __global__ void ticks(long long *spent, unsigned long long *stamp) {
    long long start = clock64();
    float x = threadIdx.x;
    for (int i = 0; i < 100; i++) x = x * 1.5f + 1.0f;
    spent[threadIdx.x] = clock64() - start + (x == 0.25f);
    if (threadIdx.x == 0) asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(*stamp));
}
