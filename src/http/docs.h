/* The documentation pages. */
#ifndef LATENTD_HTTP_DOCS_H
#define LATENTD_HTTP_DOCS_H

#include "internal.h"

void docs_reply(struct server *srv, struct reply *reply);  /* with a form to try a request */
void redoc_reply(struct server *srv, struct reply *reply); /* the reference alone */

#endif
