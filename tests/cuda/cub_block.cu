// CUB's block-wide reduction, scan, sort, exchange and histogram, and its warp-wide counterparts.
#include <cub/cub.cuh>

extern "C" __global__ void cub_reduce(const float *x, float *out) {
    using Reduce = cub::BlockReduce<float, 128>;
    __shared__ typename Reduce::TempStorage storage;
    float sum = Reduce(storage).Sum(x[blockIdx.x * 128 + threadIdx.x]);
    if (threadIdx.x == 0) out[blockIdx.x] = sum;
}

extern "C" __global__ void cub_scan(const int *x, int *inclusive, int *exclusive, int *totals) {
    using Scan = cub::BlockScan<int, 128>;
    __shared__ typename Scan::TempStorage storage;
    int i = blockIdx.x * 128 + threadIdx.x, sum, total;
    Scan(storage).InclusiveSum(x[i], sum);
    inclusive[i] = sum;
    __syncthreads();
    Scan(storage).ExclusiveSum(x[i], sum, total);
    exclusive[i] = sum;
    if (threadIdx.x == 0) totals[blockIdx.x] = total;
}

extern "C" __global__ void cub_radix_sort(unsigned *keys, int *values) {
    using Load = cub::BlockLoad<unsigned, 64, 4, cub::BLOCK_LOAD_TRANSPOSE>;
    using Sort = cub::BlockRadixSort<unsigned, 64, 4, int>;
    __shared__ union {
        typename Load::TempStorage load;
        typename Sort::TempStorage sort;
    } storage;
    unsigned key[4];
    int value[4], base = blockIdx.x * 256;
    Load(storage.load).Load(keys + base, key);
    for (int k = 0; k < 4; k++) value[k] = values[base + threadIdx.x * 4 + k];
    __syncthreads();
    Sort(storage.sort).Sort(key, value);
    for (int k = 0; k < 4; k++) {
        keys[base + threadIdx.x * 4 + k] = key[k];
        values[base + threadIdx.x * 4 + k] = value[k];
    }
}

extern "C" __global__ void cub_warp_scan(const int *x, int *out) {
    using Scan = cub::WarpScan<int>;
    __shared__ typename Scan::TempStorage storage[4];
    int v;
    Scan(storage[threadIdx.x / 32]).InclusiveScan(x[threadIdx.x], v, [](int a, int b) { return a > b ? a : b; });
    out[threadIdx.x] = v;
}

extern "C" __global__ void cub_histogram(const unsigned char *x, int *out) {
    using Histogram = cub::BlockHistogram<unsigned char, 128, 4, 256, cub::BLOCK_HISTO_ATOMIC>;
    __shared__ typename Histogram::TempStorage storage;
    __shared__ int bins[256];
    unsigned char items[4];
    for (int k = 0; k < 4; k++) items[k] = x[blockIdx.x * 512 + threadIdx.x * 4 + k];
    Histogram(storage).Histogram(items, bins);
    __syncthreads();
    for (int b = threadIdx.x; b < 256; b += 128) atomicAdd(&out[b], bins[b]);
}

extern "C" __global__ void cub_merge_sort(double *x) {
    using Sort = cub::BlockMergeSort<double, 64, 2>;
    __shared__ typename Sort::TempStorage storage;
    double items[2] = {x[blockIdx.x * 128 + threadIdx.x * 2], x[blockIdx.x * 128 + threadIdx.x * 2 + 1]};
    Sort(storage).Sort(items, [](double a, double b) { return a < b; });
    for (int k = 0; k < 2; k++) x[blockIdx.x * 128 + threadIdx.x * 2 + k] = items[k];
}
