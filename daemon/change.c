/* SPDX-License-Identifier: Apache-2.0 */
/* See change.h. */
#include "daemon/change.h"

#include "base/err.h"
#include "base/list.h"
#include "base/os/log.h"
#include "base/os/sys.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "daemon/config.h"
#include "daemon/config_saved.h"
#include "daemon/ipc/conn.h"
#include "daemon/ipc/server.h"

void change_free(struct change *change)
{
	state_fini(&change->saved.next);
	reload_changes_fini(&change->changes);
	free(change->text);
	free(change);
}

static void drop(struct saved_change *saved)
{
	change_free(container_of(saved, struct change, saved));
}

struct change *change_new(const struct call *call, change_done_fn done)
{
	struct change *change = sys_calloc(1, sizeof *change);
	struct state lists = *saved_now(call->daemon);

	lists.n_wishes = 0;
	if (change == NULL || !state_copy(&lists, &change->saved.next)) {
		free(change);
		conn_respond_no_memory(call->conn, call->request);
		return NULL;
	}
	change->saved.done = done;
	change->saved.drop = drop;
	change->client = call->client->id;
	change->request = call->request;
	return change;
}

bool change_find_request(struct daemon *daemon, uint64_t client_id, uint32_t request,
			 struct call *ret)
{
	struct client *client = daemon_find_client(daemon, client_id);
	struct pending *pending = client == NULL ? NULL : client_find_pending(client, request);

	if (pending == NULL || client->conn == NULL) {
		return false;
	}
	*ret = (struct call){.daemon = daemon,
			     .client = client,
			     .conn = client->conn,
			     .request = request,
			     .message = &wire_messages[pending->method]};
	pending_clear(pending);
	return true;
}

bool change_find_call(struct daemon *daemon, const struct change *change, struct call *ret)
{
	return change_find_request(daemon, change->client, change->request, ret);
}

__attribute__((noinline)) void change_fail(struct daemon *daemon, const struct change *change,
					   const struct err *err)
{
	struct failure failure;
	struct call call;

	if (change_find_call(daemon, change, &call)) {
		failure_from_err(&failure, "nothing was done", err);
		call_fail(&call, &failure);
		server_flush(daemon->server);
	}
}

void change_go_on(struct daemon *daemon, struct change *change)
{
	struct err err = {0};

	if (saved_change(daemon, &change->saved, &err) < 0) {
		change_fail(daemon, change, &err);
		change_free(change);
	}
}

void change_begin(const struct call *call, struct change *change)
{
	if (call_expect(call) == NULL) {
		change_free(change);
		return;
	}
	change_go_on(call->daemon, change);
}

void change_take(struct daemon *daemon, struct change *change)
{
	struct config_saved *saved = NULL;
	struct config *next = NULL;
	struct err err = {0};

	if (!saved_config(daemon->saved, &saved) ||
	    config_resave(daemon->config, saved, &next, &err) < 0) {
		log_error("what was saved is in effect after a reload only: %s",
			  err.code == 0 ? "no memory" : err.text);
	} else {
		reload_take(daemon, next, &change->saved.memory, &change->changes);
	}
	saved_config_free(saved);
}

void change_tell_what_wins(const struct config *config, const char *key,
			   char notice[CHANGE_NOTICE_SIZE])
{
	struct config_item item;
	uint32_t cursor = 0;

	notice[0] = '\0';
	while (config_next(config, &cursor, &item)) {
		if (strcasecmp(item.key, key) == 0 &&
		    (strncmp(item.source, "environment", 11) == 0 ||
		     strncmp(item.source, "command line", 12) == 0)) {
			(void)snprintf(
				notice, CHANGE_NOTICE_SIZE,
				"saved, but the %.16s says %.64s = %.256s, which ranks above",
				item.source, key, item.value);
		}
	}
}
