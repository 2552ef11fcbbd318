/* WebP files -> RGB through libwebp: lossy, lossless, with alpha (dropped), and the first frame of an
 * animation on its canvas, black around it. Refuses files that end too early, as Pillow does: here damage
 * reaches over the whole picture. */
#include <stdlib.h>
#include <string.h>

#include <webp/decode.h>
#include <webp/demux.h>

#include "formats.h"

static bool recognise(struct bytes file)
{
    return file.len >= 16 && memcmp(file.at, "RIFF", 4) == 0 && memcmp(file.at + 8, "WEBPVP8", 7) == 0;
}

static int size(struct bytes file, int64_t *width, int64_t *height, struct error *err)
{
    WebPBitstreamFeatures f;
    if (WebPGetFeatures(file.at, file.len, &f) != VP8_STATUS_OK)
        return error_set(err, ERR_FORMAT, "the header of the WebP file is damaged");
    *width = f.width;
    *height = f.height;
    return 0;
}

/* libwebp 1.2.4, Debian 12's, crashes where a small allocation of its lossless decoder fails. So it is not
 * started unless there is room for all that it will ask for: the pixels as ARGB, and its tables. (Volatile,
 * or the compiler leaves the test out.) */
static bool enough_memory(const struct image *im)
{
    void *volatile room = malloc((size_t)im->width * (size_t)im->height * 4 + ((size_t)8 << 20));
    bool enough = room != NULL;
    free(room);
    return enough;
}

/* FRAME lies inside IM: the container was checked. */
static int decode_frame(const WebPIterator *frame, struct image *im, struct error *err)
{
    WebPDecoderConfig config;
    size_t stride = (size_t)im->width * 3;
    uint8_t *to = row_of(im, frame->y_offset) + 3 * frame->x_offset;
    if (!enough_memory(im))
        return error_set(err, ERR_NOMEM, "no memory to decode a WebP file of %d x %d", im->width, im->height);
    if (!WebPInitDecoderConfig(&config))
        return error_set(err, ERR_INTERNAL, "libwebp is not the version that latentd was built with");
    config.output.colorspace = MODE_RGB;
    config.output.is_external_memory = 1;
    config.output.u.RGBA.rgba = to;
    config.output.u.RGBA.stride = (int)stride;
    config.output.u.RGBA.size = (size_t)im->height * stride - (size_t)(to - im->rgb);
    VP8StatusCode status = WebPDecode(frame->fragment.bytes, frame->fragment.size, &config);
    WebPFreeDecBuffer(&config.output);
    if (status == VP8_STATUS_OUT_OF_MEMORY)
        return error_set(err, ERR_NOMEM, "no memory to decode a WebP file of %d x %d", im->width, im->height);
    if (status != VP8_STATUS_OK)
        return error_set(err, ERR_FORMAT, "the WebP file cannot be decoded: its data are damaged");
    return 0;
}

static int decode(struct bytes file, struct image *im, struct error *err)
{
    WebPData data = {file.at, file.len};
    WebPIterator frame = {0};
    WebPDemuxer *demux = WebPDemux(&data);
    int rc = 0;
    if (!demux || !WebPDemuxGetFrame(demux, 1, &frame))
        rc = error_set(err, ERR_FORMAT, "the WebP file is damaged, or ends too early");
    else if (frame.width < 1 || frame.height < 1 || frame.x_offset + frame.width > im->width ||
             frame.y_offset + frame.height > im->height)
        rc = error_set(err, ERR_FORMAT, "the first frame of the WebP file lies outside its canvas");
    else
        rc = decode_frame(&frame, im, err);
    WebPDemuxReleaseIterator(&frame);
    WebPDemuxDelete(demux);
    return rc;
}

const struct picture_format format_webp = {"WebP", recognise, size, decode};
