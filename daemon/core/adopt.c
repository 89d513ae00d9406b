/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What survived a restart comes back as events, before the first client: copies, what was said
 * of their models, and who still maps them. Afterwards nothing tells them from a fill.
 */
#include "base/require.h"

#include "daemon/core/state.h"

static struct segment *find_copy(const struct model *model, uint64_t generation, uint32_t index,
				 uint32_t device)
{
	LIST_FOR_EACH (link, &model->segments) {
		struct segment *segment = OF(link, struct segment, by_model);

		if (segment->generation == generation && segment->index == index &&
		    segment->device == device) {
			return segment;
		}
	}
	return NULL;
}

static struct model *get_model(struct core *core, const struct core_event *event)
{
	struct model *model = model_find(core, event->adopt.key);

	if (model == NULL) {
		model = model_add(core, event->adopt.key, event->adopt.uuid, event->adopt.format,
				  event->adopt.owner_uid);
	}
	return model;
}

/* The newest generation is the published one. */
static void take_generation(struct core *core, struct model *model, const struct core_event *event)
{
	if (event->adopt.generation > model->generation) {
		core_close_file(core, model->file);
		model->file = event->adopt.file;
		model->key = *event->adopt.key;
		model->generation = model->last_generation = event->adopt.generation;
		model->n_copies = 1;
		return;
	}
	model->n_copies += event->adopt.generation == model->generation ? 1 : 0;
	core_close_file(core, event->adopt.file);
}

uint64_t adopt_copy(struct core *core, const struct core_event *event)
{
	struct model *model = get_model(core, event);
	struct segment *segment = NULL;
	uint64_t id = 0;

	if (model != NULL && event->adopt.device < core->config.n_devices &&
	    event->adopt.generation > 0 &&
	    find_copy(model, event->adopt.generation, event->adopt.index, event->adopt.device) ==
		    NULL) {
		segment = idtab_add(&core->segments, &id);
	}
	if (segment != NULL && wish_get(core, model, event->adopt.owner_uid) == NULL) {
		idtab_remove(&core->segments, segment);
		segment = NULL;
	}
	if (segment == NULL) {
		core_close_file(core, event->adopt.file);
		if (model != NULL) {
			model_settle(core, model);
		}
		return 0;
	}
	segment->model = model;
	segment->generation = event->adopt.generation;
	segment->bytes = event->adopt.bytes;
	segment->device = (uint16_t)event->adopt.device;
	segment->index = (uint16_t)event->adopt.index;
	segment->state = SEGMENT_READY;
	model_touch(core, model);
	list_append(&model->segments, &segment->by_model);
	core->accounts[segment->device].bucket[SEGMENT_READY] += segment->bytes;
	take_generation(core, model, event);
	return id;
}

void adopt_wish(struct core *core, const struct core_event *event)
{
	struct model *model = idtab_find(&core->models, event->adopt_wish.model);
	struct wish *wish = model == NULL ? NULL : wish_get(core, model, event->adopt_wish.uid);

	if (wish == NULL) {
		return; /* its model did not come back */
	}
	wish->pin = event->adopt_wish.pin;
	wish->keep = event->adopt_wish.keep;
	wish->priority = event->adopt_wish.priority;
	wish->ttl_ns = event->adopt_wish.ttl_ns;
	wish->pin_until_ns = event->adopt_wish.pin_until_ns;
	wish->keep_until_ns = event->adopt_wish.keep_until_ns;
	wish_changed(core, wish);
	wish_record(core, wish);
}

/* A client that mapped it when the daemon ended. It is told apart from a living one as any
 * client whose connection is gone: the corridor closes it next. */
uint64_t adopt_lease(struct core *core, const struct core_event *event)
{
	struct client *client = client_of(core, event->client);
	struct model *model = idtab_find(&core->models, event->adopt_lease.model);
	struct lease *lease;

	if (client == NULL || model == NULL ||
	    find_copy(model, event->adopt_lease.generation, 0, 0) == NULL) {
		return 0;
	}
	lease = lease_add(core, model, client, event->adopt_lease.generation, true);
	return lease == NULL ? 0 : idtab_id(&core->leases, lease);
}

/* All is back: hash it in the background, and let those who used it come back first. */
void adopt_end(struct core *core, const struct core_event *event)
{
	struct segment *segment;
	struct model *model;
	uint32_t cursor = 0;

	core->quiet_until_ns = account_add(core->now_ns, event->adopted.quiet_ns);
	while ((segment = idtab_next(&core->segments, &cursor)) != NULL) {
		if (segment->state == SEGMENT_READY) {
			segment_verify(core, segment);
		}
	}
	cursor = 0;
	while ((model = idtab_next(&core->models, &cursor)) != NULL) {
		model_drain(core, model); /* older generations that nobody maps */
	}
}
