/* F(2x4, 3x3) with its instructions computed in AVX-512F: for tests, never chosen by itself. */
#define LATENTD_EMULATE 1
#include "winograd_2x4_avx512bf16.c"
