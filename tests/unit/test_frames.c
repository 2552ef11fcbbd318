/* The memory of a video reply at its full size, 25 frames of 1024 x 576, from a source of frames in the place
 * of the model: what PNG, base64, pipe and MP4 take beyond the one frame that the pipeline holds. Over the
 * wire, with a small model, it is in tests/api/test_image_to_video.c. */
#include "../../src/api/frames.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "streams.h"
#include "test.h"

enum { WIDTH = 1024, HEIGHT = 576, FRAMES = 25, FRAME_KIB = 3 * WIDTH * HEIGHT / 1024, PIPE = 512 << 10 };

static long kilobytes(const char *key)
{
    char line[128];
    long kib = -1;
    FILE *f = fopen("/proc/self/status", "r");
    while (f && fgets(line, sizeof line, f))
        if (strncmp(line, key, strlen(key)) == 0)
            kib = strtol(line + strlen(key) + 1, NULL, 10);
    if (f)
        fclose(f);
    return kib;
}

/* Noise that moves over a ramp: PNGs of about 2 MB. */
static void draw(struct image *im, int index)
{
    unsigned state = 7;
    for (int y = 0; y < HEIGHT; y++)
        for (int x = 0; x < 3 * WIDTH; x++) {
            state = state * 1664525u + 1013904223u;
            im->rgb[(size_t)y * 3 * WIDTH + (size_t)((x + 9 * index) % (3 * WIDTH))] =
                (unsigned char)(x / 24 + (int)(state >> 27));
        }
}

static void entered(void *ctx, enum phase phase, int step, int steps)
{
    (void)ctx;
    (void)phase;
    (void)step;
    (void)steps;
}

static bool cancelled(void *ctx)
{
    (void)ctx;
    return false;
}

/* The client: reads all of the reply, and counts its frames by their URLs. */
static void *read_reply(void *ctx)
{
    struct pipe *p = ctx;
    static char bytes[1 << 14];
    size_t total = 0;
    ssize_t n;
    while ((n = pipe_read(p, bytes, sizeof bytes)) >= 0) {
        total += (size_t)n;
        if (n == PIPE_EMPTY)
            usleep(200);
    }
    return (void *)(n == PIPE_END ? total : 0);
}

/* Makes the reply, and returns by how many KiB it raised the peak of the process; negative: an error. */
static long make_reply(size_t *reply)
{
    static const struct watcher watch = {.entered = entered, .cancelled = cancelled};
    struct image im = {.width = WIDTH, .height = HEIGHT, .rgb = malloc(3 * WIDTH * HEIGHT)};
    struct service service = {0};
    struct error err = {0};
    struct frames f = {.service = &service, .watch = &watch, .form = FRAMES_DATA, .seed = "7", .fps = 6};
    pthread_t client;
    void *total = NULL;
    if (!im.rgb || pipe_open(&f.pipe, PIPE, &err) ||
        streams_open(&service.streams, (size_t)256 << 20, 60, &err))
        return -1;
    draw(&im, 0);
    mp4_encoder(); /* loads what it needs, as the daemon does at its start */
    FILE *clear = fopen("/proc/self/clear_refs", "w"); /* the peak is counted from here */
    if (!clear || fputs("5", clear) < 0 || fclose(clear) != 0 ||
        pthread_create(&client, NULL, read_reply, f.pipe))
        return -1;
    long before = kilobytes("VmRSS");
    for (int i = 0; i < FRAMES && !err.code; i++) {
        draw(&im, i);
        frames_add(&f, i, FRAMES, &im, &err);
    }
    if (!err.code)
        frames_finish(&f, &err);
    pipe_end(f.pipe, err.code == 0);
    pthread_join(client, &total);
    *reply = (size_t)total;
    return err.code ? -1 : kilobytes("VmHWM") - before;
}

/* In a process of its own, so that no other test's memory is counted. H264: as LATENTD_H264. */
static void check_reply(const char *h264, long most)
{
    int result[2];
    long answer[2] = {-1, 0};
    if (pipe(result))
        abort();
    pid_t pid = fork();
    if (pid == 0) {
        size_t reply = 0;
        setenv("LATENTD_H264", h264, 1);
        answer[0] = make_reply(&reply);
        answer[1] = (long)reply;
        _exit(write(result[1], answer, sizeof answer) != sizeof answer);
    }
    close(result[1]);
    CHECK(read(result[0], answer, sizeof answer) == sizeof answer);
    waitpid(pid, NULL, 0);
    close(result[0]);
    printf("  encoder %s: the peak grows by %ld KiB (%.1f frames of %d KiB) for a reply of %ld KiB\n", h264,
           answer[0], (double)answer[0] / FRAME_KIB, (int)FRAME_KIB, answer[1] / 1024);
    CHECK(answer[1] / 1024 > FRAMES * 1000, "the reply is too short to show anything");
#ifndef __SANITIZE_ADDRESS__ /* memory there says nothing */
    CHECK(answer[0] >= 0 && answer[0] < most, "%ld KiB, at most %ld", answer[0], most);
#else
    (void)most;
#endif
}

/* At most three frames, and the pipeline's own is one of them. */
TEST(frames_take_the_memory_of_two)
{
    check_reply("none", 2 * FRAME_KIB);
}

/* The encoder keeps planes of a few frames, and the video of noise is some megabytes, which stay kept. */
TEST(and_the_video_that_of_the_encoder)
{
    if (!mp4_encoder())
        SKIP("there is no H.264 encoder");
    check_reply("auto", 24 << 10);
}

TEST_MAIN()
