/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The text of state.json. Numbers that JSON's readers may round (inodes, nanoseconds) are strings;
 * bytes of a path that JSON cannot hold are written as %XX, and so is '%'. See state_file.h.
 */
#include "base/checked.h"
#include "base/cleanup.h"
#include "base/err.h"
#include "base/json_scan.h"
#include "base/os/sys.h"
#include "base/utf8.h"

#include <cjson/cJSON.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/state_file.h"
#include "proto/gen/wire_code.h"

#define MAX_MEMBERS 16

/* ---- paths ---- */

/* Takes three bytes a byte at most. */
static char *encode_path(const char *path)
{
	size_t size = strlen(path);
	char *text = sys_malloc(3 * size + 1);
	char *end = text;

	for (size_t at = 0; text != NULL && at < size;) {
		unsigned char c = (unsigned char)path[at];
		size_t n = c >= 0x80 ? utf8_size((const unsigned char *)&path[at], size - at) : 1;

		if (n == 0 || n > size - at || c < 0x20 || c == 0x7f || c == '%') {
			end += sprintf(end, "%%%02X", c);
			at++;
		} else {
			end = mempcpy(end, &path[at], n);
			at += n;
		}
	}
	if (text != NULL) {
		*end = '\0';
	}
	return text;
}

static int hex_value(char c)
{
	static const char digits[] = "0123456789ABCDEF";
	const char *found = c == '\0' ? NULL : strchr(digits, c);

	return found == NULL ? -1 : (int)(found - digits);
}

/* In place. False: not what encode_path writes. */
static bool decode_path(char *text)
{
	char *end = text;

	for (const char *at = text; *at != '\0'; at++) {
		int high;
		int low;

		if (*at != '%') {
			*end++ = *at;
			continue;
		}
		high = hex_value(at[1]);
		low = high < 0 ? -1 : hex_value(at[2]);
		if (low < 0 || high * 16 + low == 0) {
			return false;
		}
		*end++ = (char)(high * 16 + low);
		at += 2;
	}
	*end = '\0';
	return true;
}

/* ---- reading ---- */

/* One member of an object that is known. */
struct member {
	const char *key;
	bool is_required;
	int (*read)(struct json_cursor *cursor, void *target);
};

/* A string without NUL, which the caller frees. */
static int read_text(struct json_cursor *cursor, size_t max_size, char **ret)
{
	struct json_string string;
	char *text;
	int code = json_read_string(cursor, max_size, &string);

	if (code < 0) {
		return code;
	}
	if (string.has_nul) {
		return json_fail(cursor, string.at, "a string with NUL in it");
	}
	text = sys_malloc(string.size + 1);
	if (text == NULL) {
		return err_set(cursor->err, WIRE_NO_MEMORY, "no memory for its texts");
	}
	text[json_string_decode(&string, text, string.size)] = '\0';
	*ret = text;
	return 0;
}

static int read_bool(struct json_cursor *cursor, bool *ret)
{
	bool is_true = json_take(cursor, 't');

	*ret = is_true;
	return json_expect_word(cursor, is_true ? "rue" : "false");
}

/* "123" as a string; with a minus where it may be negative. */
static int read_decimal(struct json_cursor *cursor, bool may_be_negative, uint64_t *ret,
			bool *ret_is_negative)
{
	struct json_string string;
	char digits[24] = "";
	const char *at = digits;
	uint64_t value = 0;
	int code = json_read_string(cursor, sizeof digits - 1, &string);

	if (code < 0) {
		return code;
	}
	digits[json_string_decode(&string, digits, sizeof digits - 1)] = '\0';
	*ret_is_negative = may_be_negative && *at == '-';
	at += *ret_is_negative ? 1 : 0;
	if (*at == '\0' || strspn(at, "0123456789") != strlen(at) || string.has_nul) {
		return json_fail(cursor, string.at, "a string of digits was expected");
	}
	for (; *at != '\0'; at++) {
		if (!checked_mul(value, 10, &value) ||
		    !checked_add(value, (uint64_t)(*at - '0'), &value)) {
			return json_fail(cursor, string.at, "a number of more than 64 bits");
		}
	}
	*ret = value;
	return 0;
}

static int read_unsigned(struct json_cursor *cursor, uint64_t *ret)
{
	bool is_negative = false;

	return read_decimal(cursor, false, ret, &is_negative);
}

static int read_signed(struct json_cursor *cursor, int64_t *ret)
{
	bool is_negative = false;
	uint64_t value = 0;
	size_t at = cursor->at;
	int code = read_decimal(cursor, true, &value, &is_negative);

	if (code < 0) {
		return code;
	}
	if (value > INT64_MAX) {
		return json_fail(cursor, at, "a number of more than 63 bits");
	}
	*ret = is_negative ? -(int64_t)value : (int64_t)value;
	return 0;
}

static int read_member(struct json_cursor *cursor, const struct member *members, void *target,
		       unsigned *seen)
{
	struct json_string key;
	int code = json_read_string(cursor, STATE_MAX_TEXT, &key);

	for (unsigned i = 0; code == 0 && members[i].key != NULL; i++) {
		if (!json_string_is(&key, members[i].key)) {
			continue;
		}
		if ((*seen & 1U << i) != 0) {
			return json_fail(cursor, key.at, "a key that was given before");
		}
		*seen |= 1U << i;
		code = json_expect(cursor, ':');
		return code < 0 ? code : members[i].read(cursor, target);
	}
	return code < 0 ? code : json_fail(cursor, key.at, "a key that is not known");
}

/* 'members' ends with a row without a key, and has MAX_MEMBERS at most. */
static int read_object(struct json_cursor *cursor, const struct member *members, void *target)
{
	unsigned seen = 0;
	int code = json_expect(cursor, '{');

	if (code == 0 && !json_take(cursor, '}')) {
		do {
			code = read_member(cursor, members, target, &seen);
		} while (code == 0 && json_take(cursor, ','));
		code = code < 0 ? code : json_expect(cursor, '}');
	}
	for (unsigned i = 0; code == 0 && members[i].key != NULL; i++) {
		if (members[i].is_required && (seen & 1U << i) == 0) {
			code = json_fail(cursor, cursor->at, "a key is missing before this");
		}
	}
	return code;
}

/* [one, one, …] */
static int read_array(struct json_cursor *cursor, struct state *state,
		      int (*read_one)(struct json_cursor *cursor, struct state *state))
{
	int code = json_expect(cursor, '[');

	if (code < 0 || json_take(cursor, ']')) {
		return code;
	}
	do {
		code = read_one(cursor, state);
	} while (code == 0 && json_take(cursor, ','));
	return code < 0 ? code : json_expect(cursor, ']');
}

/* It was not added: too many, or no memory. */
static int fail_to_add(struct json_cursor *cursor, bool is_full)
{
	return is_full ? json_fail(cursor, cursor->at, "more of these than there may be")
		       : err_set(cursor->err, WIRE_NO_MEMORY, "no memory for what it says");
}

/* ---- a wish ---- */

static int read_uid(struct json_cursor *cursor, void *target)
{
	struct state_wish *wish = target;
	uint64_t uid = 0;
	size_t at = cursor->at;
	int code = json_read_integer(cursor, &uid);

	if (code == 0 && uid >= UINT32_MAX) {
		return json_fail(cursor, at, "a uid of more than 32 bits");
	}
	wish->uid = (uint32_t)uid;
	return code;
}

static int read_path(struct json_cursor *cursor, void *target)
{
	struct state_wish *wish = target;
	size_t at = cursor->at;
	int code = read_text(cursor, (size_t)3 * STATE_MAX_TEXT, &wish->path);

	if (code == 0 && (!decode_path(wish->path) || strlen(wish->path) > STATE_MAX_TEXT)) {
		return json_fail(cursor, at, "a path that cannot be one");
	}
	return code;
}

static int read_dev(struct json_cursor *cursor, void *target)
{
	return read_unsigned(cursor, &((struct state_wish *)target)->dev);
}

static int read_ino(struct json_cursor *cursor, void *target)
{
	return read_unsigned(cursor, &((struct state_wish *)target)->ino);
}

static int read_size(struct json_cursor *cursor, void *target)
{
	return read_unsigned(cursor, &((struct state_wish *)target)->size);
}

static int read_mtime(struct json_cursor *cursor, void *target)
{
	return read_signed(cursor, &((struct state_wish *)target)->mtime_ns);
}

static int read_ctime(struct json_cursor *cursor, void *target)
{
	return read_signed(cursor, &((struct state_wish *)target)->ctime_ns);
}

static int read_raw(struct json_cursor *cursor, void *target)
{
	return read_bool(cursor, &((struct state_wish *)target)->is_raw);
}

static int read_pin(struct json_cursor *cursor, void *target)
{
	return read_bool(cursor, &((struct state_wish *)target)->pin);
}

static int read_keep(struct json_cursor *cursor, void *target)
{
	return read_bool(cursor, &((struct state_wish *)target)->keep);
}

static int read_pin_left(struct json_cursor *cursor, void *target)
{
	return json_read_integer(cursor, &((struct state_wish *)target)->pin_left_s);
}

static int read_keep_left(struct json_cursor *cursor, void *target)
{
	return json_read_integer(cursor, &((struct state_wish *)target)->keep_left_s);
}

static const struct member wish_members[] = {
	{"uid", true, read_uid},
	{"path", true, read_path},
	{"dev", true, read_dev},
	{"ino", true, read_ino},
	{"size", true, read_size},
	{"mtime_ns", true, read_mtime},
	{"ctime_ns", true, read_ctime},
	{"raw", true, read_raw},
	{"pin", true, read_pin},
	{"keep", true, read_keep},
	{"pin_left_s", false, read_pin_left},
	{"keep_left_s", false, read_keep_left},
	{NULL, false, NULL},
};

_Static_assert(sizeof wish_members / sizeof wish_members[0] <= MAX_MEMBERS, "bits of 'seen'");

static int read_wish(struct json_cursor *cursor, struct state *state)
{
	struct state_wish wish = {.pin_left_s = STATE_FOREVER, .keep_left_s = STATE_FOREVER};
	int code = read_object(cursor, wish_members, &wish);

	if (code == 0 && !state_add_wish(state, &wish)) {
		code = fail_to_add(cursor, state->n_wishes == STATE_MAX_WISHES);
	}
	free(wish.path);
	return code;
}

/* ---- the whole ---- */

static int read_saved(struct json_cursor *cursor, void *target)
{
	return json_read_integer(cursor, &((struct state *)target)->saved_s);
}

static bool has_setting(const struct state *state, const char *key)
{
	for (uint32_t i = 0; i < state->n_settings; i++) {
		if (strcmp(state->settings[i].key, key) == 0) {
			return true;
		}
	}
	return false;
}

static int read_setting(struct json_cursor *cursor, struct state *state)
{
	AUTO_FREE char *key = NULL;
	AUTO_FREE char *value = NULL;
	size_t at = cursor->at;
	int code = read_text(cursor, STATE_MAX_TEXT, &key);

	if (code == 0) {
		code = json_expect(cursor, ':');
	}
	if (code == 0) {
		code = read_text(cursor, STATE_MAX_TEXT, &value);
	}
	if (code == 0 && has_setting(state, key)) {
		return json_fail(cursor, at, "a key that was given before");
	}
	if (code == 0 && !state_add_setting(state, key, value)) {
		return fail_to_add(cursor, state->n_settings == STATE_MAX_SETTINGS);
	}
	return code;
}

static int read_settings(struct json_cursor *cursor, void *target)
{
	int code = json_expect(cursor, '{');

	if (code < 0 || json_take(cursor, '}')) {
		return code;
	}
	do {
		code = read_setting(cursor, target);
	} while (code == 0 && json_take(cursor, ','));
	return code < 0 ? code : json_expect(cursor, '}');
}

static int read_warm_one(struct json_cursor *cursor, struct state *state)
{
	AUTO_FREE char *path = NULL;
	int code = read_text(cursor, STATE_MAX_TEXT, &path);

	if (code == 0 && !state_add_warm(state, path)) {
		return fail_to_add(cursor, state->n_warm == STATE_MAX_WARM);
	}
	return code;
}

static int read_warm(struct json_cursor *cursor, void *target)
{
	return read_array(cursor, target, read_warm_one);
}

static int read_wishes(struct json_cursor *cursor, void *target)
{
	return read_array(cursor, target, read_wish);
}

/* The version stands first, so that a later one is known before what it says. */
static int read_version(struct json_cursor *cursor)
{
	struct json_string key;
	uint64_t version = 0;
	int code = json_expect(cursor, '{');

	if (code == 0) {
		code = json_read_string(cursor, STATE_MAX_TEXT, &key);
	}
	if (code == 0 && !json_string_is(&key, "version")) {
		return json_fail(cursor, key.at, "it does not begin with its version");
	}
	if (code == 0) {
		code = json_expect(cursor, ':');
	}
	if (code == 0) {
		code = json_read_integer(cursor, &version);
	}
	if (code == 0 && version != STATE_VERSION) {
		return err_set(cursor->err, WIRE_UNSUPPORTED,
			       "it is of version %llu, this daemon reads version %d",
			       (unsigned long long)version, STATE_VERSION);
	}
	return code;
}

static const struct member state_members[] = {
	{"saved_s", true, read_saved}, {"settings", true, read_settings},
	{"warm", true, read_warm},     {"wishes", true, read_wishes},
	{NULL, false, NULL},
};

int state_parse(const char *text, size_t size, struct state *ret, struct err *err)
{
	struct err local = {0};
	struct json_cursor cursor = {.bytes = text,
				     .size = size,
				     .err = err == NULL ? &local : err};
	unsigned seen = 0;
	int code = read_version(&cursor);

	while (code == 0 && json_take(&cursor, ',')) {
		code = read_member(&cursor, state_members, ret, &seen);
	}
	if (code == 0) {
		code = json_expect(&cursor, '}');
	}
	if (code == 0) {
		code = json_expect_end(&cursor);
	}
	for (unsigned i = 0; code == 0 && state_members[i].key != NULL; i++) {
		if ((seen & 1U << i) == 0) {
			code = err_set(cursor.err, WIRE_BAD_FILE, "it has no \"%s\"",
				       state_members[i].key);
		}
	}
	if (code < 0) {
		state_fini(ret);
	}
	return code;
}

/* ---- writing ---- */

/* A number in plain digits; cJSON would write a large one with an exponent. */
static bool add_number(cJSON *object, const char *key, uint64_t value)
{
	char digits[24];

	(void)snprintf(digits, sizeof digits, "%llu", (unsigned long long)value);
	return cJSON_AddRawToObject(object, key, digits) != NULL;
}

/* And as a string. */
static bool add_unsigned(cJSON *object, const char *key, uint64_t value)
{
	char digits[24];

	(void)snprintf(digits, sizeof digits, "%llu", (unsigned long long)value);
	return cJSON_AddStringToObject(object, key, digits) != NULL;
}

static bool add_signed(cJSON *object, const char *key, int64_t value)
{
	char digits[24];

	(void)snprintf(digits, sizeof digits, "%lld", (long long)value);
	return cJSON_AddStringToObject(object, key, digits) != NULL;
}

static bool add_left(cJSON *object, const char *key, uint64_t left_s)
{
	return left_s == STATE_FOREVER ||
	       add_number(object, key, left_s < JSON_MAX_INTEGER ? left_s : JSON_MAX_INTEGER);
}

static bool print_wish(cJSON *array, const struct state_wish *wish)
{
	AUTO_FREE char *path = encode_path(wish->path);
	cJSON *object = cJSON_CreateObject();

	if (!cJSON_AddItemToArray(array, object)) {
		cJSON_Delete(object);
		return false;
	}
	return path != NULL && add_number(object, "uid", wish->uid) &&
	       cJSON_AddStringToObject(object, "path", path) != NULL &&
	       add_unsigned(object, "dev", wish->dev) && add_unsigned(object, "ino", wish->ino) &&
	       add_unsigned(object, "size", wish->size) &&
	       add_signed(object, "mtime_ns", wish->mtime_ns) &&
	       add_signed(object, "ctime_ns", wish->ctime_ns) &&
	       cJSON_AddBoolToObject(object, "raw", wish->is_raw) != NULL &&
	       cJSON_AddBoolToObject(object, "pin", wish->pin) != NULL &&
	       cJSON_AddBoolToObject(object, "keep", wish->keep) != NULL &&
	       add_left(object, "pin_left_s", wish->pin_left_s) &&
	       add_left(object, "keep_left_s", wish->keep_left_s);
}

static bool print_lists(cJSON *root, const struct state *state)
{
	cJSON *settings = cJSON_AddObjectToObject(root, "settings");
	cJSON *warm = cJSON_AddArrayToObject(root, "warm");
	cJSON *wishes = cJSON_AddArrayToObject(root, "wishes");
	bool is_good = settings != NULL && warm != NULL && wishes != NULL;

	for (uint32_t i = 0; is_good && i < state->n_settings; i++) {
		is_good = cJSON_AddStringToObject(settings, state->settings[i].key,
						  state->settings[i].value) != NULL;
	}
	for (uint32_t i = 0; is_good && i < state->n_warm; i++) {
		is_good = cJSON_AddItemToArray(warm, cJSON_CreateString(state->warm[i]));
	}
	for (uint32_t i = 0; is_good && i < state->n_wishes; i++) {
		is_good = print_wish(wishes, &state->wishes[i]);
	}
	return is_good;
}

char *state_print(const struct state *state)
{
	cJSON *root = cJSON_CreateObject();
	char *text = NULL;

	if (root != NULL && add_number(root, "version", STATE_VERSION) &&
	    add_number(root, "saved_s", state->saved_s) && print_lists(root, state)) {
		text = cJSON_Print(root);
	}
	cJSON_Delete(root);
	return text;
}
