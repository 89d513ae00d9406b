/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How a block's tensors lie in its segment, on a device that is not the host: in table (file)
 * order, each at the next multiple of SEGMENT_ALIGNMENT behind the one before. Clients have the
 * same rule from a table (proto/table.h). And which bytes of a file its host image has, when only
 * some blocks lie on the host. Pure; any thread.
 */
#ifndef FORMAT_SEGMENT_LAYOUT_H
#define FORMAT_SEGMENT_LAYOUT_H

#include "base/checked.h"

#include <stdbool.h>
#include <stdint.h>

struct tensor_map;

#define SEGMENT_ALIGNMENT 256U /* what kernels on any device can load from */

/* Where the next tensor begins, behind 'bytes' of those before it. False: too far to count. */
static inline bool segment_next(uint64_t bytes, uint64_t *ret)
{
	return checked_round_up(bytes, SEGMENT_ALIGNMENT, ret);
}

/* Bytes of a block's segment; of a block without bytes SEGMENT_ALIGNMENT, for there is no extent
 * of nothing. UINT64_MAX: more than can be counted. Looks at the tensors behind its first one
 * until it has found all. */
uint64_t block_segment_bytes(const struct tensor_map *map, uint32_t block);
/* Of all blocks at once, by one look at each tensor. */
void block_segment_bytes_all(const struct tensor_map *map, uint64_t *ret_bytes);

/* Bytes of a file that its image has. */
struct file_part {
	uint64_t offset, bytes;
};

/* A walk over the parts of a file. Zeroed but for 'file' at first. */
struct part_walk {
	uint32_t file;
	uint32_t next_tensor, end; /* among all of the map */
	bool is_begun;
};

/*
 * The next part of a file that is filled: its header, tensors of blocks whose place is 0, and
 * what lies between those. 'places': one a block; NULL: all are 0, and the file is one part.
 * Parts ascend, none touches the one before, none is empty. False: there are no more.
 */
bool file_part_next(const struct tensor_map *map, const uint8_t *places, struct part_walk *walk,
		    struct file_part *ret);

/* How many pages of 'page_bytes' the parts of a file touch. */
uint64_t file_part_pages(const struct tensor_map *map, const uint8_t *places, uint32_t file,
			 uint64_t page_bytes);

#endif
