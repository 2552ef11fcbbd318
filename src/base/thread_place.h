/* Where a thread of a pool runs, whether it gets on, and how another may bring it to its own core.
 *
 * A thread whose core another process has just then holds its item until the kernel gives the core back, some
 * milliseconds later, while those that have nothing left to do wait for it: the kernel does not move a thread
 * that waits for its turn to cores that rest for so short a time. Here the one that waits does: it lends its
 * core for the rest of that item. */
#ifndef LATENTD_THREAD_PLACE_H
#define LATENTD_THREAD_PLACE_H

#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <sys/types.h>
#include <time.h>

enum thread_stay { STAYS, IS_BEING_MOVED, IS_AWAY };

/* One writer each: the thread itself, but STAY, which both write. */
struct thread_place {
    _Alignas(64) _Atomic bool holds; /* an item */
    _Atomic int stay;                /* enum thread_stay */
    _Atomic pid_t tid;               /* 0: not known yet */
    _Atomic clockid_t clock;         /* of its CPU time */
    _Atomic int cpu;                 /* where it last began to work */
};

/* The last look at a thread. */
struct thread_look {
    long when, ran; /* nanoseconds: the monotonic clock, its CPU time */
    unsigned run;   /* which run it worked for */
};

/* Monotonic time in nanoseconds. */
long now_ns(void);

/* The calling thread works at P from now on. */
void thread_arrives(struct thread_place *p);

/* The calling thread, which works at P, takes an item, or has done it. Where it was moved meanwhile it goes
 * back, or STAYS where it is; MASK as below. */
void thread_takes(struct thread_place *p);
void thread_has_done(struct thread_place *p, const cpu_set_t *mask, bool stays);

/* Whether the thread of P holds an item and has not come on since the last look, at the same RUN, some time
 * ago. */
bool thread_is_stalled(const struct thread_place *p, struct thread_look *last, unsigned run);

/* Moves the thread of P, which must hold an item, to the calling thread's core; false: it does not hold one
 * any more, is being moved, or cannot be. */
bool thread_pull(struct thread_place *p);

/* Moves the calling thread to core CPU, and lets it go where MASK says afterwards; NULL: it is bound to CPU.
 */
void thread_go_to(int cpu, const cpu_set_t *mask);

#endif
