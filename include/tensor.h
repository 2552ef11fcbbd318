/* Activations. Layout is always NHWC; a sequence of T tokens is [N, 1, T, C]; a vector per picture is [N, 1,
 * 1, C].
 *
 *   N  pictures (guidance doubles it: first half unconditional, second half conditional)
 *   H  rows      W  columns or tokens      C  channels, innermost
 *
 * A tensor is a view: copying the struct copies no data. It belongs to the region it was allocated from
 * (lifetime "job": the region is emptied as a whole when the job ends). */
#ifndef LATENTD_TENSOR_H
#define LATENTD_TENSOR_H

#include <stddef.h>
#include <stdint.h>

enum dtype { DTYPE_F32, DTYPE_F16, DTYPE_BF16 };

static inline size_t dtype_size(enum dtype t)
{
    return t == DTYPE_F32 ? 4 : 2;
}

typedef struct tensor {
    int n, h, w, c; /* [N, H, W, C] */
    int ld;         /* elements from one (n, h, w) position to the next; ld > c in a view of some channels */
    enum dtype dtype; /* how elements are stored */
    void *data;       /* in the backend's memory: a device address on CUDA; NULL: no tensor */
    unsigned sums;    /* 0, or the name of its channels' sums that the backend has kept: conv2d_args.normed */
} tensor;

/* Number of (n, h, w) positions: rows of C channels each. */
static inline size_t tensor_rows(tensor x)
{
    return (size_t)x.n * (size_t)x.h * (size_t)x.w;
}

static inline size_t tensor_count(tensor x)
{
    return tensor_rows(x) * (size_t)x.c;
}

/* Channels [first, first + count) of X, as a view. */
static inline tensor tensor_channels(tensor x, int first, int count)
{
    x.data = x.data ? (char *)x.data + (size_t)first * dtype_size(x.dtype) : NULL;
    x.c = count;
    return x;
}

/* Pictures [first, first + count) of X, as a view. */
static inline tensor tensor_batch(tensor x, int first, int count)
{
    size_t step = (size_t)x.h * (size_t)x.w * (size_t)x.ld * dtype_size(x.dtype);
    x.data = x.data ? (char *)x.data + (size_t)first * step : NULL;
    x.n = count;
    return x;
}

/* Tokens [first, first + count) of X [1, 1, T, C], as a view. */
static inline tensor tensor_tokens(tensor x, int first, int count)
{
    size_t step = (size_t)x.ld * dtype_size(x.dtype);
    x.data = x.data ? (char *)x.data + (size_t)first * step : NULL;
    x.w = count;
    return x;
}

/* Vectors [A, 1, 1, B], contiguous, seen as [N, 1, 1, C], where A B = N C. */
static inline tensor tensor_as_vectors(tensor x, int n, int c)
{
    x.n = n;
    x.c = x.ld = c;
    return x;
}

/* One vector [1, 1, 1, C] seen as [N, 1, 1, C], the same for all: to be read only, as conv2d's add_bc. */
static inline tensor tensor_for_all(tensor x, int n)
{
    x.n = n;
    x.ld = 0;
    return x;
}

/* The frames of videos [B F, H, W, C] one below the other, [B, F H, W, C], and back: what is normed over the
 * whole video. */
static inline tensor tensor_as_videos(tensor x, int frames)
{
    x.n /= frames;
    x.h *= frames;
    return x;
}

static inline tensor tensor_as_frames(tensor x, int frames)
{
    x.n *= frames;
    x.h /= frames;
    return x;
}

/* Frames [B F, 1, T, C], contiguous, seen as one sequence of F tokens a video, [B, 1, F, T C], and back: with
 * T times as many heads, attention then runs over the frames of each position. */
static inline tensor tensor_over_frames(tensor x, int frames)
{
    x.n /= frames;
    x.c = x.ld = x.w * x.c;
    x.w = frames;
    return x;
}

static inline tensor tensor_of_frames(tensor x, int frames, int positions)
{
    x.n *= frames;
    x.w = positions;
    x.c = x.ld = x.c / positions;
    return x;
}

/* Rows [top, top + h) and columns [left, left + w) of one contiguous picture X [1, H, W, C], as a view
 * [1, 1, h, w C]: its rows as tokens. */
static inline tensor tensor_area(tensor x, int top, int left, int h, int w)
{
    x.ld = x.c * x.w;
    size_t first = (size_t)top * (size_t)x.ld + (size_t)left * (size_t)x.c;
    x.data = x.data ? (char *)x.data + first * dtype_size(x.dtype) : NULL;
    x.c *= w;
    x.w = h;
    x.h = 1;
    return x;
}

/* Rows as tokens [1, 1, H, W C], contiguous, seen as the picture [1, H, W, C]. */
static inline tensor tensor_of_area(tensor x, int c)
{
    x.h = x.w;
    x.w = x.c / c;
    x.c = x.ld = c;
    return x;
}

/* [N, H, W, C] seen as tokens [N, 1, H*W, C], and back. */
static inline tensor tensor_as_tokens(tensor x)
{
    x.w *= x.h;
    x.h = 1;
    return x;
}

static inline tensor tensor_as_image(tensor x, int h, int w)
{
    x.h = h;
    x.w = w;
    return x;
}

#endif
