/* SPDX-License-Identifier: Apache-2.0 */
/* Whose the bytes of a device are, and what goes on there. See describe_use.h. */
#include "daemon/describe_use.h"

#include <stdlib.h>
#include <string.h>

#include "daemon/daemon.h"
#include "daemon/describe.h"

void describe_holder(const struct daemon *daemon, const struct client *viewer, uint64_t id,
		     uint64_t held_bytes, struct wire_holder *ret)
{
	const struct client *client = daemon_find_client(daemon, id);

	*ret = (struct wire_holder){.client = id, .held_bytes = held_bytes};
	if (client != NULL) {
		ret->pid = client->pid;
		ret->uid = client->uid;
		ret->comm = wire_str(client_display_to(viewer, client));
	}
}

uint32_t describe_holders(const struct daemon *daemon, const struct client *viewer, uint64_t model,
			  struct wire_holder *holders, uint32_t capacity)
{
	struct core_holder_view holder;
	uint32_t cursor = 0;
	uint32_t n_holders = 0;

	while (core_holder_next(daemon->core, model, &cursor, &holder)) {
		uint32_t i = 0;

		while (i < n_holders && holders[i].client != holder.client) {
			i++;
		}
		if (i < n_holders) {
			holders[i].held_bytes += holder.bytes;
		} else if (n_holders < capacity) {
			describe_holder(daemon, viewer, holder.client, holder.bytes,
					&holders[n_holders]);
			n_holders++;
		}
	}
	return n_holders;
}

/* What it has there: as it is charged, or the tensors, also of what is in the page cache. */
static uint64_t bytes_on(const struct daemon *daemon, const struct core_holder_view *held,
			 uint32_t device, bool is_charged)
{
	struct core_segment_view segment;
	uint64_t bytes = 0;
	uint32_t cursor = 0;

	while (core_segment_next(daemon->core, held->model, &cursor, &segment)) {
		if ((device == CORE_ALL_DEVICES || segment.device == device) &&
		    core_holder_counts(held, &segment)) {
			bytes += is_charged ? segment.bytes : segment.is_bare ? 0 : segment.size;
		}
	}
	return bytes;
}

static bool has_the_same(const struct core_holder_view *a, const struct core_holder_view *b)
{
	return a->model == b->model && a->generation == b->generation &&
	       a->images_before == b->images_before && a->blocks_before == b->blocks_before &&
	       a->has_blocks == b->has_blocks && a->is_remnant == b->is_remnant;
}

/* The client's place among the largest, also a new one; NULL: he has less than those. */
static struct wire_holder *find_place(const struct daemon *daemon, const struct client *viewer,
				      uint64_t client, uint64_t bytes, struct wire_holder *holders,
				      uint32_t *n_holders)
{
	uint32_t least = 0;

	for (uint32_t i = 0; i < *n_holders; i++) {
		if (holders[i].client == client) {
			return &holders[i];
		}
		least = holders[i].held_bytes < holders[least].held_bytes ? i : least;
	}
	if (*n_holders < DESCRIBE_MAX_IN_USE) {
		least = (*n_holders)++;
	} else if (holders[least].held_bytes >= bytes) {
		return NULL;
	}
	describe_holder(daemon, viewer, client, 0, &holders[least]);
	return &holders[least];
}

/* Each client once, and each model once a client, however many leases there are: that is returned. */
static uint64_t find_holders(const struct daemon *daemon, const struct client *viewer,
			     uint32_t device, bool is_charged, struct device_use *use)
{
	struct core_holder_view held;
	struct core_holder_view last = {.model = 0}; /* looked at: most have the same */
	uint32_t cursor = 0;
	uint64_t n_leases = 0;
	uint64_t bytes = 0;

	while (core_holder_next(daemon->core, 0, &cursor, &held)) {
		struct wire_holder *holder;

		if (!has_the_same(&held, &last)) {
			last = held;
			bytes = bytes_on(daemon, &held, device, is_charged);
		}
		holder = bytes == 0 ? NULL
				    : find_place(daemon, viewer, held.client, bytes, use->holders,
						 &use->n_holders);

		n_leases += bytes == 0 ? 0 : held.n_leases;
		if (holder != NULL) {
			holder->held_bytes += bytes;
		}
	}
	return n_leases;
}

static void add_pins(const struct daemon *daemon, const struct client *viewer,
		     const struct core_segment_view *segment, struct device_use *use)
{
	bool may_know = viewer != NULL && core_client_may(daemon->core, viewer->id, segment->model);
	uint64_t model = may_know ? segment->model : 0;
	struct core_wish_view wish;
	uint32_t cursor = 0;

	while (core_wish_next(daemon->core, segment->model, &cursor, &wish)) {
		uint32_t i = 0;

		while (i < use->n_pins &&
		       (use->pins[i].model != model || use->pins[i].uid != wish.uid)) {
			i++;
		}
		if (!wish.pin || i == DESCRIBE_MAX_IN_USE) {
			continue;
		}
		if (i == use->n_pins) {
			use->pins[use->n_pins++] =
				(struct device_pin){.model = model, .uid = wish.uid};
		}
		use->pins[i].bytes += segment->bytes;
	}
}

static int compare_holders(const void *a, const void *b)
{
	uint64_t bytes_a = ((const struct wire_holder *)a)->held_bytes;
	uint64_t bytes_b = ((const struct wire_holder *)b)->held_bytes;

	return (bytes_a < bytes_b) - (bytes_a > bytes_b);
}

static int compare_pins(const void *a, const void *b)
{
	uint64_t bytes_a = ((const struct device_pin *)a)->bytes;
	uint64_t bytes_b = ((const struct device_pin *)b)->bytes;

	return (bytes_a < bytes_b) - (bytes_a > bytes_b);
}

static void find_reservers(const struct daemon *daemon, const struct client *viewer,
			   uint32_t device, struct device_use *use)
{
	struct core_reservation_view room;
	uint32_t cursor = 0;

	while (core_reservation_next(daemon->core, &cursor, &room)) {
		/* Of all devices, not of the host: nobody lets go of that. */
		bool is_there = device == CORE_ALL_DEVICES ? room.device != 0
							   : room.device == device;
		struct wire_holder *holder = is_there ? find_place(daemon, viewer, room.client,
								   room.bytes, use->reservers,
								   &use->n_reservers)
						      : NULL;

		if (holder != NULL) {
			holder->held_bytes += room.bytes;
		}
	}
	qsort(use->reservers, use->n_reservers, sizeof use->reservers[0], compare_holders);
}

static void add_copy(const struct daemon *daemon, const struct client *viewer,
		     const struct core_model_view *model, const struct core_segment_view *segment,
		     uint64_t spare, struct device_use *ret)
{
	bool is_mapped = core_segment_mapper(daemon->core, segment->id) != 0;

	if (segment->state == SEGMENT_DROPPING && !is_mapped) {
		ret->evictable += segment->bytes;
	}
	if (segment->state != SEGMENT_READY) {
		return;
	}
	if (model->is_pinned) {
		add_pins(daemon, viewer, segment, ret);
	}
	if (is_mapped || core_segment_is_leased(daemon->core, segment->id)) {
		ret->in_use += segment->bytes;
	} else if (model->is_pinned) {
		ret->pinned += segment->bytes;
	} else if (model->id != spare) {
		ret->evictable += segment->bytes;
	}
}

void describe_use(const struct daemon *daemon, const struct client *viewer, uint32_t device,
		  uint64_t spare, struct device_use *ret)
{
	struct core_model_view model;
	uint32_t next_model = 0;

	memset(ret, 0, sizeof *ret);
	while (core_model_next(daemon->core, &next_model, &model)) {
		struct core_segment_view segment;
		uint32_t cursor = 0;

		while (core_segment_next(daemon->core, model.id, &cursor, &segment)) {
			if (device == CORE_ALL_DEVICES || segment.device == device) {
				add_copy(daemon, viewer, &model, &segment, spare, ret);
			}
		}
	}
	(void)find_holders(daemon, viewer, device, true, ret);
	find_reservers(daemon, viewer, device, ret);
	qsort(ret->holders, ret->n_holders, sizeof ret->holders[0], compare_holders);
	qsort(ret->pins, ret->n_pins, sizeof ret->pins[0], compare_pins);
}

/* Does what is being loaded or moved touch the device? One whose blocks are not planned yet may. */
static bool may_touch(const struct daemon *daemon, uint64_t model, uint32_t device)
{
	struct core_segment_view segment;
	uint32_t cursor = 0;
	bool is_planned = false;

	while (core_segment_next(daemon->core, model, &cursor, &segment)) {
		if (segment.device == device) {
			return true;
		}
		is_planned |= segment.state == SEGMENT_PLANNED ||
			      segment.state == SEGMENT_RESERVED || segment.state == SEGMENT_FILLING;
	}
	return !is_planned;
}

void describe_work(const struct daemon *daemon, const struct client *viewer, uint32_t device,
		   struct work_description *ret)
{
	struct core_model_view model;
	uint32_t cursor = 0;

	memset(ret, 0, sizeof *ret);
	while (core_model_next(daemon->core, &cursor, &model)) {
		if (model.job == 0 ||
		    (device != CORE_ALL_DEVICES && !may_touch(daemon, model.id, device))) {
			continue;
		}
		ret->n_loads++;
		if (ret->n_names < DESCRIBE_MAX_IN_USE) {
			char *text = ret->texts[ret->n_names];

			ret->names[ret->n_names++] =
				wire_str(describe_name(daemon, model.id, text));
		}
	}
	ret->n_leases = find_holders(daemon, viewer, device, false, &ret->use);
	qsort(ret->use.holders, ret->use.n_holders, sizeof ret->use.holders[0], compare_holders);
	if (device != 0) {
		find_reservers(daemon, viewer, device, &ret->use);
	}
}
