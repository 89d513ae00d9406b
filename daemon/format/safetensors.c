/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The file: eight bytes of length N, N bytes of JSON, then the tensors' bytes. The header is
 * walked twice: the first walk checks every entry and counts; only then memory is taken,
 * exactly as much as was counted, and the second walk stores. A general JSON tree (cJSON)
 * would cost a kilobyte a tensor, round integers and accept more than JSON; it serves as an
 * oracle of the tests. What tensors say about each other (names, holes, overlaps) is judged
 * last, by sorting. See format.h, header.h, json_scan.h.
 */
#include "daemon/format/safetensors.h"

#include "base/checked.h"
#include "base/err.h"
#include "base/json_scan.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/format/blocks.h"
#include "daemon/format/format.h"
#include "daemon/format/header.h"
#include "daemon/format/order.h"
#include "daemon/format/shelf.h"
#include "daemon/format/show.h"
#include "proto/gen/wire_code.h"

#define LENGTH_SIZE  8U
#define LEAST_LENGTH 2U /* "{}" */
#define ALIGNMENT    8U

/* ---- the length ---- */

static uint64_t read_length(const unsigned char *bytes)
{
	uint64_t length = 0;

	for (unsigned i = LENGTH_SIZE; i > 0; i--) {
		length = length << 8 | bytes[i - 1];
	}
	return length;
}

bool safetensors_is_likely(const void *first, size_t size)
{
	const unsigned char *bytes = first;

	return size > LENGTH_SIZE && bytes[LENGTH_SIZE] == '{' &&
	       read_length(bytes) <= FORMAT_MAX_HEADER;
}

/* Judge the length alone; gives where the data begin. */
static int check_length(const void *first, size_t size, uint64_t file_size, uint64_t *ret_data,
			struct err *err)
{
	char count[SHOW_COUNT_SIZE];
	char file_count[SHOW_COUNT_SIZE];
	uint64_t length;
	uint64_t data;

	if (size < LENGTH_SIZE || file_size < LENGTH_SIZE) {
		return err_set(err, WIRE_BAD_FILE,
			       "header length: the file has %llu bytes, too few to hold one",
			       (unsigned long long)file_size);
	}
	length = read_length(first);
	if (length < LEAST_LENGTH || length > FORMAT_MAX_HEADER) {
		return err_set(err, WIRE_BAD_FILE,
			       "header length %s is not possible (2 to 100,000,000): "
			       "not a safetensors file, or a damaged one",
			       show_count(length, count));
	}
	if (!checked_add(length, LENGTH_SIZE, &data) || data > file_size) {
		return err_set(err, WIRE_BAD_FILE,
			       "header length %s, but the file is only %s bytes: "
			       "the download is incomplete",
			       show_count(length, count), show_count(file_size, file_count));
	}
	*ret_data = data;
	return 0;
}

int safetensors_probe(const void *first, size_t size, uint64_t file_size,
		      uint64_t *ret_header_bytes, struct err *err)
{
	struct err found = {0};
	struct json_cursor cursor = {.base = LENGTH_SIZE, .err = &found};
	struct header_tally tally = {0};
	uint64_t data;
	int code = check_length(first, size, file_size, &data, err);

	if (code < 0) {
		return code;
	}
	cursor.bytes = (const char *)first + LENGTH_SIZE;
	cursor.size = (size_t)(size < data ? size : data) - LENGTH_SIZE;
	code = header_walk(&cursor, &tally, NULL);
	if (code < 0 && !(size < data && cursor.is_past_end)) {
		if (err != NULL) {
			*err = found;
		}
		return code;
	}
	*ret_header_bytes = data;
	return 0;
}

/* ---- what tensors say about each other ---- */

static bool is_placed_before(const void *context, uint32_t a, uint32_t b)
{
	const struct tensor *tensors = context;

	/* An empty tensor comes before the one that begins at the same byte. */
	return tensors[a].offset < tensors[b].offset ||
	       (tensors[a].offset == tensors[b].offset && tensors[a].size < tensors[b].size);
}

/* 'scratch' has room for twice as many items as there are tensors. */
static int sort_into_file_order(struct tensor *tensors, uint32_t n_tensors, uint32_t *scratch,
				struct err *err)
{
	struct tensor *unsorted;
	size_t size = n_tensors * sizeof *tensors;

	if (n_tensors == 0) {
		return 0;
	}
	order_number(scratch, n_tensors);
	order_sort(scratch, &scratch[n_tensors], n_tensors, is_placed_before, tensors);
	unsorted = malloc(size);
	if (unsorted == NULL) {
		return err_set(err, WIRE_NO_MEMORY, "no memory to sort %u tensors", n_tensors);
	}
	memcpy(unsorted, tensors, size);
	for (uint32_t i = 0; i < n_tensors; i++) {
		tensors[i] = unsorted[scratch[i]];
	}
	free(unsorted);
	return 0;
}

/* Sorted tensors lie end to end, from the first byte of the data. */
static int check_cover(const struct tensor *tensors, uint32_t n_tensors, uint64_t data_offset,
		       struct err *err)
{
	uint64_t expected = data_offset;
	char shown[SHOW_NAME_SIZE];

	for (uint32_t i = 0; i < n_tensors; i++) {
		const struct tensor *tensor = &tensors[i];
		int code;

		if (tensor->offset == expected) {
			/* Within the file, as the first walk saw. */
			(void)checked_add(tensor->offset, tensor->size, &expected);
			continue;
		}
		(void)show_name(tensor->name, tensor->name_size, shown);
		code = err_set(err, WIRE_BAD_FILE,
			       tensor->offset > expected
				       ? "tensor \"%s\" at byte %llu leaves a hole after byte %llu"
				       : "tensor \"%s\" at byte %llu overlaps one up to byte %llu",
			       shown, (unsigned long long)tensor->offset,
			       (unsigned long long)expected);
		if (err != NULL) {
			err->offset = tensor->offset;
		}
		return code;
	}
	return 0;
}

static int arrange(struct tensor *tensors, uint32_t n_tensors, uint64_t data_offset,
		   struct err *err)
{
	uint32_t *scratch = malloc(2 * sizeof *scratch * (n_tensors == 0 ? 1 : n_tensors));
	int code;

	if (scratch == NULL) {
		return err_set(err, WIRE_NO_MEMORY, "no memory to sort %u tensors", n_tensors);
	}
	code = sort_into_file_order(tensors, n_tensors, scratch, err);
	if (code == 0) {
		code = shelf_check_names(tensors, n_tensors, scratch, err);
	}
	if (code == 0) {
		code = check_cover(tensors, n_tensors, data_offset, err);
	}
	free(scratch);
	return code;
}

/* ---- the map ---- */

static int check_file_size(const struct header_tally *tally, uint64_t data_offset,
			   uint64_t file_size, struct err *err)
{
	char file_count[SHOW_COUNT_SIZE];
	char described[SHOW_COUNT_SIZE];
	uint64_t end;

	if (!checked_add(data_offset, tally->end, &end)) {
		end = UINT64_MAX;
	}
	if (end > file_size) {
		return show_incomplete(file_size, end, err);
	}
	if (end < file_size) {
		return err_set(err, WIRE_BAD_FILE,
			       "file is %s bytes but its header describes only %s: "
			       "something was appended",
			       show_count(file_size, file_count), show_count(end, described));
	}
	return 0;
}

static void add_notices(struct tensor_map *map)
{
	unsigned long long n_empty = 0;

	for (uint32_t i = 0; i < map->n_tensors; i++) {
		n_empty += map->tensors[i].size == 0 ? 1 : 0;
	}
	if (map->data_offset % ALIGNMENT != 0) {
		(void)snprintf(map->notices[map->n_notices++], sizeof map->notices[0],
			       "the tensors begin at byte %llu, which is not a multiple of 8: "
			       "readers may have to copy them",
			       (unsigned long long)map->data_offset);
	}
	if (n_empty > 0) {
		(void)snprintf(map->notices[map->n_notices++], sizeof map->notices[0],
			       "%llu of %u tensors hold no bytes", n_empty, map->n_tensors);
	}
}

static int fill_map(struct tensor_map *map, struct json_cursor *cursor, struct header_tally *tally)
{
	struct err *err = cursor->err;
	struct header_tally again = {0};
	struct tensor *tensors;
	struct shelf shelf = {0};
	int code = header_walk(cursor, tally, NULL);

	if (code == 0) {
		code = check_file_size(tally, map->data_offset, map->file_size, err);
	}
	if (code == 0) {
		code = shelf_take(map, tally->n_tensors, tally->n_dims, tally->name_bytes, &shelf,
				  err);
	}
	if (code < 0) {
		return code;
	}
	tensors = shelf.tensors;
	cursor->at = 0;
	code = header_walk(cursor, &again, &shelf);
	if (code == 0) {
		code = arrange(tensors, map->n_tensors, map->data_offset, err);
	}
	if (code == 0) {
		code = blocks_compute(tensors, map->n_tensors, &map->block_memory, &map->blocks,
				      &map->n_blocks, err);
	}
	return code;
}

int safetensors_parse(const void *header, size_t size, uint64_t file_size,
		      struct tensor_map **ret_map, struct err *err)
{
	struct json_cursor cursor = {.base = LENGTH_SIZE, .err = err};
	struct tensor_map *map;
	struct header_tally tally = {0};
	uint64_t data;
	int code = check_length(header, size, file_size, &data, err);

	if (code < 0) {
		return code;
	}
	if (size != data) {
		return err_set(err, WIRE_INTERNAL, "%zu bytes of a header of %llu were given", size,
			       (unsigned long long)data);
	}
	cursor.bytes = (const char *)header + LENGTH_SIZE;
	cursor.size = size - LENGTH_SIZE;
	map = malloc(sizeof *map);
	if (map == NULL) {
		return err_set(err, WIRE_NO_MEMORY, "no memory for a tensor map");
	}
	*map = (struct tensor_map){.format = FORMAT_SAFETENSORS,
				   .data_offset = data,
				   .file_size = file_size};
	code = fill_map(map, &cursor, &tally);
	if (code < 0) {
		(void)tensor_map_free(map);
		return code;
	}
	add_notices(map);
	*ret_map = map;
	return 0;
}
