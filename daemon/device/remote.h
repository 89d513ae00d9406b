/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A device in another process: the contract of device.h over a socket to a distorchd-worker. The
 * device is there before its worker is and after: then every call is WIRE_DEVICE_LOST. Extents
 * belong to the worker that made them and are lost with it, also when the device has a new one;
 * their release works.
 *
 * Everything but charge waits for the worker, up to the limit that remote_attach was given; past
 * it the worker is given up. Whoever started it ends it: the socket to it hangs up then.
 */
#ifndef DEVICE_REMOTE_H
#define DEVICE_REMOTE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "daemon/device/device.h"

struct sim_config;

/* Opens any name, as a device without a worker. To be registered by who uses it. */
extern const struct device_ops remote_device_ops;

struct remote_options {
	const struct sim_config *sims; /* sim:0, sim:1, ... */
	uint32_t n_sims;
	uint64_t limit_ns; /* that a call may take, beside the time that its bytes need */
};

/*
 * Let the worker at the other end of 'socket' open the device, and use it from now on. 'socket'
 * is taken, also on failure. 'ret' (may be NULL) is what the worker says of the device.
 * '*ret_has_ended' (or NULL), on failure: its worker ended, and was not given up.
 */
int remote_attach(struct device *device, int socket, const struct remote_options *options,
		  struct device_info *ret, bool *ret_has_ended, struct err *err);

/*
 * The worker has ended, or has to: calls that wait for it return. Any thread, does not block.
 * 'ret_reason' (or NULL) gets why it was given up; where that was noticed before, another than
 * 'reason'. True: it had ended before, by itself.
 */
bool remote_detach(struct device *device, const char *reason, char *ret_reason, size_t size);

/* Ask a worker that opened no device which ones there are; at most 'max_names'. 'socket' is taken. */
int remote_probe(int socket, char (*names)[DEVICE_NAME_SIZE], uint32_t max_names,
		 const struct remote_options *options, uint32_t *ret_n_names, struct err *err);

#ifdef DISTORCH_TESTING
/* Let something fail in the worker; see worker.h. */
int remote_test(struct device *device, const char *what, struct err *err);
#endif

#endif
