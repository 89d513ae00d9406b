/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The JSON of a safetensors header, read by a cursor: {name: {dtype, shape, data_offsets},
 * "__metadata__": {string: string}}. Its grammar is three levels deep and closed. Everything
 * that one entry can say wrong is found here; what entries say about each other is not.
 * Allocates nothing. Pure; any thread.
 */
#ifndef FORMAT_HEADER_H
#define FORMAT_HEADER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct json_cursor;
struct tensor;

#define HEADER_SHOWN_SIZE 96

/* What the first walk found. */
struct header_tally {
	uint32_t n_tensors;
	uint64_t n_dims;
	uint64_t name_bytes;
	uint64_t end; /* of the last tensor in the data */
	bool has_metadata;
};

/* Where the second walk stores; each is as long as the tally says. */
struct header_shelf {
	struct tensor *tensors;
	uint64_t *shapes;
	char *names;
	uint64_t data_offset;
};

/*
 * Walk the whole header. 'tally', zeroed, counts; 'shelf' NULL only checks. Two walks over the
 * same bytes find the same. Returns 0, -WIRE_BAD_FILE or -WIRE_UNSUPPORTED; when more bytes
 * than there are would be needed, cursor->is_past_end.
 */
int header_walk(struct json_cursor *cursor, struct header_tally *tally, struct header_shelf *shelf);

/* A name that may hold anything, as much of it as a message has room for. */
const char *header_show(const char *name, size_t size, char buffer[HEADER_SHOWN_SIZE]);

#endif
