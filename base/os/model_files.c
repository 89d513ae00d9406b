/* SPDX-License-Identifier: Apache-2.0 */
/* See model_files.h. */
#include "base/os/model_files.h"

#include "base/err.h"
#include "base/json_scan.h"
#include "base/os/sys.h"
#include "base/text.h"
#include "base/weight_map.h"

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "proto/gen/wire_code.h"

#define SHOWN_SIZE 96

struct gathering {
	struct model_files *files;
	uint32_t last; /* the place of the one that the entry before named */
};

static bool is_base_name(const char *name)
{
	return name[0] != '\0' && strchr(name, '/') == NULL && strcmp(name, ".") != 0 &&
	       strcmp(name, "..") != 0;
}

/* Where it is, or would be. */
static bool find(const struct model_files *files, const char *name, uint32_t *ret)
{
	uint32_t first = 0;
	uint32_t end = files->n;

	while (first < end) {
		uint32_t middle = first + (end - first) / 2;
		int difference = strcmp(files->names[middle], name);

		if (difference == 0) {
			*ret = middle;
			return true;
		}
		if (difference < 0) {
			first = middle + 1;
		} else {
			end = middle;
		}
	}
	*ret = first;
	return false;
}

static int take_file(struct json_cursor *cursor, const struct weight_map_entry *entry,
		     void *context)
{
	struct gathering *gathering = context;
	struct model_files *files = gathering->files;
	size_t size = strlen(entry->file) + 1;
	char shown[SHOWN_SIZE];
	char *copy;

	if (gathering->last < files->n && strcmp(files->names[gathering->last], entry->file) == 0) {
		return 0;
	}
	if (find(files, entry->file, &gathering->last)) {
		return 0;
	}
	if (!is_base_name(entry->file)) {
		char text[SHOWN_SIZE + 64];

		(void)snprintf(text, sizeof text, "\"%s\" is no name of a file beside the index",
			       text_escape(entry->file, shown, sizeof shown));
		return json_fail(cursor, entry->at, text);
	}
	if (files->n == MODEL_MAX_FILES) {
		return err_set(cursor->err, WIRE_TOO_LARGE,
			       "it names more than %d files, the most that a model may have",
			       MODEL_MAX_FILES);
	}
	copy = sys_malloc(size);
	if (copy == NULL) {
		return err_set(cursor->err, WIRE_NO_MEMORY, "no memory for a file's name");
	}
	memcpy(copy, entry->file, size);
	memmove(&files->names[gathering->last + 1], &files->names[gathering->last],
		(files->n - gathering->last) * sizeof *files->names);
	files->names[gathering->last] = copy;
	files->n++;
	return 0;
}

int model_files_read(const void *index, size_t size, struct model_files **ret, struct err *err)
{
	struct gathering gathering = {
		.files = sys_calloc(1, sizeof *gathering.files),
	};
	int code;

	if (gathering.files == NULL) {
		return err_set(err, WIRE_NO_MEMORY, "no memory to read an index");
	}
	code = weight_map_read(index, size, take_file, &gathering, err);
	if (code == 0 && gathering.files->n == 0) {
		code = err_set(err, WIRE_BAD_FILE, "its weight_map names no file");
	}
	if (code < 0) {
		(void)model_files_free(gathering.files);
		return code;
	}
	*ret = gathering.files;
	return 0;
}

struct model_files *model_files_free(struct model_files *files)
{
	for (uint32_t i = 0; files != NULL && i < files->n; i++) {
		free(files->names[i]);
	}
	free(files);
	return NULL;
}
