/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What those who wait for a job are told while it lasts: what it waits for, once a step has left it
 * waiting, and how far it has come.
 */
#include "daemon/core/state.h"

/* What the job waits for; READING: for nothing that is told here. */
static enum core_phase phase_of(const struct job *job)
{
	switch ((int)job->state) {
	case JOB_QUEUED:
		return CORE_PHASE_QUEUED;
	case JOB_HEADER:
		return CORE_PHASE_HEADER;
	case JOB_ROOM:
		return CORE_PHASE_ROOM;
	default:
		return CORE_PHASE_READING;
	}
}

/* 0 before its header says. */
static uint64_t total_of(const struct job *job)
{
	return job->state == JOB_QUEUED || job->state == JOB_HEADER ? 0
	       : job->is_tabled                                     ? job->moved
								    : job->key.size;
}

static void tell(struct core *core, const struct job *job, struct waiter *waiter,
		 enum core_phase phase)
{
	struct core_action *action = core_act(core, ACT_PROGRESS);

	waiter->told = phase;
	action->client = idtab_id(&core->clients, waiter->client);
	action->request = waiter->request;
	action->model = idtab_id(&core->models, job->model);
	action->progress.bytes = job->progress;
	action->progress.total = total_of(job);
	action->progress.phase = phase;
}

void progress_touch(struct core *core, struct job *job)
{
	if (list_is_empty(&job->to_tell)) {
		list_append(&core->to_tell, &job->to_tell);
	}
}

bool progress_is_told(const struct job *job, const struct waiter *waiter)
{
	const enum core_phase phase = phase_of(job);

	return phase == CORE_PHASE_READING || waiter->told == phase;
}

void progress_settle(struct core *core)
{
	LIST_FOR_EACH_SAFE (link, &core->to_tell) {
		struct job *job = OF(link, struct job, to_tell);

		list_remove(&job->to_tell);
		LIST_FOR_EACH (waiting, &job->waiters) {
			struct waiter *waiter = OF(waiting, struct waiter, by_owner);

			if (!progress_is_told(job, waiter)) {
				tell(core, job, waiter, phase_of(job));
			}
		}
	}
}

void progress_on_fill(struct core *core, const struct core_event *event)
{
	struct job *job = job_of(core, event->progress.job);
	const enum core_phase phase = event->progress.is_stalled ? CORE_PHASE_STALLED
				      : job != NULL && job->kind == JOB_RECHECK
					      ? CORE_PHASE_CHECKING
					      : CORE_PHASE_READING;
	uint64_t total;

	if (job == NULL || job->model == NULL || phase_of(job) != CORE_PHASE_READING) {
		return; /* it is not filled now */
	}
	total = total_of(job);
	job->progress = event->progress.bytes < total ? event->progress.bytes : total;
	LIST_FOR_EACH (link, &job->waiters) {
		tell(core, job, OF(link, struct waiter, by_owner), phase);
	}
}
