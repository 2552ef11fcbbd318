/* Packed weights on disk, from start to start: what one start packed, the next one maps. Packing reads and
 * writes every weight and takes fresh memory for all of them; a mapped file takes neither, and several
 * processes share it.
 *
 * One file a component, FOLDER/<hash>.weights: a text that says what it was made from (the caller's, this
 * program's version, the backend's layout), a record for each weight in the order in which the network asks
 * for them, and the packed bytes. A file whose text differs is another component's. The first weight of each
 * kind and size of kernel is packed nevertheless and compared, so that a layout that changed without its name
 * shows. What is doubtful is not used, and removed. */
#ifndef LATENTD_PACKED_H
#define LATENTD_PACKED_H

#include <stdatomic.h>

#include "backend.h"

struct packed_store;

/* For a component of BYTES on BE, made from what IDENTITY says; finds its file if there is one. NULL where
 * nothing is kept: the backend says no folder or has no layout, the component is small, or there is no memory
 * for the store. */
struct packed_store *packed_open(struct backend *be, const char *identity, size_t bytes);
/* Whether there was a file. STORE may be NULL. */
bool packed_found(const struct packed_store *store);
/* Takes the store off the backend and unmaps it: after the weights that lie in it were freed. */
void packed_close(struct packed_store **store, struct backend *be);
/* The next weight, NAME: taken from the file, or packed, and in that case noted for packed_save(), which
 * reads it: it must not be freed before the store is closed. As weight_pack(). STORE NULL: packs. */
int packed_weight(struct packed_store *store, struct backend *be, weight *w, const struct weight_source *src,
                  const char *name, struct error *err);

/* Writes what was packed on BE, where it is to be kept and is not yet, for the next start to map; until STOP.
 * Returns how many files it wrote, or an error. Takes seconds of the disk; any one thread, also while passes
 * run, but nothing may be loaded or closed meanwhile. */
int packed_save(struct backend *be, const atomic_bool *stop, struct error *err);

#endif
