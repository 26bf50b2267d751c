// Calls: recursion, function pointers, virtual functions, lambdas.

__device__ __noinline__ int fibonacci(int n) { return n < 2 ? n : fibonacci(n - 1) + fibonacci(n - 2); }

extern "C" __global__ void recurse_fibonacci(int *out) { out[threadIdx.x] = fibonacci(threadIdx.x % 13); }

__device__ __noinline__ int ackermann(int m, int n) {
    if (m == 0) return n + 1;
    if (n == 0) return ackermann(m - 1, 1);
    return ackermann(m - 1, ackermann(m, n - 1));
}

extern "C" __global__ void recurse_ackermann(int *out) { out[threadIdx.x] = ackermann(threadIdx.x % 3, threadIdx.x % 5); }

__device__ void quicksort(int *x, int low, int high) {
    if (low >= high) return;
    int pivot = x[(low + high) / 2], i = low, j = high;
    while (i <= j) {
        while (x[i] < pivot) i++;
        while (x[j] > pivot) j--;
        if (i <= j) {
            int swap = x[i];
            x[i++] = x[j];
            x[j--] = swap;
        }
    }
    quicksort(x, low, j);
    quicksort(x, i, high);
}

extern "C" __global__ void recurse_quicksort(int *x, int length) {
    quicksort(x + (blockIdx.x * blockDim.x + threadIdx.x) * length, 0, length - 1);
}

// Mutual recursion.
__device__ bool is_odd(unsigned n);
__device__ __noinline__ bool is_even(unsigned n) { return n == 0 ? true : is_odd(n - 1); }
__device__ __noinline__ bool is_odd(unsigned n) { return n == 0 ? false : is_even(n - 1); }
extern "C" __global__ void recurse_mutual(const unsigned *x, int *out) { out[threadIdx.x] = is_even(x[threadIdx.x]); }

__device__ float add(float a, float b) { return a + b; }
__device__ float multiply(float a, float b) { return a * b; }
__device__ float larger(float a, float b) { return a > b ? a : b; }
typedef float (*Operation)(float, float);
__device__ Operation operations[3] = {add, multiply, larger};

extern "C" __global__ void function_pointers(int n, const int *which, const float *a, const float *b, float *out) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) out[i] = operations[which[i]](a[i], b[i]);
}

struct Shape {
    __device__ virtual float area() const = 0;
    __device__ virtual int sides() const { return 0; }
    __device__ virtual ~Shape() {}
};
struct Circle : Shape {
    float radius;
    __device__ Circle(float r) : radius(r) {}
    __device__ float area() const override { return 3.0f * radius * radius; }
};
struct Rectangle : Shape {
    float width, height;
    __device__ Rectangle(float w, float h) : width(w), height(h) {}
    __device__ float area() const override { return width * height; }
    __device__ int sides() const override { return 4; }
};
struct Slab : Rectangle {
    __device__ Slab(float w) : Rectangle(w, w) {}
    __device__ float area() const override { return 6.0f * width * width; }
};

extern "C" __global__ void virtual_calls(const int *kind, const float *size, float *area, int *sides) {
    int i = threadIdx.x;
    Circle circle(size[i]);
    Rectangle rectangle(size[i], 2.0f);
    Slab slab(size[i]);
    const Shape *shape = kind[i] == 0 ? (const Shape *)&circle : kind[i] == 1 ? (const Shape *)&rectangle : &slab;
    area[i] = shape->area();
    sides[i] = shape->sides();
}

template <class F> __device__ int twice(F f, int v) { return f(f(v)); }

extern "C" __global__ void lambdas(int factor, const int *x, int *y) {
    int i = threadIdx.x;
    auto step = [=](int v) { return v * factor + i; };
    y[i] = twice(step, x[i]);
}

// Struct results and reference parameters of a function that is not inlined.
struct Range {
    long long low, high;
    int count;
    char name[5];
};
__device__ __noinline__ Range widen(Range r, const int &by, double &middle) {
    r.low -= by;
    r.high += by;
    r.count++;
    r.name[by % 5] = (char)('a' + by % 26);
    middle = 0.5 * (r.low + r.high);
    return r;
}

extern "C" __global__ void struct_results(long long *low, long long *high, double *middle, int *names) {
    int i = threadIdx.x;
    Range r = {i, 2 * i, 0, {0, 0, 0, 0, 0}};
    for (int k = 0; k < i % 4; k++) r = widen(r, i + k, middle[i]);
    low[i] = r.low;
    high[i] = r.high;
    names[i] = r.name[0] + r.name[1] + r.name[2] + r.name[3] + r.name[4] + 1000 * r.count;
}
