/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Where the clients of the soak tell what they do and have seen: a file that all map, one row
 * a client over all of its lives. soak.py reads it by the same numbers.
 */
#ifndef TESTS_SOAK_BOARD_H
#define TESTS_SOAK_BOARD_H

#include <stdint.h>

enum board_cell {
	BOARD_PID,
	BOARD_STEP,     /* enum step; what it does now */
	BOARD_BEGAN_MS, /* when that began, on CLOCK_MONOTONIC; 0: it rests */
	BOARD_LONGEST_MS,
	BOARD_N_LIVES,
	BOARD_N_STEPS,
	BOARD_N_REQUESTS,
	BOARD_N_REFUSED, /* of them, for a reason that the world gives */
	BOARD_N_MAPPINGS,
	BOARD_BYTES, /* compared */
	BOARD_N_WRITES,
	BOARD_N_FORKS,
	BOARD_N_GARBAGE,
	BOARD_N_LOST, /* leases that a restarted daemon did not know any more */
	BOARD_N_WRONG,
	BOARD_N_SURPRISES,
	BOARD_N_CELLS = 32
};

extern uint64_t *board; /* this client's row */

static inline void board_add(enum board_cell cell, uint64_t n)
{
	(void)__atomic_add_fetch(&board[cell], n, __ATOMIC_RELAXED);
}

static inline void board_set(enum board_cell cell, uint64_t value)
{
	__atomic_store_n(&board[cell], value, __ATOMIC_RELAXED);
}

/* Something that must not be: counted, and said on standard error. */
void board_wrong(const char *format, ...) __attribute__((format(printf, 1, 2)));
void board_surprise(const char *format, ...) __attribute__((format(printf, 1, 2)));

#endif
