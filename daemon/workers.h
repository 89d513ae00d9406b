/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Devices that are not the host: a distorchd-worker for each, begun here, begun again when it
 * ends, and what is known of them. A device keeps its index and its struct device for the daemon's
 * life; while it has no worker every call on it is WIRE_DEVICE_LOST. Loop only: what waits for a
 * worker does so on an errand.
 */
#ifndef DAEMON_WORKERS_H
#define DAEMON_WORKERS_H

#include <stdbool.h>
#include <stdint.h>

#include "daemon/device/device.h"

struct config;
struct daemon;
struct err;
struct workers;

enum device_state {
	DEVICE_STATE_OK,
	DEVICE_STATE_STARTING,    /* its first worker, or that after a drain, is not there yet */
	DEVICE_STATE_LOST,        /* its worker ended, and another is begun soon */
	DEVICE_STATE_UNAVAILABLE, /* its worker cannot open it; tried again now and then */
};

/* What is known of one of the core's devices, by its index there. */
struct known_device {
	char name[DEVICE_NAME_SIZE]; /* "cpu", "sim:0", "cuda:1" */
	struct device *device;       /* owner: daemon; of the host daemon::host */
	struct device_info info;     /* as last told; before that all 0 */
	enum device_state state;
	char reason[160];          /* why it is not ok; "" */
	uint32_t pid;              /* of its worker; 0: none */
	uint64_t n_lost;           /* how often its worker ended while it was ok */
	uint64_t configured_bytes; /* its budget by the configuration */
	bool has_wanted; /* an administrator said its budget, instead of the configuration */
	uint64_t wanted_bytes;
	uint64_t foreign_before;  /* the least that others had since anything is reserved there */
	uint64_t strangers_bytes; /* that others have, less what they took of what is reserved */
};

/* How many devices the core has to have room for, the host with them. */
uint32_t workers_max_devices(const struct config *config);

/*
 * Begin them, and give those that are quick the time to be there: a client of the first moment
 * finds them. A device that cannot be had is a state, not a failure.
 */
int workers_start(struct daemon *daemon, struct err *err);

/* End the workers; their devices are lost from then on. Before the errands are stopped. */
void workers_stop(struct daemon *daemon);
/* After the loop, the loader and the store are gone. */
void workers_free(struct daemon *daemon);

/* Set by an administrator: as far as others leave room for it. Not of the host. */
void workers_set_budget(struct daemon *daemon, uint32_t device, uint64_t bytes);
/* The configuration was read again. */
void workers_apply_config(struct daemon *daemon);

/* The worker of a draining device that holds nothing ends, so that the driver can be replaced, and
 * none is begun for it until it takes loads again. After a change of either. */
void workers_apply_drain(struct daemon *daemon);
/* After a step: with it the last may have ended that a draining device had to hold. */
void workers_notice_step(struct daemon *daemon);

/*
 * Has the machine slept since this was last asked? Unless NVIDIA's driver keeps what lies on cards
 * over that, all of it is lost. Before anything of a card is served.
 */
void workers_notice_sleep(struct daemon *daemon);

/* Look at the device in the next turn of the loop, and not only when that is due. */
void workers_look_now(struct daemon *daemon, uint32_t device);

/* The device that has this UUID, if it has been there in this life. Not the host. */
bool workers_find(const struct daemon *daemon, const char *uuid, uint32_t *ret_device);

/* "ok", "starting", "lost", "unavailable" */
const char *device_state_name(enum device_state state);

/* Why there are no cards, or "" where there are or none are wanted. For doctor. */
const char *workers_no_cards(const struct daemon *daemon);

#endif
