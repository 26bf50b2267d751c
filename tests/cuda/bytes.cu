// Bytes, shorts and strings.

extern "C" __global__ void upper_case(int n, char *text) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n && text[i] >= 'a' && text[i] <= 'z') text[i] -= 32;
}

extern "C" __global__ void count_words(int n, const char *text, int *count) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    bool starts = i < n && text[i] != ' ' && (i == 0 || text[i - 1] == ' ');
    int total = __syncthreads_count(starts);
    if (threadIdx.x == 0) atomicAdd(count, total);
}

extern "C" __global__ void find_pattern(int n, const char *text, int length, const char *pattern, int *matches) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i + length > n) return;
    for (int k = 0; k < length; k++)
        if (text[i + k] != pattern[k]) return;
    matches[i] = 1;
}

extern "C" __global__ void grey(int n, const uchar4 *colour, unsigned char *out) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    uchar4 c = colour[i];
    out[i] = (unsigned char)((77 * c.x + 150 * c.y + 29 * c.z) >> 8);
}

extern "C" __global__ void saturate_add(int n, const signed char *a, const signed char *b, signed char *out, const short *s, short *squares) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    int sum = a[i] + b[i];
    out[i] = (signed char)(sum > 127 ? 127 : sum < -128 ? -128 : sum);
    squares[i] = (short)(s[i] * s[i]);
}

extern "C" __global__ void crc32(int length, const unsigned char *data, unsigned *out) {
    int t = blockIdx.x * blockDim.x + threadIdx.x;
    unsigned crc = 0xffffffffu;
    for (int i = 0; i < length; i++) {
        crc ^= data[t * length + i];
        for (int bit = 0; bit < 8; bit++) crc = (crc >> 1) ^ (crc & 1 ? 0xedb88320u : 0u);
    }
    out[t] = ~crc;
}

extern "C" __global__ void parse_numbers(int count, const int *start, const char *text, int *out) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= count) return;
    int value = 0, sign = 1, at = start[i];
    if (text[at] == '-') {
        sign = -1;
        at++;
    }
    while (at < start[i + 1] && text[at] >= '0' && text[at] <= '9') value = value * 10 + (text[at++] - '0');
    out[i] = sign * value;
}
