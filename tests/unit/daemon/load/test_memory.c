/* SPDX-License-Identifier: Apache-2.0 */
/* Over made-up trees of /proc and /sys/fs/cgroup. */
#include "base/err.h"
#include "base/os/sys.h"
#include "tests/support/fault_loop.h"
#include "tests/support/unit.h"

#include <errno.h>
#include <ftw.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "daemon/load/memory.h"
#include "proto/gen/wire_code.h"

#define MIB (1ULL << 20)
#define GIB (1ULL << 30)

#define MEMINFO_16G "MemTotal:       16777216 kB\nMemFree:  1 kB\nMemAvailable:   12582912 kB\n"

static char root[] = "memory.XXXXXX";

static int setup(void **state)
{
	(void)state;
	memcpy(root, "memory.XXXXXX", sizeof root);
	assert_non_null(mkdtemp(root));
	return 0;
}

static int remove_one(const char *path, const struct stat *status, int type, struct FTW *walk)
{
	(void)status;
	(void)type;
	(void)walk;
	return remove(path);
}

static int teardown(void **state)
{
	(void)state;
	return nftw(root, remove_one, 8, FTW_DEPTH | FTW_PHYS);
}

/* A file below the root, with its folders. */
static void given(const char *path, const char *text)
{
	char full[512];
	FILE *file;

	(void)snprintf(full, sizeof full, "%s%s", root, path);
	for (char *at = full + strlen(root) + 1; (at = strchr(at, '/')) != NULL; at++) {
		*at = '\0';
		assert_true(mkdir(full, 0700) == 0 || errno == EEXIST);
		*at = '/';
	}
	file = fopen(full, "we");
	assert_non_null(file);
	assert_true(fputs(text, file) >= 0);
	assert_int_equal(fclose(file), 0);
}

static struct host_memory read_memory(void)
{
	struct host_memory memory = {0};
	struct err err = {0};

	assert_int_equal(host_memory_read(root, &memory, &err), 0);
	return memory;
}

static void without_cgroups_it_is_the_kernels_word(void **state)
{
	struct host_memory memory;

	(void)state;
	given("/proc/meminfo", MEMINFO_16G);
	memory = read_memory();
	assert_int_equal(memory.total, 16 * GIB);
	assert_int_equal(memory.available, 12 * GIB);
}

static void a_missing_or_odd_meminfo_is_refused(void **state)
{
	static const char *const bad[] =
		{"", "MemTotal: 1 kB\n", "MemTotal: x\nMemAvailable: 1\n",
		 "MemTotal: 18446744073709551615 kB\nMemAvailable: 1 kB\n"};
	struct host_memory memory = {.total = 77};
	struct err err = {0};

	(void)state;
	assert_int_equal(host_memory_read(root, &memory, &err), -WIRE_INTERNAL);
	for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
		given("/proc/meminfo", bad[i]);
		assert_int_equal(host_memory_read(root, &memory, &err), -WIRE_INTERNAL);
	}
	assert_int_equal(memory.total, 77);
}

static void a_v2_group_bounds_total_and_room(void **state)
{
	struct host_memory memory;

	(void)state;
	given("/proc/meminfo", MEMINFO_16G);
	given("/proc/self/cgroup", "0::/user.slice/app\n");
	given("/sys/fs/cgroup/user.slice/app/memory.max", "4294967296\n");
	given("/sys/fs/cgroup/user.slice/app/memory.current", "3221225472\n");
	given("/sys/fs/cgroup/user.slice/app/memory.stat",
	      "anon 1\nfile 2\ninactive_file 1073741824\nactive_file 536870912\n");
	memory = read_memory();
	assert_int_equal(memory.total, 4 * GIB);
	assert_int_equal(memory.available, 4 * GIB - (3 * GIB - GIB - GIB / 2));
}

static void the_tightest_of_all_ancestors_counts(void **state)
{
	struct host_memory memory;

	(void)state;
	given("/proc/meminfo", MEMINFO_16G);
	given("/proc/self/cgroup", "0::/a/b/c\n");
	given("/sys/fs/cgroup/a/b/c/memory.max", "max\n");
	given("/sys/fs/cgroup/a/b/memory.max", "8589934592\n");
	given("/sys/fs/cgroup/a/b/memory.current", "0\n");
	given("/sys/fs/cgroup/a/memory.max", "2147483648\n");
	given("/sys/fs/cgroup/a/memory.current", "1073741824\n");
	memory = read_memory();
	assert_int_equal(memory.total, 2 * GIB);
	assert_int_equal(memory.available, GIB);
}

static void a_v1_group_is_found_by_its_controller(void **state)
{
	struct host_memory memory;

	(void)state;
	given("/proc/meminfo", MEMINFO_16G);
	given("/proc/self/cgroup", "9:cpu,cpuacct:/x\n4:hugetlb,memory:/job\n0::/\n");
	given("/sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n");
	given("/sys/fs/cgroup/memory/memory.usage_in_bytes", "123456\n");
	given("/sys/fs/cgroup/memory/job/memory.limit_in_bytes", "1073741824\n");
	given("/sys/fs/cgroup/memory/job/memory.usage_in_bytes", "536870912\n");
	given("/sys/fs/cgroup/memory/job/memory.stat",
	      "inactive_file 7\ntotal_inactive_file 268435456\ntotal_active_file 0\n");
	memory = read_memory();
	assert_int_equal(memory.total, GIB);
	assert_int_equal(memory.available, GIB - 256 * MIB);
}

static void a_group_over_its_limit_has_no_room(void **state)
{
	(void)state;
	given("/proc/meminfo", MEMINFO_16G);
	given("/proc/self/cgroup", "0::/a\n");
	given("/sys/fs/cgroup/a/memory.max", "1000\n");
	given("/sys/fs/cgroup/a/memory.current", "5000\n");
	given("/sys/fs/cgroup/a/memory.stat", "inactive_file 9000\n");
	assert_int_equal(read_memory().available, 1000); /* all of it is page cache */
	given("/sys/fs/cgroup/a/memory.stat", "inactive_file 1000\n");
	assert_int_equal(read_memory().available, 0);
}

/* fault: M15 */
static void a_limit_is_read_anew_each_time(void **state)
{
	(void)state;
	given("/proc/meminfo", MEMINFO_16G);
	given("/proc/self/cgroup", "0::/a\n");
	given("/sys/fs/cgroup/a/memory.max", "max\n");
	assert_int_equal(read_memory().available, 12 * GIB);
	given("/sys/fs/cgroup/a/memory.max", "1073741824\n");
	given("/sys/fs/cgroup/a/memory.current", "0\n");
	assert_int_equal(read_memory().available, GIB);
}

/* fault: M09 */
static void what_is_swapped_is_the_groups_own_word(void **state)
{
	uint64_t bytes = 7;

	(void)state;
	assert_false(host_memory_read_swapped(root, &bytes));
	given("/proc/self/cgroup", "4:memory:/x\n");
	assert_false(host_memory_read_swapped(root, &bytes));
	given("/proc/self/cgroup", "4:memory:/x\n0::/a/b\n");
	assert_false(host_memory_read_swapped(root, &bytes));
	given("/sys/fs/cgroup/a/b/memory.swap.current", "none\n");
	assert_false(host_memory_read_swapped(root, &bytes));
	assert_int_equal(bytes, 7);
	given("/sys/fs/cgroup/a/b/memory.swap.current", "1048576\n");
	assert_true(host_memory_read_swapped(root, &bytes));
	assert_int_equal(bytes, 1048576);
}

static void odd_cgroup_lines_bound_nothing(void **state)
{
	char line[6000];

	(void)state;
	given("/proc/meminfo", MEMINFO_16G);
	given("/proc/self/cgroup", "\n:\n::\nmemory\n4:memoryx:/a\n0::/../../..\n");
	assert_int_equal(read_memory().available, 12 * GIB);
	memset(line, 'a', sizeof line - 1);
	line[sizeof line - 1] = '\0';
	memcpy(line, "0::/", 4);
	given("/proc/self/cgroup", line);
	assert_int_equal(read_memory().available, 12 * GIB);
}

static void read_real(void *state)
{
	struct host_memory memory;
	struct err err = {0};
	int code = host_memory_read(NULL, &memory, &err);

	(void)state;
	assert_true(code == 0 || (code == -err.code && err.text[0] != '\0'));
}

static void a_failing_call_is_survived(void **state)
{
	(void)state;
	assert_true(fault_loop("open", EMFILE, false, read_real, NULL) > 0);
	assert_true(fault_loop("open", EMFILE, true, read_real, NULL) > 0);
	assert_true(fault_loop("pread", EIO, false, read_real, NULL) > 0);
	assert_true(fault_loop("malloc", ENOMEM, false, read_real, NULL) > 0);
	assert_true(fault_loop("malloc", ENOMEM, true, read_real, NULL) > 0);
}

static void interrupted_and_short_reads_are_invisible(void **state)
{
	(void)state;
	given("/proc/meminfo", MEMINFO_16G);
	assert_true(sys_fault_set("pread", (struct sys_fault){.nth = 1, .error = EINTR}));
	assert_int_equal(read_memory().total, 16 * GIB);
	assert_true(
		sys_fault_set("pread",
			      (struct sys_fault){.nth = 1, .short_size = 3, .is_forever = true}));
	assert_int_equal(read_memory().available, 12 * GIB);
	sys_fault_clear();
}

static void the_automatic_budget_leaves_a_quarter_and_takes_two_fifths_at_most(void **state)
{
	struct host_memory memory = {.total = 100 * GIB, .available = 90 * GIB};

	(void)state;
	assert_int_equal(host_memory_auto_budget(&memory), 40 * GIB);
	memory.available = 50 * GIB;
	assert_int_equal(host_memory_auto_budget(&memory), 25 * GIB);
	memory.available = 8 * GIB; /* busy: little, but something */
	assert_int_equal(host_memory_auto_budget(&memory), GIB);
	memory.available = 0;
	assert_int_equal(host_memory_auto_budget(&memory), 0);
}

static void the_automatic_reserve_lets_small_machines_work(void **state)
{
	struct host_memory memory = {.total = 100 * GIB};

	(void)state;
	assert_int_equal(host_memory_auto_reserve(&memory), 12 * GIB);
	memory.total = 32 * GIB;
	assert_int_equal(host_memory_auto_reserve(&memory), 4 * GIB);
	memory.total = 2 * GIB;
	assert_int_equal(host_memory_auto_reserve(&memory), GIB / 2);
}

static void the_real_machine_can_be_read(void **state)
{
	struct host_memory memory = {0};
	struct err err = {0};

	(void)state;
	assert_int_equal(host_memory_read(NULL, &memory, &err), 0);
	assert_true(memory.total > 16 * MIB);
	assert_true(memory.available <= memory.total);
	assert_true(memory_own_bytes() > 4096);
	assert_true(memory_own_bytes() < 16 * GIB);
}

#define CASE(test) cmocka_unit_test_setup_teardown(test, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		CASE(without_cgroups_it_is_the_kernels_word),
		CASE(a_missing_or_odd_meminfo_is_refused),
		CASE(a_v2_group_bounds_total_and_room),
		CASE(the_tightest_of_all_ancestors_counts),
		CASE(a_v1_group_is_found_by_its_controller),
		CASE(a_group_over_its_limit_has_no_room),
		CASE(a_limit_is_read_anew_each_time),
		CASE(what_is_swapped_is_the_groups_own_word),
		CASE(odd_cgroup_lines_bound_nothing),
		CASE(a_failing_call_is_survived),
		CASE(interrupted_and_short_reads_are_invisible),
		CASE(the_automatic_budget_leaves_a_quarter_and_takes_two_fifths_at_most),
		CASE(the_automatic_reserve_lets_small_machines_work),
		CASE(the_real_machine_can_be_read),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
