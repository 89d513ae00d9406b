/* SPDX-License-Identifier: Apache-2.0 */
/* See segments.h. */
#include "client/segments.h"

#include "base/cleanup.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "client/client.h"
#include "client/error.h"
#include "client/memory.h"
#include "client/result.h"
#include "proto/table.h"

#define FIRST_LETTER 'A'
#define HOST         0U /* the first device of a layout */

static int bad_layout(const char *what)
{
	return failure_set(DISTORCH_E_INTERNAL, 0, NULL,
			   "the daemon's list of where blocks lie: %s", what);
}

/* ---- the layout ---- */

static int read_devices(const struct wire_layout *layout, struct segments *segments)
{
	struct wire_list names = layout->devices;
	struct wire_list uuids = layout->uuids;
	struct wire_str text;

	if (names.count == 0 || names.count > SEGMENT_DEVICES_MAX || uuids.count != names.count) {
		return bad_layout("it has no devices, or another number of their UUIDs");
	}
	segments->texts = result_new(1);
	if (segments->texts == NULL) {
		return failure_memory();
	}
	while (wire_list_next(&names, NULL, &text)) {
		const char *name = result_text(segments->texts, text);

		if (name == NULL) {
			return failure_memory();
		}
		segments->names[segments->n_devices++] = name;
	}
	for (uint32_t i = 0; wire_list_next(&uuids, NULL, &text); i++) {
		segments->uuids[i] = i == HOST ? NULL : result_text(segments->texts, text);
		if (i != HOST && segments->uuids[i] == NULL) {
			return failure_memory();
		}
	}
	return segments->names[HOST] != NULL && strcmp(segments->names[HOST], "cpu") == 0
		       ? 0
		       : bad_layout("cpu is not the first");
}

static int read_places(const struct wire_layout *layout, struct segments *segments)
{
	if (layout->places.size != segments->n_segments) {
		return bad_layout("it has not a letter for each block");
	}
	for (uint32_t i = 0; i < segments->n_segments; i++) {
		int device = layout->places.text[i] - FIRST_LETTER;

		if (device < 0 || (uint32_t)device >= segments->n_devices) {
			return bad_layout("a block is on no device of it");
		}
		segments->blocks[i].device = (uint8_t)device;
	}
	return 0;
}

static int lay_out(const struct table *table, struct segments *segments)
{
	uint64_t *bytes = calloc((size_t)segments->n_segments + 1, sizeof *bytes);
	int rc = 0;

	if (bytes == NULL) {
		return failure_memory();
	}
	table_segment_offsets(table, segments->offsets, bytes);
	for (uint32_t i = 0; i < table->header->n_tensors; i++) {
		uint32_t block = table->tensors[i].block;

		/* A block without bytes of tensors has 0: there is nothing to fetch for it. */
		if (table->tensors[i].size > 0) {
			segments->blocks[block].bytes = bytes[block];
		}
		if (bytes[block] == UINT64_MAX) {
			rc = bad_layout("a block is larger than there are bytes");
		}
	}
	free(bytes);
	return rc;
}

int segments_make(const struct wire_layout *layout, const struct table *table, struct segments *ret)
{
	struct segments segments = {.n_segments = table->header->n_blocks};
	int rc;

	if (layout == NULL) {
		*ret = (struct segments){0};
		return 0;
	}
	segments.blocks = calloc((size_t)segments.n_segments + 1, sizeof *segments.blocks);
	segments.offsets = calloc((size_t)table->header->n_tensors + 1, sizeof *segments.offsets);
	rc = segments.blocks == NULL || segments.offsets == NULL ? failure_memory() : 0;
	if (rc == 0) {
		rc = read_devices(layout, &segments);
	}
	if (rc == 0) {
		rc = read_places(layout, &segments);
	}
	if (rc == 0) {
		rc = lay_out(table, &segments);
	}
	if (rc < 0) {
		(void)segments_free(&segments, true); /* nothing is mapped yet */
		return rc;
	}
	*ret = segments;
	return 0;
}

bool segments_free(struct segments *segments, bool is_ours)
{
	struct segment_range *range;
	bool is_unmapped = true;

	for (uint32_t i = 0; segments->blocks != NULL && i < segments->n_segments; i++) {
		if (segments->blocks[i].base != NULL) {
			memory_unmap(segments->blocks[i].base, (size_t)segments->blocks[i].bytes);
		}
	}
	while ((range = segments->ranges) != NULL) {
		is_unmapped = (!is_ours || map_cuda_release(&range->card) == 0) && is_unmapped;
		segments->ranges = range->next;
		free(range);
	}
	free(segments->blocks);
	free(segments->offsets);
	result_free(segments->texts);
	*segments = (struct segments){0};
	return is_unmapped;
}

/* ---- descriptors ---- */

/* A block that came. */
struct arrival {
	struct segment *segment;
	int *fd; /* who takes the descriptor takes it out of its variable; else it is closed */
};

/* Blocks of one device. */
typedef int (*take_fn)(struct segments *segments, const struct arrival *arrivals, uint32_t n);

/* What is being fetched. */
struct fetch {
	struct segments *segments;
	bool is_wanted[SEGMENT_DEVICES_MAX];
	take_fn take;
	uint64_t next; /* the block to ask for */
};

static bool is_expected(const struct fetch *fetch, uint64_t block)
{
	const struct segment *segment = &fetch->segments->blocks[block];

	return segment->bytes > 0 && fetch->is_wanted[segment->device] && segment->base == NULL &&
	       segment->range == NULL;
}

/* The first from 'from' on that has to come; as many as there are blocks: none has. */
static uint64_t next_expected(const struct fetch *fetch, uint64_t from)
{
	while (from < fetch->segments->n_segments && !is_expected(fetch, from)) {
		from++;
	}
	return from;
}

static int take_by_device(const struct fetch *fetch, const struct arrival *arrivals, uint32_t n)
{
	int rc = 0;

	for (uint32_t device = HOST + 1; rc == 0 && device < fetch->segments->n_devices; device++) {
		struct arrival there[WIRE_FDS_PER_PACKET];
		uint32_t n_there = 0;

		for (uint32_t i = 0; i < n; i++) {
			if (arrivals[i].segment->device == device) {
				there[n_there++] = arrivals[i];
			}
		}
		if (n_there > 0) {
			rc = fetch->take(fetch->segments, there, n_there);
		}
	}
	return rc;
}

/* One answer's blocks: in order, and none left out that has to come. */
static int take_answer(struct fetch *fetch, const struct wire_map_response *response,
		       struct answer *answer)
{
	struct arrival arrivals[WIRE_FDS_PER_PACKET];
	struct wire_list blocks = response->blocks;
	uint64_t block;
	uint32_t n_read = 0;
	uint32_t n_arrived = 0;

	if (!response->has_blocks || blocks.count == 0 || blocks.count != answer->n_fds) {
		return bad_layout("it has not a descriptor for each block that came");
	}
	while (wire_list_next(&blocks, NULL, &block)) {
		int *fd = &answer->fds[n_read++];

		if (block < fetch->next || block >= fetch->segments->n_segments ||
		    next_expected(fetch, fetch->next) < block) {
			return bad_layout("a block came out of its turn, or did not come");
		}
		fetch->next = block + 1;
		if (is_expected(fetch, block)) {
			arrivals[n_arrived++] =
				(struct arrival){.segment = &fetch->segments->blocks[block],
						 .fd = fd};
		}
	}
	return take_by_device(fetch, arrivals, n_arrived);
}

static int fetch_some(struct distorch *c, uint64_t lease, struct fetch *fetch)
{
	const uint64_t range[] = {fetch->next, fetch->segments->n_segments - fetch->next};
	const struct wire_map_request body = {
		.lease = lease,
		.has_blocks = true,
		.blocks = {.count = 2, .items = range},
	};
	const struct request request = {.method = WIRE_METHOD_MAP, .body = &body};
	struct wire_map_response response;
	AUTO_ANSWER struct answer answer = {0};
	int rc = client_call(c, &request, &answer, &response);

	return rc < 0 ? rc : take_answer(fetch, &response, &answer);
}

/* Ask for the descriptors of all blocks that have bytes on a device that 'is_wanted', and hand
 * them to 'take'. */
static int fetch_blocks(struct distorch *c, uint64_t lease, struct segments *segments,
			bool (*is_wanted)(const char *device), take_fn take)
{
	struct fetch fetch = {.segments = segments, .take = take};
	int rc = 0;

	if (segments->blocks == NULL) {
		return 0;
	}
	for (uint32_t i = HOST + 1; i < segments->n_devices; i++) {
		fetch.is_wanted[i] = is_wanted(segments->names[i]);
	}
	while (rc == 0) {
		fetch.next = next_expected(&fetch, fetch.next);
		if (fetch.next == segments->n_segments) {
			return 0;
		}
		rc = fetch_some(c, lease, &fetch);
	}
	return rc;
}

/* ---- memory that this process can see ---- */

static bool is_visible(const char *device)
{
	return strncmp(device, "sim:", 4) == 0;
}

static int map_segment(struct segment *segment, int fd)
{
	struct stat status;

	if (!memory_is_sealed(fd)) {
		return failure_set(DISTORCH_E_INTERNAL, 0, NULL,
				   "the daemon sent a block that is not sealed");
	}
	if (fstat(fd, &status) != 0 || status.st_size < 0 ||
	    (uint64_t)status.st_size < segment->bytes) {
		return failure_set(DISTORCH_E_INTERNAL, 0, NULL,
				   "the daemon sent %lld bytes of a block of %llu",
				   (long long)status.st_size, (unsigned long long)segment->bytes);
	}
	segment->base = memory_map(fd, (size_t)segment->bytes);
	if (segment->base == NULL) {
		return failure_set(DISTORCH_E_INTERNAL, errno, "is there a ulimit -v?",
				   "mapping %llu bytes failed: %s",
				   (unsigned long long)segment->bytes, strerror(errno));
	}
	return 0;
}

static int map_arrivals(struct segments *segments, const struct arrival *arrivals, uint32_t n)
{
	int rc = 0;

	(void)segments;
	for (uint32_t i = 0; rc == 0 && i < n; i++) {
		rc = map_segment(arrivals[i].segment, *arrivals[i].fd);
	}
	return rc;
}

int segments_map(struct distorch *c, uint64_t lease, struct segments *segments)
{
	return fetch_blocks(c, lease, segments, is_visible, map_arrivals);
}

/* ---- cards ---- */

static bool is_card(const char *device)
{
	return strncmp(device, "cuda:", 5) == 0;
}

static int import_arrivals(struct segments *segments, const struct arrival *arrivals, uint32_t n)
{
	struct cuda_source sources[MAP_CUDA_MAX] = {{0}};
	struct segment_range *range = calloc(1, sizeof *range);
	uint64_t address;
	int rc;

	if (range == NULL) {
		return failure_memory();
	}
	for (uint32_t i = 0; i < n; i++) {
		sources[i] = (struct cuda_source){.fd = steal_fd(arrivals[i].fd),
						  .bytes = arrivals[i].segment->bytes};
	}
	rc = map_cuda_import(segments->uuids[arrivals[0].segment->device], sources, n,
			     &range->card);
	if (rc < 0) {
		free(range);
		return rc;
	}
	address = range->card.address;
	for (uint32_t i = 0; i < n; i++) {
		arrivals[i].segment->range = range;
		arrivals[i].segment->address = address;
		address += range->card.sizes[i];
	}
	range->next = segments->ranges;
	segments->ranges = range;
	return 0;
}

int segments_import(struct distorch *c, uint64_t lease, struct segments *segments)
{
	return fetch_blocks(c, lease, segments, is_card, import_arrivals);
}
