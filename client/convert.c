/* SPDX-License-Identifier: Apache-2.0 */
#include "client/convert.h"

#include <string.h>

#include "client/result.h"

/* Fill one public structure from one wire struct. */
typedef bool (*fill_fn)(void *result, const void *from, void *to);

/* What a list of structures is made of. */
struct items {
	const struct wire_type *type;
	size_t size; /* of the public structure */
	fill_fn fill;
};

static uint64_t number_or_absent(bool is_there, uint64_t value)
{
	return is_there ? value : DISTORCH_ABSENT;
}

bool convert_text(void *result, bool is_there, struct wire_str from, const char **ret)
{
	if (!is_there) {
		*ret = NULL;
		return true;
	}
	*ret = result_text(result, from);
	return *ret != NULL;
}

bool convert_texts(void *result, struct wire_list from, const char *const **ret, size_t *ret_n)
{
	const char **texts = result_add(result, (from.count + (size_t)1) * sizeof *texts);
	struct wire_str text;
	size_t n = 0;

	if (texts == NULL) {
		return false;
	}
	while (wire_list_next(&from, NULL, &text)) {
		if (!convert_text(result, true, text, &texts[n++])) {
			return false;
		}
	}
	*ret = texts;
	*ret_n = n;
	return true;
}

bool convert_numbers(void *result, struct wire_list from, const uint64_t **ret, size_t *ret_n)
{
	uint64_t *numbers = result_add(result, (from.count + (size_t)1) * sizeof *numbers);
	uint64_t number;
	size_t n = 0;

	if (numbers == NULL) {
		return false;
	}
	while (wire_list_next(&from, NULL, &number)) {
		numbers[n++] = number;
	}
	*ret = numbers;
	*ret_n = n;
	return true;
}

/* '*ret' becomes an array of '*ret_n' pointers to public structures, and a NULL. */
static bool convert_items(void *result, const struct items *items, struct wire_list from,
			  void *ret_array, size_t *ret_n)
{
	void **array = result_add(result, (from.count + (size_t)1) * sizeof *array);
	union wire_body item;
	size_t n = 0;

	if (array == NULL) {
		return false;
	}
	while (wire_list_next(&from, items->type, &item)) {
		array[n] = result_add(result, items->size);
		if (array[n] == NULL || !items->fill(result, &item, array[n])) {
			return false;
		}
		n++;
	}
	memcpy(ret_array, &array, sizeof array);
	*ret_n = n;
	return true;
}

static bool fill_holder(void *result, const void *from, void *to)
{
	const struct wire_holder *wire = from;
	struct distorch_holder *holder = to;

	holder->client = wire->client;
	holder->pid = (uint32_t)wire->pid;
	holder->uid = (uint32_t)wire->uid;
	holder->held_bytes = wire->held_bytes;
	return convert_text(result, true, wire->comm, &holder->comm);
}

bool convert_holders(void *result, struct wire_list from, const struct distorch_holder *const **ret,
		     size_t *ret_n)
{
	const struct items items = {&wire_type_holder, sizeof(struct distorch_holder), fill_holder};

	return convert_items(result, &items, from, ret, ret_n);
}

static bool fill_place(void *result, const void *from, void *to)
{
	const struct wire_place *wire = from;
	struct distorch_place *place = to;

	place->bytes = wire->bytes;
	place->tensor_bytes = number_or_absent(wire->has_tensor_bytes, wire->tensor_bytes);
	return convert_text(result, true, wire->device, &place->device) &&
	       convert_text(result, true, wire->backing, &place->backing);
}

bool convert_model(void *result, const struct wire_model *from, struct distorch_model *ret)
{
	const struct items places = {&wire_type_place, sizeof(struct distorch_place), fill_place};

	ret->uid = (uint32_t)from->uid;
	ret->bytes = from->bytes;
	ret->progress_bytes = number_or_absent(from->has_progress_bytes, from->progress_bytes);
	ret->keep = from->keep;
	ret->pinned = from->pinned;
	ret->ttl_left_ms = number_or_absent(from->has_ttl_left_ms, from->ttl_left_ms);
	ret->priority = from->priority;
	ret->moving = from->has_moving && from->moving;
	ret->leases = from->leases;
	ret->last_used_ms = from->last_used_ms;
	ret->generation = from->generation;
	ret->tensors = from->tensors;
	ret->blocks = from->blocks;
	return convert_text(result, true, from->id, &ret->id) &&
	       convert_text(result, from->has_name, from->name, &ret->name) &&
	       convert_text(result, from->has_path, from->path, &ret->path) &&
	       convert_text(result, from->has_label, from->label, &ret->label) &&
	       convert_text(result, true, from->state, &ret->state) &&
	       convert_text(result, true, from->format, &ret->format) &&
	       convert_text(result, from->has_allocation, from->allocation, &ret->allocation) &&
	       convert_items(result, &places, from->where, &ret->where, &ret->n_where) &&
	       convert_texts(result, from->stays, &ret->stays, &ret->n_stays) &&
	       (!from->has_older ||
		convert_items(result, &places, from->older, &ret->older, &ret->n_older)) &&
	       (!from->has_users ||
		convert_holders(result, from->users, &ret->users, &ret->n_users));
}

static bool fill_model(void *result, const void *from, void *to)
{
	return convert_model(result, from, to);
}

bool convert_models(void *result, struct wire_list from, const struct distorch_model *const **ret,
		    size_t *ret_n)
{
	const struct items items = {&wire_type_model, sizeof(struct distorch_model), fill_model};

	return convert_items(result, &items, from, ret, ret_n);
}

static bool fill_outcome(void *result, const void *from, void *to)
{
	const struct wire_outcome *wire = from;
	struct distorch_outcome *outcome = to;

	outcome->bytes = wire->bytes;
	return convert_text(result, true, wire->id, &outcome->id) &&
	       convert_text(result, wire->has_name, wire->name, &outcome->name) &&
	       convert_text(result, true, wire->reason, &outcome->reason) &&
	       (!wire->has_holders ||
		convert_holders(result, wire->holders, &outcome->holders, &outcome->n_holders));
}

bool convert_outcomes(void *result, struct wire_list from,
		      const struct distorch_outcome *const **ret, size_t *ret_n)
{
	const struct items items = {&wire_type_outcome, sizeof(struct distorch_outcome),
				    fill_outcome};

	return convert_items(result, &items, from, ret, ret_n);
}

static bool fill_peer(void *result, const void *from, void *to)
{
	const struct wire_peer *wire = from;
	struct distorch_peer *peer = to;

	peer->link = number_or_absent(wire->has_link, wire->link);
	return convert_text(result, true, wire->device, &peer->device);
}

static bool fill_device(void *result, const void *from, void *to)
{
	const struct items peers = {&wire_type_peer, sizeof(struct distorch_peer), fill_peer};
	const struct wire_device *wire = from;
	struct distorch_device *device = to;

	device->total = wire->total;
	device->budget = wire->budget;
	device->used = wire->used;
	device->held = wire->held;
	device->reserved = wire->reserved;
	device->free = wire->free;
	device->models = wire->models;
	device->draining = wire->has_draining && wire->draining;
	device->dropping = wire->has_dropping ? wire->dropping : 0;
	device->foreign = number_or_absent(wire->has_foreign, wire->foreign);
	device->temperature = number_or_absent(wire->has_temperature, wire->temperature);
	device->last_xid = number_or_absent(wire->has_last_xid, wire->last_xid);
	device->link = number_or_absent(wire->has_link, wire->link);
	device->pid = number_or_absent(wire->has_pid, wire->pid);
	device->room = number_or_absent(wire->has_room, wire->room);
	device->evictable = number_or_absent(wire->has_evictable, wire->evictable);
	device->later = number_or_absent(wire->has_later, wire->later);
	device->loading = number_or_absent(wire->has_loading, wire->loading);
	device->granularity = number_or_absent(wire->has_granularity, wire->granularity);
	return (!wire->has_peers ||
		convert_items(result, &peers, wire->peers, &device->peers, &device->n_peers)) &&
	       convert_text(result, wire->has_text, wire->text, &device->text) &&
	       convert_text(result, wire->has_product, wire->product, &device->product) &&
	       convert_text(result, wire->has_pci, wire->pci, &device->pci) &&
	       convert_text(result, true, wire->name, &device->name) &&
	       convert_text(result, true, wire->uuid, &device->uuid) &&
	       convert_text(result, true, wire->state, &device->state);
}

bool convert_devices(void *result, struct wire_list from, const struct distorch_device *const **ret,
		     size_t *ret_n)
{
	const struct items items = {&wire_type_device, sizeof(struct distorch_device), fill_device};

	return convert_items(result, &items, from, ret, ret_n);
}

static bool fill_client(void *result, const void *from, void *to)
{
	const struct wire_client *wire = from;
	struct distorch_client *client = to;

	client->client = wire->client;
	client->pid = (uint32_t)wire->pid;
	client->uid = (uint32_t)wire->uid;
	client->connected = wire->connected;
	client->admin = wire->admin;
	client->leases = wire->leases;
	client->held_bytes = wire->held_bytes;
	client->age_ms = wire->age_ms;
	return convert_text(result, true, wire->comm, &client->comm) &&
	       convert_text(result, wire->has_label, wire->label, &client->label) &&
	       convert_text(result, wire->has_library, wire->library, &client->library);
}

bool convert_clients(void *result, struct wire_list from, const struct distorch_client *const **ret,
		     size_t *ret_n)
{
	const struct items items = {&wire_type_client, sizeof(struct distorch_client), fill_client};

	return convert_items(result, &items, from, ret, ret_n);
}

bool convert_record(void *result, const struct wire_record *from, struct distorch_record *ret)
{
	ret->seq = from->seq;
	ret->age_ms = from->age_ms;
	ret->time_ms = from->time_ms;
	ret->bytes = number_or_absent(from->has_bytes, from->bytes);
	ret->duration_ms = number_or_absent(from->has_duration_ms, from->duration_ms);
	return convert_text(result, true, from->type, &ret->type) &&
	       convert_text(result, true, from->model, &ret->model) &&
	       convert_text(result, from->has_name, from->name, &ret->name) &&
	       convert_text(result, from->has_device, from->device, &ret->device) &&
	       convert_text(result, from->has_why, from->why, &ret->why) &&
	       convert_text(result, from->has_for_whom, from->for_whom, &ret->for_whom);
}

static bool fill_record(void *result, const void *from, void *to)
{
	return convert_record(result, from, to);
}

bool convert_records(void *result, struct wire_list from, const struct distorch_record *const **ret,
		     size_t *ret_n)
{
	const struct items items = {&wire_type_record, sizeof(struct distorch_record), fill_record};

	return convert_items(result, &items, from, ret, ret_n);
}

static bool fill_setting(void *result, const void *from, void *to)
{
	const struct wire_setting *wire = from;
	struct distorch_setting *setting = to;

	return convert_text(result, true, wire->key, &setting->key) &&
	       convert_text(result, true, wire->value, &setting->value) &&
	       convert_text(result, true, wire->source, &setting->source);
}

bool convert_settings(void *result, struct wire_list from,
		      const struct distorch_setting *const **ret, size_t *ret_n)
{
	const struct items items = {&wire_type_setting, sizeof(struct distorch_setting),
				    fill_setting};

	return convert_items(result, &items, from, ret, ret_n);
}

static bool fill_check(void *result, const void *from, void *to)
{
	const struct wire_check *wire = from;
	struct distorch_check *check = to;

	check->ok = wire->ok;
	check->bytes = wire->bytes;
	check->offset = number_or_absent(wire->has_offset, wire->offset);
	return convert_text(result, true, wire->id, &check->id) &&
	       convert_text(result, wire->has_name, wire->name, &check->name) &&
	       convert_text(result, wire->has_text, wire->text, &check->text);
}

bool convert_checks(void *result, struct wire_list from, const struct distorch_check *const **ret,
		    size_t *ret_n)
{
	const struct items items = {&wire_type_check, sizeof(struct distorch_check), fill_check};

	return convert_items(result, &items, from, ret, ret_n);
}

static bool fill_warm(void *result, const void *from, void *to)
{
	const struct wire_warm_entry *wire = from;
	struct distorch_warm_entry *entry = to;

	entry->bytes = number_or_absent(wire->has_bytes, wire->bytes);
	return convert_text(result, true, wire->path, &entry->path) &&
	       convert_text(result, true, wire->source, &entry->source) &&
	       convert_text(result, true, wire->state, &entry->state) &&
	       convert_text(result, wire->has_model, wire->model, &entry->model) &&
	       convert_text(result, wire->has_text, wire->text, &entry->text);
}

bool convert_warm(void *result, struct wire_list from,
		  const struct distorch_warm_entry *const **ret, size_t *ret_n)
{
	const struct items items = {&wire_type_warm_entry, sizeof(struct distorch_warm_entry),
				    fill_warm};

	return convert_items(result, &items, from, ret, ret_n);
}

static bool fill_parked(void *result, const void *from, void *to)
{
	const struct wire_parked *wire = from;
	struct distorch_parked *parked = to;

	parked->generation = number_or_absent(wire->has_generation, wire->generation);
	parked->bytes = number_or_absent(wire->has_bytes, wire->bytes);
	return convert_text(result, true, wire->name, &parked->name) &&
	       convert_text(result, true, wire->kind, &parked->kind) &&
	       convert_text(result, true, wire->state, &parked->state) &&
	       convert_text(result, wire->has_model, wire->model, &parked->model) &&
	       convert_text(result, wire->has_model_name, wire->model_name, &parked->model_name);
}

bool convert_parked(void *result, struct wire_list from, const struct distorch_parked *const **ret,
		    size_t *ret_n)
{
	const struct items items = {&wire_type_parked, sizeof(struct distorch_parked), fill_parked};

	return convert_items(result, &items, from, ret, ret_n);
}

static bool fill_shard(void *result, const void *from, void *to)
{
	const struct wire_shard *wire = from;
	struct distorch_shard *shard = to;

	shard->bytes = wire->bytes;
	return convert_text(result, true, wire->name, &shard->name);
}

bool convert_shards(void *result, struct wire_list from, const struct distorch_shard *const **ret,
		    size_t *ret_n)
{
	const struct items items = {&wire_type_shard, sizeof(struct distorch_shard), fill_shard};

	return convert_items(result, &items, from, ret, ret_n);
}

static bool fill_wish(void *result, const void *from, void *to)
{
	const struct wire_wish *wire = from;
	struct distorch_wish *wish = to;

	(void)result; /* a wish has no parts */
	wish->uid = (uint32_t)wire->uid;
	wish->pin = wire->pin;
	wish->keep = wire->keep;
	wish->ttl_ms = number_or_absent(wire->has_ttl_ms, wire->ttl_ms);
	wish->priority = wire->priority;
	wish->pin_left_ms = number_or_absent(wire->has_pin_left_ms, wire->pin_left_ms);
	wish->keep_left_ms = number_or_absent(wire->has_keep_left_ms, wire->keep_left_ms);
	return true;
}

bool convert_wishes(void *result, struct wire_list from, const struct distorch_wish *const **ret,
		    size_t *ret_n)
{
	const struct items items = {&wire_type_wish, sizeof(struct distorch_wish), fill_wish};

	return convert_items(result, &items, from, ret, ret_n);
}

static bool fill_share(void *result, const void *from, void *to)
{
	const struct wire_share *wire = from;
	struct distorch_share *share = to;

	share->bytes = wire->bytes;
	share->blocks = wire->blocks;
	share->free_after = wire->free_after;
	return convert_text(result, true, wire->device, &share->device);
}

bool convert_shares(void *result, struct wire_list from, const struct distorch_share *const **ret,
		    size_t *ret_n)
{
	const struct items items = {&wire_type_share, sizeof(struct distorch_share), fill_share};

	return convert_items(result, &items, from, ret, ret_n);
}

static bool fill_planned(void *result, const void *from, void *to)
{
	const struct wire_placed_block *wire = from;
	struct distorch_planned_block *block = to;

	block->bytes = wire->bytes;
	block->tensors = wire->tensors;
	return convert_text(result, true, wire->name, &block->name) &&
	       convert_text(result, true, wire->device, &block->device);
}

bool convert_planned(void *result, struct wire_list from,
		     const struct distorch_planned_block *const **ret, size_t *ret_n)
{
	const struct items items = {&wire_type_placed_block, sizeof(struct distorch_planned_block),
				    fill_planned};

	return convert_items(result, &items, from, ret, ret_n);
}
