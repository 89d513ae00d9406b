/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Closes that take long or for ever hold nobody else up, and cost only so many threads. How
 * long a close takes is the fault table's word; one case has a socket that really lingers.
 */
#include "base/os/closer.h"
#include "base/os/sys.h"
#include "tests/support/baseline.h"
#include "tests/support/scratch.h"
#include "tests/support/unit.h"

#include <errno.h>
#include <netinet/in.h>
#include <pthread.h>
#include <sys/socket.h>
#include <unistd.h>

#define SLOW_MS 400
#define ALICE   1000
#define BOB     1001

static struct baseline before;
static uint32_t n_threads;

static int setup(void **state)
{
	(void)state;
	before = baseline_take();
	n_threads = scratch_count_threads();
	return 0;
}

/* Threads that are not needed go within seconds. */
static int teardown(void **state)
{
	(void)state;
	sys_fault_clear();
	baseline_check(&before);
	for (int i = 0; i < 1000 && scratch_count_threads() > n_threads; i++) {
		scratch_sleep_ms(5);
	}
	assert_int_equal(scratch_count_threads(), n_threads);
	return 0;
}

static void give(uint32_t uid, uint32_t count)
{
	for (uint32_t i = 0; i < count; i++) {
		int fd = open("/dev/null", O_RDONLY | O_CLOEXEC);

		assert_true(fd >= 0);
		closer_give(uid, &fd, 1);
		assert_int_equal(fd, -1);
	}
}

static void wait_until_closed(uint32_t uid)
{
	for (int i = 0; i < 5000 && closer_count(uid) > 0; i++) {
		scratch_sleep_ms(1);
	}
	assert_int_equal(closer_count(uid), 0);
}

/* The n closes from now on are slow, the later ones are not. */
static void given_slow_closes(uint32_t count)
{
	assert_true(sys_fault_set("close", (struct sys_fault){.nth = 1,
							      .delay_ms = SLOW_MS,
							      .is_forever = true}));
	give(ALICE, count);
	for (int i = 0; i < 1000 && sys_fault_n_hits("close") < count; i++) {
		scratch_sleep_ms(1);
	}
	assert_int_equal(sys_fault_n_hits("close"), count);
	sys_fault_forget(); /* those are slow all the same */
}

static void what_is_given_is_closed(void **state)
{
	int fds[4] = {-1, -1, -1, -1};

	(void)state;
	closer_give(ALICE, fds, 4); /* none */
	fds[1] = open("/dev/null", O_RDONLY | O_CLOEXEC);
	fds[3] = open("/dev/null", O_RDONLY | O_CLOEXEC);
	closer_give(ALICE, fds, 4);
	for (int i = 0; i < 4; i++) {
		assert_int_equal(fds[i], -1);
	}
	wait_until_closed(ALICE);
}

static void a_close_that_hangs_holds_no_other_up(void **state)
{
	(void)state;
	given_slow_closes(1);
	give(ALICE, 20);
	give(BOB, 20);
	wait_until_closed(BOB);
	scratch_sleep_ms(20);
	assert_int_equal(closer_count(ALICE), 1);
	wait_until_closed(ALICE);
}

static void one_uid_gets_only_so_many_threads(void **state)
{
	(void)state;
	given_slow_closes(8);
	give(ALICE, 100);
	assert_in_range(closer_count(ALICE), 100, 108);
	assert_in_range(scratch_count_threads(), n_threads + 8, n_threads + 9);
	give(BOB, 100); /* its own queue goes on */
	wait_until_closed(BOB);
	assert_in_range(closer_count(ALICE), 100, 108);
	assert_in_range(scratch_count_threads(), n_threads + 8, n_threads + 17);
	wait_until_closed(ALICE);
}

static void more_uids_than_places_share_one(void **state)
{
	(void)state;
	assert_true(sys_fault_set("close", (struct sys_fault){.nth = 1,
							      .delay_ms = SLOW_MS,
							      .is_forever = true}));
	for (uint32_t uid = 2000; uid < 2100; uid++) {
		give(uid, 1);
	}
	assert_int_equal(closer_count(2000), 1);
	assert_int_equal(closer_count(2099), 36); /* of a place that is not its own */
	assert_in_range(scratch_count_threads(), n_threads + 1, n_threads + 64);
	sys_fault_clear();
	for (uint32_t uid = 2000; uid < 2100; uid++) {
		wait_until_closed(uid);
	}
}

static void without_a_thread_it_waits_for_the_next(void **state)
{
	(void)state;
	assert_true(
		sys_fault_set("pthread_create",
			      (struct sys_fault){.nth = 1, .error = EAGAIN, .is_forever = true}));
	scratch_sleep_ms(300); /* none of an earlier test is left */
	give(ALICE, 3);
	scratch_sleep_ms(20);
	assert_int_equal(closer_count(ALICE), 3);
	sys_fault_clear();
	give(BOB, 1);
	wait_until_closed(ALICE);
	wait_until_closed(BOB);
}

/* A TCP socket with unsent bytes and a limit to wait for them; -1: no network here. */
static int given_lingering_socket(int *ret_reader)
{
	const struct linger linger = {.l_onoff = 1, .l_linger = 1};
	const int small = 2048;
	struct sockaddr_in address = {.sin_family = AF_INET,
				      .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	socklen_t size = sizeof address;
	static const char bytes[1 << 16];
	int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	int sender = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

	*ret_reader = -1;
	if (listener < 0 || sender < 0 ||
	    setsockopt(listener, SOL_SOCKET, SO_RCVBUF, &small, sizeof small) < 0 ||
	    bind(listener, (const struct sockaddr *)&address, size) < 0 ||
	    listen(listener, 1) < 0 ||
	    getsockname(listener, (struct sockaddr *)&address, &size) < 0 ||
	    connect(sender, (const struct sockaddr *)&address, size) < 0) {
		(void)close(listener);
		(void)close(sender);
		return -1;
	}
	*ret_reader = listener;
	while (send(sender, bytes, sizeof bytes, MSG_DONTWAIT) > 0) {
		/* until nothing more fits */
	}
	assert_int_equal(setsockopt(sender, SOL_SOCKET, SO_LINGER, &linger, sizeof linger), 0);
	return sender;
}

static void a_socket_that_lingers_does_so_elsewhere(void **state)
{
	int reader;
	int fd = given_lingering_socket(&reader);

	(void)state;
	if (fd < 0) {
		print_message("no TCP on this machine's loopback\n");
		skip();
	}
	closer_give(ALICE, &fd, 1);
	scratch_sleep_ms(100);
	assert_int_equal(closer_count(ALICE), 1);
	give(ALICE, 1);
	scratch_sleep_ms(100);
	assert_int_equal(closer_count(ALICE), 1);
	wait_until_closed(ALICE);
	(void)close(reader);
}

static void once_started_one_thread_stays(void **state)
{
	(void)state;
	assert_true(closer_start());
	assert_true(closer_start());
	give(ALICE, 50);
	wait_until_closed(ALICE);
	n_threads++;
	for (int i = 0; i < 1000 && scratch_count_threads() > n_threads; i++) {
		scratch_sleep_ms(5);
	}
	scratch_sleep_ms(50);
	assert_int_equal(scratch_count_threads(), n_threads);
	give(ALICE, 50);
	wait_until_closed(ALICE);
}

static void *do_nothing(void *argument)
{
	return argument;
}

/* A sanitizer starts a thread of its own with the first one: before anything is counted. */
static int start_first_thread(void **state)
{
	pthread_t thread;

	(void)state;
	return pthread_create(&thread, NULL, do_nothing, NULL) != 0 ||
	       pthread_join(thread, NULL) != 0;
}

int main(void)
{
#define CLOSER_TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
	const struct CMUnitTest tests[] = {
		CLOSER_TEST(what_is_given_is_closed),
		CLOSER_TEST(a_close_that_hangs_holds_no_other_up),
		CLOSER_TEST(one_uid_gets_only_so_many_threads),
		CLOSER_TEST(more_uids_than_places_share_one),
		CLOSER_TEST(without_a_thread_it_waits_for_the_next),
		CLOSER_TEST(a_socket_that_lingers_does_so_elsewhere),
		CLOSER_TEST(once_started_one_thread_stays), /* for good: last */
	};

	return cmocka_run_group_tests(tests, start_first_thread, NULL);
}
