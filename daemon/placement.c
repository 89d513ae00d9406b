/* SPDX-License-Identifier: Apache-2.0 */
/* See placement.h. */
#define HASH_NONFATAL_OOM            1
#define uthash_nonfatal_oom(element) ((void)(element), placement_out_of_memory = true)

/* Keys are hashes already. */
#define HASH_FUNCTION(key, size, hash) \
	((void)(size), (hash) = (unsigned)(*(const uint64_t *)(key) >> 32))

#include "daemon/placement.h"

#include "base/cleanup.h"
#include "base/err.h"
#include "base/os/model_files.h"
#include "base/os/sys.h"
#include "base/require.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <utlist.h>

#include "daemon/daemon.h"
#include "daemon/device/device.h"
#include "daemon/format/format.h"
#include "daemon/format/segment_layout.h"
#include "daemon/gather.h"
#include "daemon/load/hash.h"
#include "daemon/load/image_set.h"
#include "daemon/placed_record.h"
#include "daemon/plan/explain.h"

_Static_assert(PLAN_MAX_BLOCKS + MODEL_MAX_FILES <= CORE_MAX_NEEDS,
	       "a generation has a copy of each file and of each block");

#define MIN_PLACEMENTS 1024U /* so many may be of no use before they are looked at */

/* Set by uthash when it could not grow; the element is not in the table then. */
static bool placement_out_of_memory;

/* ---- what was said ---- */

static bool is_mark(char byte)
{
	return byte == ';' || byte == ',' || byte == '|' || byte == '=';
}

static bool is_blank(char byte)
{
	return byte == ' ' || byte == '\t' || byte == '\n' || byte == '\r'; /* as the planner */
}

static size_t trim(const char *text, size_t size)
{
	while (size > 0 && is_blank(text[size - 1])) {
		size--;
	}
	return size;
}

/* Case, blanks beside marks and empty items mean nothing in an allocation. Blanks within a name or
 * a number do: "1 0gb" is a mistake and not 10gb. */
static size_t normalize(struct wire_str text, char *ret)
{
	size_t size = 0;

	for (uint32_t i = 0; i < text.size; i++) {
		char byte = text.text[i];
		bool is_after_mark;

		size = is_mark(byte) ? trim(ret, size) : size;
		if (byte == '|' && size > 0 && ret[size - 1] == ';') {
			size--;
		}
		is_after_mark = size == 0 || is_mark(ret[size - 1]);
		if (is_after_mark &&
		    (is_blank(byte) || (byte == ';' && (size == 0 || ret[size - 1] != ',')))) {
			continue;
		}
		ret[size++] = (char)tolower((unsigned char)byte);
	}
	size = trim(ret, size);
	return size > 0 && ret[size - 1] == ';' ? size - 1 : size;
}

static bool is_host(const char *text, size_t size)
{
	static const char *const words[] = {"cpu", "ram", "host", "cpu,*", "ram,*", "host,*"};

	for (size_t i = 0; i < sizeof words / sizeof words[0]; i++) {
		if (strlen(words[i]) == size && memcmp(words[i], text, size) == 0) {
			return true;
		}
	}
	return false;
}

/* Does it say more than an allocation of RAM alone? "cpu,*" beside a device that computes leaves
 * that its head; "cpu" does not, and is asked about for what a pass copies then. */
static bool has_more(const struct placement *said, bool is_asked, const char *text, size_t size)
{
	return said->n_donors > 0 ||
	       (said->compute[0] != '\0' && (is_asked || text[size - 1] == '*'));
}

/* Everything that tells one from another, as bytes. */
struct canon {
	char bytes[PLAN_MAX_TEXT + (PLAN_MAX_DONORS + 1) * 66 + 64 +
		   CORE_MAX_DEVICES * DEVICE_NAME_SIZE];
	size_t size;
};

static void canon_add(struct canon *canon, const void *bytes, size_t size)
{
	REQUIRE(size <= sizeof canon->bytes - canon->size - 1);
	memcpy(canon->bytes + canon->size, bytes, size);
	canon->size += size;
	canon->bytes[canon->size++] = '\0';
}

static void canon_make(const struct placement *placement, struct canon *ret)
{
	char text[PLAN_MAX_TEXT + 1];
	const uint64_t numbers[] = {placement->virtual_vram, (uint64_t)placement->strategy,
				    placement->by_tensor, placement->n_donors};

	ret->size = 0;
	canon_add(ret, text, normalize(wire_str(placement->allocation), text));
	canon_add(ret, text, normalize(wire_str(placement->compute), text));
	for (uint32_t i = 0; i < placement->n_donors; i++) {
		canon_add(ret, text, normalize(wire_str(placement->donors[i]), text));
	}
	canon_add(ret, numbers, sizeof numbers);
	for (uint32_t i = 0; placement->has_names && i < CORE_MAX_DEVICES; i++) {
		canon_add(ret, placement->names[i], strlen(placement->names[i]));
	}
}

/* Its number: the hash of what was said, or the next one where another has that. '*ret_is_known':
 * it has been said before. */
__attribute__((noinline)) static uint64_t
id_of(const struct daemon *daemon, const struct placement *placement, bool *ret_is_known)
{
	struct canon canon;
	struct canon other;
	uint64_t id;

	canon_make(placement, &canon);
	id = hash_bytes(canon.bytes, canon.size);
	for (;; id++) {
		const struct placement *has = placement_find(daemon, id);

		if (id <= CORE_PLACEMENT_HOST) {
			continue;
		}
		if (has == NULL) {
			*ret_is_known = false;
			return id;
		}
		canon_make(has, &other);
		if (other.size == canon.size && memcmp(other.bytes, canon.bytes, canon.size) == 0) {
			*ret_is_known = true;
			return id;
		}
	}
}

static int read_granularity(struct wire_str text, bool *ret_by_tensor, struct err *err)
{
	*ret_by_tensor = wire_str_is(text, "tensor");
	if (text.size > 0 && !*ret_by_tensor && !wire_str_is(text, "block")) {
		return err_set(err, WIRE_BAD_ARGUMENT, "granularity is block or tensor");
	}
	return 0;
}

__attribute__((noinline)) static int read_words(const struct placement_words *words,
						struct placement *ret, struct err *err)
{
	const struct plan_text strategy = {words->strategy.text, words->strategy.size};
	struct wire_list donors = words->donors;
	struct wire_str donor;
	int code;

	if (words->allocation.size > PLAN_MAX_TEXT) {
		return err_set(err, WIRE_BAD_ARGUMENT, "an allocation has at most %u bytes",
			       PLAN_MAX_TEXT);
	}
	(void)wire_str_copy(words->allocation, ret->allocation, sizeof ret->allocation);
	(void)wire_str_copy(words->compute, ret->compute, sizeof ret->compute);
	while (wire_list_next(&donors, NULL, &donor) && ret->n_donors < PLAN_MAX_DONORS) {
		(void)wire_str_copy(donor, ret->donors[ret->n_donors++], sizeof ret->donors[0]);
	}
	ret->virtual_vram = words->virtual_vram;
	code = plan_strategy_find(strategy, &ret->strategy, err);
	return code < 0 ? code : read_granularity(words->granularity, &ret->by_tensor, err);
}

static void mark_used(void *context, uint64_t id)
{
	const struct daemon *daemon = context;
	struct placement *placement;

	HASH_FIND(hh, daemon->placements, &id, sizeof id, placement);
	if (placement != NULL) {
		placement->is_used = true;
	}
}

static void forget_unused(struct daemon *daemon)
{
	const struct client *client;
	struct placement *placement;
	struct placement *next;

	core_placements_used(daemon->core, mark_used, daemon);
	DL_FOREACH(daemon->clients, client)
	{
		gather_use_placements(client, mark_used, daemon);
	}
	HASH_ITER(hh, daemon->placements, placement, next)
	{
		if (placement->is_used) {
			placement->is_used = false;
			continue;
		}
		/* NOLINTNEXTLINE(clang-analyzer-unix.Malloc): HASH_ITER has the next one already */
		HASH_DEL(daemon->placements, placement);
		free(placement);
	}
}

static int keep(struct daemon *daemon, const struct placement *like, struct err *err)
{
	struct placement *placement;

	if (HASH_COUNT(daemon->placements) >= daemon->max_placements) {
		forget_unused(daemon);
		/* NOLINTNEXTLINE(clang-analyzer-unix.Malloc): what was freed is not in it any more */
		daemon->max_placements = 2 * HASH_COUNT(daemon->placements) + MIN_PLACEMENTS;
	}
	placement = sys_malloc(sizeof *placement);
	if (placement == NULL) {
		return err_set(err, WIRE_NO_MEMORY, "no memory to keep the allocation");
	}
	*placement = *like;
	placement_out_of_memory = false;
	HASH_ADD(hh, daemon->placements, id, sizeof placement->id, placement);
	if (placement_out_of_memory) {
		free(placement);
		return err_set(err, WIRE_NO_MEMORY, "no memory to keep the allocation");
	}
	return 0;
}

bool placement_names(const struct daemon *daemon, const struct client *client,
		     char ret[CORE_MAX_DEVICES][DEVICE_NAME_SIZE])
{
	memset(ret, 0, CORE_MAX_DEVICES * sizeof ret[0]);
	(void)snprintf(ret[0], sizeof ret[0], "%s", daemon->devices[0].name);
	if (client == NULL || client->n_device_uuids == 0) {
		return false;
	}
	for (uint32_t i = 1; i < daemon->n_devices; i++) {
		const struct known_device *known = &daemon->devices[i];
		bool is_simulated = strncmp(known->name, "sim", 3) == 0;
		bool is_told = false; /* of this sort of device at all */
		uint32_t ordinal = 0;

		for (uint32_t j = 0; j < client->n_device_uuids; j++) {
			const char *uuid = client->device_uuids[j];
			/* UUIDs begin with their kind: GPU-, MIG-, SIM-. */
			bool is_kind = strncasecmp(uuid, known->info.uuid, 4) == 0;

			if (strcasecmp(uuid, known->info.uuid) == 0) {
				(void)snprintf(ret[i], sizeof ret[0], "%s:%u",
					       is_simulated ? "sim" : "cuda", ordinal);
			}
			ordinal += is_kind ? 1 : 0;
			is_told |= (strncasecmp(uuid, "SIM-", 4) == 0) == is_simulated;
		}
		if (!is_told) {
			(void)snprintf(ret[i], sizeof ret[0], "%s", known->name);
		}
	}
	return true;
}

/* As the planner will: what is written wrong is wrong for every model, and is told at once. What
 * depends on the model and on what is there at its turn is looked at then. */
__attribute__((noinline)) static int check_words(const struct daemon *daemon,
						 const struct placement *said, struct err *err)
{
	AUTO_FREE struct placement_room *room = sys_calloc(1, sizeof *room);
	struct plan_text donors[PLAN_MAX_DONORS];
	struct plan_request request;
	int code;

	if (room == NULL) {
		return err_set(err, WIRE_NO_MEMORY, "no memory to read the allocation");
	}
	placement_look(daemon, 0, false, room);
	placement_request(said, room, donors, &request);
	code = plan_check(&request, err);
	return code == -WIRE_BAD_ARGUMENT ? code : 0;
}

int placement_take(struct daemon *daemon, const struct client *client,
		   const struct placement_words *words, uint64_t *ret_id, struct err *err)
{
	struct placement said = {.id = CORE_PLACEMENT_ANY};
	char text[PLAN_MAX_TEXT + 1];
	bool is_known;
	size_t size;
	int code = read_words(words, &said, err);

	if (code < 0) {
		return code;
	}
	size = normalize(wire_str(said.allocation), text);
	if (size == 0 && said.virtual_vram == 0) {
		if (said.compute[0] != '\0' || said.n_donors > 0 || said.strategy != PLAN_USUAL ||
		    words->granularity.size > 0) {
			return err_set(err, WIRE_BAD_ARGUMENT,
				       "compute, donors, strategy and granularity belong to an "
				       "allocation or to virtual VRAM: say where the blocks go");
		}
		*ret_id = CORE_PLACEMENT_ANY;
		return 0;
	}
	said.has_names = placement_names(daemon, client, said.names);
	code = check_words(daemon, &said, err);
	if (code < 0) {
		return code;
	}
	if (said.virtual_vram == 0 && is_host(text, size) &&
	    !has_more(&said, words->is_plan, text, size)) {
		*ret_id = CORE_PLACEMENT_HOST;
		return 0;
	}
	said.id = *ret_id = id_of(daemon, &said, &is_known);
	return is_known ? 0 : keep(daemon, &said, err);
}

/* ---- over a restart ---- */

bool placement_describe(const struct daemon *daemon, uint64_t id, struct placed_record *ret)
{
	const struct placement *said = placement_find(daemon, id);

	if (said == NULL) {
		return false;
	}
	*ret = (struct placed_record){.virtual_vram = said->virtual_vram,
				      .strategy = (uint32_t)said->strategy,
				      .by_tensor = said->by_tensor ? 1 : 0,
				      .has_names = said->has_names ? 1 : 0,
				      .n_donors = said->n_donors};
	(void)snprintf(ret->allocation, sizeof ret->allocation, "%s", said->allocation);
	(void)snprintf(ret->compute, sizeof ret->compute, "%s", said->compute);
	for (uint32_t i = 0; i < said->n_donors; i++) {
		(void)snprintf(ret->donors[i], sizeof ret->donors[i], "%s", said->donors[i]);
	}
	for (uint32_t i = 1; i < daemon->n_devices; i++) {
		const struct known_device *known = &daemon->devices[i];
		struct placed_device *device = &ret->devices[ret->n_devices];

		if (known->info.uuid[0] == '\0') {
			continue; /* it has not been there yet */
		}
		ret->n_devices++;
		(void)snprintf(device->uuid, sizeof device->uuid, "%s", known->info.uuid);
		(void)snprintf(device->name, sizeof device->name, "%s",
			       said->has_names ? said->names[i] : known->name);
	}
	return true;
}

/* What each device was called then: only who lies as before is meant by the same words. */
static bool has_other_names(const struct daemon *daemon, const struct placed_record *record,
			    char ret[CORE_MAX_DEVICES][DEVICE_NAME_SIZE])
{
	bool is_other = record->has_names != 0;

	(void)snprintf(ret[0], sizeof ret[0], "%s", daemon->devices[0].name);
	for (uint32_t i = 0; i < record->n_devices; i++) {
		uint32_t device = 0;

		if (workers_find(daemon, record->devices[i].uuid, &device)) {
			(void)snprintf(ret[device], sizeof ret[0], "%s", record->devices[i].name);
			is_other = is_other || strcmp(record->devices[i].name,
						      daemon->devices[device].name) != 0;
		}
	}
	return is_other;
}

static bool says_something(const struct placement *said)
{
	char text[PLAN_MAX_TEXT + 1];
	size_t size = normalize(wire_str(said->allocation), text);

	return said->virtual_vram != 0 ||
	       (size > 0 && (!is_host(text, size) || has_more(said, false, text, size)));
}

__attribute__((noinline)) static void
read_record(const struct daemon *daemon, const struct placed_record *record, struct placement *ret)
{
	ret->virtual_vram = record->virtual_vram;
	ret->strategy = (enum plan_strategy)record->strategy;
	ret->by_tensor = record->by_tensor != 0;
	ret->n_donors = record->n_donors;
	(void)snprintf(ret->allocation, sizeof ret->allocation, "%.*s", (int)PLAN_MAX_TEXT,
		       record->allocation);
	(void)snprintf(ret->compute, sizeof ret->compute, "%.*s", PLACED_DONOR_SIZE - 1,
		       record->compute);
	for (uint32_t i = 0; i < record->n_donors; i++) {
		(void)snprintf(ret->donors[i], sizeof ret->donors[i], "%.*s", PLACED_DONOR_SIZE - 1,
			       record->donors[i]);
	}
	ret->has_names = has_other_names(daemon, record, ret->names);
	if (!ret->has_names) {
		memset(ret->names, 0, sizeof ret->names); /* as where nobody has said any */
	}
}

int placement_adopt(struct daemon *daemon, const struct placed_record *record, uint64_t *ret_id,
		    struct err *err)
{
	struct placement said = {.id = CORE_PLACEMENT_ANY};
	bool is_known;

	read_record(daemon, record, &said);
	if (!says_something(&said)) {
		return err_set(err, WIRE_BAD_FILE, "nothing was said of how it lay");
	}
	said.id = *ret_id = id_of(daemon, &said, &is_known);
	return is_known ? 0 : keep(daemon, &said, err);
}

const struct placement *placement_find(const struct daemon *daemon, uint64_t id)
{
	const struct placement *placement;

	HASH_FIND(hh, daemon->placements, &id, sizeof id, placement);
	return placement;
}

void placement_free_all(struct daemon *daemon)
{
	struct placement *placement;
	struct placement *next;

	HASH_ITER(hh, daemon->placements, placement, next)
	{
		/* NOLINTNEXTLINE(clang-analyzer-unix.Malloc): HASH_ITER has the next one already */
		HASH_DEL(daemon->placements, placement);
		free(placement);
	}
}

/* ---- what it means for a model ---- */

static struct plan_block *describe_blocks(const struct tensor_map *map)
{
	struct plan_block *blocks = sys_calloc((size_t)map->n_blocks + 1, sizeof *blocks);
	AUTO_FREE uint64_t *packed = sys_calloc((size_t)map->n_blocks + 1, sizeof *packed);

	if (blocks == NULL || packed == NULL) {
		free(blocks);
		return NULL;
	}
	block_segment_bytes_all(map, packed);
	for (uint32_t i = 0; i < map->n_blocks; i++) {
		const struct block *block = &map->blocks[i];

		blocks[i] = (struct plan_block){.bytes = block->size,
						.packed = packed[i],
						.name = block->name,
						.name_size = block->name_size,
						.component = block->component,
						.is_head = block->is_head};
	}
	return blocks;
}

/* What has to be evicted for it is told when it is. NULL: nothing, or no memory to say it. */
static struct placement_warnings *explain(const struct plan_request *request,
					  const struct plan_summary *summary)
{
	struct placement_warnings *ret = NULL;

	for (uint32_t i = 0; i < summary->n_warnings; i++) {
		const struct plan_warning *warning = &summary->warnings[i];
		char *text;

		if (warning->kind == PLAN_EVICTS) {
			continue;
		}
		ret = ret == NULL ? sys_calloc(1, sizeof *ret) : ret;
		if (ret == NULL) {
			return NULL;
		}
		text = ret->texts[ret->count];
		ret->items[ret->count++] = wire_str(
			explain_warning(request, summary, warning, text, sizeof ret->texts[0]));
	}
	return ret;
}

/* Are the blocks of both the same ones? */
static bool is_comparable(const struct generation_info *current, const struct job_info *job)
{
	return current->table_fd >= 0 && current->n_blocks == job->map->n_blocks &&
	       current->n_tensors == job->map->n_tensors && current->by_tensor == job->by_tensor;
}

/* Where each block of the map would lie. */
static int plan_map(const struct daemon *daemon, const struct placement *placement,
		    struct job_info *job, struct err *err)
{
	const struct tensor_map *map = job->map;
	const struct model_info *info = store_find_model(daemon->store, job->model);
	AUTO_FREE struct placement_room *room = sys_calloc(1, sizeof *room);
	AUTO_FREE struct plan_block *blocks = NULL;
	struct plan_text donors[PLAN_MAX_DONORS];
	struct plan_request request;
	struct plan_summary summary;
	int code;

	blocks = describe_blocks(map);
	if (blocks == NULL || room == NULL) {
		return err_set(err, WIRE_NO_MEMORY, "no memory to plan");
	}
	placement_look(daemon, job->model,
		       job->may_share && info != NULL && is_comparable(&info->current, job), room);
	placement_request(placement, room, donors, &request);
	request.blocks = blocks;
	request.n_blocks = map->n_blocks;
	code = plan_make(&request, job->places, &summary, err);
	job->shortage = summary.shortage;
	job->is_taken = false;
	for (uint32_t i = 0; i < room->n_devices; i++) {
		room->devices[i].name = room->known[i].name; /* answers say them as we do */
	}
	free(job->warnings);
	job->warnings = code == 0 ? explain(&request, &summary) : NULL;
	return code;
}

/* ---- what its generation needs ---- */

/* Where the block lies in the published generation: on the host, where it is in images whole. */
static uint8_t earlier_place(const struct generation_info *current, uint32_t block)
{
	return current->places == NULL ? 0 : current->places[block];
}

/* Which files' images would be other ones: blocks came to the host, or left it. */
static void mark_changed(const struct generation_info *current, const struct job_info *job,
			 bool *ret_changed)
{
	const struct tensor_map *map = job->map;

	for (uint32_t i = 0; i < map->n_tensors; i++) {
		const struct tensor *tensor = &map->tensors[i];
		bool was_there = current->with_host || earlier_place(current, tensor->block) == 0;
		bool is_there = job->with_host || job->places[tensor->block] == 0;

		ret_changed[tensor->shard] = ret_changed[tensor->shard] || was_there != is_there;
	}
}

/* How many bytes of tensors each file's image holds; beside them it has the file's header. */
static void sum_tensors(const struct job_info *job, uint64_t *ret_bytes)
{
	for (uint32_t i = 0; i < job->map->n_tensors; i++) {
		const struct tensor *tensor = &job->map->tensors[i];

		ret_bytes[tensor->shard] +=
			job->with_host || job->places[tensor->block] == 0 ? tensor->size : 0;
	}
}

/* Of what is charged; tensors that lie over each other are read once. */
static uint32_t padding_of(uint64_t charge, uint64_t tensor_bytes)
{
	const uint64_t padding = charge > tensor_bytes ? charge - tensor_bytes : 0;

	return padding < UINT32_MAX ? (uint32_t)padding : UINT32_MAX;
}

static uint32_t add_blocks(const struct daemon *daemon, const struct generation_info *current,
			   const struct job_info *job, const uint64_t *segment_bytes,
			   struct core_need *needs)
{
	bool may_share = current != NULL && is_comparable(current, job);
	uint32_t n_needs = 0;

	for (uint32_t i = 0; i < job->map->n_blocks; i++) {
		const uint8_t place = job->places[i];
		uint64_t charge;

		if (place != 0) {
			charge = device_charge(daemon->devices[place].device, segment_bytes[i]);
			needs[n_needs++] = (struct core_need){
				.device = place,
				.index = i,
				.bytes = charge,
				.padding = padding_of(charge, job->map->blocks[i].size),
				.is_block = true,
				.is_same = may_share && earlier_place(current, i) == place,
			};
		}
	}
	return n_needs;
}

static int place_blocks(struct daemon *daemon, struct job_info *job, uint64_t placement,
			struct err *err)
{
	const struct placement *said = placement_find(daemon, placement);
	int code;

	job->places = sys_calloc((size_t)job->map->n_blocks + 1, 1);
	if (job->places == NULL) {
		return err_set(err, WIRE_NO_MEMORY, "no memory to plan");
	}
	if (placement <= CORE_PLACEMENT_HOST) {
		return 0; /* all on the host */
	}
	if (said == NULL) {
		return err_set(err, WIRE_INTERNAL, "what was said of its blocks is forgotten");
	}
	code = plan_map(daemon, said, job, err);
	for (uint32_t i = 0; code == 0 && i < job->map->n_blocks; i++) {
		if (daemon->devices[job->places[i]].device == NULL) {
			code = err_set(err, WIRE_DEVICE_LOST, "%s cannot be used now",
				       daemon->devices[job->places[i]].name);
		}
	}
	return code;
}

struct core_need *placement_needs(struct daemon *daemon, struct job_info *job,
				  uint32_t *ret_n_needs, struct err *err)
{
	const struct model_info *info = store_find_model(daemon->store, job->model);
	const struct generation_info *current = info == NULL ? NULL : &info->current;
	const uint32_t n_files = tensor_map_n_shards(job->map);
	AUTO_FREE bool *is_changed = sys_calloc(n_files, sizeof *is_changed);
	AUTO_FREE uint64_t *tensor_bytes = sys_calloc(n_files, sizeof *tensor_bytes);
	AUTO_FREE uint64_t *bytes = sys_calloc((size_t)job->map->n_blocks + 1, sizeof *bytes);
	struct core_need *needs;

	free(job->places);
	job->places = NULL;
	if (job->is_tabled && place_blocks(daemon, job, job->placement, err) < 0) {
		return NULL;
	}
	*ret_n_needs = n_files;
	needs = sys_calloc((size_t)n_files + (job->is_tabled ? job->map->n_blocks : 0),
			   sizeof *needs);
	if (needs == NULL || bytes == NULL || is_changed == NULL || tensor_bytes == NULL) {
		free(needs);
		(void)err_set(err, WIRE_NO_MEMORY, "no memory to plan its copies");
		return NULL;
	}
	if (job->is_tabled && current != NULL && is_comparable(current, job)) {
		mark_changed(current, job, is_changed);
	}
	if (job->is_tabled) {
		sum_tensors(job, tensor_bytes);
	}
	for (uint32_t i = 0; i < n_files; i++) {
		needs[i].index = i;
		needs[i].bytes =
			device_charge(daemon->host,
				      job->is_tabled && !job->with_host
					      ? image_set_host_bytes(job->map, job->places, i)
					      : tensor_map_shard_size(job->map, i));
		needs[i].is_same = job->is_tabled && current != NULL &&
				   is_comparable(current, job) && !is_changed[i];
		if (job->is_tabled) {
			needs[i].is_bare = tensor_bytes[i] == 0;
			needs[i].padding = padding_of(needs[i].bytes, tensor_bytes[i]);
		}
	}
	if (job->is_tabled) {
		block_segment_bytes_all(job->map, bytes);
		*ret_n_needs += add_blocks(daemon, current, job, bytes, needs + n_files);
	}
	return needs;
}
