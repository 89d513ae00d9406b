/* SPDX-License-Identifier: Apache-2.0 */
/* Requests about models that a selection names or describes: unload, verify. */
#include "base/os/clock.h"
#include "base/os/sys.h"

#include <fnmatch.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/describe.h"
#include "daemon/dispatch.h"
#include "daemon/recall.h"
#include "proto/wire.h"

#define RECALL_MS 5000 /* where the request does not say */

/* The models that names, patterns and folders of a selection mean, as core ids. */
struct selection {
	uint64_t *models; /* owner: the caller */
	uint32_t count;
	uint32_t capacity;
};

static bool selection_add(struct selection *selection, uint64_t model)
{
	for (uint32_t i = 0; i < selection->count; i++) {
		if (selection->models[i] == model) {
			return true;
		}
	}
	if (selection->count == selection->capacity) {
		uint32_t capacity = selection->capacity == 0 ? 16 : selection->capacity * 2;
		uint64_t *models = sys_realloc(selection->models, capacity * sizeof *models);

		if (models == NULL) {
			return false;
		}
		selection->models = models;
		selection->capacity = capacity;
	}
	selection->models[selection->count++] = model;
	return true;
}

static int select_named(const struct call *call, struct wire_list names,
			struct selection *selection, struct failure *failure)
{
	struct wire_str name;

	while (wire_list_next(&names, NULL, &name)) {
		uint64_t model;
		int code = dispatch_find_model(call, name, &model, failure);

		if (code < 0) {
			return code;
		}
		if (!selection_add(selection, model)) {
			failure_set(failure, WIRE_NO_MEMORY, "no memory for the selection");
			return -WIRE_NO_MEMORY;
		}
	}
	return 0;
}

static bool is_under(const char *path, struct wire_str folder)
{
	while (folder.size > 0 && folder.text[folder.size - 1] == '/') {
		folder.size--;
	}
	return strncmp(path, folder.text, folder.size) == 0 && path[folder.size] == '/';
}

static bool fits_patterns(const struct model_info *model, struct wire_list patterns)
{
	struct wire_str pattern;
	char text[513];
	char name[512];

	(void)store_display_name(model, name, (uint32_t)sizeof name);
	while (wire_list_next(&patterns, NULL, &pattern)) {
		(void)wire_str_copy(pattern, text, sizeof text);
		if (fnmatch(text, model->name, 0) == 0 || fnmatch(text, name, 0) == 0) {
			return true;
		}
	}
	return false;
}

static bool matches(const struct wire_select *select, const struct model_info *model)
{
	return (!select->has_under || is_under(model->path, select->under)) &&
	       (!select->has_names || fits_patterns(model, select->names));
}

/* Of those that are named. */
static void keep_matching(const struct call *call, const struct wire_select *select,
			  struct selection *selection)
{
	uint32_t n_named = selection->count;

	selection->count = 0;
	for (uint32_t i = 0; i < n_named; i++) {
		uint64_t model = selection->models[i];

		if (matches(select, store_find_model(call->daemon->store, model))) {
			selection->models[selection->count++] = model;
		}
	}
}

static int select_matching(const struct call *call, const struct wire_select *select,
			   struct selection *selection, struct failure *failure)
{
	const struct daemon *daemon = call->daemon;
	const struct model_info *model = NULL;

	while ((model = store_next_model(daemon->store, model)) != NULL) {
		if (!core_client_may(daemon->core, call->client->id, model->id) ||
		    !matches(select, model)) {
			continue;
		}
		if (!selection_add(selection, model->id)) {
			failure_set(failure, WIRE_NO_MEMORY, "no memory for the selection");
			return -WIRE_NO_MEMORY;
		}
	}
	return 0;
}

/* Of what is there and says nothing; taken as no condition it would select more, not less. */
static const char *find_empty(const struct wire_select *select)
{
	return select->has_models && select->models.count == 0 ? "select.models"
	       : select->has_names && select->names.count == 0 ? "select.names"
	       : select->has_under && select->under.size == 0  ? "select.under"
							       : NULL;
}

static bool flag(bool has, bool value)
{
	return has && value;
}

static int read_selection(const struct call *call, const struct wire_select *select,
			  struct core_event *event, struct selection *selection,
			  struct failure *failure)
{
	bool is_named = select->has_models;
	bool is_matched = select->has_names || select->has_under;
	bool is_idle = select->has_idle_ms && select->idle_ms > 0;
	int code = 0;

	event->unload.not_kept = flag(select->has_not_kept, select->not_kept);
	event->unload.mine = flag(select->has_mine, select->mine);
	event->unload.idle_ns = select->has_idle_ms ? dispatch_ns_of(select->idle_ms) : 0;
	event->unload.has_device = select->has_device;
	event->unload.by_name = is_named;
	if (select->has_device) {
		code = dispatch_find_device(call, select->device, "select.device",
					    &event->unload.device, failure);
	}
	if (code < 0) {
		return code;
	}
	if (!is_named && !is_matched && !is_idle && !select->has_device &&
	    !event->unload.not_kept && !event->unload.mine && !flag(select->has_all, select->all)) {
		failure_set(failure, WIRE_BAD_ARGUMENT, "nothing is selected");
		failure_set_hint(failure, "name models, or say --not-kept, --idle 10m or --all");
		failure_set_field(failure, "select");
		return -WIRE_BAD_ARGUMENT;
	}
	if (is_named) {
		code = select_named(call, select->models, selection, failure);
		keep_matching(call, select, selection);
	} else if (is_matched) {
		code = select_matching(call, select, selection, failure);
	}
	if (is_named || is_matched) {
		static const uint64_t none;

		event->unload.models = selection->models != NULL ? selection->models : &none;
		event->unload.n_models = selection->count;
	}
	return code;
}

/* Does a wish stand that an unload by this client does not withdraw? */
static bool is_wished_by_others(const struct call *call, uint64_t model)
{
	struct core_wish_view wish;
	uint32_t cursor = 0;

	while (!call->client->is_admin &&
	       core_wish_next(call->daemon->core, model, &cursor, &wish)) {
		if ((wish.pin || wish.keep) && wish.uid != call->client->uid) {
			return true;
		}
	}
	return false;
}

/* Does the rest of the selection hold for a model that has nothing but a load that failed? */
static bool is_meant(const struct call *call, const struct core_event *event,
		     const struct core_model_view *view)
{
	uint64_t now_ns = clock_boot_ns(); /* as the core's */

	return !event->unload.has_device &&
	       (!event->unload.mine ||
		core_uid_has_wish(call->daemon->core, call->client->uid, view->id)) &&
	       (now_ns > view->last_used_ns ? now_ns - view->last_used_ns : 0) >=
		       event->unload.idle_ns;
}

/* Of a model whose load failed nothing is left but its being listed: that ends here. */
static void forgive(const struct call *call, const struct core_event *event,
		    const struct selection *selection, struct pending *pending)
{
	for (uint32_t i = 0; i < selection->count; i++) {
		uint64_t model = selection->models[i];
		struct model_info *info = store_find_model(call->daemon->store, model);
		struct core_model_view view;
		struct answer_line *line;

		if (info == NULL || !core_model_get(call->daemon->core, model, &view) ||
		    !describe_is_failed(call->daemon, &view) || !is_meant(call, event, &view) ||
		    is_wished_by_others(call, model)) {
			continue;
		}
		info->failure = (struct err){0};
		line = describe_add_line(call->daemon, pending, model);
		if (line != NULL) {
			line->outcome = CORE_OUTCOME_UNLOADED;
			line->why = CORE_WHY_FAILED;
		}
	}
}

void dispatch_unload(const struct call *call, const struct wire_unload_request *request)
{
	struct core_event event = {.type = EV_UNLOAD,
				   .client = call->client->id,
				   .request = call->request};
	struct selection selection = {0};
	struct failure failure;
	struct pending *pending;
	bool recalls = request->has_mode && wire_str_is(request->mode, "recall");
	uint64_t recall_ms = request->has_recall_ms ? request->recall_ms : RECALL_MS;
	const char *empty = find_empty(&request->select);

	if (request->has_mode && !wire_str_is(request->mode, "idle") && !recalls) {
		call_refuse(call, WIRE_UNSUPPORTED, "mode",
			    "mode is idle or recall: memory that a process maps cannot be taken "
			    "from it by force");
		return;
	}
	if (request->has_recall_ms && !recalls) {
		call_refuse(call, WIRE_BAD_ARGUMENT, "recall_ms", "only with mode recall");
		return;
	}
	if (recalls && recall_is_full(call->daemon, call->client)) {
		call_refuse(call, WIRE_TOO_MANY, "mode",
			    "uid %u has %d unloads that wait for leases already: cancel one, or "
			    "wait for its answer",
			    call->client->uid, DAEMON_MAX_RECALLS);
		return;
	}
	if (empty != NULL) {
		call_refuse(call, WIRE_BAD_ARGUMENT, empty,
			    "%s is empty: leave it out to select by the rest", empty);
		return;
	}
	if (read_selection(call, &request->select, &event, &selection, &failure) < 0) {
		call_fail(call, &failure);
		free(selection.models);
		return;
	}
	pending = call_expect(call);
	if (pending != NULL && event.unload.by_name) {
		forgive(call, &event, &selection, pending);
	}
	if (pending != NULL && recalls) {
		event.unload.recall_ns = dispatch_ns_of(recall_ms);
		pending->recall_until_ns = clock_mono_ns() + event.unload.recall_ns;
		pending->is_recalling = true;
	}
	if (pending != NULL) {
		(void)daemon_step(call->daemon, &event);
	}
	free(selection.models);
}

/* All of it, or a part. */
static bool is_there(const struct daemon *daemon, uint64_t model)
{
	struct core_model_view view;

	return core_model_get(daemon->core, model, &view) &&
	       (view.state == CORE_MODEL_RESIDENT || view.state == CORE_MODEL_PARTIAL);
}

/* Is there a copy that could differ from the file? */
static bool is_image(const struct daemon *daemon, uint64_t model)
{
	struct core_model_view view;

	return core_model_get(daemon->core, model, &view) && view.backing == CORE_BACKING_IMAGE;
}

/* A name means bytes that are there; their absence is no finding of a verification. */
static int refuse_absent(const struct daemon *daemon, const struct selection *selection,
			 struct failure *failure)
{
	char name[512];

	for (uint32_t i = 0; i < selection->count; i++) {
		if (!is_there(daemon, selection->models[i])) {
			failure_set_not_resident(failure, daemon, selection->models[i]);
			return -WIRE_NOT_RESIDENT;
		}
		if (!is_image(daemon, selection->models[i])) {
			failure_set(failure, WIRE_UNSUPPORTED,
				    "%s is served from its file's page cache: there is no copy "
				    "that could differ from the file",
				    describe_name(daemon, selection->models[i], name));
			failure_set_hint(failure, "load it with --backing image to have one");
			return -WIRE_UNSUPPORTED;
		}
	}
	return 0;
}

void dispatch_verify(const struct call *call, const struct wire_verify_request *request)
{
	struct selection selection = {0};
	struct failure failure;
	struct pending *pending;
	const struct model_info *info = NULL;
	int code = 0;

	if (request->has_models && request->models.count == 0) {
		call_refuse(call, WIRE_BAD_ARGUMENT, "models",
			    "models is empty: leave it out to verify all");
		return;
	}
	if (request->has_models) {
		code = select_named(call, request->models, &selection, &failure);
		code = code < 0 ? code : refuse_absent(call->daemon, &selection, &failure);
	} else {
		while (code == 0 && (info = store_next_model(call->daemon->store, info)) != NULL) {
			if (is_there(call->daemon, info->id) && is_image(call->daemon, info->id) &&
			    !selection_add(&selection, info->id)) {
				failure_set(&failure, WIRE_NO_MEMORY, "no memory to verify all");
				code = -WIRE_NO_MEMORY;
			}
		}
	}
	if (code < 0) {
		call_fail(call, &failure);
		free(selection.models);
		return;
	}
	pending = call_expect(call);
	if (pending != NULL && selection.count == 0) {
		const struct wire_verify_response nothing = {0};

		pending_clear(pending);
		call_answer(call, &nothing);
	} else if (pending != NULL) {
		pending->n_expected = selection.count;
		for (uint32_t i = 0; i < selection.count; i++) {
			struct core_event event = {.type = EV_VERIFY,
						   .client = call->client->id,
						   .request = call->request,
						   .verify = {.model = selection.models[i]}};

			(void)daemon_step(call->daemon, &event);
		}
	}
	free(selection.models);
}
