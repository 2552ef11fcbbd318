/* The reply of image-to-video, written while its frames come. */
#ifndef LATENTD_API_FRAMES_H
#define LATENTD_API_FRAMES_H

#include "api.h"
#include "image.h"
#include "pipe.h"
#include "video.h"

enum frames_form {
    FRAMES_DATA, /* {"frames":[[…]],"video":…} with data URLs, into a pipe */
    FRAMES_URL,  /* the same with URLs of kept pictures, into a buffer */
    FRAMES_MP4   /* the video itself, into a buffer */
};

/* Holds base64 of 3/4 as many bytes; no frame is ever encoded as a whole for a pipe. */
enum { FRAMES_PIECE = 24 << 10 };

struct frames {
    /* Set by the owner; the rest is zero at the start. */
    struct service *service;
    uint64_t reply; /* see stream_url() */
    const struct watcher *watch;
    enum frames_form form;
    struct pipe *pipe;   /* FRAMES_DATA */
    struct buffer *body; /* the other forms */
    char seed[44];       /* of every frame, in digits */
    int fps;
    /* What came so far. */
    int images, width, height;
    uint64_t pixels;
    /* Private. */
    struct mp4 *mp4;
    struct error no_video; /* why the frames are not in an MP4 */
    unsigned char piece[FRAMES_PIECE];
    size_t piece_len;
    struct buffer text;
};

/* frame_sink.frame with a struct frames as its context. A video that cannot be encoded is no error, unless it
 * is the reply. */
int frames_add(void *ctx, int index, int count, const struct image *frame, struct error *err);
/* Behind the last frame: ends the MP4 and the reply. */
int frames_finish(struct frames *f, struct error *err);
void frames_free(struct frames *f);

#endif
