/* Tiles of Winograd's method. */
#include "winograd_tiles.h"

enum {
    BLOCK_BYTES = 3 << 20, /* of V, for each thread */
    ALL_BYTES = 8 << 20,   /* of V, however many threads: a last level that others use, too, keeps so much */
    GROUPS_MAX = 128,
    ITEMS_A_THREAD = 2
};

struct winograd_tiles winograd_cut(tensor y, int rows, int cols, int group)
{
    struct winograd_tiles t = {.y = y,
                               .rows = rows,
                               .cols = cols,
                               .across = div_up(y.w, cols),
                               .down = div_up(y.h, rows),
                               .group = group};
    t.all = (size_t)y.n * (size_t)t.across * (size_t)t.down;
    return t;
}

void winograd_choose_block(struct winograd_tiles *t, const struct pool *pool, size_t group_bytes)
{
    const size_t wanted = (size_t)BLOCK_BYTES * (size_t)pool_threads(pool),
                 all = (t->all + (size_t)t->group - 1) / (size_t)t->group;
    size_t groups = (wanted < ALL_BYTES ? wanted : ALL_BYTES) / group_bytes;
    groups = groups < 1 ? 1 : groups > GROUPS_MAX ? GROUPS_MAX : groups;
    const size_t blocks = (all + groups - 1) / groups;
    t->block = (int)((all + blocks - 1) / blocks);
}

bool winograd_block(struct winograd_tiles *t)
{
    const size_t most = (size_t)t->block * (size_t)t->group;
    t->first += (size_t)t->count;
    t->count = t->all - t->first < most ? (int)(t->all - t->first) : (int)most;
    return t->count > 0;
}

int winograd_blocks(const struct winograd_tiles *t)
{
    const size_t most = (size_t)t->block * (size_t)t->group;
    return (int)((t->all + most - 1) / most);
}

void winograd_go_to_block(struct winograd_tiles *t, int i)
{
    t->first = (size_t)i * (size_t)(t->block * t->group);
    t->count = 0;
    (void)winograd_block(t);
}

int winograd_part(int groups, int panels, int most, const struct pool *pool)
{
    const int parts = div_up(ITEMS_A_THREAD * pool_threads(pool), panels);
    return min_int(most, div_up(groups, min_int(groups, parts)));
}

int winograd_input_parts(const struct winograd_tiles *t, const struct pool *pool)
{
    return min_int(t->group, div_up(ITEMS_A_THREAD * pool_threads(pool), winograd_groups(t)));
}

struct winograd_range winograd_input_range(const struct winograd_tiles *t, int parts, int i)
{
    const int group = i / parts, part = i % parts, tiles = winograd_group_tiles(t, group);
    return (struct winograd_range){group, tiles * part / parts, tiles * (part + 1) / parts};
}

void winograd_end_group(const struct winograd_tiles *t, const struct gemm_args *a, const struct row_ops *rows,
                        int nr, int group, int p, const float *outputs, unsigned ended)
{
    const tensor y = t->y;
    const int count = winograd_group_tiles(t, group);
    const size_t tile = (size_t)(t->cols * nr), row = (size_t)t->group * tile;
    for (int i = 0, run; i < count; i += run) {
        const struct winograd_tile at = winograd_tile_at(t, group, i);
        const int most = min_int(count - i, t->across - at.x / t->cols);
        for (run = 0; run < most && !(ended >> (i + run) & 1); run++)
            ;
        for (int r = 0; run && r < min_int(t->rows, y.h - at.y); r++)
            gemm_finish(a, rows, nr, p, outputs + (size_t)i * tile + (size_t)r * row,
                        tensor_position(y, at.n, at.y + r, at.x), min_int(run * t->cols, y.w - at.x));
        run = run ? run : 1;
    }
}
