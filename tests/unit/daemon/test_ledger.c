/* SPDX-License-Identifier: Apache-2.0 */
/* The ledger: what was written last is what the next life reads, and nothing half written. */
#include "base/err.h"
#include "tests/support/unit.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "daemon/ledger.h"
#include "proto/gen/wire_code.h"

#define TEXT_AT   (4096 + 16 * 72) /* the first; the second TEXT_ROOM behind it */
#define TEXT_ROOM 128
#define LONGEST   (TEXT_ROOM - 24)

static struct ledger *made(void)
{
	struct ledger *ledger = NULL;
	const struct ledger_room room = {.n_leases = 8, .n_wishes = 8, .text_bytes = TEXT_ROOM};

	assert_int_equal(ledger_new(3, &room, &ledger, NULL), 0);
	return ledger;
}

static struct ledger *opened(const struct ledger *ledger)
{
	struct ledger *again = NULL;

	assert_int_equal(ledger_open(ledger_fd(ledger), &again, NULL), 0);
	return again;
}

static void what_is_written_is_read_by_the_next_life(void **state)
{
	const struct ledger_lease lease = {.uuid = {7}, .generation = 2, .epoch = 9, .lease = 4};
	const struct ledger_wish wish = {.uuid = {8}, .uid = 1000, .pin = 1, .priority = -5};
	struct ledger *ledger = made();
	struct ledger *again;
	struct ledger_lease seen;
	struct ledger_wish said;
	uint32_t cursor = 0;

	(void)state;
	ledger_set_lease(ledger, 5, &lease);
	ledger_set_wish(ledger, 7, &wish);
	ledger_complete(ledger);
	again = opened(ledger);
	assert_int_equal(ledger_life(again), 3);
	assert_true(ledger_next_lease(again, &cursor, &seen));
	assert_int_equal(seen.lease, 4);
	assert_int_equal(seen.uuid[0], 7);
	assert_false(ledger_next_lease(again, &cursor, &seen));
	cursor = 0;
	assert_true(ledger_next_wish(again, &cursor, &said));
	assert_int_equal(said.priority, -5);
	ledger_set_lease(ledger, 5, NULL);
	cursor = 0;
	assert_false(ledger_next_lease(again, &cursor, &seen));
	(void)ledger_free(again);
	(void)ledger_free(ledger);
}

static void a_record_that_is_not_whole_does_not_count(void **state)
{
	const struct ledger_lease lease = {.uuid = {7}, .lease = 4};
	struct ledger *ledger = made();
	struct ledger *again;
	struct ledger_lease seen;
	uint32_t cursor = 0;
	uint8_t byte = 9;

	(void)state;
	ledger_set_lease(ledger, 0, &lease);
	ledger_set_lease(ledger, 1, &lease);
	ledger_complete(ledger);
	assert_int_equal(pwrite(ledger_fd(ledger), &byte, 1, 4096 + 3), 1); /* of the first */
	again = opened(ledger);
	assert_true(ledger_next_lease(again, &cursor, &seen));
	assert_int_equal(cursor, 2);
	assert_false(ledger_next_lease(again, &cursor, &seen));
	(void)ledger_free(again);
	(void)ledger_free(ledger);
}

static void expect_text(const struct ledger *ledger, const char *wanted)
{
	size_t size = 0;
	char *text = ledger_get_text(ledger, &size);

	if (wanted == NULL) {
		assert_null(text);
	} else {
		assert_non_null(text);
		assert_string_equal(text, wanted);
		assert_int_equal(size, strlen(wanted));
	}
	free(text);
}

static void the_newest_text_that_is_whole_counts(void **state)
{
	struct ledger *ledger = made();
	struct ledger *again;
	uint8_t byte = 'X';

	(void)state;
	expect_text(ledger, NULL);
	assert_true(ledger_set_text(ledger, "one", 3));
	ledger_complete(ledger);
	again = opened(ledger);
	expect_text(again, "one");
	assert_true(ledger_set_text(ledger, "second", 6));
	expect_text(again, "second");
	assert_true(ledger_set_text(again, "3", 1));
	expect_text(ledger, "3");
	/* Half a writing of the next one, over the older: what was last stays. */
	assert_int_equal(pwrite(ledger_fd(ledger), &byte, 1, TEXT_AT + TEXT_ROOM + 24), 1);
	expect_text(again, "3");
	assert_int_equal(pwrite(ledger_fd(ledger), &byte, 1, TEXT_AT + 24), 1);
	expect_text(again, NULL);
	assert_true(ledger_set_text(ledger, "four", 4));
	expect_text(again, "four");
	(void)ledger_free(again);
	(void)ledger_free(ledger);
}

static void a_text_has_to_have_room(void **state)
{
	const struct ledger_room small = {.n_leases = 1, .n_wishes = 1};
	struct ledger *ledger = made();
	char text[TEXT_ROOM] = {0};

	(void)state;
	memset(text, 'a', sizeof text - 1);
	assert_true(ledger_set_text(ledger, "short", 5));
	assert_false(ledger_set_text(ledger, text, LONGEST + 1));
	assert_false(ledger_set_text(ledger, text, SIZE_MAX));
	assert_false(ledger_set_text(ledger, text, 0));
	expect_text(ledger, "short");
	assert_true(ledger_set_text(ledger, text, LONGEST));
	text[LONGEST] = '\0';
	expect_text(ledger, text);
	(void)ledger_free(ledger);
	ledger = NULL;
	assert_int_equal(ledger_new(1, &small, &ledger, NULL), 0);
	assert_false(ledger_set_text(ledger, "a", 1));
	expect_text(ledger, NULL);
	(void)ledger_free(ledger);
}

static void no_size_that_a_text_claims_is_believed(void **state)
{
	static const uint64_t sizes[] = {0, LONGEST + 1, TEXT_ROOM, UINT64_MAX, UINT64_MAX - 24};
	struct ledger *ledger = made();

	(void)state;
	for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
		assert_true(ledger_set_text(ledger, "one", 3));
		assert_true(ledger_set_text(ledger, "two", 3));
		for (int slot = 0; slot < 2; slot++) {
			off_t at = TEXT_AT + slot * TEXT_ROOM + 16;

			assert_int_equal(pwrite(ledger_fd(ledger), &sizes[i], 8, at), 8);
		}
		expect_text(ledger, NULL);
	}
	(void)ledger_free(ledger);
}

static void what_is_beyond_its_room_is_not_written(void **state)
{
	const struct ledger_lease lease = {.lease = 4};
	const struct ledger_wish wish = {.uid = 4};
	struct ledger *ledger = made();
	struct ledger_lease seen;
	uint32_t cursor = 0;

	(void)state;
	ledger_set_lease(ledger, 8, &lease);
	ledger_set_lease(ledger, UINT32_MAX, &lease);
	ledger_set_lease(ledger, UINT32_MAX, NULL);
	ledger_set_wish(ledger, 8, &wish);
	ledger_set_wish(ledger, UINT32_MAX, NULL);
	assert_false(ledger_next_lease(ledger, &cursor, &seen));
	(void)ledger_free(ledger);
}

static int refused(int fd)
{
	struct ledger *ledger = NULL;
	struct err err = {0};
	int code = ledger_open(fd, &ledger, &err);

	assert_null(ledger);
	assert_true(code < 0 && err.text[0] != '\0');
	return code;
}

static void what_is_no_ledger_is_refused(void **state)
{
	struct ledger *ledger = made();
	struct ledger *again = NULL;
	int unsealed = memfd_create("test", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	int null = open("/dev/null", O_RDWR | O_CLOEXEC);
	uint32_t huge = 1U << 30;
	char bytes[TEXT_AT + 2 * TEXT_ROOM];

	(void)state;
	assert_int_equal(refused(ledger_fd(ledger)), -WIRE_BAD_FILE); /* never completed */
	ledger_complete(ledger);
	/* A good one, but for its seals: whoever maps it could be made to fault. */
	assert_int_equal(pread(ledger_fd(ledger), bytes, sizeof bytes, 0), sizeof bytes);
	assert_int_equal(write(unsealed, bytes, sizeof bytes), sizeof bytes);
	assert_int_equal(refused(unsealed), -WIRE_BAD_FILE);
	assert_int_equal(refused(null), -WIRE_BAD_FILE);
	assert_int_equal(refused(-1), -WIRE_BAD_FILE);
	/* Counts that its size does not bear out. */
	assert_int_equal(pwrite(ledger_fd(ledger), &huge, sizeof huge, 12), sizeof huge);
	assert_int_equal(refused(ledger_fd(ledger)), -WIRE_BAD_FILE);
	assert_int_equal(ledger_open(ledger_fd(ledger), &again, NULL), -WIRE_BAD_FILE);
	assert_null(ledger_free(NULL));
	(void)close(unsealed);
	(void)close(null);
	(void)ledger_free(ledger);
}

static void starts_that_fail_are_counted_with_the_suspect(void **state)
{
	const uint8_t uuid[16] = {1, 2, 3};
	uint8_t suspect[16];
	struct ledger *ledger = made();

	(void)state;
	assert_int_equal(ledger_count_start(ledger), 0);
	assert_int_equal(ledger_count_start(ledger), 1);
	ledger_uncount_start(ledger);
	assert_int_equal(ledger_count_start(ledger), 1);
	ledger_suspect(ledger, uuid);
	ledger_get_suspect(ledger, suspect);
	assert_memory_equal(suspect, uuid, sizeof uuid);
	(void)ledger_free(ledger);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(what_is_written_is_read_by_the_next_life),
		cmocka_unit_test(a_record_that_is_not_whole_does_not_count),
		cmocka_unit_test(the_newest_text_that_is_whole_counts),
		cmocka_unit_test(a_text_has_to_have_room),
		cmocka_unit_test(no_size_that_a_text_claims_is_believed),
		cmocka_unit_test(what_is_beyond_its_room_is_not_written),
		cmocka_unit_test(what_is_no_ledger_is_refused),
		cmocka_unit_test(starts_that_fail_are_counted_with_the_suspect),
	};

	return cmocka_run_group_tests_name("daemon/ledger", tests, NULL, NULL);
}
