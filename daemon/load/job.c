/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One submission from when it is made until its result is posted: what it was given, whose turn
 * it is, what came of it. Loop and job threads. See job.h and loader_inside.h.
 */
#include "base/list.h"
#include "base/os/clock.h"
#include "base/os/sys.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sysmacros.h>

#include "daemon/load/loader_inside.h"
#include "proto/gen/wire_code.h"

#define MAX_FILLS         2 /* of a job, on each device: the next one reads while one is sealed */
#define MAX_VERIFICATIONS 2 /* on each device, likewise */
/* Reads of one uid's files that were given up and hang still. */
#define MAX_STUCK_THERE 4  /* on one filesystem */
#define MAX_STUCK       32 /* wherever they lie */

/* ---- what it was given ---- */

struct job *job_free(struct job *job)
{
	if (job == NULL) {
		return NULL;
	}
	(void)file_unref(job->file);
	free(job->result);
	free(job->keys);
	free(job->sums);
	free(job);
	return NULL;
}

/* NULL: no memory. Takes a reference of 'file', which may be NULL. */
struct job *job_new(struct loader *loader, enum load_type type, uint64_t id, uint64_t segment,
		    struct file *file)
{
	struct job *job = sys_calloc(1, sizeof *job);

	if (job == NULL) {
		return NULL;
	}
	list_init(&job->link);
	job->result = sys_calloc(1, sizeof *job->result);
	if (job->result == NULL) {
		return job_free(job);
	}
	job->loader = loader;
	job->type = type;
	job->id = id;
	job->segment = segment;
	job->file = file == NULL ? NULL : file_ref(file);
	job->begun_ns = job->moved_ns = clock_mono_ns();
	job->can_abandon = type == LOAD_HEADER || type == LOAD_RECHECKED;
	return job;
}

/* NULL sums are no sums. False: no memory. */
bool job_copy_sums(struct job *job, const uint64_t *sums, uint32_t n_sums)
{
	if (sums == NULL || n_sums == 0) {
		return true;
	}
	job->sums = sys_calloc(n_sums, sizeof *sums);
	if (job->sums == NULL) {
		return false;
	}
	memcpy(job->sums, sums, n_sums * sizeof *sums);
	job->n_sums = n_sums;
	return true;
}

/* What each of the files was when its header was read. False: no memory. */
bool job_copy_keys(struct job *job)
{
	const uint32_t n_files = file_n_shards(job->file);

	job->keys = sys_calloc(n_files, sizeof *job->keys);
	if (job->keys == NULL) {
		return false;
	}
	thread_lock(&job->loader->lock);
	for (uint32_t i = 0; i < n_files; i++) {
		job->keys[i] = file_shard(job->file, i)->read_key;
	}
	thread_unlock(&job->loader->lock);
	return true;
}

/* ---- its end ---- */

struct load_result job_result_of(const struct job *job)
{
	return (struct load_result){.type = job->type,
				    .job = job->id,
				    .segment = job->segment,
				    .table_fd = -1};
}

void job_describe_stop(const struct job *job, struct err *err)
{
	if (job->stop_code == WIRE_TIMEOUT && job->device != NULL) {
		(void)err_set(err, WIRE_TIMEOUT, "no byte reached %s for %llu s", job->device->name,
			      (unsigned long long)(2 * job->loader->options.stall_ns /
						   1000000000U));
	} else if (job->stop_code == WIRE_TIMEOUT) {
		(void)err_set(err, WIRE_TIMEOUT, "no byte came for %llu s at byte %llu of the file",
			      (unsigned long long)(2 * job->loader->options.stall_ns / 1000000000U),
			      (unsigned long long)job->stop_offset);
		err->offset = job->stop_offset;
	} else {
		(void)err_set(err, job->stop_code, "the load was cancelled");
	}
}

/* NOLINTNEXTLINE(misc-no-recursion): once, to the drop that waits for a verification */
void job_finish(struct job *job, struct load_result *found)
{
	struct loader *loader = job->loader;
	struct load_result *result;

	found->available = loader_read_available(loader);
	found->duration_ns = clock_mono_ns() - job->begun_ns;
	thread_lock(&loader->lock);
	if (found->available != UINT64_MAX) {
		loader->available = found->available;
	}
	list_remove(&job->link);
	if (job->type == LOAD_VERIFIED) {
		job->extent->verification = NULL;
	}
	if (job->stop_code != 0 && found->err.code == WIRE_CANCELLED) {
		job_describe_stop(job, &found->err);
	}
	result = job->result;
	job->result = NULL;
	if (result != NULL && job->type == LOAD_HEADER && found->err.code == 0) {
		job->file->read_key = found->key;
		for (uint32_t i = 0; i < file_n_shards(job->file); i++) {
			file_shard(job->file, i)->read_key = job->keys[i];
		}
	}
	(void)pthread_cond_broadcast(&loader->verified);
	if (result != NULL) {
		*result = *found;
		loader_post_locked(loader, result);
	}
	thread_unlock(&loader->lock);
	if (result == NULL) {
		tensor_map_free(found->map); /* an abandoned job holds nothing else */
	}
	if (job->then != NULL) {
		job_start_drop(job->then);
	}
	(void)job_free(job);
}

void job_stop_locked(struct job *job, int code)
{
	if (job->stop_code == 0) {
		job->stop_code = code;
		job->stop_offset = read_progress_offset(&job->progress);
		job->stopped_ns = clock_mono_ns();
		__atomic_store_n(&job->progress.is_stopped, true, __ATOMIC_RELAXED);
	}
}

/* ---- its turn ---- */

/* Jobs that wait for each other: fills of one job on the same device; drops, and verifications,
 * on the same device. */
static bool are_of_a_lane(const struct job *a, const struct job *b)
{
	return a->type == b->type && a->lane == b->lane &&
	       (a->type != LOAD_FILLED || a->id == b->id);
}

/* How many of a lane may run at once; 0: as many as there are. Each fill reads with several
 * threads. */
static uint32_t lane_width(const struct job *job)
{
	return job->type == LOAD_FILLED     ? MAX_FILLS
	       : job->type == LOAD_VERIFIED ? MAX_VERIFICATIONS
	       : job->type == LOAD_DROPPED  ? 1
					    : 0;
}

/* Those that wait in its lane, and few others. */
static struct list *waiting_with(struct loader *loader, const struct job *job)
{
	uint64_t mixed = (uint64_t)(uintptr_t)job->lane + (uint64_t)job->type;

	mixed += job->type == LOAD_FILLED ? job->id : 0;
	return &loader->waiting[(mixed * 0x9e3779b97f4a7c15U >> 32) % N_WAITING];
}

/* The one of the same lane that waits longest, running now; NULL: none does. */
static struct job *take_waiting(struct loader *loader, struct job *done)
{
	struct job *found = NULL;

	if (lane_width(done) == 0) {
		return NULL;
	}
	thread_lock(&loader->lock);
	LIST_FOR_EACH (link, waiting_with(loader, done)) {
		if (are_of_a_lane(container_of(link, struct job, link), done)) {
			found = container_of(link, struct job, link);
			break;
		}
	}
	if (found != NULL) {
		list_remove(&found->link);
		list_append(&loader->running, &found->link);
		found->has_begun = true;
		found->begun_ns = found->moved_ns = clock_mono_ns();
	}
	done->has_left = true; /* nobody who comes now may wait for it */
	thread_unlock(&loader->lock);
	return found;
}

void job_queue_drop_locked(struct job *job)
{
	list_remove(&job->link);
	list_append(&job->loader->to_drop, &job->link);
	(void)pthread_cond_signal(&job->loader->drop_wanted);
}

/* Where it lies; of several files the first one. */
static uint64_t filesystem_of(const struct job *job)
{
	return file_shard(job->file, 0)->key.dev;
}

/* Each keeps a thread, descriptors and perhaps a header's memory as long as its file's server likes.
 * How many are more than enough; 0: there are fewer. */
static uint32_t too_many_stuck_locked(const struct loader *loader, const struct job *job)
{
	uint32_t n_stuck = 0;
	uint32_t n_there = 0;

	LIST_FOR_EACH (link, &loader->running) {
		const struct job *other = container_of(link, struct job, link);

		if (other->result == NULL && other->file->owner == job->file->owner) {
			n_stuck++;
			n_there += filesystem_of(other) == filesystem_of(job) ? 1 : 0;
		}
	}
	return n_there >= MAX_STUCK_THERE ? MAX_STUCK_THERE : n_stuck >= MAX_STUCK ? MAX_STUCK : 0;
}

static void refuse(const struct job *job, struct err *err)
{
	const uint64_t dev = filesystem_of(job);

	if (job->n_stuck == MAX_STUCK_THERE) {
		(void)err_set(err, WIRE_TOO_MANY,
			      "%d reads of files of uid %u on the filesystem %u:%u hang already: "
			      "its server (FUSE, network) does not answer; bring it back or end it",
			      MAX_STUCK_THERE, job->file->owner, major(dev), minor(dev));
	} else {
		(void)err_set(err, WIRE_TOO_MANY,
			      "%d reads of files of uid %u hang already: the servers of their "
			      "filesystems (FUSE, network) do not answer; bring them back or end "
			      "them",
			      MAX_STUCK, job->file->owner);
	}
}

static void do_body(struct job *job, struct load_result *ret)
{
	static void (*const bodies[])(const struct work *, struct job *, struct load_result *) = {
		[LOAD_HEADER] = work_header,     [LOAD_FILLED] = work_fill,
		[LOAD_TABLED] = work_make_table, [LOAD_RECHECKED] = work_recheck,
		[LOAD_DROPPED] = work_drop,      [LOAD_VERIFIED] = work_verify_device,
		[LOAD_MEASURED] = work_drop,
	};

	if (job->n_stuck > 0) {
		refuse(job, &ret->err);
		return;
	}
	bodies[job->type](&job->loader->work, job, ret);
}

/* NOLINTNEXTLINE(misc-no-recursion): once, to the drop that waits for a verification */
void job_do(struct job *job)
{
	struct load_result found = job_result_of(job);

	do_body(job, &found);
	job_finish(job, &found);
}

static void run_job(void *argument)
{
	struct job *job = argument;
	struct loader *loader = job->loader;
	struct job *next = NULL;

	window_pool_enter(&loader->pool);
	for (; job != NULL; job = next) {
		struct load_result found = job_result_of(job);

		do_body(job, &found);
		/* Before it is off the list: what waits must find one that runs. */
		next = take_waiting(loader, job);
		if (next == NULL) {
			window_pool_leave(&loader->pool); /* free before the result says so */
		}
		job_finish(job, &found);
	}
}

/* Has the lane as many that run as it may have? */
static bool has_to_wait_locked(const struct loader *loader, const struct job *job)
{
	const uint32_t width = lane_width(job);
	uint32_t n_running = 0;

	if (width == 0) {
		return false;
	}
	LIST_FOR_EACH (link, &loader->running) {
		const struct job *other = container_of(link, struct job, link);

		n_running += are_of_a_lane(other, job) && !other->has_left ? 1 : 0;
	}
	return n_running >= width;
}

/* For the thread that there is for it. */
/* NOLINTNEXTLINE(misc-no-recursion): once, to the drop that waits for a verification */
static void queue_drop(struct job *job)
{
	struct loader *loader = job->loader;
	bool is_ending;

	thread_lock(&loader->lock);
	is_ending = loader->is_stopping; /* that thread may have ended */
	if (!is_ending) {
		job_queue_drop_locked(job);
	}
	thread_unlock(&loader->lock);
	if (is_ending) {
		job_do(job);
	}
}

/* There was no thread for it, nor perhaps for those that wait for it by now. */
/* NOLINTNEXTLINE(misc-no-recursion): once, to the drop that waits for a verification */
static void fail_start(struct job *job)
{
	struct loader *loader = job->loader;
	struct job *next;

	do {
		next = take_waiting(loader, job);
		if (job->type == LOAD_DROPPED) { /* else it would never be free */
			queue_drop(job);
		} else {
			struct load_result found = job_result_of(job);

			(void)err_set(&found.err, WIRE_NO_MEMORY, "no thread for the job");
			job_finish(job, &found);
		}
		job = next;
	} while (job != NULL && !thread_start(&loader->group, "distorch-load", run_job, job));
}

/* NOLINTNEXTLINE(misc-no-recursion): once, to the drop that waits for a verification */
void job_start(struct job *job)
{
	struct loader *loader = job->loader;

	thread_lock(&loader->lock);
	if (has_to_wait_locked(loader, job)) {
		list_append(waiting_with(loader, job),
			    &job->link); /* one that runs goes on with it */
		thread_unlock(&loader->lock);
		return;
	}
	job->n_stuck = job->can_abandon ? too_many_stuck_locked(loader, job) : 0;
	list_append(&loader->running, &job->link);
	job->has_begun = true;
	(void)pthread_cond_signal(&loader->watch_wanted);
	thread_unlock(&loader->lock);
	if (!thread_start(&loader->group, "distorch-load", run_job, job)) {
		fail_start(job);
	}
}

/*
 * Copies on the host are dropped by one thread. Other devices have a lane each, so that one that
 * does not answer holds up no other.
 */
/* NOLINTNEXTLINE(misc-no-recursion): once, to the drop that waits for a verification */
void job_start_drop(struct job *job)
{
	if (job->lane != NULL) {
		job_start(job);
	} else {
		queue_drop(job);
	}
}
