// A multilayer perceptron for digits_cuda.py: every step of its training is one of these kernels.
// Matrices are row-major: activations [batch][features], weights [inputs][outputs].

constexpr int TILE = 16;
constexpr float LOWEST = -3.402823466e38f;

// Copies the rows named by `rows` into a mini-batch, images and labels alike. One block per row.
extern "C" __global__ void gather_batch(const float *__restrict__ images, const int *__restrict__ labels,
                                        const int *__restrict__ rows, float *__restrict__ batch_images,
                                        int *__restrict__ batch_labels, int features)
{
    int source = rows[blockIdx.x];
    for (int i = threadIdx.x; i < features; i += blockDim.x)
        batch_images[blockIdx.x * features + i] = images[source * features + i];
    if (threadIdx.x == 0)
        batch_labels[blockIdx.x] = labels[source];
}

// y = x w + bias, then ReLU if asked. Each block makes one tile of y from tiles of x and w in shared memory.
extern "C" __global__ void linear_forward(const float *__restrict__ x, const float *__restrict__ weights,
                                          const float *__restrict__ bias, float *__restrict__ y, int batch, int inputs,
                                          int outputs, int relu)
{
    __shared__ float x_tile[TILE][TILE];
    __shared__ float w_tile[TILE][TILE];
    int column = blockIdx.x * TILE + threadIdx.x;
    int row = blockIdx.y * TILE + threadIdx.y;

    float sum = 0.0f;
    for (int start = 0; start < inputs; start += TILE) {
        int x_column = start + threadIdx.x;
        int w_row = start + threadIdx.y;
        x_tile[threadIdx.y][threadIdx.x] = row < batch && x_column < inputs ? x[row * inputs + x_column] : 0.0f;
        w_tile[threadIdx.y][threadIdx.x] = w_row < inputs && column < outputs ? weights[w_row * outputs + column] : 0.0f;
        __syncthreads();
#pragma unroll
        for (int k = 0; k < TILE; ++k)
            sum += x_tile[threadIdx.y][k] * w_tile[k][threadIdx.x];
        __syncthreads();
    }
    if (row < batch && column < outputs) {
        float value = sum + bias[column];
        y[row * outputs + column] = relu ? fmaxf(value, 0.0f) : value;
    }
}

// Softmax and cross-entropy of each row of logits, at most 32 classes: one warp per row, one lane per class.
// Writes the gradient of the mean loss and the predicted class; adds to totals[0] the losses, to totals[1] the hits.
extern "C" __global__ void softmax_cross_entropy(const float *__restrict__ logits, const int *__restrict__ labels,
                                                 float *__restrict__ grad, int *__restrict__ predictions,
                                                 float *__restrict__ totals, int batch, int classes)
{
    constexpr unsigned ALL = 0xffffffffu;
    int lane = threadIdx.x;
    int row = blockIdx.x * blockDim.y + threadIdx.y;
    if (row >= batch)
        return;

    bool live = lane < classes;
    float logit = live ? logits[row * classes + lane] : LOWEST;
    float largest = logit;
    for (int step = 16; step > 0; step /= 2)
        largest = fmaxf(largest, __shfl_xor_sync(ALL, largest, step));
    float numerator = live ? expf(logit - largest) : 0.0f;
    float denominator = numerator;
    for (int step = 16; step > 0; step /= 2)
        denominator += __shfl_xor_sync(ALL, denominator, step);

    int label = labels[row];
    int predicted = __ffs(__ballot_sync(ALL, logit == largest)) - 1;
    float label_logit = __shfl_sync(ALL, logit, label);
    if (live)
        grad[row * classes + lane] = (numerator / denominator - (lane == label ? 1.0f : 0.0f)) / batch;
    if (lane == 0) {
        predictions[row] = predicted;
        atomicAdd(&totals[0], logf(denominator) + largest - label_logit);
        atomicAdd(&totals[1], predicted == label ? 1.0f : 0.0f);
    }
}

// grad_x = grad_y transpose(w), zero where the forward ReLU cut x off.
extern "C" __global__ void linear_backward_input(const float *__restrict__ grad_y, const float *__restrict__ weights,
                                                 const float *__restrict__ x, float *__restrict__ grad_x, int batch,
                                                 int inputs, int outputs)
{
    __shared__ float g_tile[TILE][TILE];
    __shared__ float w_tile[TILE][TILE + 1]; // read by columns: the odd pitch keeps the banks apart
    int column = blockIdx.x * TILE + threadIdx.x;
    int row = blockIdx.y * TILE + threadIdx.y;
    int w_row = blockIdx.x * TILE + threadIdx.y;

    float sum = 0.0f;
    for (int start = 0; start < outputs; start += TILE) {
        int output = start + threadIdx.x;
        g_tile[threadIdx.y][threadIdx.x] = row < batch && output < outputs ? grad_y[row * outputs + output] : 0.0f;
        w_tile[threadIdx.y][threadIdx.x] = w_row < inputs && output < outputs ? weights[w_row * outputs + output] : 0.0f;
        __syncthreads();
#pragma unroll
        for (int k = 0; k < TILE; ++k)
            sum += g_tile[threadIdx.y][k] * w_tile[threadIdx.x][k];
        __syncthreads();
    }
    if (row < batch && column < inputs)
        grad_x[row * inputs + column] = x[row * inputs + column] > 0.0f ? sum : 0.0f;
}

// grad_w = transpose(x) grad_y, and grad_bias = the column sums of grad_y, made by the first row of blocks.
extern "C" __global__ void linear_backward_weights(const float *__restrict__ x, const float *__restrict__ grad_y,
                                                   float *__restrict__ grad_w, float *__restrict__ grad_bias, int batch,
                                                   int inputs, int outputs)
{
    __shared__ float x_tile[TILE][TILE];
    __shared__ float g_tile[TILE][TILE];
    int output = blockIdx.x * TILE + threadIdx.x;
    int input = blockIdx.y * TILE + threadIdx.y;
    int x_column = blockIdx.y * TILE + threadIdx.x;

    float sum = 0.0f;
    float bias_sum = 0.0f;
    for (int start = 0; start < batch; start += TILE) {
        int row = start + threadIdx.y;
        x_tile[threadIdx.y][threadIdx.x] = row < batch && x_column < inputs ? x[row * inputs + x_column] : 0.0f;
        g_tile[threadIdx.y][threadIdx.x] = row < batch && output < outputs ? grad_y[row * outputs + output] : 0.0f;
        __syncthreads();
#pragma unroll
        for (int k = 0; k < TILE; ++k) {
            float g = g_tile[k][threadIdx.x];
            sum += x_tile[k][threadIdx.y] * g;
            bias_sum += g;
        }
        __syncthreads();
    }
    if (input < inputs && output < outputs)
        grad_w[input * outputs + output] = sum;
    if (input == 0 && output < outputs)
        grad_bias[output] = bias_sum;
}

// One AdamW step over n parameters (Loshchilov and Hutter, "Decoupled Weight Decay Regularization", algorithm 2).
// correction1 and correction2 are 1 - beta^step.
extern "C" __global__ void adamw(float *__restrict__ parameters, const float *__restrict__ grad,
                                 float *__restrict__ mean, float *__restrict__ square, int n, float rate, float decay,
                                 float beta1, float beta2, float epsilon, float correction1, float correction2)
{
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) {
        float g = grad[i];
        float m = beta1 * mean[i] + (1.0f - beta1) * g;
        float v = beta2 * square[i] + (1.0f - beta2) * g * g;
        mean[i] = m;
        square[i] = v;
        float step = (m / correction1) / (sqrtf(v / correction2) + epsilon);
        parameters[i] -= rate * (step + decay * parameters[i]);
    }
}
