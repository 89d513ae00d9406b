/* SPDX-License-Identifier: Apache-2.0 */
/* Reservations in a scene. Included by one file of a program. */
#ifndef TESTS_UNIT_DAEMON_CORE_ROOM_H
#define TESTS_UNIT_DAEMON_CORE_ROOM_H

#include "tests/unit/daemon/core/placed.h"

struct asked {
	uint64_t bytes, ttl_ns, recall_ns;
	uint32_t device;
};

static inline uint32_t reserve(struct scene *scene, uint64_t client, struct asked asked)
{
	(void)scene_step(scene, (struct core_event){.type = EV_RESERVE,
						    .client = client,
						    .request = ++scene->last_request,
						    .reserve = {.device = asked.device,
								.bytes = asked.bytes,
								.ttl_ns = asked.ttl_ns,
								.recall_ns = asked.recall_ns}});
	return scene->last_request;
}

static inline void release(struct scene *scene, uint64_t client, uint64_t token)
{
	(void)scene_step(scene, (struct core_event){.type = EV_RELEASE,
						    .client = client,
						    .request = ++scene->last_request,
						    .release = {.reservation = token}});
}

#endif
