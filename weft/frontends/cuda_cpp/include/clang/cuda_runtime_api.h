// <cuda_runtime_api.h> for clang: weft_device.cuh, included before every program, has what a kernel needs of it.
#pragma once
