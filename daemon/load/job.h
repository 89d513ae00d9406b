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

struct image_set;
struct thread_group;
struct window_pool;

struct job {
	struct list link; /* owner: loader::running, ::waiting, ::to_verify or ::to_drop */
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
	uint64_t seen_moved; /* those, and what is on its way to be counted there */
	uint64_t moved_ns;   /* when that last changed */
	uint64_t posted_ns;  /* when progress was last posted */
	uint64_t posted_bytes;
	bool is_stalled, posted_stalled;
	bool can_abandon; /* holds no memory of a device: its result need not wait for it */
	uint32_t n_stuck; /* like it, too many: it is refused; not written any more once it runs */

	/* What was submitted. Only the job's thread touches these. */
	struct file *file;     /* a reference, or NULL */
	enum format wanted;    /* headers */
	enum cache_wish wish;  /* headers */
	bool by_tensor;        /* headers */
	struct file_key *keys; /* of each file: headers found them, the rest knows them by them */
	uint64_t header_bytes; /* headers: that they may still have */
	enum fill_into into;   /* fills */
	struct file_key key;   /* fills: what the header was read from */
	struct image_set *images; /* fills; borrowed */
	uint32_t index;           /* fills: which of the images, or which block */
	struct device *device;    /* fills of another device than the host; borrowed */
	const struct device *peers[DEVICE_MAX_PEERS]; /* of it; never looked into */
	uint32_t n_peers;
	const struct device
		*lane;  /* fills, drops and verifications there: whose turn; never looked into */
	bool has_begun; /* it need not wait for its turn any more; guarded by the loader's lock */
	bool has_left;  /* it is done with its lane, though not off the list yet */
	uint64_t *sums; /* rechecks and verifications: a copy */
	uint32_t n_sums;
	struct extent *extent;      /* verifications borrow it, drops own it */
	struct job *then;           /* a drop that waits for this verification, or NULL */
	int table_fd;               /* verifications of other devices; borrowed, as the next */
	struct extent *const *from; /* an image of each file, or NULL */
	uint32_t n_from;
};

/* What the bodies need of the loader. */
struct work {
	const struct loader_options *options;
	struct device *device;
	struct thread_group *group;
	struct window_pool *pool;
};

/* The bodies fill 'ret'; its err.code says how it went. They look at progress.is_stopped. */
void work_header(const struct work *work, struct job *job, struct load_result *ret);
void work_fill(const struct work *work, struct job *job, struct load_result *ret);
void work_recheck(const struct work *work, struct job *job, struct load_result *ret);
void work_verify(const struct work *work, struct job *job, struct load_result *ret);
void work_verify_device(const struct work *work, struct job *job, struct load_result *ret);
void work_drop(const struct work *work, struct job *job, struct load_result *ret);
void work_make_table(const struct work *work, struct job *job, struct load_result *ret);
/* Of work_fill, in files of their own; on failure their memory is left in 'ret'. */
int work_fill_sparse(const struct work *work, struct job *job, struct load_result *ret);
int work_fill_device(const struct work *work, struct job *job, struct load_result *ret);

/* What the bodies share. */
static inline bool job_is_stopped(const struct job *job)
{
	return __atomic_load_n(&job->progress.is_stopped, __ATOMIC_RELAXED);
}
struct reader work_reader(const struct work *work, struct job *job, const struct file *file,
			  uint64_t bytes);
/* A failure with one of several files says with which. */
int work_name_file(const struct file *file, int code, struct err *err);
/* Is a file what its header was read from? WIRE_CHANGED_WHILE_READING. */
int work_check_key(const struct file *file, const struct file_key *key, struct err *err);
/* A model that cannot be locked serves as well, and says so. */
void work_lock(struct extent *extent, char *ret_notice);
/* The image is full: checked, sealed, and its pages looked at. */
int work_seal_image(const struct work *work, struct job *job, struct load_result *ret);

#endif
