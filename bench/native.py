"""The native baselines in C: source in, ctypes functions out, compiled with `gcc -O3 -march=native` on first use.

Each takes its thread count as the last argument and shares its rows among OpenMP threads. Mandelbrot is the scalar
program that a C programmer would write; its loop with an early exit is not vectorised by gcc.
"""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import tempfile
from pathlib import Path

FLAGS = ("-O3", "-march=native", "-fopenmp", "-shared", "-fPIC")

SOURCE = r"""
#include <stdint.h>
#include <string.h>

void histogram(long n, const uint8_t *in, uint32_t *bins, int threads)
{
    memset(bins, 0, 256 * sizeof *bins);
#pragma omp parallel for num_threads(threads) reduction(+ : bins[:256])
    for (long i = 0; i < n; ++i)
        ++bins[in[i]];
}

void transpose(long n, const float *restrict in, float *restrict out, int threads)
{
#pragma omp parallel for num_threads(threads)
    for (long y = 0; y < n; y += 32)
        for (long x = 0; x < n; x += 32)
            for (long i = y; i < y + 32; ++i)
                for (long j = x; j < x + 32; ++j)
                    out[j * n + i] = in[i * n + j];
}

void stencil(long n, const float *restrict in, float *restrict out, int threads)
{
#pragma omp parallel for num_threads(threads)
    for (long y = 0; y < n; ++y) {
        const float *row = in + y * n;
        if (y == 0 || y == n - 1) {
            memcpy(out + y * n, row, n * sizeof *row);
            continue;
        }
        out[y * n] = row[0];
        for (long x = 1; x < n - 1; ++x)
            out[y * n + x] = 0.2f * (row[x] + row[x - 1] + row[x + 1] + row[x - n] + row[x + n]);
        out[y * n + n - 1] = row[n - 1];
    }
}

void mandelbrot(int width, int height, int limit, float left, float top, float pitch, int *steps, int threads)
{
#pragma omp parallel for num_threads(threads) schedule(dynamic, 8)
    for (int row = 0; row < height; ++row)
        for (int column = 0; column < width; ++column) {
            float cx = left + column * pitch, cy = top + row * pitch;
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
}
"""


def build_native() -> ctypes.CDLL | str:
    """The compiled library, or the reason why there is none."""
    gcc = shutil.which("gcc")
    if gcc is None:
        return "gcc is not installed"
    with tempfile.TemporaryDirectory(prefix="weft-bench-") as folder:
        source, library = Path(folder) / "native.c", Path(folder) / "native.so"
        source.write_text(SOURCE)
        done = subprocess.run([gcc, *FLAGS, "-o", library, source], capture_output=True, text=True)
        if done.returncode:
            return f"gcc failed: {done.stderr.strip().splitlines()[-1]}"
        found = ctypes.CDLL(str(library))
    pointer, integer, real, long = ctypes.c_void_p, ctypes.c_int, ctypes.c_float, ctypes.c_long
    for name in ("histogram", "transpose", "stencil"):
        getattr(found, name).argtypes = (long, pointer, pointer, integer)
        getattr(found, name).restype = None
    found.mandelbrot.argtypes = (integer, integer, integer, real, real, real, pointer, integer)
    found.mandelbrot.restype = None
    return found
