/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reading what came back: a packet is copied for the thread that waits, its descriptors are
 * moved. The daemon is not trusted more than a client is by the daemon. Any thread.
 */
#ifndef CLIENT_PACKET_H
#define CLIENT_PACKET_H

#include "client/client.h"

/*
 * Decode a kept answer of 'method' into 'ret_body'. A failed response fills the thread's
 * error. Returns 0 or a negative code; descriptors stay in the answer.
 */
int packet_decode(enum wire_method method, struct answer *answer, void *ret_body);

/* Does the number of descriptors fit the method and what the packet announces? */
bool packet_has_right_fds(enum wire_method method, const struct wire_packet *packet,
			  uint32_t n_fds);

#endif
