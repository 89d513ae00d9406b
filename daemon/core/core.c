/* SPDX-License-Identifier: Apache-2.0 */
/* Memory, the step, and the queue of actions. See core.h. */
#include "daemon/core/core.h"

#include "base/checked.h"
#include "base/require.h"

#include <string.h>

#include "daemon/core/state.h"

#define ALIGNMENT 16U

_Static_assert(sizeof(struct core_event) <= 128, "an event stays small");
_Static_assert(sizeof(struct core_action) <= 128, "an action stays small");

/*
 * The most actions one event can cause. Every waiter may be answered and told of progress,
 * every segment dropped with two notes, every lease reported lost or in an unload and asked for
 * by one reservation, every model noted, forgotten and its file closed, its job ended and
 * followed by another; leases and wishes are recorded besides.
 */
static bool count_actions(const struct core_config *config, uint64_t *ret)
{
	uint64_t n = 64;

	return checked_add(n, 2ULL * config->max_waiters, &n) &&
	       checked_add(n, 4ULL * config->max_segments, &n) &&
	       checked_add(n, 7ULL * config->max_leases, &n) &&
	       checked_add(n, 2ULL * config->max_reservations, &n) &&
	       checked_add(n, 12ULL * model_capacity(config), &n) &&
	       checked_add(n, 4ULL * config->max_wishes, &n) && checked_add(n, 0, ret);
}

static uint32_t hash_size(uint32_t n_objects)
{
	uint32_t n = 64;

	while (n < n_objects) {
		n *= 2;
	}
	return n;
}

/* A user has a client, a model or a job; of jobs there are as many as models. */
static uint32_t user_capacity(const struct core_config *config)
{
	return config->max_clients + 2 * model_capacity(config);
}

static bool add_part(uint64_t *total, uint64_t count, uint64_t size)
{
	uint64_t bytes;

	return checked_mul(count, size, &bytes) && checked_round_up(bytes, ALIGNMENT, &bytes) &&
	       checked_add(*total, bytes, total);
}

size_t core_size(const struct core_config *config)
{
	uint64_t total = 0;
	uint64_t n_actions = 0;
	const uint32_t limit = 1U << 24;

	if (config->n_devices == 0 || config->n_devices > CORE_MAX_DEVICES ||
	    config->max_clients == 0 || config->max_models == 0 || config->max_segments == 0 ||
	    config->max_clients > limit || config->max_models > limit ||
	    config->max_segments > limit || config->max_leases > limit ||
	    config->max_waiters > limit || config->max_wishes > limit ||
	    !count_actions(config, &n_actions) || !add_part(&total, 1, sizeof(struct core)) ||
	    !add_part(&total, model_capacity(config), sizeof(struct model)) ||
	    !add_part(&total, model_capacity(config), sizeof(struct job)) ||
	    !add_part(&total, config->max_segments, sizeof(struct segment)) ||
	    !add_part(&total, config->max_leases, sizeof(struct lease)) ||
	    !add_part(&total, config->max_leases, sizeof(struct holder)) ||
	    !add_part(&total, config->max_wishes, sizeof(struct wish)) ||
	    !add_part(&total, config->max_clients, sizeof(struct client)) ||
	    !add_part(&total, config->max_waiters, sizeof(struct waiter)) ||
	    !add_part(&total, user_capacity(config), sizeof(struct user)) ||
	    !add_part(&total, config->max_reservations, sizeof(struct reservation)) ||
	    !add_part(&total, config->max_reservations, sizeof(struct timer *)) ||
	    !add_part(&total, hash_size(model_capacity(config)), sizeof(uint32_t)) ||
	    !add_part(&total, hash_size(user_capacity(config)), sizeof(uint32_t)) ||
	    !add_part(&total, model_capacity(config), sizeof(struct timer *)) ||
	    !add_part(&total, model_capacity(config), sizeof(struct timer *)) ||
	    !add_part(&total, model_capacity(config), sizeof(struct timer *)) ||
	    !add_part(&total, config->max_wishes, sizeof(struct timer *)) ||
	    !add_part(&total, config->max_segments, sizeof(struct segment *)) ||
	    !add_part(&total, n_actions, sizeof(struct core_action))) {
		return 0;
	}
	return (size_t)total;
}

static void *take_part(char **memory, uint64_t count, uint64_t size)
{
	char *part = *memory;
	uint64_t bytes = 0;

	REQUIRE(checked_mul(count, size, &bytes) && checked_round_up(bytes, ALIGNMENT, &bytes));
	*memory += bytes;
	return part;
}

static void init_timers(struct timers *timers, char **memory, uint32_t capacity)
{
	timers->heap = take_part(memory, capacity, sizeof(struct timer *));
	timers->capacity = capacity;
}

static void init_table(struct idtab *tab, char **memory, uint32_t capacity, size_t slot_size)
{
	idtab_init(tab, take_part(memory, capacity, slot_size), slot_size, capacity);
}

struct core *core_init(void *memory, const struct core_config *config)
{
	char *at = memory;
	struct core *core = take_part(&at, 1, sizeof *core);
	uint64_t n_actions = 0;

	core->config = *config;
	init_table(&core->models, &at, model_capacity(config), sizeof(struct model));
	init_table(&core->job_table, &at, model_capacity(config), sizeof(struct job));
	init_table(&core->segments, &at, config->max_segments, sizeof(struct segment));
	init_table(&core->leases, &at, config->max_leases, sizeof(struct lease));
	init_table(&core->holders, &at, config->max_leases, sizeof(struct holder));
	init_table(&core->wishes, &at, config->max_wishes, sizeof(struct wish));
	init_table(&core->clients, &at, config->max_clients, sizeof(struct client));
	init_table(&core->waiters, &at, config->max_waiters, sizeof(struct waiter));
	init_table(&core->users, &at, user_capacity(config), sizeof(struct user));
	init_table(&core->reservations, &at, config->max_reservations, sizeof(struct reservation));
	core->leases.first_tag = core->reservations.first_tag = config->first_tag;
	init_timers(&core->reservation_ends, &at, config->max_reservations);
	core->n_hash = hash_size(model_capacity(config));
	core->hash = take_part(&at, core->n_hash, sizeof *core->hash);
	core->n_user_hash = hash_size(user_capacity(config));
	core->user_hash = take_part(&at, core->n_user_hash, sizeof *core->user_hash);
	init_timers(&core->expiries, &at, model_capacity(config));
	init_timers(&core->lingers, &at, model_capacity(config));
	init_timers(&core->retries, &at, model_capacity(config));
	init_timers(&core->lapses, &at, config->max_wishes);
	core->victims = take_part(&at, config->max_segments, sizeof(struct segment *));
	REQUIRE(count_actions(config, &n_actions) && n_actions <= UINT32_MAX);
	core->max_actions = (uint32_t)n_actions;
	core->actions = take_part(&at, n_actions, sizeof *core->actions);
	list_init(&core->jobs);
	list_init(&core->rooms);
	list_init(&core->to_tell);
	list_init(&core->reserving);
	list_init(&core->startable);
	list_init(&core->touched);
	list_init(&core->changed);
	for (uint32_t i = 0; i < CORE_MAX_DEVICES; i++) {
		core->accounts[i].available = core->accounts[i].drained_age = NEVER;
	}
	return core;
}

/* ---- actions ---- */

struct core_action *core_act(struct core *core, enum core_action_type type)
{
	struct core_action *action;

	REQUIRE(core->n_actions < core->max_actions);
	action = &core->actions[core->n_actions++];
	memset(action, 0, sizeof *action);
	action->type = type;
	return action;
}

static uint64_t model_id(const struct core *core, const struct model *model)
{
	return model == NULL ? 0 : idtab_id(&core->models, model);
}

void core_reply(struct core *core, const struct client *client, uint32_t request, int code,
		const struct model *model)
{
	struct core_action *action = core_act(core, ACT_REPLY);

	action->client = idtab_id(&core->clients, client);
	action->request = request;
	action->code = code;
	action->model = model_id(core, model);
}

uint64_t core_limit_number(const struct core *core, enum core_limit limit)
{
	const struct core_config *config = &core->config;
	const uint64_t numbers[CORE_LIMIT_N_VALUES] = {
		[CORE_LIMIT_CLIENTS] = config->max_clients,
		[CORE_LIMIT_USER_CLIENTS] = config->max_clients_per_uid,
		[CORE_LIMIT_MODELS] = config->max_models,
		[CORE_LIMIT_USER_MODELS] = config->max_models_per_uid,
		[CORE_LIMIT_JOBS] = core->job_table.capacity,
		[CORE_LIMIT_USER_QUEUED] = config->max_queued_per_uid,
		[CORE_LIMIT_SEGMENTS] = config->max_segments,
		[CORE_LIMIT_LEASES] = config->max_leases,
		[CORE_LIMIT_USER_LEASES] = config->max_leases_per_uid,
		[CORE_LIMIT_MODEL_LEASES] = COUNT_MAX,
		[CORE_LIMIT_WAITERS] = config->max_waiters,
		[CORE_LIMIT_WISHES] = config->max_wishes,
		[CORE_LIMIT_RESERVATIONS] = config->max_reservations,
		[CORE_LIMIT_USER_RESERVATIONS] = config->max_reservations_per_uid,
	};

	return numbers[limit];
}

void core_reply_too_many(struct core *core, const struct client *client, uint32_t request,
			 enum core_limit limit, const struct model *model)
{
	struct core_action *action;

	core_reply(core, client, request, WIRE_TOO_MANY, model);
	action = &core->actions[core->n_actions - 1];
	action->too_many.limit = limit;
	action->too_many.number = core_limit_number(core, limit);
}

void core_note(struct core *core, enum core_note_type note, enum core_why why,
	       const struct model *model, uint64_t bytes)
{
	struct core_action *action = core_act(core, ACT_NOTE);

	action->model = model_id(core, model);
	action->job = model->job == NULL ? 0 : idtab_id(&core->job_table, model->job);
	action->device = CORE_ALL_DEVICES;
	action->note.note = note;
	action->note.why = why;
	action->note.bytes = bytes;
	action->note.uid = model->owner_uid;
}

void core_note_by_device(struct core *core, enum core_note_type note, enum core_why why,
			 const struct model *model, const uint64_t *bytes)
{
	for (uint32_t device = 0; device < core->config.n_devices; device++) {
		if (bytes[device] > 0) {
			core_note(core, note, why, model, bytes[device]);
			core->actions[core->n_actions - 1].device = device;
		}
	}
}

void core_close_file(struct core *core, uint64_t file)
{
	if (file != 0) {
		core_act(core, ACT_CLOSE_FILE)->fill.file = file;
	}
}

/* ---- the step ---- */

static void begin_shutdown(struct core *core)
{
	struct model *model;
	uint32_t cursor = 0;

	core->is_shutting_down = true;
	LIST_FOR_EACH_SAFE (link, &core->jobs) {
		job_fail(core, OF(link, struct job, by_age), WIRE_SHUTTING_DOWN);
	}
	reserve_shut_down(core);
	while ((model = idtab_next(&core->models, &cursor)) != NULL) {
		segment_answer_verifiers(core, model, WIRE_SHUTTING_DOWN);
	}
}

static void handle_client(struct core *core, const struct core_event *event)
{
	switch ((int)event->type) {
	case EV_CLIENT_CLOSED:
		client_on_closed(core, event);
		break;
	case EV_PROCESS_GONE:
		client_on_process_gone(core, event);
		break;
	case EV_LOAD:
		load_on_load(core, event);
		break;
	case EV_PLACE:
		place_on_place(core, event);
		break;
	case EV_ATTACH:
		lease_on_attach(core, event);
		break;
	case EV_MAPPED:
	case EV_UNMAPPED:
	case EV_DETACH:
		lease_on_lease_event(core, event);
		break;
	case EV_UNLOAD:
		unload_on_unload(core, event);
		break;
	case EV_SET:
		wish_on_set(core, event);
		break;
	case EV_RESERVE:
		reserve_on_reserve(core, event);
		break;
	case EV_RELEASE:
		reserve_on_release(core, event);
		break;
	case EV_CANCEL:
		client_on_cancel(core, event);
		break;
	case EV_VERIFY:
		unload_on_verify(core, event);
		break;
	default:
		REQUIRE(false && "an event without a case");
	}
}

/* What an earlier life has left. */
static void handle_adopted(struct core *core, const struct core_event *event,
			   struct core_update *update)
{
	switch ((int)event->type) {
	case EV_ADOPT:
		update->ret_id = adopt_copy(core, event);
		break;
	case EV_ADOPT_WISH:
		adopt_wish(core, event);
		break;
	case EV_ADOPT_LEASE:
		update->ret_id = adopt_lease(core, event);
		break;
	case EV_ADOPT_PLACED:
		update->ret_id = adopt_placed(core, event);
		break;
	default:
		adopt_end(core, event);
		break;
	}
}

static void handle_device(struct core *core, const struct core_event *event)
{
	switch ((int)event->type) {
	case EV_BUDGET:
		account_on_budget(core, event);
		break;
	case EV_AVAILABLE:
		account_on_available(core, event);
		break;
	case EV_DRAIN:
		account_on_drain(core, event);
		break;
	case EV_DEVICE_SHORT:
		place_on_device_short(core, event);
		break;
	case EV_DEVICE_DOUBTED:
		segment_on_device_doubted(core, event);
		break;
	case EV_DEVICE_LOST:
		segment_on_device_lost(core, event);
		break;
	case EV_DEVICE_BACK:
		place_on_device_back(core, event);
		break;
	default:
		place_on_devices_found(core, event);
		break;
	}
}

static void handle(struct core *core, const struct core_event *event, struct core_update *update)
{
	switch ((int)event->type) {
	case EV_TICK:
		break; /* what is due is looked at after every event */
	case EV_CLIENT_OPENED:
		update->ret_id = client_open(core, event);
		break;
	case EV_HEADER_READ:
		job_on_header(core, event);
		break;
	case EV_FILL_PROGRESS:
		progress_on_fill(core, event);
		break;
	case EV_FILLED:
		segment_on_filled(core, event);
		break;
	case EV_TABLED:
		job_on_tabled(core, event);
		break;
	case EV_RECHECKED:
		job_on_rechecked(core, event);
		break;
	case EV_DROPPED:
		segment_on_dropped(core, event);
		break;
	case EV_CHANGED:
		backing_on_changed(core, event);
		break;
	case EV_GROWN:
		segment_on_grown(core, event);
		break;
	case EV_VERIFIED:
		segment_on_verified(core, event);
		break;
	case EV_ADOPT:
	case EV_ADOPT_WISH:
	case EV_ADOPT_LEASE:
	case EV_ADOPT_PLACED:
	case EV_ADOPTED:
		handle_adopted(core, event, update);
		break;
	case EV_PRESSURE:
		account_on_pressure(core, event);
		break;
	case EV_BUDGET:
	case EV_AVAILABLE:
	case EV_DRAIN:
	case EV_DEVICE_SHORT:
	case EV_DEVICE_DOUBTED:
	case EV_DEVICE_LOST:
	case EV_DEVICE_BACK:
	case EV_DEVICES_FOUND:
		handle_device(core, event);
		break;
	case EV_SHUTDOWN:
		begin_shutdown(core);
		break;
	default:
		handle_client(core, event);
		break;
	}
}

void core_step(struct core *core, const struct core_event *event, struct core_update *update)
{
	const struct timers *const timers[] = {&core->lapses, &core->expiries, &core->lingers,
					       &core->retries, &core->reservation_ends};
	uint64_t soonest_ns;

	*update = (struct core_update){.deadline_ns = NEVER};
	if (event->type != EV_CONTINUE) {
		REQUIRE(core->n_given == core->n_actions);
		core->n_given = core->n_actions = 0;
		core->has_recalled = core->has_to_recall = false;
		core->now_ns = event->now_ns > core->now_ns ? event->now_ns : core->now_ns;
		wish_lapse(core);
		handle(core, event, update);
		wish_lapse(core); /* what was adopted may be over already */
		evict_expired(core);
		place_expired(core);
		reserve_expired(core);
		reserve_retry(core);
		admit_run(core);
		job_run(core);
		account_keep_budgets(core);
		account_settle(core);
		place_settle(core);
		progress_settle(core);
	}
	update->actions = core->actions + core->n_given;
	update->n_actions = core->n_actions - core->n_given;
	if (update->n_actions > CORE_MAX_ACTIONS) {
		update->n_actions = CORE_MAX_ACTIONS;
	}
	core->n_given += update->n_actions;
	update->again = core->n_given < core->n_actions;
	soonest_ns = admit_deadline(core);
	for (size_t i = 0; i < sizeof timers / sizeof timers[0]; i++) {
		const uint64_t at_ns = timer_deadline(timers[i]);

		soonest_ns = at_ns < soonest_ns ? at_ns : soonest_ns;
	}
	if (core->quiet_until_ns > core->now_ns && core->quiet_until_ns < soonest_ns) {
		soonest_ns = core->quiet_until_ns; /* loads may wait for it */
	}
	update->deadline_ns = core->has_to_recall ? core->now_ns : soonest_ns;
}
