/* SPDX-License-Identifier: Apache-2.0 */
/* What one uid can take from the others, and what full tables cost: little. */
#include "tests/unit/daemon/core/scene.h"

#include <time.h>

#include "daemon/core/state.h"

static const struct scene_load plain;
static const struct scene_load attached = {.attach = true, .map = true};
static const struct scene_load unwaited = {.no_wait = true};
static const struct scene_load pinned = {.policy = {.said = CORE_SAID_PIN, .pin = true}};

static void expect_limit(const struct scene *scene, uint64_t client, uint32_t request,
			 enum core_limit limit, uint64_t number)
{
	scene_expect(scene, client, request, WIRE_TOO_MANY);
	assert_int_equal(scene_reply(scene, client, request)->too_many.limit, limit);
	assert_int_equal(scene_reply(scene, client, request)->too_many.number, number);
}

static void one_uid_queues_only_so_many_loads(void **state)
{
	struct core_config config = scene_usual();
	struct scene *scene;
	uint64_t client;
	uint64_t other;
	uint32_t request;

	(void)state;
	config.loads_per_uid = 1;
	config.max_queued_per_uid = 3;
	scene = scene_new(&config);
	client = scene_open(scene, 1000);
	other = scene_open(scene, 1001);
	for (uint32_t inode = 1; inode <= 4; inode++) {
		request = scene_load(scene, client, inode, unwaited);
		scene_expect(scene, client, request, 0);
	}
	request = scene_load(scene, client, 5, unwaited);
	expect_limit(scene, client, request, CORE_LIMIT_USER_QUEUED, 3);
	assert_int_equal(scene_count(scene, ACT_CLOSE_FILE), 1);
	request = scene_load(scene, other, 6, unwaited);
	scene_expect(scene, other, request, 0);
	assert_non_null(scene_find(scene, ACT_READ_HEADER, scene_model(scene, 6)));
	/* The first ends: the next one begins, in the order of their coming. */
	scene_header(scene, 1, MIB, 0);
	scene_fill(scene, 1, 0);
	assert_non_null(scene_find(scene, ACT_READ_HEADER, scene_model(scene, 2)));
	request = scene_load(scene, client, 5, unwaited);
	scene_expect(scene, client, request, 0);
	scene_free(scene);
}

/* Clients that close their connection and still map something keep their place. */
static void one_uid_has_only_so_many_clients_ghosts_included(void **state)
{
	struct core_config config = scene_usual();
	struct scene *scene;
	uint64_t clients[4];
	uint64_t number;

	(void)state;
	config.max_clients = 6;
	config.reserved_clients = 1;
	config.max_clients_per_uid = 4;
	scene = scene_new(&config);
	for (uint32_t i = 0; i < 4; i++) {
		clients[i] = scene_open(scene, 1000);
		if (i == 0) {
			(void)scene_loaded(scene, clients[0], 1, MIB, attached);
		} else {
			(void)scene_load(scene, clients[i], 1, attached);
		}
		scene_client_event(scene, EV_CLIENT_CLOSED, clients[i]);
	}
	assert_int_equal(scene_step(scene, (struct core_event){.type = EV_CLIENT_OPENED,
							       .opened = {.uid = 1000}}),
			 0);
	assert_int_equal(core_client_limit(scene->core, 1000, false, &number),
			 CORE_LIMIT_USER_CLIENTS);
	assert_int_equal(number, 4);
	(void)scene_open(scene, 1001);
	/* The last place is for an administrator. */
	assert_int_equal(scene_step(scene, (struct core_event){.type = EV_CLIENT_OPENED,
							       .opened = {.uid = 1002}}),
			 0);
	assert_int_equal(core_client_limit(scene->core, 1002, false, &number), CORE_LIMIT_CLIENTS);
	(void)scene_open(scene, 0);
	scene_client_event(scene, EV_PROCESS_GONE, clients[1]);
	scene_client_event(scene, EV_PROCESS_GONE, clients[2]);
	(void)scene_open(scene, 1000);
	scene_free(scene);
}

/* Who is back after a restart was let in before it: his bytes are held whatever the bounds say. */
static void who_is_back_is_let_in(void **state)
{
	struct core_config config = scene_usual();
	struct scene *scene;

	(void)state;
	config.max_clients_per_uid = 1;
	scene = scene_new(&config);
	(void)scene_open(scene, 1000);
	assert_int_not_equal(scene_step(scene, (struct core_event){.type = EV_CLIENT_OPENED,
								   .opened = {.uid = 1000,
									      .is_back = true}}),
			     0);
	scene_free(scene);
}

static void one_uid_has_only_so_many_leases(void **state)
{
	struct core_config config = scene_usual();
	struct scene *scene;
	uint64_t client;
	uint64_t other;
	uint64_t lease;
	uint32_t request;

	(void)state;
	config.max_leases_per_uid = 2;
	scene = scene_new(&config);
	client = scene_open(scene, 1000);
	other = scene_open(scene, 1001);
	lease = scene_loaded(scene, client, 1, MIB, attached);
	(void)scene_load(scene, client, 1, attached);
	request = scene_load(scene, client, 1, attached);
	expect_limit(scene, client, request, CORE_LIMIT_USER_LEASES, 2);
	request = scene_load(scene, other, 1, attached);
	scene_expect(scene, other, request, 0);
	scene_lease_event(scene, EV_DETACH, client, lease);
	request = scene_load(scene, client, 1, attached);
	scene_expect(scene, client, request, 0);
	scene_free(scene);
}

static struct core_config few_models(void)
{
	struct core_config config = scene_usual();

	config.max_models = 8;
	config.max_models_per_uid = 4;
	return config;
}

static void an_idle_model_gives_its_place_to_another(void **state)
{
	const struct core_config config = few_models();
	struct scene *scene = scene_new(&config);
	uint64_t users[3] = {scene_open(scene, 1000), scene_open(scene, 1001),
			     scene_open(scene, 1002)};
	uint64_t oldest;
	uint32_t request;

	(void)state;
	for (uint32_t i = 0; i < 8; i++) {
		(void)scene_loaded(scene, users[i / 4], 1 + i, MIB, plain);
	}
	oldest = scene_model(scene, 1);
	request = scene_load(scene, users[2], 20, plain);
	assert_null(scene_reply(scene, users[2], request)); /* under way */
	assert_int_equal(scene_count(scene, ACT_DROP), 1);
	assert_int_equal(scene_find(scene, ACT_DROP, 0)->model, oldest);
	assert_int_equal(scene_note(scene, CORE_NOTE_EVICTED)->note.why, CORE_WHY_ROOM);
	scene_drop_all(scene);
	assert_non_null(scene_find(scene, ACT_FORGET_MODEL, oldest));
	assert_int_equal(scene_model(scene, 1), 0);
	scene_header(scene, 20, MIB, 0);
	scene_fill(scene, 20, 0);
	scene_expect(scene, users[2], request, 0);
	scene_free(scene);
}

static void what_is_kept_gives_its_place_last_and_what_is_pinned_never(void **state)
{
	const struct core_config config = few_models();
	const struct scene_load kept = {.policy = {.said = CORE_SAID_KEEP, .keep = true}};
	struct scene *scene = scene_new(&config);
	uint64_t users[3] = {scene_open(scene, 1000), scene_open(scene, 1001),
			     scene_open(scene, 1002)};
	uint32_t request;

	(void)state;
	(void)scene_loaded(scene, users[0], 1, MIB, kept);
	(void)scene_loaded(scene, users[0], 2, MIB, plain);
	for (uint32_t i = 3; i <= 8; i++) {
		(void)scene_loaded(scene, users[i > 4], i, MIB, pinned);
	}
	(void)scene_load(scene, users[2], 20, pinned);
	assert_int_equal(scene_find(scene, ACT_DROP, 0)->model, scene_model(scene, 2));
	scene_drop_all(scene);
	(void)scene_load(scene, users[2], 21, pinned);
	assert_int_equal(scene_find(scene, ACT_DROP, 0)->model, scene_model(scene, 1));
	scene_drop_all(scene);
	request = scene_load(scene, users[2], 22, plain);
	expect_limit(scene, users[2], request, CORE_LIMIT_MODELS, 8);
	scene_free(scene);
}

/* One that pins all it can leaves the others their places. */
static void one_uid_does_not_fill_the_table(void **state)
{
	const struct core_config config = few_models();
	struct scene *scene = scene_new(&config);
	uint64_t client = scene_open(scene, 1000);
	uint64_t other = scene_open(scene, 1001);
	uint32_t request;

	(void)state;
	for (uint32_t i = 1; i <= 4; i++) {
		(void)scene_loaded(scene, client, i, MIB, pinned);
	}
	request = scene_load(scene, client, 5, pinned);
	expect_limit(scene, client, request, CORE_LIMIT_USER_MODELS, 4);
	for (uint32_t i = 11; i <= 14; i++) {
		(void)scene_loaded(scene, other, i, MIB, plain);
	}
	/* Its own idle ones make way for its next, as long as not too many are on their way out. */
	(void)scene_load(scene, other, 15, unwaited);
	assert_int_equal(scene_find(scene, ACT_DROP, 0)->model, scene_model(scene, 11));
	request = scene_load(scene, other, 16, unwaited);
	expect_limit(scene, other, request, CORE_LIMIT_USER_MODELS, 4);
	scene_drop_all(scene);
	request = scene_load(scene, other, 16, unwaited);
	scene_expect(scene, other, request, 0);
	scene_free(scene);
}

static void one_that_leaves_stays_when_it_is_loaded_again(void **state)
{
	const struct core_config config = few_models();
	struct scene *scene = scene_new(&config);
	uint64_t client = scene_open(scene, 1000);
	uint32_t request;

	(void)state;
	for (uint32_t i = 1; i <= 4; i++) {
		(void)scene_loaded(scene, client, i, MIB, plain);
	}
	(void)scene_load(scene, client, 5, unwaited);
	assert_int_equal(scene_find(scene, ACT_DROP, 0)->model, scene_model(scene, 1));
	request = scene_load(scene, client, 1, plain);
	scene_drop_all(scene);
	assert_null(scene_find(scene, ACT_FORGET_MODEL, 0));
	scene_header(scene, 1, MIB, 0);
	scene_fill(scene, 1, 0);
	scene_expect(scene, client, request, 0);
	scene_free(scene);
}

static void bytes_are_held_once_by_a_client(void **state)
{
	const struct core_config config = scene_usual();
	struct scene *scene = scene_new(&config);
	uint64_t client = scene_open(scene, 1000);
	uint64_t lease = scene_loaded(scene, client, 1, 10 * MIB, attached);
	struct core_client_view view;
	struct core_holder_view holder;
	uint32_t cursor = 0;

	(void)state;
	(void)scene_load(scene, client, 1, attached);
	(void)scene_load(scene, client, 1, (struct scene_load){.attach = true});
	(void)scene_loaded(scene, client, 2, MIB, attached);
	assert_true(core_client_get(scene->core, client, &view));
	assert_int_equal(view.held_bytes, 11 * MIB);
	assert_int_equal(view.n_leases, 4);
	assert_true(core_holder_next(scene->core, scene_model(scene, 1), &cursor, &holder));
	assert_int_equal(holder.client, client);
	assert_int_equal(holder.bytes, 10 * MIB);
	assert_int_equal(holder.n_leases, 3);
	assert_false(core_holder_next(scene->core, scene_model(scene, 1), &cursor, &holder));
	scene_lease_event(scene, EV_UNMAPPED, client, lease);
	assert_true(core_client_get(scene->core, client, &view));
	assert_int_equal(view.held_bytes, 11 * MIB); /* the other lease maps them still */
	scene_free(scene);
}

/* A walk meets the parts of one model, all of them, and none of another's. */
static void a_walk_over_one_models_parts_ends_with_them(void **state)
{
	const struct core_config config = scene_usual();
	struct scene *scene = scene_new(&config);
	uint64_t users[3] = {scene_open(scene, 1000), scene_open(scene, 1001),
			     scene_open(scene, 1002)};
	struct core_wish_view wish;
	struct core_segment_view segment;
	uint32_t cursor = 0;
	uint32_t n_seen = 0;

	(void)state;
	(void)scene_loaded(scene, users[0], 1, MIB, plain);
	(void)scene_loaded(scene, users[0], 2, MIB, plain);
	for (uint32_t i = 1; i < 3; i++) {
		(void)scene_load(scene, users[i], 1, plain);
	}
	(void)scene_load(scene, users[1], 2, plain);
	while (core_wish_next(scene->core, scene_model(scene, 1), &cursor, &wish)) {
		assert_int_equal(wish.uid, 1000 + n_seen++);
	}
	assert_int_equal(n_seen, 3);
	cursor = 0;
	assert_true(core_segment_next(scene->core, scene_model(scene, 2), &cursor, &segment));
	assert_int_equal(segment.model, scene_model(scene, 2));
	assert_false(core_segment_next(scene->core, scene_model(scene, 2), &cursor, &segment));
	cursor = 0;
	assert_false(core_segment_next(scene->core, 12345, &cursor, &segment));
	scene_free(scene);
}

static const struct core_action *unload(struct scene *scene, uint64_t client, uint32_t inode)
{
	uint64_t models[2] = {scene_model(scene, inode), scene_model(scene, inode)};

	(void)scene_step(scene, (struct core_event){.type = EV_UNLOAD,
						    .client = client,
						    .request = ++scene->last_request,
						    .unload = {.models = models,
							       .n_models = 2,
							       .by_name = true}});
	assert_int_equal(scene_count(scene, ACT_UNLOAD_ITEM), 1); /* named twice, told once */
	return scene_find(scene, ACT_UNLOAD_ITEM, models[0]);
}

static void another_uids_time_keeps_the_copy_until_it_is_over(void **state)
{
	const struct core_config config = scene_usual();
	struct scene *scene = scene_new(&config);
	uint64_t client = scene_open(scene, 1000);
	uint64_t other = scene_open(scene, 1001);
	const struct scene_load an_hour = {
		.policy = {.said = CORE_SAID_TTL, .ttl_ns = 3600000000000U}};
	const struct core_action *line;

	(void)state;
	(void)scene_loaded(scene, client, 1, MIB, plain);
	(void)scene_load(scene, other, 1, an_hour);
	line = unload(scene, client, 1);
	assert_int_equal(line->unload.outcome, CORE_OUTCOME_KEPT);
	assert_int_equal(line->unload.why, CORE_WHY_WANTED);
	assert_int_equal(line->unload.uid, 1001);
	assert_true(scene_is_resident(scene, 1));
	(void)scene_set(scene, other, 1,
			(struct core_policy){.said = CORE_SAID_TTL | CORE_SAID_PRIORITY,
					     .priority = 5});
	line = unload(scene, client, 1);
	assert_int_equal(line->unload.why, CORE_WHY_WANTED);
	(void)scene_set(scene, other, 1, (struct core_policy){.said = CORE_SAID_PRIORITY});
	line = unload(scene, client, 1);
	assert_int_equal(line->unload.outcome, CORE_OUTCOME_UNLOADED);
	scene_free(scene);
}

static void an_own_time_goes_with_the_unload(void **state)
{
	const struct core_config config = scene_usual();
	struct scene *scene = scene_new(&config);
	uint64_t client = scene_open(scene, 1000);
	const struct scene_load an_hour = {
		.policy = {.said = CORE_SAID_TTL, .ttl_ns = 3600000000000U}};

	(void)state;
	(void)scene_loaded(scene, client, 1, MIB, an_hour);
	assert_int_equal(unload(scene, client, 1)->unload.outcome, CORE_OUTCOME_UNLOADED);
	scene_free(scene);
}

static void a_cancelled_verify_is_answered_once_for_all_its_models(void **state)
{
	const struct core_config config = scene_usual();
	struct scene *scene = scene_new(&config);
	uint64_t client = scene_open(scene, 1000);

	(void)state;
	for (uint32_t inode = 1; inode <= 3; inode++) {
		(void)scene_loaded(scene, client, inode, MIB, plain);
	}
	for (uint32_t inode = 1; inode <= 3; inode++) {
		(void)scene_step(scene,
				 (struct core_event){.type = EV_VERIFY,
						     .client = client,
						     .request = 77,
						     .verify = {
							     .model = scene_model(scene, inode)}});
	}
	(void)scene_step(scene, (struct core_event){.type = EV_CANCEL,
						    .client = client,
						    .request = 78,
						    .cancel = {.request = 77}});
	assert_int_equal(scene_count(scene, ACT_REPLY), 2);
	scene_expect(scene, client, 77, WIRE_CANCELLED);
	assert_int_equal(scene_reply(scene, client, 77)->model, 0);
	scene_expect(scene, client, 78, 0);
	scene_free(scene);
}

static void who_does_not_wait_cannot_ask_for_a_lease(void **state)
{
	const struct core_config config = scene_usual();
	struct scene *scene = scene_new(&config);
	uint64_t client = scene_open(scene, 1000);
	uint32_t request =
		scene_load(scene, client, 1, (struct scene_load){.no_wait = true, .attach = true});

	(void)state;
	scene_expect(scene, client, request, WIRE_BAD_ARGUMENT);
	assert_int_equal(scene_count(scene, ACT_CLOSE_FILE), 1);
	assert_int_equal(scene_model(scene, 1), 0);
	scene_free(scene);
}

/* Whatever the order they are said in, the soonest is the one that the core asks to be woken for. */
static void the_soonest_of_many_moments_is_named(void **state)
{
	const struct core_config config = scene_usual();
	struct scene *scene = scene_new(&config);
	uint64_t client = scene_open(scene, 1000);
	uint64_t begun_ns;

	(void)state;
	for (uint32_t inode = 1; inode < 30; inode++) {
		(void)scene_loaded(scene, client, inode, MIB, plain);
	}
	begun_ns = scene->now_ns;
	for (uint32_t inode = 1; inode < 30; inode++) {
		const struct core_policy policy = {.said = CORE_SAID_PIN,
						   .pin = true,
						   .for_ns = 1000 + inode * 37 % 29};

		(void)scene_set(scene, client, inode, policy);
	}
	for (uint32_t i = 0; i < 29; i++) {
		assert_int_equal(scene->next_deadline_ns, begun_ns + 1000 + i);
		scene->now_ns = scene->next_deadline_ns;
		(void)scene_step(scene, (struct core_event){.type = EV_TICK});
		assert_int_equal(scene_note(scene, CORE_NOTE_UNPINNED)->note.note,
				 CORE_NOTE_UNPINNED);
	}
	assert_int_equal(scene->next_deadline_ns, UINT64_MAX);
	scene_free(scene);
}

static uint32_t next_random(uint64_t *seed)
{
	*seed = *seed * 6364136223846793005U + 1442695040888963407U;
	return (uint32_t)(*seed >> 33);
}

static uint64_t soonest_of(const struct timer *timers, size_t n_timers)
{
	uint64_t soonest_ns = NEVER;

	for (size_t i = 0; i < n_timers; i++) {
		soonest_ns = timers[i].at_ns < soonest_ns ? timers[i].at_ns : soonest_ns;
	}
	return soonest_ns;
}

/* Set, set again and stopped in any order, then stopped as they become due. */
static void timers_know_the_soonest_whatever_was_set_or_stopped(void **state)
{
	struct timer timers[50] = {{0}};
	struct timer *heap[50];
	struct timers all = {.heap = heap, .capacity = 50};
	uint64_t seed = 1;

	(void)state;
	for (size_t i = 0; i < 50; i++) {
		timers[i].at_ns = NEVER;
	}
	for (uint32_t round = 0; round < 500; round++) {
		for (uint32_t n = 0; n < 120; n++) {
			struct timer *timer = &timers[next_random(&seed) % 50];
			bool is_stopped = n > 60 && next_random(&seed) % 2 == 0;

			timer_set(&all, timer, is_stopped ? NEVER : next_random(&seed) % 1000);
			assert_int_equal(timer_deadline(&all), soonest_of(timers, 50));
		}
		while (timer_first(&all) != NULL) {
			assert_int_equal(timer_deadline(&all), soonest_of(timers, 50));
			timer_set(&all, timer_first(&all), NEVER);
		}
		assert_int_equal(soonest_of(timers, 50), NEVER);
	}
}

/* Without core_check, which looks at everything. */
static void step(struct core *core, struct core_event event)
{
	struct core_update update;

	do {
		core_step(core, &event, &update);
		event.type = EV_CONTINUE;
	} while (update.again);
}

static void load(struct core *core, uint64_t client, uint64_t inode)
{
	static const uint8_t fresh_id[16];
	static const struct core_policy policy = {.said = CORE_SAID_KEEP,
						  .keep = true,
						  .for_ns = 3600000000000U};
	struct core_file_key key = {.dev = 1, .ino = inode, .size = 100};

	step(core, (struct core_event){.type = EV_LOAD,
				       .client = client,
				       .request = 1,
				       .load = {.file = 1 + inode,
						.key = &key,
						.fresh_id = fresh_id,
						.policy = &policy,
						.no_wait = true}});
}

static void finish_load(struct core *core, uint64_t inode)
{
	const struct core_need need = {.device = 0, .bytes = 4096};
	struct core_file_key key = {.dev = 1, .ino = inode, .size = 100};
	uint64_t model = core_model_find(core, &key);
	struct core_segment_view segment;
	struct core_model_view view;
	uint32_t cursor = 0;

	assert_true(core_model_get(core, model, &view));
	step(core, (struct core_event){.type = EV_HEADER_READ,
				       .header = {.job = view.job,
						  .key = &key,
						  .needs = &need,
						  .n_needs = 1}});
	assert_true(core_segment_next(core, model, &cursor, &segment));
	step(core, (struct core_event){.type = EV_FILLED, .filled = {.segment = segment.id}});
}

/* Work that grew with the tables in each step took minutes here; it takes a fraction of a second
 * (tests/bench/core_step.c tells how much), and twenty times that where every access is checked. */
static void full_tables_cost_a_step_little(void **state)
{
	const struct core_config config = {.max_clients = 8,
					   .max_models = 8192,
					   .max_segments = 65536,
					   .max_leases = 1024,
					   .max_waiters = 1024,
					   .max_wishes = 32768,
					   .n_devices = 1,
					   .loads_per_uid = 1};
	void *memory = calloc(1, core_size(&config));
	struct core *core;
	struct core_update update;
	struct core_event opened = {.type = EV_CLIENT_OPENED};
	clock_t begun = clock();

	(void)state;
	assert_non_null(memory);
	core = core_init(memory, &config);
	step(core, (struct core_event){.type = EV_BUDGET, .budget = {.bytes = 4096ULL * 4096}});
	core_step(core, &opened, &update);
	for (uint32_t inode = 0; inode < 4096; inode++) {
		load(core, update.ret_id, inode);
		finish_load(core, inode);
	}
	for (uint32_t inode = 0; inode < 3000; inode++) {
		load(core, update.ret_id, 5000 + inode);
	}
	for (uint32_t i = 0; i < 20000; i++) {
		step(core, (struct core_event){.type = EV_TICK});
	}
	assert_true((clock() - begun) / CLOCKS_PER_SEC < 10);
	assert_null(core_check(core));
	free(memory);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(one_uid_queues_only_so_many_loads),
		cmocka_unit_test(one_uid_has_only_so_many_clients_ghosts_included),
		cmocka_unit_test(who_is_back_is_let_in),
		cmocka_unit_test(one_uid_has_only_so_many_leases),
		cmocka_unit_test(an_idle_model_gives_its_place_to_another),
		cmocka_unit_test(what_is_kept_gives_its_place_last_and_what_is_pinned_never),
		cmocka_unit_test(one_uid_does_not_fill_the_table),
		cmocka_unit_test(one_that_leaves_stays_when_it_is_loaded_again),
		cmocka_unit_test(bytes_are_held_once_by_a_client),
		cmocka_unit_test(a_walk_over_one_models_parts_ends_with_them),
		cmocka_unit_test(another_uids_time_keeps_the_copy_until_it_is_over),
		cmocka_unit_test(an_own_time_goes_with_the_unload),
		cmocka_unit_test(a_cancelled_verify_is_answered_once_for_all_its_models),
		cmocka_unit_test(who_does_not_wait_cannot_ask_for_a_lease),
		cmocka_unit_test(the_soonest_of_many_moments_is_named),
		cmocka_unit_test(timers_know_the_soonest_whatever_was_set_or_stopped),
		cmocka_unit_test(full_tables_cost_a_step_little),
	};

	return cmocka_run_group_tests_name("daemon/core/limits", tests, NULL, NULL);
}
