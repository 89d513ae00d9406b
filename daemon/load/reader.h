/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reads one file, all of it or parts, by several threads that each take 64 MiB after 64 MiB, and
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
	uint64_t bytes;  /* read so far */
	uint64_t came;   /* by reads that are parts of it, see reader.whole */
	bool is_stopped; /* set by anybody: read no further */
	uint64_t positions[READER_MAX_THREADS]; /* offset + 1 that a thread reads at; 0: none */
};

/* What an extent is to have of a file. */
struct read_part {
	uint64_t offset, bytes;
	bool is_filled; /* it has that already: only hashed */
};

struct reader {
	const struct file *file;
	uint64_t begin;        /* read from here on; 0 but for 'memory' */
	uint64_t bytes;        /* to read */
	struct extent *extent; /* where to, at the same offsets, or NULL */
	uint8_t *memory;       /* where to, or NULL; both NULL: it is only hashed */
	uint64_t *sums;        /* XXH3-64 of each 64 MiB, or NULL */
	/* Of an extent: only these are read, ascending; the rest stays as it is and is hashed as
	 * zeros. NULL: all is read. */
	const struct read_part *parts;
	uint32_t n_parts;
	bool is_prepared; /* the extent was */
	uint32_t n_threads;
	bool direct_io;
	bool into_cache; /* what is read stays in the page cache, what is there is not read */
	struct thread_group *group; /* of the threads that help */
	struct read_progress *progress;
	struct read_progress *whole; /* of what it is a part of: that stops it, and sees it move; or
				      * NULL */
};

/*
 * Returns 0 when every byte came; WIRE_CHANGED_WHILE_READING when the file ended before,
 * WIRE_IO with errno and offset, WIRE_NO_MEMORY, WIRE_CANCELLED when it was stopped. No
 * thread of it runs any more in any case.
 */
int reader_run(const struct reader *reader, struct err *err);

/* Are at least nine tenths of the file's 'bytes' in the page cache? May block. */
bool reader_is_cached(const struct file *file, uint64_t bytes);

/* The lowest offset that a thread is reading at. */
uint64_t read_progress_offset(const struct read_progress *progress);

#endif
