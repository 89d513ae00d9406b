/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One connection: reads packets and checks them, keeps count of requests in flight, queues
 * what goes out. It may be told to close inside its own request handler. Loop only.
 */
#ifndef IPC_CONN_H
#define IPC_CONN_H

#include <stdbool.h>
#include <stdint.h>

#include "proto/gen/wire_gen.h"
#include "proto/wire.h"

struct conn;
struct peer;

void *conn_user(const struct conn *conn);
void conn_set_user(struct conn *conn, void *user);
const struct peer *conn_peer(const struct conn *conn);
/* The descriptor of the peer's process, the caller's from now on; -1: none. */
int conn_take_pidfd(struct conn *conn);

/* hello was good: other methods are let through from now on. */
void conn_accept_hello(struct conn *conn);

/*
 * The one answer of a request. Too long for a packet, it travels in a memfd; such a one, unless it
 * grants a lease, is refused while too much of them waits for the peer's user to take it. 'fds' are
 * taken over in any case. Without memory a prepared error goes out instead.
 */
void conn_respond_ok(struct conn *conn, uint32_t request, const struct wire_message *message,
		     const void *response, int *fds, uint32_t n_fds);
void conn_respond_error(struct conn *conn, uint32_t request, const struct wire_error *error);
void conn_respond_no_memory(struct conn *conn, uint32_t request);

/*
 * An event without descriptors. One that nobody owns is left out (false) while more than half
 * of the output limit is queued, or without memory. An owned one is never lost in silence:
 * without memory for it the connection ends with a goodbye that says so.
 */
bool conn_send_event(struct conn *conn, enum wire_event event, const void *fields);

/* Descriptors of answers that have not gone out yet. */
uint32_t conn_unsent_fds(const struct conn *conn);

/* Send what is queued (for at most a second), then close. */
void conn_close_after_flush(struct conn *conn);

#endif
