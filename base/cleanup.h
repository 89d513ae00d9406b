/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Ownership shown in the code: a local that frees itself on every way out, and an
 * explicit steal where ownership moves on. Any thread.
 */
#ifndef BASE_CLEANUP_H
#define BASE_CLEANUP_H

#include <stdlib.h>
#include <unistd.h>

static inline void cleanup_free(void *location)
{
	void *memory = *(void **)location;

	free(memory);
}

static inline void cleanup_close(const int *fd)
{
	if (*fd >= 0) {
		(void)close(*fd); /* nothing can be done about a failed close */
	}
}

#define AUTO_FREE  __attribute__((cleanup(cleanup_free)))
#define AUTO_CLOSE __attribute__((cleanup(cleanup_close)))

/* Take the descriptor out of its variable; the caller owns it now. */
static inline int steal_fd(int *fd)
{
	int taken = *fd;

	*fd = -1;
	return taken;
}

static inline void *steal_ptr_raw(void *location)
{
	void **slot = location;
	void *taken = *slot;

	*slot = NULL;
	return taken;
}

#define steal_ptr(location) ((__typeof__(*(location)))steal_ptr_raw(location))

#endif
