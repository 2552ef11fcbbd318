/* The AVX512-VNNI kernel with its instruction computed in AVX-512F: for tests, never chosen by itself. */
#define LATENTD_EMULATE 1
#include "int8_avx512vnni.c"
