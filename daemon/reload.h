/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reading the configuration again: off the loop, into a new snapshot that takes the old one's
 * place whole. A fault changes nothing. Settings that cannot change while the daemon runs keep
 * their old effect until the next start, and are named. Loop only.
 */
#ifndef DAEMON_RELOAD_H
#define DAEMON_RELOAD_H

#include <stdbool.h>
#include <stdint.h>

struct daemon;

/* Begin; 'client' 0: nobody waits for an answer (SIGHUP). WIRE_BUSY: one is under way. */
int reload_begin(struct daemon *daemon, uint64_t client, uint32_t request);

/* Is the setting's value in the snapshot not in effect yet? */
bool reload_is_later(const struct daemon *daemon, const char *key);

#endif
