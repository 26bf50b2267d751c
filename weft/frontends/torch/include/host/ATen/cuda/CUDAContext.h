#pragma once
#include <ATen/Context.h>
#include <ATen/cuda/CUDAContextLight.h>
