/* Winograd's F(4, 3) with its tile instructions computed in AVX-512F: for tests, never chosen by itself.
 */
#define LATENTD_EMULATE 1
#include "winograd_rows_amx.c"
