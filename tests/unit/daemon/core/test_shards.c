/* SPDX-License-Identifier: Apache-2.0 */
/* Models of several copies on one device: they come, go and turn bad together. */
#include "tests/unit/daemon/core/scene.h"

#define N_SHARDS 5

static const struct scene_load plain;
static const struct scene_load attached = {.attach = true, .map = true};

/* The header of the model's running job: 'n_shards' copies of so many bytes on device 0. */
static void sharded_header(struct scene *scene, uint32_t inode, uint32_t n_shards, uint64_t bytes)
{
	static struct core_need needs[CORE_MAX_NEEDS + 1];

	for (uint32_t i = 0; i < n_shards; i++) {
		needs[i].index = i;
		needs[i].bytes = bytes;
	}
	(void)scene_step(scene, (struct core_event){.type = EV_HEADER_READ,
						    .header = {.job = scene_view(scene, inode).job,
							       .key = &scene->keys[inode],
							       .needs = needs,
							       .n_needs = n_shards}});
}

static uint64_t sharded_loaded(struct scene *scene, uint64_t client, uint32_t inode, uint64_t bytes,
			       struct scene_load with)
{
	uint32_t request;

	scene->keys[inode].is_sharded = true;
	request = scene_load(scene, client, inode, with);
	sharded_header(scene, inode, N_SHARDS, bytes);
	assert_int_equal(scene_count(scene, ACT_FILL), N_SHARDS);
	scene_fill(scene, inode, 0);
	scene_expect(scene, client, request, 0);
	scene->now_ns += 1000000000;
	return scene_reply(scene, client, request)->reply.lease;
}

static uint32_t count_in(const struct scene *scene, uint32_t inode, enum segment_state state)
{
	struct core_segment_view view;
	uint32_t cursor = 0;
	uint32_t n_found = 0;

	while (core_segment_next(scene->core, scene_model(scene, inode), &cursor, &view)) {
		n_found += view.state == state ? 1 : 0;
	}
	return n_found;
}

static uint32_t count_notes(const struct scene *scene, enum core_note_type note)
{
	uint32_t n_found = 0;

	for (uint32_t i = 0; i < scene->n_actions; i++) {
		n_found += scene->actions[i].type == ACT_NOTE && scene->actions[i].note.note == note
				   ? 1
				   : 0;
	}
	return n_found;
}

static void several_files_are_never_the_model_of_one(void **state)
{
	const struct core_config config = scene_usual();
	struct scene *scene = scene_new(&config);
	uint64_t client = scene_open(scene, 1000);
	uint64_t single;

	(void)state;
	(void)scene_loaded(scene, client, 1, MIB, plain);
	single = scene_model(scene, 1);
	(void)sharded_loaded(scene, client, 1, MIB, plain);
	assert_true(scene_model(scene, 1) != single);
	scene->keys[1].is_sharded = false;
	assert_true(scene_model(scene, 1) == single);
	scene_free(scene);
}

static void more_copies_than_there_may_be_are_refused(void **state)
{
	const struct core_config config = scene_usual();
	struct scene *scene = scene_new(&config);
	uint64_t client = scene_open(scene, 1000);
	uint32_t request = scene_load(scene, client, 1, plain);

	(void)state;
	sharded_header(scene, 1, CORE_MAX_NEEDS + 1, 4096);
	scene_expect(scene, client, request, WIRE_INTERNAL); /* the corridor refuses before */
	request = scene_load(scene, client, 2, plain);
	sharded_header(scene, 2, CORE_MAX_NEEDS, 4096); /* the table has room for 64 */
	scene_expect(scene, client, request, WIRE_TOO_MANY);
	scene_fill(scene, 2, WIRE_CANCELLED);
	scene_drop_all(scene);
	assert_int_equal(scene_view(scene, 2).state, CORE_MODEL_FAILED);
	scene_free(scene);
}

static void copies_of_a_generation_are_evicted_together_and_alone(void **state)
{
	const struct core_config config = scene_usual();
	struct scene *scene = scene_new(&config);
	uint64_t client = scene_open(scene, 1000);

	(void)state;
	(void)sharded_loaded(scene, client, 1, 8 * MIB, plain);
	(void)sharded_loaded(scene, client, 2, 8 * MIB, plain);
	(void)scene_load(scene, client, 3, plain);
	scene_header(scene, 3, 24 * MIB, 0); /* two copies would be enough */
	assert_int_equal(count_in(scene, 1, SEGMENT_DROPPING), N_SHARDS);
	assert_int_equal(count_in(scene, 2, SEGMENT_READY), N_SHARDS);
	assert_int_equal(count_notes(scene, CORE_NOTE_EVICTED), 1);
	assert_int_equal(scene_note(scene, CORE_NOTE_EVICTED)->note.bytes, N_SHARDS * 8 * MIB);
	scene_drop_all(scene);
	scene_fill(scene, 3, 0);
	assert_true(scene_is_resident(scene, 2) && scene_is_resident(scene, 3));
	scene_free(scene);
}

static void what_is_not_needed_is_spared_whole(void **state)
{
	const struct core_config config = scene_usual();
	struct scene *scene = scene_new(&config);
	uint64_t client = scene_open(scene, 1000);

	(void)state;
	(void)scene_loaded(scene, client, 1, 10 * MIB, plain);
	(void)sharded_loaded(scene, client, 2, 8 * MIB, plain);
	(void)sharded_loaded(scene, client, 3, 8 * MIB, plain);
	(void)scene_load(scene, client, 4, plain);
	scene_header(scene, 4, 50 * MIB, 0); /* 10 are free; the first alone does not do */
	assert_int_equal(count_in(scene, 1, SEGMENT_READY), 1);
	assert_int_equal(count_in(scene, 2, SEGMENT_DROPPING), N_SHARDS);
	assert_int_equal(count_in(scene, 3, SEGMENT_READY), N_SHARDS);
	scene_free(scene);
}

static void one_copy_that_fails_leaves_none(void **state)
{
	const struct core_config config = scene_usual();
	struct scene *scene = scene_new(&config);
	uint64_t client = scene_open(scene, 1000);
	struct core_segment_view view;
	struct core_account_view account;
	uint32_t request = scene_load(scene, client, 1, attached);
	uint32_t cursor = 0;

	(void)state;
	sharded_header(scene, 1, N_SHARDS, MIB);
	for (uint32_t i = 0; i < 2; i++) {
		assert_true(core_segment_next(scene->core, scene_model(scene, 1), &cursor, &view));
		(void)scene_step(scene,
				 (struct core_event){.type = EV_FILLED,
						     .filled = {.segment = view.id,
								.code = i == 0 ? 0 : WIRE_IO}});
	}
	scene_expect(scene, client, request, WIRE_IO);
	assert_non_null(scene_find(scene, ACT_CANCEL, 0));
	scene_fill(scene, 1, WIRE_CANCELLED);
	scene_drop_all(scene);
	core_account_get(scene->core, 0, &account);
	assert_int_equal(account.free, account.budget);
	scene_free(scene);
}

static void one_bad_copy_takes_the_others_along(void **state)
{
	const struct core_config config = scene_usual();
	struct scene *scene = scene_new(&config);
	uint64_t client = scene_open(scene, 1000);
	struct core_segment_view view;
	uint32_t cursor = 0;

	(void)state;
	(void)sharded_loaded(scene, client, 1, 16 * MIB, plain); /* twice is more than the budget */
	(void)scene_step(scene, (struct core_event){.type = EV_VERIFY,
						    .client = client,
						    .request = ++scene->last_request,
						    .verify = {.model = scene_model(scene, 1)}});
	assert_int_equal(scene_count(scene, ACT_VERIFY), N_SHARDS);
	assert_true(core_segment_next(scene->core, scene_model(scene, 1), &cursor, &view));
	(void)scene_step(scene, (struct core_event){.type = EV_VERIFIED,
						    .verified = {.segment = view.id}});
	assert_int_equal(scene_reply(scene, client, scene->last_request)->code, WIRE_BAD_FILE);
	assert_int_equal(count_notes(scene, CORE_NOTE_QUARANTINED), 1);
	assert_int_equal(count_notes(scene, CORE_NOTE_STALE), 1);
	assert_int_equal(count_in(scene, 1, SEGMENT_DROPPING), N_SHARDS);
	sharded_header(scene, 1, N_SHARDS, 16 * MIB);
	scene_drop_all(scene);
	scene_fill(scene, 1, 0);
	assert_true(scene_is_resident(scene, 1));
	scene_free(scene);
}

static void what_is_held_is_told_once(void **state)
{
	const struct core_config config = scene_usual();
	struct scene *scene = scene_new(&config);
	uint64_t client = scene_open(scene, 1000);
	uint32_t n_held = 0;

	(void)state;
	(void)sharded_loaded(scene, client, 1, MIB, attached);
	scene_client_event(scene, EV_CLIENT_CLOSED, client);
	client = scene_open(scene, 1000);
	(void)scene_step(scene, (struct core_event){.type = EV_UNLOAD,
						    .client = client,
						    .request = ++scene->last_request});
	assert_int_equal(count_in(scene, 1, SEGMENT_DROPPING), N_SHARDS);
	for (uint32_t i = 0; i < N_SHARDS; i++) {
		struct core_segment_view view = {0};
		uint32_t cursor = 0;

		while (core_segment_next(scene->core, scene_model(scene, 1), &cursor, &view) &&
		       view.state != SEGMENT_DROPPING) {
			/* the next one */
		}
		(void)scene_step(scene, (struct core_event){.type = EV_DROPPED,
							    .dropped = {.segment = view.id}});
		n_held += count_notes(scene, CORE_NOTE_HELD);
		assert_int_equal(n_held, i + 1 < N_SHARDS ? 0 : 1);
	}
	assert_int_equal(scene_note(scene, CORE_NOTE_HELD)->note.bytes, N_SHARDS * MIB);
	assert_int_equal(count_in(scene, 1, SEGMENT_HELD), N_SHARDS);
	scene_free(scene);
}

/* Its sums are those of the published one's table; an older one may have more files than that. */
static void what_is_taken_over_is_checked_if_it_is_the_published_one(void **state)
{
	static const uint8_t uuid[16] = {1};
	const struct core_config config = scene_usual();
	struct scene *scene = scene_new(&config);
	const struct core_file_key key = {.dev = 1, .ino = 9, .size = MIB, .is_sharded = true};
	uint64_t last = 0;

	(void)state;
	for (uint32_t i = 0; i < 3; i++) { /* two of generation 1, one of generation 2 */
		struct core_event event = {.type = EV_ADOPT, .adopt = {.key = &key}};

		event.adopt.uuid = uuid;
		event.adopt.file = 100 + i;
		event.adopt.generation = i < 2 ? 1 : 2;
		event.adopt.index = i % 2;
		event.adopt.bytes = MIB;
		event.adopt.backing = CORE_BACKING_IMAGE;
		last = scene_step(scene, event);
		assert_true(last != 0);
	}
	(void)scene_step(scene, (struct core_event){.type = EV_ADOPTED});
	assert_int_equal(scene_count(scene, ACT_VERIFY), 1);
	for (uint32_t i = 0; i < scene->n_actions; i++) {
		assert_true(scene->actions[i].type != ACT_VERIFY ||
			    scene->actions[i].segment == last);
	}
	scene_free(scene);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(several_files_are_never_the_model_of_one),
		cmocka_unit_test(more_copies_than_there_may_be_are_refused),
		cmocka_unit_test(copies_of_a_generation_are_evicted_together_and_alone),
		cmocka_unit_test(what_is_not_needed_is_spared_whole),
		cmocka_unit_test(one_copy_that_fails_leaves_none),
		cmocka_unit_test(one_bad_copy_takes_the_others_along),
		cmocka_unit_test(what_is_held_is_told_once),
		cmocka_unit_test(what_is_taken_over_is_checked_if_it_is_the_published_one),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
