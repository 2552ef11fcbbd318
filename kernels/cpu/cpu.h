/* The CPU backend: hand-blocked kernels for AVX2, AVX-512, AVX512-BF16 and AMX over the slots that ref has
 * filled. */
#ifndef LATENTD_CPU_H
#define LATENTD_CPU_H

#include <stdbool.h>

#include "backend.h"

/* Overwrites the slots that the best tier (or the tier named OPT->isa, NULL: the best) improves; sets
 * be->tier, be->dtype, be->state and the memory functions. Of OPT isa and bf16 are read, and be->int8. Call
 * it after ops_ref(be) and with be->pool open. The CPU and the operating system are both asked. A name that
 * is unknown or that this machine lacks is ERR_UNSUPPORTED. Returns 0 or a negative code. Names:
 * cpu_tier_name(). The
 * "-emulated" tiers run the bf16 kernels with their instructions computed in AVX-512F; they are slow, exist
 * for tests, and are never chosen unless named. */
int ops_cpu(struct backend *be, const struct backend_options *opt, struct error *err);

/* Names of the tiers from lowest to highest; NULL past the end. */
const char *cpu_tier_name(int i);
/* Whether this machine can run the tier of that name. */
bool cpu_tier_usable(const char *name);

/* Multiply-adds of the tier's matrix instruction, operands in registers or first-level cache, on all threads
 * of the pool for a fraction of a second: the measured peak in FLOP/s (2 a multiply-add) that bench shares
 * refer to. INT8: of its int8 instruction, where it has one. */
double cpu_peak_flops(const struct backend *be, bool int8);

#endif
