/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Which models a person's text may mean, without a look at all of them: an index by what fits
 * outright (id, path, name, name without its ending) and by what the rest begins or ends with.
 * It finds a few too many; the caller looks closer. Loop only, no memory of its own.
 */
#ifndef DAEMON_MODEL_TEXT_H
#define DAEMON_MODEL_TEXT_H

#include <stdint.h>

#define TEXT_BUCKETS 4096 /* a power of two */

struct model_info;

/* One of the texts that mean a model. owner: model_info::texts */
struct model_text {
	struct model_text *next; /* text_index::buckets, oldest first */
	struct model_info *model;
	uint32_t hash;
};

enum model_text_kind {
	MODEL_TEXT_ID, /* its first four digits */
	MODEL_TEXT_PATH,
	MODEL_TEXT_FILE,      /* last part of the path: that of every displayed name too */
	MODEL_TEXT_FILE_STEM, /* likewise without its ending */
	MODEL_TEXT_NAME,
	MODEL_TEXT_NAME_STEM,
	MODEL_TEXT_N_KINDS,
};

/* Zeroed first. */
struct text_index {
	struct model_text *buckets[TEXT_BUCKETS];
	uint64_t n_walks;
};

struct text_walk {
	const struct model_text *next;
	uint64_t number;
	uint32_t hashes[3];
	uint32_t n_hashes, n_done;
};

void text_index_add(struct text_index *index, struct model_info *model);
void text_index_remove(struct text_index *index, const struct model_info *model);
/* Walk: '*walk' zeroed first, the text stays the same; each model once, NULL at the end. */
struct model_info *text_index_next(struct text_index *index, const char *text,
				   struct text_walk *walk);

#endif
