/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Moves pieces (piece.h) into an extent of any device, or compares them with what is in one: by
 * few threads, so that one window is read while another is on its way to the device. What comes
 * from a file goes through memory of ours, at most a window a thread. Blocks as long as file and
 * device do; looks at progress.is_stopped between windows, and between the reads of one.
 */
#ifndef LOAD_TRANSFER_H
#define LOAD_TRANSFER_H

#include <stdbool.h>
#include <stdint.h>

struct err;
struct extent;
struct file;
struct file_key;
struct piece_list;
struct read_progress;
struct thread_group;
struct window_pool;

struct transfer {
	const struct piece_list *list;
	struct extent *extent;
	/* Where its pieces come from: another extent, or of each file the descriptor of an image
	 * that can be read like the file (-1: none; NULL: of no file), or else the files. */
	const struct extent *from;
	const int *image_fds;
	struct file *file;
	const struct file_key *keys; /* of each file */
	bool direct_io;
	bool is_comparison;
	uint32_t n_threads;
	struct thread_group *group; /* of the threads that help */
	struct window_pool *pool;   /* the caller is in */
	struct read_progress *progress;
};

/* Where a comparison found the first difference that it came upon. */
struct difference {
	bool is_found;
	uint32_t file;
	uint64_t offset; /* in it; to about a window */
};

/*
 * Returns 0, the device's code unchanged, what reader_run returns for a file, WIRE_NO_MEMORY, or
 * WIRE_CANCELLED. 'ret' is for a comparison, else NULL. No thread of it runs any more in any case.
 */
int transfer_run(const struct transfer *transfer, struct difference *ret, struct err *err);

#endif
