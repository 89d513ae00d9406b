/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Whose the bytes of a device are, and what goes on there, as wire structs that borrow from the
 * daemon until its next step. Loop only. 'viewer' may be NULL: somebody who may know of no model.
 */
#ifndef DAEMON_DESCRIBE_USE_H
#define DAEMON_DESCRIBE_USE_H

#include <stdint.h>

#include "proto/gen/wire_gen.h"

struct client;
struct daemon;

#define DESCRIBE_MAX_IN_USE 16

void describe_holder(const struct daemon *daemon, const struct client *viewer, uint64_t id,
		     uint64_t held_bytes, struct wire_holder *ret);

/* Those who lease or still map the model; returns how many were written. */
uint32_t describe_holders(const struct daemon *daemon, const struct client *viewer, uint64_t model,
			  struct wire_holder *holders, uint32_t capacity);

/* What a device's bytes are there for, and whose they are: the largest first. */
struct device_use {
	uint64_t in_use;    /* leased, or mapped by a process; held apart */
	uint64_t pinned;    /* pinned and not in use */
	uint64_t evictable; /* neither, and what is being dropped */
	uint32_t n_holders;
	struct wire_holder holders[DESCRIBE_MAX_IN_USE];
	uint32_t n_reservers;
	struct wire_holder reservers[DESCRIBE_MAX_IN_USE]; /* who has room reserved there */
	uint32_t n_pins;
	struct device_pin {
		uint64_t model; /* 0: of which the viewer may know no more than uid and bytes */
		uint64_t bytes;
		uint32_t uid;
	} pins[DESCRIBE_MAX_IN_USE];
};

/* 'spare' is the model that wants room: what it has already is not counted. 'device' may be
 * CORE_ALL_DEVICES. */
void describe_use(const struct daemon *daemon, const struct client *viewer, uint32_t device,
		  uint64_t spare, struct device_use *ret);

/* What a drain waits for, on one device or CORE_ALL_DEVICES. */
struct work_description {
	struct device_use use; /* its holders and reservers alone count: not those of the host */
	uint64_t n_loads, n_leases;
	uint32_t n_names;
	struct wire_str names[DESCRIBE_MAX_IN_USE]; /* of what is being loaded */
	char texts[DESCRIBE_MAX_IN_USE][512];
};

void describe_work(const struct daemon *daemon, const struct client *viewer, uint32_t device,
		   struct work_description *ret);

#endif
