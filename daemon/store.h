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

#include "daemon/history.h"
#include "daemon/model_text.h"

struct extent;
struct file;
struct tensor_map;
struct load_result;

#define STORE_MAX_FILES    65536
#define STORE_MAX_EVICTED  16 /* victims that a load's answer names */
#define STORE_MAX_WATCHERS 8  /* clients told of the end of a load begun with no_wait */

/* Everything about one content of a model that the core has no use for. */
struct generation_info {
	int table_fd;   /* sealed memfd; -1: none */
	uint64_t *sums; /* XXH3 of each 64 MiB */
	uint32_t n_sums;
	uint32_t format; /* enum format, as read */
	uint32_t n_tensors;
	uint32_t n_blocks;
	uint64_t page_bytes; /* page size obtained */
	uint64_t huge_bytes; /* of the image in 2 MiB pages */
	uint64_t checksum;
	char notice[160];              /* why less than asked was obtained; empty: nothing to say */
	uint64_t image_dev, image_ino; /* of the first image, as fstat of a client has it */
	bool is_from_store;            /* taken over from an earlier life, not read */
	bool is_parked;                /* survives a restart */
};

/* owner: store::models, from EV_LOAD until ACT_FORGET_MODEL */
struct model_info {
	uint64_t id; /* core id */
	uint8_t uuid[16];
	char *name;         /* base name, never empty */
	char *path;         /* for display; may be empty */
	char *label;        /* NULL: none */
	uint32_t n_folders; /* of the path shown before the name */
	struct generation_info current;
	struct err failure; /* of the last load, while the model is in state failed */
	uint64_t bad_at;    /* start of the 64 MiB that a verification found to differ */
	UT_hash_handle hh;  /* store::models, by id */
	struct list by_age; /* store::models_by_age */
	struct model_text texts[MODEL_TEXT_N_KINDS];
	uint64_t seen; /* by the last walk that met it */
};

/* owner: store::jobs, from the first action of a job until ACT_FORGET_JOB */
struct job_info {
	uint64_t id;
	uint64_t model;
	uint64_t begun_ns;
	uint64_t file;               /* its source, while it is filled */
	struct tensor_map *map;      /* parsed header, until the fill is done */
	struct generation_info next; /* becomes the model's at ACT_PUBLISH */
	struct err failure;
	uint32_t n_evicted;
	struct {
		uint64_t model;
		uint64_t bytes;
		enum core_why why;
	} evicted[STORE_MAX_EVICTED];
	uint32_t n_watchers;
	struct {
		uint64_t client;
		uint32_t request;
	} watchers[STORE_MAX_WATCHERS];
	UT_hash_handle hh; /* store::jobs, by id */
};

/* Under which names a copy's descriptors are parked with who restarts us (daemon/persist.h). */
struct park {
	bool is_parked;
	bool is_taken; /* he said so */
	uint8_t uuid[16];
	uint64_t generation;
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
void store_set_park(struct store *store, uint64_t segment, const struct park *park);
/* NULL: there is no such copy. Borrowed until its extent is taken. */
const struct park *store_find_park(const struct store *store, uint64_t segment);

/* Models. 'name' is made printable UTF-8 by the caller. NULL: no memory. */
struct model_info *store_add_model(struct store *store, uint64_t id, const uint8_t *uuid,
				   const char *name, const char *path);
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

void generation_info_fini(struct generation_info *info);

#endif
