/* SPDX-License-Identifier: Apache-2.0 */
/* Who is connected, what they are owed, and what they still map after they have gone. */
#include "base/require.h"

#include "daemon/core/state.h"

struct client *client_of(const struct core *core, uint64_t id)
{
	struct client *client = idtab_find(&core->clients, id);

	return client != NULL && client->is_connected ? client : NULL;
}

enum core_limit core_client_limit(const struct core *core, uint32_t uid, bool is_admin,
				  uint64_t *ret_number)
{
	const struct core_config *config = &core->config;
	const struct user *user = user_find(core, uid);
	uint32_t n_reserved = is_admin ? 0 : config->reserved_clients;
	enum core_limit limit = CORE_LIMIT_NONE;

	if (!is_admin && config->max_clients_per_uid != 0 && user != NULL &&
	    user->n_clients >= config->max_clients_per_uid) {
		limit = CORE_LIMIT_USER_CLIENTS;
	} else if (core->clients.n_used + (uint64_t)n_reserved >= config->max_clients) {
		limit = CORE_LIMIT_CLIENTS;
	}
	*ret_number = core_limit_number(core, limit);
	return limit;
}

uint64_t client_open(struct core *core, const struct core_event *event)
{
	uint64_t id = 0;
	uint64_t number;
	struct client *client;

	if (!event->opened.is_back &&
	    core_client_limit(core, event->opened.uid, event->opened.is_admin, &number) !=
		    CORE_LIMIT_NONE) {
		return 0;
	}
	client = idtab_add(&core->clients, &id);
	if (client == NULL) {
		return 0;
	}
	client->user = user_get(core, event->opened.uid);
	client->user->n_clients++;
	client->uid = event->opened.uid;
	client->is_admin = event->opened.is_admin;
	client->is_connected = true;
	list_init(&client->leases);
	list_init(&client->holders);
	list_init(&client->waiters);
	list_init(&client->reservations);
	return id;
}

/* Forget a client that has gone and maps nothing any more. */
static void settle(struct core *core, struct client *client)
{
	if (!client->is_connected && list_is_empty(&client->leases)) {
		core_act(core, ACT_FORGET_CLIENT)->client = idtab_id(&core->clients, client);
		client->user->n_clients--;
		user_settle(core, client->user);
		idtab_remove(&core->clients, client);
	}
}

static void end_leases(struct core *core, struct client *client, bool only_unmapped)
{
	LIST_FOR_EACH_SAFE (link, &client->leases) {
		struct lease *lease = OF(link, struct lease, by_client);

		if (!only_unmapped || !lease->is_mapped) {
			lease_end(core, lease);
		} else if (!lease->is_ghost) {
			lease_become_ghost(core, lease);
		}
	}
}

void client_end_ghost(struct core *core, struct lease *ghost)
{
	struct client *client = ghost->client;

	lease_end(core, ghost);
	settle(core, client);
}

static bool waits_for(const struct client *client, const struct job *job)
{
	LIST_FOR_EACH (link, &client->waiters) {
		if (OF(link, struct waiter, by_client)->job == job) {
			return true;
		}
	}
	return false;
}

void client_on_closed(struct core *core, const struct core_event *event)
{
	struct client *client = client_of(core, event->client);

	if (client == NULL) {
		return;
	}
	client->is_connected = false;
	LIST_FOR_EACH_SAFE (link, &client->waiters) {
		struct waiter *waiter = OF(link, struct waiter, by_client);
		struct job *job = waiter->job;

		waiter_remove(core, waiter);
		if (job != NULL && !waits_for(client, job)) { /* else once for all of his */
			job_drop_if_unwanted(core, job);
		}
	}
	reserve_end_all(core, client);
	end_leases(core, client, !client->is_process_gone);
	settle(core, client);
}

void client_on_process_gone(struct core *core, const struct core_event *event)
{
	struct client *client = idtab_find(&core->clients, event->client);

	if (client == NULL) {
		return;
	}
	client->is_process_gone = true; /* its connection may be reported later */
	if (!client->is_connected) {
		end_leases(core, client, false);
		settle(core, client);
	}
}

struct waiter *waiter_add(struct core *core, const struct waiter *like, struct job *job)
{
	uint64_t id = 0;
	struct waiter *waiter = idtab_add(&core->waiters, &id);

	if (waiter == NULL) {
		return NULL;
	}
	waiter->client = like->client;
	waiter->model = like->model;
	waiter->job = job;
	waiter->request = like->request;
	waiter->attach = like->attach;
	waiter->map = like->map;
	waiter->is_first = like->is_first;
	waiter->is_place = like->is_place;
	waiter->placement = like->placement;
	list_append(&waiter->client->waiters, &waiter->by_client);
	list_append(job != NULL ? &job->waiters : &waiter->model->verifiers, &waiter->by_owner);
	waiter->told = CORE_PHASE_READING; /* of no wait */
	if (job != NULL) {
		progress_touch(core, job);
		job->is_demotion = false; /* somebody wants it now */
		place_ask(job, waiter->client);
	}
	if (job != NULL && waiter->attach) {
		job->n_attaching++;
		model_touch_use(core, waiter->model);
	}
	return waiter;
}

void waiter_remove(struct core *core, struct waiter *waiter)
{
	if (waiter->job != NULL && waiter->attach) {
		waiter->job->n_attaching--;
		model_touch_use(core, waiter->model);
	}
	list_remove(&waiter->by_client);
	list_remove(&waiter->by_owner);
	idtab_remove(&core->waiters, waiter);
}

void client_on_cancel(struct core *core, const struct core_event *event)
{
	struct client *client = client_of(core, event->client);
	bool is_found = false;

	if (client == NULL) {
		return;
	}
	LIST_FOR_EACH_SAFE (link, &client->waiters) {
		struct waiter *waiter = OF(link, struct waiter, by_client);
		struct job *job = waiter->job;

		if (waiter->request != event->cancel.request) {
			continue;
		}
		/* A verify waits for each of its models, and gets one answer for all. */
		if (!is_found) {
			core_reply(core, client, waiter->request, WIRE_CANCELLED,
				   job == NULL ? NULL : waiter->model);
		}
		is_found = true;
		waiter_remove(core, waiter);
		if (job != NULL) {
			job_drop_if_unwanted(core, job);
			break; /* the only one */
		}
	}
	if (!is_found) {
		reserve_cancel(core, client, event->cancel.request);
	}
	core_reply(core, client, event->request, 0, NULL);
}
