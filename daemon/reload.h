/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reading the configuration again: on a thread, into a new snapshot that takes the old one's
 * place whole. A fault changes nothing. Settings that cannot change while the daemon runs keep
 * their old effect until the next start, and are named. Loop only.
 */
#ifndef DAEMON_RELOAD_H
#define DAEMON_RELOAD_H

#include <stdbool.h>
#include <stdint.h>

#include "proto/gen/wire_gen.h"

struct config;
struct daemon;
struct host_memory;

#define RELOAD_MAX_KEYS WIRE_RELOAD_RESPONSE_APPLIED_MAX

/* Keys that changed. Borrowed from the snapshot that was taken, or where they are there no more
 * from the one before. All 0: none. */
struct reload_changes {
	struct wire_str applied[RELOAD_MAX_KEYS], later[RELOAD_MAX_KEYS];
	uint32_t n_applied, n_later;
	struct config *before; /* owner: this; NULL: it is somebody else's, or there is none */
};

void reload_changes_fini(struct reload_changes *changes);

/* Begin; 'client' 0: nobody waits for an answer (SIGHUP). 'method' is the one to be answered:
 * reload or config.set. WIRE_BUSY: one is under way; for nobody another one follows it. */
int reload_begin(struct daemon *daemon, uint64_t client, uint32_t request, enum wire_method method);

/* Make 'next' the snapshot and carry out what changed. Takes it over. */
void reload_take(struct daemon *daemon, struct config *next, const struct host_memory *memory,
		 struct reload_changes *ret);

/* Is the setting's value in the snapshot not in effect yet? */
bool reload_is_later(const struct daemon *daemon, const char *key);

#endif
