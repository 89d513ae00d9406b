/* SPDX-License-Identifier: Apache-2.0 */
/* See packet.h. */
#include "daemon/ipc/packet.h"

#include "base/os/sys.h"

#include <stdlib.h>

struct packet *packet_new(size_t size)
{
	struct packet *packet = sys_malloc(sizeof *packet + size);

	if (packet != NULL) {
		*packet = (struct packet){.size = size};
	}
	return packet;
}

struct packet *packet_free(struct packet *packet)
{
	if (packet != NULL) {
		fdpass_close_all(packet->fds, packet->n_fds);
		free(packet->spill);
		free(packet);
	}
	return NULL;
}
