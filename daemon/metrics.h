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
#include <uv.h>

#include "daemon/core/action.h"

struct daemon;
struct daemon_options;
struct scraper;

#define METRICS_BUCKETS 8 /* with a bound; one more has none */

/* How often something took how long. */
struct metrics_times {
	uint64_t n[METRICS_BUCKETS + 1];
	uint64_t sum_ns;
};

/* Counted since the start, in this life. */
struct metrics {
	uint64_t started_real_ns; /* for people: since 1970 */
	uint64_t bytes_read;      /* by loads that succeeded */
	uint64_t n_notes[CORE_NOTE_N_VALUES][CORE_WHY_N_VALUES];
	uint64_t n_from_memory; /* loads answered from memory */
	uint64_t n_adopted;     /* generations of an earlier life that were taken over */
	uint64_t n_given_up;    /* or not */
	struct metrics_times loads, turns;
	uv_check_t turn;               /* of the loop */
	uint64_t turned_ns, waited_ns; /* at its last one: when, and time spent waiting so far */
};

/* A load that read a file has succeeded. */
void metrics_count_load(struct metrics *metrics, uint64_t duration_ns);

/* Measure the turns of the loop from now on. */
void metrics_watch_loop(struct metrics *metrics, uv_loop_t *loop);

/* Write the text and its NUL. False: it does not fit. */
bool metrics_write(const struct daemon *daemon, char *ret_text, size_t size);

/* Have them fetched where metrics.listen says, a path with this mode and group; NULL: nowhere, and
 * the log says so where that was not meant. */
struct scraper *metrics_serve(struct daemon *daemon, const struct daemon_options *options,
			      uint32_t mode, uint32_t gid);

/* Open descriptors of this process; 0 when they cannot be counted. */
uint64_t metrics_open_fds(void);

#endif
