/* SPDX-License-Identifier: Apache-2.0 */
/* Who verifies a model while it changes is told of what is published in the end. */
#include "tests/unit/daemon/core/room.h"

static uint32_t verify(struct scene *scene, uint64_t client)
{
	(void)scene_step(scene, (struct core_event){.type = EV_VERIFY,
						    .client = client,
						    .request = ++scene->last_request,
						    .verify = {.model = scene_model(scene, 1)}});
	return scene->last_request;
}

/* Every copy that is being compared, once. */
static void tell(struct scene *scene, const struct core_segment_view *views, uint32_t n_views,
		 bool is_equal)
{
	for (uint32_t i = 0; i < n_views; i++) {
		(void)scene_step(scene, (struct core_event){.type = EV_VERIFIED,
							    .verified = {.segment = views[i].id,
									 .is_equal = is_equal}});
	}
}

static uint32_t take_views(const struct scene *scene, struct core_segment_view views[static 8])
{
	uint32_t cursor = 0;
	uint32_t n_views = 0;

	while (n_views < 8 &&
	       core_segment_next(scene->core, scene_model(scene, 1), &cursor, &views[n_views])) {
		n_views++;
	}
	return n_views;
}

/* A model whose copies are being compared is moved, and two of its four copies stay. */
static struct scene *given_moved(uint64_t *ret_client, uint32_t *ret_request, bool is_leased)
{
	const struct core_config config = placed_config();
	struct scene *scene = scene_new(&config);
	uint32_t moved;

	*ret_client = scene_open(scene, 1000);
	(void)placed_loaded(scene, *ret_client, 1, "1111",
			    (struct scene_load){.attach = is_leased, .map = is_leased});
	*ret_request = verify(scene, *ret_client);
	assert_int_equal(scene_count(scene, ACT_VERIFY), 4);
	moved = placed_place(scene, *ret_client, 1, "1122");
	placed_header(scene, 1, false);
	scene_fill(scene, 1, 0);
	placed_tabled(scene, 1, 0);
	scene_expect(scene, *ret_client, moved, 0);
	assert_int_equal(scene_count(scene, ACT_VERIFY), 2); /* those that are new */
	assert_null(scene_reply(scene, *ret_client, *ret_request));
	return scene;
}

static void a_move_ends_no_verification(void **state)
{
	struct core_segment_view views[8];
	uint64_t client;
	uint32_t request;
	struct scene *scene = given_moved(&client, &request, false);

	(void)state;
	scene_drop_all(scene);
	tell(scene, views, take_views(scene, views), true);
	scene_expect(scene, client, request, 0);
	scene_free(scene);
}

static void an_older_copy_that_is_bad_says_nothing_of_those_that_are(void **state)
{
	struct core_segment_view views[8];
	uint64_t client;
	uint32_t request;
	struct scene *scene = given_moved(&client, &request, true);
	uint32_t n_views = take_views(scene, views);

	(void)state;
	assert_int_equal(n_views, 6); /* a lease keeps the two of before */
	for (uint32_t i = 0; i < n_views; i++) {
		if (!core_segment_is_of(&views[i], scene_view(scene, 1).generation)) {
			tell(scene, &views[i], 1, false);
			assert_non_null(scene_note(scene, CORE_NOTE_QUARANTINED));
			assert_null(scene_reply(scene, client, request));
		}
	}
	for (uint32_t i = 0; i < n_views; i++) {
		if (core_segment_is_of(&views[i], scene_view(scene, 1).generation)) {
			assert_null(scene_reply(scene, client, request));
			tell(scene, &views[i], 1, true);
		}
	}
	scene_expect(scene, client, request, 0);
	assert_true(scene_is_resident(scene, 1));
	scene_free(scene);
}

static void a_copy_that_a_move_made_badly_is_told(void **state)
{
	struct core_segment_view views[8];
	uint64_t client;
	uint32_t request;
	struct scene *scene = given_moved(&client, &request, false);

	(void)state;
	scene_drop_all(scene);
	assert_int_equal(take_views(scene, views), 4);
	tell(scene, views, 3, true);
	tell(scene, &views[3], 1, false);
	scene_expect(scene, client, request, WIRE_BAD_FILE);
	scene_free(scene);
}

/* An image that it was compared with had to go. */
static void a_comparison_that_is_cut_off_begins_again(void **state)
{
	struct core_segment_view views[8];
	uint64_t client;
	uint32_t request;
	struct scene *scene = given_moved(&client, &request, false);

	(void)state;
	scene_drop_all(scene);
	assert_int_equal(take_views(scene, views), 4);
	(void)scene_step(scene, (struct core_event){.type = EV_VERIFIED,
						    .verified = {.segment = views[0].id,
								 .code = WIRE_CANCELLED}});
	assert_int_equal(scene_count(scene, ACT_VERIFY), 1);
	assert_null(scene_reply(scene, client, request));
	tell(scene, views, 4, true);
	scene_expect(scene, client, request, 0);
	scene_free(scene);
}

static void what_is_unloaded_while_it_is_verified_is_cancelled(void **state)
{
	struct core_segment_view views[8];
	uint64_t client;
	uint64_t model;
	uint32_t request;
	struct scene *scene = given_moved(&client, &request, false);

	(void)state;
	scene_drop_all(scene);
	model = scene_model(scene, 1);
	assert_int_equal(take_views(scene, views), 4);
	(void)scene_step(scene, (struct core_event){.type = EV_UNLOAD,
						    .client = client,
						    .request = ++scene->last_request,
						    .unload = {.models = &model,
							       .n_models = 1,
							       .by_name = true}});
	scene_expect(scene, client, request, WIRE_CANCELLED);
	scene_free(scene);
}

static void what_is_left_of_a_model_is_verified(void **state)
{
	const struct core_config config = placed_config();
	const struct scene_load plain = {0};
	struct scene *scene = scene_new(&config);
	uint64_t client = scene_open(scene, 1000);
	struct core_segment_view views[8];
	uint32_t request;

	(void)state;
	(void)placed_loaded(scene, client, 1, "1122", plain);
	placed_lose(scene, 2);
	assert_int_equal(scene_view(scene, 1).state, CORE_MODEL_PARTIAL);
	request = verify(scene, client);
	assert_int_equal(scene_count(scene, ACT_VERIFY), 2);
	assert_int_equal(take_views(scene, views), 2);
	tell(scene, views, 1, true);
	assert_null(scene_reply(scene, client, request));
	tell(scene, &views[1], 1, true);
	scene_expect(scene, client, request, 0);
	request = verify(scene, client);
	tell(scene, &views[1], 1, false);
	scene_expect(scene, client, request, WIRE_BAD_FILE);
	assert_non_null(scene_note(scene, CORE_NOTE_QUARANTINED));
	request = verify(scene, client); /* it is being loaded again */
	scene_expect(scene, client, request, WIRE_NOT_RESIDENT);
	scene_free(scene);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_move_ends_no_verification),
		cmocka_unit_test(an_older_copy_that_is_bad_says_nothing_of_those_that_are),
		cmocka_unit_test(a_copy_that_a_move_made_badly_is_told),
		cmocka_unit_test(a_comparison_that_is_cut_off_begins_again),
		cmocka_unit_test(what_is_unloaded_while_it_is_verified_is_cancelled),
		cmocka_unit_test(what_is_left_of_a_model_is_verified),
	};

	return cmocka_run_group_tests_name("daemon/core/verify", tests, NULL, NULL);
}
