/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Carries out what the core decided, and turns the loader's results into events. The only
 * file that performs actions; it decides nothing.
 */
#include "daemon/execute.h"

#include "base/cleanup.h"
#include "base/os/clock.h"
#include "base/os/log.h"
#include "base/os/sys.h"
#include "base/require.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "daemon/answer.h"
#include "daemon/daemon.h"
#include "daemon/failure.h"
#include "daemon/fill.h"
#include "daemon/format/format.h"
#include "daemon/holes.h"
#include "daemon/load/file.h"
#include "daemon/load/image_set.h"
#include "daemon/load/loader.h"
#include "daemon/persist.h"
#include "daemon/placement.h"
#include "daemon/pressure.h"
#include "daemon/saved.h"
#include "daemon/testing.h"
#include "daemon/verify.h"
#include "daemon/watch.h"
#include "daemon/workers.h"
#include "proto/gen/wire_code.h"

#define PROGRESS_NS 90000000U /* a little less than the loader's, so that a single file's pass */

static void execute_read_header(struct daemon *daemon, const struct core_action *action)
{
	static const enum cache_wish wishes[CORE_BACKING_N_VALUES] = {
		[CORE_BACKING_AUTO] = CACHE_IF_WARM,
		[CORE_BACKING_IMAGE] = CACHE_NEVER,
		[CORE_BACKING_FILE] = CACHE_IF_LOCAL,
	};
	enum cache_wish wish = wishes[action->fill.backing];
	struct header_request request = {.job = action->job};
	struct job_info *job;
	struct core_model_view view;

	REQUIRE(core_model_get(daemon->core, action->model, &view));
	job = fill_job(daemon, action); /* without memory the job only loses its details */
	if (job != NULL) {
		const struct placement *placement = placement_find(daemon, action->fill.placement);

		job->placement = action->fill.placement;
		job->is_tabled = action->fill.is_tabled;
		job->with_host = action->fill.with_host;
		job->may_share = action->fill.may_share;
		job->by_tensor = request.by_tensor = placement != NULL && placement->by_tensor;
	}
	if (action->fill.insists_backing && wish == CACHE_IF_LOCAL) {
		wish = CACHE_ALWAYS;
	}
	request.file = fill_source(daemon, action->fill.file);
	request.wanted = (enum format)view.format;
	request.wish = wish;
	loader_read_header(daemon->loader, &request);
}

static void execute_recheck(struct daemon *daemon, const struct core_action *action)
{
	const struct model_info *model = daemon_know_model(daemon, action->model);

	(void)fill_job(daemon, action);
	loader_recheck(daemon->loader, action->job, fill_source(daemon, action->fill.file),
		       model == NULL ? NULL : model->current.sums,
		       model == NULL ? 0 : model->current.n_sums);
}

static void execute_verify(struct daemon *daemon, const struct core_action *action)
{
	const struct model_info *model = daemon_know_model(daemon, action->model);
	struct extent *extent = store_find_extent(daemon->store, action->segment);
	const struct shard_info *shard;
	struct core_segment_view view;

	REQUIRE(extent != NULL && model != NULL &&
		core_segment_get(daemon->core, action->segment, &view));
	if (view.is_block) {
		verify_block(daemon, model, &view, extent);
		return;
	}
	REQUIRE(view.index < model->current.n_shards);
	shard = &model->current.shards[view.index];
	loader_verify(daemon->loader, action->segment, extent,
		      model->current.sums + shard->first_sum, shard->n_sums);
}

void execute_drop_now(struct daemon *daemon, uint64_t segment)
{
	struct park park = {0};
	/* A fill that failed has no extent; the loader answers at once. */
	struct extent *extent = store_take_extent(daemon->store, segment, &park);

	testing_point("dropping");
	watch_remove(daemon, segment);
	persist_drop(daemon, segment, extent, &park);
}

static void execute_drop(struct daemon *daemon, const struct core_action *action)
{
	verify_cancel(daemon, action->segment);
	if (!store_drop_later(daemon->store, action->segment)) {
		execute_drop_now(daemon, action->segment);
	}
}

static void execute_publish(struct daemon *daemon, const struct core_action *action)
{
	struct model_info *model = daemon_know_model(daemon, action->model);
	struct job_info *job = store_find_job(daemon->store, action->job);

	REQUIRE(model != NULL && job != NULL && job->next.table_fd >= 0);
	generation_info_fini(&model->current);
	persist_forget_placed(daemon, action->model);
	model->park = job->park;
	job->park = (struct park){0};
	model->current = job->next;
	memset(&job->next, 0, sizeof job->next);
	job->next.table_fd = -1;
	fill_end(daemon, job);
	tensor_map_free(job->map);
	job->map = NULL;
	model->failure = (struct err){0};
	if (!watch_add(daemon, action->model, action->fill.generation) &&
	    model->current.notice[0] == '\0') {
		(void)snprintf(model->current.notice, sizeof model->current.notice,
			       "changes of its file are noticed only when it is asked for");
	}
	saved_record_model(daemon, action->model);
}

static void execute_retire(struct daemon *daemon, const struct core_action *action)
{
	struct model_info *model = store_find_model(daemon->store, action->model);

	if (model != NULL) {
		generation_info_fini(&model->current);
	}
}

static void execute_forget_job(struct daemon *daemon, uint64_t id)
{
	struct job_info *job = store_find_job(daemon->store, id);

	fill_end(daemon, job);
	if (job != NULL) {
		persist_unpark(daemon, &job->park);
	}
	store_forget_job(daemon->store, id);
}

/* What outlives us has changed. */
static void record(struct daemon *daemon, const struct core_action *action)
{
	switch ((int)action->type) {
	case ACT_RECORD_LEASE:
		persist_record_lease(daemon, action->record.id);
		break;
	case ACT_RECORD_WISH:
		persist_record_wish(daemon, action->record.id);
		saved_record_wish(daemon, action->record.id);
		break;
	case ACT_RECORD_PLACED:
		persist_forget_placed(daemon, action->model);
		break;
	default:
		break;
	}
}

/* What somebody is told. */
static void answer(struct daemon *daemon, const struct core_action *action)
{
	switch ((int)action->type) {
	case ACT_REPLY:
		answer_reply(daemon, action);
		break;
	case ACT_UNLOAD_ITEM:
		answer_unload_item(daemon, action);
		break;
	case ACT_PROGRESS:
		answer_progress(daemon, action);
		break;
	case ACT_RECALL:
		answer_recall(daemon, action);
		break;
	case ACT_LOST:
		answer_lost(daemon, action);
		break;
	case ACT_FOLLOW:
		answer_follow(daemon, action);
		break;
	case ACT_LOAD_ENDED:
		answer_load_ended(daemon, action);
		break;
	case ACT_NOTE:
		answer_note(daemon, action);
		break;
	default:
		break;
	}
}

void execute(struct daemon *daemon, const struct core_action *action)
{
	testing_action(action);
	switch (action->type) {
	case ACT_READ_HEADER:
		execute_read_header(daemon, action);
		break;
	case ACT_FILL:
		fill_copy(daemon, action);
		break;
	case ACT_MAKE_TABLE:
		fill_make_table(daemon, action);
		break;
	case ACT_RECHECK:
		execute_recheck(daemon, action);
		break;
	case ACT_VERIFY:
		execute_verify(daemon, action);
		break;
	case ACT_DROP:
		execute_drop(daemon, action);
		break;
	case ACT_CANCEL:
		loader_cancel(daemon->loader, action->job);
		break;
	case ACT_PUBLISH:
		execute_publish(daemon, action);
		break;
	case ACT_RETIRE:
		execute_retire(daemon, action);
		break;
	case ACT_CLOSE_FILE:
		loader_close_file(daemon->loader,
				  store_take_file(daemon->store, action->fill.file));
		break;
	case ACT_FORGET_JOB:
		execute_forget_job(daemon, action->job);
		break;
	case ACT_FORGET_MODEL:
		persist_forget_placed(daemon, action->model);
		store_forget_model(daemon->store, action->model);
		break;
	case ACT_FORGET_CLIENT:
		daemon_forget_client(daemon, action->client);
		break;
	case ACT_REPLY:
	case ACT_UNLOAD_ITEM:
	case ACT_PROGRESS:
	case ACT_FOLLOW:
	case ACT_LOAD_ENDED:
	case ACT_RECALL:
	case ACT_LOST:
	case ACT_NOTE:
		answer(daemon, action);
		break;
	case ACT_RECORD_LEASE:
	case ACT_RECORD_WISH:
	case ACT_RECORD_PLACED:
		record(daemon, action);
		break;
	case ACT_N_VALUES:
		REQUIRE(false && "an action without a case");
	}
}

/* Keep a failure's words for those who wait and for `why`. */
static void remember_verified(struct daemon *daemon, const struct load_result *result)
{
	struct core_segment_view view;
	struct model_info *model = core_segment_get(daemon->core, result->segment, &view)
					   ? store_find_model(daemon->store, view.model)
					   : NULL;

	if (result->err.code == 0 && !result->is_equal && model != NULL) {
		model->bad_at = result->differs_at;
		failure_difference_text(daemon, &model->current, &view,
					view.is_block ? result->differs_in : view.index,
					model->bad_text, sizeof model->bad_text);
	}
	if (result->notice[0] != '\0' && model != NULL) {
		(void)snprintf(model->current.notice, sizeof model->current.notice, "%s",
			       result->notice);
	}
}

static void remember_failure(struct daemon *daemon, uint64_t job_id, const struct err *err)
{
	struct job_info *job = store_find_job(daemon->store, job_id);
	struct model_info *model = job == NULL ? NULL : store_find_model(daemon->store, job->model);
	struct core_model_view view;

	if (err->code == 0 || job == NULL ||
	    (err->code == WIRE_CANCELLED && job->failure.code != 0)) {
		return; /* the other fills of a job that failed are only told to end */
	}
	job->failure = *err;
	/* What one that has ended is still owed says nothing of the next one's failure. */
	if (model != NULL && core_model_get(daemon->core, job->model, &view) &&
	    view.job == job_id) {
		model->failure = *err;
	}
}

static struct core_file_key key_of(const struct load_result *result)
{
	return (struct core_file_key){.dev = result->key.dev,
				      .ino = result->key.ino,
				      .size = result->key.size,
				      .mtime_ns = result->key.mtime_ns,
				      .ctime_ns = result->key.ctime_ns,
				      .is_young = result->key.is_young};
}

static void tell_available(struct daemon *daemon, const struct load_result *result)
{
	struct core_event event = {.type = EV_AVAILABLE,
				   .budget = {.bytes =
						      daemon_available(daemon, result->available)}};

	(void)daemon_step(daemon, &event);
}

static void take_header(struct daemon *daemon, struct load_result *result)
{
	struct core_file_key key = key_of(result);
	struct job_info *job;
	AUTO_FREE struct core_need *needs = NULL;
	struct core_event event = {.type = EV_HEADER_READ, .header = {.job = result->job}};

	tell_available(daemon, result); /* before it is planned with */
	job = store_find_job(daemon->store, result->job);
	if (result->err.code == 0 && job == NULL) {
		(void)err_set(&result->err, WIRE_NO_MEMORY, "no memory to keep the header");
	}
	if (result->err.code == 0 && job != NULL) {
		/* What an earlier one of the job brought is of no use any more. */
		fill_end(daemon, job);
		tensor_map_free(job->map);
		job->map = result->map;
		result->map = NULL;
		needs = placement_needs(daemon, job, &event.header.n_needs, &result->err);
	}
	remember_failure(daemon, result->job, &result->err);
	event.header.code = result->err.code;
	event.header.key = &key;
	event.header.needs = needs;
	event.header.is_cached = result->is_cached;
	(void)daemon_step(daemon, &event);
}

static bool describe_shards(const struct daemon *daemon, const struct job_info *job,
			    struct generation_info *ret)
{
	struct file *file = store_find_file(daemon->store, job->file);
	bool is_good = file != NULL && generation_info_add_shards(ret, job->n_shards);

	for (uint32_t i = 0; is_good && i < job->n_shards; i++) {
		uint64_t bytes = tensor_map_shard_size(job->map, i);

		is_good = generation_info_set_shard(ret, i, file_shard(file, i)->name, bytes);
	}
	return is_good;
}

/* What the last of its fills brought. False: no memory. */
static bool take_generation(const struct daemon *daemon, struct job_info *job,
			    struct load_result *result)
{
	struct generation_info *next = &job->next;

	generation_info_fini(next);
	next->table_fd = result->table_fd;
	result->table_fd = -1;
	next->sums = result->sums;
	result->sums = NULL;
	next->n_sums = result->n_sums;
	next->format = (uint32_t)job->map->format;
	next->n_tensors = job->map->n_tensors;
	next->n_blocks = job->map->n_blocks;
	next->places = job->placement > CORE_PLACEMENT_HOST ? steal_ptr(&job->places) : NULL;
	next->with_host = job->with_host;
	next->by_tensor = job->by_tensor;
	next->page_bytes = result->page_bytes;
	next->huge_bytes = result->huge_bytes;
	next->checksum = result->checksum;
	next->image_dev = result->image_dev;
	next->image_ino = result->image_ino;
	(void)snprintf(next->notice, sizeof next->notice, "%s", result->notice);
	return describe_shards(daemon, job, next);
}

/* Where the progress of a copy is counted; NULL: nowhere. */
static uint64_t *progress_of(const struct daemon *daemon, const struct job_info *job,
			     uint64_t segment)
{
	struct core_segment_view view;

	if (job == NULL || job->filled_bytes == NULL || job->map == NULL ||
	    !core_segment_get(daemon->core, segment, &view) ||
	    view.index >= (view.is_block ? job->map->n_blocks : job->n_shards)) {
		return NULL;
	}
	return &job->filled_bytes[view.is_block ? job->n_shards + view.index : view.index];
}

/* For the progress of the others. */
static void note_filled(const struct daemon *daemon, const struct job_info *job,
			const struct load_result *result)
{
	uint64_t *bytes = progress_of(daemon, job, result->segment);

	if (bytes != NULL) {
		*bytes = result->bytes;
	}
}

/* A device has no memory where by its account there is some: others have taken it since it was
 * looked at. */
static void note_full(struct daemon *daemon, struct job_info *job, uint64_t id)
{
	struct core_segment_view segment;

	if (core_segment_get(daemon->core, id, &segment) && segment.device != 0) {
		job->shortage =
			(struct plan_shortage){.device = segment.device, .need = segment.bytes};
		job->is_taken = true;
		workers_look_now(daemon, segment.device);
	}
}

static void take_filled(struct daemon *daemon, struct load_result *result)
{
	struct job_info *job = store_find_job(daemon->store, result->job);

	testing_point("filled");
	if (result->extent != NULL &&
	    store_add_extent(daemon->store, result->segment, result->extent) == 0) {
		result->extent = NULL; /* the store's */
	} else if (result->err.code == 0) {
		(void)err_set(&result->err, WIRE_NO_MEMORY, "no memory to keep the image");
	}
	if (result->err.code == 0 && job == NULL) {
		(void)err_set(&result->err, WIRE_CANCELLED, "nobody waits for it any more");
	}
	if (result->err.code == 0 && job != NULL && result->table_fd >= 0 &&
	    !take_generation(daemon, job, result)) {
		(void)err_set(&result->err, WIRE_NO_MEMORY, "no memory to keep its table");
	}
	remember_failure(daemon, result->job, &result->err);
	if (result->err.code == WIRE_NO_MEMORY && job != NULL) {
		note_full(daemon, job, result->segment);
	}
	note_filled(daemon, job, result);
	if (result->err.code == 0 && job != NULL) {
		job->moved += result->bytes;
	}
	if (result->err.code == 0 && job != NULL && !job->is_tabled &&
	    ++job->n_filled == job->n_shards) {
		persist_park(daemon, result->job, result->segment, result->duration_ns);
	} else {
		execute_filled(daemon, result->segment, result->err.code, result->duration_ns);
	}
}

static void take_tabled(struct daemon *daemon, struct load_result *result)
{
	struct job_info *job = store_find_job(daemon->store, result->job);

	testing_point("filled");
	if (result->err.code == 0 && job != NULL && !take_generation(daemon, job, result)) {
		(void)err_set(&result->err, WIRE_NO_MEMORY, "no memory to keep its table");
	}
	remember_failure(daemon, result->job, &result->err);
	if (result->err.code == 0) {
		persist_park_tabled(daemon, result->job);
	} else {
		execute_tabled(daemon, result->job, result->err.code);
	}
}

/* The files of a model are read a few at a time: what is told is their sum, as often as that of
 * one would be. */
static void take_progress(struct daemon *daemon, const struct load_result *result)
{
	struct job_info *job = store_find_job(daemon->store, result->job);
	uint64_t now_ns = clock_mono_ns();
	struct core_event event = {.type = EV_FILL_PROGRESS,
				   .progress = {.job = result->job,
						.is_stalled = result->is_stalled}};
	uint64_t *bytes = progress_of(daemon, job, result->segment);

	if (bytes == NULL) {
		return;
	}
	*bytes = result->bytes;
	if (!result->is_stalled && now_ns - job->told_ns < PROGRESS_NS) {
		return;
	}
	job->told_ns = now_ns;
	for (uint32_t i = 0; i < job->n_shards + job->map->n_blocks; i++) {
		event.progress.bytes += job->filled_bytes[i];
	}
	(void)daemon_step(daemon, &event);
}

void execute_filled(struct daemon *daemon, uint64_t segment, int code, uint64_t duration_ns)
{
	struct core_event event = {.type = EV_FILLED,
				   .filled = {.segment = segment,
					      .code = code,
					      .duration_ns = duration_ns}};

	testing_point("parked");
	(void)daemon_step(daemon, &event);
	testing_point("published");
}

void execute_tabled(struct daemon *daemon, uint64_t job, int code)
{
	struct core_event event = {.type = EV_TABLED, .tabled = {.job = job, .code = code}};

	testing_point("parked");
	(void)daemon_step(daemon, &event);
	testing_point("published");
}

static void take_rechecked(struct daemon *daemon, const struct load_result *result)
{
	const struct job_info *job = store_find_job(daemon->store, result->job);
	uint64_t model = job == NULL ? 0 : job->model;
	struct core_event event = {.type = EV_RECHECKED,
				   .rechecked = {.job = result->job,
						 .code = result->err.code,
						 .is_equal = result->is_equal}};

	remember_failure(daemon, result->job, &result->err);
	(void)daemon_step(daemon, &event);
	saved_record_model(daemon, model); /* its file's times are others now */
}

void execute_result(struct daemon *daemon, struct load_result *result)
{
	struct core_event event = {0};

	testing_result(result);
	holes_look(daemon);
	switch (result->type) {
	case LOAD_HEADER:
		take_header(daemon, result);
		break;
	case LOAD_FILLED:
		tell_available(daemon, result); /* what it took is gone from it */
		take_filled(daemon, result);
		break;
	case LOAD_TABLED:
		take_tabled(daemon, result);
		break;
	case LOAD_PROGRESS:
		take_progress(daemon, result);
		break;
	case LOAD_RECHECKED:
		take_rechecked(daemon, result);
		break;
	case LOAD_VERIFIED:
		verify_end(daemon, result->job);
		remember_verified(daemon, result);
		event.type = EV_VERIFIED;
		event.verified.segment = result->segment;
		event.verified.code = result->err.code;
		event.verified.is_equal = result->is_equal;
		(void)daemon_step(daemon, &event);
		break;
	case LOAD_MEASURED:
		pressure_measured(daemon, result->available);
		break;
	case LOAD_DROPPED:
		tell_available(daemon, result);
		event.type = EV_DROPPED;
		event.dropped.segment = result->segment;
		(void)daemon_step(daemon, &event);
		workers_apply_drain(daemon);
		break;
	}
	load_result_free(result);
}
