/* FNV-1a (Fowler, Noll, Vo), 64 bits: for tables and names of files, not against anybody hostile. */
#ifndef LATENTD_HASH_H
#define LATENTD_HASH_H

#include <stddef.h>
#include <stdint.h>

#define HASH_BEGIN ((uint64_t)0xcbf29ce484222325u)

/* H, and a number of up to 32 bits as if it were one byte. */
static inline uint64_t hash_number(uint64_t h, uint32_t number)
{
    return (h ^ number) * 0x100000001b3u;
}

static inline uint64_t hash_bytes(uint64_t h, const void *data, size_t bytes)
{
    for (size_t i = 0; i < bytes; i++)
        h = hash_number(h, ((const unsigned char *)data)[i]);
    return h;
}

#endif
