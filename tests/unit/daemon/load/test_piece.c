/* SPDX-License-Identifier: Apache-2.0 */
/* Windows over pieces: every byte in one of them, none too large, few that are small. */
#include "base/err.h"
#include "base/os/sys.h"
#include "tests/support/unit.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/format/format.h"
#include "daemon/load/piece.h"
#include "proto/gen/wire_code.h"

#define MAX_PIECES 40U
#define MIB        (1ULL << 20)

static uint64_t random_below(uint64_t bound)
{
	return ((uint64_t)rand() << 31 ^ (uint64_t)rand()) %
	       bound; /* NOLINT(concurrency-mt-unsafe) */
}

/* Ascending in each file, as those of a block are; of every size. */
static void make_list(struct piece_list *list)
{
	const uint32_t n_pieces = (uint32_t)random_below(MAX_PIECES);
	struct piece piece = {0};

	assert_true(piece_list_init(list, MAX_PIECES));
	for (uint32_t i = 0; i < n_pieces; i++) {
		piece.bytes =
			1 + (random_below(3) == 0 ? random_below(30 * MIB) : random_below(3000));
		piece.from += random_below(2) == 0 ? 0 : random_below(200000);
		piece.to += random_below(3) * 17;
		if (random_below(10) == 0) {
			piece.file++;
			piece.from = random_below(5000);
		}
		piece_list_add(list, &piece);
		piece.from += piece.bytes;
		piece.to += piece.bytes;
	}
}

/* Which byte of the list comes next. */
struct place {
	uint32_t piece;
	uint64_t done;
};

static void check_window(const struct piece_list *list, const struct window *window,
			 uint64_t max_bytes, struct place *place)
{
	assert_true(window->bytes > 0 && window->bytes <= max_bytes);
	assert_true(window->n_pieces > 0);
	for (uint32_t i = 0; i < window->n_pieces; i++) {
		const struct piece *whole = &list->pieces[window->first_piece + i];
		const struct piece part = window_cut(window, whole);

		assert_int_equal(window->first_piece + i, place->piece);
		assert_int_equal(part.file, window->file);
		assert_int_equal(part.from, whole->from + place->done);
		assert_int_equal(part.to, whole->to + place->done);
		assert_true(part.bytes > 0 && part.from >= window->from);
		assert_true(part.from + part.bytes <= window->from + window->bytes);
		place->done += part.bytes;
		if (place->done == whole->bytes) {
			*place = (struct place){.piece = place->piece + 1};
		} else { /* only the last of a window may be cut, and at a page */
			assert_int_equal(i, window->n_pieces - 1);
			assert_int_equal((part.from + part.bytes) % PIECE_PAGE, 0);
		}
	}
}

static void windows_hold_every_byte_once(void **state)
{
	(void)state;
	for (uint32_t round = 0; round < 20000; round++) {
		struct piece_list list;
		struct window_walk walk = {
			.max_bytes = round % 2 == 0 ? PIECE_WINDOW
						    : PIECE_PAGE * (1 + random_below(5000))};
		struct place place = {0};
		struct window window;

		make_list(&list);
		while (window_next(&list, &walk, &window)) {
			check_window(&list, &window, walk.max_bytes, &place);
		}
		assert_int_equal(place.piece, list.n_pieces);
		assert_false(window_next(&list, &walk, &window));
		piece_list_fini(&list);
	}
}

static void neighbours_share_a_window(void **state)
{
	struct piece_list list;
	struct window_walk walk = {.max_bytes = PIECE_WINDOW};
	struct window window;

	(void)state;
	assert_true(piece_list_init(&list, 3));
	piece_list_add(&list, &(struct piece){.from = 10, .to = 0, .bytes = 5});
	piece_list_add(&list, &(struct piece){.from = 15, .to = 5, .bytes = 7}); /* goes on */
	piece_list_add(&list, &(struct piece){.from = 30000, .to = 256, .bytes = 9});
	piece_list_add(&list, &(struct piece){.from = 100 * MIB, .to = 512, .bytes = 9});
	assert_int_equal(list.n_pieces, 3);
	assert_int_equal(list.pieces[0].bytes, 12);
	assert_true(window_next(&list, &walk, &window));
	assert_int_equal(window.n_pieces, 2);
	assert_int_equal(window.from, 10);
	assert_int_equal(window.bytes, 30009 - 10);
	assert_true(window_next(&list, &walk, &window));
	assert_int_equal(window.n_pieces, 1);
	assert_false(window_next(&list, &walk, &window));
	piece_list_fini(&list);
}

static void a_segment_that_cannot_be_counted_is_refused(void **state)
{
	struct tensor tensors[2] = {{.size = UINT64_MAX - 300}, {.size = 600}};
	struct block block = {.n_tensors = 2};
	struct tensor_map map = {.tensors = tensors,
				 .n_tensors = 2,
				 .blocks = &block,
				 .n_blocks = 1};
	struct piece_list list = {0};
	struct err err = {0};

	(void)state;
	assert_int_equal(piece_list_of_block(&map, 0, &list, &err), -WIRE_TOO_LARGE);
	assert_null(list.pieces);
	assert_true(sys_fault_set("malloc", (struct sys_fault){.nth = 1, .error = ENOMEM}));
	assert_int_equal(piece_list_of_block(&map, 0, &list, &err), -WIRE_NO_MEMORY);
	sys_fault_clear();
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(windows_hold_every_byte_once),
		cmocka_unit_test(neighbours_share_a_window),
		cmocka_unit_test(a_segment_that_cannot_be_counted_is_refused),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
