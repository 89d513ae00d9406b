/* SPDX-License-Identifier: Apache-2.0 */
/* Fills of generations that are spread over devices, with everything going wrong that can. */
#include "tests/unit/daemon/load/spread.h"

#include <errno.h>

/* ---- the n-th call fails ---- */

/* What came is whole, what failed has left nothing. */
static void check_rest(const struct generation *generation)
{
	for (uint32_t i = 0; i < SPREAD_BLOCKS; i++) {
		const struct load_result *result = generation->blocks[i];

		if (result != NULL && result->extent != NULL) {
			spread_check_segment(result->extent, &spread.model, spread.map, i);
		}
	}
	for (uint32_t i = 0; i < SPREAD_FILES; i++) {
		const struct load_result *result = generation->images[i];

		if (result != NULL && result->extent != NULL) {
			spread_check_image(result->extent, &spread.model, spread.map,
					   generation->places, i);
		}
	}
}

static void strike(const char *call, uint64_t nth, bool is_forever)
{
	assert_true(sys_fault_set(call, (struct sys_fault){.nth = nth,
							   .error = ENOMEM,
							   .is_forever = is_forever}));
}

/* One generation with a fault in it; returns whether that struck. */
static bool fill_struck(const char *places, const struct generation *earlier, const char *call,
			uint64_t nth, bool is_forever)
{
	const size_t n_fds = baseline_n_fds();
	struct generation generation = {0};
	struct sources sources = {0};
	struct image_set_request request = {0};
	uint32_t n_failed;
	bool is_struck;

	if (earlier != NULL) {
		sources_take(earlier, false, &sources);
		request = sources_request(earlier, &sources);
	}
	generation_place(&generation, places);
	generation_begin(&generation, &request);
	strike(call, nth, is_forever);
	n_failed = generation_collect(&generation, generation_submit(&generation, NULL));
	generation_make_table(&generation);
	is_struck = sys_fault_n_hits(call) > 0;
	sys_fault_clear();
	check_rest(&generation);
	if (generation.table->err.code == 0 && n_failed == 0) {
		generation_check(&generation);
	}
	assert_true((generation.table->err.code == 0) == (generation.table->table_fd >= 0));
	assert_true(is_struck || (n_failed == 0 && generation.table->err.code == 0));
	generation_fini(&generation);
	baseline_wait_fds(n_fds);
	return is_struck;
}

static const char *const calls[] = {"malloc",  "memfd_create",   "ftruncate", "mmap",
				    "madvise", "pthread_create", "open",      "statx",
				    "fstat",   "fcntl",          "pread",     "fchmod"};
#define N_CALLS (sizeof calls / sizeof calls[0])

/* fault: M11 M12 */
static void any_failing_call_leaves_nothing_half_filled(void **state)
{
	(void)state;
	for (size_t i = 0; i < 2 * N_CALLS; i++) {
		const bool is_forever = i % 2 == 1;

		for (uint64_t nth = 1;
		     fill_struck("b.0.w=1 b.1.w=2 b.3.w=1", NULL, calls[i / 2], nth, is_forever);
		     nth += is_forever ? 23 : 5) {
			assert_true(nth < 1000);
		}
	}
}

/* fault: M11 M12 */
static void any_failing_call_of_a_move_leaves_what_was_there(void **state)
{
	struct generation earlier = {0};
	struct image_set_request request = {0};

	(void)state;
	generation_place(&earlier, "b.0.w=1 b.1.w=1");
	generation_fill(&earlier, &request);
	for (size_t i = 0; i < 2 * N_CALLS; i++) {
		const bool is_forever = i % 2 == 1;

		for (uint64_t nth = 1;
		     fill_struck("b.0.w=2 b.3.w=2", &earlier, calls[i / 2], nth, is_forever);
		     nth += is_forever ? 23 : 5) {
			assert_true(nth < 1000);
		}
	}
	generation_check(&earlier);
	generation_fini(&earlier);
}

#define CASE(test) cmocka_unit_test_setup_teardown(test, spread_setup, spread_teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		CASE(any_failing_call_leaves_nothing_half_filled),
		CASE(any_failing_call_of_a_move_leaves_what_was_there),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
