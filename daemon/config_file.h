/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Configuration files as lines: sections, key = value, comments from '#' or ';' at the start
 * of a line or after a blank. Strict: a fault is reported with its file and line, nothing is
 * skipped. (libeconf 0.5 drops a second value of a key and a line with NUL in silence.)
 * Blocks; any thread.
 */
#ifndef DAEMON_CONFIG_FILE_H
#define DAEMON_CONFIG_FILE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct err;

#define CONFIG_FILE_MAX_BYTES (1U << 20)
#define CONFIG_LINE_MAX_BYTES 4096U

/* Plain text (config_text_is_plain); borrowed for the call. */
struct config_line {
	const char *path;
	uint32_t number;     /* from 1 */
	const char *section; /* without brackets */
	const char *key;     /* NULL: the line opens the section */
	const char *value;   /* may be empty */
};

/* Returns 0, or a negative code with 'err' filled, which ends the walk. */
typedef int (*config_line_fn)(void *context, const struct config_line *line, struct err *err);

/*
 * Give every line of a file that says something to 'take'. A file that is not there is 0
 * unless it is required. Returns 0, -WIRE_BAD_ARGUMENT for what is not a configuration file,
 * -WIRE_IO, -WIRE_NO_MEMORY, or what 'take' returned.
 */
int config_file_read(const char *path, bool is_required, config_line_fn take, void *context,
		     struct err *err);

/* Valid UTF-8 without control bytes but tabs, of at most CONFIG_LINE_MAX_BYTES. */
bool config_text_is_plain(const char *text, size_t size);

/*
 * The *.conf files of up to three folders, by name; of two with one name only the later
 * folder's. A folder that is not there has none. Gives a NULL-terminated list of paths:
 * config_file_free_paths.
 */
int config_file_list(const char *const folders[3], char ***ret_paths, struct err *err);
void config_file_free_paths(char **paths); /* NULL is fine */

#endif
