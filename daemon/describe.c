/* SPDX-License-Identifier: Apache-2.0 */
/* Views into wire structs. See describe.h. */
#include "daemon/describe.h"

#include "base/os/clock.h"
#include "base/os/log.h"
#include "base/os/sys.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <utlist.h>

#include "daemon/daemon.h"
#include "daemon/describe_use.h"
#include "daemon/device/device.h"
#include "daemon/failure.h"
#include "daemon/format/format.h"
#include "daemon/load/file.h"
#include "daemon/load/memory.h"
#include "daemon/placed_record.h"
#include "daemon/placement.h"
#include "proto/wire.h"

#define NS_PER_MS 1000000U

const char *describe_id(const uint8_t *uuid, char buffer[33])
{
	for (size_t i = 0; i < 16; i++) {
		(void)snprintf(&buffer[2 * i], 3, "%02x", uuid[i]);
	}
	return buffer;
}

bool describe_find_image(const struct daemon *daemon, uint64_t model, uint64_t generation,
			 uint64_t index, struct core_segment_view *ret)
{
	uint32_t cursor = 0;

	while (core_segment_next(daemon->core, model, &cursor, ret)) {
		if (core_segment_is_of(ret, generation) && !ret->is_block && ret->index == index &&
		    ret->state == SEGMENT_READY) {
			return true;
		}
	}
	return false;
}

int describe_images(const struct daemon *daemon, const struct image_range *range, int *ret_fds,
		    uint32_t *ret_n_fds)
{
	struct core_segment_view segment;
	int code = 0;

	*ret_n_fds = 0;
	while (code == 0 && *ret_n_fds < range->count &&
	       describe_find_image(daemon, range->model, range->generation,
				   range->first + *ret_n_fds, &segment)) {
		const struct extent *extent = store_find_extent(daemon->store, segment.id);

		code = extent == NULL ? -WIRE_INTERNAL
				      : device_export(extent, &ret_fds[*ret_n_fds], NULL);
		*ret_n_fds += code == 0 ? 1 : 0;
	}
	return code == 0 && *ret_n_fds == 0 ? -WIRE_INTERNAL : code;
}

const char *describe_device_label(const struct daemon *daemon, uint32_t device,
				  char buffer[PLAN_LABEL_SIZE])
{
	const struct known_device *known = &daemon->devices[device % CORE_MAX_DEVICES];
	const struct plan_device named = {.name = known->name,
					  .product = known->info.product,
					  .pci = known->info.pci,
					  .is_host = device == 0};

	return name_label(&named, buffer, PLAN_LABEL_SIZE);
}

const char *describe_device_name(const struct daemon *daemon, uint32_t device, char buffer[16])
{
	(void)snprintf(buffer, 16, "%.15s", daemon->devices[device % CORE_MAX_DEVICES].name);
	return buffer;
}

static const char *state_name(enum core_model_state state)
{
	static const char *const names[CORE_MODEL_N_STATES] = {
		[CORE_MODEL_REGISTERED] = "registered",   [CORE_MODEL_LOADING] = "loading",
		[CORE_MODEL_RESIDENT] = "resident",       [CORE_MODEL_PARTIAL] = "partial",
		[CORE_MODEL_DRAINING] = "draining",       [CORE_MODEL_FAILED] = "failed",
		[CORE_MODEL_QUARANTINED] = "quarantined",
	};

	return names[state];
}

static uint64_t ms_since(uint64_t then_ns)
{
	uint64_t now_ns = clock_boot_ns();

	return now_ns > then_ns ? (now_ns - then_ns) / NS_PER_MS : 0;
}

/* Bytes of a model by device: of its generation, and of those before it that are in use. */
struct lying {
	uint64_t current[CORE_MAX_DEVICES];
	uint64_t padding[CORE_MAX_DEVICES]; /* of current: no tensor's own */
	uint64_t older[CORE_MAX_DEVICES];
	uint64_t cached; /* in the page cache of its file */
};

static void find_lying(const struct daemon *daemon, const struct core_model_view *view,
		       struct lying *ret)
{
	struct core_segment_view segment;
	uint32_t cursor = 0;

	*ret = (struct lying){.cached = 0};
	while (core_segment_next(daemon->core, view->id, &cursor, &segment)) {
		bool is_image = segment.backing == CORE_BACKING_IMAGE;
		bool is_current = core_segment_is_of(&segment, view->generation) ||
				  view->generation == 0; /* the first is being loaded */

		if (segment.is_bare) {
			continue;
		}
		if (segment.state == SEGMENT_READY && is_current) {
			ret->current[segment.device] += is_image ? segment.size : 0;
			ret->cached += is_image ? 0 : segment.size;
			ret->padding[segment.device] += is_image ? segment.padding : 0;
		} else if (is_image && segment.is_older) {
			ret->older[segment.device] += segment.size;
		}
	}
}

static void describe_places(const struct daemon *daemon, const struct core_model_view *view,
			    struct model_description *ret)
{
	struct wire_list *where = &ret->wire.where;
	struct wire_list *older = &ret->wire.older;
	struct lying lying;

	find_lying(daemon, view, &lying);
	where->items = ret->places;
	older->items = ret->older;
	for (uint32_t device = 0; device < CORE_MAX_DEVICES; device++) {
		const struct wire_place place = {
			.device = wire_str(
				describe_device_name(daemon, device, ret->devices[device])),
			.backing = wire_str(device == 0 ? "image" : "device"),
		};

		if (device == 0 && lying.cached > 0) {
			ret->places[where->count] = place;
			ret->places[where->count].bytes = lying.cached;
			ret->places[where->count++].backing = wire_str("file");
		}
		if (lying.current[device] > 0) {
			ret->places[where->count] = place;
			ret->places[where->count].bytes = lying.current[device];
			ret->places[where->count].has_tensor_bytes = true;
			ret->places[where->count++].tensor_bytes =
				lying.current[device] - lying.padding[device];
		}
		if (lying.older[device] > 0) {
			ret->older[older->count] = place;
			ret->older[older->count++].bytes = lying.older[device];
		}
	}
	ret->wire.has_older = older->count > 0;
}

void describe_present(const struct daemon *daemon, uint64_t model, const uint8_t *places,
		      uint32_t n_blocks, uint8_t ret[PLAN_MAX_BLOCKS / 8])
{
	struct core_segment_view segment;
	struct core_model_view view;
	uint32_t cursor = 0;
	bool has_image = false; /* of what is to lie on the host: all of that, or nothing */

	memset(ret, 0, PLAN_MAX_BLOCKS / 8);
	if (!core_model_get(daemon->core, model, &view)) {
		return;
	}
	while (core_segment_next(daemon->core, model, &cursor, &segment)) {
		const uint32_t i = segment.index;

		if (segment.state != SEGMENT_READY ||
		    !core_segment_is_of(&segment, view.generation)) {
			continue;
		}
		has_image = has_image || !segment.is_block;
		if (segment.is_block && places != NULL && i < n_blocks &&
		    segment.device == places[i]) {
			ret[i / 8] |= (uint8_t)(1U << i % 8);
		}
	}
	for (uint32_t i = 0; has_image && i < n_blocks; i++) {
		if (places == NULL || places[i] == 0) {
			ret[i / 8] |= (uint8_t)(1U << i % 8);
		}
	}
}

bool describe_layout(const struct daemon *daemon, const struct model_info *info,
		     struct layout_description *ret)
{
	const uint8_t *places = info->current.places;

	*ret = (struct layout_description){.letters = NULL};
	if (places == NULL) {
		return true;
	}
	ret->letters = sys_malloc((size_t)info->current.n_blocks + 1);
	if (ret->letters == NULL) {
		return false;
	}
	for (uint32_t i = 0; i < info->current.n_blocks; i++) {
		ret->letters[i] = (char)('A' + places[i]);
	}
	for (uint32_t i = 0; i < daemon->n_devices; i++) {
		ret->names[i] = wire_str(daemon->devices[i].name);
		ret->uuids[i] = wire_str(daemon->devices[i].info.uuid);
	}
	ret->wire = (struct wire_layout){
		.devices = {.items = ret->names, .count = daemon->n_devices},
		.uuids = {.items = ret->uuids, .count = daemon->n_devices},
		.places = {.text = ret->letters, .size = info->current.n_blocks},
	};
	return true;
}

bool describe_layout_now(const struct daemon *daemon, const struct model_info *info,
			 struct layout_description *ret)
{
	uint8_t present[PLAN_MAX_BLOCKS / 8];
	const uint32_t n_blocks = info->current.n_blocks;

	if (!describe_layout(daemon, info, ret)) {
		return false;
	}
	if (ret->letters == NULL || daemon->n_devices == CORE_MAX_DEVICES) {
		return true;
	}
	describe_present(daemon, info->id, info->current.places, n_blocks, present);
	ret->names[daemon->n_devices] = wire_str("file");
	ret->uuids[daemon->n_devices] = wire_str("");
	ret->wire.devices.count = ret->wire.uuids.count = daemon->n_devices + 1;
	for (uint32_t i = 0; i < n_blocks; i++) {
		if ((present[i / 8] >> i % 8 & 1) == 0) {
			ret->letters[i] = (char)('A' + daemon->n_devices);
		}
	}
	return true;
}

/* Nobody steps while nothing happens, and the core's view is that of its last step. */
static uint64_t ttl_left_ms(const struct daemon *daemon, const struct core_model_view *view)
{
	const uint64_t past_ms = view->n_leases > 0 ? 0 : ms_since(daemon->stepped_ns);
	const uint64_t left_ms = view->ttl_left_ns / NS_PER_MS;

	return left_ms > past_ms ? left_ms - past_ms : 0;
}

static uint32_t describe_stays(const struct daemon *daemon, const struct core_model_view *view,
			       struct wire_str stays[4])
{
	uint32_t n_stays = 0;

	if (view->n_leases > 0) {
		stays[n_stays++] = wire_str("in-use");
	}
	if (view->is_pinned) {
		stays[n_stays++] = wire_str("pinned");
	}
	if (view->is_kept) {
		stays[n_stays++] = wire_str("kept");
	}
	/* One that has run out keeps nothing: where it is still there, that is by the pin. */
	if (view->ttl_left_ns != UINT64_MAX &&
	    (!view->is_pinned || ttl_left_ms(daemon, view) > 0)) {
		stays[n_stays++] = wire_str("ttl");
	}
	return n_stays;
}

const char *describe_backing(enum core_backing backing)
{
	return backing == CORE_BACKING_IMAGE ? "image" : "file";
}

const char *describe_format(uint32_t format)
{
	switch ((enum format)format) {
	case FORMAT_SAFETENSORS:
		return "safetensors";
	case FORMAT_GGUF:
		return "gguf";
	case FORMAT_RAW:
		return "raw";
	case FORMAT_AUTO:
		break;
	}
	return "unknown"; /* not read yet */
}

uint32_t describe_known_format(const struct daemon *daemon, const struct core_file_key *key)
{
	const uint64_t id = core_model_find(daemon->core, key);
	const struct model_info *info = store_find_model(daemon->store, id);
	struct core_model_view view;

	return info != NULL && core_model_get(daemon->core, id, &view) &&
			       view.key.size == key->size && view.key.mtime_ns == key->mtime_ns
		       ? info->current.format
		       : 0;
}

const char *describe_name(const struct daemon *daemon, uint64_t model, char buffer[512])
{
	const struct model_info *info = store_find_model(daemon->store, model);

	if (info == NULL) {
		(void)snprintf(buffer, 512, "the model");
		return buffer;
	}
	return store_display_name(info, buffer, 512);
}

bool describe_is_failed(const struct daemon *daemon, const struct core_model_view *view)
{
	const struct model_info *info = store_find_model(daemon->store, view->id);

	return view->state == CORE_MODEL_FAILED && (info == NULL || info->failure.code != 0);
}

bool describe_is_refused(const struct core_model_view *view)
{
	return view->state == CORE_MODEL_FAILED &&
	       (view->fail_code == WIRE_NO_MEMORY || view->fail_code == WIRE_BAD_ARGUMENT ||
		view->fail_code == WIRE_TOO_MANY || view->fail_code == WIRE_BUSY);
}

struct answer_line *describe_add_line(const struct daemon *daemon, struct pending *pending,
				      uint64_t model)
{
	const struct model_info *info = store_find_model(daemon->store, model);
	struct answer_line *line = pending_add_line(pending);
	char name[512];

	if (line == NULL) {
		log_warning("an answer lost a line: no memory");
		return NULL;
	}
	line->model = model;
	if (info != NULL) {
		(void)describe_id(info->uuid, line->uuid);
		(void)wire_str_copy(wire_str(describe_name(daemon, model, name)), line->name,
				    sizeof line->name);
	}
	return line;
}

void describe_model(const struct daemon *daemon, const struct client *viewer,
		    const struct core_model_view *view, struct model_description *ret)
{
	const struct model_info *info = store_find_model(daemon->store, view->id);
	struct wire_model *wire = &ret->wire;
	const struct placement *placement;
	bool is_forgiven = view->state == CORE_MODEL_FAILED && !describe_is_failed(daemon, view);
	enum core_model_state state = is_forgiven ? CORE_MODEL_REGISTERED : view->state;

	*wire = (struct wire_model){
		.id = wire_str(describe_id(view->uuid, ret->id)),
		.uid = view->owner_uid,
		.bytes = view->key.size,
		.state = wire_str(state_name(state)),
		.keep = view->is_kept,
		.pinned = view->is_pinned,
		.priority = view->priority,
		.leases = view->n_leases,
		.last_used_ms = ms_since(view->last_used_ns),
		.generation = view->generation,
		.format = wire_str(describe_format(info == NULL ? 0 : info->current.format)),
	};
	wire->has_moving = wire->moving = view->is_moving;
	if (view->state == CORE_MODEL_LOADING) {
		wire->has_progress_bytes = true;
		wire->progress_bytes = view->progress_bytes;
	}
	if (view->ttl_left_ns != UINT64_MAX) {
		wire->has_ttl_left_ms = true;
		wire->ttl_left_ms = ttl_left_ms(daemon, view);
	}
	placement = placement_find(daemon, view->placement);
	if (placement != NULL && placement->allocation[0] != '\0') { /* else virtual_vram says it */
		wire->has_allocation = true;
		wire->allocation = wire_str(placement->allocation);
	}
	describe_places(daemon, view, ret);
	wire->stays.items = ret->stays;
	wire->stays.count = describe_stays(daemon, view, ret->stays);
	if (info == NULL || !core_client_may(daemon->core, viewer->id, view->id)) {
		return;
	}
	wire->has_name = true;
	wire->name = wire_str(store_display_name(info, ret->name, (uint32_t)sizeof ret->name));
	wire->has_path = info->path[0] != '\0';
	wire->path = wire_str(info->path);
	wire->has_label = info->label != NULL;
	wire->label = wire_str(info->label != NULL ? info->label : "");
	wire->tensors = info->current.n_tensors;
	wire->blocks = info->current.n_blocks;
	wire->has_users = true;
	wire->users.items = ret->users;
	wire->users.count =
		describe_holders(daemon, viewer, view->id, ret->users, DESCRIBE_MAX_USERS);
}

/* With which devices the model comes back that are not there. */
static void add_missing(const struct daemon *daemon, const struct model_info *info,
			const struct core_model_view *view, struct sentence *sentence)
{
	const struct placed_record *record = info->returning;
	const char *before = sentence->size == 0 ? "it comes back with " : "; it comes back with ";
	uint32_t device = 0;

	for (uint32_t i = 0; record != NULL && i < record->n_devices; i++) {
		if (record->devices[i].is_used != 0 &&
		    !workers_find(daemon, record->devices[i].uuid, &device)) {
			sentence_add(sentence, "%s%s (%s)", before, record->devices[i].name,
				     record->devices[i].uuid);
			before = ", ";
		}
	}
	for (uint32_t i = 1; record == NULL && i < daemon->n_devices; i++) {
		struct core_account_view account;

		core_account_get(daemon->core, i, &account);
		if ((view->torn_devices >> i & 1) != 0 && account.is_lost) {
			sentence_add(sentence, "%s%s", before, daemon->devices[i].name);
			before = ", ";
		}
	}
}

const char *describe_notice(const struct daemon *daemon, const struct model_info *info,
			    const struct core_model_view *view, char buffer[DESCRIBE_NOTICE_SIZE])
{
	const struct file *file = store_find_file(daemon->store, view->file);
	struct sentence sentence = {.text = buffer, .capacity = DESCRIBE_NOTICE_SIZE};

	buffer[0] = '\0';
	if (info->current.notice[0] != '\0') {
		sentence_add(&sentence, "%s", info->current.notice);
	} else if (view->state == CORE_MODEL_FAILED) {
		sentence_add(&sentence, "%s", info->failure.text);
	}
	if (view->is_torn) {
		add_missing(daemon, info, view, &sentence);
	}
	if (info->current.table_fd >= 0 && file != NULL && file_is_gone(file)) {
		sentence_add(&sentence,
			     "%sits file is gone: once unloaded it cannot be loaded again",
			     sentence.size == 0 ? "" : "; ");
	}
	return buffer;
}

static bool may_know(const struct daemon *daemon, const struct client *viewer, uint64_t model,
		     uint32_t owner_uid)
{
	return viewer->is_admin || owner_uid == viewer->uid ||
	       core_client_may(daemon->core, viewer->id, model);
}

bool describe_may_see(const struct daemon *daemon, const struct client *viewer,
		      const struct record *record)
{
	return may_know(daemon, viewer, record->model, record->owner_uid);
}

void describe_record(const struct daemon *daemon, const struct client *viewer,
		     const struct record *record, uint64_t now_ns, struct record_description *ret)
{
	struct wire_record *wire = &ret->wire;
	bool is_hidden = record->for_model != 0 &&
			 !may_know(daemon, viewer, record->for_model, record->for_uid);
	const char *for_whom = is_hidden ? "another model" : record->for_whom;

	(void)history_why_text(record, for_whom, ret->why, (uint32_t)sizeof ret->why);
	*wire = (struct wire_record){
		.seq = record->seq,
		.age_ms = now_ns > record->at_ns ? (now_ns - record->at_ns) / NS_PER_MS : 0,
		.time_ms = record->real_ms,
		.type = wire_str(history_type_name(record->type)),
		.model = wire_str(describe_id(record->uuid, ret->id)),
		.has_name = record->name[0] != '\0',
		.name = wire_str(record->name),
		/* Of one that lies on several, 'why' says on which. */
		.has_device = record->bytes != 0 && record->device != CORE_ALL_DEVICES,
		.device = wire_str(describe_device_name(daemon, record->device, ret->device)),
		.has_bytes = record->bytes != 0,
		.bytes = record->bytes,
		.has_duration_ms = record->duration_ns != 0,
		.duration_ms = record->duration_ns / NS_PER_MS,
		.has_why = ret->why[0] != '\0',
		.why = wire_str(ret->why),
		.has_for_whom = for_whom[0] != '\0',
		.for_whom = wire_str(for_whom),
	};
}

/* Those that are there. */
static uint32_t describe_peers(const struct daemon *daemon, const struct device_info *info,
			       char (*names)[16], struct wire_peer *ret)
{
	uint32_t n_peers = 0;

	for (uint32_t device = 1; device < daemon->n_devices; device++) {
		for (uint32_t i = 0; i < info->n_peers; i++) {
			const struct device_peer *peer = &info->peers[i];

			if (strcmp(daemon->devices[device].info.uuid, peer->uuid) == 0) {
				ret[n_peers++] = (struct wire_peer){
					.device = wire_str(names[device]),
					.has_link = peer->bytes_per_s != 0,
					.link = peer->bytes_per_s,
				};
				break;
			}
		}
	}
	return n_peers;
}

static void describe_device(const struct daemon *daemon, uint32_t device,
			    struct devices_description *ret)
{
	const struct known_device *known = &daemon->devices[device];
	const struct device_info *info = &known->info;
	struct core_account_view account;

	core_account_get(daemon->core, device, &account);
	ret->wire[device] = (struct wire_device){
		.name = wire_str(ret->names[device]),
		.uuid = wire_str(device == 0 ? "host" : info->uuid),
		.state = wire_str(device_state_name(known->state)),
		.total = device == 0 ? daemon->host_total_bytes : info->total_bytes,
		.budget = account.budget,
		.used = account.resident + account.loading + account.dropping + account.held,
		.held = account.held,
		.reserved = account.reserved,
		.free = account.is_lost ? 0 : account.free,
		.models = core_account_models(daemon->core, device),
		.has_dropping = account.dropping != 0,
		.dropping = account.dropping,
		.has_draining = account.is_draining,
		.draining = account.is_draining,
		.has_product = info->product[0] != '\0',
		.product = wire_str(info->product),
		.has_pci = info->pci[0] != '\0',
		.pci = wire_str(info->pci),
		.has_foreign = device != 0,
		.foreign = info->foreign_bytes,
		.has_link = info->bytes_per_s != 0,
		.link = info->bytes_per_s,
		.has_temperature = info->temperature != 0,
		.temperature = info->temperature,
		.has_last_xid = info->last_xid != 0,
		.last_xid = info->last_xid,
		.has_pid = known->pid != 0,
		.pid = known->pid,
		.has_text = known->reason[0] != '\0',
		.text = wire_str(known->reason),
		.has_room = true,
		.room = account.room,
		.has_evictable = true,
		.evictable = account.evictable,
		.has_later = true,
		.later = account.later,
		.has_loading = true,
		.loading = account.loading,
		.has_granularity = info->granularity != 0,
		.granularity = info->granularity,
		.has_peers = device != 0 && info->n_peers != 0,
		.peers = {.items = ret->peers[device],
			  .count = describe_peers(daemon, info, ret->names, ret->peers[device])},
	};
}

struct wire_list describe_devices(const struct daemon *daemon, struct devices_description *ret)
{
	for (uint32_t device = 0; device < daemon->n_devices; device++) {
		(void)describe_device_name(daemon, device, ret->names[device]);
	}
	for (uint32_t device = 0; device < daemon->n_devices; device++) {
		describe_device(daemon, device, ret);
	}
	return (struct wire_list){.items = ret->wire, .count = daemon->n_devices};
}

/* Of one without a connection, by that which its process has by now: a restart leaves no label. */
static const char *label_of(const struct daemon *daemon, const struct client *client)
{
	const struct client *other;

	DL_FOREACH(daemon->clients, other)
	{
		if (client->conn == NULL && other->conn != NULL && other->label[0] != '\0' &&
		    other->pid == client->pid && other->uid == client->uid) {
			return other->label;
		}
	}
	return client->label;
}

void describe_client(const struct daemon *daemon, const struct core_client_view *view,
		     struct wire_client *ret)
{
	const struct client *client = daemon_find_client(daemon, view->id);
	const char *label;

	*ret = (struct wire_client){
		.client = view->id,
		.uid = view->uid,
		.connected = view->is_connected,
		.admin = view->is_admin,
		.leases = view->n_leases,
		.held_bytes = view->held_bytes,
	};
	if (client == NULL) {
		return;
	}
	ret->pid = client->pid;
	ret->comm = wire_str(client->comm);
	label = client->label[0] != '\0' ? client->label : label_of(daemon, client);
	ret->has_label = label[0] != '\0';
	ret->label = wire_str(label);
	ret->has_library = client->library[0] != '\0';
	ret->library = wire_str(client->library);
	ret->age_ms = ms_since(client->opened_ns);
}
