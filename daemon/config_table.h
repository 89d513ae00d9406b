/* SPDX-License-Identifier: Apache-2.0 */
/* The table of all keys: one row a key. Only config.c and its reference use it. */
#ifndef DAEMON_CONFIG_TABLE_H
#define DAEMON_CONFIG_TABLE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define CONFIG_MAX_ROWS     48
#define CONFIG_CHOICE_LATER (-1) /* a word that a later version understands */

enum config_kind {
	CONFIG_KIND_SIZE,     /* struct config_size */
	CONFIG_KIND_BYTES,    /* uint64_t */
	CONFIG_KIND_DURATION, /* uint64_t, nanoseconds */
	CONFIG_KIND_COUNT,    /* uint32_t; "auto" is 0 */
	CONFIG_KIND_FLAG,     /* bool, by a word */
	CONFIG_KIND_CHOICE,   /* an enum, by a word */
	CONFIG_KIND_TEXT,     /* const char * */
	CONFIG_KIND_LISTEN,   /* likewise, that config_parse_listen reads */
	CONFIG_KIND_LIST,     /* one value a line; an empty one clears what was there */
};

struct config_choice {
	const char *word; /* NULL ends the list */
	int value;
};

struct config_row {
	const char *section;
	const char *key;
	enum config_kind kind;
	bool has_auto;
	bool has_overrides; /* key.DEVICE may be set too */
	bool is_later;      /* read and checked, but a later version gives it its effect */
	size_t offset;      /* of the field in struct config */
	uint64_t min, max;  /* of bytes and counts */
	const char *range;  /* in words, for errors */
	const struct config_choice *choices;
	const char *default_value;
	const char *doc;
};

extern const struct config_row config_rows[];
extern const uint32_t config_n_rows;

#endif
