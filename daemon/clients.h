/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Who is connected, or was and still maps bytes: the corridor's side of the core's clients.
 * Keeps what an answer needs until the core gives it: the method of each request in flight
 * and the lines of an answer that comes in parts. Loop only.
 */
#ifndef DAEMON_CLIENTS_H
#define DAEMON_CLIENTS_H

#include "base/list.h"

#include <stdbool.h>
#include <stdint.h>

#include "daemon/core/action.h"
#include "proto/gen/wire_gen.h"

struct conn;
struct daemon;
struct process_watch;

/* One line of an unload's or a verify's answer. */
struct answer_line {
	uint64_t model; /* core id; may be forgotten when the answer goes out */
	char uuid[33];
	char name[256];
	enum core_outcome outcome;
	enum core_why why;
	uint64_t bytes, freed;
	uint64_t was_mapped; /* of the model, while it was going already */
	uint64_t holder;
	uint32_t uid;
	int code;
	bool is_partial; /* not all of it was there to be verified */
};

/* A request in flight that the core will answer. owner: client::pending */
struct pending {
	bool is_used;
	bool wants_table; /* attach, load with attach */
	uint32_t request;
	enum wire_method method;
	uint32_t n_expected; /* replies that make one answer (verify) */
	uint64_t begun_ns;
	uint64_t n_records;       /* a reservation: what the history had when it was asked for */
	uint32_t device;          /* likewise: on which */
	uint64_t recall_until_ns; /* an unload that waits so long, for leases and then for what is
				    * being dropped; 0: it does not */
	bool is_measuring; /* a reservation of RAM, which the core has not heard of yet ... */
	bool is_cancelled; /* ... and need not */
	bool is_recalling; /* who leases it was asked to let go */
	char *label;       /* set: the model's once that is done; NULL: as it is. owner: pending */
	struct answer_line *lines; /* owner: pending */
	uint32_t n_lines, lines_capacity;
};

struct subscription {
	bool is_active;
	bool has_overflow; /* an overflow is owed */
	uint64_t seq;
	uint64_t events;       /* bit 1 << enum wire_event */
	uint8_t (*models)[16]; /* NULL: all; owner: subscription */
	uint32_t n_models;
};

/* owner: daemon::clients, from EV_CLIENT_OPENED until ACT_FORGET_CLIENT */
struct client {
	uint64_t id;                 /* core id */
	struct conn *conn;           /* NULL: closed */
	struct process_watch *watch; /* on its process, once its connection is closed */
	uint32_t uid, gid, pid;
	uint64_t start_time; /* of its process (ipc/peer.h); 0: not asked yet */
	bool is_admin;
	char comm[64];
	char label[256];
	char library[128];
	char (*device_uuids)[65]; /* in its own order; NULL: it said nothing of devices */
	uint32_t n_device_uuids;
	uint32_t n_exporting; /* descriptors of blocks that are being opened for it */
	uint64_t opened_ns;
	struct pending pending[WIRE_REQUESTS_IN_FLIGHT];
	struct list
		gatherings; /* struct gathering: requests that wait for descriptors (gather.h) */
	struct subscription subscription;
	struct client *next, *prev; /* daemon::clients */
};

struct pending *client_add_pending(struct client *client, uint32_t request, enum wire_method method,
				   uint64_t now_ns);
struct pending *client_find_pending(struct client *client, uint32_t request);
void pending_clear(struct pending *pending);
/* Returns a zeroed line to fill, or NULL without memory. */
struct answer_line *pending_add_line(struct pending *pending);

/* That the daemon may have open. */
uint32_t clients_max_fds(void);
/* May an answer to the client keep so many more descriptors open? What those of one uid have not
 * taken, and what is being opened for them, is an eighth of all at most, or a few hundred: no
 * user's unread answers leave the daemon without any. */
bool client_may_have_fds(const struct daemon *daemon, const struct client *client, uint32_t n_fds);

struct client *client_new(void); /* NULL: no memory */
struct client *client_free(struct client *client);

/* The devices in the client's own order, from its hello. False: no memory. */
bool client_take_devices(struct client *client, struct wire_list uuids);
/* "ComfyUI" (its label) or the command name. */
const char *client_display(const struct client *client);
/* Likewise, to another: what a client says of its program is not for everybody, the kernel's word
 * is. 'viewer' may be NULL: anybody. */
const char *client_display_to(const struct client *viewer, const struct client *client);

#endif
