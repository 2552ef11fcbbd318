/* Winograd's F(2, 3) with its tile instructions computed in AVX-512F: for tests, never chosen by itself.
 */
#define LATENTD_EMULATE 1
#include "winograd2_amx.c"
