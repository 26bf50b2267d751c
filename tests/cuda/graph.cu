// Graphs: breadth-first search, connected components by union-find, PageRank, triangle count.

extern "C" __global__ void bfs_level(int vertices, const int *start, const int *edge, int *level, int depth, int *changed) {
    int v = blockIdx.x * blockDim.x + threadIdx.x;
    if (v >= vertices || level[v] != depth) return;
    for (int e = start[v]; e < start[v + 1]; e++) {
        if (atomicCAS(&level[edge[e]], -1, depth + 1) == -1) *changed = 1;
    }
}

extern "C" __global__ void bfs_frontier(const int *start, const int *edge, int *level, int depth, const int *frontier, int size,
                                        int *next, int *next_size) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= size) return;
    int v = frontier[i];
    for (int e = start[v]; e < start[v + 1]; e++) {
        int w = edge[e];
        if (atomicCAS(&level[w], -1, depth + 1) == -1) next[atomicAdd(next_size, 1)] = w;
    }
}

__device__ int root_of(volatile int *parent, int v) {
    while (parent[v] != v) v = parent[v];
    return v;
}

extern "C" __global__ void union_edges(int edges, const int *from, const int *to, int *parent) {
    int e = blockIdx.x * blockDim.x + threadIdx.x;
    if (e >= edges) return;
    int a = from[e], b = to[e];
    while (true) {
        a = root_of(parent, a);
        b = root_of(parent, b);
        if (a == b) break;
        if (a < b) {
            int swap = a;
            a = b;
            b = swap;
        }
        if (atomicCAS(&parent[a], a, b) == a) break;
    }
}

extern "C" __global__ void flatten(int vertices, int *parent) {
    int v = blockIdx.x * blockDim.x + threadIdx.x;
    if (v < vertices) parent[v] = root_of(parent, v);
}

extern "C" __global__ void page_rank(int vertices, const int *start, const int *edge, const int *degree, const float *rank, float *next) {
    int v = blockIdx.x * blockDim.x + threadIdx.x;
    if (v >= vertices) return;
    float sum = 0.0f;
    for (int e = start[v]; e < start[v + 1]; e++) sum += rank[edge[e]] / degree[edge[e]];
    next[v] = 0.15f / vertices + 0.85f * sum;
}

extern "C" __global__ void triangles(int vertices, const int *start, const int *edge, unsigned long long *count) {
    int v = blockIdx.x * blockDim.x + threadIdx.x;
    unsigned found = 0;
    if (v < vertices) {
        for (int e = start[v]; e < start[v + 1]; e++) {
            int w = edge[e];
            if (w <= v) continue;
            int a = start[v], b = start[w];
            while (a < start[v + 1] && b < start[w + 1]) {
                int left = edge[a], right = edge[b];
                if (left == right) {
                    found += left > w;
                    a++;
                    b++;
                } else if (left < right) {
                    a++;
                } else {
                    b++;
                }
            }
        }
    }
    found = __reduce_add_sync(0xffffffffu, found);
    if (threadIdx.x % 32 == 0) atomicAdd(count, (unsigned long long)found);
}
