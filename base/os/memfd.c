/* SPDX-License-Identifier: Apache-2.0 */
/* Making, mapping and sealing memfds. See memfd.h. */
#include "base/os/memfd.h"

#include "base/checked.h"
#include "base/cleanup.h"
#include "base/err.h"
#include "base/os/sys.h"

#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "proto/gen/wire_code.h"

#ifndef MFD_NOEXEC_SEAL
#	define MFD_NOEXEC_SEAL 0x0008U
#endif
#ifndef F_SEAL_FUTURE_WRITE
#	define F_SEAL_FUTURE_WRITE 0x0010
#endif

static int code_of(int error)
{
	switch (error) {
	case ENOMEM:
		return WIRE_NO_MEMORY;
	case EMFILE:
	case ENFILE:
		return WIRE_TOO_MANY;
	default:
		return WIRE_INTERNAL;
	}
}

static int set_size(int fd, uint64_t size)
{
	int result;

	do {
		result = sys_ftruncate(fd, size);
	} while (result < 0 && errno == EINTR);
	return result;
}

int memfd_create_sized(const char *name, uint64_t size, int *ret_fd, struct err *err)
{
	const unsigned flags = MFD_CLOEXEC | MFD_ALLOW_SEALING;
	AUTO_CLOSE int fd = sys_memfd_create(name, flags | MFD_NOEXEC_SEAL);

	if (fd < 0 && errno == EINVAL) {
		fd = sys_memfd_create(name, flags); /* before Linux 6.3 */
	}
	if (fd < 0) {
		return err_set_sys(err, code_of(errno), errno, "memfd_create: %s", strerror(errno));
	}
	/* Never fallocate: it takes 4 KiB pages and makes the later collapse ten times slower. */
	if (set_size(fd, size) < 0) {
		return errno == EFBIG
			       ? err_set_sys(err, WIRE_TOO_LARGE, errno,
					     "memfd of %llu bytes: over the limit on files, which "
					     "holds for memory too; raise it for distorchd "
					     "(ulimit -f, LimitFSIZE=)",
					     (unsigned long long)size)
			       : err_set_sys(err, WIRE_NO_MEMORY, errno, "memfd of %llu bytes: %s",
					     (unsigned long long)size, strerror(errno));
	}
	*ret_fd = steal_fd(&fd);
	return 0;
}

int memfd_map(int fd, uint64_t size, int protection, int flags, void **ret_address, struct err *err)
{
	uint64_t padded;
	uint64_t mapped;
	char *reserved;
	char *aligned;
	size_t before;

	if (size == 0 || !checked_round_up(size, (uint64_t)sysconf(_SC_PAGESIZE), &mapped) ||
	    !checked_add(mapped, MEMFD_HUGE_BYTES, &padded)) {
		return err_set(err, WIRE_BAD_ARGUMENT, "cannot map %llu bytes",
			       (unsigned long long)size);
	}
	reserved = sys_mmap(NULL, padded, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (reserved == MAP_FAILED) {
		return err_set_sys(err, WIRE_NO_MEMORY, errno,
				   "no address space for %llu bytes: %s", (unsigned long long)size,
				   strerror(errno));
	}
	before = (MEMFD_HUGE_BYTES - ((uintptr_t)reserved & (MEMFD_HUGE_BYTES - 1))) &
		 (MEMFD_HUGE_BYTES - 1);
	aligned = reserved + before;
	if (sys_mmap(aligned, mapped, protection, flags | MAP_FIXED, fd, 0) == MAP_FAILED) {
		int error = errno;

		(void)munmap(reserved, padded);
		return err_set_sys(err, WIRE_NO_MEMORY, error, "mapping %llu bytes: %s",
				   (unsigned long long)size, strerror(error));
	}
	if (before > 0) {
		(void)munmap(reserved, before); /* only gives address space back */
	}
	if (padded - before > mapped) {
		(void)munmap(aligned + mapped, padded - before - mapped);
	}
	(void)sys_madvise(aligned, mapped, MADV_DONTDUMP); /* a core dump would hold the weights */
	*ret_address = aligned;
	return 0;
}

void memfd_unmap(void *address, uint64_t size)
{
	if (address != NULL) {
		(void)munmap(address, size); /* cannot fail for a range that we mapped */
	}
}

/*
 * The first 4 KiB of each, then MADV_COLLAPSE (which needs something to collapse, and gives huge
 * pages to every user whatever shmem_enabled says, short of deny). By madvise and not by touching,
 * so that no memory is an errno and not a signal. All at once: every call of MADV_COLLAPSE waits
 * for every CPU.
 */
int memfd_take_huge(void *address, uint64_t size)
{
	char *memory = address;

	size -= size % MEMFD_HUGE_BYTES;
	for (uint64_t at = 0; at < size; at += MEMFD_HUGE_BYTES) {
		(void)sys_madvise(memory + at, (size_t)sysconf(_SC_PAGESIZE), MADV_POPULATE_WRITE);
	}
	return sys_madvise(memory, size, MADV_COLLAPSE);
}

int memfd_seal(int fd, struct err *err)
{
	if (sys_fchmod(fd, 0444) < 0) {
		return err_set_sys(err, WIRE_INTERNAL, errno, "fchmod of a memfd: %s",
				   strerror(errno));
	}
	if (sys_fcntl(fd, F_ADD_SEALS,
		      F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_FUTURE_WRITE | F_SEAL_SEAL) < 0) {
		return err_set_sys(err, WIRE_INTERNAL, errno, "sealing a memfd: %s",
				   strerror(errno));
	}
	return 0;
}

int memfd_check_seals(int fd, uint64_t size, struct err *err)
{
	struct stat status;
	int seals = sys_fcntl(fd, F_GET_SEALS, 0);

	if (seals < 0) {
		return err_set_sys(err, WIRE_BAD_FD, errno, "not a memfd: %s", strerror(errno));
	}
	if ((seals & F_SEAL_SHRINK) == 0 || (seals & F_SEAL_GROW) == 0 ||
	    (seals & (F_SEAL_WRITE | F_SEAL_FUTURE_WRITE)) == 0) {
		return err_set(err, WIRE_BAD_FD, "the memory is not sealed (seals 0x%x)",
			       (unsigned)seals);
	}
	if (sys_fstat(fd, &status) < 0) {
		return err_set_sys(err, WIRE_BAD_FD, errno, "fstat: %s", strerror(errno));
	}
	if ((uint64_t)status.st_size != size) {
		return err_set(err, WIRE_BAD_FD, "the memory has %llu bytes, not %llu",
			       (unsigned long long)status.st_size, (unsigned long long)size);
	}
	return 0;
}

int memfd_reopen(int fd, int *ret_fd, struct err *err)
{
	char path[64];
	int reopened;

	(void)snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
	reopened = sys_open(path, O_RDONLY);
	if (reopened < 0) {
		return err_set_sys(err, code_of(errno), errno, "reopening an image: %s",
				   strerror(errno));
	}
	*ret_fd = reopened;
	return 0;
}

static int write_all(int fd, const char *bytes, size_t size)
{
	while (size > 0) {
		ssize_t n_written = sys_write(fd, bytes, size);

		if (n_written < 0 && errno == EINTR) {
			continue;
		}
		if (n_written <= 0) {
			return -1;
		}
		bytes += n_written;
		size -= (size_t)n_written;
	}
	return 0;
}

int memfd_from_bytes(const char *name, const void *bytes, size_t size, int *ret_fd, struct err *err)
{
	AUTO_CLOSE int fd = -1;
	int code = memfd_create_sized(name, 0, &fd, err);

	if (code < 0) {
		return code;
	}
	if (write_all(fd, bytes, size) < 0) {
		return err_set_sys(err, WIRE_NO_MEMORY, errno, "writing a memfd of %zu bytes: %s",
				   size, strerror(errno));
	}
	if (sys_fchmod(fd, 0444) < 0 ||
	    sys_fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE | F_SEAL_SEAL) <
		    0) {
		return err_set_sys(err, WIRE_INTERNAL, errno, "sealing a memfd: %s",
				   strerror(errno));
	}
	return memfd_reopen(fd, ret_fd, err);
}
