/* SPDX-License-Identifier: Apache-2.0 */
/* Room on a device for what is not ours. */
#include "tests/unit/daemon/core/room.h"

static const struct scene_load plain;
static const struct scene_load mapped = {.attach = true, .map = true};

static struct core_account_view account(const struct scene *scene)
{
	struct core_account_view view;

	core_account_get(scene->core, 0, &view);
	return view;
}

static struct scene *given(uint64_t *ret_client)
{
	const struct core_config config = scene_usual();
	struct scene *scene = scene_new(&config);

	*ret_client = scene_open(scene, 1000);
	return scene;
}

static void free_room_is_reserved_and_released(void **state)
{
	uint64_t client;
	struct scene *scene = given(&client);
	uint32_t request = reserve(scene, client, (struct asked){.bytes = 60 * MIB});
	uint64_t token;

	(void)state;
	scene_expect(scene, client, request, 0);
	token = scene_reply(scene, client, request)->reply.lease;
	assert_int_equal(account(scene).reserved, 60 * MIB);
	assert_int_equal(account(scene).free, 40 * MIB);
	request = scene_load(scene, client, 1, plain);
	scene_header(scene, 1, 50 * MIB, 0);
	scene_expect(scene, client, request, WIRE_NO_MEMORY);
	release(scene, client, token);
	scene_expect(scene, client, scene->last_request, 0);
	assert_int_equal(account(scene).reserved, 0);
	release(scene, client, token);
	scene_expect(scene, client, scene->last_request, WIRE_NOT_FOUND);
	scene_free(scene);
}

static void what_nobody_uses_goes_and_comes_back(void **state)
{
	uint64_t client;
	struct scene *scene = given(&client);
	uint32_t request;

	(void)state;
	(void)scene_loaded(scene, client, 1, 80 * MIB, plain);
	request = reserve(scene, client, (struct asked){.bytes = 50 * MIB});
	assert_null(scene_reply(scene, client, request));
	assert_non_null(scene_note(scene, CORE_NOTE_EVICTED));
	scene_drop_all(scene);
	scene_expect(scene, client, request, 0);
	assert_false(scene_is_resident(scene, 1));
	release(scene, client, scene_reply(scene, client, request)->reply.lease);
	assert_int_equal(scene_count(scene, ACT_READ_HEADER), 1);
	scene_header(scene, 1, 80 * MIB, 0);
	scene_fill(scene, 1, 0);
	assert_true(scene_is_resident(scene, 1));
	scene_free(scene);
}

static void the_end_of_the_connection_ends_it(void **state)
{
	uint64_t client;
	struct scene *scene = given(&client);

	(void)state;
	(void)reserve(scene, client, (struct asked){.bytes = 60 * MIB});
	scene_client_event(scene, EV_CLIENT_CLOSED, client);
	assert_int_equal(account(scene).reserved, 0);
	scene_free(scene);
}

static void its_time_runs_out(void **state)
{
	uint64_t client;
	struct scene *scene = given(&client);

	(void)state;
	(void)reserve(scene, client, (struct asked){.bytes = 60 * MIB, .ttl_ns = 1000});
	assert_int_equal(scene->next_deadline_ns, scene->now_ns + 1000);
	scene->now_ns += 1000;
	(void)scene_step(scene, (struct core_event){.type = EV_TICK});
	assert_int_equal(account(scene).reserved, 0);
	scene_free(scene);
}

static void who_uses_it_is_asked_to_let_go(void **state)
{
	uint64_t client;
	struct scene *scene = given(&client);
	uint64_t other = scene_open(scene, 1000);
	uint64_t lease = scene_loaded(scene, client, 1, 80 * MIB, mapped);
	uint32_t request =
		reserve(scene, other, (struct asked){.bytes = 50 * MIB, .recall_ns = 5000000000});
	const struct core_action *recall = scene_find(scene, ACT_RECALL, 0);

	(void)state;
	assert_non_null(recall);
	assert_int_equal(recall->client, client);
	assert_int_equal(recall->recall.lease, lease);
	assert_int_equal(recall->recall.for_client, other);
	assert_null(scene_reply(scene, other, request));
	scene_lease_event(scene, EV_DETACH, client, lease);
	scene_drop_all(scene);
	scene_expect(scene, other, request, 0);
	scene_free(scene);
}

/* Leases end when their holders want. */
static void who_waits_for_leases_is_in_no_loads_way(void **state)
{
	uint64_t client;
	struct scene *scene = given(&client);
	uint64_t other = scene_open(scene, 1000);
	uint64_t lease = scene_loaded(scene, client, 1, 80 * MIB, mapped);
	uint32_t request =
		reserve(scene, other, (struct asked){.bytes = 50 * MIB, .recall_ns = 5000000000});

	(void)state;
	(void)scene_loaded(scene, client, 2, 10 * MIB, plain);
	assert_true(scene_is_resident(scene, 2));
	assert_null(scene_reply(scene, other, request));
	scene_lease_event(scene, EV_DETACH, client, lease);
	scene_drop_all(scene);
	scene_expect(scene, other, request, 0);
	scene_free(scene);
}

static void who_does_not_let_go_is_told_of(void **state)
{
	uint64_t client;
	struct scene *scene = given(&client);
	uint64_t other = scene_open(scene, 1000);
	uint32_t request;

	(void)state;
	(void)scene_loaded(scene, client, 1, 80 * MIB, mapped);
	request = reserve(scene, other, (struct asked){.bytes = 50 * MIB, .recall_ns = 5000000000});
	assert_null(scene_reply(scene, other, request));
	scene->now_ns += 5000000000;
	(void)scene_step(scene, (struct core_event){.type = EV_TICK});
	scene_expect(scene, other, request, WIRE_BUSY);
	assert_true(scene_is_resident(scene, 1));
	scene_free(scene);
}

static void without_recall_it_is_refused_at_once(void **state)
{
	uint64_t client;
	struct scene *scene = given(&client);
	uint32_t request;

	(void)state;
	(void)scene_loaded(scene, client, 1, 80 * MIB, mapped);
	request = reserve(scene, client, (struct asked){.bytes = 50 * MIB});
	scene_expect(scene, client, request, WIRE_NO_MEMORY);
	assert_int_equal(scene_reply(scene, client, request)->shortage.need, 50 * MIB);
	assert_int_equal(scene_count(scene, ACT_RECALL), 0);
	scene_free(scene);
}

static void there_are_not_more_than_there_may_be(void **state)
{
	uint64_t client;
	struct scene *scene = given(&client);

	(void)state;
	for (int i = 0; i < 8; i++) {
		scene_expect(scene, client, reserve(scene, client, (struct asked){.bytes = MIB}),
			     0);
	}
	scene_expect(scene, client, reserve(scene, client, (struct asked){.bytes = MIB}),
		     WIRE_TOO_MANY);
	scene_free(scene);
}

/* Of the same user. */
static void one_user_has_only_so_many(void **state)
{
	struct core_config config = scene_usual();
	struct scene *scene;
	uint64_t client;
	uint64_t other;
	uint32_t request;
	uint64_t token;

	(void)state;
	config.max_reservations_per_uid = 1;
	scene = scene_new(&config);
	client = scene_open(scene, 1000);
	other = scene_open(scene, 1001);
	request = reserve(scene, client, (struct asked){.bytes = MIB});
	scene_expect(scene, client, request, 0);
	token = scene_reply(scene, client, request)->reply.lease;
	request = reserve(scene, client, (struct asked){.bytes = MIB});
	scene_expect(scene, client, request, WIRE_TOO_MANY);
	assert_int_equal(scene_reply(scene, client, request)->too_many.limit,
			 CORE_LIMIT_USER_RESERVATIONS);
	assert_int_equal(scene_reply(scene, client, request)->too_many.number, 1);
	request = reserve(scene, other, (struct asked){.bytes = MIB});
	scene_expect(scene, other, request, 0);
	release(scene, client, token);
	request = reserve(scene, client, (struct asked){.bytes = MIB});
	scene_expect(scene, client, request, 0);
	scene_free(scene);
}

/* Of the host's memory; of a device it is what he may have while others wait, as ever. */
static void one_user_reserves_no_more_than_his_share(void **state)
{
	const struct asked asked = {.bytes = 30 * MIB, .recall_ns = 5000000000};
	struct core_config config = scene_usual();
	struct scene *scene;
	uint64_t client;
	uint64_t other;
	uint32_t request;

	(void)state;
	config.share_milli_pct = 50000;
	scene = scene_new(&config);
	client = scene_open(scene, 1000);
	other = scene_open(scene, 1001);
	(void)scene_loaded(scene, other, 1, 80 * MIB, mapped);
	request = reserve(scene, client, asked);
	assert_null(scene_reply(scene, client, request)); /* it waits, and counts */
	request = reserve(scene, client, (struct asked){.bytes = 20 * MIB + 1});
	scene_expect(scene, client, request, WIRE_NO_MEMORY);
	assert_true(scene_reply(scene, client, request)->shortage.is_of_share);
	assert_int_equal(scene_reply(scene, client, request)->shortage.budget, 50 * MIB);
	assert_int_equal(scene_reply(scene, client, request)->shortage.free, 20 * MIB);
	request = reserve(scene, client, (struct asked){.bytes = 20 * MIB});
	assert_false(scene_reply(scene, client, request) != NULL &&
		     scene_reply(scene, client, request)->shortage.is_of_share);
	request = reserve(scene, client, (struct asked){.bytes = 60 * MIB, .device = 1});
	assert_false(scene_reply(scene, client, request) != NULL &&
		     scene_reply(scene, client, request)->shortage.is_of_share);
	scene_free(scene);
}

#define N_LEASES 200U

/* What the first took is not there for the others: they all have to ask now. */
static void many_that_ask_do_so_one_after_the_other(void **state)
{
	const struct asked asked = {.bytes = 30 * MIB, .recall_ns = 5000000000};
	struct core_config config = scene_usual();
	struct scene *scene;
	uint64_t client;
	uint64_t other;
	uint32_t n_recalls;

	(void)state;
	config.max_leases = N_LEASES;
	config.max_segments = config.max_models = config.max_wishes = 2;
	config.max_waiters = config.max_clients = 8;
	scene = scene_new(&config);
	client = scene_open(scene, 1000);
	other = scene_open(scene, 1001);
	(void)scene_loaded(scene, client, 1, 60 * MIB, mapped);
	for (uint32_t i = 1; i < N_LEASES; i++) {
		(void)scene_load(scene, client, 1, mapped);
	}
	(void)scene_loaded(scene, client, 2, 40 * MIB, plain);
	for (uint32_t i = 0; i < config.max_reservations; i++) {
		(void)reserve(scene, other, asked);
	}
	scene_drop_all(scene);
	n_recalls = scene_count(scene, ACT_RECALL);
	assert_int_equal(n_recalls, N_LEASES);
	for (uint32_t i = 2; i < config.max_reservations; i++) {
		assert_int_equal(scene->next_deadline_ns, scene->now_ns);
		(void)scene_step(scene, (struct core_event){.type = EV_TICK});
		n_recalls += scene_count(scene, ACT_RECALL);
	}
	assert_int_equal(n_recalls, (config.max_reservations - 1) * N_LEASES);
	assert_true(scene->next_deadline_ns > scene->now_ns);
	scene_free(scene);
}

/* Nobody is asked where that could not make the room: by pins, own leases, those who are gone. */
static void what_no_recall_can_make_is_refused_at_once(void **state)
{
	const struct asked asked = {.bytes = 50 * MIB, .recall_ns = 5000000000};
	const struct core_policy unpin = {.said = CORE_SAID_PIN};
	uint64_t client;
	struct scene *scene = given(&client);
	uint64_t other = scene_open(scene, 1000);
	uint32_t request;

	(void)state;
	(void)scene_loaded(scene, client, 1, 60 * MIB, mapped);
	(void)scene_loaded(scene, client, 2, 20 * MIB, mapped);
	(void)scene_set(scene, client, 1, (struct core_policy){.said = CORE_SAID_PIN, .pin = true});
	request = reserve(scene, other, asked);
	scene_expect(scene, other, request, WIRE_NO_MEMORY);
	assert_int_equal(scene_count(scene, ACT_RECALL), 0);
	(void)scene_set(scene, client, 1, unpin);
	request = reserve(scene, client, asked);
	scene_expect(scene, client, request, WIRE_NO_MEMORY); /* it leases all of it itself */
	scene_client_event(scene, EV_CLIENT_CLOSED, client);
	request = reserve(scene, other, asked);
	scene_expect(scene, other, request, WIRE_NO_MEMORY); /* who is gone is not asked */
	assert_int_equal(scene_count(scene, ACT_RECALL), 0);
	scene_free(scene);
}

/* What may go anyhow is counted once, also of a model that somebody leases as it lay before. */
static void what_goes_unasked_is_no_reason_to_ask(void **state)
{
	const struct core_config config = placed_config();
	const struct asked asked = {.bytes = 90 * MIB, .device = 2, .recall_ns = 5000000000};
	struct scene *scene = scene_new(&config);
	uint64_t client = scene_open(scene, 1000);
	uint64_t other = scene_open(scene, 1000);
	uint32_t request;

	(void)state;
	(void)placed_loaded(scene, client, 2, "2222", plain);
	(void)scene_set(scene, client, 2, (struct core_policy){.said = CORE_SAID_PIN, .pin = true});
	(void)placed_loaded(scene, client, 1, "1111", mapped);
	placed_moved(scene, client, 1, "1122"); /* 8 MiB there that nobody leases */
	request = reserve(scene, other, asked); /* and 76 free */
	scene_expect(scene, other, request, WIRE_NO_MEMORY);
	assert_int_equal(scene_count(scene, ACT_RECALL), 0);
	scene_free(scene);
}

static void who_was_asked_may_end(void **state)
{
	uint64_t client;
	struct scene *scene = given(&client);
	uint64_t other = scene_open(scene, 1000);
	uint32_t request;

	(void)state;
	(void)scene_loaded(scene, client, 1, 80 * MIB, mapped);
	request = reserve(scene, other, (struct asked){.bytes = 50 * MIB, .recall_ns = 5000000000});
	assert_int_equal(scene_count(scene, ACT_RECALL), 1);
	scene_client_event(scene, EV_CLIENT_CLOSED, client);
	assert_null(scene_reply(scene, other, request)); /* its process maps it still */
	scene_client_event(scene, EV_PROCESS_GONE, client);
	scene_drop_all(scene);
	scene_expect(scene, other, request, 0);
	scene_free(scene);
}

static void pinned_after_it_was_asked_for_it_is_waited_for_no_longer(void **state)
{
	uint64_t client;
	struct scene *scene = given(&client);
	uint64_t other = scene_open(scene, 1000);
	uint32_t request;

	(void)state;
	(void)scene_loaded(scene, client, 1, 80 * MIB, mapped);
	request = reserve(scene, other, (struct asked){.bytes = 50 * MIB, .recall_ns = 5000000000});
	(void)scene_set(scene, client, 1, (struct core_policy){.said = CORE_SAID_PIN, .pin = true});
	scene_expect(scene, other, request, WIRE_NO_MEMORY);
	scene_free(scene);
}

/* By a load that goes on with what lies there, or from there, it comes free as without it. */
static void what_is_moved_meanwhile_is_waited_for(void **state)
{
	static const char *const layouts[] = {HOST_LAYOUT, "2200"};
	const struct core_config config = placed_config();
	const struct asked asked = {.bytes = 98 * MIB, .device = 2, .recall_ns = 5000000000};

	(void)state;
	for (uint32_t i = 0; i < sizeof layouts / sizeof layouts[0]; i++) {
		struct scene *scene = scene_new(&config);
		uint64_t client = scene_open(scene, 1000);
		uint64_t other = scene_open(scene, 1000);
		uint64_t lease = placed_loaded(scene, client, 1, "2222", mapped);
		uint32_t request = reserve(scene, other, asked);

		(void)placed_place(scene, client, 1, layouts[i]);
		placed_header(scene, 1, false);
		assert_null(scene_reply(scene, other, request));
		scene_fill(scene, 1, 0);
		assert_null(scene_reply(scene, other, request));
		placed_tabled(scene, 1, 0);
		assert_null(scene_reply(scene, other, request)); /* the lease is of an older one */
		scene_lease_event(scene, EV_DETACH, client, lease);
		scene_drop_all(scene);
		scene_expect(scene, other, request, 0);
		scene_free(scene);
	}
}

/* Who waits for a load leases what it keeps there. */
static void what_a_load_keeps_for_others_is_not_waited_for(void **state)
{
	const struct core_config config = placed_config();
	const struct asked asked = {.bytes = 98 * MIB, .device = 2, .recall_ns = 5000000000};
	struct scene_load with = {.attach = true, .map = true, .placement = placed_as("2220")};
	struct scene *scene = scene_new(&config);
	uint64_t client = scene_open(scene, 1000);
	uint64_t other = scene_open(scene, 1000);
	uint32_t request;

	(void)state;
	(void)placed_loaded(scene, client, 1, "2222", mapped);
	request = reserve(scene, other, asked);
	(void)scene_load(scene, client, 1, with);
	placed_header(scene, 1, false); /* it has given way while it waited for room */
	(void)scene_step(scene, (struct core_event){.type = EV_TICK});
	scene_expect(scene, other, request, WIRE_NO_MEMORY);
	assert_true(scene_reply(scene, other, request)->shortage.is_recalling);
	scene_free(scene);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(free_room_is_reserved_and_released),
		cmocka_unit_test(what_nobody_uses_goes_and_comes_back),
		cmocka_unit_test(the_end_of_the_connection_ends_it),
		cmocka_unit_test(its_time_runs_out),
		cmocka_unit_test(who_uses_it_is_asked_to_let_go),
		cmocka_unit_test(who_waits_for_leases_is_in_no_loads_way),
		cmocka_unit_test(who_does_not_let_go_is_told_of),
		cmocka_unit_test(without_recall_it_is_refused_at_once),
		cmocka_unit_test(there_are_not_more_than_there_may_be),
		cmocka_unit_test(one_user_has_only_so_many),
		cmocka_unit_test(one_user_reserves_no_more_than_his_share),
		cmocka_unit_test(many_that_ask_do_so_one_after_the_other),
		cmocka_unit_test(what_no_recall_can_make_is_refused_at_once),
		cmocka_unit_test(what_goes_unasked_is_no_reason_to_ask),
		cmocka_unit_test(who_was_asked_may_end),
		cmocka_unit_test(pinned_after_it_was_asked_for_it_is_waited_for_no_longer),
		cmocka_unit_test(what_is_moved_meanwhile_is_waited_for),
		cmocka_unit_test(what_a_load_keeps_for_others_is_not_waited_for),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
