/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The daemon's end of the socket to one distorchd-worker: requests of any thread, each with a
 * deadline, answers by their id. When the worker ends, breaks the protocol or does not answer in
 * time the link is lost for good: every call, those that wait too, returns WIRE_DEVICE_LOST, and
 * the socket is shut down, so that a worker that still runs sees the end of it. Counted: one
 * reference for its device and one for each extent.
 */
#ifndef DEVICE_WORKER_LINK_H
#define DEVICE_WORKER_LINK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "proto/gen/wire_method.h"

struct err;
struct worker_link;

#define WORKER_PACKET_BYTES 4096 /* no message between daemon and worker is larger */

/* 'socket' is taken, also on failure. 'name' is of the device, for errors. */
int worker_link_new(int socket, const char *name, struct worker_link **ret, struct err *err);
struct worker_link *worker_link_ref(struct worker_link *link);
struct worker_link *worker_link_unref(struct worker_link *link); /* NULL is fine; returns NULL */

/* Any thread, does not block. The first reason is the one that errors tell. */
void worker_link_lose(struct worker_link *link, const char *reason);

/* Why it is lost, for people; "" while it is not. */
void worker_link_reason(struct worker_link *link, char *ret, size_t size);
/* Is it lost because its worker closed its end, and not given up by us? */
bool worker_link_has_ended(struct worker_link *link);

struct worker_call {
	enum wire_method method;
	const void *request; /* the generated struct; NULL: it has no fields */
	int fd;              /* goes with it, stays the caller's; -1: none */
	uint64_t limit_ns;   /* to be answered in */
	uint32_t n_ret_fds;  /* that the answer has to bring */
};

/*
 * Send and wait for the answer. 'ret_fds' (NULL where it brings none) are the caller's.
 * 'take' (or NULL) copies what is wanted of the response, the method's generated struct, into
 * 'to'; on success only. The response is borrowed.
 */
int worker_link_call(struct worker_link *link, const struct worker_call *call, int *ret_fds,
		     void (*take)(const void *response, void *to), void *to, struct err *err);

/* Memory that is shared with the worker for one call, to move bytes that it must not read itself. */
#define STAGING_BYTES (8ULL << 20)
struct staging {
	struct staging *next;
	int fd;
	uint8_t *memory; /* STAGING_BYTES */
	bool is_huge;    /* pages of 2 MiB were asked for */
};
/* 'bytes' are all that are to go through it, one buffer after the other. */
int worker_link_borrow(struct worker_link *link, uint64_t bytes, struct staging **ret,
		       struct err *err);
void worker_link_return(struct worker_link *link, struct staging *staging);
/* Instead: another link's worker may still be writing into it. */
void worker_link_discard(struct staging *staging);

#endif
