/* SPDX-License-Identifier: Apache-2.0 */
/* Tensors of all files one behind the other, blocks made anew over all of them. See join.h. */
#include "daemon/format/join.h"

#include "base/checked.h"
#include "base/err.h"

#include <stdlib.h>
#include <string.h>

#include "daemon/format/blocks.h"
#include "daemon/format/format.h"
#include "daemon/format/index.h"
#include "daemon/format/order.h"
#include "daemon/format/show.h"
#include "proto/gen/wire_code.h"

static const char *show_part(const struct join_part *part, char buffer[SHOW_NAME_SIZE])
{
	return show_name(part->name, strlen(part->name), buffer);
}

/* Sums of all files, and what they have to agree on. */
static int count(const struct join_part *parts, uint32_t n_parts, struct tensor_map *map,
		 struct err *err)
{
	uint64_t n_tensors = 0;
	char one[SHOW_NAME_SIZE];
	char other[SHOW_NAME_SIZE];

	map->format = parts[0].map->format;
	for (uint32_t i = 0; i < n_parts; i++) {
		const struct tensor_map *part = parts[i].map;

		if (part->format != map->format) {
			return err_set(err, WIRE_UNSUPPORTED,
				       "%s and %s are of different formats, so not of one model",
				       show_part(&parts[0], one), show_part(&parts[i], other));
		}
		if (!checked_add(n_tensors, part->n_tensors, &n_tensors) ||
		    !checked_add(map->file_size, part->file_size, &map->file_size)) {
			return err_set(err, WIRE_TOO_LARGE, "files of more than 2^64 bytes");
		}
	}
	if (n_tensors > FORMAT_MAX_TENSORS) {
		return err_set(err, WIRE_TOO_LARGE,
			       "%llu tensors in %u files; a model has at most 262,144",
			       (unsigned long long)n_tensors, n_parts);
	}
	map->n_tensors = (uint32_t)n_tensors;
	return 0;
}

/* Without an index: is each the part as which it was given? */
static int check_parts(const struct join_part *parts, uint32_t n_parts, struct err *err)
{
	char name[SHOW_NAME_SIZE];

	for (uint32_t i = 0; n_parts > 1 && i < n_parts; i++) {
		const struct tensor_map *part = parts[i].map;

		(void)show_part(&parts[i], name);
		if (part->format != FORMAT_GGUF) {
			return err_set(err, WIRE_UNSUPPORTED,
				       "%s and the others came without an index; only GGUF files "
				       "say themselves that they are of one model",
				       name);
		}
		if (part->split_count == 0) {
			return err_set(err, WIRE_BAD_FILE,
				       "%s is no part of a model: it has no split.count", name);
		}
		if (part->split_count != n_parts || part->split_no != i) {
			return err_set(
				err, WIRE_BAD_FILE,
				"%s says that it is part %u of %u; it was given as part %u of "
				"%u",
				name, part->split_no + 1U, part->split_count, i + 1, n_parts);
		}
	}
	return 0;
}

static void put_tensors(const struct join_part *parts, uint32_t n_parts, struct tensor *tensors)
{
	uint32_t n_put = 0;

	for (uint32_t i = 0; i < n_parts; i++) {
		for (uint32_t j = 0; j < parts[i].map->n_tensors; j++) {
			tensors[n_put] = parts[i].map->tensors[j];
			tensors[n_put].shard = i;
			n_put++;
		}
	}
}

static struct order_name name_of_tensor(const void *context, uint32_t item)
{
	const struct tensor *tensors = context;

	return (struct order_name){tensors[item].name, tensors[item].name_size};
}

static int fail_twice(const struct join_part *parts, const struct tensor_map *map, uint32_t twice,
		      struct err *err)
{
	const struct tensor *tensor = &map->tensors[twice];
	uint32_t other = 0;
	char name[SHOW_NAME_SIZE];
	char files[2][SHOW_NAME_SIZE];

	while (other == twice || map->tensors[other].name_size != tensor->name_size ||
	       memcmp(map->tensors[other].name, tensor->name, tensor->name_size) != 0) {
		other++; /* there is one */
	}
	return err_set(err, WIRE_BAD_FILE, "tensor \"%s\" is in two files, %s and %s",
		       show_name(tensor->name, tensor->name_size, name),
		       show_part(&parts[map->tensors[other].shard], files[0]),
		       show_part(&parts[tensor->shard], files[1]));
}

/* 'scratch' has room for two numbers a tensor. */
static int compare(const struct join_part *parts, uint32_t n_parts, const struct join_index *index,
		   const struct tensor_map *map, uint32_t *scratch, struct err *err)
{
	const struct index_subject subject = {.parts = parts,
					      .n_parts = n_parts,
					      .tensors = map->tensors,
					      .n_tensors = map->n_tensors,
					      .sorted = scratch};
	uint32_t twice = 0;

	if (order_find_twice(scratch, map->n_tensors, name_of_tensor, map->tensors, &twice)) {
		return fail_twice(parts, map, twice, err);
	}
	return index->bytes == NULL ? 0 : index_check(index, &subject, err);
}

static int fill_map(struct tensor_map *map, struct join_part *parts, uint32_t n_parts,
		    const struct join_index *index, struct err *err)
{
	uint32_t n_tensors = map->n_tensors;
	struct tensor *tensors = calloc((size_t)n_tensors + 1, sizeof *tensors);
	uint32_t *scratch = calloc(2 * (size_t)n_tensors + 1, sizeof *scratch);
	int code = 0;

	map->tensor_memory = tensors;
	map->tensors = tensors;
	map->parts = calloc(n_parts, sizeof(struct tensor_map *));
	if (tensors == NULL || scratch == NULL || map->parts == NULL) {
		code = err_set(err, WIRE_NO_MEMORY, "no memory to join %u tensors of %u files",
			       n_tensors, n_parts);
	}
	if (code == 0) {
		put_tensors(parts, n_parts, tensors);
		code = compare(parts, n_parts, index, map, scratch, err);
	}
	if (code == 0) {
		code = blocks_compute(tensors, n_tensors, &map->block_memory, &map->blocks,
				      &map->n_blocks, err);
	}
	free(scratch);
	return code;
}

int join_maps(struct join_part *parts, uint32_t n_parts, const struct join_index *index,
	      struct tensor_map **ret_map, struct err *err)
{
	struct tensor_map *map = calloc(1, sizeof *map);
	int code;

	if (map == NULL) {
		return err_set(err, WIRE_NO_MEMORY, "no memory for a tensor map");
	}
	code = count(parts, n_parts, map, err);
	if (code == 0 && index->bytes == NULL) {
		code = check_parts(parts, n_parts, err);
	}
	if (code == 0) {
		code = fill_map(map, parts, n_parts, index, err);
	}
	if (code < 0) {
		(void)tensor_map_free(map);
		return code;
	}
	for (uint32_t i = 0; i < n_parts; i++) {
		map->parts[i] = parts[i].map;
		parts[i].map = NULL;
	}
	map->n_parts = n_parts;
	*ret_map = map;
	return 0;
}
