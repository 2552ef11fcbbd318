/* A bounded queue of bytes between the worker, which writes the body of a reply while it makes it, and the
 * HTTP thread that sends it. It holds so little that memory does not grow with the reply: the writer waits
 * for room, the reader is woken when there is something. */
#ifndef LATENTD_PIPE_H
#define LATENTD_PIPE_H

#include <sys/types.h>

#include "error.h"
#include "phase.h"

struct pipe;

/* Holds at most BYTES. */
int pipe_open(struct pipe **p, size_t bytes, struct error *err);
void pipe_close(struct pipe **p); /* neither side may use it any more; *P is NULL then */

/* ---- The writer ---- */

/* Puts all LEN bytes in, and waits for room while there is none. ERR_CANCELLED: WATCH says stop, or the pipe
 * has been ended. */
int pipe_write(struct pipe *p, const void *data, size_t len, const struct watcher *watch, struct error *err);

/* ---- The reader ---- */

/* WAKE is called on the other side's thread after every write and at the end, never after that. The pipe is
 * locked meanwhile. Set it before the writer begins. */
void pipe_on_change(struct pipe *p, void (*wake)(void *ctx), void *ctx);
/* Nothing will come any more. WHOLE: what was written is the whole body and may still be read; otherwise the
 * rest is thrown away. The first call counts. */
void pipe_end(struct pipe *p, bool whole);
/* True once anything was written. */
bool pipe_begun(struct pipe *p);
/* True when pipe_read would not say PIPE_EMPTY. */
bool pipe_ready(struct pipe *p);
enum { PIPE_EMPTY = 0, PIPE_END = -1, PIPE_BROKEN = -2 };
/* At most MAX bytes: how many, or one of the above. */
ssize_t pipe_read(struct pipe *p, char *out, size_t max);

#endif
