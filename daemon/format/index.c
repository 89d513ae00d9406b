/* SPDX-License-Identifier: Apache-2.0 */
/* Each entry of "weight_map" is compared as it is met. See index.h. */
#include "daemon/format/index.h"

#include "base/err.h"
#include "base/json_scan.h"
#include "base/weight_map.h"

#include <stdlib.h>
#include <string.h>

#include "daemon/format/format.h"
#include "daemon/format/order.h"
#include "daemon/format/show.h"
#include "proto/gen/wire_code.h"

_Static_assert(WEIGHT_MAP_MAX_TENSOR == FORMAT_MAX_NAME, "an index names what files may hold");

struct check {
	const struct index_subject *subject;
	uint32_t last_part; /* the file that the entry before named */
	bool *is_part_named;
	bool *is_tensor_named;
};

static struct order_name name_of_tensor(const void *context, uint32_t item)
{
	const struct tensor *tensors = context;

	return (struct order_name){tensors[item].name, tensors[item].name_size};
}

/* Mostly that of the entry before. */
static bool find_part(struct check *check, const char *name, uint32_t *ret)
{
	const struct index_subject *subject = check->subject;
	uint32_t first = 0;
	uint32_t end = subject->n_parts;

	if (strcmp(name, subject->parts[check->last_part].name) == 0) {
		*ret = check->last_part;
		return true;
	}
	while (first < end) {
		uint32_t middle = first + (end - first) / 2;
		int difference = strcmp(subject->parts[middle].name, name);

		if (difference == 0) {
			*ret = check->last_part = middle;
			return true;
		}
		if (difference < 0) {
			first = middle + 1;
		} else {
			end = middle;
		}
	}
	return false;
}

static int fail_entry(struct json_cursor *cursor, const struct weight_map_entry *entry,
		      const char *fault, const char *file)
{
	char tensor[SHOW_NAME_SIZE];
	char shown[SHOW_NAME_SIZE];

	(void)show_name(entry->tensor, entry->tensor_size, tensor);
	(void)show_name(file, strlen(file), shown);
	(void)err_set(cursor->err, WIRE_BAD_FILE, "tensor \"%s\": %s %s", tensor, fault, shown);
	if (cursor->err != NULL) {
		cursor->err->offset = entry->at;
	}
	return -WIRE_BAD_FILE;
}

static int check_entry(struct json_cursor *cursor, const struct weight_map_entry *entry,
		       void *context)
{
	struct check *check = context;
	const struct index_subject *subject = check->subject;
	const struct order_name name = {entry->tensor, (uint32_t)entry->tensor_size};
	uint32_t part;
	uint32_t tensor;

	if (!find_part(check, entry->file, &part)) {
		return fail_entry(cursor, entry, "is said to be in a file that was not given,",
				  entry->file);
	}
	if (!order_find(subject->sorted, subject->n_tensors, name_of_tensor, subject->tensors, name,
			&tensor)) {
		return fail_entry(cursor, entry, "is in none of the files; it should be in",
				  entry->file);
	}
	if (subject->tensors[tensor].shard != part) {
		return fail_entry(cursor, entry, "is not in the file that is said, but in",
				  subject->parts[subject->tensors[tensor].shard].name);
	}
	if (check->is_tensor_named[tensor]) {
		return fail_entry(cursor, entry, "is named twice, the second time in", entry->file);
	}
	check->is_tensor_named[tensor] = check->is_part_named[part] = true;
	return 0;
}

static int check_parts(const struct check *check, struct err *err)
{
	char shown[SHOW_NAME_SIZE];

	for (uint32_t i = 0; i < check->subject->n_parts; i++) {
		const char *name = check->subject->parts[i].name;

		if (!check->is_part_named[i]) {
			return err_set(err, WIRE_BAD_FILE,
				       "no tensor of it is in %s, which was given too",
				       show_name(name, strlen(name), shown));
		}
	}
	return 0;
}

int index_check(const struct join_index *index, const struct index_subject *subject,
		struct err *err)
{
	struct check check = {.subject = subject};
	char shown[SHOW_NAME_SIZE];
	int code;

	check.is_part_named = calloc((size_t)subject->n_parts + 1, sizeof(bool));
	check.is_tensor_named = calloc((size_t)subject->n_tensors + 1, sizeof(bool));
	if (check.is_part_named == NULL || check.is_tensor_named == NULL) {
		code = err_set(err, WIRE_NO_MEMORY,
			       "no memory to compare %u tensors with the index",
			       subject->n_tensors);
	} else {
		code = weight_map_read(index->bytes, index->size, check_entry, &check, err);
		code = code < 0 ? code : check_parts(&check, err);
	}
	if (code == -WIRE_BAD_FILE) {
		(void)err_wrap(err, "index %s", show_name(index->name, strlen(index->name), shown));
	}
	free(check.is_part_named);
	free(check.is_tensor_named);
	return code;
}
