/* SPDX-License-Identifier: Apache-2.0 */
/* Read-only snapshots for listings. */
#include "daemon/core/state.h"

/* A job that makes another generation of the same content has it meanwhile. */
static uint64_t file_of(const struct model *model)
{
	return model->file != 0 || model->job == NULL ||
			       !model_is_same_content(&model->job->key, &model->key)
		       ? model->file
		       : model->job->file;
}

static void view_model(const struct core *core, const struct model *model,
		       struct core_model_view *ret)
{
	uint64_t ttl_ns = model_ttl_ns(core, model);
	uint64_t idle_ns = core->now_ns - model->last_used_ns;

	*ret = (struct core_model_view){
		.id = idtab_id(&core->models, model),
		.uuid = model->uuid,
		.key = model->job != NULL && model->generation == 0 ? model->job->key : model->key,
		.state = model_state(model),
		.fail_code = model->fail_code,
		.format = model->format,
		.owner_uid = model->owner_uid,
		.generation = model->generation,
		.backing = (enum core_backing)model->backing,
		.placement = model->placement,
		.job_placement = model->job == NULL ? CORE_PLACEMENT_ANY : model->job->placement,
		.placed_uid = model->placed_uid,
		.job_placed_uid = model->job == NULL ? 0 : model->job->placed_uid,
		.has_host = model->has_host,
		.is_moving = model->job != NULL && model->job->kind == JOB_LOAD &&
			     model->job->is_move,
		.is_torn = model->is_torn,
		.torn_devices = model->torn_devices,
		.file = file_of(model),
		.progress_bytes = model->job == NULL ? 0 : model->job->progress,
		.job = model->job == NULL ? 0 : idtab_id(&core->job_table, model->job),
		.n_leases = model->n_leases,
		.is_pinned = model_is_pinned(core, model),
		.is_kept = model_is_kept(core, model),
		.priority = model_priority(model),
		.ttl_left_ns = NEVER,
		.last_used_ns = model->last_used_ns,
		.blocks_used_ns = model->blocks_used_ns,
		.load_ns = model->load_ns,
	};
	if (ttl_ns != NEVER) {
		ret->ttl_left_ns = model->n_leases > 0 ? ttl_ns
				   : ttl_ns > idle_ns  ? ttl_ns - idle_ns
						       : 0;
	}
}

bool core_model_get(const struct core *core, uint64_t id, struct core_model_view *ret)
{
	const struct model *model = idtab_find(&core->models, id);

	if (model != NULL) {
		view_model(core, model, ret);
	}
	return model != NULL;
}

uint64_t core_model_dropping(const struct core *core, uint64_t id)
{
	const struct model *model = idtab_find(&core->models, id);

	return model == NULL ? 0 : model->dropping;
}

bool core_model_is_leased(const struct core *core, uint64_t id)
{
	const struct model *model = idtab_find(&core->models, id);

	return model != NULL && model->n_leases > 0;
}

uint64_t core_n_let_go(const struct core *core)
{
	return core->n_let_go;
}

bool core_model_next(const struct core *core, uint32_t *cursor, struct core_model_view *ret)
{
	const struct model *model = idtab_next(&core->models, cursor);

	if (model != NULL) {
		view_model(core, model, ret);
	}
	return model != NULL;
}

void core_placements_used(const struct core *core, void (*use)(void *context, uint64_t placement),
			  void *context)
{
	const struct model *model;
	const struct waiter *waiter;
	uint32_t cursor = 0;

	while ((model = idtab_next(&core->models, &cursor)) != NULL) {
		use(context, model->placement);
		use(context, model->torn_placement);
		if (model->job != NULL) {
			use(context, model->job->placement);
			use(context, model->job->next_placement);
		}
	}
	cursor = 0;
	while ((waiter = idtab_next(&core->waiters, &cursor)) != NULL) {
		use(context, waiter->placement);
	}
}

uint64_t core_model_find(const struct core *core, const struct core_file_key *key)
{
	const struct model *model = model_find(core, key);

	return model == NULL ? 0 : idtab_id(&core->models, model);
}

/*
 * The part that follows the one at the cursor in its model's list; NULL: there is none. Every
 * part begins with its slot, the link to the other parts and the model.
 */
struct part {
	struct idtab_slot slot;
	struct list by_model;
	struct model *model;
};

#define ASSERT_PART(type)                                                             \
	_Static_assert(offsetof(type, by_model) == offsetof(struct part, by_model) && \
			       offsetof(type, model) == offsetof(struct part, model), \
		       "a part of a model begins like every other")
ASSERT_PART(struct segment);
ASSERT_PART(struct wish);
ASSERT_PART(struct holder);

static const void *next_part(const struct idtab *tab, const struct model *model,
			     const struct list *parts, uint32_t *cursor)
{
	const struct list *link = parts->next;

	if (*cursor != 0) {
		const struct part *last = core_slot(tab, *cursor - 1);

		if ((last->slot.tag & 1) == 0 || last->model != model) {
			return NULL; /* removed meanwhile */
		}
		link = last->by_model.next;
	}
	if (link == parts) {
		return NULL;
	}
	*cursor = core_index(tab, (const char *)link - offsetof(struct part, by_model)) + 1;
	return core_slot(tab, *cursor - 1);
}

#define NEXT_PART(core, parts, model, cursor) \
	((model) == NULL ? NULL : next_part(&(core)->parts, model, &(model)->parts, cursor))

/* Where what a client holds is counted with an older generation of it already, up to that one. */
struct counted {
	uint64_t images, blocks;
};

/* The newest older generation that the client has too, of those that it maps or of all; 0: none. A
 * copy is of a row of generations: what an older one has is counted with that. */
static struct counted counted_before(const struct holder *last, bool is_mapped)
{
	struct counted before = {0};

	LIST_FOR_EACH (link, &last->model->holders) {
		const struct holder *holder = OF(link, struct holder, by_model);

		if (holder->client != last->client || (is_mapped && holder->n_mapped == 0) ||
		    holder->generation >= last->generation ||
		    holder->is_remnant != last->is_remnant) { /* they have nothing in common */
			continue;
		}
		if (holder->generation > before.images) {
			before.images = holder->generation;
		}
		if (holder->has_blocks && holder->generation > before.blocks) {
			before.blocks = holder->generation;
		}
	}
	return before;
}

/* Of what it may have, less what was counted before. */
static uint64_t bytes_beside(const struct holder *holder, struct counted before)
{
	struct beside *known = &holder->model->beside;
	uint64_t bytes = 0;

	if (known->is_known && known->generation == holder->generation &&
	    known->has_blocks == holder->has_blocks && known->is_remnant == holder->is_remnant &&
	    known->images == before.images && known->blocks == before.blocks) {
		return known->bytes;
	}
	LIST_FOR_EACH (link, &holder->model->segments) {
		const struct segment *segment = OF(link, struct segment, by_model);
		uint64_t until = segment->is_block ? before.blocks : before.images;

		bytes += holder_has(holder, segment) && segment->generation > until ? segment->size
										    : 0;
	}
	*known = (struct beside){.is_known = true,
				 .has_blocks = holder->has_blocks,
				 .is_remnant = holder->is_remnant,
				 .generation = holder->generation,
				 .images = before.images,
				 .blocks = before.blocks,
				 .bytes = bytes};
	return bytes;
}

static void view_lease(const struct core *core, const struct lease *lease,
		       struct core_lease_view *ret)
{
	*ret = (struct core_lease_view){
		.id = idtab_id(&core->leases, lease),
		.client = idtab_id(&core->clients, lease->client),
		.model = idtab_id(&core->models, lease->model),
		.generation = lease->generation,
		.bytes = bytes_beside(lease->holder, (struct counted){0}),
		.is_mapped = lease->is_mapped,
		.is_ghost = lease->is_ghost,
		.has_blocks = lease->holder->has_blocks,
	};
}

bool core_lease_get(const struct core *core, uint64_t id, struct core_lease_view *ret)
{
	const struct lease *lease = idtab_find(&core->leases, id);

	if (lease != NULL) {
		view_lease(core, lease, ret);
	}
	return lease != NULL;
}

void core_lease_images(const struct core *core, uint64_t id, uint64_t *ret_generation,
		       uint64_t *ret_bytes)
{
	const struct lease *lease = idtab_find(&core->leases, id);

	*ret_generation = lease == NULL ? 0 : lease->generation;
	*ret_bytes = 0;
	if (lease == NULL) {
		return;
	}
	LIST_FOR_EACH (link, &lease->model->segments) {
		const struct segment *segment = OF(link, struct segment, by_model);

		if (!segment->is_block && segment->backing == CORE_BACKING_IMAGE &&
		    holder_has(lease->holder, segment)) {
			*ret_generation = segment->generation;
			*ret_bytes += segment->bytes;
		}
	}
}

bool core_lease_next(const struct core *core, uint32_t *cursor, struct core_lease_view *ret)
{
	const struct lease *lease = idtab_next(&core->leases, cursor);

	if (lease != NULL) {
		view_lease(core, lease, ret);
	}
	return lease != NULL;
}

/* Of what the holder maps, each byte once: generations have copies in common. */
static uint64_t held_bytes(const struct holder *holder)
{
	return holder->n_mapped == 0 ? 0 : bytes_beside(holder, counted_before(holder, true));
}

static void view_client(const struct core *core, const struct client *client,
			struct core_client_view *ret)
{
	*ret = (struct core_client_view){
		.id = idtab_id(&core->clients, client),
		.uid = client->uid,
		.is_admin = client->is_admin,
		.is_connected = client->is_connected,
	};
	LIST_FOR_EACH (link, &client->holders) {
		const struct holder *holder = OF(link, struct holder, by_client);

		ret->n_leases += holder->n_leases;
		ret->held_bytes += held_bytes(holder);
	}
}

bool core_client_get(const struct core *core, uint64_t id, struct core_client_view *ret)
{
	const struct client *client = idtab_find(&core->clients, id);

	if (client != NULL) {
		view_client(core, client, ret);
	}
	return client != NULL;
}

bool core_client_next(const struct core *core, uint32_t *cursor, struct core_client_view *ret)
{
	const struct client *client = idtab_next(&core->clients, cursor);

	if (client != NULL) {
		view_client(core, client, ret);
	}
	return client != NULL;
}

static void view_segment(const struct core *core, const struct segment *segment,
			 struct core_segment_view *ret)
{
	*ret = (struct core_segment_view){
		.id = idtab_id(&core->segments, segment),
		.model = idtab_id(&core->models, segment->model),
		.generation = segment->generation,
		.last = segment->last,
		.bytes = segment->bytes,
		.is_block = segment->is_block,
		.is_counted = segment->job != 0 && segment->state == SEGMENT_READY,
		.may_go = segment->sum == SUM_EVICTABLE,
		.is_bare = segment->is_bare,
		.is_remnant = segment->is_remnant,
		.is_older = segment_is_older(segment),
		.size = segment->size,
		.padding = segment->padding,
		.backing = (enum core_backing)segment->backing,
		.device = segment->device,
		.index = segment->index,
		.state = (enum segment_state)segment->state,
	};
}

bool core_segment_get(const struct core *core, uint64_t id, struct core_segment_view *ret)
{
	const struct segment *segment = idtab_find(&core->segments, id);

	if (segment != NULL) {
		view_segment(core, segment, ret);
	}
	return segment != NULL;
}

bool core_segment_is_leased(const struct core *core, uint64_t id)
{
	const struct segment *segment = idtab_find(&core->segments, id);

	return segment != NULL && segment_is_leased(segment);
}

uint64_t core_segment_mapper(const struct core *core, uint64_t id)
{
	const struct segment *segment = idtab_find(&core->segments, id);
	const struct holder *mapper = segment == NULL ? NULL : segment_mapper(segment);

	return mapper == NULL ? 0 : idtab_id(&core->clients, mapper->client);
}

bool core_segment_next(const struct core *core, uint64_t model_id, uint32_t *cursor,
		       struct core_segment_view *ret)
{
	const struct model *model = idtab_find(&core->models, model_id);
	const struct segment *segment = model_id == 0 ? idtab_next(&core->segments, cursor)
						      : NEXT_PART(core, segments, model, cursor);

	if (segment != NULL) {
		view_segment(core, segment, ret);
	}
	return segment != NULL;
}

static void view_wish(const struct core *core, const struct wish *wish, struct core_wish_view *ret)
{
	*ret = (struct core_wish_view){
		.model = idtab_id(&core->models, wish->model),
		.uid = wish->uid,
		.pin = wish->pin,
		.keep = wish->keep,
		.priority = wish->priority,
		.ttl_ns = wish->ttl_ns,
		.pin_until_ns = wish->pin_until_ns,
		.keep_until_ns = wish->keep_until_ns,
	};
}

bool core_wish_get(const struct core *core, uint64_t id, struct core_wish_view *ret)
{
	const struct wish *wish = idtab_find(&core->wishes, id);

	if (wish != NULL) {
		view_wish(core, wish, ret);
	}
	return wish != NULL;
}

bool core_wish_next(const struct core *core, uint64_t model_id, uint32_t *cursor,
		    struct core_wish_view *ret)
{
	const struct model *model = idtab_find(&core->models, model_id);
	const struct wish *wish = NEXT_PART(core, wishes, model, cursor);

	if (wish != NULL) {
		view_wish(core, wish, ret);
	}
	return wish != NULL;
}

static void view_holder(const struct core *core, const struct holder *holder,
			struct core_holder_view *ret)
{
	const struct counted before = counted_before(holder, false);

	*ret = (struct core_holder_view){
		.client = idtab_id(&core->clients, holder->client),
		.model = idtab_id(&core->models, holder->model),
		.generation = holder->generation,
		.has_blocks = holder->has_blocks,
		.is_remnant = holder->is_remnant,
		.images_before = before.images,
		.blocks_before = before.blocks,
		.bytes = bytes_beside(holder, before),
		.n_leases = holder->n_leases,
		.is_live = holder->n_live > 0,
		.is_mapped = holder->n_mapped > 0,
	};
}

bool core_holder_next(const struct core *core, uint64_t model_id, uint32_t *cursor,
		      struct core_holder_view *ret)
{
	const struct model *model = idtab_find(&core->models, model_id);
	const struct holder *holder = model_id == 0 ? idtab_next(&core->holders, cursor)
						    : NEXT_PART(core, holders, model, cursor);

	if (holder != NULL) {
		view_holder(core, holder, ret);
	}
	return holder != NULL;
}

bool core_reservation_next(const struct core *core, uint32_t *cursor,
			   struct core_reservation_view *ret)
{
	const struct reservation *reservation;

	do {
		reservation = idtab_next(&core->reservations, cursor);
	} while (reservation != NULL && !reservation->is_granted);
	if (reservation != NULL) {
		*ret = (struct core_reservation_view){
			.client = idtab_id(&core->clients, reservation->client),
			.bytes = reservation->bytes,
			.device = reservation->device,
		};
	}
	return reservation != NULL;
}

bool core_is_awaited(const struct core *core, uint32_t device)
{
	LIST_FOR_EACH (link, &core->jobs) {
		const struct job *job = OF(link, struct job, by_age);
		bool is_before = job->state < JOB_ROOM || job->state == JOB_CHECKING;
		bool may_need = is_before /* its header says where */
					? job->placement != CORE_PLACEMENT_HOST
					: (job->devices >> device & 1) != 0;

		if (job->model != NULL && may_need &&
		    job->age <= core->accounts[device].drained_age) {
			return true;
		}
	}
	return false;
}

void core_account_get(const struct core *core, uint32_t device, struct core_account_view *ret)
{
	const struct account *account = &core->accounts[device];
	uint64_t charged = account_charged(account);

	*ret = (struct core_account_view){
		.budget = account->budget,
		.resident = account->bucket[SEGMENT_READY],
		.loading = account->bucket[SEGMENT_RESERVED] + account->bucket[SEGMENT_FILLING],
		.dropping = account->bucket[SEGMENT_DROPPING],
		.held = account->bucket[SEGMENT_HELD],
		.reserved = account->reserved,
		.free = account->budget > charged ? account->budget - charged : 0,
		.room = account_room(account, account->sums[SUM_DROPPING]),
		.evictable = account->sums[SUM_EVICTABLE],
		.later = account->sums[SUM_LATER],
		.is_lost = account->is_lost,
		.is_draining = account->drained_age != NEVER,
	};
}

uint64_t core_would_free(struct core *core, uint32_t device, uint64_t bytes, uint64_t model)
{
	return evict_would_free(core, device, bytes, idtab_find(&core->models, model));
}

uint32_t core_account_models(const struct core *core, uint32_t device)
{
	const struct model *model;
	uint32_t n_models = 0;
	uint32_t cursor = 0;

	while ((model = idtab_next(&core->models, &cursor)) != NULL) {
		LIST_FOR_EACH (link, &model->segments) {
			const struct segment *segment = OF(link, struct segment, by_model);

			if (segment->device == device && segment->state != SEGMENT_PLANNED &&
			    !segment->is_bare) {
				n_models++;
				break;
			}
		}
	}
	return n_models;
}

void core_counters_get(const struct core *core, struct core_counters *ret)
{
	*ret = core->counters;
}

bool core_client_may(const struct core *core, uint64_t client_id, uint64_t model_id)
{
	const struct client *client = idtab_find(&core->clients, client_id);
	const struct model *model = idtab_find(&core->models, model_id);

	return client != NULL && model != NULL &&
	       (client->is_admin || wish_find(model, client->uid) != NULL);
}

bool core_uid_has_wish(const struct core *core, uint32_t uid, uint64_t model_id)
{
	const struct model *model = idtab_find(&core->models, model_id);

	return model != NULL && wish_find(model, uid) != NULL;
}
