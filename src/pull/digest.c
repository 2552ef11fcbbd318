/* SHA-256 of large files, and git's SHA-1 of small ones, by OpenSSL: its code uses the processor's own
 * instructions, and a 7 GB model is hashed as it comes. */
#include <openssl/evp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "pull.h"

struct digest {
    EVP_MD_CTX *ctx;
    const EVP_MD *kind;
    char head[40]; /* "blob 123" and its NUL, for git */
    size_t head_len;
};

bool digest_is(const char *text)
{
    size_t n = strspn(text, "0123456789abcdef");

    return text[n] == '\0' && (n == 40 || n == 64);
}

static int fail(struct error *err)
{
    return error_set(err, ERR_INTERNAL, "OpenSSL cannot compute a digest");
}

int digest_open(struct digest **out, const struct file *f, struct error *err)
{
    struct digest *d = calloc(1, sizeof *d);

    if (!d || !(d->ctx = EVP_MD_CTX_new())) {
        free(d);
        return error_set(err, ERR_NOMEM, "no memory for a digest");
    }
    bool git = strlen(f->digest) == 40;
    d->kind = git ? EVP_sha1() : EVP_sha256();
    if (git)
        d->head_len = (size_t)snprintf(d->head, sizeof d->head, "blob %lld", (long long)f->size) + 1;
    *out = d;
    int rc = digest_restart(d, err);
    if (rc)
        digest_close(out);
    return rc;
}

int digest_restart(struct digest *d, struct error *err)
{
    if (EVP_DigestInit_ex(d->ctx, d->kind, NULL) != 1)
        return fail(err);
    return digest_add(d, d->head, d->head_len, err);
}

int digest_add(struct digest *d, const void *data, size_t len, struct error *err)
{
    return len == 0 || EVP_DigestUpdate(d->ctx, data, len) == 1 ? 0 : fail(err);
}

int digest_finish(struct digest *d, char hex[DIGEST_MAX], struct error *err)
{
    unsigned char bytes[EVP_MAX_MD_SIZE];
    unsigned len = 0;

    if (EVP_DigestFinal_ex(d->ctx, bytes, &len) != 1 || 2 * len >= DIGEST_MAX)
        return fail(err);
    for (unsigned i = 0; i < len; i++)
        snprintf(hex + 2 * i, 3, "%02x", bytes[i]);
    return 0;
}

void digest_close(struct digest **d)
{
    if (*d)
        EVP_MD_CTX_free((*d)->ctx);
    free(*d);
    *d = NULL;
}
