/* SPDX-License-Identifier: Apache-2.0 */
#include "base/os/sys.h"
#include "tests/support/scratch.h"
#include "tests/support/unit.h"

#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "daemon/load/thread.h"

struct seen {
	char name[16];
	int nice;
	long ioprio;
	bool blocks_sigterm;
	bool blocks_sigbus;
	uint32_t n_runs; /* atomic */
	uint32_t sleep_ms;
};

static void look(void *argument)
{
	struct seen *seen = argument;
	sigset_t mask;

	(void)prctl(PR_GET_NAME, seen->name);
	seen->nice = getpriority(PRIO_PROCESS, (id_t)syscall(SYS_gettid));
	seen->ioprio = syscall(SYS_ioprio_get, 1, 0);
	(void)pthread_sigmask(SIG_SETMASK, NULL, &mask);
	seen->blocks_sigterm = sigismember(&mask, SIGTERM) == 1;
	seen->blocks_sigbus = sigismember(&mask, SIGBUS) == 1;
	__atomic_add_fetch(&seen->n_runs, 1, __ATOMIC_RELAXED);
	scratch_sleep_ms(seen->sleep_ms);
}

static void a_thread_has_a_name_low_priority_and_no_signals(void **state)
{
	struct thread_group group;
	struct seen seen = {.nice = -77};
	sigset_t mask;

	(void)state;
	thread_group_init(&group);
	assert_true(thread_start(&group, "a-name", look, &seen));
	assert_true(thread_group_wait(&group, 5000000000U));
	assert_string_equal(seen.name, "a-name");
	assert_int_equal(seen.nice, 10);
	assert_int_equal(seen.ioprio, 2 << 13 | 7);
	assert_true(seen.blocks_sigterm);
	assert_false(seen.blocks_sigbus); /* it could not say what was at hand */
	assert_int_equal(pthread_sigmask(SIG_SETMASK, NULL, &mask), 0);
	assert_int_equal(sigismember(&mask, SIGTERM), 0); /* ours is as it was */
	thread_group_fini(&group);
}

static void waiting_for_a_group_has_a_limit(void **state)
{
	struct thread_group group;
	struct seen seen[2] = {{.sleep_ms = 300}, {.sleep_ms = 300}};

	(void)state;
	thread_group_init(&group);
	assert_true(thread_group_wait(&group, 0)); /* nobody to wait for */
	assert_true(thread_start(&group, "slow", look, &seen[0]));
	assert_true(thread_start(&group, "slow", look, &seen[1]));
	assert_false(thread_group_wait(&group, 20000000U));
	assert_true(thread_group_wait(&group, UINT64_MAX));
	assert_int_equal(seen[0].n_runs + seen[1].n_runs, 2);
	thread_group_fini(&group);
}

static void without_a_thread_or_memory_nothing_is_started(void **state)
{
	struct thread_group group;
	struct seen seen = {0};

	(void)state;
	thread_group_init(&group);
	assert_true(sys_fault_set("pthread_create", (struct sys_fault){.nth = 1, .error = EAGAIN}));
	assert_false(thread_start(&group, "none", look, &seen));
	assert_true(sys_fault_set("malloc", (struct sys_fault){.nth = 1, .error = ENOMEM}));
	assert_false(thread_start(&group, "none", look, &seen));
	sys_fault_clear();
	assert_true(thread_group_wait(&group, 0));
	assert_int_equal(seen.n_runs, 0);
	thread_group_fini(&group);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_thread_has_a_name_low_priority_and_no_signals),
		cmocka_unit_test(waiting_for_a_group_has_a_limit),
		cmocka_unit_test(without_a_thread_or_memory_nothing_is_started),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
