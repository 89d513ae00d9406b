/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The index of a model of several files ("*.index.json"): an object whose "weight_map" says for
 * each tensor in which file it is; what else is in it is checked as JSON and not used. It is
 * hostile: it is read in one walk, and memory does not grow with it. Pure; any thread.
 */
#ifndef BASE_WEIGHT_MAP_H
#define BASE_WEIGHT_MAP_H

#include <stddef.h>
#include <stdint.h>

struct err;
struct json_cursor;

#define WEIGHT_MAP_MAX_SIZE   (64U << 20)
#define WEIGHT_MAP_MAX_TENSOR 4096 /* bytes of a tensor's name */
#define WEIGHT_MAP_MAX_FILE   512  /* bytes of a file's name */

struct weight_map_entry {
	const char *tensor; /* of tensor_size bytes; may hold NUL */
	size_t tensor_size;
	const char *file; /* a text */
	size_t at;        /* where the entry begins, in bytes */
};

/* Returns 0 to go on. The entry lives for the call. */
typedef int (*weight_map_take_fn)(struct json_cursor *cursor, const struct weight_map_entry *entry,
				  void *context);

/* Tell 'take' of each entry in turn. 0, what it returned, or -WIRE_BAD_FILE. */
int weight_map_read(const void *bytes, size_t size, weight_map_take_fn take, void *context,
		    struct err *err);

#endif
