/* A pool of threads that all kernels of the CPU backend share. The calling thread works too. */
#ifndef LATENTD_THREAD_POOL_H
#define LATENTD_THREAD_POOL_H

#include <stddef.h>

#include "error.h"

struct pool;

/* THREADS 0: one for each core in the process's affinity mask and CPU quota (cgroup). */
int pool_open(struct pool **pool, int threads, struct error *err);
void pool_close(struct pool **pool);
int pool_threads(const struct pool *pool);

/* Calls fn(ctx, item, worker) for every item in [0, items), each once, on all threads; returns when all are
 * done. worker is in [0, pool_threads). Items are handed out in order. POOL NULL: runs in the caller alone,
 * worker 0. Only one thread may call it at a time; fn must not call it again. */
void pool_run(struct pool *pool, int items, void (*fn)(void *ctx, int item, int worker), void *ctx);

/* Scratch memory of one worker, at least POOL_SCRATCH bytes, 64-byte aligned, never shrinks: for packed
 * panels and rows. */
enum { POOL_SCRATCH = 4 << 20 };
void *pool_scratch(struct pool *pool, int worker);

#endif
