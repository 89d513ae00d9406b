/* SPDX-License-Identifier: Apache-2.0 */
/* Before and after the loop: the folder, what was in its file, and that for the configuration. */
#include "base/cleanup.h"
#include "base/err.h"
#include "base/list.h"
#include "base/os/clock.h"
#include "base/os/sys.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "daemon/config.h"
#include "daemon/config_saved.h"
#include "daemon/daemon.h"
#include "daemon/saved_inside.h"

#define CLOCK_IS_SET_S 1577836800U /* 2020; machines without a battery begin in 1970 */

#define NO_FOLDER "there is no folder to save it in; name one: --state-dir DIR"

/* With the folders above it; each is this user's alone. */
static int make_folder(const char *path)
{
	AUTO_FREE char *copy = sys_strdup(path);

	if (copy == NULL) {
		errno = ENOMEM;
		return -1;
	}
	for (char *at = strchr(copy + 1, '/'); at != NULL; at = strchr(at + 1, '/')) {
		*at = '\0';
		if (mkdir(copy, 0700) < 0 && errno != EEXIST && errno != EROFS && errno != EACCES) {
			return -1;
		}
		*at = '/';
	}
	return mkdir(copy, 0700) < 0 && errno != EEXIST ? -1 : 0;
}

static void give_folder_up(struct saved *saved)
{
	free(saved->folder);
	free(saved->source);
	saved->folder = saved->source = NULL;
}

/* The lock ends with the process. Where there are none (some network shares) it goes without. */
static bool take_folder(struct saved *saved)
{
	const char *folder = saved->folder;

	if (make_folder(folder) < 0) {
		(void)snprintf(saved->fault, sizeof saved->fault,
			       "the folder %.256s cannot be made: %s", folder, strerror(errno));
		return false;
	}
	saved->lock_fd = sys_open(folder, O_RDONLY | O_DIRECTORY);
	if (saved->lock_fd < 0) {
		(void)snprintf(saved->fault, sizeof saved->fault,
			       "the folder %.256s cannot be opened: %s", folder, strerror(errno));
		return false;
	}
	if (flock(saved->lock_fd, LOCK_EX | LOCK_NB) < 0 && errno == EWOULDBLOCK) {
		(void)snprintf(saved->fault, sizeof saved->fault,
			       "another daemon uses the folder %.256s; name one of its own: "
			       "--state-dir DIR",
			       folder);
		return false;
	}
	return true;
}

static void remove_text(struct state *state, uint32_t index)
{
	if (index < state->n_settings) {
		(void)state_remove_setting(state, state->settings[index].key); /* is there */
	} else {
		(void)state_remove_warm(state, state->warm[index - state->n_settings]);
	}
}

/* Settings may be of another version, or of somebody's making: each is left out by itself. */
static int check_settings(struct saved *saved, struct err *err)
{
	struct config_saved *config = NULL;
	uint32_t n_left_out = 0;
	int code = 0;

	if (!saved_config(saved, &config)) {
		return err_set(err, WIRE_NO_MEMORY, "no memory for its settings");
	}
	/* From the last one, so that those before it keep their places. */
	for (uint32_t i = config == NULL ? 0 : config->n_texts; code == 0 && i > 0; i--) {
		struct err bad = {0};

		code = config_check_saved(saved->source, config->texts[i - 1], true, &bad);
		if (code == -WIRE_NO_MEMORY) {
			*err = bad;
		} else if (code < 0) {
			code = 0;
			remove_text(&saved->state, i - 1);
			(void)snprintf(saved->notice, sizeof saved->notice,
				       "%.400s; what cannot be set is left out: %u lines", bad.text,
				       ++n_left_out);
		}
	}
	saved_config_free(config);
	return code;
}

static uint64_t less(uint64_t left_s, uint64_t passed_s)
{
	return left_s == STATE_FOREVER ? left_s : left_s > passed_s ? left_s - passed_s : 0;
}

void saved_let_pass(struct state_wish *wish, uint64_t passed_s)
{
	wish->pin_left_s = less(wish->pin_left_s, passed_s);
	wish->keep_left_s = less(wish->keep_left_s, passed_s);
	wish->pin = wish->pin && wish->pin_left_s > 0;
	wish->keep = wish->keep && wish->keep_left_s > 0;
}

/* Since it was written. A clock that went back takes nothing and gives nothing, nor does one that had
 * not been set when it was written. */
static void let_all_pass(struct state *state, uint64_t now_s)
{
	const bool is_known = state->saved_s >= CLOCK_IS_SET_S && now_s > state->saved_s;
	const uint64_t passed_s = is_known ? now_s - state->saved_s : 0;

	for (uint32_t i = state->n_wishes; i > 0; i--) {
		saved_let_pass(&state->wishes[i - 1], passed_s);
		if (!state->wishes[i - 1].pin && !state->wishes[i - 1].keep) {
			state_remove_wish(state, i - 1);
		}
	}
}

static void read_file(struct saved *saved)
{
	struct err err = {0};
	int code;

	state_remove_stray(saved->folder);
	code = state_read(saved->folder, &saved->state, &err);
	if (code == 0) {
		code = check_settings(saved, &err);
	}
	if (code == 0 || code == -WIRE_NOT_FOUND) {
		let_all_pass(&saved->state, clock_real_ns() / SAVED_NS_PER_S);
		return;
	}
	state_fini(&saved->state);
	if (code == -WIRE_NO_MEMORY || code == -WIRE_IO) {
		/* It may be good: it must not be written over. */
		(void)snprintf(saved->fault, sizeof saved->fault,
			       "%.200s: %.200s; nothing is saved over it; mend that and start "
			       "again",
			       saved->source, err.text);
		give_folder_up(saved);
		return;
	}
	saved->is_bad = true;
	(void)snprintf(saved->notice, sizeof saved->notice, "%.160s is of no use: %.150s",
		       saved->source, err.text);
}

void saved_set_bad_aside(struct saved *saved)
{
	const size_t used = strlen(saved->notice);
	struct err err = {0};

	if (saved->is_bad) {
		(void)snprintf(&saved->notice[used], sizeof saved->notice - used,
			       "; %.120s; starting without",
			       state_set_aside(saved->folder, &err) < 0
				       ? err.text
				       : "it is kept as " STATE_NAME ".bad");
		saved->is_bad = false;
	}
}

struct saved *saved_open(const char *folder)
{
	struct saved *saved = sys_calloc(1, sizeof *saved);

	if (saved == NULL) {
		return NULL;
	}
	saved->lock_fd = -1;
	saved->opened_ns = clock_boot_ns();
	saved->is_wished = sys_calloc(DAEMON_MAX_WISHES, sizeof *saved->is_wished);
	if (saved->is_wished == NULL) {
		return saved_close(saved);
	}
	if (folder == NULL) {
		saved->has_no_name = true;
		(void)snprintf(saved->fault, sizeof saved->fault, "%s", NO_FOLDER);
		return saved;
	}
	saved->folder = sys_strdup(folder);
	saved->source = sys_malloc(strlen(folder) + sizeof STATE_NAME + 1);
	if (saved->folder == NULL || saved->source == NULL) {
		return saved_close(saved);
	}
	(void)stpcpy(stpcpy(stpcpy(saved->source, folder), "/"), STATE_NAME);
	if (take_folder(saved)) {
		read_file(saved);
	} else {
		give_folder_up(saved);
	}
	return saved;
}

struct saved *saved_close(struct saved *saved)
{
	if (saved != NULL) {
		if (saved->lock_fd >= 0) {
			(void)close(saved->lock_fd); /* the lock with it */
		}
		give_folder_up(saved);
		state_fini(&saved->state);
		free(saved->is_wished);
		free(saved);
	}
	return NULL;
}

/* ---- for the configuration ---- */

static char *join_setting(const char *key, const char *value)
{
	char *text = sys_malloc(strlen(key) + strlen(value) + 2);

	if (text != NULL) {
		(void)stpcpy(stpcpy(stpcpy(text, key), "="), value);
	}
	return text;
}

/* 'config' first, so that it can be found again. */
struct config_texts {
	struct config_saved config;
	char *source;
	char *texts[STATE_MAX_SETTINGS + STATE_MAX_WARM];
};

void saved_config_free(struct config_saved *config)
{
	struct config_texts *texts = container_of(config, struct config_texts, config);

	if (config != NULL) {
		for (uint32_t i = 0; i < config->n_texts; i++) {
			free(texts->texts[i]);
		}
		free(texts->source);
		free(texts);
	}
}

struct config_saved *saved_config_of(const struct state *state, const char *source)
{
	struct config_texts *made = sys_calloc(1, sizeof *made);
	bool is_good = made != NULL && (made->source = sys_strdup(source)) != NULL;

	for (uint32_t i = 0; is_good && i < state->n_settings + state->n_warm; i++) {
		bool is_setting = i < state->n_settings;

		made->texts[i] =
			is_setting ? join_setting(state->settings[i].key, state->settings[i].value)
				   : join_setting("warm.model", state->warm[i - state->n_settings]);
		is_good = made->texts[i] != NULL;
		made->config.n_texts += is_good ? 1 : 0;
	}
	if (!is_good) {
		saved_config_free(made == NULL ? NULL : &made->config);
		return NULL;
	}
	made->config.source = made->source;
	made->config.is_kept = true;
	made->config.texts = (const char *const *)made->texts;
	return &made->config;
}

bool saved_config(const struct saved *saved, struct config_saved **ret)
{
	*ret = saved->folder == NULL ? NULL : saved_config_of(&saved->state, saved->source);
	return saved->folder == NULL || *ret != NULL;
}
