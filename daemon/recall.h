/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Unloads that have asked the holders of leases to let go: their answer waits until they did, or
 * their time is over. Loop only.
 */
#ifndef DAEMON_RECALL_H
#define DAEMON_RECALL_H

#include <stdbool.h>
#include <stdint.h>

struct client;
struct daemon;
struct pending;

void recall_init(struct daemon *daemon);

/* Does the answer of this unload have to wait? */
bool recall_waits(struct daemon *daemon, const struct pending *pending);
/* Answer one of this id that waits, as it stands. False: there is none. */
bool recall_cancel(struct daemon *daemon, struct client *client, uint32_t request);
/* Answer those that need wait no longer. After each step. */
void recall_look(struct daemon *daemon);

#endif
