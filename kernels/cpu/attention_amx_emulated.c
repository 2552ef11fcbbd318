/* Flash attention with its tile instructions computed in AVX-512F: for tests, never chosen by itself. */
#define LATENTD_EMULATE 1
#include "attention_amx.c"
