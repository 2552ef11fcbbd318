/* The file of packed.h: a head, a text that identifies it, records, and the bytes. In this machine's byte
 * order; it is never carried to another. */
#ifndef LATENTD_WEIGHTS_PACKED_FILE_H
#define LATENTD_WEIGHTS_PACKED_FILE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <time.h>

#include "error.h"

enum { PACKED_PATH_MAX = 4096 };

struct packed_record {
    uint64_t name; /* a hash */
    uint64_t offset, bytes;
    uint32_t kind;
    int32_t shape[4], parts;
    uint32_t bias, int8;
};

/* A file in the making. The bytes are borrowed. */
struct packed_file {
    struct packed_record *record;
    const void **bytes;
    uint32_t count, capacity;
};

/* Sets the record's offset. ERR_NOMEM. */
int packed_file_add(struct packed_file *f, const struct packed_record *r, const void *bytes);
void packed_file_free(struct packed_file *f);

/* Writes F to PATH, under a name only when it is on the disk: a file of that name is whole, and one that is
 * not vanishes with the process. Makes the folder, and room in it: of files *.weights together at most MOST
 * bytes stay, those longest unused go, but none that was written or mapped SINCE (CLOCK_REALTIME). Returns 1;
 * 0: it does not fit, or STOP was set; or ERR_IO. */
int packed_file_write(const struct packed_file *f, const char *path, const char *identity, size_t most,
                      struct timespec since, const atomic_bool *stop, struct error *err);

/* Maps the file at PATH when it is there, belongs to this user alone, and says IDENTITY; *MAP is NULL when
 * there is none. ERR_FORMAT: it is there and not to be used. Counts as a use. */
int packed_file_map(const char *path, const char *identity, const unsigned char **map, size_t *size,
                    const struct packed_record **record, uint32_t *records, struct error *err);

#endif
