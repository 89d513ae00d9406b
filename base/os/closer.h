/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Closes descriptors that others sent, on threads of its own: close() waits for a file's server,
 * for a socket that lingers, for a terminal that drains, and that can be for ever. A close that
 * does not return holds one thread; each uid gets a few of them, so that the rest of its
 * descriptors waits while those of others are closed. One for the process, as descriptors are.
 * Any thread; nothing here blocks, fails or allocates.
 */
#ifndef BASE_OS_CLOSER_H
#define BASE_OS_CLOSER_H

#include <stdbool.h>
#include <stdint.h>

/* Whoever has so many unfinished closes is to be refused new descriptors: more than what a few
 * models of 256 files leave behind at once, which is closed in no time. */
#define CLOSER_LIMIT 2048

/* Have one thread that stays, so that no later want of threads stops all closing; the others
 * come when they are needed and go again. False: no thread. Once is enough, twice is fine. */
bool closer_start(void);

/* Takes over those that are not -1 and sets them to -1. 'uid': whose they are. */
void closer_give(uint32_t uid, int *fds, uint32_t n_fds);

/* How many of this uid's are not closed yet. */
uint32_t closer_count(uint32_t uid);

#endif
