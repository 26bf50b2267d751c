// <stddef.h> for NVRTC, which knows size_t and ptrdiff_t by itself.
#pragma once
#ifndef NULL
#define NULL 0
#endif
#define offsetof(type, member) __builtin_offsetof(type, member)
