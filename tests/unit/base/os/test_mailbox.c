/* SPDX-License-Identifier: Apache-2.0 */
/* Mail arrives once, in order, and the eventfd is readable whenever something waits. */
#include "base/err.h"
#include "base/list.h"
#include "base/os/mailbox.h"
#include "base/os/sys.h"
#include "tests/support/baseline.h"
#include "tests/support/dies.h"
#include "tests/support/fault_loop.h"
#include "tests/support/unit.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <unistd.h>

#include "proto/gen/wire_code.h"

#define N_PRODUCERS 4
#define N_MAILS     20000 /* a producer */

struct letter {
	int producer;
	int number;
	struct mail mail; /* owner: the mailbox */
};

static bool is_readable(const struct mailbox *box, int wait_ms)
{
	struct pollfd poll_fd = {.fd = mailbox_fd(box), .events = POLLIN};

	return poll(&poll_fd, 1, wait_ms) == 1;
}

static struct letter *take(struct mailbox *box)
{
	struct mail *mail = mailbox_take(box);

	return mail == NULL ? NULL : container_of(mail, struct letter, mail);
}

static void mail_comes_out_in_the_order_it_went_in(void **state)
{
	struct letter letters[3] = {{.number = 0}, {.number = 1}, {.number = 2}};
	const struct baseline before = baseline_take();
	struct mailbox *box = mailbox_new(NULL);

	(void)state;
	assert_null(mailbox_take(box));
	for (int i = 0; i < 3; i++) {
		mailbox_post(box, &letters[i].mail);
	}
	for (int i = 0; i < 3; i++) {
		struct letter *letter = take(box);

		assert_non_null(letter);
		assert_int_equal(letter->number, i);
		assert_null(letter->mail.next);
	}
	assert_null(mailbox_take(box));
	assert_null(mailbox_free(box));
	baseline_check(&before);
}

static void the_eventfd_is_readable_until_the_box_is_found_empty(void **state)
{
	struct letter letters[2];
	struct mailbox *box = mailbox_new(NULL);

	(void)state;
	assert_false(is_readable(box, 0));
	mailbox_post(box, &letters[0].mail);
	mailbox_post(box, &letters[1].mail);
	assert_true(is_readable(box, 0));
	assert_non_null(mailbox_take(box));
	assert_true(is_readable(box, 0));
	assert_non_null(mailbox_take(box));
	assert_null(mailbox_take(box));
	assert_false(is_readable(box, 0));
	/* A post to the drained box wakes again. */
	mailbox_post(box, &letters[0].mail);
	assert_true(is_readable(box, 0));
	assert_non_null(mailbox_take(box));
	assert_null(mailbox_take(box));
	mailbox_free(box);
}

static void only_the_first_mail_writes_the_eventfd(void **state)
{
	struct letter letters[3];
	struct mailbox *box = mailbox_new(NULL);
	uint64_t count = 0;

	(void)state;
	for (int i = 0; i < 3; i++) {
		mailbox_post(box, &letters[i].mail);
	}
	assert_int_equal(read(mailbox_fd(box), &count, sizeof count), sizeof count);
	assert_true(count == 1);
	for (int i = 0; i < 3; i++) {
		assert_non_null(mailbox_take(box));
	}
	mailbox_free(box);
}

static void a_consumer_that_stops_early_wakes_itself(void **state)
{
	struct letter letters[2];
	struct mailbox *box = mailbox_new(NULL);
	uint64_t count;

	(void)state;
	mailbox_post(box, &letters[0].mail);
	mailbox_post(box, &letters[1].mail);
	assert_non_null(mailbox_take(box));
	assert_int_equal(read(mailbox_fd(box), &count, sizeof count), sizeof count);
	assert_false(is_readable(box, 0));
	mailbox_wake(box);
	assert_true(is_readable(box, 0));
	assert_non_null(mailbox_take(box));
	mailbox_free(box);
}

static void the_eventfd_neither_blocks_nor_is_inherited(void **state)
{
	struct mailbox *box = mailbox_new(NULL);

	(void)state;
	assert_int_equal(fcntl(mailbox_fd(box), F_GETFD), FD_CLOEXEC);
	assert_true((fcntl(mailbox_fd(box), F_GETFL) & O_NONBLOCK) != 0);
	mailbox_free(box);
}

struct producer {
	pthread_t thread;
	struct mailbox *box;
	struct letter *letters;
};

static void *produce(void *argument)
{
	struct producer *producer = argument;

	for (int i = 0; i < N_MAILS; i++) {
		mailbox_post(producer->box, &producer->letters[i].mail);
	}
	return NULL;
}

/* The consumer sleeps whenever the box is empty: a lost wake-up would hang, not slow down. */
static void nothing_is_lost_between_threads(void **state)
{
	struct producer producers[N_PRODUCERS];
	int next[N_PRODUCERS] = {0};
	struct mailbox *box = mailbox_new(NULL);
	int n_taken = 0;

	(void)state;
	for (int p = 0; p < N_PRODUCERS; p++) {
		producers[p].box = box;
		producers[p].letters = calloc(N_MAILS, sizeof *producers[p].letters);
		for (int i = 0; i < N_MAILS; i++) {
			producers[p].letters[i].producer = p;
			producers[p].letters[i].number = i;
		}
		assert_int_equal(pthread_create(&producers[p].thread, NULL, produce, &producers[p]),
				 0);
	}
	while (n_taken < N_PRODUCERS * N_MAILS) {
		struct letter *letter = take(box);

		if (letter == NULL) {
			assert_true(is_readable(box, 10000));
			continue;
		}
		assert_int_equal(letter->number, next[letter->producer]++);
		n_taken++;
	}
	for (int p = 0; p < N_PRODUCERS; p++) {
		assert_int_equal(pthread_join(producers[p].thread, NULL), 0);
		free(producers[p].letters);
	}
	assert_null(mailbox_take(box));
	mailbox_free(box);
}

static void free_full_box(void *context)
{
	struct letter letter;

	(void)context;
	struct mailbox *box = mailbox_new(NULL);

	mailbox_post(box, &letter.mail);
	mailbox_free(box);
}

static void a_box_with_mail_in_it_may_not_be_freed(void **state)
{
	(void)state;
	assert_null(mailbox_free(NULL));
	assert_dies(free_full_box, NULL);
}

static void make_and_free(void *context)
{
	struct err err = {0};
	struct mailbox *box = mailbox_new(&err);

	(void)context;
	assert_true((box == NULL) == (sys_fault_n_hits("malloc") == 1));
	assert_int_equal(err.code, box == NULL ? WIRE_NO_MEMORY : 0);
	mailbox_free(box);
}

static void no_memory_and_no_descriptors_are_survived(void **state)
{
	struct rlimit old;
	struct rlimit none;
	struct err err = {0};

	(void)state;
	assert_true(fault_loop("malloc", ENOMEM, false, make_and_free, NULL) == 1);
	assert_int_equal(getrlimit(RLIMIT_NOFILE, &old), 0);
	none = old;
	none.rlim_cur = 0;
	assert_int_equal(setrlimit(RLIMIT_NOFILE, &none), 0);
	assert_null(mailbox_new(&err));
	assert_int_equal(setrlimit(RLIMIT_NOFILE, &old), 0);
	assert_int_equal(err.code, WIRE_TOO_MANY);
	assert_int_equal(err.sys, EMFILE);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(mail_comes_out_in_the_order_it_went_in),
		cmocka_unit_test(the_eventfd_is_readable_until_the_box_is_found_empty),
		cmocka_unit_test(only_the_first_mail_writes_the_eventfd),
		cmocka_unit_test(a_consumer_that_stops_early_wakes_itself),
		cmocka_unit_test(the_eventfd_neither_blocks_nor_is_inherited),
		cmocka_unit_test(nothing_is_lost_between_threads),
		cmocka_unit_test(a_box_with_mail_in_it_may_not_be_freed),
		cmocka_unit_test(no_memory_and_no_descriptors_are_survived),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
