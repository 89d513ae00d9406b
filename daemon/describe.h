/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The core's views as the wire's structs. Each description carries the memory that its
 * strings and lists borrow, so it must outlive the encoding. Who has no right to a model
 * gets neither its name nor its path. Loop only.
 */
#ifndef DAEMON_DESCRIBE_H
#define DAEMON_DESCRIBE_H

#include <stdbool.h>
#include <stdint.h>

#include "daemon/core/core.h"
#include "daemon/plan/name.h"
#include "daemon/plan/plan.h"
#include "proto/gen/wire_gen.h"

struct answer_line;
struct client;
struct daemon;
struct model_info;
struct pending;
struct record;

#define DESCRIBE_MAX_USERS   4
#define DESCRIBE_NOTICE_SIZE 256
#define DESCRIBE_MAX_IMAGES  30 /* in one answer, beside a table and a result in a memfd */

struct model_description {
	struct wire_model wire;
	char id[33];
	char name[512];
	struct wire_place places[CORE_MAX_DEVICES + 1]; /* the host's page cache, and devices */
	struct wire_place older[CORE_MAX_DEVICES];
	char devices[CORE_MAX_DEVICES][16];
	struct wire_str stays[4];
	struct wire_holder users[DESCRIBE_MAX_USERS];
};

/* 'letters' is the caller's; NULL: all is in images. */
struct layout_description {
	struct wire_layout wire;
	struct wire_str names[CORE_MAX_DEVICES], uuids[CORE_MAX_DEVICES];
	char *letters;
};

struct record_description {
	struct wire_record wire;
	char id[33];
	char device[16];
	char why[256];
};

/* Too large for the stack. */
struct devices_description {
	struct wire_device wire[CORE_MAX_DEVICES];
	char names[CORE_MAX_DEVICES][16];
	struct wire_peer peers[CORE_MAX_DEVICES][CORE_MAX_DEVICES];
};

void describe_model(const struct daemon *daemon, const struct client *viewer,
		    const struct core_model_view *view, struct model_description *ret);
/* Where the blocks of its generation are to lie, or with '_now' lie: what has gone from there is
 * on a device "file". False: no memory. */
bool describe_layout(const struct daemon *daemon, const struct model_info *info,
		     struct layout_description *ret);
bool describe_layout_now(const struct daemon *daemon, const struct model_info *info,
			 struct layout_description *ret);
/* A bit a block: it lies where 'places' say (NULL: all on the host), and has not gone from there. */
void describe_present(const struct daemon *daemon, uint64_t model, const uint8_t *places,
		      uint32_t n_blocks, uint8_t ret[PLAN_MAX_BLOCKS / 8]);
/* Why it is less than was asked for, or less than one may think; empty: it is not. */
const char *describe_notice(const struct daemon *daemon, const struct model_info *info,
			    const struct core_model_view *view, char buffer[DESCRIBE_NOTICE_SIZE]);
/* For one who may see it; of the model that it was for he may not. */
void describe_record(const struct daemon *daemon, const struct client *viewer,
		     const struct record *record, uint64_t now_ns, struct record_description *ret);
/* All there are. */
struct wire_list describe_devices(const struct daemon *daemon, struct devices_description *ret);
void describe_client(const struct daemon *daemon, const struct core_client_view *view,
		     struct wire_client *ret);
/* May the viewer see this line of history? */
bool describe_may_see(const struct daemon *daemon, const struct client *viewer,
		      const struct record *record);

/* "gguf"; "unknown" where no header was read yet. */
/* "image" or "file". */
const char *describe_backing(enum core_backing backing);
const char *describe_format(uint32_t format);

/* enum format of this very content, where it is in memory; else 0. */
uint32_t describe_known_format(const struct daemon *daemon, const struct core_file_key *key);

/* The name that listings show, or "the model". */
const char *describe_name(const struct daemon *daemon, uint64_t model, char buffer[512]);

/* Did its last load fail, and nobody has unloaded it by name since? */
bool describe_is_failed(const struct daemon *daemon, const struct core_model_view *view);

/* Was its last load refused for want of room or for what was asked? That says nothing of it. */
bool describe_is_refused(const struct core_model_view *view);

/* Begin a line about the model in an answer that is being gathered; NULL: no memory. */
struct answer_line *describe_add_line(const struct daemon *daemon, struct pending *pending,
				      uint64_t model);

/* The image of a file of a generation; false: it is not there. */
bool describe_find_image(const struct daemon *daemon, uint64_t model, uint64_t generation,
			 uint64_t index, struct core_segment_view *ret);

struct image_range {
	uint64_t model, generation;
	uint64_t first;
	uint32_t count;
};

/*
 * Descriptors of images of a generation, as many of the range as there are; the caller's, also
 * those that come with a failure: what device_export says, WIRE_INTERNAL when there are none.
 */
int describe_images(const struct daemon *daemon, const struct image_range *range, int *ret_fds,
		    uint32_t *ret_n_fds);

const char *describe_id(const uint8_t *uuid, char buffer[33]);
const char *describe_device_name(const struct daemon *daemon, uint32_t device, char buffer[16]);
/* "cuda:0 (RTX 4090, PCI 01:00)", "ram": for people. */
const char *describe_device_label(const struct daemon *daemon, uint32_t device,
				  char buffer[PLAN_LABEL_SIZE]);

#endif
