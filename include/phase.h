/* The stations of one request, in order. Log, metrics, progress and cancellation all use these names. */
#ifndef LATENTD_PHASE_H
#define LATENTD_PHASE_H

#include <stdbool.h>

#define PHASES(X)                                                                                            \
    X(RECEIVED, "received")                                                                                  \
    X(VALIDATED, "validated")                                                                                \
    X(QUEUED, "queued")                                                                                      \
    X(STARTED, "started")                                                                                    \
    X(TEXT, "text")                                                                                          \
    X(STEP, "step")                                                                                          \
    X(DECODE, "decode")                                                                                      \
    X(ENCODE, "encode")                                                                                      \
    X(RESPONDED, "responded")

#define PHASE_ENUM(id, name) PHASE_##id,
enum phase { PHASES(PHASE_ENUM) PHASE_COUNT };
extern const char *const phase_names[PHASE_COUNT];

/* What a pipeline tells its caller, from the worker thread. Both may be NULL. */
struct watcher {
    void (*entered)(void *ctx, enum phase phase, int step,
                    int steps);   /* step of steps in PHASE_STEP; tile of tiles while a large picture is
                                     encoded (PHASE_TEXT) or decoded (PHASE_DECODE); else 0, 0 */
    bool (*cancelled)(void *ctx); /* asked before each phase and step */
    void *ctx;
};

#endif
