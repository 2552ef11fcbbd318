/* The AVX512-BF16 kernel with its instruction computed in AVX-512F: for tests, never chosen by itself. */
#define LATENTD_EMULATE 1
#include "gemm_avx512bf16.c"
