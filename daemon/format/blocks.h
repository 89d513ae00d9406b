/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Tensors -> blocks, by their names (docs/architecture.md says what a block is for). A name
 * is split at dots; the first part that is all digits closes the prefix, and tensors of one
 * prefix are one block. Tensors without such a part are the head of their component:
 * "(head)", "vae.(head)".
 * Blocks of one stem ("double_blocks") lie together, 7 before 10; stems lie in file order of
 * their first tensor. What exceeds FORMAT_MAX_BLOCK is split between tensors. Pure but for
 * memory; any thread.
 */
#ifndef FORMAT_BLOCKS_H
#define FORMAT_BLOCKS_H

#include <stdbool.h>
#include <stdint.h>

#include "daemon/format/format.h"

struct err;

/*
 * Fills tensors[i].block. '*ret_memory' holds the blocks and is the caller's to free; block
 * names borrow from it and from the tensors' names. Returns the count in '*ret_n_blocks';
 * 0 or -WIRE_NO_MEMORY.
 */
int blocks_compute(struct tensor *tensors, uint32_t n_tensors, void **ret_memory,
		   const struct block **ret_blocks, uint32_t *ret_n_blocks, struct err *err);

/*
 * What a block's name says of it, where nothing is known of its tensors: the same as a tensor's.
 * The "#2" of a further part says nothing.
 */
void block_read_name(const char *name, uint32_t name_size, enum component *ret_component,
		     bool *ret_is_head);

/*
 * Make each tensor of a parsed (and joined) map a block of its own, called as the tensor: in the
 * order of the blocks it had, within each in file order. Returns 0 or -WIRE_NO_MEMORY, which
 * leaves the map as it was.
 */
int blocks_by_tensor(struct tensor_map *map, struct err *err);

#endif
