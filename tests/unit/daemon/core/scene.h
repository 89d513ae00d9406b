/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A core and what it said, for tests that tell a short story: events go in by name, all
 * actions that follow are kept until the next event. Included by one file of a program.
 */
#ifndef TESTS_UNIT_DAEMON_CORE_SCENE_H
#define TESTS_UNIT_DAEMON_CORE_SCENE_H

#include "tests/support/unit.h"

#include <stdlib.h>
#include <string.h>

#include "daemon/core/core.h"
#include "proto/gen/wire_code.h"

#define SCENE_ACTIONS 512
#define SCENE_INODES  64
#define MIB           (1ULL << 20)

struct scene {
	void *memory;
	struct core *core;
	uint64_t now_ns;
	bool is_cached;   /* files lie in the page cache */
	uint64_t fill_ns; /* how long the next fills take, by the loader's word */
	uint64_t last_file;
	uint32_t last_request;
	struct core_file_key keys[SCENE_INODES];
	struct core_action actions[SCENE_ACTIONS]; /* of the last event */
	uint32_t n_actions;
	uint64_t next_deadline_ns;
};

static inline struct core_config scene_usual(void)
{
	return (struct core_config){.max_clients = 128,
				    .max_models = 32,
				    .max_segments = 64,
				    .max_leases = 64,
				    .max_waiters = 128,
				    .max_reservations = 8,
				    .max_wishes = 64,
				    .n_devices = 2,
				    .loads_per_uid = 8};
}

static inline uint64_t scene_step(struct scene *scene, struct core_event event)
{
	struct core_update update;
	uint64_t ret_id = 0;

	scene->n_actions = 0;
	event.now_ns = scene->now_ns;
	do {
		core_step(scene->core, &event, &update);
		ret_id = event.type == EV_CONTINUE ? ret_id : update.ret_id;
		assert_true(scene->n_actions + update.n_actions <= SCENE_ACTIONS);
		memcpy(&scene->actions[scene->n_actions], update.actions,
		       update.n_actions * sizeof *update.actions);
		scene->n_actions += update.n_actions;
		event.type = EV_CONTINUE;
	} while (update.again);
	scene->next_deadline_ns = update.deadline_ns;
	assert_null(core_check(scene->core));
	return ret_id;
}

static inline void scene_budget(struct scene *scene, uint32_t device, uint64_t bytes)
{
	(void)scene_step(scene, (struct core_event){.type = EV_BUDGET,
						    .budget = {.device = device, .bytes = bytes}});
}

static inline struct scene *scene_new(const struct core_config *config)
{
	struct scene *scene = calloc(1, sizeof *scene);

	assert_non_null(scene);
	scene->memory = calloc(1, core_size(config));
	assert_non_null(scene->memory);
	scene->core = core_init(scene->memory, config);
	scene->now_ns = 1000000000;
	for (uint64_t i = 0; i < SCENE_INODES; i++) {
		scene->keys[i] = (struct core_file_key){.dev = 1,
							.ino = i,
							.size = 1000 + i,
							.mtime_ns = 1,
							.ctime_ns = 1};
	}
	for (uint32_t i = 0; i < config->n_devices; i++) {
		scene_budget(scene, i, 100 * MIB);
	}
	return scene;
}

static inline void scene_free(struct scene *scene)
{
	free(scene->memory);
	free(scene);
}

static inline uint64_t scene_open(struct scene *scene, uint32_t uid)
{
	uint64_t client = scene_step(scene, (struct core_event){.type = EV_CLIENT_OPENED,
								.opened = {.uid = uid,
									   .is_admin = uid == 0}});

	assert_true(client != 0);
	return client;
}

/* The first action of a type with this bit of the story in it (0: any); NULL: there is none. */
static inline const struct core_action *scene_find(const struct scene *scene,
						   enum core_action_type type, uint64_t model)
{
	for (uint32_t i = 0; i < scene->n_actions; i++) {
		const struct core_action *action = &scene->actions[i];

		if (action->type == type && (model == 0 || action->model == model)) {
			return action;
		}
	}
	return NULL;
}

static inline uint32_t scene_count(const struct scene *scene, enum core_action_type type)
{
	uint32_t n_found = 0;

	for (uint32_t i = 0; i < scene->n_actions; i++) {
		n_found += scene->actions[i].type == type ? 1 : 0;
	}
	return n_found;
}

static inline const struct core_action *scene_note(const struct scene *scene,
						   enum core_note_type note)
{
	for (uint32_t i = 0; i < scene->n_actions; i++) {
		if (scene->actions[i].type == ACT_NOTE && scene->actions[i].note.note == note) {
			return &scene->actions[i];
		}
	}
	return NULL;
}

/* The answer of a request among the actions of the last event; NULL: not yet. */
static inline const struct core_action *scene_reply(const struct scene *scene, uint64_t client,
						    uint32_t request)
{
	for (uint32_t i = 0; i < scene->n_actions; i++) {
		const struct core_action *action = &scene->actions[i];

		if (action->type == ACT_REPLY && action->client == client &&
		    action->request == request) {
			return action;
		}
	}
	return NULL;
}

static inline void scene_expect(const struct scene *scene, uint64_t client, uint32_t request,
				int code)
{
	const struct core_action *reply = scene_reply(scene, client, request);

	assert_non_null(reply);
	assert_int_equal(reply->code, code);
}

struct scene_load {
	struct core_policy policy;
	bool no_wait, attach, map;
	uint64_t placement;
	enum core_backing backing; /* insisted on, but for AUTO */
};

static inline uint32_t scene_load(struct scene *scene, uint64_t client, uint32_t inode,
				  struct scene_load with)
{
	static const uint8_t fresh_id[16];
	struct core_file_key key = scene->keys[inode];

	(void)scene_step(scene, (struct core_event){.type = EV_LOAD,
						    .client = client,
						    .request = ++scene->last_request,
						    .load = {.file = ++scene->last_file,
							     .key = &key,
							     .fresh_id = fresh_id,
							     .policy = &with.policy,
							     .placement = with.placement,
							     .backing = with.backing,
							     .insists_backing = with.backing !=
										CORE_BACKING_AUTO,
							     .no_wait = with.no_wait,
							     .attach = with.attach,
							     .map = with.map}});
	return scene->last_request;
}

static inline uint64_t scene_model(const struct scene *scene, uint32_t inode)
{
	return core_model_find(scene->core, &scene->keys[inode]);
}

static inline struct core_model_view scene_view(const struct scene *scene, uint32_t inode)
{
	struct core_model_view view = {0};

	assert_true(core_model_get(scene->core, scene_model(scene, inode), &view));
	return view;
}

/* The header of the model's running job: so many bytes on device 0 and, where not 0, 1. */
static inline void scene_header(struct scene *scene, uint32_t inode, uint64_t bytes0,
				uint64_t bytes1)
{
	const struct core_need needs[2] = {{.device = 0, .bytes = bytes0},
					   {.device = 1, .index = 1, .bytes = bytes1}};
	struct core_file_key key = scene->keys[inode];

	key.is_raw = false; /* a file does not say */
	(void)scene_step(scene, (struct core_event){.type = EV_HEADER_READ,
						    .header = {.job = scene_view(scene, inode).job,
							       .key = &key,
							       .needs = needs,
							       .is_cached = scene->is_cached,
							       .n_needs = bytes1 == 0 ? 1 : 2}});
}

/* All copies of the model that are being filled are done, with this code. */
static inline void scene_fill(struct scene *scene, uint32_t inode, int code)
{
	uint64_t model = scene_model(scene, inode);
	struct core_segment_view view;
	uint32_t cursor = 0;

	while (core_segment_next(scene->core, model, &cursor, &view)) {
		if (view.state == SEGMENT_FILLING) {
			(void)scene_step(scene,
					 (struct core_event){.type = EV_FILLED,
							     .filled = {.segment = view.id,
									.duration_ns =
										scene->fill_ns,
									.code = code}});
		}
	}
}

/* Every copy that is being dropped is gone. */
static inline void scene_drop_all(struct scene *scene)
{
	struct core_segment_view view;
	uint32_t cursor = 0;

	while (core_segment_next(scene->core, 0, &cursor, &view)) {
		if (view.state == SEGMENT_DROPPING) {
			(void)scene_step(scene,
					 (struct core_event){.type = EV_DROPPED,
							     .dropped = {.segment = view.id}});
		}
	}
}

/* A load from its beginning to its answer; returns its lease (0: none was asked for). */
static inline uint64_t scene_loaded(struct scene *scene, uint64_t client, uint32_t inode,
				    uint64_t bytes, struct scene_load with)
{
	uint32_t request = scene_load(scene, client, inode, with);

	scene_header(scene, inode, bytes, 0);
	scene_fill(scene, inode, 0);
	scene_expect(scene, client, request, 0);
	scene->now_ns += 1000000000;
	return scene_reply(scene, client, request)->reply.lease;
}

static inline void scene_lease_event(struct scene *scene, enum core_event_type type,
				     uint64_t client, uint64_t lease)
{
	(void)scene_step(scene, (struct core_event){.type = type,
						    .client = client,
						    .request = ++scene->last_request,
						    .lease = {.lease = lease}});
}

static inline void scene_client_event(struct scene *scene, enum core_event_type type,
				      uint64_t client)
{
	(void)scene_step(scene, (struct core_event){.type = type, .client = client});
}

static inline uint32_t scene_set(struct scene *scene, uint64_t client, uint32_t inode,
				 struct core_policy policy)
{
	(void)scene_step(scene, (struct core_event){.type = EV_SET,
						    .client = client,
						    .request = ++scene->last_request,
						    .set = {.model = scene_model(scene, inode),
							    .policy = &policy}});
	return scene->last_request;
}

static inline bool scene_is_resident(const struct scene *scene, uint32_t inode)
{
	return scene_view(scene, inode).state == CORE_MODEL_RESIDENT;
}

#endif
