/* SPDX-License-Identifier: Apache-2.0 */
/* Who stays and who goes: eviction, wishes and rights, unload, held bytes, bad copies. */
#include "tests/unit/daemon/core/scene.h"

static const struct scene_load plain;
static const struct scene_load attached = {.attach = true, .map = true};

static uint32_t ask_for(struct scene *scene, uint64_t client, uint32_t inode, uint64_t bytes)
{
	uint32_t request = scene_load(scene, client, inode, plain);

	scene_header(scene, inode, bytes, 0);
	return request;
}

/* fault: M01 */
static void nothing_is_evicted_for_a_load_that_cannot_succeed(void **state)
{
	const struct core_config config = scene_usual();
	struct scene *scene = scene_new(&config);
	uint64_t client = scene_open(scene, 1000);
	const struct core_action *reply;
	uint32_t request;

	(void)state;
	(void)scene_loaded(scene, client, 1, 30 * MIB, plain);
	(void)scene_loaded(scene, client, 2, 30 * MIB, attached);
	request = ask_for(scene, client, 3, 71 * MIB);
	reply = scene_reply(scene, client, request);
	assert_int_equal(reply->code, WIRE_NO_MEMORY);
	assert_int_equal(reply->shortage.need, 71 * MIB);
	assert_int_equal(reply->shortage.free, 40 * MIB);
	assert_int_equal(reply->shortage.evictable, 30 * MIB);
	assert_int_equal(scene_count(scene, ACT_DROP), 0);
	request = ask_for(scene, client, 3, 70 * MIB);
	assert_null(scene_reply(scene, client, request));
	assert_int_equal(scene_find(scene, ACT_DROP, 0)->model, scene_model(scene, 1));
	assert_int_equal(scene_note(scene, CORE_NOTE_EVICTED)->note.for_model,
			 scene_model(scene, 3));
	scene_free(scene);
}

/* fault: M02 */
static void the_longest_idle_goes_first_unless_its_priority_is_higher(void **state)
{
	const struct core_config config = scene_usual();
	struct scene *scene = scene_new(&config);
	uint64_t client = scene_open(scene, 1000);
	const struct scene_load dear = {.policy = {.said = CORE_SAID_PRIORITY, .priority = 10}};

	(void)state;
	(void)scene_loaded(scene, client, 1, 30 * MIB, dear);
	(void)scene_loaded(scene, client, 2, 30 * MIB, plain);
	(void)scene_loaded(scene, client, 3, 30 * MIB, plain);
	(void)ask_for(scene, client, 4, 20 * MIB);
	assert_int_equal(scene_count(scene, ACT_DROP), 1);
	assert_int_equal(scene_find(scene, ACT_DROP, 0)->model, scene_model(scene, 2));
	scene_drop_all(scene);
	scene_fill(scene, 4, 0);
	(void)ask_for(scene, client, 5, 60 * MIB);
	assert_null(scene_find(scene, ACT_DROP, scene_model(scene, 1)));
	scene_free(scene);
}

static void what_took_long_to_load_stays_longer(void **state)
{
	const struct core_config config = scene_usual();
	struct scene *scene = scene_new(&config);
	uint64_t client = scene_open(scene, 1000);
	uint32_t slow = scene_load(scene, client, 1, plain);

	(void)state;
	scene_header(scene, 1, 40 * MIB, 0);
	scene->fill_ns = 60000000000; /* a minute from a slow disk */
	scene_fill(scene, 1, 0);
	scene_expect(scene, client, slow, 0);
	scene->now_ns += 1000000000;
	slow = scene_load(scene, client, 2, plain);
	scene_header(scene, 2, 40 * MIB, 0);
	scene->fill_ns = 1000000;
	scene_fill(scene, 2, 0);
	scene->now_ns += 1000000000;
	(void)ask_for(scene, client, 3, 30 * MIB);
	assert_int_equal(scene_count(scene, ACT_DROP), 1);
	assert_int_equal(scene_find(scene, ACT_DROP, 0)->model, scene_model(scene, 2));
	scene_free(scene);
}

static void victims_that_are_not_needed_are_spared(void **state)
{
	const struct core_config config = scene_usual();
	struct scene *scene = scene_new(&config);
	uint64_t client = scene_open(scene, 1000);

	(void)state;
	(void)scene_loaded(scene, client, 1, 10 * MIB, plain);
	(void)scene_loaded(scene, client, 2, 80 * MIB, plain);
	/* The oldest is too small, and with the next one it is not needed any more. */
	(void)ask_for(scene, client, 3, 50 * MIB);
	assert_int_equal(scene_count(scene, ACT_DROP), 1);
	assert_int_equal(scene_find(scene, ACT_DROP, 0)->model, scene_model(scene, 2));
	scene_free(scene);
}

/* fault: M03 */
static void what_is_leased_or_pinned_is_never_a_victim(void **state)
{
	const struct core_config config = scene_usual();
	struct scene *scene = scene_new(&config);
	uint64_t client = scene_open(scene, 1000);
	const struct scene_load pinned = {.policy = {.said = CORE_SAID_PIN, .pin = true}};
	uint64_t lease;
	uint32_t request;

	(void)state;
	(void)scene_loaded(scene, client, 1, 50 * MIB, pinned);
	lease = scene_loaded(scene, client, 2, 50 * MIB, attached);
	request = ask_for(scene, client, 3, MIB);
	scene_expect(scene, client, request, WIRE_NO_MEMORY);
	assert_int_equal(scene_reply(scene, client, request)->shortage.evictable, 0);
	scene_lease_event(scene, EV_UNMAPPED, client, lease);
	scene_lease_event(scene, EV_DETACH, client, lease);
	(void)ask_for(scene, client, 3, MIB);
	assert_int_equal(scene_find(scene, ACT_DROP, 0)->model, scene_model(scene, 2));
	scene_free(scene);
}

static void a_lowered_budget_takes_what_is_idle_and_leaves_the_rest(void **state)
{
	const struct core_config config = scene_usual();
	struct scene *scene = scene_new(&config);
	uint64_t client = scene_open(scene, 1000);
	struct core_account_view account;

	(void)state;
	(void)scene_loaded(scene, client, 1, 40 * MIB, plain);
	(void)scene_loaded(scene, client, 2, 40 * MIB, attached);
	scene_budget(scene, 0, 10 * MIB);
	assert_int_equal(scene_count(scene, ACT_DROP), 1);
	assert_int_equal(scene_find(scene, ACT_DROP, 0)->model, scene_model(scene, 1));
	assert_int_equal(scene_note(scene, CORE_NOTE_EVICTED)->note.why, CORE_WHY_BUDGET);
	scene_drop_all(scene);
	core_account_get(scene->core, 0, &account);
	assert_int_equal(account.resident, 40 * MIB);
	assert_int_equal(account.free, 0);
	scene_free(scene);
}

static void tick(struct scene *scene, uint64_t at_ns)
{
	scene->now_ns = at_ns;
	(void)scene_step(scene, (struct core_event){.type = EV_TICK});
}

static void a_time_without_use_runs_out_at_the_named_moment(void **state)
{
	const struct core_config config = scene_usual();
	struct scene *scene = scene_new(&config);
	uint64_t client = scene_open(scene, 1000);
	const struct scene_load brief = {.policy = {.said = CORE_SAID_TTL, .ttl_ns = 5000000000}};
	uint64_t used_ns;

	(void)state;
	(void)scene_loaded(scene, client, 1, MIB, brief);
	used_ns = scene->now_ns - 1000000000;
	tick(scene, scene->now_ns);
	assert_int_equal(scene->next_deadline_ns, used_ns + 5000000000);
	tick(scene, used_ns + 4999999999);
	assert_int_equal(scene_count(scene, ACT_DROP), 0);
	tick(scene, used_ns + 5000000000);
	assert_int_equal(scene_count(scene, ACT_DROP), 1);
	assert_int_equal(scene_note(scene, CORE_NOTE_EVICTED)->note.why, CORE_WHY_IDLE);
	scene_free(scene);
}

static void wishes_belong_to_a_uid_and_lapse(void **state)
{
	const struct core_config config = scene_usual();
	struct scene *scene = scene_new(&config);
	uint64_t one = scene_open(scene, 1000);
	uint64_t two = scene_open(scene, 1001);
	uint64_t admin = scene_open(scene, 0);
	uint64_t model;
	uint32_t request;

	(void)state;
	(void)scene_loaded(scene, one, 1, MIB,
			   (struct scene_load){.policy = {.said = CORE_SAID_PIN, .pin = true}});
	request = scene_set(scene, two, 1, (struct core_policy){.said = CORE_SAID_PIN});
	scene_expect(scene, two, request, WIRE_NOT_FOUND); /* it never presented the file */
	(void)scene_load(scene, two, 1, plain);
	request = scene_set(scene, two, 1, (struct core_policy){.said = CORE_SAID_PIN});
	scene_expect(scene, two, request, 0);
	assert_true(scene_view(scene, 1).is_pinned); /* by the other one still */
	model = scene_model(scene, 1);
	(void)scene_step(scene, (struct core_event){.type = EV_UNLOAD,
						    .client = two,
						    .request = 900,
						    .unload = {.models = &model,
							       .n_models = 1,
							       .by_name = true}});
	assert_int_equal(scene_find(scene, ACT_UNLOAD_ITEM, 0)->unload.outcome, CORE_OUTCOME_KEPT);
	assert_int_equal(scene_find(scene, ACT_UNLOAD_ITEM, 0)->unload.uid, 1000);
	(void)scene_step(scene, (struct core_event){.type = EV_UNLOAD,
						    .client = admin,
						    .request = 901,
						    .unload = {.models = &model,
							       .n_models = 1,
							       .by_name = true}});
	assert_int_equal(scene_find(scene, ACT_UNLOAD_ITEM, 0)->unload.outcome,
			 CORE_OUTCOME_UNLOADED);
	request = scene_set(scene, one, 1,
			    (struct core_policy){.said = CORE_SAID_KEEP,
						 .keep = true,
						 .for_ns = 1000});
	assert_true(scene_view(scene, 1).is_kept);
	tick(scene, scene->now_ns + 1000);
	assert_false(scene_view(scene, 1).is_kept);
	assert_non_null(scene_note(scene, CORE_NOTE_UNKEPT));
	scene_free(scene);
}

static const struct core_action *item_of(const struct scene *scene, uint32_t inode)
{
	return scene_find(scene, ACT_UNLOAD_ITEM, scene_model(scene, inode));
}

static void a_selective_unload_says_what_it_did_with_each(void **state)
{
	const struct core_config config = scene_usual();
	struct scene *scene = scene_new(&config);
	uint64_t client = scene_open(scene, 1000);
	const struct scene_load kept = {.policy = {.said = CORE_SAID_KEEP, .keep = true}};
	const struct scene_load pinned = {.policy = {.said = CORE_SAID_PIN, .pin = true}};
	uint64_t lease;

	(void)state;
	(void)scene_loaded(scene, client, 1, MIB, kept);
	(void)scene_loaded(scene, client, 2, MIB, pinned);
	lease = scene_loaded(scene, client, 3, MIB, attached);
	(void)scene_loaded(scene, client, 4, MIB, plain);
	(void)scene_step(scene, (struct core_event){.type = EV_UNLOAD,
						    .client = client,
						    .request = 900,
						    .unload = {.not_kept = true}});
	assert_int_equal(item_of(scene, 1)->unload.why, CORE_WHY_KEPT);
	assert_int_equal(item_of(scene, 2)->unload.why, CORE_WHY_PINNED);
	assert_int_equal(item_of(scene, 3)->unload.outcome, CORE_OUTCOME_HELD);
	assert_int_equal(item_of(scene, 3)->unload.why, CORE_WHY_IN_USE);
	assert_int_equal(item_of(scene, 4)->unload.outcome, CORE_OUTCOME_UNLOADED);
	assert_int_equal(scene_count(scene, ACT_DROP), 1);
	scene_lease_event(scene, EV_UNMAPPED, client, lease);
	scene_lease_event(scene, EV_DETACH, client, lease); /* and goes with its last lease */
	assert_int_equal(scene_find(scene, ACT_DROP, 0)->model, scene_model(scene, 3));
	scene_free(scene);
}

static void what_lets_go_of_a_model_is_counted(void **state)
{
	const struct core_config config = scene_usual();
	struct scene *scene = scene_new(&config);
	uint64_t client = scene_open(scene, 1000);
	uint64_t leases[2];
	uint64_t before;

	(void)state;
	leases[0] = scene_loaded(scene, client, 1, MIB, attached);
	leases[1] = scene_reply(scene, client, scene_load(scene, client, 1, attached))->reply.lease;
	before = core_n_let_go(scene->core);
	(void)scene_step(scene,
			 (struct core_event){.type = EV_UNLOAD, .client = client, .request = 900});
	scene_lease_event(scene, EV_UNMAPPED, client, leases[0]);
	scene_lease_event(scene, EV_DETACH, client, leases[0]);
	scene_lease_event(scene, EV_UNMAPPED, client, leases[1]);
	assert_true(core_model_is_leased(scene->core, scene_model(scene, 1)));
	assert_int_equal(core_n_let_go(scene->core), before);
	scene_lease_event(scene, EV_DETACH, client, leases[1]);
	assert_false(core_model_is_leased(scene->core, scene_model(scene, 1)));
	assert_int_equal(core_n_let_go(scene->core), before + 1);
	assert_int_equal(core_model_dropping(scene->core, scene_model(scene, 1)), MIB);
	scene_drop_all(scene);
	assert_int_equal(core_n_let_go(scene->core), before + 2);
	scene_free(scene);
}

static void a_pin_after_the_unload_keeps_what_waits_for_its_last_lease(void **state)
{
	const struct core_config config = scene_usual();
	struct scene *scene = scene_new(&config);
	uint64_t client = scene_open(scene, 1000);
	uint64_t lease = scene_loaded(scene, client, 1, MIB, attached);

	(void)state;
	(void)scene_step(scene,
			 (struct core_event){.type = EV_UNLOAD, .client = client, .request = 900});
	(void)scene_set(scene, client, 1, (struct core_policy){.said = CORE_SAID_PIN, .pin = true});
	scene_lease_event(scene, EV_UNMAPPED, client, lease);
	scene_lease_event(scene, EV_DETACH, client, lease);
	assert_int_equal(scene_count(scene, ACT_DROP), 0);
	assert_true(scene_is_resident(scene, 1));
	scene_free(scene);
}

static uint64_t held(const struct scene *scene)
{
	struct core_account_view account;

	core_account_get(scene->core, 0, &account);
	return account.held;
}

/* fault: C05 */
static void bytes_are_held_until_the_process_that_maps_them_is_gone(void **state)
{
	const struct core_config config = scene_usual();
	struct scene *scene = scene_new(&config);
	uint64_t mapper = scene_open(scene, 1000);
	uint64_t other = scene_open(scene, 1000);
	uint32_t request;

	(void)state;
	(void)scene_loaded(scene, mapper, 1, 60 * MIB, attached);
	scene_client_event(scene, EV_CLIENT_CLOSED, mapper);
	assert_int_equal(scene_count(scene, ACT_FORGET_CLIENT), 0);
	(void)scene_load(scene, other, 1, plain);
	request = ask_for(scene, other, 2, 60 * MIB);
	scene_expect(scene, other, request, WIRE_NO_MEMORY); /* dropping it would free nothing */
	(void)scene_step(scene,
			 (struct core_event){.type = EV_UNLOAD, .client = other, .request = 900});
	assert_int_equal(item_of(scene, 1)->unload.outcome, CORE_OUTCOME_HELD);
	assert_int_equal(item_of(scene, 1)->unload.holder, mapper);
	scene_drop_all(scene);
	assert_int_equal(held(scene), 60 * MIB);
	scene_client_event(scene, EV_PROCESS_GONE, mapper);
	assert_int_equal(held(scene), 0);
	assert_non_null(scene_note(scene, CORE_NOTE_FREED));
	assert_non_null(scene_find(scene, ACT_FORGET_CLIENT, 0));
	scene_free(scene);
}

/* fault: M07 */
static void a_bad_copy_is_told_to_its_holders_and_loaded_again(void **state)
{
	const struct core_config config = scene_usual();
	struct scene *scene = scene_new(&config);
	uint64_t client = scene_open(scene, 1000);
	uint64_t lease = scene_loaded(scene, client, 1, MIB, attached);
	uint32_t request = ++scene->last_request;
	struct core_segment_view segment;
	uint32_t cursor = 0;

	(void)state;
	(void)scene_step(scene, (struct core_event){.type = EV_VERIFY,
						    .client = client,
						    .request = request,
						    .verify = {.model = scene_model(scene, 1)}});
	assert_true(core_segment_next(scene->core, 0, &cursor, &segment));
	(void)scene_step(scene, (struct core_event){.type = EV_VERIFIED,
						    .verified = {.segment = segment.id}});
	scene_expect(scene, client, request, WIRE_BAD_FILE);
	assert_int_equal(scene_find(scene, ACT_LOST, 0)->lost.lease, lease);
	assert_int_equal(scene_count(scene, ACT_READ_HEADER), 1);
	(void)scene_step(scene, (struct core_event){.type = EV_ATTACH,
						    .client = client,
						    .request = 900,
						    .attach = {.model = scene_model(scene, 1)}});
	scene_expect(scene, client, 900, WIRE_NOT_RESIDENT);
	scene_header(scene, 1, MIB, 0);
	scene_fill(scene, 1, 0);
	assert_true(scene_is_resident(scene, 1));
	assert_int_equal(scene_view(scene, 1).generation, 2);
	scene_free(scene);
}

/* fault: F31 */
static void a_reused_inode_inherits_no_rights(void **state)
{
	const struct core_config config = scene_usual();
	struct scene *scene = scene_new(&config);
	uint64_t one = scene_open(scene, 1000);
	uint64_t two = scene_open(scene, 1001);
	uint64_t model;

	(void)state;
	(void)scene_loaded(scene, one, 1, MIB, plain);
	(void)scene_step(scene,
			 (struct core_event){.type = EV_UNLOAD, .client = one, .request = 900});
	scene_drop_all(scene);
	model = scene_model(scene, 1);
	scene->keys[1].ctime_ns++; /* all that tells the new file from the old one */
	(void)scene_load(scene, two, 1, plain);
	assert_true(scene_model(scene, 1) != model);
	assert_false(core_client_may(scene->core, one, scene_model(scene, 1)));
	scene_free(scene);
}

static void at_the_end_loads_are_refused_and_those_that_run_end(void **state)
{
	const struct core_config config = scene_usual();
	struct scene *scene = scene_new(&config);
	uint64_t client = scene_open(scene, 1000);
	uint32_t running;
	uint32_t late;

	(void)state;
	(void)scene_loaded(scene, client, 3, MIB, plain);
	running = scene_load(scene, client, 1, plain);
	(void)scene_step(scene, (struct core_event){.type = EV_SHUTDOWN});
	scene_expect(scene, client, running, WIRE_SHUTTING_DOWN);
	late = scene_load(scene, client, 2, plain);
	scene_expect(scene, client, late, WIRE_SHUTTING_DOWN);
	assert_int_equal(scene_count(scene, ACT_CLOSE_FILE), 1);
	(void)scene_step(scene, (struct core_event){.type = EV_VERIFY,
						    .client = client,
						    .request = ++scene->last_request,
						    .verify = {.model = scene_model(scene, 3)}});
	scene_expect(scene, client, scene->last_request, WIRE_SHUTTING_DOWN);
	scene_free(scene);
}

/* Not before, and no more than is above it. */
static void what_a_lowered_budget_left_goes_once_nobody_uses_it(void **state)
{
	const struct core_config config = scene_usual();
	struct scene *scene = scene_new(&config);
	uint64_t client = scene_open(scene, 1000);
	const struct scene_load pinned = {.policy = {.said = CORE_SAID_PIN, .pin = true}};
	uint64_t lease = scene_loaded(scene, client, 1, 10 * MIB, attached);

	(void)state;
	(void)scene_loaded(scene, client, 2, 20 * MIB, pinned);
	(void)scene_loaded(scene, client, 3, 20 * MIB, attached);
	(void)scene_load(scene, client, 4, plain);
	scene_header(scene, 4, 40 * MIB, 0);
	scene_budget(scene, 0, 30 * MIB);
	assert_int_equal(scene_count(scene, ACT_DROP), 0);
	scene_fill(scene, 4, 0); /* those who wanted it are answered */
	assert_int_equal(scene_find(scene, ACT_DROP, 0)->model, scene_model(scene, 4));
	assert_int_equal(scene_note(scene, CORE_NOTE_EVICTED)->note.why, CORE_WHY_BUDGET);
	(void)scene_set(scene, client, 2, (struct core_policy){.said = CORE_SAID_PIN});
	assert_int_equal(scene_find(scene, ACT_DROP, 0)->model, scene_model(scene, 2));
	scene_drop_all(scene);
	scene_lease_event(scene, EV_DETACH, client, lease);
	assert_int_equal(scene_count(scene, ACT_DROP), 0); /* 30 MiB fit */
	assert_true(scene_is_resident(scene, 1));
	scene_free(scene);
}

static bool is_pinned(struct scene *scene, uint32_t inode)
{
	assert_true(scene_model(scene, inode) != 0);
	return scene_view(scene, inode).is_pinned;
}

static void fail_header(struct scene *scene, uint32_t inode)
{
	const uint64_t job = scene_view(scene, inode).job;

	assert_true(job != 0);
	(void)scene_step(scene, (struct core_event){.type = EV_HEADER_READ,
						    .header = {.job = job, .code = WIRE_BAD_FILE}});
	assert_int_equal(scene_view(scene, inode).job, 0);
}

static void what_a_load_that_fails_says_is_not_said(void **state)
{
	const struct core_config config = scene_usual();
	const struct scene_load pinning = {.policy = {.said = CORE_SAID_PIN, .pin = true}};
	const struct scene_load dear = {.policy = {.said = CORE_SAID_PRIORITY, .priority = 10}};
	const struct scene_load unasked = {.policy = pinning.policy, .no_wait = true};
	struct scene *scene = scene_new(&config);
	uint64_t client = scene_open(scene, 1000);
	uint64_t other = scene_open(scene, 1001);

	(void)state;
	(void)scene_load(scene, client, 1, pinning); /* several of one load, by one or several */
	(void)scene_load(scene, client, 1, dear);
	(void)scene_load(scene, client, 1, pinning);
	(void)scene_load(scene, other, 1, pinning);
	assert_true(is_pinned(scene, 1));
	fail_header(scene, 1);
	assert_false(is_pinned(scene, 1));
	assert_int_equal(scene_view(scene, 1).priority, 0);
	assert_non_null(scene_note(scene, CORE_NOTE_UNPINNED));
	assert_non_null(scene_find(scene, ACT_RECORD_WISH, 0));
	(void)scene_load(scene, client, 1, unasked);
	fail_header(scene, 1);
	assert_false(is_pinned(scene, 1));
	scene_expect(scene, client, ask_for(scene, client, 1, 101 * MIB), WIRE_NO_MEMORY);
	scene_free(scene);
}

static void what_was_said_before_or_granted_stays_when_a_load_fails(void **state)
{
	const struct core_config config = scene_usual();
	const struct core_policy pin = {.said = CORE_SAID_PIN, .pin = true};
	const struct scene_load pinning = {.policy = pin};
	const struct scene_load elsewhere = {.policy = pin, .placement = 2};
	struct scene *scene = scene_new(&config);
	uint64_t client = scene_open(scene, 1000);

	(void)state;
	(void)scene_load(scene, client, 1, pinning);
	(void)scene_set(scene, client, 1, pin); /* was granted meanwhile */
	fail_header(scene, 1);
	assert_true(is_pinned(scene, 1));
	(void)scene_load(scene, client, 1, pinning); /* was pinned before */
	fail_header(scene, 1);
	assert_true(is_pinned(scene, 1));
	(void)scene_loaded(scene, client, 2, MIB, pinning);
	(void)scene_load(scene, client, 2, elsewhere);
	fail_header(scene, 2);
	assert_true(is_pinned(scene, 2));
	(void)scene_loaded(scene, client, 3, MIB, plain); /* resident, and not asked to stay */
	(void)scene_load(scene, client, 3, elsewhere);
	fail_header(scene, 3);
	assert_true(scene_is_resident(scene, 3));
	assert_false(is_pinned(scene, 3));
	scene_free(scene);
}

/* Refused at once: no place in a table. */
static void what_is_refused_before_it_begins_says_nothing(void **state)
{
	struct core_config config = scene_usual();
	const struct scene_load pinning = {.policy = {.said = CORE_SAID_PIN, .pin = true},
					   .attach = true};
	struct scene *scene;
	uint64_t client;
	uint32_t request;

	(void)state;
	config.max_queued_per_uid = config.max_leases = config.loads_per_uid = 1;
	scene = scene_new(&config);
	client = scene_open(scene, 1000);
	(void)scene_loaded(scene, client, 1, MIB, attached);
	request = scene_load(scene, client, 1, pinning); /* no lease is left */
	scene_expect(scene, client, request, WIRE_TOO_MANY);
	assert_false(is_pinned(scene, 1));
	(void)scene_load(scene, client, 2, plain);
	(void)scene_load(scene, client, 3, plain);
	request = scene_load(scene, client, 4, pinning); /* nor a place to wait for its turn */
	scene_expect(scene, client, request, WIRE_TOO_MANY);
	assert_false(is_pinned(scene, 4));
	scene_free(scene);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(nothing_is_evicted_for_a_load_that_cannot_succeed),
		cmocka_unit_test(the_longest_idle_goes_first_unless_its_priority_is_higher),
		cmocka_unit_test(what_took_long_to_load_stays_longer),
		cmocka_unit_test(victims_that_are_not_needed_are_spared),
		cmocka_unit_test(what_is_leased_or_pinned_is_never_a_victim),
		cmocka_unit_test(a_lowered_budget_takes_what_is_idle_and_leaves_the_rest),
		cmocka_unit_test(a_time_without_use_runs_out_at_the_named_moment),
		cmocka_unit_test(wishes_belong_to_a_uid_and_lapse),
		cmocka_unit_test(a_selective_unload_says_what_it_did_with_each),
		cmocka_unit_test(a_pin_after_the_unload_keeps_what_waits_for_its_last_lease),
		cmocka_unit_test(bytes_are_held_until_the_process_that_maps_them_is_gone),
		cmocka_unit_test(a_bad_copy_is_told_to_its_holders_and_loaded_again),
		cmocka_unit_test(a_reused_inode_inherits_no_rights),
		cmocka_unit_test(at_the_end_loads_are_refused_and_those_that_run_end),
		cmocka_unit_test(what_a_lowered_budget_left_goes_once_nobody_uses_it),
		cmocka_unit_test(what_a_load_that_fails_says_is_not_said),
		cmocka_unit_test(what_was_said_before_or_granted_stays_when_a_load_fails),
		cmocka_unit_test(what_is_refused_before_it_begins_says_nothing),
		cmocka_unit_test(what_lets_go_of_a_model_is_counted),
	};

	return cmocka_run_group_tests_name("daemon/core/policy", tests, NULL, NULL);
}
