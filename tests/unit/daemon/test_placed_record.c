/* SPDX-License-Identifier: Apache-2.0 */
/* How a model lay: what is written is what the next life reads, and nothing bent. */
#include "base/err.h"
#include "base/os/memfd.h"
#include "tests/support/unit.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "daemon/placed_record.h"
#include "proto/gen/wire_code.h"

static struct placed_record record; /* large, so not on the stack */
static struct placed_record seen;
static char longer[sizeof record + 1];

static void make_usual(void)
{
	record = (struct placed_record){.uuid = {7},
					.generation = 3,
					.n_donors = 1,
					.n_devices = 2,
					.placed_uid = 1000,
					.strategy = PLAN_SPREAD,
					.by_tensor = 1,
					.virtual_vram = 5};

	(void)snprintf(record.allocation, sizeof record.allocation, "cuda:0,2g;cpu,*");
	(void)snprintf(record.compute, sizeof record.compute, "cuda:0");
	(void)snprintf(record.donors[0], sizeof record.donors[0], "cpu");
	for (uint32_t i = 0; i < 2; i++) {
		(void)snprintf(record.devices[i].uuid, DEVICE_UUID_SIZE, "GPU-%u", i);
		(void)snprintf(record.devices[i].name, DEVICE_NAME_SIZE, "cuda:%u", i);
	}
	record.devices[1].is_used = 1;
}

/* The code of reading what was written of it. */
static int read_again(void)
{
	struct err err = {0};
	int fd = -1;
	int code;

	assert_int_equal(placed_record_write(&record, &fd, NULL), 0);
	code = placed_record_read(fd, &seen, &err);
	assert_true(code == 0 || err.text[0] != '\0');
	(void)close(fd);
	return code;
}

static void what_is_written_is_read(void **state)
{
	(void)state;
	make_usual();
	assert_int_equal(read_again(), 0);
	assert_memory_equal(seen.uuid, record.uuid,
			    sizeof record - offsetof(struct placed_record, uuid));
}

static void every_bound_is_looked_at(void **state)
{
	(void)state;
#define REFUSED(change)                                         \
	do {                                                    \
		make_usual();                                   \
		change;                                         \
		assert_int_equal(read_again(), -WIRE_BAD_FILE); \
	} while (0)
	REFUSED(record.n_donors = PLAN_MAX_DONORS + 1);
	REFUSED(record.n_devices = CORE_MAX_DEVICES);
	REFUSED(record.n_devices = 3); /* one without a name of its own */
	REFUSED(record.generation = 0);
	REFUSED(record.strategy = PLAN_SPREAD + 1);
	REFUSED(record.by_tensor = 2);
	REFUSED(record.has_names = 2);
	REFUSED(record.devices[0].is_used = 2);
	REFUSED(record.n_donors = 0); /* and yet there is a text */
	REFUSED(record.compute[70] = 'x');
	REFUSED(memset(record.compute, 'x', sizeof record.compute));
	REFUSED(memset(record.allocation, 'x', sizeof record.allocation));
	REFUSED(memset(record.allocation, 'x', PLAN_MAX_TEXT + 1));
	REFUSED(memset(record.donors[0], 'x', sizeof record.donors[0]));
	REFUSED(memset(record.devices[0].uuid, 'x', DEVICE_UUID_SIZE));
	REFUSED(memset(record.devices[0].name, 'x', DEVICE_NAME_SIZE));
	REFUSED(memcpy(record.allocation, "\xff\xfe", 2));
#undef REFUSED
}

static void what_is_not_one_is_refused(void **state)
{
	int whole = -1;
	int fd;
	int ends[2];

	(void)state;
	make_usual();
	assert_int_equal(placed_record_write(&record, &whole, NULL), 0);
	assert_int_equal(pread(whole, &record, sizeof record, 0), sizeof record);
	memcpy(longer, &record, sizeof record);
	for (size_t size = 0; size <= sizeof record; size += sizeof record / 4) {
		size_t bent = size == sizeof record ? sizeof longer : size + 1;

		assert_int_equal(memfd_from_bytes("t", longer, bent, &fd, NULL), 0);
		assert_int_equal(placed_record_read(fd, &seen, NULL), -WIRE_BAD_FILE);
		(void)close(fd);
	}
	for (size_t at = 0; at < sizeof record; at += 97) { /* each bit counts */
		((char *)&record)[at] ^= 1;
		assert_int_equal(memfd_from_bytes("t", &record, sizeof record, &fd, NULL), 0);
		assert_int_equal(placed_record_read(fd, &seen, NULL), -WIRE_BAD_FILE);
		((char *)&record)[at] ^= 1;
		(void)close(fd);
	}
	fd = memfd_create("open", MFD_CLOEXEC | MFD_ALLOW_SEALING); /* it may yet change */
	assert_int_equal(write(fd, &record, sizeof record), sizeof record);
	assert_int_equal(placed_record_read(fd, &seen, NULL), -WIRE_BAD_FILE);
	(void)close(fd);
	assert_int_equal(pipe2(ends, O_CLOEXEC), 0);
	assert_int_equal(placed_record_read(ends[0], &seen, NULL), -WIRE_BAD_FILE);
	assert_int_equal(placed_record_read(-1, &seen, NULL), -WIRE_BAD_FILE);
	(void)close(ends[0]);
	(void)close(ends[1]);
	(void)close(whole);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(what_is_written_is_read),
		cmocka_unit_test(every_bound_is_looked_at),
		cmocka_unit_test(what_is_not_one_is_refused),
	};

	return cmocka_run_group_tests_name("daemon/placed_record", tests, NULL, NULL);
}
