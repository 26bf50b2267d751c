// Thread-block clusters through cooperative groups: distributed shared memory, the cluster's barrier.
#include <cooperative_groups.h>
#include <cooperative_groups/reduce.h>

namespace cg = cooperative_groups;

// Every block has a part of the bins in its shared memory; each thread counts in whatever block has its bin.
extern "C" __global__ void histogram(const int *data, int n, int bins_per_block, int *out) {
    extern __shared__ int bins[];
    cg::cluster_group cluster = cg::this_cluster();
    for (int i = threadIdx.x; i < bins_per_block; i += blockDim.x) bins[i] = 0;
    cluster.sync();
    int first = blockIdx.x * blockDim.x + threadIdx.x, step = gridDim.x * blockDim.x;
    for (int i = first; i < n; i += step) {
        int bin = data[i];
        int *there = cluster.map_shared_rank(bins, bin / bins_per_block);
        atomicAdd(there + bin % bins_per_block, 1);
    }
    cluster.sync();
    int *mine = out + cluster.block_rank() * bins_per_block;
    for (int i = threadIdx.x; i < bins_per_block; i += blockDim.x) atomicAdd(mine + i, bins[i]);
}

// Sums of rows: a cluster takes a row, its blocks a part each, and block 0 adds up what the others have.
extern "C" __global__ void __cluster_dims__(4, 1, 1) row_sums(const float *x, int columns, float *out) {
    __shared__ float part[32];
    __shared__ float total;
    cg::cluster_group cluster = cg::this_cluster();
    auto tile = cg::tiled_partition<32>(cg::this_thread_block());
    int row = blockIdx.x / cluster.num_blocks();
    float sum = 0;
    for (int c = cluster.thread_rank(); c < columns; c += cluster.num_threads()) sum += x[row * columns + c];
    sum = cg::reduce(tile, sum, cg::plus<float>());
    if (tile.thread_rank() == 0) part[tile.meta_group_rank()] = sum;
    __syncthreads();
    if (threadIdx.x == 0) {
        total = 0;
        for (int i = 0; i < blockDim.x / 32; i++) total += part[i];
    }
    cluster.sync();
    if (cluster.block_rank() == 0 && threadIdx.x == 0) {
        float all = 0;
        for (int r = 0; r < cluster.num_blocks(); r++) all += *cluster.map_shared_rank(&total, r);
        out[row] = all;
    }
    cluster.sync();
}

// A game of telephone over a grid of clusters in two dimensions, with arrive and wait apart.
extern "C" __global__ void ring(const int *x, int rounds, int *out) {
    extern __shared__ int box[];
    cg::cluster_group cluster = cg::this_cluster();
    int block = blockIdx.x + gridDim.x * blockIdx.y;
    int value = x[block * blockDim.x + threadIdx.x];
    unsigned next = (cluster.block_rank() + 1) % cluster.num_blocks();
    for (int i = 0; i < rounds; i++) {
        cluster.sync();
        cluster.map_shared_rank(box, next)[threadIdx.x] = value + (int)cluster.block_rank();
        auto token = cluster.barrier_arrive();
        value = 0;
        cluster.barrier_wait(static_cast<cg::cluster_group::arrival_token &&>(token));
        value += box[threadIdx.x];
    }
    out[block * blockDim.x + threadIdx.x] = value;
    cluster.sync();
}

extern "C" __global__ void shape(int *out) {
    cg::cluster_group cluster = cg::this_cluster();
    int block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
    if (threadIdx.x) return;
    int *row = out + 10 * block;
    dim3 index = cluster.block_index(), size = cluster.dim_blocks(), threads = cluster.dim_threads();
    row[0] = cluster.block_rank();
    row[1] = cluster.num_blocks();
    row[2] = index.x; row[3] = index.y; row[4] = index.z;
    row[5] = size.x; row[6] = size.y; row[7] = size.z;
    row[8] = threads.x;
    row[9] = cluster.query_shared_rank(out + 1) == 0;
}

// Leaves while others still read its memory.
extern "C" __global__ void early(int *out) {
    __shared__ int word;
    cg::cluster_group cluster = cg::this_cluster();
    word = blockIdx.x;
    cluster.sync();
    if (cluster.block_rank() == 1) return;
    for (int i = 0; i < 4; i++) __syncthreads();
    out[blockIdx.x] = *cluster.map_shared_rank(&word, 1);
}

// Matrix product by clusters of two blocks that share each other's tile of b.
#define TILE 16
extern "C" __global__ void __cluster_dims__(1, 2, 1) shared_tiles(const float *a, const float *b, int n, float *c) {
    __shared__ float as[TILE][TILE], bs[TILE][TILE];
    cg::cluster_group cluster = cg::this_cluster();
    int row = blockIdx.y * TILE + threadIdx.y, column = blockIdx.x * TILE + threadIdx.x;
    unsigned rank = cluster.block_rank();
    float sum = 0;
    for (int k = 0; k < n; k += TILE) {
        as[threadIdx.y][threadIdx.x] = a[row * n + k + threadIdx.x];
        if (threadIdx.y / (TILE / 2) == rank) {
            float value = b[(k + threadIdx.y) * n + column];
            bs[threadIdx.y][threadIdx.x] = value;
            float *other = cluster.map_shared_rank(&bs[0][0], 1 - rank);
            other[threadIdx.y * TILE + threadIdx.x] = value;
        }
        cluster.sync();
        for (int i = 0; i < TILE; i++) sum += as[threadIdx.y][i] * bs[i][threadIdx.x];
        cluster.sync();
    }
    c[row * n + column] = sum;
}
