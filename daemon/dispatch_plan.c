/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What placing a resident model would give, or a model of blocks that the request says. A table
 * may be large and a plan of hostile names slow, so that is on a thread.
 */
#include "base/cleanup.h"
#include "base/err.h"
#include "base/os/sys.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "daemon/change.h"
#include "daemon/daemon.h"
#include "daemon/describe.h"
#include "daemon/dispatch.h"
#include "daemon/errand.h"
#include "daemon/format/blocks.h"
#include "daemon/format/segment_layout.h"
#include "daemon/ipc/conn.h"
#include "daemon/ipc/server.h"
#include "daemon/placement.h"
#include "daemon/plan/explain.h"
#include "daemon/plan/name.h"
#include "proto/table.h"

#define WARNING_SIZE 512
#define MAX_WARNINGS (CORE_MAX_DEVICES + PLAN_MAX_WARNINGS) /* of names, and the planner's */

/* owner: its errand */
struct planning {
	struct errand errand;
	uint64_t client;
	uint32_t request;
	uint64_t model; /* 0: of none */
	int table_fd;   /* of the model; -1: there is none, or it could not be had */
	struct placement placement;
	struct placement_room room;
	struct plan_summary summary;
	void *memory; /* of the table, mapped; NULL: it is not */
	size_t memory_size;
	struct table table;
	char *names; /* of blocks that were said; of a model's they are in the table */
	uint32_t n_blocks;
	struct plan_block *described;
	uint8_t *places;
	struct wire_placed_block *blocks;
	uint32_t n_warnings;
	char warnings[MAX_WARNINGS][WARNING_SIZE];
	struct err err;
};

static void planning_free(struct errand *errand)
{
	struct planning *planning = container_of(errand, struct planning, errand);

	if (planning->memory != NULL) {
		(void)munmap(planning->memory, planning->memory_size);
	}
	if (planning->table_fd >= 0) {
		(void)close(planning->table_fd); /* read-only, nothing to lose */
	}
	free(planning->names);
	free(planning->described);
	free(planning->places);
	free(planning->blocks);
	free(planning);
}

/* Room for so many blocks. False: no memory. */
static bool take_blocks(struct planning *planning, uint32_t n_blocks)
{
	const size_t count = (size_t)n_blocks + 1;

	planning->n_blocks = n_blocks;
	planning->described = sys_calloc(count, sizeof *planning->described);
	planning->places = sys_calloc(count, 1);
	planning->blocks = sys_calloc(count, sizeof *planning->blocks);
	return planning->described != NULL && planning->places != NULL && planning->blocks != NULL;
}

/* ---- blocks of a table ---- */

/* The blocks as the planner wants them. False: no memory. */
static bool describe_blocks(struct planning *planning)
{
	const struct table *table = &planning->table;
	const struct table_header *header = table->header;
	AUTO_FREE uint64_t *offsets = sys_calloc((size_t)header->n_tensors + 1, sizeof *offsets);
	AUTO_FREE uint64_t *packed = sys_calloc((size_t)header->n_blocks + 1, sizeof *packed);

	if (offsets == NULL || packed == NULL || !take_blocks(planning, header->n_blocks)) {
		return false;
	}
	table_segment_offsets(table, offsets, packed);
	for (uint32_t i = 0; i < header->n_blocks; i++) {
		const struct wire_str name = table_block_name(table, i);

		planning->described[i] =
			(struct plan_block){.bytes = table->blocks[i].size,
					    .packed = packed[i],
					    .name = name.text,
					    .name_size = name.size,
					    .component = table->blocks[i].component,
					    .is_head = table->blocks[i].is_head != 0};
		planning->blocks[i].tensors = table->blocks[i].n_tensors;
	}
	return true;
}

static int open_table(struct planning *planning)
{
	struct stat status;
	void *memory;

	if (fstat(planning->table_fd, &status) < 0) {
		return err_set(&planning->err, WIRE_INTERNAL, "its table cannot be read");
	}
	memory = sys_mmap(NULL, (size_t)status.st_size, PROT_READ, MAP_SHARED, planning->table_fd,
			  0);
	if (memory == MAP_FAILED) {
		return err_set(&planning->err, WIRE_NO_MEMORY, "its table cannot be mapped");
	}
	planning->memory = memory;
	planning->memory_size = (size_t)status.st_size;
	return table_open(memory, planning->memory_size, NULL, &planning->table, &planning->err);
}

/* ---- blocks that a request says ---- */

static struct plan_block describe_block(const char *name, const struct wire_sized_block *sized)
{
	enum component component;
	bool is_head;

	block_read_name(name, sized->name.size, &component, &is_head);
	return (struct plan_block){
		.bytes = sized->bytes, /* plan_make knows whether the sum fits */
		.packed = sized->bytes > 0 ? sized->bytes : SEGMENT_ALIGNMENT,
		.name = name,
		.name_size = sized->name.size,
		.component = component,
		.is_head = is_head,
	};
}

/* Copies their names, which are the packet's. False: no memory. */
static bool take_sized_blocks(struct planning *planning, struct wire_list list)
{
	struct wire_sized_block sized;
	uint32_t n_blocks = 0;
	char *name;

	planning->names = sys_malloc(list.size); /* of a packet, and the names are less */
	if (planning->names == NULL || !take_blocks(planning, list.count)) {
		return false;
	}
	name = planning->names;
	while (wire_list_next(&list, &wire_type_sized_block, &sized)) {
		memcpy(name, sized.name.text, sized.name.size);
		planning->described[n_blocks++] = describe_block(name, &sized);
		name += sized.name.size;
	}
	return true;
}

/* ---- the plan ---- */

/* The daemon's names from here on; a warning for each that the client calls otherwise. */
static void take_own_names(struct planning *planning)
{
	for (uint32_t i = 0; i < planning->room.n_devices; i++) {
		const char *theirs = planning->room.devices[i].name;
		const char *ours = planning->room.known[i].name;
		char label[PLAN_LABEL_SIZE];

		planning->room.devices[i].name = ours;
		if (planning->summary.shares[i].n_blocks > 0 && theirs[0] != '\0' &&
		    strcmp(theirs, ours) != 0) {
			(void)name_label(&planning->room.devices[i], label, sizeof label);
			(void)snprintf(planning->warnings[planning->n_warnings++], WARNING_SIZE,
				       "%s of this program is %s: distorchd counts by bus, and "
				       "the program otherwise",
				       theirs, label);
		}
	}
}

/* Of the blocks that are described. */
static void plan_blocks(struct planning *planning)
{
	struct plan_text donors[PLAN_MAX_DONORS];
	struct plan_request request;

	placement_request(&planning->placement, &planning->room, donors, &request);
	request.blocks = planning->described;
	request.n_blocks = planning->n_blocks;
	if (plan_make(&request, planning->places, &planning->summary, &planning->err) < 0) {
		return;
	}
	take_own_names(planning);
	for (uint32_t i = 0; i < planning->n_blocks; i++) {
		const struct plan_block *block = &planning->described[i];

		planning->blocks[i].name = (struct wire_str){block->name, block->name_size};
		planning->blocks[i].bytes = block->bytes;
		planning->blocks[i].device =
			wire_str(planning->room.known[planning->places[i]].name);
	}
	for (uint32_t i = 0; i < planning->summary.n_warnings; i++) {
		(void)explain_warning(&request, &planning->summary, &planning->summary.warnings[i],
				      planning->warnings[planning->n_warnings++], WARNING_SIZE);
	}
}

static void plan_it(struct errand *errand)
{
	struct planning *planning = container_of(errand, struct planning, errand);

	if (planning->table_fd >= 0) {
		if (open_table(planning) < 0) {
			return;
		}
		if (!describe_blocks(planning)) {
			(void)err_set(&planning->err, WIRE_NO_MEMORY, "no memory to plan");
			return;
		}
	}
	plan_blocks(planning);
}

/* With what goes for it where less is free than it takes: whole copies, so it may be more. */
static uint64_t free_after(const struct call *call, const struct planning *planning,
			   uint32_t device)
{
	const uint64_t free = planning->room.devices[device].free;
	const uint64_t taken = planning->summary.shares[device].taken;
	struct core_account_view account;
	uint64_t used;
	uint64_t above;
	uint64_t freed;

	if (free >= taken) { /* of what the model has there now some may be above the budget */
		core_account_get(call->daemon->core, device, &account);
		used = account.resident + account.loading + account.dropping + account.held +
		       account.reserved;
		above = used > account.budget ? used - account.budget : 0;
		return free - taken > above ? free - taken - above : 0;
	}
	freed = core_would_free(call->daemon->core, device, taken - free, planning->model);
	return freed > taken - free ? freed - (taken - free) : 0;
}

static void answer_plan(const struct call *call, const struct planning *planning)
{
	struct wire_share shares[CORE_MAX_DEVICES];
	struct wire_str warnings[MAX_WARNINGS];
	struct wire_plan_response response = {
		.devices = {.items = shares},
		.blocks = {.items = planning->blocks, .count = planning->n_blocks},
		.warnings = {.items = warnings, .count = planning->n_warnings},
		.moved_per_pass = planning->summary.moved,
		.has_compute = true,
		.compute = wire_str(planning->room.known[planning->summary.compute].name),
		.has_floor_ns = planning->summary.floor_ns > 0,
		.floor_ns = planning->summary.floor_ns,
	};

	for (uint32_t i = 0; i < planning->n_warnings; i++) {
		warnings[i] = wire_str(planning->warnings[i]);
	}
	for (uint32_t i = 0; i < planning->room.n_devices; i++) {
		const struct plan_share *share = &planning->summary.shares[i];

		shares[response.devices.count++] = (struct wire_share){
			.device = wire_str(planning->room.known[i].name),
			.bytes = share->bytes,
			.blocks = share->n_blocks,
			.free_after = free_after(call, planning, i),
		};
	}
	call_answer(call, &response);
}

/* ---- what a move would be refused for ---- */

/* What comes to each device; what lies there already stays. */
struct arrivals {
	uint64_t bytes[CORE_MAX_DEVICES]; /* as they are charged */
	bool is_any[CORE_MAX_DEVICES];
};

static bool is_present(const uint8_t *present, uint32_t block)
{
	return (present[block / 8] >> block % 8 & 1) != 0;
}

/* A file's image of which other blocks are to be is made anew, whole, beside the one that is there;
 * so is one that is not there. */
static uint64_t count_image_bytes(const struct planning *planning,
				  const struct generation_info *current, const uint8_t *present)
{
	const struct table_header *header = planning->table.header;
	AUTO_FREE uint64_t *bytes = sys_calloc((size_t)header->n_shards + 1, sizeof *bytes);
	AUTO_FREE bool *is_new = sys_calloc((size_t)header->n_shards + 1, sizeof *is_new);
	uint64_t sum = 0;

	if (bytes == NULL || is_new == NULL) {
		return 0; /* the move itself will tell */
	}
	for (uint32_t i = 0; i < header->n_tensors; i++) {
		const struct table_tensor *tensor = &planning->table.tensors[i];
		const bool is_there = current->with_host || current->places == NULL ||
				      current->places[tensor->block] == 0;
		const bool comes = planning->places[tensor->block] == 0;

		bytes[tensor->shard] += comes ? tensor->size : 0;
		is_new[tensor->shard] = is_new[tensor->shard] || comes != is_there ||
					(comes && !is_present(present, tensor->block));
	}
	for (uint32_t i = 0; i < header->n_shards; i++) {
		sum += is_new[i] ? bytes[i] : 0;
	}
	return sum;
}

/* Apart: what is present is kept off its callers' stacks. */
__attribute__((noinline)) static struct arrivals find_arrivals(const struct daemon *daemon,
							       const struct planning *planning)
{
	const struct model_info *info = store_find_model(daemon->store, planning->model);
	const bool is_known = info != NULL && info->current.n_blocks == planning->n_blocks;
	const uint8_t *places = is_known ? info->current.places : NULL;
	struct arrivals ret = {.bytes = {0}, .is_any = {false}};
	uint8_t present[PLAN_MAX_BLOCKS / 8];

	if (is_known) {
		describe_present(daemon, planning->model, places, planning->n_blocks, present);
	}
	for (uint32_t i = 0; i < planning->n_blocks; i++) {
		const uint8_t place = planning->places[i];

		if (is_known && place == (places == NULL ? 0 : places[i]) &&
		    is_present(present, i)) {
			continue;
		}
		ret.is_any[place] = true;
		if (daemon->devices[place].device != NULL) {
			ret.bytes[place] += device_charge(daemon->devices[place].device,
							  planning->described[i].packed);
		}
	}
	if (is_known && planning->memory != NULL) {
		ret.bytes[0] = count_image_bytes(planning, &info->current, present);
	}
	return ret;
}

/* The draining devices that would have to take something, as bits. */
static uint32_t find_draining(const struct planning *planning, const struct arrivals *arrivals)
{
	uint32_t devices = 0;

	for (uint32_t i = 0; i < planning->room.n_devices; i++) {
		devices |= planning->room.devices[i].is_draining && arrivals->is_any[i] ? 1U << i
											: 0;
	}
	return devices;
}

/* Until a move is done what goes from a device is there beside what comes, and the plan is of
 * afterwards. Fills how the core would refuse. False: there is room for both. */
static bool is_crowded(const struct daemon *daemon, const struct planning *planning,
		       const struct arrivals *arrivals, struct core_action *ret)
{
	struct core_account_view account;

	for (uint32_t i = 0; planning->model != 0 && i < planning->room.n_devices; i++) {
		const struct plan_device *device = &planning->room.devices[i];

		core_account_get(daemon->core, i, &account);
		if (arrivals->bytes[i] > account.room + device->evictable + device->later) {
			*ret = (struct core_action){.type = ACT_REPLY,
						    .client = planning->client,
						    .model = planning->model,
						    .device = i,
						    .code = WIRE_NO_MEMORY,
						    .shortage = {.need = arrivals->bytes[i],
								 .budget = account.budget,
								 .free = account.room,
								 .evictable = device->evictable,
								 .held = account.held,
								 .foreign = device->foreign}};
			return true;
		}
	}
	return false;
}

/* ---- the answer ---- */

/* False: refused, as the move would be. */
static bool is_possible(struct daemon *daemon, const struct client *viewer,
			const struct planning *planning, struct failure *failure)
{
	struct arrivals arrivals;
	struct core_action refusal;
	uint32_t devices;

	if (planning->err.code != 0) {
		failure_from_plan(failure, daemon, viewer, "", &planning->err,
				  &planning->summary.shortage);
		return false;
	}
	arrivals = find_arrivals(daemon, planning);
	devices = find_draining(planning, &arrivals);
	if (devices != 0) {
		failure_set_draining(failure, daemon, devices);
		return false;
	}
	if (is_crowded(daemon, planning, &arrivals, &refusal)) {
		failure_from_reply(failure, daemon, &refusal);
		return false;
	}
	return true;
}

static void on_planned(struct daemon *daemon, struct errand *errand)
{
	struct planning *planning = container_of(errand, struct planning, errand);
	struct failure failure;
	struct call call;

	if (change_find_request(daemon, planning->client, planning->request, &call)) {
		if (is_possible(daemon, call.client, planning, &failure)) {
			answer_plan(&call, planning);
		} else {
			call_fail(&call, &failure);
		}
		server_flush(daemon->server);
	}
	planning_free(errand);
}

/* ---- requests ---- */

/* 'model' 0: of none. NULL: refused. */
static struct planning *planning_new(const struct call *call, uint64_t model, uint64_t placement)
{
	const struct placement *said = placement_find(call->daemon, placement);
	struct planning *planning = sys_calloc(1, sizeof *planning);

	if (planning == NULL) {
		conn_respond_no_memory(call->conn, call->request);
		return NULL;
	}
	planning->errand =
		(struct errand){.work = plan_it, .done = on_planned, .drop = planning_free};
	planning->client = call->client->id;
	planning->request = call->request;
	planning->model = model;
	planning->table_fd = -1;
	(void)strcpy(planning->placement.allocation, "cpu");
	if (said != NULL) {
		planning->placement = *said;
	}
	placement_look(call->daemon, model, true, &planning->room);
	return planning;
}

/* False: refused. Apart from its caller: a failure is large. */
__attribute__((noinline)) static bool find_model(const struct call *call, struct wire_str text,
						 uint64_t *ret_model)
{
	struct failure failure;

	if (dispatch_find_model(call, text, ret_model, &failure) == 0) {
		return true;
	}
	call_fail(call, &failure);
	return false;
}

__attribute__((noinline)) static void refuse_not_resident(const struct call *call, uint64_t model)
{
	struct failure failure;

	failure_set_not_resident(&failure, call->daemon, model);
	call_fail(call, &failure);
}

/* As the core refuses to place it: its blocks are another user's. */
__attribute__((noinline)) static bool may_place(const struct call *call, uint64_t model)
{
	const struct core_action refusal = {.type = ACT_REPLY,
					    .client = call->client->id,
					    .model = model,
					    .code = WIRE_NOT_ALLOWED};
	struct failure failure;

	if (core_client_may_place(call->daemon->core, call->client->id, model)) {
		return true;
	}
	failure_from_reply(&failure, call->daemon, &refusal);
	call_fail(call, &failure);
	return false;
}

/* NULL: refused. */
static struct planning *planning_of_model(const struct call *call, struct wire_str text,
					  uint64_t placement)
{
	const struct placement *said = placement_find(call->daemon, placement);
	const struct model_info *info;
	struct planning *planning;
	uint64_t model;

	if (!find_model(call, text, &model)) {
		return NULL;
	}
	info = store_find_model(call->daemon->store, model);
	if (info == NULL || info->current.table_fd < 0) {
		refuse_not_resident(call, model);
		return NULL;
	}
	if (!may_place(call, model)) {
		return NULL;
	}
	if (said != NULL && said->by_tensor != info->current.by_tensor) {
		call_refuse(
			call, WIRE_UNSUPPORTED, "granularity",
			info->current.by_tensor
				? "it lies by tensor, and is planned so: granularity \"tensor\" "
				  "(--granularity tensor), or plan its file"
				: "it lies by block, and is planned so: plan its file to see "
				  "another granularity");
		return NULL;
	}
	planning = planning_new(call, model, placement);
	if (planning != NULL) {
		planning->table_fd = sys_fcntl_dup(info->current.table_fd);
		if (planning->table_fd < 0) {
			(void)err_set(&planning->err, WIRE_NO_MEMORY, "no descriptor to plan");
		}
	}
	return planning;
}

/* NULL: refused. */
static struct planning *planning_of_blocks(const struct call *call,
					   const struct wire_plan_request *request,
					   uint64_t placement)
{
	struct planning *planning;

	if (request->blocks.count == 0) {
		call_refuse(call, WIRE_BAD_ARGUMENT, "blocks", "say at least one block");
		return NULL;
	}
	if (wire_str_is(request->granularity, "tensor")) {
		call_refuse(call, WIRE_BAD_ARGUMENT, "granularity",
			    "nothing is known of the tensors of blocks that are said; say each "
			    "tensor as a block");
		return NULL;
	}
	planning = planning_new(call, 0, placement);
	if (planning != NULL && !take_sized_blocks(planning, request->blocks)) {
		(void)err_set(&planning->err, WIRE_NO_MEMORY, "no memory to plan");
	}
	return planning;
}

void dispatch_plan(const struct call *call, const struct wire_plan_request *request)
{
	struct placement_words words = PLACEMENT_WORDS(request);
	uint64_t placement;
	struct planning *planning;

	words.is_plan = true;
	if (request->has_model == request->has_blocks) {
		call_refuse(call, WIRE_BAD_ARGUMENT, "model",
			    "name a model or say its blocks, one of the two");
		return;
	}
	if (!dispatch_read_placement(call, &words, &placement)) {
		return;
	}
	planning = request->has_model ? planning_of_model(call, request->model, placement)
				      : planning_of_blocks(call, request, placement);
	if (planning == NULL) {
		return;
	}
	if (call_expect(call) == NULL) {
		planning_free(&planning->errand);
		return;
	}
	if (planning->err.code == 0) {
		if (errand_start(call->daemon->errands, &planning->errand)) {
			return; /* it is the thread's */
		}
		(void)err_set(&planning->err, WIRE_NO_MEMORY, "no thread to plan");
	}
	on_planned(call->daemon, &planning->errand);
}
