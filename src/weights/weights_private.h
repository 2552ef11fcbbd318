/* What weights.c and loader.c share. */
#ifndef LATENTD_WEIGHTS_PRIVATE_H
#define LATENTD_WEIGHTS_PRIVATE_H

#include "safetensors.h"
#include "weights.h"

struct buffer;

struct weights {
    struct safetensors *file; /* one, or one a shard */
    int files;
    struct st_tensor **tensor; /* of all files, sorted by name */
    int count;
    void *copy; /* numbers that are not in a file as they are needed: see single_file.c; owned */
};

/* Fills w->tensor from the files FIRST and after it. */
int weights_index(struct weights *w, int first, struct error *err);
struct st_tensor *weights_find(const struct weights *w, const char *name);
/* Gives the mapped pages back to the system; they are read anew when touched. */
void weights_drop_pages(struct weights *w);
/* The same for one array of a file that is mapped, but for the pages that it shares with its neighbours. */
void weights_drop_array(const struct weights *w, const struct host_array *a);
/* What the component was read from, as text: its files by device, inode, size and time of change. BYTES: of
 * all their numbers. Appends to OUT; an error when a file cannot be asked. */
int weights_identity(const struct weights *w, struct buffer *out, size_t *bytes);
/* Asks the system to read the files into memory. */
void weights_read_ahead(const struct weights *w);
/* Copies the numbers of A, an array that a load_* found in W, as they are stored. */
int weights_read(const struct weights *w, const struct host_array *a, void *out, struct error *err);

#endif
