/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Submissions, and the threads that serve them. A read has a thread of its own (a file that hangs
 * holds nobody else up), as has each other device for what is dropped there; one thread drops
 * images, one hashes resident copies, and one watches the reads: progress, stalls, and results of
 * jobs that are stuck. At rest all three sleep. See loader.h; how a job runs is in job.c, what it
 * does in work.c, work_fill.c, work_sparse.c and work_device.c.
 */
#include "daemon/load/loader.h"

#include "base/list.h"
#include "base/os/sys.h"
#include "base/require.h"

#include <pthread.h>
#include <stdlib.h>

#include "daemon/load/loader_inside.h"
#include "daemon/load/memory.h"
#include "daemon/load/result.h"
#include "proto/gen/wire_code.h"

#define DEFAULT_THREADS 4U
#define STOP_LIMIT_NS   2000000000ULL

/* ---- results ---- */

uint64_t loader_read_available(const struct loader *loader)
{
	struct host_memory memory;

	/* What cannot be read bounds nothing: the budget still does. */
	return host_memory_read(loader->root, &memory, NULL) < 0 ? UINT64_MAX : memory.available;
}

void loader_post_locked(const struct loader *loader, struct load_result *result)
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
		job->has_begun = true;
		thread_unlock(&loader->lock);
		found = job_result_of(job);
		work_verify(&loader->work, job, &found);
		job_finish(job, &found); /* takes it off the list */
		thread_lock(&loader->lock);
	}
	thread_unlock(&loader->lock);
}

/* The first drop for which there was no memory, once nobody compares its copy. */
static void drop_without_job_locked(struct loader *loader)
{
	const struct unanswered one = loader->undropped[loader->first_undropped];

	loader->first_undropped = (loader->first_undropped + 1) % MAX_UNANSWERED;
	loader->n_undropped--;
	while (one.extent != NULL && one.extent->verification != NULL) {
		thread_wait(&loader->verified, &loader->lock, UINT64_MAX);
	}
	thread_unlock(&loader->lock);
	(void)device_release(one.extent, NULL); /* as the answer has it, it is free */
	post_no_memory(loader, LOAD_DROPPED, 0, one.segment);
	thread_lock(&loader->lock);
}

static void drop(void *argument)
{
	struct loader *loader = argument;

	thread_lock(&loader->lock);
	for (;;) {
		if (!list_is_empty(&loader->to_drop)) {
			struct job *job = container_of(loader->to_drop.next, struct job, link);

			list_remove(&job->link);
			thread_unlock(&loader->lock);
			job_do(job);
			thread_lock(&loader->lock);
		} else if (loader->n_undropped > 0) {
			drop_without_job_locked(loader);
		} else if (loader->is_stopping) {
			break;
		} else {
			thread_wait(&loader->drop_wanted, &loader->lock, UINT64_MAX);
		}
	}
	thread_unlock(&loader->lock);
}

/* ---- submissions ---- */

void loader_read_header(struct loader *loader, const struct header_request *request)
{
	struct job *job = job_new(loader, LOAD_HEADER, request->job, 0, request->file);

	if (job == NULL) {
		post_no_memory(loader, LOAD_HEADER, request->job, 0);
		return;
	}
	job->wanted = request->wanted;
	job->wish = request->wish;
	job->by_tensor = request->by_tensor;
	job_start(job);
}

void loader_fill(struct loader *loader, const struct fill_request *request)
{
	struct file *file = request->into == FILL_DEVICE
				    ? request->file
				    : file_shard(request->file, request->index);
	struct job *job = job_new(loader, LOAD_FILLED, request->job, request->segment, file);

	if (job == NULL || request->images == NULL || !job_copy_keys(job)) {
		(void)job_free(job);
		post_no_memory(loader, LOAD_FILLED, request->job, request->segment);
		return;
	}
	job->images = request->images;
	job->index = request->index;
	job->into = request->into;
	job->key = job->keys[0];
	if (request->into == FILL_DEVICE) {
		job->device = request->device;
		job->lane = request->device;
		job->n_peers = request->n_peers;
		for (uint32_t i = 0; i < request->n_peers; i++) {
			job->peers[i] = request->peers[i];
		}
	}
	job_start(job);
}

void loader_make_table(struct loader *loader, const struct table_request *request)
{
	struct job *job = job_new(loader, LOAD_TABLED, request->job, 0, request->file);

	if (job == NULL || request->images == NULL || !job_copy_keys(job)) {
		(void)job_free(job);
		post_no_memory(loader, LOAD_TABLED, request->job, 0);
		return;
	}
	job->images = request->images;
	job_start(job);
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
	job_start(job);
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
	extent->verification = job;
	list_append(&loader->to_verify, &job->link);
	(void)pthread_cond_signal(&loader->verify_wanted);
	thread_unlock(&loader->lock);
}

void loader_verify_device(struct loader *loader, const struct verify_request *request)
{
	struct job *job = job_new(loader, LOAD_VERIFIED, request->verification, request->segment,
				  request->file);

	if (job == NULL || request->table_fd < 0) {
		(void)job_free(job);
		post_no_memory(loader, LOAD_VERIFIED, request->verification, request->segment);
		return;
	}
	job->extent = request->extent;
	job->lane = request->extent->device;
	job->index = request->block;
	job->table_fd = request->table_fd;
	job->from = request->images;
	job->n_from = request->n_images;
	thread_lock(&loader->lock);
	job->extent->verification = job;
	thread_unlock(&loader->lock);
	job_start(job);
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

/* No memory for a job: the thread that drops does it from here. */
static void add_undropped_locked(struct loader *loader, uint64_t segment, struct extent *extent)
{
	const uint32_t at = (loader->first_undropped + loader->n_undropped) % MAX_UNANSWERED;

	REQUIRE(loader->n_undropped < MAX_UNANSWERED); /* there are not so many segments */
	loader->undropped[at] = (struct unanswered){.segment = segment, .extent = extent};
	loader->n_undropped++;
	(void)pthread_cond_signal(&loader->drop_wanted);
}

void loader_drop(struct loader *loader, uint64_t segment, struct extent *extent)
{
	struct job *job = job_new(loader, LOAD_DROPPED, 0, segment, NULL);
	struct job *verification;

	if (job != NULL) {
		job->extent = extent;
		job->lane = extent == NULL || extent->device == loader->work.device
				    ? NULL
				    : extent->device;
	}
	thread_lock(&loader->lock);
	verification = extent == NULL ? NULL : extent->verification;
	if (verification != NULL) {
		if (!verification->has_begun) { /* it need not wait for its turn */
			job_queue_drop_locked(verification);
		}
		job_stop_locked(verification, WIRE_CANCELLED);
		verification->then = job;
	}
	if (job == NULL) {
		add_undropped_locked(loader, segment, extent);
	}
	thread_unlock(&loader->lock);
	if (job != NULL && verification == NULL) {
		job_start_drop(job);
	}
}

void loader_close_file(struct loader *loader, struct file *file)
{
	(void)loader;
	(void)file_unref(file); /* does not block: the closer has the descriptors */
}

static void stop_in_locked(const struct list *jobs, uint64_t id, bool is_verification)
{
	LIST_FOR_EACH (link, jobs) {
		struct job *job = container_of(link, struct job, link);

		if (job->id == id && (job->type == LOAD_VERIFIED) == is_verification) {
			job_stop_locked(job, WIRE_CANCELLED);
		}
	}
}

static void stop_with_id(struct loader *loader, uint64_t id, bool is_verification)
{
	thread_lock(&loader->lock);
	stop_in_locked(&loader->running, id, is_verification);
	for (uint32_t i = 0; i < N_WAITING; i++) {
		stop_in_locked(&loader->waiting[i], id, is_verification);
	}
	thread_unlock(&loader->lock);
}

void loader_cancel(struct loader *loader, uint64_t id)
{
	stop_with_id(loader, id, false);
}

void loader_cancel_verification(struct loader *loader, uint64_t verification)
{
	stop_with_id(loader, verification, true);
}

/* ---- life ---- */

static struct loader *loader_destroy(struct loader *loader)
{
	REQUIRE(list_is_empty(&loader->running) && list_is_empty(&loader->to_verify) &&
		list_is_empty(&loader->to_drop) && loader->n_undropped == 0);
	for (uint32_t i = 0; i < N_WAITING; i++) {
		REQUIRE(list_is_empty(&loader->waiting[i]));
	}
	thread_group_fini(&loader->group);
	window_pool_fini(&loader->pool);
	REQUIRE(pthread_cond_destroy(&loader->watch_wanted) == 0);
	REQUIRE(pthread_cond_destroy(&loader->verify_wanted) == 0);
	REQUIRE(pthread_cond_destroy(&loader->drop_wanted) == 0);
	REQUIRE(pthread_cond_destroy(&loader->verified) == 0);
	REQUIRE(pthread_mutex_destroy(&loader->lock) == 0);
	free(loader->unanswered);
	free(loader->undropped);
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
		loader->undropped = sys_calloc(MAX_UNANSWERED, sizeof *loader->undropped);
	}
	if (loader == NULL || loader->root == NULL || loader->unanswered == NULL ||
	    loader->undropped == NULL) {
		if (loader != NULL) {
			free(loader->root);
			free(loader->unanswered);
			free(loader->undropped);
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
				     .group = &loader->group,
				     .pool = &loader->pool};
	window_pool_init(&loader->pool);
	thread_group_init(&loader->group);
	REQUIRE(pthread_mutex_init(&loader->lock, NULL) == 0);
	thread_cond_init(&loader->watch_wanted);
	thread_cond_init(&loader->verify_wanted);
	thread_cond_init(&loader->drop_wanted);
	thread_cond_init(&loader->verified);
	list_init(&loader->running);
	for (uint32_t i = 0; i < N_WAITING; i++) {
		list_init(&loader->waiting[i]);
	}
	list_init(&loader->to_verify);
	list_init(&loader->to_drop);
	if (!thread_start(&loader->group, "distorch-watch", watch_run, loader) ||
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
		job_stop_locked(container_of(link, struct job, link), WIRE_SHUTTING_DOWN);
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
	for (uint32_t i = 0; i < N_WAITING; i++) {
		stop_all_locked(&loader->waiting[i]);
	}
	stop_all_locked(&loader->to_verify);
	(void)pthread_cond_signal(&loader->watch_wanted);
	(void)pthread_cond_signal(&loader->verify_wanted);
	(void)pthread_cond_signal(&loader->drop_wanted);
	thread_unlock(&loader->lock);
	return thread_group_wait(&loader->group, STOP_LIMIT_NS) ? loader_destroy(loader) : loader;
}
