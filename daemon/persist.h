/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What outlives the daemon. Tables, images, source files and the ledger are parked, under names,
 * with whoever restarts us (systemd's descriptor store, or distorchd-hold); the next life gets
 * them back and adopts what it can trust. A generation is published once it is parked, or after
 * a while without: then it is shown as not surviving a restart. Loop only.
 *
 *   ledger.EPOCH   who maps what, what was said (daemon/ledger.h)     sock   the listening socket
 *   hdr.ID.GEN     the tensor table     img.ID.GEN.N   an image
 *   of several files: hdr.ID.GEN.DEV.INO, which tells the index (0.0: there is none)
 *   of what lies on other devices too, instead of images: plc.ID.GEN  how (daemon/placed_record.h)
 *   src.DEV.INO, or .w behind it when it may be written: a source file, once, however many
 *   generations have it (the table tells which)     idx.DEV.INO   likewise an index
 * Names of before, src.ID.GEN.N and idx.ID.GEN, are taken over as they are.
 */
#ifndef DAEMON_PERSIST_H
#define DAEMON_PERSIST_H

#include <stdbool.h>
#include <stdint.h>

struct daemon;
struct err;
struct extent;
struct park;
struct persist;

/* Reads and removes NOTIFY_SOCKET, FDSTORE, FDSTORE_DEFAULT, WATCHDOG_USEC and LISTEN_* of the
 * environment. */
int persist_new(struct daemon *daemon, struct err *err);
struct persist *persist_free(struct persist *persist); /* NULL is fine; returns NULL */

/* The listening socket that was handed over, the caller's now; -1: none. */
int persist_take_listener(struct persist *persist);
/* Does somebody keep what is parked? */
bool persist_is_safe(struct persist *persist);
uint64_t persist_n_restarts(const struct persist *persist);
/* Descriptors that are parked; 0 where nobody keeps them. */
uint32_t persist_n_fds(struct persist *persist);

/* At start, before the budget is set: take over what an earlier life parked, so many bytes. What
 * cannot be taken over is given up with a warning; a failure leaves all to the next start. */
int persist_adopt(struct daemon *daemon, uint64_t *ret_bytes, struct err *err);
/* Is it known from the earlier life what was said? Between adoption and persist_begin. */
bool persist_has_old_ledger(const struct persist *persist);
/* The start fails in order, which is no fault of what it takes over. NULL is fine. */
void persist_start_failed(struct persist *persist);
/* The ledger stands; blocks until it is parked, a few seconds at most. */
void persist_begin(struct daemon *daemon);
/* The socket listens: park it, and tell that the daemon is ready. */
void persist_ready(struct daemon *daemon);
void persist_stopping(struct persist *persist);

/* Park what a fill of the job brought, then go on by execute_filled, now or later. */
void persist_park(struct daemon *daemon, uint64_t job, uint64_t segment, uint64_t duration_ns);
/* Likewise of a generation whose table is made apart, by execute_tabled. */
void persist_park_tabled(struct daemon *daemon, uint64_t job);
/* Give up what is parked of a generation that lies on other devices too; '*park' is empty then. */
void persist_unpark(struct daemon *daemon, struct park *park);
/* Likewise of a model of that id, if there is one: another life does not make it again. */
void persist_forget_placed(struct daemon *daemon, uint64_t id);
/* What lay on other devices goes back to them, where it is known by now which they are. */
void persist_come_back(struct daemon *daemon);
/* Give up what is parked of a copy, then have the loader drop it. */
void persist_drop(struct daemon *daemon, uint64_t segment, struct extent *extent,
		  const struct park *park);

/* A lease or a wish of the core, by its id, began, changed or ended. */
void persist_record_lease(struct daemon *daemon, uint64_t id);
void persist_record_wish(struct daemon *daemon, uint64_t id);

/* The core's id of a lease that a client knows from this life or an earlier one; 0: none. */
uint64_t persist_find_lease(const struct daemon *daemon, uint64_t epoch, uint64_t lease);

#endif
