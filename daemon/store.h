/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the core's ids stand for: the one owner of source files, images and tables, and of
 * the names people use. The core decides; this only keeps. Loop only.
 */
#ifndef DAEMON_STORE_H
#define DAEMON_STORE_H

#include "base/err.h"
#include "base/list.h"

#include <stdbool.h>
#include <stdint.h>
#include <uthash.h>

#include "daemon/generation.h"
#include "daemon/history.h"
#include "daemon/job_info.h"
#include "daemon/model_text.h"

struct extent;
struct file;
struct image_set;
struct tensor_map;
struct load_result;
struct placed_record;

#define STORE_MAX_FILES 65536

/* owner: store::models, from EV_LOAD until ACT_FORGET_MODEL */
struct model_info {
	uint64_t id; /* core id */
	uint8_t uuid[16];
	char *name;               /* base name, never empty */
	char *path;               /* for display; may be empty */
	char *label;              /* NULL: none */
	uint32_t n_folders;       /* of the path shown before the name */
	struct file_id *file_ids; /* of a model of several files; NULL: a single one */
	uint32_t n_file_ids;
	struct generation_info current;
	struct park park;                /* of what it has on other devices too */
	struct placed_record *returning; /* whose devices are not known yet; owner: model */
	struct err failure;              /* of the last load, while the model is in state failed */
	uint64_t bad_at;    /* start of the 64 MiB that a verification found to differ */
	char bad_text[224]; /* which of its bytes those are, and who has them */
	UT_hash_handle hh;  /* store::models, by id */
	struct list by_age; /* store::models_by_age */
	struct model_text texts[MODEL_TEXT_N_KINDS];
	uint64_t seen;    /* by the last walk that met it */
	uint64_t brought; /* number of the load that brought the file at its path last; 0: none */
};

struct store;

struct store *store_new(void); /* NULL: no memory */
struct store *store_free(struct store *store);

/* Files: takes over one reference. Returns the id, 0 when the table is full. */
uint64_t store_add_file(struct store *store, struct file *file);
struct file *store_find_file(const struct store *store, uint64_t id);
/* Gives the reference back to the caller. */
struct file *store_take_file(struct store *store, uint64_t id);
uint32_t store_n_files(const struct store *store);

/* Copies by segment id; the store owns the extent until it is taken. Return 0, -WIRE_NO_MEMORY. */
int store_add_extent(struct store *store, uint64_t segment, struct extent *extent);
struct extent *store_find_extent(const struct store *store, uint64_t segment);
/* '*ret_park': where it was parked; may be NULL. */
struct extent *store_take_extent(struct store *store, uint64_t segment, struct park *ret_park);
/* Who reads a copy on a thread holds it: then it is dropped later. Every hold is ended once. */
void store_hold_extent(struct store *store, uint64_t segment);
/* True: it was to be dropped meanwhile, and nobody holds it any more: now. */
bool store_unhold_extent(struct store *store, uint64_t segment);
/* False: nobody holds it, it is to be dropped at once. */
bool store_drop_later(struct store *store, uint64_t segment);
/* Walk over the copies that may come to take more memory (device_taken): each call gives the next,
 * round and round. 0: there is none. */
uint32_t store_n_sparse(const struct store *store);
uint64_t store_next_sparse(struct store *store, uint64_t *ret_taken);
void store_set_park(struct store *store, uint64_t segment, const struct park *park);
/* NULL: there is no such copy. Borrowed until its extent is taken. */
const struct park *store_find_park(const struct store *store, uint64_t segment);

/* Models. 'name' is made printable UTF-8 by the caller. NULL: no memory. */
struct model_info *store_add_model(struct store *store, uint64_t id, const uint8_t *uuid,
				   const char *name, const char *path);
/* Which files it is made of, where there are several. Without memory it fits none. */
void model_info_set_files(struct model_info *model, const struct file *file);
/* For certain, and not only by their key. */
bool model_info_has_files(const struct model_info *model, const struct file *file);
struct model_info *store_find_model(const struct store *store, uint64_t id);
void store_forget_model(struct store *store, uint64_t id);
/* Walk in the order of registration: NULL first; NULL at the end. */
struct model_info *store_next_model(const struct store *store, const struct model_info *previous);

/* Walk over the models that a person's text may mean (model_text.h); '*walk' is zeroed first. */
struct model_info *store_next_meant(struct store *store, const char *text, struct text_walk *walk);

/*
 * The name that tells a model from the others of the same name: lengthened by as much of
 * the path as was ever needed, so that it stays when they go. Returns 'buffer'.
 */
const char *store_display_name(const struct model_info *model, char *buffer, uint32_t buffer_size);

/* Jobs. */
struct job_info *store_get_job(struct store *store, uint64_t id, uint64_t model); /* made if new */
struct job_info *store_find_job(const struct store *store, uint64_t id);
void store_forget_job(struct store *store, uint64_t id);

#endif
