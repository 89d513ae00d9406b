/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reads headers and files, hashes, seals and drops, on threads of its own at low priority.
 * Every submission gives exactly one final result in the mailbox, whatever happens; a fill
 * gives LOAD_PROGRESS besides, before it. Submissions are the loop's and do not block.
 *
 * A read that gets no byte for 'stall_ns' is reported (LOAD_PROGRESS with is_stalled) and given
 * up with WIRE_TIMEOUT after twice that. A thread that is stuck in the kernel keeps its file;
 * a fill's result is posted only when its memory is really free again, so that what is charged
 * is what is taken. While four other reads (headers, rechecks) of one uid's files on one
 * filesystem are stuck, or 32 wherever they lie, those of his other files there, or of any, are
 * refused with WIRE_TOO_MANY.
 */
#ifndef LOAD_LOADER_H
#define LOAD_LOADER_H

#include "base/err.h"
#include "base/os/mailbox.h"

#include <stdbool.h>
#include <stdint.h>

#include "daemon/device/device.h"
#include "daemon/format/format.h"
#include "daemon/load/file.h"
#include "daemon/load/request.h"

struct loader;

enum load_type {
	LOAD_HEADER,    /* key, map, is_cached */
	LOAD_PROGRESS,  /* bytes, is_stalled; not final */
	LOAD_FILLED,    /* extent, duration_ns, bytes; the last of a job without places: table_fd,
			   sums, checksum, pages, image number, notice, of all its images */
	LOAD_TABLED,    /* the same as the last LOAD_FILLED, of a generation of places */
	LOAD_RECHECKED, /* key, is_equal, differs_at, bytes */
	LOAD_VERIFIED,  /* is_equal, differs_at */
	LOAD_DROPPED,
	LOAD_MEASURED, /* available */
};

/*
 * What came of a submission. Pointers and descriptors are the receiver's once it has taken
 * them out (NULL, -1); the rest goes with load_result_free. err.code 0: it went well.
 */
struct load_result {
	struct mail mail; /* first; owner: the mailbox, then the loop */
	enum load_type type;
	uint64_t job;     /* as submitted; of verifications: verify_request.verification, or 0 */
	uint64_t segment; /* as submitted */
	struct err err;
	struct file_key key;
	struct tensor_map *map;
	uint64_t bytes; /* read so far, or in all */
	bool is_stalled;
	bool is_cached; /* the file may serve as it is */
	bool is_equal;
	uint64_t differs_at; /* offset of the first 64 MiB that differ, when not equal */
	uint32_t differs_in; /* in which file; of a copy on another device */
	struct extent *extent;
	uint64_t image_dev, image_ino; /* as fstat of an exported descriptor has it */
	uint64_t page_bytes;           /* obtained for most of the image */
	uint64_t huge_bytes;           /* of the image in 2 MiB pages */
	char notice[DEVICE_NOTICE_SIZE];
	int table_fd;   /* sealed tensor table (proto/table.h), or -1 */
	uint64_t *sums; /* XXH3-64 of each 64 MiB */
	uint32_t n_sums;
	uint64_t checksum; /* XXH3-64 of the sums as little-endian bytes */
	uint64_t duration_ns;
	uint64_t available; /* bytes the host could give now; in every final result */
	bool is_spare;      /* the loader's own business */
};

struct load_result *load_result_from_mail(struct mail *mail);
struct load_result *load_result_free(struct load_result *result); /* NULL is fine */

struct loader_options {
	uint32_t n_threads; /* readers a job; 0: 4 */
	bool direct_io;     /* use the direct descriptor where it works */
	bool hugepages;     /* try for 2 MiB pages */
	bool lock;          /* keep images out of the swap */
	uint64_t stall_ns;
	uint64_t progress_ns; /* the least time between two progress results */
	const char *root;     /* before /proc and /sys/fs/cgroup, in tests; NULL: none */
};

/* 'device' and 'box' are borrowed until loader_free. NULL with 'err' filled on failure. */
struct loader *loader_new(const struct loader_options *options, struct device *device,
			  struct mailbox *box, struct err *err);

/*
 * Cancel everything and wait for the threads, at most two seconds. Returns NULL when they have
 * all ended, else the loader: threads stuck in the kernel still use it and the process should
 * end soon. Either way nothing is posted any more; results that are in the mailbox stay valid,
 * and the device and the mailbox may be closed.
 */
struct loader *loader_free(struct loader *loader);

/* -> LOAD_HEADER. */
void loader_read_header(struct loader *loader, const struct header_request *request);

/*
 * -> LOAD_PROGRESS*, LOAD_FILLED with a sealed extent. Of one job's fills two run at once on each
 * device. What is already in memory is not read again: see image_set.h. One that failed has given
 * its memory back.
 */
void loader_fill(struct loader *loader, const struct fill_request *request);

/* -> LOAD_TABLED. */
void loader_make_table(struct loader *loader, const struct table_request *request);

/* -> LOAD_RECHECKED: hash the file, compare with 'sums' (borrowed for the call). */
void loader_recheck(struct loader *loader, uint64_t id, struct file *file, const uint64_t *sums,
		    uint32_t n_sums);

/* -> LOAD_VERIFIED: hash the copy. The extent is borrowed until the result; a loader_drop of
 * it meanwhile ends the verification early and waits for that. */
void loader_verify(struct loader *loader, uint64_t segment, struct extent *extent,
		   const uint64_t *sums, uint32_t n_sums);

/*
 * The same of a copy on another device, which has no sums: it is compared with the images, else
 * with the file. WIRE_STALE where the file is another now and nothing is left to compare with;
 * differs_at is the offset in the file. A drop meanwhile likewise. Two run at once on each device.
 */
void loader_verify_device(struct loader *loader, const struct verify_request *request);

/* -> LOAD_DROPPED, when the bytes are free. Takes the extent over; NULL is fine. */
void loader_drop(struct loader *loader, uint64_t segment, struct extent *extent);

/* -> LOAD_MEASURED: what the host can give now, read anew. */
void loader_measure(struct loader *loader);

/* Takes over the reference. No result. */
void loader_close_file(struct loader *loader, struct file *file);

/* Hurry up: the job's results come soon, with WIRE_CANCELLED unless it was done already. */
void loader_cancel(struct loader *loader, uint64_t id);
/* Likewise of all submissions of loader_verify_device that have this number. */
void loader_cancel_verification(struct loader *loader, uint64_t verification);

#endif
