/* SPDX-License-Identifier: Apache-2.0 */
/* See driver.h. Every choice is a byte of the history; when it ends, zeros follow. */
#include "tests/core/driver.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "proto/gen/wire_code.h"

#define FAILED_BYTES 24U

static void fail(const struct driver *driver, const char *what)
{
	(void)fprintf(stderr, "core history %s, seed %llu, step %llu, event %u: %s\n",
		      driver->label, (unsigned long long)driver->seed,
		      (unsigned long long)driver->n_steps, driver->reference.event.type, what);
	abort();
}

static void check(const struct driver *driver, bool is_true, const char *what)
{
	if (!is_true) {
		fail(driver, what);
	}
}

static uint32_t next(struct driver *driver)
{
	return driver->at < driver->size ? driver->bytes[driver->at++] : 0;
}

static uint32_t pick(struct driver *driver, uint32_t n)
{
	return n == 0 ? 0 : next(driver) % n;
}

/* ---- books ---- */

static uint64_t open_file(struct driver *driver, uint32_t inode)
{
	check(driver, driver->n_files + 1 < DRIVER_FILES, "the driver has file ids left");
	driver->files[++driver->n_files] = (uint8_t)(inode + 1);
	return driver->n_files;
}

static uint32_t inode_of(const struct driver *driver, uint64_t file)
{
	check(driver, file != 0 && file <= driver->n_files && driver->files[file] != 0,
	      "I9 a file that is used is open");
	return driver->files[file] - 1U;
}

static bool is_open(const struct driver *driver, uint32_t inode)
{
	for (uint32_t file = 1; file <= driver->n_files; file++) {
		if (driver->files[file] == inode + 1) {
			return true;
		}
	}
	return false;
}

static struct driver_client *client_with(struct driver *driver, uint64_t id)
{
	for (uint32_t i = 0; i < DRIVER_CLIENTS; i++) {
		if (id != 0 && driver->clients[i].id == id) {
			return &driver->clients[i];
		}
	}
	return NULL;
}

static struct driver_pending *find_pending(struct driver *driver, uint64_t client, uint32_t request)
{
	for (uint32_t i = 0; i < driver->n_pending; i++) {
		if (driver->pending[i].client == client && driver->pending[i].request == request) {
			return &driver->pending[i];
		}
	}
	return NULL;
}

static void remember(uint64_t *ids, uint32_t *n_ids, uint64_t id)
{
	ids[(*n_ids)++ % DRIVER_KNOWN] = id;
}

static uint64_t recall(struct driver *driver, const uint64_t *ids, uint32_t n_ids)
{
	uint32_t byte = next(driver);

	if (byte == 255 || n_ids == 0) {
		return (uint64_t)byte << 32 | 3; /* invented */
	}
	return ids[byte % (n_ids < DRIVER_KNOWN ? n_ids : DRIVER_KNOWN)];
}

/* ---- placements ---- */

/* A placement above HOST is a number to base 3 whose digits are the devices of the blocks. */
static const uint64_t placements[] = {3, 4, 6, 14, 15, 27};

static uint64_t pick_placement(uint32_t byte)
{
	return placements[byte % (sizeof placements / sizeof placements[0])];
}

static uint32_t device_of(uint64_t placement, uint32_t block)
{
	uint64_t digits = placement > CORE_PLACEMENT_HOST ? placement - 2 : 0;

	for (uint32_t i = 0; i < block; i++) {
		digits /= DRIVER_DEVICES;
	}
	return (uint32_t)(digits % DRIVER_DEVICES);
}

static struct driver_layout *find_layout(struct driver_layout *layouts, uint64_t id)
{
	for (uint32_t i = 0; i < DRIVER_KNOWN; i++) {
		if (id != 0 && layouts[i].id == id) {
			return &layouts[i];
		}
	}
	return NULL;
}

static void keep_layout(struct driver_layout *layouts, uint32_t *n_layouts, uint64_t id,
			struct driver_layout layout)
{
	struct driver_layout *old = find_layout(layouts, id);

	layout.id = id;
	*(old != NULL ? old : &layouts[(*n_layouts)++ % DRIVER_KNOWN]) = layout;
}

static bool is_on_host(const struct driver_layout *layout, uint32_t block)
{
	return layout->with_host || device_of(layout->placement, block) == 0;
}

static bool is_same_image(const struct driver_layout *a, const struct driver_layout *b)
{
	bool is_same = true;

	for (uint32_t i = 0; i < DRIVER_BLOCKS; i++) {
		is_same = is_same && is_on_host(a, i) == is_on_host(b, i);
	}
	return is_same;
}

/* ---- actions ---- */

static void owe(struct driver *driver, const struct core_action *action, uint32_t inode)
{
	check(driver, driver->n_bag < DRIVER_BAG, "the driver's bag is large enough");
	driver->bag[driver->n_bag++] = (struct driver_result){.type = action->type,
							      .job = action->job,
							      .segment = action->segment,
							      .model = action->model,
							      .inode = inode,
							      .seen = driver->keys[inode]};
	if (action->type == ACT_READ_HEADER) {
		driver->bag[driver->n_bag - 1].placement = action->fill.placement;
		driver->bag[driver->n_bag - 1].with_host = action->fill.with_host;
	}
}

static void take_reply(struct driver *driver, const struct core_action *action)
{
	struct driver_pending *pending = find_pending(driver, action->client, action->request);
	struct core_model_view view;

	check(driver, pending != NULL, "I8 a request is answered once, while its client is there");
	check(driver, action->code >= 0 && action->code < WIRE_N_CODES, "a code is a known one");
	driver->replies[action->code]++;
	driver->limits[action->code == WIRE_TOO_MANY ? action->too_many.limit : 0]++;
	if (action->code == 0 && (pending->kind == EV_LOAD || pending->kind == EV_ATTACH) &&
	    action->reply.source != CORE_SOURCE_BEGUN) {
		check(driver,
		      core_model_get(driver->core, action->model, &view) &&
			      view.key.mtime_ns >= pending->presented,
		      "who presents a file gets its content, not an older one");
	}
	if (action->code == 0 && (pending->kind == EV_LOAD || pending->kind == EV_PLACE) &&
	    action->reply.source != CORE_SOURCE_BEGUN && pending->placement != CORE_PLACEMENT_ANY) {
		check(driver, core_model_get(driver->core, action->model, &view), "it is known");
		check(driver,
		      view.placement == pending->placement ||
			      (pending->placement == CORE_PLACEMENT_HOST && view.has_host),
		      "who asks for a placement gets it");
	}
	if (action->code == 0 && action->reply.lease != 0 && pending->kind == EV_RESERVE) {
		remember(driver->reservations, &driver->n_reservations, action->reply.lease);
	} else if (action->code == 0 && action->reply.lease != 0) {
		remember(driver->leases, &driver->n_leases, action->reply.lease);
	}
	*pending = driver->pending[--driver->n_pending];
}

static void take_publication(struct driver *driver, const struct core_action *action)
{
	const struct driver_layout *layout = find_layout(driver->asked, action->job);

	check(driver, layout != NULL, "what is published had a header");
	keep_layout(driver->published, &driver->n_published, action->model, *layout);
}

static void take_action(struct driver *driver, const struct core_action *action)
{
	struct driver_client *client;

	switch ((int)action->type) {
	case ACT_READ_HEADER:
	case ACT_RECHECK:
	case ACT_FILL:
	case ACT_MAKE_TABLE:
		owe(driver, action, inode_of(driver, action->fill.file));
		break;
	case ACT_PUBLISH:
		take_publication(driver, action);
		break;
	case ACT_VERIFY:
	case ACT_DROP:
		owe(driver, action, 0);
		break;
	case ACT_CLOSE_FILE:
		(void)inode_of(driver, action->fill.file);
		driver->files[action->fill.file] = 0;
		break;
	case ACT_FORGET_MODEL:
		driver->n_left += driver->reference.event.type == EV_DROPPED ? 1 : 0;
		break;
	case ACT_FORGET_CLIENT:
		client = client_with(driver, action->client);
		check(driver, client != NULL && !client->is_connected,
		      "a client is forgotten once, when it has gone");
		*client = (struct driver_client){0};
		break;
	case ACT_REPLY:
		take_reply(driver, action);
		break;
	case ACT_UNLOAD_ITEM:
	case ACT_PROGRESS:
		check(driver, find_pending(driver, action->client, action->request) != NULL,
		      "I8 only who waits is told of progress and lines");
		break;
	case ACT_NOTE:
		driver->notes[action->note.note]++;
		break;
	default:
		break;
	}
}

static bool is_at_once(enum core_event_type kind)
{
	return kind != EV_LOAD && kind != EV_PLACE && kind != EV_ATTACH && kind != EV_VERIFY &&
	       kind != EV_RESERVE;
}

static void check_step(struct driver *driver)
{
	const char *broken = core_check(driver->core);
	bool is_recalling = false; /* then others wait for those who are to let go */

	check(driver, broken == NULL, broken);
	for (uint32_t i = 0; i < driver->n_pending; i++) {
		is_recalling = is_recalling || driver->pending[i].is_recalling;
		check(driver, !is_at_once(driver->pending[i].kind),
		      "what needs nothing from outside is answered in the same step");
	}
	check(driver,
	      driver->n_bag > 0 || driver->n_pending == 0 || is_recalling ||
		      driver->now_ns < driver->quiet_until_ns,
	      "I12 nobody waits when nothing is under way");
}

static uint64_t step(struct driver *driver, struct core_event *event)
{
	struct core_update update;
	uint64_t ret_id = 0;
	const char *broken;

	driver->n_steps++;
	driver->counts[event->type]++;
	event->now_ns = driver->now_ns;
	broken = reference_before(&driver->reference, event);
	check(driver, broken == NULL, broken);
	do {
		core_step(driver->core, event, &update);
		check(driver, update.n_actions <= CORE_MAX_ACTIONS, "an update has its bound");
		ret_id = event->type == EV_CONTINUE ? ret_id : update.ret_id;
		for (uint32_t i = 0; i < update.n_actions; i++) {
			broken = reference_action(&driver->reference, &update.actions[i]);
			check(driver, broken == NULL, broken);
			take_action(driver, &update.actions[i]);
		}
		event->type = update.again ? EV_CONTINUE : event->type;
	} while (update.again);
	*event = driver->reference.event;
	if (event->type == EV_ADOPT || event->type == EV_ADOPT_LEASE ||
	    event->type == EV_ADOPT_PLACED) {
		reference_made(&driver->reference, ret_id);
	}
	broken = reference_after(&driver->reference, event);
	check(driver, broken == NULL, broken);
	check_step(driver);
	return ret_id;
}

/* ---- what happens ---- */

static void open_client(struct driver *driver, uint32_t place)
{
	static const uint32_t uids[] = {1000, 1001, 0, 1000, 1001, 1002};
	struct driver_client *client = &driver->clients[place];
	struct core_event event = {.type = EV_CLIENT_OPENED};
	bool may_open;

	event.opened.uid = uids[place];
	event.opened.is_admin = uids[place] == 0;
	may_open = reference_may_open(&driver->reference, uids[place], event.opened.is_admin);
	client->id = step(driver, &event);
	check(driver, (client->id != 0) == may_open, "who has a place left is let in, nobody else");
	client->uid = event.opened.uid;
	client->is_admin = event.opened.is_admin;
	client->is_connected = client->is_alive = client->id != 0;
	if (client->id != 0) {
		reference_open(&driver->reference, client->id, client->uid, client->is_admin);
	}
}

static void close_client(struct driver *driver, struct driver_client *client)
{
	struct core_event event = {.type = EV_CLIENT_CLOSED, .client = client->id};

	client->is_connected = false;
	for (uint32_t i = driver->n_pending; i > 0; i--) {
		if (driver->pending[i - 1].client == client->id) {
			driver->pending[i - 1] = driver->pending[--driver->n_pending];
		}
	}
	(void)step(driver, &event);
}

static void end_process(struct driver *driver, struct driver_client *client)
{
	struct core_event event = {.type = EV_PROCESS_GONE, .client = client->id};

	client->is_alive = false;
	(void)step(driver, &event);
}

static struct core_policy make_policy(struct driver *driver)
{
	uint32_t byte = next(driver);
	struct core_policy policy = {.said = byte < 128 ? 0 : byte & 15};

	if (policy.said != 0) {
		byte = next(driver);
		policy.pin = byte % 5 == 0;
		policy.keep = (byte & 2) != 0;
		policy.priority = (int16_t)(byte % 3);
		policy.ttl_ns = (byte & 8) != 0 ? byte * 10ULL : 0;
		policy.for_ns = (byte & 16) != 0 ? byte * 5ULL : 0;
	}
	return policy;
}

static uint32_t expect(struct driver *driver, const struct driver_client *client,
		       enum core_event_type kind)
{
	driver->pending[driver->n_pending++] =
		(struct driver_pending){.client = client->id,
					.request = ++driver->last_request,
					.kind = kind};
	return driver->last_request;
}

/* Its copies are blocks, the same ones for each content; else what a header says is by chance. */
static bool is_of_blocks(uint32_t inode)
{
	return inode >= DRIVER_INODES / 2;
}

static void send_place(struct driver *driver, const struct driver_client *client)
{
	uint32_t flags = next(driver);
	struct core_event event = {.type = EV_PLACE, .client = client->id};

	event.request = expect(driver, client, EV_PLACE);
	event.place.model = recall(driver, driver->models, driver->n_models);
	event.place.placement = flags < 50 ? CORE_PLACEMENT_HOST : pick_placement(flags);
	event.place.no_wait = (flags & 15) == 15;
	driver->pending[driver->n_pending - 1].placement = event.place.placement;
	(void)step(driver, &event);
}

static void send_load(struct driver *driver, const struct driver_client *client)
{
	static uint8_t fresh_id[16];
	uint32_t inode = pick(driver, DRIVER_INODES);
	uint32_t flags = next(driver);
	struct core_policy policy = make_policy(driver);
	struct core_file_key key = driver->keys[inode];
	struct core_event event = {.type = EV_LOAD, .client = client->id};
	uint32_t byte;

	key.is_raw = (flags & 96) == 96;
	event.request = expect(driver, client, EV_LOAD);
	driver->pending[driver->n_pending - 1].presented = key.mtime_ns;
	event.load.file = open_file(driver, inode);
	event.load.key = &key;
	event.load.fresh_id = fresh_id;
	event.load.policy = &policy;
	event.load.no_wait = (flags & 7) == 7;
	event.load.attach = (flags & 8) != 0;
	event.load.map = event.load.attach && (flags & 16) != 0;
	event.load.insists_backing = (flags & 128) != 0;
	event.load.backing = flags % 5 > 2 ? CORE_BACKING_AUTO : (enum core_backing)(flags % 5);
	if (is_of_blocks(inode)) {
		byte = next(driver);
		event.load.placement = byte < 110   ? CORE_PLACEMENT_ANY
				       : byte < 140 ? CORE_PLACEMENT_HOST
						    : pick_placement(byte);
		driver->pending[driver->n_pending - 1].placement = event.load.placement;
	}
	(void)step(driver, &event);
	remember(driver->models, &driver->n_models, core_model_find(driver->core, &key));
}

static void send_attach(struct driver *driver, const struct driver_client *client)
{
	uint32_t flags = next(driver);
	uint32_t inode = pick(driver, DRIVER_INODES);
	struct core_file_key key = driver->keys[inode];
	struct core_event event = {.type = EV_ATTACH, .client = client->id};
	struct core_lease_view lease;

	event.request = expect(driver, client, EV_ATTACH);
	event.attach.map = (flags & 1) != 0;
	if ((flags & 0xe0) == 0xe0) {
		event.attach.ghost = recall(driver, driver->leases, driver->n_leases);
		event.attach.model = recall(driver, driver->models, driver->n_models);
		event.attach.generation = 1 + flags % 3;
		if (core_lease_get(driver->core, event.attach.ghost, &lease) && flags != 255) {
			event.attach.model = lease.model;
			event.attach.generation = lease.generation;
		}
	} else if ((flags & 2) != 0) {
		event.attach.file = open_file(driver, inode);
		event.attach.key = &key;
		driver->pending[driver->n_pending - 1].presented = key.mtime_ns;
	} else {
		event.attach.model = recall(driver, driver->models, driver->n_models);
	}
	(void)step(driver, &event);
}

static void send_lease(struct driver *driver, const struct driver_client *client, uint32_t what)
{
	static const enum core_event_type types[] = {EV_DETACH, EV_UNMAPPED, EV_MAPPED};
	struct core_event event = {.type = types[what % 3], .client = client->id};

	event.lease.lease = recall(driver, driver->leases, driver->n_leases);
	if (event.type != EV_MAPPED) {
		event.request = expect(driver, client, event.type);
	}
	(void)step(driver, &event);
}

static void send_unload(struct driver *driver, const struct driver_client *client)
{
	uint32_t flags = next(driver);
	uint64_t models[2] = {recall(driver, driver->models, driver->n_models),
			      recall(driver, driver->models, driver->n_models)};
	struct core_event event = {.type = EV_UNLOAD, .client = client->id};

	event.request = expect(driver, client, EV_UNLOAD);
	if ((flags & 1) != 0) {
		event.unload.models = models;
		event.unload.n_models = 2;
		event.unload.by_name = (flags & 2) != 0;
	}
	event.unload.not_kept = (flags & 4) != 0;
	event.unload.recall_ns = flags & 1;
	event.unload.mine = (flags & 8) != 0;
	if (!event.unload.by_name) {
		event.unload.has_device = (flags & 0x30) == 0x30;
		event.unload.device = flags % driver->config.n_devices;
		event.unload.idle_ns = (flags & 0xc0) == 0xc0 ? 100 : 0;
	}
	(void)step(driver, &event);
}

static void send_model(struct driver *driver, const struct driver_client *client,
		       enum core_event_type type)
{
	struct core_policy policy = make_policy(driver);
	struct core_event event = {.type = type, .client = client->id};
	uint64_t model = recall(driver, driver->models, driver->n_models);

	event.request = expect(driver, client, type);
	if (type == EV_SET) {
		event.set.model = model;
		event.set.policy = &policy;
	} else {
		event.verify.model = model;
	}
	(void)step(driver, &event);
}

static void send_reserve(struct driver *driver, const struct driver_client *client)
{
	uint32_t flags = next(driver);
	struct core_event event = {.type = EV_RESERVE, .client = client->id};

	if ((flags & 3) == 0) {
		event.type = EV_RELEASE;
		event.request = expect(driver, client, EV_RELEASE);
		event.release.reservation =
			recall(driver, driver->reservations, driver->n_reservations);
	} else {
		event.request = expect(driver, client, EV_RESERVE);
		event.reserve.device = flags % driver->config.n_devices;
		event.reserve.bytes = next(driver) / 2;
		event.reserve.ttl_ns = (flags & 4) != 0 ? 40ULL * flags : 0;
		event.reserve.recall_ns = (flags & 24) == 24 ? flags : 0;
		driver->pending[driver->n_pending - 1].is_recalling = event.reserve.recall_ns > 0;
	}
	(void)step(driver, &event);
}

static void send_cancel(struct driver *driver, const struct driver_client *client)
{
	struct core_event event = {.type = EV_CANCEL, .client = client->id};

	event.request = expect(driver, client, EV_CANCEL);
	event.cancel.request = driver->pending[pick(driver, driver->n_pending)].request;
	(void)step(driver, &event);
}

static void request(struct driver *driver, uint32_t place)
{
	struct driver_client *client = &driver->clients[place];
	uint32_t what = next(driver);

	if (client->id == 0) {
		open_client(driver, place);
	} else if (client->is_connected && driver->n_pending < DRIVER_PENDING - 1) {
		if (what < 85) {
			send_load(driver, client);
		} else if (what < 110) {
			send_place(driver, client);
		} else if (what < 150) {
			send_attach(driver, client);
		} else if (what < 190) {
			send_lease(driver, client, what);
		} else if (what < 206) {
			send_unload(driver, client);
		} else if (what < 214) {
			send_model(driver, client, EV_SET);
		} else if (what < 220) {
			send_reserve(driver, client);
		} else if (what < 230) {
			send_model(driver, client, EV_VERIFY);
		} else if (what < 240) {
			send_cancel(driver, client);
		} else if (what < 248 && client->is_alive) {
			end_process(driver, client);
		} else {
			close_client(driver, client);
		}
	} else if (client->is_alive) {
		end_process(driver, client);
	}
}

static uint64_t rounded(uint32_t bytes)
{
	return (bytes / 4U + 1U) * 4U;
}

/* Some copies on some devices, none like another. */
static uint32_t make_needs(struct driver *driver, uint32_t luck, struct core_need *needs)
{
	for (uint32_t i = 0; i < 3; i++) {
		needs[i] = (struct core_need){.device = (i + luck) % driver->config.n_devices,
					      .index = i,
					      .bytes = rounded(next(driver) % 48)};
	}
	return 1 + (luck >> 1) % 3;
}

static uint64_t block_bytes(uint32_t inode, const struct core_file_key *key, uint32_t block)
{
	return rounded((inode * 11 + block * 17 + (uint32_t)key->mtime_ns * 5) % 20);
}

/* An image of what lies on the host, and the other blocks. */
static uint32_t lay_out(struct driver *driver, const struct driver_result *result,
			const struct core_file_key *key, struct core_need *needs)
{
	const struct driver_layout *was = find_layout(driver->published, result->model);
	struct driver_layout is = {.placement = result->placement,
				   .with_host = result->with_host,
				   .is_known = true,
				   .key = *key};
	bool is_same = was != NULL && was->is_known && was->key.size == key->size &&
		       was->key.mtime_ns == key->mtime_ns;
	struct core_need image = {.is_same = is_same && is_same_image(was, &is)};
	uint32_t n_needs = 0;

	for (uint32_t i = 0; i < DRIVER_BLOCKS; i++) {
		uint32_t device = device_of(is.placement, i);
		uint64_t bytes = block_bytes(result->inode, key, i);

		image.bytes += is_on_host(&is, i) ? bytes : 0;
		if (device != 0) {
			needs[n_needs++] =
				(struct core_need){.device = device,
						   .index = i,
						   .bytes = bytes,
						   .is_block = true,
						   .is_same = is_same && device_of(was->placement,
										   i) == device};
		}
	}
	if (image.bytes > 0) {
		needs[n_needs++] = image;
	}
	keep_layout(driver->asked, &driver->n_asked, result->job, is);
	return n_needs;
}

/* What is there besides is looked at before a header is planned with, and what was dropped. */
static void tell_available(struct driver *driver, uint32_t luck)
{
	for (uint32_t i = 0; (luck & 8) != 0 && i < driver->config.n_devices; i++) {
		struct core_event event = {.type = EV_AVAILABLE,
					   .budget = {.device = i,
						      .bytes = (luck & 0x30) == 0x30 ? next(driver)
										     : UINT64_MAX}};

		(void)step(driver, &event);
	}
}

static void give_header(struct driver *driver, const struct driver_result *result, uint32_t luck)
{
	struct core_need needs[DRIVER_BLOCKS + 1];
	struct core_file_key key = (luck & 1) != 0 ? result->seen : driver->keys[result->inode];
	struct core_event event = {.type = EV_HEADER_READ, .header = {.job = result->job}};

	event.header.code = luck >= 248 ? WIRE_BAD_FILE : 0;
	event.header.key = &key;
	event.header.needs = needs;
	event.header.is_cached = luck % 3 != 0;
	if (is_of_blocks(result->inode) || result->placement > CORE_PLACEMENT_HOST) {
		event.header.n_needs = lay_out(driver, result, &key, needs);
	} else {
		event.header.n_needs = make_needs(driver, luck, needs);
		keep_layout(driver->asked, &driver->n_asked, result->job,
			    (struct driver_layout){.key = key});
	}
	(void)step(driver, &event);
}

static void give_filled(struct driver *driver, const struct driver_result *result, uint32_t luck)
{
	const struct reference_job *job = reference_job_of(&driver->reference, result->job);
	struct core_file_key now = (luck & 1) != 0 ? result->seen : driver->keys[result->inode];
	struct core_event event = {.type = EV_FILLED, .filled = {.segment = result->segment}};

	event.filled.duration_ns = luck;
	event.filled.code = luck >= 250   ? WIRE_IO
			    : luck >= 246 ? WIRE_CANCELLED
			    : luck >= 241 ? WIRE_NO_MEMORY
			    : job != NULL && job->key.mtime_ns != now.mtime_ns
				    ? WIRE_CHANGED_WHILE_READING
				    : 0;
	(void)step(driver, &event);
}

static void give(struct driver *driver, uint32_t luck)
{
	struct core_event event = {0};
	struct driver_result result;
	uint32_t index;

	tell_available(driver, luck);
	if (driver->n_bag == 0) {
		return;
	}
	index = pick(driver, driver->n_bag);
	result = driver->bag[index];
	driver->bag[index] = driver->bag[--driver->n_bag];
	switch ((int)result.type) {
	case ACT_READ_HEADER:
		give_header(driver, &result, luck);
		return;
	case ACT_FILL:
		give_filled(driver, &result, luck);
		return;
	case ACT_MAKE_TABLE:
		event.type = EV_TABLED;
		event.tabled.job = result.job;
		event.tabled.code = luck >= 240 ? WIRE_IO : 0;
		break;
	case ACT_RECHECK:
		event.type = EV_RECHECKED;
		event.rechecked.job = result.job;
		event.rechecked.code = luck >= 248 ? WIRE_IO : 0;
		event.rechecked.is_equal =
			luck < 200 && result.seen.mtime_ns == driver->keys[result.inode].mtime_ns;
		break;
	case ACT_VERIFY:
		event.type = EV_VERIFIED;
		event.verified.segment = result.segment;
		event.verified.code = luck >= 240 ? WIRE_IO : 0;
		event.verified.is_equal = luck < 160;
		break;
	default:
		event.type = EV_DROPPED;
		event.dropped.segment = result.segment;
		break;
	}
	(void)step(driver, &event);
}

static void set_budget(struct driver *driver, uint32_t device, uint64_t bytes)
{
	struct core_event event = {.type = EV_BUDGET, .budget = {.device = device, .bytes = bytes}};

	(void)step(driver, &event);
}

/* A file gets another time of change, another content, or its inode another file. */
static void change_file(struct driver *driver)
{
	uint32_t inode = pick(driver, DRIVER_INODES);
	uint32_t how = next(driver);
	struct core_file_key *key = &driver->keys[inode];

	key->ctime_ns++;
	if (how >= 100 && (how < 200 || !is_open(driver, inode))) {
		key->mtime_ns++;
		key->size = 1 + how;
	}
}

/* Somebody looked: the file behind one of the copies is another by now, or more lies behind it. */
static void notice_change(struct driver *driver, uint32_t byte)
{
	const bool has_grown = (byte & 16) != 0;
	struct core_event event = {.type = has_grown ? EV_GROWN : EV_CHANGED};
	struct core_segment_view view;
	uint64_t segment = 0;
	uint32_t cursor = 0;

	for (uint32_t i = 0; i <= byte % 8 && core_segment_next(driver->core, 0, &cursor, &view);
	     i++) {
		segment = view.id;
	}
	if (has_grown) {
		event.grown.segment = segment;
		event.grown.bytes = byte / 4;
	} else {
		event.changed.segment = segment;
		event.changed.was_written = (byte & 8) != 0;
	}
	(void)step(driver, &event);
}

static void pass_time(struct driver *driver, uint32_t byte)
{
	struct core_event event = {.type = EV_TICK};
	uint64_t before = driver->now_ns;

	if (byte == 255) {
		driver->now_ns /= 2; /* a clock that goes back is taken for one that stands */
		(void)step(driver, &event);
		driver->now_ns = before;
	} else {
		driver->now_ns += (uint64_t)byte * byte;
		(void)step(driver, &event);
	}
}

static void find_devices(struct driver *driver, uint32_t luck)
{
	struct core_event event = {.type = EV_DEVICES_FOUND};
	struct core_model_view view;
	bool is_due = false;
	bool is_over = false; /* its time without use has run out: it need not come back */

	event.devices_found.model = recall(driver, driver->models, driver->n_models);
	event.devices_found.placement = luck < 150 ? CORE_PLACEMENT_HOST : pick_placement(luck);
	event.devices_found.devices = luck % 3 == 0 ? 0x3 : luck % 11 == 0 ? 0 : 0x7;
	if (core_model_get(driver->core, event.devices_found.model, &view)) {
		is_due = view.is_torn && view.job == 0 && luck >= 150 && view.file != 0 &&
			 event.devices_found.devices != 0 && !driver->reference.is_shut;
	}
	for (uint32_t device = 0; device < driver->config.n_devices; device++) {
		is_due = is_due && ((event.devices_found.devices >> device & 1) == 0 ||
				    !driver->reference.is_lost[device]);
	}
	(void)step(driver, &event);
	if (is_due && core_model_get(driver->core, event.devices_found.model, &view)) {
		is_over = view.ttl_left_ns == 0 && view.n_leases == 0 && !view.is_pinned;
		driver->n_returns += view.job != 0 ? 1 : 0;
		check(driver,
		      view.job != 0 ? view.job_placement == event.devices_found.placement
				    : view.is_torn != is_over,
		      "what was torn comes back as it lay, or waits");
	}
}

static void happen(struct driver *driver)
{
	uint32_t what = next(driver);
	struct core_event event = {.type = EV_N_VALUES};
	struct driver_result *result;
	uint32_t luck;

	if (what < 110) {
		request(driver, what % DRIVER_CLIENTS);
	} else if (what < 215) {
		if (driver->n_bag > 0) {
			give(driver, next(driver));
		}
	} else if (what < 225) {
		change_file(driver);
	} else if (what < 240) {
		pass_time(driver, next(driver));
	} else if (what < 245) {
		set_budget(driver, what % driver->config.n_devices, next(driver));
	} else if (what < 246) {
		notice_change(driver, next(driver));
	} else if (what < 247) {
		event.type = next(driver) % 2 == 0 ? EV_DEVICE_SHORT : EV_DEVICE_DOUBTED;
		event.device.device = what % driver->config.n_devices;
		(void)step(driver, &event);
	} else if (what < 248) {
		event.type = EV_PRESSURE;
		event.pressure.device = what % driver->config.n_devices;
		event.pressure.wanted = next(driver);
		(void)step(driver, &event);
	} else if (what < 253 && driver->n_bag > 0) {
		result = &driver->bag[pick(driver, driver->n_bag)];
		event.type = EV_FILL_PROGRESS;
		event.progress.job = result->job;
		event.progress.bytes = FAILED_BYTES;
		(void)step(driver, &event);
	} else if (what == 253) {
		event.type = EV_DRAIN;
		event.drain.is_on = next(driver) < 80;
		event.drain.device = next(driver) % 4;
		event.drain.device = event.drain.device < driver->config.n_devices
					     ? event.drain.device
					     : CORE_ALL_DEVICES;
		(void)step(driver, &event);
	} else if (what == 254) {
		luck = next(driver);
		event.type = luck < 40 ? EV_DEVICE_LOST : EV_DEVICE_BACK;
		event.device.device = 1 + pick(driver, driver->config.n_devices - 1);
		if (luck < 140) {
			(void)step(driver, &event);
		} else {
			find_devices(driver, luck);
		}
	} else if (what == 255 && next(driver) == 255) {
		event.type = EV_SHUTDOWN;
		(void)step(driver, &event);
	}
	driver->now_ns++;
}

/* ---- the end ---- */

static void give_all(struct driver *driver)
{
	while (driver->n_bag > 0) {
		give(driver, next(driver));
	}
}

/* I14: nothing is held, nothing waits, and every byte that is charged serves a model. */
static void check_rest(struct driver *driver)
{
	struct core_account_view account;
	struct core_model_view model;
	struct core_client_view client;
	uint32_t cursor = 0;
	uint32_t n_open = 0;

	for (uint32_t device = 0; device < driver->config.n_devices; device++) {
		core_account_get(driver->core, device, &account);
		check(driver, account.held == 0 && account.loading == 0 && account.dropping == 0,
		      "I14 at rest all bytes are resident");
	}
	check(driver, !core_client_next(driver->core, &cursor, &client),
	      "I14 at rest every client is forgotten");
	for (uint32_t file = 1; file <= driver->n_files; file++) {
		n_open += driver->files[file] != 0 ? 1 : 0;
	}
	cursor = 0;
	while (core_model_next(driver->core, &cursor, &model)) {
		check(driver, model.job == 0 && model.n_leases == 0, "I14 at rest no job runs");
		if (model.file != 0) {
			(void)inode_of(driver, model.file);
			n_open--;
		}
	}
	check(driver, n_open == 0, "I9 at rest only resident models have an open file");
	check(driver, driver->n_pending == 0, "I8 at rest nobody is owed an answer");
}

static void finish(struct driver *driver)
{
	struct core_event event = {.type = EV_SHUTDOWN};
	struct core_event tick = {0};

	for (uint32_t i = 0; i < DRIVER_CLIENTS; i++) {
		struct driver_client *client = &driver->clients[i];
		bool is_closed_first = (next(driver) & 1) != 0;

		if (client->id != 0 && client->is_alive && !is_closed_first) {
			end_process(driver, client);
		}
		if (client->id != 0 && client->is_connected) {
			close_client(driver, client);
		}
		if (client->id != 0 && client->is_alive) {
			end_process(driver, client);
		}
	}
	driver->now_ns = driver->now_ns > driver->quiet_until_ns ? driver->now_ns
								 : driver->quiet_until_ns;
	tick.type = EV_TICK;
	(void)step(driver, &tick);
	give_all(driver);
	check_rest(driver);
	(void)step(driver, &event);
	give_all(driver);
	check_rest(driver);
}

static void begin(struct driver *driver)
{
	bool is_small = (next(driver) & 1) != 0;

	driver->config = (struct core_config){
		.max_clients = is_small ? 4 : 12,
		.max_clients_per_uid = pick(driver, 4),
		.reserved_clients = 1,
		.max_models = is_small ? 3 : 9,
		.max_models_per_uid = is_small ? 2 : pick(driver, 8),
		.max_queued_per_uid = pick(driver, 4),
		.max_segments = is_small ? 10 : 50,
		.max_leases = is_small ? 5 : 40,
		.max_leases_per_uid = is_small ? 4 : pick(driver, 12),
		.max_waiters = is_small ? 4 : 40,
		.max_reservations = is_small ? 1 : 6,
		.max_wishes = is_small ? 7 : 40,
		.n_devices = DRIVER_DEVICES,
		.loads_per_uid = 1 + pick(driver, 3),
		.idle_evict_ns = is_small ? 900 : 0,
		.linger_ns = pick(driver, 4) * 700,
		.share_milli_pct = pick(driver, 4) * 30000,
		.share_bytes = 20 + pick(driver, 60),
	};
	driver->memory = calloc(1, core_size(&driver->config));
	check(driver, driver->memory != NULL, "there is memory for a core");
	driver->core = core_init(driver->memory, &driver->config);
	reference_init(&driver->reference, driver->core, &driver->config);
	for (uint32_t i = 0; i < DRIVER_INODES; i++) {
		driver->keys[i] = (struct core_file_key){.dev = 1 + i / 4,
							 .ino = 10 + i,
							 .size = 100,
							 .mtime_ns = 1,
							 .ctime_ns = 1};
	}
}

/* ---- what survived a restart ---- */

/* 'bytes' of images, where they are not there any more. */
static void adopt_lease(struct driver *driver, uint32_t place, uint64_t model, uint64_t generation,
			uint64_t bytes)
{
	struct driver_client *client = &driver->clients[place];
	struct core_event event = {.type = EV_ADOPT_LEASE};
	uint64_t lease;

	if (client->id == 0) {
		open_client(driver, place);
	}
	if (client->id == 0 || !client->is_connected) {
		return;
	}
	event.client = client->id;
	event.adopt_lease.model = model;
	event.adopt_lease.generation = generation;
	event.adopt_lease.bytes = bytes;
	lease = step(driver, &event);
	remember(driver->leases, &driver->n_leases, lease);
	close_client(driver, client);
}

static void adopt_copy(struct driver *driver, uint32_t byte)
{
	static const uint8_t uuid[16] = {1};
	uint32_t inode = byte % DRIVER_INODES;
	struct core_file_key key = driver->keys[inode];
	struct core_event event = {.type = EV_ADOPT};
	struct core_segment_view segment;
	struct core_event wish = {.type = EV_ADOPT_WISH};
	uint64_t id;

	event.adopt.key = &key;
	event.adopt.uuid = uuid;
	event.adopt.file = open_file(driver, inode);
	event.adopt.generation = 1 + (byte >> 3) % 3;
	event.adopt.bytes = rounded(byte);
	event.adopt.owner_uid = 1000 + (byte & 1);
	event.adopt.index = (byte >> 5) & 1;
	event.adopt.backing = (byte & 4) != 0 ? CORE_BACKING_FILE : CORE_BACKING_IMAGE;
	id = step(driver, &event);
	if (id == 0 || !core_segment_get(driver->core, id, &segment)) {
		return;
	}
	remember(driver->models, &driver->n_models, segment.model);
	wish.adopt_wish.model = segment.model;
	wish.adopt_wish.uid = 1000 + (byte >> 7);
	wish.adopt_wish.pin = byte % 5 == 0;
	wish.adopt_wish.keep = byte % 3 == 0;
	wish.adopt_wish.pin_until_ns = wish.adopt_wish.keep_until_ns =
		byte % 7 == 0 ? driver->now_ns + byte : UINT64_MAX;
	(void)step(driver, &wish);
	if ((byte & 2) != 0) {
		adopt_lease(driver, byte % DRIVER_CLIENTS, segment.model, segment.generation,
			    rounded(byte));
	}
}

static void adopt_placed(struct driver *driver, uint32_t byte)
{
	static const uint8_t uuid[16] = {2};
	uint32_t inode = byte % DRIVER_INODES;
	struct core_file_key key = driver->keys[inode];
	struct core_event event = {.type = EV_ADOPT_PLACED};
	uint64_t id;

	key.mtime_ns -= byte % 5 == 0 ? 1 : 0; /* of another content than the images */
	driver->keys[inode].mtime_ns += byte % 5 == 1 ? 1 : 0;
	event.adopt_placed.key = &key;
	event.adopt_placed.uuid = uuid;
	event.adopt_placed.file = open_file(driver, inode);
	event.adopt_placed.generation = (byte >> 3) % 5;
	event.adopt_placed.placement = byte % 13 == 0 ? CORE_PLACEMENT_HOST : pick_placement(byte);
	event.adopt_placed.owner_uid = 1000 + (byte & 1);
	event.adopt_placed.placed_uid = 1000 + (byte >> 1 & 1);
	id = step(driver, &event);
	if (id != 0) {
		remember(driver->models, &driver->n_models, id);
		if ((byte & 4) != 0) {
			adopt_lease(driver, byte % DRIVER_CLIENTS, id, byte % 7, rounded(byte));
		}
	}
}

static void adopt(struct driver *driver)
{
	struct core_event event = {.type = EV_ADOPTED, .adopted = {.quiet_ns = 40}};
	uint32_t n_copies = pick(driver, 4);
	uint32_t n_placed = pick(driver, 4 - n_copies); /* of no more models than a uid may have */

	if (n_copies + n_placed == 0) {
		return;
	}
	for (uint32_t i = 0; i < n_copies; i++) {
		adopt_copy(driver, next(driver));
	}
	for (uint32_t i = 0; i < n_placed; i++) {
		adopt_placed(driver, next(driver));
	}
	driver->quiet_until_ns = driver->now_ns + event.adopted.quiet_ns;
	(void)step(driver, &event);
}

void driver_run(struct driver *driver, const char *label, uint64_t seed, const uint8_t *bytes,
		size_t size)
{
	driver->label = label;
	driver->seed = seed;
	driver->bytes = bytes;
	driver->size = size;
	driver->now_ns = 1000;
	begin(driver);
	adopt(driver);
	for (uint32_t i = 0; i < DRIVER_DEVICES; i++) {
		set_budget(driver, i, 60 + 40U * i);
	}
	while (driver->at < driver->size && driver->n_files + 64 < DRIVER_FILES) {
		happen(driver);
	}
	finish(driver);
	free(driver->memory);
	driver->memory = NULL;
}
