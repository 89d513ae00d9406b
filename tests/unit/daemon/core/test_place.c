/* SPDX-License-Identifier: Apache-2.0 */
/* Where blocks lie: loads with a placement, who may have what, eviction, lingering, lost devices. */
#include "tests/unit/daemon/core/placed.h"

static const struct scene_load plain;
static const struct scene_load attached = {.attach = true, .map = true};

static void a_load_lies_where_it_was_asked_for(void **state)
{
	const struct core_config config = placed_config();
	struct scene *scene = scene_new(&config);
	uint64_t client = scene_open(scene, 1000);

	(void)state;
	(void)placed_loaded(scene, client, 1, "1120", attached);
	placed_assert(scene, 1, "1120");
	assert_int_equal(placed_resident(scene, 0), BLOCK); /* a sparse image */
	assert_int_equal(placed_resident(scene, 1), 2 * BLOCK);
	assert_int_equal(placed_resident(scene, 2), BLOCK);
	scene_free(scene);
}

static bool has_blocks(const struct scene *scene, uint64_t client, uint32_t request)
{
	struct core_lease_view lease;

	assert_true(core_lease_get(scene->core, scene_reply(scene, client, request)->reply.lease,
				   &lease));
	return lease.has_blocks;
}

static void who_wants_it_as_it_lies_is_answered_at_once(void **state)
{
	const struct core_config config = placed_config();
	struct scene *scene = scene_new(&config);
	uint64_t client = scene_open(scene, 1000);
	struct scene_load with = attached;
	uint32_t request;

	(void)state;
	(void)placed_loaded(scene, client, 1, "1122", attached);
	request = scene_load(scene, client, 1, attached); /* ANY */
	scene_expect(scene, client, request, 0);
	assert_int_equal(scene_reply(scene, client, request)->reply.source, CORE_SOURCE_RAM);
	with.placement = placed_as("1122");
	request = scene_load(scene, client, 1, with);
	scene_expect(scene, client, request, 0);
	assert_true(scene_reply(scene, client, request)->reply.lease != 0);
	request = placed_place(scene, client, 1, "1122");
	scene_expect(scene, client, request, 0);
	assert_int_equal(scene_reply(scene, client, request)->reply.lease, 0);
	placed_assert(scene, 1, "1122");
	scene_free(scene);
}

static void equal_placements_join(void **state)
{
	const struct core_config config = placed_config();
	struct scene *scene = scene_new(&config);
	uint64_t one = scene_open(scene, 1000);
	uint64_t other = scene_open(scene, 1000);
	struct scene_load with = {.placement = placed_as("1122")};
	uint32_t first = scene_load(scene, one, 1, with);
	uint32_t second = scene_load(scene, other, 1, with);

	(void)state;
	placed_header(scene, 1, false);
	assert_int_equal(scene_count(scene, ACT_FILL), N_BLOCKS);
	scene_fill(scene, 1, 0);
	assert_int_equal(scene_count(scene, ACT_MAKE_TABLE), 1);
	placed_tabled(scene, 1, 0);
	scene_expect(scene, one, first, 0);
	scene_expect(scene, other, second, 0);
	assert_int_equal(scene_reply(scene, other, second)->reply.source, CORE_SOURCE_JOINED);
	assert_int_equal(scene_count(scene, ACT_READ_HEADER), 0);
	placed_assert(scene, 1, "1122");
	scene_free(scene);
}

static void another_placement_moves_what_does_not_stay(void **state)
{
	const struct core_config config = placed_config();
	struct scene *scene = scene_new(&config);
	uint64_t client = scene_open(scene, 1000);
	uint64_t lease = placed_loaded(scene, client, 1, "1111", attached);
	uint64_t generation = scene_view(scene, 1).generation;
	struct core_lease_view view;
	uint32_t request = placed_place(scene, client, 1, "1122");

	(void)state;
	assert_int_equal(scene_count(scene, ACT_READ_HEADER), 1);
	assert_null(scene_note(scene, CORE_NOTE_LOAD_BEGUN));
	placed_header(scene, 1, false);
	assert_int_equal(scene_count(scene, ACT_FILL), 2);
	assert_true(scene_is_resident(scene, 1)); /* it serves meanwhile */
	scene_expect(scene, client, scene_load(scene, client, 1, plain), 0);
	scene_fill(scene, 1, 0);
	placed_tabled(scene, 1, 0);
	scene_expect(scene, client, request, 0);
	assert_int_equal(scene_note(scene, CORE_NOTE_PLACED)->note.bytes, 2 * BLOCK);
	assert_true(scene_view(scene, 1).generation > generation);
	assert_true(core_lease_get(scene->core, lease, &view));
	assert_int_equal(view.generation, generation);
	assert_int_equal(view.bytes, N_BLOCKS * BLOCK);
	/* What moved stays while it is leased where it was. */
	assert_int_equal(placed_count(scene, 1, 1, SEGMENT_READY), 4);
	scene_lease_event(scene, EV_DETACH, client, lease);
	assert_int_equal(placed_count(scene, 1, 1, SEGMENT_DROPPING), 2);
	scene_drop_all(scene);
	placed_assert(scene, 1, "1122");
	assert_int_equal(placed_resident(scene, 1), 2 * BLOCK);
	scene_free(scene);
}

static void any_serves_as_it_lies_and_host_moves_it_back(void **state)
{
	const struct core_config config = placed_config();
	struct scene *scene = scene_new(&config);
	uint64_t client = scene_open(scene, 1000);
	uint32_t request;

	(void)state;
	(void)placed_loaded(scene, client, 1, "1100", plain);
	request = scene_load(scene, client, 1, plain);
	scene_expect(scene, client, request, 0);
	request =
		scene_load(scene, client, 1, (struct scene_load){.placement = CORE_PLACEMENT_HOST});
	assert_null(scene_reply(scene, client, request));
	placed_header(scene, 1, false);
	assert_int_equal(scene_count(scene, ACT_FILL), 1); /* another image, whole */
	assert_int_equal(scene_find(scene, ACT_FILL, 0)->fill.bytes, N_BLOCKS * BLOCK);
	scene_fill(scene, 1, 0);
	placed_tabled(scene, 1, 0);
	scene_expect(scene, client, request, 0);
	scene_drop_all(scene);
	placed_assert(scene, 1, HOST_LAYOUT);
	assert_int_equal(placed_resident(scene, 1), 0);
	scene_free(scene);
}

static void a_file_that_was_only_renamed_keeps_its_placement(void **state)
{
	const struct core_config config = placed_config();
	struct scene *scene = scene_new(&config);
	uint64_t client = scene_open(scene, 1000);

	(void)state;
	(void)placed_loaded(scene, client, 1, "1122", plain);
	scene->keys[1].ctime_ns++;
	(void)scene_load(scene, client, 1, plain);
	placed_header(scene, 1, false);
	assert_int_equal(scene_count(scene, ACT_FILL), N_BLOCKS); /* nothing proves it the same */
	scene_fill(scene, 1, 0);
	placed_tabled(scene, 1, 0);
	scene_drop_all(scene);
	placed_assert(scene, 1, "1122");
	scene_free(scene);
}

/* ---- users ---- */

static void another_user_gets_images_and_may_not_move(void **state)
{
	const struct core_config config = placed_config();
	struct scene *scene = scene_new(&config);
	uint64_t owner = scene_open(scene, 1000);
	uint64_t other = scene_open(scene, 1001);
	struct scene_load with = {.placement = placed_as("2222")};
	uint32_t request;

	(void)state;
	(void)placed_loaded(scene, owner, 1, "1122", attached);
	scene_expect(scene, other, scene_load(scene, other, 1, with), WIRE_NOT_ALLOWED);
	scene_expect(scene, other, placed_place(scene, other, 1, "2222"), WIRE_NOT_ALLOWED);
	scene_expect(scene, other, placed_place(scene, other, 1, HOST_LAYOUT), WIRE_NOT_ALLOWED);
	(void)scene_step(scene, (struct core_event){.type = EV_ATTACH,
						    .client = other,
						    .request = ++scene->last_request,
						    .attach = {.model = scene_model(scene, 1)}});
	scene_expect(scene, other, scene->last_request, WIRE_NOT_RESIDENT);
	request = scene_load(scene, other, 1, attached);
	assert_true(scene_find(scene, ACT_READ_HEADER, 0)->fill.with_host);
	placed_header(scene, 1, true);
	assert_int_equal(scene_count(scene, ACT_FILL), 1); /* the blocks stay */
	scene_fill(scene, 1, 0);
	placed_tabled(scene, 1, 0);
	scene_expect(scene, other, request, 0);
	assert_true(scene_view(scene, 1).has_host);
	assert_int_equal(scene_view(scene, 1).placed_uid, 1000);
	assert_false(has_blocks(scene, other, request));
	request =
		scene_load(scene, other, 1, (struct scene_load){.placement = CORE_PLACEMENT_HOST});
	scene_expect(scene, other, request, 0); /* that is what he has */
	request = scene_load(scene, owner, 1, attached);
	scene_expect(scene, owner, request, 0);
	assert_true(has_blocks(scene, owner, request));
	scene_free(scene);
}

static void images_that_went_are_made_again_for_those_who_need_them(void **state)
{
	const struct core_config config = placed_config();
	struct scene *scene = scene_new(&config);
	uint64_t owner = scene_open(scene, 1000);
	uint64_t other = scene_open(scene, 1001);
	uint32_t request;

	(void)state;
	(void)placed_loaded(scene, owner, 1, "1122", plain);
	(void)scene_load(scene, other, 1, plain);
	placed_finish(scene, 1, true);
	(void)scene_step(scene, (struct core_event){.type = EV_PRESSURE,
						    .pressure = {.device = 0, .wanted = BLOCK}});
	scene_drop_all(scene);
	request = scene_load(scene, owner, 1, plain);
	placed_header(scene, 1, false);
	assert_int_equal(scene_count(scene, ACT_FILL), 0);
	placed_tabled(scene, 1, 0);
	scene_expect(scene, owner, request, 0);
	placed_assert(scene, 1, "1122");
	request = scene_load(scene, other, 1, plain);
	placed_header(scene, 1, true);
	assert_int_equal(scene_count(scene, ACT_FILL), 1);
	scene_fill(scene, 1, 0);
	placed_tabled(scene, 1, 0);
	scene_expect(scene, other, request, 0);
	scene_free(scene);
}

static void an_administrator_moves_it_for_whom_it_was_placed(void **state)
{
	const struct core_config config = placed_config();
	struct scene *scene = scene_new(&config);
	uint64_t owner = scene_open(scene, 1000);
	uint64_t placer = scene_open(scene, 1001);
	uint64_t root = scene_open(scene, 0);
	struct scene_load with = {.placement = placed_as("1222")};
	uint32_t request;

	(void)state;
	(void)scene_loaded(scene, owner, 1, N_BLOCKS * BLOCK, plain);
	(void)placed_loaded(scene, placer, 1, "1111", plain);
	placed_moved(scene, root, 1, "1122");
	assert_int_equal(scene_view(scene, 1).placed_uid, 1001);
	request = scene_load(scene, root, 1, with);
	placed_finish(scene, 1, false);
	scene_expect(scene, root, request, 0);
	assert_int_equal(scene_view(scene, 1).placed_uid, 1001);
	/* Behind another move, too. */
	(void)placed_place(scene, placer, 1, "1111");
	request = placed_place(scene, root, 1, "2222");
	placed_finish(scene, 1, false);
	assert_null(scene_reply(scene, root, request));
	placed_finish(scene, 1, false);
	scene_expect(scene, root, request, 0);
	assert_int_equal(scene_view(scene, 1).placed_uid, 1001);
	scene_drop_all(scene);
	placed_assert(scene, 1, "2222");
	placed_moved(scene, root, 1, HOST_LAYOUT);
	placed_assert(scene, 1, HOST_LAYOUT);
	scene_free(scene);
}

static void who_waits_behind_anothers_placement_is_told_or_gets_images(void **state)
{
	const struct core_config config = placed_config();
	struct scene *scene = scene_new(&config);
	uint64_t owner = scene_open(scene, 1000);
	uint64_t other = scene_open(scene, 1001);
	uint32_t placing;
	uint32_t using;

	(void)state;
	(void)scene_load(scene, owner, 1, (struct scene_load){.placement = placed_as("1111")});
	placing = scene_load(scene, other, 1, (struct scene_load){.placement = placed_as("2222")});
	using = scene_load(scene, other, 1, attached);
	placed_finish(scene, 1, false);
	scene_expect(scene, other, placing, WIRE_NOT_ALLOWED);
	assert_null(scene_reply(scene, other, using));
	placed_finish(scene, 1, true);
	scene_expect(scene, other, using, 0);
	assert_int_equal(scene_view(scene, 1).placed_uid, 1000);
	assert_true(scene_view(scene, 1).has_host);
	scene_free(scene);
}

static void who_does_not_wait_moves_no_blocks_of_another(void **state)
{
	const struct core_config config = placed_config();
	struct scene *scene = scene_new(&config);
	uint64_t owner = scene_open(scene, 1000);
	uint64_t other = scene_open(scene, 1001);
	struct scene_load with = {.no_wait = true, .placement = placed_as("2222")};

	(void)state;
	(void)scene_load(scene, owner, 1, (struct scene_load){.placement = placed_as("1111")});
	scene_expect(scene, other, scene_load(scene, other, 1, with), 0);
	placed_finish(scene, 1, false);
	placed_assert(scene, 1, "1111");
	scene_free(scene);
}

/* ---- eviction ---- */

static void blocks_are_evicted_from_the_tail_and_come_back_alone(void **state)
{
	const struct core_config config = placed_config();
	struct scene *scene = scene_new(&config);
	uint64_t client = scene_open(scene, 1000);
	struct core_segment_view view;
	uint32_t cursor = 0;

	(void)state;
	scene_budget(scene, 1, 6 * BLOCK);
	(void)placed_loaded(scene, client, 1, "1111", plain);
	(void)scene_load(scene, client, 2, (struct scene_load){.placement = placed_as("1111")});
	placed_header(scene, 2, false);
	assert_int_equal(placed_count(scene, 1, 1, SEGMENT_DROPPING), 2);
	assert_int_equal(scene_note(scene, CORE_NOTE_EVICTED)->note.bytes, 2 * BLOCK);
	assert_int_equal(scene_count(scene, ACT_NOTE), 1); /* for all that go */
	while (core_segment_next(scene->core, scene_model(scene, 1), &cursor, &view)) {
		assert_int_equal(view.state, view.index < 2 ? SEGMENT_READY : SEGMENT_DROPPING);
	}
	scene_drop_all(scene);
	scene_fill(scene, 2, 0);
	placed_tabled(scene, 2, 0);
	placed_assert(scene, 2, "1111");
	assert_int_equal(scene_view(scene, 1).state, CORE_MODEL_PARTIAL);
	scene_budget(scene, 1, 8 * BLOCK);
	(void)scene_load(scene, client, 1, plain);
	placed_header(scene, 1, false);
	assert_int_equal(scene_count(scene, ACT_FILL), 2);
	scene_fill(scene, 1, 0);
	placed_tabled(scene, 1, 0);
	placed_assert(scene, 1, "1111");
	scene_free(scene);
}

static void what_is_left_of_a_model_runs_out_too(void **state)
{
	const struct core_config config = placed_config();
	struct scene *scene = scene_new(&config);
	uint64_t client = scene_open(scene, 1000);

	(void)state;
	(void)placed_loaded(scene, client, 1, "1110",
			    (struct scene_load){
				    .policy = {.said = CORE_SAID_TTL, .ttl_ns = 10 * ONE_SECOND}});
	(void)scene_step(scene, (struct core_event){.type = EV_PRESSURE,
						    .pressure = {.device = 1, .wanted = BLOCK}});
	scene_drop_all(scene);
	assert_int_equal(placed_resident(scene, 1), 2 * BLOCK);
	assert_true(scene->next_deadline_ns <= scene->now_ns + 10 * ONE_SECOND);
	scene->now_ns = scene->next_deadline_ns;
	(void)scene_step(scene, (struct core_event){.type = EV_TICK});
	scene_drop_all(scene);
	assert_int_equal(placed_resident(scene, 0) + placed_resident(scene, 1), 0);
	scene_free(scene);
}

/* ---- lingering ---- */

static void let_linger(struct scene *scene)
{
	assert_true(scene->next_deadline_ns <= scene->now_ns + LINGER_NS);
	scene->now_ns = scene->next_deadline_ns;
	(void)scene_step(scene, (struct core_event){.type = EV_TICK});
}

static void unused_blocks_go_to_the_host(void **state)
{
	const struct core_config config = placed_config();
	struct scene *scene = scene_new(&config);
	uint64_t client = scene_open(scene, 1000);
	uint64_t lease = placed_loaded(scene, client, 1, "1120", attached);
	uint64_t used_ns = scene->now_ns;

	(void)state;
	assert_int_equal(scene->next_deadline_ns, UINT64_MAX); /* in use */
	scene_lease_event(scene, EV_DETACH, client, lease);
	let_linger(scene);
	assert_int_equal(scene_view(scene, 1).job_placement, CORE_PLACEMENT_HOST);
	placed_finish(scene, 1, false);
	assert_int_equal(scene_note(scene, CORE_NOTE_PLACED)->note.why, CORE_WHY_LINGERED);
	scene_drop_all(scene);
	placed_assert(scene, 1, HOST_LAYOUT);
	assert_int_equal(scene_view(scene, 1).last_used_ns, used_ns); /* nobody asked for it */
	assert_int_equal(placed_resident(scene, 1) + placed_resident(scene, 2), 0);
	scene_free(scene);
}

static void unused_blocks_take_no_room_from_others(void **state)
{
	const struct core_config config = placed_config();
	struct scene *scene = scene_new(&config);
	uint64_t client = scene_open(scene, 1000);

	(void)state;
	scene_budget(scene, 0, 5 * BLOCK);
	(void)scene_loaded(scene, client, 2, 3 * BLOCK, plain);
	(void)placed_loaded(scene, client, 1, "1120", plain);
	let_linger(scene);
	placed_header(scene, 1, false);
	assert_null(scene_note(scene, CORE_NOTE_REFUSED)); /* nobody asked for it */
	assert_int_equal(scene_note(scene, CORE_NOTE_EVICTED)->note.why, CORE_WHY_LINGERED);
	scene_drop_all(scene);
	assert_int_equal(placed_resident(scene, 1) + placed_resident(scene, 2), 0);
	assert_int_equal(scene_view(scene, 1).state, CORE_MODEL_PARTIAL);
	assert_true(scene_is_resident(scene, 2));
	scene_free(scene);
}

/* Only what lies there, and only what goes by time. */
static void unused_blocks_make_way_for_others(void **state)
{
	const struct core_config config = placed_config();
	struct scene *scene = scene_new(&config);
	struct core_event is_short = {.type = EV_DEVICE_SHORT, .device = {.device = 2}};
	uint64_t client = scene_open(scene, 1000);

	(void)state;
	(void)placed_loaded(scene, client, 1, "1110", plain);
	(void)placed_loaded(scene, client, 2, "2220", attached);
	(void)scene_step(scene, is_short);
	assert_int_equal(scene_view(scene, 1).job, 0);
	assert_int_equal(scene_view(scene, 2).job, 0); /* in use */
	is_short.device.device = 1;
	(void)scene_step(scene, is_short);
	assert_int_equal(scene_view(scene, 1).job_placement, CORE_PLACEMENT_HOST);
	placed_finish(scene, 1, false);
	assert_int_equal(scene_note(scene, CORE_NOTE_PLACED)->note.why, CORE_WHY_PRESSURE);
	scene_drop_all(scene);
	placed_assert(scene, 1, HOST_LAYOUT);
	placed_assert(scene, 2, "2220");
	scene_free(scene);
}

static void pinned_blocks_stay(void **state)
{
	const struct core_config config = placed_config();
	struct scene *scene = scene_new(&config);
	uint64_t client = scene_open(scene, 1000);
	struct core_policy pin = {.said = CORE_SAID_PIN, .pin = true};

	(void)state;
	(void)placed_loaded(scene, client, 1, "1122", plain);
	(void)scene_set(scene, client, 1, pin);
	assert_int_equal(scene->next_deadline_ns, UINT64_MAX);
	scene->now_ns += 2 * LINGER_NS;
	(void)scene_step(scene, (struct core_event){.type = EV_TICK});
	placed_assert(scene, 1, "1122");
	pin.pin = false;
	(void)scene_set(scene, client, 1, pin);
	assert_int_equal(scene_view(scene, 1).job_placement, CORE_PLACEMENT_HOST);
	scene_free(scene);
}

static void who_comes_back_keeps_the_blocks_where_they_are(void **state)
{
	const struct core_config config = placed_config();
	struct scene *scene = scene_new(&config);
	uint64_t client = scene_open(scene, 1000);
	uint32_t request;

	(void)state;
	(void)placed_loaded(scene, client, 1, "1122", plain);
	let_linger(scene);
	placed_header(scene, 1, false);
	request = scene_load(scene, client, 1, attached);
	scene_expect(scene, client, request, 0);
	assert_int_equal(scene_view(scene, 1).job, 0);
	scene_fill(scene, 1, WIRE_CANCELLED);
	scene_drop_all(scene);
	placed_assert(scene, 1, "1122");
	scene_free(scene);
}

/* ---- devices that go and come back ---- */

static void a_torn_model_comes_back_with_its_device(void **state)
{
	const struct core_config config = placed_config();
	struct scene *scene = scene_new(&config);
	uint64_t client = scene_open(scene, 1000);
	uint64_t lease = placed_loaded(scene, client, 1, "1120", attached);

	(void)state;
	placed_lose(scene, 1);
	assert_int_equal(scene_find(scene, ACT_LOST, 0)->lost.lease, lease);
	assert_int_equal(scene_note(scene, CORE_NOTE_EVICTED)->note.why, CORE_WHY_LOST);
	assert_int_equal(scene_view(scene, 1).state, CORE_MODEL_PARTIAL);
	assert_int_equal(placed_count(scene, 1, 2, SEGMENT_READY), 1);
	assert_int_equal(placed_resident(scene, 1), 0);
	placed_back(scene, 1);
	placed_header(scene, 1, false);
	assert_int_equal(scene_count(scene, ACT_FILL), 2); /* only what was lost */
	scene_fill(scene, 1, 0);
	placed_tabled(scene, 1, 0);
	placed_assert(scene, 1, "1120");
	scene_free(scene);
}

static void one_of_two_lost_devices_is_not_enough(void **state)
{
	const struct core_config config = placed_config();
	struct scene *scene = scene_new(&config);
	uint64_t client = scene_open(scene, 1000);

	(void)state;
	(void)placed_loaded(scene, client, 1, "1122", plain);
	placed_lose(scene, 1);
	placed_lose(scene, 2);
	placed_back(scene, 1);
	assert_int_equal(scene_view(scene, 1).job, 0);
	placed_back(scene, 2);
	placed_finish(scene, 1, false);
	placed_assert(scene, 1, "1122");
	scene_free(scene);
}

static void unloaded_meanwhile_it_does_not_come_back(void **state)
{
	const struct core_config config = placed_config();
	struct scene *scene = scene_new(&config);
	uint64_t client = scene_open(scene, 1000);
	uint64_t model;

	(void)state;
	(void)placed_loaded(scene, client, 1, "1122", plain);
	model = scene_model(scene, 1);
	placed_lose(scene, 1);
	(void)scene_step(scene, (struct core_event){.type = EV_UNLOAD,
						    .client = client,
						    .request = ++scene->last_request,
						    .unload = {.models = &model,
							       .n_models = 1,
							       .by_name = true}});
	scene_drop_all(scene);
	placed_back(scene, 1);
	assert_int_equal(scene_view(scene, 1).state, CORE_MODEL_REGISTERED);
	assert_int_equal(scene_view(scene, 1).file, 0);
	scene_free(scene);
}

static void all_that_is_unloaded_means_what_comes_back_too(void **state)
{
	const struct core_config config = placed_config();
	struct scene *scene = scene_new(&config);
	uint64_t client = scene_open(scene, 1000);

	(void)state;
	(void)placed_loaded(scene, client, 1, "1122", plain);
	placed_lose(scene, 1);
	placed_back(scene, 1);
	assert_true(scene_view(scene, 1).job != 0); /* nobody's: it comes back by itself */
	(void)scene_step(scene, (struct core_event){.type = EV_UNLOAD,
						    .client = client,
						    .request = ++scene->last_request});
	scene_drop_all(scene);
	assert_int_equal(scene_view(scene, 1).job, 0);
	assert_int_equal(scene_view(scene, 1).state, CORE_MODEL_REGISTERED);
	scene_free(scene);
}

static void while_the_device_is_lost_the_host_serves(void **state)
{
	const struct core_config config = placed_config();
	struct scene *scene = scene_new(&config);
	uint64_t client = scene_open(scene, 1000);
	uint32_t request;

	(void)state;
	(void)placed_loaded(scene, client, 1, "1122", plain);
	placed_lose(scene, 1);
	request = scene_load(scene, client, 1, plain);
	assert_int_equal(scene_view(scene, 1).job_placement, CORE_PLACEMENT_HOST);
	placed_finish(scene, 1, false);
	scene_expect(scene, client, request, 0);
	scene_drop_all(scene);
	placed_assert(scene, 1, HOST_LAYOUT);
	placed_back(scene, 1);
	placed_assert(scene, 1, HOST_LAYOUT); /* that was asked for last */
	scene_free(scene);
}

static void loads_to_a_lost_device_fail_in_each_of_their_states(void **state)
{
	const struct core_config config = placed_config();
	struct scene *scene = scene_new(&config);
	uint64_t client = scene_open(scene, 1000);
	struct scene_load with = {.placement = placed_as("1122")};
	uint64_t second = 0;
	uint32_t request;

	(void)state;
	request = scene_load(scene, client, 1, with); /* before its header */
	placed_lose(scene, 1);
	placed_header(scene, 1, false);
	scene_expect(scene, client, request, WIRE_DEVICE_LOST);
	placed_back(scene, 1);

	scene_budget(scene, 2, BLOCK); /* waiting for room */
	(void)placed_loaded(scene, client, 2, "2000", plain);
	scene_budget(scene, 2, 2 * BLOCK);
	request = scene_load(scene, client, 1, with);
	placed_header(scene, 1, false);
	assert_int_equal(placed_count(scene, 1, 1, SEGMENT_PLANNED), 2);
	placed_lose(scene, 1);
	scene_expect(scene, client, request, WIRE_DEVICE_LOST);
	placed_back(scene, 1);
	scene_drop_all(scene);

	request = scene_load(scene, client, 1, with); /* partly filled */
	placed_header(scene, 1, false);
	/* The second one, for what is being filled is looked at before it then. */
	for (uint32_t i = 0; i < scene->n_actions; i++) {
		if (scene->actions[i].type == ACT_FILL && scene->actions[i].fill.index == 1) {
			second = scene->actions[i].segment;
		}
	}
	(void)scene_step(scene,
			 (struct core_event){.type = EV_FILLED, .filled = {.segment = second}});
	assert_int_equal(placed_count(scene, 1, 1, SEGMENT_READY), 1);
	placed_lose(scene, 1);
	scene_expect(scene, client, request, WIRE_DEVICE_LOST);
	assert_int_equal(scene_count(scene, ACT_DROP), 1); /* what was READY, once */
	scene_fill(scene, 1, WIRE_CANCELLED);
	scene_drop_all(scene);
	placed_back(scene, 1);

	request = scene_load(scene, client, 1, with); /* all but the table */
	placed_header(scene, 1, false);
	scene_fill(scene, 1, 0);
	assert_int_equal(scene_count(scene, ACT_MAKE_TABLE), 1);
	placed_lose(scene, 2);
	scene_expect(scene, client, request, WIRE_DEVICE_LOST);
	scene_drop_all(scene);
	assert_int_equal(placed_resident(scene, 1) + placed_resident(scene, 2), 0);
	scene_free(scene);
}

static void a_device_lost_while_it_is_verified_says_so(void **state)
{
	const struct core_config config = placed_config();
	struct scene *scene = scene_new(&config);
	uint64_t client = scene_open(scene, 1000);

	(void)state;
	(void)placed_loaded(scene, client, 1, "1122", plain);
	(void)scene_step(scene, (struct core_event){.type = EV_VERIFY,
						    .client = client,
						    .request = ++scene->last_request,
						    .verify = {.model = scene_model(scene, 1)}});
	assert_int_equal(scene_count(scene, ACT_VERIFY), N_BLOCKS);
	placed_lose(scene, 2);
	scene_expect(scene, client, scene->last_request, WIRE_DEVICE_LOST);
	scene_free(scene);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_load_lies_where_it_was_asked_for),
		cmocka_unit_test(who_wants_it_as_it_lies_is_answered_at_once),
		cmocka_unit_test(equal_placements_join),
		cmocka_unit_test(another_placement_moves_what_does_not_stay),
		cmocka_unit_test(any_serves_as_it_lies_and_host_moves_it_back),
		cmocka_unit_test(a_file_that_was_only_renamed_keeps_its_placement),
		cmocka_unit_test(another_user_gets_images_and_may_not_move),
		cmocka_unit_test(images_that_went_are_made_again_for_those_who_need_them),
		cmocka_unit_test(an_administrator_moves_it_for_whom_it_was_placed),
		cmocka_unit_test(who_waits_behind_anothers_placement_is_told_or_gets_images),
		cmocka_unit_test(who_does_not_wait_moves_no_blocks_of_another),
		cmocka_unit_test(blocks_are_evicted_from_the_tail_and_come_back_alone),
		cmocka_unit_test(what_is_left_of_a_model_runs_out_too),
		cmocka_unit_test(unused_blocks_go_to_the_host),
		cmocka_unit_test(unused_blocks_take_no_room_from_others),
		cmocka_unit_test(unused_blocks_make_way_for_others),
		cmocka_unit_test(pinned_blocks_stay),
		cmocka_unit_test(who_comes_back_keeps_the_blocks_where_they_are),
		cmocka_unit_test(a_torn_model_comes_back_with_its_device),
		cmocka_unit_test(one_of_two_lost_devices_is_not_enough),
		cmocka_unit_test(unloaded_meanwhile_it_does_not_come_back),
		cmocka_unit_test(all_that_is_unloaded_means_what_comes_back_too),
		cmocka_unit_test(while_the_device_is_lost_the_host_serves),
		cmocka_unit_test(loads_to_a_lost_device_fail_in_each_of_their_states),
		cmocka_unit_test(a_device_lost_while_it_is_verified_says_so),
	};

	return cmocka_run_group_tests_name("daemon/core/place", tests, NULL, NULL);
}
