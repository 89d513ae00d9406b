/* SPDX-License-Identifier: Apache-2.0 */
/* What lay on other devices too comes back after a restart, and what does not is told of. */
#include "tests/unit/daemon/core/placed.h"

static const struct scene_load plain;
static const struct scene_load attached = {.attach = true, .map = true};

static const uint8_t uuid[16] = {7};

/* Returns the model; 0: refused. */
static uint64_t adopt(struct scene *scene, uint32_t inode, uint64_t generation, const char *layout)
{
	return scene_step(scene,
			  (struct core_event){.type = EV_ADOPT_PLACED,
					      .adopt_placed = {.key = &scene->keys[inode],
							       .uuid = uuid,
							       .file = ++scene->last_file,
							       .generation = generation,
							       .placement = placed_as(layout),
							       .owner_uid = 1000,
							       .placed_uid = 1000}});
}

static uint64_t adopt_image(struct scene *scene, uint32_t inode, uint64_t generation)
{
	return scene_step(scene, (struct core_event){.type = EV_ADOPT,
						     .adopt = {.key = &scene->keys[inode],
							       .uuid = uuid,
							       .file = ++scene->last_file,
							       .generation = generation,
							       .bytes = N_BLOCKS * BLOCK,
							       .owner_uid = 1000,
							       .backing = CORE_BACKING_IMAGE}});
}

static void adopted(struct scene *scene)
{
	(void)scene_step(scene, (struct core_event){.type = EV_ADOPTED});
}

static void found(struct scene *scene, uint32_t inode, const char *layout, uint32_t devices)
{
	(void)scene_step(scene,
			 (struct core_event){.type = EV_DEVICES_FOUND,
					     .devices_found = {.model = scene_model(scene, inode),
							       .placement = placed_as(layout),
							       .devices = devices}});
}

static struct scene *begun(void)
{
	const struct core_config config = placed_config();
	struct scene *scene = scene_new(&config);

	placed_lose(scene, 1); /* as at a start: until they are there */
	placed_lose(scene, 2);
	return scene;
}

static void it_is_known_and_filled_when_its_devices_are_there(void **state)
{
	struct scene *scene = begun();
	uint64_t client = scene_open(scene, 1000);
	uint32_t request;

	(void)state;
	assert_true(adopt(scene, 1, 5, "1122") != 0);
	adopted(scene);
	assert_true(scene_view(scene, 1).is_torn);
	assert_int_equal(scene_view(scene, 1).generation, 0);
	assert_int_equal(scene_view(scene, 1).placement, placed_as("1122"));
	placed_back(scene, 1);
	placed_back(scene, 2);
	assert_int_equal(scene_view(scene, 1).job, 0); /* nobody has said which devices */
	placed_lose(scene, 2);
	found(scene, 1, "1122", 0x7);
	assert_int_equal(scene_view(scene, 1).job, 0);
	placed_back(scene, 2);
	placed_finish(scene, 1, false);
	placed_assert(scene, 1, "1122");
	assert_int_equal(scene_view(scene, 1).generation, 6); /* numbers grow over restarts */
	assert_int_equal(scene_count(scene, ACT_RECORD_PLACED), 0);
	request = scene_load(scene, client, 1, attached);
	scene_expect(scene, client, request, 0);
	assert_int_equal(scene_reply(scene, client, request)->reply.source, CORE_SOURCE_RAM);
	scene_free(scene);
}

static void devices_that_are_there_begin_it_at_once(void **state)
{
	struct scene *scene = begun();

	(void)state;
	placed_back(scene, 1);
	placed_back(scene, 2);
	(void)adopt(scene, 1, 1, "1000");
	found(scene, 1, "2000", 0x5); /* it is called otherwise now */
	assert_int_equal(scene_view(scene, 1).job_placement, placed_as("2000"));
	assert_int_equal(scene_view(scene, 1).job_placed_uid, 1000);
	placed_finish(scene, 1, false);
	placed_assert(scene, 1, "2000");
	scene_free(scene);
}

static void what_makes_no_sense_is_refused(void **state)
{
	struct scene *scene = begun();

	(void)state;
	assert_int_equal(adopt(scene, 1, 3, HOST_LAYOUT), 0);
	assert_int_equal(scene_count(scene, ACT_CLOSE_FILE), 1);
	assert_int_equal(adopt(scene, 1, 0, "1122"), 0);
	assert_true(adopt(scene, 1, 3, "1122") != 0);
	assert_int_equal(adopt(scene, 1, 3, "1122"), 0); /* once more */
	assert_int_equal(adopt(scene, 1, 2, "1122"), 0); /* older */
	placed_back(scene, 1);
	placed_back(scene, 2);
	found(scene, 1, "1122", 0);
	found(scene, 1, "1122", 1U << N_DEVICES);
	found(scene, 1, HOST_LAYOUT, 0x3);
	assert_int_equal(scene_view(scene, 1).job, 0);
	found(scene, 1, "1122", 0x7);
	placed_finish(scene, 1, false);
	found(scene, 1, "2211", 0x7); /* it is whole */
	assert_int_equal(scene_view(scene, 1).job, 0);
	placed_assert(scene, 1, "1122");
	scene_free(scene);
}

static void a_load_meanwhile_serves_and_ends_the_waiting(void **state)
{
	struct scene *scene = begun();
	uint64_t client = scene_open(scene, 1000);
	uint32_t request;

	(void)state;
	(void)adopt(scene, 1, 1, "1122");
	adopted(scene);
	request = scene_load(scene, client, 1, attached);
	placed_finish(scene, 1, false);
	scene_expect(scene, client, request, 0);
	placed_assert(scene, 1, HOST_LAYOUT);
	assert_int_equal(scene_count(scene, ACT_RECORD_PLACED), 1);
	placed_back(scene, 1);
	placed_back(scene, 2);
	found(scene, 1, "1122", 0x7);
	assert_int_equal(scene_view(scene, 1).job, 0);
	scene_free(scene);
}

static void images_of_the_same_content_serve_and_stay(void **state)
{
	struct scene *scene = begun();
	uint64_t client = scene_open(scene, 1000);
	uint32_t request;

	(void)state;
	assert_true(adopt_image(scene, 1, 4) != 0);
	assert_true(adopt(scene, 1, 5, "1120") != 0);
	adopted(scene);
	placed_assert(scene, 1, HOST_LAYOUT);
	assert_int_equal(scene_view(scene, 1).generation, 4);
	request = scene_load(scene, client, 1, attached);
	scene_expect(scene, client, request, 0);
	placed_back(scene, 1);
	placed_back(scene, 2);
	found(scene, 1, "1120", 0x7);
	placed_header(scene, 1, true);
	assert_int_equal(scene_count(scene, ACT_FILL), 3); /* the image stays */
	scene_fill(scene, 1, 0);
	placed_tabled(scene, 1, 0);
	assert_true(scene_is_resident(scene, 1));
	assert_true(scene_view(scene, 1).has_host);
	assert_int_equal(scene_view(scene, 1).generation, 6);
	scene_free(scene);
}

static void images_of_another_content_go(void **state)
{
	struct scene *scene = begun();

	(void)state;
	assert_true(adopt_image(scene, 1, 4) != 0);
	scene->keys[1].mtime_ns++;
	assert_true(adopt(scene, 1, 5, "1120") != 0);
	assert_int_equal(scene_count(scene, ACT_RETIRE), 1);
	adopted(scene);
	assert_int_equal(scene_count(scene, ACT_DROP), 1);
	scene_drop_all(scene);
	assert_int_equal(placed_resident(scene, 0), 0);
	assert_true(scene_view(scene, 1).is_torn);
	assert_true(scene_view(scene, 1).file != 0);
	scene_free(scene);
}

static void images_that_are_newer_take_its_place(void **state)
{
	struct scene *scene = begun();

	(void)state;
	assert_true(adopt(scene, 1, 4, "1120") != 0);
	assert_true(adopt_image(scene, 1, 5) != 0);
	assert_int_equal(scene_count(scene, ACT_RECORD_PLACED), 1);
	assert_false(scene_view(scene, 1).is_torn);
	adopted(scene);
	placed_assert(scene, 1, HOST_LAYOUT);
	assert_int_equal(adopt(scene, 1, 4, "1120"), 0);
	found(scene, 1, "1120", 0x1);
	placed_assert(scene, 1, HOST_LAYOUT);
	scene_free(scene);
}

static void a_newer_placement_takes_the_place_of_an_older(void **state)
{
	struct scene *scene = begun();

	(void)state;
	assert_true(adopt(scene, 1, 4, "1120") != 0);
	assert_int_equal(adopt(scene, 1, 5, "2200"), scene_model(scene, 1));
	assert_int_equal(scene_count(scene, ACT_CLOSE_FILE), 1); /* that of the older */
	placed_back(scene, 2);
	found(scene, 1, "2200", 0x5);
	placed_finish(scene, 1, false);
	placed_assert(scene, 1, "2200");
	scene_free(scene);
}

static uint32_t unload(struct scene *scene, uint64_t client, uint32_t inode, bool has_device)
{
	const uint64_t model = scene_model(scene, inode);

	(void)scene_step(scene, (struct core_event){.type = EV_UNLOAD,
						    .client = client,
						    .request = ++scene->last_request,
						    .unload = {.models = &model,
							       .n_models = 1,
							       .by_name = true,
							       .has_device = has_device,
							       .device = 1}});
	return scene->last_request;
}

static void unloaded_before_it_is_back_it_is_given_up(void **state)
{
	struct scene *scene = begun();
	uint64_t client = scene_open(scene, 1000);

	(void)state;
	(void)adopt(scene, 1, 1, "1122");
	adopted(scene);
	scene_expect(scene, client, unload(scene, client, 1, false), 0);
	assert_int_equal(scene_count(scene, ACT_RECORD_PLACED), 1);
	assert_int_equal(scene_count(scene, ACT_CLOSE_FILE), 1);
	assert_int_equal(scene_view(scene, 1).file, 0);
	placed_back(scene, 1);
	placed_back(scene, 2);
	found(scene, 1, "1122", 0x7);
	assert_int_equal(scene_view(scene, 1).job, 0);
	scene_free(scene);
}

static void a_fill_that_fails_leaves_it_to_the_next_time(void **state)
{
	struct scene *scene = begun();

	(void)state;
	(void)adopt(scene, 1, 1, "1122");
	found(scene, 1, "1122", 0x7);
	placed_back(scene, 1);
	placed_back(scene, 2);
	placed_header(scene, 1, false);
	placed_lose(scene, 2);
	scene_fill(scene, 1, WIRE_DEVICE_LOST);
	scene_drop_all(scene);
	assert_int_equal(scene_view(scene, 1).job, 0);
	assert_true(scene_view(scene, 1).is_torn);
	placed_back(scene, 2);
	placed_finish(scene, 1, false);
	placed_assert(scene, 1, "1122");
	scene_free(scene);
}

/* Each of what ends it says so, once. */
static void what_does_not_come_back_is_told(void **state)
{
	const struct core_config config = placed_config();
	struct scene *scene = scene_new(&config);
	uint64_t client = scene_open(scene, 1000);

	(void)state;
	(void)placed_loaded(scene, client, 1, "1122", plain);
	(void)unload(scene, client, 1, false);
	assert_int_equal(scene_count(scene, ACT_RECORD_PLACED), 1);
	scene_drop_all(scene);
	(void)placed_loaded(scene, client, 2, "1122", plain);
	(void)unload(scene, client, 2, true); /* of one device: it is no longer whole */
	assert_int_equal(scene_count(scene, ACT_RECORD_PLACED), 1);
	scene_drop_all(scene);
	(void)unload(scene, client, 2, false);
	assert_int_equal(scene_count(scene, ACT_RECORD_PLACED), 0);
	scene_drop_all(scene);
	(void)placed_loaded(scene, client, 3, "1122", plain);
	(void)placed_place(scene, client, 3, "2211");
	placed_header(scene, 3, false);
	scene_fill(scene, 3, 0);
	placed_tabled(scene, 3, 0); /* its record takes the place of the older one */
	assert_int_equal(scene_count(scene, ACT_RECORD_PLACED), 0);
	scene_drop_all(scene);
	(void)placed_place(scene, client, 3, HOST_LAYOUT);
	placed_header(scene, 3, false);
	scene_fill(scene, 3, 0);
	placed_tabled(scene, 3, 0);
	assert_int_equal(scene_count(scene, ACT_RECORD_PLACED), 1);
	scene_free(scene);
}

static void what_is_lost_with_its_device_still_comes_back(void **state)
{
	const struct core_config config = placed_config();
	struct scene *scene = scene_new(&config);
	uint64_t client = scene_open(scene, 1000);

	(void)state;
	(void)placed_loaded(scene, client, 1, "1122", plain);
	placed_lose(scene, 1);
	assert_int_equal(scene_count(scene, ACT_RECORD_PLACED), 0);
	assert_true(scene_view(scene, 1).is_torn);
	assert_int_equal(scene_view(scene, 1).torn_devices, 0x6);
	placed_lose(scene, 2); /* all of it */
	assert_int_equal(scene_count(scene, ACT_RECORD_PLACED), 0);
	(void)unload(scene, client, 1, false);
	assert_int_equal(scene_count(scene, ACT_RECORD_PLACED), 1);
	scene_free(scene);
}

/* As idle as it was: its time goes on. */
static void what_comes_back_was_not_used_by_that(void **state)
{
	const struct scene_load short_lived = {
		.policy = {.said = CORE_SAID_TTL, .ttl_ns = 2 * ONE_SECOND}};
	const struct core_config config = placed_config();
	struct scene *scene = scene_new(&config);
	uint64_t client = scene_open(scene, 1000);
	uint64_t used_ns;

	(void)state;
	used_ns = scene->now_ns;
	(void)placed_loaded(scene, client, 1, "1122", short_lived);
	placed_lose(scene, 1);
	placed_back(scene, 1);
	placed_finish(scene, 1, false);
	placed_assert(scene, 1, "1122");
	assert_int_equal(scene_view(scene, 1).last_used_ns, used_ns);
	assert_int_equal(scene->next_deadline_ns, used_ns + 2 * ONE_SECOND);
	placed_lose(scene, 1);
	placed_lose(scene, 2);
	scene->now_ns = used_ns + 2 * ONE_SECOND;
	placed_back(scene, 1);
	placed_back(scene, 2);
	assert_int_equal(scene_view(scene, 1).job, 0); /* it would go at once */
	assert_int_equal(scene_view(scene, 1).file, 0);
	assert_int_equal(scene_count(scene, ACT_RECORD_PLACED), 1);
	scene_free(scene);
}

/* Also by one who does not wait for it. */
static void a_move_that_somebody_asked_for_is_use(void **state)
{
	const struct core_config config = placed_config();
	struct scene *scene = scene_new(&config);
	uint64_t client = scene_open(scene, 1000);

	(void)state;
	(void)placed_loaded(scene, client, 1, "1122", plain);
	(void)placed_place(scene, client, 1, "2211");
	placed_finish(scene, 1, false);
	assert_int_equal(scene_view(scene, 1).last_used_ns, scene->now_ns);
	scene_drop_all(scene);
	scene->now_ns += ONE_SECOND;
	placed_lose(scene, 1);
	placed_back(scene, 1);
	(void)scene_load(scene, client, 1, (struct scene_load){.no_wait = true});
	placed_finish(scene, 1, false);
	assert_int_equal(scene_view(scene, 1).last_used_ns, scene->now_ns);
	scene_free(scene);
}

/* Of a client that mapped it when the daemon ended, and whose process is there. */
static uint64_t adopt_lease(struct scene *scene, uint64_t client, uint64_t generation,
			    uint64_t bytes)
{
	return scene_step(scene, (struct core_event){.type = EV_ADOPT_LEASE,
						     .client = client,
						     .adopt_lease = {.model = scene_model(scene, 1),
								     .generation = generation,
								     .bytes = bytes}});
}

static uint64_t held_on_host(struct scene *scene)
{
	struct core_account_view view;

	core_account_get(scene->core, 0, &view);
	return view.held;
}

/* Its image was not kept: who maps it holds its bytes all the same, once. */
static void what_is_still_mapped_is_held_over_a_restart(void **state)
{
	struct scene *scene = begun();
	uint64_t client = scene_open(scene, 1000);
	uint64_t other = scene_open(scene, 1000);

	(void)state;
	assert_true(adopt(scene, 1, 5, "1120") != 0);
	assert_true(adopt_lease(scene, client, 5, BLOCK) != 0);
	assert_true(adopt_lease(scene, other, 5, BLOCK) != 0);
	assert_true(adopt_lease(scene, client, 4, 2 * BLOCK) != 0); /* of one before */
	assert_int_equal(held_on_host(scene), 3 * BLOCK);
	scene_client_event(scene, EV_CLIENT_CLOSED, client);
	scene_client_event(scene, EV_CLIENT_CLOSED, other);
	adopted(scene);
	assert_int_equal(held_on_host(scene), 3 * BLOCK);
	placed_back(scene, 1);
	placed_back(scene, 2);
	found(scene, 1, "1120", 0x7);
	placed_finish(scene, 1, false);
	assert_int_equal(scene_view(scene, 1).generation, 6); /* beside what is held */
	scene_client_event(scene, EV_PROCESS_GONE, client);
	assert_int_equal(held_on_host(scene), BLOCK);
	scene_client_event(scene, EV_PROCESS_GONE, other);
	assert_int_equal(held_on_host(scene), 0);
	scene_free(scene);
}

/* Also of what an image has that is there: that is charged already. */
static void what_a_ledger_cannot_mean_is_not_held(void **state)
{
	struct scene *scene = begun();
	uint64_t client = scene_open(scene, 1000);

	(void)state;
	assert_true(adopt_image(scene, 1, 4) != 0);
	assert_true(adopt_lease(scene, client, 4, BLOCK) != 0);
	assert_int_equal(adopt_lease(scene, client, 3, 0), 0);
	assert_int_equal(adopt_lease(scene, client, 0, BLOCK), 0);
	assert_int_equal(adopt_lease(scene, client, 1ULL << 63, BLOCK), 0);
	assert_int_equal(adopt_lease(scene, client, 3, INT64_MAX), 0);
	assert_int_equal(adopt_lease(scene, client, 3, UINT64_MAX), 0);
	assert_int_equal(held_on_host(scene), 0);
	scene_free(scene);
}

/* An image of before that all who come make theirs, beside one that only who maps it has. */
static void what_is_mapped_still_is_not_what_came_back(void **state)
{
	struct scene *scene = begun();
	uint64_t image = scene_open(scene, 1000);
	uint64_t sparse = scene_open(scene, 1000);
	uint64_t unparked = scene_open(scene, 1000);
	struct core_client_view view;

	(void)state;
	assert_true(adopt_image(scene, 1, 4) != 0);
	assert_true(adopt(scene, 1, 5, "1120") != 0);
	assert_true(adopt_lease(scene, image, 4, N_BLOCKS * BLOCK) != 0);
	assert_true(adopt_lease(scene, sparse, 5, BLOCK) != 0);
	assert_true(adopt_lease(scene, unparked, 6, BLOCK) != 0);
	scene_client_event(scene, EV_CLIENT_CLOSED, image);
	scene_client_event(scene, EV_CLIENT_CLOSED, sparse);
	scene_client_event(scene, EV_CLIENT_CLOSED, unparked);
	adopted(scene);
	placed_back(scene, 1);
	placed_back(scene, 2);
	found(scene, 1, "1120", 0x7);
	placed_header(scene, 1, true);
	scene_fill(scene, 1, 0);
	placed_tabled(scene, 1, 0);
	assert_int_equal(scene_view(scene, 1).generation, 7); /* never one that somebody maps */
	assert_int_equal(held_on_host(scene), 2 * BLOCK);
	assert_true(core_client_get(scene->core, sparse, &view));
	assert_int_equal(view.held_bytes, BLOCK);
	scene_client_event(scene, EV_PROCESS_GONE, image);
	assert_true(core_client_get(scene->core, sparse, &view));
	assert_int_equal(view.held_bytes, BLOCK);
	(void)unload(scene, scene_open(scene, 0), 1, false);
	scene_drop_all(scene);
	assert_int_equal(held_on_host(scene), 2 * BLOCK); /* the image is free */
	scene_client_event(scene, EV_PROCESS_GONE, unparked);
	scene_client_event(scene, EV_PROCESS_GONE, sparse);
	assert_int_equal(held_on_host(scene), 0);
	scene_free(scene);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(it_is_known_and_filled_when_its_devices_are_there),
		cmocka_unit_test(devices_that_are_there_begin_it_at_once),
		cmocka_unit_test(what_makes_no_sense_is_refused),
		cmocka_unit_test(a_load_meanwhile_serves_and_ends_the_waiting),
		cmocka_unit_test(images_of_the_same_content_serve_and_stay),
		cmocka_unit_test(images_of_another_content_go),
		cmocka_unit_test(images_that_are_newer_take_its_place),
		cmocka_unit_test(a_newer_placement_takes_the_place_of_an_older),
		cmocka_unit_test(unloaded_before_it_is_back_it_is_given_up),
		cmocka_unit_test(a_fill_that_fails_leaves_it_to_the_next_time),
		cmocka_unit_test(what_does_not_come_back_is_told),
		cmocka_unit_test(what_is_lost_with_its_device_still_comes_back),
		cmocka_unit_test(what_comes_back_was_not_used_by_that),
		cmocka_unit_test(a_move_that_somebody_asked_for_is_use),
		cmocka_unit_test(what_is_still_mapped_is_held_over_a_restart),
		cmocka_unit_test(what_a_ledger_cannot_mean_is_not_held),
		cmocka_unit_test(what_is_mapped_still_is_not_what_came_back),
	};

	return cmocka_run_group_tests_name("daemon/core/return", tests, NULL, NULL);
}
