/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Both ends of the protocol of sd_notify(3): datagrams of NAME=VALUE lines, some with
 * descriptors. The daemon speaks it to systemd or to distorchd-hold, whichever started it: says
 * that it is ready, and parks descriptors that its next life gets back. Loop only; never blocks:
 * what the socket does not take waits in order.
 */
#ifndef DAEMON_NOTIFY_H
#define DAEMON_NOTIFY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <uv.h>

#define NOTIFY_TEXT_SIZE 512 /* of one message */
#define NOTIFY_NAME_SIZE 256 /* of a parked descriptor, the NUL included */

struct err;
struct notify;

/*
 * Speak to the socket at 'path' ("@name" is an abstract one); NULL or empty: to nobody, and
 * everything below does nothing. Returns NULL with 'err' when there is no memory; a socket that
 * does not answer is no failure: notify_is_heard tells.
 */
struct notify *notify_new(uv_loop_t *loop, const char *path, struct err *err);
/* What waits is sent as far as the socket takes it. NULL is fine; returns NULL. */
struct notify *notify_free(struct notify *notify);

/* Somebody listened, as far as is known. */
bool notify_is_heard(const struct notify *notify);

void notify_say(struct notify *notify, const char *text);

/* Park 'fd', which stays the caller's, under 'name'. False: nobody keeps it. */
bool notify_store(struct notify *notify, const char *name, int fd);
/* Every descriptor parked under the name is given up. */
void notify_unstore(struct notify *notify, const char *name);

/*
 * Call 'done' once everything said so far has been taken in ('is_taken'), or after 'wait_ms'
 * without (0: as long as it takes). Where nobody listens, or there is no memory, it is called before
 * this returns, with false. No call after notify_free.
 */
typedef void (*notify_done_fn)(void *context, bool is_taken);
void notify_barrier(struct notify *notify, uint64_t wait_ms, notify_done_fn done, void *context);

/* ---- the receiving side, for the holder ---- */

struct notify_message {
	bool is_ready, is_stopping, is_store, is_unstore, is_barrier, is_alive;
	bool has_bad_name;
	char name[NOTIFY_NAME_SIZE]; /* "stored" where none was said, as systemd has it */
};

/* Hostile input: any bytes. Lines that are not known are passed over. */
void notify_parse(const char *bytes, size_t size, struct notify_message *ret);

#endif
