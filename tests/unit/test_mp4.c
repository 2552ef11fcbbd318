/* MP4 files that ffprobe and ffmpeg read back: what they say they are, how many frames for how long, and how
 * near the pictures are to those that went in. The order of the boxes is read here. Needs ffmpeg. */
#include "test.h"

#include <sys/wait.h>
#include <unistd.h>

#include "video.h"

/* ---- Frames ---- */

static double wave(double x, double y, double t, double phase)
{
    return 127.5 + 100 * sin(x / 23 + phase + t / 4) * cos(y / 31 - phase + t / 7);
}

/* A smooth picture in all colours that moves with T. */
static void paint(struct image *im, int t)
{
    for (int y = 0; y < im->height; y++)
        for (int x = 0; x < im->width; x++)
            for (int c = 0; c < 3; c++)
                im->rgb[(y * im->width + x) * 3 + c] = (uint8_t)lrint(wave(x, y, t, 2.1 * c));
}

static struct image new_image(int width, int height)
{
    return (struct image){
        .width = width, .height = height, .rgb = malloc(3u * (size_t)width * (size_t)height)};
}

/* COUNT frames; all of one colour unless RGB is NULL. */
static int make(int width, int height, int fps, int count, const uint8_t *rgb, struct buffer *out)
{
    struct error err = {0};
    struct mp4 *m = NULL;
    struct image im = new_image(width, height);
    int rc = mp4_open(&m, width, height, fps, &err);

    for (int t = 0; t < count && rc == 0; t++) {
        paint(&im, t);
        for (int i = 0; rgb && i < 3 * width * height; i++)
            im.rgb[i] = rgb[i % 3];
        rc = mp4_frame(m, &im, &err);
    }
    if (rc == 0)
        rc = mp4_finish(m, out, &err);
    CHECK(rc == 0, "%s", err.msg);
    mp4_close(&m);
    CHECK(m == NULL);
    image_free(&im);
    return rc;
}

/* ---- Which encoder: first of all, in processes of their own, since a process chooses once ---- */

/* Whether LATENTD_H264=SETTING gives the encoder WANT (NULL: none, and mp4_open says so). */
static int gives(const char *setting, const char *want)
{
    int status = -1;
    pid_t pid = fork();
    if (pid == 0) {
        struct error err = {0};
        struct mp4 *m;
        setenv("LATENTD_H264", setting, 1);
        const char *name = mp4_encoder();
        int rc = mp4_open(&m, 64, 64, 7, &err);
        int right = want ? name && strcmp(name, want) == 0 && rc == 0
                         : !name && rc == ERR_UNSUPPORTED && strstr(err.msg, "no H.264 encoder");
        mp4_close(&m);
        _exit(!right);
    }
    return pid > 0 && waitpid(pid, &status, 0) == pid && status == 0;
}

TEST(the_encoder_can_be_chosen)
{
    CHECK(gives("none", NULL));
    CHECK(gives("libx265", NULL));
    CHECK(gives("", "libx264") && gives("auto", "libx264") && gives("libx264", "libx264"));
}

/* ---- Memory ---- */

static long kilobytes(const char *name)
{
    char line[200];
    long value = -1;
    FILE *f = fopen("/proc/self/status", "r");
    while (f && fgets(line, sizeof line, f))
        if (strncmp(line, name, strlen(name)) == 0)
            sscanf(line + strlen(name) + 1, "%ld", &value);
    if (f)
        fclose(f);
    return value;
}

/* Pictures that compress badly: a little noise in every pixel, as the models make it. */
static void grain(struct image *im, int t)
{
    unsigned state = (unsigned)t;
    paint(im, t);
    for (int i = 0; i < 3 * im->width * im->height; i++) {
        state = state * 1664525u + 1013904223u;
        im->rgb[i] = (uint8_t)(im->rgb[i] + (state >> 30));
    }
}

/* By how much 25 frames of 1024 x 576 raise the peak of the process, the MP4 that lies in memory at the end
 * included. */
static long growth(void)
{
    struct image im = new_image(1024, 576);
    struct buffer out = {0};
    struct error err = {0};
    struct mp4 *m = NULL;
    grain(&im, 0);
    mp4_encoder();
    long before = kilobytes("VmRSS");
    FILE *f = fopen("/proc/self/clear_refs", "w"); /* the peak is counted from here */
    if (f) {
        fputs("5", f);
        fclose(f);
    }
    int rc = mp4_open(&m, 1024, 576, 7, &err);
    for (int t = 0; t < 25 && rc == 0; t++) {
        grain(&im, t);
        rc = mp4_frame(m, &im, &err);
    }
    if (rc || mp4_finish(m, &out, &err))
        return -1;
    printf("25 frames of 1024 x 576: %zu bytes of MP4, peak %ld KiB above %ld KiB\n", out.len,
           kilobytes("VmHWM") - before, before);
    fflush(stdout);
    return kilobytes("VmHWM") - before;
}

/* Seven frames in 24 bits of RGB: the encoder's own frames, the MP4, and huge pages that come 2 MiB at once.
 */
TEST(memory_is_a_few_frames)
{
    int status = -1;
    pid_t pid = fork();
    if (pid == 0) {
        long more = growth();
#if defined(__SANITIZE_ADDRESS__)
        _exit(more < 0); /* memory there says nothing */
#else
        _exit(more < 0 || more > 7 * 1024 * 576 * 3 / 1024);
#endif
    }
    CHECK(pid > 0 && waitpid(pid, &status, 0) == pid && status == 0, "status %d", status);
}

/* ---- Files ---- */

static char folder[64], file_path[80], raw_path[80];

static int write_file(const struct buffer *b)
{
    if (!file_path[0]) {
        snprintf(folder, sizeof folder, "/tmp/latentd-mp4-XXXXXX");
        if (!CHECK(mkdtemp(folder) != NULL))
            return 0;
        snprintf(file_path, sizeof file_path, "%s/v.mp4", folder);
        snprintf(raw_path, sizeof raw_path, "%s/v.rgb", folder);
    }
    FILE *f = fopen(file_path, "wb");
    int ok = f && fwrite(b->data, 1, b->len, f) == b->len;
    if (f)
        ok = fclose(f) == 0 && ok;
    return CHECK(ok, "%s", file_path);
}

static void remove_files(void)
{
    if (!file_path[0])
        return;
    unlink(file_path);
    unlink(raw_path);
    rmdir(folder);
    file_path[0] = '\0';
}

/* All that COMMAND prints; "" when it fails. */
static char *output_of(const char *command)
{
    char *text = calloc(1, 1 << 16);
    FILE *p = popen(command, "r");
    size_t n = p ? fread(text, 1, (1 << 16) - 1, p) : 0;
    int status = p ? pclose(p) : -1;
    text[status == 0 ? n : 0] = '\0';
    return text;
}

/* Whether TEXT has the line NAME=VALUE. */
static int says(const char *text, const char *name, const char *value)
{
    char line[128];
    snprintf(line, sizeof line, "%s=%s\n", name, value);
    return strstr(text, line) != NULL;
}

static char *probe(const struct buffer *b)
{
    char command[300];
    if (!write_file(b))
        return calloc(1, 1);
    snprintf(command, sizeof command,
             "ffprobe -v error -count_frames -select_streams v -show_streams -show_format -of "
             "default=noprint_wrappers=1 %s",
             file_path);
    return output_of(command);
}

/* The frames as ffmpeg decodes them, 24 bits of RGB; NULL: it could not, or not COUNT of them. */
static uint8_t *decode(const struct buffer *b, int width, int height, int count)
{
    char command[300];
    size_t bytes = 3u * (size_t)width * (size_t)height * (size_t)count;
    if (!write_file(b))
        return NULL;
    snprintf(
        command, sizeof command,
        "ffmpeg -v error -y -i %s -vf scale=flags=bicubic+accurate_rnd+full_chroma_int -vsync passthrough "
        "-f rawvideo -pix_fmt rgb24 %s </dev/null",
        file_path, raw_path);
    free(output_of(command));
    uint8_t *rgb = malloc(bytes + 1);
    FILE *f = fopen(raw_path, "rb");
    size_t n = f ? fread(rgb, 1, bytes + 1, f) : 0;
    if (f)
        fclose(f);
    if (CHECK(n == bytes, "%zu bytes of %zu", n, bytes))
        return rgb;
    free(rgb);
    return NULL;
}

static unsigned be32(const char *p)
{
    const unsigned char *s = (const unsigned char *)p;
    return (unsigned)s[0] << 24 | (unsigned)s[1] << 16 | (unsigned)s[2] << 8 | s[3];
}

/* Names of the outermost boxes, in order, four letters each. */
static void boxes(const struct buffer *b, char *names, size_t size)
{
    size_t at = 0, n = 0;
    while (at + 8 <= b->len && n + 5 < size) {
        size_t len = be32(b->data + at);
        memcpy(names + n, b->data + at + 4, 4);
        n += 4;
        if (len < 8)
            break;
        at += len;
    }
    names[n] = '\0';
    CHECK(at == b->len, "boxes end at %zu of %zu", at, b->len);
}

/* ---- What a file is ---- */

static void check_file(int width, int height, int fps, int count)
{
    struct buffer out = {0};
    char names[80], number[32], seconds[32];
    if (make(width, height, fps, count, NULL, &out))
        return;
    boxes(&out, names, sizeof names);
    char *moov = strstr(names, "moov"), *mdat = strstr(names, "mdat");
    CHECK(strncmp(names, "ftyp", 4) == 0 && moov && mdat && moov < mdat, "%s", names);
    char *text = probe(&out);
    CHECK(says(text, "codec_name", "h264") && says(text, "pix_fmt", "yuv420p"), "%s", text);
    snprintf(number, sizeof number, "%d", width & ~1);
    CHECK(says(text, "width", number), "%s in %s", number, text);
    snprintf(number, sizeof number, "%d", height & ~1);
    CHECK(says(text, "height", number), "%s in %s", number, text);
    snprintf(number, sizeof number, "%d", count);
    CHECK(says(text, "nb_frames", number) && says(text, "nb_read_frames", number), "%s in %s", number, text);
    snprintf(number, sizeof number, "%d/1", fps);
    CHECK(says(text, "r_frame_rate", number) && says(text, "avg_frame_rate", number), "%s in %s", number,
          text);
    snprintf(seconds, sizeof seconds, "%.6f", (double)count / fps);
    CHECK(says(text, "duration", seconds), "%s in %s", seconds, text);
    CHECK(says(text, "start_time", "0.000000") && says(text, "has_b_frames", "0"), "%s", text);
    CHECK(says(text, "color_range", "tv") && says(text, "color_primaries", "bt709") &&
              says(text, "color_transfer", "iec61966-2-1"),
          "%s", text);
    CHECK(says(text, "color_space", height > 576 ? "bt709" : "smpte170m"), "%s", text);
    CHECK(!strstr(text, "creation_time") && !strstr(text, "Lavf"), "%s", text);
    free(text);
    buffer_free(&out);
    remove_files();
}

TEST(ffprobe_says_what_was_asked_for)
{
    check_file(128, 128, 7, 14);
    check_file(64, 96, 1, 3);
    check_file(320, 176, 6, 25);
    check_file(96, 64, 25, 30);
    check_file(128, 64, 60, 13);
    check_file(16, 1024, 7, 2);
}

TEST(one_frame)
{
    check_file(64, 64, 7, 1);
}

TEST(odd_sides_lose_a_pixel)
{
    check_file(65, 64, 7, 3);
    check_file(64, 33, 7, 3);
    check_file(101, 77, 7, 3);
    check_file(3, 3, 7, 2);
    check_file(2, 2, 7, 2);
}

/* ---- What its pictures are ---- */

static double psnr(const uint8_t *a, const uint8_t *b, size_t n)
{
    double sum = 0;
    for (size_t i = 0; i < n; i++)
        sum += (a[i] - b[i]) * (a[i] - b[i]);
    return sum > 0 ? 10 * log10(255.0 * 255 * (double)n / sum) : 99;
}

static void check_pictures(int width, int height, int count)
{
    struct buffer out = {0};
    struct image im = new_image(width, height);
    size_t n = 3u * (size_t)width * (size_t)height;
    uint8_t *back = make(width, height, 7, count, NULL, &out) ? NULL : decode(&out, width, height, count);
    for (int t = 0; back && t < count; t++) {
        paint(&im, t);
        double db = psnr(im.rgb, back + (size_t)t * n, n);
        CHECK(db >= 40, "%d x %d, frame %d: %.1f dB", width, height, t, db);
    }
    free(back);
    buffer_free(&out);
    image_free(&im);
    remove_files();
}

TEST(frames_come_back)
{
    check_pictures(320, 192, 14);
    check_pictures(640, 600, 3);
}

/* Flat colours come back within 3, so matrix and range are what the tags say; another matrix or range would
 * be off by 10 and more. */
TEST(colours_come_back)
{
    static const uint8_t colours[][3] = {{0, 0, 0},   {255, 255, 255}, {255, 0, 0},     {0, 255, 0},
                                         {0, 0, 255}, {255, 204, 34},  {128, 128, 128}, {18, 52, 86}};
    for (size_t i = 0; i < sizeof colours / sizeof *colours; i++) {
        for (int height = 64; height <= 640; height += 576) {
            struct buffer out = {0};
            const uint8_t *c = colours[i];
            uint8_t *back = make(64, height, 7, 2, c, &out) ? NULL : decode(&out, 64, height, 2);
            for (int k = 0; back && k < 3; k++)
                CHECK(abs(back[(height / 2 * 64 + 32) * 3 + k] - c[k]) <= 3, "colour %zu, height %d: %d %d",
                      i, height, back[(height / 2 * 64 + 32) * 3 + k], c[k]);
            free(back);
            buffer_free(&out);
        }
    }
    remove_files();
}

TEST(the_same_frames_are_the_same_bytes)
{
    struct buffer first = {0}, second = {0};
    if (make(160, 96, 7, 6, NULL, &first) == 0 && make(160, 96, 7, 6, NULL, &second) == 0)
        CHECK(first.len == second.len && memcmp(first.data, second.data, first.len) == 0, "%zu %zu",
              first.len, second.len);
    buffer_free(&first);
    buffer_free(&second);
}

/* ---- Errors ---- */

static int open_fails(int width, int height, int fps, struct error *err)
{
    struct mp4 *m = (struct mp4 *)1;
    *err = (struct error){0};
    int rc = mp4_open(&m, width, height, fps, err);
    CHECK(m == NULL);
    return rc;
}

TEST(what_cannot_be_a_video)
{
    struct error err;
    CHECK(open_fails(64, 64, 0, &err) == ERR_INVALID && strstr(err.msg, "accepted are 1 to"), "%s", err.msg);
    CHECK(open_fails(64, 64, -7, &err) == ERR_INVALID, "%s", err.msg);
    CHECK(open_fails(64, 64, 1001, &err) == ERR_INVALID, "%s", err.msg);
    CHECK(open_fails(0, 64, 7, &err) == ERR_INVALID && strstr(err.msg, "0 x 64"), "%s", err.msg);
    CHECK(open_fails(64, 1, 7, &err) == ERR_INVALID, "%s", err.msg);
    CHECK(open_fails(1 << 30, 1 << 30, 7, &err) == ERR_INVALID, "%s", err.msg);
    CHECK(open_fails(8193, 64, 7, &err) == ERR_INVALID, "%s", err.msg);
}

TEST(a_frame_of_another_size)
{
    struct mp4 *m;
    struct error err = {0};
    struct image im = new_image(64, 64), none = {.width = 64, .height = 64};
    struct buffer out = {0};
    paint(&im, 0);
    CHECK(mp4_open(&m, 64, 64, 7, &err) == 0, "%s", err.msg);
    CHECK(mp4_frame(m, &im, &err) == 0, "%s", err.msg);
    im.width = 32;
    CHECK(mp4_frame(m, &im, &err) == ERR_INVALID && strstr(err.msg, "32 x 64 in a video of 64 x 64"), "%s",
          err.msg);
    err = (struct error){0};
    CHECK(mp4_frame(m, &none, &err) == ERR_INVALID);
    im.width = 64;
    err = (struct error){0};
    CHECK(mp4_frame(m, &im, &err) == 0 && mp4_finish(m, &out, &err) == 0, "it goes on: %s", err.msg);
    CHECK(mp4_frame(m, &im, &err) == ERR_INTERNAL && mp4_finish(m, &out, &err) == ERR_INTERNAL);
    mp4_close(&m);
    mp4_close(&m);
    image_free(&im);
    buffer_free(&out);
}

TEST(no_frames_and_no_memory)
{
    struct mp4 *m;
    struct error err = {0};
    struct buffer out = {0};
    CHECK(mp4_open(&m, 64, 64, 7, &err) == 0, "%s", err.msg);
    CHECK(mp4_finish(m, &out, &err) == ERR_INTERNAL && out.len == 0);
    mp4_close(&m);
    struct image im = new_image(64, 64);
    paint(&im, 0);
    err = (struct error){0};
    buffer_puts(&out, "before");
    out.failed = true;
    CHECK(mp4_open(&m, 64, 64, 7, &err) == 0 && mp4_frame(m, &im, &err) == 0);
    CHECK(mp4_finish(m, &out, &err) == ERR_NOMEM && out.len == 6);
    mp4_close(&m);
    image_free(&im);
    buffer_free(&out);
}

TEST(appends_to_what_is_there)
{
    struct buffer out = {0}, alone = {0};
    buffer_puts(&out, "before");
    if (make(64, 64, 7, 2, NULL, &out) == 0 && make(64, 64, 7, 2, NULL, &alone) == 0)
        CHECK(out.len == alone.len + 6 && memcmp(out.data + 6, alone.data, alone.len) == 0);
    buffer_free(&out);
    buffer_free(&alone);
}

TEST_MAIN()
