/* The AMX-INT8 kernel with its tile instructions computed in AVX-512F: for tests, never chosen by itself. */
#define LATENTD_EMULATE 1
#include "int8_amx.c"
