// <stdio.h> for NVRTC, which knows the device-side functions of it by itself.
#pragma once
#include <stddef.h>
