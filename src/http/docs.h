/* The documentation pages. */
#ifndef LATENTD_HTTP_DOCS_H
#define LATENTD_HTTP_DOCS_H

#include "internal.h"

void docs_reply(struct server *srv, struct reply *reply);  /* with forms to try requests */
void redoc_reply(struct server *srv, struct reply *reply); /* the reference alone */
void docs_style_reply(struct server *srv, struct reply *reply);
void docs_script_reply(struct server *srv, struct reply *reply);
void redoc_script_reply(struct server *srv, struct reply *reply);

#endif
