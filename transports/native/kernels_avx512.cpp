// The kernels for AVX-512 F, BW, VL and DQ.
#if defined(__x86_64__)
#if !defined(__AVX512F__) || !defined(__AVX512BW__) || !defined(__AVX512VL__) || \
    !defined(__AVX512DQ__) || !defined(__F16C__)
#error "compile this file with -mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx2 -mfma -mf16c"
#endif
#define TRANSPORTS_KERNEL_TABLE avx512_kernels
#define TRANSPORTS_KERNEL_NAME "avx512"
#include "kernels_body.hpp"
#endif
