/* SPDX-License-Identifier: Apache-2.0 */
/*
 * From checked messages to events or direct answers. The only file besides answer.c that
 * knows both words. See dispatch.h.
 */
#include "daemon/dispatch.h"

#include "base/os/clock.h"
#include "base/os/log.h"
#include "base/os/sys.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <utlist.h>

#include "daemon/describe.h"
#include "daemon/format/format.h"
#include "daemon/gather.h"
#include "daemon/holes.h"
#include "daemon/ipc/conn.h"
#include "daemon/ipc/peer.h"
#include "daemon/ipc/server.h"
#include "daemon/load/file.h"
#include "daemon/recall.h"
#include "daemon/reload.h"
#include "daemon/workers.h"

void call_answer(const struct call *call, const void *response)
{
	conn_respond_ok(call->conn, call->request, call->message, response, NULL, 0);
}

void call_answer_fds(const struct call *call, const void *response, int *fds, uint32_t n_fds)
{
	conn_respond_ok(call->conn, call->request, call->message, response, fds, n_fds);
}

void call_fail(const struct call *call, const struct failure *failure)
{
	conn_respond_error(call->conn, call->request, &failure->wire);
}

void call_refuse(const struct call *call, enum wire_code code, const char *field,
		 const char *format, ...)
{
	struct failure failure;
	char text[400];
	va_list arguments;

	va_start(arguments, format);
	(void)vsnprintf(text, sizeof text, format, arguments);
	va_end(arguments);
	failure_set(&failure, code, "%s", text);
	if (field != NULL) {
		failure_set_field(&failure, field);
	}
	call_fail(call, &failure);
}

struct pending *call_expect(const struct call *call)
{
	struct pending *pending = client_add_pending(call->client, call->request,
						     (enum wire_method)call->message->number,
						     clock_mono_ns());

	if (pending == NULL) {
		call_refuse(call, WIRE_TOO_MANY, NULL, "more than %d requests in flight",
			    WIRE_REQUESTS_IN_FLIGHT);
	}
	return pending;
}

/* How well a person's text fits a model; the best fit wins, equal fits are ambiguous. */
enum fit { FIT_NONE, FIT_PREFIX, FIT_STEM, FIT_NAME, FIT_PATH, FIT_ID };

/* Is the text the name without its extension? */
static bool is_stem(const char *text, const char *name)
{
	const char *slash = strrchr(name, '/');
	const char *dot = strrchr(slash == NULL ? name : slash, '.');

	return dot != NULL && strlen(text) == (size_t)(dot - name) &&
	       strncmp(name, text, strlen(text)) == 0;
}

static enum fit fit_model(const struct model_info *model, const char *text)
{
	char id[33] = "";
	char buffer[512];
	size_t size = strlen(text);
	bool is_hex = size >= 4 && size <= 32 && strspn(text, "0123456789abcdefABCDEF") == size;
	const char *name = model->n_folders == 0 ? model->name
						 : store_display_name(model, buffer, sizeof buffer);

	if (is_hex && strcasecmp(describe_id(model->uuid, id), text) == 0) {
		return FIT_ID;
	}
	if (model->path[0] != '\0' && strcmp(model->path, text) == 0) {
		return FIT_PATH;
	}
	if (strcmp(model->name, text) == 0 || strcmp(name, text) == 0) {
		return FIT_NAME;
	}
	if (is_stem(text, model->name) || is_stem(text, name)) {
		return FIT_STEM;
	}
	if (is_hex && strncasecmp(id, text, size) == 0) {
		return FIT_PREFIX;
	}
	return FIT_NONE;
}

static bool has_file(const struct daemon *daemon, const struct model_info *model)
{
	struct core_model_view view;
	const struct file *file = core_model_get(daemon->core, model->id, &view)
					  ? store_find_file(daemon->store, view.file)
					  : NULL;

	return file != NULL && !file_is_gone(file);
}

/*
 * Has the file of one, which is not there any more, given its path to that of the other, which was
 * brought from there later? Not where it is there: a path may be another one's in a container.
 */
static bool is_replaced(const struct daemon *daemon, const struct model_info *one,
			const struct model_info *other)
{
	return one->path[0] != '\0' && strcmp(one->path, other->path) == 0 &&
	       one->brought <= other->brought && !has_file(daemon, one);
}

static void add_candidate(struct failure *failure, uint32_t index, const struct model_info *model)
{
	char id[33];
	char *text;

	if (index >= FAILURE_MAX_CANDIDATES) {
		return; /* counted, not told */
	}
	text = failure->candidate_texts[index];
	(void)snprintf(text, sizeof failure->candidate_texts[0], "%.12s%s  %s",
		       describe_id(model->uuid, id),
		       model->current.format == FORMAT_RAW ? " (raw)" : "",
		       model->path[0] != '\0' ? model->path : model->name);
	failure->candidates[index] = wire_str(text);
}

static int refuse_ambiguous(struct failure *failure, const char *text, uint32_t n_candidates)
{
	uint32_t n_told = n_candidates < FAILURE_MAX_CANDIDATES ? n_candidates
								: FAILURE_MAX_CANDIDATES;
	char more[32] = "";

	failure_set(failure, WIRE_BAD_ARGUMENT, "%s means %u models", text, n_candidates);
	if (n_candidates > 2) {
		(void)snprintf(more, sizeof more, " and %u more", n_candidates - 2);
	}
	failure_set_hint(failure, "use an id%s: %s, %s%s",
			 text[0] == '/' ? "" : " or more of the path", failure->candidate_texts[0],
			 failure->candidate_texts[1], more);
	failure_set_field(failure, "model");
	failure->wire.detail.has_models = true;
	failure->wire.detail.models.items = failure->candidates;
	failure->wire.detail.models.count = n_told;
	return -WIRE_BAD_ARGUMENT;
}

int dispatch_find_model(const struct call *call, struct wire_str text, uint64_t *ret_model,
			struct failure *failure)
{
	const struct daemon *daemon = call->daemon;
	const struct model_info *model;
	const struct model_info *last = NULL; /* of the candidates */
	struct text_walk walk = {0};
	enum fit best = FIT_NONE;
	uint32_t n_candidates = 0;
	char wanted[4097];

	(void)wire_str_copy(text, wanted, sizeof wanted);
	while ((model = store_next_meant(daemon->store, wanted, &walk)) != NULL) {
		enum fit fit = core_client_may(daemon->core, call->client->id, model->id)
				       ? fit_model(model, wanted)
				       : FIT_NONE;

		if (fit == FIT_NONE || fit < best) {
			continue;
		}
		if (fit > best) {
			n_candidates = 0;
		} else if (n_candidates > 0 && is_replaced(daemon, last, model)) {
			n_candidates--;
		} else if (n_candidates > 0 && is_replaced(daemon, model, last)) {
			continue;
		}
		best = fit;
		last = model;
		*ret_model = model->id;
		add_candidate(failure, n_candidates++, model);
	}
	if (best == FIT_NONE) {
		failure_set(failure, WIRE_NOT_FOUND, "no model is called %s",
			    wanted[0] == '\0' ? "\"\"" : wanted);
		failure_set_hint(failure, "see what there is: distorchctl ps");
		return -WIRE_NOT_FOUND;
	}
	return n_candidates > 1 ? refuse_ambiguous(failure, wanted, n_candidates) : 0;
}

static void refuse_client(const struct call *call, const struct peer *peer)
{
	uint64_t number;
	enum core_limit limit =
		core_client_limit(call->daemon->core, peer->uid, peer->is_admin, &number);

	call_refuse(call, WIRE_TOO_MANY, NULL,
		    limit == CORE_LIMIT_USER_CLIENTS
			    ? "uid %u has %llu clients already, those included that have closed "
			      "their connection and still map models"
			    : "no place for uid %u among %llu clients, those included that have "
			      "closed their connection and still map models",
		    peer->uid, (unsigned long long)number);
}

static void open_client(const struct call *call, const struct wire_hello_request *request)
{
	struct daemon *daemon = call->daemon;
	const struct peer *peer = conn_peer(call->conn);
	struct client *client = client_new();
	struct core_event event = {.type = EV_CLIENT_OPENED,
				   .opened = {.uid = peer->uid, .is_admin = peer->is_admin}};

	if (client == NULL) {
		call_refuse(call, WIRE_NO_MEMORY, NULL, "no memory for another client");
		return;
	}
	if (request->has_devices && !client_take_devices(client, request->devices)) {
		(void)client_free(client);
		call_refuse(call, WIRE_NO_MEMORY, NULL, "no memory for another client");
		return;
	}
	client->id = daemon_step(daemon, &event);
	if (client->id == 0) {
		(void)client_free(client);
		refuse_client(call, peer);
		return;
	}
	client->conn = call->conn;
	client->uid = peer->uid;
	client->gid = peer->gid;
	client->pid = (uint32_t)peer->pid;
	client->is_admin = peer->is_admin;
	client->opened_ns = clock_boot_ns();
	(void)wire_str_copy(request->client, client->library, sizeof client->library);
	/* One of another container has no pid here, and no name but what it calls itself. */
	if (peer->pid == 0) {
		(void)wire_str_copy(request->client, client->comm, sizeof client->comm);
	} else {
		(void)snprintf(client->comm, sizeof client->comm, "%s", peer->comm);
	}
	if (request->has_label) {
		(void)wire_str_copy(request->label, client->label, sizeof client->label);
	}
	DL_PREPEND(daemon->clients, client);
	conn_set_user(call->conn, client);
	log_debug("client %llu is pid %u (%s)", (unsigned long long)client->id, client->pid,
		  client->comm);
}

__attribute__((noinline)) static void /* a failure is large */
refuse_version(const struct call *call, uint64_t low, uint64_t high)
{
	struct failure failure;

	failure_set(&failure, WIRE_VERSION,
		    "the client speaks protocol %llu to %llu, distorchd speaks %d to %d",
		    (unsigned long long)low, (unsigned long long)high, WIRE_PROTOCOL_MIN,
		    WIRE_PROTOCOL_VERSION);
	failure_set_field(&failure, "protocol");
	failure.wire.detail.has_min = failure.wire.detail.has_max = true;
	failure.wire.detail.min = WIRE_PROTOCOL_MIN;
	failure.wire.detail.max = WIRE_PROTOCOL_VERSION;
	call_fail(call, &failure);
	conn_close_after_flush(call->conn);
}

static void dispatch_hello(const struct call *call, const struct wire_hello_request *request)
{
	struct wire_list versions = request->protocol;
	uint64_t low = 0;
	uint64_t high = 0;
	struct wire_hello_response response = {0};
	struct client *client;

	if (!wire_list_next(&versions, NULL, &low) || !wire_list_next(&versions, NULL, &high)) {
		call_refuse(call, WIRE_BAD_ARGUMENT, "protocol",
			    "protocol needs [lowest, highest]");
		return;
	}
	if (low > WIRE_PROTOCOL_VERSION || high < WIRE_PROTOCOL_MIN || low > high) {
		refuse_version(call, low, high);
		return;
	}
	open_client(call, request);
	client = conn_user(call->conn);
	if (client == NULL) {
		return;
	}
	response.protocol = high < WIRE_PROTOCOL_VERSION ? high : WIRE_PROTOCOL_VERSION;
	response.server = wire_str("distorchd/" DISTORCH_VERSION);
	response.epoch = call->daemon->epoch;
	response.role = wire_str(client->is_admin ? "admin" : "user");
	response.client = client->id;
	server_limits(call->daemon->server, &response.limits);
	call_answer(call, &response);
	conn_accept_hello(call->conn);
}

static void dispatch_reload(const struct call *call)
{
	struct pending *pending = call_expect(call);
	int code = pending == NULL ? 0
				   : reload_begin(call->daemon, call->client->id, call->request,
						  WIRE_METHOD_RELOAD);

	if (code < 0) {
		pending_clear(pending);
		call_refuse(call, (enum wire_code) - code, NULL, "%s",
			    code == -WIRE_BUSY ? "the configuration is being read already"
					       : "the configuration cannot be read now");
	}
}

static void dispatch_cancel(const struct call *call, const struct wire_cancel_request *request)
{
	struct core_event event = {.type = EV_CANCEL,
				   .client = call->client->id,
				   .request = call->request,
				   .cancel = {.request = (uint32_t)request->id}};
	/* What the core does not know of (a plan, a setting) goes on, but it is there. */
	const struct wire_cancel_response response = {
		.found = client_find_pending(call->client, (uint32_t)request->id) != NULL};

	if (!response.found || gather_cancel(call, (uint32_t)request->id) ||
	    recall_cancel(call->daemon, call->client, (uint32_t)request->id) ||
	    dispatch_cancel_reserve(call, (uint32_t)request->id)) {
		call_answer(call, &response);
	} else if (call_expect(call) != NULL) {
		(void)daemon_step(call->daemon, &event);
	}
}

static void dispatch_shutdown(const struct call *call)
{
	const struct wire_shutdown_response response = {0};

	log_notice("told to end by pid %u (%s, uid %u)", call->client->pid,
		   client_display(call->client), call->client->uid);
	call_answer(call, &response);
	daemon_stop(call->daemon);
}

static void dispatch_ping(const struct call *call)
{
	const struct wire_ping_response response = {0};

	call_answer(call, &response);
}

/* One case a method: what only looks. False: it is not one of these. */
static bool dispatch_look(const struct call *call, const void *request)
{
	switch ((int)call->message->number) {
	case WIRE_METHOD_LIST:
		dispatch_list(call, request);
		return true;
	case WIRE_METHOD_SHOW:
		dispatch_show(call, request);
		return true;
	case WIRE_METHOD_DEVICES:
		dispatch_devices(call);
		return true;
	case WIRE_METHOD_CLIENTS:
		dispatch_clients(call);
		return true;
	case WIRE_METHOD_STATUS:
		dispatch_status(call);
		return true;
	case WIRE_METHOD_CONFIG:
		dispatch_config(call);
		return true;
	case WIRE_METHOD_EVENTS_HISTORY:
		dispatch_history(call, request);
		return true;
	case WIRE_METHOD_METRICS:
		dispatch_metrics(call);
		return true;
	case WIRE_METHOD_STORE:
		dispatch_store(call);
		return true;
	default:
		return false;
	}
}

/* What operates the daemon. False: it is none of these. */
static bool dispatch_operate(const struct call *call, const void *request)
{
	switch ((int)call->message->number) {
	case WIRE_METHOD_BUDGET:
		dispatch_budget(call, request);
		break;
	case WIRE_METHOD_DRAIN:
		dispatch_drain(call, request);
		break;
	case WIRE_METHOD_WARM:
		dispatch_warm(call, request);
		break;
	case WIRE_METHOD_CONFIG_SET:
		dispatch_config_set(call, request);
		break;
	case WIRE_METHOD_RELOAD:
		dispatch_reload(call);
		break;
	case WIRE_METHOD_SHUTDOWN:
		dispatch_shutdown(call);
		break;
	default:
		return false;
	}
	return true;
}

/* And what acts. */
static void dispatch_method(const struct call *call, const void *request)
{
	switch ((int)call->message->number) {
	case WIRE_METHOD_HELLO:
		dispatch_hello(call, request);
		break;
	case WIRE_METHOD_PING:
		dispatch_ping(call);
		break;
	case WIRE_METHOD_CANCEL:
		dispatch_cancel(call, request);
		break;
	case WIRE_METHOD_LOAD:
		dispatch_load(call, request);
		break;
	case WIRE_METHOD_LOAD_PART:
		gather_part(call, request);
		break;
	case WIRE_METHOD_ATTACH:
		dispatch_attach(call, request);
		break;
	case WIRE_METHOD_MAP:
		dispatch_map(call, request);
		break;
	case WIRE_METHOD_UNMAPPED:
		dispatch_unmapped(call, request);
		break;
	case WIRE_METHOD_DETACH:
		dispatch_lease(call, EV_DETACH,
			       ((const struct wire_detach_request *)request)->lease);
		break;
	case WIRE_METHOD_UNLOAD:
		dispatch_unload(call, request);
		break;
	case WIRE_METHOD_PLAN:
		dispatch_plan(call, request);
		break;
	case WIRE_METHOD_PLACE:
		dispatch_place(call, request);
		break;
	case WIRE_METHOD_RESERVE:
		dispatch_reserve(call, request);
		break;
	case WIRE_METHOD_RELEASE:
		dispatch_release(call, request);
		break;
	case WIRE_METHOD_SET:
		dispatch_set(call, request);
		break;
	case WIRE_METHOD_VERIFY:
		dispatch_verify(call, request);
		break;
	case WIRE_METHOD_SUBSCRIBE:
		dispatch_subscribe(call, request);
		break;
	default:
		if (!dispatch_look(call, request) && !dispatch_operate(call, request)) {
			/* Drafts are refused by the connection; a stable method is ours. */
			call_refuse(call, WIRE_INTERNAL, NULL, "%s has no handler",
				    call->message->method);
		}
		break;
	}
}

void dispatch_request(void *context, struct conn *conn, const struct wire_packet *packet,
		      const void *request, int *fds, uint32_t n_fds)
{
	struct call call = {
		.daemon = context,
		.conn = conn,
		.request = packet->id,
		.message = packet->message,
		.fds = fds,
		.n_fds = n_fds,
	};

	workers_notice_sleep(call.daemon);
	holes_look(call.daemon);
	call.client = conn_user(conn); /* who may be gone by that */
	dispatch_method(&call, request);
}

void dispatch_closed(void *context, struct conn *conn)
{
	struct daemon *daemon = context;
	struct client *client = conn_user(conn);
	struct core_event event = {.type = EV_CLIENT_CLOSED};

	if (client == NULL) {
		return; /* never said hello */
	}
	holes_look(daemon);
	event.client = client->id;
	daemon_watch_client(daemon, client);
	client->conn = NULL;
	gather_forget(client);
	recall_look_again(daemon);
	(void)daemon_step(daemon, &event);
}
