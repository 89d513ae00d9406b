/* SPDX-License-Identifier: Apache-2.0 */
/* See reference.h. Slow and plain on purpose. */
#include "tests/core/reference.h"

#include <string.h>

#include "proto/gen/wire_code.h"

#define EACH(array, item) \
	for (__typeof__(&(array)[0]) item = (array); item < (array) + sizeof(array) / sizeof((array)[0]); item++)

void reference_init(struct reference *reference, const struct core *core,
		    const struct core_config *config)
{
	memset(reference, 0, sizeof *reference);
	reference->core = core;
	reference->config = *config;
}

/* ---- looking things up ---- */

static struct reference_model *find_model(struct reference *r, uint64_t id)
{
	EACH (r->models, model) {
		if (id != 0 && model->id == id) {
			return model;
		}
	}
	return NULL;
}

static struct reference_wish *find_wish(struct reference *r, uint64_t model, uint32_t uid)
{
	EACH (r->wishes, wish) {
		if (model != 0 && wish->model == model && wish->uid == uid) {
			return wish;
		}
	}
	return NULL;
}

static struct reference_client *find_client(struct reference *r, uint64_t id)
{
	EACH (r->clients, client) {
		if (id != 0 && client->id == id) {
			return client;
		}
	}
	return NULL;
}

static struct reference_lease *find_lease(struct reference *r, uint64_t id)
{
	EACH (r->leases, lease) {
		if (id != 0 && lease->id == id) {
			return lease;
		}
	}
	return NULL;
}

static struct reference_copy *find_copy(struct reference *r, uint64_t segment)
{
	EACH (r->copies, copy) {
		if (segment != 0 && copy->segment == segment) {
			return copy;
		}
	}
	return NULL;
}

static struct reference_job *find_job(struct reference *r, uint64_t id)
{
	for (uint32_t i = 0; i < r->n_jobs; i++) {
		if (r->jobs[i].id == id) {
			return &r->jobs[i];
		}
	}
	return NULL;
}

static bool has_job(const struct reference *r, uint64_t model)
{
	for (uint32_t i = 0; i < r->n_jobs; i++) {
		if (r->jobs[i].model == model) {
			return true;
		}
	}
	return false;
}

static uint32_t count_leases(const struct reference *r, uint64_t model, uint64_t generation,
			     bool live, bool mapped)
{
	uint32_t n_leases = 0;

	EACH (r->leases, lease) {
		if (lease->id != 0 && lease->model == model &&
		    (generation == 0 || lease->generation == generation) &&
		    (!live || !lease->is_ghost) && (!mapped || lease->is_mapped)) {
			n_leases++;
		}
	}
	return n_leases;
}

static uint32_t count_wishes(const struct reference *r)
{
	uint32_t n_wishes = 0;

	EACH (r->wishes, wish) {
		n_wishes += wish->model != 0 ? 1 : 0;
	}
	return n_wishes;
}

static bool is_wished(const struct reference *r, uint64_t model, bool pin)
{
	EACH (r->wishes, wish) {
		if (wish->model == model && model != 0 &&
		    (pin ? wish->pin && wish->pin_until_ns > r->now_ns
			 : wish->keep && wish->keep_until_ns > r->now_ns)) {
			return true;
		}
	}
	return false;
}

static bool is_resident(const struct reference *r, const struct reference_model *model)
{
	uint32_t n_good = 0;

	EACH (r->copies, copy) {
		if (copy->segment != 0 && copy->model == model->id &&
		    copy->generation == model->generation && copy->state == SEGMENT_READY &&
		    !copy->is_bad) {
			n_good++;
		}
	}
	return model->generation != 0 && n_good == model->n_copies && n_good > 0;
}

static bool has_copies(const struct reference *r, uint64_t model)
{
	EACH (r->copies, copy) {
		if (copy->segment != 0 && copy->model == model) {
			return true;
		}
	}
	return false;
}

static uint64_t charged(const struct reference *r, uint32_t device)
{
	uint64_t bytes = 0;

	EACH (r->copies, copy) {
		bytes += copy->segment != 0 && copy->device == device ? copy->bytes : 0;
	}
	return bytes;
}

static bool may(struct reference *r, uint64_t client_id, uint64_t model)
{
	const struct reference_client *client = find_client(r, client_id);

	return client != NULL &&
	       (client->is_admin || find_wish(r, model, client->uid) != NULL);
}

/* ---- what an event does by itself ---- */

static uint64_t until(const struct reference *r, uint64_t for_ns)
{
	return for_ns == 0 || for_ns > UINT64_MAX - r->now_ns ? UINT64_MAX : r->now_ns + for_ns;
}

static void apply(const struct reference *r, struct reference_wish *wish,
		  const struct core_policy *policy)
{
	if ((policy->said & CORE_SAID_PIN) != 0) {
		wish->pin = policy->pin;
		wish->pin_until_ns = until(r, policy->for_ns);
	}
	if ((policy->said & CORE_SAID_KEEP) != 0) {
		wish->keep = policy->keep;
		wish->keep_until_ns = until(r, policy->for_ns);
	}
	if ((policy->said & CORE_SAID_TTL) != 0) {
		wish->ttl_ns = policy->ttl_ns;
	}
	if ((policy->said & CORE_SAID_PRIORITY) != 0) {
		wish->priority = policy->priority;
	}
}

/* The uid's right, and what it says. False: there is no place for it. */
static bool grant(struct reference *r, uint64_t model, uint32_t uid,
		  const struct core_policy *policy)
{
	struct reference_wish *wish = find_wish(r, model, uid);

	if (model == 0) {
		return false;
	}
	if (wish == NULL && count_wishes(r) < r->config.max_wishes) {
		EACH (r->wishes, free_one) {
			if (free_one->model == 0) {
				*free_one = (struct reference_wish){.model = model, .uid = uid};
				wish = free_one;
				break;
			}
		}
	}
	if (wish != NULL && policy != NULL) {
		apply(r, wish, policy);
	}
	return wish != NULL;
}

static bool is_same_content(const struct core_file_key *a, const struct core_file_key *b)
{
	return a->size == b->size && a->mtime_ns == b->mtime_ns;
}

static int expect_attach(struct reference *r, const struct core_event *event)
{
	bool by_file = event->attach.file != 0;
	uint64_t id = by_file ? core_model_find(r->core, r->key.dev, r->key.ino)
			      : event->attach.model;
	const struct reference_model *model = find_model(r, id);
	uint32_t uid = find_client(r, event->client)->uid;

	if (r->is_shut) {
		return WIRE_SHUTTING_DOWN;
	}
	if (model == NULL || (!by_file && !may(r, event->client, id))) {
		return by_file ? WIRE_NOT_RESIDENT : WIRE_NOT_FOUND;
	}
	if (!is_resident(r, model)) {
		return WIRE_NOT_RESIDENT;
	}
	if (by_file && !grant(r, id, uid, NULL)) {
		return WIRE_TOO_MANY;
	}
	if (by_file && !is_same_content(&r->key, &model->key)) {
		return WIRE_STALE;
	}
	if (by_file && r->key.ctime_ns != model->key.ctime_ns) {
		return -1; /* its bytes are looked at first */
	}
	EACH (r->leases, lease) {
		if (lease->id == 0 && lease < r->leases + r->config.max_leases) {
			return 0;
		}
	}
	return WIRE_TOO_MANY;
}

static int expect_lease(struct reference *r, const struct core_event *event)
{
	struct reference_lease *lease = find_lease(r, event->lease.lease);

	if (lease == NULL || lease->client != event->client || lease->is_ghost) {
		return event->type == EV_MAPPED ? -1 : WIRE_NOT_FOUND;
	}
	if (event->type == EV_DETACH) {
		lease->id = 0;
	} else {
		lease->is_mapped = event->type == EV_MAPPED;
	}
	return 0;
}

static void close_client(struct reference *r, const struct core_event *event)
{
	struct reference_client *client = find_client(r, event->client);

	if (client == NULL) {
		return;
	}
	client->is_process_gone |= event->type == EV_PROCESS_GONE;
	client->is_connected &= event->type != EV_CLIENT_CLOSED;
	EACH (r->leases, lease) {
		if (lease->id == 0 || lease->client != client->id || client->is_connected) {
			continue;
		}
		if (client->is_process_gone || !lease->is_mapped) {
			lease->id = 0;
		} else {
			lease->is_ghost = true;
		}
	}
}

static void withdraw(struct reference *r, const struct core_event *event)
{
	const struct core_policy nothing = {.said = CORE_SAID_PIN | CORE_SAID_KEEP |
						    CORE_SAID_TTL | CORE_SAID_PRIORITY};
	const struct reference_client *client = find_client(r, event->client);

	for (uint32_t i = 0; event->unload.by_name && i < event->unload.n_models; i++) {
		uint64_t model = event->unload.models[i];

		if (!may(r, event->client, model) ||
		    (event->unload.mine && find_wish(r, model, client->uid) == NULL)) {
			continue;
		}
		EACH (r->wishes, wish) {
			if (wish->model == model && (client->is_admin || wish->uid == client->uid)) {
				apply(r, wish, &nothing);
			}
		}
	}
}

static void take_header(struct reference *r, const struct core_event *event)
{
	struct reference_job *job = find_job(r, event->header.job);

	if (job == NULL || event->header.code != 0) {
		return;
	}
	job->key = *event->header.key;
	job->n_needs = event->header.n_needs;
	memset(job->need, 0, sizeof job->need);
	for (uint32_t i = 0; i < job->n_needs; i++) {
		job->need[event->header.needs[i].device] += event->header.needs[i].bytes;
	}
	job->is_waiting = true;
}

static void take_result(struct reference *r, const struct core_event *event)
{
	struct reference_copy *copy = find_copy(r, event->filled.segment);

	if (event->type == EV_FILLED && copy != NULL && copy->state == SEGMENT_FILLING &&
	    event->filled.code == 0) {
		copy->state = SEGMENT_READY;
	}
	copy = find_copy(r, event->dropped.segment);
	if (event->type == EV_DROPPED && copy != NULL && copy->state == SEGMENT_DROPPING) {
		copy->state = SEGMENT_HELD; /* freed below when nobody maps it */
	}
	copy = find_copy(r, event->verified.segment);
	if (event->type == EV_VERIFIED && copy != NULL) {
		copy->is_verifying = false;
		copy->is_bad |= event->verified.code == 0 && !event->verified.is_equal;
	}
}

static void take_device(struct reference *r, const struct core_event *event)
{
	if (event->type == EV_BUDGET) {
		r->budget[event->budget.device] = event->budget.bytes;
		return;
	}
	r->is_lost[event->device.device] = true;
	EACH (r->copies, copy) {
		if (copy->device == event->device.device) {
			copy->segment = 0;
		}
	}
}

static const char *before_request(struct reference *r, const struct core_event *event)
{
	const struct reference_client *client = find_client(r, event->client);
	uint64_t id;

	if (client == NULL || !client->is_connected) {
		return NULL;
	}
	switch ((int)event->type) {
	case EV_LOAD:
		r->key = *event->load.key;
		r->policy = *event->load.policy;
		r->expected = r->is_shut ? WIRE_SHUTTING_DOWN : -1;
		id = core_model_find(r->core, r->key.dev, r->key.ino);
		if (!r->is_shut && id != 0 && find_wish(r, id, client->uid) != NULL) {
			(void)grant(r, id, client->uid, &r->policy);
		}
		break;
	case EV_ATTACH:
		if (event->attach.file != 0) {
			r->key = *event->attach.key;
		}
		r->expected = expect_attach(r, event);
		break;
	case EV_SET:
		r->expected = !may(r, event->client, event->set.model) ||
					      find_model(r, event->set.model) == NULL
				      ? WIRE_NOT_FOUND
			      : grant(r, event->set.model, client->uid, event->set.policy)
				      ? 0
				      : WIRE_TOO_MANY;
		break;
	case EV_UNLOAD:
		withdraw(r, event);
		r->expected = 0;
		break;
	case EV_MAPPED:
	case EV_UNMAPPED:
	case EV_DETACH:
		r->expected = expect_lease(r, event);
		break;
	default:
		break;
	}
	return NULL;
}

const char *reference_before(struct reference *r, const struct core_event *event)
{
	r->event = *event;
	r->expected = -1;
	r->evicted_for = r->refused = 0;
	r->now_ns = event->now_ns > r->now_ns ? event->now_ns : r->now_ns;
	switch ((int)event->type) {
	case EV_CLIENT_CLOSED:
	case EV_PROCESS_GONE:
		close_client(r, event);
		break;
	case EV_HEADER_READ:
		take_header(r, event);
		break;
	case EV_FILLED:
	case EV_DROPPED:
	case EV_VERIFIED:
		take_result(r, event);
		break;
	case EV_BUDGET:
	case EV_DEVICE_LOST:
		take_device(r, event);
		break;
	case EV_SHUTDOWN:
		r->is_shut = true;
		break;
	default:
		return before_request(r, event);
	}
	return NULL;
}
