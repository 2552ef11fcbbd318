/* The order of the boxes in an MP4 file. */
#ifndef LATENTD_MEDIA_MP4_BOXES_H
#define LATENTD_MEDIA_MP4_BOXES_H

#include "buffer.h"

/* Moves the moov box of FILE, a whole MP4, before its mdat, and corrects the chunk offsets in it, so that
 * playing can begin before the last byte is there (FFmpeg calls it faststart). ERR_FORMAT: not such a file,
 * which would be a bug; ERR_NOMEM. */
int mp4_moov_first(struct buffer *file, struct error *err);

#endif
