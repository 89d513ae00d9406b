/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Random histories of the core, each from a seed that a failure prints. `test_core_histories
 * SEED [COUNT]` runs those of given seeds.
 */
#include "tests/core/driver.h"
#include "tests/support/unit.h"

#include <stdlib.h>
#include <string.h>

#include "proto/gen/wire_code.h"

#define HISTORY_BYTES 4096
#define N_HISTORIES   2000 /* the rarest code is met about every hundredth time */

struct totals {
	uint64_t events[EV_N_VALUES], replies[WIRE_N_CODES], notes[CORE_NOTE_N_VALUES], steps;
	uint64_t limits[CORE_LIMIT_N_VALUES], n_left, n_returns;
};

static uint64_t next_random(uint64_t *state)
{
	uint64_t z = *state += 0x9e3779b97f4a7c15U;

	z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9U;
	z = (z ^ z >> 27) * 0x94d049bb133111ebU;
	return z ^ z >> 31;
}

static void run_seed(uint64_t seed, struct totals *totals)
{
	struct driver *driver = calloc(1, sizeof *driver);
	uint8_t *bytes = malloc(HISTORY_BYTES);
	uint64_t state = seed;

	assert_non_null(driver);
	assert_non_null(bytes);
	for (size_t i = 0; i < HISTORY_BYTES; i++) {
		bytes[i] = (uint8_t)next_random(&state);
	}
	driver_run(driver, "random", seed, bytes, HISTORY_BYTES);
	totals->steps += driver->n_steps;
	for (int i = 0; i < EV_N_VALUES; i++) {
		totals->events[i] += driver->counts[i];
	}
	for (int i = 0; i < WIRE_N_CODES; i++) {
		totals->replies[i] += driver->replies[i];
	}
	for (int i = 0; i < CORE_LIMIT_N_VALUES; i++) {
		totals->limits[i] += driver->limits[i];
	}
	totals->n_left += driver->n_left;
	totals->n_returns += driver->n_returns;
	for (int i = 0; i < CORE_NOTE_N_VALUES; i++) {
		totals->notes[i] += driver->notes[i];
	}
	free(bytes);
	free(driver);
}

/* Histories that never meet a case prove nothing about it. */
static void assert_everything_was_met(const struct totals *totals)
{
	static const int codes[] = {WIRE_OK,          WIRE_NOT_FOUND, WIRE_NOT_RESIDENT,
				    WIRE_NO_MEMORY,   WIRE_TOO_MANY,  WIRE_STALE,
				    WIRE_DEVICE_LOST, WIRE_IO,        WIRE_CHANGED_WHILE_READING,
				    WIRE_CANCELLED,   WIRE_BAD_FILE,  WIRE_SHUTTING_DOWN,
				    WIRE_BUSY};

	static const enum core_limit limits[] = {CORE_LIMIT_MODELS,      CORE_LIMIT_USER_MODELS,
						 CORE_LIMIT_USER_QUEUED, CORE_LIMIT_SEGMENTS,
						 CORE_LIMIT_LEASES,      CORE_LIMIT_WAITERS,
						 CORE_LIMIT_WISHES,      CORE_LIMIT_USER_LEASES,
						 CORE_LIMIT_RESERVATIONS};

	assert_true(totals->n_left > 0 && totals->n_returns > 0);
	for (size_t i = 0; i < sizeof limits / sizeof limits[0]; i++) {
		assert_true(totals->limits[limits[i]] > 0);
	}
	for (int i = EV_TICK; i < EV_N_VALUES; i++) {
		assert_true(totals->events[i] > 0);
	}
	for (size_t i = 0; i < sizeof codes / sizeof codes[0]; i++) {
		assert_true(totals->replies[codes[i]] > 0);
	}
	for (int i = 0; i < CORE_NOTE_N_VALUES; i++) {
		assert_true(totals->notes[i] > 0);
	}
}

/* fault: Z9 */
static void random_histories_break_no_invariant(void **state)
{
	struct totals totals = {0};

	(void)state;
	for (uint64_t seed = 0; seed < N_HISTORIES; seed++) {
		run_seed(seed, &totals);
	}
	print_message("%d histories, %llu steps\n", N_HISTORIES, (unsigned long long)totals.steps);
	assert_everything_was_met(&totals);
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(random_histories_break_no_invariant),
	};
	struct totals totals = {0};

	if (argc > 1) {
		uint64_t first = strtoull(argv[1], NULL, 0);
		uint64_t count = argc > 2 ? strtoull(argv[2], NULL, 0) : 1;

		for (uint64_t i = 0; i < count; i++) {
			run_seed(first + i, &totals);
		}
		return 0;
	}
	return cmocka_run_group_tests_name("core/histories", tests, NULL, NULL);
}
