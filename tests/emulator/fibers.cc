/* Blocks of threads as fibers of one host thread. See emulator.h. */
#include "emulator.h"

#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

#include <map>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

#include "launch.h"

namespace {

enum { STACK = 256 << 10, BARRIERS = 16, WARPS_MAX = 32 };

struct gate { /* a meeting point; waits end when `turn` moves on */
    unsigned turn = 0;
    int arrived = 0;
};

struct copy {
    void *dst;
    const void *src;
    bool valid;
};

struct fiber {
    emulator_place here;
    void *sp = nullptr;
    unsigned char *stack = nullptr;
    bool done = false;
    gate *at = nullptr; /* where it waits */
    unsigned turn = 0;
    std::vector<std::vector<copy>> groups; /* committed copies that have not happened */
    std::vector<copy> open;                /* not committed yet */
    bool unpublished = false;              /* copied since emulator_publish() */
    void *fake = nullptr;                  /* ASan's */
};

struct warp {
    gate meet;
    const char *op = nullptr;
    void *lane[32];
    std::vector<std::vector<emulator_product>> groups; /* committed products that have not happened */
    std::vector<emulator_product> open;
    bool fenced = false;
};

/* In shared memory, by its place there. */
struct shared_barrier {
    gate ended; /* opens with every phase */
    unsigned count = 0, pending = 0, phase = 0;
    long bytes = 0; /* announced and not there; below 0: there and not announced */
    bool published = false;
};

struct box_copy { /* of TMA */
    unsigned char *dst;
    CUtensorMap map;
    shared_barrier *barrier;
    int at[5];
    size_t bytes;
};

struct block_run {
    const emulator_launch *l = nullptr;
    std::vector<fiber> fibers;
    std::vector<warp> warps;
    gate barrier[BARRIERS];
    int expected[BARRIERS] = {0};
    int live = 0, votes = 0, last_votes = 0;
    unsigned char *shared = nullptr;
    fiber *self = nullptr;
    void *main_sp = nullptr, *main_fake = nullptr;
    bool eager = false;          /* cp.async happens at once */
    bool eager_products = false; /* and wgmma */
    bool eager_boxes = false;    /* and TMA */
    bool stuck = false;          /* copies were lost, and nothing moves */
    std::map<size_t, shared_barrier> barriers;
    std::vector<box_copy> boxes; /* under way */
    bool unpublished = false;    /* a thread came to a barrier with copies that products would not see */
} run;

uint64_t random_state;

uint64_t next_random()
{
    uint64_t z = random_state += 0x9E3779B97F4A7C15u;
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
    z = (z ^ z >> 27) * 0x94D049BB133111EBu;
    return z ^ z >> 31;
}

} // namespace

emulator_place *emulator_here;

static const float *make_halves()
{
    static float table[65536];
    for (uint32_t i = 0; i < 65536; i++)
        table[i] = f16_to_f32((uint16_t)i);
    return table;
}

const float *emulator_halves = make_halves();

/* Saves the callee's registers on this stack and goes on with another one. */
extern "C" void emulator_switch(void **save, void *to);
__asm__(".text\n.type emulator_switch,@function\nemulator_switch:\n"
        "pushq %rbp\npushq %rbx\npushq %r12\npushq %r13\npushq %r14\npushq %r15\n"
        "movq %rsp, (%rdi)\nmovq %rsi, %rsp\n"
        "popq %r15\npopq %r14\npopq %r13\npopq %r12\npopq %rbx\npopq %rbp\nret\n");

void emulator_fail(const char *what)
{
    fflush(stdout);
    fprintf(stderr, "emulator: %s, thread %u of block [%u, %u, %u], %u threads, grid [%u, %u, %u]\n", what,
            emulator_here ? emulator_here->thread.x : 0, emulator_here ? emulator_here->block.x : 0,
            emulator_here ? emulator_here->block.y : 0, emulator_here ? emulator_here->block.z : 0,
            run.l ? run.l->threads : 0, run.l ? run.l->grid[0] : 0, run.l ? run.l->grid[1] : 0,
            run.l ? run.l->grid[2] : 0);
    abort();
}

static void to_main(fiber *f)
{
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(f->done ? nullptr : &f->fake, nullptr, 0);
#endif
    emulator_switch(&f->sp, run.main_sp);
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(f->fake, nullptr, nullptr);
#endif
}

static bool runnable(const fiber &f)
{
    return !f.done && !(f.at && f.at->turn == f.turn);
}

/* Lets another fiber run until G opens: the next lane of the warp if it can, without the way through the scheduler,
 * which is most of the emulator's time. */
static void wait_at(gate *g)
{
    fiber *f = run.self;
    f->at = g;
    f->turn = g->turn;
#if !defined(__SANITIZE_ADDRESS__)
    unsigned t = f->here.thread.x;
    fiber *next = &run.fibers[t % 32 == 31 ? t - 31 : t + 1];
    if (runnable(*next)) {
        next->at = nullptr;
        run.self = next;
        emulator_here = &next->here;
        emulator_switch(&f->sp, next->sp);
        return;
    }
#endif
    to_main(f);
}

static void open_gate(gate *g)
{
    g->turn++;
    g->arrived = 0;
}

/* A thread that ended counts as arrived at __syncthreads(), as since Volta. */
static void arrive(int id)
{
    gate *g = &run.barrier[id];
    run.unpublished |= run.self->unpublished;
    g->arrived++;
    if (g->arrived < (id ? run.expected[id] : run.live)) {
        wait_at(g);
        return;
    }
    run.last_votes = run.votes;
    run.votes = 0;
    open_gate(g);
}

void __syncthreads()
{
    arrive(0);
}

int __syncthreads_count(int predicate)
{
    run.votes += predicate != 0;
    arrive(0);
    return run.last_votes; /* no other vote can end before all have read this one: they must pass here first */
}

void emulator_barrier(int id, int count)
{
    if (id < 1 || id >= BARRIERS || count % 32 != 0)
        emulator_fail("a named barrier that does not exist");
    run.expected[id] = count;
    arrive(id);
}

void __threadfence()
{
}

void emulator_warp(const char *op, void *mine, void (*work)(void *lane[32]))
{
    unsigned t = emulator_here->thread.x;
    warp *w = &run.warps[t / 32];
    if (w->meet.arrived && w->op != op && strcmp(w->op, op) != 0) {
        fprintf(stderr, "emulator: lanes of a warp are at %s and at %s\n", w->op, op);
        emulator_fail("a warp that is not together");
    }
    w->op = op;
    w->lane[t % 32] = mine;
    if (++w->meet.arrived < 32) {
        wait_at(&w->meet);
        return;
    }
    work(w->lane);
    open_gate(&w->meet);
}

static void nothing(void **)
{
}

void __syncwarp()
{
    emulator_warp("syncwarp", nullptr, nothing);
}

unsigned char *emulator_shared()
{
    return run.shared;
}

/* ---- Asynchronous copies ---- */

static void perform(const copy &c)
{
    run.self->unpublished = true;
    if (c.valid)
        memcpy(c.dst, c.src, 16);
    else
        memset(c.dst, 0, 16);
}

void emulator_copy_async(void *dst, const void *src, bool valid)
{
    unsigned char *d = (unsigned char *)dst;
    if (d < run.shared || d + 16 > run.shared + run.l->shared)
        emulator_fail("cp.async to an address outside shared memory");
    if (run.eager)
        perform({dst, src, valid});
    else
        run.self->open.push_back({dst, src, valid});
}

void emulator_copy_commit()
{
    run.self->groups.push_back(std::move(run.self->open));
    run.self->open.clear();
}

void emulator_copy_wait(int groups)
{
    auto &g = run.self->groups;
    while ((int)g.size() > groups) {
        for (const copy &c : g.front())
            perform(c);
        g.erase(g.begin());
    }
}

void emulator_publish()
{
    run.self->unpublished = false;
}

/* ---- Products in the background ---- */

static warp *running_warp()
{
    return &run.warps[run.self->here.thread.x / 32];
}

void emulator_multiply(const emulator_product *p)
{
    if (!running_warp()->fenced)
        emulator_fail("wgmma without wgmma.fence");
    if (run.unpublished)
        emulator_fail("wgmma after cp.async without fence.proxy.async before the barrier");
    const char *wgmma = getenv("EMULATOR_WGMMA");
    if (wgmma && strcmp(wgmma, "lost") == 0)
        return;
    if (run.eager_products)
        p->run(p);
    else
        running_warp()->open.push_back(*p);
}

void emulator_multiply_commit()
{
    warp *w = running_warp();
    w->groups.push_back(std::move(w->open));
    w->open.clear();
}

void emulator_multiply_wait(int groups)
{
    warp *w = running_warp();
    for (; (int)w->groups.size() > groups; w->groups.erase(w->groups.begin()))
        for (const emulator_product &p : w->groups.front())
            p.run(&p);
    w->fenced = false;
}

void emulator_multiply_fence()
{
    running_warp()->fenced = true;
}

/* ---- Barriers in shared memory, and the boxes that they wait for ---- */

static size_t shared_offset(const void *p, size_t bytes, size_t unit, const char *what)
{
    const unsigned char *at = (const unsigned char *)p;
    if (at < run.shared || at + bytes > run.shared + run.l->shared || (size_t)(at - run.shared) % unit != 0)
        emulator_fail(what);
    return (size_t)(at - run.shared);
}

static shared_barrier *barrier_at(const void *p)
{
    auto b = run.barriers.find(shared_offset(p, 8, 8, "a barrier that is not 8 aligned bytes of shared memory"));
    if (b == run.barriers.end() || !b->second.published)
        emulator_fail("a barrier that was not made, or not published");
    return &b->second;
}

static void end_phase(shared_barrier *b)
{
    if (b->pending != 0 || b->bytes != 0)
        return;
    b->phase++;
    b->pending = b->count;
    open_gate(&b->ended);
}

void emulator_barrier_init(const void *barrier, unsigned count)
{
    shared_barrier b;
    b.count = b.pending = count;
    size_t at = shared_offset(barrier, 8, 8, "a barrier that is not 8 aligned bytes of shared memory");
    if (count < 1 || !run.barriers.insert({at, b}).second)
        emulator_fail("a barrier of nobody, or made twice");
}

void emulator_barrier_publish()
{
    for (auto &b : run.barriers)
        b.second.published = true;
}

void emulator_barrier_arrive(const void *barrier, unsigned bytes)
{
    shared_barrier *b = barrier_at(barrier);
    if (b->pending == 0)
        emulator_fail("more arrivals at a barrier than it was made for");
    b->bytes += bytes;
    b->pending--;
    end_phase(b);
}

static bool boxes_fail(const char *how)
{
    const char *now = getenv("EMULATOR_TMA");
    return now && strcmp(now, how) == 0;
}

uint64_t emulator_nanoseconds(void)
{
    static uint64_t now;
    return now += 1000000;
}

bool emulator_barrier_passed(const void *barrier, unsigned parity)
{
    shared_barrier *b = barrier_at(barrier);
    if (parity > 1)
        emulator_fail("a parity that is not 0 or 1");
    while ((b->phase & 1) == parity && !run.stuck)
        wait_at(&b->ended);
    return (b->phase & 1) != parity;
}

/* Row ROW of the box: 16 bytes at a time, zeros where the tensor is not. The swizzle works on addresses. */
static void perform_row(const box_copy &c, size_t row)
{
    const CUtensorMap &m = c.map;
    const unsigned char *from = (const unsigned char *)(uintptr_t)m.address;
    size_t rest = row, line = (size_t)m.box[0] * 2;
    bool inside = true;
    for (uint32_t i = 1; i < m.rank; i++) {
        int64_t at = c.at[i] + (int64_t)(rest % m.box[i]);
        rest /= m.box[i];
        inside = inside && at >= 0 && at < (int64_t)m.dim[i];
        from += at * (int64_t)m.stride[i - 1];
    }
    for (size_t i = 0; i < line; i += 2) {
        size_t to = (size_t)(c.dst - run.shared) + row * line + i;
        size_t mask = ((size_t)1 << m.swizzle) - 1; /* 128 bytes: 3 bits of the address from 7 on */
        int64_t k = c.at[0] + (int64_t)(i / 2);
        to ^= (to >> 7 & mask) << 4;
        if (inside && k >= 0 && k < (int64_t)m.dim[0])
            memcpy(run.shared + to, from + 2 * k, 2);
        else
            memset(run.shared + to, 0, 2);
    }
}

static void perform_box(const box_copy &c)
{
    for (size_t row = 0; row < c.bytes / ((size_t)c.map.box[0] * 2); row++)
        perform_row(c, row);
    c.barrier->bytes -= (long)c.bytes;
    end_phase(c.barrier);
}

void emulator_box_load(void *shared, const CUtensorMap *map, const void *barrier, int rank, const int at[5])
{
    box_copy c = {(unsigned char *)shared, *map, barrier_at(barrier), {at[0], at[1], at[2], at[3], at[4]}, 2};
    if ((uintptr_t)map % 64 != 0 || map->magic != EMULATED_MAP || (int)map->rank != rank)
        emulator_fail("TMA by something that is not a tensor map of as many dimensions");
    for (uint32_t i = 0; i < map->rank; i++)
        c.bytes *= map->box[i];
    shared_offset(shared, c.bytes, 128, "TMA to an address outside shared memory, or not aligned to 128");
    if (boxes_fail("wrong"))
        c.at[1]++;
    memset(c.dst, 0xff, c.bytes); /* from now on anything may stand there */
    if (run.eager_boxes && !boxes_fail("lost"))
        perform_box(c);
    else
        run.boxes.push_back(c);
}

/* One of those under way, any; false: there is none. */
static bool perform_some_box()
{
    if (run.boxes.empty() || boxes_fail("lost"))
        return false;
    size_t i = (size_t)(next_random() % run.boxes.size());
    box_copy c = run.boxes[i];
    run.boxes.erase(run.boxes.begin() + (long)i);
    perform_box(c);
    return true;
}

/* Nobody can go on. Where copies are lost on purpose those who wait are told: they look again, in vain. */
static void wake_all()
{
    if (!boxes_fail("lost") || run.stuck)
        emulator_fail("nobody can go on: a barrier or a warp instruction that some threads never reach");
    run.stuck = true;
    for (auto &b : run.barriers)
        open_gate(&b.second.ended);
}

/* ---- One block ---- */

static void fiber_main()
{
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(nullptr, nullptr, nullptr);
#endif
    run.l->call(run.l->kernel, run.l->args);
    fiber *f = run.self;
    emulator_copy_wait(0);
    f->done = true;
    run.live--;
    gate *g = &run.barrier[0];
    if (run.live > 0 && g->arrived >= run.live) {
        run.last_votes = run.votes;
        run.votes = 0;
        open_gate(g);
    }
    to_main(f);
    abort();
}

static void prepare(fiber *f)
{
    if (!f->stack) {
        f->stack = (unsigned char *)mmap(nullptr, STACK, PROT_READ | PROT_WRITE,
                                         MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (f->stack == MAP_FAILED) {
            f->stack = nullptr;
            emulator_fail("no memory for a fiber");
        }
    }
    void **top = (void **)(f->stack + STACK - 64);
    *--top = nullptr; /* where a return address would be: keeps the stack aligned at the call */
    *--top = (void *)fiber_main;
    for (int i = 0; i < 6; i++)
        *--top = nullptr;
    f->sp = top;
    f->done = false;
    f->at = nullptr;
    f->groups.clear();
    f->open.clear();
    f->unpublished = false;
}

static void resume(fiber *f)
{
    f->at = nullptr;
    run.self = f;
    emulator_here = &f->here;
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(&run.main_fake, f->stack, STACK);
#endif
    emulator_switch(&run.main_sp, f->sp);
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(run.main_fake, nullptr, nullptr);
#endif
}

static void run_block(const emulator_launch *l, unsigned x, unsigned y, unsigned z)
{
    unsigned n = l->threads;
    for (auto &b : run.barrier)
        b = gate();
    for (auto &w : run.warps)
        w = warp();
    run.live = (int)n;
    run.votes = 0;
    run.eager = next_random() % 2;
    run.eager_products = next_random() % 2;
    run.eager_boxes = next_random() % 2;
    run.stuck = false;
    run.barriers.clear();
    run.boxes.clear();
    run.unpublished = false;
    memset(run.shared, 0xff, l->shared);
    for (unsigned i = 0; i < n; i++) {
        run.fibers[i].here = {{i, 0, 0}, {x, y, z}, {n, 1, 1}, {l->grid[0], l->grid[1], l->grid[2]}};
        prepare(&run.fibers[i]);
    }
    /* Whole warps in an order that changes from pass to pass, now and then from the last thread to the first. */
    for (bool any = true; run.live > 0;) {
        if (!any && !perform_some_box())
            wake_all();
        else if (next_random() % 4 == 0)
            perform_some_box();
        any = false;
        unsigned start = (unsigned)(next_random() % n);
        bool backwards = next_random() % 2;
        for (unsigned i = 0; i < n; i++) {
            unsigned at = (start + i) % n;
            fiber *f = &run.fibers[backwards ? n - 1 - at : at];
            if (runnable(*f)) {
                resume(f); /* and others of its warp */
                any = true;
            }
        }
    }
    if (!run.boxes.empty() && !boxes_fail("lost"))
        emulator_fail("a block that ended before its copies");
}

void emulator_run(const emulator_launch *l)
{
    if (l->threads == 0 || l->threads > 1024 || l->threads % 32 != 0)
        emulator_fail("a launch whose threads are not 32 to 1024 in whole warps");
    if (l->shared > EMULATOR_SHARED_MAX)
        emulator_fail("a launch with more shared memory than a block can have");
    static bool seeded;
    if (!seeded) {
        const char *seed = getenv("EMULATOR_SEED");
        random_state = seed ? strtoull(seed, nullptr, 10) : 1;
        seeded = true;
    }
    run.l = l;
    if (run.fibers.size() < l->threads)
        run.fibers.resize(l->threads);
    run.warps.resize(l->threads / 32);
    /* Its own allocation, of the launch's size: a sanitizer sees what reaches beyond it. */
    void *shared = nullptr;
    if (posix_memalign(&shared, 1024, l->shared ? l->shared : 1))
        emulator_fail("no memory for shared memory");
    run.shared = (unsigned char *)shared;
    bool backwards = next_random() % 2;
    size_t count = (size_t)l->grid[0] * l->grid[1] * l->grid[2];
    for (size_t i = 0; i < count; i++) {
        size_t at = backwards ? count - 1 - i : i;
        run_block(l, (unsigned)(at % l->grid[0]), (unsigned)(at / l->grid[0] % l->grid[1]),
                  (unsigned)(at / l->grid[0] / l->grid[1]));
    }
    free(run.shared);
    run.shared = nullptr;
    run.l = nullptr;
    emulator_here = nullptr;
}
