// <cuda.h> for clang: weft_device.cuh, included before every program, has what a kernel needs of it, but for the driver's
// type of a tensor map.
#pragma once
typedef struct CUtensorMap_st {
    alignas(64) unsigned long long opaque[16];
} CUtensorMap;
