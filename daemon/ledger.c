/* SPDX-License-Identifier: Apache-2.0 */
/* See ledger.h. The layout: a header of 4 KiB, lease records, wish records, room for two texts. */
#include "daemon/ledger.h"

#include "base/checked.h"
#include "base/cleanup.h"
#include "base/err.h"
#include "base/os/memfd.h"
#include "base/os/sys.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "daemon/load/hash.h"
#include "proto/gen/wire_code.h"

#define LEDGER_LAYOUT 2U
#define HEADER_BYTES  4096U
#define RECORD_BYTES  72U /* of a lease, and of a wish */
#define MAX_RECORDS   (1U << 22)
#define MAX_TEXT      (1U << 26)
#define TEXT_UNIT     64U

static const char magic[8] = {'D', 'S', 'T', 'L', 'E', 'D', 'G', 'R'};

struct ledger_header {
	char magic[8];
	uint32_t layout;
	uint32_t n_leases, n_wishes;             /* room */
	uint32_t leases_touched, wishes_touched; /* records ever written; the rest is no memory */
	uint32_t is_complete;
	uint32_t n_failed_starts;
	uint32_t text_bytes; /* of each of the two; a multiple of TEXT_UNIT */
	uint64_t life;
	uint8_t suspect[16];
};

/* The newer of the two that are whole counts. */
struct ledger_text {
	uint64_t sum; /* of what follows, 'size' bytes of text included */
	uint64_t number;
	uint64_t size;
	char bytes[];
};

struct ledger {
	int fd;
	uint64_t bytes;
	struct ledger_header *header; /* the mapping */
	struct ledger_room room;      /* as checked; the mapping is not asked again */
};

static struct ledger_lease *lease_at(const struct ledger *ledger, uint32_t index)
{
	char *records = (char *)ledger->header + HEADER_BYTES;

	return (struct ledger_lease *)(void *)records + index;
}

static struct ledger_wish *wish_at(const struct ledger *ledger, uint32_t index)
{
	return (struct ledger_wish *)(void *)lease_at(ledger, ledger->room.n_leases) + index;
}

/* 0 or 1. */
static struct ledger_text *text_at(const struct ledger *ledger, uint32_t index)
{
	char *texts = (char *)wish_at(ledger, ledger->room.n_wishes);

	return (struct ledger_text *)(void *)(texts + (size_t)index * ledger->room.text_bytes);
}

static bool size_of(const struct ledger_room *room, uint64_t *ret)
{
	uint64_t n_records = (uint64_t)room->n_leases + room->n_wishes;

	return room->n_leases <= MAX_RECORDS && room->n_wishes <= MAX_RECORDS &&
	       room->text_bytes <= MAX_TEXT && room->text_bytes % TEXT_UNIT == 0 &&
	       checked_mul(n_records, RECORD_BYTES, ret) && checked_add(*ret, HEADER_BYTES, ret) &&
	       checked_add(*ret, 2ULL * room->text_bytes, ret);
}

static int map_it(struct ledger *ledger, struct err *err)
{
	void *memory =
		sys_mmap(NULL, ledger->bytes, PROT_READ | PROT_WRITE, MAP_SHARED, ledger->fd, 0);

	if (memory == MAP_FAILED) {
		return err_set_sys(err, WIRE_NO_MEMORY, errno, "mapping the ledger: %s",
				   strerror(errno));
	}
	ledger->header = memory;
	return 0;
}

int ledger_new(uint64_t life, const struct ledger_room *room, struct ledger **ret, struct err *err)
{
	struct ledger *ledger = sys_calloc(1, sizeof *ledger);
	int code;

	if (ledger == NULL || !size_of(room, &ledger->bytes)) {
		free(ledger);
		return err_set(err, WIRE_NO_MEMORY, "no memory for the ledger");
	}
	ledger->fd = -1;
	ledger->room = *room;
	code = memfd_create_sized("distorch:ledger", ledger->bytes, &ledger->fd, err);
	/* Its size stays: whoever maps it need not fear SIGBUS. */
	if (code == 0 && sys_fcntl(ledger->fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW) < 0) {
		code = err_set_sys(err, WIRE_INTERNAL, errno, "sealing the ledger: %s",
				   strerror(errno));
	}
	if (code == 0) {
		code = map_it(ledger, err);
	}
	if (code < 0) {
		(void)ledger_free(ledger);
		return code;
	}
	memcpy(ledger->header->magic, magic, sizeof magic);
	ledger->header->layout = LEDGER_LAYOUT;
	ledger->header->life = life;
	ledger->header->n_leases = room->n_leases;
	ledger->header->n_wishes = room->n_wishes;
	ledger->header->text_bytes = room->text_bytes;
	*ret = ledger;
	return 0;
}

static bool is_good_header(struct ledger *ledger)
{
	const struct ledger_header *header = ledger->header;
	uint64_t bytes = 0;

	ledger->room = (struct ledger_room){.n_leases = header->n_leases,
					    .n_wishes = header->n_wishes,
					    .text_bytes = header->text_bytes};
	return memcmp(header->magic, magic, sizeof magic) == 0 && header->layout == LEDGER_LAYOUT &&
	       header->is_complete == 1 && size_of(&ledger->room, &bytes) && bytes == ledger->bytes;
}

int ledger_open(int fd, struct ledger **ret, struct err *err)
{
	const int wanted = F_SEAL_SHRINK | F_SEAL_GROW;
	struct ledger *ledger = sys_calloc(1, sizeof *ledger);
	struct stat status;
	int seals = sys_fcntl(fd, F_GET_SEALS, 0);
	int code = 0;

	if (ledger == NULL) {
		return err_set(err, WIRE_NO_MEMORY, "no memory for the ledger");
	}
	ledger->fd = -1;
	if (seals < 0 || (seals & wanted) != wanted || sys_fstat(fd, &status) < 0 ||
	    status.st_size < (off_t)HEADER_BYTES) {
		code = err_set(err, WIRE_BAD_FILE, "it is not a ledger");
	} else {
		ledger->bytes = (uint64_t)status.st_size;
		ledger->fd = sys_fcntl_dup(fd);
		code = ledger->fd < 0
			       ? err_set_sys(err, WIRE_TOO_MANY, errno, "%s", strerror(errno))
			       : map_it(ledger, err);
	}
	if (code == 0 && !is_good_header(ledger)) {
		code = err_set(err, WIRE_BAD_FILE, "it is not a ledger that this version knows");
	}
	if (code < 0) {
		(void)ledger_free(ledger);
		return code;
	}
	*ret = ledger;
	return 0;
}

struct ledger *ledger_free(struct ledger *ledger)
{
	if (ledger != NULL) {
		memfd_unmap(ledger->header, ledger->bytes);
		if (ledger->fd >= 0) {
			(void)close(ledger->fd); /* memory: nothing to write back */
		}
		free(ledger);
	}
	return NULL;
}

uint64_t ledger_life(const struct ledger *ledger)
{
	return ledger->header->life;
}

int ledger_fd(const struct ledger *ledger)
{
	return ledger->fd;
}

/* The record becomes good by its sum, which is written last. */
static void put(void *record, uint64_t *sum, const void *bytes, uint64_t new_sum)
{
	__atomic_store_n(sum, 0, __ATOMIC_RELEASE);
	memcpy(record, bytes, RECORD_BYTES - sizeof *sum);
	__atomic_store_n(sum, new_sum, __ATOMIC_RELEASE);
}

static uint64_t sum_of(const void *record)
{
	uint64_t sum = hash_bytes(record, RECORD_BYTES - sizeof(uint64_t));

	return sum == 0 ? 1 : sum;
}

void ledger_set_lease(struct ledger *ledger, uint32_t index, const struct ledger_lease *lease)
{
	struct ledger_lease *record = lease_at(ledger, index);

	if (index >= ledger->room.n_leases) {
		return;
	}
	if (lease == NULL) {
		if (index < ledger->header->leases_touched) {
			__atomic_store_n(&record->sum, 0, __ATOMIC_RELEASE);
		}
		return;
	}
	put(record, &record->sum, lease, sum_of(lease));
	if (ledger->header->leases_touched <= index) {
		ledger->header->leases_touched = index + 1;
	}
}

void ledger_set_wish(struct ledger *ledger, uint32_t index, const struct ledger_wish *wish)
{
	struct ledger_wish *record = wish_at(ledger, index);

	if (index >= ledger->room.n_wishes) {
		return;
	}
	if (wish == NULL) {
		if (index < ledger->header->wishes_touched) {
			__atomic_store_n(&record->sum, 0, __ATOMIC_RELEASE);
		}
		return;
	}
	put(record, &record->sum, wish, sum_of(wish));
	if (ledger->header->wishes_touched <= index) {
		ledger->header->wishes_touched = index + 1;
	}
}

bool ledger_next_lease(const struct ledger *ledger, uint32_t *cursor, struct ledger_lease *ret)
{
	while (*cursor < ledger->header->leases_touched && *cursor < ledger->room.n_leases) {
		*ret = *lease_at(ledger, (*cursor)++);
		if (ret->sum != 0 && ret->sum == sum_of(ret)) {
			return true;
		}
	}
	return false;
}

bool ledger_next_wish(const struct ledger *ledger, uint32_t *cursor, struct ledger_wish *ret)
{
	while (*cursor < ledger->header->wishes_touched && *cursor < ledger->room.n_wishes) {
		*ret = *wish_at(ledger, (*cursor)++);
		if (ret->sum != 0 && ret->sum == sum_of(ret)) {
			return true;
		}
	}
	return false;
}

/* ---- the text ---- */

#define SUMMED_BYTES (sizeof(struct ledger_text) - sizeof(uint64_t)) /* and its bytes */

static uint64_t text_sum(const struct ledger_text *text)
{
	uint64_t sum = hash_bytes(&text->number, SUMMED_BYTES + text->size);

	return sum == 0 ? 1 : sum;
}

/* A copy, so that what is judged does not change; NULL: it is not whole, or no memory. */
static struct ledger_text *copy_text(const struct ledger *ledger, uint32_t index)
{
	const struct ledger_text *text = text_at(ledger, index);
	uint64_t size = ledger->room.text_bytes < sizeof *text ? 0 : text->size;
	struct ledger_text *copy;

	if (size == 0 || size > ledger->room.text_bytes - sizeof *text) {
		return NULL;
	}
	copy = sys_malloc(sizeof *copy + size);
	if (copy != NULL) {
		memcpy(copy, text, sizeof *copy + size);
	}
	if (copy != NULL && (copy->size != size || copy->sum != text_sum(copy))) {
		free(copy);
		copy = NULL;
	}
	return copy;
}

bool ledger_set_text(struct ledger *ledger, const char *bytes, size_t size)
{
	struct ledger_text *texts[] = {text_at(ledger, 0), text_at(ledger, 1)};
	bool is_second = ledger->room.text_bytes != 0 && texts[0]->number > texts[1]->number;
	struct ledger_text *text = texts[is_second ? 1 : 0];

	if (size == 0 || ledger->room.text_bytes < sizeof *text ||
	    size > ledger->room.text_bytes - sizeof *text) {
		return false;
	}
	__atomic_store_n(&text->sum, 0, __ATOMIC_RELEASE);
	text->number = texts[is_second ? 0 : 1]->number + 1;
	text->size = size;
	memcpy(text->bytes, bytes, size);
	__atomic_store_n(&text->sum, text_sum(text), __ATOMIC_RELEASE);
	return true;
}

char *ledger_get_text(const struct ledger *ledger, size_t *ret_size)
{
	struct ledger_text *texts[] = {copy_text(ledger, 0), copy_text(ledger, 1)};
	bool is_second = texts[0] == NULL ||
			 (texts[1] != NULL && texts[1]->number > texts[0]->number);
	struct ledger_text *text = texts[is_second ? 1 : 0];
	char *bytes = text == NULL ? NULL : sys_malloc(text->size + 1);

	if (bytes != NULL) {
		memcpy(bytes, text->bytes, text->size);
		bytes[text->size] = '\0';
		*ret_size = text->size;
	}
	free(texts[0]);
	free(texts[1]);
	return bytes;
}

void ledger_complete(struct ledger *ledger)
{
	__atomic_store_n(&ledger->header->is_complete, 1, __ATOMIC_RELEASE);
}

uint32_t ledger_count_start(struct ledger *ledger)
{
	return ledger->header->n_failed_starts++;
}

void ledger_uncount_start(struct ledger *ledger)
{
	ledger->header->n_failed_starts--;
}

void ledger_suspect(struct ledger *ledger, const uint8_t uuid[16])
{
	memcpy(ledger->header->suspect, uuid, sizeof ledger->header->suspect);
}

void ledger_get_suspect(const struct ledger *ledger, uint8_t ret_uuid[16])
{
	memcpy(ret_uuid, ledger->header->suspect, sizeof ledger->header->suspect);
}
