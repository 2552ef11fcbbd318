/* The same in AVX-512F alone, for the tier whose tile instructions are emulated: for tests, never chosen by
 * itself. */
#define LATENTD_EMULATE 1
#include "winograd_up_amx.c"
