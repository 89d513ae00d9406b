/* SPDX-License-Identifier: Apache-2.0 */
/* Who has another user's model in images keeps these, and nothing on that one's devices. */
#include "tests/unit/daemon/core/room.h"

static const struct scene_load plain;
static const struct scene_load attached = {.attach = true, .map = true};

/* Alice's blocks lie on two devices, Bob maps the images; nobody leases the blocks. */
static struct scene *given_both(uint64_t *ret_alice, uint64_t *ret_bob)
{
	const struct core_config config = placed_config();
	struct scene *scene = scene_new(&config);
	uint32_t request;

	*ret_alice = scene_open(scene, 1000);
	*ret_bob = scene_open(scene, 1001);
	(void)placed_loaded(scene, *ret_alice, 1, "1122", plain);
	scene->now_ns += ONE_SECOND;
	request = scene_load(scene, *ret_bob, 1, attached);
	placed_finish(scene, 1, true);
	scene_expect(scene, *ret_bob, request, 0);
	scene_drop_all(scene);
	return scene;
}

static const struct core_action *find_item(const struct scene *scene, enum core_outcome outcome)
{
	for (uint32_t i = 0; i < scene->n_actions; i++) {
		if (scene->actions[i].type == ACT_UNLOAD_ITEM &&
		    scene->actions[i].unload.outcome == outcome) {
			return &scene->actions[i];
		}
	}
	return NULL;
}

static void blocks_leave_for_want_of_use_though_another_uses_the_images(void **state)
{
	uint64_t alice;
	uint64_t bob;
	struct scene *scene = given_both(&alice, &bob);
	const uint64_t due_ns = scene->next_deadline_ns;

	(void)state;
	assert_true(due_ns < scene->now_ns + LINGER_NS);
	(void)scene_load(scene, bob, 1, attached);
	assert_int_equal(scene->next_deadline_ns, due_ns);
	scene->now_ns = due_ns;
	(void)scene_step(scene, (struct core_event){.type = EV_TICK});
	assert_int_equal(scene_view(scene, 1).job_placement, CORE_PLACEMENT_HOST);
	(void)scene_load(scene, bob, 1, attached); /* and does not stop them */
	assert_int_equal(scene_view(scene, 1).job_placement, CORE_PLACEMENT_HOST);
	placed_finish(scene, 1, false);
	scene_drop_all(scene);
	assert_int_equal(placed_resident(scene, 1) + placed_resident(scene, 2), 0);
	assert_int_equal(placed_resident(scene, 0), N_BLOCKS * BLOCK); /* his are not made again */
	scene_free(scene);
}

static void blocks_give_way_though_another_uses_the_images(void **state)
{
	uint64_t alice;
	uint64_t bob;
	uint32_t request;
	struct scene *scene = given_both(&alice, &bob);

	(void)state;
	scene_budget(scene, 1, 4 * BLOCK);
	request = reserve(scene, alice, (struct asked){.device = 1, .bytes = 4 * BLOCK});
	assert_int_equal(scene_count(scene, ACT_RECALL), 0);
	scene_drop_all(scene);
	scene_expect(scene, alice, request, 0);
	assert_int_equal(placed_resident(scene, 0), N_BLOCKS * BLOCK);
	scene_free(scene);
}

/* He may move them and has none himself: what he places stays there like anybody's. */
static void what_an_administrator_places_lingers(void **state)
{
	const struct core_config config = placed_config();
	struct scene *scene = scene_new(&config);
	const uint64_t owner = scene_open(scene, 1000);
	const uint64_t admin =
		scene_step(scene, (struct core_event){.type = EV_CLIENT_OPENED,
						      .opened = {.uid = 500, .is_admin = true}});
	uint32_t request;

	(void)state;
	(void)scene_loaded(scene, owner, 1, N_BLOCKS * BLOCK, plain);
	scene->now_ns += 2 * LINGER_NS;
	placed_moved(scene, admin, 1, "1122");
	assert_int_equal(scene_view(scene, 1).job, 0);
	assert_true(scene->next_deadline_ns > scene->now_ns);
	scene->now_ns = scene->next_deadline_ns;
	(void)scene_step(scene, (struct core_event){.type = EV_TICK});
	assert_int_equal(scene_view(scene, 1).job_placement, CORE_PLACEMENT_HOST);
	request = placed_place(scene, admin, 1, "1122"); /* while they leave */
	scene_expect(scene, admin, request, 0);
	assert_int_equal(scene_view(scene, 1).job, 0);
	placed_assert(scene, 1, "1122");
	scene_free(scene);
}

/* Her process maps the blocks without a connection, and he leases the images. */
static void what_a_ghost_maps_beside_a_lease_is_not_told_as_freed(void **state)
{
	uint64_t alice;
	uint64_t bob;
	struct scene *scene = given_both(&alice, &bob);
	const struct core_action *held;

	(void)state;
	(void)scene_load(scene, alice, 1, attached);
	scene_client_event(scene, EV_CLIENT_CLOSED, alice);
	unload(scene, scene_open(scene, 0), 1);
	assert_null(find_item(scene, CORE_OUTCOME_UNLOADED));
	held = find_item(scene, CORE_OUTCOME_HELD);
	assert_int_equal(held->unload.why, CORE_WHY_MAPPED);
	assert_int_equal(held->unload.bytes, N_BLOCKS * BLOCK);
	assert_int_equal(held->unload.holder, alice);
	assert_int_equal(scene_count(scene, ACT_UNLOAD_ITEM), 2); /* and the images, in use */
	scene_free(scene);
}

static void what_a_ghost_does_not_map_is_unloaded_and_not_held(void **state)
{
	uint64_t alice;
	uint64_t bob;
	struct scene *scene = given_both(&alice, &bob);

	(void)state;
	scene_client_event(scene, EV_CLIENT_CLOSED, bob);
	unload(scene, scene_open(scene, 0), 1);
	assert_int_equal(find_item(scene, CORE_OUTCOME_UNLOADED)->unload.bytes, N_BLOCKS * BLOCK);
	assert_int_equal(find_item(scene, CORE_OUTCOME_UNLOADED)->unload.freed, N_BLOCKS * BLOCK);
	assert_int_equal(find_item(scene, CORE_OUTCOME_HELD)->unload.bytes, N_BLOCKS * BLOCK);
	assert_int_equal(find_item(scene, CORE_OUTCOME_HELD)->unload.holder, bob);
	scene_drop_all(scene);
	unload(scene, scene_open(scene, 0), 1); /* said again */
	assert_null(find_item(scene, CORE_OUTCOME_UNLOADED));
	assert_int_equal(find_item(scene, CORE_OUTCOME_HELD)->unload.bytes, N_BLOCKS * BLOCK);
	scene_free(scene);
}

/* Alice leases blocks that were moved away since; he never had them. */
static void of_an_older_place_only_who_has_blocks_is_named(void **state)
{
	uint64_t alice;
	uint64_t bob;
	uint64_t model;
	struct scene *scene = given_both(&alice, &bob);
	const uint32_t request = scene_load(scene, alice, 1, attached);

	(void)state;
	model = scene_model(scene, 1);
	scene_expect(scene, alice, request, 0);
	placed_moved(scene, alice, 1, "2222");
	(void)scene_step(scene, (struct core_event){.type = EV_UNLOAD,
						    .client = scene_open(scene, 0),
						    .request = ++scene->last_request,
						    .unload = {.models = &model,
							       .n_models = 1,
							       .by_name = true,
							       .has_device = true,
							       .device = 1,
							       .recall_ns = ONE_SECOND}});
	assert_int_equal(scene_count(scene, ACT_RECALL), 1);
	assert_int_equal(scene_find(scene, ACT_RECALL, 0)->client, alice);
	assert_int_equal(find_item(scene, CORE_OUTCOME_HELD)->unload.holder, alice);
	scene_free(scene);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(blocks_leave_for_want_of_use_though_another_uses_the_images),
		cmocka_unit_test(blocks_give_way_though_another_uses_the_images),
		cmocka_unit_test(what_an_administrator_places_lingers),
		cmocka_unit_test(what_a_ghost_maps_beside_a_lease_is_not_told_as_freed),
		cmocka_unit_test(what_a_ghost_does_not_map_is_unloaded_and_not_held),
		cmocka_unit_test(of_an_older_place_only_who_has_blocks_is_named),
	};

	return cmocka_run_group_tests_name("daemon/core/users", tests, NULL, NULL);
}
