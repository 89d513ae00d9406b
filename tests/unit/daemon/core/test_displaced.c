/* SPDX-License-Identifier: Apache-2.0 */
/* What had to go for a reservation comes back. */
#include "tests/unit/daemon/core/room.h"

static const struct scene_load plain;

/* The token of one that took all of the device, from those who do not use it. */
static uint64_t take_all(struct scene *scene, uint64_t client, uint32_t device)
{
	uint32_t request =
		reserve(scene, client, (struct asked){.bytes = 98 * MIB, .device = device});

	scene_drop_all(scene);
	scene_expect(scene, client, request, 0);
	return scene_reply(scene, client, request)->reply.lease;
}

/* In whatever order they end: with the last that is in the way. */
static void what_several_displaced_comes_back(void **state)
{
	const struct core_config config = placed_config();

	(void)state;
	for (int order = 0; order < 2; order++) {
		struct scene *scene = scene_new(&config);
		uint64_t client = scene_open(scene, 1000);
		uint64_t tokens[2];

		(void)placed_loaded(scene, client, 1, "1122", plain);
		tokens[0] = take_all(scene, client, 1);
		tokens[1] = take_all(scene, client, 2);
		assert_int_equal(scene_view(scene, 1).state, CORE_MODEL_REGISTERED);
		release(scene, client, tokens[order]);
		placed_header(scene, 1, false); /* there is no room yet */
		assert_int_equal(scene_view(scene, 1).job, 0);
		assert_true(scene_view(scene, 1).file != 0);
		release(scene, client, tokens[1 - order]);
		placed_finish(scene, 1, false);
		placed_assert(scene, 1, "1122");
		release(scene, client, tokens[0]);
		scene_free(scene);
	}
}

/* All four blocks of the first had to go, one for the room itself and three for the second model,
 * which lies there when the room ends: then three have room. */
static struct scene *crowded(uint64_t *ret_client)
{
	const struct core_config config = placed_config();
	struct scene *scene = scene_new(&config);
	uint32_t request;
	uint64_t token;

	*ret_client = scene_open(scene, 1000);
	scene_budget(scene, 1, 6 * BLOCK);
	(void)placed_loaded(scene, *ret_client, 1, "1111", plain);
	request = reserve(scene, *ret_client, (struct asked){.bytes = 3 * BLOCK, .device = 1});
	scene_drop_all(scene);
	token = scene_reply(scene, *ret_client, request)->reply.lease;
	request = scene_load(scene, *ret_client, 2,
			     (struct scene_load){.placement = placed_as("1110")});
	placed_header(scene, 2, false);
	scene_drop_all(scene);
	scene_fill(scene, 2, 0);
	placed_tabled(scene, 2, 0);
	scene_expect(scene, *ret_client, request, 0);
	release(scene, *ret_client, token);
	assert_int_not_equal(scene_view(scene, 1).job, 0);
	assert_null(scene_note(scene, CORE_NOTE_LOAD_BEGUN)); /* it may have no room */
	return scene;
}

/* It is tried again after a while, which doubles: within two minutes. */
static void let_retry(struct scene *scene)
{
	assert_true(scene->next_deadline_ns > scene->now_ns);
	assert_true(scene->next_deadline_ns <= scene->now_ns + 120ULL * ONE_SECOND);
	scene->now_ns = scene->next_deadline_ns;
	(void)scene_step(scene, (struct core_event){.type = EV_TICK});
}

/* Tried, in vain, and nobody is told. */
static void return_in_vain(struct scene *scene)
{
	assert_int_not_equal(scene_view(scene, 1).job, 0);
	placed_header(scene, 1, false);
	assert_int_equal(scene_view(scene, 1).job, 0);
	assert_int_not_equal(scene_view(scene, 1).state, CORE_MODEL_FAILED);
	assert_null(scene_note(scene, CORE_NOTE_LOAD_BEGUN));
	assert_null(scene_note(scene, CORE_NOTE_REFUSED));
	assert_null(scene_note(scene, CORE_NOTE_EVICTED));
}

static void what_comes_back_takes_nothing_from_others(void **state)
{
	(void)state;
	for (int how = 0; how < 2; how++) {
		uint64_t client;
		struct scene *scene = crowded(&client);
		uint64_t tried_ns = scene->now_ns;

		for (int i = 0; i < 7; i++) {
			return_in_vain(scene);
			tried_ns = scene->now_ns;
			let_retry(scene);
		}
		assert_true(scene->now_ns >= tried_ns + 60ULL * ONE_SECOND);
		placed_assert(scene, 2, "1110");
		if (how == 0) {
			scene_budget(scene, 1, 7 * BLOCK); /* others have left it */
		} else {
			unload(scene, client, 2);
			scene_drop_all(scene);
		}
		placed_header(scene, 1, false);
		assert_int_equal(scene_note(scene, CORE_NOTE_LOAD_BEGUN)->note.why,
				 CORE_WHY_RESERVED);
		scene_fill(scene, 1, 0);
		placed_tabled(scene, 1, 0);
		placed_assert(scene, 1, "1111");
		assert_int_equal(scene_view(scene, 2).job, 0);
		scene_free(scene);
	}
}

/* As its device says, which has less than its account: whoever held the room has not left yet. */
static void what_comes_back_and_is_refused_by_its_device_takes_nothing_either(void **state)
{
	const struct core_config config = placed_config();
	struct scene *scene = scene_new(&config);
	uint64_t client = scene_open(scene, 1000);
	uint32_t request;

	(void)state;
	scene_budget(scene, 1, 9 * BLOCK);
	(void)placed_loaded(scene, client, 1, "1111", plain);
	(void)placed_loaded(scene, client, 2, "1111", plain);
	request = reserve(scene, client, (struct asked){.bytes = 3 * BLOCK, .device = 1});
	scene_drop_all(scene);
	release(scene, client, scene_reply(scene, client, request)->reply.lease);
	placed_header(scene, 1, false);
	scene_fill(scene, 1, WIRE_NO_MEMORY);
	assert_null(scene_note(scene, CORE_NOTE_EVICTED));
	placed_assert(scene, 2, "1111");
	scene_drop_all(scene); /* its own copies, which make no room */
	assert_int_equal(scene_view(scene, 1).job, 0);
	let_retry(scene);
	placed_finish(scene, 1, false);
	placed_assert(scene, 1, "1111");
	scene_free(scene);
}

/* And so it does where the room never came. */
static void what_a_cancelled_one_displaced_comes_back(void **state)
{
	const struct core_config config = placed_config();
	struct scene *scene = scene_new(&config);
	uint64_t client = scene_open(scene, 1000);
	uint32_t request;

	(void)state;
	scene_budget(scene, 1, 6 * BLOCK);
	(void)placed_loaded(scene, client, 1, "1111", plain);
	request = reserve(scene, client, (struct asked){.bytes = 3 * BLOCK, .device = 1});
	(void)scene_step(scene, (struct core_event){.type = EV_CANCEL,
						    .client = client,
						    .request = ++scene->last_request,
						    .cancel = {.request = request}});
	scene_expect(scene, client, request, WIRE_CANCELLED);
	scene_drop_all(scene);
	placed_finish(scene, 1, false);
	placed_assert(scene, 1, "1111");
	scene_free(scene);
}

static void refuse_header(struct scene *scene, int code)
{
	(void)scene_step(scene, (struct core_event){.type = EV_HEADER_READ,
						    .header = {.job = scene_view(scene, 1).job,
							       .key = &scene->keys[1],
							       .code = code}});
}

/* Also where it was planned before the core was asked: by what is in use then. */
static void what_the_planner_refused_is_tried_again(void **state)
{
	uint64_t client;
	struct scene *scene = crowded(&client);

	(void)state;
	refuse_header(scene, WIRE_NO_MEMORY);
	assert_null(scene_note(scene, CORE_NOTE_REFUSED));
	unload(scene, client, 2);
	scene_drop_all(scene);
	let_retry(scene);
	placed_finish(scene, 1, false);
	placed_assert(scene, 1, "1111");
	scene_free(scene);
}

static void what_cannot_be_read_again_has_failed(void **state)
{
	uint64_t client;
	struct scene *scene = crowded(&client);

	(void)state;
	return_in_vain(scene);
	let_retry(scene);
	refuse_header(scene, WIRE_BAD_FILE);
	assert_non_null(scene_note(scene, CORE_NOTE_LOAD_BEGUN));
	assert_non_null(scene_note(scene, CORE_NOTE_LOAD_FAILED));
	assert_int_equal(scene_view(scene, 1).state, CORE_MODEL_FAILED);
	assert_int_equal(scene_view(scene, 1).placement, CORE_PLACEMENT_ANY); /* as of any other */
	assert_true(scene->next_deadline_ns > scene->now_ns + 120ULL * ONE_SECOND); /* for good */
	scene_free(scene);
}

/* Its job was somebody's, who went. */
static void what_nobody_waits_for_any_more_comes_back_still(void **state)
{
	const struct core_config config = placed_config();
	struct scene *scene = scene_new(&config);
	uint64_t client = scene_open(scene, 1000);
	uint64_t token;
	uint32_t request;

	(void)state;
	(void)placed_loaded(scene, client, 1, "1111", plain);
	token = take_all(scene, client, 1);
	request = scene_load(scene, client, 1, plain);
	release(scene, client, token);
	(void)scene_step(scene, (struct core_event){.type = EV_CANCEL,
						    .client = client,
						    .request = ++scene->last_request,
						    .cancel = {.request = request}});
	(void)scene_step(scene, (struct core_event){.type = EV_TICK});
	if (scene_view(scene, 1).job == 0) {
		let_retry(scene);
	}
	placed_finish(scene, 1, false);
	placed_assert(scene, 1, "1111");
	scene_free(scene);
}

/* Where nothing lies beside, its time there runs out, and it comes to the host. */
static void what_waits_for_too_long_comes_to_the_host(void **state)
{
	uint64_t client;
	struct scene *scene = crowded(&client);

	(void)state;
	return_in_vain(scene);
	scene->now_ns += LINGER_NS;
	(void)scene_step(scene, (struct core_event){.type = EV_TICK});
	assert_int_equal(scene_view(scene, 1).job_placement, CORE_PLACEMENT_HOST);
	scene_free(scene);
}

static void what_somebody_wants_back_does(void **state)
{
	uint64_t client;
	struct scene *scene = crowded(&client);
	uint32_t request = scene_load(scene, client, 1, plain);

	(void)state;
	placed_header(scene, 1, false);
	scene_drop_all(scene);
	scene_fill(scene, 1, 0);
	placed_tabled(scene, 1, 0);
	scene_expect(scene, client, request, 0);
	placed_assert(scene, 1, "1111");
	assert_int_equal(scene_view(scene, 2).state, CORE_MODEL_PARTIAL);
	scene_free(scene);
}

static void what_another_device_needs_does_not_bring_it_back(void **state)
{
	const struct core_config config = placed_config();
	struct scene *scene = scene_new(&config);
	uint64_t client = scene_open(scene, 1000);
	uint64_t other;

	(void)state;
	(void)placed_loaded(scene, client, 1, "1111", plain);
	(void)take_all(scene, client, 1);
	other = take_all(scene, client, 2);
	release(scene, client, other); /* it never lay there */
	assert_int_equal(scene_view(scene, 1).job, 0);
	scene_expect(scene, client,
		     reserve(scene, client, (struct asked){.bytes = 98 * MIB, .device = 1}),
		     WIRE_NO_MEMORY); /* it was never in the way */
	assert_int_equal(scene_view(scene, 1).job, 0);
	scene_free(scene);
}

static void what_may_not_be_put_back_waits_for_its_device(void **state)
{
	const struct core_config config = placed_config();
	struct scene *scene = scene_new(&config);
	uint64_t client = scene_open(scene, 1000);
	uint64_t token;

	(void)state;
	(void)placed_loaded(scene, client, 1, "1122", plain);
	token = take_all(scene, client, 1);
	drain(scene, true);
	release(scene, client, token);
	placed_header(scene, 1, false);
	assert_int_equal(scene_note(scene, CORE_NOTE_LOAD_FAILED)->code, WIRE_BUSY);
	drain(scene, false);
	placed_finish(scene, 1, false);
	placed_assert(scene, 1, "1122");
	token = take_all(scene, client, 1);
	placed_lose(scene, 1); /* it has nothing there */
	release(scene, client, token);
	placed_header(scene, 1, false);
	assert_int_equal(scene_view(scene, 1).job, 0);
	placed_back(scene, 1);
	placed_finish(scene, 1, false);
	placed_assert(scene, 1, "1122");
	scene_free(scene);
}

static void unloaded_meanwhile_or_overdue_it_stays_away(void **state)
{
	const struct scene_load short_lived = {
		.policy = {.said = CORE_SAID_TTL, .ttl_ns = 2 * ONE_SECOND}};
	const struct core_config config = placed_config();
	struct scene *scene = scene_new(&config);
	uint64_t client = scene_open(scene, 1000);
	uint64_t token;

	(void)state;
	(void)placed_loaded(scene, client, 1, "1111", plain);
	(void)placed_loaded(scene, client, 2, "1111", short_lived);
	token = take_all(scene, client, 1);
	unload(scene, client, 1);
	scene_drop_all(scene);
	scene->now_ns += 2 * ONE_SECOND;
	release(scene, client, token);
	for (uint32_t inode = 1; inode <= 2; inode++) {
		assert_int_equal(scene_view(scene, inode).job, 0);
		assert_int_equal(scene_view(scene, inode).file, 0);
	}
	scene_free(scene);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(what_several_displaced_comes_back),
		cmocka_unit_test(what_comes_back_takes_nothing_from_others),
		cmocka_unit_test(what_somebody_wants_back_does),
		cmocka_unit_test(what_comes_back_and_is_refused_by_its_device_takes_nothing_either),
		cmocka_unit_test(what_a_cancelled_one_displaced_comes_back),
		cmocka_unit_test(what_the_planner_refused_is_tried_again),
		cmocka_unit_test(what_cannot_be_read_again_has_failed),
		cmocka_unit_test(what_nobody_waits_for_any_more_comes_back_still),
		cmocka_unit_test(what_waits_for_too_long_comes_to_the_host),
		cmocka_unit_test(what_another_device_needs_does_not_bring_it_back),
		cmocka_unit_test(what_may_not_be_put_back_waits_for_its_device),
		cmocka_unit_test(unloaded_meanwhile_or_overdue_it_stays_away),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
