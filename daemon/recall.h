/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Answers of unloads that wait: until the holders of leases that were asked to let go did, or
 * their time is over, and until what goes is free again. Loop only.
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
bool recall_waits(struct daemon *daemon, struct pending *pending);
/* Answer one of this id that waits, as it stands. False: there is none. */
bool recall_cancel(struct daemon *daemon, struct client *client, uint32_t request);
/* Answer those that need wait no longer. After each step. */
void recall_look(struct daemon *daemon);

#endif
