/* SPDX-License-Identifier: Apache-2.0 */
/* What one user may have while others wait: who gives first, and who goes first. */
#include "tests/unit/daemon/core/scene.h"

#define A 1000
#define B 1001
#define C 1002

static const struct scene_load plain;
static const struct scene_load pinned = {.policy = {.said = CORE_SAID_PIN, .pin = true}};

/* A device has 100 MiB. */
static struct scene *given_share(uint32_t milli_pct, uint64_t bytes)
{
	struct core_config config = scene_usual();

	config.share_milli_pct = milli_pct;
	config.share_bytes = bytes;
	return scene_new(&config);
}

/* A load of this user from its begin to where it waits for room, or does not. */
static uint32_t given_header(struct scene *scene, uint64_t client, uint32_t inode, uint64_t bytes)
{
	uint32_t request = scene_load(scene, client, inode, plain);

	scene_header(scene, inode, bytes, 0);
	return request;
}

static bool is_evicted(const struct scene *scene, uint32_t inode)
{
	for (uint32_t i = 0; i < scene->n_actions; i++) {
		const struct core_action *action = &scene->actions[i];

		if (action->type == ACT_NOTE && action->note.note == CORE_NOTE_EVICTED &&
		    action->model == scene_model(scene, inode)) {
			return true;
		}
	}
	return false;
}

static bool is_filling(const struct scene *scene, uint32_t inode)
{
	return scene_find(scene, ACT_FILL, scene_model(scene, inode)) != NULL;
}

static void who_is_above_the_share_gives_first_and_down_to_it(void **state)
{
	struct scene *scene = given_share(50000, 0);
	uint64_t a = scene_open(scene, A);
	uint64_t b = scene_open(scene, B);
	uint64_t c = scene_open(scene, C);
	uint32_t uid;
	uint64_t bytes;

	(void)state;
	(void)scene_loaded(scene, b, 1, 30 * MIB, plain); /* the longest idle */
	assert_false(core_above_share(scene->core, 0, &uid, &bytes));
	(void)scene_loaded(scene, a, 2, 30 * MIB,
			   (struct scene_load){
				   .policy = {.said = CORE_SAID_PRIORITY, .priority = 10}});
	(void)scene_loaded(scene, a, 3, 30 * MIB,
			   (struct scene_load){
				   .policy = {.said = CORE_SAID_PRIORITY, .priority = 20}});
	assert_true(core_above_share(scene->core, 0, &uid, &bytes));
	assert_int_equal(uid, A);
	assert_int_equal(bytes, 60 * MIB);
	assert_int_equal(core_share(scene->core, 0), 50 * MIB);
	(void)given_header(scene, c, 4, 20 * MIB);
	assert_true(is_evicted(scene, 2)); /* whatever its priority */
	assert_false(is_evicted(scene, 1) || is_evicted(scene, 3));
	scene_drop_all(scene);
	scene_fill(scene, 4, 0);
	(void)given_header(scene, c, 5, 40 * MIB); /* nobody is above it now */
	assert_true(is_evicted(scene, 1));
	assert_false(is_evicted(scene, 3));
	scene_free(scene);
}

static void down_to_the_share_and_no_further(void **state)
{
	const struct scene_load important = {
		.policy = {.said = CORE_SAID_PRIORITY, .priority = 10}};
	struct scene *scene = given_share(50000, 0);
	uint64_t a = scene_open(scene, A);
	uint64_t b = scene_open(scene, B);

	(void)state;
	(void)scene_loaded(scene, a, 1, 30 * MIB, important);
	(void)scene_loaded(scene, a, 2, 30 * MIB, important);
	(void)scene_loaded(scene, b, 3, 30 * MIB, plain);
	(void)given_header(scene, scene_open(scene, C), 4, 45 * MIB);
	assert_true(is_evicted(scene, 1) && is_evicted(scene, 3));
	assert_false(is_evicted(scene, 2)); /* of one who is not above it any more */
	scene_free(scene);
}

static void a_share_in_bytes_counts_and_without_one_the_longest_idle_goes(void **state)
{
	const uint64_t shares[] = {50 * MIB, 0};

	(void)state;
	for (int i = 0; i < 2; i++) {
		struct scene *scene = given_share(0, shares[i]);
		uint64_t a = scene_open(scene, A);
		uint64_t b = scene_open(scene, B);

		(void)scene_loaded(scene, b, 1, 30 * MIB, plain);
		(void)scene_loaded(scene, a, 2, 60 * MIB, plain);
		(void)given_header(scene, b, 3, 20 * MIB);
		assert_int_equal(is_evicted(scene, 1), i == 1);
		assert_int_equal(is_evicted(scene, 2), i == 0);
		scene_free(scene);
	}
}

/* What is needed no longer is spared, the first chosen last; but not in place of another's. */
static void who_is_above_the_share_is_not_spared_for_another(void **state)
{
	(void)state;
	for (uint32_t milli_pct = 50000; milli_pct <= 60000; milli_pct += 10000) {
		struct scene *scene = given_share(milli_pct, 0);
		uint64_t a = scene_open(scene, A);
		uint64_t b = scene_open(scene, B);

		(void)scene_loaded(scene, a, 1, 45 * MIB, pinned);
		(void)scene_loaded(scene, a, 2, 10 * MIB, plain);
		(void)scene_loaded(scene, b, 3, 30 * MIB, plain);
		(void)given_header(scene, scene_open(scene, C), 4, 45 * MIB);
		assert_true(is_evicted(scene, 3));
		assert_int_equal(is_evicted(scene, 2), milli_pct == 50000);
		scene_free(scene);
	}
}

/* A has 60 pinned; 40 come free with scene_drop_all. */
static struct scene *given_full(uint64_t *ret_a, uint64_t *ret_b)
{
	struct scene *scene = given_share(70000, 0);
	struct core_event unload = {.type = EV_UNLOAD};

	*ret_a = scene_open(scene, A);
	*ret_b = scene_open(scene, B);
	(void)scene_loaded(scene, *ret_a, 1, 60 * MIB, pinned);
	(void)scene_loaded(scene, *ret_b, 2, 40 * MIB, plain);
	unload.client = *ret_b;
	unload.request = ++scene->last_request;
	unload.unload.mine = true;
	(void)scene_step(scene, unload);
	assert_int_equal(scene_count(scene, ACT_DROP), 1);
	return scene;
}

/* fault: M04 */
static void who_would_exceed_the_share_lets_others_go_first(void **state)
{
	uint64_t a;
	uint64_t b;
	struct scene *scene = given_full(&a, &b);
	uint32_t older = given_header(scene, a, 3, 30 * MIB);
	uint32_t younger = given_header(scene, b, 4, 30 * MIB);

	(void)state;
	scene_drop_all(scene);
	assert_true(is_filling(scene, 4));
	assert_false(is_filling(scene, 3));
	scene_fill(scene, 4, 0);
	scene_expect(scene, b, younger, 0);
	/* Nobody else waits any more: what is idle gives way, as ever. */
	assert_true(is_evicted(scene, 4));
	scene_drop_all(scene);
	scene_fill(scene, 3, 0);
	scene_expect(scene, a, older, 0);
	scene_free(scene);
}

static void who_stays_within_the_share_keeps_the_order_of_arrival(void **state)
{
	uint64_t a;
	uint64_t b;
	struct scene *scene = given_full(&a, &b);

	(void)state;
	(void)given_header(scene, a, 3, 10 * MIB);
	(void)given_header(scene, b, 4, 35 * MIB);
	scene_drop_all(scene);
	assert_true(is_filling(scene, 3));
	assert_false(is_filling(scene, 4));
	scene_free(scene);
}

static void where_nobody_else_waits_there_is_no_share(void **state)
{
	uint64_t a;
	uint64_t b;
	struct scene *scene = given_full(&a, &b);

	(void)state;
	(void)given_header(scene, a, 3, 40 * MIB);
	(void)given_header(scene, a, 4, 5 * MIB); /* his own, which would stay within it */
	scene_drop_all(scene);
	assert_true(is_filling(scene, 3));
	assert_false(is_filling(scene, 4));
	scene_free(scene);
}

/* Both would exceed it: it says nothing about who goes first. */
static void of_two_above_the_share_the_older_goes_first(void **state)
{
	struct scene *scene = given_share(20000, 0);
	uint64_t a = scene_open(scene, A);
	uint64_t b = scene_open(scene, B);

	(void)state;
	(void)scene_loaded(scene, a, 1, 50 * MIB, pinned);
	(void)scene_load(scene, b, 2, (struct scene_load){.no_wait = true});
	scene_header(scene, 2, 20 * MIB, 0); /* goes on filling */
	(void)given_header(scene, a, 3, 40 * MIB);
	(void)given_header(scene, b, 4, 35 * MIB);
	assert_false(is_filling(scene, 4)); /* it leaves the older one what it waits for */
	scene_fill(scene, 2, 0);
	scene_drop_all(scene);
	assert_true(is_filling(scene, 3));
	scene_free(scene);
}

static void nobody_passes_himself(void **state)
{
	uint64_t a;
	uint64_t b;
	struct scene *scene = given_full(&a, &b);

	(void)state;
	(void)given_header(scene, a, 3, 30 * MIB);
	(void)given_header(scene, a, 4, 5 * MIB); /* within the share */
	(void)given_header(scene, b, 5, 35 * MIB);
	assert_false(is_filling(scene, 4));
	scene_drop_all(scene);
	assert_true(is_filling(scene, 5));
	assert_false(is_filling(scene, 3) || is_filling(scene, 4));
	scene_free(scene);
}

static void nobody_lets_others_go_first_for_ever(void **state)
{
	uint64_t a;
	uint64_t b;
	struct scene *scene = given_full(&a, &b);

	(void)state;
	(void)given_header(scene, a, 3, 30 * MIB);
	scene->now_ns += CORE_SHARE_PATIENCE_NS;
	(void)given_header(scene, b, 4, 30 * MIB);
	scene_drop_all(scene);
	assert_true(is_filling(scene, 3));
	assert_false(is_filling(scene, 4));
	scene_free(scene);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(who_is_above_the_share_gives_first_and_down_to_it),
		cmocka_unit_test(down_to_the_share_and_no_further),
		cmocka_unit_test(a_share_in_bytes_counts_and_without_one_the_longest_idle_goes),
		cmocka_unit_test(who_is_above_the_share_is_not_spared_for_another),
		cmocka_unit_test(who_would_exceed_the_share_lets_others_go_first),
		cmocka_unit_test(who_stays_within_the_share_keeps_the_order_of_arrival),
		cmocka_unit_test(where_nobody_else_waits_there_is_no_share),
		cmocka_unit_test(of_two_above_the_share_the_older_goes_first),
		cmocka_unit_test(nobody_passes_himself),
		cmocka_unit_test(nobody_lets_others_go_first_for_ever),
	};

	return cmocka_run_group_tests_name("daemon/core/shares", tests, NULL, NULL);
}
