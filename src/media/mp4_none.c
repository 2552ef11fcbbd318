/* Stands in for mp4.c where latentd is built without FFmpeg (make FFMPEG=0, or its libraries were not found).
 * See video.h. */
#include "video.h"

const char *mp4_encoder(void)
{
    return NULL;
}

int mp4_open(struct mp4 **m, int width, int height, int fps, struct error *err)
{
    (void)width;
    (void)height;
    (void)fps;
    *m = NULL;
    return error_set(err, ERR_UNSUPPORTED, "no H.264 encoder: latentd was built without FFmpeg");
}

int mp4_frame(struct mp4 *m, const struct image *frame, struct error *err)
{
    (void)m;
    (void)frame;
    return error_set(err, ERR_UNSUPPORTED, "no H.264 encoder");
}

int mp4_finish(struct mp4 *m, struct buffer *out, struct error *err)
{
    (void)m;
    (void)out;
    return error_set(err, ERR_UNSUPPORTED, "no H.264 encoder");
}

void mp4_close(struct mp4 **m)
{
    *m = NULL;
}
