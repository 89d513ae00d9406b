/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What there is to measure, as OpenMetrics text: numbers of the core's views, of the server, of
 * the kernel, and those that are counted here because no room counts them. No label's value is
 * a client's or a file's: how many series there are does not depend on what anybody does.
 * docs/metrics.md has them all. Loop only.
 */
#ifndef DAEMON_METRICS_H
#define DAEMON_METRICS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "daemon/core/action.h"

struct daemon;

/* Counted since the start, in this life. */
struct metrics {
	uint64_t started_real_ns; /* for people: since 1970 */
	uint64_t bytes_read;      /* by loads that succeeded */
	uint64_t n_notes[CORE_NOTE_N_VALUES][CORE_WHY_N_VALUES];
	uint64_t n_from_memory; /* loads answered from memory */
	uint64_t n_adopted;     /* generations of an earlier life that were taken over */
	uint64_t n_given_up;    /* or not */
};

/* Write the text and its NUL. False: it does not fit. */
bool metrics_write(const struct daemon *daemon, char *ret_text, size_t size);

/* Open descriptors of this process; 0 when they cannot be counted. */
uint64_t metrics_open_fds(void);

#endif
