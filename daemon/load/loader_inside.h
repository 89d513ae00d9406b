/* SPDX-License-Identifier: Apache-2.0 */
/* Inside the load room: what loader.c and its watch (watch.c) share, and nobody else. */
#ifndef LOAD_LOADER_INSIDE_H
#define LOAD_LOADER_INSIDE_H

#include "base/list.h"

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "daemon/load/job.h"
#include "daemon/load/loader.h"
#include "daemon/load/thread.h"
#include "daemon/load/window_pool.h"

#define N_WAITING      64        /* a power of two */
#define MAX_UNANSWERED (1 << 18) /* over twice the segments and jobs there can be */

/* A submission for which there was no memory. */
struct unanswered {
	enum load_type type;
	uint64_t job;
	uint64_t segment;
	struct extent *extent; /* of a drop, which is to be done first; else NULL */
};

struct loader {
	struct loader_options options;
	char *root; /* options.root */
	struct work work;
	struct mailbox *box;
	struct thread_group group;
	struct window_pool pool; /* its users are threads of jobs */

	pthread_mutex_t lock; /* of everything below */
	pthread_cond_t watch_wanted;
	pthread_cond_t verify_wanted;
	pthread_cond_t drop_wanted;
	pthread_cond_t verified;
	struct list running; /* job::link of reads */
	struct list
		waiting[N_WAITING];    /* job::link, until another of their lane is done; by lane */
	struct list to_verify;         /* job::link; the first is being verified */
	struct list to_drop;           /* job::link; before a drop, the verification that waits */
	struct unanswered *unanswered; /* a ring; fresh zero pages until it is needed */
	uint32_t first_unanswered, n_unanswered;
	struct unanswered *undropped; /* likewise: drops that are no jobs */
	uint32_t first_undropped, n_undropped;
	uint64_t available; /* as it could be read last; UINT64_MAX: never */
	bool is_stopping;   /* nothing is posted any more */
};

/* watch.c: the body of the watch's thread; 'argument' is the loader. */
void watch_run(void *argument);

/* loader.c */
/* What can be taken now; UINT64_MAX: it cannot be read. Without the lock. */
uint64_t loader_read_available(const struct loader *loader);
/* Under the lock, so that nothing is posted once loader_free has begun. */
void loader_post_locked(const struct loader *loader, struct load_result *result);

/* job.c */
/* Takes a reference of 'file', which may be NULL. NULL: no memory. */
struct job *job_new(struct loader *loader, enum load_type type, uint64_t id, uint64_t segment,
		    struct file *file);
struct job *job_free(struct job *job);
/* What a submission lent. False: no memory, or no descriptor. */
bool job_copy_sums(struct job *job, const uint64_t *sums, uint32_t n_sums); /* NULL: none */
bool job_copy_keys(struct job *job); /* what each file was when its header was read */
/* On a thread of its own, when it is its turn. It is job.c's from then on. */
void job_start(struct job *job);
void job_start_drop(struct job *job);
/* From whatever list it is in, for the thread that drops. */
void job_queue_drop_locked(struct job *job);
/* On this thread. */
void job_do(struct job *job);
/* Its thread is done: posts what came of it, unless the watch did already, and frees it. */
void job_finish(struct job *job, struct load_result *found);
struct load_result job_result_of(const struct job *job);
void job_describe_stop(const struct job *job, struct err *err);
void job_stop_locked(struct job *job, int code);

#endif
