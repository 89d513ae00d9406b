/* SPDX-License-Identifier: Apache-2.0 */
/* What a client is owed. See clients.h. */
#include "daemon/clients.h"

#include "base/os/sys.h"

#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <utlist.h>

#include "daemon/daemon.h"
#include "daemon/gather.h"
#include "daemon/ipc/conn.h"
#include "daemon/ipc/peer.h"

#define FD_SHARE    8 /* the unread answers of one uid take this part of the descriptors at most */
#define LEAST_SHARE 512 /* or so many, where that is no more than half of them */

struct pending *client_add_pending(struct client *client, uint32_t request, enum wire_method method,
				   uint64_t now_ns)
{
	for (uint32_t i = 0; i < WIRE_REQUESTS_IN_FLIGHT; i++) {
		struct pending *pending = &client->pending[i];

		if (!pending->is_used) {
			*pending = (struct pending){.is_used = true,
						    .request = request,
						    .method = method,
						    .n_expected = 1,
						    .begun_ns = now_ns};
			return pending;
		}
	}
	return NULL;
}

struct pending *client_find_pending(struct client *client, uint32_t request)
{
	for (uint32_t i = 0; i < WIRE_REQUESTS_IN_FLIGHT; i++) {
		if (client->pending[i].is_used && client->pending[i].request == request) {
			return &client->pending[i];
		}
	}
	return NULL;
}

void pending_clear(struct pending *pending)
{
	free(pending->lines);
	free(pending->label);
	memset(pending, 0, sizeof *pending);
}

struct answer_line *pending_add_line(struct pending *pending)
{
	struct answer_line *line;

	if (pending->n_lines == pending->lines_capacity) {
		uint32_t capacity = pending->lines_capacity == 0 ? 8 : pending->lines_capacity * 2;
		struct answer_line *lines =
			sys_realloc(pending->lines, (size_t)capacity * sizeof *lines);

		if (lines == NULL) {
			return NULL;
		}
		pending->lines = lines;
		pending->lines_capacity = capacity;
	}
	line = &pending->lines[pending->n_lines++];
	memset(line, 0, sizeof *line);
	return line;
}

struct client *client_new(void)
{
	struct client *client = sys_calloc(1, sizeof *client);

	if (client == NULL) {
		return NULL;
	}
	list_init(&client->gatherings);
	client->watch = process_watch_new();
	return client->watch == NULL ? client_free(client) : client;
}

struct client *client_free(struct client *client)
{
	if (client == NULL) {
		return NULL;
	}
	gather_forget(client);
	for (uint32_t i = 0; i < WIRE_REQUESTS_IN_FLIGHT; i++) {
		pending_clear(&client->pending[i]);
	}
	process_watch_free(client->watch);
	free(client->subscription.models);
	free(client->device_uuids);
	free(client);
	return NULL;
}

bool client_take_devices(struct client *client, struct wire_list uuids)
{
	struct wire_str uuid;

	if (uuids.count == 0) {
		return true;
	}
	client->device_uuids = sys_calloc(uuids.count, sizeof client->device_uuids[0]);
	if (client->device_uuids == NULL) {
		return false;
	}
	while (wire_list_next(&uuids, NULL, &uuid)) {
		(void)wire_str_copy(uuid, client->device_uuids[client->n_device_uuids++],
				    sizeof client->device_uuids[0]);
	}
	return true;
}

uint32_t clients_max_fds(void)
{
	struct rlimit limit;

	return getrlimit(RLIMIT_NOFILE, &limit) < 0 || limit.rlim_cur > UINT32_MAX
		       ? UINT32_MAX
		       : (uint32_t)limit.rlim_cur;
}

bool client_may_have_fds(const struct daemon *daemon, const struct client *client, uint32_t n_fds)
{
	const uint32_t half = clients_max_fds() / 2;
	const uint32_t least = half < LEAST_SHARE ? half : LEAST_SHARE;
	const uint32_t share = clients_max_fds() / FD_SHARE;
	const struct client *other;
	uint64_t sum = n_fds;

	DL_FOREACH(daemon->clients, other)
	{
		if (other->uid == client->uid) {
			sum += other->n_exporting;
			sum += other->conn == NULL ? 0 : conn_unsent_fds(other->conn);
		}
	}
	return sum <= (share > least ? share : least);
}

const char *client_display(const struct client *client)
{
	return client->label[0] != '\0' ? client->label : client->comm;
}

const char *client_display_to(const struct client *viewer, const struct client *client)
{
	bool may_know = viewer != NULL && (viewer->is_admin || viewer->uid == client->uid);

	return may_know ? client_display(client) : client->comm;
}
