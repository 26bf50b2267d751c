// Steps until the orbit of each point leaves the circle of radius 2. Neighbouring lanes leave at different times.
extern "C" __global__ void mandelbrot(int width, int height, int limit, float left, float top, float pitch,
                                      int *__restrict__ steps)
{
    int column = blockIdx.x * blockDim.x + threadIdx.x;
    int row = blockIdx.y * blockDim.y + threadIdx.y;
    if (column >= width || row >= height)
        return;
    float cx = left + column * pitch;
    float cy = top + row * pitch;
    float x = 0.0f, y = 0.0f;
    int count = 0;
    while (count < limit && x * x + y * y <= 4.0f) {
        float next = x * x - y * y + cx;
        y = 2.0f * x * y + cy;
        x = next;
        ++count;
    }
    steps[row * width + column] = count;
}
