/* A hub on loopback that breaks on request: threads of the test program, plain sockets. */
#ifndef LATENTD_TESTS_PULL_FAKE_HUB_H
#define LATENTD_TESTS_PULL_FAKE_HUB_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { HUB_FILES = 64 };
#define HUB_COMMIT "0123456789abcdef0123456789abcdef01234567"

struct hub_file {
    char name[128], digest[65];
    const unsigned char *data;
    int64_t size;
    bool lfs; /* listed with SHA-256, else with git's SHA-1 */
};

/* What the next requests meet. Counters go down as they are used up. */
struct hub_scene {
    struct hub_file files[HUB_FILES];
    int count;
    const char *commit;          /* what every revision is now; NULL: HUB_COMMIT */
    const char *prefix;          /* of all paths, "" or "/hub" */
    const char *raw_name;        /* one more name in the list, as JSON */
    bool no_blobs;               /* the list has names only, as of older mirrors */
    bool no_ranges;              /* every answer is the whole file */
    int list_error, list_errors; /* status of the list, how many times */
    int file_error, file_errors; /* the same of files */
    const char *error_headers;   /* of these answers, each line with its end */
    int64_t size_off;            /* added to the size that the list says */
    int corrupt;                 /* bodies with a byte changed */
    int64_t cut_at;              /* bodies end after as many bytes; 0: whole */
    int cuts;
    int64_t hold_at; /* bodies stop there until hold is cleared; 0: never */
    bool redirect;   /* large files come from http://localhost instead of 127.0.0.1 */
    /* seen */
    int lists, heads, bodies, ranges, tokens_at_hub, tokens_at_storage, held;
    int holding; /* bodies that stand still now */
    int64_t sent;
};

extern struct hub_scene hub;

/* Starts serving; returns the port. */
int hub_start(void);
/* Waits until no connection is open: what a killed client left behind is over. False after a minute. */
bool hub_quiet(void);
/* Forgets the scene. Waits until no connection is open. */
void hub_reset(void);
/* Adds a file; DATA must stay. */
void hub_add(const char *name, const void *data, size_t size, bool lfs);
/* The same with SIZE bytes that look like noise. */
void hub_add_noise(const char *name, size_t size);

#endif
