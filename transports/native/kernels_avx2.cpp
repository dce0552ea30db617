// The kernels for AVX2 with F16C; compiled with -mavx2 -mfma -mf16c.
#if defined(__x86_64__)
#if !defined(__AVX2__) || !defined(__F16C__)
#error "compile this file with -mavx2 -mfma -mf16c"
#endif
#define TRANSPORTS_KERNEL_TABLE avx2_kernels
#define TRANSPORTS_KERNEL_NAME "avx2"
#include "kernels_body.hpp"
#endif
