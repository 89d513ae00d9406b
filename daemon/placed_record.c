/* SPDX-License-Identifier: Apache-2.0 */
/* See placed_record.h. */
#include "daemon/placed_record.h"

#include "base/err.h"
#include "base/os/memfd.h"
#include "base/os/sys.h"
#include "base/utf8.h"

#include <stddef.h>
#include <string.h>
#include <sys/stat.h>

#include "daemon/load/hash.h"
#include "proto/gen/wire_code.h"

#define PLACED_LAYOUT 1U

static const char magic[8] = {'D', 'S', 'T', 'P', 'L', 'A', 'C', 'E'};

static uint64_t sum_of(const struct placed_record *record)
{
	const size_t at = offsetof(struct placed_record, uuid);

	return hash_bytes((const char *)record + at, sizeof *record - at);
}

int placed_record_write(const struct placed_record *record, int *ret_fd, struct err *err)
{
	struct placed_record whole = *record;

	memcpy(whole.magic, magic, sizeof magic);
	whole.layout = PLACED_LAYOUT;
	whole.record_bytes = sizeof whole;
	whole.sum = sum_of(&whole);
	return memfd_from_bytes("distorch:placed", &whole, sizeof whole, ret_fd, err);
}

static bool is_text(const char *text, size_t room, size_t most)
{
	size_t size = strnlen(text, room);

	for (size_t i = size; i < room; i++) {
		if (text[i] != '\0') {
			return false;
		}
	}
	return size <= most && utf8_is_name(text, size);
}

static bool is_good(const struct placed_record *record)
{
	bool is_good = record->n_donors <= PLAN_MAX_DONORS &&
		       record->n_devices < CORE_MAX_DEVICES && record->by_tensor <= 1 &&
		       record->has_names <= 1 && record->generation != 0 &&
		       record->strategy <= PLAN_SPREAD &&
		       is_text(record->allocation, sizeof record->allocation, PLAN_MAX_TEXT) &&
		       is_text(record->compute, sizeof record->compute, PLACED_DONOR_SIZE - 1);

	for (uint32_t i = 0; is_good && i < PLAN_MAX_DONORS; i++) {
		is_good = is_text(record->donors[i], sizeof record->donors[i],
				  i < record->n_donors ? PLACED_DONOR_SIZE - 1 : 0);
	}
	for (uint32_t i = 0; is_good && i < record->n_devices; i++) {
		const struct placed_device *device = &record->devices[i];

		is_good = device->uuid[0] != '\0' && device->is_used <= 1 &&
			  is_text(device->uuid, sizeof device->uuid, sizeof device->uuid - 1) &&
			  is_text(device->name, sizeof device->name, sizeof device->name - 1);
	}
	return is_good;
}

int placed_record_read(int fd, struct placed_record *ret, struct err *err)
{
	struct placed_record record;
	struct stat status;

	if (sys_fstat(fd, &status) < 0 || status.st_size != (off_t)sizeof record ||
	    memfd_check_seals(fd, sizeof record, NULL) < 0) {
		return err_set(err, WIRE_BAD_FILE, "how it lay is not in a sealed memfd");
	}
	if (sys_pread(fd, &record, sizeof record, 0) != (ssize_t)sizeof record) {
		return err_set(err, WIRE_BAD_FILE, "how it lay cannot be read");
	}
	if (memcmp(record.magic, magic, sizeof magic) != 0 || record.layout != PLACED_LAYOUT ||
	    record.record_bytes != sizeof record) {
		return err_set(err, WIRE_BAD_FILE, "how it lay is of another layout");
	}
	if (record.sum != sum_of(&record) || !is_good(&record)) {
		return err_set(err, WIRE_BAD_FILE, "how it lay is not what was written");
	}
	*ret = record;
	return 0;
}
