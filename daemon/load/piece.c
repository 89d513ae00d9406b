/* SPDX-License-Identifier: Apache-2.0 */
/* Runs of bytes between files and segments. See piece.h. */
#include "daemon/load/piece.h"

#include "base/checked.h"
#include "base/err.h"
#include "base/os/sys.h"

#include <stdlib.h>

#include "daemon/format/format.h"
#include "daemon/format/segment_layout.h"
#include "proto/gen/wire_code.h"
#include "proto/table.h"

#define MAX_GAP (64ULL << 10) /* sooner read than asked for twice */

_Static_assert(SEGMENT_ALIGNMENT == TABLE_SEGMENT_ALIGNMENT, "one rule for both");

bool piece_list_init(struct piece_list *list, uint32_t max_pieces)
{
	*list = (struct piece_list){
		.pieces = sys_calloc((size_t)max_pieces + 1, sizeof *list->pieces)};
	return list->pieces != NULL;
}

void piece_list_fini(struct piece_list *list)
{
	free(list->pieces);
	*list = (struct piece_list){0};
}

void piece_list_add(struct piece_list *list, const struct piece *piece)
{
	struct piece *last = list->n_pieces == 0 ? NULL : &list->pieces[list->n_pieces - 1];

	if (piece->bytes == 0) {
		return;
	}
	if (last != NULL && last->file == piece->file && last->from + last->bytes == piece->from &&
	    last->to + last->bytes == piece->to) {
		last->bytes += piece->bytes;
	} else {
		list->pieces[list->n_pieces++] = *piece;
	}
}

/* ---- segments ---- */

static int begin_segment(struct piece_list *ret, uint32_t n_tensors, struct err *err)
{
	return piece_list_init(ret, n_tensors)
		       ? 0
		       : err_set(err, WIRE_NO_MEMORY, "no memory for the places of %u tensors",
				 n_tensors);
}

/* One tensor behind the 'bytes' of those before it. False: too many to count. */
static bool add_tensor(struct piece_list *list, uint64_t *bytes, uint32_t file, uint64_t offset,
		       uint64_t size)
{
	struct piece piece = {.from = offset, .bytes = size, .file = file};

	if (!segment_next(*bytes, &piece.to) || !checked_add(piece.to, size, bytes)) {
		return false;
	}
	piece_list_add(list, &piece);
	return true;
}

static int fail_size(struct piece_list *list, uint32_t block, struct err *err)
{
	piece_list_fini(list);
	return err_set(err, WIRE_TOO_LARGE, "block %u has more bytes than can be counted", block);
}

int piece_list_of_block(const struct tensor_map *map, uint32_t block, struct piece_list *ret,
			struct err *err)
{
	uint32_t left = map->blocks[block].n_tensors;
	uint64_t bytes = 0;
	int code = begin_segment(ret, left, err);

	if (code < 0) {
		return code;
	}
	for (uint32_t i = map->blocks[block].first_tensor; i < map->n_tensors && left > 0; i++) {
		const struct tensor *tensor = &map->tensors[i];

		if (tensor->block != block) {
			continue;
		}
		if (!add_tensor(ret, &bytes, tensor->shard, tensor->offset, tensor->size)) {
			return fail_size(ret, block, err);
		}
		left--;
	}
	return 0;
}

int piece_list_of_table(const struct table *table, uint32_t block, struct piece_list *ret,
			struct err *err)
{
	uint64_t bytes = 0;
	uint32_t left;
	int code;

	if (block >= table->header->n_blocks) {
		return err_set(err, WIRE_BAD_FILE, "the table has no block %u", block);
	}
	left = table->blocks[block].n_tensors;
	code = begin_segment(ret, left, err);
	if (code < 0) {
		return code;
	}
	for (uint32_t i = table->blocks[block].first_tensor;
	     i < table->header->n_tensors && left > 0; i++) {
		const struct table_tensor *tensor = &table->tensors[i];

		if (tensor->block != block) {
			continue;
		}
		if (!add_tensor(ret, &bytes, tensor->shard, tensor->offset, tensor->size)) {
			return fail_size(ret, block, err);
		}
		left--;
	}
	return 0;
}

/* ---- windows ---- */

/* May the window grow to the end of the next piece? */
static bool does_join(const struct window *window, const struct piece *next, uint64_t max_bytes)
{
	const uint64_t end = window->from + window->bytes;

	return next->file == window->file && next->from >= end && next->from - end <= MAX_GAP &&
	       next->from + next->bytes - window->from <= max_bytes;
}

bool window_next(const struct piece_list *list, struct window_walk *walk, struct window *ret)
{
	const struct piece *piece = &list->pieces[walk->piece];
	struct window window = {.first_piece = walk->piece, .n_pieces = 1};
	uint64_t limit;

	if (walk->piece >= list->n_pieces) {
		return false;
	}
	window.file = piece->file;
	window.from = piece->from + walk->done;
	window.bytes = piece->bytes - walk->done;
	limit = walk->max_bytes - window.from % PIECE_PAGE;
	if (window.bytes > limit) {
		window.bytes = limit;
		walk->done += limit;
		*ret = window;
		return true;
	}
	for (walk->done = 0, walk->piece++; walk->piece < list->n_pieces; walk->piece++) {
		piece = &list->pieces[walk->piece];
		if (!does_join(&window, piece, walk->max_bytes)) {
			break;
		}
		window.bytes = piece->from + piece->bytes - window.from;
		window.n_pieces++;
	}
	*ret = window;
	return true;
}

struct piece window_cut(const struct window *window, const struct piece *piece)
{
	const uint64_t end = window->from + window->bytes;
	struct piece part = *piece;

	if (part.from < window->from) {
		const uint64_t gone = window->from - part.from;

		part.from += gone;
		part.to += gone;
		part.bytes -= gone;
	}
	if (part.bytes > end - part.from) {
		part.bytes = end - part.from;
	}
	return part;
}
