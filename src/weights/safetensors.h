/* One safetensors file: its header checked in full, its tensors by name. Private to src/weights. */
#ifndef LATENTD_SAFETENSORS_H
#define LATENTD_SAFETENSORS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "error.h"

enum { ST_DIMS_MAX = 8, ST_HEADER_MAX = 16 << 20 };

/* Element types of the format. Only the floating-point ones of 16 and 32 bits can become weights. */
enum st_type {
    ST_BOOL,
    ST_U8,
    ST_I8,
    ST_F8_E5M2,
    ST_F8_E4M3,
    ST_I16,
    ST_U16,
    ST_F16,
    ST_BF16,
    ST_I32,
    ST_U32,
    ST_F32,
    ST_F64,
    ST_I64,
    ST_U64,
    ST_TYPE_COUNT
};
extern const char *const st_type_names[ST_TYPE_COUNT];

struct st_tensor {
    char *name; /* owned */
    enum st_type type;
    int dims;
    uint64_t shape[ST_DIMS_MAX];
    uint64_t begin, end; /* bytes from the start of the data section */
    bool used;           /* some load_* asked for it */
    const struct safetensors *file;
};

struct safetensors {
    char *label; /* "unet/diffusion_pytorch_model.safetensors": for error texts; owned */
    void *map;   /* the whole file, read-only; NULL when parsed from memory that the caller owns */
    int fd;      /* of the same file; only when MAP is set */
    size_t size;
    const unsigned char *data; /* data section */
    struct st_tensor *tensor;  /* sorted by name */
    int count;
};

/* Maps PATH and checks it. Nothing is kept on failure. */
int safetensors_open(struct safetensors *st, const char *path, const char *label, struct error *err);
/* The same for SIZE bytes in memory, which must outlive ST. */
int safetensors_parse(struct safetensors *st, const void *bytes, size_t size, const char *label,
                      struct error *err);
/* Copies BYTES of the mapped file from AT, an address inside it, without touching the mapping: a file that
 * was cut short meanwhile is ERR_IO. Other addresses are memory and copied as such. */
int safetensors_read(const struct safetensors *st, const void *at, void *out, size_t bytes,
                     struct error *err);
void safetensors_close(struct safetensors *st);
/* NULL when there is no such tensor. */
struct st_tensor *safetensors_find(const struct safetensors *st, const char *name);

#endif
