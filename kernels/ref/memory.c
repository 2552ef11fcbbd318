/* Memory of the backends that compute on the CPU. Weights are what most of it is: thousands of pieces that
 * every picture reads from end to end. They share chunks of large pages, so that page tables are walked for a
 * five-hundredth of their lines; each on its own had small pages at its end, or nothing else. */
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "ref.h"

enum {
    HUGE_PAGE = 2 << 20,
    PAGE = 4096,
    SMALL_ALIGN = 256,
    CHUNK = 64 << 20,
    PIECE_LEAST = 64 << 10, /* smaller ones are malloc's business */
    PIECE_MOST = 16 << 20   /* larger ones have large pages of their own */
};

struct chunk {
    struct chunk *next;
    char *at;
    size_t used;
    int pieces; /* that are not freed */
};

/* Of all backends of the process. */
static struct chunk *chunks;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static size_t round_up(size_t n, size_t to)
{
    return (n + to - 1) / to * to;
}

/* Only a hint: a kernel without large pages refuses, and ordinary pages serve. */
static void want_huge_pages(void *at, size_t bytes)
{
#ifdef MADV_HUGEPAGE
    (void)madvise(at, bytes / HUGE_PAGE * HUGE_PAGE, MADV_HUGEPAGE);
#endif
}

/* CHUNK bytes at a multiple of HUGE_PAGE; NULL: there are none. */
static char *map_chunk(void)
{
    const size_t all = CHUNK + HUGE_PAGE;
    char *at = mmap(NULL, all, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (at == MAP_FAILED)
        return NULL;
    const size_t before = round_up((uintptr_t)at, HUGE_PAGE) - (uintptr_t)at, behind = HUGE_PAGE - before;
    if ((before && munmap(at, before)) || (behind && munmap(at + before + CHUNK, behind))) {
        (void)munmap(at, all);
        return NULL;
    }
    want_huge_pages(at + before, CHUNK);
    return at + before;
}

static bool add_chunk(void)
{
    struct chunk *c = malloc(sizeof *c);
    char *at = c ? map_chunk() : NULL;
    if (!at) {
        free(c);
        return false;
    }
    *c = (struct chunk){.next = chunks, .at = at};
    chunks = c;
    return true;
}

/* NULL: there is no memory for it in chunks. */
static void *piece_alloc(size_t bytes)
{
    char *at = NULL;
    bytes = round_up(bytes, PAGE);
    pthread_mutex_lock(&lock);
    struct chunk *c = chunks;
    while (c && c->used + bytes > CHUNK)
        c = c->next;
    if (c || add_chunk()) {
        c = c ? c : chunks;
        at = c->at + c->used;
        c->used += bytes;
        c->pieces++;
    }
    pthread_mutex_unlock(&lock);
    return at;
}

/* Gives back C, whose pieces are all freed, at *LINK. */
static void drop_chunk(struct chunk **link)
{
    struct chunk *c = *link;
    *link = c->next;
    (void)munmap(c->at, CHUNK);
    free(c);
}

/* Whether MEM was a piece. Its memory is the system's again at once, its addresses when the chunk is empty.
 */
static bool piece_free(char *mem, size_t bytes)
{
    pthread_mutex_lock(&lock);
    struct chunk **link = &chunks;
    while (*link && (mem < (*link)->at || mem >= (*link)->at + CHUNK))
        link = &(*link)->next;
    const bool found = *link;
    if (found && --(*link)->pieces == 0)
        drop_chunk(link);
    else if (found)
        (void)madvise(mem, round_up(bytes, PAGE), MADV_DONTNEED);
    pthread_mutex_unlock(&lock);
    return found;
}

/* Sanitizers see the end of each piece only where it is malloc's. */
static bool in_chunks(size_t bytes)
{
#ifdef __SANITIZE_ADDRESS__
    (void)bytes;
    return false;
#else
    return bytes >= PIECE_LEAST && bytes <= PIECE_MOST;
#endif
}

int ref_mem_alloc(struct backend *be, size_t bytes, void **mem, struct error *err)
{
    (void)be;
    *mem = in_chunks(bytes) ? piece_alloc(bytes) : NULL;
    if (*mem)
        return 0;
    const size_t align = bytes >= HUGE_PAGE ? HUGE_PAGE : SMALL_ALIGN;
    if (posix_memalign(mem, align, bytes ? bytes : 1)) {
        *mem = NULL;
        return error_set(err, ERR_NOMEM, "out of memory: %zu bytes are not to be had", bytes);
    }
    if (bytes >= HUGE_PAGE)
        want_huge_pages(*mem, bytes);
    return 0;
}

void ref_mem_free(struct backend *be, void *mem, size_t bytes)
{
    (void)be;
    if (mem && !piece_free(mem, bytes))
        free(mem);
}
