// <cuda.h> for NVRTC: the driver's types that device code can name. The driver's functions are for host code.
#pragma once
typedef unsigned int cuuint32_t;
typedef unsigned long long cuuint64_t;
#define CU_TENSOR_MAP_NUM_QWORDS 16
typedef struct CUtensorMap_st {
    alignas(64) cuuint64_t opaque[CU_TENSOR_MAP_NUM_QWORDS];
} CUtensorMap;
