/* SPDX-License-Identifier: Apache-2.0 */
/* The core's answers and news into messages: answer.c, news.c. Loop only. */
#ifndef DAEMON_ANSWER_H
#define DAEMON_ANSWER_H

#include <stdint.h>

#include "daemon/core/action.h"
#include "daemon/describe.h"

#define ANSWER_MAX_WENT   64
#define ANSWER_ANY_DEVICE UINT32_MAX

struct client;
struct core_action;
struct daemon;
struct pending;

void answer_reply(struct daemon *daemon, const struct core_action *action);
void answer_unload_item(struct daemon *daemon, const struct core_action *action);
void answer_progress(struct daemon *daemon, const struct core_action *action);
/* An unload that waited for the holders of leases: its lines say how it went. */
void answer_recalled(struct daemon *daemon, struct client *client, struct pending *pending);
void answer_recall(struct daemon *daemon, const struct core_action *action);
void answer_lost(struct daemon *daemon, const struct core_action *action);
void answer_note(struct daemon *daemon, const struct core_action *action);
/* Tell those who began the load without waiting for it. */
void answer_load_ended(struct daemon *daemon, const struct core_action *action);
void answer_follow(struct daemon *daemon, const struct core_action *action);
/* What was evicted, as far as an answer tells it. */
struct answer_went {
	uint32_t n_outcomes;
	struct wire_outcome outcomes[ANSWER_MAX_WENT];
	struct record_description texts[ANSWER_MAX_WENT];
};
/* Since the history had 'cursor' records, for this reason, from one device or ANSWER_ANY_DEVICE. */
void answer_find_went(const struct daemon *daemon, const struct client *viewer, uint64_t cursor,
		      enum core_why why, uint32_t device, struct answer_went *ret);
/* Memory is short: tell who subscribed. */
void answer_pressure(struct daemon *daemon, const char *device, uint64_t free_bytes,
		     uint64_t wanted_bytes);
/* A device has another state: likewise, with the next step. */
void answer_device(struct daemon *daemon, uint32_t device);

#endif
