/* SPDX-License-Identifier: Apache-2.0 */
/*
 * state.json: what was said at run time and outlives the machine. Settings that were saved, the
 * list of what to load at start, pins and keeps. Reading takes any bytes for hostile: bounded
 * before it is read, strict, without recursion. Writing leaves the old file or the new one,
 * whatever happens. Blocks; any thread.
 */
#ifndef DAEMON_STATE_FILE_H
#define DAEMON_STATE_FILE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct err;

#define STATE_NAME         "state.json"
#define STATE_VERSION      1
#define STATE_MAX_BYTES    (8U << 20)
#define STATE_MAX_SETTINGS 64U
#define STATE_MAX_WARM     128U
#define STATE_MAX_WISHES   4096U
#define STATE_MAX_TEXT     4096U /* of a key, a value, a path */
#define STATE_FOREVER      UINT64_MAX

struct state_setting {
	char *key; /* section.key */
	char *value;
};

/* What a uid said of a file, and which content of it was meant. */
struct state_wish {
	char *path; /* where it lay, as the kernel has it */
	uint64_t dev, ino, size;
	int64_t mtime_ns, ctime_ns;
	uint64_t pin_left_s, keep_left_s; /* when it was saved; STATE_FOREVER: without an end */
	uint32_t uid;
	bool is_raw, pin, keep;
};

/* Zeroed: nothing was saved. */
struct state {
	uint64_t saved_s; /* since 1970 */
	struct state_setting *settings;
	char **warm; /* paths */
	struct state_wish *wishes;
	uint32_t n_settings, n_warm, n_wishes;
};

void state_fini(struct state *state);

/* All of it again in '*ret', which is zeroed. False: no memory, and nothing is there. */
bool state_copy(const struct state *from, struct state *ret);

/* Add a copy. False: no memory, or there are as many as there may be. */
bool state_add_setting(struct state *state, const char *key, const char *value);
bool state_add_warm(struct state *state, const char *path);
bool state_add_wish(struct state *state, const struct state_wish *wish);
/* False: there was none. */
bool state_remove_setting(struct state *state, const char *key);
bool state_remove_warm(struct state *state, const char *path);
void state_remove_wish(struct state *state, uint32_t index);

/*
 * The text of a file. Returns 0; -WIRE_BAD_FILE for what is none; -WIRE_UNSUPPORTED for one of a
 * later version; -WIRE_NO_MEMORY. '*ret' is zeroed before and stays so on failure.
 */
int state_parse(const char *text, size_t size, struct state *ret, struct err *err);
/* The caller frees. NULL: no memory. */
char *state_print(const struct state *state);

/* As state_parse; -WIRE_NOT_FOUND when there is no file, -WIRE_IO when it cannot be read. */
int state_read(const char *folder, struct state *ret, struct err *err);

/* What a writer left that was killed. */
void state_remove_stray(const char *folder);
/* Out of the way, as state.json.bad, which may be lost for it. */
int state_set_aside(const char *folder, struct err *err);

/* Temporary file, fsync, rename. On failure the old file is as it was. */
int state_write(const char *folder, const struct state *state, struct err *err);
/* Afterwards: before that the old file may come back with the next loss of power. */
int state_sync_folder(const char *folder, struct err *err);

#endif
