/* SPDX-License-Identifier: Apache-2.0 */
/* What is asked while a model moves: the last word counts, and what failed took nothing away. */
#include "tests/unit/daemon/core/placed.h"

static const struct scene_load plain;

static struct scene_load at(const char *layout, bool no_wait)
{
	return (struct scene_load){.placement = placed_as(layout), .no_wait = no_wait};
}

/* It is moved away, and somebody asks for it where it was. */
struct asked {
	struct scene *scene;
	uint64_t client;
	uint32_t move, load;
};

static struct asked asked_back(void)
{
	const struct core_config config = placed_config();
	struct asked asked = {.scene = scene_new(&config)};

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
	const struct asked asked = asked_back();
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
	const struct asked asked = asked_back();
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

static void what_runs_out_stays_for_who_asks_for_it_there(void **state)
{
	const struct core_config config = placed_config();
	struct scene *scene = scene_new(&config);
	uint64_t client = scene_open(scene, 1000);

	(void)state;
	(void)placed_loaded(scene, client, 1, "1111", plain);
	scene->now_ns = scene->next_deadline_ns;
	(void)scene_step(scene, (struct core_event){.type = EV_TICK});
	placed_header(scene, 1, false);
	scene_expect(scene, client, scene_load(scene, client, 1, at("1111", false)), 0);
	assert_int_equal(scene_view(scene, 1).job, 0);
	scene_fill(scene, 1, WIRE_CANCELLED);
	scene_drop_all(scene);
	placed_assert(scene, 1, "1111");
	scene_free(scene);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_load_to_where_it_is_moved_from_has_it_back),
		cmocka_unit_test(for_whom_it_lies_as_he_asked_a_failed_move_is_none),
		cmocka_unit_test(who_waits_is_not_moved_away_by_an_older_word),
		cmocka_unit_test(another_users_images_supersede_no_move),
		cmocka_unit_test(what_runs_out_stays_for_who_asks_for_it_there),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
