/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What can be asked of a loader (loader.h). Plain records, borrowed for the call; of the files in
 * them the loader takes references of its own.
 */
#ifndef LOAD_REQUEST_H
#define LOAD_REQUEST_H

#include <stdbool.h>
#include <stdint.h>

#include "daemon/format/format.h"

struct device;
struct extent;
struct file;
struct image_set;

/* May the file serve as it is? */
enum cache_wish {
	CACHE_NEVER,
	CACHE_IF_WARM,
	CACHE_IF_LOCAL,
	CACHE_ALWAYS, /* WIRE_UNSUPPORTED where it may not */
};

struct header_request {
	uint64_t job;
	struct file *file;
	enum format wanted;
	enum cache_wish wish;
	bool by_tensor; /* make each tensor a block of its own */
};

/* What a fill makes its extent of. */
enum fill_into {
	FILL_IMAGE,  /* memory of its own; only in parts where the set has places (image_set.h) */
	FILL_CACHE,  /* the file itself, read into the page cache; no sums */
	FILL_LOCKED, /* the same, locked there */
	FILL_DEVICE, /* one block's segment on another device (format/segment_layout.h) */
};

struct fill_request {
	uint64_t job;
	uint64_t segment;
	struct file *file;        /* its header was read by the same job, or once before */
	struct image_set *images; /* borrowed until the results of all its fills; NULL: there was
				     no memory for it, and so there is none for the fill */
	uint32_t index;           /* which of its files; of FILL_DEVICE: which block */
	enum fill_into into;
	struct device *device; /* FILL_DEVICE: which one; borrowed until loader_free */
	/* Those that it can be copied to from, without the host between. To be compared only; the
	 * array is borrowed for the call. */
	const struct device *const *peers;
	uint32_t n_peers; /* at most DEVICE_MAX_PEERS */
};

/* The table of a generation of places, whose fills are all done. */
struct table_request {
	uint64_t job;
	struct file *file;        /* of what was neither filled nor kept */
	struct image_set *images; /* borrowed until the result; NULL: as above */
};

/* A block's segment on another device, to be compared with where it came from. */
struct verify_request {
	uint64_t verification; /* who asks knows by it, with the result, what he lent */
	uint64_t segment;
	struct extent *extent; /* borrowed until the result */
	uint32_t block;
	int table_fd;      /* the generation's table, borrowed until the result; -1: there was no
			      memory to lend it, and so there is none for the verification */
	struct file *file; /* NULL: there is none any more */
	/* Of each file an image that holds all of the block's bytes of it, or NULL. They and the
	 * array are borrowed until the result. */
	struct extent *const *images;
	uint32_t n_images;
};

#endif
