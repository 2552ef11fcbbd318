/* See frames.h. A frame goes from the decoder through libpng, base64 and the pipe to the socket in pieces of
 * some kilobytes, and into the MP4; so a long reply takes no more memory than a short one. */
#include "frames.h"

#include <string.h>

#include "log.h"
#include "stream_url.h"

static int emit(struct frames *f, const char *data, size_t len, struct error *err)
{
    if (f->pipe)
        return pipe_write(f->pipe, data, len, f->watch, err);
    return buffer_add(f->body, data, len) ? error_set(err, ERR_NOMEM, "no memory for the reply") : 0;
}

/* Sends what lies in f->text. */
static int emit_text(struct frames *f, struct error *err)
{
    int rc = f->text.failed ? error_set(err, ERR_NOMEM, "no memory for the reply")
                            : emit(f, f->text.data, f->text.len, err);

    f->text.len = 0;
    return rc;
}

/* ---- One frame as a data URL ---- */

static int emit_piece(struct frames *f, struct error *err)
{
    buffer_base64(&f->text, f->piece, f->piece_len);
    f->piece_len = 0;
    return emit_text(f, err);
}

/* Pieces but the last have a multiple of three bytes, so that their base64 joins. */
static int take_png(void *ctx, const void *data, size_t len, struct error *err)
{
    struct frames *f = ctx;
    const unsigned char *at = data;
    int rc = 0;

    while (rc == 0 && len) {
        size_t room = sizeof(f->piece) - f->piece_len, n = len < room ? len : room;
        memcpy(f->piece + f->piece_len, at, n);
        f->piece_len += n;
        at += n;
        len -= n;
        if (f->piece_len == sizeof(f->piece))
            rc = emit_piece(f, err);
    }
    return rc;
}

static int put_data(struct frames *f, const struct image *frame, struct error *err)
{
    struct png_sink sink = {take_png, f};
    int rc;

    buffer_puts(&f->text, "data:image/png;base64,");
    rc = png_write(frame, &sink, err);
    return rc ? rc : emit_piece(f, err);
}

/* ---- …and as the URL of a kept picture ---- */

static int put_url(struct frames *f, const struct image *frame, struct error *err)
{
    struct buffer png = {0};
    char url[STREAM_URL_MAX];
    int rc = png_encode(frame, &png, err);

    if (rc == 0)
        rc = stream_url(f->service, f->reply, "image/png", &png, url, err);
    if (rc == 0)
        buffer_puts(&f->text, url);
    buffer_free(&png);
    return rc;
}

static int put_frame(struct frames *f, int index, const struct image *frame, struct error *err)
{
    int rc;

    buffer_puts(&f->text, index ? ",{\"url\":\"" : "{\"frames\":[[{\"url\":\"");
    rc = f->form == FRAMES_DATA ? put_data(f, frame, err) : put_url(f, frame, err);
    if (rc)
        return rc;
    buffer_printf(&f->text, "\",\"seed\":%s,\"nsfw\":%s}", f->seed, frame->nsfw ? "true" : "false");
    return emit_text(f, err);
}

/* ---- The video ---- */

static void give_up_video(struct frames *f)
{
    mp4_close(&f->mp4);
    log_warning("no video beside the frames: %s", f->no_video.msg);
}

static void add_to_video(struct frames *f, const struct image *frame)
{
    if (f->no_video.code)
        return;
    if (!f->mp4 && mp4_open(&f->mp4, frame->width, frame->height, f->fps, &f->no_video))
        give_up_video(f);
    else if (mp4_frame(f->mp4, frame, &f->no_video))
        give_up_video(f);
}

/* "video":{"url":…}, or why there is none. */
static void put_video(struct frames *f)
{
    struct buffer mp4 = {0};
    char url[STREAM_URL_MAX];

    if (!f->no_video.code && (mp4_finish(f->mp4, &mp4, &f->no_video) ||
                              stream_url(f->service, f->reply, "video/mp4", &mp4, url, &f->no_video)))
        give_up_video(f);
    buffer_free(&mp4);
    buffer_puts(&f->text, "]],\"video\":{");
    if (f->no_video.code) {
        buffer_puts(&f->text, "\"error\":");
        buffer_json_string(&f->text, f->no_video.msg, strlen(f->no_video.msg));
    } else {
        buffer_printf(&f->text, "\"url\":\"%s\"", url);
    }
    buffer_puts(&f->text, "}}");
}

/* ---- The reply ---- */

int frames_add(void *ctx, int index, int count, const struct image *frame, struct error *err)
{
    struct frames *f = ctx;

    (void)count;
    f->watch->entered(f->watch->ctx, PHASE_ENCODE, 0, 0);
    f->images++;
    f->pixels += (uint64_t)frame->width * (uint64_t)frame->height;
    f->width = frame->width;
    f->height = frame->height;
    add_to_video(f, frame);
    if (f->form != FRAMES_MP4)
        return put_frame(f, index, frame, err);
    return f->no_video.code ? error_set(err, f->no_video.code, "%s", f->no_video.msg) : 0;
}

int frames_finish(struct frames *f, struct error *err)
{
    if (!f->images)
        return error_set(err, ERR_INTERNAL, "the model made no frames");
    if (f->form == FRAMES_MP4)
        return mp4_finish(f->mp4, f->body, err);
    put_video(f);
    return emit_text(f, err);
}

void frames_free(struct frames *f)
{
    mp4_close(&f->mp4);
    buffer_free(&f->text);
}
