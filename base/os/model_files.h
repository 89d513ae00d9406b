/* SPDX-License-Identifier: Apache-2.0 */
/* The names of the files of a model that has several. Pure but for memory; any thread. */
#ifndef OS_MODEL_FILES_H
#define OS_MODEL_FILES_H

#include <stddef.h>
#include <stdint.h>

struct err;

#define MODEL_MAX_FILES 256

/* Once each, ascending as bytes are. */
struct model_files {
	uint32_t n;
	char *names[MODEL_MAX_FILES]; /* owned; base names, neither "." nor ".." */
};

/*
 * Those that an index names (base/weight_map.h). '*ret' is the caller's, to free with
 * model_files_free. -WIRE_BAD_FILE: it is no index, or names no file or what is none;
 * -WIRE_TOO_LARGE: it names too many; -WIRE_NO_MEMORY.
 */
int model_files_read(const void *index, size_t size, struct model_files **ret, struct err *err);
struct model_files *model_files_free(struct model_files *files); /* returns NULL */

#endif
