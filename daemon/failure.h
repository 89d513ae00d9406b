/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A refusal as people read it: the thing and the number, and what to do about it. Carries
 * the memory that its wire struct borrows. Loop only.
 */
#ifndef DAEMON_FAILURE_H
#define DAEMON_FAILURE_H

#include <stddef.h>
#include <stdint.h>

#include "daemon/core/action.h"
#include "daemon/describe_use.h"
#include "daemon/store.h"
#include "proto/gen/wire_gen.h"

struct client;
struct core_segment_view;
struct daemon;
struct err;
struct job_info;
struct plan_shortage;

#define FAILURE_MAX_CANDIDATES 4

struct failure {
	struct wire_error wire;
	char message[1024];
	char hint[640];
	char device[16];
	char field[96];
	struct device_use use; /* whose holders the detail lists */
	uint64_t uids[DESCRIBE_MAX_IN_USE];
	struct wire_str candidates[FAILURE_MAX_CANDIDATES];
	char candidate_texts[FAILURE_MAX_CANDIDATES][256];
};

/* Text that grows only by whole parts: no name is cut in the middle. */
struct sentence {
	char *text;
	size_t size, capacity;
};

void sentence_add(struct sentence *sentence, const char *format, ...)
	__attribute__((format(printf, 2, 3)));

/* A code with a message of its own; no hint yet. */
void failure_set(struct failure *failure, enum wire_code code, const char *format, ...)
	__attribute__((format(printf, 3, 4)));
void failure_set_hint(struct failure *failure, const char *format, ...)
	__attribute__((format(printf, 2, 3)));
void failure_set_field(struct failure *failure, const char *field);

/* What load, show and verify say of a model that has no bytes. */
void failure_set_not_resident(struct failure *failure, const struct daemon *daemon, uint64_t model);

/* What a room reported. 'name' of the model is put before the text where it is not empty. */
void failure_from_err(struct failure *failure, const char *name, const struct err *err);

/* The core has no room: 'action' names the device, and the model or none. For one who asked. */
void failure_no_memory(struct failure *failure, const struct daemon *daemon,
		       const struct client *viewer, const struct core_action *action,
		       const struct core_shortage *shortage);
/* The planner has no room: 'err' with who has it, and their numbers. For one who asked. */
void failure_from_plan(struct failure *failure, const struct daemon *daemon,
		       const struct client *viewer, const char *name, const struct err *err,
		       const struct plan_shortage *plan);
/* What a job kept of its failure; as the planner's where that has refused it. */
void failure_from_job(struct failure *failure, const struct daemon *daemon,
		      const struct client *viewer, const char *name, const struct job_info *job);

/* Does the load need the device? Where that is not known, it may. */
bool failure_may_need(const struct job_info *job, uint32_t device);

/* The draining ones of the devices that the load needs, as bits; of no load: 'job' NULL. */
uint32_t failure_find_drained(const struct daemon *daemon, const struct job_info *job);
void failure_set_draining(struct failure *failure, const struct daemon *daemon, uint32_t devices);
/* Likewise, and returns 'buffer'. */
const char *failure_draining_text(const struct daemon *daemon, const struct job_info *job,
				  char *buffer, uint32_t buffer_size);

/* A verification found the copy's bytes to differ, in that file: where, and who has them. */
void failure_difference_text(const struct daemon *daemon, const struct generation_info *info,
			     const struct core_segment_view *copy, uint32_t shard, char *buffer,
			     size_t buffer_size);

/* What the core decided: 'action' is an ACT_REPLY or ACT_LOAD_ENDED with a code. */
void failure_from_reply(struct failure *failure, const struct daemon *daemon,
			const struct core_action *action);

/* A load that the core refused for want of memory, as its ACT_NOTE tells: the numbers are what can
 * be seen afterwards, for everybody who may see the model. Returns 'buffer'. */
const char *failure_refusal_text(const struct daemon *daemon, const struct core_action *action,
				 char *buffer, uint32_t buffer_size);

#endif
