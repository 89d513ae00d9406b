/* SPDX-License-Identifier: Apache-2.0 */
/* Where a model lies, or lay before its last move: in words, for history and log. Loop only. */
#ifndef DAEMON_WHERE_H
#define DAEMON_WHERE_H

#include <stdint.h>

#include "daemon/core/core.h"

#define WHERE_SIZE 100 /* where more devices have a part, the first of them */

struct daemon;

/* "sim:0 50% + ram 50%", cards first; empty: nowhere. Returns 'buffer'. */
const char *where_now(const struct daemon *daemon, const struct core_model_view *view,
		      char buffer[WHERE_SIZE]);
/* Likewise of the generation before, while its copies have not gone. */
const char *where_before(const struct daemon *daemon, const struct core_model_view *view,
			 char buffer[WHERE_SIZE]);
/* The device that all of it lies on; CORE_ALL_DEVICES: there are several, or none. */
uint32_t where_device(const struct daemon *daemon, const struct core_model_view *view);

#endif
