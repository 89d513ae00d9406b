/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reads one file from its beginning, by several threads that each take 64 MiB after 64 MiB, and
 * hashes on the way. Direct reads where the file allows them, buffered ones for what is in the
 * page cache already and where direct ones are refused; interrupted and short reads are
 * invisible. Blocks as long as the file does.
 */
#ifndef LOAD_READER_H
#define LOAD_READER_H

#include <stdbool.h>
#include <stdint.h>

struct err;
struct extent;
struct file;
struct thread_group;

#define READER_MAX_THREADS 32

/* Where a read is, for those who watch it. Zeroed before; every member is atomic. */
struct read_progress {
	uint64_t bytes;                         /* read so far */
	bool is_stopped;                        /* set by anybody: read no further */
	uint64_t positions[READER_MAX_THREADS]; /* offset + 1 that a thread reads at; 0: none */
};

struct reader {
	const struct file *file;
	uint64_t bytes;        /* to read, from the beginning */
	struct extent *extent; /* where to, at the same offsets, or NULL */
	uint8_t *memory;       /* where to, or NULL; both NULL: it is only hashed */
	uint64_t *sums;        /* XXH3-64 of each 64 MiB, or NULL */
	uint32_t n_threads;
	bool direct_io;
	struct thread_group *group; /* of the threads that help */
	struct read_progress *progress;
};

/*
 * Returns 0 when every byte came; WIRE_CHANGED_WHILE_READING when the file ended before,
 * WIRE_IO with errno and offset, WIRE_NO_MEMORY, WIRE_CANCELLED when it was stopped. No
 * thread of it runs any more in any case.
 */
int reader_run(const struct reader *reader, struct err *err);

/* The lowest offset that a thread is reading at. */
uint64_t read_progress_offset(const struct read_progress *progress);

#endif
