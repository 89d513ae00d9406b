/* SPDX-License-Identifier: Apache-2.0 */
/* The warm list: look at it, add to it, take from it. What it does: warm.h. */
#include "base/cleanup.h"
#include "base/err.h"
#include "base/list.h"
#include "base/os/sys.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/change.h"
#include "daemon/config_saved.h"
#include "daemon/describe.h"
#include "daemon/dispatch.h"
#include "daemon/ipc/conn.h"
#include "daemon/ipc/server.h"
#include "daemon/warm.h"

#define MAX_ENTRIES WIRE_WARM_RESPONSE_ENTRIES_MAX

/* What an answer borrows besides the list itself. */
struct warm_texts {
	struct wire_warm_entry entries[MAX_ENTRIES];
	char ids[MAX_ENTRIES][33];
};

static void answer_list(const struct call *call)
{
	AUTO_FREE struct warm_texts *texts = sys_calloc(1, sizeof *texts);
	struct wire_warm_response response = {0};
	struct warm_view view;
	uint32_t cursor = 0;

	if (texts == NULL) {
		conn_respond_no_memory(call->conn, call->request);
		return;
	}
	while (response.entries.count < MAX_ENTRIES && warm_next(call->daemon, &cursor, &view)) {
		const struct model_info *info = store_find_model(call->daemon->store, view.model);
		char *id = texts->ids[response.entries.count];

		texts->entries[response.entries.count++] = (struct wire_warm_entry){
			.path = wire_str(view.path),
			.source = wire_str(view.source),
			.state = wire_str(view.state),
			.has_model = info != NULL,
			.model = wire_str(info == NULL ? "" : describe_id(info->uuid, id)),
			.has_bytes = view.bytes != 0,
			.bytes = view.bytes,
			.has_text = view.text[0] != '\0',
			.text = wire_str(view.text),
		};
	}
	response.entries.items = texts->entries;
	call_answer(call, &response);
}

/* Where it is listed; NULL: nowhere. */
static const char *find_source(const struct daemon *daemon, const char *path)
{
	struct warm_view view;
	uint32_t cursor = 0;

	while (warm_next(daemon, &cursor, &view)) {
		if (strcmp(view.path, path) == 0) {
			return view.source;
		}
	}
	return NULL;
}

static void on_saved(struct daemon *daemon, struct saved_change *saved, const struct err *err)
{
	struct change *change = container_of(saved, struct change, saved);
	struct call call;

	if (err->code != 0) {
		change_fail(daemon, change, err);
	} else {
		change_take(daemon, change); /* has it loaded, if it is new */
		if (change_find_call(daemon, change, &call)) {
			answer_list(&call);
		}
	}
	server_flush(daemon->server);
	change_free(change);
}

/* May it stand in the list? Answered where not. */
__attribute__((noinline)) static bool check_path(const struct call *call, const char *path)
{
	AUTO_FREE char *text = sys_malloc(strlen(path) + sizeof "warm.model=");
	struct err err = {0};
	struct failure failure;

	if (text == NULL) {
		conn_respond_no_memory(call->conn, call->request);
		return false;
	}
	(void)stpcpy(stpcpy(text, "warm.model="), path);
	if (path[0] != '/') {
		(void)err_set(&err, WIRE_BAD_ARGUMENT,
			      "the daemon has another working folder: name an absolute path");
	} else if (config_check_saved("warm", text, false, &err) == 0) {
		return true;
	}
	failure_from_err(&failure, "", &err);
	failure_set_field(&failure, "add");
	call_fail(call, &failure);
	return false;
}

static void add(const struct call *call, const char *path)
{
	struct pending *pending;

	if (!check_path(call, path)) {
		return;
	}
	if (find_source(call->daemon, path) != NULL) {
		warm_retry(call->daemon, path);
		answer_list(call);
		return;
	}
	pending = call_expect(call);
	if (pending != NULL &&
	    warm_probe(call->daemon, path, call->client->id, call->request) < 0) {
		pending_clear(pending);
		conn_respond_no_memory(call->conn, call->request);
	}
}

static void save(const struct call *call, const char *path)
{
	struct change *change;

	if (find_source(call->daemon, path) != NULL) {
		answer_list(call); /* added by another while it was opened */
		return;
	}
	change = change_new(call, on_saved);
	if (change == NULL) {
		return; /* answered */
	}
	if (!state_add_warm(&change->saved.next, path)) {
		bool is_full = change->saved.next.n_warm == STATE_MAX_WARM;

		change_free(change);
		if (is_full) {
			call_refuse(call, WIRE_TOO_MANY, NULL,
				    "%u models are listed already; those of distorchd.conf do not "
				    "count",
				    STATE_MAX_WARM);
		} else {
			conn_respond_no_memory(call->conn, call->request);
		}
		return;
	}
	change_begin(call, change);
}

__attribute__((noinline)) static void refuse_opened(const struct call *call, const char *path,
						    const struct err *err)
{
	struct failure failure;

	failure_from_err(&failure, path, err);
	if (err->code == WIRE_NOT_FOUND || err->code == WIRE_NOT_ALLOWED) {
		failure_set_hint(&failure,
				 "it opens files itself: as its own user, and within what its unit "
				 "allows (systemd: ProtectHome=)");
	} else if (err->code == WIRE_BAD_FILE) {
		failure_set_hint(&failure, "name one file of a model");
	}
	call_fail(call, &failure);
}

void dispatch_warm_opened(struct daemon *daemon, uint64_t client, uint32_t request,
			  const char *path, const struct err *err)
{
	struct call call;

	if (!change_find_request(daemon, client, request, &call)) {
		return; /* gone: what it wanted is not known to be good */
	}
	if (err->code != 0) {
		refuse_opened(&call, path, err);
	} else {
		save(&call, path);
	}
	server_flush(daemon->server);
}

static void take_off(const struct call *call, const char *path)
{
	const char *source = find_source(call->daemon, path);
	struct change *change = change_new(call, on_saved);

	if (change == NULL) {
		return; /* answered */
	}
	if (state_remove_warm(&change->saved.next, path)) {
		change_begin(call, change);
		return;
	}
	change_free(change);
	if (source != NULL) {
		call_refuse(call, WIRE_BAD_ARGUMENT, "remove",
			    "it is listed by %.256s: take it out there, then reload", source);
	} else {
		call_refuse(call, WIRE_NOT_FOUND, "remove", "%.256s is not listed", path);
	}
}

void dispatch_warm(const struct call *call, const struct wire_warm_request *request)
{
	struct wire_str text = request->has_add ? request->add : request->remove;
	AUTO_FREE char *path = sys_malloc((size_t)text.size + 1);

	if (path == NULL) {
		conn_respond_no_memory(call->conn, call->request);
		return;
	}
	(void)wire_str_copy(text, path, (size_t)text.size + 1);
	if (request->has_add && request->has_remove) {
		call_refuse(call, WIRE_BAD_ARGUMENT, "remove", "add or remove, one of the two");
	} else if (request->has_add) {
		add(call, path);
	} else if (request->has_remove) {
		take_off(call, path);
	} else {
		answer_list(call);
	}
}
