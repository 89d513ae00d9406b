/* SPDX-License-Identifier: Apache-2.0 */
/* What state.json says, in memory: lists that grow. See state_file.h. */
#include "base/os/sys.h"

#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "daemon/state_file.h"

static void setting_fini(struct state_setting *setting)
{
	free(setting->key);
	free(setting->value);
}

void state_fini(struct state *state)
{
	for (uint32_t i = 0; i < state->n_settings; i++) {
		setting_fini(&state->settings[i]);
	}
	for (uint32_t i = 0; i < state->n_warm; i++) {
		free(state->warm[i]);
	}
	for (uint32_t i = 0; i < state->n_wishes; i++) {
		free(state->wishes[i].path);
	}
	free(state->settings);
	free(state->warm);
	free(state->wishes);
	*state = (struct state){0};
}

/* Room for one more of 'size' bytes in an array that doubles; NULL: no memory. */
static void *grow(void *items, uint32_t count, size_t size)
{
	bool is_full = count == 0 || (count >= 8 && (count & (count - 1)) == 0);

	return is_full ? sys_realloc(items, (count == 0 ? 8U : count * 2U) * size) : items;
}

bool state_add_setting(struct state *state, const char *key, const char *value)
{
	struct state_setting added = {0};
	struct state_setting *grown;

	if (state->n_settings == STATE_MAX_SETTINGS) {
		return false;
	}
	grown = grow(state->settings, state->n_settings, sizeof *grown);
	if (grown == NULL) {
		return false;
	}
	state->settings = grown;
	added = (struct state_setting){.key = sys_strdup(key), .value = sys_strdup(value)};
	if (added.key == NULL || added.value == NULL) {
		setting_fini(&added);
		return false;
	}
	grown[state->n_settings++] = added;
	return true;
}

bool state_add_warm(struct state *state, const char *path)
{
	char **grown = state->n_warm == STATE_MAX_WARM
			       ? NULL
			       : grow(state->warm, state->n_warm, sizeof *grown);

	if (grown == NULL) {
		return false;
	}
	state->warm = grown;
	grown[state->n_warm] = sys_strdup(path);
	if (grown[state->n_warm] == NULL) {
		return false;
	}
	state->n_warm++;
	return true;
}

bool state_add_wish(struct state *state, const struct state_wish *wish)
{
	struct state_wish *grown = state->n_wishes == STATE_MAX_WISHES
					   ? NULL
					   : grow(state->wishes, state->n_wishes, sizeof *grown);
	char *path;

	if (grown == NULL) {
		return false;
	}
	state->wishes = grown;
	path = sys_strdup(wish->path);
	if (path == NULL) {
		return false;
	}
	grown[state->n_wishes] = *wish;
	grown[state->n_wishes++].path = path;
	return true;
}

bool state_remove_setting(struct state *state, const char *key)
{
	for (uint32_t i = 0; i < state->n_settings; i++) {
		if (strcasecmp(state->settings[i].key, key) == 0) { /* devices: in any case */
			setting_fini(&state->settings[i]);
			state->n_settings--;
			memmove(&state->settings[i], &state->settings[i + 1],
				(state->n_settings - i) * sizeof *state->settings);
			return true;
		}
	}
	return false;
}

bool state_remove_warm(struct state *state, const char *path)
{
	for (uint32_t i = 0; i < state->n_warm; i++) {
		if (strcmp(state->warm[i], path) == 0) {
			free(state->warm[i]);
			state->n_warm--;
			memmove(&state->warm[i], &state->warm[i + 1],
				(state->n_warm - i) * sizeof *state->warm);
			return true;
		}
	}
	return false;
}

void state_remove_wish(struct state *state, uint32_t index)
{
	free(state->wishes[index].path);
	state->n_wishes--;
	memmove(&state->wishes[index], &state->wishes[index + 1],
		(state->n_wishes - index) * sizeof *state->wishes);
}

bool state_copy(const struct state *from, struct state *ret)
{
	bool is_good = true;

	ret->saved_s = from->saved_s;
	for (uint32_t i = 0; is_good && i < from->n_settings; i++) {
		is_good = state_add_setting(ret, from->settings[i].key, from->settings[i].value);
	}
	for (uint32_t i = 0; is_good && i < from->n_warm; i++) {
		is_good = state_add_warm(ret, from->warm[i]);
	}
	for (uint32_t i = 0; is_good && i < from->n_wishes; i++) {
		is_good = state_add_wish(ret, &from->wishes[i]);
	}
	if (!is_good) {
		state_fini(ret);
	}
	return is_good;
}
