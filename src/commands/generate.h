/* What the halves of `latentd generate` share. Private to src/commands. */
#ifndef LATENTD_COMMANDS_GENERATE_H
#define LATENTD_COMMANDS_GENERATE_H

#include <stdio.h>

#include "session.h"

struct video_options {
    const char *image,
        *out;          /* OUT: a folder, an .mp4, or a name with one %d or %02d for the number of the frame */
    int width, height; /* 0: the model's own */
    int64_t steps, seed, fps, motion;
    double noise;
};

/* Makes the frames of a video and writes each as PNG, or encodes it, as soon as it is there. Returns the exit
 * status. */
int generate_video(struct session *s, const struct video_options *o);

/* Writes PNG to PATH: a regular file through a file beside it, so that a full disk leaves no half picture
 * under the name; anything else (a pipe, and whatever stdout is) as it is. */
int write_file(const char *path, const struct buffer *png, struct error *err);
/* Where the line about what was made goes: stdout, or stderr when OUT is stdout. */
FILE *status_stream(const char *out);
/* The picture in the file PATH, which may be a pipe; of at most 256 MiB. */
int read_image(const char *path, struct image *im, struct error *err);
/* struct watcher's entered(): one line on stderr that is drawn again, only where that is a terminal. */
void show_progress(void *ctx, enum phase phase, int step, int steps);

#endif
