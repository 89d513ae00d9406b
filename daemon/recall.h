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

/* The bytes of the model that a process maps while they are going; 'ret_mapper': one of those who
 * map them, 0: none. */
uint64_t recall_mapped(const struct daemon *daemon, uint64_t model, uint64_t *ret_mapper);
/* Does the answer of this unload have to wait? */
bool recall_waits(struct daemon *daemon, struct pending *pending);
/* Answer one of this id that waits, as it stands. False: there is none. */
bool recall_cancel(struct daemon *daemon, struct client *client, uint32_t request);
/* Do as many unloads by this client's uid wait for leases as may? */
bool recall_is_full(const struct daemon *daemon, const struct client *client);
/* Look at all of them next time, whatever has become of their models. */
void recall_look_again(struct daemon *daemon);
/* Answer those that need wait no longer. After each step; nothing to do where nothing was let go. */
void recall_look(struct daemon *daemon);

#endif
