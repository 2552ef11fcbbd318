/* Between runtime.cc, which knows launches and graphs, and fibers.cc, which runs them. */
#ifndef LATENTD_EMULATOR_LAUNCH_H
#define LATENTD_EMULATOR_LAUNCH_H

enum { EMULATOR_SHARED_MAX = 227 << 10 };

struct emulator_launch {
    const void *kernel;
    void (*call)(const void *kernel, const void *args);
    unsigned grid[3], threads, shared;
    const void *args;
};

void emulator_run(const emulator_launch *l);

#endif
