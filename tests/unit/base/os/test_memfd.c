/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Images: what is sealed cannot be changed by anybody, whatever they try (D13), and every
 * failing call leaves nothing behind (M11).
 */
#include "base/err.h"
#include "base/os/memfd.h"
#include "base/os/sys.h"
#include "tests/support/baseline.h"
#include "tests/support/fault_loop.h"
#include "tests/support/unit.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "proto/gen/wire_code.h"

#define SIZE 10000U /* no multiple of a page */

static int setup(void **state)
{
	static struct baseline before;

	before = baseline_take();
	*state = &before;
	return 0;
}

static int teardown(void **state)
{
	sys_fault_clear();
	baseline_check(*state);
	return 0;
}

/* A sealed image of SIZE bytes, 0x5a each. */
static int make_image(void)
{
	struct err err = {0};
	void *address = NULL;
	int fd = -1;

	assert_int_equal(memfd_create_sized("image", SIZE, &fd, &err), 0);
	assert_int_equal(memfd_map(fd, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, &address, &err),
			 0);
	memset(address, 0x5a, SIZE);
	memfd_unmap(address, SIZE);
	assert_int_equal(memfd_seal(fd, &err), 0);
	return fd;
}

static void a_new_memfd_has_its_size_and_takes_no_page(void **state)
{
	struct stat status;
	int fd = -1;

	(void)state;
	assert_int_equal(memfd_create_sized("image", 1ULL << 40, &fd, NULL), 0);
	assert_int_equal(fstat(fd, &status), 0);
	assert_true(status.st_size == (off_t)(1ULL << 40));
	assert_int_equal(status.st_blocks, 0);
	assert_int_equal(fcntl(fd, F_GETFD), FD_CLOEXEC);
	/* Not sealed yet; only execution may already be ruled out. */
	assert_int_equal(fcntl(fd, F_GET_SEALS) & (F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW), 0);
	(void)close(fd);
}

static void before_linux_6_3_the_memfd_is_made_without_the_newer_flag(void **state)
{
	int fd = -1;
	struct err err = {0};

	(void)state;
	assert_true(sys_fault_set("memfd_create", (struct sys_fault){.nth = 1, .error = EINVAL}));
	assert_int_equal(memfd_create_sized("image", SIZE, &fd, NULL), 0);
	(void)close(fd);
	fd = -7;
	assert_true(
		sys_fault_set("memfd_create",
			      (struct sys_fault){.nth = 1, .error = EINVAL, .is_forever = true}));
	assert_true(memfd_create_sized("image", SIZE, &fd, &err) < 0);
	assert_int_equal(err.sys, EINVAL);
	assert_int_equal(fd, -7);
}

static void errors_name_the_call_and_the_size(void **state)
{
	struct err err = {0};
	int fd = -7;

	(void)state;
	assert_true(sys_fault_set("memfd_create", (struct sys_fault){.nth = 1, .error = ENOMEM}));
	assert_int_equal(memfd_create_sized("image", SIZE, &fd, &err), -WIRE_NO_MEMORY);
	assert_non_null(strstr(err.text, "memfd_create"));
	assert_true(sys_fault_set("memfd_create", (struct sys_fault){.nth = 1, .error = EMFILE}));
	assert_int_equal(memfd_create_sized("image", SIZE, &fd, &err), -WIRE_TOO_MANY);
	assert_int_equal(err.sys, EMFILE);
	assert_true(sys_fault_set("memfd_create", (struct sys_fault){.nth = 1, .error = EPERM}));
	assert_int_equal(memfd_create_sized("image", SIZE, &fd, &err), -WIRE_INTERNAL);
	assert_int_equal(memfd_create_sized("image", UINT64_MAX, &fd, &err), -WIRE_TOO_LARGE);
	assert_non_null(strstr(err.text, "18446744073709551615"));
	assert_non_null(strstr(err.text, "ulimit -f"));
	assert_int_equal(err.sys, EFBIG);
	assert_true(sys_fault_set("ftruncate", (struct sys_fault){.nth = 1, .error = ENOSPC}));
	assert_int_equal(memfd_create_sized("image", SIZE, &fd, &err), -WIRE_NO_MEMORY);
	assert_int_equal(fd, -7);
	/* An interrupted one is tried again. */
	assert_true(sys_fault_set("ftruncate", (struct sys_fault){.nth = 1, .error = EINTR}));
	assert_int_equal(memfd_create_sized("image", SIZE, &fd, &err), 0);
	(void)close(fd);
}

static void a_mapping_lies_on_a_2_mib_boundary(void **state)
{
	static const uint64_t sizes[] = {1, 4096, SIZE, MEMFD_HUGE_BYTES, 3 * MEMFD_HUGE_BYTES + 1};
	void *address = NULL;
	int fd = -1;

	(void)state;
	for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
		assert_int_equal(memfd_create_sized("image", sizes[i], &fd, NULL), 0);
		assert_int_equal(memfd_map(fd, sizes[i], PROT_READ | PROT_WRITE, MAP_SHARED,
					   &address, NULL),
				 0);
		assert_int_equal((uintptr_t)address % MEMFD_HUGE_BYTES, 0);
		((volatile char *)address)[sizes[i] - 1] = 1;
		memfd_unmap(address, sizes[i]);
		(void)close(fd);
	}
	memfd_unmap(NULL, 1); /* does nothing */
}

/* Pages of address space that we take. */
static unsigned long n_pages(void)
{
	char text[64] = {0};
	int fd = open("/proc/self/statm", O_RDONLY | O_CLOEXEC);

	assert_true(read(fd, text, sizeof text - 1) > 0);
	(void)close(fd);
	return strtoul(text, NULL, 10);
}

static void a_mapping_takes_no_more_room_than_its_pages(void **state)
{
	static const uint64_t sizes[] = {1, 5000, MEMFD_HUGE_BYTES, 3 * MEMFD_HUGE_BYTES + 1};
	unsigned long page_size = (unsigned long)sysconf(_SC_PAGESIZE);
	int fd = -1;

	(void)state;
	assert_int_equal(memfd_create_sized("image", 4 * MEMFD_HUGE_BYTES, &fd, NULL), 0);
	for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
		unsigned long before = n_pages();
		void *address = NULL;

		assert_int_equal(memfd_map(fd, sizes[i], PROT_READ, MAP_SHARED, &address, NULL), 0);
		assert_int_equal(n_pages() - before, (sizes[i] + page_size - 1) / page_size);
		memfd_unmap(address, sizes[i]);
		assert_int_equal(n_pages(), before);
	}
	(void)close(fd);
}

/* The smaps lines of the mapping that begins at 'address', up to the next one. */
static bool smaps_has(const void *address, const char *field, const char *word, bool *ret_found)
{
	char begin[32];
	char line[512];
	FILE *smaps = fopen("/proc/self/smaps", "re");
	bool is_inside = false;
	bool has_word = false;

	*ret_found = false;
	(void)snprintf(begin, sizeof begin, "%lx-", (unsigned long)(uintptr_t)address);
	assert_non_null(smaps);
	while (fgets(line, sizeof line, smaps) != NULL) {
		if (strncmp(line, begin, strlen(begin)) == 0) {
			is_inside = true;
			*ret_found = true;
		} else if (is_inside && strncmp(line, field, strlen(field)) == 0) {
			has_word = strstr(line, word) != NULL;
			break;
		}
	}
	(void)fclose(smaps);
	return has_word;
}

static void a_mapping_is_left_out_of_core_dumps_and_gives_its_room_back(void **state)
{
	void *address = NULL;
	bool is_mapped;
	int fd = -1;

	(void)state;
	assert_int_equal(memfd_create_sized("image", SIZE, &fd, NULL), 0);
	assert_int_equal(memfd_map(fd, SIZE, PROT_READ, MAP_SHARED, &address, NULL), 0);
	assert_true(smaps_has(address, "VmFlags:", " dd", &is_mapped));
	assert_true(is_mapped);
	/* Only the rounded size stays reserved. */
	assert_true(smaps_has(address, "Size:", " 12 kB", &is_mapped));
	assert_int_equal(msync((char *)address + 12288, 4096, MS_ASYNC), -1);
	assert_int_equal(errno, ENOMEM);
	memfd_unmap(address, SIZE);
	assert_int_equal(msync(address, 4096, MS_ASYNC), -1);
	(void)close(fd);
}

/* Two pages of 2 MiB and a tail. */
static void *map_for_huge_pages(int *ret_fd, uint64_t size)
{
	void *address = NULL;

	assert_int_equal(memfd_create_sized("buffer", size, ret_fd, NULL), 0);
	assert_int_equal(memfd_map(*ret_fd, size, PROT_READ | PROT_WRITE, MAP_SHARED, &address,
				   NULL),
			 0);
	return address;
}

static void whole_pages_of_2_mib_are_taken_and_the_tail_is_not(void **state)
{
	const uint64_t size = 2 * (uint64_t)MEMFD_HUGE_BYTES + 5000;
	struct stat status;
	bool is_mapped;
	int fd = -1;
	void *address = map_for_huge_pages(&fd, size);

	(void)state;
	*(volatile char *)address = 0;
	if (madvise(address, MEMFD_HUGE_BYTES, MADV_COLLAPSE) < 0) {
		memfd_unmap(address, size);
		(void)close(fd);
		skip(); /* this kernel gives none */
	}
	assert_int_equal(memfd_take_huge(address, size), 0);
	assert_int_equal(fstat(fd, &status), 0);
	assert_int_equal(status.st_blocks * 512, 2 * MEMFD_HUGE_BYTES);
	((volatile char *)address)[0] = 1;
	((volatile char *)address)[MEMFD_HUGE_BYTES] = 1;
	assert_true(smaps_has(address, "ShmemPmdMapped:", " 4096 kB", &is_mapped));
	assert_true(is_mapped);
	memfd_unmap(address, size);
	(void)close(fd);
}

static void where_no_page_of_2_mib_is_given_the_memory_is_as_before(void **state)
{
	const uint64_t size = 2 * (uint64_t)MEMFD_HUGE_BYTES;
	int fd = -1;
	uint8_t *address = map_for_huge_pages(&fd, size);

	(void)state;
	assert_true(
		sys_fault_set("madvise",
			      (struct sys_fault){.nth = 1, .error = ENOMEM, .is_forever = true}));
	assert_int_equal(memfd_take_huge(address, size), -1);
	assert_int_equal(errno, ENOMEM);
	for (uint64_t at = 0; at < size; at += 4096) {
		assert_int_equal(address[at], 0);
		address[at] = 7;
	}
	memfd_unmap(address, size);
	(void)close(fd);
}

static void what_cannot_be_mapped_is_refused(void **state)
{
	void *address = &address;
	struct err err = {0};
	int fd = make_image();

	(void)state;
	assert_int_equal(memfd_map(fd, 0, PROT_READ, MAP_SHARED, &address, &err),
			 -WIRE_BAD_ARGUMENT);
	assert_int_equal(memfd_map(fd, UINT64_MAX - 4096, PROT_READ, MAP_SHARED, &address, &err),
			 -WIRE_BAD_ARGUMENT);
	assert_int_equal(memfd_map(fd, 1ULL << 60, PROT_READ, MAP_SHARED, &address, &err),
			 -WIRE_NO_MEMORY);
	assert_int_equal(err.sys, ENOMEM);
	/* Writing through a shared mapping is what the seal forbids. */
	assert_int_equal(memfd_map(fd, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, &address, &err),
			 -WIRE_NO_MEMORY);
	assert_int_equal(err.sys, EPERM);
	assert_ptr_equal(address, &address);
	(void)close(fd);
}

static void d13_nobody_can_change_a_sealed_image(void **state)
{
	const int wanted = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL;
	char path[64];
	char byte = 0;
	struct stat status;
	int fd = make_image();
	int again;

	(void)state;
	assert_int_equal(fcntl(fd, F_GET_SEALS) & wanted, wanted);
	assert_int_equal(fstat(fd, &status), 0);
	assert_int_equal(status.st_mode & 07777, 0444);
	/* Even the daemon's own read-write descriptor. */
	assert_int_equal(ftruncate(fd, 1), -1);
	assert_int_equal(ftruncate(fd, 2 * SIZE), -1);
	assert_int_equal(pwrite(fd, &byte, 1, 0), -1);
	assert_int_equal(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 4096), -1);
	assert_int_equal(fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE), -1);
	/* Root may open it for writing again; every write fails all the same. */
	(void)snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
	again = open(path, O_RDWR | O_CLOEXEC);
	if (again >= 0) {
		assert_int_equal(pwrite(again, &byte, 1, 0), -1);
		assert_int_equal(errno, EPERM);
		assert_int_equal(ftruncate(again, 0), -1);
		assert_ptr_equal(mmap(NULL, SIZE, PROT_WRITE, MAP_SHARED, again, 0), MAP_FAILED);
		(void)close(again);
	} else {
		assert_int_equal(errno, EACCES);
	}
	assert_int_equal(pread(fd, &byte, 1, SIZE - 1), 1);
	assert_int_equal(byte, 0x5a);
	(void)close(fd);
}

static void a_reopened_descriptor_is_a_read_only_one_of_its_own(void **state)
{
	int fd = make_image();
	int again = -1;
	void *address = NULL;
	struct stat original;
	struct stat status;

	(void)state;
	assert_int_equal(memfd_reopen(fd, &again, NULL), 0);
	assert_int_equal(fcntl(again, F_GETFL) & O_ACCMODE, O_RDONLY);
	assert_int_equal(fcntl(again, F_GETFD), FD_CLOEXEC);
	assert_int_equal(fstat(fd, &original), 0);
	assert_int_equal(fstat(again, &status), 0);
	assert_true(original.st_ino == status.st_ino);
	/* Its offset is its own: nobody moves the daemon's. */
	assert_int_equal(lseek(again, 77, SEEK_SET), 77);
	assert_int_equal(lseek(fd, 0, SEEK_CUR), 0);
	/* A client's patch stays a private copy. */
	assert_int_equal(memfd_map(again, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE, &address,
				   NULL),
			 0);
	((char *)address)[0] = 1;
	memfd_unmap(address, SIZE);
	assert_int_equal(memfd_map(again, SIZE, PROT_READ, MAP_SHARED, &address, NULL), 0);
	assert_int_equal(((char *)address)[0], 0x5a);
	memfd_unmap(address, SIZE);
	(void)close(again);
	(void)close(fd);
	again = -7;
	assert_int_equal(memfd_reopen(fd, &again, NULL), -WIRE_INTERNAL); /* it is closed */
	assert_int_equal(again, -7);
}

static void seals_are_checked_one_by_one(void **state)
{
	static const int too_few[] = {
		0,
		F_SEAL_SHRINK | F_SEAL_GROW,
		F_SEAL_SHRINK | F_SEAL_WRITE,
		F_SEAL_GROW | F_SEAL_WRITE,
	};
	struct err err = {0};
	int fd = make_image();
	int file;

	(void)state;
	assert_int_equal(memfd_check_seals(fd, SIZE, &err), 0);
	assert_int_equal(memfd_check_seals(fd, SIZE - 1, &err), -WIRE_BAD_FD);
	assert_non_null(strstr(err.text, "10000"));
	(void)close(fd);
	for (size_t i = 0; i < sizeof too_few / sizeof too_few[0]; i++) {
		assert_int_equal(memfd_create_sized("image", SIZE, &fd, NULL), 0);
		assert_int_equal(fcntl(fd, F_ADD_SEALS, too_few[i]), 0);
		assert_int_equal(memfd_check_seals(fd, SIZE, &err), -WIRE_BAD_FD);
		assert_non_null(strstr(err.text, "not sealed"));
		(void)close(fd);
	}
	assert_int_equal(memfd_create_sized("image", SIZE, &fd, NULL), 0);
	assert_int_equal(fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE), 0);
	assert_int_equal(memfd_check_seals(fd, SIZE, &err), 0); /* harder than ours */
	(void)close(fd);
	file = open("/dev/null", O_RDONLY | O_CLOEXEC);
	assert_int_equal(memfd_check_seals(file, 0, &err), -WIRE_BAD_FD);
	assert_non_null(strstr(err.text, "not a memfd"));
	(void)close(file);
	assert_int_equal(memfd_check_seals(-1, 0, &err), -WIRE_BAD_FD);
}

static void bytes_become_a_small_memfd_that_nobody_can_write(void **state)
{
	static char large[100000];
	char bytes[16] = {0};
	struct stat status;
	int fd = -1;

	(void)state;
	assert_int_equal(memfd_from_bytes("table", "0123456789", 10, &fd, NULL), 0);
	assert_int_equal(memfd_check_seals(fd, 10, NULL), 0);
	assert_int_equal(fcntl(fd, F_GET_SEALS) & (F_SEAL_WRITE | F_SEAL_SEAL),
			 F_SEAL_WRITE | F_SEAL_SEAL);
	assert_int_equal(fcntl(fd, F_GETFL) & O_ACCMODE, O_RDONLY);
	assert_int_equal(fstat(fd, &status), 0);
	assert_int_equal(status.st_mode & 07777, 0444);
	assert_int_equal(read(fd, bytes, sizeof bytes), 10); /* its offset begins at 0 */
	assert_memory_equal(bytes, "0123456789", 10);
	(void)close(fd);
	assert_int_equal(memfd_from_bytes("table", large, sizeof large, &fd, NULL), 0);
	assert_int_equal(memfd_check_seals(fd, sizeof large, NULL), 0);
	(void)close(fd);
	assert_int_equal(memfd_from_bytes("table", "", 0, &fd, NULL), 0);
	assert_int_equal(memfd_check_seals(fd, 0, NULL), 0);
	(void)close(fd);
}

static void short_and_interrupted_writes_are_gone_on_with(void **state)
{
	char bytes[16] = {0};
	int fd = -1;

	(void)state;
	assert_true(
		sys_fault_set("write",
			      (struct sys_fault){.nth = 1, .short_size = 3, .is_forever = true}));
	assert_int_equal(memfd_from_bytes("table", "0123456789", 10, &fd, NULL), 0);
	assert_true(sys_fault_n_hits("write") == 4);
	assert_int_equal(read(fd, bytes, sizeof bytes), 10);
	assert_memory_equal(bytes, "0123456789", 10);
	(void)close(fd);
	assert_true(sys_fault_set("write", (struct sys_fault){.nth = 1, .error = EINTR}));
	assert_int_equal(memfd_from_bytes("table", "x", 1, &fd, NULL), 0);
	assert_int_equal(memfd_check_seals(fd, 1, NULL), 0);
	(void)close(fd);
}

/* The whole life of an image; each step that fails ends it. */
static void live(void *context)
{
	struct err err = {0};
	void *address = NULL;
	int fd = -1;
	int again = -1;
	int table = -1;
	int code = memfd_create_sized("image", SIZE, &fd, &err);

	(void)context;
	if (code == 0) {
		code = memfd_map(fd, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, &address, &err);
		memfd_unmap(address, SIZE);
	}
	if (code == 0) {
		code = memfd_seal(fd, &err);
	}
	if (code == 0) {
		code = memfd_check_seals(fd, SIZE, &err);
	}
	if (code == 0) {
		code = memfd_reopen(fd, &again, &err);
	}
	if (code == 0) {
		code = memfd_from_bytes("table", "x", 1, &table, &err);
	}
	assert_int_equal(code, -err.code);
	assert_true(code == 0 || err.sys == EACCES);
	if (fd >= 0) {
		(void)close(fd);
	}
	if (again >= 0) {
		(void)close(again);
	}
	if (table >= 0) {
		(void)close(table);
	}
}

static void m11_every_failing_call_leaves_nothing(void **state)
{
	(void)state;
	assert_true(fault_loop("memfd_create", EACCES, false, live, NULL) == 2);
	assert_true(fault_loop("ftruncate", EACCES, false, live, NULL) == 2);
	assert_true(fault_loop("mmap", EACCES, false, live, NULL) == 2);
	assert_true(fault_loop("madvise", EACCES, false, live, NULL) == 1); /* only a notice */
	assert_true(fault_loop("fcntl", EACCES, false, live, NULL) == 3);
	assert_true(fault_loop("fstat", EACCES, false, live, NULL) == 1);
	assert_true(fault_loop("write", EACCES, false, live, NULL) == 1);
	assert_true(fault_loop("fchmod", EACCES, false, live, NULL) == 2);
	assert_true(fault_loop("open", EACCES, false, live, NULL) == 2);
	assert_true(fault_loop("open", EACCES, true, live, NULL) == 2);
}

int main(void)
{
#define IMAGE_TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
	const struct CMUnitTest tests[] = {
		IMAGE_TEST(a_new_memfd_has_its_size_and_takes_no_page),
		IMAGE_TEST(before_linux_6_3_the_memfd_is_made_without_the_newer_flag),
		IMAGE_TEST(errors_name_the_call_and_the_size),
		IMAGE_TEST(a_mapping_lies_on_a_2_mib_boundary),
		IMAGE_TEST(a_mapping_takes_no_more_room_than_its_pages),
		IMAGE_TEST(a_mapping_is_left_out_of_core_dumps_and_gives_its_room_back),
		IMAGE_TEST(whole_pages_of_2_mib_are_taken_and_the_tail_is_not),
		IMAGE_TEST(where_no_page_of_2_mib_is_given_the_memory_is_as_before),
		IMAGE_TEST(what_cannot_be_mapped_is_refused),
		IMAGE_TEST(d13_nobody_can_change_a_sealed_image),
		IMAGE_TEST(a_reopened_descriptor_is_a_read_only_one_of_its_own),
		IMAGE_TEST(seals_are_checked_one_by_one),
		IMAGE_TEST(bytes_become_a_small_memfd_that_nobody_can_write),
		IMAGE_TEST(short_and_interrupted_writes_are_gone_on_with),
		IMAGE_TEST(m11_every_failing_call_leaves_nothing),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
