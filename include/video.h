/* Frames to MP4: H.264 in yuv420p, moov before mdat, through FFmpeg's libavcodec and libavformat. */
#ifndef LATENTD_VIDEO_H
#define LATENTD_VIDEO_H

#include "image.h"

enum { MP4_FPS_MAX = 1000 };

struct mp4;

/* The encoder that mp4_open would use ("libx264", "libopenh264", "h264_nvenc"), or NULL when this machine has
 * none. Cheap: asked once at start-up for the log, and by every request. */
const char *mp4_encoder(void);
/* Whether a video can have FPS frames a second, for those who want to know before the first frame is there;
 * what is below 1 is the pipeline's to refuse. ERR_INVALID: it cannot. */
static inline int mp4_admit_fps(int64_t fps, struct error *err)
{
    return fps > MP4_FPS_MAX ? error_set(err, ERR_INVALID, "`fps` has to be at most %d in an MP4 but is %lld",
                                         MP4_FPS_MAX, (long long)fps)
                             : 0;
}
/* Frames of one size, WIDTH x HEIGHT (an odd side is cut by one pixel, as yuv420p needs), FPS of them a
 * second, 1 to MP4_FPS_MAX. ERR_UNSUPPORTED: no encoder here. */
int mp4_open(struct mp4 **m, int width, int height, int fps, struct error *err);
/* Appends a frame. Keeps at most a few frames in memory. */
int mp4_frame(struct mp4 *m, const struct image *frame, struct error *err);
/* Appends the whole file to OUT. No frame may follow. */
int mp4_finish(struct mp4 *m, struct buffer *out, struct error *err);
void mp4_close(struct mp4 **m); /* *M is NULL then */

#endif
