// The kernels for what every CPU of the architecture has: SSE2 on x86-64, NEON on 64-bit ARM.
#define TRANSPORTS_KERNEL_TABLE baseline_kernels
#if defined(__aarch64__)
#define TRANSPORTS_KERNEL_NAME "neon"
#else
#define TRANSPORTS_KERNEL_NAME "baseline"
#endif
#include "kernels_body.hpp"
