/* SPDX-License-Identifier: Apache-2.0 */
/* The bounded queue of events that distorch_next_event empties. All with the lock held. */
#ifndef CLIENT_EVENT_H
#define CLIENT_EVENT_H

#include "client/client.h"

/* An event packet came. */
void client_take_event(struct distorch *c, const struct wire_packet *packet, const void *bytes,
		       size_t size);
void client_drop_events(struct distorch *c);
/* Queue an event of our own making; 'fields' is its generated struct. */
void client_queue_event(struct distorch *c, enum wire_event number, const void *fields);

#endif
