/* What tma.cuh says in PTX, said in C: barriers count arrivals and bytes in a table beside the shared memory,
 * boxes are copied through the tensor maps that runtime.cc encodes, swizzle and zeros and all, at once or
 * late by the seed. */
#ifndef LATENTD_EMULATOR_TMA_H
#define LATENTD_EMULATOR_TMA_H

static inline void barrier_init(uint64_t *barrier, unsigned count)
{
    emulator_barrier_init(barrier, count);
}

static inline void barrier_publish()
{
    emulator_barrier_publish();
}

static inline void barrier_expect(uint64_t *barrier, unsigned bytes)
{
    emulator_barrier_arrive(barrier, bytes);
}

static inline void barrier_arrive(uint64_t *barrier)
{
    emulator_barrier_arrive(barrier, 0);
}

static inline bool barrier_passed(uint64_t *barrier, unsigned parity)
{
    return emulator_barrier_passed(barrier, parity);
}

static inline bool barrier_passed_soon(uint64_t *barrier, unsigned parity)
{
    return barrier_passed(barrier, parity);
}

static inline void box_load(void *shared, const CUtensorMap *map, uint64_t *barrier, int c0, int c1, int c2)
{
    const int at[5] = {c0, c1, c2, 0, 0};
    emulator_box_load(shared, map, barrier, 3, at);
}

static inline void box_load(void *shared, const CUtensorMap *map, uint64_t *barrier, int c0, int c1, int c2,
                            int c3)
{
    const int at[5] = {c0, c1, c2, c3, 0};
    emulator_box_load(shared, map, barrier, 4, at);
}

static inline void box_prefetch(const CUtensorMap *)
{
}

static inline void named_barrier(int id, int count)
{
    emulator_barrier(id, count);
}

template <int N> static inline void registers_less()
{
    static_assert(N >= 24 && N <= 256 && N % 8 == 0, "setmaxnreg");
}

template <int N> static inline void registers_more()
{
    static_assert(N >= 24 && N <= 256 && N % 8 == 0, "setmaxnreg");
}

struct emulated_vote {
    bool in, out;
};

static void emulated_vote_work(void *lane[32])
{
    bool all = true;
    for (int l = 0; l < 32; l++)
        all = all && ((const emulated_vote *)lane[l])->in;
    for (int l = 0; l < 32; l++)
        ((emulated_vote *)lane[l])->out = all;
}

static inline bool warp_all(bool here)
{
    emulated_vote mine = {here, false};
    emulator_warp("vote.all", &mine, emulated_vote_work);
    return mine.out;
}

static inline uint64_t nanoseconds()
{
    return emulator_nanoseconds();
}

[[noreturn]] static inline void kernel_failed()
{
    emulator_fail("the kernel found that something never came");
}

#endif
