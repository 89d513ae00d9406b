/* SPDX-License-Identifier: Apache-2.0 */
/* Shares of a model by device. See where.h. */
#include "daemon/where.h"

#include "base/units.h"

#include <string.h>

#include "daemon/daemon.h"
#include "daemon/describe.h"
#include "daemon/failure.h"

struct shares {
	uint64_t bytes[CORE_MAX_DEVICES];
	uint64_t total;
	bool is_cached; /* what is on the host is in the page cache of its file */
};

/* 'was': also what is being dropped was there. */
static void find_shares(const struct daemon *daemon, const struct core_model_view *view,
			uint64_t generation, bool was, struct shares *ret)
{
	struct core_segment_view segment;
	uint64_t most = 0;
	uint32_t cursor = 0;

	memset(ret, 0, sizeof *ret);
	while (core_segment_next(daemon->core, view->id, &cursor, &segment)) {
		bool is_there = segment.state == SEGMENT_READY ||
				(was && segment.state == SEGMENT_DROPPING);

		if (is_there && !segment.is_bare && core_segment_is_of(&segment, generation)) {
			ret->bytes[segment.device] += segment.size - segment.padding;
			ret->total += segment.size - segment.padding;
			ret->is_cached = segment.backing == CORE_BACKING_FILE;
			most = ret->bytes[segment.device] > most ? ret->bytes[segment.device]
								 : most;
		}
	}
	if (ret->total > view->key.size) {
		ret->total = most; /* blocks on cards are in RAM besides, where all of them are */
	}
}

static void add_share(struct sentence *sentence, const char *name, uint64_t part, uint64_t total)
{
	char share[8];

	sentence_add(sentence, "%s%s", sentence->size == 0 ? "" : " + ", name);
	if (part < total) {
		sentence_add(sentence, " %s", units_format_share(part, total, share, sizeof share));
	}
}

static const char *tell(const struct daemon *daemon, const struct shares *shares,
			char buffer[WHERE_SIZE])
{
	struct sentence sentence = {.text = buffer, .capacity = WHERE_SIZE};
	char name[16];

	buffer[0] = '\0';
	for (uint32_t i = 1; i <= CORE_MAX_DEVICES; i++) {
		uint32_t device = i % CORE_MAX_DEVICES; /* the host last */

		if (shares->bytes[device] > 0) {
			add_share(&sentence,
				  device > 0          ? describe_device_name(daemon, device, name)
				  : shares->is_cached ? "cache"
						      : "ram",
				  shares->bytes[device], shares->total);
		}
	}
	return buffer;
}

const char *where_now(const struct daemon *daemon, const struct core_model_view *view,
		      char buffer[WHERE_SIZE])
{
	struct shares shares;

	find_shares(daemon, view, view->generation, false, &shares);
	return tell(daemon, &shares, buffer);
}

const char *where_before(const struct daemon *daemon, const struct core_model_view *view,
			 char buffer[WHERE_SIZE])
{
	struct core_segment_view segment;
	struct shares shares;
	uint64_t before = 0;
	uint32_t cursor = 0;

	/* The newest that a copy was of: one that ended, or one that has stayed. */
	while (core_segment_next(daemon->core, view->id, &cursor, &segment)) {
		const uint64_t was = segment.last < view->generation ? segment.last
								     : segment.generation;

		if (was < view->generation && was > before) {
			before = was;
		}
	}
	find_shares(daemon, view, before, true, &shares);
	return tell(daemon, &shares, buffer);
}

uint32_t where_device(const struct daemon *daemon, const struct core_model_view *view)
{
	struct shares shares;
	uint32_t found = CORE_ALL_DEVICES;

	find_shares(daemon, view, view->generation, false, &shares);
	for (uint32_t device = 0; device < CORE_MAX_DEVICES; device++) {
		if (shares.bytes[device] > 0 && found != CORE_ALL_DEVICES) {
			return CORE_ALL_DEVICES;
		}
		found = shares.bytes[device] > 0 ? device : found;
	}
	return found;
}
