/* latentd generate --image FILE -o FRAMES or -o FILE.mp4: the same path as POST /image-to-video, without
 * HTTP. */
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "generate.h"
#include "video.h"

struct writer {
    const char *out;
    bool folder, video; /* neither: a name with a number in it */
    struct mp4 *mp4;
    int fps;
    int width, height, frames;
    bool nsfw;
};

/* The place of the frame's number in NAME, "%d" or "%02d" and the like, its only %; its length goes to
 * *LENGTH and its digits to *DIGITS. NULL: there is none. */
static const char *number_in(const char *name, int *length, int *digits)
{
    const char *at = strchr(name, '%');
    *length = 0;
    *digits = 1;
    if (!at || strchr(at + 1, '%'))
        return NULL;
    return (sscanf(at, "%%d%n", length) == 0 && *length) ||
                   (sscanf(at, "%%0%1dd%n", digits, length) == 1 && *length)
               ? at
               : NULL;
}

static int frame_path(const struct writer *w, int index, char *path, size_t size, struct error *err)
{
    int length, digits, n;
    const char *number = number_in(w->out, &length, &digits);
    if (w->folder)
        n = snprintf(path, size, "%s/%d.png", w->out, index);
    else
        n = snprintf(path, size, "%.*s%0*d%s", (int)(number - w->out), w->out, digits, index,
                     number + length);
    return n < 0 || n >= (int)size ? error_set(err, ERR_INVALID, "the output path is too long") : 0;
}

static int write_png(const struct writer *w, int index, const struct image *frame, struct error *err)
{
    struct buffer png = {0};
    char path[4096];
    int rc = frame_path(w, index, path, sizeof path, err);
    if (!rc)
        rc = png_encode(frame, &png, err);
    if (!rc)
        rc = write_file(path, &png, err);
    buffer_free(&png);
    return rc;
}

static int encode_frame(struct writer *w, const struct image *frame, struct error *err)
{
    int rc = w->mp4 ? 0 : mp4_open(&w->mp4, frame->width, frame->height, w->fps, err);
    return rc ? rc : mp4_frame(w->mp4, frame, err);
}

static int write_video(struct writer *w, struct error *err)
{
    struct buffer file = {0};
    int rc = mp4_finish(w->mp4, &file, err);
    if (!rc)
        rc = write_file(w->out, &file, err);
    buffer_free(&file);
    return rc;
}

static int write_frame(void *ctx, int index, int count, const struct image *frame, struct error *err)
{
    struct writer *w = ctx;
    int rc = w->video ? encode_frame(w, frame, err) : write_png(w, index, frame, err);
    w->width = frame->width;
    w->height = frame->height;
    w->frames = index + 1;
    w->nsfw = frame->nsfw;
    if (isatty(STDERR_FILENO))
        fprintf(stderr, "\rframe %d/%d written                              ", index + 1, count);
    return rc;
}

static bool ends_with(const char *text, const char *end)
{
    size_t a = strlen(text), b = strlen(end);
    return a >= b && strcmp(text + a - b, end) == 0;
}

/* Whether OUT can take frames, which is known before the first of them. */
static int open_writer(struct writer *w, const char *out, int64_t fps, struct error *err)
{
    struct stat st;
    int length, digits;
    *w = (struct writer){.out = out, .folder = stat(out, &st) == 0 && S_ISDIR(st.st_mode), .fps = (int)fps};
    w->video = !w->folder && ends_with(out, ".mp4");
    if (w->video && !mp4_encoder())
        return error_set(err, ERR_UNSUPPORTED,
                         "there is no H.264 encoder here, only frames: -o frame-%%02d.png");
    if (!w->folder && !w->video && !number_in(out, &length, &digits))
        return error_set(err, ERR_INVALID,
                         "%s is neither a folder nor an .mp4 nor a name with a number in it, such as "
                         "frame-%%02d.png",
                         out);
    return w->video ? mp4_admit_fps(fps, err) : 0;
}

int generate_video(struct session *s, const struct video_options *o)
{
    struct writer w;
    struct image input = {0};
    struct watcher watch = {.entered = show_progress};
    struct frame_sink sink = {.frame = write_frame, .ctx = &w};
    struct image_to_video_params q = {.image = &input,
                                      .width = o->width,
                                      .height = o->height,
                                      .fps = o->fps,
                                      .motion_bucket_id = o->motion,
                                      .noise_aug_strength = o->noise,
                                      .steps = o->steps,
                                      .seed = o->seed,
                                      .safety_check = true};
    double start = clock_seconds();
    int rc = open_writer(&w, o->out, o->fps, &s->err);
    if (!rc && !(rc = read_image(o->image, &input, &s->err)))
        rc = image_to_video(s->model, &q, &watch, &sink, &s->err);
    if (!rc && w.video)
        rc = write_video(&w, &s->err);
    mp4_close(&w.mp4);
    if (isatty(STDERR_FILENO))
        fputc('\n', stderr);
    image_free(&input);
    if (rc) {
        fprintf(stderr, "latentd: %s\n", s->err.msg);
        return 1;
    }
    fprintf(status_stream(o->out), "%s: %d frames of %d x %d, seed %lld%s, %.2f s (and %.2f s to load)\n",
            o->out, w.frames, w.width, w.height, (long long)o->seed, w.nsfw ? ", nsfw" : "",
            clock_seconds() - start, s->load_seconds);
    return 0;
}
