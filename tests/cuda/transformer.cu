// The kernels of a transformer: softmax, norms, attention, losses, embeddings.

__device__ float block_reduce(float v, bool maximum) {
    __shared__ float parts[32];
    int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warps = (blockDim.x + 31) >> 5;
    for (int d = 16; d; d >>= 1) {
        float other = __shfl_xor_sync(0xffffffffu, v, d);
        v = maximum ? fmaxf(v, other) : v + other;
    }
    __syncthreads();
    if (lane == 0) parts[warp] = v;
    __syncthreads();
    v = parts[0];
    for (int w = 1; w < warps; w++) v = maximum ? fmaxf(v, parts[w]) : v + parts[w];
    return v;
}

extern "C" __global__ void softmax(int cols, const float *x, float *y) {
    const float *in = x + (size_t)blockIdx.x * cols;
    float *out = y + (size_t)blockIdx.x * cols;
    float top = -INFINITY;
    for (int i = threadIdx.x; i < cols; i += blockDim.x) top = fmaxf(top, in[i]);
    top = block_reduce(top, true);
    float sum = 0.0f;
    for (int i = threadIdx.x; i < cols; i += blockDim.x) sum += out[i] = expf(in[i] - top);
    sum = block_reduce(sum, false);
    for (int i = threadIdx.x; i < cols; i += blockDim.x) out[i] /= sum;
}

extern "C" __global__ void layer_norm(int cols, const float *x, const float *gain, const float *bias, float *y, float *mean_out,
                                      float *rstd_out) {
    const float *in = x + (size_t)blockIdx.x * cols;
    float sum = 0.0f;
    for (int i = threadIdx.x; i < cols; i += blockDim.x) sum += in[i];
    float mean = block_reduce(sum, false) / cols;
    float squares = 0.0f;
    for (int i = threadIdx.x; i < cols; i += blockDim.x) squares += (in[i] - mean) * (in[i] - mean);
    float rstd = rsqrtf(block_reduce(squares, false) / cols + 1e-5f);
    for (int i = threadIdx.x; i < cols; i += blockDim.x)
        y[(size_t)blockIdx.x * cols + i] = (in[i] - mean) * rstd * gain[i] + bias[i];
    if (threadIdx.x == 0) {
        mean_out[blockIdx.x] = mean;
        rstd_out[blockIdx.x] = rstd;
    }
}

extern "C" __global__ void rms_norm(int cols, const float *x, const float *gain, float *y) {
    float squares = 0.0f;
    for (int i = threadIdx.x; i < cols; i += blockDim.x) squares += x[blockIdx.x * cols + i] * x[blockIdx.x * cols + i];
    float scale = rsqrtf(block_reduce(squares, false) / cols + 1e-6f);
    for (int i = threadIdx.x; i < cols; i += blockDim.x) y[blockIdx.x * cols + i] = x[blockIdx.x * cols + i] * scale * gain[i];
}

extern "C" __global__ void cross_entropy(int classes, const float *logits, const int *target, float *loss, float *gradient) {
    const float *in = logits + (size_t)blockIdx.x * classes;
    float top = -INFINITY;
    for (int i = threadIdx.x; i < classes; i += blockDim.x) top = fmaxf(top, in[i]);
    top = block_reduce(top, true);
    float sum = 0.0f;
    for (int i = threadIdx.x; i < classes; i += blockDim.x) sum += __expf(in[i] - top);
    sum = block_reduce(sum, false);
    int wanted = target[blockIdx.x];
    for (int i = threadIdx.x; i < classes; i += blockDim.x)
        gradient[(size_t)blockIdx.x * classes + i] = __expf(in[i] - top) / sum - (i == wanted ? 1.0f : 0.0f);
    if (threadIdx.x == 0) loss[blockIdx.x] = logf(sum) + top - in[wanted];
}

// One query row per warp, causal, with the online softmax. head size 64: two numbers per lane.
extern "C" __global__ void attention_row(int tokens, float scale, const float *q, const float *k, const float *v, float *out) {
    int lane = threadIdx.x, row = blockIdx.x, head = blockIdx.y;
    size_t base = (size_t)head * tokens * 64;
    float q0 = q[base + row * 64 + lane], q1 = q[base + row * 64 + 32 + lane];
    float top = -INFINITY, total = 0.0f, acc0 = 0.0f, acc1 = 0.0f;
    for (int j = 0; j <= row; j++) {
        float score = q0 * k[base + j * 64 + lane] + q1 * k[base + j * 64 + 32 + lane];
        for (int d = 16; d; d >>= 1) score += __shfl_xor_sync(0xffffffffu, score, d);
        score *= scale;
        float next = fmaxf(top, score), keep = expf(top - next), weight = expf(score - next);
        total = total * keep + weight;
        acc0 = acc0 * keep + weight * v[base + j * 64 + lane];
        acc1 = acc1 * keep + weight * v[base + j * 64 + 32 + lane];
        top = next;
    }
    out[base + row * 64 + lane] = acc0 / total;
    out[base + row * 64 + 32 + lane] = acc1 / total;
}

extern "C" __global__ void embedding(int width, const int *token, const float *table, const float *position, float *out) {
    int row = blockIdx.x;
    for (int i = threadIdx.x; i < width; i += blockDim.x)
        out[row * width + i] = table[(size_t)token[row] * width + i] + position[row * width + i];
}

extern "C" __global__ void embedding_backward(int width, const int *token, const float *gradient, float *table) {
    for (int i = threadIdx.x; i < width; i += blockDim.x)
        atomicAdd(&table[(size_t)token[blockIdx.x] * width + i], gradient[blockIdx.x * width + i]);
}

extern "C" __global__ void rotary(int heads, int half, const float *x, float *y) {
    int position = blockIdx.x, head = blockIdx.y, i = threadIdx.x;
    if (i >= half) return;
    float angle = position * powf(10000.0f, -(float)i / half);
    float sine, cosine;
    sincosf(angle, &sine, &cosine);
    size_t base = ((size_t)position * heads + head) * 2 * half;
    float a = x[base + i], b = x[base + half + i];
    y[base + i] = a * cosine - b * sine;
    y[base + half + i] = a * sine + b * cosine;
}

// int8 matrix-vector product with dp4a and per-row scales.
extern "C" __global__ void gemv_int8(int rows, int quads, const int *weight, const int *x, const float *scale, float *out) {
    int row = blockIdx.x * blockDim.x + threadIdx.x;
    if (row >= rows) return;
    int sum = 0;
    for (int i = 0; i < quads; i++) sum = __dp4a(weight[row * quads + i], x[i], sum);
    out[row] = sum * scale[row];
}
