/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Memory of one result: everything that a public structure points to lies in blocks that
 * go with it in one free. Not thread-safe; one thread builds a result, any may free it.
 */
#ifndef CLIENT_RESULT_H
#define CLIENT_RESULT_H

#include <stddef.h>

#include "proto/wire.h"

struct result; /* hidden in front of the public structure */

/* A zeroed public structure of 'size' bytes; NULL without memory. */
void *result_new(size_t size);

/* Free it and all that was made with it; NULL is fine. */
void result_free(void *structure);

static inline void result_cleanup(void *location)
{
	result_free(*(void **)location);
}

#define AUTO_RESULT __attribute__((cleanup(result_cleanup)))

/* Zeroed memory that lives with 'structure'; NULL without memory. Sizes must be ours. */
void *result_add(void *structure, size_t size);

/* A terminated copy of a wire string; NULL without memory. */
char *result_text(void *structure, struct wire_str text);

#endif
