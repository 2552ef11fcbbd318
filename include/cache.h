/* The folder for what the next start can use again. */
#ifndef LATENTD_CACHE_H
#define LATENTD_CACHE_H

#include <stdbool.h>
#include <stddef.h>

/* LATENTD_CACHE, else XDG_CACHE_HOME/latentd, else HOME/.cache/latentd, into PATH. False: LATENTD_CACHE is
 * empty, nothing is to be kept, or there is no such variable, or PATH has no room. */
bool cache_folder(char *path, size_t size);
/* Makes FOLDER and those above it. False and errno: it cannot be had. */
bool cache_make_folder(const char *folder);

#endif
