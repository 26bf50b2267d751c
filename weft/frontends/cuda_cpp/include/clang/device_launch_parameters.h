// <device_launch_parameters.h> for clang: weft_device.cuh, included before every program, has what a kernel needs of it.
#pragma once
