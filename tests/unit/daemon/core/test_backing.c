/* SPDX-License-Identifier: Apache-2.0 */
/* What a copy lies in, and how it moves. */
#include "tests/unit/daemon/core/scene.h"

static const struct scene_load plain = {0};

static struct scene *given_warm(uint64_t *ret_client)
{
	const struct core_config config = scene_usual();
	struct scene *scene = scene_new(&config);

	scene->is_cached = true;
	*ret_client = scene_open(scene, 1000);
	return scene;
}

/* The copy of the model's published generation. */
static struct core_segment_view copy_of(const struct scene *scene, uint32_t inode)
{
	const uint64_t generation = scene_view(scene, inode).generation;
	struct core_segment_view view = {0};
	uint32_t cursor = 0;

	while (core_segment_next(scene->core, scene_model(scene, inode), &cursor, &view)) {
		if (view.generation == generation) {
			return view;
		}
	}
	fail_msg("the model has no copy");
	return view;
}

static uint64_t charged(const struct scene *scene)
{
	struct core_account_view view;

	core_account_get(scene->core, 0, &view);
	return view.resident + view.loading + view.dropping + view.held;
}

static struct core_policy pinned(bool pin)
{
	return (struct core_policy){.said = CORE_SAID_PIN, .pin = pin};
}

static void change(struct scene *scene, uint32_t inode, bool was_written)
{
	(void)scene_step(scene, (struct core_event){.type = EV_CHANGED,
						    .changed = {.segment = copy_of(scene, inode).id,
								.was_written = was_written}});
}

static void what_is_warm_costs_nothing(void **state)
{
	uint64_t client;
	struct scene *scene = given_warm(&client);

	(void)state;
	(void)scene_loaded(scene, client, 1, 500 * MIB, plain); /* the budget is 100 MiB */
	assert_int_equal(copy_of(scene, 1).backing, CORE_BACKING_FILE);
	assert_int_equal(copy_of(scene, 1).size, 500 * MIB);
	assert_int_equal(charged(scene), 0);
	scene->is_cached = false;
	(void)scene_loaded(scene, client, 2, MIB, plain);
	assert_int_equal(copy_of(scene, 2).backing, CORE_BACKING_IMAGE);
	assert_int_equal(charged(scene), MIB);
	scene_free(scene);
}

static void what_shall_stay_or_was_asked_for_is_what_it_should_be(void **state)
{
	static const struct {
		struct core_policy policy;
		enum core_backing wanted, got;
	} cases[] = {
		{{0}, CORE_BACKING_IMAGE, CORE_BACKING_IMAGE},
		{{0}, CORE_BACKING_FILE, CORE_BACKING_FILE},
		{{.said = CORE_SAID_PIN, .pin = true}, CORE_BACKING_AUTO, CORE_BACKING_IMAGE},
		{{.said = CORE_SAID_KEEP, .keep = true}, CORE_BACKING_AUTO, CORE_BACKING_IMAGE},
		{{.said = CORE_SAID_PIN, .pin = true}, CORE_BACKING_FILE, CORE_BACKING_LOCKED},
		{{.said = CORE_SAID_KEEP, .keep = true}, CORE_BACKING_FILE, CORE_BACKING_FILE},
	};
	uint64_t client;
	struct scene *scene = given_warm(&client);

	(void)state;
	for (uint32_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
		const struct scene_load with = {.policy = cases[i].policy,
						.backing = cases[i].wanted};
		uint64_t before = charged(scene);

		(void)scene_loaded(scene, client, i, MIB, with);
		assert_int_equal(copy_of(scene, i).backing, cases[i].got);
		assert_int_equal(charged(scene) - before,
				 cases[i].got == CORE_BACKING_FILE ? 0 : MIB);
	}
	scene_free(scene);
}

static void a_pin_moves_it_while_it_serves(void **state)
{
	uint64_t client;
	struct scene *scene = given_warm(&client);
	uint64_t lease = scene_loaded(scene, client, 1, MIB,
				      (struct scene_load){.attach = true, .map = true});
	uint32_t request;

	(void)state;
	(void)scene_set(scene, client, 1, pinned(true));
	assert_int_equal(scene_count(scene, ACT_READ_HEADER), 1);
	request = scene_load(scene, client, 1, (struct scene_load){.attach = true});
	scene_expect(scene, client, request, 0); /* at once, by what is there */
	scene_lease_event(scene, EV_DETACH, client,
			  scene_reply(scene, client, request)->reply.lease);
	scene_header(scene, 1, MIB, 0);
	assert_int_equal(scene_find(scene, ACT_FILL, 0)->fill.backing, CORE_BACKING_IMAGE);
	scene_fill(scene, 1, 0);
	assert_int_equal(copy_of(scene, 1).backing, CORE_BACKING_IMAGE);
	assert_int_equal(scene_view(scene, 1).generation, 2);
	assert_int_equal(scene_count(scene, ACT_LOST), 0);
	scene_lease_event(scene, EV_DETACH, client, lease);
	assert_int_equal(scene_count(scene, ACT_DROP), 1);
	assert_null(scene_note(scene, CORE_NOTE_STALE)); /* nothing was lost */
	scene_drop_all(scene);
	(void)scene_set(scene, client, 1, pinned(false));
	assert_int_equal(scene_count(scene, ACT_READ_HEADER), 0); /* an image stays one */
	scene_free(scene);
}

static void a_move_without_room_leaves_it_serving(void **state)
{
	uint64_t client;
	struct scene *scene = given_warm(&client);

	(void)state;
	(void)scene_loaded(scene, client, 1, 500 * MIB, plain);
	(void)scene_set(scene, client, 1, pinned(true));
	scene_header(scene, 1, 500 * MIB, 0);
	assert_non_null(scene_note(scene, CORE_NOTE_REFUSED));
	assert_true(scene_is_resident(scene, 1));
	assert_int_equal(copy_of(scene, 1).backing, CORE_BACKING_FILE);
	assert_true(scene_view(scene, 1).file != 0);
	scene_free(scene);
}

static void an_unpinned_file_is_unlocked(void **state)
{
	uint64_t client;
	struct scene *scene = given_warm(&client);
	const struct scene_load with = {.policy = pinned(true), .backing = CORE_BACKING_FILE};

	(void)state;
	(void)scene_loaded(scene, client, 1, MIB, with);
	assert_int_equal(charged(scene), MIB);
	(void)scene_set(scene, client, 1, pinned(false));
	scene_header(scene, 1, MIB, 0);
	scene_fill(scene, 1, 0);
	scene_drop_all(scene);
	assert_int_equal(copy_of(scene, 1).backing, CORE_BACKING_FILE);
	assert_int_equal(charged(scene), 0);
	scene_free(scene);
}

static void what_was_said_during_a_load_counts_after_it(void **state)
{
	uint64_t client;
	struct scene *scene = given_warm(&client);

	(void)state;
	(void)scene_load(scene, client, 1, plain);
	scene_header(scene, 1, MIB, 0);
	(void)scene_set(scene, client, 1, pinned(true));
	scene_fill(scene, 1, 0);
	assert_int_equal(copy_of(scene, 1).backing, CORE_BACKING_FILE);
	assert_int_equal(scene_count(scene, ACT_READ_HEADER), 1);
	scene_header(scene, 1, MIB, 0);
	scene_fill(scene, 1, 0);
	assert_int_equal(copy_of(scene, 1).backing, CORE_BACKING_IMAGE);
	scene_free(scene);
}

static void a_changed_file_is_leased_no_more(void **state)
{
	for (int was_written = 0; was_written <= 1; was_written++) {
		uint64_t client;
		struct scene *scene = given_warm(&client);
		uint64_t lease = scene_loaded(scene, client, 1, MIB,
					      (struct scene_load){.attach = true, .map = true});

		(void)state;
		change(scene, 1, was_written != 0);
		assert_int_equal(scene_count(scene, ACT_LOST), was_written);
		assert_int_equal(scene_note(scene, CORE_NOTE_STALE)->note.bytes, MIB);
		assert_int_equal(scene_count(scene, ACT_DROP), 0); /* its holder has it still */
		assert_false(scene_is_resident(scene, 1));
		scene_lease_event(scene, EV_DETACH, client, lease);
		assert_int_equal(scene_count(scene, ACT_DROP), 1);
		scene_drop_all(scene);
		scene->keys[1].ctime_ns++;
		(void)scene_loaded(scene, client, 1, MIB, plain);
		assert_true(scene_is_resident(scene, 1));
		scene_free(scene);
	}
}

static void a_dropped_file_is_held_by_nobody(void **state)
{
	uint64_t client;
	struct scene *scene = given_warm(&client);
	const struct scene_load with = {.attach = true,
					.map = true,
					.policy = pinned(true),
					.backing = CORE_BACKING_FILE};

	(void)state;
	(void)scene_loaded(scene, client, 1, MIB, with);
	scene_client_event(scene, EV_CLIENT_CLOSED, client); /* its process maps it still */
	client = scene_open(scene, 1000);
	(void)scene_set(scene, client, 1, pinned(false));
	scene_header(scene, 1, MIB, 0);
	scene_fill(scene, 1, 0);
	scene_drop_all(scene);
	assert_int_equal(charged(scene), 0);
	scene_free(scene);
}

static void there_is_nothing_to_verify(void **state)
{
	uint64_t client;
	struct scene *scene = given_warm(&client);

	(void)state;
	(void)scene_loaded(scene, client, 1, MIB, plain);
	(void)scene_step(scene, (struct core_event){.type = EV_VERIFY,
						    .client = client,
						    .request = ++scene->last_request,
						    .verify = {.model = scene_model(scene, 1)}});
	scene_expect(scene, client, scene->last_request, WIRE_UNSUPPORTED);
	scene_free(scene);
}

static void nothing_is_gained_by_evicting_it(void **state)
{
	uint64_t client;
	struct scene *scene = given_warm(&client);

	(void)state;
	(void)scene_loaded(scene, client, 1, MIB, plain);
	scene->is_cached = false;
	(void)scene_loaded(scene, client, 2, 60 * MIB, plain);
	(void)scene_load(scene, client, 3, plain);
	scene_header(scene, 3, 60 * MIB, 0);
	assert_int_equal(scene_count(scene, ACT_DROP), 1);
	assert_true(scene_is_resident(scene, 1));
	scene_free(scene);
}

static void who_insists_joins_no_other_load(void **state)
{
	static const enum core_backing insisted[] = {CORE_BACKING_IMAGE, CORE_BACKING_FILE};

	(void)state;
	for (int after_header = 0; after_header <= 1; after_header++) {
		for (uint32_t i = 0; i < 2; i++) {
			const struct scene_load first = {.backing = insisted[1 - i]};
			const struct scene_load second = {.backing = insisted[i]};
			uint64_t client;
			struct scene *scene = given_warm(&client);
			uint32_t request = scene_load(scene, client, 1, first);
			uint32_t other = 0;

			if (after_header != 0) {
				scene_header(scene, 1, MIB, 0);
				other = scene_load(scene, client, 1, second);
				scene_fill(scene, 1, 0);
			} else {
				other = scene_load(scene, client, 1, second);
				scene_header(scene, 1, MIB, 0);
			}
			/* Begun again; where it cannot be, nobody else is refused for it. */
			assert_int_equal(scene_count(scene, ACT_READ_HEADER), 1);
			assert_int_equal(scene_find(scene, ACT_READ_HEADER, 0)->fill.backing,
					 insisted[i]);
			assert_false(scene_find(scene, ACT_READ_HEADER, 0)->fill.insists_backing);
			scene_drop_all(scene);
			scene_header(scene, 1, MIB, 0);
			(void)scene_load(scene, client, 1, first); /* once is enough */
			scene_fill(scene, 1, 0);
			scene_expect(scene, client, request, 0);
			scene_expect(scene, client, other, 0);
			assert_int_equal(copy_of(scene, 1).backing, insisted[i]);
			/* The last word all the same, of which an image is never undone. */
			assert_int_equal(scene_count(scene, ACT_READ_HEADER), i);
			scene_free(scene);
		}
	}
}

static void who_insists_is_not_content_with_equal_bytes(void **state)
{
	uint64_t client;
	struct scene *scene = given_warm(&client);
	const struct scene_load as_file = {.backing = CORE_BACKING_FILE};

	(void)state;
	for (int joined = 0; joined <= 1; joined++) {
		uint32_t inode = 1 + (uint32_t)joined;
		const struct scene_load as_image = {.backing = CORE_BACKING_IMAGE};

		(void)scene_loaded(scene, client, inode, MIB, as_image);
		scene->keys[inode].ctime_ns++; /* renamed */
		(void)scene_load(scene, client, inode, joined != 0 ? plain : as_file);
		assert_int_equal(scene_count(scene, ACT_RECHECK), 1);
		if (joined != 0) {
			(void)scene_load(scene, client, inode, as_file);
		}
		(void)scene_step(scene,
				 (struct core_event){.type = EV_RECHECKED,
						     .rechecked =
							     {.job = scene_view(scene, inode).job,
							      .is_equal = true}});
		scene_header(scene, inode, MIB, 0);
		scene_fill(scene, inode, 0);
		assert_int_equal(copy_of(scene, inode).backing, CORE_BACKING_FILE);
	}
	scene_free(scene);
}

static void a_move_that_failed_is_tried_again_when_somebody_asks(void **state)
{
	uint64_t client;
	struct scene *scene = given_warm(&client);
	const struct scene_load as_image = {.backing = CORE_BACKING_IMAGE};
	uint32_t request;

	(void)state;
	(void)scene_loaded(scene, client, 1, 500 * MIB, plain);
	request = scene_load(scene, client, 1, as_image);
	scene_header(scene, 1, 500 * MIB, 0);
	scene_expect(scene, client, request, WIRE_NO_MEMORY);
	(void)scene_load(scene, client, 1, plain);
	assert_int_equal(scene_count(scene, ACT_READ_HEADER), 0);
	(void)scene_set(scene, client, 1, pinned(false)); /* nobody wants an image any more */
	assert_int_equal(scene_count(scene, ACT_READ_HEADER), 0);
	(void)scene_load(scene, client, 1, (struct scene_load){.policy = pinned(true)});
	assert_int_equal(scene_count(scene, ACT_READ_HEADER), 1);
	scene_free(scene);
}

static void what_is_locked_is_charged_once(void **state)
{
	uint64_t client;
	struct scene *scene = given_warm(&client);
	const struct scene_load with = {.attach = true,
					.policy = pinned(true),
					.backing = CORE_BACKING_FILE};
	uint64_t lease = scene_loaded(scene, client, 1, MIB, with);

	(void)state;
	for (int i = 0; i < 3; i++) {
		(void)scene_set(scene, client, 1, pinned(i % 2 != 0));
		assert_int_equal(scene_count(scene, ACT_READ_HEADER), 0);
	}
	scene_lease_event(scene, EV_DETACH, client, lease);
	assert_int_equal(scene_count(scene, ACT_READ_HEADER), 1); /* its last user is gone */
	scene_header(scene, 1, MIB, 0);
	scene_fill(scene, 1, 0);
	scene_drop_all(scene);
	assert_int_equal(charged(scene), 0);
	scene_free(scene);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(what_is_warm_costs_nothing),
		cmocka_unit_test(what_shall_stay_or_was_asked_for_is_what_it_should_be),
		cmocka_unit_test(a_pin_moves_it_while_it_serves),
		cmocka_unit_test(a_move_without_room_leaves_it_serving),
		cmocka_unit_test(an_unpinned_file_is_unlocked),
		cmocka_unit_test(what_was_said_during_a_load_counts_after_it),
		cmocka_unit_test(a_changed_file_is_leased_no_more),
		cmocka_unit_test(a_dropped_file_is_held_by_nobody),
		cmocka_unit_test(there_is_nothing_to_verify),
		cmocka_unit_test(nothing_is_gained_by_evicting_it),
		cmocka_unit_test(who_insists_joins_no_other_load),
		cmocka_unit_test(who_insists_is_not_content_with_equal_bytes),
		cmocka_unit_test(a_move_that_failed_is_tried_again_when_somebody_asks),
		cmocka_unit_test(what_is_locked_is_charged_once),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
