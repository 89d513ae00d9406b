/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A snapshot as text: for each value that somebody set a line "section.key=value" and a line with
 * where that was. Neither holds a newline. See config_saved.h.
 */
#include "base/cleanup.h"
#include "base/err.h"
#include "base/os/sys.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/config.h"
#include "daemon/config_saved.h"
#include "daemon/config_value.h"
#include "proto/gen/wire_code.h"

/* ---- writing ---- */

static bool is_set(const struct config_item *item)
{
	return strcmp(item->source, "default") != 0;
}

/* Without the words behind it. */
static size_t source_size(const char *source)
{
	static const char *const words[] = {CONFIG_NO_EFFECT, CONFIG_LAST_GOOD};
	size_t size = strlen(source);

	for (size_t i = 0; i < sizeof words / sizeof words[0]; i++) {
		size_t n = strlen(words[i]);

		if (size >= n && strncmp(&source[size - n], words[i], n) == 0) {
			size -= n;
		}
	}
	return size;
}

/* A path may hold anything. */
static char *put_source(char *end, const char *source)
{
	size_t size = source_size(source);

	for (size_t i = 0; i < size; i++) {
		*end++ = (unsigned char)source[i] < 0x20 ? '?' : source[i];
	}
	*end++ = '\n';
	return end;
}

char *config_to_text(const struct config *config, size_t *ret_size)
{
	struct config_item item;
	uint32_t cursor = 0;
	size_t size = 1;
	char *text;
	char *end;

	while (config_next(config, &cursor, &item)) {
		size += is_set(&item)
				? strlen(item.key) + strlen(item.value) + 3 + strlen(item.source)
				: 0;
	}
	text = end = sys_malloc(size);
	cursor = 0;
	while (text != NULL && config_next(config, &cursor, &item)) {
		if (is_set(&item)) {
			end = stpcpy(stpcpy(stpcpy(end, item.key), "="), item.value);
			*end++ = '\n';
			end = put_source(end, item.source);
		}
	}
	if (text != NULL) {
		*end = '\0';
		*ret_size = (size_t)(end - text);
	}
	return text;
}

/* ---- reading ---- */

/* All of it lies in 'memory'. */
struct pairs {
	char *memory;
	const char *texts[CONFIG_MAX_SETTINGS];
	const char *sources[CONFIG_MAX_SETTINGS];
	uint32_t n_pairs;
};

/* The line at '*at', terminated; '*at' moves behind it. NULL: there is none. */
static char *next_line(char **at)
{
	char *line = *at;
	char *end = strchr(line, '\n');

	if (end == NULL) {
		return NULL;
	}
	*end = '\0';
	*at = end + 1;
	return line;
}

/* Cuts 'memory', which ends with NUL and has room for the words behind each source. */
static int read_pairs(struct pairs *pairs, char *text, struct err *err)
{
	char *end = pairs->memory;

	while (*text != '\0') {
		char *line = next_line(&text);
		char *source = line == NULL || line[0] == '\0' ? line : next_line(&text);

		if (source == NULL || pairs->n_pairs == CONFIG_MAX_SETTINGS) {
			return err_set(err, WIRE_BAD_FILE, "it is no configuration");
		}
		if (line[0] == '\0') {
			continue; /* there is nothing else where all is default */
		}
		pairs->texts[pairs->n_pairs] = line;
		pairs->sources[pairs->n_pairs++] = end;
		end = stpcpy(stpcpy(end, source), CONFIG_LAST_GOOD) + 1;
	}
	return 0;
}

int config_from_text(const char *text, size_t size, struct config **ret, struct err *err)
{
	static const char *const nothing[] = {NULL};
	AUTO_FREE char *sources =
		sys_malloc(size + (size_t)CONFIG_MAX_SETTINGS * sizeof CONFIG_LAST_GOOD);
	AUTO_FREE char *copy = sys_malloc(size + 1);
	AUTO_FREE struct pairs *pairs = sys_calloc(1, sizeof *pairs);
	struct config_saved saved = {.source = "last good",
				     .is_of_any_version = true,
				     .is_kept = true};
	const struct config_request request = {.path = "/dev/null",
					       .environment = nothing,
					       .saved = &saved};
	int code;

	if (sources == NULL || copy == NULL || pairs == NULL) {
		return err_set(err, WIRE_NO_MEMORY, "no memory for the last good configuration");
	}
	memcpy(copy, text, size);
	copy[size] = '\0';
	if (strlen(copy) != size) {
		return err_set(err, WIRE_BAD_FILE, "it is no configuration");
	}
	pairs->memory = sources;
	code = read_pairs(pairs, copy, err);
	if (code < 0) {
		return code;
	}
	saved.texts = pairs->texts;
	saved.sources = pairs->sources;
	saved.n_texts = pairs->n_pairs;
	code = config_load(&request, ret, err);
	return code < 0 && code != -WIRE_NO_MEMORY
		       ? err_set(err, WIRE_BAD_FILE, "it is no configuration")
		       : code;
}
