/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Loading, attaching and unloading.
 */
#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include "client/client.h"
#include "client/convert.h"
#include "client/error.h"
#include "client/file.h"
#include "client/keeper.h"
#include "client/map.h"
#include "client/options.h"
#include "client/policy.h"
#include "client/result.h"
#include "client/shards.h"

static void give_text(const char *text, bool *ret_has, struct wire_str *ret)
{
	*ret_has = text != NULL;
	if (text != NULL) {
		*ret = wire_str(text);
	}
}

int policy_encode(const struct distorch_policy *given, struct wire_policy *ret)
{
	struct distorch_policy policy = {0};
	int rc = options_take(given, sizeof policy, &policy);

	if (rc < 0) {
		return rc;
	}
	ret->has_pin = (policy.said & DISTORCH_SAID_PIN) != 0;
	ret->pin = policy.pin;
	ret->has_keep = (policy.said & DISTORCH_SAID_KEEP) != 0;
	ret->keep = policy.keep;
	ret->has_ttl_ms = (policy.said & DISTORCH_SAID_TTL) != 0;
	ret->ttl_ms = policy.ttl_ms;
	ret->has_priority = (policy.said & DISTORCH_SAID_PRIORITY) != 0;
	ret->priority = policy.priority;
	ret->has_for_ms = (policy.said & DISTORCH_SAID_FOR) != 0;
	ret->for_ms = policy.for_ms;
	return 0;
}

/* ---- load ---- */

static int load_encode(const struct distorch_load_options *options, bool wants_weights,
		       struct wire_load_request *ret)
{
	if (options->no_wait && wants_weights) {
		return failure_set(DISTORCH_E_BAD_ARGUMENT, 0, "wait for the load, or attach later",
				   "a load that does not wait cannot return weights");
	}
	give_text(options->name, &ret->has_name, &ret->name);
	give_text(options->format, &ret->has_format, &ret->format);
	give_text(options->allocation, &ret->has_allocation, &ret->allocation);
	give_text(options->compute, &ret->has_compute, &ret->compute);
	give_text(options->backing, &ret->has_backing, &ret->backing);
	give_text(options->strategy, &ret->has_strategy, &ret->strategy);
	give_text(options->granularity, &ret->has_granularity, &ret->granularity);
	ret->has_virtual_vram = options->virtual_vram != 0;
	ret->virtual_vram = options->virtual_vram;
	ret->has_policy = options->policy.said != 0;
	ret->has_no_wait = options->no_wait;
	ret->no_wait = options->no_wait;
	ret->has_attach = wants_weights;
	ret->attach = wants_weights;
	ret->has_map = wants_weights;
	ret->map = wants_weights;
	return ret->has_policy ? policy_encode(&options->policy, &ret->policy) : 0;
}

static struct distorch_loaded *load_convert(const struct wire_load_response *from)
{
	struct distorch_loaded *loaded = result_new(sizeof *loaded);
	struct distorch_model *model;

	if (loaded == NULL) {
		return NULL;
	}
	model = result_add(loaded, sizeof *model);
	loaded->model = model;
	loaded->duration_ms = from->has_duration_ms ? from->duration_ms : DISTORCH_ABSENT;
	if (model == NULL || !convert_model(loaded, &from->model, model) ||
	    !convert_text(loaded, true, from->source, &loaded->source) ||
	    (from->has_evicted &&
	     !convert_outcomes(loaded, from->evicted, &loaded->evicted, &loaded->n_evicted)) ||
	    (from->has_warnings &&
	     !convert_texts(loaded, from->warnings, &loaded->warnings, &loaded->n_warnings))) {
		result_free(loaded);
		return NULL;
	}
	return loaded;
}

/* The lease exists; where its weights cannot be made, it ends again. */
static int lease_take(struct distorch *c, const struct lease *lease, struct answer *answer,
		      struct distorch_weights **ret_weights)
{
	struct lease taken = *lease;
	int rc;

	taken.kept = keeper_add(c, lease->number, answer->serial);
	if (taken.kept == NULL) {
		return failure_memory(); /* it ends with the connection */
	}
	rc = weights_make(c, &taken, answer, ret_weights);
	if (rc < 0) {
		keeper_over(c, taken.kept);
	}
	return rc;
}

/* A lease that nobody will have. */
static void lease_end(struct distorch *c, uint64_t number, const struct answer *answer)
{
	struct kept_lease *kept = keeper_add(c, number, answer->serial);

	if (kept != NULL) { /* else it ends with the connection */
		keeper_over(c, kept);
	}
}

static int load_weights(struct distorch *c, const struct wire_load_response *response,
			struct answer *answer, struct distorch_weights **ret_weights)
{
	const struct lease lease = {
		.number = response->lease,
		.generation = response->generation,
		.n_images = response->has_images ? (uint32_t)response->images : 0,
		.layout = response->has_layout ? &response->layout : NULL,
	};

	if (!response->has_lease || lease.n_images == 0) {
		if (response->has_lease) {
			lease_end(c, lease.number, answer);
		}
		return failure_set(DISTORCH_E_INTERNAL, 0, NULL,
				   "the daemon loaded the model, but sent nothing to map");
	}
	return lease_take(c, &lease, answer, ret_weights);
}

/* What 'source' adds to a load. */
static void load_encode_source(const struct source *source, struct wire_load_request *ret)
{
	if (source->n_shards == 0) {
		return;
	}
	if (!ret->has_name) {
		give_text(source->called, &ret->has_name, &ret->name);
	}
	ret->has_shards = true;
	ret->shards = (struct wire_list){.count = source->n_shards, .items = source->names};
	ret->has_index = source->file.n_fds == 0;
	ret->index = false;
	ret->has_direct = source->is_direct;
	ret->direct = source->is_direct;
}

static int load_donors(const struct distorch_load_options *options,
		       struct wire_str donors[DONORS_MAX], struct wire_load_request *ret)
{
	ret->has_donors = options->n_donors > 0;
	return options_texts("donors", options->donors, options->n_donors, DONORS_MAX, donors,
			     &ret->donors);
}

static int load_source(struct distorch *c, struct source *source,
		       const struct distorch_load_options *given,
		       struct distorch_loaded **ret_loaded, struct distorch_weights **ret_weights)
{
	int fds[WIRE_FDS_PER_PACKET];
	struct distorch_load_options options = {0};
	struct wire_str donors[DONORS_MAX];
	struct wire_load_request body = {0};
	struct wire_load_response response;
	AUTO_ANSWER struct answer answer = {0};
	struct distorch_loaded *loaded = NULL;
	struct request request = {.method = WIRE_METHOD_LOAD, .body = &body, .is_patient = true};
	int rc = options_take(given, sizeof options, &options);

	if (rc == 0) {
		rc = load_encode(&options, ret_weights != NULL, &body);
	}
	if (rc == 0) {
		rc = load_donors(&options, donors, &body);
	}
	if (rc < 0) {
		return rc;
	}
	load_encode_source(source, &body);
	request.fds = fds;
	request.n_fds = source_begin(source, true, fds);
	request.source = source;
	request.tag = options.tag;
	request.progress = options.progress;
	request.user = options.user;
	rc = client_call(c, &request, &answer, &response);
	if (rc < 0) {
		return rc;
	}
	if (ret_loaded != NULL) {
		loaded = load_convert(&response);
		if (loaded == NULL) {
			rc = failure_memory();
			if (response.has_lease) {
				lease_end(c, response.lease, &answer);
			}
		}
	}
	if (rc == 0 && ret_weights != NULL) {
		rc = load_weights(c, &response, &answer, ret_weights);
	}
	if (rc < 0) {
		distorch_loaded_free(loaded);
		return rc;
	}
	if (ret_loaded != NULL) {
		*ret_loaded = loaded;
	}
	return 0;
}

/* Read as raw bytes a file is itself, whatever it is part of. */
static int source_for(const char *path, const struct distorch_load_options *given,
		      struct source *ret)
{
	struct distorch_load_options options = {0};
	int rc = options_take(given, sizeof options, &options);

	if (rc < 0) {
		return rc;
	}
	return options.format != NULL && strcmp(options.format, "raw") == 0
		       ? source_open_single(path, ret)
		       : source_open(path, ret);
}

int distorch_load(struct distorch *c, const char *path, const struct distorch_load_options *options,
		  struct distorch_loaded **ret_loaded, struct distorch_weights **ret_weights)
{
	AUTO_SOURCE struct source source = {0};
	int rc;

	failure_clear(c);
	rc = options_need("path", path);
	if (rc == 0) {
		rc = source_for(path, options, &source);
	}
	return rc < 0 ? rc : load_source(c, &source, options, ret_loaded, ret_weights);
}

int distorch_load_fd(struct distorch *c, int fd, const struct distorch_load_options *options,
		     struct distorch_loaded **ret_loaded, struct distorch_weights **ret_weights)
{
	AUTO_SOURCE struct source source = {0};
	int rc;

	failure_clear(c);
	rc = source_borrow(fd, &source);
	return rc < 0 ? rc : load_source(c, &source, options, ret_loaded, ret_weights);
}

void distorch_loaded_free(struct distorch_loaded *loaded)
{
	result_free(loaded);
}

/* ---- attach ---- */

/* 'model' is NULL where 'source' has the files. */
static int attach(struct distorch *c, const char *model, struct source *source,
		  struct distorch_weights **ret_weights)
{
	int fds[WIRE_FDS_PER_PACKET];
	struct wire_attach_request body = {.has_map = true, .map = true};
	struct wire_attach_response response;
	AUTO_ANSWER struct answer answer = {0};
	struct request request = {.method = WIRE_METHOD_ATTACH, .body = &body};
	struct lease lease;
	int rc = 0;

	body.has_model = model != NULL;
	if (model != NULL) {
		rc = file_name_text(model, &body.model);
	}
	if (rc < 0) {
		return rc;
	}
	if (source->n_shards > 0) {
		body.has_shards = true;
		body.shards = (struct wire_list){.count = source->n_shards, .items = source->names};
		body.has_direct = source->is_direct;
		body.direct = source->is_direct;
	}
	request.fds = fds;
	request.n_fds = source_begin(source, false, fds);
	request.source = source;
	rc = client_call(c, &request, &answer, &response);
	if (rc < 0) {
		return rc;
	}
	lease = (struct lease){
		.number = response.lease,
		.generation = response.generation,
		.n_images = (uint32_t)response.images,
		.layout = response.has_layout ? &response.layout : NULL,
	};
	return lease_take(c, &lease, &answer, ret_weights);
}

int distorch_attach(struct distorch *c, const char *model, struct distorch_weights **ret_weights)
{
	AUTO_SOURCE struct source source = {0};
	int rc;

	failure_clear(c);
	rc = options_need("model", model);
	if (rc < 0) {
		return rc;
	}
	if (!file_exists(model)) {
		return attach(c, model, &source, ret_weights);
	}
	rc = source_open(model, &source);
	return rc < 0 ? rc : attach(c, NULL, &source, ret_weights);
}

int distorch_attach_fd(struct distorch *c, int fd, struct distorch_weights **ret_weights)
{
	AUTO_SOURCE struct source source = {0};
	int rc;

	failure_clear(c);
	rc = source_borrow(fd, &source);
	return rc < 0 ? rc : attach(c, NULL, &source, ret_weights);
}

/* ---- unload ---- */

/* Wire strings of what the caller listed; paths as the daemon knows them when 'are_models'.
 * They live with 'result'. */
static int texts_encode(void *result, const char *const *texts, size_t n, bool are_models,
			struct wire_list *ret)
{
	struct wire_str *items;
	char path[PATH_MAX];
	int rc = options_need_all(are_models ? "models" : "names", texts, n);

	if (rc < 0) {
		return rc;
	}
	if (n > UINT32_MAX / sizeof *items) {
		return failure_set(DISTORCH_E_TOO_LARGE, 0, NULL, "%zu names are too many", n);
	}
	items = result_add(result, (n + 1) * sizeof *items);
	if (items == NULL) {
		return failure_memory();
	}
	for (size_t i = 0; i < n; i++) {
		items[i] = wire_str(texts[i]);
		rc = are_models ? file_model_text(texts[i], path, &items[i]) : 0;
		if (rc < 0) {
			return rc;
		}
		if (items[i].text == path) {
			const char *copy = result_text(result, items[i]);

			if (copy == NULL) {
				return failure_memory();
			}
			items[i] = wire_str(copy);
		}
	}
	*ret = (struct wire_list){.count = (uint32_t)n, .items = items};
	return 0;
}

static int select_encode(void *result, const struct distorch_select *select,
			 struct wire_select *ret)
{
	char under[PATH_MAX];
	const char *copy = NULL;
	int rc = texts_encode(result, select->models, select->n_models, true, &ret->models);

	if (rc == 0) {
		rc = texts_encode(result, select->names, select->n_names, false, &ret->names);
	}
	if (rc < 0) {
		return rc;
	}
	ret->has_models = select->n_models > 0;
	ret->has_names = select->n_names > 0;
	if (select->under != NULL) {
		struct wire_str folder;

		rc = file_folder_text(select->under, under, &folder);
		if (rc < 0) {
			return rc;
		}
		copy = result_text(result, folder);
		if (copy == NULL) {
			return failure_memory();
		}
	}
	give_text(copy, &ret->has_under, &ret->under);
	give_text(select->device, &ret->has_device, &ret->device);
	ret->has_idle_ms = select->idle_ms != 0;
	ret->idle_ms = select->idle_ms;
	ret->has_not_kept = select->not_kept;
	ret->not_kept = select->not_kept;
	ret->has_mine = select->mine;
	ret->mine = select->mine;
	ret->has_all = select->all;
	ret->all = select->all;
	return 0;
}

static struct distorch_report *report_convert(const struct wire_unload_response *from)
{
	struct distorch_report *report = result_new(sizeof *report);

	if (report == NULL) {
		return NULL;
	}
	report->total_bytes = from->total_bytes;
	if (!convert_outcomes(report, from->kept, &report->kept, &report->n_kept) ||
	    !convert_outcomes(report, from->unloaded, &report->unloaded, &report->n_unloaded) ||
	    !convert_outcomes(report, from->held, &report->held, &report->n_held)) {
		result_free(report);
		return NULL;
	}
	return report;
}

int distorch_unload(struct distorch *c, const struct distorch_select *given,
		    struct distorch_report **ret_report)
{
	struct distorch_select select = {0};
	struct wire_unload_request body = {0};
	struct wire_unload_response response;
	struct request request = {.method = WIRE_METHOD_UNLOAD, .body = &body};
	AUTO_ANSWER struct answer answer = {0};
	AUTO_RESULT void *texts = result_new(1);
	struct distorch_report *report;
	int rc;

	failure_clear(c);
	if (texts == NULL) {
		return failure_memory();
	}
	rc = options_take(given, sizeof select, &select);
	if (rc == 0) {
		rc = select_encode(texts, &select, &body.select);
	}
	if (rc < 0) {
		return rc;
	}
	give_text(select.mode, &body.has_mode, &body.mode);
	body.has_recall_ms = select.recall_ms != 0;
	body.recall_ms = select.recall_ms;
	request.is_patient = select.mode != NULL; /* it waits for others */
	rc = client_call(c, &request, &answer, &response);
	if (rc < 0 || ret_report == NULL) {
		return rc;
	}
	report = report_convert(&response);
	if (report == NULL) {
		return failure_memory();
	}
	*ret_report = report;
	return 0;
}

void distorch_report_free(struct distorch_report *report)
{
	result_free(report);
}
