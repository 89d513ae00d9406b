/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Which files a path names: one, or all files of one model. Several are named by the path of
 * their index, or of one of them beside their index, or by what they are together where there is
 * no such file ("m.safetensors" beside "m.safetensors.index.json"); parts of a GGUF file, which
 * have no index, by one of them. Any thread; may block.
 */
#ifndef OS_MODEL_PATH_H
#define OS_MODEL_PATH_H

#include "base/os/model_files.h"

#include <limits.h>
#include <stdbool.h>
#include <stddef.h>

struct err;

struct model_path {
	struct model_files *files; /* owned; NULL: it is a single file, which need not exist */
	bool has_index;
	char whole[PATH_MAX]; /* the path of the index or, where there is none, of the first file */
};

/*
 * An index is read, whatever lies beside it. WIRE_BAD_FILE and WIRE_TOO_LARGE name the index;
 * WIRE_IO, WIRE_NOT_ALLOWED, WIRE_NO_MEMORY.
 */
int model_path_find(const char *path, struct model_path *ret, struct err *err);
void model_path_fini(struct model_path *found);

/* The path of one of the files, by its name; the caller's to free. NULL: no memory. */
char *model_path_of_file(const struct model_path *found, const char *name);

/* Is there a regular file? */
bool model_path_is_file(const char *path);

#endif
