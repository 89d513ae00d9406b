/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The models that are loaded at each start: warm.model of the configuration, and what `warm add`
 * saved. The only files that the daemon opens by path, with its own rights, each on a thread. They
 * are loaded in their order, one after the other, for the daemon's own uid; one that cannot be is
 * told, and the next one follows. Loop only.
 */
#ifndef DAEMON_WARM_H
#define DAEMON_WARM_H

#include <stdbool.h>
#include <stdint.h>

struct core_action;
struct daemon;
struct err;
struct warm;

/* Once the daemon is ready. Without memory it goes without, and says so. */
void warm_start(struct daemon *daemon);
/* After the loop's last turn. NULL is fine; returns NULL. */
struct warm *warm_free(struct warm *warm);

/* The configuration lists others: new ones are loaded, old ones stay where they are. */
void warm_take_list(struct daemon *daemon);
/* Try those again that could not be loaded, or only the one of this path. */
void warm_retry(struct daemon *daemon, const char *path);

/* An answer that nobody waits for: perhaps one of ours. Inside a step. */
void warm_answered(struct daemon *daemon, const struct core_action *action);

/* One of the list; borrowed until the next turn. */
struct warm_view {
	const char *path;
	const char *source;
	const char *state; /* the wire's word */
	const char *text;  /* why it is not loaded; empty: nothing to say */
	uint64_t model;    /* 0: not known */
	uint64_t bytes;    /* 0: not known */
};

/* Walk in their order: *cursor = 0 first; false at the end. */
bool warm_next(const struct daemon *daemon, uint32_t *cursor, struct warm_view *ret);

/*
 * Can this file be opened? Heard by dispatch_warm_opened, unless it takes too long: then that is
 * told and what comes of it later is not. Returns 0, -WIRE_NO_MEMORY.
 */
int warm_probe(struct daemon *daemon, const char *path, uint64_t client, uint32_t request);

#endif
