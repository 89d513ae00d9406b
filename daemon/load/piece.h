/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Which bytes of which file go where in a segment: one piece for each run of them that stays
 * together on both sides, and windows of bounded size over the pieces. Any thread.
 */
#ifndef LOAD_PIECE_H
#define LOAD_PIECE_H

#include <stdbool.h>
#include <stdint.h>

struct err;
struct table;
struct tensor_map;

#define PIECE_WINDOW (8ULL << 20) /* large enough to keep a disk and a link busy with few of them */
/* From memory, which needs no buffer: so few that what each of them costs counts little. */
#define PIECE_LARGEST_WINDOW (32ULL << 20)
#define PIECE_PAGE           4096ULL /* windows in the middle of a piece begin at multiples of it */

struct piece {
	uint64_t from; /* in the file, or in what else it comes from */
	uint64_t to;
	uint64_t bytes; /* never 0 */
	uint32_t file;
};

/* Zeroed at first. */
struct piece_list {
	struct piece *pieces; /* owned: piece_list_fini */
	uint32_t n_pieces;
};

/* Room for so many; more may not be added. False: no memory. */
bool piece_list_init(struct piece_list *list, uint32_t max_pieces);
void piece_list_fini(struct piece_list *list);
/* A run of bytes; one that continues the last piece on both sides makes that longer. */
void piece_list_add(struct piece_list *list, const struct piece *piece);

/* The segment of a block (format/segment_layout.h). WIRE_NO_MEMORY, WIRE_TOO_LARGE. */
int piece_list_of_block(const struct tensor_map *map, uint32_t block, struct piece_list *ret,
			struct err *err);
/* The same from a table; WIRE_BAD_FILE where it has no such block. */
int piece_list_of_table(const struct table *table, uint32_t block, struct piece_list *ret,
			struct err *err);

/* What is done at once: bytes of one file and the pieces they are of. */
struct window {
	uint64_t from, bytes;
	uint32_t file;
	uint32_t first_piece, n_pieces;
};

/* How far a list was walked. Zeroed at first, but for the first field. */
struct window_walk {
	uint64_t max_bytes; /* of a window: PIECE_PAGEs, PIECE_LARGEST_WINDOW at most */
	uint32_t piece;
	uint64_t done; /* bytes of it */
};

/* False: there are no more. */
bool window_next(const struct piece_list *list, struct window_walk *walk, struct window *ret);

/* The part of a piece that a window holds. */
struct piece window_cut(const struct window *window, const struct piece *piece);

#endif
