/* SPDX-License-Identifier: Apache-2.0 */
/* Windows of a file into memory. See reader.h. */
#include "daemon/load/reader.h"

#include "base/cleanup.h"
#include "base/err.h"
#include "base/os/crash.h"
#include "base/os/sys.h"
#include "base/require.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include "daemon/device/device.h"
#include "daemon/load/file.h"
#include "daemon/load/hash.h"
#include "daemon/load/thread.h"
#include "proto/gen/wire_code.h"

#define DIRECT_WINDOW   (8ULL << 20)  /* large enough to keep a disk busy with few threads */
#define BUFFERED_WINDOW (2ULL << 20)  /* small enough to be hashed out of the CPU's cache */
#define PREPARED_AHEAD  (16ULL << 20) /* of an extent at once; the other threads read meanwhile */
#define ALIGNMENT       4096ULL       /* of direct reads; no disk wants more */
#define N_ZEROS         16384U        /* hashed at once, where there is nothing to read */

#ifndef SYS_cachestat
#	define SYS_cachestat 451
#endif

struct cachestat_range {
	uint64_t offset;
	uint64_t bytes;
};

struct cachestat {
	uint64_t n_cached; /* pages */
	uint64_t n_dirty, n_writeback, n_evicted, n_recently_evicted;
};

/* What the threads of one run share. Lives on the caller's stack until all are done. */
struct run {
	const struct reader *reader;
	pthread_mutex_t lock;
	uint32_t n_lanes;    /* guarded by lock: numbers given out so far */
	struct err err;      /* guarded by lock: the first failure */
	uint64_t next_range; /* atomic */
	bool no_direct;      /* atomic: direct reads were refused once */
};

/* One thread's part of a run. */
struct lane {
	struct run *run;
	uint64_t *position;
	struct hash_stream *hash; /* NULL: not hashed */
	uint8_t *scratch;         /* aligned; where bytes go that are only hashed */
};

static bool is_stopped(const struct run *run)
{
	const struct read_progress *whole = run->reader->whole;

	return __atomic_load_n(&run->reader->progress->is_stopped, __ATOMIC_RELAXED) ||
	       (whole != NULL && __atomic_load_n(&whole->is_stopped, __ATOMIC_RELAXED));
}

static void fail_run(struct run *run, const struct err *err)
{
	thread_lock(&run->lock);
	if (run->err.code == 0) {
		run->err = *err;
	}
	thread_unlock(&run->lock);
	__atomic_store_n(&run->reader->progress->is_stopped, true, __ATOMIC_RELAXED);
}

/* Is at least nine tenths of a range in the page cache? */
static bool is_cached(int fd, uint64_t offset, uint64_t bytes)
{
	struct cachestat_range range = {.offset = offset, .bytes = bytes};
	struct cachestat found = {0};
	char byte;
	const struct iovec one = {.iov_base = &byte, .iov_len = 1};

	if (syscall(SYS_cachestat, fd, &range, &found, 0) == 0) {
		return found.n_cached * (uint64_t)sysconf(_SC_PAGESIZE) >= bytes / 10 * 9;
	}
	/* Before Linux 6.5, or not the file's owner: ask by reads that may not wait. */
	return preadv2(fd, &one, 1, (off_t)offset, RWF_NOWAIT) == 1 &&
	       preadv2(fd, &one, 1, (off_t)(offset + bytes / 2), RWF_NOWAIT) == 1 &&
	       preadv2(fd, &one, 1, (off_t)(offset + bytes - 1), RWF_NOWAIT) == 1;
}

/* One read of the file to where its bytes belong. */
static int read_once(const struct lane *lane, const struct device_source *source, uint8_t *to,
		     uint64_t *ret_bytes, struct err *err)
{
	ssize_t n_read;

	if (lane->run->reader->extent != NULL) {
		return device_fill(lane->run->reader->extent, source->offset, source, ret_bytes,
				   err);
	}
	n_read = sys_pread(source->fd, to, source->bytes, source->offset);
	if (n_read < 0) {
		int error = errno;

		(void)err_set_sys(err, WIRE_IO, error, "reading at byte %llu: %s",
				  (unsigned long long)source->offset, strerror(error));
		err->offset = source->offset;
		return -WIRE_IO;
	}
	*ret_bytes = (uint64_t)n_read;
	return 0;
}

/* How the next read of 'left' bytes at 'offset' is best done. */
static struct device_source choose_source(const struct run *run, uint64_t offset, uint64_t left,
					  bool wants_direct)
{
	const struct file *file = run->reader->file;
	struct device_source source = {.fd = file->fd, .offset = offset, .bytes = left};

	if (!wants_direct || __atomic_load_n(&run->no_direct, __ATOMIC_RELAXED)) {
		return source;
	}
	if (offset % ALIGNMENT != 0) {
		/* After a short direct read: up to where direct ones can go on. */
		uint64_t gap = ALIGNMENT - offset % ALIGNMENT;

		source.bytes = left < gap ? left : gap;
	} else if (left >= ALIGNMENT) {
		source.fd = file->direct_fd;
		source.bytes = left / ALIGNMENT * ALIGNMENT;
	}
	return source;
}

static int fail_short(uint64_t offset, uint64_t wanted, struct err *err)
{
	(void)err_set(err, WIRE_CHANGED_WHILE_READING,
		      "the file ended at byte %llu of %llu while it was read",
		      (unsigned long long)offset, (unsigned long long)wanted);
	err->offset = offset;
	return -WIRE_CHANGED_WHILE_READING;
}

/* Every byte of one window, however many reads that takes. 'to': the first byte's place. */
static int read_window(const struct lane *lane, uint64_t offset, uint64_t left, uint8_t *to,
		       bool wants_direct)
{
	struct run *run = lane->run;
	struct read_progress *progress = run->reader->progress;
	struct err err = {0};

	while (left > 0) {
		struct device_source source = choose_source(run, offset, left, wants_direct);
		uint64_t n_bytes = 0;
		int code;

		if (is_stopped(run)) {
			return -WIRE_CANCELLED;
		}
		__atomic_store_n(lane->position, offset + 1, __ATOMIC_RELAXED);
		code = read_once(lane, &source, to, &n_bytes, &err);
		if (code < 0 && err.sys == EINTR) {
			continue;
		}
		if (code < 0 && source.fd == run->reader->file->direct_fd &&
		    (err.sys == EINVAL || err.sys == EOPNOTSUPP)) {
			__atomic_store_n(&run->no_direct, true, __ATOMIC_RELAXED);
			continue;
		}
		if (code == 0 && n_bytes == 0) {
			code = fail_short(offset, run->reader->begin + run->reader->bytes, &err);
		}
		if (code < 0) {
			fail_run(run, &err);
			return code;
		}
		__atomic_add_fetch(&progress->bytes, n_bytes, __ATOMIC_RELAXED);
		if (run->reader->whole != NULL) {
			__atomic_add_fetch(&run->reader->whole->came, n_bytes, __ATOMIC_RELAXED);
		}
		offset += n_bytes;
		left -= n_bytes;
		to = to == NULL ? NULL : to + n_bytes;
	}
	return 0;
}

/* Where the bytes of a window can be seen, once read; NULL where they cannot. */
static uint8_t *place_of(const struct lane *lane, uint64_t offset)
{
	const struct reader *reader = lane->run->reader;

	if (reader->memory != NULL) {
		return reader->memory + (offset - reader->begin);
	}
	return lane->scratch;
}

static const void *bytes_of(const struct lane *lane, uint64_t offset)
{
	const struct reader *reader = lane->run->reader;

	if (reader->extent != NULL) {
		return (const uint8_t *)device_bytes(reader->extent) + offset;
	}
	return place_of(lane, offset);
}

/* What becomes of some of a range's bytes. */
struct span {
	uint64_t offset, bytes;
	bool is_read, is_hole;
};

/* The first part that ends behind 'offset', or n_parts. */
static uint32_t find_part(const struct reader *reader, uint64_t offset)
{
	uint32_t low = 0;
	uint32_t high = reader->n_parts;

	while (low < high) {
		const uint32_t middle = low + (high - low) / 2;
		const struct read_part *part = &reader->parts[middle];

		if (part->offset + part->bytes <= offset) {
			low = middle + 1;
		} else {
			high = middle;
		}
	}
	return low;
}

/* As far from 'offset' on as the same becomes of it, at most to 'end'. */
static struct span span_at(const struct reader *reader, uint64_t offset, uint64_t end)
{
	struct span span = {.offset = offset, .bytes = end - offset, .is_read = true};
	const struct read_part *part;
	uint32_t index;

	if (reader->parts == NULL) {
		return span;
	}
	index = find_part(reader, offset);
	part = &reader->parts[index];
	if (index == reader->n_parts || part->offset >= end) {
		span.is_read = false;
		span.is_hole = true;
	} else if (part->offset > offset) {
		span.is_read = false;
		span.is_hole = true;
		span.bytes = part->offset - offset;
	} else {
		span.is_read = !part->is_filled;
		if (part->offset + part->bytes < end) {
			span.bytes = part->offset + part->bytes - offset;
		}
	}
	return span;
}

/* The end of the window, or of what is prepared at once, that an offset lies in. */
static uint64_t end_of_step(uint64_t offset, uint64_t step, uint64_t end)
{
	const uint64_t left = step - offset % step;

	return end - offset < left ? end : offset + left;
}

static int read_span(const struct lane *lane, const struct span *span, bool is_direct)
{
	const struct reader *reader = lane->run->reader;
	const uint64_t window = is_direct && lane->scratch == NULL ? DIRECT_WINDOW
								   : BUFFERED_WINDOW;
	const uint64_t end = span->offset + span->bytes;
	uint64_t prepared = span->offset;
	uint64_t next;

	for (uint64_t offset = span->offset; offset < end; offset = next) {
		int code;

		if (reader->extent != NULL && !reader->is_prepared && offset == prepared) {
			prepared = end_of_step(offset, PREPARED_AHEAD, end);
			device_prepare(reader->extent, offset, prepared - offset);
		}
		next = end_of_step(offset, window, end);
		code = read_window(lane, offset, next - offset, place_of(lane, offset), is_direct);
		if (code < 0) {
			return code;
		}
		if (lane->hash != NULL) {
			hash_stream_add(lane->hash, bytes_of(lane, offset), next - offset);
		}
	}
	return 0;
}

/* What is there already, or zeros. */
static void hash_span(const struct lane *lane, const struct span *span)
{
	static const uint8_t zeros[N_ZEROS];

	if (lane->hash == NULL) {
		return;
	}
	if (!span->is_hole) {
		hash_stream_add(lane->hash, bytes_of(lane, span->offset), span->bytes);
		return;
	}
	for (uint64_t left = span->bytes; left > 0;) {
		const size_t size = left < sizeof zeros ? (size_t)left : sizeof zeros;

		hash_stream_add(lane->hash, zeros, size);
		left -= size;
	}
}

static int read_spans(const struct lane *lane, uint64_t begin, uint64_t end, bool is_direct)
{
	for (uint64_t offset = begin; offset < end;) {
		const struct span span = span_at(lane->run->reader, offset, end);
		int code = 0;

		if (span.is_read) {
			code = read_span(lane, &span, is_direct);
		} else {
			hash_span(lane, &span);
		}
		if (code < 0) {
			return code;
		}
		offset += span.bytes;
	}
	return 0;
}

/* Of what mostly lies elsewhere most ranges are holes, whose sum is known. */
static bool is_whole_hole(const struct reader *reader, uint64_t begin, uint64_t size)
{
	const struct span span = span_at(reader, begin, begin + size);

	return span.is_hole && span.bytes == HASH_RANGE_BYTES;
}

static int fill_range(const struct lane *lane, uint64_t range, uint64_t begin, uint64_t size)
{
	const struct run *run = lane->run;
	const struct reader *reader = run->reader;
	const bool was_cached = is_cached(reader->file->fd, begin, size);
	const bool is_direct = reader->direct_io && reader->file->direct_fd >= 0 && !was_cached;
	int code;

	if (reader->into_cache && was_cached) {
		__atomic_add_fetch(&reader->progress->bytes, size, __ATOMIC_RELAXED);
		return 0;
	}
	if (lane->hash != NULL) {
		hash_stream_begin(lane->hash);
	}
	code = read_spans(lane, begin, begin + size, is_direct);
	if (code < 0) {
		return code;
	}
	if (lane->hash != NULL) {
		reader->sums[range] = hash_stream_end(lane->hash);
	}
	if (!was_cached && !reader->into_cache &&
	    (!is_direct || __atomic_load_n(&run->no_direct, __ATOMIC_RELAXED))) {
		/* What we brought in: leave the page cache as it was. A hint; failure is none. */
		(void)posix_fadvise(reader->file->fd, (off_t)begin, (off_t)size,
				    POSIX_FADV_DONTNEED);
	}
	return 0;
}

static int read_range(const struct lane *lane, uint64_t range)
{
	const struct reader *reader = lane->run->reader;
	const uint64_t begin = reader->begin + range * HASH_RANGE_BYTES;
	const uint64_t left = reader->begin + reader->bytes - begin;
	const uint64_t size = left < HASH_RANGE_BYTES ? left : HASH_RANGE_BYTES;

	if (!is_whole_hole(reader, begin, size)) {
		return fill_range(lane, range, begin, size);
	}
	if (lane->hash != NULL) {
		reader->sums[range] = HASH_OF_HOLE;
	}
	return 0;
}

/* Take ranges until there are none left. */
static void read_ranges(void *argument)
{
	struct run *run = argument;
	const struct reader *reader = run->reader;
	const uint64_t n_ranges = hash_count_sums(reader->bytes);
	const bool needs_scratch = reader->extent == NULL && reader->memory == NULL;
	AUTO_FREE uint8_t *raw = needs_scratch ? sys_malloc(BUFFERED_WINDOW + ALIGNMENT) : NULL;
	struct lane lane = {.run = run};
	struct err err = {0};
	uint64_t range;

	thread_lock(&run->lock);
	lane.position = &reader->progress->positions[run->n_lanes++];
	thread_unlock(&run->lock);
	lane.hash = reader->sums == NULL ? NULL : hash_stream_new();
	if ((needs_scratch && raw == NULL) || (reader->sums != NULL && lane.hash == NULL)) {
		(void)err_set(&err, WIRE_NO_MEMORY, "no memory for a read buffer");
		fail_run(run, &err);
	} else if (needs_scratch) {
		lane.scratch = raw + (ALIGNMENT - (uintptr_t)raw % ALIGNMENT) % ALIGNMENT;
	}
	crash_note(file_path(reader->file));
	while (!is_stopped(run)) {
		range = __atomic_fetch_add(&run->next_range, 1, __ATOMIC_RELAXED);
		if (range >= n_ranges || read_range(&lane, range) < 0) {
			break;
		}
	}
	crash_note(NULL);
	__atomic_store_n(lane.position, 0, __ATOMIC_RELAXED);
	(void)hash_stream_free(lane.hash);
}

/* One thread less than there are ranges is the most that helps. */
static uint32_t count_helpers(const struct reader *reader)
{
	const uint64_t n_ranges = hash_count_sums(reader->bytes);
	uint64_t n_wanted = reader->n_threads < n_ranges ? reader->n_threads : n_ranges;

	n_wanted = n_wanted < READER_MAX_THREADS ? n_wanted : READER_MAX_THREADS;
	return n_wanted > 1 ? (uint32_t)n_wanted - 1 : 0;
}

int reader_run(const struct reader *reader, struct err *err)
{
	struct run run = {.reader = reader};

	/* A device whose bytes cannot be seen would have to hash them itself. */
	REQUIRE(reader->sums == NULL || reader->extent == NULL ||
		device_bytes(reader->extent) != NULL);
	REQUIRE(pthread_mutex_init(&run.lock, NULL) == 0);
	thread_share(reader->group, "distorch-read", count_helpers(reader), read_ranges, &run);
	REQUIRE(pthread_mutex_destroy(&run.lock) == 0);
	if (run.err.code != 0) {
		if (err != NULL) {
			*err = run.err;
		}
		return -run.err.code;
	}
	if (is_stopped(&run)) {
		return err_set(err, WIRE_CANCELLED, "the read was cancelled");
	}
	return 0;
}

bool reader_is_cached(const struct file *file, uint64_t bytes)
{
	const uint64_t page_bytes = (uint64_t)sysconf(_SC_PAGESIZE);
	uint64_t cached = 0;

	if (bytes / page_bytes > (uint64_t)sysconf(_SC_PHYS_PAGES)) {
		return false; /* a hole may be as large as numbers are: looking would never end */
	}
	for (uint64_t begin = 0; begin < bytes; begin += HASH_RANGE_BYTES) {
		const uint64_t left = bytes - begin;
		const uint64_t size = left < HASH_RANGE_BYTES ? left : HASH_RANGE_BYTES;

		cached += is_cached(file->fd, begin, size) ? size : 0;
	}
	return cached >= bytes / 10 * 9;
}

uint64_t read_progress_offset(const struct read_progress *progress)
{
	uint64_t lowest = 0;

	for (uint32_t i = 0; i < READER_MAX_THREADS; i++) {
		uint64_t position = __atomic_load_n(&progress->positions[i], __ATOMIC_RELAXED);

		if (position != 0 && (lowest == 0 || position < lowest)) {
			lowest = position;
		}
	}
	return lowest == 0 ? 0 : lowest - 1;
}
