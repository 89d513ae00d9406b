/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Blocks of attached weights that lie on other devices: each is a segment of its own. Those whose
 * memory this process can see are mapped here, privately, as images are; those of cards are
 * map_cuda.c's. Nothing that a daemon sends can overrun: a segment is mapped only when its seals
 * say that it cannot shrink, and when all that the table puts into it fits. Any thread.
 */
#ifndef CLIENT_SEGMENTS_H
#define CLIENT_SEGMENTS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "client/map_cuda.h"
#include "proto/gen/wire_gen.h"

struct distorch;
struct table;

#define SEGMENT_DEVICES_MAX WIRE_LAYOUT_DEVICES_MAX

/* One block. */
struct segment {
	uint64_t bytes; /* of its tensors where it is not on the host, gaps included */
	void *base;     /* owned; NULL: not mapped, or on the host */
	const struct segment_range *range; /* owner: segments::ranges; NULL: not imported */
	uint64_t address;                  /* then, on its card */
	uint8_t device;
};

/* Blocks of a card that came together. */
struct segment_range {
	struct segment_range *next;
	struct cuda_range card;
};

struct segments {
	void *texts; /* owned result; what the names and UUIDs lie in */
	const char *names[SEGMENT_DEVICES_MAX];
	const char *uuids[SEGMENT_DEVICES_MAX];
	uint32_t n_devices;           /* 0: all blocks are on the host */
	uint32_t n_segments;          /* as many as blocks */
	struct segment *blocks;       /* owned, as the next one; NULL: all on the host */
	uint64_t *offsets;            /* of each tensor in its block */
	struct segment_range *ranges; /* owned */
};

/* Take a layout over, checked against the table; NULL: all blocks are on the host. On failure
 * there is nothing to free. */
int segments_make(const struct wire_layout *layout, const struct table *table,
		  struct segments *ret);
/*
 * Unmap, and free. Zeroed ones are fine. False: a card's memory is still mapped, so that the daemon
 * may not be told. 'is_ours' false: this process was forked since, and the cards are its parent's.
 */
bool segments_free(struct segments *segments, bool is_ours);

/* Map those on devices whose memory is this process's to see. */
int segments_map(struct distorch *c, uint64_t lease, struct segments *segments);
/* Import those on cards that are not imported yet. */
int segments_import(struct distorch *c, uint64_t lease, struct segments *segments);

/* That block, where it is not on the host; NULL: it is. */
static inline const struct segment *segments_of(const struct segments *segments, uint32_t block)
{
	return segments->blocks == NULL || segments->blocks[block].device == 0
		       ? NULL
		       : &segments->blocks[block];
}

#endif
