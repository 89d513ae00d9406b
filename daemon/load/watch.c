/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The loader's watch: tells of progress and stalls, answers for reads that are stuck, and for
 * submissions that had no memory. At rest it sleeps. See loader.h.
 */
#include "base/os/clock.h"
#include "base/os/sys.h"

#include <pthread.h>

#include "daemon/load/loader_inside.h"
#include "daemon/load/result.h"
#include "proto/gen/wire_code.h"

/* ---- submissions without memory ---- */

/* Without the lock, which the loop may want meanwhile. What cannot be read stays as it was. */
static void refresh_available_locked(struct loader *loader)
{
	uint64_t available;

	thread_unlock(&loader->lock);
	available = loader_read_available(loader);
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
		loader_post_locked(loader, result);
	}
}

/* ---- the watch ---- */

static void post_progress_locked(struct job *job, uint64_t now_ns)
{
	struct load_result *result = sys_calloc(1, sizeof *result);

	job->posted_ns = now_ns;
	job->posted_bytes = job->seen_bytes;
	job->posted_stalled = job->is_stalled;
	if (result == NULL) {
		return; /* the next one may get through */
	}
	result->type = LOAD_PROGRESS;
	result->job = job->id;
	result->segment = job->segment;
	result->table_fd = -1;
	result->bytes = job->seen_bytes;
	result->is_stalled = job->is_stalled;
	loader_post_locked(job->loader, result);
}

/* A job that was stopped and does not come back: answer for it. Its thread cleans up later. */
static void abandon_locked(struct job *job)
{
	struct load_result *result = job->result;

	job->result = NULL;
	*result = job_result_of(job);
	job_describe_stop(job, &result->err);
	result->available = job->loader->available;
	result->duration_ns = clock_mono_ns() - job->begun_ns;
	loader_post_locked(job->loader, result);
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
	const uint64_t moved = bytes + __atomic_load_n(&job->progress.came, __ATOMIC_RELAXED);
	const bool is_fill = job->type == LOAD_FILLED;

	job->seen_bytes = bytes;
	if (moved != job->seen_moved) {
		job->seen_moved = moved;
		job->moved_ns = now_ns;
		job->is_stalled = false;
	}
	if (is_fill && (bytes != job->posted_bytes || job->is_stalled != job->posted_stalled) &&
	    now_ns - job->posted_ns >= options->progress_ns) {
		post_progress_locked(job, now_ns);
	}
	if (is_fill && !job->is_stalled && now_ns - job->moved_ns >= options->stall_ns) {
		job->is_stalled = true;
		post_progress_locked(job, now_ns);
	}
	if (now_ns - job->moved_ns >= 2 * options->stall_ns) {
		job_stop_locked(job, WIRE_TIMEOUT);
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

void watch_run(void *argument)
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
