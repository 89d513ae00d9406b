/* SPDX-License-Identifier: Apache-2.0 */
/* Loads: joined, cancelled, refused, repeated; who waits for whom. */
#include "tests/unit/daemon/core/scene.h"

#include "daemon/core/state.h"

static const struct scene_load plain;

/* fault: F35 */
static void those_who_ask_during_a_load_join_it(void **state)
{
	const struct core_config config = scene_usual();
	struct scene *scene = scene_new(&config);
	uint64_t first = scene_open(scene, 1000);
	uint64_t second = scene_open(scene, 1001);
	uint32_t one = scene_load(scene, first, 1, plain);
	uint32_t two;

	(void)state;
	assert_int_equal(scene_count(scene, ACT_READ_HEADER), 1);
	two = scene_load(scene, second, 1, plain);
	assert_int_equal(scene_count(scene, ACT_READ_HEADER), 0);
	assert_int_equal(scene_count(scene, ACT_CLOSE_FILE), 1);
	scene_header(scene, 1, MIB, 0);
	assert_int_equal(scene_count(scene, ACT_FILL), 1);
	scene_fill(scene, 1, 0);
	assert_int_equal(scene_reply(scene, first, one)->reply.source, CORE_SOURCE_DISK);
	assert_int_equal(scene_reply(scene, second, two)->reply.source, CORE_SOURCE_JOINED);
	one = scene_load(scene, first, 1, plain);
	assert_int_equal(scene_reply(scene, first, one)->reply.source, CORE_SOURCE_RAM);
	scene_free(scene);
}

static void cancel(struct scene *scene, uint64_t client, uint32_t request)
{
	(void)scene_step(scene, (struct core_event){.type = EV_CANCEL,
						    .client = client,
						    .request = ++scene->last_request,
						    .cancel = {.request = request}});
}

/* fault: F35 */
static void forty_nine_cancel_and_the_fiftieth_gets_it(void **state)
{
	const struct core_config config = scene_usual();
	struct scene *scene = scene_new(&config);
	uint64_t clients[50];
	uint32_t requests[50];

	(void)state;
	for (int i = 0; i < 50; i++) {
		clients[i] = scene_open(scene, 1000);
		requests[i] = scene_load(scene, clients[i], 1, plain);
	}
	scene_header(scene, 1, MIB, 0);
	for (int i = 0; i < 49; i++) {
		cancel(scene, clients[i], requests[i]);
		scene_expect(scene, clients[i], requests[i], WIRE_CANCELLED);
		assert_int_equal(scene_count(scene, ACT_CANCEL), 0);
	}
	scene_fill(scene, 1, 0);
	scene_expect(scene, clients[49], requests[49], 0);
	scene_free(scene);
}

static void a_file_read_raw_is_a_model_of_its_own(void **state)
{
	const struct core_config config = scene_usual();
	struct scene *scene = scene_new(&config);
	uint64_t client = scene_open(scene, 1000);
	struct core_event attach = {.type = EV_ATTACH, .client = client};
	struct core_file_key key = scene->keys[1];

	(void)state;
	scene->keys[2] = key;
	scene->keys[2].is_raw = true;
	attach.attach.key = &key;
	(void)scene_loaded(scene, client, 2, MIB, plain);
	assert_int_equal(scene_model(scene, 1), 0);
	/* Presented, it is what there is; */
	attach.request = ++scene->last_request;
	attach.attach.file = ++scene->last_file;
	(void)scene_step(scene, attach);
	scene_expect(scene, client, attach.request, 0);
	assert_int_equal(scene_reply(scene, client, attach.request)->model, scene_model(scene, 2));
	/* but who loads it gets its tensors, and so do those who present it later. */
	(void)scene_loaded(scene, client, 1, MIB, plain);
	assert_true(scene_model(scene, 1) != scene_model(scene, 2));
	assert_true(scene_is_resident(scene, 1) && scene_is_resident(scene, 2));
	attach.request = ++scene->last_request;
	attach.attach.file = ++scene->last_file;
	(void)scene_step(scene, attach);
	assert_int_equal(scene_reply(scene, client, attach.request)->model, scene_model(scene, 1));
	scene_free(scene);
}

static void the_last_who_leaves_ends_the_load_and_frees_its_room(void **state)
{
	const struct core_config config = scene_usual();
	struct scene *scene = scene_new(&config);
	uint64_t client = scene_open(scene, 1000);
	struct core_account_view account;

	(void)state;
	(void)scene_load(scene, client, 1, plain);
	scene_header(scene, 1, MIB, 0);
	scene_client_event(scene, EV_CLIENT_CLOSED, client);
	assert_int_equal(scene_count(scene, ACT_CANCEL), 1);
	assert_non_null(scene_note(scene, CORE_NOTE_LOAD_CANCELLED));
	scene_fill(scene, 1, 0); /* done all the same: nobody wants it */
	assert_int_equal(scene_count(scene, ACT_DROP), 1);
	assert_int_equal(scene_count(scene, ACT_PUBLISH), 0);
	scene_drop_all(scene);
	core_account_get(scene->core, 0, &account);
	assert_int_equal(account.free, 100 * MIB);
	scene_free(scene);
}

static void a_load_begun_without_waiting_outlives_its_client(void **state)
{
	const struct core_config config = scene_usual();
	struct scene *scene = scene_new(&config);
	uint64_t client = scene_open(scene, 1000);
	uint32_t request = scene_load(scene, client, 1, (struct scene_load){.no_wait = true});

	(void)state;
	assert_int_equal(scene_reply(scene, client, request)->reply.source, CORE_SOURCE_BEGUN);
	scene_client_event(scene, EV_CLIENT_CLOSED, client);
	scene_header(scene, 1, MIB, 0);
	scene_fill(scene, 1, 0);
	assert_true(scene_is_resident(scene, 1));
	scene_free(scene);
}

/* fault: F32 */
static void a_file_that_changes_is_read_once_more_and_then_refused(void **state)
{
	const struct core_config config = scene_usual();
	struct scene *scene = scene_new(&config);
	uint64_t client = scene_open(scene, 1000);
	uint32_t request = scene_load(scene, client, 1, plain);

	(void)state;
	scene_header(scene, 1, MIB, 0);
	scene_fill(scene, 1, WIRE_CHANGED_WHILE_READING);
	assert_int_equal(scene_count(scene, ACT_READ_HEADER), 1);
	assert_null(scene_reply(scene, client, request));
	scene_header(scene, 1, MIB, 0);
	scene_fill(scene, 1, WIRE_CHANGED_WHILE_READING);
	scene_expect(scene, client, request, WIRE_CHANGED_WHILE_READING);
	scene_free(scene);
}

static void who_joins_with_newer_content_gets_that(void **state)
{
	const struct core_config config = scene_usual();
	struct scene *scene = scene_new(&config);
	uint64_t client = scene_open(scene, 1000);
	uint32_t old = scene_load(scene, client, 1, plain);
	struct core_file_key before = scene->keys[1];
	struct core_file_key after;
	uint32_t fresh;

	(void)state;
	scene_header(scene, 1, MIB, 0);
	scene->keys[1].mtime_ns++;
	after = scene->keys[1];
	fresh = scene_load(scene, client, 1, plain);
	scene->keys[1] = before;
	scene_fill(scene, 1, 0); /* the loader had looked before the change */
	assert_null(scene_reply(scene, client, old));
	scene->keys[1] = after;
	scene_header(scene, 1, MIB, 0);
	scene_fill(scene, 1, 0);
	scene_expect(scene, client, fresh, 0);
	assert_int_equal(scene_view(scene, 1).key.mtime_ns, after.mtime_ns);
	scene_free(scene);
}

static void recheck(struct scene *scene, uint32_t inode, bool is_equal)
{
	(void)scene_step(scene,
			 (struct core_event){.type = EV_RECHECKED,
					     .rechecked = {.job = scene_view(scene, inode).job,
							   .is_equal = is_equal}});
}

static void only_another_ctime_means_look_at_the_bytes(void **state)
{
	const struct core_config config = scene_usual();
	struct scene *scene = scene_new(&config);
	uint64_t client = scene_open(scene, 1000);
	uint32_t request;

	(void)state;
	(void)scene_loaded(scene, client, 1, MIB, plain);
	scene->keys[1].ctime_ns++;
	request = scene_load(scene, client, 1, plain);
	assert_int_equal(scene_count(scene, ACT_RECHECK), 1);
	recheck(scene, 1, true);
	scene_expect(scene, client, request, 0);
	assert_int_equal(scene_view(scene, 1).generation, 1);
	scene->keys[1].ctime_ns++;
	request = scene_load(scene, client, 1, plain);
	recheck(scene, 1, false);
	assert_int_equal(scene_count(scene, ACT_READ_HEADER), 1);
	scene_header(scene, 1, MIB, 0);
	scene_fill(scene, 1, 0);
	scene_expect(scene, client, request, 0);
	assert_int_equal(scene_view(scene, 1).generation, 2);
	scene_free(scene);
}

/* fault: T04 */
static void times_that_tell_nothing_mean_look_at_the_bytes(void **state)
{
	const struct core_config config = scene_usual();
	struct scene *scene = scene_new(&config);
	uint64_t client = scene_open(scene, 1000);
	uint32_t request;

	(void)state;
	scene->keys[1].is_young = true;
	(void)scene_loaded(scene, client, 1, MIB, plain);
	request =
		scene_load(scene, client, 1, plain); /* written in this second, and perhaps again */
	assert_int_equal(scene_count(scene, ACT_RECHECK), 1);
	recheck(scene, 1, true);
	scene_expect(scene, client, request, 0);
	scene->keys[1].is_young = false; /* what is written from now on has another time */
	request = scene_load(scene, client, 1, plain);
	assert_int_equal(scene_count(scene, ACT_RECHECK), 1);
	recheck(scene, 1, true);
	scene_expect(scene, client, request, 0);
	request = scene_load(scene, client, 1, plain);
	assert_int_equal(scene_count(scene, ACT_RECHECK), 0);
	scene_expect(scene, client, request, 0);
	assert_int_equal(scene_view(scene, 1).generation, 1);
	scene_free(scene);
}

static void an_old_generation_goes_with_its_last_lease(void **state)
{
	const struct core_config config = scene_usual();
	struct scene *scene = scene_new(&config);
	uint64_t client = scene_open(scene, 1000);
	uint64_t lease = scene_loaded(scene, client, 1, MIB, (struct scene_load){.attach = true});
	struct core_lease_view view;
	uint32_t cursor = 0;

	(void)state;
	scene->keys[1].mtime_ns++;
	(void)scene_loaded(scene, client, 1, MIB, plain);
	assert_int_equal(scene_view(scene, 1).generation, 2);
	assert_true(core_lease_next(scene->core, &cursor, &view));
	assert_int_equal(view.generation, 1);
	scene_lease_event(scene, EV_DETACH, client, lease);
	assert_int_equal(scene_count(scene, ACT_DROP), 1);
	assert_int_equal(scene_note(scene, CORE_NOTE_STALE)->note.why, CORE_WHY_CHANGED);
	assert_true(scene_is_resident(scene, 1));
	scene_free(scene);
}

static void a_uid_loads_only_so_many_at_a_time(void **state)
{
	struct core_config config = scene_usual();
	struct scene *scene;
	uint64_t greedy;
	uint64_t other;

	(void)state;
	config.loads_per_uid = 2;
	scene = scene_new(&config);
	greedy = scene_open(scene, 1000);
	other = scene_open(scene, 1001);
	(void)scene_load(scene, greedy, 1, plain);
	(void)scene_load(scene, greedy, 2, plain);
	(void)scene_load(scene, greedy, 3, plain);
	assert_int_equal(scene_count(scene, ACT_READ_HEADER), 0);
	(void)scene_load(scene, other, 4, plain);
	assert_int_equal(scene_count(scene, ACT_READ_HEADER), 1);
	scene_header(scene, 1, MIB, 0);
	scene_fill(scene, 1, 0);
	assert_int_equal(scene_find(scene, ACT_READ_HEADER, 0)->model, scene_model(scene, 3));
	scene_free(scene);
}

static void an_older_load_is_not_passed_by_a_younger_that_takes_its_room(void **state)
{
	const struct core_config config = scene_usual();
	struct scene *scene = scene_new(&config);
	uint64_t client = scene_open(scene, 1000);
	uint64_t other = scene_open(scene, 1001);
	uint32_t large;
	uint32_t small;

	(void)state;
	(void)scene_loaded(scene, client, 1, 60 * MIB, plain);
	large = scene_load(scene, client, 2, plain);
	scene_header(scene, 2, 80 * MIB, 0); /* waits until model 1 is gone */
	assert_int_equal(scene_count(scene, ACT_DROP), 1);
	assert_int_equal(scene_count(scene, ACT_FILL), 0);
	small = scene_load(scene, other, 3, plain);
	scene_header(scene, 3, 30 * MIB, 0); /* would fit, and keep model 2 out */
	assert_int_equal(scene_count(scene, ACT_FILL), 0);
	scene_drop_all(scene);
	assert_non_null(scene_find(scene, ACT_FILL, scene_model(scene, 2)));
	assert_null(scene_find(scene, ACT_FILL, scene_model(scene, 3)));
	scene_fill(scene, 2, 0);
	scene_expect(scene, client, large, 0);
	scene_drop_all(scene);
	scene_fill(scene, 3, 0);
	scene_expect(scene, other, small, 0);
	scene_free(scene);
}

static void a_load_over_two_devices_is_all_or_nothing(void **state)
{
	const struct core_config config = scene_usual();
	struct scene *scene = scene_new(&config);
	uint64_t client = scene_open(scene, 1000);
	uint32_t request;
	const struct core_action *reply;

	(void)state;
	(void)scene_loaded(scene, client, 1, 60 * MIB, plain);
	request = scene_load(scene, client, 2, plain);
	scene_header(scene, 2, 80 * MIB, 101 * MIB);
	reply = scene_reply(scene, client, request);
	assert_int_equal(reply->code, WIRE_NO_MEMORY);
	assert_int_equal(reply->device, 1);
	assert_int_equal(reply->shortage.need, 101 * MIB);
	assert_int_equal(scene_count(scene, ACT_FILL), 0);
	assert_int_equal(scene_count(scene, ACT_DROP), 0);
	assert_true(scene_is_resident(scene, 1));
	/* One copy fails: the other, which was good, goes too. */
	request = scene_load(scene, client, 3, plain);
	scene_header(scene, 3, MIB, MIB);
	assert_int_equal(scene_count(scene, ACT_FILL), 2);
	(void)scene_step(scene,
			 (struct core_event){.type = EV_FILLED,
					     .filled = {.segment = scene->actions[0].segment}});
	scene_fill(scene, 3, WIRE_IO);
	scene_expect(scene, client, request, WIRE_IO);
	scene_drop_all(scene);
	assert_int_equal(scene_count(scene, ACT_PUBLISH), 0);
	scene_free(scene);
}

static void a_full_table_refuses_and_leaves_everything(void **state)
{
	struct core_config config = scene_usual();
	struct scene *scene;
	uint64_t client;
	uint32_t request;

	(void)state;
	config.max_waiters = 1;
	scene = scene_new(&config);
	client = scene_open(scene, 1000);
	(void)scene_load(scene, client, 1, plain);
	request = scene_load(scene, client, 2, plain);
	scene_expect(scene, client, request, WIRE_TOO_MANY);
	assert_int_equal(scene_count(scene, ACT_CLOSE_FILE), 1);
	scene_header(scene, 1, MIB, 0);
	scene_fill(scene, 1, 0);
	assert_true(scene_is_resident(scene, 1));
	scene_free(scene);
}

/* fault: P20 */
static void the_count_of_leases_saturates_and_never_wraps(void **state)
{
	const struct core_config config = scene_usual();
	struct scene *scene = scene_new(&config);
	uint64_t client = scene_open(scene, 1000);
	struct client *opened = client_of(scene->core, client);
	struct model *model;
	uint32_t real_count;

	(void)state;
	(void)scene_loaded(scene, client, 1, MIB, (struct scene_load){.attach = true});
	model = idtab_find(&scene->core->models, scene_model(scene, 1));
	real_count = model->n_leases;
	model->n_leases = COUNT_MAX; /* forced */
	assert_null(lease_add(scene->core, model, opened, 1, false));
	assert_int_equal(model->n_leases, COUNT_MAX);
	model->n_leases = real_count;
	assert_non_null(lease_add(scene->core, model, opened, 1, false));
	scene_free(scene);
}

static void a_lost_device_fails_its_loads_and_takes_its_copies(void **state)
{
	const struct core_config config = scene_usual();
	struct scene *scene = scene_new(&config);
	uint64_t client = scene_open(scene, 1000);
	uint32_t request;

	(void)state;
	request = scene_load(scene, client, 1, plain);
	scene_header(scene, 1, MIB, MIB);
	(void)scene_step(scene,
			 (struct core_event){.type = EV_DEVICE_LOST, .device = {.device = 1}});
	scene_expect(scene, client, request, WIRE_DEVICE_LOST);
	scene_fill(scene, 1, WIRE_CANCELLED);
	scene_drop_all(scene);
	request = scene_load(scene, client, 1, plain);
	scene_header(scene, 1, MIB, MIB);
	scene_expect(scene, client, request, WIRE_DEVICE_LOST);
	scene_free(scene);
}

static void what_is_served_from_memory_saves_the_time_of_its_load(void **state)
{
	const struct core_config config = scene_usual();
	struct scene *scene = scene_new(&config);
	uint64_t client = scene_open(scene, 1000);
	uint32_t request = scene_load(scene, client, 1, plain);
	struct core_counters counters;
	struct core_event filled = {.type = EV_FILLED, .filled = {.duration_ns = 3000000000U}};

	(void)state;
	scene_header(scene, 1, MIB, 0);
	filled.filled.segment = scene_find(scene, ACT_FILL, 0)->segment;
	(void)scene_step(scene, filled);
	scene_expect(scene, client, request, 0);
	for (int i = 0; i < 2; i++) {
		request = scene_load(scene, client, 1, plain);
		scene_expect(scene, client, request, 0);
	}
	core_counters_get(scene->core, &counters);
	assert_int_equal(counters.hits, 2);
	assert_int_equal(counters.saved_ns, 6000000000U);
	scene_free(scene);
}

static void drain(struct scene *scene, uint32_t device, bool is_on)
{
	(void)scene_step(scene, (struct core_event){.type = EV_DRAIN,
						    .drain = {.device = device, .is_on = is_on}});
}

static void a_drain_refuses_what_is_new_and_serves_what_is_there(void **state)
{
	const struct core_config config = scene_usual();
	struct scene *scene = scene_new(&config);
	uint64_t client = scene_open(scene, 1000);
	uint32_t begun;
	uint32_t request;

	(void)state;
	(void)scene_loaded(scene, client, 1, MIB, plain);
	begun = scene_load(scene, client, 2, plain);
	drain(scene, CORE_ALL_DEVICES, true);
	request = scene_load(scene, client, 3, plain);
	scene_expect(scene, client, request, WIRE_BUSY);
	assert_int_equal(scene_count(scene, ACT_CLOSE_FILE), 1);
	assert_int_equal(scene_model(scene, 3), 0); /* nothing of it is left */
	request = scene_load(scene, client, 1, (struct scene_load){.attach = true});
	scene_expect(scene, client, request, 0);
	request = scene_load(scene, client, 2, plain); /* joins */
	assert_null(scene_reply(scene, client, request));
	drain(scene, CORE_ALL_DEVICES, true); /* again: what was begun goes on */
	scene_header(scene, 2, MIB, 0);
	scene_fill(scene, 2, 0);
	scene_expect(scene, client, begun, 0);
	scene_expect(scene, client, request, 0);
	scene->keys[1].mtime_ns++; /* another content */
	request = scene_load(scene, client, 1, plain);
	scene_expect(scene, client, request, WIRE_BUSY);
	drain(scene, CORE_ALL_DEVICES, false);
	(void)scene_loaded(scene, client, 3, MIB, plain);
	scene_free(scene);
}

static void a_drain_of_one_device_refuses_what_needs_it(void **state)
{
	const struct core_config config = scene_usual();
	struct scene *scene = scene_new(&config);
	uint64_t client = scene_open(scene, 1000);
	uint32_t request;

	(void)state;
	drain(scene, 1, true);
	(void)scene_loaded(scene, client, 1, MIB, plain);
	request = scene_load(scene, client, 2, plain);
	scene_header(scene, 2, MIB, MIB);
	scene_expect(scene, client, request, WIRE_BUSY);
	assert_int_equal(scene_count(scene, ACT_FILL), 0);
	drain(scene, 0, true); /* all are drained now */
	request = scene_load(scene, client, 3, plain);
	scene_expect(scene, client, request, WIRE_BUSY);
	drain(scene, 1, false);
	drain(scene, 0, false);
	request = scene_load(scene, client, 2, plain);
	scene_header(scene, 2, MIB, MIB);
	scene_fill(scene, 2, 0);
	scene_expect(scene, client, request, 0);
	scene_free(scene);
}

/* A file whose ctime alone differs is looked at; where it turns out to be another, that is a load. */
static void a_drain_lets_a_file_be_looked_at_and_not_read(void **state)
{
	const struct core_config config = scene_usual();
	struct scene *scene = scene_new(&config);
	uint64_t client = scene_open(scene, 1000);
	struct core_event event = {.type = EV_RECHECKED};
	uint32_t request;

	(void)state;
	(void)scene_loaded(scene, client, 1, MIB, plain);
	drain(scene, CORE_ALL_DEVICES, true);
	for (int is_equal = 1; is_equal >= 0; is_equal--) {
		scene->keys[1].ctime_ns++;
		request = scene_load(scene, client, 1, plain);
		assert_non_null(scene_find(scene, ACT_RECHECK, 0));
		event.rechecked.job = scene_view(scene, 1).job;
		event.rechecked.is_equal = is_equal != 0;
		(void)scene_step(scene, event);
		if (is_equal == 0) {
			scene_header(scene, 1, MIB, 0);
		}
		scene_expect(scene, client, request, is_equal != 0 ? 0 : WIRE_BUSY);
		assert_true(scene_is_resident(scene, 1));
	}
	scene_free(scene);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(those_who_ask_during_a_load_join_it),
		cmocka_unit_test(forty_nine_cancel_and_the_fiftieth_gets_it),
		cmocka_unit_test(a_file_read_raw_is_a_model_of_its_own),
		cmocka_unit_test(the_last_who_leaves_ends_the_load_and_frees_its_room),
		cmocka_unit_test(a_load_begun_without_waiting_outlives_its_client),
		cmocka_unit_test(a_file_that_changes_is_read_once_more_and_then_refused),
		cmocka_unit_test(who_joins_with_newer_content_gets_that),
		cmocka_unit_test(only_another_ctime_means_look_at_the_bytes),
		cmocka_unit_test(times_that_tell_nothing_mean_look_at_the_bytes),
		cmocka_unit_test(an_old_generation_goes_with_its_last_lease),
		cmocka_unit_test(a_uid_loads_only_so_many_at_a_time),
		cmocka_unit_test(an_older_load_is_not_passed_by_a_younger_that_takes_its_room),
		cmocka_unit_test(a_load_over_two_devices_is_all_or_nothing),
		cmocka_unit_test(a_full_table_refuses_and_leaves_everything),
		cmocka_unit_test(the_count_of_leases_saturates_and_never_wraps),
		cmocka_unit_test(a_lost_device_fails_its_loads_and_takes_its_copies),
		cmocka_unit_test(what_is_served_from_memory_saves_the_time_of_its_load),
		cmocka_unit_test(a_drain_refuses_what_is_new_and_serves_what_is_there),
		cmocka_unit_test(a_drain_of_one_device_refuses_what_needs_it),
		cmocka_unit_test(a_drain_lets_a_file_be_looked_at_and_not_read),
	};

	return cmocka_run_group_tests_name("daemon/core/loads", tests, NULL, NULL);
}
