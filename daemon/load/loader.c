/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Jobs, their threads and their results. A read has a thread of its own (a file that hangs
 * holds nobody else up); one thread drops images, one hashes resident copies, and one watches
 * the reads: progress, stalls, and results of jobs that are stuck. At rest all three sleep.
 * See loader.h; what the jobs do is in work.c.
 */
#include "daemon/load/loader.h"

#include "base/list.h"
#include "base/os/clock.h"
#include "base/os/sys.h"
#include "base/require.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "daemon/load/job.h"
#include "daemon/load/memory.h"
#include "daemon/load/result.h"
#include "daemon/load/thread.h"
#include "proto/gen/wire_code.h"

#define DEFAULT_THREADS 4U
#define STOP_LIMIT_NS   2000000000ULL
#define MAX_UNANSWERED  (1 << 18) /* over twice the segments and jobs there can be */

/* A submission for which there was no memory. */
struct unanswered {
	enum load_type type;
	uint64_t job;
	uint64_t segment;
};

struct loader {
	struct loader_options options;
	char *root; /* options.root */
	struct work work;
	struct mailbox *box;
	struct thread_group group;

	pthread_mutex_t lock; /* of everything below */
	pthread_cond_t watch_wanted;
	pthread_cond_t verify_wanted;
	pthread_cond_t drop_wanted;
	pthread_cond_t verified;
	struct list running;           /* job::link of reads */
	struct list to_verify;         /* job::link; the first is being verified */
	struct list to_drop;           /* job::link */
	struct unanswered *unanswered; /* a ring; fresh zero pages until it is needed */
	uint32_t first_unanswered, n_unanswered;
	uint64_t available; /* as it could be read last; UINT64_MAX: never */
	bool is_stopping;   /* nothing is posted any more */
};

/* ---- results ---- */

static uint64_t read_available(const struct loader *loader)
{
	struct host_memory memory;

	/* What cannot be read bounds nothing: the budget still does. */
	return host_memory_read(loader->root, &memory, NULL) < 0 ? UINT64_MAX : memory.available;
}

/* Under the lock, so that nothing is posted once loader_free has begun. */
static void post_locked(const struct loader *loader, struct load_result *result)
{
	if (loader->is_stopping) {
		(void)load_result_free(result);
	} else {
		mailbox_post(loader->box, &result->mail);
	}
}

/* The answer to a submission that could not even become a job: the watch has time for it. */
static void post_no_memory(struct loader *loader, enum load_type type, uint64_t job,
			   uint64_t segment)
{
	thread_lock(&loader->lock);
	/* The ring is larger than what the core can ask for. */
	if (loader->n_unanswered < MAX_UNANSWERED) {
		const uint32_t at =
			(loader->first_unanswered + loader->n_unanswered) % MAX_UNANSWERED;

		loader->unanswered[at] =
			(struct unanswered){.type = type, .job = job, .segment = segment};
		loader->n_unanswered++;
	}
	(void)pthread_cond_signal(&loader->watch_wanted);
	thread_unlock(&loader->lock);
}

/* Without the lock, which the loop may want meanwhile. What cannot be read stays as it was. */
static void refresh_available_locked(struct loader *loader)
{
	uint64_t available;

	thread_unlock(&loader->lock);
	available = read_available(loader);
	thread_lock(&loader->lock);
	loader->available = available == UINT64_MAX ? loader->available : available;
}

static void answer_locked(struct loader *loader)
{
	if (loader->n_unanswered > 0) {
		refresh_available_locked(loader);
	}
	while (loader->n_unanswered > 0) {
		const struct unanswered *one = &loader->unanswered[loader->first_unanswered];
		struct load_result *result = result_take_spare();

		if (result == NULL) {
			return; /* the loop has many to see first */
		}
		result->type = one->type;
		result->job = one->job;
		result->segment = one->segment;
		result->table_fd = -1;
		result->available = loader->available;
		if (one->type != LOAD_DROPPED) {
			(void)err_set(&result->err, WIRE_NO_MEMORY, "no memory for the job");
		}
		loader->first_unanswered = (loader->first_unanswered + 1) % MAX_UNANSWERED;
		loader->n_unanswered--;
		post_locked(loader, result);
	}
}

/* ---- jobs ---- */

static struct job *job_free(struct job *job)
{
	if (job == NULL) {
		return NULL;
	}
	(void)file_unref(job->file);
	free(job->result);
	free(job->name);
	free(job->sums);
	free(job);
	return NULL;
}

/* NULL: no memory. Takes a reference of 'file', which may be NULL. */
static struct job *job_new(struct loader *loader, enum load_type type, uint64_t id,
			   uint64_t segment, struct file *file)
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
static bool job_copy_sums(struct job *job, const uint64_t *sums, uint32_t n_sums)
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

static struct load_result result_of(const struct job *job)
{
	return (struct load_result){.type = job->type,
				    .job = job->id,
				    .segment = job->segment,
				    .table_fd = -1};
}

static void describe_stop(const struct job *job, struct err *err)
{
	if (job->stop_code == WIRE_TIMEOUT) {
		(void)err_set(err, WIRE_TIMEOUT, "no byte came for %llu s at byte %llu of the file",
			      (unsigned long long)(2 * job->loader->options.stall_ns / 1000000000U),
			      (unsigned long long)job->stop_offset);
		err->offset = job->stop_offset;
	} else {
		(void)err_set(err, job->stop_code, "the load was cancelled");
	}
}

/* The job's thread is done: post what came of it, unless the watch did already. */
static void job_finish(struct job *job, struct load_result *found)
{
	struct loader *loader = job->loader;
	struct load_result *result;

	found->available = read_available(loader);
	found->duration_ns = clock_mono_ns() - job->begun_ns;
	thread_lock(&loader->lock);
	if (found->available != UINT64_MAX) {
		loader->available = found->available;
	}
	list_remove(&job->link);
	if (job->stop_code != 0 && found->err.code == WIRE_CANCELLED) {
		describe_stop(job, &found->err);
	}
	result = job->result;
	job->result = NULL;
	if (result != NULL && job->type == LOAD_HEADER && found->err.code == 0) {
		job->file->read_key = found->key;
	}
	(void)pthread_cond_broadcast(&loader->verified);
	if (job->then != NULL) {
		list_append(&loader->to_drop, &job->then->link);
		(void)pthread_cond_signal(&loader->drop_wanted);
	}
	if (result != NULL) {
		*result = *found;
		post_locked(loader, result);
	}
	thread_unlock(&loader->lock);
	if (result == NULL) {
		tensor_map_free(found->map); /* an abandoned job holds nothing else */
	}
	(void)job_free(job);
}

static void stop_locked(struct job *job, int code)
{
	if (job->stop_code == 0) {
		job->stop_code = code;
		job->stop_offset = read_progress_offset(&job->progress);
		job->stopped_ns = clock_mono_ns();
		__atomic_store_n(&job->progress.is_stopped, true, __ATOMIC_RELAXED);
	}
}

static void run_job(void *argument)
{
	struct job *job = argument;
	struct load_result found = result_of(job);

	if (job->type == LOAD_HEADER) {
		work_header(&job->loader->work, job, &found);
	} else if (job->type == LOAD_FILLED) {
		work_fill(&job->loader->work, job, &found);
	} else {
		work_recheck(&job->loader->work, job, &found);
	}
	job_finish(job, &found);
}

static void start_job(struct job *job)
{
	struct loader *loader = job->loader;
	struct load_result found;

	thread_lock(&loader->lock);
	list_append(&loader->running, &job->link);
	(void)pthread_cond_signal(&loader->watch_wanted);
	thread_unlock(&loader->lock);
	if (!thread_start(&loader->group, "distorch-load", run_job, job)) {
		found = result_of(job);
		(void)err_set(&found.err, WIRE_NO_MEMORY, "no thread for the job");
		job_finish(job, &found);
	}
}

/* ---- the watch ---- */

static void post_progress_locked(struct job *job, uint64_t now_ns)
{
	struct load_result *result = sys_calloc(1, sizeof *result);

	job->posted_ns = now_ns;
	job->posted_bytes = job->seen_bytes;
	if (result == NULL) {
		return; /* the next one may get through */
	}
	result->type = LOAD_PROGRESS;
	result->job = job->id;
	result->segment = job->segment;
	result->table_fd = -1;
	result->bytes = job->seen_bytes;
	result->is_stalled = job->is_stalled;
	post_locked(job->loader, result);
}

/* A job that was stopped and does not come back: answer for it. Its thread cleans up later. */
static void abandon_locked(struct job *job)
{
	struct load_result *result = job->result;

	job->result = NULL;
	*result = result_of(job);
	describe_stop(job, &result->err);
	result->available = job->loader->available;
	result->duration_ns = clock_mono_ns() - job->begun_ns;
	post_locked(job->loader, result);
}

static bool is_to_abandon(const struct job *job, uint64_t now_ns)
{
	return job->stop_code != 0 && job->can_abandon && job->result != NULL &&
	       now_ns - job->stopped_ns >= job->loader->options.progress_ns;
}

static void watch_job_locked(struct job *job, uint64_t now_ns)
{
	const struct loader_options *options = &job->loader->options;
	const uint64_t bytes = __atomic_load_n(&job->progress.bytes, __ATOMIC_RELAXED);
	const bool is_fill = job->type == LOAD_FILLED;

	if (bytes != job->seen_bytes) {
		job->seen_bytes = bytes;
		job->moved_ns = now_ns;
		job->is_stalled = false;
	}
	if (is_fill && bytes != job->posted_bytes &&
	    now_ns - job->posted_ns >= options->progress_ns) {
		post_progress_locked(job, now_ns);
	}
	if (is_fill && !job->is_stalled && now_ns - job->moved_ns >= options->stall_ns) {
		job->is_stalled = true;
		post_progress_locked(job, now_ns);
	}
	if (now_ns - job->moved_ns >= 2 * options->stall_ns) {
		stop_locked(job, WIRE_TIMEOUT);
	}
}

/* Answers for jobs that do not come back. */
static void abandon_stuck_locked(struct loader *loader)
{
	const uint64_t now_ns = clock_mono_ns();
	bool is_any = false;

	LIST_FOR_EACH (link, &loader->running) {
		is_any = is_any || is_to_abandon(container_of(link, struct job, link), now_ns);
	}
	if (!is_any) {
		return;
	}
	refresh_available_locked(loader);
	LIST_FOR_EACH (link, &loader->running) {
		struct job *job = container_of(link, struct job, link);

		if (is_to_abandon(job, now_ns)) {
			abandon_locked(job);
		}
	}
}

static bool is_watch_idle(const struct loader *loader)
{
	return list_is_empty(&loader->running) && loader->n_unanswered == 0;
}

static void watch(void *argument)
{
	struct loader *loader = argument;

	thread_lock(&loader->lock);
	while (!loader->is_stopping) {
		thread_wait(&loader->watch_wanted, &loader->lock,
			    is_watch_idle(loader) ? UINT64_MAX : loader->options.progress_ns);
		answer_locked(loader);
		LIST_FOR_EACH (link, &loader->running) {
			watch_job_locked(container_of(link, struct job, link), clock_mono_ns());
		}
		abandon_stuck_locked(loader);
	}
	thread_unlock(&loader->lock);
}

/* ---- verifying and dropping ---- */

static void verify(void *argument)
{
	struct loader *loader = argument;

	thread_lock(&loader->lock);
	for (;;) {
		struct load_result found;
		struct job *job;

		while (list_is_empty(&loader->to_verify) && !loader->is_stopping) {
			thread_wait(&loader->verify_wanted, &loader->lock, UINT64_MAX);
		}
		if (list_is_empty(&loader->to_verify)) {
			break;
		}
		job = container_of(loader->to_verify.next, struct job, link);
		thread_unlock(&loader->lock);
		found = result_of(job);
		work_verify(&loader->work, job, &found);
		job_finish(job, &found); /* takes it off the list */
		thread_lock(&loader->lock);
	}
	thread_unlock(&loader->lock);
}

static void drop(void *argument)
{
	struct loader *loader = argument;

	thread_lock(&loader->lock);
	for (;;) {
		struct load_result found;
		struct job *job;

		while (list_is_empty(&loader->to_drop) && !loader->is_stopping) {
			thread_wait(&loader->drop_wanted, &loader->lock, UINT64_MAX);
		}
		if (list_is_empty(&loader->to_drop)) {
			break;
		}
		job = container_of(loader->to_drop.next, struct job, link);
		list_remove(&job->link);
		thread_unlock(&loader->lock);
		found = result_of(job);
		(void)device_release(job->extent, &found.err); /* refused: found.err says so */
		job_finish(job, &found);
		thread_lock(&loader->lock);
	}
	thread_unlock(&loader->lock);
}

/* The verification of this extent that is queued or runs, or NULL. */
static struct job *find_verification(const struct loader *loader, const struct extent *extent)
{
	LIST_FOR_EACH (link, &loader->to_verify) {
		struct job *job = container_of(link, struct job, link);

		if (job->extent == extent) {
			return job;
		}
	}
	return NULL;
}

/* ---- submissions ---- */

void loader_read_header(struct loader *loader, uint64_t id, struct file *file, enum format wanted)
{
	struct job *job = job_new(loader, LOAD_HEADER, id, 0, file);

	if (job == NULL) {
		post_no_memory(loader, LOAD_HEADER, id, 0);
		return;
	}
	job->wanted = wanted;
	start_job(job);
}

void loader_fill(struct loader *loader, const struct fill_request *request)
{
	struct job *job =
		job_new(loader, LOAD_FILLED, request->job, request->segment, request->file);

	if (job != NULL) {
		job->name = sys_strdup(request->name);
	}
	if (job == NULL || job->name == NULL) {
		(void)job_free(job);
		post_no_memory(loader, LOAD_FILLED, request->job, request->segment);
		return;
	}
	job->map = request->map;
	memcpy(job->model_id, request->model_id, sizeof job->model_id);
	job->generation = request->generation;
	job->owner_uid = request->owner_uid;
	thread_lock(&loader->lock);
	job->key = request->file->read_key;
	thread_unlock(&loader->lock);
	start_job(job);
}

void loader_recheck(struct loader *loader, uint64_t id, struct file *file, const uint64_t *sums,
		    uint32_t n_sums)
{
	struct job *job = job_new(loader, LOAD_RECHECKED, id, 0, file);

	if (job == NULL || !job_copy_sums(job, sums, n_sums)) {
		(void)job_free(job);
		post_no_memory(loader, LOAD_RECHECKED, id, 0);
		return;
	}
	start_job(job);
}

void loader_verify(struct loader *loader, uint64_t segment, struct extent *extent,
		   const uint64_t *sums, uint32_t n_sums)
{
	struct job *job = job_new(loader, LOAD_VERIFIED, 0, segment, NULL);

	if (job == NULL || !job_copy_sums(job, sums, n_sums)) {
		(void)job_free(job);
		post_no_memory(loader, LOAD_VERIFIED, 0, segment);
		return;
	}
	job->extent = extent;
	thread_lock(&loader->lock);
	list_append(&loader->to_verify, &job->link);
	(void)pthread_cond_signal(&loader->verify_wanted);
	thread_unlock(&loader->lock);
}

void loader_measure(struct loader *loader)
{
	struct job *job = job_new(loader, LOAD_MEASURED, 0, 0, NULL);

	if (job == NULL) {
		post_no_memory(loader, LOAD_MEASURED, 0, 0);
		return;
	}
	/* By the thread that gives memory back: what it has at hand is freed before. */
	thread_lock(&loader->lock);
	list_append(&loader->to_drop, &job->link);
	(void)pthread_cond_signal(&loader->drop_wanted);
	thread_unlock(&loader->lock);
}

void loader_drop(struct loader *loader, uint64_t segment, struct extent *extent)
{
	struct job *job = job_new(loader, LOAD_DROPPED, 0, segment, NULL);
	struct job *verification;

	thread_lock(&loader->lock);
	verification = find_verification(loader, extent);
	if (verification != NULL) {
		stop_locked(verification, WIRE_CANCELLED);
	}
	if (job != NULL) {
		job->extent = extent;
		if (extent != NULL && verification != NULL) {
			verification->then = job;
		} else {
			list_append(&loader->to_drop, &job->link);
			(void)pthread_cond_signal(&loader->drop_wanted);
		}
	}
	while (job == NULL && find_verification(loader, extent) != NULL) {
		thread_wait(&loader->verified, &loader->lock, UINT64_MAX);
	}
	thread_unlock(&loader->lock);
	if (job == NULL) {
		(void)device_release(extent, NULL); /* here, slowly: better than never */
		post_no_memory(loader, LOAD_DROPPED, 0, segment);
	}
}

void loader_close_file(struct loader *loader, struct file *file)
{
	(void)loader;
	(void)file_unref(file); /* does not block: the closer has the descriptors */
}

void loader_cancel(struct loader *loader, uint64_t id)
{
	thread_lock(&loader->lock);
	LIST_FOR_EACH (link, &loader->running) {
		struct job *job = container_of(link, struct job, link);

		if (job->id == id) {
			stop_locked(job, WIRE_CANCELLED);
		}
	}
	thread_unlock(&loader->lock);
}

/* ---- life ---- */

static struct loader *loader_destroy(struct loader *loader)
{
	REQUIRE(list_is_empty(&loader->running) && list_is_empty(&loader->to_verify) &&
		list_is_empty(&loader->to_drop));
	thread_group_fini(&loader->group);
	REQUIRE(pthread_cond_destroy(&loader->watch_wanted) == 0);
	REQUIRE(pthread_cond_destroy(&loader->verify_wanted) == 0);
	REQUIRE(pthread_cond_destroy(&loader->drop_wanted) == 0);
	REQUIRE(pthread_cond_destroy(&loader->verified) == 0);
	REQUIRE(pthread_mutex_destroy(&loader->lock) == 0);
	free(loader->unanswered);
	free(loader->root);
	free(loader);
	return NULL;
}

static void take_options(struct loader *loader, const struct loader_options *options)
{
	loader->options = *options;
	if (loader->options.n_threads == 0) {
		loader->options.n_threads = DEFAULT_THREADS;
	}
	if (loader->options.n_threads > READER_MAX_THREADS) {
		loader->options.n_threads = READER_MAX_THREADS;
	}
	loader->options.root = loader->root;
}

struct loader *loader_new(const struct loader_options *options, struct device *device,
			  struct mailbox *box, struct err *err)
{
	struct loader *loader = sys_calloc(1, sizeof *loader);

	if (loader != NULL) {
		loader->root = sys_strdup(options->root == NULL ? "" : options->root);
		loader->unanswered = sys_calloc(MAX_UNANSWERED, sizeof *loader->unanswered);
	}
	if (loader == NULL || loader->root == NULL || loader->unanswered == NULL) {
		if (loader != NULL) {
			free(loader->root);
			free(loader->unanswered);
		}
		free(loader);
		(void)err_set(err, WIRE_NO_MEMORY, "no memory for the loader");
		return NULL;
	}
	take_options(loader, options);
	loader->box = box;
	loader->available = UINT64_MAX;
	loader->work = (struct work){.options = &loader->options,
				     .device = device,
				     .group = &loader->group};
	thread_group_init(&loader->group);
	REQUIRE(pthread_mutex_init(&loader->lock, NULL) == 0);
	thread_cond_init(&loader->watch_wanted);
	thread_cond_init(&loader->verify_wanted);
	thread_cond_init(&loader->drop_wanted);
	thread_cond_init(&loader->verified);
	list_init(&loader->running);
	list_init(&loader->to_verify);
	list_init(&loader->to_drop);
	if (!thread_start(&loader->group, "distorch-watch", watch, loader) ||
	    !thread_start(&loader->group, "distorch-verify", verify, loader) ||
	    !thread_start(&loader->group, "distorch-drop", drop, loader)) {
		(void)err_set(err, WIRE_NO_MEMORY, "no threads for the loader");
		(void)loader_free(loader);
		return NULL;
	}
	return loader;
}

static void stop_all_locked(struct list *jobs)
{
	LIST_FOR_EACH (link, jobs) {
		stop_locked(container_of(link, struct job, link), WIRE_SHUTTING_DOWN);
	}
}

struct loader *loader_free(struct loader *loader)
{
	if (loader == NULL) {
		return NULL;
	}
	thread_lock(&loader->lock);
	loader->is_stopping = true;
	stop_all_locked(&loader->running);
	stop_all_locked(&loader->to_verify);
	(void)pthread_cond_signal(&loader->watch_wanted);
	(void)pthread_cond_signal(&loader->verify_wanted);
	(void)pthread_cond_signal(&loader->drop_wanted);
	thread_unlock(&loader->lock);
	return thread_group_wait(&loader->group, STOP_LIMIT_NS) ? loader_destroy(loader) : loader;
}
