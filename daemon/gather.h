/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Loads and attaches of models of several files: their descriptors come in one packet or, by
 * load.part, in several. What has come waits here, bounded in number for each connection and in
 * descriptors for each uid, until all is there, something is wrong, the connection ends, or
 * nothing has come for a while. Loop only.
 */
#ifndef DAEMON_GATHER_H
#define DAEMON_GATHER_H

#include <stdbool.h>
#include <stdint.h>

#include "proto/gen/wire_gen.h"

struct call;
struct client;
struct daemon;
struct load_wish;

void gather_init(struct daemon *daemon);

/* Requests with 'shards'. */
void gather_load(const struct call *call, const struct wire_load_request *request,
		 const struct load_wish *wish);
void gather_attach(const struct call *call, const struct wire_attach_request *request);
void gather_part(const struct call *call, const struct wire_load_part_request *request);

/* End one that waits, answering it with cancelled. False: there is none of this id. */
bool gather_cancel(const struct call *call, uint32_t request);
/* The placements that those who wait have named. */
void gather_use_placements(const struct client *client, void (*use)(void *context, uint64_t id),
			   void *context);
/* The connection is gone: nothing more will come. */
void gather_forget(struct client *client);

#endif
