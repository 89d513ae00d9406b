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
static void take_generation(struct core *core, struct model *model, struct segment *segment,
			    const struct core_event *event)
{
	if (event->adopt.generation > model->generation) {
		LIST_FOR_EACH (link, &model->segments) {
			struct segment *older = OF(link, struct segment, by_model);

			older->last = older == segment ? NEVER : older->generation;
		}
		core_close_file(core, model->file);
		model->file = event->adopt.file;
		model->key = *event->adopt.key;
		model->generation = event->adopt.generation;
		if (model->generation > model->last_generation) {
			model->last_generation = model->generation;
			model->is_torn = false; /* it lies in images since */
		}
		model->n_copies = model->n_images = 1;
		model->backing = segment->backing;
		model->placement = CORE_PLACEMENT_HOST;
		model->devices = 1;
		return;
	}
	if (event->adopt.generation == model->generation) {
		model->n_copies++;
		model->n_images++;
	} else {
		segment->last = segment->generation;
	}
	core_close_file(core, event->adopt.file);
}

/* A pin locks it again at the end. */
static uint8_t backing_of(const struct core_event *event)
{
	return event->adopt.backing == CORE_BACKING_IMAGE ? CORE_BACKING_IMAGE : CORE_BACKING_FILE;
}

/* It is not there yet, and the others of its generation lie in the same. */
static bool fits(const struct model *model, const struct core_event *event)
{
	LIST_FOR_EACH (link, &model->segments) {
		const struct segment *segment = OF(link, struct segment, by_model);

		if (segment->generation == event->adopt.generation &&
		    segment->backing != backing_of(event)) {
			return false;
		}
	}
	return find_copy(model, event->adopt.generation, event->adopt.index, event->adopt.device) ==
	       NULL;
}

uint64_t adopt_copy(struct core *core, const struct core_event *event)
{
	struct model *model = get_model(core, event);
	struct segment *segment = NULL;
	uint64_t id = 0;

	if (model != NULL && event->adopt.device < core->config.n_devices &&
	    event->adopt.generation > 0 && fits(model, event)) {
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
	segment->generation = event->adopt.generation;
	segment->last = NEVER;
	segment->size = event->adopt.bytes;
	segment->backing = backing_of(event);
	segment->bytes = segment->backing == CORE_BACKING_IMAGE ? segment->size : 0;
	segment->device = (uint16_t)event->adopt.device;
	segment->index = (uint16_t)event->adopt.index;
	segment->state = SEGMENT_READY;
	segment_add(model, segment);
	model_touch(core, model);
	core->accounts[segment->device].bucket[SEGMENT_READY] += segment->bytes;
	user_take(segment);
	take_generation(core, model, segment, event);
	return id;
}

/* Images of an older content are of no use to it. */
static void end_older(struct core *core, struct model *model)
{
	LIST_FOR_EACH (link, &model->segments) {
		segment_end(OF(link, struct segment, by_model));
	}
	if (model->generation != 0) {
		model->generation = 0;
		model->placement = CORE_PLACEMENT_ANY;
		core_act(core, ACT_RETIRE)->model = idtab_id(&core->models, model);
	}
}

/* Known, and torn: with its devices it comes back. Meanwhile images that have all of it serve. */
uint64_t adopt_placed(struct core *core, const struct core_event *event)
{
	const struct core_file_key *key = event->adopt_placed.key;
	struct model *model = model_find(core, key);

	if (model == NULL) {
		model = model_add(core, key, event->adopt_placed.uuid, event->adopt_placed.format,
				  event->adopt_placed.owner_uid);
	}
	if (model == NULL || event->adopt_placed.placement <= CORE_PLACEMENT_HOST ||
	    event->adopt_placed.generation <= model->last_generation ||
	    wish_get(core, model, event->adopt_placed.owner_uid) == NULL) {
		core_close_file(core, event->adopt_placed.file);
		if (model != NULL) {
			model_settle(core, model);
		}
		return 0;
	}
	if (!model_is_unchanged(model, key)) {
		end_older(core, model);
	}
	core_close_file(core, model->file);
	model->file = event->adopt_placed.file;
	model->key = *key;
	model->last_generation = event->adopt_placed.generation;
	model->is_torn = true;
	model->torn_placement = event->adopt_placed.placement;
	model->torn_uid = event->adopt_placed.placed_uid;
	model->torn_devices = 0;
	if (model->generation == 0) {
		model->placement = model->torn_placement;
		model->placed_uid = model->torn_uid;
		model->devices = 0;
	}
	model_touch(core, model);
	return idtab_id(&core->models, model);
}

void adopt_wish(struct core *core, const struct core_event *event)
{
	struct model *model = idtab_find(&core->models, event->adopt_wish.model);
	struct wish *wish = model == NULL ? NULL : wish_get(core, model, event->adopt_wish.uid);

	if (wish == NULL) {
		return; /* its model did not come back */
	}
	wish->job = 0;
	wish->pin = event->adopt_wish.pin;
	wish->keep = event->adopt_wish.keep;
	wish->priority = event->adopt_wish.priority;
	wish->ttl_ns = event->adopt_wish.ttl_ns;
	wish->pin_until_ns = event->adopt_wish.pin_until_ns;
	wish->keep_until_ns = event->adopt_wish.keep_until_ns;
	wish_changed(core, wish);
	wish_record(core, wish);
}

/* A place in the table for images that nobody kept but who maps them. NULL: it is refused, or full. */
static struct segment *remnant_new(struct core *core, const struct core_event *event)
{
	const uint64_t bytes = event->adopt_lease.bytes;
	const uint64_t generation = event->adopt_lease.generation;
	uint64_t id = 0;

	if (bytes == 0 || generation == 0 || generation > INT64_MAX ||
	    bytes > account_left(INT64_MAX, account_charged(&core->accounts[0]))) {
		return NULL;
	}
	return idtab_add(&core->segments, &id);
}

static void remnant_take(struct core *core, struct model *model, struct segment *segment,
			 const struct core_event *event)
{
	segment->generation = segment->last = event->adopt_lease.generation;
	segment->size = segment->bytes = event->adopt_lease.bytes;
	segment->backing = CORE_BACKING_IMAGE;
	segment->state = SEGMENT_HELD;
	segment->is_remnant = true;
	if (segment->generation > model->last_generation) {
		model->last_generation = segment->generation; /* it was not parked at all */
	}
	segment_add(model, segment);
	segment_touch(core, segment);
	core->accounts[0].bucket[SEGMENT_HELD] += segment->bytes;
	user_take(segment);
}

/* A client that mapped it when the daemon ended. It is told apart from a living one as any
 * client whose connection is gone: the corridor closes it next. */
uint64_t adopt_lease(struct core *core, const struct core_event *event)
{
	struct client *client = client_of(core, event->client);
	struct model *model = idtab_find(&core->models, event->adopt_lease.model);
	const struct segment *copy;
	struct segment *remnant = NULL;
	struct lease *lease;

	if (client == NULL || model == NULL) {
		return 0;
	}
	copy = find_copy(model, event->adopt_lease.generation, 0, 0);
	if (copy == NULL && (remnant = remnant_new(core, event)) == NULL) {
		return 0;
	}
	lease = lease_add(core, model, client, event->adopt_lease.generation, true);
	if (lease == NULL) {
		if (remnant != NULL) {
			idtab_remove(&core->segments, remnant);
		}
		return 0;
	}
	if (remnant != NULL) {
		remnant_take(core, model, remnant, event);
	}
	lease->holder->is_remnant = remnant != NULL || copy->is_remnant;
	return idtab_id(&core->leases, lease);
}

/* All is back: hash it in the background, and let those who used it come back first. */
void adopt_end(struct core *core, const struct core_event *event)
{
	struct segment *segment;
	struct model *model;
	uint32_t cursor = 0;

	core->quiet_until_ns = account_add(core->now_ns, event->adopted.quiet_ns);
	while ((segment = idtab_next(&core->segments, &cursor)) != NULL) {
		if (segment->state == SEGMENT_READY && segment->backing == CORE_BACKING_IMAGE &&
		    segment_is_current(segment)) { /* the sums of older ones are gone */
			segment_verify(core, segment);
		}
	}
	cursor = 0;
	while ((model = idtab_next(&core->models, &cursor)) != NULL) {
		model_drain(core, model); /* older generations that nobody maps */
		backing_settle(core, model);
	}
}
