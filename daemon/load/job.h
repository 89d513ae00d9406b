/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Inside the load room: what a submission is while it runs. loader.c owns jobs, their threads
 * and their results; work.c holds the bodies, which run on a thread of the loader's each.
 */
#ifndef LOAD_JOB_H
#define LOAD_JOB_H

#include "base/list.h"

#include <stdbool.h>
#include <stdint.h>

#include "daemon/load/loader.h"
#include "daemon/load/reader.h"

struct thread_group;

struct job {
	struct list link; /* owner: loader::running, ::to_verify or ::to_drop */
	struct loader *loader;
	struct load_result *result;    /* NULL once posted; guarded by the loader's lock */
	struct read_progress progress; /* atomics */
	enum load_type type;           /* this and the next two: as submitted, for ever */
	uint64_t id;
	uint64_t segment;
	uint64_t begun_ns;
	int stop_code;        /* why it was stopped, 0: it was not; guarded by the loader's lock */
	uint64_t stop_offset; /* likewise, and the next */
	uint64_t stopped_ns;

	/* The watch's: what it saw last. Guarded by the loader's lock. */
	uint64_t seen_bytes;
	uint64_t moved_ns;  /* when seen_bytes last changed */
	uint64_t posted_ns; /* when progress was last posted */
	uint64_t posted_bytes;
	bool is_stalled;
	bool can_abandon; /* holds no memory of a device: its result need not wait for it */

	/* What was submitted. Only the job's thread touches these. */
	struct file *file;            /* a reference, or NULL */
	enum format wanted;           /* headers */
	struct file_key key;          /* fills: what the header was read from */
	const struct tensor_map *map; /* fills; borrowed */
	uint8_t model_id[16];
	uint64_t generation;
	uint32_t owner_uid;
	char *name;
	uint64_t *sums; /* rechecks and verifications: a copy */
	uint32_t n_sums;
	struct extent *extent; /* verifications borrow it, drops own it */
	struct job *then;      /* a drop that waits for this verification, or NULL */
};

/* What the bodies need of the loader. */
struct work {
	const struct loader_options *options;
	struct device *device;
	struct thread_group *group;
};

/* The bodies fill 'ret'; its err.code says how it went. They look at progress.is_stopped. */
void work_header(const struct work *work, struct job *job, struct load_result *ret);
void work_fill(const struct work *work, struct job *job, struct load_result *ret);
void work_recheck(const struct work *work, struct job *job, struct load_result *ret);
void work_verify(const struct work *work, struct job *job, struct load_result *ret);

#endif
