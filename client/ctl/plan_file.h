/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the planner has to know of a model file: its blocks, from its header and nothing else, be
 * it 30 GB long. A model of several files is named as in load.
 */
#ifndef CTL_PLAN_FILE_H
#define CTL_PLAN_FILE_H

#include <stdbool.h>
#include <stdint.h>

#include "daemon/plan/plan.h"

struct err;
struct tensor_map;

struct plan_file {
	struct tensor_map *map;    /* owned; names of blocks borrow from it */
	struct plan_block *blocks; /* owned */
	uint32_t *n_tensors;       /* owned; of each block */
	uint32_t n_blocks;
};

/*
 * 'format' may be NULL; 'by_tensor': one block a tensor. '*ret' is the caller's also after a
 * failure: plan_file_fini. -WIRE_NOT_FOUND, _NOT_ALLOWED, _IO, _BAD_FILE, _UNSUPPORTED,
 * _BAD_ARGUMENT (the format), _TOO_LARGE, _NO_MEMORY; the text names the file.
 */
int plan_file_read(const char *path, const char *format, bool by_tensor, struct plan_file *ret,
		   struct err *err);
void plan_file_fini(struct plan_file *file);

/* Does it name a file, or is it a path, of which it is then said why there is none? */
bool plan_file_is_meant(const char *word);

#endif
