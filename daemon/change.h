/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A request that is written before it is carried out and answered: budget with save, config.set,
 * warm. Loop only.
 */
#ifndef DAEMON_CHANGE_H
#define DAEMON_CHANGE_H

#include <stdbool.h>
#include <stdint.h>

#include "daemon/dispatch.h"
#include "daemon/reload.h"
#include "daemon/saved.h"

#define CHANGE_NOTICE_SIZE 512

/* owner: saved, from change_begin until 'done', which frees it */
struct change {
	struct saved_change saved;
	uint64_t client;
	uint32_t request;
	uint64_t bytes; /* of a budget */
	uint32_t device;
	char *text;    /* the key, the path; owner: change */
	bool is_unset; /* of a setting */
	struct reload_changes changes;
};

typedef void (*change_done_fn)(struct daemon *daemon, struct saved_change *change,
			       const struct err *err);

/* With what is saved now, to be changed. NULL: no memory, and that has been answered. */
struct change *change_new(const struct call *call, change_done_fn done);
void change_free(struct change *change);

/* Have it written. Takes it over; answers where it cannot be. */
void change_begin(const struct call *call, struct change *change);
/* The same where the request has been waiting already. */
void change_go_on(struct daemon *daemon, struct change *change);

/* Whoever waits, to be answered now. False: nobody any more. */
bool change_find_call(struct daemon *daemon, const struct change *change, struct call *ret);
/* The same of a request by its numbers. */
bool change_find_request(struct daemon *daemon, uint64_t client, uint32_t request,
			 struct call *ret);
void change_fail(struct daemon *daemon, const struct change *change, const struct err *err);

/* It is written: the snapshot with what is saved now. A failure leaves that for the next reload. */
void change_take(struct daemon *daemon, struct change *change);

/* What environment or command line say of the key stands above it. Empty: nothing. */
void change_tell_what_wins(const struct config *config, const char *key,
			   char notice[CHANGE_NOTICE_SIZE]);

#endif
