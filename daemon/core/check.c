/* SPDX-License-Identifier: Apache-2.0 */
/* The invariants that can be seen from inside; see docs/memory-model.md. */
#include <string.h>

#include "daemon/core/state.h"

/* I4: each copy's bytes are in exactly the bucket of its state. */
static const char *check_buckets(const struct core *core)
{
	uint64_t sums[CORE_MAX_DEVICES][SEGMENT_N_STATES] = {{0}};
	uint64_t kept[CORE_MAX_DEVICES][SUM_N_VALUES] = {{0}};
	const struct segment *segment;
	uint32_t cursor = 0;

	while ((segment = idtab_next(&core->segments, &cursor)) != NULL) {
		sums[segment->device][segment->state] += segment->bytes;
		kept[segment->device][segment->sum] += segment->bytes;
	}
	for (uint32_t device = 0; device < core->config.n_devices; device++) {
		for (int state = 0; state < SEGMENT_N_STATES; state++) {
			if (sums[device][state] != core->accounts[device].bucket[state]) {
				return "I4 bytes are in the bucket of their state";
			}
		}
		if (memcmp(kept[device] + 1, core->accounts[device].sums + 1,
			   (SUM_N_VALUES - 1) * sizeof kept[device][0]) != 0) {
			return "the sums of what may go are those of the copies";
		}
	}
	return NULL;
}

/* What a user has taken is what its models' copies are charged, those apart that go, and what it
 * has reserved. */
static const char *check_taken(const struct core *core)
{
	const struct user *user;
	uint32_t cursor = 0;

	while ((user = idtab_next(&core->users, &cursor)) != NULL) {
		uint64_t taken[CORE_MAX_DEVICES] = {0};
		const struct reservation *reservation;
		const struct segment *segment;
		uint32_t at = 0;

		while ((reservation = idtab_next(&core->reservations, &at)) != NULL) {
			taken[reservation->device] += reservation->client->user == user &&
								      reservation->is_granted
							      ? reservation->bytes
							      : 0;
		}
		at = 0;
		while ((segment = idtab_next(&core->segments, &at)) != NULL) {
			taken[segment->device] += segment->model->owner == user &&
								  segment->state !=
									  SEGMENT_DROPPING &&
								  segment->state != SEGMENT_PLANNED
							  ? segment->bytes
							  : 0;
			if (segment->is_above) {
				return "who is above the share is looked at when somebody has to go";
			}
		}
		if (memcmp(taken, user->taken, sizeof taken) != 0) {
			return "a user has taken what its copies are charged and it has reserved";
		}
	}
	return NULL;
}

/* The last generation that it is of by now: of those published, or the one it is made for. */
static uint64_t last_of(const struct segment *segment)
{
	uint64_t published = segment->model->generation;

	return segment->last != NEVER            ? segment->last
	       : segment->generation > published ? segment->generation
						 : published;
}

/* Not one on its way out, of a generation perhaps that was never published. */
static bool is_wanted(const struct core *core, const struct segment *segment)
{
	const struct job *job = job_of(core, segment->job);

	return segment->state == SEGMENT_READY || segment->state == SEGMENT_HELD ||
	       (segment->state != SEGMENT_DROPPING && job != NULL && job->model != NULL);
}

static const char *check_segment(const struct core *core, const struct segment *segment)
{
	bool is_filling = segment->state == SEGMENT_RESERVED || segment->state == SEGMENT_FILLING;
	const struct job *job = job_of(core, segment->job);

	if (is_filling && (job == NULL || job->n_outstanding == 0)) {
		return "I7 a copy is filled by a job";
	}
	if (segment->state == SEGMENT_PLANNED && (job == NULL || job->state != JOB_ROOM)) {
		return "I7 what is planned waits for room";
	}
	if (segment->is_retained &&
	    (segment->state != SEGMENT_READY || job == NULL || job->model != segment->model ||
	     segment->last != NEVER || segment->generation >= job->generation || segment->is_bad)) {
		return "I7 a job takes over what is there, is good and of the generation before";
	}
	if (segment->state == SEGMENT_READY && segment->job != 0 &&
	    (job == NULL || job->model != segment->model)) {
		return "I7 who counts on a copy is its model's job";
	}
	if (segment->last < segment->generation) {
		return "I6 generations only grow";
	}
	if (segment->state == SEGMENT_HELD && !segment_is_held(segment)) {
		return "I4 held bytes have a holder";
	}
	if (segment->generation > segment->model->last_generation) {
		return "I6 generations only grow";
	}
	if (segment->sum != segment_sum_of(core, segment)) {
		return "what may go is known after every step";
	}
	LIST_FOR_EACH (link, &segment->model->segments) {
		const struct segment *other = OF(link, struct segment, by_model);

		if (other != segment && other->is_remnant == segment->is_remnant &&
		    other->index == segment->index && other->is_block == segment->is_block &&
		    other->device == segment->device && other->generation <= last_of(segment) &&
		    segment->generation <= last_of(other) && is_wanted(core, other) &&
		    is_wanted(core, segment)) {
			return "I13 one copy a device, counted once";
		}
	}
	return NULL;
}

/* A holder counts what its leases are. */
static const char *check_holder(const struct holder *holder)
{
	uint32_t n_leases = 0;
	uint32_t n_live = 0;
	uint32_t n_mapped = 0;

	LIST_FOR_EACH (link, &holder->model->leases) {
		const struct lease *lease = OF(link, struct lease, by_model);

		if (lease->client == holder->client && lease->generation == holder->generation) {
			n_leases += lease->holder == holder ? 1 : 0;
			n_live += lease->is_ghost ? 0 : 1;
			n_mapped += lease->is_mapped ? 1 : 0;
		}
	}
	return n_leases > 0 && n_leases == holder->n_leases && n_live == holder->n_live &&
			       n_mapped == holder->n_mapped
		       ? NULL
		       : "I14 a holder counts its leases";
}

/* Its sums, and that nothing of it is left to be counted. */
static bool is_counted(const struct model *model)
{
	uint64_t sums[CORE_MAX_DEVICES][SUM_N_VALUES] = {{0}};
	uint32_t counts[COUNT_N_VALUES] = {0};
	uint64_t dropping = 0;

	LIST_FOR_EACH (link, &model->segments) {
		const struct segment *segment = OF(link, struct segment, by_model);

		dropping += segment->state == SEGMENT_DROPPING ? segment->bytes : 0;
		sums[segment->device][segment->sum] += segment->bytes;
		for (int i = 0; i < COUNT_N_VALUES; i++) {
			counts[i] += segment_counts(segment) >> i & 1;
		}
	}
	for (uint32_t device = 0; device < CORE_MAX_DEVICES; device++) {
		if (memcmp(sums[device] + 1, model->sums[device] + 1,
			   (SUM_N_VALUES - 1) * sizeof sums[0][0]) != 0) {
			return false;
		}
	}
	return dropping == model->dropping && model->is_counted && list_is_empty(&model->touched) &&
	       memcmp(counts, model->counts, sizeof counts) == 0;
}

static const char *check_model(const struct core *core, const struct model *model)
{
	uint32_t n_live = 0;
	uint32_t n_counted = 0;

	if (!is_counted(model)) {
		return "what a model has is counted after every step";
	}
	if (model->expiry.at_ns != evict_expiry(core, model)) {
		return "when a model's time runs out is known after every step";
	}
	if (model->comes_back != place_comes_back(model)) {
		return "whether a model comes back is known after every step";
	}
	if (model->retry.at_ns != reserve_retry_at(model)) {
		return "when a model's return is tried again is known after every step";
	}
	if (model->linger.at_ns != place_linger(core, model)) {
		return "when a model's blocks leave is known after every step";
	}
	LIST_FOR_EACH (link, &model->holders) {
		n_counted += OF(link, struct holder, by_model)->n_leases;
	}

	if (model->generation > model->last_generation) {
		return "I6 generations only grow";
	}
	LIST_FOR_EACH (link, &model->leases) {
		const struct lease *lease = OF(link, struct lease, by_model);

		n_live += lease->is_ghost ? 0 : 1;
		n_counted--;
		if (lease->generation == 0 || lease->generation > model->last_generation) {
			return "I5 a lease names a generation that was published";
		}
		if (lease->is_ghost && (!lease->is_mapped || lease->client->is_connected)) {
			return "I14 a ghost maps something and is not connected";
		}
	}
	if (n_live != model->n_leases || n_counted != 0) {
		return "I5 leases are counted";
	}
	if (model->file == 0 && model->job == NULL && !list_is_empty(&model->segments)) {
		return "I9 bytes have an open source";
	}
	return NULL;
}

/* Who waits for a verification waits for a copy of the published generation. */
static const char *check_verifiers(const struct model *model)
{
	LIST_FOR_EACH (link, &model->segments) {
		const struct segment *segment = OF(link, struct segment, by_model);

		if (segment->is_verifying && segment_is_current(segment)) {
			return NULL;
		}
	}
	return list_is_empty(&model->verifiers) ? NULL : "I8 who waits is answered by something";
}

static const char *check_client(const struct client *client)
{
	if (!client->is_connected && !list_is_empty(&client->waiters)) {
		return "I8 who is gone waits for nothing";
	}
	if (!client->is_connected && list_is_empty(&client->leases)) {
		return "I14 who is gone and holds nothing is forgotten";
	}
	if (client->is_process_gone && !client->is_connected) {
		return "I14 a process that is gone holds nothing";
	}
	return NULL;
}

/* What it needs is what it has planned, and with what it takes over that is all of it. */
static const char *check_plan(const struct core *core, const struct job *job)
{
	uint64_t need[CORE_MAX_DEVICES] = {0};
	uint64_t moved = 0;
	uint32_t takes = 0;
	uint32_t n_copies = 0;

	if (job->model == NULL || job->state < JOB_ROOM || job->state > JOB_TABLE ||
	    job->code != 0) {
		return NULL;
	}
	LIST_FOR_EACH (link, &job->model->segments) {
		const struct segment *segment = OF(link, struct segment, by_model);
		bool is_made = segment->job == idtab_id(&core->job_table, job) &&
			       segment->generation == job->generation;

		n_copies += is_made || segment->is_retained ? 1 : 0;
		moved += is_made ? segment_tensor_bytes(segment) : 0;
		takes |= is_made ? 1U << segment->device : 0;
		need[segment->device] += is_made ? segment->bytes : 0;
	}
	return n_copies == job->n_copies && moved == job->moved && takes == job->takes &&
			       memcmp(need, job->need, sizeof need) == 0 && !job->has_given_way
		       ? NULL
		       : "I7 what a job makes and takes over is its generation";
}

static const char *check_jobs(const struct core *core)
{
	LIST_FOR_EACH (link, &core->jobs) {
		const struct job *job = OF(link, struct job, by_age);

		if (job->model != NULL && job->model->job != job) {
			return "I13 a model has one job";
		}
		if (job->model == NULL && job->n_outstanding == 0) {
			return "I8 a job that is owed nothing has ended";
		}
		if (job->model != NULL && list_is_empty(&job->waiters) && !job->no_wait) {
			return "I8 a job has somebody who waits";
		}
		LIST_FOR_EACH (waiting, &job->waiters) {
			if (!progress_is_told(job, OF(waiting, struct waiter, by_owner))) {
				return "I8 who waits has been told for what";
			}
		}
		if (check_plan(core, job) != NULL) {
			return check_plan(core, job);
		}
	}
	return NULL;
}

/* The counts of the users are those of the tables. */
static const char *check_users(const struct core *core)
{
	const struct user *user;
	const struct client *client;
	const struct model *model;
	uint32_t cursor = 0;
	uint32_t n_clients = 0;
	uint32_t n_models = 0;
	uint32_t n_jobs = 0;
	uint32_t n_queued = 0;
	uint32_t n_leases = 0;
	uint32_t n_leaving = 0;

	while ((user = idtab_next(&core->users, &cursor)) != NULL) {
		n_clients += user->n_clients;
		n_models += user->n_models;
		n_jobs += user->n_queued + user->n_running;
		n_queued += user->n_queued;
		n_leases += user->n_leases;
		n_leaving += user->n_leaving;
	}
	cursor = 0;
	while ((client = idtab_next(&core->clients, &cursor)) != NULL) {
		if (user_find(core, client->uid) != client->user) {
			return "a client is counted in its user";
		}
	}
	cursor = 0;
	while ((model = idtab_next(&core->models, &cursor)) != NULL) {
		if (user_find(core, model->owner_uid) != model->owner) {
			return "a model is counted in its user";
		}
		n_leaving -= model->is_leaving ? 1 : 0;
	}
	LIST_FOR_EACH (link, &core->jobs) {
		const struct job *job = OF(link, struct job, by_age);

		n_queued -= job->state == JOB_QUEUED ? 1 : 0;
		if (job->is_running == (job->state == JOB_QUEUED) ||
		    user_find(core, job->uid) != job->user) {
			return "a job is counted in its user";
		}
	}
	return n_clients == core->clients.n_used && n_leases == core->leases.n_used &&
			       n_models == core->models.n_used &&
			       n_jobs == core->job_table.n_used && n_queued == 0 && n_leaving == 0
		       ? NULL
		       : "users count what they have";
}

const char *core_check(const struct core *core)
{
	const char *broken = check_buckets(core);
	const struct segment *segment;
	const struct model *model;
	const struct client *client;
	const struct holder *holder;
	uint32_t cursor = 0;

	while (broken == NULL && (segment = idtab_next(&core->segments, &cursor)) != NULL) {
		broken = check_segment(core, segment);
	}
	cursor = 0;
	while (broken == NULL && (model = idtab_next(&core->models, &cursor)) != NULL) {
		broken = check_model(core, model);
		broken = broken != NULL ? broken : check_verifiers(model);
	}
	cursor = 0;
	while (broken == NULL && (client = idtab_next(&core->clients, &cursor)) != NULL) {
		broken = check_client(client);
	}
	cursor = 0;
	while (broken == NULL && (holder = idtab_next(&core->holders, &cursor)) != NULL) {
		broken = check_holder(holder);
	}
	broken = broken != NULL ? broken : check_taken(core);
	broken = broken != NULL ? broken : check_jobs(core);
	return broken != NULL ? broken : check_users(core);
}
