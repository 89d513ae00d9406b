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
struct shelf;

/* What the first walk found. */
struct header_tally {
	uint32_t n_tensors;
	uint64_t n_dims;
	uint64_t name_bytes;
	uint64_t end; /* of the last tensor in the data */
	bool has_metadata;
};

/*
 * Walk the whole header. 'tally', zeroed, counts; 'shelf' NULL only checks. Two walks over the
 * same bytes find the same. Returns 0, -WIRE_BAD_FILE or -WIRE_UNSUPPORTED; when more bytes
 * than there are would be needed, cursor->is_past_end.
 */
int header_walk(struct json_cursor *cursor, struct header_tally *tally, struct shelf *shelf);

#endif
