/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The host tier: an extent is one memfd. It is ftruncated, never allocated ahead (that takes
 * 4 KiB pages); its pages come range by range in prepare, in 2 MiB where the kernel gives them.
 * Seal unmaps it, seals the memfd and leaves only descriptors. A borrowed extent is a file's own
 * page cache: a descriptor, never mapped but to be locked, never read through a mapping. Any
 * loader thread; no state but what is in the extent.
 */
#include "base/checked.h"
#include "base/err.h"
#include "base/list.h"
#include "base/os/memfd.h"
#include "base/os/sys.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "daemon/device/device.h"
#include "proto/gen/wire_code.h"

struct host_device {
	struct device base;
};

struct host_extent {
	struct extent base;
	int fd;          /* read-write until a restart; never leaves this process, unless it is
			  * a file that somebody opened for reading */
	uint8_t *memory; /* shared, writable; owner: the extent. NULL once unmapped */
	void *locked;    /* read-only, in memory; owner: the extent. NULL: it may be swapped out */
	bool is_sealed;
	bool is_file; /* not ours: borrowed, and others may change it */
	bool wants_huge;
	bool is_sparse;            /* parts of it are holes: never touch those, not even to read */
	int refusal;               /* errno of the last 2 MiB page not given; atomic */
	struct device_pages pages; /* filled at seal */
};

static struct host_extent *host_of(struct extent *extent)
{
	return container_of(extent, struct host_extent, base);
}

static const struct host_extent *host_of_const(const struct extent *extent)
{
	return (const struct host_extent *)extent; /* base is the first member */
}

static uint32_t host_probe(char (*names)[DEVICE_NAME_SIZE], uint32_t max_names)
{
	if (max_names > 0) {
		(void)snprintf(names[0], DEVICE_NAME_SIZE, "cpu");
	}
	return 1;
}

static int host_open(const char *name, struct device **ret, struct err *err)
{
	struct host_device *host;

	if (strcmp(name, "cpu") != 0) {
		return err_set(err, WIRE_NOT_FOUND, "the host's one device is cpu, not \"%s\"",
			       name);
	}
	host = sys_calloc(1, sizeof *host);
	if (host == NULL) {
		return err_set(err, WIRE_NO_MEMORY, "no memory to open %s", name);
	}
	*ret = &host->base;
	return 0;
}

static void host_close(struct device *device)
{
	free(container_of(device, struct host_device, base));
}

static int host_info(const struct device *device, struct device_info *ret, struct err *err)
{
	const long n_pages = sysconf(_SC_PHYS_PAGES);
	const uint64_t page_bytes = (uint64_t)sysconf(_SC_PAGESIZE);

	if (n_pages <= 0) {
		return err_set(err, WIRE_INTERNAL, "the memory of %s cannot be told", device->name);
	}
	*ret = (struct device_info){.total_bytes = (uint64_t)n_pages * page_bytes,
				    .granularity = page_bytes};
	return 0;
}

static uint64_t host_charge(const struct device *device, uint64_t bytes)
{
	uint64_t charged = UINT64_MAX; /* more than any budget: what cannot be rounded is refused */

	(void)device;
	(void)checked_round_up(bytes, (uint64_t)sysconf(_SC_PAGESIZE), &charged);
	return charged;
}

static int host_alloc(struct device *device, const struct device_alloc *request,
		      struct extent **ret, struct err *err)
{
	const uint64_t huge_part = request->bytes / MEMFD_HUGE_BYTES * MEMFD_HUGE_BYTES;
	struct host_extent *extent = sys_calloc(1, sizeof *extent);
	void *memory = NULL;
	int code;

	(void)device;
	if (extent == NULL) {
		return err_set(err, WIRE_NO_MEMORY, "no memory for an extent");
	}
	extent->fd = -1;
	code = memfd_create_sized(request->name, request->bytes, &extent->fd, err);
	if (code == 0) {
		code = memfd_map(extent->fd, request->bytes, PROT_READ | PROT_WRITE, MAP_SHARED,
				 &memory, err);
	}
	if (code < 0) {
		if (extent->fd >= 0) {
			(void)close(extent->fd); /* an empty memfd: nothing can be lost */
		}
		free(extent);
		return code;
	}
	extent->memory = memory;
	extent->wants_huge = request->hugepages && huge_part > 0;
	extent->is_sparse = request->is_sparse;
	if (extent->is_sparse) {
		/* Whatever shmem_enabled says, no fault takes 2 MiB of which a part stays a hole. */
		(void)sys_madvise(extent->memory, request->bytes, MADV_NOHUGEPAGE);
	} else if (extent->wants_huge) {
		/* Where shmem_enabled says advise or more, a fault takes 2 MiB at once. Refused:
		 * prepare collapses. The tail stays in small pages, so that the charge is exact. */
		(void)sys_madvise(extent->memory, huge_part, MADV_HUGEPAGE);
	}
	*ret = &extent->base;
	return 0;
}

/* One page that was refused as part of many: alone, and if that fails too, in small pages. */
static void take_page_alone(struct host_extent *extent, uint8_t *at)
{
	int refusal;

	if (sys_madvise(at, MEMFD_HUGE_BYTES, MADV_COLLAPSE) == 0) {
		return;
	}
	refusal = errno;
	__atomic_store_n(&extent->refusal, refusal, __ATOMIC_RELAXED);
	(void)sys_madvise(at, MEMFD_HUGE_BYTES, MADV_POPULATE_WRITE); /* the read would do it too */
}

static void take_huge_pages(struct host_extent *extent, uint64_t offset, uint64_t end)
{
	uint8_t *memory = extent->memory;

	if (offset >= end) {
		return;
	}
	if (extent->is_sparse) { /* these are filled whole */
		(void)sys_madvise(memory + offset, end - offset, MADV_HUGEPAGE);
	}
	if (memfd_take_huge(memory + offset, end - offset) == 0) {
		return;
	}
	for (uint64_t at = offset; at < end; at += MEMFD_HUGE_BYTES) {
		take_page_alone(extent, memory + at);
	}
}

static void host_prepare(struct extent *base, uint64_t offset, uint64_t n_bytes)
{
	struct host_extent *extent = host_of(base);
	uint64_t end = offset + n_bytes; /* within the extent: checked by device_prepare */

	if (extent->memory == NULL || extent->is_sealed) {
		return;
	}
	if (extent->wants_huge) {
		const uint64_t whole = base->bytes / MEMFD_HUGE_BYTES * MEMFD_HUGE_BYTES;
		const uint64_t whole_end = end < whole ? end / MEMFD_HUGE_BYTES * MEMFD_HUGE_BYTES
						       : whole;

		/* Pages that a range holds only a part of are left to the reads. */
		offset = (offset + MEMFD_HUGE_BYTES - 1) / MEMFD_HUGE_BYTES * MEMFD_HUGE_BYTES;
		take_huge_pages(extent, offset, whole_end);
		offset = offset > whole ? offset : whole;
	}
	if (offset < end) {
		uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);
		uint64_t from = offset / page * page;

		(void)sys_madvise(extent->memory + from, end - from, MADV_POPULATE_WRITE);
	}
}

static int host_fill(struct extent *base, uint64_t offset, const struct device_source *source,
		     uint64_t *ret_bytes, struct err *err)
{
	struct host_extent *extent = host_of(base);
	ssize_t n_read;

	if (extent->is_sealed) {
		return err_set(err, WIRE_NOT_ALLOWED, "the extent is sealed");
	}
	n_read = sys_pread(source->fd, extent->memory + offset, source->bytes, source->offset);
	if (n_read < 0) {
		int error = errno;
		int code = err_set_sys(err, WIRE_IO, error, "reading at byte %llu: %s",
				       (unsigned long long)source->offset, strerror(error));

		if (err != NULL) {
			err->offset = source->offset;
		}
		return code;
	}
	*ret_bytes = (uint64_t)n_read;
	return 0;
}

static int host_read(const struct extent *base, uint64_t offset, void *bytes, uint64_t n_bytes,
		     struct err *err)
{
	const struct host_extent *extent = host_of_const(base);
	uint8_t *to = bytes;

	while (n_bytes > 0) {
		ssize_t n_read = sys_pread(extent->fd, to, n_bytes, offset);

		if (n_read < 0 && errno == EINTR) {
			continue;
		}
		if (n_read <= 0) {
			return err_set_sys(err, WIRE_IO, n_read < 0 ? errno : 0,
					   "the image cannot be read at byte %llu",
					   (unsigned long long)offset);
		}
		to += n_read;
		offset += (uint64_t)n_read;
		n_bytes -= (uint64_t)n_read;
	}
	return 0;
}

static const void *host_bytes(const struct extent *base)
{
	const struct host_extent *extent = host_of_const(base);

	return extent->is_sealed ? NULL : extent->memory;
}

/* Bytes of our mapping that the kernel maps by 2 MiB; the mapping may be split in several. */
static uint64_t count_huge_bytes(const struct host_extent *extent)
{
	const uintptr_t first = (uintptr_t)extent->memory;
	const uintptr_t last = first + extent->base.bytes;
	FILE *smaps = fopen("/proc/self/smaps", "re");
	char line[512];
	uint64_t huge_bytes = 0;
	uint64_t kib;
	uintptr_t start;
	uintptr_t end;
	bool is_ours = false;

	if (smaps == NULL) {
		return 0; /* shown as small pages: never claim what is not known */
	}
	while (fgets(line, sizeof line, smaps) != NULL) {
		if (sscanf(line, "%" SCNxPTR "-%" SCNxPTR " ", &start, &end) == 2) {
			if (start >= last) {
				break;
			}
			is_ours = start >= first;
		} else if (is_ours && sscanf(line, "ShmemPmdMapped: %" SCNu64, &kib) == 1) {
			huge_bytes += kib * 1024;
		}
	}
	(void)fclose(smaps); /* only read */
	return huge_bytes;
}

/* Bytes of an image that memory lies behind. */
static uint64_t count_taken_bytes(const struct host_extent *extent)
{
	struct stat status;

	if (extent->is_file || sys_fstat(extent->fd, &status) < 0) {
		return extent->base.bytes;
	}
	return (uint64_t)status.st_blocks * 512;
}

static void look_at_pages(const struct host_extent *extent, struct device_pages *ret)
{
	const int refusal = __atomic_load_n(&extent->refusal, __ATOMIC_RELAXED);
	const uint64_t taken = count_taken_bytes(extent);
	const bool is_whole = taken >= extent->base.bytes;
	const uint64_t whole = taken / MEMFD_HUGE_BYTES * MEMFD_HUGE_BYTES;

	*ret = (struct device_pages){.page_bytes = (uint64_t)sysconf(_SC_PAGESIZE)};
	if (!extent->wants_huge) {
		return;
	}
	ret->huge_bytes = count_huge_bytes(extent);
	if (ret->huge_bytes * 2 >= taken && taken > 0) {
		ret->page_bytes = MEMFD_HUGE_BYTES;
	}
	/* One that is sparse has small pages at its edges: they are nobody's refusal. */
	if (ret->huge_bytes < whole && (is_whole || refusal != 0)) {
		(void)snprintf(ret->notice, sizeof ret->notice,
			       "%" PRIu64 " of %" PRIu64 " MiB lie in 4 KiB pages (%s)",
			       (whole - ret->huge_bytes) >> 20, taken >> 20,
			       refusal == 0 ? "2 MiB pages were not mapped" : strerror(refusal));
	}
}

static void host_pages(const struct extent *base, struct device_pages *ret)
{
	const struct host_extent *extent = host_of_const(base);

	if (extent->is_sealed) {
		*ret = extent->pages;
	} else {
		look_at_pages(extent, ret);
	}
}

static uint64_t host_taken(const struct extent *base)
{
	const struct host_extent *extent = host_of_const(base);

	return extent->is_sparse && extent->is_sealed ? count_taken_bytes(extent) : 0;
}

static int host_seal(struct extent *base, struct err *err)
{
	struct host_extent *extent = host_of(base);

	if (extent->is_sealed) {
		return 0;
	}
	look_at_pages(extent, &extent->pages);
#ifdef DISTORCH_TESTING
	/* Keep the address for host_corrupt, but none of the pages. */
	(void)madvise(extent->memory, base->bytes, MADV_DONTNEED);
#else
	memfd_unmap(extent->memory, base->bytes);
	extent->memory = NULL;
#endif
	extent->is_sealed = true; /* also on failure: it cannot be filled any more */
	return memfd_seal(extent->fd, err);
}

/* The next range of an image from 'at' on that is no hole. False: there is none. */
static bool next_range(const struct host_extent *extent, uint64_t at, uint64_t *ret_begin,
		       uint64_t *ret_end)
{
	off_t begin;
	off_t end;

	if (extent->is_file) { /* a file's holes are its own business */
		*ret_begin = at;
		*ret_end = extent->base.bytes;
		return at < extent->base.bytes;
	}
	begin = lseek(extent->fd, (off_t)at, SEEK_DATA); /* whoever reads it gives an offset */
	end = begin < 0 ? -1 : lseek(extent->fd, begin, SEEK_HOLE);
	if (end < 0) {
		return false;
	}
	*ret_begin = (uint64_t)begin;
	*ret_end = (uint64_t)end < extent->base.bytes ? (uint64_t)end : extent->base.bytes;
	return *ret_begin < *ret_end;
}

/* mlock of a hole would take memory for it. Returns 0, or -1 with errno. */
static int lock_ranges(const struct host_extent *extent, uint8_t *memory)
{
	uint64_t begin = 0;
	uint64_t end = 0;

	while (next_range(extent, end, &begin, &end)) {
		if (sys_mlock(memory + begin, end - begin) < 0) {
			return -1;
		}
	}
	return 0;
}

static int host_lock(struct extent *base, struct err *err)
{
	struct host_extent *extent = host_of(base);
	void *memory = NULL;
	int code;

	if (!extent->is_sealed) {
		return err_set(err, WIRE_NOT_ALLOWED, "the extent is not sealed yet");
	}
	if (extent->locked != NULL) {
		return 0;
	}
	code = memfd_map(extent->fd, base->bytes, PROT_READ, MAP_SHARED, &memory, err);
	if (code < 0) {
		return code;
	}
	(void)sys_madvise(memory, base->bytes, MADV_DONTDUMP); /* a core dump without models */
	if (lock_ranges(extent, memory) < 0) {
		code = err_set_sys(err, WIRE_NO_MEMORY, errno,
				   "not locked in memory: mlock of %" PRIu64 " bytes: %s; raise "
				   "RLIMIT_MEMLOCK (LimitMEMLOCK=)",
				   base->bytes, strerror(errno));
		memfd_unmap(memory, base->bytes);
		return code;
	}
	extent->locked = memory;
	return 0;
}

static int host_release(struct extent *base, struct err *err)
{
	struct host_extent *extent = host_of(base);

	(void)err; /* nothing here can be refused */
	memfd_unmap(extent->locked, base->bytes);
	memfd_unmap(extent->memory, base->bytes);
	(void)close(extent->fd); /* memory: there is nothing that could not be written back */
	free(extent);
	return 0;
}

static int host_export(const struct extent *base, int *ret_fd, struct err *err)
{
	const struct host_extent *extent = host_of_const(base);

	if (!extent->is_sealed) {
		return err_set(err, WIRE_NOT_ALLOWED, "the extent is not sealed yet");
	}
	if (!extent->is_file) {
		return memfd_reopen(extent->fd, ret_fd, err);
	}
	/* Not opened again: whoever scans files as they are opened may keep us waiting for it. */
	*ret_fd = sys_fcntl_dup(extent->fd);
	return *ret_fd >= 0 ? 0
			    : err_set_sys(err, WIRE_TOO_MANY, errno, "exporting a file: %s",
					  strerror(errno));
}

/* The pages of memory that somebody else filled: mapped for a moment, one byte of each 2 MiB. */
static void look_at_imported(struct host_extent *extent)
{
	const uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);
	void *memory = NULL;

	extent->pages.page_bytes = page;
	if (memfd_map(extent->fd, extent->base.bytes, PROT_READ, MAP_SHARED, &memory, NULL) < 0) {
		return; /* shown as small pages */
	}
	extent->memory = memory;
	extent->wants_huge = extent->base.bytes >= MEMFD_HUGE_BYTES;
	for (uint64_t at = 0; at < extent->base.bytes; at += MEMFD_HUGE_BYTES) {
		const uint64_t left = extent->base.bytes - at;

		if (lseek(extent->fd, (off_t)at, SEEK_DATA) != (off_t)at) {
			continue; /* a hole, which a look would fill */
		}
		(void)sys_madvise(extent->memory + at, left < page ? left : page,
				  MADV_POPULATE_READ);
	}
	look_at_pages(extent, &extent->pages);
	memfd_unmap(memory, extent->base.bytes);
	extent->memory = NULL;
}

/* A sealed extent around 'fd', which it takes, also when it fails. */
static int take_over(int fd, uint64_t bytes, struct host_extent **ret, struct err *err)
{
	struct host_extent *extent = sys_calloc(1, sizeof *extent);

	if (extent == NULL) {
		(void)close(fd); /* nothing was written by it */
		return err_set(err, WIRE_NO_MEMORY, "no memory for an extent");
	}
	*extent = (struct host_extent){.base.bytes = bytes, .fd = fd, .is_sealed = true};
	*ret = extent;
	return 0;
}

static int host_import(struct device *device, int fd, uint64_t bytes, struct extent **ret,
		       struct err *err)
{
	struct host_extent *extent;
	int code = memfd_check_seals(fd, bytes, err);
	int own_fd;

	(void)device;
	if (code < 0) {
		return code;
	}
	own_fd = sys_fcntl_dup(fd);
	if (own_fd < 0) {
		return err_set_sys(err, WIRE_TOO_MANY, errno, "taking over an image: %s",
				   strerror(errno));
	}
	code = take_over(own_fd, bytes, &extent, err);
	if (code < 0) {
		return code;
	}
	look_at_imported(extent);
	*ret = &extent->base;
	return 0;
}

/* By a description of our own: that of who sent the file is nobody else's to move or lock. */
static int host_borrow(struct device *device, int fd, uint64_t bytes, struct extent **ret,
		       struct err *err)
{
	struct host_extent *extent = NULL;
	char path[64];
	int own_fd;
	int code;

	(void)device;
	(void)snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
	own_fd = sys_open(path, O_RDONLY | O_NONBLOCK); /* breaks nobody's lease */
	if (own_fd < 0) {
		return err_set_sys(err,
				   errno == EMFILE || errno == ENFILE ? WIRE_TOO_MANY
								      : WIRE_UNSUPPORTED,
				   errno, "the file cannot be opened again: %s", strerror(errno));
	}
	code = take_over(own_fd, bytes, &extent, err);
	if (code < 0) {
		return code;
	}
	extent->is_file = true;
	extent->pages.page_bytes = (uint64_t)sysconf(_SC_PAGESIZE);
	*ret = &extent->base;
	return 0;
}

#ifdef DISTORCH_TESTING
int host_corrupt(struct extent *base, uint64_t offset, struct err *err)
{
	struct host_extent *extent = host_of(base);

	if (!extent->is_sealed || extent->memory == NULL || offset >= base->bytes) {
		return err_set(err, WIRE_BAD_ARGUMENT, "no byte %llu to corrupt",
			       (unsigned long long)offset);
	}
	extent->memory[offset] ^= 0xff;
	return 0;
}
#endif

const struct device_ops host_device_ops = {
	.version = DEVICE_OPS_VERSION,
	.name = "host",
	.probe = host_probe,
	.open = host_open,
	.close = host_close,
	.info = host_info,
	.charge = host_charge,
	.alloc = host_alloc,
	.fill = host_fill,
	.read = host_read,
	.seal = host_seal,
	.release = host_release,
	.export = host_export,
	.import = host_import,
	.prepare = host_prepare,
	.bytes = host_bytes,
	.borrow = host_borrow,
	.lock = host_lock,
	.pages = host_pages,
	.taken = host_taken,
};
