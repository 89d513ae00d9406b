/* SPDX-License-Identifier: Apache-2.0 */
/*
 * At start, after the models: what an earlier life's ledger says of them. Wishes are said again,
 * and processes that may still map something stand for clients that are gone.
 */
#include "base/cleanup.h"
#include "base/os/clock.h"
#include "base/os/log.h"
#include "base/os/sys.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <utlist.h>

#include "daemon/daemon.h"
#include "daemon/ipc/peer.h"
#include "daemon/persist.h"
#include "daemon/persist_inside.h"

static const struct model_info *find_model(const struct daemon *daemon, const uint8_t uuid[16])
{
	const struct model_info *model = NULL;

	while ((model = store_next_model(daemon->store, model)) != NULL) {
		if (memcmp(model->uuid, uuid, sizeof model->uuid) == 0) {
			return model;
		}
	}
	return NULL;
}

static void adopt_wishes(struct daemon *daemon)
{
	struct ledger_wish wish;
	uint32_t cursor = 0;

	while (ledger_next_wish(daemon->persist->old_ledger, &cursor, &wish)) {
		const struct model_info *model = find_model(daemon, wish.uuid);
		struct core_event event = {.type = EV_ADOPT_WISH};

		if (model == NULL) {
			continue;
		}
		event.adopt_wish.model = model->id;
		event.adopt_wish.uid = wish.uid;
		event.adopt_wish.pin = wish.pin == 1;
		event.adopt_wish.keep = wish.keep == 1;
		event.adopt_wish.priority = wish.priority;
		event.adopt_wish.ttl_ns = wish.ttl_ns;
		event.adopt_wish.pin_until_ns = wish.pin_until_ns;
		event.adopt_wish.keep_until_ns = wish.keep_until_ns;
		(void)daemon_step(daemon, &event);
	}
}

static void warn_of_lost_lease(const struct ledger_lease *lease)
{
	log_warning("a lease of pid %u is lost: no room for it; what it maps is not counted",
		    lease->pid);
}

/* Its model is not back: there is nothing to hold it by. */
static void warn_of_lost_model(const struct ledger_lease *lease)
{
	struct peer peer;

	if (lease->bytes > 0 && peer_find((pid_t)lease->pid, lease->start_time, &peer, NULL) == 0) {
		peer_fini(&peer);
		log_warning("pid %u may map %llu bytes of a model that did not come back: they are "
			    "not counted",
			    lease->pid, (unsigned long long)lease->bytes);
	}
}

/* The client that stands for a process of an earlier life; NULL: it is gone. */
static struct client *find_client(struct daemon *daemon, const struct ledger_lease *lease)
{
	struct core_event event = {.type = EV_CLIENT_OPENED,
				   .opened = {.uid = lease->uid, .is_back = true}};
	struct client *client;
	struct peer peer;

	DL_FOREACH(daemon->clients, client)
	{
		if (client->pid == lease->pid && client->start_time == lease->start_time &&
		    client->uid == lease->uid) {
			return client;
		}
	}
	if (peer_find((pid_t)lease->pid, lease->start_time, &peer, NULL) < 0) {
		return NULL;
	}
	client = client_new();
	if (client != NULL) {
		client->id = daemon_step(daemon, &event);
	}
	if (client == NULL || client->id == 0) {
		warn_of_lost_lease(lease);
		(void)client_free(client);
		peer_fini(&peer);
		return NULL;
	}
	client->uid = lease->uid;
	client->pid = lease->pid;
	client->start_time = lease->start_time;
	client->opened_ns = clock_boot_ns(); /* how long it had been there is not recorded */
	(void)snprintf(client->comm, sizeof client->comm, "%s", peer.comm);
	daemon_watch_process(daemon, client, steal_fd(&peer.pidfd));
	DL_PREPEND(daemon->clients, client);
	return client;
}

static void adopt_leases(struct daemon *daemon)
{
	struct ledger_lease lease;
	uint32_t cursor = 0;

	while (ledger_next_lease(daemon->persist->old_ledger, &cursor, &lease)) {
		const struct model_info *model = find_model(daemon, lease.uuid);
		struct client *client = model == NULL ? NULL : find_client(daemon, &lease);
		struct origin *origin = client == NULL ? NULL : sys_calloc(1, sizeof *origin);
		struct core_event event = {.type = EV_ADOPT_LEASE};

		if (origin == NULL) {
			if (model == NULL) {
				warn_of_lost_model(&lease);
			} else if (client != NULL) {
				warn_of_lost_lease(&lease);
			}
			continue;
		}
		event.client = client->id;
		event.adopt_lease.model = model->id;
		event.adopt_lease.generation = lease.generation;
		event.adopt_lease.bytes = lease.bytes;
		*origin = (struct origin){.lease = daemon_step(daemon, &event),
					  .epoch = lease.epoch,
					  .known_as = lease.lease};
		if (origin->lease == 0) {
			if (lease.bytes > 0) {
				warn_of_lost_lease(&lease);
			}
			free(origin);
			continue;
		}
		list_append(&daemon->persist->origins, &origin->link);
		persist_record_lease(daemon, origin->lease); /* by the name its client knows */
	}
}

/* They have no connection: until they come back, what they map is held for them. */
static void close_clients(struct daemon *daemon)
{
	struct client *client;
	struct client *next;

	DL_FOREACH_SAFE(daemon->clients, client, next)
	{
		struct core_event event = {.type = EV_CLIENT_CLOSED, .client = client->id};

		(void)daemon_step(daemon, &event);
	}
}

void adoption_take_ledger(struct daemon *daemon)
{
	adopt_wishes(daemon);
	adopt_leases(daemon);
	close_clients(daemon);
}
