/* SPDX-License-Identifier: Apache-2.0 */
/* What the files of this room share. Nobody else includes it. */
#ifndef IPC_INTERNAL_H
#define IPC_INTERNAL_H

#include "base/list.h"

#include <stdbool.h>
#include <stdint.h>
#include <uv.h>

#include "daemon/ipc/listen.h"
#include "daemon/ipc/packet.h"
#include "daemon/ipc/peer.h"
#include "daemon/ipc/server.h"

struct server {
	uv_loop_t *loop;
	struct server_options options;
	struct server_handlers handlers;
	struct server_counters counters;
	uv_poll_t listen;
	uv_timer_t pause; /* runs while no connection can be taken, not even to end it */
	int listen_fd;    /* -1: no longer listening */
	int spare_fd;     /* given up to shed a connection when there is no other descriptor left */
	int lock_fd;      /* held while the name is ours; -1: inherited socket */
	char *path;       /* owner: server */
	struct listen_socket made; /* by us; its descriptor is listen_fd then */
	struct list conns;         /* conn::by_server */
	struct list dirty;         /* conn::by_dirty: have something to send or to end */
	bool is_freed;             /* freed when the last handle is closed */
	int n_open_handles;        /* listen and pause */
	bool is_flushing; /* or handling a packet: a nested server_flush leaves it to the outer */
	uint8_t in[WIRE_PACKET_BYTES]; /* one packet at a time, for all connections */
};

enum conn_state {
	CONN_NEW, /* has not said hello */
	CONN_READY,
	CONN_FLUSHING, /* sends what is queued, reads no more */
	CONN_CLOSED,   /* handles are being closed */
};

struct conn {
	struct server *server;
	struct list by_server; /* server::conns */
	uv_poll_t poll;
	uv_timer_t deadline; /* hello, drain or flush, whichever applies */
	uv_timer_t retry;    /* while descriptors wait for the peer to take the last ones */
	int n_open_handles;
	int fd;
	enum conn_state state;
	struct peer peer;
	void *user;
	/* Requests that are owed an answer; a method that there is not is WIRE_N_METHODS. */
	struct {
		uint32_t id, method;
	} in_flight[WIRE_REQUESTS_IN_FLIGHT];
	uint32_t n_in_flight;
	uint32_t n_unsent;                   /* answers in the queue */
	uint32_t n_unsent_fds;               /* theirs */
	struct packet *out_first, *out_last; /* owner: conn */
	uint64_t out_bytes;
	uint64_t spill_bytes;      /* of results too long for a packet, beside out_bytes */
	uint64_t sent_spill_bytes; /* of the one that the peer may not have taken yet */
	struct packet *reserve;    /* for an answer without memory; NULL: used up */
	struct packet *farewell;   /* for the goodbye; NULL: it was said */
	bool fds_outstanding;      /* the peer may not have taken the last descriptors yet */
	bool is_half_closed;       /* the peer sends no more, but may still read */
	bool is_at_end;            /* and all that it sent was read */
	bool is_gone;              /* takes nothing more; what it said before is still read */
	bool wants_write;          /* the socket's own buffer is full */
	struct list by_dirty;      /* server::dirty */
};

/* Takes the descriptor over in any case. */
void conn_open(struct server *server, int fd);
/* Queue a goodbye with its reason, flush, close. */
void conn_say_goodbye(struct conn *conn, enum wire_code code, const char *reason);
void conn_close(struct conn *conn);
/* A socket that was accepted: at once, unless what waits in it may hold that up. */
void conn_close_socket(int fd);

/* Take in what has arrived, and act on it. */
void conn_read_turn(struct conn *conn);
/* The peer takes nothing more: read what it said before, then close. False: closed already. */
bool conn_hear_out(struct conn *conn);

/* conn_out.c */
#define RESERVE_BYTES 512                /* of the packets prepared for want of memory */
void conn_mark_dirty(struct conn *conn); /* server_flush will look at it */
void conn_arm_deadline(struct conn *conn, uint64_t ms);
void conn_arm_retry(struct conn *conn, uint64_t ms);
/* Send what goes; false when the connection has ended over it. */
bool conn_flush(struct conn *conn);
/* Forget what is queued. */
void conn_drop_output(struct conn *conn);

/* The last handle of something is closed: free the server if that is what it waits for. */
void server_release(struct server *server);

#endif
