/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A state.json of any bytes. It is refused with nothing left behind, or what it says is within
 * its bounds, can be written, and is the same when it is read again.
 */
#include "base/err.h"
#include "base/require.h"
#include "tests/fuzz/fuzz.h"

#include <stdlib.h>
#include <string.h>

#include "daemon/state_file.h"
#include "proto/gen/wire_code.h"

static void check_same(const struct state *a, const struct state *b)
{
	REQUIRE(a->saved_s == b->saved_s && a->n_settings == b->n_settings &&
		a->n_warm == b->n_warm && a->n_wishes == b->n_wishes);
	for (uint32_t i = 0; i < a->n_settings; i++) {
		REQUIRE(strcmp(a->settings[i].key, b->settings[i].key) == 0);
		REQUIRE(strcmp(a->settings[i].value, b->settings[i].value) == 0);
	}
	for (uint32_t i = 0; i < a->n_warm; i++) {
		REQUIRE(strcmp(a->warm[i], b->warm[i]) == 0);
	}
	for (uint32_t i = 0; i < a->n_wishes; i++) {
		struct state_wish one = a->wishes[i];
		struct state_wish other = b->wishes[i];

		REQUIRE(strcmp(one.path, other.path) == 0);
		REQUIRE(one.dev == other.dev && one.ino == other.ino && one.size == other.size);
		REQUIRE(one.mtime_ns == other.mtime_ns && one.ctime_ns == other.ctime_ns);
		REQUIRE(one.pin_left_s == other.pin_left_s && one.keep_left_s == other.keep_left_s);
		REQUIRE(one.uid == other.uid && one.pin == other.pin && one.keep == other.keep &&
			one.is_raw == other.is_raw);
	}
}

static void check_state(const struct state *state)
{
	struct state again = {0};
	char *text = state_print(state);

	REQUIRE(state->n_settings <= STATE_MAX_SETTINGS && state->n_warm <= STATE_MAX_WARM &&
		state->n_wishes <= STATE_MAX_WISHES);
	for (uint32_t i = 0; i < state->n_wishes; i++) {
		REQUIRE(strlen(state->wishes[i].path) <= STATE_MAX_TEXT);
	}
	REQUIRE(text != NULL && state_parse(text, strlen(text), &again, NULL) == 0);
	check_same(state, &again);
	free(text);
	state_fini(&again);
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size)
{
	struct state state = {0};
	struct err err = {0};
	int code = size > STATE_MAX_BYTES ? 0
					  : state_parse((const char *)bytes, size, &state, &err);

	if (code < 0) {
		REQUIRE(code == -err.code && err.text[0] != '\0');
		REQUIRE(code == -WIRE_BAD_FILE || code == -WIRE_UNSUPPORTED);
		REQUIRE(state.n_settings + state.n_warm + state.n_wishes == 0);
	} else {
		check_state(&state);
	}
	state_fini(&state);
	return 0;
}
