/* SPDX-License-Identifier: Apache-2.0 */
/* What one uid has of the tables: counted where it changes, so that its bounds cost nothing. */
#include "base/require.h"

#include "daemon/core/state.h"

#define WHOLE_MILLI_PCT 100000U

static uint32_t *chain_of(const struct core *core, uint32_t uid)
{
	return &core->user_hash[(uid * 0x9e3779b1U >> 8) & (core->n_user_hash - 1)];
}

struct user *user_find(const struct core *core, uint32_t uid)
{
	uint32_t next = *chain_of(core, uid);

	while (next != 0) {
		struct user *user = core_slot(&core->users, next - 1);

		if (user->uid == uid) {
			return user;
		}
		next = user->hash_next;
	}
	return NULL;
}

struct user *user_get(struct core *core, uint32_t uid)
{
	struct user *user = user_find(core, uid);
	uint64_t id = 0;

	if (user != NULL) {
		return user;
	}
	user = idtab_add(&core->users, &id);
	REQUIRE(user != NULL); /* there are as many as clients, models and jobs together */
	user->uid = uid;
	list_init(&user->queued);
	list_init(&user->startable);
	user->hash_next = *chain_of(core, uid);
	*chain_of(core, uid) = core_index(&core->users, user) + 1;
	return user;
}

void user_settle(struct core *core, struct user *user)
{
	uint32_t *next = chain_of(core, user->uid);

	if (user->n_clients + user->n_models + user->n_queued + user->n_running > 0) {
		return;
	}
	while (*next != 0 && core_slot(&core->users, *next - 1) != user) {
		next = &((struct user *)core_slot(&core->users, *next - 1))->hash_next;
	}
	REQUIRE(*next != 0);
	*next = user->hash_next;
	list_remove(&user->startable);
	idtab_remove(&core->users, user);
}

void user_may_start(struct core *core, struct user *user)
{
	if (list_is_empty(&user->startable)) {
		list_append(&core->startable, &user->startable);
	}
}

static bool is_taken(const struct segment *segment)
{
	return segment->state != SEGMENT_DROPPING && segment->state != SEGMENT_PLANNED;
}

void user_take(struct segment *segment)
{
	if (is_taken(segment)) {
		segment->model->owner->taken[segment->device] += segment->bytes;
	}
}

void user_give_back(struct segment *segment)
{
	uint64_t *taken = &segment->model->owner->taken[segment->device];

	if (is_taken(segment)) {
		REQUIRE(*taken >= segment->bytes);
		*taken -= segment->bytes;
	}
}

uint64_t core_share(const struct core *core, uint32_t device)
{
	uint64_t budget = core->accounts[device].budget;
	uint64_t milli_pct = core->config.share_milli_pct;

	if (milli_pct > 0) {
		return budget / WHOLE_MILLI_PCT * milli_pct +
		       budget % WHOLE_MILLI_PCT * milli_pct / WHOLE_MILLI_PCT;
	}
	return core->config.share_bytes > 0 ? core->config.share_bytes : NEVER;
}

bool core_above_share(const struct core *core, uint32_t device, uint32_t *ret_uid,
		      uint64_t *ret_bytes)
{
	const struct user *user;
	uint32_t cursor = 0;

	*ret_bytes = core_share(core, device);
	*ret_uid = 0;
	while ((user = idtab_next(&core->users, &cursor)) != NULL) {
		if (user->taken[device] > *ret_bytes) {
			*ret_bytes = user->taken[device];
			*ret_uid = user->uid;
		}
	}
	return *ret_bytes > core_share(core, device);
}
