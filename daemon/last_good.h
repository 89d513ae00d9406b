/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A configuration that cannot be read must not cost what waits in the store: then the daemon starts
 * with the last good one, which its earlier life left in the ledger, and says so until the files are
 * mended and read again. Without anything that waits a fault ends the start.
 */
#ifndef DAEMON_LAST_GOOD_H
#define DAEMON_LAST_GOOD_H

#include <stdbool.h>
#include <stdint.h>

struct config;
struct daemon;
struct err;

/* As many settings as there may be, with the longest keys, values and sources, are half of it; what
 * is not written is no memory. */
#define LAST_GOOD_MAX_BYTES (4U << 20)

/* How many models the store hands to this process. At start; takes nothing. */
uint32_t last_good_n_waiting(void);

/* At start; takes nothing. -WIRE_NOT_FOUND: an earlier life left none. */
int last_good_find(struct config **ret, struct err *err);

/* The snapshot of now is a good one: have the ledger keep it. Loop only. */
void last_good_keep(struct daemon *daemon);

#endif
