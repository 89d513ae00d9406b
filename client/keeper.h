/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a connection keeps over the daemon's death: leases whose bytes this process maps, and the
 * subscription. One small thread a connection, started with the first of these, reads what comes
 * when nobody waits, connects again when the daemon is back, and asserts the leases again.
 */
#ifndef CLIENT_KEEPER_H
#define CLIENT_KEEPER_H

#include "client/client.h"

/*
 * A lease as the connection knows it, or a reservation that nobody waits for any more. owner:
 * distorch::leases, from the answer that brought it until the daemon was told of its end; its
 * weights point to it. Guarded by the connection's lock.
 */
struct kept_lease {
	struct list link;
	uint64_t number;
	uint64_t epoch;           /* of the daemon that gave the number */
	uint64_t serial;          /* of the connection that has it */
	int fd;                   /* borrowed from the weights: an image that is mapped; -1: none */
	bool is_over;             /* unmapped; the daemon is to be told */
	uint32_t told_id;         /* the request that told it, until it is answered; 0: none */
	uint64_t told_serial;     /* of the connection of that request */
	uint32_t awaited_id;      /* a request that was given up and may still bring it; 0: none */
	enum wire_method awaited; /* which one that is or was */
};

/* Take note of a lease of the current connection; lock not held. NULL: no memory. */
struct kept_lease *keeper_add(struct distorch *c, uint64_t number, uint64_t serial);
/* From now on the image is mapped: the lease is asserted again after a loss. Lock not held. */
void keeper_mapped(struct distorch *c, struct kept_lease *lease, int fd);
/* The image is about to be unmapped: assert it no more. Lock not held. */
void keeper_leaving(struct distorch *c, struct kept_lease *lease);
/* It is unmapped: tell the daemon, now or when it is back, or by another connection where this one
 * was closed. Frees 'lease'. Lock not held. */
void keeper_over(struct distorch *c, struct kept_lease *lease);

/* All of these with the lock held. */
void keeper_pay(struct distorch *c); /* tell of ended leases as far as the socket takes it */
/* A response that no call waits for; 'packet' is its own. */
void keeper_answered(struct distorch *c, const struct wire_packet *packet);
/* A request is given up that may still bring a lease or a reservation: that ends as soon as it
 * comes. Without memory it stays until the connection ends. */
void keeper_await(struct distorch *c, enum wire_method method, uint32_t id);
void keeper_restore(struct distorch *c); /* after a connect: leases and subscription again */
void keeper_part(struct distorch *c);    /* at its close: tell the rest by another connection */
void keeper_drop(struct distorch *c);    /* at the end of the connection's memory */
void keeper_orphan(struct distorch *c);  /* in a forked child: they are the parent's */
void keeper_start(struct distorch *c);   /* where it does not run yet */
bool keeper_returns(const struct distorch *c); /* is there something to connect again for? */

/* Remember what is subscribed; takes over 'texts', a result that 'body' borrows from. */
void keeper_subscribe(struct distorch *c, void *texts, const struct wire_subscribe_request *body);

#endif
