/* SPDX-License-Identifier: Apache-2.0 */
/* Moves between devices: all or nothing, whatever fails; two at once; and none waits for ever. */
#include "tests/unit/daemon/core/placed.h"

static const struct scene_load plain;
static const struct scene_load attached = {.attach = true, .map = true};

static void a_move_that_fails_leaves_all_as_it_was(void **state)
{
	static const int codes[] = {WIRE_IO, WIRE_BAD_FILE, WIRE_NO_MEMORY, WIRE_DEVICE_LOST};
	const struct core_config config = placed_config();
	struct scene *scene = scene_new(&config);
	uint64_t client = scene_open(scene, 1000);
	uint64_t generation;

	(void)state;
	(void)placed_loaded(scene, client, 1, "1110", attached);
	generation = scene_view(scene, 1).generation;
	for (size_t i = 0; i < sizeof codes / sizeof codes[0]; i++) {
		uint32_t request = placed_place(scene, client, 1, "1222");

		placed_header(scene, 1, false);
		scene_fill(scene, 1, codes[i]); /* the fills */
		scene_drop_all(scene);
		placed_assert(scene, 1, "1110");
		request = placed_place(scene, client, 1, "1222");
		placed_header(scene, 1, false);
		scene_fill(scene, 1, 0);
		placed_tabled(scene, 1, codes[i]);
		scene_expect(scene, client, request, codes[i]);
		scene_drop_all(scene);
		placed_assert(scene, 1, "1110");
	}
	assert_int_equal(scene_view(scene, 1).generation, generation);
	assert_int_equal(placed_resident(scene, 2), 0);
	scene_free(scene);
}

/* By its account there was room; the device said that there was none. */
static void what_a_device_refuses_is_tried_once_more_with_what_others_leave(void **state)
{
	static const int codes[] = {0, WIRE_NO_MEMORY};
	const struct core_config config = placed_config();

	(void)state;
	for (size_t i = 0; i < sizeof codes / sizeof codes[0]; i++) {
		struct scene *scene = scene_new(&config);
		uint64_t client = scene_open(scene, 1000);
		uint32_t request;

		(void)placed_loaded(scene, client, 2, "1111", plain);
		(void)placed_loaded(scene, client, 3, "2222", plain);
		request = scene_load(scene, client, 1,
				     (struct scene_load){.placement = placed_as("1122")});
		placed_header(scene, 1, false);
		scene_fill(scene, 1, WIRE_NO_MEMORY);
		assert_int_equal(scene_count(scene, ACT_READ_HEADER), 1);
		assert_int_equal(scene_note(scene, CORE_NOTE_EVICTED)->note.why, CORE_WHY_ROOM);
		assert_int_equal(placed_count(scene, 2, 1, SEGMENT_READY), 2);
		assert_int_equal(placed_count(scene, 3, 2, SEGMENT_READY), 2);
		placed_header(scene, 1, false);
		assert_int_equal(scene_count(scene, ACT_FILL), 0); /* they are not gone yet */
		scene_drop_all(scene);
		assert_int_equal(placed_count(scene, 1, 1, SEGMENT_FILLING), 2);
		scene_fill(scene, 1, codes[i]);
		if (codes[i] == 0) {
			placed_tabled(scene, 1, 0);
			scene_expect(scene, client, request, 0);
		}
		scene_drop_all(scene);
		assert_int_equal(scene_view(scene, 1).state,
				 codes[i] == 0 ? CORE_MODEL_RESIDENT : CORE_MODEL_FAILED);
		scene_free(scene);
	}
}

/* A drop that does not end, or others' that follow each other, keep it for a while and no longer. */
static void what_a_device_refuses_waits_for_what_goes_for_a_while(void **state)
{
	const struct core_config config = placed_config();
	struct scene *scene = scene_new(&config);
	uint64_t client = scene_open(scene, 1000);

	(void)state;
	(void)placed_loaded(scene, client, 2, "1111", plain);
	(void)scene_load(scene, client, 1, (struct scene_load){.placement = placed_as("1111")});
	placed_header(scene, 1, false);
	scene_fill(scene, 1, WIRE_NO_MEMORY);
	placed_header(scene, 1, false);
	assert_int_equal(placed_count(scene, 1, 1, SEGMENT_FILLING), 0);
	assert_int_equal(scene->next_deadline_ns, scene->now_ns + CORE_SHARE_PATIENCE_NS);
	scene->now_ns += CORE_SHARE_PATIENCE_NS;
	(void)scene_step(scene, (struct core_event){.type = EV_TICK}); /* nothing else happens */
	assert_int_equal(placed_count(scene, 1, 1, SEGMENT_FILLING), N_BLOCKS);
	scene_free(scene);
}

static void what_a_device_refuses_takes_nothing_that_would_not_do(void **state)
{
	const struct core_config config = placed_config();
	struct scene *scene = scene_new(&config);
	uint64_t client = scene_open(scene, 1000);

	(void)state;
	(void)placed_loaded(scene, client, 2, "1100", plain);
	(void)scene_load(scene, client, 1, (struct scene_load){.placement = placed_as("1112")});
	placed_header(scene, 1, false);
	scene_fill(scene, 1, WIRE_NO_MEMORY);
	scene_drop_all(scene);
	assert_int_equal(scene_view(scene, 1).state, CORE_MODEL_FAILED);
	placed_assert(scene, 2, "1100");
	scene_free(scene);
}

static void a_move_without_room_on_one_device_takes_none_on_the_other(void **state)
{
	const struct core_config config = placed_config();
	struct scene *scene = scene_new(&config);
	uint64_t client = scene_open(scene, 1000);
	uint32_t request;

	(void)state;
	(void)placed_loaded(scene, client, 1, "0000", plain);
	scene_budget(scene, 2, BLOCK);
	request = placed_place(scene, client, 1, "1122");
	placed_header(scene, 1, false);
	scene_expect(scene, client, request, WIRE_NO_MEMORY);
	assert_int_equal(scene_reply(scene, client, request)->device, 2);
	assert_int_equal(scene_reply(scene, client, request)->shortage.need, 2 * BLOCK);
	assert_int_equal(scene_count(scene, ACT_FILL), 0);
	placed_assert(scene, 1, HOST_LAYOUT);
	scene_free(scene);
}

static void a_move_for_which_the_table_is_full_is_refused(void **state)
{
	struct core_config config = placed_config();
	struct scene *scene;
	uint64_t client;
	uint32_t request;

	(void)state;
	config.max_segments = N_BLOCKS + 1;
	scene = scene_new(&config);
	client = scene_open(scene, 1000);
	(void)placed_loaded(scene, client, 1, "1111", plain);
	request = placed_place(scene, client, 1, "1122");
	placed_header(scene, 1, false);
	scene_expect(scene, client, request, WIRE_TOO_MANY);
	assert_int_equal(scene_reply(scene, client, request)->too_many.limit, CORE_LIMIT_SEGMENTS);
	placed_assert(scene, 1, "1111");
	scene_free(scene);
}

static void what_a_ghost_maps_is_held_where_it_was(void **state)
{
	const struct core_config config = placed_config();
	struct scene *scene = scene_new(&config);
	uint64_t client = scene_open(scene, 1000);
	uint64_t ghost = scene_open(scene, 1000);
	struct core_account_view view;
	struct core_client_view holder;

	(void)state;
	(void)placed_loaded(scene, ghost, 1, "1111", attached);
	scene_client_event(scene, EV_CLIENT_CLOSED, ghost);
	(void)placed_place(scene, client, 1, "1222");
	placed_finish(scene, 1, false);
	scene_drop_all(scene);
	core_account_get(scene->core, 1, &view);
	assert_int_equal(view.held, 3 * BLOCK);
	assert_int_equal(view.resident, BLOCK);
	assert_true(core_client_get(scene->core, ghost, &holder));
	assert_int_equal(holder.held_bytes, N_BLOCKS * BLOCK);
	scene_client_event(scene, EV_PROCESS_GONE, ghost);
	placed_assert(scene, 1, "1222");
	assert_int_equal(placed_resident(scene, 1), BLOCK);
	scene_free(scene);
}

static void a_client_that_maps_two_generations_holds_each_byte_once(void **state)
{
	const struct core_config config = placed_config();
	struct scene *scene = scene_new(&config);
	uint64_t client = scene_open(scene, 1000);
	struct core_client_view view;

	(void)state;
	(void)placed_loaded(scene, client, 1, "1111", attached);
	placed_moved(scene, client, 1, "1122");
	(void)scene_load(scene, client, 1, attached);
	assert_true(core_client_get(scene->core, client, &view));
	assert_int_equal(view.n_leases, 2);
	assert_int_equal(view.held_bytes, (N_BLOCKS + 2) * BLOCK);
	scene_free(scene);
}

static void two_placements_at_once_are_each_answered(void **state)
{
	const struct core_config config = placed_config();
	struct scene *scene = scene_new(&config);
	uint64_t one = scene_open(scene, 1000);
	uint64_t other = scene_open(scene, 1000);
	uint32_t first;
	uint32_t second;
	uint32_t third;

	(void)state;
	(void)placed_loaded(scene, one, 1, "1111", plain);
	first = placed_place(scene, one, 1, "1122");
	second = placed_place(scene, other, 1, "2222");
	third = placed_place(scene, one, 1, "1122"); /* joins the first */
	placed_finish(scene, 1, false);
	scene_expect(scene, one, first, 0);
	scene_expect(scene, one, third, 0);
	assert_null(scene_reply(scene, other, second));
	scene_drop_all(scene);
	placed_finish(scene, 1, false);
	scene_expect(scene, other, second, 0);
	scene_drop_all(scene);
	placed_assert(scene, 1, "2222");
	scene_free(scene);
}

static void who_does_not_wait_for_a_move_gets_it_too(void **state)
{
	const struct core_config config = placed_config();
	struct scene *scene = scene_new(&config);
	uint64_t client = scene_open(scene, 1000);
	struct core_event event = {.type = EV_PLACE, .client = client};

	(void)state;
	(void)placed_loaded(scene, client, 1, "1111", plain);
	event.place.model = scene_model(scene, 1);
	event.place.no_wait = true;
	event.place.placement = placed_as("1122");
	event.request = ++scene->last_request;
	(void)scene_step(scene, event);
	scene_expect(scene, client, event.request, 0);
	assert_int_equal(scene_reply(scene, client, event.request)->reply.source,
			 CORE_SOURCE_BEGUN);
	event.place.placement = placed_as("2222"); /* after it */
	event.request = ++scene->last_request;
	(void)scene_step(scene, event);
	scene_expect(scene, client, event.request, 0);
	/* Who wants it as it lies takes nothing of that back. */
	(void)scene_load(scene, client, 1, (struct scene_load){.no_wait = true});
	placed_finish(scene, 1, false);
	placed_finish(scene, 1, false);
	scene_drop_all(scene);
	placed_assert(scene, 1, "2222");
	scene_free(scene);
}

static void a_move_is_cancelled_by_its_last_waiter(void **state)
{
	const struct core_config config = placed_config();
	struct scene *scene = scene_new(&config);
	uint64_t client = scene_open(scene, 1000);
	uint32_t request;

	(void)state;
	(void)placed_loaded(scene, client, 1, "1111", plain);
	request = placed_place(scene, client, 1, "1122");
	placed_header(scene, 1, false);
	(void)scene_step(scene, (struct core_event){.type = EV_CANCEL,
						    .client = client,
						    .request = ++scene->last_request,
						    .cancel = {.request = request}});
	scene_expect(scene, client, request, WIRE_CANCELLED);
	assert_int_equal(scene_count(scene, ACT_CANCEL), 1);
	scene_fill(scene, 1, 0); /* too late */
	scene_drop_all(scene);
	placed_assert(scene, 1, "1111");
	scene_free(scene);
}

static void a_shutdown_ends_a_move(void **state)
{
	const struct core_config config = placed_config();
	struct scene *scene = scene_new(&config);
	uint64_t client = scene_open(scene, 1000);
	uint32_t first;
	uint32_t second;

	(void)state;
	(void)placed_loaded(scene, client, 1, "1111", plain);
	first = placed_place(scene, client, 1, "1122");
	second = placed_place(scene, client, 1, "2222");
	placed_header(scene, 1, false);
	(void)scene_step(scene, (struct core_event){.type = EV_SHUTDOWN});
	scene_expect(scene, client, first, WIRE_SHUTTING_DOWN);
	scene_expect(scene, client, second, WIRE_SHUTTING_DOWN);
	scene_fill(scene, 1, WIRE_CANCELLED);
	scene_drop_all(scene);
	placed_assert(scene, 1, "1111");
	scene_expect(scene, client, placed_place(scene, client, 1, "1122"), WIRE_SHUTTING_DOWN);
	scene_free(scene);
}

static void content_that_changes_during_a_move_is_read_anew(void **state)
{
	const struct core_config config = placed_config();
	struct scene *scene = scene_new(&config);
	uint64_t client = scene_open(scene, 1000);
	uint32_t moving;
	uint32_t presenting;

	(void)state;
	for (uint32_t is_late = 0; is_late < 2; is_late++) {
		const char *layout = is_late == 0 ? "1122" : "1111";

		if (is_late == 0) {
			(void)placed_loaded(scene, client, 1, "1111", plain);
		}
		moving = placed_place(scene, client, 1, layout);
		placed_header(scene, 1, false);
		assert_int_equal(scene_count(scene, ACT_FILL), 2);
		if (is_late == 1) {
			scene_fill(scene, 1, 0); /* its table is being made */
		}
		scene->keys[1].mtime_ns++;
		presenting = scene_load(scene, client, 1, attached);
		assert_null(scene_reply(scene, client, presenting));
		if (is_late == 0) {
			scene_fill(scene, 1, 0);
		} else {
			placed_tabled(scene, 1, 0);
		}
		assert_int_equal(scene_count(scene, ACT_READ_HEADER), 1);
		placed_header(scene, 1, false);
		assert_int_equal(scene_count(scene, ACT_FILL), N_BLOCKS); /* nothing is the same */
		scene_fill(scene, 1, 0);
		placed_tabled(scene, 1, 0);
		scene_expect(scene, client, moving, 0);
		scene_expect(scene, client, presenting, 0);
		scene_lease_event(scene, EV_DETACH, client,
				  scene_reply(scene, client, presenting)->reply.lease);
		scene_drop_all(scene);
		placed_assert(scene, 1, layout);
	}
	scene_free(scene);
}

static void a_block_found_bad_is_not_taken_over(void **state)
{
	const struct core_config config = placed_config();

	(void)state;
	for (uint32_t when = 0; when < 3; when++) {
		struct scene *scene = scene_new(&config);
		uint64_t client = scene_open(scene, 1000);
		struct core_segment_view view = {0};
		uint32_t cursor = 0;
		uint32_t request;

		(void)placed_loaded(scene, client, 1, "1111", plain);
		assert_true(core_segment_next(scene->core, scene_model(scene, 1), &cursor, &view));
		(void)scene_step(scene,
				 (struct core_event){.type = EV_VERIFY,
						     .client = client,
						     .request = ++scene->last_request,
						     .verify = {.model = scene_model(scene, 1)}});
		if (when == 0) { /* it waits for room */
			scene_budget(scene, 2, BLOCK);
			(void)placed_loaded(scene, client, 2, "2000", plain);
			scene_budget(scene, 2, 2 * BLOCK);
		}
		request = placed_place(scene, client, 1, "1122");
		placed_header(scene, 1, false);
		if (when == 2) { /* its table is being made */
			scene_fill(scene, 1, 0);
		}
		(void)scene_step(scene, (struct core_event){.type = EV_VERIFIED,
							    .verified = {.segment = view.id}});
		assert_non_null(scene_note(scene, CORE_NOTE_QUARANTINED));
		if (when == 0) {
			scene_drop_all(scene);
		}
		if (when < 2) {
			scene_fill(scene, 1, 0);
		}
		if (when > 0) { /* it begins again */
			if (when == 2) {
				placed_tabled(scene, 1, 0);
			}
			assert_null(scene_reply(scene, client, request));
			scene_drop_all(scene);
			placed_header(scene, 1, false);
			assert_int_equal(scene_count(scene, ACT_FILL), 3);
			scene_fill(scene, 1, 0);
		}
		placed_tabled(scene, 1, 0);
		scene_expect(scene, client, request, 0);
		scene_drop_all(scene);
		placed_assert(scene, 1, "1122");
		scene_free(scene);
	}
}

static void a_drained_device_takes_no_move_and_may_be_left(void **state)
{
	const struct core_config config = placed_config();
	struct scene *scene = scene_new(&config);
	uint64_t client = scene_open(scene, 1000);
	uint32_t request;

	(void)state;
	(void)placed_loaded(scene, client, 1, "1120", plain);
	(void)scene_step(scene, (struct core_event){.type = EV_DRAIN,
						    .drain = {.device = 1, .is_on = true}});
	request = placed_place(scene, client, 1, "1110");
	placed_header(scene, 1, false);
	scene_expect(scene, client, request, WIRE_BUSY);
	placed_assert(scene, 1, "1120");
	placed_moved(scene, client, 1, "1100"); /* what is there may stay */
	placed_moved(scene, client, 1, "2200");
	assert_int_equal(placed_resident(scene, 1), 0);
	scene_free(scene);
}

static void a_device_lost_during_a_move_leaves_the_rest_as_it_was(void **state)
{
	const struct core_config config = placed_config();
	struct scene *scene = scene_new(&config);
	uint64_t client = scene_open(scene, 1000);
	uint32_t request;

	(void)state;
	(void)placed_loaded(scene, client, 1, "1100", plain);
	request = placed_place(scene, client, 1, "2200"); /* its target */
	placed_header(scene, 1, false);
	placed_lose(scene, 2);
	scene_expect(scene, client, request, WIRE_DEVICE_LOST);
	scene_drop_all(scene);
	placed_assert(scene, 1, "1100");
	placed_back(scene, 2);
	placed_assert(scene, 1, "1100");
	request = placed_place(scene, client, 1, "2200"); /* its source, before it is read */
	placed_lose(scene, 1);
	placed_header(scene, 1, false);
	scene_fill(scene, 1, 0);
	placed_tabled(scene, 1, 0);
	scene_expect(scene, client, request, 0);
	placed_assert(scene, 1, "2200");
	placed_back(scene, 1);
	placed_assert(scene, 1, "2200");
	request = placed_place(scene, client, 1, "1100"); /* and afterwards */
	placed_header(scene, 1, false);
	placed_lose(scene, 2);
	scene_expect(scene, client, request, WIRE_DEVICE_LOST);
	scene_fill(scene, 1, WIRE_CANCELLED);
	scene_drop_all(scene);
	placed_back(scene, 2); /* it comes back as it was */
	placed_finish(scene, 1, false);
	placed_assert(scene, 1, "2200");
	scene_free(scene);
}

/* ---- waiting ---- */

/* What is being filled is done, and the table made. */
static void let_fill(struct scene *scene, uint32_t inode)
{
	uint64_t job = scene_view(scene, inode).job;

	if (placed_count(scene, inode, 1, SEGMENT_FILLING) +
		    placed_count(scene, inode, 2, SEGMENT_FILLING) >
	    0) {
		scene_fill(scene, inode, 0);
		assert_int_equal(scene_view(scene, inode).job, job);
		placed_tabled(scene, inode, 0);
	}
}

static void two_that_wait_for_each_others_blocks_do_not_do_so_for_ever(void **state)
{
	const struct core_config config = placed_config();
	struct scene *scene = scene_new(&config);
	uint64_t one = scene_open(scene, 1000);
	uint64_t other = scene_open(scene, 1001);
	uint32_t first;
	uint32_t second;

	(void)state;
	scene_budget(scene, 1, N_BLOCKS * BLOCK);
	scene_budget(scene, 2, N_BLOCKS * BLOCK);
	(void)placed_loaded(scene, one, 1, "1111", plain);
	(void)placed_loaded(scene, other, 2, "2222", plain);
	first = placed_place(scene, one, 1, "2222");
	second = placed_place(scene, other, 2, "1111");
	placed_header(scene, 1, false);
	placed_header(scene, 2, false);
	scene_drop_all(scene);
	scene_fill(scene, 1, 0);
	placed_tabled(scene, 1, 0);
	scene_expect(scene, one, first, 0);
	assert_null(scene_reply(scene, other, second));
	scene_drop_all(scene);
	scene_fill(scene, 2, 0);
	placed_tabled(scene, 2, 0);
	scene_expect(scene, other, second, 0);
	scene_drop_all(scene);
	placed_assert(scene, 1, "2222");
	placed_assert(scene, 2, "1111");
	scene_free(scene);
}

static void who_gives_way_keeps_what_is_not_needed(void **state)
{
	const struct core_config config = placed_config();
	struct scene *scene = scene_new(&config);
	uint64_t client = scene_open(scene, 1000);
	uint64_t model;
	uint32_t first;
	uint32_t second;

	(void)state;
	scene_budget(scene, 1, 2 * BLOCK);
	scene_budget(scene, 2, 5 * BLOCK);
	(void)placed_loaded(scene, client, 1, "1000", plain);
	(void)placed_loaded(scene, client, 2, "2222", plain);
	(void)placed_loaded(scene, client, 3, "1000", plain);
	model = scene_model(scene, 3);
	(void)scene_step(scene, (struct core_event){.type = EV_UNLOAD,
						    .client = client,
						    .request = ++scene->last_request,
						    .unload = {.models = &model,
							       .n_models = 1,
							       .by_name = true}});
	first = placed_place(scene, client, 1, "2200");
	second = placed_place(scene, client, 2, "1222");
	placed_header(scene, 2, false); /* waits for what is being dropped */
	assert_int_equal(placed_count(scene, 2, 1, SEGMENT_PLANNED), 1);
	placed_header(scene, 1, false); /* has room for one, and takes what the other moves */
	assert_int_equal(placed_count(scene, 2, 2, SEGMENT_DROPPING), 1);
	assert_int_equal(placed_count(scene, 2, 1, SEGMENT_PLANNED), 1);
	scene_drop_all(scene);
	assert_int_equal(placed_count(scene, 1, 2, SEGMENT_FILLING), 2);
	assert_int_equal(placed_count(scene, 2, 1, SEGMENT_FILLING), 1);
	assert_int_equal(placed_count(scene, 2, 2, SEGMENT_READY), 3);
	scene_fill(scene, 1, 0);
	placed_tabled(scene, 1, 0);
	scene_expect(scene, client, first, 0);
	scene_fill(scene, 2, 0);
	placed_tabled(scene, 2, 0);
	scene_expect(scene, client, second, 0);
	scene_drop_all(scene);
	placed_assert(scene, 1, "2200");
	placed_assert(scene, 2, "1222");
	scene_free(scene);
}

/* Both want both devices, in opposite order, again and again; each is answered every time. */
static void a_thousand_crossing_moves_end(void **state)
{
	const struct core_config config = placed_config();
	struct scene *scene = scene_new(&config);
	uint64_t one = scene_open(scene, 1000);
	uint64_t other = scene_open(scene, 1001);

	(void)state;
	scene_budget(scene, 1, 5 * BLOCK);
	scene_budget(scene, 2, 5 * BLOCK);
	(void)placed_loaded(scene, one, 1, "1111", plain);
	(void)placed_loaded(scene, other, 2, "2222", plain);
	for (uint32_t i = 0; i < 1000; i++) {
		const char *there = i % 2 == 0 ? "2221" : "1112";
		const char *back = i % 2 == 0 ? "1112" : "2221";
		uint64_t jobs[2];
		uint32_t n_rounds = 0;

		/* In turn, so that now one is the older and now the other. */
		(void)placed_place(scene, i % 3 == 0 ? one : other, i % 3 == 0 ? 1 : 2,
				   i % 3 == 0 ? there : back);
		(void)placed_place(scene, i % 3 == 0 ? other : one, i % 3 == 0 ? 2 : 1,
				   i % 3 == 0 ? back : there);
		jobs[0] = scene_view(scene, 1).job;
		jobs[1] = scene_view(scene, 2).job;
		assert_true(jobs[0] != 0 && jobs[1] != 0);
		placed_header(scene, 1, false);
		placed_header(scene, 2, false);
		while (scene_view(scene, 1).job != 0 || scene_view(scene, 2).job != 0) {
			let_fill(scene, 1);
			let_fill(scene, 2);
			scene_drop_all(scene);
			assert_true(++n_rounds < 10);
		}
		scene->now_ns += ONE_SECOND;
		/* Blocks that nobody uses may have gone for the other one's. */
		assert_string_equal(placed_layouts[scene_view(scene, 1).placement], there);
		assert_string_equal(placed_layouts[scene_view(scene, 2).placement], back);
		assert_true(scene_is_resident(scene, 1) || scene_is_resident(scene, 2));
	}
	scene_free(scene);
}

static void a_lease_keeps_the_blocks_it_was_given(void **state)
{
	const struct core_config config = placed_config();
	struct scene *scene = scene_new(&config);
	uint64_t client = scene_open(scene, 1000);
	struct core_lease_view lease;
	uint64_t id;
	uint32_t request;

	(void)state;
	(void)placed_loaded(scene, client, 1, "1120", attached);
	request = scene_load(scene, client, 1, attached);
	id = scene_reply(scene, client, request)->reply.lease;
	request = placed_place(scene, client, 1, HOST_LAYOUT);
	placed_header(scene, 1, true);
	scene_fill(scene, 1, 0);
	placed_tabled(scene, 1, 0);
	scene_expect(scene, client, request, 0);
	assert_int_equal(scene_view(scene, 1).placement, CORE_PLACEMENT_HOST);
	assert_true(core_lease_get(scene->core, id, &lease) && lease.has_blocks);
	scene_free(scene);
}

static void with_a_linger_of_0_blocks_stay_until_the_room_is_needed(void **state)
{
	struct core_config config = placed_config();
	struct scene *scene;
	uint64_t client;

	(void)state;
	config.linger_ns = 0;
	scene = scene_new(&config);
	client = scene_open(scene, 1000);
	(void)placed_loaded(scene, client, 1, "1122", plain);
	assert_int_equal(scene->next_deadline_ns, UINT64_MAX);
	(void)scene_step(scene,
			 (struct core_event){.type = EV_DEVICE_SHORT, .device = {.device = 1}});
	placed_assert(scene, 1, "1122");
	scene_free(scene);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_lease_keeps_the_blocks_it_was_given),
		cmocka_unit_test(a_move_that_fails_leaves_all_as_it_was),
		cmocka_unit_test(what_a_device_refuses_is_tried_once_more_with_what_others_leave),
		cmocka_unit_test(what_a_device_refuses_waits_for_what_goes_for_a_while),
		cmocka_unit_test(what_a_device_refuses_takes_nothing_that_would_not_do),
		cmocka_unit_test(a_move_without_room_on_one_device_takes_none_on_the_other),
		cmocka_unit_test(a_move_for_which_the_table_is_full_is_refused),
		cmocka_unit_test(what_a_ghost_maps_is_held_where_it_was),
		cmocka_unit_test(a_client_that_maps_two_generations_holds_each_byte_once),
		cmocka_unit_test(two_placements_at_once_are_each_answered),
		cmocka_unit_test(who_does_not_wait_for_a_move_gets_it_too),
		cmocka_unit_test(a_move_is_cancelled_by_its_last_waiter),
		cmocka_unit_test(a_shutdown_ends_a_move),
		cmocka_unit_test(content_that_changes_during_a_move_is_read_anew),
		cmocka_unit_test(a_block_found_bad_is_not_taken_over),
		cmocka_unit_test(a_drained_device_takes_no_move_and_may_be_left),
		cmocka_unit_test(a_device_lost_during_a_move_leaves_the_rest_as_it_was),
		cmocka_unit_test(two_that_wait_for_each_others_blocks_do_not_do_so_for_ever),
		cmocka_unit_test(who_gives_way_keeps_what_is_not_needed),
		cmocka_unit_test(with_a_linger_of_0_blocks_stay_until_the_room_is_needed),
		cmocka_unit_test(a_thousand_crossing_moves_end),
	};

	return cmocka_run_group_tests_name("daemon/core/moves", tests, NULL, NULL);
}
