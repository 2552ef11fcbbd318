/* See thread_pool.h. Workers spin for a short while between runs, because the ops of a step follow each other
 * within microseconds, and sleep on a futex after that, because a daemon mostly waits.
 *
 * A run ends when its items are done, not when every worker has looked: one whose core is taken by another
 * process, or that is still waking up, is not waited for. It may come late and find the next run, or none. So
 * what it takes is taken at once with how many there are (struct pool.queue), and only who holds an item
 * reads the rest: that run cannot end meanwhile.
 *
 * One that holds an item when another process takes its core is brought to the core of a thread that waits
 * for it (thread_place.h). And where each core is to have a thread, workers are bound to theirs: the kernel
 * wakes one on the caller's core else, when another process has its own. The caller is not bound, as what it
 * starts would be, too; after a rest it begins on the core that is left for it, since it wakes where its
 * request came in. */
#include "thread_pool.h"

#include <limits.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "thread_place.h"

enum {
    THREADS_MAX = 256,
    SPINS = 2000,
    SPIN_NS = 60000,
    LOOK_AGAIN_NS = 100000,
    SLEEP_NS = 500000,
    RESTED_NS = 5000000
};

struct worker {
    struct pool *pool;
    int index;
    pthread_t thread;
    struct thread_look look; /* the caller's */
    struct thread_place place;
};

struct pool {
    int threads, started;                     /* started: workers beside the caller */
    _Alignas(64) _Atomic unsigned generation; /* futex: a new run begins */
    _Atomic int sleepers;                     /* workers that wait for it in the kernel, or are about to */
    _Alignas(64) _Atomic uint64_t queue;      /* the run's items << 32, the next one */
    _Alignas(64) _Atomic unsigned left;       /* futex: items that are not done */
    _Atomic bool caller_sleeps;               /* until there are none */
    _Atomic bool caller_watched;              /* by a worker that has nothing to do */
    _Atomic bool stop;
    void (*fn)(void *ctx, int item, int worker);
    void *ctx;
    char *scratch;
    cpu_set_t mask;                    /* cores that the process may use */
    bool moves, bound;                 /* MASK is known; workers stay on cores of their own */
    _Atomic int callers_core;          /* which they leave */
    long ended;                        /* the last run; now_ns() */
    struct worker worker[THREADS_MAX]; /* 0: the caller */
};

/* At most NS nanoseconds; 0: for ever. */
static void futex_wait(_Atomic unsigned *word, unsigned seen, long ns)
{
    const struct timespec most = {0, ns};
    syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, seen, ns ? &most : NULL, NULL, 0);
}

static void futex_wake(_Atomic unsigned *word, int most)
{
    syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, most, NULL, NULL, 0);
}

/* Where a worker that was moved may go afterwards; see thread_go_to(). */
static const cpu_set_t *afterwards(const struct pool *p)
{
    return p->bound ? NULL : &p->mask;
}

/* Does what items there are. More may belong to the next run, which began when the last of these was done. */
static void work(struct pool *p, int index)
{
    struct thread_place *here = &p->worker[index].place;
    thread_arrives(here);
    for (;;) {
        const uint64_t taken = atomic_fetch_add_explicit(&p->queue, 1, memory_order_acquire);
        if ((uint32_t)taken >= taken >> 32)
            return;
        thread_takes(here);
        p->fn(p->ctx, (int)(uint32_t)taken, index);
        if (atomic_fetch_sub(&p->left, 1) == 1 && atomic_load(&p->caller_sleeps))
            futex_wake(&p->left, 1);
        thread_has_done(here, index > 0 ? afterwards(p) : &p->mask, index == 0);
    }
}

/* Until the generation differs from SEEN, at most NS nanoseconds; 0: for ever. */
static void sleep_for_run(struct pool *p, unsigned seen, long ns)
{
    atomic_fetch_add(&p->sleepers, 1);
    futex_wait(&p->generation, seen, ns);
    atomic_fetch_sub(&p->sleepers, 1);
}

/* A worker without an item, the run of SEEN not done: where the caller is what it waits for, and has lost its
 * core, the two change places. One worker watches. */
static void watch_caller(struct pool *p, unsigned seen)
{
    struct thread_place *caller = &p->worker[0].place;
    struct thread_look look = {0};
    bool watched = false;
    if (!p->moves || !atomic_load(&caller->holds) ||
        !atomic_compare_exchange_strong(&p->caller_watched, &watched, true))
        return;
    while (atomic_load(&p->generation) == seen && atomic_load(&caller->holds)) {
        const int cpu = atomic_load_explicit(&caller->cpu, memory_order_relaxed), mine = sched_getcpu();
        if (thread_is_stalled(caller, &look, seen)) {
            if (cpu != mine && thread_pull(caller)) { /* else it has the core as soon as this one sleeps */
                atomic_store(&p->callers_core, mine);
                thread_go_to(cpu, afterwards(p));
            }
            break;
        }
        sleep_for_run(p, seen, LOOK_AGAIN_NS);
    }
    atomic_store(&p->caller_watched, false);
}

/* Waits until the generation differs from SEEN: spins first, then sleeps. */
static unsigned wait_for_run(struct pool *p, unsigned seen)
{
    long until = now_ns() + SPIN_NS;
    unsigned gen;
    while ((gen = atomic_load_explicit(&p->generation, memory_order_acquire)) == seen) {
        for (int i = 0; i < 64; i++)
            __builtin_ia32_pause();
        if (now_ns() > until) {
            watch_caller(p, seen);
            sleep_for_run(p, seen, 0);
        }
    }
    return gen;
}

/* Wakes as many as MOST of those who sleep. A worker counts itself and then looks at the generation (in the
 * kernel); here it is the other way round, so one of the two sees the other. */
static void begin_generation(struct pool *p, int most)
{
    atomic_fetch_add(&p->generation, 1);
    if (atomic_load(&p->sleepers) > 0)
        futex_wake(&p->generation, most);
}

/* The Ith core of the mask. */
static int core_of(const struct pool *p, int i)
{
    for (int cpu = 0; cpu < CPU_SETSIZE; cpu++)
        if (CPU_ISSET((unsigned)cpu, &p->mask) && i-- == 0)
            return cpu;
    return -1;
}

static void *worker_main(void *arg)
{
    struct worker *w = arg;
    struct pool *p = w->pool;
    unsigned seen = 0;
    if (p->bound)
        thread_go_to(core_of(p, w->index), NULL);
    for (;;) {
        seen = wait_for_run(p, seen);
        if (atomic_load(&p->stop))
            return NULL;
        work(p, w->index);
    }
}

/* Cores that the process may use: the affinity mask, cut by the cgroup's CPU quota. */
static int usable_cores(void)
{
    cpu_set_t set;
    int cores =
        sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : (int)sysconf(_SC_NPROCESSORS_ONLN);
    FILE *f = fopen("/sys/fs/cgroup/cpu.max", "r");
    if (f) {
        double quota, period;
        if (fscanf(f, "%lf %lf", &quota, &period) == 2 && period > 0 && quota > 0) {
            int allowed = (int)(quota / period + 0.5);
            if (allowed < cores)
                cores = allowed;
        }
        fclose(f);
    }
    return cores < 1 ? 1 : cores > THREADS_MAX ? THREADS_MAX : cores;
}

int pool_open(struct pool **pool, int threads, struct error *err)
{
    *pool = NULL;
    if (threads < 0 || threads > THREADS_MAX)
        return error_set(err, ERR_INVALID, "%d threads were asked for, accepted is 0 (all cores) to %d",
                         threads, THREADS_MAX);
    struct pool *p = aligned_alloc(64, (sizeof *p + 63) / 64 * 64);
    if (!p)
        return error_set(err, ERR_NOMEM, "no memory for the thread pool");
    memset(p, 0, sizeof *p);
    p->threads = threads ? threads : usable_cores();
    p->moves = sched_getaffinity(0, sizeof p->mask, &p->mask) == 0;
    p->bound = p->moves && p->threads == CPU_COUNT(&p->mask);
    p->callers_core = core_of(p, 0);
    p->scratch = aligned_alloc(POOL_SCRATCH, (size_t)p->threads * POOL_SCRATCH);
    if (!p->scratch) {
        free(p);
        return error_set(err, ERR_NOMEM, "no memory for the scratch of %d threads", threads);
    }
    /* Huge pages: rows of a slab lie on many small ones. Without them it is slower, not wrong. */
    (void)madvise(p->scratch, (size_t)p->threads * POOL_SCRATCH, MADV_HUGEPAGE);
    for (int i = 1; i < p->threads; i++) {
        p->worker[i] = (struct worker){.pool = p, .index = i};
        int rc = pthread_create(&p->worker[i].thread, NULL, worker_main, &p->worker[i]);
        if (rc) {
            error_set(err, ERR_IO, "thread %d of %d cannot be started: %s", i, p->threads, strerror(rc));
            pool_close(&p);
            return ERR_IO;
        }
        p->started++;
    }
    *pool = p;
    return 0;
}

void pool_close(struct pool **pool)
{
    struct pool *p = *pool;
    if (!p)
        return;
    atomic_store(&p->stop, true);
    begin_generation(p, INT_MAX);
    for (int i = 1; i <= p->started; i++)
        pthread_join(p->worker[i].thread, NULL);
    free(p->scratch);
    free(p);
    *pool = NULL;
}

int pool_threads(const struct pool *pool)
{
    return pool ? pool->threads : 1;
}

void *pool_scratch(struct pool *pool, int worker)
{
    return pool->scratch + (size_t)worker * POOL_SCRATCH;
}

/* Brings workers that have lost their cores with an item in hand to the caller's. */
static bool pull_stalled(struct pool *p, unsigned run)
{
    bool any = false;
    for (int i = 1; i <= p->started; i++) {
        struct worker *w = &p->worker[i];
        if (thread_is_stalled(&w->place, &w->look, run))
            any |= thread_pull(&w->place);
    }
    return any;
}

/* The last items may run for long on other cores: yields, so that a core shared with others is not burnt, and
 * sleeps once it has lent its own. */
static void wait_for_items(struct pool *p)
{
    const unsigned run = atomic_load_explicit(&p->generation, memory_order_relaxed);
    bool lent = false;
    unsigned left;
    for (int spins = 0; (left = atomic_load_explicit(&p->left, memory_order_acquire)) > 0; spins++) {
        if (spins < SPINS) {
            __builtin_ia32_pause();
        } else if (p->moves && (pull_stalled(p, run) || lent)) {
            lent = true;
            atomic_store(&p->caller_sleeps, true);
            futex_wait(&p->left, left, SLEEP_NS);
            atomic_store(&p->caller_sleeps, false);
        } else {
            sched_yield();
        }
    }
}

void pool_run(struct pool *p, int items, void (*fn)(void *ctx, int item, int worker), void *ctx)
{
    if (!p || p->started == 0 || items <= 1) {
        for (int i = 0; i < items; i++)
            fn(ctx, i, 0);
        return;
    }
    p->fn = fn;
    p->ctx = ctx;
    atomic_store_explicit(&p->left, (unsigned)items, memory_order_relaxed);
    atomic_store_explicit(&p->queue, (uint64_t)items << 32, memory_order_release);
    if (p->bound && now_ns() - p->ended > RESTED_NS && sched_getcpu() != atomic_load(&p->callers_core))
        thread_go_to(atomic_load(&p->callers_core), &p->mask);
    begin_generation(p, items - 1);
    work(p, 0);
    wait_for_items(p);
    p->ended = now_ns();
}
