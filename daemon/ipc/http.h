/* SPDX-License-Identifier: Apache-2.0 */
/* As much of HTTP as a scrape needs: which of a few requests the bytes so far are. Pure. */
#ifndef IPC_HTTP_H
#define IPC_HTTP_H

#include <stddef.h>

enum http_request {
	HTTP_MORE, /* its head is not all there yet */
	HTTP_GET_METRICS,
	HTTP_HEAD_METRICS,
	HTTP_NOT_FOUND,   /* another path */
	HTTP_NOT_ALLOWED, /* another method */
	HTTP_BAD,         /* not HTTP/1 */
	HTTP_N_VALUES,
};

/* Decided by the first line alone, once the empty line behind the last header has come. */
enum http_request http_judge(const char *bytes, size_t size);

#endif
