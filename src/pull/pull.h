/* latentd-pull: brings models from a Hugging Face hub into MODEL_DIR. A program of its own, which
 * `latentd pull` runs, so that the daemon neither links libcurl nor opens a connection to anywhere.
 *
 * One pull: hub.c lists the repository, select.c marks the files that are wanted, transfer.c brings them
 * through request.c, digest.c checks them, cache.c puts them where the daemon and huggingface_hub look. */
#ifndef LATENTD_PULL_H
#define LATENTD_PULL_H

#include <limits.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "buffer.h"
#include "error.h"

struct cJSON;

enum { DIGEST_MAX = 65, INCLUDES_MAX = 64 };

/* ---- hub.c: what the hub says ---- */

struct hub {
    char endpoint[1024]; /* HF_ENDPOINT without a last slash, else https://huggingface.co */
    char token[1024];    /* "": none */
    long timeout;        /* seconds without a byte before a connection counts as broken */
    long retries;        /* failures in a row that a file may have */
};

struct file {
    char *name;              /* path inside the repository; relative, no "." or ".." part */
    int64_t size;            /* bytes; -1: not known */
    char digest[DIGEST_MAX]; /* lower-case hex: 64 digits SHA-256, 40 digits a git blob's SHA-1; "": not
                                known. Also the name of the blob. */
    bool wanted;
};

struct repository {
    char id[256];            /* org/name */
    char revision[256];      /* as asked for: a branch, a tag or a commit */
    char commit[DIGEST_MAX]; /* what it is now */
    struct file *files;      /* in the hub's order, no name twice */
    size_t count;
};

/* Reads HF_ENDPOINT, HF_TOKEN (else the token that `hf auth login` stored) and HF_HUB_DOWNLOAD_TIMEOUT. */
int hub_open(struct hub *h, struct error *err);
/* HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE says yes. */
bool hub_offline(void);
/* Whether ID is org/name or name, and REVISION a plain name. */
int hub_check_names(const char *id, const char *revision, struct error *err);
/* GET {endpoint}/api/models/{id}/revision/{revision}?blobs=true. Fills R, whose id and revision are set.
 * ERR_FORMAT: the answer is none, or lists a name that would leave its folder. Free with repository_free. */
int hub_list(const struct hub *h, struct repository *r, struct error *err);
/* The file NAME of R's commit into OUT; for small ones. */
int hub_read(const struct hub *h, const struct repository *r, const char *name, struct buffer *out,
             struct error *err);
/* The address of a file of R's commit; the caller frees it. NULL: no memory. */
char *hub_file_url(const struct hub *h, const struct repository *r, const char *name);
void repository_free(struct repository *r);
const struct file *repository_find(const struct repository *r, const char *name);

/* ---- select.c: which files are needed ---- */

struct selection {
    const char *include[INCLUDES_MAX]; /* shell patterns over the whole name; then these and no others */
    int includes;
    bool all;   /* every file */
    bool plain; /* fp32 weights where both are there */
};
/* What has to be beside a model before the daemon can serve it, or check its pictures. */
struct companion {
    const char *id, *include[12], *why;
    bool required; /* the model does not start without it */
};

/* Marks the files of R that latentd reads. INDEX: the parsed model_index.json, NULL where there is none. ID:
 * as the user wrote it, which may name a number of steps (ByteDance/SDXL-Lightning-4step). ERR_UNSUPPORTED:
 * weights that are there as pickles only; ERR_INVALID: the user has to choose. */
int select_files(struct repository *r, const char *id, const struct cJSON *index, const struct selection *s,
                 struct error *err);
/* The repository that ID means: ByteDance/SDXL-Lightning for its pseudo names, else ID. */
const char *select_repository(const char *id);
/* Writes up to MAX companions of the model; returns how many. */
int select_companions(const struct repository *r, const struct cJSON *index, struct companion *out, int max);

/* ---- cache.c: the hub cache on disk ---- */

/* ROOT/models--org--name/{blobs/<digest>, snapshots/<commit>/…, refs/<revision>} and
 * ROOT/.locks/models--org--name/<digest>.lock: the layout and the locks of huggingface_hub. */
struct cache {
    char root[PATH_MAX], folder[PATH_MAX], locks[PATH_MAX];
};

/* Only the paths; nothing is written. */
int cache_open(struct cache *c, const char *root, const char *id, struct error *err);
/* Makes the folders. */
int cache_prepare(const struct cache *c, struct error *err);
/* The blob is there, whole: it only gets its name once it has been checked. */
bool cache_has(const struct cache *c, const struct file *f);
/* The lock of blob NAME into *FD, or -1 there when another process holds it. Closing releases it. */
int cache_lock(const struct cache *c, const char *name, int *fd, struct error *err);
/* Opens <digest>.incomplete for reading and appending. */
int cache_part_open(const struct cache *c, const struct file *f, int *fd, int64_t *have, struct error *err);
/* Gives the part its final name, after its bytes are on disk. */
int cache_part_finish(const struct cache *c, const struct file *f, int fd, struct error *err);
/* Bytes that are still to come, and whether the disk has room for them. */
int cache_check_space(const struct cache *c, const struct repository *r, int64_t *missing, struct error *err);
/* Shows the wanted files in snapshots/<commit>, all of whose blobs are there, and the listed ones whose blobs
 * an earlier pull left; then sets refs/<revision>.
 * Writes the snapshot's folder into PATH[PATH_MAX]. */
int cache_publish(const struct cache *c, const struct repository *r, char *path, struct error *err);
/* "7.8 GB" into TEXT. */
const char *size_text(double bytes, char text[24]);

/* ---- digest.c ---- */

struct digest;

/* Ready to read a file whose digest is F's. A git blob's begins with its size, so that must be known. */
int digest_open(struct digest **d, const struct file *f, struct error *err);
int digest_restart(struct digest *d, struct error *err);
int digest_add(struct digest *d, const void *data, size_t len, struct error *err);
/* The hex digits of what was added. */
int digest_finish(struct digest *d, char hex[DIGEST_MAX], struct error *err);
void digest_close(struct digest **d);
/* TEXT is 40 or 64 hex digits. */
bool digest_is(const char *text);

/* ---- progress.c: a bar on a terminal, lines elsewhere, on stderr ---- */

struct progress {
    bool quiet, bar;
    int64_t total, had, got; /* bytes: of all files, of earlier pulls, of this one */
    double start, shown, rate, rated;
    int64_t rated_got;
    int running, files, files_done;
    char name[128]; /* of a file that is being fetched */
};

void progress_open(struct progress *p, int64_t total, int files, bool quiet);
/* Draws when it is time to. */
void progress_tick(struct progress *p, double now);
/* A line that stays. */
void progress_say(struct progress *p, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
void progress_close(struct progress *p);
double pull_clock(void);

/* ---- transfer.c ---- */

/* Brings every wanted file of R that C lacks, some at once; each is resumed, checked and renamed. The first
 * failure that waiting does not mend ends it; what has come stays for the next time. */
int transfer_files(const struct hub *h, const struct cache *c, struct repository *r, struct progress *p,
                   struct error *err);

#endif
