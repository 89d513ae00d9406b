/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Devices that refuse, hang, are lost or are slow while they are filled and dropped; all in workers
 * of their own, as in the daemon.
 */
#include "base/os/clock.h"
#include "tests/support/worker.h"
#include "tests/unit/daemon/load/spread.h"

#include "daemon/device/remote.h"

#define MS 1000000ULL

/* Blocks of "b.0" and "b.1" on the first device, "b.3" on the second. */
static void given_places(struct generation *generation)
{
	struct image_set_request request = {0};

	generation_place(generation, "b.0.w=1 b.1.w=1 b.3.w=2");
	generation_begin(generation, &request);
}

static uint64_t block_of(const char *tensor)
{
	return spread_block(spread.map, tensor);
}

/* ---- what devices say ---- */

static void what_a_device_says_is_handed_on_unchanged(void **state)
{
	static const struct {
		const char *what;
		int code;
	} ways[] = {
		{"alloc:1:no-memory:ever", WIRE_NO_MEMORY},
		{"fill:1:io:ever", WIRE_IO},
		{"fill:2:internal:ever", WIRE_INTERNAL},
		{"seal:1:device-lost:ever", WIRE_DEVICE_LOST},
		{"fill:1:unsupported:ever", WIRE_UNSUPPORTED},
	};

	(void)state;
	for (size_t i = 0; i < sizeof ways / sizeof ways[0]; i++) {
		struct generation generation = {0};

		given_places(&generation);
		spread_let_fail(1, ways[i].what);
		(void)generation_collect(&generation, generation_submit(&generation, NULL));
		/* Of "b.1" one fill is all. */
		assert_int_equal(generation.blocks[block_of("b.0.w")]->err.code, ways[i].code);
		/* The other device and the host did not notice. */
		generation_check_copies(&generation);
		generation_fini(&generation);
		if (ways[i].code == WIRE_DEVICE_LOST) {
			break; /* its worker has ended */
		}
		spread_let_fail(1, "clear");
	}
}

/* fault: G02 */
static void a_full_device_says_so_and_nothing_stays_there(void **state)
{
	const struct device_alloc most = {.name = "most", .bytes = SIM_BYTES - 5 * SIM_GRANULE};
	struct generation generation = {0};
	struct extent *extent = NULL;
	struct load_result *result;

	(void)state;
	assert_int_equal(device_alloc(spread.devices[1], &most, &extent, NULL), 0);
	given_places(&generation);
	/* "b.0" needs five granules, "b.1" two: whichever comes first has its room. */
	assert_int_equal(generation_collect(&generation, generation_submit(&generation, NULL)), 1);
	result = generation.blocks[block_of("b.0.w")]->err.code != 0
			 ? generation.blocks[block_of("b.0.w")]
			 : generation.blocks[block_of("b.1.w")];
	assert_int_equal(result->err.code, WIRE_NO_MEMORY);
	assert_non_null(strstr(result->err.text, "sim:0"));
	generation_fini(&generation);
	assert_int_equal(device_release(extent, NULL), 0);
}

/* Its worker's end frees it, and nothing else. */
static void a_device_that_does_not_take_memory_back_is_lost(void **state)
{
	const struct device_alloc least = {.name = "least", .bytes = SIM_GRANULE};
	struct generation generation = {0};
	struct load_result *result;
	struct extent *extent = NULL;
	struct err err = {0};

	(void)state;
	generation_place(&generation, "b.1.w=1");
	generation_begin(&generation, &(struct image_set_request){0});
	spread_let_fail(1, "fill:1:io:ever");
	spread_let_fail(1, "release:1:internal");
	assert_int_equal(generation_collect(&generation, generation_submit(&generation, NULL)), 1);
	result = generation.blocks[block_of("b.1.w")];
	assert_int_equal(result->err.code, WIRE_IO); /* what came first */
	generation_fini(&generation);
	assert_int_equal(device_alloc(spread.devices[1], &least, &extent, &err), -WIRE_DEVICE_LOST);
	assert_non_null(strstr(err.text, "it did not take back"));
	(void)worker_wait(spread.workers[1]);
	spread.workers[1] = 0;
}

/* ---- devices that end or hang ---- */

static void a_worker_that_dies_takes_only_its_own_fills_with_it(void **state)
{
	(void)state;
	for (uint32_t round = 0; round < 12; round++) {
		struct generation generation = {0};
		uint32_t n_fills;

		given_places(&generation);
		n_fills = generation_submit(&generation, NULL);
		scratch_sleep_ms(round);
		spread_kill_worker(1);
		(void)generation_collect(&generation, n_fills);
		for (uint32_t i = 0; i < SPREAD_BLOCKS; i++) {
			const struct load_result *result = generation.blocks[i];
			const int code = result == NULL ? 0 : result->err.code;

			assert_true(code == 0 ||
				    (generation.places[i] == 1 && code == WIRE_DEVICE_LOST));
			if (result != NULL && result->extent != NULL && generation.places[i] == 1) {
				generation.blocks[i] = load_result_free(generation.blocks[i]);
			}
			if (code != 0) {
				generation.blocks[i] = load_result_free(generation.blocks[i]);
			}
		}
		generation_check_copies(&generation);
		generation_fini(&generation);
		spread_attach(1);
	}
}

static void a_hung_device_holds_up_nobody_else_and_not_the_end(void **state)
{
	struct generation generation = {0};
	struct generation other = {0};
	struct load_result *dropped;
	uint64_t begun;

	(void)state;
	generation_place(&other, "b.3.w=2");
	generation_fill(&other, &(struct image_set_request){0});
	spread_let_fail(1, "fill:1:hang:ever");
	generation_place(&generation, "b.0.w=1 b.1.w=1");
	generation_begin(&generation, &(struct image_set_request){0});
	for (uint32_t i = 0; i < SPREAD_BLOCKS; i++) {
		if (generation.places[i] != 0) {
			generation_submit_block(&generation, i);
		}
	}
	scratch_sleep_ms(100);
	loader_drop(spread.loader, 55, other.blocks[block_of("b.3.w")]->extent);
	other.blocks[block_of("b.3.w")]->extent = NULL;
	dropped = spread_next();
	assert_int_equal(dropped->type, LOAD_DROPPED);
	assert_int_equal(dropped->err.code, 0);
	(void)load_result_free(dropped);
	begun = clock_mono_ns();
	assert_ptr_equal(loader_free(spread.loader), spread.loader); /* its threads wait still */
	assert_true(clock_mono_ns() - begun < 15000 * MS);
	(void)remote_detach(spread.devices[1], "a test ends it", NULL, 0);
	(void)worker_wait(spread.workers[1]);
	spread.workers[1] = 0;
	for (int i = 0; scratch_count_threads() > spread.n_threads && i < 4000; i++) {
		scratch_sleep_ms(5);
	}
	assert_null(loader_free(spread.loader));
	spread_start_loader(30000000000U);
	generation_fini(&generation);
	generation_fini(&other);
}

/* ---- slow devices ---- */

/* Begin anew, with links of so many bytes a second. */
static void slow_down(uint64_t bytes_per_s, uint64_t stall_ns)
{
	for (uint32_t i = 1; i < N_DEVICES; i++) {
		spread.sims[i - 1].bytes_per_s = bytes_per_s;
		spread_kill_worker(i);
		spread_attach(i);
	}
	assert_null(loader_free(spread.loader));
	spread_start_loader(stall_ns);
}

static void submit_blocks(const struct generation *generation)
{
	for (uint32_t i = 0; i < SPREAD_BLOCKS; i++) {
		if (generation->places[i] != 0) {
			generation_submit_block(generation, i);
		}
	}
}

static struct load_result *next_any(void)
{
	struct pollfd readable = {.fd = mailbox_fd(spread.box), .events = POLLIN};
	struct mail *mail = mailbox_take(spread.box);

	while (mail == NULL) {
		assert_int_equal(poll(&readable, 1, WAIT_MS), 1);
		mail = mailbox_take(spread.box);
	}
	return load_result_from_mail(mail);
}

/* fault: G12 */
static void a_cancelled_fill_ends_between_two_windows(void **state)
{
	struct generation generation = {0};

	(void)state;
	slow_down(2 * SPREAD_MIB, 30000 * MS); /* over three seconds a block, and more */
	generation_place(&generation, "b.0.w=1 b.1.w=1 b.3.w=1 b.2.x=2");
	generation_begin(&generation, &(struct image_set_request){0});
	submit_blocks(&generation);
	scratch_sleep_ms(200);
	loader_cancel(spread.loader, JOB);
	for (uint32_t i = 0; i < 4; i++) {
		struct load_result *result = spread_next();

		assert_int_equal(result->type, LOAD_FILLED);
		assert_true(result->err.code == WIRE_CANCELLED || result->extent != NULL);
		(void)load_result_free(result);
	}
	generation_fini(&generation);
}

static void progress_is_told_as_bytes_arrive(void **state)
{
	struct generation generation = {0};
	const uint64_t block = block_of("b.0.w");
	uint64_t bytes = 0;
	uint32_t n_told = 0;
	struct load_result *result;

	(void)state;
	slow_down(16 * SPREAD_MIB, 30000 * MS);
	generation_place(&generation, "b.0.w=1");
	generation_begin(&generation, &(struct image_set_request){0});
	submit_blocks(&generation);
	for (result = next_any(); result->type == LOAD_PROGRESS; result = next_any()) {
		assert_int_equal(result->segment, BLOCK_BASE + block);
		assert_true(result->bytes >= bytes);
		bytes = result->bytes;
		n_told++;
		(void)load_result_free(result);
	}
	assert_true(n_told >= 1);
	assert_int_equal(result->err.code, 0);
	assert_int_equal(result->bytes, spread.map->blocks[block].size);
	(void)load_result_free(result);
	generation_fini(&generation);
}

/* fault: G12 */
/* A device that takes nothing for so long is reported, then given up, as a file would be. */
static void a_device_that_takes_nothing_is_stalled(void **state)
{
	struct generation generation = {0};
	struct load_result *result;

	(void)state;
	slow_down(0, 200 * MS);
	spread_let_fail(1, "fill:1:hang:ever");
	generation_place(&generation, "b.1.w=1");
	generation_begin(&generation, &(struct image_set_request){0});
	submit_blocks(&generation);
	result = next_any();
	assert_int_equal(result->type, LOAD_PROGRESS);
	assert_true(result->is_stalled);
	(void)load_result_free(result);
	scratch_sleep_ms(600);
	spread_kill_worker(1); /* the daemon does, after its own limit */
	result = spread_next();
	assert_int_equal(result->err.code, WIRE_DEVICE_LOST);
	(void)load_result_free(result);
	generation_fini(&generation);
}

/* Two devices are filled at once: it takes as long as the one with more bytes. */
static void devices_are_filled_at_the_same_time(void **state)
{
	struct generation both = {0};
	uint64_t begun;
	uint64_t together;

	(void)state;
	slow_down(8 * SPREAD_MIB, 30000 * MS);
	generation_place(&both, "b.0.w=1 b.3.w=2"); /* over 9 MiB and 7 MiB */
	generation_begin(&both, &(struct image_set_request){0});
	begun = clock_mono_ns();
	submit_blocks(&both);
	assert_int_equal(generation_collect(&both, 2), 0);
	together = clock_mono_ns() - begun;
	assert_true(together >= 1100 * MS);                       /* the links are that slow */
	assert_true(both.blocks[block_of("b.0.w")]->duration_ns + /* one after the other */
			    both.blocks[block_of("b.3.w")]->duration_ns >
		    together * 9 / 8);
	generation_check_copies(&both);
	generation_fini(&both);
}

/* ---- drops ---- */

static void what_is_dropped_is_free_when_the_result_says_so(void **state)
{
	const struct device_alloc all = {.name = "all", .bytes = SIM_BYTES};
	struct generation generation = {0};
	struct extent *extent = NULL;

	(void)state;
	generation_place(&generation, "b.0.w=1 b.1.w=1 b.2.x=1 b.3.w=1 top=1");
	generation_fill(&generation, &(struct image_set_request){0});
	for (uint32_t i = 0; i < SPREAD_BLOCKS; i++) {
		loader_drop(spread.loader, 1000 + i, generation.blocks[i]->extent);
		generation.blocks[i]->extent = NULL;
	}
	for (uint32_t i = 0; i < SPREAD_BLOCKS; i++) {
		struct load_result *result = spread_next();

		assert_int_equal(result->type, LOAD_DROPPED);
		assert_int_equal(result->segment, 1000 + i); /* one after the other */
		assert_int_equal(result->err.code, 0);
		(void)load_result_free(result);
	}
	assert_int_equal(device_alloc(spread.devices[1], &all, &extent, NULL), 0);
	assert_int_equal(device_release(extent, NULL), 0);
	generation_fini(&generation);
}

static void drops_of_a_lost_device_are_no_failures(void **state)
{
	struct generation generation = {0};

	(void)state;
	generation_place(&generation, "b.0.w=1 b.1.w=1");
	generation_fill(&generation, &(struct image_set_request){0});
	spread_kill_worker(1);
	for (uint32_t i = 0; i < SPREAD_BLOCKS; i++) {
		struct load_result *result;

		if (generation.blocks[i] != NULL) {
			loader_drop(spread.loader, i, generation.blocks[i]->extent);
			generation.blocks[i]->extent = NULL;
			result = spread_next();
			assert_int_equal(result->type, LOAD_DROPPED);
			assert_int_equal(result->err.code, 0);
			(void)load_result_free(result);
		}
	}
	generation_fini(&generation);
}

#define CASE(test)                                                 \
	{                                                          \
#		test, test, spread_setup, spread_teardown, worker \
	}

int main(void)
{
	static char worker[] = "worker";
	const struct CMUnitTest tests[] = {
		CASE(what_a_device_says_is_handed_on_unchanged),
		CASE(a_full_device_says_so_and_nothing_stays_there),
		CASE(a_device_that_does_not_take_memory_back_is_lost),
		CASE(a_worker_that_dies_takes_only_its_own_fills_with_it),
		CASE(a_hung_device_holds_up_nobody_else_and_not_the_end),
		CASE(a_cancelled_fill_ends_between_two_windows),
		CASE(progress_is_told_as_bytes_arrive),
		CASE(a_device_that_takes_nothing_is_stalled),
		CASE(devices_are_filled_at_the_same_time),
		CASE(what_is_dropped_is_free_when_the_result_says_so),
		CASE(drops_of_a_lost_device_are_no_failures),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
