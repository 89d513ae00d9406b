/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How a model lay over devices, as a life parks it for the next one (daemon/persist.h): what was
 * said of it, and which devices were meant, by their UUIDs: names and numbers change. A sealed
 * memfd with one record and its sum. What is read is hostile input. Any thread.
 */
#ifndef DAEMON_PLACED_RECORD_H
#define DAEMON_PLACED_RECORD_H

#include <stdbool.h>
#include <stdint.h>

#include "daemon/core/core.h"
#include "daemon/device/device.h"
#include "daemon/plan/plan.h"

struct err;

#define PLACED_DONOR_SIZE 65

struct placed_device {
	char uuid[DEVICE_UUID_SIZE];
	char name[DEVICE_NAME_SIZE]; /* as who placed it calls it; empty: he does not see it */
	uint32_t is_used;            /* something lay there */
	uint32_t reserved;
};

/* Texts end with a zero, and behind it there are only zeros. */
struct placed_record {
	char magic[8];
	uint32_t layout, record_bytes;
	uint64_t sum; /* of what follows */
	uint8_t uuid[16];
	uint64_t generation;
	uint64_t virtual_vram;
	uint32_t strategy; /* enum plan_strategy */
	uint32_t by_tensor, has_names;
	uint32_t n_donors, n_devices;
	uint32_t placed_uid;
	char allocation[PLAN_MAX_TEXT + 8];
	char compute[72];
	char donors[PLAN_MAX_DONORS][72];
	struct placed_device devices[CORE_MAX_DEVICES]; /* the host is none of them */
};

_Static_assert(sizeof(struct placed_device) == 136, "layout");
_Static_assert(sizeof(struct placed_record) == 4512, "layout");

/* '*ret_fd': a sealed memfd, the caller's. Magic, layout and sum are filled in. */
int placed_record_write(const struct placed_record *record, int *ret_fd, struct err *err);

/* -WIRE_BAD_FILE when it is not one, or of another layout. 'fd' stays the caller's. */
int placed_record_read(int fd, struct placed_record *ret, struct err *err);

#endif
