// Included before every program: the macros that nvcc's users have without an #include, because nvcc includes
// cuda_runtime.h, and that <math.h> and <limits.h>.
#pragma once
#include <limits.h>
#include <math.h>
