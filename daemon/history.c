/* SPDX-License-Identifier: Apache-2.0 */
/* The ring of records, and the words for what they say. */
#include "daemon/history.h"

#include "base/os/sys.h"
#include "base/require.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "proto/wire.h"

int history_init(struct history *history)
{
	/* calloc: pages that no record has reached yet cost nothing. */
	history->records = sys_calloc(HISTORY_CAPACITY, sizeof *history->records);
	history->n_ever = 0;
	return history->records == NULL ? -WIRE_NO_MEMORY : 0;
}

void history_fini(struct history *history)
{
	free(history->records);
	history->records = NULL;
}

struct record *history_add(struct history *history)
{
	struct record *record = &history->records[history->n_ever % HISTORY_CAPACITY];

	memset(record, 0, sizeof *record);
	history->n_ever++;
	record->seq = history->n_ever;
	return record;
}

const struct record *history_next(const struct history *history, uint64_t *cursor)
{
	uint64_t oldest = history->n_ever > HISTORY_CAPACITY ? history->n_ever - HISTORY_CAPACITY
							     : 0;
	uint64_t index = *cursor < oldest ? oldest : *cursor;

	if (index >= history->n_ever) {
		return NULL;
	}
	*cursor = index + 1;
	return &history->records[index % HISTORY_CAPACITY];
}

const char *history_type_name(enum core_note_type type)
{
	static const char *const names[CORE_NOTE_N_VALUES] = {
		[CORE_NOTE_LOAD_BEGUN] = "load.begun",
		[CORE_NOTE_LOAD_DONE] = "load.done",
		[CORE_NOTE_LOAD_FAILED] = "load.failed",
		[CORE_NOTE_LOAD_CANCELLED] = "load.cancelled",
		[CORE_NOTE_EVICTED] = "evicted",
		[CORE_NOTE_UNLOADED] = "unloaded",
		[CORE_NOTE_REFUSED] = "refused",
		[CORE_NOTE_PINNED] = "pinned",
		[CORE_NOTE_UNPINNED] = "unpinned",
		[CORE_NOTE_KEPT] = "kept",
		[CORE_NOTE_UNKEPT] = "unkept",
		[CORE_NOTE_QUARANTINED] = "quarantined",
		[CORE_NOTE_STALE] = "stale",
		[CORE_NOTE_HELD] = "held",
		[CORE_NOTE_FREED] = "freed",
		[CORE_NOTE_PLACED] = "placed",
		[CORE_NOTE_PLACE_FAILED] = "place.failed",
		[CORE_NOTE_PLACE_CANCELLED] = "place.cancelled",
	};

	REQUIRE(type < CORE_NOTE_N_VALUES);
	return names[type];
}

bool history_is_wish(enum core_note_type type)
{
	return type == CORE_NOTE_PINNED || type == CORE_NOTE_UNPINNED || type == CORE_NOTE_KEPT ||
	       type == CORE_NOTE_UNKEPT;
}

bool history_is_type(enum core_note_type type, const char *text)
{
	const char *name = history_type_name(type);
	size_t size = strlen(text);

	return strncmp(name, text, size) == 0 && (name[size] == '\0' || name[size] == '.');
}

bool history_has_type(const char *text)
{
	for (int type = 0; type < CORE_NOTE_N_VALUES; type++) {
		if (history_is_type((enum core_note_type)type, text)) {
			return true;
		}
	}
	return false;
}

const char *history_type_names(char *buffer, uint32_t buffer_size)
{
	size_t size = 0;

	buffer[0] = '\0';
	for (int type = 0; type < CORE_NOTE_N_VALUES && size < buffer_size; type++) {
		size += (size_t)snprintf(buffer + size, buffer_size - size, "%s%s",
					 type == 0 ? "" : ", ",
					 history_type_name((enum core_note_type)type));
	}
	return buffer;
}

const char *history_why_words(enum core_why why)
{
	static const char *const words[CORE_WHY_N_VALUES] = {
		[CORE_WHY_NONE] = "",
		[CORE_WHY_ROOM] = "to make room",
		[CORE_WHY_IDLE] = "its time without use ran out",
		[CORE_WHY_LINGERED] = "unused on its devices for gpu.linger",
		[CORE_WHY_ASKED] = "as asked",
		[CORE_WHY_IN_USE] = "in use",
		[CORE_WHY_PINNED] = "pinned",
		[CORE_WHY_KEPT] = "kept",
		[CORE_WHY_WANTED] = "another user wants it",
		[CORE_WHY_MAPPED] = "a process still maps it",
		[CORE_WHY_LOADING] = "being loaded or moved",
		[CORE_WHY_CHANGED] = "the file has a newer content",
		[CORE_WHY_BAD_SUM] = "its bytes no longer match their checksum",
		[CORE_WHY_FAILED] = "failed",
		[CORE_WHY_CANCELLED] = "cancelled",
		[CORE_WHY_BUDGET] = "the budget was lowered",
		[CORE_WHY_PRESSURE] = "memory was short",
		[CORE_WHY_LOST] = "the device is gone",
		[CORE_WHY_MOVED] = "what was there before a move",
		[CORE_WHY_RESERVED] = "its room is reserved",
	};

	REQUIRE(why < CORE_WHY_N_VALUES);
	return words[why];
}

const char *history_why_text(const struct record *record, const char *for_whom, char *buffer,
			     uint32_t buffer_size)
{
	const char *words = history_why_words(record->why);

	if (record->text[0] != '\0') {
		(void)snprintf(buffer, buffer_size, "%s", record->text);
	} else if (history_is_wish(record->type)) {
		(void)snprintf(buffer, buffer_size, "for %s", for_whom);
	} else if (record->why == CORE_WHY_ROOM && for_whom[0] != '\0') {
		(void)snprintf(buffer, buffer_size, "to make room for %s", for_whom);
	} else if (record->why == CORE_WHY_RESERVED && record->type != CORE_NOTE_EVICTED) {
		(void)snprintf(buffer, buffer_size, "back after make-room");
	} else if (record->why == CORE_WHY_BAD_SUM &&
		   (record->type == CORE_NOTE_LOAD_BEGUN || record->type == CORE_NOTE_LOAD_DONE)) {
		(void)snprintf(buffer, buffer_size, "again, as a copy was bad");
	} else if (record->why == CORE_WHY_LOST && record->type != CORE_NOTE_EVICTED) {
		(void)snprintf(buffer, buffer_size, "back on its devices");
	} else if (record->why == CORE_WHY_RESERVED && for_whom[0] != '\0') {
		(void)snprintf(buffer, buffer_size, "%s for %s", words, for_whom);
	} else if (record->why == CORE_WHY_FAILED && record->code != 0) {
		(void)snprintf(buffer, buffer_size, "%s",
			       wire_code_info((enum wire_code)record->code)->text);
	} else {
		(void)snprintf(buffer, buffer_size, "%s", words);
	}
	return buffer;
}
