/* SPDX-License-Identifier: Apache-2.0 */
/* See reference.h. Slow and plain on purpose. */
#include "tests/core/reference.h"

#include <string.h>

#include "proto/gen/wire_code.h"

#define EACH(array, item)                            \
	for (__typeof__(&(array)[0]) item = (array); \
	     item < (array) + sizeof(array) / sizeof((array)[0]); item++)

void reference_init(struct reference *reference, const struct core *core,
		    const struct core_config *config)
{
	memset(reference, 0, sizeof *reference);
	reference->core = core;
	reference->config = *config;
	EACH(reference->drained_after, after)
	{
		*after = UINT64_MAX;
	}
}

/* ---- looking things up ---- */

static struct reference_model *find_model(struct reference *r, uint64_t id)
{
	EACH(r->models, model)
	{
		if (id != 0 && model->id == id) {
			return model;
		}
	}
	return NULL;
}

static struct reference_wish *find_wish(struct reference *r, uint64_t model, uint32_t uid)
{
	EACH(r->wishes, wish)
	{
		if (model != 0 && wish->model == model && wish->uid == uid) {
			return wish;
		}
	}
	return NULL;
}

static struct reference_client *find_client(struct reference *r, uint64_t id)
{
	EACH(r->clients, client)
	{
		if (id != 0 && client->id == id) {
			return client;
		}
	}
	return NULL;
}

static struct reference_lease *find_lease(struct reference *r, uint64_t id)
{
	EACH(r->leases, lease)
	{
		if (id != 0 && lease->id == id) {
			return lease;
		}
	}
	return NULL;
}

static struct reference_copy *find_copy(struct reference *r, uint64_t segment)
{
	EACH(r->copies, copy)
	{
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

const struct reference_job *reference_job_of(struct reference *r, uint64_t id)
{
	return find_job(r, id);
}

void reference_open(struct reference *r, uint64_t client, uint32_t uid, bool is_admin)
{
	EACH(r->clients, place)
	{
		if (place->id == 0) {
			*place = (struct reference_client){.id = client,
							   .uid = uid,
							   .is_admin = is_admin,
							   .is_connected = true};
			return;
		}
	}
}

bool reference_may_open(const struct reference *r, uint32_t uid, bool is_admin)
{
	const struct core_config *config = &r->config;
	uint32_t n_clients = 0;
	uint32_t n_of_uid = 0;

	EACH(r->clients, client)
	{
		n_clients += client->id != 0 ? 1 : 0;
		n_of_uid += client->id != 0 && client->uid == uid ? 1 : 0;
	}
	if (is_admin) {
		return n_clients < config->max_clients;
	}
	return n_clients + config->reserved_clients < config->max_clients &&
	       (config->max_clients_per_uid == 0 || n_of_uid < config->max_clients_per_uid);
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

static uint32_t count_leases(const struct reference *r, uint64_t model, bool live)
{
	uint32_t n_leases = 0;

	EACH(r->leases, lease)
	{
		if (lease->id != 0 && lease->model == model && (!live || !lease->is_ghost)) {
			n_leases++;
		}
	}
	return n_leases;
}

/* Is it of this generation? */
static bool is_of(const struct reference_copy *copy, uint64_t generation)
{
	return copy->generation <= generation && generation <= copy->last;
}

/* Its client may have it. */
static bool has_copy(const struct reference_lease *lease, const struct reference_copy *copy)
{
	return lease->id != 0 && lease->model == copy->model && is_of(copy, lease->generation) &&
	       lease->is_remnant == copy->is_remnant && (!copy->is_block || lease->has_blocks);
}

static uint32_t count_leases_of(const struct reference *r, const struct reference_copy *copy,
				bool live, bool mapped)
{
	uint32_t n_leases = 0;

	EACH(r->leases, lease)
	{
		if (has_copy(lease, copy) && (!live || !lease->is_ghost) &&
		    (!mapped || lease->is_mapped)) {
			n_leases++;
		}
	}
	return n_leases;
}

/* It is of the published generation of its model. */
static bool is_current(const struct reference_copy *copy, const struct reference_model *model)
{
	return copy->segment != 0 && copy->model == model->id && copy->last == UINT64_MAX &&
	       copy->generation <= model->generation;
}

/* Serves, and could be of the next generation too. */
static bool is_good(const struct reference_copy *copy, const struct reference_model *model)
{
	return is_current(copy, model) && copy->state == SEGMENT_READY && !copy->is_bad &&
	       !copy->is_stale;
}

static uint32_t count_wishes(const struct reference *r)
{
	uint32_t n_wishes = 0;

	EACH(r->wishes, wish)
	{
		n_wishes += wish->model != 0 ? 1 : 0;
	}
	return n_wishes;
}

static bool is_wished(const struct reference *r, uint64_t model, bool pin)
{
	EACH(r->wishes, wish)
	{
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

	EACH(r->copies, copy)
	{
		n_good += is_good(copy, model) ? 1 : 0;
	}
	return model->generation != 0 && n_good == model->n_copies && n_good > 0;
}

static bool has_copies(const struct reference *r, uint64_t model)
{
	EACH(r->copies, copy)
	{
		if (copy->segment != 0 && copy->model == model) {
			return true;
		}
	}
	return false;
}

static uint32_t n_copies_of(const struct reference *r, uint64_t model)
{
	uint32_t n_copies = 0;

	EACH(r->copies, copy)
	{
		n_copies += copy->segment != 0 && copy->model == model ? 1 : 0;
	}
	return n_copies;
}

static uint64_t reserved(const struct reference *r, uint32_t device)
{
	uint64_t bytes = 0;

	EACH(r->rooms, room)
	{
		bytes += room->client != 0 && room->id != 0 && room->device == device ? room->bytes
										      : 0;
	}
	return bytes;
}

static uint64_t charged(const struct reference *r, uint32_t device)
{
	uint64_t bytes = 0;

	EACH(r->copies, copy)
	{
		bytes += copy->segment != 0 && copy->device == device ? copy->bytes : 0;
	}
	return bytes + reserved(r, device);
}

/* ---- shares ---- */

static uint64_t share_of(const struct reference *r, uint32_t device)
{
	if (r->config.share_milli_pct > 0) {
		return r->budget[device] * r->config.share_milli_pct / 100000;
	}
	return r->config.share_bytes > 0 ? r->config.share_bytes : UINT64_MAX;
}

static uint32_t owner_of(struct reference *r, uint64_t model)
{
	return find_model(r, model) == NULL ? UINT32_MAX : find_model(r, model)->owner;
}

static uint32_t uid_of(const struct reference *r, uint64_t client)
{
	EACH(r->clients, known)
	{
		if (known->id == client) {
			return known->uid;
		}
	}
	return UINT32_MAX;
}

/* Reserved for this uid; with those that wait for it. */
static uint64_t reserved_by(const struct reference *r, uint32_t uid, uint32_t device, bool or_asked)
{
	uint64_t bytes = 0;

	EACH(r->rooms, room)
	{
		bytes += room->client != 0 && (room->id != 0 || or_asked) &&
					 room->device == device && uid_of(r, room->client) == uid
				 ? room->bytes
				 : 0;
	}
	return bytes;
}

/* Charged for models of this uid, and not about to come back, or reserved for it. */
static uint64_t taken(struct reference *r, uint32_t uid, uint32_t device)
{
	uint64_t bytes = 0;

	EACH(r->copies, copy)
	{
		bytes += copy->segment != 0 && copy->device == device &&
					 copy->state != SEGMENT_DROPPING &&
					 owner_of(r, copy->model) == uid
				 ? copy->bytes
				 : 0;
	}
	return bytes + reserved_by(r, uid, device, false);
}

static bool is_unchanged(const struct core_file_key *a, const struct core_file_key *b)
{
	return a->size == b->size && a->mtime_ns == b->mtime_ns && a->ctime_ns == b->ctime_ns;
}

/* The copy that the job need not make; NULL: there is none. */
static struct reference_copy *find_same(struct reference *r, const struct reference_job *job,
					const struct core_need *need)
{
	const struct reference_model *model = find_model(r, job->model);

	EACH(r->copies, copy)
	{
		if (need->is_same && !job->is_doubtful && !job->is_of_file && model != NULL &&
		    is_unchanged(&job->key, &model->key) && is_good(copy, model) &&
		    copy->backing == CORE_BACKING_IMAGE && copy->device == need->device &&
		    copy->index == need->index && copy->is_block == need->is_block) {
			return copy;
		}
	}
	return NULL;
}

static uint64_t need_on(struct reference *r, const struct reference_job *job, uint32_t device)
{
	uint64_t bytes = 0;

	for (uint32_t i = 0; i < job->n_needs && !job->is_free; i++) {
		bytes += job->needs[i].device == device && find_same(r, job, &job->needs[i]) == NULL
				 ? job->needs[i].bytes
				 : 0;
	}
	return bytes;
}

static bool exceeds_share(struct reference *r, const struct reference_job *job)
{
	for (uint32_t device = 0; device < r->config.n_devices; device++) {
		uint64_t need = need_on(r, job, device);

		if (need > 0 &&
		    taken(r, owner_of(r, job->model), device) + need > share_of(r, device)) {
			return true;
		}
	}
	return false;
}

/* Whose turn it may be to let others go first, at this moment of the step. */
static void look_at_shares(struct reference *r, bool is_begin)
{
	for (uint32_t i = 0; i < r->n_jobs; i++) {
		struct reference_job *job = &r->jobs[i];
		bool is_over = job->is_waiting && exceeds_share(r, job);

		job->was_over = (job->was_over && !is_begin) || is_over;
		job->is_over = is_begin ? is_over : job->is_over;
		for (uint32_t k = 0; k < i && job->is_waiting; k++) {
			job->was_over |= r->jobs[k].was_over && r->jobs[k].is_waiting &&
					 owner_of(r, r->jobs[k].model) == owner_of(r, job->model);
		}
		job->is_within = is_begin ? job->is_waiting && !job->was_over : job->is_within;
	}
}

/* Nobody uses or pins it, or has something begun with its model. */
static bool may_go(struct reference *r, const struct reference_copy *copy)
{
	return copy->segment != 0 && copy->state == SEGMENT_READY && copy->bytes > 0 &&
	       !is_wished(r, copy->model, true) && !has_job(r, copy->model) &&
	       count_leases_of(r, copy, true, false) == 0 &&
	       (copy->backing != CORE_BACKING_IMAGE || count_leases_of(r, copy, false, true) == 0);
}

/* Something of a uid above its share that could go: before anything of one that is not. */
static bool is_somebody_above(struct reference *r, uint32_t uid, uint32_t device, uint64_t spare)
{
	EACH(r->copies, copy)
	{
		const struct reference_model *model = find_model(r, copy->model);

		if (may_go(r, copy) && copy->device == device &&
		    copy->generation <= model->generation && copy->model != spare &&
		    model->owner != uid && taken(r, model->owner, device) > share_of(r, device)) {
			return true;
		}
	}
	return false;
}

/* Is an older content of it still there? That goes before all. */
static bool has_old(struct reference *r, uint64_t model)
{
	EACH(r->copies, copy)
	{
		if (copy->segment != 0 && copy->model == model &&
		    !is_current(copy, find_model(r, model))) {
			return true;
		}
	}
	return false;
}

static bool may(struct reference *r, uint64_t client_id, uint64_t model)
{
	const struct reference_client *client = find_client(r, client_id);

	return client != NULL && (client->is_admin || find_wish(r, model, client->uid) != NULL);
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

static bool says(const struct reference_wish *wish)
{
	return wish->pin || wish->keep || wish->ttl_ns != 0 || wish->priority != 0;
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
		EACH(r->wishes, free_one)
		{
			if (free_one->model == 0) {
				*free_one = (struct reference_wish){.model = model, .uid = uid};
				wish = free_one;
				break;
			}
		}
	}
	if (wish != NULL && policy != NULL) {
		wish->is_of_load = r->event.type == EV_LOAD && (wish->is_of_load || !says(wish));
		apply(r, wish, policy);
	}
	return wish != NULL;
}

static const struct core_policy nothing = {.said = CORE_SAID_PIN | CORE_SAID_KEEP | CORE_SAID_TTL |
						   CORE_SAID_PRIORITY};

static bool is_same_content(const struct core_file_key *a, const struct core_file_key *b)
{
	return a->size == b->size && a->mtime_ns == b->mtime_ns;
}

static int expect_room_for_lease(struct reference *r, uint32_t uid)
{
	uint32_t n_leases = 0;
	uint32_t n_of_uid = 0;

	EACH(r->leases, lease)
	{
		const struct reference_client *client = find_client(r, lease->client);

		n_leases += lease->id != 0 ? 1 : 0;
		n_of_uid += lease->id != 0 && client != NULL && client->uid == uid ? 1 : 0;
	}
	if (r->config.max_leases_per_uid != 0 && n_of_uid >= r->config.max_leases_per_uid) {
		return WIRE_TOO_MANY;
	}
	return n_leases < r->config.max_leases ? 0 : WIRE_TOO_MANY;
}

static int expect_reassert(struct reference *r, const struct core_event *event)
{
	const struct reference_model *model;

	if (r->is_shut) {
		return WIRE_SHUTTING_DOWN;
	}
	model = find_model(r, event->attach.model);
	if (model == NULL || !is_resident(r, model) ||
	    model->generation != event->attach.generation) {
		return WIRE_NOT_RESIDENT;
	}
	if (!grant(r, event->attach.model, find_client(r, event->client)->uid, NULL)) {
		return WIRE_TOO_MANY;
	}
	return expect_room_for_lease(r, find_client(r, event->client)->uid);
}

/* Its blocks lie for this uid. */
static bool has_blocks(const struct reference_model *model, uint32_t uid)
{
	return model->placement <= CORE_PLACEMENT_HOST || uid == 0 || uid == model->placed_uid;
}

/* Or all of it is in images. */
static bool is_for(const struct reference_model *model, uint32_t uid)
{
	return model->has_host || has_blocks(model, uid);
}

/* All that the uid may have of it is there: for another than whom the blocks lie for, the images. */
static bool serves(const struct reference *r, const struct reference_model *model, uint32_t uid)
{
	uint32_t n_images = 0;

	if (is_resident(r, model)) {
		return is_for(model, uid);
	}
	EACH(r->copies, copy)
	{
		n_images += is_good(copy, model) && !copy->is_block ? 1 : 0;
	}
	return model->placement > CORE_PLACEMENT_HOST && uid != 0 && uid != model->placed_uid &&
	       model->has_host && n_images == model->n_images;
}

/* Its blocks lie for another. */
static bool is_foreign(const struct reference_model *model, const struct reference_client *client)
{
	return model->placement > CORE_PLACEMENT_HOST && !client->is_admin &&
	       client->uid != model->placed_uid;
}

static int expect_attach(struct reference *r, const struct core_event *event)
{
	bool by_file = event->attach.file != 0;
	uint64_t id = by_file ? core_model_find(r->core, &r->key) : event->attach.model;
	const struct reference_model *model = find_model(r, id);
	uint32_t uid = find_client(r, event->client)->uid;

	if (r->is_shut) {
		return WIRE_SHUTTING_DOWN;
	}
	if (model == NULL || (!by_file && !may(r, event->client, id))) {
		return by_file ? WIRE_NOT_RESIDENT : WIRE_NOT_FOUND;
	}
	if (!serves(r, model, uid)) {
		return WIRE_NOT_RESIDENT;
	}
	if (by_file && !grant(r, id, uid, NULL)) {
		return WIRE_TOO_MANY;
	}
	if (by_file && !is_same_content(&r->key, &model->key)) {
		return WIRE_STALE;
	}
	if (by_file && r->key.ctime_ns != model->key.ctime_ns &&
	    (model->backing != CORE_BACKING_IMAGE || model->placement != CORE_PLACEMENT_HOST)) {
		return WIRE_STALE;
	}
	if (by_file && r->key.ctime_ns != model->key.ctime_ns) {
		return -1; /* its bytes are looked at first */
	}
	return expect_room_for_lease(r, uid);
}

static bool is_of_same_uid(struct reference *r, uint64_t a, uint64_t b)
{
	return find_client(r, a) != NULL && find_client(r, b) != NULL &&
	       find_client(r, a)->uid == find_client(r, b)->uid;
}

static int expect_lease(struct reference *r, const struct core_event *event)
{
	struct reference_lease *lease = find_lease(r, event->lease.lease);

	if (lease != NULL && lease->is_ghost && event->type == EV_UNMAPPED &&
	    is_of_same_uid(r, lease->client, event->client)) {
		lease->id = 0;
		return 0;
	}
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

static int expect_reserve(struct reference *r, const struct core_event *event)
{
	uint32_t n_rooms = 0;

	if (r->is_shut || event->reserve.bytes == 0) {
		return r->is_shut ? WIRE_SHUTTING_DOWN : WIRE_BAD_ARGUMENT;
	}
	EACH(r->rooms, room)
	{
		n_rooms += room->client != 0 ? 1 : 0;
	}
	if (n_rooms >= r->config.max_reservations) {
		return WIRE_TOO_MANY;
	}
	if (event->reserve.device == 0 && !find_client(r, event->client)->is_admin &&
	    reserved_by(r, uid_of(r, event->client), 0, true) + event->reserve.bytes >
		    share_of(r, 0)) {
		return WIRE_NO_MEMORY;
	}
	EACH(r->rooms, room)
	{
		if (room->client == 0) {
			*room = (struct reference_room){.client = event->client,
							.request = event->request,
							.device = event->reserve.device,
							.bytes = event->reserve.bytes,
							.ttl_ns = event->reserve.ttl_ns,
							.end_ns = UINT64_MAX};
			break;
		}
	}
	return -1;
}

static int expect_release(struct reference *r, const struct core_event *event)
{
	EACH(r->rooms, room)
	{
		if (room->client == event->client && room->id != 0 &&
		    room->id == event->release.reservation) {
			room->client = 0;
			return 0;
		}
	}
	return WIRE_NOT_FOUND;
}

/* It is there, or it is over. */
static const char *act_reserved(struct reference *r, struct reference_room *room,
				const struct core_action *action)
{
	if (action->code != 0) {
		room->client = 0;
		return NULL;
	}
	if (r->is_lost[room->device] ||
	    charged(r, room->device) + room->bytes > r->budget[room->device]) {
		return "I3 what is reserved fits the budget";
	}
	room->id = action->reply.lease;
	room->end_ns = room->ttl_ns == 0 ? UINT64_MAX : r->now_ns + room->ttl_ns;
	return NULL;
}

static void close_client(struct reference *r, const struct core_event *event)
{
	struct reference_client *client = find_client(r, event->client);

	if (client == NULL) {
		return;
	}
	client->is_process_gone |= event->type == EV_PROCESS_GONE;
	client->is_connected &= event->type != EV_CLIENT_CLOSED;
	EACH(r->rooms, room)
	{
		room->client = room->client == client->id && !client->is_connected ? 0
										   : room->client;
	}
	EACH(r->leases, lease)
	{
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
	const struct reference_client *client = find_client(r, event->client);

	for (uint32_t i = 0; event->unload.by_name && i < event->unload.n_models; i++) {
		uint64_t model = event->unload.models[i];

		if (!may(r, event->client, model) ||
		    (event->unload.mine && find_wish(r, model, client->uid) == NULL)) {
			continue;
		}
		EACH(r->wishes, wish)
		{
			if (wish->model == model &&
			    (client->is_admin || wish->uid == client->uid)) {
				apply(r, wish, &nothing);
			}
		}
	}
}

/* Is the file itself to serve, as its header came? */
static bool is_file(const struct reference *r, const struct reference_job *job)
{
	bool stays = is_wished(r, job->model, true) || is_wished(r, job->model, false);

	return job->may_be_file && job->placement <= CORE_PLACEMENT_HOST &&
	       (job->wanted == CORE_BACKING_FILE || (job->wanted == CORE_BACKING_AUTO && !stays));
}

static void take_header(struct reference *r, const struct core_event *event)
{
	struct reference_job *job = find_job(r, event->header.job);
	const struct reference_model *model;

	if (job == NULL || event->header.code != 0) {
		return;
	}
	job->key = *event->header.key;
	job->n_needs = event->header.n_needs;
	memcpy(job->needs, event->header.needs, job->n_needs * sizeof job->needs[0]);
	model = find_model(r, job->model);
	job->may_be_file = event->header.is_cached ||
			   (job->is_move && model != NULL && model->backing != CORE_BACKING_IMAGE);
	job->is_of_file = is_file(r, job);
	job->is_free = job->is_of_file && !is_wished(r, job->model, true);
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
		copy->segment = copy->backing == CORE_BACKING_IMAGE ? copy->segment : 0;
	}
	copy = find_copy(r, event->verified.segment);
	if (event->type == EV_VERIFIED && copy != NULL) {
		bool is_bad = copy->is_verifying && event->verified.code == 0 &&
			      !event->verified.is_equal;

		copy->is_verifying = false;
		EACH(r->copies, other)
		{
			other->is_bad |= is_bad &&
					 (other == copy || (other->model == copy->model &&
							    other->generation == copy->generation &&
							    !other->is_block && !copy->is_block));
		}
	}
}

/* Jobs that were seen when it began may go on. */
static void take_drain(struct reference *r, const struct core_event *event)
{
	for (uint32_t device = 0; device < r->config.n_devices; device++) {
		uint64_t *after = &r->drained_after[device];

		if (event->drain.device == device || event->drain.device == CORE_ALL_DEVICES) {
			*after = !event->drain.is_on    ? UINT64_MAX
				 : *after == UINT64_MAX ? r->n_jobs_seen
							: *after;
		}
	}
}

static bool is_drained(const struct reference *r)
{
	for (uint32_t device = 0; device < r->config.n_devices; device++) {
		if (r->drained_after[device] == UINT64_MAX && !r->is_lost[device]) {
			return false;
		}
	}
	return true;
}

/* What serves from the file is of no use once that is another: all of its generation. */
static void take_change(struct reference *r, const struct core_event *event)
{
	const struct reference_copy *changed = find_copy(r, event->changed.segment);

	if (changed == NULL || changed->backing == CORE_BACKING_IMAGE ||
	    changed->state != SEGMENT_READY ||
	    find_model(r, changed->model)->generation < changed->generation) {
		return;
	}
	EACH(r->copies, copy)
	{
		copy->is_stale |= copy->segment != 0 && copy->model == changed->model &&
				  is_of(copy, changed->generation) && copy->state == SEGMENT_READY;
	}
}

/* An image takes more than it was admitted with. */
static void take_growth(struct reference *r, const struct core_event *event)
{
	struct reference_copy *copy = find_copy(r, event->grown.segment);

	if (copy != NULL && copy->backing == CORE_BACKING_IMAGE &&
	    (copy->state == SEGMENT_DROPPING ||
	     (copy->state == SEGMENT_READY &&
	      copy->generation <= find_model(r, copy->model)->generation)) &&
	    copy->bytes < event->grown.bytes) {
		copy->bytes = event->grown.bytes;
	}
}

static void take_device(struct reference *r, const struct core_event *event)
{
	if (event->type == EV_BUDGET) {
		r->budget[event->budget.device] = event->budget.bytes;
		r->has_budget[event->budget.device] = true;
		return;
	}
	r->is_lost[event->device.device] = event->type == EV_DEVICE_LOST;
	EACH(r->copies, copy)
	{
		if (event->type == EV_DEVICE_LOST && copy->segment != 0 &&
		    copy->state != SEGMENT_FILLING && /* until its fill has ended */
		    copy->device == event->device.device) {
			if (copy->state == SEGMENT_READY) {
				r->lost[r->n_lost++] = copy->segment;
			}
			copy->segment = 0;
		}
	}
}

/* Who keeps what is left of a lost copy lets it go, once. */
static bool take_lost(struct reference *r, uint64_t segment)
{
	for (uint32_t i = 0; i < r->n_lost; i++) {
		if (r->lost[i] == segment) {
			r->lost[i] = r->lost[--r->n_lost];
			return true;
		}
	}
	return false;
}

/* What a lost device or a reservation took comes back: its file stays open for that. */
static bool is_open(const struct reference *r, uint64_t id)
{
	struct core_model_view view;

	return core_model_get(r->core, id, &view) && view.file != 0;
}

/* Nothing of the model is open any more, and the file is not the one it was. */
static bool is_replaced(struct reference *r, uint64_t id)
{
	const struct reference_model *model = find_model(r, id);

	return model != NULL && !has_copies(r, id) && !has_job(r, id) &&
	       count_leases(r, id, false) == 0 && !is_open(r, id) &&
	       (!is_same_content(&r->key, &model->key) || r->key.ctime_ns != model->key.ctime_ns);
}

/* A load that has to read a file: of what is neither there nor on its way. */
static bool needs_bytes(struct reference *r, uint64_t id)
{
	const struct reference_model *model = find_model(r, id);

	return model == NULL || (!has_job(r, id) &&
				 !(is_resident(r, model) && is_same_content(&r->key, &model->key)));
}

static void before_load(struct reference *r, const struct core_event *event,
			const struct reference_client *client)
{
	uint64_t id;

	r->key = *event->load.key;
	r->policy = *event->load.policy;
	id = core_model_find(r->core, &r->key);
	if (event->load.no_wait && event->load.attach) {
		r->expected = WIRE_BAD_ARGUMENT;
	} else if (r->is_shut) {
		r->expected = WIRE_SHUTTING_DOWN;
	} else if (is_drained(r) && needs_bytes(r, id)) {
		r->expected = WIRE_BUSY;
	} else if (is_replaced(r, id)) {
		r->replaced = id;
	} else if (grant(r, id, client->uid, NULL)) {
		if (event->load.placement > CORE_PLACEMENT_HOST &&
		    is_foreign(find_model(r, id), client)) {
			r->expected = WIRE_NOT_ALLOWED;
		} else {
			(void)grant(r, id, client->uid, &r->policy);
		}
	}
}

static int expect_place(struct reference *r, const struct core_event *event,
			const struct reference_client *client)
{
	const struct reference_model *model = find_model(r, event->place.model);
	struct core_model_view view;

	if (r->is_shut) {
		return WIRE_SHUTTING_DOWN;
	}
	if (model == NULL || !may(r, event->client, model->id) ||
	    !core_model_get(r->core, model->id, &view)) {
		return WIRE_NOT_FOUND;
	}
	if (view.generation == 0) {
		return WIRE_NOT_RESIDENT;
	}
	if (is_foreign(model, client)) {
		return WIRE_NOT_ALLOWED;
	}
	return view.job == 0 && is_resident(r, model) && event->place.placement == model->placement
		       ? 0
		       : -1;
}

static const char *before_request(struct reference *r, const struct core_event *event)
{
	const struct reference_client *client = find_client(r, event->client);

	if (client == NULL || !client->is_connected) {
		return NULL;
	}
	switch ((int)event->type) {
	case EV_LOAD:
		before_load(r, event, client);
		break;
	case EV_ATTACH:
		if (event->attach.file != 0) {
			r->key = *event->attach.key;
			r->key.is_raw = core_model_find(r->core, &r->key) == 0;
		}
		r->expected = event->attach.generation != 0 ? expect_reassert(r, event)
							    : expect_attach(r, event);
		break;
	case EV_PLACE:
		r->expected = expect_place(r, event, client);
		break;
	case EV_RESERVE:
		r->expected = expect_reserve(r, event);
		break;
	case EV_RELEASE:
		r->expected = expect_release(r, event);
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

/* What was dropped comes free when the last one that mapped it has gone. */
static void release_held(struct reference *r)
{
	EACH(r->copies, copy)
	{
		if (copy->segment != 0 && copy->state == SEGMENT_HELD &&
		    count_leases_of(r, copy, false, true) == 0) {
			copy->segment = 0;
		}
	}
}

static void take_wish(struct reference *r, const struct core_event *event)
{
	struct reference_wish *wish;

	if (find_model(r, event->adopt_wish.model) == NULL ||
	    !grant(r, event->adopt_wish.model, event->adopt_wish.uid, NULL)) {
		return;
	}
	wish = find_wish(r, event->adopt_wish.model, event->adopt_wish.uid);
	*wish = (struct reference_wish){.model = event->adopt_wish.model,
					.uid = event->adopt_wish.uid,
					.pin = event->adopt_wish.pin,
					.keep = event->adopt_wish.keep,
					.pin_until_ns = event->adopt_wish.pin_until_ns,
					.keep_until_ns = event->adopt_wish.keep_until_ns,
					.ttl_ns = event->adopt_wish.ttl_ns,
					.priority = event->adopt_wish.priority};
}

/* It is of no later generation than those there are. */
static void end_copy(struct reference_copy *copy, const struct reference_model *model)
{
	if (copy->last == UINT64_MAX) {
		copy->last = copy->generation > model->generation ? copy->generation
								  : model->generation;
	}
}

static void made_copy(struct reference *r, uint64_t segment)
{
	bool is_image = r->event.adopt.backing == CORE_BACKING_IMAGE;
	struct core_segment_view view;
	struct reference_model *model;

	(void)core_segment_get(r->core, segment, &view);
	model = find_model(r, view.model);
	EACH(r->models, place)
	{
		if (model == NULL && place->id == 0) {
			model = place;
			*model = (struct reference_model){.id = view.model,
							  .owner = r->event.adopt.owner_uid};
		}
	}
	if (r->event.adopt.generation > model->generation) {
		model->generation = model->last_generation = r->event.adopt.generation;
		model->n_copies = model->n_images = 0;
		model->placement = CORE_PLACEMENT_HOST;
		EACH(r->copies, copy)
		{
			copy->last = copy->model == model->id ? copy->generation : copy->last;
		}
		model->backing = is_image ? CORE_BACKING_IMAGE : CORE_BACKING_FILE;
		model->key = r->key;
		model->content = r->key.mtime_ns;
	}
	model->n_copies += r->event.adopt.generation == model->generation ? 1 : 0;
	model->n_images = model->n_copies;
	(void)grant(r, model->id, r->event.adopt.owner_uid, NULL);
	EACH(r->copies, copy)
	{
		if (copy->segment == 0) {
			*copy = (struct reference_copy){.segment = segment,
							.model = model->id,
							.generation = r->event.adopt.generation,
							.last = r->event.adopt.generation ==
										model->generation
									? UINT64_MAX
									: r->event.adopt.generation,
							.index = r->event.adopt.index,
							.size = r->event.adopt.bytes,
							.bytes = is_image ? r->event.adopt.bytes
									  : 0,
							.backing = is_image ? CORE_BACKING_IMAGE
									    : CORE_BACKING_FILE,
							.device = r->event.adopt.device,
							.state = SEGMENT_READY};
			return;
		}
	}
}

/* Known, and nothing of it is there; what is of another content is of no later generation. */
static void made_placed(struct reference *r, uint64_t id)
{
	struct reference_model *model = find_model(r, id);

	EACH(r->models, place)
	{
		if (model == NULL && place->id == 0) {
			model = place;
			*model = (struct reference_model){.id = id,
							  .owner = r->event.adopt_placed.owner_uid,
							  .key = r->key};
		}
	}
	if (!is_same_content(&r->key, &model->key) || r->key.ctime_ns != model->key.ctime_ns) {
		EACH(r->copies, copy)
		{
			if (copy->segment != 0 && copy->model == id) {
				end_copy(copy, model);
			}
		}
		model->generation = 0;
		model->placement = CORE_PLACEMENT_ANY;
	}
	model->last_generation = r->event.adopt_placed.generation;
	model->key = r->key;
	model->content = r->key.mtime_ns;
	(void)grant(r, id, r->event.adopt_placed.owner_uid, NULL);
}

/* Who maps images that are not there holds their bytes, once a generation. Are they such? */
static bool made_remnant(struct reference *r, uint64_t model, uint64_t generation, uint64_t bytes)
{
	struct reference_copy *place = NULL;
	struct core_segment_view view;
	uint64_t remnant = UINT64_MAX; /* of no copy: the next comparison says so */
	uint32_t cursor = 0;

	EACH(r->copies, copy)
	{
		if (copy->segment != 0 && copy->model == model && copy->generation == generation &&
		    copy->device == 0 && copy->index == 0) {
			return copy->is_remnant;
		}
		place = place == NULL && copy->segment == 0 ? copy : place;
	}
	while (core_segment_next(r->core, model, &cursor, &view)) {
		remnant = view.generation == generation && view.is_remnant ? view.id : remnant;
	}
	*place = (struct reference_copy){.segment = remnant,
					 .model = model,
					 .generation = generation,
					 .last = generation,
					 .size = bytes,
					 .bytes = bytes,
					 .backing = CORE_BACKING_IMAGE,
					 .state = SEGMENT_HELD,
					 .is_remnant = true};
	return true;
}

/* Of what was published when it was adopted. */
static void made_lease(struct reference *r, uint64_t id)
{
	struct reference_model *model = find_model(r, r->event.adopt_lease.model);
	const uint64_t generation = r->event.adopt_lease.generation;
	const uint32_t uid = find_client(r, r->event.client)->uid;
	const bool is_remnant = made_remnant(r, model->id, generation, r->event.adopt_lease.bytes);

	if (generation > model->last_generation) {
		model->last_generation = generation;
	}
	EACH(r->leases, lease)
	{
		if (lease->id == 0) {
			*lease = (struct reference_lease){.id = id,
							  .client = r->event.client,
							  .model = model->id,
							  .generation = generation,
							  .is_mapped = true,
							  .has_blocks = has_blocks(model, uid),
							  .is_remnant = is_remnant};
			return;
		}
	}
}

void reference_made(struct reference *r, uint64_t id)
{
	if (id == 0) {
		return;
	}
	if (r->event.type == EV_ADOPT_PLACED) {
		made_placed(r, id);
	}
	if (r->event.type == EV_ADOPT) {
		made_copy(r, id);
	}
	if (r->event.type == EV_ADOPT_LEASE) {
		made_lease(r, id);
	}
}

static const char *take_event(struct reference *r, const struct core_event *event)
{
	r->event = *event;
	r->expected = -1;
	r->evicted_for = r->refused = r->replaced = 0;
	r->n_begun = r->n_lost = 0;
	EACH(r->models, model)
	{
		model->is_published = false;
	}
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
	case EV_CHANGED:
		take_change(r, event);
		break;
	case EV_GROWN:
		take_growth(r, event);
		break;
	case EV_BUDGET:
	case EV_DEVICE_LOST:
	case EV_DEVICE_BACK:
		take_device(r, event);
		break;
	case EV_DRAIN:
		take_drain(r, event);
		break;
	case EV_SHUTDOWN:
		r->is_shut = true;
		break;
	case EV_ADOPT:
		r->key = *event->adopt.key;
		break;
	case EV_ADOPT_PLACED:
		r->key = *event->adopt_placed.key;
		break;
	case EV_ADOPT_WISH:
		take_wish(r, event);
		break;
	case EV_ADOPTED:
		r->quiet_until_ns = r->now_ns + event->adopted.quiet_ns;
		break;
	default:
		return before_request(r, event);
	}
	return NULL;
}

const char *reference_before(struct reference *r, const struct core_event *event)
{
	const char *broken = take_event(r, event);

	EACH(r->rooms, room)
	{
		room->client = room->end_ns <= r->now_ns ? 0 : room->client;
	}
	release_held(r);
	look_at_shares(r, true);
	return broken;
}

/* ---- what the core does about it ---- */

static const struct core_need *find_need(const struct reference_job *job,
					 const struct core_action *fill)
{
	for (uint32_t i = 0; i < job->n_needs; i++) {
		const struct core_need *need = &job->needs[i];

		if (need->device == fill->device && need->index == fill->fill.index &&
		    need->is_block == fill->fill.is_block && need->bytes == fill->fill.bytes) {
			return need;
		}
	}
	return NULL;
}

static const char *act_fill(struct reference *r, const struct core_action *action)
{
	struct reference_model *model = find_model(r, action->model);
	struct reference_job *job = find_job(r, action->job);
	const struct core_need *need;
	uint64_t bytes;

	if (model == NULL || job == NULL) {
		return "a fill belongs to a model and a job that is known";
	}
	if (r->is_lost[action->device]) {
		return "I11 nothing is filled on a lost device";
	}
	if (job->number > r->drained_after[action->device]) {
		return "a device that is drained takes no new load";
	}
	need = find_need(job, action);
	if (need == NULL) {
		return "what is filled is what the header said";
	}
	if (find_same(r, job, need) != NULL) {
		return "what stays where it lies is not made again";
	}
	bytes = action->fill.backing == CORE_BACKING_FILE ? 0 : action->fill.bytes;
	if (action->fill.backing == CORE_BACKING_AUTO ||
	    (job->wanted == CORE_BACKING_IMAGE && action->fill.backing != CORE_BACKING_IMAGE) ||
	    (job->placement > CORE_PLACEMENT_HOST && action->fill.backing != CORE_BACKING_IMAGE) ||
	    (job->wanted == CORE_BACKING_FILE && job->may_be_file &&
	     job->placement <= CORE_PLACEMENT_HOST && action->fill.backing == CORE_BACKING_IMAGE)) {
		return "a copy lies in what was asked for";
	}
	if (bytes > 0 && charged(r, action->device) + bytes > r->budget[action->device]) {
		return "I3 what is admitted fits the budget";
	}
	if (action->fill.generation < model->last_generation ||
	    (job->is_waiting && action->fill.generation == model->last_generation)) {
		return "I6 generations only grow";
	}
	look_at_shares(r, false);
	if (!job->is_admitted) {
		job->is_over = job->is_over && exceeds_share(r, job);
	}
	job->is_waiting = false;
	job->is_admitted = true;
	job->generation = model->last_generation = action->fill.generation;
	EACH(r->copies, copy)
	{
		if (copy->segment == 0) {
			*copy = (struct reference_copy){.segment = action->segment,
							.model = action->model,
							.job = action->job,
							.generation = action->fill.generation,
							.last = UINT64_MAX,
							.index = action->fill.index,
							.is_block = action->fill.is_block,
							.bytes = bytes,
							.size = action->fill.bytes,
							.backing = action->fill.backing,
							.device = action->device,
							.state = SEGMENT_FILLING};
			return NULL;
		}
	}
	return "the reference is full of copies";
}

/* Another uid wants it for a time that is not over, or after others: what it said counts. */
static bool is_wanted_by_others(struct reference *r, uint64_t model)
{
	const struct reference_client *client = find_client(r, r->event.client);
	struct core_model_view view;

	if (client == NULL || client->is_admin || !core_model_get(r->core, model, &view)) {
		return false;
	}
	EACH(r->wishes, wish)
	{
		if (wish->model == model && wish->uid != client->uid &&
		    ((wish->keep && wish->keep_until_ns > r->now_ns) || wish->priority > 0 ||
		     (wish->ttl_ns != 0 && r->now_ns - view.last_used_ns < wish->ttl_ns))) {
			return true;
		}
	}
	return false;
}

static const char *act_drop(struct reference *r, const struct core_action *action)
{
	struct reference_copy *copy = find_copy(r, action->segment);
	const struct reference_model *model;

	if (copy == NULL && take_lost(r, action->segment)) {
		return NULL;
	}
	if (copy == NULL || (copy->state != SEGMENT_FILLING && copy->state != SEGMENT_READY)) {
		return "only a copy that is there is dropped";
	}
	model = find_model(r, copy->model);
	if (copy->state == SEGMENT_FILLING &&
	    (r->event.type != EV_FILLED || r->event.filled.segment != copy->segment)) {
		return "what is being filled is dropped when its fill has ended";
	}
	if (count_leases_of(r, copy, true, false) > 0) {
		return "I2 nothing leased is dropped";
	}
	if (is_good(copy, model) && is_wished(r, copy->model, true)) {
		return "I2 nothing pinned is dropped";
	}
	end_copy(copy, model);
	copy->state = SEGMENT_DROPPING;
	copy->is_verifying = false;
	return NULL;
}

/* What the job has for it: made by it, or of the generation before; NULL: nothing. */
static struct reference_copy *find_made(struct reference *r, const struct reference_job *job,
					const struct core_need *need, uint64_t generation)
{
	EACH(r->copies, copy)
	{
		if (copy->segment != 0 && copy->model == job->model &&
		    copy->generation == generation && copy->device == need->device &&
		    copy->index == need->index && copy->is_block == need->is_block &&
		    (copy->state == SEGMENT_FILLING || copy->state == SEGMENT_READY)) {
			return copy;
		}
	}
	return find_same(r, job, need);
}

/* Its copies go on; those that it has not are of no later one. */
static const char *take_copies(struct reference *r, struct reference_model *model,
			       const struct reference_job *job, uint64_t generation,
			       enum core_backing *ret_backing)
{
	struct reference_copy *kept[REFERENCE_NEEDS] = {NULL};

	for (uint32_t i = 0; i < job->n_needs; i++) {
		kept[i] = find_made(r, job, &job->needs[i], generation);
		if (kept[i] == NULL || kept[i]->state != SEGMENT_READY || kept[i]->is_bad) {
			return "I7 a generation is published when all its copies are ready";
		}
		*ret_backing = kept[i]->backing;
	}
	EACH(r->copies, copy)
	{
		bool is_kept = copy->model != model->id;

		for (uint32_t i = 0; i < job->n_needs; i++) {
			is_kept = is_kept || copy == kept[i];
		}
		if (!is_kept) {
			end_copy(copy, model);
		}
	}
	return NULL;
}

/* What is only to come back, as it lay before a restart or a loss, does not. */
static bool lies_in_blocks(struct reference *r, const struct reference_model *model)
{
	EACH(r->copies, copy)
	{
		if (copy->model == model->id && copy->is_block && copy->state == SEGMENT_READY &&
		    is_current(copy, model)) {
			return model->placement > CORE_PLACEMENT_HOST;
		}
	}
	return false;
}

/* Where it lies, and for whom: blocks that lie for one are not taken from him. */
static const char *take_placement(struct reference *r, struct reference_model *model,
				  const struct reference_job *job, bool was_placed)
{
	struct core_model_view view = {0};

	(void)core_model_get(r->core, model->id, &view);
	if (was_placed && job->placement > CORE_PLACEMENT_HOST &&
	    view.placed_uid != model->placed_uid) {
		return "I10 blocks that are moved lie for whom they lay";
	}
	model->placement = job->placement;
	model->placed_uid = view.placed_uid;
	model->has_host = job->with_host;
	return NULL;
}

static const char *act_publish(struct reference *r, const struct core_action *action)
{
	struct reference_model *model = find_model(r, action->model);
	const struct reference_job *job = find_job(r, action->job);
	enum core_backing backing = CORE_BACKING_AUTO;
	const char *broken;
	bool was_placed;

	if (model == NULL || job == NULL || action->fill.generation <= model->generation) {
		return "I6 a later generation of a known model is published";
	}
	was_placed = lies_in_blocks(r, model);
	broken = take_copies(r, model, job, action->fill.generation, &backing);
	broken = broken != NULL ? broken : take_placement(r, model, job, was_placed);
	if (broken != NULL) {
		return broken;
	}
	if (job->key.mtime_ns < model->content) {
		return "I6 an older content follows a newer one";
	}
	model->generation = action->fill.generation;
	model->n_copies = job->n_needs;
	model->n_images = 0;
	for (uint32_t i = 0; i < job->n_needs; i++) {
		model->n_images += job->needs[i].is_block ? 0 : 1;
	}
	model->is_published = true;
	model->backing = backing;
	model->key = job->key;
	model->content = job->key.mtime_ns;
	return NULL;
}

static bool is_reassertion(const struct reference *r, const struct core_action *action)
{
	return r->event.type == EV_ATTACH && r->event.attach.generation != 0 &&
	       r->event.client == action->client && r->event.request == action->request;
}

/* The lease whose place the new one takes is over. */
static void end_ghost(struct reference *r, const struct core_action *action)
{
	struct reference_lease *ghost = find_lease(r, r->event.attach.ghost);

	if (ghost != NULL && ghost->is_ghost && ghost->model == action->model &&
	    ghost->generation == action->reply.generation &&
	    is_of_same_uid(r, ghost->client, action->client)) {
		ghost->id = 0;
	}
}

static const char *act_lease(struct reference *r, const struct core_action *action)
{
	const struct reference_model *model = find_model(r, action->model);
	bool is_again = is_reassertion(r, action);
	uint32_t uid = find_client(r, action->client)->uid;

	if (model == NULL || action->reply.generation != model->generation ||
	    (is_again && !is_resident(r, model))) {
		return "I5 a lease is given on the published generation of a resident model";
	}
	if (!may(r, action->client, action->model) || (!is_again && !serves(r, model, uid))) {
		return "I10 a lease is given to a uid that has the right, of what is there";
	}
	EACH(r->leases, lease)
	{
		if (lease->id == 0) {
			*lease =
				(struct reference_lease){.id = action->reply.lease,
							 .client = action->client,
							 .model = action->model,
							 .generation = action->reply.generation,
							 .is_mapped = is_again || action->reply.map,
							 .has_blocks = has_blocks(model, uid)};
			if (is_again) {
				end_ghost(r, action);
			}
			return NULL;
		}
	}
	return "the reference is full of leases";
}

/* A refused load: do the numbers say why? */
static const char *act_shortage(const struct reference *r, const struct core_action *action)
{
	const struct core_shortage *shortage = &action->shortage;
	uint64_t held = 0;

	if (shortage->need == 0 && r->event.type == EV_FILLED) {
		return NULL; /* it was let in: the device had less than its account */
	}
	if (shortage->is_of_share) {
		return shortage->budget == share_of(r, action->device) &&
				       shortage->need > shortage->free
			       ? NULL
			       : "a reservation above the share names the share and what is left";
	}
	EACH(r->copies, copy)
	{
		held += copy->segment != 0 && copy->device == action->device &&
					copy->state == SEGMENT_HELD
				? copy->bytes
				: 0;
	}
	if (shortage->held != held || shortage->budget != r->budget[action->device]) {
		return "no-memory names the held bytes and the budget";
	}
	if (shortage->need <= shortage->free + shortage->evictable && !r->is_lost[action->device]) {
		return "no-memory is answered only where freeing could not help";
	}
	return NULL;
}

static uint32_t count_models(const struct reference *r)
{
	uint32_t n_models = 0;

	EACH(r->models, model)
	{
		n_models += model->id != 0 ? 1 : 0;
	}
	return n_models;
}

/* An idle model that nobody keeps never makes another one's load fail, while places are left. */
static const char *act_too_many(struct reference *r, const struct core_action *action)
{
	if (action->too_many.limit == CORE_LIMIT_NONE || action->too_many.number == 0) {
		return "a refusal names the limit and its number";
	}
	if (action->too_many.limit != CORE_LIMIT_MODELS || r->now_ns < r->quiet_until_ns ||
	    count_models(r) > r->config.max_models + r->config.max_models / 8) {
		return NULL;
	}
	EACH(r->models, model)
	{
		if (model->id != 0 && is_resident(r, model) && !has_job(r, model->id) &&
		    !is_wished(r, model->id, true) &&
		    n_copies_of(r, model->id) == model->n_copies &&
		    count_leases(r, model->id, false) == 0) {
			return "an idle model gives its place to another";
		}
	}
	return NULL;
}

/* One who waited has what he wanted: what his load said stays. */
static void take_granted(struct reference *r, const struct core_action *action)
{
	const struct reference_client *client = find_client(r, action->client);
	struct reference_wish *wish = client == NULL ? NULL
						     : find_wish(r, action->model, client->uid);

	if (wish != NULL) {
		wish->is_of_load = false;
	}
}

static const char *act_reply(struct reference *r, const struct core_action *action)
{
	bool is_now = action->client == r->event.client && action->request == r->event.request;

	if (is_now && r->expected >= 0 && action->code != r->expected) {
		return "the answer is the expected one";
	}
	EACH(r->rooms, room)
	{
		if (room->client != 0 && room->id == 0 && room->client == action->client &&
		    room->request == action->request) {
			return act_reserved(r, room, action);
		}
	}
	if (is_now && r->event.type == EV_CANCEL) {
		return NULL; /* its lease field says only whether there was something */
	}
	if (action->code == WIRE_NO_MEMORY) {
		return act_shortage(r, action);
	}
	if (action->code == WIRE_TOO_MANY) {
		return act_too_many(r, action);
	}
	if (action->code == 0 && action->reply.source != CORE_SOURCE_BEGUN &&
	    (!is_now || (r->event.type == EV_LOAD && r->policy.said != 0))) {
		take_granted(r, action);
	}
	return action->code == 0 && action->reply.lease != 0 ? act_lease(r, action) : NULL;
}

static void forget_model(struct reference *r, uint64_t id)
{
	EACH(r->wishes, wish)
	{
		if (wish->model == id) {
			wish->model = 0;
		}
	}
	if (find_model(r, id) != NULL) {
		find_model(r, id)->id = 0;
	}
}

static const char *act_forget(struct reference *r, const struct core_action *action)
{
	struct reference_client *client = find_client(r, action->client);

	if (action->type == ACT_FORGET_MODEL) {
		if (has_copies(r, action->model) || has_job(r, action->model) ||
		    count_leases(r, action->model, false) > 0) {
			return "a model that holds something is not forgotten";
		}
		forget_model(r, action->model);
		return NULL;
	}
	if (client == NULL || client->is_connected) {
		return "a client is forgotten once, when it has gone";
	}
	EACH(r->leases, lease)
	{
		if (lease->id != 0 && lease->client == client->id) {
			return "I14 a client is forgotten when it holds nothing";
		}
	}
	client->id = 0;
	return NULL;
}

static const char *act_note(struct reference *r, const struct core_action *action)
{
	struct reference_wish *wish = find_wish(r, action->model, action->note.uid);

	if (action->note.note == CORE_NOTE_UNPINNED && wish != NULL && wish->is_of_load) {
		wish->pin = false;
	}
	if (action->note.note == CORE_NOTE_EVICTED &&
	    (action->note.why == CORE_WHY_ROOM || action->note.why == CORE_WHY_RESERVED)) {
		r->evicted_for = action->note.for_model;
		if (r->now_ns < r->quiet_until_ns) {
			return "after a restart nothing is evicted for another for a while";
		}
	}
	if (action->note.note == CORE_NOTE_EVICTED &&
	    ((action->note.why == CORE_WHY_ROOM && action->note.for_model != 0) ||
	     action->note.why == CORE_WHY_BUDGET || action->note.why == CORE_WHY_PRESSURE ||
	     action->note.why == CORE_WHY_RESERVED) &&
	    action->note.bytes > 0 && !has_old(r, action->model) &&
	    taken(r, owner_of(r, action->model), action->device) <= share_of(r, action->device) &&
	    is_somebody_above(r, owner_of(r, action->model), action->device,
			      action->note.for_model)) {
		return "who is above the share gives first";
	}
	if (action->note.note == CORE_NOTE_UNLOADED && r->event.type == EV_UNLOAD &&
	    is_wanted_by_others(r, action->model)) {
		return "nobody unloads what another uid said it wants";
	}
	if (action->note.note == CORE_NOTE_REFUSED) {
		r->refused = action->model;
	}
	if (r->refused != 0 && r->refused == r->evicted_for) {
		return "nothing is evicted for a load that is refused";
	}
	return NULL;
}

static const char *act_recall(struct reference *r, const struct core_action *action)
{
	const struct reference_lease *lease = find_lease(r, action->recall.lease);

	if (action->device != CORE_ALL_DEVICES &&
	    (action->recall.for_client == action->client || is_wished(r, action->model, true))) {
		return "for room others are asked, and nothing that is pinned";
	}
	return lease != NULL && !lease->is_ghost && lease->client == action->client &&
			       action->recall.within_ns > 0
		       ? NULL
		       : "who holds a living lease is asked to let go";
}

const char *reference_action(struct reference *r, const struct core_action *action)
{
	struct reference_copy *copy = find_copy(r, action->segment);
	const struct reference_lease *lease = find_lease(r, action->lost.lease);
	struct reference_job *job = find_job(r, action->job);

	switch ((int)action->type) {
	case ACT_RECHECK:
		if (job == NULL && r->n_begun < REFERENCE_JOBS) {
			r->begun[r->n_begun++] =
				(struct reference_job){.id = action->job, .is_doubtful = true};
		}
		if (job != NULL) {
			job->is_doubtful = true;
		}
		return NULL;
	case ACT_READ_HEADER:
		if (job == NULL && r->n_begun < REFERENCE_JOBS) {
			r->begun[r->n_begun++] =
				(struct reference_job){.id = action->job,
						       .placement = action->fill.placement,
						       .with_host = action->fill.with_host,
						       .wanted = action->fill.backing};
		}
		if (job != NULL) {
			job->wanted = action->fill.backing;
			job->placement = action->fill.placement;
			job->with_host = action->fill.with_host;
			job->is_waiting = false; /* once more from the beginning */
		}
		return NULL;
	case ACT_FILL:
		return act_fill(r, action);
	case ACT_MAKE_TABLE:
		if (job != NULL) {
			job->is_waiting = false; /* all of it was there, perhaps */
		}
		return NULL;
	case ACT_DROP:
		return act_drop(r, action);
	case ACT_PUBLISH:
		return act_publish(r, action);
	case ACT_REPLY:
		return act_reply(r, action);
	case ACT_NOTE:
		return act_note(r, action);
	case ACT_FORGET_MODEL:
	case ACT_FORGET_CLIENT:
		return act_forget(r, action);
	case ACT_VERIFY:
		if (copy == NULL || copy->state != SEGMENT_READY ||
		    copy->backing != CORE_BACKING_IMAGE) {
			return "what is verified is there";
		}
		copy->is_verifying = true;
		return NULL;
	case ACT_RECALL:
		return act_recall(r, action);
	case ACT_LOST:
		return lease != NULL && !lease->is_ghost && lease->client == action->client
			       ? NULL
			       : "lost is told to the holder of a living lease";
	default:
		return NULL;
	}
}

/* ---- do both agree? ---- */

static const char *compare_copies(struct reference *r)
{
	struct core_segment_view view;
	uint32_t cursor = 0;
	uint32_t n_seen = 0;

	release_held(r);
	EACH(r->copies, copy)
	{
		n_seen += copy->segment != 0 ? 1 : 0;
	}
	while (core_segment_next(r->core, 0, &cursor, &view)) {
		const struct reference_copy *copy = find_copy(r, view.id);

		if (copy == NULL && view.state == SEGMENT_PLANNED) {
			continue;
		}
		if (copy == NULL || copy->state != view.state || copy->bytes != view.bytes ||
		    copy->size != view.size || copy->backing != view.backing ||
		    copy->device != view.device || copy->generation != view.generation ||
		    copy->last != view.last || copy->index != view.index ||
		    copy->is_block != view.is_block || copy->model != view.model) {
			return "the copies are the expected ones";
		}
		n_seen--;
	}
	return n_seen == 0 ? NULL : "no copy is missing";
}

static const char *compare_leases(struct reference *r)
{
	struct core_lease_view view;
	uint32_t cursor = 0;
	uint32_t n_seen = 0;

	EACH(r->leases, lease)
	{
		n_seen += lease->id != 0 ? 1 : 0;
	}
	while (core_lease_next(r->core, &cursor, &view)) {
		const struct reference_lease *lease = find_lease(r, view.id);

		if (lease == NULL || lease->client != view.client || lease->model != view.model ||
		    lease->generation != view.generation || lease->is_mapped != view.is_mapped ||
		    lease->is_ghost != view.is_ghost || lease->has_blocks != view.has_blocks) {
			return "the leases are the expected ones";
		}
		n_seen--;
	}
	return n_seen == 0 ? NULL : "no lease is missing";
}

/* A client holds each byte once, however many of its leases map it. */
static const char *compare_clients(struct reference *r)
{
	struct core_client_view view;
	uint32_t cursor = 0;

	while (core_client_next(r->core, &cursor, &view)) {
		uint64_t bytes = 0;
		uint32_t n_leases = 0;

		EACH(r->copies, copy)
		{
			bool is_mapped = false;

			if (copy->segment == 0) {
				continue;
			}
			EACH(r->leases, lease)
			{
				is_mapped |= lease->client == view.id && lease->is_mapped &&
					     has_copy(lease, copy);
			}
			bytes += is_mapped ? copy->size : 0;
		}
		EACH(r->leases, lease)
		{
			n_leases += lease->id != 0 && lease->client == view.id ? 1 : 0;
		}
		if (bytes != view.held_bytes || n_leases != view.n_leases) {
			return "a client holds what its leases map, once";
		}
	}
	return NULL;
}

/* Did it begin with the bytes there: to lie elsewhere? What nobody leases or pins any more and goes
 * back to its file for that may be gone by now, to make room in the same step. */
static bool begins_as_move(struct reference *r, const struct reference_job *job,
			   const struct reference_model *model)
{
	const enum core_event_type type = r->event.type;
	const bool is_end_of_use = type == EV_DETACH || type == EV_UNMAPPED || type == EV_SET ||
				   type == EV_TICK || type == EV_CLIENT_CLOSED ||
				   type == EV_PROCESS_GONE;

	return model != NULL && type != EV_ATTACH &&
	       (is_resident(r, model) || model->is_published ||
		(is_end_of_use && has_copies(r, model->id) &&
		 model->backing != CORE_BACKING_IMAGE && job->wanted != CORE_BACKING_IMAGE)) &&
	       (type != EV_LOAD ||
		(is_same_content(&r->key, &model->key) && r->key.ctime_ns == model->key.ctime_ns));
}

static const char *compare_wishes(struct reference *r, uint64_t model)
{
	struct core_wish_view view;
	uint32_t cursor = 0;
	uint32_t n_seen = 0;

	EACH(r->wishes, wish)
	{
		n_seen += wish->model == model ? 1 : 0;
		wish->pin = wish->pin && wish->pin_until_ns > r->now_ns;
		wish->keep = wish->keep && wish->keep_until_ns > r->now_ns;
	}
	while (core_wish_next(r->core, model, &cursor, &view)) {
		struct reference_wish *wish = find_wish(r, model, view.uid);

		if (wish != NULL && wish->is_of_load && !view.pin && !view.keep &&
		    view.ttl_ns == 0 && view.priority == 0) {
			apply(r, wish, &nothing);
		}
		if (wish == NULL || wish->pin != view.pin || wish->keep != view.keep ||
		    wish->priority != view.priority || wish->ttl_ns != view.ttl_ns) {
			return "wishes are per uid, and as they were said";
		}
		n_seen--;
	}
	return n_seen == 0 ? NULL : "no wish is missing";
}

static void know_model(struct reference *r, const struct core_model_view *view)
{
	if (find_model(r, view->id) == NULL) {
		EACH(r->models, model)
		{
			if (model->id == 0) {
				*model = (struct reference_model){.id = view->id,
								  .key = view->key,
								  .owner = view->owner_uid};
				break;
			}
		}
	}
	if (view->job != 0 && find_job(r, view->job) == NULL && r->n_jobs < REFERENCE_JOBS) {
		struct reference_job *job = &r->jobs[r->n_jobs++];

		*job = (struct reference_job){.id = view->job,
					      .model = view->id,
					      .number = ++r->n_jobs_seen,
					      .step = r->n_steps};
		for (uint32_t i = 0; i < r->n_begun; i++) {
			if (r->begun[i].id == view->job) {
				job->wanted = r->begun[i].wanted;
				job->placement = r->begun[i].placement;
				job->with_host = r->begun[i].with_host;
				job->is_doubtful = r->begun[i].is_doubtful;
			}
		}
		job->is_move = begins_as_move(r, job, find_model(r, view->id));
	}
}

/* It changes where another generation is published, and where nothing is left. */
static const char *compare_placement(struct reference *r, struct reference_model *model,
				     const struct core_model_view *view)
{
	bool has_ready = false;
	bool has_some = false;
	bool is_due = false; /* before its time */
	bool was_overdue;

	EACH(r->copies, copy)
	{
		bool is_ready = is_current(copy, model) && copy->state == SEGMENT_READY;

		has_ready |= is_ready;
		has_some |= is_ready && copy->is_block &&
			    count_leases_of(r, copy, true, false) == 0;
		is_due |= is_ready && r->event.type == EV_DEVICE_SHORT &&
			  copy->device == r->event.device.device;
	}
	if ((view->placement == CORE_PLACEMENT_ANY || view->is_torn) && !has_ready) {
		model->placement = view->placement; /* of what is to come back */
		model->placed_uid = view->placed_uid;
	}
	if (view->placement != model->placement || view->has_host != model->has_host ||
	    (view->placement > CORE_PLACEMENT_HOST && view->placed_uid != model->placed_uid)) {
		return "blocks lie where they were put";
	}
	was_overdue = model->is_overdue;
	model->is_overdue = has_some && view->placement > CORE_PLACEMENT_HOST && view->job == 0 &&
			    !r->is_shut && !view->is_pinned && r->config.linger_ns > 0 &&
			    (is_due || r->now_ns >= view->blocks_used_ns + r->config.linger_ns);
	if ((was_overdue || is_due) && model->is_overdue) { /* at once, or with the next tick */
		return "blocks that nobody uses leave other devices";
	}
	return NULL;
}

static const char *compare_models(struct reference *r)
{
	struct core_model_view view;
	uint32_t cursor = 0;
	uint32_t n_owned[3] = {0}; /* by uid from 1000 */

	while (core_model_next(r->core, &cursor, &view)) {
		struct reference_model *model = find_model(r, view.id);
		const char *broken = compare_wishes(r, view.id);

		if (broken != NULL) {
			return broken;
		}
		broken = compare_placement(r, model, &view);
		if (broken != NULL) {
			return broken;
		}
		if (view.n_leases != count_leases(r, view.id, true) ||
		    view.is_pinned != is_wished(r, view.id, true) ||
		    view.is_kept != is_wished(r, view.id, false)) {
			return "leases, pin and keep of a model are the expected ones";
		}
		if (is_resident(r, model) != (view.state == CORE_MODEL_RESIDENT) ||
		    (is_resident(r, model) && view.generation != model->generation)) {
			return "what is resident is the expected generation, whole";
		}
		if (view.generation != 0 && view.generation != model->generation) {
			return "I6 a published generation stays until the next one";
		}
		model->key = view.generation != 0 ? view.key : model->key;
		if (model->owner != view.owner_uid) {
			return "a model belongs to who loaded it first";
		}
		n_owned[view.owner_uid < 1000 ? 2 : view.owner_uid % 1000 % 3]++;
	}
	for (uint32_t i = 0; i < 2; i++) {
		if (r->config.max_models_per_uid != 0 &&
		    n_owned[i] > r->config.max_models_per_uid + r->config.max_models / 8 + 1) {
			return "one uid leaves places for others";
		}
	}
	return NULL;
}

static const char *compare_accounts(const struct reference *r)
{
	for (uint32_t device = 0; device < r->config.n_devices; device++) {
		uint64_t sums[SEGMENT_N_STATES] = {0};
		struct core_account_view view;

		core_account_get(r->core, device, &view);
		EACH(r->copies, copy)
		{
			sums[copy->state] +=
				copy->segment != 0 && copy->device == device ? copy->bytes : 0;
		}
		if (view.resident != sums[SEGMENT_READY] || view.held != sums[SEGMENT_HELD] ||
		    view.loading != sums[SEGMENT_FILLING] ||
		    view.dropping != sums[SEGMENT_DROPPING] || view.budget != r->budget[device] ||
		    view.reserved != reserved(r, device)) {
			return "I4 every byte is in one account";
		}
	}
	return NULL;
}

/* It is being dropped, or the load that fills it has ended. */
static bool goes_by_itself(const struct reference *r, const struct reference_copy *copy)
{
	struct core_model_view view;

	return copy->state == SEGMENT_DROPPING ||
	       (copy->state == SEGMENT_FILLING &&
		(!core_model_get(r->core, copy->model, &view) || view.job != copy->job));
}

/* Also what was in use or pinned when the budget was lowered. */
static const char *compare_budgets(struct reference *r)
{
	if (r->now_ns < r->quiet_until_ns) {
		return NULL;
	}
	EACH(r->copies, copy)
	{
		uint64_t stays = copy->segment == 0 ? 0 : charged(r, copy->device);

		EACH(r->copies, other)
		{
			stays -= copy->segment != 0 && other->segment != 0 &&
						 other->device == copy->device &&
						 goes_by_itself(r, other)
					 ? other->bytes
					 : 0;
		}
		if (may_go(r, copy) && r->has_budget[copy->device] &&
		    stays > r->budget[copy->device]) {
			return "what nobody uses goes where more is charged than the budget";
		}
	}
	return NULL;
}

/* Jobs that have ended go; one that was let in leaves the older ones what they wait for. */
static const char *compare_jobs(struct reference *r)
{
	uint32_t n_left = 0;

	for (uint32_t i = 0; i < r->n_jobs; i++) {
		struct reference_job *job = &r->jobs[i];
		struct core_model_view view;
		bool is_over = !core_model_get(r->core, job->model, &view) || view.job != job->id;

		for (uint32_t k = 0; !is_over && job->is_waiting && k < r->n_jobs; k++) {
			const struct reference_job *other = &r->jobs[k];
			bool is_other = owner_of(r, other->model) != owner_of(r, job->model);
			bool may_pass = is_other && job->was_over;
			bool goes_first = is_other && job->is_within && !exceeds_share(r, job) &&
					  other->is_over;
			bool is_admitted =
				other->is_admitted &&
				((k > i && job->step != other->step && !may_pass) || goes_first);

			for (uint32_t d = 0; is_admitted && d < r->config.n_devices; d++) {
				if (need_on(r, other, d) > 0 && need_on(r, job, d) > 0 &&
				    charged(r, d) + need_on(r, job, d) > r->budget[d]) {
					return k > i ? "I12 a younger load leaves what an older one "
						       "needs"
						     : "a load above its share leaves what others "
						       "wait for";
				}
			}
		}
		for (uint32_t k = 0; !is_over && job->is_admitted && k < job->n_needs; k++) {
			if (find_made(r, job, &job->needs[k], job->generation) == NULL) {
				return "I7 a load is let in with all of its copies";
			}
		}
		if (is_over) {
			job->id = 0;
		}
	}
	for (uint32_t i = 0; i < r->n_jobs; i++) {
		if (r->jobs[i].id != 0) {
			r->jobs[i].is_admitted = false;
			r->jobs[n_left++] = r->jobs[i];
		}
	}
	r->n_jobs = n_left;
	return NULL;
}

static void take_request(struct reference *r, const struct core_event *event)
{
	const struct reference_client *client = find_client(r, event->client);
	uint64_t id;

	if (event->type != EV_LOAD || client == NULL || !client->is_connected || r->is_shut) {
		return;
	}
	id = core_model_find(r->core, &r->key);
	if (find_wish(r, id, client->uid) == NULL && core_uid_has_wish(r->core, client->uid, id)) {
		(void)grant(r, id, client->uid, &r->policy);
	}
}

const char *reference_after(struct reference *r, const struct core_event *event)
{
	struct core_model_view view;
	uint32_t cursor = 0;
	const char *broken;

	r->n_steps++;
	if (r->replaced != 0 && core_model_find(r->core, &r->key) == r->replaced) {
		return "a reused inode inherits nobody's rights";
	}
	take_request(r, event);
	while (core_model_next(r->core, &cursor, &view)) {
		know_model(r, &view);
	}
	look_at_shares(r, false);
	if (r->n_lost > 0) {
		return "what is left of a lost copy is let go";
	}
	broken = compare_copies(r);
	broken = broken != NULL ? broken : compare_leases(r);
	broken = broken != NULL ? broken : compare_clients(r);
	broken = broken != NULL ? broken : compare_models(r);
	broken = broken != NULL ? broken : compare_accounts(r);
	broken = broken != NULL ? broken : compare_budgets(r);
	return broken != NULL ? broken : compare_jobs(r);
}
