/* SPDX-License-Identifier: Apache-2.0 */
/* Segments of blocks, and the parts of a file that stay on the host. See segment_layout.h. */
#include "daemon/format/segment_layout.h"

#include "base/checked.h"

#include "daemon/format/format.h"

/* ---- segments ---- */

/* A segment of 'bytes' with one tensor more; UINT64_MAX: too many to count. */
static uint64_t add_tensor(uint64_t bytes, uint64_t tensor_bytes)
{
	uint64_t at;
	uint64_t end;

	return segment_next(bytes, &at) && checked_add(at, tensor_bytes, &end) ? end : UINT64_MAX;
}

static uint64_t at_least_something(uint64_t bytes)
{
	return bytes == 0 ? SEGMENT_ALIGNMENT : bytes;
}

uint64_t block_segment_bytes(const struct tensor_map *map, uint32_t block)
{
	uint32_t left = map->blocks[block].n_tensors;
	uint64_t bytes = 0;

	for (uint32_t i = map->blocks[block].first_tensor; i < map->n_tensors && left > 0; i++) {
		if (map->tensors[i].block == block) {
			bytes = add_tensor(bytes, map->tensors[i].size);
			left--;
		}
	}
	return at_least_something(bytes);
}

void block_segment_bytes_all(const struct tensor_map *map, uint64_t *ret_bytes)
{
	for (uint32_t i = 0; i < map->n_blocks; i++) {
		ret_bytes[i] = 0;
	}
	for (uint32_t i = 0; i < map->n_tensors; i++) {
		uint64_t *bytes = &ret_bytes[map->tensors[i].block];

		*bytes = add_tensor(*bytes, map->tensors[i].size);
	}
	for (uint32_t i = 0; i < map->n_blocks; i++) {
		ret_bytes[i] = at_least_something(ret_bytes[i]);
	}
}

/* ---- parts of files ---- */

static const struct tensor_map *map_of_file(const struct tensor_map *map, uint32_t file)
{
	return map->parts == NULL ? map : map->parts[file];
}

static uint32_t first_tensor_of(const struct tensor_map *map, uint32_t file)
{
	uint32_t first = 0;

	for (uint32_t i = 0; i < file; i++) {
		first += map_of_file(map, i)->n_tensors;
	}
	return first;
}

static bool is_filled(const struct tensor *tensor, const uint8_t *places)
{
	return places == NULL || places[tensor->block] == 0;
}

/* The first tensor that is filled and has bytes, or 'end'. */
static uint32_t find_filled(const struct tensor_map *map, const uint8_t *places, uint32_t from,
			    uint32_t end)
{
	while (from < end &&
	       (map->tensors[from].size == 0 || !is_filled(&map->tensors[from], places))) {
		from++;
	}
	return from;
}

/* From tensor 'at' on as far as they are filled; 'ret' grows. Returns the first that is not. */
static uint32_t extend(const struct tensor_map *map, const uint8_t *places, uint32_t at,
		       uint32_t end, struct file_part *ret)
{
	for (; at < end; at++) {
		const struct tensor *tensor = &map->tensors[at];

		if (tensor->size > 0 && !is_filled(tensor, places)) {
			break;
		}
		if (tensor->size > 0) { /* within the file: format_parse refuses others */
			ret->bytes = tensor->offset + tensor->size - ret->offset;
		}
	}
	return at;
}

bool file_part_next(const struct tensor_map *map, const uint8_t *places, struct part_walk *walk,
		    struct file_part *ret)
{
	const struct tensor_map *file = map_of_file(map, walk->file);
	struct file_part part = {0};
	uint32_t at = walk->next_tensor;
	uint32_t end = walk->end;

	if (!walk->is_begun) {
		at = first_tensor_of(map, walk->file);
		end = walk->end = at + file->n_tensors;
		part.bytes = places != NULL && file->data_offset < file->file_size
				     ? file->data_offset
				     : file->file_size;
		at = places == NULL ? end : at;
	}
	walk->is_begun = true;
	if (part.bytes == 0) {
		at = find_filled(map, places, at, end);
		if (at == end) {
			walk->next_tensor = end;
			return false;
		}
		part.offset = map->tensors[at].offset;
	}
	at = extend(map, places, at, end, &part);
	if (at == end) { /* what lies behind the last tensor belongs to it */
		part.bytes = file->file_size - part.offset;
	}
	walk->next_tensor = at;
	*ret = part;
	return true;
}

uint64_t file_part_pages(const struct tensor_map *map, const uint8_t *places, uint32_t file,
			 uint64_t page_bytes)
{
	struct part_walk walk = {.file = file};
	struct file_part part;
	uint64_t n_pages = 0;
	uint64_t counted = 0; /* pages before this one */

	while (file_part_next(map, places, &walk, &part)) {
		const uint64_t first = part.offset / page_bytes;
		const uint64_t last = (part.offset + part.bytes - 1) / page_bytes;

		n_pages += last + 1 - (first > counted ? first : counted);
		counted = last + 1;
	}
	return n_pages;
}
