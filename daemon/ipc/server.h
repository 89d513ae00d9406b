/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The listening socket and its connections. Knows peers, packets and queues; no models. The
 * socket accepts as soon as its name exists. Loop only; nothing blocks.
 */
#ifndef IPC_SERVER_H
#define IPC_SERVER_H

#include <stdbool.h>
#include <stdint.h>
#include <uv.h>

#include "proto/gen/wire_gen.h"
#include "proto/wire.h"

struct conn;
struct err;
struct server;

struct server_options {
	const char *socket_path; /* bound here, unless listen_fd is given and has its name */
	int listen_fd;           /* an inherited listening socket, else -1; taken over */
	bool is_kept;       /* somebody keeps the listening socket over our end: leave its name */
	uint32_t mode;      /* of the socket, 0: 0660 */
	uint32_t gid;       /* group that may connect; UINT32_MAX: no such rule */
	uint32_t admin_uid; /* administrator besides root and us; UINT32_MAX: nobody */
	uint32_t connections, connections_per_uid;
	uint32_t output_bytes; /* queued to one connection, at most */
	uint32_t hello_ms, drain_ms;
};

/* How the corridor hears of things. 'fds': take with steal_fd, the rest is closed. */
struct server_handlers {
	void *context;
	/* A checked request: known method, right role, right descriptors, every field in range.
	 * 'request' is its generated struct, borrowed for the call as everything in 'packet'. */
	void (*request)(void *context, struct conn *conn, const struct wire_packet *packet,
			const void *request, int *fds, uint32_t n_fds);
	/* The connection is gone; its user pointer is still there. */
	void (*closed)(void *context, struct conn *conn);
};

struct server_counters {
	uint64_t n_served; /* said hello */
	uint64_t n_shed, n_refused, n_bad_frames, n_slow;
	/* By enum wire_method and enum wire_code; the last row is of methods that there are not. */
	uint64_t n_answers[WIRE_N_METHODS + 1][WIRE_N_CODES];
};

/* 0, or a negative code with 'err': the path is taken, too long, or not ours. */
int server_new(uv_loop_t *loop, const struct server_options *options,
	       const struct server_handlers *handlers, struct server **ret, struct err *err);

/* Listen no longer and take the name away, if it is still ours. Connections live on. */
void server_stop(struct server *server);

/*
 * Send what was queued, and end what is to be ended: only here, and when the loop reports
 * something, is 'closed' called; never from inside conn_respond or conn_send_event.
 */
void server_flush(struct server *server);

/* Say goodbye to all, then close; frees itself once the loop has run. Returns NULL. */
struct server *server_free(struct server *server);

int server_listen_fd(const struct server *server);  /* borrowed */
bool server_made_name(const struct server *server); /* else the socket is an inherited one */
const char *server_path(const struct server *server);
void server_limits(const struct server *server, struct wire_limits *ret);
const struct server_counters *server_counters(const struct server *server); /* borrowed */

#endif
