/* SPDX-License-Identifier: Apache-2.0 */
/* What a uid said about a model, and by having presented it, that it may use it. */
#include "base/require.h"

#include "daemon/core/state.h"

struct wish *wish_find(const struct model *model, uint32_t uid)
{
	LIST_FOR_EACH (link, &model->wishes) {
		struct wish *wish = OF(link, struct wish, by_model);

		if (wish->uid == uid) {
			return wish;
		}
	}
	return NULL;
}

struct wish *wish_get(struct core *core, struct model *model, uint32_t uid)
{
	struct wish *wish = wish_find(model, uid);
	uint64_t id = 0;

	if (wish != NULL) {
		return wish;
	}
	wish = idtab_add(&core->wishes, &id);
	if (wish != NULL) {
		wish->model = model;
		wish->uid = uid;
		wish->pin_until_ns = wish->keep_until_ns = wish->lapse.at_ns = NEVER;
		list_append(&model->wishes, &wish->by_model);
		wish_changed(core, wish);
		wish_record(core, wish);
	}
	return wish;
}

void wish_record(struct core *core, const struct wish *wish)
{
	core_act(core, ACT_RECORD_WISH)->record.id = idtab_id(&core->wishes, wish);
}

/* What was said of the model is another: when does it lapse, and what follows? */
void wish_changed(struct core *core, struct wish *wish)
{
	uint64_t pin_ns = wish->pin ? wish->pin_until_ns : NEVER;
	uint64_t keep_ns = wish->keep ? wish->keep_until_ns : NEVER;

	timer_set(&core->lapses, &wish->lapse, pin_ns < keep_ns ? pin_ns : keep_ns);
	model_touch_use(core, wish->model);
}

void wish_remove(struct core *core, struct wish *wish)
{
	wish_record(core, wish);
	timer_set(&core->lapses, &wish->lapse, NEVER);
	list_remove(&wish->by_model);
	idtab_remove(&core->wishes, wish);
}

static uint64_t until(const struct core *core, uint64_t for_ns)
{
	return for_ns == 0 || for_ns > NEVER - core->now_ns ? NEVER : core->now_ns + for_ns;
}

static void note_change(struct core *core, const struct wish *wish, bool was, bool is,
			enum core_note_type yes, enum core_note_type no)
{
	if (was != is) {
		core_note(core, is ? yes : no, CORE_WHY_ASKED, wish->model, 0);
		core->actions[core->n_actions - 1].note.uid = wish->uid;
	}
}

void wish_apply(struct core *core, struct wish *wish, const struct core_policy *policy)
{
	bool was_pinned = wish->pin;
	bool was_kept = wish->keep;

	if ((policy->said & CORE_SAID_PIN) != 0) {
		wish->pin = policy->pin;
		wish->pin_until_ns = until(core, policy->for_ns);
	}
	if ((policy->said & CORE_SAID_KEEP) != 0) {
		wish->keep = policy->keep;
		wish->keep_until_ns = until(core, policy->for_ns);
	}
	if ((policy->said & CORE_SAID_TTL) != 0) {
		wish->ttl_ns = policy->ttl_ns;
	}
	if ((policy->said & CORE_SAID_PRIORITY) != 0) {
		wish->priority = policy->priority;
	}
	if ((wish->pin && !was_pinned) || (wish->keep && !was_kept) ||
	    ((policy->said & CORE_SAID_TTL) != 0 && policy->ttl_ns != 0) ||
	    ((policy->said & CORE_SAID_PRIORITY) != 0 && policy->priority > 0)) {
		wish->model->is_doomed = false; /* said after the unload that waits */
	}
	if (wish->pin && !was_pinned) {
		place_stay(core, wish->model);
	}
	wish_changed(core, wish);
	if (policy->said != 0) {
		wish_record(core, wish);
	}
	note_change(core, wish, was_pinned, wish->pin, CORE_NOTE_PINNED, CORE_NOTE_UNPINNED);
	note_change(core, wish, was_kept, wish->keep, CORE_NOTE_KEPT, CORE_NOTE_UNKEPT);
}

bool wish_says(const struct wish *wish)
{
	return wish->pin || wish->keep || wish->ttl_ns != 0 || wish->priority != 0;
}

void wish_withdraw(struct core *core, struct wish *wish)
{
	const struct core_policy nothing = {.said = CORE_SAID_PIN | CORE_SAID_KEEP | CORE_SAID_TTL |
						    CORE_SAID_PRIORITY};

	wish->job = 0;
	wish_apply(core, wish, &nothing);
}

static bool is_for(const struct job *job, uint32_t uid)
{
	LIST_FOR_EACH (link, &job->waiters) {
		if (OF(link, struct waiter, by_owner)->client->uid == uid) {
			return true;
		}
	}
	return job->uid == uid;
}

/* Who did not wait wanted it where it lies after all. */
static bool is_as_said_later(const struct model *model, const struct job *job, uint32_t uid)
{
	return job->next_placement != CORE_PLACEMENT_ANY && job->next_uid == uid &&
	       job->next_placement == model->placement && model_is_resident(model);
}

void wish_grant(struct core *core, const struct model *model, uint32_t uid, const struct job *job)
{
	struct wish *wish = wish_find(model, uid);

	if (wish != NULL && wish->job == idtab_id(&core->job_table, job)) {
		wish->job = 0;
	}
}

void wish_end_job(struct core *core, const struct model *model, const struct job *job)
{
	const struct job *next = model->job;

	if (job->code == WIRE_SHUTTING_DOWN) {
		return; /* the next daemon has what was said */
	}
	LIST_FOR_EACH (link, &model->wishes) {
		struct wish *wish = OF(link, struct wish, by_model);

		if (wish->job != idtab_id(&core->job_table, job)) {
			continue;
		}
		if (next != NULL && is_for(next, wish->uid)) {
			wish->job = idtab_id(&core->job_table, next);
		} else if (job->code == 0 || is_as_said_later(model, job, wish->uid)) {
			wish->job = 0;
		} else {
			wish_withdraw(core, wish);
		}
	}
}

void wish_on_set(struct core *core, const struct core_event *event)
{
	struct client *client = client_of(core, event->client);
	struct model *model = idtab_find(&core->models, event->set.model);
	struct wish *wish;

	if (client == NULL) {
		return;
	}
	if (model == NULL || !core_client_may(core, event->client, event->set.model)) {
		core_reply(core, client, event->request, WIRE_NOT_FOUND, NULL);
		return;
	}
	wish = wish_get(core, model, client->uid);
	if (wish == NULL) {
		core_reply_too_many(core, client, event->request, CORE_LIMIT_WISHES, model);
		return;
	}
	wish->job = 0; /* that much is granted */
	wish_apply(core, wish, event->set.policy);
	backing_settle(core, model);
	core_reply(core, client, event->request, 0, model);
}

void wish_lapse(struct core *core)
{
	while (timer_deadline(&core->lapses) <= core->now_ns) {
		struct wish *wish = OF(timer_first(&core->lapses), struct wish, lapse);

		if (wish->pin && wish->pin_until_ns <= core->now_ns) {
			wish->pin = false;
			note_change(core, wish, true, false, CORE_NOTE_PINNED, CORE_NOTE_UNPINNED);
		}
		if (wish->keep && wish->keep_until_ns <= core->now_ns) {
			wish->keep = false;
			note_change(core, wish, true, false, CORE_NOTE_KEPT, CORE_NOTE_UNKEPT);
		}
		wish_changed(core, wish);
		wish_record(core, wish);
		backing_settle(core, wish->model);
	}
}
