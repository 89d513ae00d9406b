/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Segments on other devices are compared with what they were made of, and dropped meanwhile, also
 * when there is no memory for that; in workers of their own, as in the daemon.
 */
#include "base/os/clock.h"
#include "tests/unit/daemon/load/spread.h"

#include <errno.h>

#include "daemon/device/remote_inside.h"

#define MS 1000000ULL

static uint64_t block_of(const char *tensor)
{
	return spread_block(spread.map, tensor);
}

/* ---- what is found ---- */

static struct load_result *verify(const struct generation *generation, uint64_t block,
				  struct file *file, struct extent *const *images)
{
	const struct verify_request request = {.verification = 9,
					       .segment = 77,
					       .extent = generation->blocks[block]->extent,
					       .block = (uint32_t)block,
					       .table_fd = generation->table->table_fd,
					       .file = file,
					       .images = images,
					       .n_images = images == NULL ? 0 : SPREAD_FILES};
	struct load_result *result;

	loader_verify_device(spread.loader, &request);
	result = spread_next();
	assert_int_equal(result->type, LOAD_VERIFIED);
	assert_int_equal(result->job, 9);
	assert_int_equal(result->segment, 77);
	return result;
}

static void expect_verdict(struct load_result *result, int code, bool is_equal)
{
	if (result->err.code != code || result->is_equal != is_equal) {
		fail_msg("%d, %d: %s", result->err.code, result->is_equal, result->err.text);
	}
	(void)load_result_free(result);
}

/* One byte of a block on the first device. */
static void corrupt(const struct generation *generation, uint64_t block, uint64_t offset)
{
	const struct remote_extent *extent =
		(const struct remote_extent *)generation->blocks[block]->extent;
	char what[64];

	(void)snprintf(what, sizeof what, "corrupt:%llu:%llu", (unsigned long long)extent->id,
		       (unsigned long long)offset);
	spread_let_fail(1, what);
}

/* fault: G09 */
static void a_segment_is_compared_with_its_file(void **state)
{
	struct generation generation = {0};
	struct file *file = spread.model.file;
	const uint64_t block = block_of("b.0.w");
	struct load_result *result;

	(void)state;
	generation_place(&generation, "b.0.w=1");
	generation_fill(&generation, &(struct image_set_request){0});
	expect_verdict(verify(&generation, block, file, NULL), 0, true);
	spread_forget(&spread.model);
	expect_verdict(verify(&generation, block, file, NULL), 0, true);
	/* A new link to it: the same bytes, but nobody knows that without a look. */
	assert_int_equal(fchmod(spread.model.fds[1], 0600), 0);
	expect_verdict(verify(&generation, block, file, NULL), 0, true);
	corrupt(&generation, block,
		300288 + 9 * SPREAD_MIB); /* in "b.0.y", the third of its tensors */
	expect_verdict(verify(&generation, block, file, NULL), WIRE_STALE, false);
	generation_fini(&generation);
	generation = (struct generation){0};
	generation_place(&generation, "b.0.w=1");
	spread.map = tensor_map_free(spread.map);
	spread.map = spread_read_header(false);
	generation_fill(&generation, &(struct image_set_request){0});
	corrupt(&generation, block, 4); /* in "b.0.w" */
	result = verify(&generation, block, file, NULL);
	assert_int_equal(result->differs_in, 0);
	assert_int_equal(result->differs_at, 8 + SPREAD_HEADER + 4);
	expect_verdict(result, 0, false);
	spread_spoil();
	expect_verdict(verify(&generation, block, file, NULL), WIRE_STALE, false);
	expect_verdict(verify(&generation, block, NULL, NULL), WIRE_STALE, false);
	generation_fini(&generation);
}

static void a_segment_is_compared_with_an_image_where_there_is_one(void **state)
{
	struct generation whole = {0};
	struct generation spread_out = {0};
	struct sources sources;
	struct image_set_request request;
	struct extent *images[SPREAD_FILES];

	(void)state;
	generation_fill(&whole, &(struct image_set_request){0});
	sources_take(&whole, true, &sources);
	request = sources_request(&whole, &sources);
	generation_place(&spread_out, "b.0.w=1");
	generation_fill(&spread_out, &request);
	images[0] = whole.images[0]->extent;
	images[1] = whole.images[1]->extent;
	spread_spoil();
	expect_verdict(verify(&spread_out, block_of("b.0.w"), NULL, images), 0, true);
	images[1] = NULL;
	expect_verdict(verify(&spread_out, block_of("b.0.w"), spread.model.file, images),
		       WIRE_STALE, false);
	generation_fini(&spread_out);
	generation_fini(&whole);
}

static void a_drop_ends_the_comparison_of_its_segment(void **state)
{
	struct generation generation = {0};
	struct verify_request request;
	struct load_result *result;
	const uint64_t block = block_of("b.0.w");

	(void)state;
	generation_place(&generation, "b.0.w=1");
	generation_fill(&generation, &(struct image_set_request){0});
	request = (struct verify_request){.segment = 5,
					  .extent = generation.blocks[block]->extent,
					  .block = (uint32_t)block,
					  .table_fd = generation.table->table_fd,
					  .file = spread.model.file};
	assert_true(
		sys_fault_set("pread",
			      (struct sys_fault){.nth = 1, .delay_ms = 100, .is_forever = true}));
	loader_verify_device(spread.loader, &request);
	scratch_sleep_ms(50);
	loader_drop(spread.loader, 6, generation.blocks[block]->extent);
	generation.blocks[block]->extent = NULL;
	result = spread_next();
	assert_int_equal(result->type, LOAD_VERIFIED);
	assert_int_equal(result->err.code, WIRE_CANCELLED);
	(void)load_result_free(result);
	sys_fault_clear();
	result = spread_next();
	assert_int_equal(result->type, LOAD_DROPPED);
	assert_int_equal(result->err.code, 0);
	(void)load_result_free(result);
	generation_fini(&generation);
}

/* ---- how many at once, and drops meanwhile ---- */

static void let_reads_last(uint32_t delay_ms)
{
	assert_true(sys_fault_set("pread", (struct sys_fault){.nth = 1,
							      .delay_ms = delay_ms,
							      .is_forever = true}));
}

static void submit_verification(const struct generation *generation, uint64_t block,
				uint64_t segment)
{
	const struct verify_request request = {.verification = segment,
					       .segment = segment,
					       .extent = generation->blocks[block]->extent,
					       .block = (uint32_t)block,
					       .table_fd = generation->table->table_fd,
					       .file = spread.model.file};

	loader_verify_device(spread.loader, &request);
}

/* The next result is of this segment; returns its code. */
static int expect_next(enum load_type type, uint64_t segment)
{
	struct load_result *result = spread_next();
	const int code = result->err.code;

	assert_int_equal(result->type, type);
	assert_int_equal(result->segment, segment);
	(void)load_result_free(result);
	return code;
}

/* However many blocks there are: two a device at once, and what they need is lent. */
static void many_comparisons_need_few_threads_and_descriptors(void **state)
{
	const uint32_t n_requests = 300;
	struct generation generation = {0};
	const uint64_t block = block_of("b.1.w");
	uint32_t n_threads;
	size_t n_fds;

	(void)state;
	generation_place(&generation, "b.1.w=1");
	generation_fill(&generation, &(struct image_set_request){0});
	n_threads = scratch_count_threads();
	n_fds = baseline_n_fds();
	let_reads_last(100);
	for (uint32_t i = 0; i < n_requests; i++) {
		submit_verification(&generation, block, 1000 + i);
	}
	scratch_sleep_ms(50);
	assert_true(scratch_count_threads() <= n_threads + 8);
	assert_true(baseline_n_fds() <= n_fds + 8);
	sys_fault_clear();
	for (uint32_t i = 0; i < n_requests; i++) {
		struct load_result *result = spread_next();

		assert_int_equal(result->type, LOAD_VERIFIED);
		assert_int_equal(result->err.code, 0);
		assert_true(result->is_equal);
		(void)load_result_free(result);
	}
	generation_fini(&generation);
}

/* Of all blocks that are compared at once: two run, and the third waits. */
static void submit_three(struct generation *generation, const char *waiting)
{
	generation_place(generation, "b.0.w=1 b.1.w=1 b.2.x=1");
	generation_fill(generation, &(struct image_set_request){0});
	let_reads_last(100);
	for (uint32_t i = 0; i < SPREAD_BLOCKS; i++) {
		if (generation->places[i] != 0 && i != block_of(waiting)) {
			submit_verification(generation, i, i);
		}
	}
	submit_verification(generation, block_of(waiting), block_of(waiting));
	scratch_sleep_ms(50);
}

static void drop_block(struct generation *generation, uint64_t block)
{
	loader_drop(spread.loader, block, generation->blocks[block]->extent);
	generation->blocks[block]->extent = NULL;
}

/* Each of the three comparisons has one result, and then each of the drops. */
static void expect_three(const uint64_t *dropped, uint32_t n_dropped)
{
	uint32_t n_verified[SPREAD_BLOCKS] = {0};
	uint32_t n_drops[SPREAD_BLOCKS] = {0};

	sys_fault_clear();
	for (uint32_t i = 0; i < 3 + n_dropped; i++) {
		struct load_result *result = spread_next();
		const uint64_t block = result->segment;
		bool is_dropped = false;

		for (uint32_t j = 0; j < n_dropped; j++) {
			is_dropped = is_dropped || dropped[j] == block;
		}
		if (result->type == LOAD_DROPPED) {
			assert_true(is_dropped && n_verified[block] == 1 && n_drops[block]++ == 0);
			assert_int_equal(result->err.code, 0);
		} else {
			assert_int_equal(result->type, LOAD_VERIFIED);
			assert_int_equal(n_verified[block]++, 0);
			assert_int_equal(result->err.code, is_dropped ? WIRE_CANCELLED : 0);
			assert_int_equal(result->is_equal, !is_dropped);
		}
		(void)load_result_free(result);
	}
	assert_null(mailbox_take(spread.box));
}

static void a_drop_ends_a_comparison_that_waits_for_its_turn(void **state)
{
	struct generation generation = {0};
	const uint64_t waiting = block_of("b.1.w");

	(void)state;
	submit_three(&generation, "b.1.w");
	drop_block(&generation, waiting);
	expect_three(&waiting, 1);
	generation_fini(&generation);
}

static void comparisons_are_cancelled_by_their_number(void **state)
{
	struct generation generation = {0};
	const uint64_t waiting = block_of("b.1.w");
	const uint64_t running = block_of("b.0.w");

	(void)state;
	submit_three(&generation, "b.1.w");
	loader_cancel(spread.loader, running); /* the number of a job is another one */
	loader_cancel_verification(spread.loader, waiting);
	loader_cancel_verification(spread.loader, block_of("b.2.x"));
	sys_fault_clear();
	for (uint32_t i = 0; i < 3; i++) {
		struct load_result *result = spread_next();

		assert_int_equal(result->type, LOAD_VERIFIED);
		assert_int_equal(result->err.code, result->segment == running ? 0 : WIRE_CANCELLED);
		(void)load_result_free(result);
	}
	generation_fini(&generation);
}

static void without_memory_a_comparison_is_still_answered_once(void **state)
{
	struct generation generation = {0};
	const uint64_t block = block_of("b.1.w");
	const struct verify_request nothing_lent = {.segment = 5,
						    .table_fd = -1,
						    .file = spread.model.file};

	(void)state;
	generation_place(&generation, "b.1.w=1");
	generation_fill(&generation, &(struct image_set_request){0});
	for (uint64_t nth = 1; nth <= 2; nth++) { /* of the job itself, then of its result */
		assert_true(
			sys_fault_set("malloc", (struct sys_fault){.nth = nth, .error = ENOMEM}));
		submit_verification(&generation, block, nth);
		assert_int_equal(expect_next(LOAD_VERIFIED, nth), WIRE_NO_MEMORY);
		sys_fault_clear();
	}
	loader_verify_device(spread.loader, &nothing_lent);
	assert_int_equal(expect_next(LOAD_VERIFIED, 5), WIRE_NO_MEMORY);
	submit_verification(&generation, block, 6);
	assert_int_equal(expect_next(LOAD_VERIFIED, 6), 0);
	generation_fini(&generation);
}

/* ---- drops for which nothing is left ---- */

/* A device that hangs holds up the thread that drops, and nobody else. */
static void drop_short_of(const char *call)
{
	struct generation generation = {0};
	const uint64_t block = block_of("b.1.w");
	uint64_t begun;

	generation_place(&generation, "b.1.w=1");
	generation_fill(&generation, &(struct image_set_request){0});
	spread_let_fail(1, "release:1:hang:ever");
	assert_true(
		sys_fault_set(call,
			      (struct sys_fault){.nth = 1, .error = ENOMEM, .is_forever = true}));
	begun = clock_mono_ns();
	loader_drop(spread.loader, 5, generation.blocks[block]->extent);
	generation.blocks[block]->extent = NULL;
	assert_true(clock_mono_ns() - begun < 10000 * MS); /* its worker has 20 s to answer */
	assert_null(mailbox_take(spread.box));
	spread_kill_worker(1);
	assert_int_equal(expect_next(LOAD_DROPPED, 5), 0);
	sys_fault_clear();
	generation_fini(&generation);
	spread_attach(1);
}

static void a_drop_without_memory_or_thread_holds_nobody_up(void **state)
{
	(void)state;
	drop_short_of("malloc");
	drop_short_of("pthread_create");
}

static void drop_without_memory(struct generation *generation, uint64_t block)
{
	assert_true(sys_fault_set("malloc", (struct sys_fault){.nth = 1, .error = ENOMEM}));
	drop_block(generation, block);
}

static void a_drop_without_memory_ends_the_comparison_of_its_segment(void **state)
{
	struct generation generation = {0};
	const uint64_t dropped[] = {block_of("b.0.w"), block_of("b.1.w")};

	(void)state;
	submit_three(&generation, "b.1.w");
	drop_without_memory(&generation, dropped[0]); /* runs */
	drop_without_memory(&generation, dropped[1]); /* waits */
	assert_null(mailbox_take(spread.box));        /* nobody waited for their ends here */
	expect_three(dropped, 2);
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
		CASE(a_segment_is_compared_with_its_file),
		CASE(a_segment_is_compared_with_an_image_where_there_is_one),
		CASE(a_drop_ends_the_comparison_of_its_segment),
		CASE(many_comparisons_need_few_threads_and_descriptors),
		CASE(a_drop_ends_a_comparison_that_waits_for_its_turn),
		CASE(comparisons_are_cancelled_by_their_number),
		CASE(without_memory_a_comparison_is_still_answered_once),
		CASE(a_drop_without_memory_or_thread_holds_nobody_up),
		CASE(a_drop_without_memory_ends_the_comparison_of_its_segment),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
