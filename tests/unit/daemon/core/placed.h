/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Models of four blocks of 4 MiB each, and where they lie: a word of four digits, one a block, names
 * the device of each. What the corridor knows of placements the scene is told of here. Included by
 * one file of a program.
 */
#ifndef TESTS_UNIT_DAEMON_CORE_PLACED_H
#define TESTS_UNIT_DAEMON_CORE_PLACED_H

#include "tests/unit/daemon/core/scene.h"

#define N_BLOCKS    4
#define BLOCK       (4 * MIB)
#define N_LAYOUTS   64
#define N_DEVICES   3
#define LINGER_NS   300000000000U
#define ONE_SECOND  1000000000U
#define HOST_LAYOUT "0000"

static char placed_layouts[N_LAYOUTS][N_BLOCKS + 1] = {HOST_LAYOUT, HOST_LAYOUT};
static uint32_t n_placed_layouts = 2;

static inline struct core_config placed_config(void)
{
	struct core_config config = scene_usual();

	config.n_devices = N_DEVICES;
	config.max_segments = 256;
	config.linger_ns = LINGER_NS;
	return config;
}

/* The core's number of it. */
static inline uint64_t placed_as(const char *layout)
{
	for (uint32_t i = CORE_PLACEMENT_HOST; i < n_placed_layouts; i++) {
		if (strcmp(placed_layouts[i], layout) == 0) {
			return i;
		}
	}
	assert_true(n_placed_layouts < N_LAYOUTS);
	memcpy(placed_layouts[n_placed_layouts], layout, N_BLOCKS + 1);
	return n_placed_layouts++;
}

static inline uint64_t placed_host_bytes(const char *layout, bool with_host)
{
	uint64_t n_blocks = 0;

	for (uint32_t i = 0; i < N_BLOCKS; i++) {
		n_blocks += layout[i] == '0' || with_host ? 1 : 0;
	}
	return n_blocks * BLOCK;
}

/* Have both the same blocks in the host's image? */
static inline bool placed_is_same_image(const char *a, bool a_with_host, const char *b,
					bool b_with_host)
{
	for (uint32_t i = 0; i < N_BLOCKS; i++) {
		if ((a[i] == '0' || a_with_host) != (b[i] == '0' || b_with_host)) {
			return false;
		}
	}
	return true;
}

/* The header of the model's running job, which makes this of it. */
static inline void placed_header(struct scene *scene, uint32_t inode, bool with_host)
{
	struct core_model_view view = scene_view(scene, inode);
	const char *now = placed_layouts[view.placement];
	const char *next = placed_layouts[view.job_placement];
	uint64_t image = placed_host_bytes(next, with_host);
	struct core_need needs[N_BLOCKS + 1];
	uint32_t n_needs = 0;

	if (image > 0) {
		needs[n_needs++] =
			(struct core_need){.bytes = image,
					   .is_same = placed_is_same_image(now, view.has_host, next,
									   with_host)};
	}
	for (uint32_t i = 0; i < N_BLOCKS; i++) {
		if (next[i] != '0') {
			needs[n_needs++] = (struct core_need){.device = (uint32_t)(next[i] - '0'),
							      .index = i,
							      .bytes = BLOCK,
							      .is_block = true,
							      .is_same = now[i] == next[i]};
		}
	}
	(void)scene_step(scene, (struct core_event){.type = EV_HEADER_READ,
						    .header = {.job = view.job,
							       .key = &scene->keys[inode],
							       .needs = needs,
							       .n_needs = n_needs}});
}

static inline void placed_tabled(struct scene *scene, uint32_t inode, int code)
{
	(void)scene_step(scene, (struct core_event){.type = EV_TABLED,
						    .tabled = {.job = scene_view(scene, inode).job,
							       .code = code}});
}

/* All that its job wants of the loader, from the header on, until it has ended. */
static inline void placed_finish(struct scene *scene, uint32_t inode, bool with_host)
{
	placed_header(scene, inode, with_host);
	scene_fill(scene, inode, 0);
	if (scene_view(scene, inode).job != 0) {
		placed_tabled(scene, inode, 0);
	}
}

static inline uint32_t placed_place(struct scene *scene, uint64_t client, uint32_t inode,
				    const char *layout)
{
	(void)scene_step(scene, (struct core_event){.type = EV_PLACE,
						    .client = client,
						    .request = ++scene->last_request,
						    .place = {.model = scene_model(scene, inode),
							      .placement = placed_as(layout)}});
	return scene->last_request;
}

static inline void placed_moved(struct scene *scene, uint64_t client, uint32_t inode,
				const char *layout)
{
	uint32_t request = placed_place(scene, client, inode, layout);

	placed_finish(scene, inode, false);
	scene_expect(scene, client, request, 0);
	scene_drop_all(scene);
	scene->now_ns += ONE_SECOND;
}

/* A load to there, from its beginning to its answer; returns its lease (0: none). */
static inline uint64_t placed_loaded(struct scene *scene, uint64_t client, uint32_t inode,
				     const char *layout, struct scene_load with)
{
	uint32_t request;

	with.placement = placed_as(layout);
	request = scene_load(scene, client, inode, with);
	placed_finish(scene, inode, false);
	scene_expect(scene, client, request, 0);
	scene->now_ns += ONE_SECOND;
	return scene_reply(scene, client, request)->reply.lease;
}

static inline uint32_t placed_count(const struct scene *scene, uint32_t inode, uint32_t device,
				    enum segment_state state)
{
	struct core_segment_view view;
	uint32_t cursor = 0;
	uint32_t n_found = 0;

	while (core_segment_next(scene->core, scene_model(scene, inode), &cursor, &view)) {
		n_found += view.state == state && view.device == device ? 1 : 0;
	}
	return n_found;
}

static inline uint64_t placed_resident(const struct scene *scene, uint32_t device)
{
	struct core_account_view view;

	core_account_get(scene->core, device, &view);
	assert_int_equal(view.loading + view.dropping + view.held, 0);
	return view.resident;
}

/* All of the model is there, lies like this and nowhere else, and nothing else is under way. */
static inline void placed_assert(const struct scene *scene, uint32_t inode, const char *layout)
{
	uint32_t n_on[N_DEVICES] = {0};

	assert_true(scene_is_resident(scene, inode));
	assert_int_equal(scene_view(scene, inode).job, 0);
	assert_string_equal(placed_layouts[scene_view(scene, inode).placement], layout);
	for (uint32_t i = 0; i < N_BLOCKS; i++) {
		n_on[layout[i] - '0']++;
	}
	for (uint32_t device = 0; device < N_DEVICES; device++) {
		uint32_t n_copies = device == 0 && n_on[0] > 0 ? 1 : n_on[device];

		assert_int_equal(placed_count(scene, inode, device, SEGMENT_READY), n_copies);
	}
}

static inline void placed_lose(struct scene *scene, uint32_t device)
{
	(void)scene_step(scene,
			 (struct core_event){.type = EV_DEVICE_LOST, .device = {.device = device}});
}

static inline void placed_back(struct scene *scene, uint32_t device)
{
	(void)scene_step(scene,
			 (struct core_event){.type = EV_DEVICE_BACK, .device = {.device = device}});
}

#endif
