/* The AMX kernel with its tile instructions computed in AVX-512F: for tests, never chosen by itself. */
#define LATENTD_EMULATE 1
#include "gemm_amx.c"
