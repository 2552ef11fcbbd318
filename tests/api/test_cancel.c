/* A client that leaves: its job stops, in every phase, and nothing else suffers. And the queue's bound. */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "client.h"
#include "test.h"

/* So many steps that no test waits for the end; a step of this size takes some milliseconds. */
#define ENDLESS                                                                                              \
    "{\"prompt\":\"a\",\"width\":128,\"height\":128,\"num_inference_steps\":900,\"num_images_per_prompt\":"  \
    "50}"
#define QUICK    "{\"prompt\":\"a\",\"num_inference_steps\":1}"
#define RUNNING  "latentd_requests_running"
#define WAITING  "latentd_queue_depth"
#define LEFT     "latentd_cancelled_total{reason=\"disconnect\"}"
#define NOT_FULL "latentd_rejected_total{reason=\"queue_full\"}"

/* Seconds: a departure is to be seen within 0.25, and a running job then stops before its next step. The rest
 * is for machines that do other work and for sanitizers. */
#define NOTICED      0.5
#define STEP_AT_MOST 4.0

static struct daemon tiny;

static void start_tiny(void)
{
    daemon_shared(&tiny, (const char *[]){"LATENTD_QUEUE=4", NULL});
}

/* The worker is free again, and makes the same picture as before. */
static void check_unharmed(void)
{
    /* A departure is counted a moment before the worker lets go of the job. */
    double end = now_seconds() + 2;
    while (daemon_metric(&tiny, RUNNING) != 0 && now_seconds() < end)
        sleep_seconds(0.002);
    CHECK(daemon_metric(&tiny, RUNNING) == 0);
    CHECK(daemon_metric(&tiny, WAITING) == 0);
    struct answer a = client_make(&tiny, QUICK);
    CHECK(a.status == 200, "%d %s", a.status, a.body);
    answer_free(&a);
}

/* Waits until N more clients than BEFORE were noticed to have left; returns how long that took. */
static double noticed(double before, int n)
{
    double start = now_seconds();

    CHECK(daemon_metric_reaches(&tiny, LEFT, before + n, 10), "only %.0f departures counted",
          daemon_metric(&tiny, LEFT));
    return now_seconds() - start;
}

TEST(leaves_while_a_step_runs)
{
    start_tiny();
    double before = daemon_metric(&tiny, LEFT);
    int fd = client_begin(&tiny, ENDLESS);
    CHECK(daemon_logged(&tiny, "phase=step step=3/", 20));
    double best = 10;
    for (int i = 0; i < 5; i++) {
        double asked = now_seconds();
        struct answer a = client_ask(&tiny, "GET", "/health", NULL, NULL);
        CHECK(a.status == 200 && now_seconds() - asked < 1);
        best = now_seconds() - asked < best ? now_seconds() - asked : best;
        answer_free(&a);
    }
    CHECK(best < 0.1, "/health took %.3f s while a picture was made", best);
    close(fd);
    double took = noticed(before, 1);
    CHECK(took < STEP_AT_MOST, "stopped after %.3f s", took);
    CHECK(daemon_logged(&tiny, "cancelled=disconnect", 1) && daemon_logged(&tiny, "status=499", 1));
    check_unharmed();
}

TEST(half_close_counts_as_leaving)
{
    start_tiny();
    double before = daemon_metric(&tiny, LEFT);
    int fd = client_begin(&tiny, ENDLESS);
    CHECK(daemon_metric_reaches(&tiny, RUNNING, 1, 10));
    shutdown(fd, SHUT_WR);
    CHECK(noticed(before, 1) < STEP_AT_MOST);
    close(fd);
    check_unharmed();
}

TEST(reset_counts_as_leaving)
{
    struct linger now = {1, 0};
    start_tiny();
    double before = daemon_metric(&tiny, LEFT);
    int fd = client_begin(&tiny, ENDLESS);
    CHECK(daemon_metric_reaches(&tiny, RUNNING, 1, 10));
    setsockopt(fd, SOL_SOCKET, SO_LINGER, &now, sizeof(now));
    close(fd);
    CHECK(noticed(before, 1) < STEP_AT_MOST);
    check_unharmed();
}

/* A pipelined request behind the running one must not hide that the client left. */
TEST(leaves_with_bytes_unread)
{
    start_tiny();
    double before = daemon_metric(&tiny, LEFT);
    int fd = client_begin(&tiny, ENDLESS);
    client_puts(fd, "GET /health HTTP/1.1\r\nHost: x\r\n\r\n");
    CHECK(daemon_metric_reaches(&tiny, RUNNING, 1, 10));
    close(fd);
    CHECK(noticed(before, 1) < STEP_AT_MOST);
    check_unharmed();
}

TEST(leaves_while_waiting)
{
    int fd[4];
    start_tiny();
    double before = daemon_metric(&tiny, LEFT);
    int first = client_begin(&tiny, ENDLESS);
    CHECK(daemon_metric_reaches(&tiny, RUNNING, 1, 10));
    for (int i = 0; i < 4; i++)
        fd[i] = client_begin(&tiny, ENDLESS);
    CHECK(daemon_metric_reaches(&tiny, WAITING, 4, 5));
    close(fd[1]);
    close(fd[3]);
    double took = noticed(before, 2);
    CHECK(took < NOTICED, "noticed after %.3f s", took);
    CHECK(daemon_metric(&tiny, WAITING) == 2 && daemon_metric(&tiny, RUNNING) == 1);
    close(fd[0]);
    close(fd[2]);
    CHECK(noticed(before, 4) < NOTICED);
    CHECK(daemon_metric(&tiny, RUNNING) == 1, "the running job must go on");
    close(first);
    noticed(before, 5);
    check_unharmed();
}

TEST(leaves_in_the_decoder)
{
    start_tiny();
    double before = daemon_metric(&tiny, LEFT), images = daemon_metric(&tiny, "latentd_images_total");
    int fd = client_begin(&tiny, "{\"prompt\":\"a\",\"width\":192,\"height\":192,\"num_inference_steps\":1}");
    CHECK(daemon_logged(&tiny, "phase=decode", 20));
    close(fd);
    /* unless the picture was ready before the departure could be seen, it is thrown away */
    double end = now_seconds() + 10, left, made;
    do {
        left = daemon_metric(&tiny, LEFT) - before;
        made = daemon_metric(&tiny, "latentd_images_total") - images;
    } while (left + made < 1 && now_seconds() < end);
    CHECK(left + made == 1, "left %.0f, made %.0f", left, made);
    check_unharmed();
}

TEST(leaves_in_the_upload)
{
    start_tiny();
    for (int i = 0; i < 20; i++) {
        int fd = client_open(&tiny);
        client_puts(fd, "POST /text-to-image HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{\"prompt\":");
        close(fd);
    }
    double end = now_seconds() + 1;
    while (daemon_metric(&tiny, "latentd_connections") > 1 && now_seconds() < end)
        sleep_seconds(0.02);
    CHECK(daemon_metric(&tiny, "latentd_connections") <= 2,
          "connections of clients that left are still open");
    check_unharmed();
}

/* Eighty departures at random moments: every one is accounted for, and no descriptor is lost. */
TEST(many_departures)
{
    start_tiny();
    check_unharmed();
    double fds = daemon_metric(&tiny, "process_open_fds");
    srand(1);
    for (int i = 0; i < 80; i++) {
        int fd = client_begin(&tiny, i % 3 ? ENDLESS : QUICK);
        sleep_seconds(rand() % 30 / 1000.0);
        close(fd);
    }
    double end = now_seconds() + 20;
    while ((daemon_metric(&tiny, RUNNING) > 0 || daemon_metric(&tiny, WAITING) > 0) && now_seconds() < end)
        sleep_seconds(0.02);
    check_unharmed();
    end = now_seconds() + 5;
    while (daemon_metric(&tiny, "process_open_fds") > fds && now_seconds() < end)
        sleep_seconds(0.02);
    CHECK(daemon_metric(&tiny, "process_open_fds") <= fds + 2, "%.0f descriptors became %.0f", fds,
          daemon_metric(&tiny, "process_open_fds"));
}

TEST(queue_is_bounded)
{
    enum { MORE = 30 };
    int fd[5 + MORE], refused = 0;
    start_tiny();
    double full = daemon_metric(&tiny, NOT_FULL), before = daemon_metric(&tiny, LEFT);
    fd[0] = client_begin(&tiny, ENDLESS);
    CHECK(daemon_metric_reaches(&tiny, RUNNING, 1, 10));
    for (int i = 1; i < 5; i++)
        fd[i] = client_begin(&tiny, ENDLESS);
    CHECK(daemon_metric_reaches(&tiny, WAITING, 4, 5));
    double start = now_seconds();
    for (int i = 0; i < MORE; i++)
        fd[5 + i] = client_begin(&tiny, QUICK);
    for (int i = 0; i < MORE; i++) {
        struct answer a = client_read(fd[5 + i], 5);
        refused +=
            a.status == 500 &&
            strcmp(a.body,
                   "{\"detail\":{\"msg\":\"insufficient capacity: the queue is full, try again later\"}}") ==
                0;
        answer_free(&a);
        close(fd[5 + i]);
    }
    CHECK(refused == MORE, "%d of %d refused", refused, MORE);
    CHECK(now_seconds() - start < 2, "refusals took %.2f s", now_seconds() - start);
    CHECK(daemon_metric(&tiny, NOT_FULL) - full == MORE && daemon_metric(&tiny, WAITING) == 4);
    for (int i = 0; i < 5; i++)
        close(fd[i]);
    noticed(before, 5);
    check_unharmed();
}

/* Waiting jobs run in the order in which they came: the worker logs the first step of each, which tells them
 * apart by how many there are. (The lines of the requests are written by other threads, in any order.) */
TEST(first_come_first_served)
{
    int fd[4];
    start_tiny();
    double before = daemon_metric(&tiny, LEFT);
    int first = client_begin(&tiny, ENDLESS);
    CHECK(daemon_metric_reaches(&tiny, RUNNING, 1, 10));
    for (int i = 0; i < 4; i++) {
        char body[100];
        snprintf(body, sizeof(body), "{\"prompt\":\"a\",\"num_inference_steps\":%d}", 31 + i);
        fd[i] = client_begin(&tiny, body);
        CHECK(daemon_metric_reaches(&tiny, WAITING, i + 1, 5));
    }
    close(first);
    noticed(before, 1);
    for (int i = 0; i < 4; i++) {
        struct answer a = client_read(fd[i], 20);
        CHECK(a.status == 200, "%d", a.status);
        answer_free(&a);
        close(fd[i]);
    }
    char *log = daemon_log(&tiny), *before_it = log;
    for (int i = 0; log && i < 4; i++) {
        char step[20];
        snprintf(step, sizeof(step), "step=1/%d\"", 32 + i); /* 31 steps of PNDM are 32 calls */
        char *at = strstr(log, step);
        CHECK(at && at >= before_it, "job %d was not in order", i);
        before_it = at ? at : before_it;
    }
    free(log);
}

TEST(stop)
{
    if (tiny.pid)
        CHECK(daemon_end(&tiny, SIGTERM, 8) == 0);
}

TEST_MAIN()
