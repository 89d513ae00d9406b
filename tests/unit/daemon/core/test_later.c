/* SPDX-License-Identifier: Apache-2.0 */
/* What is asked while a model moves: the last word counts, and what failed took nothing away. */
#include "tests/unit/daemon/core/room.h"

static const struct scene_load plain;

static struct scene_load at(const char *layout, bool no_wait)
{
	return (struct scene_load){.placement = placed_as(layout), .no_wait = no_wait};
}

/* It is moved away, and somebody asks for it where it was. */
struct away {
	struct scene *scene;
	uint64_t client;
	uint32_t move, load;
};

static struct away asked_back(void)
{
	const struct core_config config = placed_config();
	struct away asked = {.scene = scene_new(&config)};

	asked.client = scene_open(asked.scene, 1000);
	(void)placed_loaded(asked.scene, asked.client, 1, "1111", plain);
	asked.move = placed_place(asked.scene, asked.client, 1, "2222");
	placed_header(asked.scene, 1, false);
	asked.load = scene_load(asked.scene, asked.client, 1, at("1111", false));
	assert_null(scene_reply(asked.scene, asked.client, asked.load));
	return asked;
}

static void a_load_to_where_it_is_moved_from_has_it_back(void **state)
{
	const struct away asked = asked_back();
	struct scene *scene = asked.scene;

	(void)state;
	scene_expect(scene, asked.client, scene_load(scene, asked.client, 1, plain), 0);
	scene_fill(scene, 1, 0);
	placed_tabled(scene, 1, 0);
	scene_expect(scene, asked.client, asked.move, 0);
	scene_drop_all(scene);
	placed_finish(scene, 1, false);
	scene_expect(scene, asked.client, asked.load, 0);
	scene_drop_all(scene);
	placed_assert(scene, 1, "1111");
	scene_free(scene);
}

static void for_whom_it_lies_as_he_asked_a_failed_move_is_none(void **state)
{
	const struct away asked = asked_back();
	struct scene *scene = asked.scene;

	(void)state;
	scene_fill(scene, 1, 0);
	placed_tabled(scene, 1, WIRE_IO);
	scene_expect(scene, asked.client, asked.move, WIRE_IO);
	scene_expect(scene, asked.client, asked.load, 0);
	scene_drop_all(scene);
	placed_assert(scene, 1, "1111");
	scene_free(scene);
}

static void a_load_that_fails_fails_for_those_who_wanted_that(void **state)
{
	const struct core_config config = placed_config();
	struct scene *scene = scene_new(&config);
	uint64_t alice = scene_open(scene, 1000);
	uint64_t bob = scene_open(scene, 1000);
	uint32_t here;
	uint32_t there;

	(void)state;
	here = scene_load(scene, alice, 1, (struct scene_load){.placement = placed_as("1111")});
	there = scene_load(scene, bob, 1, (struct scene_load){.placement = placed_as("2222")});
	scene_budget(scene, 1, 0);
	placed_header(scene, 1, false);
	scene_expect(scene, alice, here, WIRE_NO_MEMORY);
	assert_int_equal(scene_count(scene, ACT_LOAD_ENDED), 1);
	assert_int_equal(scene_find(scene, ACT_LOAD_ENDED, 0)->code, WIRE_NO_MEMORY);
	assert_int_equal(scene_count(scene, ACT_FOLLOW), 1);
	assert_null(scene_reply(scene, bob, there));
	placed_finish(scene, 1, false);
	scene_expect(scene, bob, there, 0);
	placed_assert(scene, 1, "2222");
	scene_free(scene);
}

static struct scene_load pinned_at(const char *layout)
{
	return (struct scene_load){.placement = placed_as(layout),
				   .policy = {.said = CORE_SAID_PIN, .pin = true}};
}

/* The move that it joined fails, and it has what it wanted without. */
static void a_load_that_is_granted_keeps_what_it_said(void **state)
{
	const struct away asked = asked_back();
	struct scene *scene = asked.scene;
	const uint32_t request = scene_load(scene, asked.client, 1, pinned_at("1111"));

	(void)state;
	scene_fill(scene, 1, 0);
	placed_tabled(scene, 1, WIRE_IO);
	scene_expect(scene, asked.client, request, 0);
	assert_true(scene_view(scene, 1).is_pinned);
	scene_free(scene);
}

static void a_load_that_fails_behind_another_takes_back_what_it_said(void **state)
{
	const struct core_config config = placed_config();
	struct scene *scene = scene_new(&config);
	uint64_t alice = scene_open(scene, 1000);
	uint64_t bob = scene_open(scene, 0);
	uint32_t here;
	uint32_t there;

	(void)state;
	here = scene_load(scene, alice, 1, (struct scene_load){.placement = placed_as("1111")});
	there = scene_load(scene, bob, 1, pinned_at("2222"));
	placed_finish(scene, 1, false);
	scene_expect(scene, alice, here, 0);
	assert_true(scene_view(scene, 1).is_pinned);
	placed_header(scene, 1, false);
	scene_fill(scene, 1, 0);
	placed_tabled(scene, 1, WIRE_IO);
	scene_expect(scene, bob, there, WIRE_IO);
	assert_false(scene_view(scene, 1).is_pinned);
	scene_free(scene);
}

static void who_goes_on_has_the_backing_that_he_insisted_on(void **state)
{
	const struct core_config config = placed_config();
	struct scene *scene = scene_new(&config);
	uint64_t alice = scene_open(scene, 1000);
	uint64_t bob = scene_open(scene, 1000);

	(void)state;
	(void)scene_load(scene, alice, 1, (struct scene_load){.placement = placed_as("1111")});
	(void)scene_load(scene, bob, 1,
			 (struct scene_load){.placement = CORE_PLACEMENT_HOST,
					     .backing = CORE_BACKING_FILE});
	(void)scene_step(scene, (struct core_event){.type = EV_CLIENT_CLOSED, .client = alice});
	assert_int_equal(scene_find(scene, ACT_READ_HEADER, 0)->fill.backing, CORE_BACKING_FILE);
	scene_free(scene);
}

static void who_waits_is_not_moved_away_by_an_older_word(void **state)
{
	const struct core_config config = placed_config();
	struct scene *scene = scene_new(&config);
	uint64_t client = scene_open(scene, 1000);
	uint32_t move;

	(void)state;
	(void)placed_loaded(scene, client, 1, "1111", plain);
	(void)scene_load(scene, client, 1, at("2222", true));
	(void)scene_load(scene, client, 1, at("1122", true));
	move = placed_place(scene, client, 1, "1112");
	placed_finish(scene, 1, false);
	scene_drop_all(scene);
	placed_finish(scene, 1, false);
	scene_expect(scene, client, move, 0);
	scene_drop_all(scene);
	placed_assert(scene, 1, "1112");
	assert_int_equal(scene_view(scene, 1).job, 0);
	scene_free(scene);
}

/* Who has its images besides says nothing of where the blocks lie. */
static void another_users_images_supersede_no_move(void **state)
{
	const struct core_config config = placed_config();
	struct scene *scene = scene_new(&config);
	uint64_t owner = scene_open(scene, 1000);
	uint64_t other = scene_open(scene, 1001);

	(void)state;
	(void)placed_loaded(scene, owner, 1, "1111", plain);
	(void)scene_load(scene, owner, 1, at("2222", true));
	(void)scene_load(scene, owner, 1, at("1122", true));
	(void)scene_load(scene, other, 1, at(HOST_LAYOUT, false));
	for (int i = 0; i < 3 && scene_view(scene, 1).job != 0; i++) {
		placed_finish(scene, 1, i > 0);
		scene_drop_all(scene);
	}
	assert_int_equal(scene_view(scene, 1).job, 0);
	assert_int_equal(scene_view(scene, 1).placement, placed_as("1122"));
	scene_free(scene);
}

/* Its time on the device has run out, and it is on its way to the host. */
static struct scene *on_its_way(uint64_t *ret_client)
{
	const struct core_config config = placed_config();
	struct scene *scene = scene_new(&config);

	*ret_client = scene_open(scene, 1000);
	(void)placed_loaded(scene, *ret_client, 1, "1111", plain);
	scene->now_ns = scene->next_deadline_ns;
	(void)scene_step(scene, (struct core_event){.type = EV_TICK});
	placed_header(scene, 1, false);
	return scene;
}

static void expect_it_stayed(struct scene *scene)
{
	assert_int_equal(scene_view(scene, 1).job, 0);
	scene_fill(scene, 1, WIRE_CANCELLED);
	scene_drop_all(scene);
	placed_assert(scene, 1, "1111");
	scene_free(scene);
}

static void what_runs_out_stays_for_who_asks_for_it_there(void **state)
{
	uint64_t client;
	struct scene *scene = on_its_way(&client);

	(void)state;
	scene_expect(scene, client, scene_load(scene, client, 1, at("1111", false)), 0);
	expect_it_stayed(scene);
}

static void what_runs_out_stays_for_who_places_it_there(void **state)
{
	uint64_t client;
	struct scene *scene = on_its_way(&client);

	(void)state;
	scene_expect(scene, client, placed_place(scene, client, 1, "1111"), 0);
	expect_it_stayed(scene);
}

static void what_runs_out_stays_once_it_is_pinned(void **state)
{
	uint64_t client;
	struct scene *scene = on_its_way(&client);

	(void)state;
	scene_set(scene, client, 1, (struct core_policy){.said = CORE_SAID_PIN, .pin = true});
	expect_it_stayed(scene);
}

static void what_runs_out_is_unloaded_with_all_that_is_not_kept(void **state)
{
	uint64_t client;
	struct scene *scene = on_its_way(&client);

	(void)state;
	(void)scene_step(scene, (struct core_event){.type = EV_UNLOAD,
						    .client = client,
						    .request = ++scene->last_request,
						    .unload = {.not_kept = true, .mine = true}});
	assert_int_equal(scene_find(scene, ACT_UNLOAD_ITEM, 0)->unload.outcome,
			 CORE_OUTCOME_UNLOADED);
	scene_fill(scene, 1, WIRE_CANCELLED);
	scene_drop_all(scene);
	assert_false(scene_is_resident(scene, 1));
	scene_free(scene);
}

/* What was to come back from where it lay, and was unloaded: nobody's blocks lie anywhere. */
static void once_unloaded_nobody_else_is_refused_for_where_it_lay(void **state)
{
	const struct core_config config = placed_config();
	struct scene *scene = scene_new(&config);
	uint64_t owner = scene_open(scene, 1000);
	uint64_t other = scene_open(scene, 1001);
	uint32_t load;

	(void)state;
	(void)placed_loaded(scene, owner, 1, "1111", plain);
	(void)reserve(scene, owner, (struct asked){.bytes = 100 * MIB, .device = 1});
	scene_drop_all(scene);
	unload(scene, owner, 1);
	load = scene_load(scene, other, 1, at("2222", false));
	assert_null(scene_reply(scene, other, load));
	assert_int_not_equal(scene_view(scene, 1).job, 0);
	scene_free(scene);
}

/* A card is reset: drained, lost, back, and used again. */
static void what_was_lost_while_drained_comes_back_after_it(void **state)
{
	const struct core_config config = placed_config();
	struct scene *scene = scene_new(&config);
	uint64_t owner = scene_open(scene, 1000);

	(void)state;
	(void)placed_loaded(scene, owner, 1, "1111", plain);
	drain(scene, true);
	placed_lose(scene, 1);
	placed_back(scene, 1);
	placed_header(scene, 1, false);
	assert_int_equal(scene_view(scene, 1).job, 0);
	drain(scene, false);
	placed_finish(scene, 1, false);
	placed_assert(scene, 1, "1111");
	scene_free(scene);
}

static void of_size(struct scene *scene, uint32_t inode, const struct core_need *needs,
		    uint32_t n_needs)
{
	(void)scene_step(scene, (struct core_event){.type = EV_HEADER_READ,
						    .header = {.job = scene_view(scene, inode).job,
							       .key = &scene->keys[inode],
							       .needs = needs,
							       .n_needs = n_needs}});
}

/* Parts of a model are holes of a hostile file; alone they fit a number, and wait for nobody. */
static void sizes_that_no_sum_holds_are_refused(void **state)
{
	const struct core_config config = placed_config();
	struct scene *scene = scene_new(&config);
	uint64_t client = scene_open(scene, 1000);
	const struct core_need needs[] = {{.bytes = 1ULL << 63}, {.index = 1, .bytes = 1ULL << 63}};
	const uint32_t load = scene_load(scene, client, 1, plain);

	(void)state;
	of_size(scene, 1, needs, 2);
	scene_expect(scene, client, load, WIRE_INTERNAL);
	for (uint32_t inode = 2; inode < 6; inode++) { /* the second waits for the first */
		const struct core_need usual = {.bytes = 70 * MIB};

		(void)scene_load(scene, scene_open(scene, 1000 + inode), inode, plain);
		of_size(scene, inode, inode < 4 ? &usual : needs, 1);
		assert_int_equal(scene_view(scene, inode).job != 0, inode < 4);
	}
	scene_free(scene);
}

/* Who named it ends his load, and none that somebody else waits for too. */
static void unloading_ends_ones_own_load_only(void **state)
{
	const struct core_config config = placed_config();

	(void)state;
	for (uint32_t joins = 0; joins < 2; joins++) {
		struct scene *scene = scene_new(&config);
		uint64_t client = scene_open(scene, 1000);
		uint64_t other = scene_open(scene, 1001);
		uint32_t load = scene_load(scene, client, 1, plain);

		if (joins == 1) {
			(void)scene_load(scene, other, 1, plain);
		}
		unload(scene, client, 1);
		assert_int_equal(scene_reply(scene, client, load) != NULL, joins == 0);
		assert_int_equal(scene_view(scene, 1).job == 0, joins == 0);
		scene_free(scene);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_load_to_where_it_is_moved_from_has_it_back),
		cmocka_unit_test(for_whom_it_lies_as_he_asked_a_failed_move_is_none),
		cmocka_unit_test(a_load_that_fails_fails_for_those_who_wanted_that),
		cmocka_unit_test(a_load_that_is_granted_keeps_what_it_said),
		cmocka_unit_test(a_load_that_fails_behind_another_takes_back_what_it_said),
		cmocka_unit_test(who_goes_on_has_the_backing_that_he_insisted_on),
		cmocka_unit_test(who_waits_is_not_moved_away_by_an_older_word),
		cmocka_unit_test(another_users_images_supersede_no_move),
		cmocka_unit_test(what_runs_out_stays_for_who_asks_for_it_there),
		cmocka_unit_test(what_runs_out_stays_for_who_places_it_there),
		cmocka_unit_test(what_runs_out_stays_once_it_is_pinned),
		cmocka_unit_test(what_runs_out_is_unloaded_with_all_that_is_not_kept),
		cmocka_unit_test(once_unloaded_nobody_else_is_refused_for_where_it_lay),
		cmocka_unit_test(what_was_lost_while_drained_comes_back_after_it),
		cmocka_unit_test(sizes_that_no_sum_holds_are_refused),
		cmocka_unit_test(unloading_ends_ones_own_load_only),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
