/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Work that may block for long or for ever (a folder whose server does not answer), each on a
 * thread of its own; what came of it is heard on the loop. Loop only, but for errand::work.
 */
#ifndef DAEMON_ERRAND_H
#define DAEMON_ERRAND_H

#include "base/os/mailbox.h"

#include <stdbool.h>
#include <stdint.h>

struct daemon;
struct err;
struct errands;

/* Begins whatever is sent on an errand. owner: its thread, then the mailbox, then errand::done */
struct errand {
	struct mail mail;
	void (*work)(struct errand *errand);                        /* on the thread */
	void (*done)(struct daemon *daemon, struct errand *errand); /* on the loop; frees it */
	void (*drop)(struct errand *errand); /* instead, when the daemon ends; any thread; frees */
	struct errands *errands;             /* filled by errand_start */
};

/* Sets daemon->errands. Returns 0 or a negative code. */
int errands_new(struct daemon *daemon, struct err *err);

/* False: there is no thread to be had, and the errand stays the caller's. */
bool errand_start(struct errands *errands, struct errand *errand);

/* Wait until none runs, at most 'limit_ns', and hear those that are back. */
void errands_settle(struct errands *errands, uint64_t limit_ns);

/* Before the loop closes: nothing is heard any more. Waits for the threads, at most 'limit_ns'. */
void errands_stop(struct errands *errands, uint64_t limit_ns);
/* After it. Those that are stuck in the kernel keep what they use. NULL is fine; returns NULL. */
struct errands *errands_free(struct errands *errands);

#endif
