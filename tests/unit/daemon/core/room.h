/* SPDX-License-Identifier: Apache-2.0 */
/* Reservations, drains and unloads in a scene. Included by one file of a program. */
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

/* Of device 1. */
static inline void drain(struct scene *scene, bool is_on)
{
	(void)scene_step(scene, (struct core_event){.type = EV_DRAIN,
						    .drain = {.device = 1, .is_on = is_on}});
}

static inline void unload(struct scene *scene, uint64_t client, uint32_t inode)
{
	const uint64_t model = scene_model(scene, inode);

	(void)scene_step(scene, (struct core_event){.type = EV_UNLOAD,
						    .client = client,
						    .request = ++scene->last_request,
						    .unload = {.models = &model,
							       .n_models = 1,
							       .by_name = true}});
}

#endif
