// Cooperative groups: tiles, coalesced groups, cg::reduce and cg::inclusive_scan.
#include <cooperative_groups.h>
#include <cooperative_groups/reduce.h>
#include <cooperative_groups/scan.h>
namespace cg = cooperative_groups;

extern "C" __global__ void tile_sums(const int *x, int *out) {
    auto block = cg::this_thread_block();
    auto tile = cg::tiled_partition<8>(block);
    int v = x[blockIdx.x * blockDim.x + block.thread_rank()];
    for (int offset = tile.size() / 2; offset > 0; offset /= 2) v += tile.shfl_down(v, offset);
    if (tile.thread_rank() == 0) out[blockIdx.x * (blockDim.x / 8) + tile.meta_group_rank()] = v;
}

extern "C" __global__ void group_reduce(int n, const float *x, float *sum, int *largest) {
    auto block = cg::this_thread_block();
    auto warp = cg::tiled_partition<32>(block);
    int i = cg::this_grid().thread_rank();
    float v = i < n ? x[i] : 0.0f;
    float total = cg::reduce(warp, v, cg::plus<float>());
    int top = cg::reduce(warp, (int)(v * 100.0f), cg::greater<int>());
    if (warp.thread_rank() == 0) {
        atomicAdd(sum, total);
        atomicMax(largest, top);
    }
}

extern "C" __global__ void group_scan(const int *x, int *inclusive, int *exclusive) {
    auto block = cg::this_thread_block();
    auto tile = cg::tiled_partition<16>(block);
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    inclusive[i] = cg::inclusive_scan(tile, x[i]);
    exclusive[i] = cg::exclusive_scan(tile, x[i]);
}

// One atomic for all lanes of a warp that take the branch.
extern "C" __global__ void coalesced_count(int n, const int *x, int threshold, int *count, int *order) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n && x[i] > threshold) {
        auto active = cg::coalesced_threads();
        int base = 0;
        if (active.thread_rank() == 0) base = atomicAdd(count, (int)active.size());
        order[active.shfl(base, 0) + active.thread_rank()] = i;
    }
}

extern "C" __global__ void labelled(const int *label, int *sums) {
    auto warp = cg::tiled_partition<32>(cg::this_thread_block());
    int l = label[threadIdx.x];
    auto peers = cg::labeled_partition(warp, l);
    int size = peers.size();
    if (peers.thread_rank() == 0) atomicAdd(&sums[l], size);
}
