/* SPDX-License-Identifier: Apache-2.0 */
/* The catalogue of models, and what is derived from their parts. */
#include "base/require.h"

#include <string.h>

#include "daemon/core/state.h"

static uint32_t hash_of(const struct core *core, uint64_t dev, uint64_t ino)
{
	uint64_t mixed = (ino ^ (dev << 32 | dev >> 32)) * 0x9e3779b97f4a7c15U;

	return (uint32_t)(mixed >> 32) & (core->n_hash - 1);
}

static struct model *model_at(const struct core *core, uint32_t index)
{
	return core_slot(&core->models, index);
}

/* A model that is evicted for its place keeps it until its copies are closed: until then the
 * new one has another. */
static uint32_t n_spare_places(const struct core_config *config)
{
	return config->max_models / 8 + 1;
}

uint32_t model_capacity(const struct core_config *config)
{
	return config->max_models + n_spare_places(config);
}

/* Only a model that somebody holds has what may be recalled. */
static void touch(struct core *core, struct model *model)
{
	core->n_touches += list_is_empty(&model->holders) ? 0 : 1;
	if (list_is_empty(&model->touched)) {
		list_append(&core->touched, &model->touched);
	}
	if (list_is_empty(&model->changed)) {
		list_append(&core->changed, &model->changed);
	}
}

void model_touch_use(struct core *core, struct model *model)
{
	model->is_touched = true;
	touch(core, model);
}

void model_touch(struct core *core, struct model *model)
{
	model->is_counted = false;
	model_touch_use(core, model);
}

void segment_touch(struct core *core, struct segment *segment)
{
	segment->model->is_counted = false;
	if (list_is_empty(&segment->touched)) {
		list_append(&segment->model->parts, &segment->touched);
	}
	touch(core, segment->model);
}

uint32_t model_count(const struct model *model, enum segment_count count)
{
	uint32_t n_counted = 0;

	if (model->is_counted) {
		return model->counts[count];
	}
	LIST_FOR_EACH (link, &model->segments) {
		n_counted += segment_counts(OF(link, struct segment, by_model)) >> count & 1;
	}
	return n_counted;
}

bool model_is_same_content(const struct core_file_key *a, const struct core_file_key *b)
{
	return a->size == b->size && a->mtime_ns == b->mtime_ns;
}

bool model_is_unchanged(const struct model *model, const struct core_file_key *key)
{
	return model_is_same_content(key, &model->key) && key->ctime_ns == model->key.ctime_ns &&
	       !model->key.is_young;
}

struct model *model_find(const struct core *core, const struct core_file_key *key)
{
	uint32_t next = core->hash[hash_of(core, key->dev, key->ino)];

	while (next != 0) {
		struct model *model = model_at(core, next - 1);

		if (model->key.dev == key->dev && model->key.ino == key->ino &&
		    model->key.is_raw == key->is_raw && model->key.is_sharded == key->is_sharded) {
			return model;
		}
		next = model->hash_next;
	}
	return NULL;
}

static void unhash(struct core *core, const struct model *model)
{
	uint32_t *next = &core->hash[hash_of(core, model->key.dev, model->key.ino)];

	while (*next != 0 && model_at(core, *next - 1) != model) {
		next = &model_at(core, *next - 1)->hash_next;
	}
	REQUIRE(*next != 0);
	*next = model->hash_next;
}

static bool is_forgettable(const struct core *core, const struct model *model, bool may_be_kept)
{
	return list_is_empty(&model->segments) && list_is_empty(&model->leases) &&
	       model->job == NULL && !model_is_pinned(core, model) &&
	       (may_be_kept || !model_is_kept(core, model));
}

/* Make room in the table by forgetting the least recently used that holds nothing. */
static bool forget_one(struct core *core, const struct user *owner, bool may_be_kept)
{
	struct model *oldest = NULL;
	struct model *model;
	uint32_t cursor = 0;

	while ((model = idtab_next(&core->models, &cursor)) != NULL) {
		if ((owner == NULL || model->owner == owner) &&
		    is_forgettable(core, model, may_be_kept) &&
		    (oldest == NULL || model->last_used_ns < oldest->last_used_ns)) {
			oldest = model;
		}
	}
	if (oldest == NULL) {
		return false;
	}
	model_forget(core, oldest);
	return true;
}

/* What is kept goes last: a pin is what says never. */
static bool let_one_go(struct core *core, const struct user *owner)
{
	return forget_one(core, owner, false) || evict_model(core, owner, false) ||
	       forget_one(core, owner, true) || evict_model(core, owner, true);
}

enum core_limit model_make_place(struct core *core, uint32_t uid)
{
	const struct core_config *config = &core->config;
	const struct user *user = user_get(core, uid); /* of a client, which keeps it */
	uint32_t bound = config->max_models_per_uid;

	while (bound != 0 && user->n_models - user->n_leaving >= bound) {
		if (!let_one_go(core, user)) {
			return CORE_LIMIT_USER_MODELS;
		}
	}
	while (core->models.n_used - core->n_leaving >= config->max_models) {
		if (!let_one_go(core, NULL)) {
			return CORE_LIMIT_MODELS;
		}
	}
	/* One uid's leaving models take no more than half of the places that are there for it. */
	if (bound != 0 && user->n_models >= bound + (n_spare_places(config) + 1) / 2) {
		return CORE_LIMIT_USER_MODELS;
	}
	return core->models.n_used < core->models.capacity ? CORE_LIMIT_NONE : CORE_LIMIT_MODELS;
}

void model_stay(struct core *core, struct model *model)
{
	if (model->is_leaving) {
		model->is_leaving = false;
		model->owner->n_leaving--;
		core->n_leaving--;
	}
}

struct model *model_add(struct core *core, const struct core_file_key *key, const uint8_t *uuid,
			uint32_t format, uint32_t uid)
{
	uint32_t *head = &core->hash[hash_of(core, key->dev, key->ino)];
	struct model *model;
	uint64_t id = 0;

	model = idtab_add(&core->models, &id);
	if (model == NULL) {
		return NULL;
	}
	model->key = *key;
	memcpy(model->uuid, uuid, sizeof model->uuid);
	model->format = format;
	model->owner_uid = uid;
	model->owner = user_get(core, uid);
	model->owner->n_models++;
	model->expiry.at_ns = model->linger.at_ns = model->retry.at_ns = NEVER;
	model->last_used_ns = model->blocks_used_ns = core->now_ns;
	list_init(&model->segments);
	list_init(&model->wishes);
	list_init(&model->leases);
	list_init(&model->holders);
	list_init(&model->verifiers);
	list_init(&model->touched);
	list_init(&model->parts);
	list_init(&model->changed);
	model->is_counted = true;
	model->hash_next = *head;
	*head = core_index(&core->models, model) + 1;
	return model;
}

void model_forget(struct core *core, struct model *model)
{
	REQUIRE(list_is_empty(&model->segments) && list_is_empty(&model->leases) &&
		model->job == NULL && list_is_empty(&model->verifiers));
	core_close_file(core, model->file);
	core_act(core, ACT_FORGET_MODEL)->model = idtab_id(&core->models, model);
	LIST_FOR_EACH_SAFE (link, &model->wishes) {
		wish_remove(core, OF(link, struct wish, by_model));
	}
	unhash(core, model);
	model_stay(core, model);
	model->owner->n_models--;
	user_settle(core, model->owner);
	list_remove(&model->touched);
	list_remove(&model->changed);
	timer_set(&core->expiries, &model->expiry, NEVER);
	timer_set(&core->lingers, &model->linger, NEVER);
	timer_set(&core->retries, &model->retry, NEVER);
	idtab_remove(&core->models, model);
}

void model_settle(struct core *core, struct model *model)
{
	account_settle(core); /* else it is counted for each of many that go */
	if (model_count(model, COUNT_READY) == 0 && list_is_empty(&model->leases) &&
	    model->generation != 0) {
		model->generation = 0; /* nothing of it is left to be asked for */
		if (model->is_torn) {
			model->placement = model->torn_placement;
			model->placed_uid = model->torn_uid;
			model->devices = model->torn_devices;
		} else if (!model->is_displaced) {
			model->placement = CORE_PLACEMENT_ANY;
		}
		model_touch(core, model);
		core_act(core, ACT_RETIRE)->model = idtab_id(&core->models, model);
	}
	if (list_is_empty(&model->segments) && list_is_empty(&model->leases) &&
	    model->job == NULL &&
	    ((!model->is_torn && !model->is_displaced) || model->is_leaving)) {
		core_close_file(core, model->file);
		model->file = 0;
		model->is_doomed = false;
		if (model->is_leaving && is_forgettable(core, model, true)) {
			model_forget(core, model);
		} else {
			model_stay(core, model); /* pinned meanwhile */
		}
	}
}

/* All copies of the published generation are there and good. */
bool model_is_resident(const struct model *model)
{
	return model->generation != 0 && model_count(model, COUNT_GOOD) == model->n_copies;
}

bool model_is_idle(const struct model *model)
{
	return model->n_leases == 0;
}

bool model_is_pinned(const struct core *core, const struct model *model)
{
	LIST_FOR_EACH (link, &model->wishes) {
		const struct wish *wish = OF(link, struct wish, by_model);

		if (wish->pin && wish->pin_until_ns > core->now_ns) {
			return true;
		}
	}
	return false;
}

bool model_is_kept(const struct core *core, const struct model *model)
{
	LIST_FOR_EACH (link, &model->wishes) {
		const struct wish *wish = OF(link, struct wish, by_model);

		if (wish->keep && wish->keep_until_ns > core->now_ns) {
			return true;
		}
	}
	return false;
}

int16_t model_priority(const struct model *model)
{
	int16_t highest = INT16_MIN;

	LIST_FOR_EACH (link, &model->wishes) {
		const struct wish *wish = OF(link, struct wish, by_model);

		highest = wish->priority > highest ? wish->priority : highest;
	}
	return highest == INT16_MIN ? 0 : highest;
}

/* The longest wish counts; who presented the file and named no time wants it until needed, or
 * for as long as the configuration says, which takes nothing that is kept. */
uint64_t model_ttl_ns(const struct core *core, const struct model *model)
{
	uint64_t usual = core->config.idle_evict_ns == 0 || model_is_kept(core, model)
				 ? NEVER
				 : core->config.idle_evict_ns;
	uint64_t longest = 0;

	LIST_FOR_EACH (link, &model->wishes) {
		const struct wish *wish = OF(link, struct wish, by_model);
		uint64_t ttl_ns = wish->ttl_ns == 0 ? usual : wish->ttl_ns;

		longest = ttl_ns > longest ? ttl_ns : longest;
	}
	return longest == 0 ? usual : longest;
}

enum core_model_state model_state(const struct model *model)
{
	if (model_is_resident(model)) {
		return CORE_MODEL_RESIDENT;
	}
	if (model_count(model, COUNT_BAD) > 0) {
		return CORE_MODEL_QUARANTINED;
	}
	if (model->job != NULL) {
		return CORE_MODEL_LOADING;
	}
	if (model_count(model, COUNT_GOOD) > 0) {
		return CORE_MODEL_PARTIAL;
	}
	if (model_count(model, COUNT_OLD) > 0) {
		return CORE_MODEL_DRAINING;
	}
	return model->fail_code != 0 ? CORE_MODEL_FAILED : CORE_MODEL_REGISTERED;
}

uint64_t model_drop(struct core *core, struct model *model, enum core_note_type note,
		    enum core_why why)
{
	uint64_t noted[CORE_MAX_DEVICES] = {0};
	uint64_t bare = 0;
	uint64_t bytes = 0;

	LIST_FOR_EACH_SAFE (link, &model->segments) {
		struct segment *segment = OF(link, struct segment, by_model);

		if (segment_is_droppable(segment) && !segment_is_leased(segment)) {
			bytes += segment->size;
			bare += segment->is_bare ? segment->size : 0;
			noted[segment->device] += segment->is_bare ? 0 : segment->size;
			segment_drop(core, segment, why);
		}
	}
	noted[0] += bare == bytes ? bare : 0; /* there was nothing else any more */
	core_note_by_device(core, note, why, model, noted);
	model->is_doomed = false;
	return bytes;
}

bool model_is_leased(const struct model *model)
{
	LIST_FOR_EACH (link, &model->holders) {
		const struct holder *holder = OF(link, struct holder, by_model);

		if (holder->generation == model->generation && holder->has_blocks &&
		    holder->n_live > 0) {
			return true;
		}
	}
	return false;
}

void model_use(const struct core *core, struct model *model, const struct client *client)
{
	model->last_used_ns = core->now_ns;
	if (!place_is_foreign(model, client)) {
		model->blocks_used_ns = core->now_ns;
	}
}

void model_drain(struct core *core, struct model *model)
{
	uint64_t bad_bytes[CORE_MAX_DEVICES] = {0};
	uint64_t old_bytes[CORE_MAX_DEVICES] = {0};
	uint64_t moved_bytes[CORE_MAX_DEVICES] = {0};

	LIST_FOR_EACH_SAFE (link, &model->segments) {
		struct segment *segment = OF(link, struct segment, by_model);
		uint64_t *bytes = segment->is_bad                  ? bad_bytes
				  : segment->why == CORE_WHY_MOVED ? moved_bytes
								   : old_bytes;
		bool is_lost = segment->backing == CORE_BACKING_IMAGE && !segment->is_bare;

		if (!segment_is_droppable(segment) ||
		    (segment_is_current(segment) && !segment->is_bad && !segment->is_stale) ||
		    segment_is_leased(segment)) {
			continue;
		}
		/* The file's own bytes are lost to nobody; that they changed was noted. */
		bytes[segment->device] += is_lost ? segment->bytes : 0;
		segment_drop(core, segment, CORE_WHY_CHANGED);
	}
	core_note_by_device(core, CORE_NOTE_STALE, CORE_WHY_BAD_SUM, model, bad_bytes);
	core_note_by_device(core, CORE_NOTE_STALE, CORE_WHY_CHANGED, model, old_bytes);
	core_note_by_device(core, CORE_NOTE_UNLOADED, CORE_WHY_MOVED, model, moved_bytes);
}
