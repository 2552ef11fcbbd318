/* A reply that is sent while its job writes it. libmicrohttpd asks for a piece whenever the last one has gone
 * to the socket; while there is none the connection sleeps. A job waits for room in its pipe, and so for its
 * client, which is why a client has little time: see PIECE_SECONDS. */
#include "internal.h"

enum { PIECE_BYTES = 32 << 10 };

/* Waits for the next piece, in the middle of the callback that found none. */
static ssize_t sleep_until_more(struct request *r)
{
    connection_deadline(r->connection, 0); /* the job decides how long it takes */
    request_suspend(r);
    if (pipe_ready(r->job->pipe)) /* it came between the look and the suspension */
        request_wake(r);
    return 0;
}

/* When the client must have taken what it is given now. */
static double piece_deadline(const struct request *r, double now)
{
    double left = PIECE_SECONDS + (double)r->sent / REPLY_RATE - r->waited;

    return now + (left < PIECE_SECONDS ? left : PIECE_SECONDS);
}

/* MHD_ContentReaderCallback. */
static ssize_t read_piece(void *ctx, uint64_t at, char *out, size_t max)
{
    struct request *r = ctx;
    double now = clock_now();
    ssize_t n = pipe_read(r->job->pipe, out, max);

    (void)at;
    if (r->handed > 0)
        r->waited += now - r->handed;
    r->handed = 0;
    if (n == PIPE_EMPTY)
        return sleep_until_more(r);
    connection_deadline(r->connection, piece_deadline(r, now));
    if (n == PIPE_END)
        return MHD_CONTENT_READER_END_OF_STREAM;
    if (n == PIPE_BROKEN)
        return MHD_CONTENT_READER_END_WITH_ERROR; /* closes without the last chunk */
    r->handed = now;
    r->sent += (size_t)n;
    return n;
}

enum MHD_Result send_piped(struct request *r)
{
    struct MHD_Response *response =
        MHD_create_response_from_callback(MHD_SIZE_UNKNOWN, PIECE_BYTES, read_piece, r, NULL);

    if (!response)
        return MHD_NO;
    r->reply.status = 200;
    r->reply.content_type = CONTENT_JSON;
    return request_respond(r, response);
}
