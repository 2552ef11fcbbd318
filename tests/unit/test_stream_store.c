/* The store behind /stream/: what it holds, what it throws out, and who may still read that. The wire is in
 * tests/api/test_streams.c. */
#include <pthread.h>
#include <time.h>

#include "streams.h"
#include "test.h"

enum { PNG_BYTES = 100 };

static struct streams *open_store(size_t bytes, double seconds)
{
    struct streams *s = NULL;
    struct error err = {0};

    if (streams_open(&s, bytes, seconds, &err))
        abort();
    return s;
}

/* Puts LEN bytes that are all FILL, as REPLY. */
static int put_as(struct streams *s, uint64_t reply, size_t len, char fill, char id[STREAM_ID_MAX])
{
    struct buffer body = {0};
    struct error err = {0};
    char *data = malloc(len);

    memset(data, fill, len);
    buffer_add(&body, data, len);
    free(data);
    int rc = streams_put(s, reply, "image/png", &body, id, &err);
    CHECK(rc == 0 ? body.data == NULL && body.len == 0 : body.len == len && *err.msg, "%s", err.msg);
    buffer_free(&body);
    return rc;
}

static int put(struct streams *s, size_t len, char fill, char id[STREAM_ID_MAX])
{
    return put_as(s, streams_reply(s), len, fill, id);
}

static bool holds(struct streams *s, const char *id, size_t len, char fill)
{
    const struct stream_blob *blob = streams_get(s, id);
    if (!blob)
        return false;
    bool same = blob->len == len && strcmp(blob->type, "image/png") == 0;
    for (size_t i = 0; i < len && same; i++)
        same = blob->data[i] == fill;
    streams_release(s, blob);
    return same;
}

static void check_count(struct streams *s, size_t blobs, size_t bytes)
{
    size_t n, all;
    streams_count(s, &n, &all);
    CHECK(n == blobs && all == bytes, "%zu of %zu bytes, expected %zu of %zu", n, all, blobs, bytes);
}

TEST(the_oldest_is_thrown_out_first)
{
    struct streams *s = open_store(3 * PNG_BYTES, 60);
    char id[5][STREAM_ID_MAX];
    for (int i = 0; i < 5; i++)
        CHECK(put(s, PNG_BYTES, (char)('a' + i), id[i]) == 0);
    for (int i = 0; i < 5; i++)
        CHECK(holds(s, id[i], PNG_BYTES, (char)('a' + i)) == (i >= 2), "%d", i);
    check_count(s, 3, 3 * PNG_BYTES);
    CHECK(put(s, 2 * PNG_BYTES + 1, 'z', id[0]) == 0); /* in the place of three */
    check_count(s, 1, 2 * PNG_BYTES + 1);
    CHECK(put(s, 3 * PNG_BYTES, 'y', id[1]) == 0);
    CHECK(!holds(s, id[0], 2 * PNG_BYTES + 1, 'z') && holds(s, id[1], 3 * PNG_BYTES, 'y'));
    streams_close(&s);
    CHECK(s == NULL);
}

/* Nothing else is lost for it, and the caller keeps what it wanted to put. */
TEST(what_the_store_cannot_hold_is_refused)
{
    struct streams *s = open_store(2 * PNG_BYTES, 60);
    char first[STREAM_ID_MAX], id[STREAM_ID_MAX];
    struct buffer none = {0};
    struct error err = {0};
    CHECK(put(s, PNG_BYTES, 'a', first) == 0);
    CHECK(put(s, 2 * PNG_BYTES + 1, 'b', id) == ERR_NOMEM);
    CHECK(streams_put(s, streams_reply(s), "image/png", &none, id, &err) == ERR_NOMEM);
    CHECK(holds(s, first, PNG_BYTES, 'a'));
    check_count(s, 1, PNG_BYTES);
    streams_close(&s);
}

/* A reply does not throw out what it has named itself. */
TEST(what_one_reply_names_stays_together)
{
    struct streams *s = open_store(3 * PNG_BYTES, 60);
    char id[4][STREAM_ID_MAX], other[STREAM_ID_MAX];
    uint64_t reply = streams_reply(s);
    CHECK(put_as(s, reply, PNG_BYTES, 'a', id[0]) == 0 && put(s, PNG_BYTES, 'z', other) == 0);
    CHECK(put_as(s, reply, PNG_BYTES, 'b', id[1]) == 0 && put_as(s, reply, PNG_BYTES, 'c', id[2]) == 0);
    CHECK(!holds(s, other, PNG_BYTES, 'z'), "the older one of another reply had to go");
    CHECK(put_as(s, reply, 1, 'd', id[3]) == ERR_NOMEM);
    for (int i = 0; i < 3; i++)
        CHECK(holds(s, id[i], PNG_BYTES, (char)('a' + i)), "%d", i);
    check_count(s, 3, 3 * PNG_BYTES);
    CHECK(put(s, PNG_BYTES, 'y', other) == 0, "the next reply may throw them out");
    CHECK(!holds(s, id[0], PNG_BYTES, 'a') && holds(s, id[1], PNG_BYTES, 'b'));
    streams_close(&s);
}

TEST(a_blob_that_is_read_outlives_its_place)
{
    struct streams *s = open_store(PNG_BYTES, 60);
    char id[STREAM_ID_MAX], other[STREAM_ID_MAX];
    put(s, PNG_BYTES, 'a', id);
    const struct stream_blob *one = streams_get(s, id), *two = streams_get(s, id);
    put(s, PNG_BYTES, 'b', other);
    CHECK(!streams_get(s, id) && holds(s, other, PNG_BYTES, 'b'));
    streams_release(s, one);
    if (CHECK(two != NULL))
        for (int i = 0; i < PNG_BYTES; i++)
            CHECK(two->data[i] == 'a');
    streams_release(s, two);
    streams_close(&s);
}

static void wait_seconds(double seconds)
{
    struct timespec t = {(time_t)seconds, (long)((seconds - (double)(time_t)seconds) * 1e9)};
    nanosleep(&t, NULL);
}

TEST(they_expire)
{
    struct streams *s = open_store(10 * PNG_BYTES, 0.2);
    char id[STREAM_ID_MAX];
    put(s, PNG_BYTES, 'a', id);
    const struct stream_blob *held = streams_get(s, id);
    wait_seconds(0.25);
    CHECK(!streams_get(s, id));
    check_count(s, 0, 0);
    if (CHECK(held != NULL))
        CHECK(held->data[PNG_BYTES - 1] == 'a');
    streams_release(s, held);
    put(s, PNG_BYTES, 'b', id);
    check_count(s, 1, PNG_BYTES);
    streams_close(&s);
}

/* ---- Several threads: meant for the sanitizers ---- */

enum { THREADS = 4, ROUNDS = 400 };
static struct streams *shared;
static char newest[THREADS][STREAM_ID_MAX];
static pthread_mutex_t newest_lock = PTHREAD_MUTEX_INITIALIZER;
static int broken[THREADS];

/* Puts its own, and reads what another has put, if it is still there. */
static void *put_and_read(void *arg)
{
    int self = *(int *)arg;
    for (int i = 0; i < ROUNDS; i++) {
        char id[STREAM_ID_MAX], other[STREAM_ID_MAX];
        size_t len = 1 + (size_t)(i * 31 % PNG_BYTES);
        struct buffer body = {0};
        struct error err = {0};
        for (size_t k = 0; k < len; k++)
            buffer_add(&body, &(char){(char)('a' + self)}, 1);
        broken[self] += streams_put(shared, streams_reply(shared), "image/png", &body, id, &err) != 0;
        int from = (self + i) % THREADS;
        pthread_mutex_lock(&newest_lock);
        strcpy(newest[self], id);
        strcpy(other, newest[from]);
        pthread_mutex_unlock(&newest_lock);
        const struct stream_blob *blob = streams_get(shared, other);
        for (size_t k = 0; blob && k < blob->len; k++)
            broken[self] += blob->data[k] != (char)('a' + from);
        if (blob)
            streams_release(shared, blob);
    }
    return NULL;
}

TEST(threads_put_and_read)
{
    pthread_t thread[THREADS];
    int self[THREADS];
    shared = open_store(3 * PNG_BYTES, 60);
    for (int i = 0; i < THREADS; i++) {
        self[i] = i;
        if (pthread_create(&thread[i], NULL, put_and_read, &self[i]))
            abort();
    }
    for (int i = 0; i < THREADS; i++) {
        pthread_join(thread[i], NULL);
        CHECK(broken[i] == 0, "%d", broken[i]);
    }
    size_t blobs, bytes;
    streams_count(shared, &blobs, &bytes);
    CHECK(blobs > 0 && bytes <= 3 * PNG_BYTES, "%zu of %zu bytes", blobs, bytes);
    streams_close(&shared);
}

TEST_MAIN()
