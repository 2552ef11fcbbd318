/* latentd generate PROMPT -o FILE: the same path as POST /text-to-image, without HTTP; with --image FILE as
 * POST /image-to-image, or with PIPELINE=upscale as POST /upscale; without PROMPT as POST /image-to-video. */
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "commands.h"
#include "generate.h"

static const char usage[] =
    "usage: latentd generate PROMPT -o FILE.png [options]\n"
    "       latentd generate --image FILE -o VIDEO.mp4 [options]  (or -o FRAME-%02d.png, -o FOLDER)\n"
    "  --seed N            same seed, same picture (default: random)\n"
    "  --steps N           denoising steps (default: 50; video: 25; upscale: 75; instruct-pix2pix: 100;\n"
    "                      SDXL-Lightning: always what its name says)\n"
    "  --guidance G        classifier-free guidance (default: 7.5; upscale: 9)\n"
    "  --negative TEXT     what the picture should not show\n"
    "  --width W --height H  in pixels (default: as POST /text-to-image)\n"
    "  --image FILE        start from this picture; the size is its own\n"
    "                      with PIPELINE=upscale: enlarge it four times\n"
    "  --strength S        how far from it, 0 to 1 (default: 0.8)\n"
    "  --image_guidance G  instruct-pix2pix: how close to it (default: 1.5)\n"
    "  --fps N             video: its speed, which the model is told (default: 6)\n"
    "  --motion N          video: motion_bucket_id, more moves more (default: 127)\n"
    "  --noise S           video: noise on the picture (default: 0.02)\n"
    "  --model_id ID       default: MODEL_ID, else latentd/emoji\n"
    "  --isa TIER          highest CPU tier\n"
    "  --precision P       int8, bf16 or fp32 (default: LATENTD_PRECISION)\n";

struct options {
    const char *prompt, *negative, *out, *image, *model_id, *isa, *precision;
    long seed, steps, width, height, fps, motion;
    bool seeded, upscale;
    double guidance, strength, image_guidance, noise;
};

static bool take_option(struct options *o, int argc, char **argv, int *i)
{
    const char *a = argv[*i], *v;
    if (*a != '-' && !o->prompt) {
        o->prompt = a;
        return true;
    }
    static const char *const known[] = {
        "-o",         "--output",   "--seed",     "--steps", "--guidance", "--width",          "--height",
        "--negative", "--model_id", "--isa",      "--image", "--strength", "--image_guidance", "--fps",
        "--motion",   "--noise",    "--precision"};
    size_t k = 0;
    while (k < sizeof known / sizeof *known && strcmp(a, known[k]) != 0)
        k++;
    if (k == sizeof known / sizeof *known) {
        fprintf(stderr, "latentd generate: %s is unknown\n%s", a, usage);
        return false;
    }
    if (!(v = flag_value(argc, argv, i)))
        return false;
    switch (k) {
    case 2:
        o->seeded = true;
        return flag_int(a, v, -(1L << 62), 1L << 62, &o->seed);
    case 3:
        return flag_int(a, v, 0, 1000, &o->steps);
    case 4:
        return flag_number(a, v, &o->guidance);
    case 5:
        return flag_int(a, v, 1, 16384, &o->width);
    case 6:
        return flag_int(a, v, 1, 16384, &o->height);
    case 7:
        o->negative = v;
        return true;
    case 8:
        o->model_id = v;
        return true;
    case 9:
        o->isa = v;
        return true;
    case 10:
        o->image = v;
        return true;
    case 11:
        return flag_number(a, v, &o->strength);
    case 12:
        return flag_number(a, v, &o->image_guidance);
    case 13:
        return flag_int(a, v, -1000000, 1000000, &o->fps);
    case 14:
        return flag_int(a, v, 0, 1000000, &o->motion);
    case 15:
        return flag_number(a, v, &o->noise);
    case 16:
        o->precision = v;
        return true;
    default:
        o->out = v;
        return true;
    }
}

/* Phase, bar, k of n. */
void show_progress(void *ctx, enum phase phase, int step, int steps)
{
    (void)ctx;
    if (!isatty(STDERR_FILENO))
        return;
    int width = 30, done = phase == PHASE_STEP ? (step - 1) * width / steps : phase > PHASE_STEP ? width : 0;
    fprintf(stderr, "\r%-8s [", phase_names[phase]);
    for (int i = 0; i < width; i++)
        fputc(i < done ? '#' : '.', stderr);
    if (phase == PHASE_STEP)
        fprintf(stderr, "] %d/%d ", step, steps);
    else
        fputs("]        ", stderr);
    fflush(stderr);
}

/* Writes and closes F. Returns 0 or an errno. */
static int write_and_close(FILE *f, const struct buffer *png, bool sync)
{
    int why = 0;
    errno = 0;
    if (fwrite(png->data, 1, png->len, f) != png->len || fflush(f) != 0 || (sync && fsync(fileno(f)) != 0))
        why = errno ? errno : EIO;
    if (fclose(f) != 0 && !why)
        why = errno ? errno : EIO;
    return why;
}

/* Whether ST is the file that stdout is: "/dev/stdout" wherever that leads. */
static bool is_stdout(const struct stat *st)
{
    struct stat out;
    return fstat(STDOUT_FILENO, &out) == 0 && out.st_dev == st->st_dev && out.st_ino == st->st_ino;
}

FILE *status_stream(const char *out)
{
    struct stat st;
    return stat(out, &st) == 0 && is_stdout(&st) ? stderr : stdout;
}

int write_file(const char *path, const struct buffer *png, struct error *err)
{
    char tmp[4096];
    struct stat st;
    bool there = stat(path, &st) == 0, to_stdout = there && is_stdout(&st);
    bool direct = to_stdout || (there && !S_ISREG(st.st_mode));
    int n = snprintf(tmp, sizeof tmp, "%s%s", path, direct ? "" : ".part");
    if (n < 0 || n >= (int)sizeof tmp)
        return error_set(err, ERR_INVALID, "the output path is too long");
    /* stdout is not opened again: a file that it leads to keeps what it holds, and a socket could not be */
    FILE *f = to_stdout ? fdopen(dup(STDOUT_FILENO), "wb") : fopen(tmp, "wb");
    int why = f ? write_and_close(f, png, !direct) : errno;
    if (!why && !direct && rename(tmp, path) != 0)
        why = errno;
    if (!why)
        return 0;
    if (f && !direct)
        unlink(tmp);
    return error_set(err, ERR_IO, "%s cannot be written: %s", path, strerror(why));
}

/* All of F, which may be a pipe; its size is known at its end. */
static int read_all(FILE *f, const char *path, struct buffer *out, struct error *err)
{
    enum { FILE_MAX = 256 << 20, PIECE = 64 << 10 };
    char piece[PIECE];
    size_t n;
    errno = 0;
    while ((n = fread(piece, 1, PIECE, f)) > 0) {
        if (out->len + n > FILE_MAX)
            return error_set(err, ERR_IO, "%s cannot be read: it is larger than 256 MiB", path);
        if (buffer_add(out, piece, n))
            return error_set(err, ERR_NOMEM, "no memory for %s", path);
    }
    return ferror(f) ? error_set(err, ERR_IO, "%s cannot be read: %s", path, strerror(errno ? errno : EIO))
                     : 0;
}

int read_image(const char *path, struct image *im, struct error *err)
{
    struct buffer bytes = {0};
    FILE *f = fopen(path, "rb");
    if (!f)
        return error_set(err, ERR_IO, "%s cannot be read: %s", path, strerror(errno));
    int rc = read_all(f, path, &bytes, err);
    if (!rc && (rc = image_decode(bytes.data, bytes.len, im, err)))
        error_prefix(err, "%s", path);
    buffer_free(&bytes);
    fclose(f);
    return rc;
}

static int from_text(struct session *s, const struct options *o, int64_t seed, struct image *out)
{
    static const struct watcher watch = {.entered = show_progress};
    struct text_to_image_params q = {.prompt = o->prompt,
                                     .negative_prompt = o->negative,
                                     .guidance_scale = o->guidance,
                                     .steps = o->steps,
                                     .seed = seed,
                                     .safety_check = true};
    model_default_size(s->model, &q.width, &q.height);
    q.width = o->width ? (int)o->width : q.width;
    q.height = o->height ? (int)o->height : q.height;
    text_to_image_rules(s->model, &q);
    return text_to_image(s->model, &q, &watch, out, &s->err);
}

static int from_image(struct session *s, const struct options *o, int64_t seed, struct image *out)
{
    static const struct watcher watch = {.entered = show_progress};
    struct image input = {0};
    struct image_to_image_params q = {.prompt = o->prompt,
                                      .negative_prompt = o->negative ? o->negative : "", /* as the endpoint */
                                      .image = &input,
                                      .strength = o->strength,
                                      .guidance_scale = o->guidance,
                                      .image_guidance_scale = o->image_guidance,
                                      .steps = o->steps,
                                      .seed = seed,
                                      .safety_check = true};
    image_to_image_rules(s->model, &q);
    int rc = read_image(o->image, &input, &s->err);
    if (!rc)
        rc = image_to_image(s->model, &q, &watch, out, &s->err);
    image_free(&input);
    return rc;
}

static int enlarge(struct session *s, const struct options *o, int64_t seed, struct image *out)
{
    static const struct watcher watch = {.entered = show_progress};
    struct image input = {0};
    struct upscale_params q = {.prompt = o->prompt,
                               .negative_prompt = o->negative,
                               .image = &input,
                               .guidance_scale = o->guidance,
                               .steps = o->steps,
                               .seed = seed,
                               .safety_check = true};
    int rc = read_image(o->image, &input, &s->err);
    if (!rc)
        rc = upscale(s->model, &q, &watch, out, &s->err);
    image_free(&input);
    return rc;
}

static int64_t seed_of(const struct options *o)
{
    return o->seeded ? o->seed : (long)(clock_seconds() * 1e6) % 4294967296L;
}

static int make_picture(struct session *s, const struct options *o, int64_t seed, struct image *out)
{
    if (!o->image)
        return from_text(s, o, seed, out);
    return o->upscale ? enlarge(s, o, seed, out) : from_image(s, o, seed, out);
}

static int generate(struct session *s, const struct options *o)
{
    int64_t seed = seed_of(o);
    struct image im = {0};
    struct buffer png = {0};
    double start = clock_seconds();
    int rc = make_picture(s, o, seed, &im);
    if (!rc)
        rc = png_encode(&im, &png, &s->err);
    if (isatty(STDERR_FILENO))
        fputc('\n', stderr);
    if (!rc)
        rc = write_file(o->out, &png, &s->err);
    if (!rc)
        fprintf(status_stream(o->out), "%s: %d x %d, seed %lld%s, %.2f s (and %.2f s to load)\n", o->out,
                im.width, im.height, (long long)seed, im.nsfw ? ", nsfw" : "", clock_seconds() - start,
                s->load_seconds);
    else
        fprintf(stderr, "latentd: %s\n", s->err.msg);
    image_free(&im);
    buffer_free(&png);
    return rc ? 1 : 0;
}

static int make_video(struct session *s, const struct options *o)
{
    struct video_options v = {.image = o->image,
                              .out = o->out,
                              .width = (int)o->width,
                              .height = (int)o->height,
                              .steps = o->steps,
                              .seed = seed_of(o),
                              .fps = o->fps,
                              .motion = o->motion,
                              .noise = o->noise};
    return generate_video(s, &v);
}

int command_generate(int argc, char **argv)
{
    struct options o = {
        .guidance = NAN, .strength = 0.8, .image_guidance = 1.5, .fps = 6, .motion = 127, .noise = 0.02};
    struct session s;
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--help") == 0 || strcmp(argv[i], "-h") == 0) {
            fputs(usage, stdout);
            return 0;
        }
        if (!take_option(&o, argc, argv, &i))
            return 2;
    }
    bool video = !o.prompt && o.image;
    if (!o.out || (!video && (!o.prompt || !*o.prompt))) {
        fputs(usage, stderr);
        return 2;
    }
    const char *pipeline = getenv("PIPELINE");
    o.upscale = o.prompt && o.image && pipeline && strcmp(pipeline, "upscale") == 0;
    if (isnan(o.guidance))
        o.guidance = o.upscale ? 9 : 7.5;
    int status = session_open(&s, o.model_id, o.isa, o.precision,
                              video       ? SESSION_IMAGE_TO_VIDEO
                              : o.upscale ? SESSION_UPSCALE
                              : o.image   ? SESSION_IMAGE_TO_IMAGE
                                          : SESSION_TEXT_TO_IMAGE);
    if (status)
        return status;
    status = video ? make_video(&s, &o) : generate(&s, &o);
    session_close(&s);
    return status;
}
