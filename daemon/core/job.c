/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A load from its header to its publication, or a recheck of a file whose ctime changed. A
 * job that fails or is no longer wanted answers everybody at once, lets go of its model, and
 * stays only as long as the loader owes results.
 */
#include "base/checked.h"
#include "base/require.h"

#include <string.h>

#include "daemon/core/state.h"

struct job *job_of(const struct core *core, uint64_t id)
{
	return idtab_find(&core->job_table, id);
}

static void forget(struct core *core, struct job *job)
{
	struct user *user = job->user;

	core_act(core, ACT_FORGET_JOB)->job = idtab_id(&core->job_table, job);
	user->n_running -= job->is_running ? 1 : 0;
	user->n_queued -= job->is_running ? 0 : 1;
	list_remove(&job->by_user);
	list_remove(&job->by_room);
	list_remove(&job->by_age);
	list_remove(&job->to_tell);
	idtab_remove(&core->job_table, job);
	user_may_start(core, user);
	user_settle(core, user);
}

enum core_limit job_limit(const struct core *core, uint32_t uid)
{
	uint32_t bound = core->config.max_queued_per_uid;
	const struct user *user = user_find(core, uid);

	if (bound != 0 && user != NULL && user->n_queued >= bound) {
		return CORE_LIMIT_USER_QUEUED;
	}
	/* Those that have ended and are owed results are in the table too. */
	return core->job_table.n_used < core->job_table.capacity ? CORE_LIMIT_NONE
								 : CORE_LIMIT_JOBS;
}

struct job *job_begin(struct core *core, struct model *model, enum job_kind kind,
		      const struct core_file_key *key, uint64_t file, uint32_t uid)
{
	uint64_t id = 0;
	struct job *job = NULL;

	REQUIRE(model->job == NULL);
	if (job_limit(core, uid) == CORE_LIMIT_NONE) {
		job = idtab_add(&core->job_table, &id);
	}
	if (job == NULL) {
		return NULL;
	}
	job->model = model;
	job->kind = kind;
	job->state = JOB_QUEUED;
	job->key = *key;
	job->key.is_raw = model->key.is_raw;
	job->key.is_sharded = model->key.is_sharded;
	job->file = file;
	job->placement = CORE_PLACEMENT_HOST;
	job->placed_uid = uid;
	job->uid = uid;
	job->user = user_get(core, uid);
	job->age = ++core->n_jobs_begun;
	job->begun_ns = core->now_ns;
	list_init(&job->waiters);
	list_init(&job->by_room);
	list_init(&job->to_tell);
	list_append(&core->jobs, &job->by_age);
	list_append(&job->user->queued, &job->by_user);
	job->user->n_queued++;
	user_may_start(core, job->user);
	model_stay(core, model);
	model_touch(core, model);
	model->job = job;
	model->fail_code = 0;
	progress_touch(core, job);
	return job;
}

void job_join(struct job *job, const struct core_file_key *key)
{
	if (!model_is_same_content(key, &job->key)) {
		job->joined = *key;
		job->has_joined = job->is_mixed = true;
	}
}

/* The last who insisted on something counts; AUTO: nobody did. */
static enum core_backing insisted(const struct job *job)
{
	return job->joined_wanted != CORE_BACKING_AUTO ? (enum core_backing)job->joined_wanted
	       : job->insists                          ? (enum core_backing)job->wanted
						       : CORE_BACKING_AUTO;
}

/* Is it becoming what it was insisted that it is not? For that it begins again once. */
static bool is_contrary(const struct job *job)
{
	return insisted(job) != CORE_BACKING_AUTO && job->n_restarts == 0 && !job_is_placed(job) &&
	       (insisted(job) == CORE_BACKING_IMAGE) != (job->backing == CORE_BACKING_IMAGE);
}

static bool is_outdated(const struct job *job)
{
	return job->has_joined && !model_is_same_content(&job->joined, &job->key);
}

/* From waiting for its turn to keeping a reader busy, until it is forgotten. */
static void count_running(struct job *job)
{
	if (!job->is_running) {
		job->is_running = true;
		list_remove(&job->by_user);
		job->user->n_queued--;
		job->user->n_running++;
	}
}

/* Does it only move blocks of what is there? */
static bool is_place(const struct job *job)
{
	return (job->is_move || job->is_demotion) && job->placement != job->model->placement;
}

static enum core_why why_begun(const struct core *core, const struct job *job)
{
	return job->is_reload                      ? job->why
	       : !job->is_move                     ? CORE_WHY_NONE
	       : model_is_pinned(core, job->model) ? CORE_WHY_PINNED
	       : model_is_kept(core, job->model)   ? CORE_WHY_KEPT
						   : CORE_WHY_NONE;
}

/* Once; of what nobody asked for when it has room. */
static void tell_begun(struct core *core, struct job *job)
{
	if (!job->is_told && !is_place(job)) {
		core_note(core, CORE_NOTE_LOAD_BEGUN, why_begun(core, job), job->model,
			  job->key.size);
	}
	job->is_told = true;
}

static void start(struct core *core, struct job *job)
{
	bool is_load = job->kind == JOB_LOAD;
	struct core_action *action = core_act(core, is_load ? ACT_READ_HEADER : ACT_RECHECK);

	action->job = idtab_id(&core->job_table, job);
	action->model = idtab_id(&core->models, job->model);
	action->fill.file = job->file;
	if (job->joined_wanted != CORE_BACKING_AUTO) {
		job->wanted = job->joined_wanted;
		job->insists = false; /* where it cannot be had, others are not refused for it */
	}
	action->fill.backing = (enum core_backing)job->wanted;
	action->fill.insists_backing = job->insists;
	action->fill.placement = job->placement;
	action->fill.with_host = job->with_host;
	action->fill.may_share = job->may_share;
	job->is_tabled = job_is_placed(job) ||
			 (job->may_share && job->model->placement > CORE_PLACEMENT_HOST);
	action->fill.is_tabled = job->is_tabled;
	count_running(job);
	job->state = is_load ? JOB_HEADER : JOB_CHECKING;
	progress_touch(core, job);
	job->has_joined = job->has_joined && !is_load; /* a header is read after they looked */
	job->n_outstanding++;
	if (is_load && !job_is_modest(job)) {
		tell_begun(core, job);
	}
}

void job_run(struct core *core)
{
	LIST_FOR_EACH_SAFE (link, &core->startable) {
		struct user *user = OF(link, struct user, startable);

		list_remove(&user->startable);
		while (!list_is_empty(&user->queued) &&
		       user->n_running < core->config.loads_per_uid) {
			start(core, OF(user->queued.next, struct job, by_user));
		}
	}
}

/* In the action that was made last. */
static void describe_end(const struct core *core, const struct job *job, int code)
{
	struct core_action *action = &core->actions[core->n_actions - 1];

	action->job = idtab_id(&core->job_table, job);
	if (code == WIRE_NO_MEMORY && job->has_shortage) {
		action->device = job->short_device;
		action->shortage = job->shortage;
	} else if (code == WIRE_TOO_MANY) { /* job_fill found no place for a copy */
		action->too_many.limit = CORE_LIMIT_SEGMENTS;
		action->too_many.number = core_limit_number(core, CORE_LIMIT_SEGMENTS);
	}
}

static void tell_ended(struct core *core, const struct job *job, int code)
{
	struct core_action *action = core_act(core, ACT_LOAD_ENDED);

	action->model = idtab_id(&core->models, job->model);
	action->code = code;
	describe_end(core, job, code);
}

static void answer_all(struct core *core, struct job *job, int code, bool goes_on)
{
	LIST_FOR_EACH_SAFE (link, &job->waiters) {
		struct waiter *waiter = OF(link, struct waiter, by_owner);

		if (goes_on && !place_is_for(job, waiter)) {
			continue;
		}
		core_reply(core, waiter->client, waiter->request, code, job->model);
		describe_end(core, job, code);
		waiter_remove(core, waiter);
	}
}

static void note_end(struct core *core, const struct job *job, int code)
{
	bool is_move = is_place(job);
	enum core_note_type note = is_move ? CORE_NOTE_PLACE_FAILED : CORE_NOTE_LOAD_FAILED;
	enum core_why why = CORE_WHY_FAILED;

	if (code == WIRE_CANCELLED || code == WIRE_SHUTTING_DOWN) {
		note = is_move ? CORE_NOTE_PLACE_CANCELLED : CORE_NOTE_LOAD_CANCELLED;
		why = CORE_WHY_CANCELLED;
	} else if (code == WIRE_NO_MEMORY) {
		note = CORE_NOTE_REFUSED;
		core->counters.refusals++;
	}
	core_note(core, note, why, job->model, job->key.size);
	core->actions[core->n_actions - 1].code = code;
	if (note == CORE_NOTE_REFUSED) {
		core->actions[core->n_actions - 1].device = 0; /* unless another is short */
	}
	if (code == WIRE_NO_MEMORY && job->has_shortage) {
		core->actions[core->n_actions - 1].device = job->short_device;
		core->actions[core->n_actions - 1].note.bytes = job->shortage.need;
	}
}

/* Copies that are still wanted by nobody: those not yet asked of the loader go at once. */
static void abandon_segments(struct core *core, struct job *job)
{
	uint64_t id = idtab_id(&core->job_table, job);

	LIST_FOR_EACH_SAFE (link, &job->model->segments) {
		struct segment *segment = OF(link, struct segment, by_model);

		if (segment->job != id) {
			continue;
		}
		if (segment->state == SEGMENT_PLANNED || segment->state == SEGMENT_RESERVED) {
			segment_remove(core, segment);
		} else if (segment->state == SEGMENT_READY &&
			   segment->generation == job->generation) {
			segment_drop(core, segment, CORE_WHY_FAILED);
		} else if (segment->state == SEGMENT_READY) {
			segment->job = 0; /* it was there before */
			segment->is_retained = false;
			model_touch(core, job->model);
		}
	}
}

/* A return that is tried again, of which nobody was told that it had begun: what is in its way is
 * told once. */
static bool is_untold(const struct job *job, int code)
{
	return job_is_modest(job) && !job->is_told &&
	       (code == WIRE_NO_MEMORY || code == WIRE_TOO_MANY ||
		(job->model->n_tries > 0 && (code == WIRE_BUSY || code == WIRE_DEVICE_LOST)));
}

/* 'goes_on': who waits for another placement than this one's gets it. */
static void fail(struct core *core, struct job *job, int code, bool goes_on)
{
	struct model *model = job->model;
	bool is_spared;

	is_spared = is_untold(job, code);
	job->code = code;
	if (job->kind == JOB_LOAD) {
		if (!is_spared && (!job->is_demotion || code != WIRE_NO_MEMORY)) {
			if (job->is_return) {
				tell_begun(core, job);
			}
			note_end(core, job, code);
		}
		abandon_segments(core, job);
		/* What it was asked for was wrong, or it serves as before: then it is no fault of it. */
		model->fail_code = code == WIRE_CANCELLED || code == WIRE_BAD_ARGUMENT ||
						   job->is_move || job->is_demotion || is_spared
					   ? 0
					   : code;
	}
	if (job->is_move && code != WIRE_SHUTTING_DOWN) {
		place_serve_suited(core, job);
	}
	answer_all(core, job, code, goes_on);
	if (model->file == 0) {
		model->file = job->file; /* its inode is not reused while anything is left */
	} else {
		core_close_file(core, job->file);
	}
	job->file = 0;
	list_remove(&job->by_room);
	job->state = JOB_ENDING;
	model->job = NULL;
	model_touch(core, model);
	if (job->is_demotion && code != WIRE_CANCELLED && code != WIRE_SHUTTING_DOWN &&
	    !model_is_leased(model) && !model_is_pinned(core, model)) {
		place_drop_blocks(core, model, job->why);
	}
	model_drain(core, model); /* bad ones that it counted on */
	if (goes_on) {
		place_go_on(core, model, job);
	}
	wish_end_job(core, model, job);
	if (model->is_displaced && job->kind == JOB_LOAD && model->job == NULL) {
		reserve_note_failed(core, model, job);
	}
	tell_ended(core, job, code);
	job->model = NULL;
	if (job->n_outstanding > 0) {
		core_act(core, ACT_CANCEL)->job = idtab_id(&core->job_table, job);
	} else {
		forget(core, job);
	}
	model_settle(core, model);
}

void job_fail(struct core *core, struct job *job, int code)
{
	if (job->model != NULL) { /* else it is ending already */
		fail(core, job, code, code != WIRE_CANCELLED && place_may_go_on(job, code));
	}
}

void job_drop_if_unwanted(struct core *core, struct job *job)
{
	if (job->model != NULL && !job->no_wait && !place_is_wanted(job)) {
		fail(core, job, WIRE_CANCELLED, true);
	}
}

/* Begin again with the same file: its content changed while it was read, or there is room now. */
static void restart(struct core *core, struct job *job)
{
	abandon_segments(core, job);
	job->n_restarts++;
	memset(job->need, 0, sizeof job->need);
	job->devices = job->takes = 0;
	job->has_given_way = job->is_too_many = false;
	job->moved = 0;
	job->progress = 0;
	start(core, job);
}

static void fail_or_restart(struct core *core, struct job *job, int code)
{
	if (code == WIRE_CHANGED_WHILE_READING && job->n_restarts == 0) {
		restart(core, job);
	} else {
		job_fail(core, job, code);
	}
}

/* A result came: false when nobody waits for it any more. */
static bool take_result(struct core *core, struct job *job)
{
	REQUIRE(job->n_outstanding > 0);
	job->n_outstanding--;
	if (job->model == NULL && job->n_outstanding == 0) {
		forget(core, job);
		return false;
	}
	return job->model != NULL;
}

/* In the order of arrival, which is not that of the headers. admit_run goes on with it. */
static void wait_for_room(struct core *core, struct job *job)
{
	struct list *after = core->rooms.prev;

	while (after != &core->rooms && OF(after, struct job, by_room)->age > job->age) {
		after = after->prev;
	}
	list_insert(after, &job->by_room);
	job->state = JOB_ROOM;
	progress_touch(core, job);
	job->room_ns = core->now_ns;
}

void job_on_header(struct core *core, const struct core_event *event)
{
	struct job *job = job_of(core, event->header.job);
	bool is_good = event->header.code == 0 && event->header.n_needs > 0 &&
		       event->header.n_needs <= CORE_MAX_NEEDS;
	bool is_cached;

	if (job == NULL || (job->state != JOB_HEADER && job->state != JOB_ENDING) ||
	    !take_result(core, job)) {
		return;
	}
	if (!is_good || !retain_is_countable(core, event->header.needs, event->header.n_needs)) {
		fail_or_restart(core, job,
				event->header.code != 0 ? event->header.code : WIRE_INTERNAL);
		return;
	}
	job->key = *event->header.key;
	job->key.is_raw = job->model->key.is_raw; /* the file does not say */
	job->key.is_sharded = job->model->key.is_sharded;
	if (is_outdated(job)) {
		fail_or_restart(core, job, WIRE_CHANGED_WHILE_READING);
		return;
	}
	job->may_share = job->may_share && model_is_unchanged(job->model, &job->key);
	/* A move keeps what lies in the cache there, and brings nothing there. */
	is_cached = event->header.is_cached ||
		    (job->is_move && job->model->backing != CORE_BACKING_IMAGE);
	job->backing = job_is_placed(job)
			       ? CORE_BACKING_IMAGE
			       : (uint8_t)backing_choose(core, job->model,
							 (enum core_backing)job->wanted, is_cached);
	if (is_contrary(job)) {
		restart(core, job);
	} else if (!retain_plan(core, job, event->header.needs, event->header.n_needs)) {
		job_fail(core, job, WIRE_TOO_MANY);
	} else {
		wait_for_room(core, job);
	}
}

/* Of a placed generation, or of one that shares copies: no fill knows all of it. */
static void make_table(struct core *core, struct job *job)
{
	struct core_action *action = core_act(core, ACT_MAKE_TABLE);

	action->job = idtab_id(&core->job_table, job);
	action->model = idtab_id(&core->models, job->model);
	action->fill.file = job->file;
	action->fill.generation = job->generation;
	action->fill.placement = job->placement;
	job->state = JOB_TABLE;
	job->n_outstanding++;
}

void job_fill(struct core *core, struct job *job)
{
	struct model *model = job->model;
	const uint64_t id = idtab_id(&core->job_table, job);

	tell_begun(core, job);
	list_remove(&job->by_room);
	job->has_shortage = false; /* what it waited for is there */
	job->state = JOB_FILLING;
	job->filling_ns = core->now_ns;
	LIST_FOR_EACH (link, &model->segments) {
		struct segment *segment = OF(link, struct segment, by_model);
		struct core_action *action;

		if (segment->job != id || segment->state != SEGMENT_PLANNED) {
			continue;
		}
		segment->is_same = false; /* while it was planned */
		segment_set_state(core, segment, SEGMENT_RESERVED);
		segment_set_state(core, segment, SEGMENT_FILLING);
		job->n_outstanding++;
		action = core_act(core, ACT_FILL);
		action->job = idtab_id(&core->job_table, job);
		action->segment = idtab_id(&core->segments, segment);
		action->model = idtab_id(&core->models, model);
		action->device = segment->device;
		action->fill.file = job->file;
		action->fill.bytes = segment->size;
		action->fill.generation = job->generation;
		action->fill.placement = job->placement;
		action->fill.index = segment->index;
		action->fill.is_block = segment->is_block;
		action->fill.backing = (enum core_backing)job->backing;
	}
	if (job->n_outstanding == 0) {
		make_table(core, job); /* all of it was there */
	}
}

static void answer_grants(struct core *core, struct job *job, struct model *model)
{
	LIST_FOR_EACH_SAFE (link, &job->waiters) {
		struct waiter *waiter = OF(link, struct waiter, by_owner);
		enum core_source source = waiter->is_first ? CORE_SOURCE_DISK : CORE_SOURCE_JOINED;

		if (!place_suits(model, waiter->client, waiter->placement, waiter->is_place)) {
			continue; /* place_go_on has something else for him */
		}

		if (job->kind == JOB_RECHECK) {
			source = CORE_SOURCE_RAM;
		}
		if (lease_grant(core, waiter, model, source, job)) {
			wish_grant(core, model, waiter->client->uid, job);
		}
		waiter_remove(core, waiter);
	}
}

/* Those who wait have what they wanted, or get another job. */
static void end(struct core *core, struct job *job, struct model *model)
{
	answer_grants(core, job, model);
	model->job = NULL;
	place_go_on(core, model, job);
	wish_end_job(core, model, job);
	tell_ended(core, job, 0);
	job->model = NULL;
	forget(core, job);
}

/* How long it read: not while it waited, nor while the machine slept. */
static uint64_t load_ns(const struct core *core, const struct job *job)
{
	const uint64_t took = account_left(core->now_ns, job->filling_ns);
	const uint64_t most = took < job->fills_ns ? took : job->fills_ns;

	return most > job->fill_ns ? most : job->fill_ns;
}

/* Everything is READY: the new generation is the current one; the old one drains. */
static void publish(struct core *core, struct job *job)
{
	struct model *model = job->model;
	const bool is_moved = is_place(job);
	const bool is_same = job->may_share ||
			     (is_moved && model_is_same_content(&job->key, &model->key));
	struct core_action *action;

	core_close_file(core, model->file);
	model->file = job->file;
	job->file = 0;
	model->key = job->key;
	LIST_FOR_EACH (link, &model->segments) {
		struct segment *segment = OF(link, struct segment, by_model);

		if (segment->generation != job->generation && !segment->is_retained) {
			segment_end(segment);
			segment->why = is_same ? CORE_WHY_MOVED : segment->why;
		}
		if (segment->state == SEGMENT_READY) {
			segment->job = 0;
		}
		segment->is_retained = false;
	}
	model->generation = job->generation;
	model->n_copies = job->n_copies;
	model->n_images = job->n_images;
	model->placement = job->placement;
	model->placed_uid = job->placed_uid;
	model->has_host = job->with_host;
	model->devices = job->devices;
	model->is_torn = false;
	model->is_displaced = false;
	model->backing = job->backing;
	model->wanted = job->joined_wanted != CORE_BACKING_AUTO ? job->joined_wanted : job->wanted;
	if (!is_moved || model->load_ns == 0) { /* a move says nothing of its file's disk */
		model->load_ns = load_ns(core, job);
	}
	if (job->is_asked) { /* what moves by itself is as idle as it was */
		model->last_used_ns = core->now_ns;
		model->blocks_used_ns = job->uses_blocks ? core->now_ns : model->blocks_used_ns;
	}
	model->is_doomed = false;
	action = core_act(core, ACT_PUBLISH);
	action->job = idtab_id(&core->job_table, job);
	action->model = idtab_id(&core->models, model);
	action->fill.generation = model->generation;
	if (is_moved) {
		core_note(core, CORE_NOTE_PLACED,
			  job->is_demotion || job->is_reload ? job->why : CORE_WHY_ASKED, model,
			  job->moved);
	} else {
		core->counters.misses++;
		core_note(core, CORE_NOTE_LOAD_DONE, job->is_reload ? job->why : CORE_WHY_NONE,
			  model, model->key.size);
	}
	core->actions[core->n_actions - 1].note.duration_ns = core->now_ns - job->begun_ns;
	model_touch(core, model);
	end(core, job, model);
	segment_verify_published(core, model);
	model_drain(core, model);
	backing_settle(core, model); /* what was said meanwhile */
}

void job_result(struct core *core, struct job *job, int code)
{
	if (!take_result(core, job)) {
		return;
	}
	if (code != 0 && job->code == 0) {
		job->code = code;
	}
	if (job->code != 0 && job->code != WIRE_CHANGED_WHILE_READING &&
	    !(job->code == WIRE_NO_MEMORY && evict_can_make_up(core, job))) {
		job_fail(core, job, job->code); /* the others are told to hurry up */
	} else if (job->n_outstanding > 0) {
		return;
	} else if (job->code == WIRE_NO_MEMORY) {
		evict_make_up(core, job);
		job->code = 0;
		restart(core, job);
	} else if (job->code != 0 || is_outdated(job) || is_contrary(job)) {
		code = WIRE_CHANGED_WHILE_READING;
		job->code = 0;
		fail_or_restart(core, job, code);
	} else if (job->is_tabled) {
		make_table(core, job);
	} else {
		publish(core, job);
	}
}

void job_on_tabled(struct core *core, const struct core_event *event)
{
	struct job *job = job_of(core, event->tabled.job);

	if (job == NULL || (job->state != JOB_TABLE && job->state != JOB_ENDING) ||
	    !take_result(core, job)) {
		return;
	}
	if (event->tabled.code != 0) {
		job_fail(core, job, event->tabled.code);
	} else if (job->code != 0 || is_outdated(job)) {
		job->code = 0;
		fail_or_restart(core, job, WIRE_CHANGED_WHILE_READING);
	} else {
		publish(core, job);
	}
}

void job_on_rechecked(struct core *core, const struct core_event *event)
{
	struct job *job = job_of(core, event->rechecked.job);
	struct model *model;

	if (job == NULL || (job->state != JOB_CHECKING && job->state != JOB_ENDING) ||
	    !take_result(core, job)) {
		return;
	}
	model = job->model;
	if (event->rechecked.code != 0) {
		job_fail(core, job, event->rechecked.code);
	} else if (event->rechecked.is_equal && model_is_resident(model) && !is_outdated(job) &&
		   backing_suits(model, insisted(job))) {
		model->key = job->key;
		model->last_used_ns = model->blocks_used_ns = core->now_ns; /* on the host */
		core_close_file(core, model->file);
		model->file = job->file;
		job->file = 0;
		lease_count_hit(core, model);
		model_touch(core, model);
		end(core, job, model);
	} else {
		/* Another content after all, or evicted meanwhile: those who wait get it loaded. */
		job->kind = JOB_LOAD;
		start(core, job);
	}
}
