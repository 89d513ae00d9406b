/* SPDX-License-Identifier: Apache-2.0 */
/* Buffers by descriptor and by mapping. See window_pool.h. */
#include "daemon/load/window_pool.h"

#include "base/err.h"
#include "base/os/memfd.h"
#include "base/os/sys.h"
#include "base/require.h"

#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "daemon/load/thread.h"
#include "proto/gen/wire_code.h"

void window_pool_init(struct window_pool *pool)
{
	*pool = (struct window_pool){0};
	REQUIRE(pthread_mutex_init(&pool->lock, NULL) == 0);
}

void window_pool_fini(struct window_pool *pool)
{
	REQUIRE(pool->n_users == 0 && pool->unused == NULL);
	REQUIRE(pthread_mutex_destroy(&pool->lock) == 0);
}

static void free_buffer(struct window_buffer *buffer)
{
	memfd_unmap(buffer->memory, WINDOW_BUFFER_BYTES);
	if (buffer->fd >= 0) {
		(void)close(buffer->fd); /* a few MiB of memory */
	}
	free(buffer);
}

void window_pool_enter(struct window_pool *pool)
{
	thread_lock(&pool->lock);
	pool->n_users++;
	thread_unlock(&pool->lock);
}

void window_pool_leave(struct window_pool *pool)
{
	struct window_buffer *unused = NULL;

	thread_lock(&pool->lock);
	if (--pool->n_users == 0) {
		unused = pool->unused;
		pool->unused = NULL;
	}
	thread_unlock(&pool->lock);
	while (unused != NULL) {
		struct window_buffer *next = unused->next;

		free_buffer(unused);
		unused = next;
	}
}

static int new_buffer(struct window_buffer **ret, struct err *err)
{
	struct window_buffer *buffer = sys_calloc(1, sizeof *buffer);
	void *memory = NULL;
	int code;

	if (buffer == NULL) {
		return err_set(err, WIRE_NO_MEMORY, "no memory for a window");
	}
	buffer->fd = -1;
	code = memfd_create_sized("distorch:window", WINDOW_BUFFER_BYTES, &buffer->fd, err);
	if (code == 0) {
		code = memfd_map(buffer->fd, WINDOW_BUFFER_BYTES, PROT_READ | PROT_WRITE,
				 MAP_SHARED, &memory, err);
		buffer->memory = memory;
	}
	if (code == 0) {
		(void)memfd_take_huge(memory, WINDOW_BUFFER_BYTES); /* else in small pages */
		code = memfd_seal(buffer->fd, err);
	}
	if (code < 0) {
		free_buffer(buffer);
		return code;
	}
	*ret = buffer;
	return 0;
}

int window_pool_take(struct window_pool *pool, struct window_buffer **ret, struct err *err)
{
	struct window_buffer *buffer;

	thread_lock(&pool->lock);
	buffer = pool->unused;
	if (buffer != NULL) {
		pool->unused = buffer->next;
	}
	thread_unlock(&pool->lock);
	if (buffer == NULL) {
		return new_buffer(ret, err);
	}
	*ret = buffer;
	return 0;
}

void window_pool_give(struct window_pool *pool, struct window_buffer *buffer)
{
	if (buffer == NULL) {
		return;
	}
	thread_lock(&pool->lock);
	buffer->next = pool->unused;
	pool->unused = buffer;
	thread_unlock(&pool->lock);
}
