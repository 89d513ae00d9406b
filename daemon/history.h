/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What happened lately, for `why`, `events` and the status page: a ring of bounded records.
 * The oldest are overwritten; nothing is written to disk. Loop only.
 */
#ifndef DAEMON_HISTORY_H
#define DAEMON_HISTORY_H

#include <stdbool.h>
#include <stdint.h>

#include "daemon/core/action.h"

#define HISTORY_CAPACITY 2048 /* records */

struct record {
	uint64_t seq;     /* 1 for the first ever */
	uint64_t at_ns;   /* when, on clock_boot_ns */
	uint64_t real_ms; /* when, for people: since 1970 */
	enum core_note_type type;
	enum core_why why;
	int code;           /* enum wire_code of a failure, else 0 */
	uint32_t device;    /* CORE_ALL_DEVICES: several, or it is not known */
	uint32_t owner_uid; /* of the model, for the right to see it */
	uint64_t model;     /* core id; may be forgotten by now */
	uint64_t for_model; /* likewise, of the one that needed the room; 0: no model did, */
	uint32_t for_uid;   /* and who owns that */
	uint8_t uuid[16];
	uint64_t bytes;
	uint64_t duration_ns;
	char name[128]; /* as listings showed it; cut where longer */
	char for_whom
		[128];  /* model or process that needed the room, or whose wish; empty: nobody */
	char text[240]; /* the failure in words; empty: none */
};

struct history {
	struct record *records; /* owner: history; HISTORY_CAPACITY of them */
	uint64_t n_ever;
};

/* Returns 0, or -WIRE_NO_MEMORY. */
int history_init(struct history *history);
void history_fini(struct history *history);

/* A zeroed record with its seq set, to be filled by the caller at once. */
struct record *history_add(struct history *history);

/* Walk from the oldest: *cursor = 0 first; NULL at the end. */
const struct record *history_next(const struct history *history, uint64_t *cursor);

const char *history_type_name(enum core_note_type type); /* "load.done", "evicted" */
/* Did somebody say it of a model, or did what was said lapse? */
bool history_is_wish(enum core_note_type type);
/* Is it called so, or of that family ("load" means all of load.*)? */
bool history_is_type(enum core_note_type type, const char *text);
bool history_has_type(const char *text);                            /* any of them */
const char *history_type_names(char *buffer, uint32_t buffer_size); /* all; returns 'buffer' */
const char *history_why_words(enum core_why why);                   /* "to make room" */
/* "to make room for X", a failure's text: why in words, with what is to be said of 'for_whom'.
 * Returns 'buffer'. */
const char *history_why_text(const struct record *record, const char *for_whom, char *buffer,
			     uint32_t buffer_size);

#endif
