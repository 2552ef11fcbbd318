/* RGB frames -> H.264 in yuv420p -> MP4 in memory, moov before mdat. See video.h.
 *
 * libavcodec holds as little as it can: one thread, one reference frame, no B-frames, no lookahead, so every
 * frame leaves the encoder before the next one enters, and the same frames give the same bytes. The matrix is
 * BT.601 up to 576 lines and BT.709 above, written into the stream: a player that reads the tag and one that
 * guesses by the size both show the right colours. Primaries are BT.709's and the curve is sRGB's, which is
 * what the pixels are. */
#include <libavcodec/avcodec.h>
#include <libavformat/avformat.h>
#include <libavutil/opt.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "log.h"
#include "mp4_boxes.h"
#include "video.h"
#include "yuv.h"

enum { SIDE_MAX = 8192, SD_WIDTH = 1280, SD_HEIGHT = 576, IO_BYTES = 32 << 10 };

struct option {
    const char *name, *value;
};

enum { OPTIONS_MAX = 8 };

/* An encoder, and what makes it near-transparent and keeps its memory small. */
struct encoder {
    const char *name;
    struct option option[OPTIONS_MAX];
    double bits; /* of a pixel, where quality is set by the rate alone; 0: by the options */
    int qmin, qmax;
};

/* libx264 at a fixed quantizer: with a lookahead, adaptive quantizers or motion finer than a pixel it keeps
 * further planes of every frame. 25 frames of 1024 x 576 then raise the peak of the process by 19 MB, so by 8
 * to 10 MB, with the grain of generated pictures at a third of the bytes that crf 18 makes. */
static const struct encoder encoders[] = {
    {.name = "libx264",
     .option = {{"preset", "veryfast"},
                {"qp", "18"},
                {"x264-params",
                 "bframes=0:rc-lookahead=0:sync-lookahead=0:mbtree=0:aq-mode=0:ref=1:weightp=0:"
                 "scenecut=0:subme=0:mvrange=64:threads=1:sliced-threads=0"}}},
    {.name = "libopenh264", .option = {{"rc_mode", "quality"}}, .bits = 0.5, .qmin = 10, .qmax = 22},
    {.name = "h264_nvenc",
     .option = {{"preset", "p4"}, {"rc", "constqp"}, {"qp", "18"}, {"delay", "0"}, {"surfaces", "2"}}},
};

struct mp4 {
    const struct encoder *encoder;
    AVCodecContext *codec;
    AVFormatContext *format;
    AVStream *stream; /* of format */
    AVFrame *frame;
    AVPacket *packet;
    AVIOContext *io;
    struct yuv_matrix matrix;
    struct buffer file;
    size_t at;         /* where the muxer writes next */
    int width, height; /* of the frames that come; the codec's are even */
    int64_t frames;
    bool over; /* finished or failed */
};

/* ---- FFmpeg's words ---- */

static void log_ffmpeg(void *avcl, int level, const char *fmt, va_list ap)
{
    char text[500];

    if (level > AV_LOG_INFO)
        return;
    vsnprintf(text, sizeof(text), fmt, ap);
    text[strcspn(text, "\n")] = '\0';
    const AVClass *class = avcl ? *(AVClass **)avcl : NULL;
    const char *who = class && class->item_name ? class->item_name(avcl) : "ffmpeg";
    log_write(level <= AV_LOG_ERROR ? LOG_LEVEL_WARNING : LOG_LEVEL_DEBUG, "%s: %s", who, text);
}

/* Records what the FFmpeg function that returned RC says. */
static int set_error(struct error *err, int rc, const char *what)
{
    char text[AV_ERROR_MAX_STRING_SIZE] = "";

    if (rc == AVERROR(ENOMEM))
        return error_set(err, ERR_NOMEM, "no memory for the MP4 encoder");
    av_strerror(rc, text, sizeof(text));
    return error_set(err, ERR_INTERNAL, "%s: %s", what, text);
}

/* ---- The encoder ---- */

static AVCodecContext *codec_new(const struct encoder *e, int width, int height, int fps)
{
    const AVCodec *codec = avcodec_find_encoder_by_name(e->name);
    AVCodecContext *c = codec ? avcodec_alloc_context3(codec) : NULL;

    if (!c)
        return NULL;
    c->width = width;
    c->height = height;
    c->pix_fmt = AV_PIX_FMT_YUV420P;
    c->time_base = (AVRational){1, fps};
    c->framerate = (AVRational){fps, 1};
    c->sample_aspect_ratio = (AVRational){1, 1};
    c->gop_size = 2 * fps; /* a player may jump to any two seconds */
    c->max_b_frames = 0;
    c->refs = 1;
    c->thread_count = 1;
    c->color_range = AVCOL_RANGE_MPEG;
    c->colorspace = width < SD_WIDTH && height <= SD_HEIGHT ? AVCOL_SPC_SMPTE170M : AVCOL_SPC_BT709;
    c->color_primaries = AVCOL_PRI_BT709;
    c->color_trc = AVCOL_TRC_IEC61966_2_1;
    c->chroma_sample_location = AVCHROMA_LOC_LEFT;
    c->flags |= AV_CODEC_FLAG_GLOBAL_HEADER | AV_CODEC_FLAG_BITEXACT;
    if (e->bits > 0) {
        c->bit_rate = (int64_t)(e->bits * width * height * fps);
        c->qmin = e->qmin;
        c->qmax = e->qmax;
    }
    /* An option that another version of FFmpeg lacks is no reason to fail. */
    for (int i = 0; i < OPTIONS_MAX && e->option[i].name; i++)
        if (av_opt_set(c, e->option[i].name, e->option[i].value, AV_OPT_SEARCH_CHILDREN))
            log_debug("%s has no option %s", e->name, e->option[i].name);
    return c;
}

static bool opens(const struct encoder *e)
{
    AVCodecContext *c = codec_new(e, 256, 256, 25);
    bool open = c && avcodec_open2(c, NULL, NULL) == 0;

    avcodec_free_context(&c);
    return open;
}

/* What this machine has does not change while the process runs, and trying costs time. */
static pthread_once_t once = PTHREAD_ONCE_INIT;
static const struct encoder *chosen;

static void choose(void)
{
    const char *only = getenv("LATENTD_H264");

    av_log_set_callback(log_ffmpeg);
    if (only && (!*only || strcmp(only, "auto") == 0))
        only = NULL;
    for (size_t i = 0; i < sizeof(encoders) / sizeof(*encoders) && !chosen; i++)
        if ((!only || strcmp(only, encoders[i].name) == 0) && opens(&encoders[i]))
            chosen = &encoders[i];
}

const char *mp4_encoder(void)
{
    pthread_once(&once, choose);
    return chosen ? chosen->name : NULL;
}

/* ---- The file in memory ---- */

#if LIBAVFORMAT_VERSION_MAJOR >= 61
typedef const uint8_t *io_bytes;
#else
typedef uint8_t *io_bytes;
#endif

static int file_write(void *ctx, io_bytes data, int len)
{
    struct mp4 *m = ctx;
    size_t n = (size_t)len, over = m->at < m->file.len ? m->file.len - m->at : 0;

    if (over > n)
        over = n;
    if (over)
        memcpy(m->file.data + m->at, data, over);
    if (buffer_add(&m->file, data + over, n - over))
        return AVERROR(ENOMEM);
    m->at += n;
    return len;
}

static int64_t file_seek(void *ctx, int64_t offset, int whence)
{
    struct mp4 *m = ctx;
    int64_t size = (int64_t)m->file.len;

    if (whence == AVSEEK_SIZE)
        return size;
    offset += whence == SEEK_CUR ? (int64_t)m->at : whence == SEEK_END ? size : 0;
    if (offset < 0 || offset > size)
        return AVERROR(EINVAL);
    m->at = (size_t)offset;
    return offset;
}

static int open_io(struct mp4 *m, struct error *err)
{
    unsigned char *buffer = av_malloc(IO_BYTES);

    m->io = buffer ? avio_alloc_context(buffer, IO_BYTES, 1, m, NULL, file_write, file_seek) : NULL;
    if (m->io)
        return 0;
    av_free(buffer);
    return set_error(err, AVERROR(ENOMEM), "");
}

/* ---- Opening ---- */

static int open_codec(struct mp4 *m, int fps, struct error *err)
{
    bool sd;
    int rc;

    m->codec = codec_new(m->encoder, m->width & ~1, m->height & ~1, fps);
    if (!m->codec)
        return set_error(err, AVERROR(ENOMEM), "");
    rc = avcodec_open2(m->codec, NULL, NULL);
    if (rc == AVERROR(ENOMEM))
        return set_error(err, rc, "");
    if (rc < 0)
        return error_set(err, ERR_UNSUPPORTED, "%s takes no frames of %d x %d at %d a second",
                         m->encoder->name, m->width, m->height, fps);
    sd = m->codec->colorspace == AVCOL_SPC_SMPTE170M;
    yuv_matrix_init(&m->matrix, sd ? 0.299 : 0.2126, sd ? 0.114 : 0.0722);
    return 0;
}

static int open_frame(struct mp4 *m, struct error *err)
{
    const AVCodecContext *c = m->codec;

    m->packet = av_packet_alloc();
    m->frame = av_frame_alloc();
    if (!m->packet || !m->frame)
        return set_error(err, AVERROR(ENOMEM), "");
    m->frame->format = c->pix_fmt;
    m->frame->width = c->width;
    m->frame->height = c->height;
    m->frame->color_range = c->color_range;
    m->frame->colorspace = c->colorspace;
    m->frame->color_primaries = c->color_primaries;
    m->frame->color_trc = c->color_trc;
    m->frame->chroma_location = c->chroma_sample_location;
    int rc = av_frame_get_buffer(m->frame, 0);
    return rc < 0 ? set_error(err, rc, "MP4 frame") : 0;
}

static int open_format(struct mp4 *m, struct error *err)
{
    int rc = avformat_alloc_output_context2(&m->format, NULL, "mp4", NULL);

    if (rc < 0)
        return set_error(err, rc, "MP4 writer");
    m->format->pb = m->io;
    m->format->flags |= AVFMT_FLAG_BITEXACT | AVFMT_FLAG_CUSTOM_IO; /* no version, no time of day */
    m->stream = avformat_new_stream(m->format, NULL);
    if (!m->stream)
        return set_error(err, AVERROR(ENOMEM), "");
    m->stream->time_base = m->codec->time_base;
    m->stream->avg_frame_rate = m->codec->framerate;
    m->stream->sample_aspect_ratio = m->codec->sample_aspect_ratio;
    rc = avcodec_parameters_from_context(m->stream->codecpar, m->codec);
    if (rc >= 0)
        rc = avformat_write_header(m->format, NULL);
    return rc < 0 ? set_error(err, rc, "MP4 header") : 0;
}

int mp4_open(struct mp4 **out, int width, int height, int fps, struct error *err)
{
    *out = NULL;
    if (!mp4_encoder())
        return error_set(err, ERR_UNSUPPORTED, "no H.264 encoder here");
    if (fps < 1 || fps > MP4_FPS_MAX)
        return error_set(err, ERR_INVALID, "%d frames a second: accepted are 1 to %d", fps, MP4_FPS_MAX);
    if (width < 2 || height < 2 || width > SIDE_MAX || height > SIDE_MAX)
        return error_set(err, ERR_INVALID,
                         "frames of %d x %d cannot be a video: accepted are sides from 2 to %d", width,
                         height, SIDE_MAX);
    struct mp4 *m = calloc(1, sizeof(*m));
    if (!m)
        return set_error(err, AVERROR(ENOMEM), "");
    m->encoder = chosen;
    m->width = width;
    m->height = height;
    int rc = open_codec(m, fps, err);
    if (!rc)
        rc = open_frame(m, err);
    if (!rc)
        rc = open_io(m, err);
    if (!rc)
        rc = open_format(m, err);
    if (rc)
        mp4_close(&m);
    *out = m;
    return rc;
}

void mp4_close(struct mp4 **out)
{
    struct mp4 *m = *out;

    if (!m)
        return;
    avformat_free_context(m->format);
    if (m->io)
        av_freep(&m->io->buffer);
    avio_context_free(&m->io);
    av_packet_free(&m->packet);
    av_frame_free(&m->frame);
    avcodec_free_context(&m->codec);
    buffer_free(&m->file);
    free(m);
    *out = NULL;
}

/* ---- Frames ---- */

/* Moves every packet that is ready into the file. */
static int write_packets(struct mp4 *m, struct error *err)
{
    int rc;

    while ((rc = avcodec_receive_packet(m->codec, m->packet)) == 0) {
        m->packet->duration = 1;
        m->packet->stream_index = m->stream->index;
        av_packet_rescale_ts(m->packet, m->codec->time_base, m->stream->time_base);
        rc = av_write_frame(m->format, m->packet);
        av_packet_unref(m->packet);
        if (rc >= 0 && m->io->error < 0)
            rc = m->io->error;
        if (rc < 0)
            return set_error(err, rc, "MP4 writer");
    }
    return rc == AVERROR(EAGAIN) || rc == AVERROR_EOF ? 0 : set_error(err, rc, m->encoder->name);
}

static int encode(struct mp4 *m, const struct image *im, struct error *err)
{
    AVFrame *f = m->frame;
    int rc = av_frame_make_writable(f);

    if (rc < 0)
        return set_error(err, rc, "MP4 frame");
    yuv_from_rgb(&m->matrix, im, f->width, f->height, f->data, f->linesize);
    f->pts = m->frames++;
    rc = avcodec_send_frame(m->codec, f);
    return rc < 0 ? set_error(err, rc, m->encoder->name) : write_packets(m, err);
}

int mp4_frame(struct mp4 *m, const struct image *frame, struct error *err)
{
    if (m->over)
        return error_set(err, ERR_INTERNAL, "a frame behind the end of the MP4");
    if (!frame->rgb || frame->width != m->width || frame->height != m->height)
        return error_set(err, ERR_INVALID, "a frame of %d x %d in a video of %d x %d", frame->width,
                         frame->height, m->width, m->height);
    int rc = encode(m, frame, err);
    m->over = rc != 0;
    return rc;
}

static int flush(struct mp4 *m, struct error *err)
{
    int rc = avcodec_send_frame(m->codec, NULL);

    if (rc < 0)
        return set_error(err, rc, m->encoder->name);
    rc = write_packets(m, err);
    if (rc)
        return rc;
    rc = av_write_trailer(m->format);
    if (rc >= 0)
        avio_flush(m->io);
    if (rc >= 0 && m->io->error < 0)
        rc = m->io->error;
    return rc < 0 ? set_error(err, rc, "MP4 writer") : mp4_moov_first(&m->file, err);
}

int mp4_finish(struct mp4 *m, struct buffer *out, struct error *err)
{
    if (m->over || m->frames == 0)
        return error_set(err, ERR_INTERNAL, m->over ? "the MP4 has ended before" : "an MP4 without a frame");
    m->over = true;
    int rc = flush(m, err);
    if (rc)
        return rc;
    if (out->len == 0 && !out->failed) {
        buffer_free(out);
        *out = m->file;
        m->file = (struct buffer){0};
        return 0;
    }
    if (buffer_add(out, m->file.data, m->file.len))
        return error_set(err, ERR_NOMEM, "no memory for an MP4 of %zu bytes", m->file.len);
    return 0;
}
