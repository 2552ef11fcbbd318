/* See mp4_boxes.h. libavformat's own faststart opens its output a second time to read it, which a file in
 * memory has no name for. */
#include "mp4_boxes.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

struct box {
    unsigned char *at;   /* its header */
    size_t len;          /* with its header */
    unsigned char *body; /* behind the header */
};

static uint32_t get32(const unsigned char *p)
{
    return (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
}

static void put32(unsigned char *p, uint32_t v)
{
    for (int i = 0; i < 4; i++)
        p[i] = (unsigned char)(v >> (24 - 8 * i));
}

/* The first box named NAME among those that fill FROM to END. */
static bool find_box(unsigned char *from, unsigned char *end, const char *name, struct box *box)
{
    for (unsigned char *p = from; end - p >= 8; p += box->len) {
        size_t header = 8;
        box->len = get32(p);
        if (box->len == 1 && end - p >= 16) {
            header = 16;
            box->len = (size_t)get32(p + 8) << 32 | get32(p + 12);
        }
        if (box->len < header || box->len > (size_t)(end - p))
            return false;
        box->at = p;
        box->body = p + header;
        if (memcmp(p + 4, name, 4) == 0)
            return true;
    }
    return false;
}

/* The box at the end of PATH, four letters a name: "moovtrakmdia…". */
static bool find_inside(struct buffer *file, const char *path, struct box *box)
{
    unsigned char *from = (unsigned char *)file->data, *end = from + file->len;

    for (; *path; path += 4) {
        if (!find_box(from, end, path, box))
            return false;
        from = box->body;
        end = box->at + box->len;
    }
    return true;
}

/* Adds SHIFT to the offsets in the stco box of the one track. */
static bool shift_chunks(struct buffer *file, size_t shift)
{
    struct box stco;

    if (!find_inside(file, "moovtrakmdiaminfstblstco", &stco) || stco.len < 16)
        return false; /* co64 only beyond 4 GiB */
    size_t count = get32(stco.body + 4);
    if (count > (stco.len - 16) / 4)
        return false;
    for (size_t i = 0; i < count; i++) {
        unsigned char *offset = stco.body + 8 + 4 * i;
        if (shift > UINT32_MAX - get32(offset))
            return false;
        put32(offset, (uint32_t)(get32(offset) + shift));
    }
    return true;
}

int mp4_moov_first(struct buffer *file, struct error *err)
{
    struct box moov, mdat;

    if (!find_inside(file, "moov", &moov) || !find_inside(file, "mdat", &mdat))
        return error_set(err, ERR_FORMAT, "the MP4 that was written lacks moov or mdat");
    if (moov.at < mdat.at)
        return 0;
    if (!shift_chunks(file, moov.len))
        return error_set(err, ERR_FORMAT, "the MP4 that was written has no chunk offsets");
    unsigned char *copy = malloc(moov.len);
    if (!copy)
        return error_set(err, ERR_NOMEM, "no memory for an MP4 of %zu bytes", file->len);
    memcpy(copy, moov.at, moov.len);
    memmove(mdat.at + moov.len, mdat.at, (size_t)(moov.at - mdat.at));
    memcpy(mdat.at, copy, moov.len);
    free(copy);
    return 0;
}
