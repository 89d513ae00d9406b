/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A socket that answers GET /metrics and nothing else (docs/decisions/0006). A few connections at
 * a time, each of them for a few seconds at most; further ones wait in the queue. What comes in
 * ends with its connection, descriptors included. Loop only; nothing blocks.
 */
#ifndef IPC_SCRAPE_H
#define IPC_SCRAPE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>
#include <uv.h>

struct err;
struct scraper;

struct scrape_options {
	const char *path;               /* of a Unix socket; NULL: 'address' */
	const struct sockaddr *address; /* of TCP */
	socklen_t address_size;
	uint32_t mode, gid;   /* of the path; as in struct listen_name */
	uint32_t deadline_ms; /* from a connection's begin to its end */
	void *context;
	/* The whole text of less than 'size' bytes and a NUL; false: it cannot be had. */
	bool (*write)(void *context, char *ret_text, size_t size);
	size_t text_size; /* the largest 'size' */
};

/* 0, or a negative code with 'err'. All is copied. */
int scraper_new(uv_loop_t *loop, const struct scrape_options *options, struct scraper **ret,
		struct err *err);

/* Take the name away and end all; frees itself once the loop has run. NULL is fine; returns it. */
struct scraper *scraper_free(struct scraper *scraper);

#endif
