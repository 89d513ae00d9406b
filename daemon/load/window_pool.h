/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Memory for windows (piece.h) on their way between a file, or a device that can only be read, and
 * a device that is filled by descriptor. Fresh memory costs more than what is copied through it:
 * as long as anybody is in, buffers are kept for the next one. Any thread.
 */
#ifndef LOAD_WINDOW_POOL_H
#define LOAD_WINDOW_POOL_H

#include <pthread.h>
#include <stdint.h>

#include "daemon/load/piece.h"

struct err;

#define WINDOW_BUFFER_BYTES (PIECE_WINDOW + 2 * PIECE_PAGE) /* one that begins within a page */

struct window_buffer {
	struct window_buffer *next; /* owner: window_pool::unused */
	int fd; /* sealed but for our mapping: so devices know that nobody can take it away */
	uint8_t *memory;
};

struct window_pool {
	pthread_mutex_t lock; /* of what is below */
	struct window_buffer *unused;
	uint32_t n_users;
};

void window_pool_init(struct window_pool *pool);
void window_pool_fini(struct window_pool *pool); /* nobody is in */
void window_pool_enter(struct window_pool *pool);
void window_pool_leave(struct window_pool *pool); /* the last one has the memory given back */

/* By one that is in. 0, or WIRE_NO_MEMORY, WIRE_TOO_MANY. */
int window_pool_take(struct window_pool *pool, struct window_buffer **ret, struct err *err);
void window_pool_give(struct window_pool *pool, struct window_buffer *buffer); /* NULL is fine */

#endif
