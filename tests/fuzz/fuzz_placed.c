/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How a model lay, as an earlier life, or nobody, left it. Oracle: it is refused, or its counts are
 * in their bounds, its texts end, and written again it is read as the same. Each is
 * read once more with the head and the sum that a record of ours has.
 */
#include "base/os/memfd.h"
#include "base/require.h"
#include "tests/fuzz/fuzz.h"

#include <stddef.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "daemon/placed_record.h"

/* Apart: a record is large. */
__attribute__((noinline)) static void look(const struct placed_record *record)
{
	struct placed_record again;
	int fd = -1;

	REQUIRE(record->n_donors <= PLAN_MAX_DONORS && record->n_devices < CORE_MAX_DEVICES);
	REQUIRE(strlen(record->allocation) <= PLAN_MAX_TEXT);
	REQUIRE(strlen(record->compute) < PLACED_DONOR_SIZE);
	for (uint32_t i = 0; i < record->n_donors; i++) {
		REQUIRE(strlen(record->donors[i]) < PLACED_DONOR_SIZE);
	}
	for (uint32_t i = 0; i < record->n_devices; i++) {
		REQUIRE(memchr(record->devices[i].uuid, '\0', DEVICE_UUID_SIZE) != NULL);
		REQUIRE(memchr(record->devices[i].name, '\0', DEVICE_NAME_SIZE) != NULL);
	}
	REQUIRE(placed_record_write(record, &fd, NULL) == 0);
	REQUIRE(placed_record_read(fd, &again, NULL) == 0);
	REQUIRE(memcmp(&again, record, sizeof again) == 0);
	(void)close(fd);
}

/* As it came; its size and seals are right or not. */
__attribute__((noinline)) static void read_as_it_is(const uint8_t *bytes, size_t size,
						    bool is_sealed)
{
	struct placed_record record;
	int fd = memfd_create("fuzz", MFD_CLOEXEC | MFD_ALLOW_SEALING);

	REQUIRE(fd >= 0 && write(fd, bytes, size) == (ssize_t)size);
	REQUIRE(!is_sealed || memfd_seal(fd, NULL) == 0);
	if (placed_record_read(fd, &record, NULL) == 0) {
		look(&record);
	}
	(void)close(fd);
}

/* As the content of one that we have written. */
__attribute__((noinline)) static void read_as_ours(const uint8_t *bytes, size_t size)
{
	const size_t head = offsetof(struct placed_record, uuid);
	struct placed_record record = {0};
	int fd = -1;

	memcpy((char *)&record + head, bytes,
	       size < sizeof record - head ? size : sizeof record - head);
	REQUIRE(placed_record_write(&record, &fd, NULL) == 0);
	if (placed_record_read(fd, &record, NULL) == 0) {
		look(&record);
	}
	(void)close(fd);
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size)
{
	if (size > 0) {
		read_as_it_is(bytes + 1, size - 1, (bytes[0] & 1) != 0);
		read_as_ours(bytes + 1, size - 1);
	}
	return 0;
}
