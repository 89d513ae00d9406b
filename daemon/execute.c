/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Carries out what the core decided, and turns the loader's results into events. The only
 * file that performs actions; it decides nothing.
 */
#include "base/os/log.h"
#include "base/require.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "daemon/daemon.h"
#include "daemon/device/device.h"
#include "daemon/format/format.h"
#include "daemon/load/file.h"
#include "daemon/load/loader.h"
#include "daemon/persist.h"
#include "daemon/pressure.h"
#include "daemon/testing.h"
#include "proto/gen/wire_code.h"

static struct file *source_of(const struct daemon *daemon, uint64_t id)
{
	struct file *file = store_find_file(daemon->store, id);

	REQUIRE(file != NULL); /* the core gives a file back before it forgets it */
	return file;
}

static struct job_info *job_of(struct daemon *daemon, const struct core_action *action)
{
	(void)daemon_know_model(daemon, action->model);
	return store_get_job(daemon->store, action->job, action->model);
}

static void execute_read_header(struct daemon *daemon, const struct core_action *action)
{
	struct core_model_view view;

	REQUIRE(core_model_get(daemon->core, action->model, &view));
	(void)job_of(daemon, action); /* without memory the job only loses its details */
	loader_read_header(daemon->loader, action->job, source_of(daemon, action->fill.file),
			   (enum format)view.format);
}

static void execute_fill(struct daemon *daemon, const struct core_action *action)
{
	struct job_info *job = job_of(daemon, action);
	const struct model_info *model = daemon_know_model(daemon, action->model);
	struct core_model_view view;
	struct fill_request request = {
		.job = action->job,
		.segment = action->segment,
		.file = source_of(daemon, action->fill.file),
		.map = job == NULL ? NULL : job->map,
		.generation = action->fill.generation,
		.name = model == NULL ? "" : model->name,
	};

	REQUIRE(core_model_get(daemon->core, action->model, &view));
	request.model_id = view.uuid;
	request.owner_uid = view.owner_uid;
	if (job != NULL) {
		job->file = action->fill.file;
	}
	loader_fill(daemon->loader, &request);
}

static void execute_recheck(struct daemon *daemon, const struct core_action *action)
{
	const struct model_info *model = daemon_know_model(daemon, action->model);

	(void)job_of(daemon, action);
	loader_recheck(daemon->loader, action->job, source_of(daemon, action->fill.file),
		       model == NULL ? NULL : model->current.sums,
		       model == NULL ? 0 : model->current.n_sums);
}

static void execute_verify(struct daemon *daemon, const struct core_action *action)
{
	const struct model_info *model = daemon_know_model(daemon, action->model);
	struct extent *extent = store_find_extent(daemon->store, action->segment);

	REQUIRE(extent != NULL && model != NULL);
	loader_verify(daemon->loader, action->segment, extent, model->current.sums,
		      model->current.n_sums);
}

static void execute_drop(struct daemon *daemon, const struct core_action *action)
{
	struct park park = {0};
	/* A fill that failed has no extent; the loader answers at once. */
	struct extent *extent = store_take_extent(daemon->store, action->segment, &park);

	testing_point("dropping");
	persist_drop(daemon, action->segment, extent, &park);
}

static void execute_publish(struct daemon *daemon, const struct core_action *action)
{
	struct model_info *model = daemon_know_model(daemon, action->model);
	struct job_info *job = store_find_job(daemon->store, action->job);

	REQUIRE(model != NULL && job != NULL && job->next.table_fd >= 0);
	generation_info_fini(&model->current);
	model->current = job->next;
	memset(&job->next, 0, sizeof job->next);
	job->next.table_fd = -1;
	tensor_map_free(job->map);
	job->map = NULL;
	model->failure = (struct err){0};
}

static void execute_retire(struct daemon *daemon, const struct core_action *action)
{
	struct model_info *model = store_find_model(daemon->store, action->model);

	if (model != NULL) {
		generation_info_fini(&model->current);
	}
}

void execute(struct daemon *daemon, const struct core_action *action)
{
	switch (action->type) {
	case ACT_READ_HEADER:
		execute_read_header(daemon, action);
		break;
	case ACT_FILL:
		execute_fill(daemon, action);
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
		store_forget_job(daemon->store, action->job);
		break;
	case ACT_FORGET_MODEL:
		store_forget_model(daemon->store, action->model);
		break;
	case ACT_FORGET_CLIENT:
		daemon_forget_client(daemon, action->client);
		break;
	case ACT_REPLY:
		answer_reply(daemon, action);
		break;
	case ACT_UNLOAD_ITEM:
		answer_unload_item(daemon, action);
		break;
	case ACT_PROGRESS:
		answer_progress(daemon, action);
		break;
	case ACT_LOST:
		answer_lost(daemon, action);
		break;
	case ACT_NOTE:
		answer_note(daemon, action);
		break;
	case ACT_RECORD_LEASE:
		persist_record_lease(daemon, action->record.id);
		break;
	case ACT_RECORD_WISH:
		persist_record_wish(daemon, action->record.id);
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

	if (err->code == 0 || job == NULL) {
		return;
	}
	job->failure = *err;
	if (model != NULL) {
		model->failure = *err;
	}
}

static struct core_file_key key_of(const struct load_result *result)
{
	return (struct core_file_key){.dev = result->key.dev,
				      .ino = result->key.ino,
				      .size = result->key.size,
				      .mtime_ns = result->key.mtime_ns,
				      .ctime_ns = result->key.ctime_ns};
}

static void take_header(struct daemon *daemon, struct load_result *result)
{
	struct core_file_key key = key_of(result);
	struct job_info *job = store_find_job(daemon->store, result->job);
	struct core_need need = {.device = 0, .bytes = 0};
	uint64_t available[CORE_MAX_DEVICES];
	struct core_event event = {.type = EV_HEADER_READ, .header = {.job = result->job}};

	for (uint32_t i = 0; i < CORE_MAX_DEVICES; i++) {
		available[i] = UINT64_MAX;
	}
	available[0] = daemon_available(daemon, result->available);
	if (result->err.code == 0 && job == NULL) {
		(void)err_set(&result->err, WIRE_NO_MEMORY, "no memory to keep the header");
	}
	if (result->err.code == 0) {
		tensor_map_free(job->map);
		job->map = result->map;
		result->map = NULL;
		need.bytes = device_charge(daemon->host, key.size);
	}
	remember_failure(daemon, result->job, &result->err);
	event.header.code = result->err.code;
	event.header.key = &key;
	event.header.needs = &need;
	event.header.n_needs = 1;
	event.header.available = available;
	(void)daemon_step(daemon, &event);
}

static void take_generation(struct job_info *job, struct load_result *result)
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
	next->page_bytes = result->page_bytes;
	next->huge_bytes = result->huge_bytes;
	next->checksum = result->checksum;
	next->image_dev = result->image_dev;
	next->image_ino = result->image_ino;
	(void)snprintf(next->notice, sizeof next->notice, "%s", result->notice);
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
	if (result->err.code == 0 && job != NULL) {
		take_generation(job, result);
	} else if (result->err.code == 0) {
		(void)err_set(&result->err, WIRE_CANCELLED, "nobody waits for it any more");
	}
	remember_failure(daemon, result->job, &result->err);
	if (result->err.code == 0) {
		persist_park(daemon, result->job, result->segment, result->duration_ns);
	} else {
		execute_filled(daemon, result->segment, result->err.code, result->duration_ns);
	}
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

void execute_result(struct daemon *daemon, struct load_result *result)
{
	uint64_t available[CORE_MAX_DEVICES];
	struct core_event event = {0};

	switch (result->type) {
	case LOAD_HEADER:
		take_header(daemon, result);
		break;
	case LOAD_FILLED:
		take_filled(daemon, result);
		break;
	case LOAD_PROGRESS:
		event.type = EV_FILL_PROGRESS;
		event.progress.job = result->job;
		event.progress.bytes = result->bytes;
		event.progress.is_stalled = result->is_stalled;
		(void)daemon_step(daemon, &event);
		break;
	case LOAD_RECHECKED:
		remember_failure(daemon, result->job, &result->err);
		event.type = EV_RECHECKED;
		event.rechecked.job = result->job;
		event.rechecked.code = result->err.code;
		event.rechecked.is_equal = result->is_equal;
		(void)daemon_step(daemon, &event);
		break;
	case LOAD_VERIFIED:
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
		for (uint32_t i = 0; i < CORE_MAX_DEVICES; i++) {
			available[i] = UINT64_MAX;
		}
		available[0] = daemon_available(daemon, result->available);
		event.type = EV_DROPPED;
		event.dropped.segment = result->segment;
		event.dropped.available = available;
		(void)daemon_step(daemon, &event);
		break;
	}
	load_result_free(result);
}
