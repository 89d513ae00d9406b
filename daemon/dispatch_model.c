/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Requests that the core decides: load, attach, map, detach, unload, set, cancel, verify.
 * Each becomes an event; the answer comes by answer.c.
 */
#include "base/checked.h"
#include "base/cleanup.h"
#include "base/os/sys.h"

#include <fnmatch.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include "daemon/config.h"
#include "daemon/describe.h"
#include "daemon/device/device.h"
#include "daemon/dispatch.h"
#include "daemon/format/format.h"
#include "daemon/ipc/conn.h"
#include "daemon/ipc/peer.h"
#include "daemon/load/file.h"
#include "daemon/load/loader.h"
#include "daemon/persist.h"
#include "proto/table.h"

#define NS_PER_MS 1000000U

/* A time that does not fit is as good as for ever. */
static uint64_t ns_of(uint64_t ms)
{
	uint64_t ns;

	return checked_mul(ms, NS_PER_MS, &ns) ? ns : UINT64_MAX - 1;
}

static struct core_policy read_policy(const struct wire_policy *wire)
{
	struct core_policy policy = {0};

	if (wire->has_pin) {
		policy.said |= CORE_SAID_PIN;
		policy.pin = wire->pin;
	}
	if (wire->has_keep) {
		policy.said |= CORE_SAID_KEEP;
		policy.keep = wire->keep;
	}
	if (wire->has_ttl_ms) {
		policy.said |= CORE_SAID_TTL;
		policy.ttl_ns = ns_of(wire->ttl_ms);
	}
	if (wire->has_priority) {
		policy.said |= CORE_SAID_PRIORITY;
		policy.priority = (int16_t)wire->priority;
	}
	policy.for_ns = wire->has_for_ms ? ns_of(wire->for_ms) : 0;
	return policy;
}

/* Is the text one of the names, or absent? */
static bool is_one_of(bool has, struct wire_str text, const char *const *names)
{
	if (!has || text.size == 0) {
		return true;
	}
	for (; *names != NULL; names++) {
		if (wire_str_is(text, *names)) {
			return true;
		}
	}
	return false;
}

/* What this daemon can do of a load's options; the rest is refused, never ignored. */
static bool refuse_options(const struct call *call, const struct wire_load_request *request)
{
	static const char *const whole_on_host[] = {"cpu",   "ram",    "host", "cpu,*",
						    "ram,*", "host,*", NULL};
	static const char *const image[] = {"auto", "image", NULL};
	static const char *const host[] = {"cpu", "ram", "host", NULL};
	static const char *const strategy[] = {"auto", "contiguous", NULL};
	static const char *const granularity[] = {"block", NULL};

	if (!is_one_of(request->has_allocation, request->allocation, whole_on_host)) {
		call_refuse(call, WIRE_UNSUPPORTED, "allocation",
			    "this version keeps models in RAM only; use cpu or leave it out");
	} else if (!is_one_of(request->has_backing, request->backing, image)) {
		call_refuse(call, WIRE_UNSUPPORTED, "backing",
			    "this version knows the backing image (and auto, which means it)");
	} else if (!is_one_of(request->has_compute, request->compute, host)) {
		call_refuse(call, WIRE_UNSUPPORTED, "compute", "this version knows only cpu");
	} else if (request->has_virtual_vram && request->virtual_vram != 0) {
		call_refuse(call, WIRE_UNSUPPORTED, "virtual_vram", "this version knows only cpu");
	} else if (request->has_donors && request->donors.count != 0) {
		call_refuse(call, WIRE_UNSUPPORTED, "donors", "this version knows only cpu");
	} else if (!is_one_of(request->has_strategy, request->strategy, strategy)) {
		call_refuse(call, WIRE_UNSUPPORTED, "strategy", "this version knows only cpu");
	} else if (!is_one_of(request->has_granularity, request->granularity, granularity)) {
		call_refuse(call, WIRE_UNSUPPORTED, "granularity", "this version knows only block");
	} else if (request->has_shards && request->shards.count != 0) {
		call_refuse(call, WIRE_UNSUPPORTED, "shards", "this version loads single files");
	} else {
		return false;
	}
	return true;
}

/* The descriptors of a load or an attach as a source file in the store; 0 when refused. */
static uint64_t take_file(const struct call *call, struct core_file_key *ret_key)
{
	struct file *file = NULL;
	struct err err = {0};
	uint64_t id;
	int direct_fd = call->n_fds > 1 ? steal_fd(&call->fds[1]) : -1;

	if (file_take(conn_peer(call->conn)->uid, steal_fd(&call->fds[0]), direct_fd, &file, &err) <
	    0) {
		struct failure failure;

		failure_from_err(&failure, "", &err);
		call_fail(call, &failure);
		return 0;
	}
	id = store_add_file(call->daemon->store, file);
	if (id == 0) {
		file_unref(file);
		call_refuse(call, WIRE_TOO_MANY, NULL, "%d source files are open already",
			    STORE_MAX_FILES);
		return 0;
	}
	*ret_key = (struct core_file_key){.dev = file->key.dev,
					  .ino = file->key.ino,
					  .size = file->key.size,
					  .mtime_ns = file->key.mtime_ns,
					  .ctime_ns = file->key.ctime_ns};
	return id;
}

/*
 * Step with the file presented. What the core makes of it is called after the file at once,
 * also when the load has to wait its turn and nothing happens to the model yet. The core may
 * give the file itself away before a name is wanted, so a copy of its path is shown.
 */
__attribute__((noinline)) static void step_with_file(const struct call *call,
						     struct core_event *event, struct wire_str name)
{
	struct daemon *daemon = call->daemon;
	const struct core_file_key key = *event->load.key;
	char path[4097];
	const struct file shown = {.fd = -1, .direct_fd = -1, .path = path};

	(void)snprintf(path, sizeof path, "%s",
		       file_path(store_find_file(daemon->store, event->load.file)));
	daemon_present(daemon, &shown);
	daemon_present_name(daemon, name);
	(void)daemon_step(daemon, event);
	daemon_present(daemon, &shown);
	daemon_present_name(daemon, name);
	(void)daemon_know_model(daemon, core_model_find(daemon->core, &key));
	daemon_present(daemon, NULL);
}

void dispatch_load(const struct call *call, const struct wire_load_request *request)
{
	enum format format = FORMAT_AUTO;
	uint32_t known; /* of the same content in memory */
	struct core_file_key key;
	struct core_policy policy = read_policy(&request->policy);
	uint8_t fresh_id[16];
	struct pending *pending;
	struct core_event event = {.type = EV_LOAD,
				   .client = call->client->id,
				   .request = call->request};

	if (request->has_format &&
	    format_find(request->format.text, request->format.size, &format) < 0) {
		call_refuse(call, WIRE_BAD_ARGUMENT, "format",
			    "format is auto, safetensors, gguf or raw");
		return;
	}
	if (refuse_options(call, request)) {
		return;
	}
	if (sys_getrandom(fresh_id, sizeof fresh_id) < 0) {
		call_refuse(call, WIRE_INTERNAL, NULL, "the kernel gives no random numbers");
		return;
	}
	pending = call_expect(call);
	if (pending == NULL) {
		return;
	}
	event.load.file = take_file(call, &key);
	if (event.load.file == 0) {
		pending_clear(pending);
		return;
	}
	key.is_raw = format == FORMAT_RAW;
	event.load.format = (uint32_t)format;
	known = describe_known_format(call->daemon, &key);
	if (format != FORMAT_AUTO && known != 0 && known != event.load.format) {
		pending_clear(pending);
		call_refuse(call, WIRE_UNSUPPORTED, "format", "the file is %s, not %s",
			    describe_format(known), describe_format(event.load.format));
		loader_close_file(call->daemon->loader,
				  store_take_file(call->daemon->store, event.load.file));
		return;
	}
	event.load.key = &key;
	event.load.fresh_id = fresh_id;
	event.load.policy = &policy;
	event.load.no_wait = request->has_no_wait && request->no_wait;
	event.load.attach = request->has_attach && request->attach;
	event.load.map = event.load.attach && request->has_map && request->map;
	step_with_file(call, &event, request->has_name ? request->name : wire_str(""));
}

/* The published generation whose image this descriptor is; NULL: of none. */
static const struct model_info *find_by_image(const struct daemon *daemon, int fd)
{
	const struct model_info *model = NULL;
	struct stat status;

	if (fstat(fd, &status) < 0) {
		return NULL;
	}
	/* Inodes of memfds are one numbering: nobody can make another one with this number. */
	while ((model = store_next_model(daemon->store, model)) != NULL) {
		if (model->current.table_fd >= 0 && model->current.image_ino == status.st_ino &&
		    model->current.image_dev == status.st_dev) {
			return model;
		}
	}
	return NULL;
}

/* A lease whose connection broke: the image that its holder still maps proves its right. */
static void reassert(const struct call *call, const struct wire_attach_request *request)
{
	const struct model_info *model =
		call->n_fds == 1 ? find_by_image(call->daemon, call->fds[0]) : NULL;
	struct core_model_view view = {0};
	struct core_event event = {.type = EV_ATTACH,
				   .client = call->client->id,
				   .request = call->request};

	if (!request->has_epoch || request->has_model || call->n_fds != 1) {
		call_refuse(call, WIRE_BAD_ARGUMENT, "lease",
			    "asserting a lease again takes its epoch and one image descriptor");
		return;
	}
	if (model == NULL || !core_model_get(call->daemon->core, model->id, &view)) {
		call_refuse(call, WIRE_NOT_RESIDENT, "lease",
			    "no resident model has this image any more");
		return;
	}
	event.attach.model = model->id;
	event.attach.generation = view.generation;
	event.attach.ghost = persist_find_lease(call->daemon, request->epoch, request->lease);
	if (call_expect(call) != NULL) {
		(void)daemon_step(call->daemon, &event);
	}
}

void dispatch_unmapped(const struct call *call, const struct wire_unmapped_request *request)
{
	uint64_t lease = request->has_epoch
				 ? persist_find_lease(call->daemon, request->epoch, request->lease)
				 : request->lease;

	dispatch_lease(call, EV_UNMAPPED, lease);
}

void dispatch_attach(const struct call *call, const struct wire_attach_request *request)
{
	struct core_file_key key;
	struct failure failure;
	struct pending *pending;
	struct core_event event = {.type = EV_ATTACH,
				   .client = call->client->id,
				   .request = call->request};

	if (request->has_lease) {
		reassert(call, request);
		return;
	}
	if (request->has_model == (call->n_fds > 0)) {
		call_refuse(call, WIRE_BAD_ARGUMENT, "model",
			    "name a model or pass its file, one of the two");
		return;
	}
	if (request->has_model) {
		if (dispatch_find_model(call, request->model, &event.attach.model, &failure) < 0) {
			call_fail(call, &failure);
			return;
		}
	}
	pending = call_expect(call);
	if (pending == NULL) {
		return;
	}
	if (!request->has_model) {
		event.attach.file = take_file(call, &key);
		event.attach.key = &key;
		if (event.attach.file == 0) {
			pending_clear(pending);
			return;
		}
	}
	event.attach.map = request->has_map && request->map;
	(void)daemon_step(call->daemon, &event);
}

void dispatch_lease(const struct call *call, enum core_event_type type, uint64_t lease)
{
	struct core_event event = {.type = type,
				   .client = call->client->id,
				   .request = call->request,
				   .lease = {.lease = lease}};

	if (call_expect(call) != NULL) {
		(void)daemon_step(call->daemon, &event);
	}
}

/* Images of a lease, for a client that attached without map. */
void dispatch_map(const struct call *call, const struct wire_map_request *request)
{
	struct core_lease_view lease;
	struct core_segment_view segment;
	struct wire_list range = request->segments;
	uint64_t first = 0;
	uint64_t count = 0;
	uint32_t cursor = 0;
	struct wire_place place = {.device = wire_str("cpu"), .backing = wire_str("image")};
	struct wire_map_response response = {0};

	if (!wire_list_next(&range, NULL, &first) || !wire_list_next(&range, NULL, &count) ||
	    first != 0 || count != 1) {
		call_refuse(call, WIRE_BAD_ARGUMENT, "segments",
			    "this model has one segment: ask for [0, 1]");
		return;
	}
	if (!core_lease_get(call->daemon->core, request->lease, &lease) ||
	    lease.client != call->client->id) {
		call_refuse(call, WIRE_NOT_FOUND, "lease", "no such lease");
		return;
	}
	while (core_segment_next(call->daemon->core, lease.model, &cursor, &segment)) {
		const struct extent *extent = store_find_extent(call->daemon->store, segment.id);
		AUTO_CLOSE int fd = -1;
		struct core_event event = {.type = EV_MAPPED,
					   .client = call->client->id,
					   .lease = {.lease = lease.id}};

		if (segment.generation != lease.generation || segment.state != SEGMENT_READY ||
		    extent == NULL) {
			continue;
		}
		if (device_export(extent, &fd, NULL) < 0) {
			break;
		}
		(void)daemon_step(call->daemon, &event);
		place.bytes = segment.bytes;
		response.segments.items = &place;
		response.segments.count = 1;
		call_answer_fds(call, &response, &fd, 1);
		return;
	}
	call_refuse(call, WIRE_INTERNAL, NULL, "the image cannot be opened");
}

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

static bool is_under(const char *path, const char *folder)
{
	size_t size = strlen(folder);

	while (size > 0 && folder[size - 1] == '/') {
		size--;
	}
	return strncmp(path, folder, size) == 0 && path[size] == '/';
}

static bool fits_patterns(const struct model_info *model, struct wire_list patterns)
{
	struct wire_str pattern;
	char text[513];
	char name[512];
	bool is_any = patterns.count == 0;

	(void)store_display_name(model, name, (uint32_t)sizeof name);
	while (wire_list_next(&patterns, NULL, &pattern)) {
		(void)wire_str_copy(pattern, text, sizeof text);
		if (fnmatch(text, model->name, 0) == 0 || fnmatch(text, name, 0) == 0) {
			return true;
		}
	}
	return is_any;
}

__attribute__((noinline)) static int /* keeps the folder's buffer off its caller's stack */
select_matching(const struct call *call, const struct wire_select *select,
		struct selection *selection, struct failure *failure)
{
	const struct daemon *daemon = call->daemon;
	const struct model_info *model = NULL;
	struct wire_list patterns = select->has_names ? select->names : (struct wire_list){0};
	char folder[4097] = "";

	if (select->has_under) {
		(void)wire_str_copy(select->under, folder, sizeof folder);
	}
	while ((model = store_next_model(daemon->store, model)) != NULL) {
		if (!core_client_may(daemon->core, call->client->id, model->id) ||
		    (folder[0] != '\0' && !is_under(model->path, folder)) ||
		    (select->has_names && !fits_patterns(model, patterns))) {
			continue;
		}
		if (!selection_add(selection, model->id)) {
			failure_set(failure, WIRE_NO_MEMORY, "no memory for the selection");
			return -WIRE_NO_MEMORY;
		}
	}
	return 0;
}

static bool flag(bool has, bool value)
{
	return has && value;
}

static int read_selection(const struct call *call, const struct wire_select *select,
			  struct core_event *event, struct selection *selection,
			  struct failure *failure)
{
	bool is_named = select->has_models && select->models.count > 0;
	bool is_matched = (select->has_names && select->names.count > 0) ||
			  (select->has_under && select->under.size > 0);
	bool is_idle = select->has_idle_ms && select->idle_ms > 0;
	int code = 0;

	event->unload.not_kept = flag(select->has_not_kept, select->not_kept);
	event->unload.mine = flag(select->has_mine, select->mine);
	event->unload.idle_ns = select->has_idle_ms ? ns_of(select->idle_ms) : 0;
	event->unload.has_device = select->has_device;
	event->unload.by_name = is_named;
	if (select->has_device &&
	    !describe_find_device(call->daemon, select->device, &event->unload.device)) {
		failure_set_no_device(failure, call->daemon, select->device, "select.device");
		return -WIRE_NOT_FOUND;
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

/* Of a model whose load failed nothing is left but its being listed: that ends here. */
static void forgive(const struct call *call, const struct selection *selection,
		    struct pending *pending)
{
	for (uint32_t i = 0; i < selection->count; i++) {
		uint64_t model = selection->models[i];
		struct model_info *info = store_find_model(call->daemon->store, model);
		struct core_model_view view;
		struct answer_line *line;

		if (info == NULL || !core_model_get(call->daemon->core, model, &view) ||
		    !describe_is_failed(call->daemon, &view) || is_wished_by_others(call, model)) {
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

	if (request->has_mode && !wire_str_is(request->mode, "idle")) {
		call_refuse(call, WIRE_UNSUPPORTED, "mode",
			    "this version unloads what is idle; it cannot recall from clients");
		return;
	}
	if (read_selection(call, &request->select, &event, &selection, &failure) < 0) {
		call_fail(call, &failure);
		free(selection.models);
		return;
	}
	pending = call_expect(call);
	if (pending != NULL && event.unload.by_name) {
		forgive(call, &selection, pending);
	}
	if (pending != NULL) {
		(void)daemon_step(call->daemon, &event);
	}
	free(selection.models);
}

void dispatch_set(const struct call *call, const struct wire_set_request *request)
{
	struct core_policy policy = read_policy(&request->policy);
	struct core_event event = {.type = EV_SET,
				   .client = call->client->id,
				   .request = call->request,
				   .set = {.policy = &policy}};
	struct failure failure;

	if (dispatch_find_model(call, request->model, &event.set.model, &failure) < 0) {
		call_fail(call, &failure);
		return;
	}
	if (request->has_label) {
		struct model_info *info = store_find_model(call->daemon->store, event.set.model);
		char label[257];
		char *copy = sys_strdup(wire_str_copy(request->label, label, sizeof label));

		if (copy == NULL) {
			call_refuse(call, WIRE_NO_MEMORY, "label", "no memory for a label");
			return;
		}
		free(info->label);
		info->label = copy;
	}
	if (call_expect(call) != NULL) {
		(void)daemon_step(call->daemon, &event);
	}
}

void dispatch_cancel(const struct call *call, const struct wire_cancel_request *request)
{
	struct core_event event = {.type = EV_CANCEL,
				   .client = call->client->id,
				   .request = call->request,
				   .cancel = {.request = (uint32_t)request->id}};

	if (call_expect(call) != NULL) {
		(void)daemon_step(call->daemon, &event);
	}
}

static bool is_resident(const struct daemon *daemon, uint64_t model)
{
	struct core_model_view view;

	return core_model_get(daemon->core, model, &view) && view.state == CORE_MODEL_RESIDENT;
}

/* A name means bytes that are there; their absence is no finding of a verification. */
static int refuse_absent(const struct daemon *daemon, const struct selection *selection,
			 struct failure *failure)
{
	char name[512];

	for (uint32_t i = 0; i < selection->count; i++) {
		if (!is_resident(daemon, selection->models[i])) {
			failure_set_not_resident(failure,
						 describe_name(daemon, selection->models[i], name));
			return -WIRE_NOT_RESIDENT;
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

	if (request->has_models && request->models.count > 0) {
		code = select_named(call, request->models, &selection, &failure);
		code = code < 0 ? code : refuse_absent(call->daemon, &selection, &failure);
	} else {
		while (code == 0 && (info = store_next_model(call->daemon->store, info)) != NULL) {
			if (is_resident(call->daemon, info->id) &&
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
