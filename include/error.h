/* Errors travel down one road: every function that can fail returns 0 or a negative code and puts words for a
 * person into the caller's struct error. Nothing below main() exits. */
#ifndef LATENTD_ERROR_H
#define LATENTD_ERROR_H

#include <stdbool.h>

enum {
    ERR_INVALID = -1,     /* the caller asked for something that cannot be had (HTTP 400) */
    ERR_NOMEM = -2,       /* does not fit in memory (HTTP 500 with the contract's words) */
    ERR_IO = -3,          /* a read, write or system call failed */
    ERR_FORMAT = -4,      /* a file is not what it should be */
    ERR_NOT_FOUND = -5,   /* a file, tensor or name is missing */
    ERR_CANCELLED = -6,   /* the client left, or the daemon is stopping */
    ERR_UNSUPPORTED = -7, /* known, and refused by name */
    ERR_DEVICE = -8,      /* the device failed for good; the process should end */
    ERR_INTERNAL = -9,    /* a bug in latentd */
    ERR_LORA = -10        /* a LoRA of the request cannot be had; the words are the client's (HTTP 400) */
};

struct error {
    int code;       /* 0: no error yet */
    char msg[1000]; /* one sentence, no newline, no final full stop */
};

/* Records CODE and the formatted sentence, unless ERR already holds an error: the first one is the cause.
 * ERR may be NULL. Returns CODE, so that `return error_set(err, ERR_IO, "...")` is the habit. */
int error_set(struct error *err, int code, const char *fmt, ...) __attribute__((format(printf, 3, 4)));

/* Puts "CONTEXT: " before the words that are already there. Returns the code that ERR holds. */
int error_prefix(struct error *err, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

#endif
