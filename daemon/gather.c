/* SPDX-License-Identifier: Apache-2.0 */
/* Descriptors of several files until all are there. See gather.h. */
#include "daemon/gather.h"

#include "base/cleanup.h"
#include "base/err.h"
#include "base/list.h"
#include "base/os/clock.h"
#include "base/os/model_files.h"
#include "base/os/sys.h"

#include <stdlib.h>
#include <string.h>
#include <utlist.h>

#include "daemon/core/core.h"
#include "daemon/dispatch.h"
#include "daemon/ipc/conn.h"
#include "daemon/ipc/peer.h"
#include "daemon/ipc/server.h"
#include "daemon/load/file.h"
#include "daemon/testing.h"
#include "proto/wire.h"

#define MAX_A_CLIENT 4      /* that wait for descriptors */
#define WAIT_MS      10000U /* for the next part */
#define LATE_MS      50     /* a loop that was held up looks once more before it gives up */
#define MAX_NAME     255    /* as filesystems have it */
#define NS_PER_MS    1000000U

/* One that waits. owner: client::gatherings */
struct gathering {
	struct list link;
	uint32_t request;
	enum wire_method method;
	struct load_wish wish; /* of a load */
	bool map;              /* of an attach */
	bool is_late;
	uint64_t heard_ms;
	uint32_t n_shards, n_come;
	struct file *index; /* NULL: there is none */
	struct gathered {
		char *name;
		struct file *file; /* NULL: it has not come yet */
	} * shards;
};

/* What the first packet says of the files. */
struct wanted {
	struct wire_list names;
	bool has_index;
	bool is_direct; /* two descriptors each */
};

static struct gathering *gathering_free(struct gathering *gathering)
{
	if (gathering == NULL) {
		return NULL;
	}
	list_remove(&gathering->link);
	for (uint32_t i = 0; gathering->shards != NULL && i < gathering->n_shards; i++) {
		free(gathering->shards[i].name);
		(void)file_unref(gathering->shards[i].file);
	}
	(void)file_unref(gathering->index);
	free(gathering->shards);
	free(gathering);
	return NULL;
}

void gather_forget(struct client *client)
{
	LIST_FOR_EACH_SAFE (link, &client->gatherings) {
		(void)gathering_free(container_of(link, struct gathering, link));
	}
}

void gather_use_placements(const struct client *client, void (*use)(void *context, uint64_t id),
			   void *context)
{
	LIST_FOR_EACH (link, &client->gatherings) {
		use(context, container_of(link, struct gathering, link)->wish.placement);
	}
}

static struct gathering *find(const struct client *client, uint32_t request)
{
	LIST_FOR_EACH (link, &client->gatherings) {
		struct gathering *gathering = container_of(link, struct gathering, link);

		if (gathering->request == request) {
			return gathering;
		}
	}
	return NULL;
}

/* ---- refusing ---- */

__attribute__((noinline)) static void refuse(const struct call *call, const struct err *err)
{
	struct failure failure;

	failure_from_err(&failure, "", err);
	if (err->code == WIRE_BAD_ARGUMENT) {
		failure_set_field(&failure, "shards");
	}
	call_fail(call, &failure);
}

/* The request that began it, as if it came now. */
static struct call call_of(const struct daemon *daemon, struct client *client,
			   const struct gathering *gathering)
{
	return (struct call){.daemon = (struct daemon *)(uintptr_t)daemon,
			     .client = client,
			     .conn = client->conn,
			     .request = gathering->request,
			     .message = &wire_messages[gathering->method]};
}

/* End it with an answer. */
static void give_up(const struct call *call, struct gathering *gathering, const struct err *err)
{
	struct pending *pending = client_find_pending(call->client, gathering->request);

	if (pending != NULL) {
		pending_clear(pending);
	}
	refuse(call, err);
	(void)gathering_free(gathering);
}

/* ---- names ---- */

static int check_name(const char *name, const char *before, uint32_t number, struct err *err)
{
	if (name[0] == '\0' || strlen(name) > MAX_NAME || strchr(name, '/') != NULL ||
	    strcmp(name, ".") == 0 || strcmp(name, "..") == 0) {
		return err_set(err, WIRE_BAD_ARGUMENT, "file %u: \"%.100s\" is no name of a file",
			       number, name);
	}
	if (before != NULL && strcmp(before, name) >= 0) {
		return err_set(err, WIRE_BAD_ARGUMENT,
			       "file %u: \"%.80s\" does not come after \"%.80s\": each is named "
			       "once, in ascending order",
			       number, name, before);
	}
	return 0;
}

static int take_names(struct gathering *gathering, struct wire_list names, struct err *err)
{
	struct wire_str item;
	char name[513];

	if (names.count == 0 || names.count > MODEL_MAX_FILES) {
		return err_set(err, names.count == 0 ? WIRE_BAD_ARGUMENT : WIRE_TOO_LARGE,
			       "a model has 1 to %d files, not %u", MODEL_MAX_FILES, names.count);
	}
	gathering->shards = sys_calloc(names.count, sizeof *gathering->shards);
	if (gathering->shards == NULL) {
		return err_set(err, WIRE_NO_MEMORY, "no memory for %u files", names.count);
	}
	while (wire_list_next(&names, NULL, &item)) {
		uint32_t i = gathering->n_shards;
		int code = check_name(wire_str_copy(item, name, sizeof name),
				      i == 0 ? NULL : gathering->shards[i - 1].name, i, err);

		if (code < 0) {
			return code;
		}
		gathering->shards[i].name = sys_strdup(name);
		if (gathering->shards[i].name == NULL) {
			return err_set(err, WIRE_NO_MEMORY, "no memory for a file's name");
		}
		gathering->n_shards++;
	}
	return 0;
}

/* ---- descriptors ---- */

static int take_index(const struct call *call, struct gathering *gathering, struct err *err)
{
	const char *path;
	const char *slash;
	int code = file_take(conn_peer(call->conn)->uid, steal_fd(&call->fds[0]), -1,
			     &gathering->index, err);

	if (code < 0) {
		(void)err_wrap(err, "index");
		return code;
	}
	path = file_path(gathering->index);
	slash = strrchr(path, '/');
	return file_set_name(gathering->index, slash == NULL ? path : slash + 1)
		       ? 0
		       : err_set(err, WIRE_NO_MEMORY, "no memory for a file's name");
}

/* The file of descriptors 'first', and the next one where each has two. */
static int take_shard(const struct call *call, struct gathered *shard, uint32_t first,
		      bool is_direct, struct err *err)
{
	int direct_fd = is_direct ? steal_fd(&call->fds[first + 1]) : -1;
	int code = file_take(conn_peer(call->conn)->uid, steal_fd(&call->fds[first]), direct_fd,
			     &shard->file, err);

	if (code < 0) {
		(void)err_wrap(err, "%.100s", shard->name);
		return code;
	}
	return file_set_name(shard->file, shard->name)
		       ? 0
		       : err_set(err, WIRE_NO_MEMORY, "no memory for a file's name");
}

/* As many of the first files as came with the request itself. */
static int take_first(const struct call *call, struct gathering *gathering,
		      const struct wanted *wanted, struct err *err)
{
	uint32_t each = wanted->is_direct ? 2 : 1;
	uint32_t at = wanted->has_index ? 1 : 0;
	uint32_t n_files = (call->n_fds - (call->n_fds < at ? call->n_fds : at)) / each;
	int code = 0;

	if (call->n_fds < at || at + n_files * each != call->n_fds ||
	    n_files > gathering->n_shards) {
		return err_set(err, WIRE_BAD_ARGUMENT,
			       "%u descriptors fit no number of the %u files%s", call->n_fds,
			       gathering->n_shards, wanted->has_index ? " and their index" : "");
	}
	if (wanted->has_index) {
		code = take_index(call, gathering, err);
	}
	for (uint32_t i = 0; code == 0 && i < n_files; i++) {
		code = take_shard(call, &gathering->shards[i], at + i * each, wanted->is_direct,
				  err);
		gathering->n_come += code == 0 ? 1 : 0;
	}
	return code;
}

static struct gathered *find_shard(const struct gathering *gathering, const char *name)
{
	for (uint32_t i = 0; i < gathering->n_shards; i++) {
		if (strcmp(gathering->shards[i].name, name) == 0) {
			return &gathering->shards[i];
		}
	}
	return NULL;
}

static int take_named(const struct call *call, struct gathering *gathering, struct wire_list names,
		      struct err *err)
{
	uint32_t each = call->n_fds == 2 * names.count ? 2 : 1;
	struct wire_str item;
	char name[513];

	if (call->n_fds != each * names.count) {
		return err_set(err, WIRE_BAD_ARGUMENT, "%u descriptors came for %u files",
			       call->n_fds, names.count);
	}
	for (uint32_t at = 0; wire_list_next(&names, NULL, &item); at += each) {
		struct gathered *shard =
			find_shard(gathering, wire_str_copy(item, name, sizeof name));
		int code;

		if (shard == NULL || shard->file != NULL) {
			return err_set(err, WIRE_BAD_ARGUMENT,
				       shard == NULL ? "\"%.100s\" is none of the files that were "
						       "named"
						     : "\"%.100s\" has come already",
				       name);
		}
		code = take_shard(call, shard, at, each == 2, err);
		if (code < 0) {
			return code;
		}
		gathering->n_come++;
	}
	return 0;
}

/* ---- going on ---- */

static int join(const struct call *call, struct gathering *gathering, struct file **ret,
		struct err *err)
{
	AUTO_FREE struct file **files = sys_calloc(gathering->n_shards, sizeof(struct file *));
	struct file *index = gathering->index;

	if (files == NULL) {
		return err_set(err, WIRE_NO_MEMORY, "no memory for %u files", gathering->n_shards);
	}
	for (uint32_t i = 0; i < gathering->n_shards; i++) {
		files[i] = gathering->shards[i].file;
		gathering->shards[i].file = NULL;
	}
	gathering->index = NULL;
	return file_join(conn_peer(call->conn)->uid, index, files, gathering->n_shards, ret, err);
}

/* All are there: 'call' is the one that began it. */
static void finish(const struct call *call, struct gathering *gathering)
{
	struct file *file = NULL;
	struct err err = {0};

	if (join(call, gathering, &file, &err) < 0) {
		give_up(call, gathering, &err);
	} else if (gathering->method == WIRE_METHOD_LOAD) {
		dispatch_begin_load(call, &gathering->wish, file);
		(void)gathering_free(gathering);
	} else {
		dispatch_begin_attach(call, gathering->map, file);
		(void)gathering_free(gathering);
	}
}

static uint64_t now_ms(void)
{
	return clock_mono_ns() / NS_PER_MS;
}

static uint64_t deadline_of(const struct gathering *gathering)
{
	return gathering->heard_ms + testing_ms("DISTORCHD_TEST_GATHER_MS", WAIT_MS) +
	       (gathering->is_late ? LATE_MS : 0);
}

static void on_timer(uv_timer_t *timer);

/* For the one that is to be looked at soonest. */
static void arm(struct daemon *daemon)
{
	const struct client *client;
	uint64_t soonest = UINT64_MAX;
	uint64_t now = now_ms();

	DL_FOREACH(daemon->clients, client)
	{
		LIST_FOR_EACH (link, &client->gatherings) {
			uint64_t at = deadline_of(container_of(link, struct gathering, link));

			soonest = at < soonest ? at : soonest;
		}
	}
	if (soonest == UINT64_MAX) {
		(void)uv_timer_stop(&daemon->gather_timer); /* at rest nothing wakes us */
		return;
	}
	uv_update_time(&daemon->loop);
	/* Fails only on a handle that is closing. */
	(void)uv_timer_start(&daemon->gather_timer, on_timer, soonest > now ? soonest - now : 0, 0);
}

static void look_at(struct daemon *daemon, struct client *client)
{
	LIST_FOR_EACH_SAFE (link, &client->gatherings) {
		struct gathering *gathering = container_of(link, struct gathering, link);
		struct call call = call_of(daemon, client, gathering);
		struct err err = {0};

		if (now_ms() < deadline_of(gathering)) {
			continue;
		}
		if (!gathering->is_late) { /* its next part may lie in the socket */
			gathering->is_late = true;
			continue;
		}
		(void)err_set(&err, WIRE_TIMEOUT, "of %u files %u came, and no more within %u s",
			      gathering->n_shards, gathering->n_come, WAIT_MS / 1000);
		give_up(&call, gathering, &err);
	}
}

static void on_timer(uv_timer_t *timer)
{
	struct daemon *daemon = timer->data;
	struct client *client;

	DL_FOREACH(daemon->clients, client)
	{
		look_at(daemon, client);
	}
	arm(daemon);
	server_flush(daemon->server);
}

void gather_init(struct daemon *daemon)
{
	(void)uv_timer_init(&daemon->loop, &daemon->gather_timer); /* always succeeds */
	daemon->gather_timer.data = daemon;
}

/* ---- requests ---- */

static uint32_t count_waiting(const struct client *client)
{
	uint32_t n_waiting = 0;

	LIST_FOR_EACH (link, &client->gatherings) {
		n_waiting++;
	}
	return n_waiting;
}

static void begin(const struct call *call, struct gathering *gathering, const struct wanted *wanted)
{
	struct err err = {0};
	int code = dispatch_check_share(call, &err);

	if (code == 0) {
		code = take_names(gathering, wanted->names, &err);
	}
	if (code == 0) {
		code = take_first(call, gathering, wanted, &err);
	}
	if (code == 0 && gathering->n_come < gathering->n_shards &&
	    count_waiting(call->client) >= MAX_A_CLIENT) {
		code = err_set(&err, WIRE_TOO_MANY,
			       "%d requests of this connection wait for descriptors already",
			       MAX_A_CLIENT);
	}
	if (code < 0) {
		give_up(call, gathering, &err);
	} else if (gathering->n_come == gathering->n_shards) {
		finish(call, gathering);
	} else {
		list_append(&call->client->gatherings, &gathering->link);
		arm(call->daemon);
	}
}

/* NULL: refused. */
static struct gathering *gathering_new(const struct call *call)
{
	struct gathering *gathering = sys_calloc(1, sizeof *gathering);

	if (gathering == NULL) {
		conn_respond_no_memory(call->conn, call->request);
		return NULL;
	}
	list_init(&gathering->link);
	gathering->request = call->request;
	gathering->method = (enum wire_method)call->message->number;
	gathering->heard_ms = now_ms();
	if (call_expect(call) == NULL) {
		return gathering_free(gathering);
	}
	return gathering;
}

void gather_load(const struct call *call, const struct wire_load_request *request,
		 const struct load_wish *wish)
{
	const struct wanted wanted = {.names = request->shards,
				      .has_index = !request->has_index || request->index,
				      .is_direct = request->has_direct && request->direct};
	struct gathering *gathering = gathering_new(call);

	if (gathering != NULL) {
		gathering->wish = *wish;
		begin(call, gathering, &wanted);
	}
}

void gather_attach(const struct call *call, const struct wire_attach_request *request)
{
	const struct wanted wanted = {.names = request->shards,
				      .is_direct = request->has_direct && request->direct};
	struct gathering *gathering = gathering_new(call);

	if (gathering != NULL) {
		gathering->map = request->has_map && request->map;
		begin(call, gathering, &wanted);
	}
}

void gather_part(const struct call *call, const struct wire_load_part_request *request)
{
	static const struct wire_load_part_response nothing;
	struct gathering *gathering = find(call->client, (uint32_t)request->load);
	struct call begun;
	struct err err = {0};

	if (gathering == NULL) {
		call_refuse(call, WIRE_NOT_FOUND, "load",
			    "no request %llu of this connection waits for descriptors",
			    (unsigned long long)request->load);
		return;
	}
	begun = call_of(call->daemon, call->client, gathering);
	if (dispatch_check_share(call, &err) < 0 ||
	    take_named(call, gathering, request->shards, &err) < 0) {
		refuse(call, &err);
		give_up(&begun, gathering, &err);
		arm(call->daemon);
		return;
	}
	call_answer(call, &nothing);
	gathering->heard_ms = now_ms();
	gathering->is_late = false;
	if (gathering->n_come == gathering->n_shards) {
		list_remove(&gathering->link);
		finish(&begun, gathering);
	}
	arm(call->daemon);
}

bool gather_cancel(const struct call *call, uint32_t request)
{
	struct gathering *gathering = find(call->client, request);
	struct call begun;
	struct err err = {0};

	if (gathering == NULL) {
		return false;
	}
	begun = call_of(call->daemon, call->client, gathering);
	(void)err_set(&err, WIRE_CANCELLED, "the request was cancelled");
	give_up(&begun, gathering, &err);
	arm(call->daemon);
	return true;
}
