/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Gives memory back before the kernel has to kill: the kernel tells by a trigger of
 * /proc/pressure/memory when tasks wait for memory (nothing is polled), a measurement says how
 * much is free, and what nobody uses or pins goes until the reserve is free again, and a little
 * more, so that it does not begin anew at once. Loop only.
 */
#ifndef DAEMON_PRESSURE_H
#define DAEMON_PRESSURE_H

#include <stdint.h>

struct daemon;
struct pressure;

/* Watch, where the configuration wants it. Without the trigger a slow timer looks while there is
 * something to give back. NULL: nothing is watched. */
struct pressure *pressure_start(struct daemon *daemon);
void pressure_stop(struct pressure *pressure); /* frees itself on the loop; NULL is fine */

/* The kernel says so, or a test. */
void pressure_felt(struct daemon *daemon);
/* The measurement that pressure_felt asked for: bytes available, the reserve included. */
void pressure_measured(struct daemon *daemon, uint64_t available);

#endif
