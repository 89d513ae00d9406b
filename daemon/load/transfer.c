/* SPDX-License-Identifier: Apache-2.0 */
/* Windows from files, images and devices to devices. See transfer.h. */
#include "daemon/load/transfer.h"

#include "base/cleanup.h"
#include "base/err.h"
#include "base/os/sys.h"
#include "base/require.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/device/device.h"
#include "daemon/load/file.h"
#include "daemon/load/piece.h"
#include "daemon/load/reader.h"
#include "daemon/load/thread.h"
#include "daemon/load/window_pool.h"
#include "proto/gen/wire_code.h"

/* What the threads of one run share. Lives on the caller's stack until all are done. */
struct run {
	const struct transfer *transfer;
	pthread_mutex_t lock;
	struct window_walk walk; /* guarded by lock, as all below */
	uint32_t n_lanes;        /* numbers given out so far */
	struct err err;          /* the first failure */
	struct difference difference;
};

/* One thread's part of a run. */
struct lane {
	struct run *run;
	uint64_t *position;
	struct window_buffer *buffer; /* for what takes it by descriptor; NULL: not yet */
	uint8_t *other;               /* of a comparison: what the device has */
};

/* Where the bytes of a window can be had: the byte 'from' of its file is at from - base of fd. */
struct supply {
	int fd;
	uint64_t base;
};

static bool is_stopped(const struct run *run)
{
	return __atomic_load_n(&run->transfer->progress->is_stopped, __ATOMIC_RELAXED);
}

static void fail_run(struct run *run, const struct err *err)
{
	thread_lock(&run->lock);
	if (run->err.code == 0) {
		run->err = *err;
	}
	thread_unlock(&run->lock);
}

static bool take_window(struct run *run, struct window *ret)
{
	bool is_any;

	thread_lock(&run->lock);
	is_any = run->err.code == 0 && !run->difference.is_found &&
		 window_next(run->transfer->list, &run->walk, ret);
	thread_unlock(&run->lock);
	return is_any && !is_stopped(run);
}

/* ---- where a window comes from ---- */

/* A buffer for the lane, once. */
static int take_buffer(struct lane *lane, struct err *err)
{
	return lane->buffer != NULL
		       ? 0
		       : window_pool_take(lane->run->transfer->pool, &lane->buffer, err);
}

static int supply_from_file(struct lane *lane, const struct window *window, struct supply *ret,
			    struct err *err)
{
	const struct transfer *transfer = lane->run->transfer;
	const struct file *file = file_shard(transfer->file, window->file);
	struct read_progress progress = {0}; /* counted when it has arrived, and not before */
	const uint64_t begin = window->from / PIECE_PAGE * PIECE_PAGE;
	const uint64_t page_end =
		(window->from + window->bytes + PIECE_PAGE - 1) / PIECE_PAGE * PIECE_PAGE;
	struct reader reader = {
		.file = file,
		.begin = begin,
		.bytes = page_end - begin,
		.n_threads = 1,
		.direct_io = transfer->direct_io,
		.progress = &progress,
		.whole = transfer->progress,
	};
	int code = take_buffer(lane, err);

	if (code < 0) {
		return code;
	}
	if (page_end > transfer->keys[window->file].size) { /* the last page is a short one */
		reader.bytes = window->from + window->bytes - begin;
	}
	reader.memory = lane->buffer->memory;
	code = reader_run(&reader, err);
	if (code < 0) {
		return file->name == NULL ? code : err_wrap(err, "%s", file->name);
	}
	*ret = (struct supply){.fd = lane->buffer->fd, .base = begin};
	return 0;
}

static int supply_from_extent(struct lane *lane, const struct window *window, struct supply *ret,
			      struct err *err)
{
	int code = take_buffer(lane, err);

	if (code == 0) {
		code = device_read(lane->run->transfer->from, window->from, lane->buffer->memory,
				   window->bytes, err);
	}
	if (code == 0) {
		*ret = (struct supply){.fd = lane->buffer->fd, .base = window->from};
	}
	return code;
}

static int supply_of(struct lane *lane, const struct window *window, struct supply *ret,
		     struct err *err)
{
	const struct transfer *transfer = lane->run->transfer;

	if (transfer->from != NULL) {
		return supply_from_extent(lane, window, ret, err);
	}
	if (transfer->image_fds != NULL && transfer->image_fds[window->file] >= 0) {
		*ret = (struct supply){.fd = transfer->image_fds[window->file]};
		return 0;
	}
	return supply_from_file(lane, window, ret, err);
}

/* ---- what becomes of it ---- */

static int fill_piece(const struct run *run, const struct supply *supply, struct piece piece,
		      struct err *err)
{
	const struct transfer *transfer = run->transfer;

	while (piece.bytes > 0) {
		const struct device_source source = {.fd = supply->fd,
						     .offset = piece.from - supply->base,
						     .bytes = piece.bytes};
		uint64_t n_bytes = 0;
		int code;

		if (is_stopped(run)) {
			return err_set(err, WIRE_CANCELLED, "the fill was cancelled");
		}
		code = device_fill(transfer->extent, piece.to, &source, &n_bytes, err);
		if (code < 0 && err->code == WIRE_IO && err->sys == EINTR) {
			continue;
		}
		if (code == 0 && n_bytes == 0) {
			code = err_set(err, WIRE_IO, "what is copied ended at byte %llu",
				       (unsigned long long)source.offset);
		}
		if (code < 0) {
			return code;
		}
		__atomic_add_fetch(&transfer->progress->bytes, n_bytes, __ATOMIC_RELAXED);
		piece.from += n_bytes;
		piece.to += n_bytes;
		piece.bytes -= n_bytes;
	}
	return 0;
}

/* All bytes at an offset of a descriptor of memory. */
static int read_all(int fd, uint8_t *to, uint64_t bytes, uint64_t offset, struct err *err)
{
	while (bytes > 0) {
		ssize_t n_read = sys_pread(fd, to, bytes, offset);

		if (n_read < 0 && errno == EINTR) {
			continue;
		}
		if (n_read <= 0) {
			return err_set_sys(err, WIRE_IO, n_read < 0 ? errno : 0,
					   "an image cannot be read at byte %llu",
					   (unsigned long long)offset);
		}
		to += n_read;
		offset += (uint64_t)n_read;
		bytes -= (uint64_t)n_read;
	}
	return 0;
}

/* What it should be, in memory that we see. */
static int see_piece(struct lane *lane, const struct supply *supply, const struct piece *piece,
		     const uint8_t **ret, struct err *err)
{
	int code = take_buffer(lane, err);

	if (code < 0) {
		return code;
	}
	if (supply->fd == lane->buffer->fd) {
		*ret = lane->buffer->memory + (piece->from - supply->base);
		return 0;
	}
	*ret = lane->buffer->memory;
	return read_all(supply->fd, lane->buffer->memory, piece->bytes, piece->from, err);
}

static int compare_piece(struct lane *lane, const struct supply *supply, const struct piece *piece,
			 struct err *err)
{
	struct run *run = lane->run;
	const uint8_t *wanted = NULL;
	uint64_t at = 0;
	int code = see_piece(lane, supply, piece, &wanted, err);

	if (code == 0) {
		code = device_read(run->transfer->extent, piece->to, lane->other, piece->bytes,
				   err);
	}
	if (code < 0) {
		return code;
	}
	__atomic_add_fetch(&run->transfer->progress->bytes, piece->bytes, __ATOMIC_RELAXED);
	if (memcmp(wanted, lane->other, piece->bytes) == 0) {
		return 0;
	}
	while (wanted[at] == lane->other[at]) {
		at++;
	}
	thread_lock(&run->lock);
	if (!run->difference.is_found) {
		run->difference = (struct difference){.is_found = true,
						      .file = piece->file,
						      .offset = piece->from + at};
	}
	thread_unlock(&run->lock);
	return 0;
}

static int move_window(struct lane *lane, const struct window *window, struct err *err)
{
	const struct transfer *transfer = lane->run->transfer;
	struct supply supply = {0};
	int code;

	__atomic_store_n(lane->position, window->from + 1, __ATOMIC_RELAXED);
	code = supply_of(lane, window, &supply, err);
	for (uint32_t i = 0; code == 0 && i < window->n_pieces; i++) {
		const struct piece piece =
			window_cut(window, &transfer->list->pieces[window->first_piece + i]);

		code = transfer->is_comparison ? compare_piece(lane, &supply, &piece, err)
					       : fill_piece(lane->run, &supply, piece, err);
	}
	return code;
}

/* ---- threads ---- */

/* Take windows until there are none left. */
static void move_windows(void *argument)
{
	struct run *run = argument;
	const struct transfer *transfer = run->transfer;
	AUTO_FREE uint8_t *other = transfer->is_comparison ? sys_malloc(PIECE_WINDOW) : NULL;
	struct lane lane = {.run = run, .other = other};
	struct window window;
	struct err err = {0};

	thread_lock(&run->lock);
	lane.position = &transfer->progress->positions[run->n_lanes++];
	thread_unlock(&run->lock);
	if (transfer->is_comparison && other == NULL) {
		(void)err_set(&err, WIRE_NO_MEMORY, "no memory to compare with");
		fail_run(run, &err);
	}
	while (take_window(run, &window)) {
		if (move_window(&lane, &window, &err) < 0) {
			fail_run(run, &err);
		}
	}
	__atomic_store_n(lane.position, 0, __ATOMIC_RELAXED);
	window_pool_give(transfer->pool, lane.buffer);
}

/* What comes from memory all the way needs no buffer: then as few windows as there are threads. */
static uint64_t choose_window(const struct transfer *transfer)
{
	const struct piece_list *list = transfer->list;
	uint64_t bytes = 0;

	if (transfer->is_comparison || transfer->from != NULL || transfer->image_fds == NULL) {
		return PIECE_WINDOW;
	}
	for (uint32_t i = 0; i < list->n_pieces; i++) {
		if (transfer->image_fds[list->pieces[i].file] < 0) {
			return PIECE_WINDOW;
		}
		bytes += list->pieces[i].bytes; /* of one segment: it was counted before */
	}
	bytes = (bytes / transfer->n_threads + PIECE_PAGE - 1) / PIECE_PAGE * PIECE_PAGE;
	bytes = bytes < PIECE_WINDOW ? PIECE_WINDOW : bytes;
	return bytes < PIECE_LARGEST_WINDOW ? bytes : PIECE_LARGEST_WINDOW;
}

static uint32_t count_windows(const struct piece_list *list, uint64_t max_bytes, uint32_t most)
{
	struct window_walk walk = {.max_bytes = max_bytes};
	struct window window;
	uint32_t n_windows = 0;

	while (n_windows < most && window_next(list, &walk, &window)) {
		n_windows++;
	}
	return n_windows;
}

int transfer_run(const struct transfer *transfer, struct difference *ret, struct err *err)
{
	struct run run = {.transfer = transfer, .walk.max_bytes = choose_window(transfer)};
	uint32_t n_threads;

	REQUIRE(transfer->n_threads <= READER_MAX_THREADS);
	REQUIRE(pthread_mutex_init(&run.lock, NULL) == 0);
	n_threads = count_windows(transfer->list, run.walk.max_bytes, transfer->n_threads);
	thread_share(transfer->group, "distorch-move", n_threads > 1 ? n_threads - 1 : 0,
		     move_windows, &run);
	REQUIRE(pthread_mutex_destroy(&run.lock) == 0);
	if (run.err.code != 0) {
		if (err != NULL) {
			*err = run.err;
		}
		return -run.err.code;
	}
	if (is_stopped(&run)) {
		return err_set(err, WIRE_CANCELLED, "the transfer was cancelled");
	}
	if (ret != NULL) {
		*ret = run.difference;
	}
	return 0;
}
