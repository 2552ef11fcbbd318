/* See thread_place.h. Whether a thread gets on is seen from its CPU time, which Linux keeps exactly even
 * while it runs. */
#include "thread_place.h"

#include <pthread.h>
#include <unistd.h>

/* Between two looks, and what a thread that runs has surely run by the second. */
enum { LOOK_NS = 60000, STALLED_NS = 5000 };

long now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000L + t.tv_nsec;
}

void thread_arrives(struct thread_place *p)
{
    static _Thread_local pid_t tid;
    clockid_t clock = CLOCK_MONOTONIC; /* always comes on */
    if (!tid)
        tid = gettid();
    if (atomic_load_explicit(&p->tid, memory_order_relaxed) != tid) {
        (void)pthread_getcpuclockid(pthread_self(), &clock);
        atomic_store_explicit(&p->clock, clock, memory_order_relaxed);
        atomic_store_explicit(&p->tid, tid, memory_order_release);
    }
    atomic_store_explicit(&p->cpu, sched_getcpu(), memory_order_relaxed);
}

void thread_takes(struct thread_place *p)
{
    atomic_store_explicit(&p->holds, true, memory_order_relaxed);
}

/* Thread TID, 0: the calling one, runs on core CPU alone from now on. */
static bool bind_to(pid_t tid, int cpu)
{
    cpu_set_t there;
    if (cpu < 0 || cpu >= CPU_SETSIZE)
        return false;
    CPU_ZERO(&there);
    CPU_SET((unsigned)cpu, &there);
    return sched_setaffinity(tid, sizeof there, &there) == 0;
}

void thread_go_to(int cpu, const cpu_set_t *mask)
{
    (void)bind_to(0, cpu); /* where that is not allowed any more it stays */
    if (mask)
        (void)sched_setaffinity(0, sizeof *mask, mask);
}

/* Who pulls says so first and looks for the item then; here it is the other way round, so one of the two sees
 * the other. */
void thread_has_done(struct thread_place *p, const cpu_set_t *mask, bool stays)
{
    int stay;
    atomic_store(&p->holds, false);
    while ((stay = atomic_load(&p->stay)) == IS_BEING_MOVED)
        __builtin_ia32_pause();
    if (stay == STAYS)
        return;
    thread_go_to(stays ? -1 : atomic_load_explicit(&p->cpu, memory_order_relaxed), mask);
    atomic_store(&p->stay, STAYS);
}

bool thread_is_stalled(const struct thread_place *p, struct thread_look *last, unsigned run)
{
    struct timespec t;
    const long now = now_ns();
    const clockid_t clock = atomic_load_explicit(&p->clock, memory_order_relaxed);
    if (!atomic_load(&p->holds) || (last->run == run && now - last->when < LOOK_NS) ||
        clock_gettime(clock, &t) != 0)
        return false;
    const long ran = t.tv_sec * 1000000000L + t.tv_nsec;
    const bool stalled = last->run == run && ran - last->ran < STALLED_NS;
    *last = (struct thread_look){now, ran, run};
    return stalled;
}

bool thread_pull(struct thread_place *p)
{
    int stays = STAYS;
    if (!atomic_compare_exchange_strong(&p->stay, &stays, IS_BEING_MOVED))
        return false;
    const bool moved = atomic_load(&p->holds) &&
                       bind_to(atomic_load_explicit(&p->tid, memory_order_acquire), sched_getcpu());
    atomic_store(&p->stay, moved ? IS_AWAY : STAYS);
    return moved;
}
