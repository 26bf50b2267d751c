// Barriers over the whole grid (cooperative launches).
#include <cooperative_groups.h>
namespace cg = cooperative_groups;

extern "C" __global__ void grid_sum(int n, const int *x, int *partial, int *total) {
    auto grid = cg::this_grid();
    int sum = 0;
    for (int i = grid.thread_rank(); i < n; i += grid.size()) sum += x[i];
    atomicAdd(&partial[blockIdx.x], sum);
    grid.sync();
    if (grid.thread_rank() == 0) {
        int all = 0;
        for (unsigned b = 0; b < gridDim.x; b++) all += partial[b];
        *total = all;
    }
}

// Jacobi sweeps, one barrier each.
extern "C" __global__ void grid_sweeps(int n, int sweeps, float *a, float *b) {
    auto grid = cg::this_grid();
    float *from = a, *to = b;
    for (int s = 0; s < sweeps; s++) {
        for (int i = grid.thread_rank(); i < n; i += grid.size())
            to[i] = i == 0 || i == n - 1 ? from[i] : 0.5f * (from[i - 1] + from[i + 1]);
        grid.sync();
        float *swap = from;
        from = to;
        to = swap;
    }
}
