/* SPDX-License-Identifier: Apache-2.0 */
/* Who is connected, what they are owed, and what they still map after they have gone. */
#include "base/require.h"

#include "daemon/core/state.h"

struct client *client_of(const struct core *core, uint64_t id)
{
	struct client *client = idtab_find(&core->clients, id);

	return client != NULL && client->is_connected ? client : NULL;
}

uint64_t client_open(struct core *core, const struct core_event *event)
{
	uint64_t id = 0;
	struct client *client = idtab_add(&core->clients, &id);

	if (client == NULL) {
		return 0;
	}
	client->uid = event->opened.uid;
	client->is_admin = event->opened.is_admin;
	client->is_connected = true;
	list_init(&client->leases);
	list_init(&client->waiters);
	return id;
}

/* Forget a client that has gone and maps nothing any more. */
static void settle(struct core *core, struct client *client)
{
	if (!client->is_connected && list_is_empty(&client->leases)) {
		core_act(core, ACT_FORGET_CLIENT)->client = idtab_id(&core->clients, client);
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
			struct model *model = lease->model;

			/* Its bytes stay charged until the process is gone; it protects nothing. */
			lease->is_ghost = true;
			lease_record(core, lease);
			model->n_leases--;
			model->last_used_ns = core->now_ns;
			model_drain(core, model);
			if (model->is_doomed && model_is_idle(model)) {
				(void)model_drop(core, model, CORE_NOTE_UNLOADED, CORE_WHY_ASKED);
			}
		}
	}
}

void client_end_ghost(struct core *core, struct lease *ghost)
{
	struct client *client = ghost->client;

	lease_end(core, ghost);
	settle(core, client);
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
		struct job *job = waiter->kind == WAITER_VERIFY ? NULL : waiter->model->job;

		waiter_remove(core, waiter);
		if (job != NULL) {
			job_drop_if_unwanted(core, job);
		}
	}
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

struct waiter *waiter_add(struct core *core, struct client *client, uint32_t request,
			  struct list *owner)
{
	uint64_t id = 0;
	struct waiter *waiter = idtab_add(&core->waiters, &id);

	if (waiter == NULL) {
		return NULL;
	}
	waiter->client = client;
	waiter->request = request;
	list_append(&client->waiters, &waiter->by_client);
	list_append(owner, &waiter->by_owner);
	return waiter;
}

void waiter_remove(struct core *core, struct waiter *waiter)
{
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
		struct model *model = waiter->model;
		bool is_load = waiter->kind != WAITER_VERIFY;

		if (waiter->request != event->cancel.request) {
			continue;
		}
		is_found = true;
		core_reply(core, client, waiter->request, WIRE_CANCELLED, model);
		waiter_remove(core, waiter);
		if (is_load && model->job != NULL) {
			job_drop_if_unwanted(core, model->job);
		}
	}
	core_reply(core, client, event->request, 0, NULL);
	core->actions[core->n_actions - 1].reply.lease = is_found ? 1 : 0;
}
