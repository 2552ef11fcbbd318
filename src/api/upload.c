/* See upload.h. */
#include "upload.h"

bool upload_probe(const struct param_file *file, struct image *image, struct reply *reply)
{
    struct error err = {0};

    if (image_probe(file->data, file->len, &image->width, &image->height, &err) == 0)
        return true;
    reply_error(reply, 400, "The image cannot be read: %s.", err.msg);
    return false;
}

int upload_decode(struct pictures *p, const struct param_file *file, struct buffer *body, struct image *image,
                  struct error *err)
{
    struct error why = {0};
    int rc = image_decode(file->data, file->len, image, &why);

    buffer_free(body);
    if (rc == 0)
        return 0;
    p->own_words = rc == ERR_FORMAT || rc == ERR_INVALID;
    return error_set(err, p->own_words ? ERR_INVALID : rc, "The image cannot be read: %s", why.msg);
}
