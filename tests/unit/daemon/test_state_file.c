/* SPDX-License-Identifier: Apache-2.0 */
/* state.json: what is written is read again; anything else is refused; the old file stays. */
#include "base/err.h"
#include "tests/support/fault_loop.h"

#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "daemon/state_file.h"
#include "proto/gen/wire_code.h"

static char folder[64];

static int set_up(void **unused)
{
	(void)unused;
	strcpy(folder, "/tmp/test_state.XXXXXX");
	return mkdtemp(folder) == NULL ? -1 : 0;
}

static int remove_one(const char *path, const struct stat *status, int kind, struct FTW *ftw)
{
	(void)status;
	(void)kind;
	(void)ftw;
	return remove(path);
}

static int tear_down(void **unused)
{
	(void)unused;
	sys_fault_clear();
	return nftw(folder, remove_one, 8, FTW_DEPTH | FTW_PHYS);
}

static const char *in_folder(const char *name, char buffer[256])
{
	(void)snprintf(buffer, 256, "%s/%s", folder, name);
	return buffer;
}

static void given_text(const char *text)
{
	char path[256];
	FILE *file = fopen(in_folder(STATE_NAME, path), "we");

	assert_non_null(file);
	assert_true(fputs(text, file) >= 0);
	assert_int_equal(fclose(file), 0);
}

/* One of everything, with numbers that a double would round. */
static struct state given_state(void)
{
	struct state state = {.saved_s = 1700000000};
	char path[] = "/srv/a \"b\"\n\xff%41\xc3\xa9.safetensors";
	const struct state_wish pin = {.path = path,
				       .dev = UINT64_MAX,
				       .ino = (1ULL << 63) + 1,
				       .size = 9007199254740993,
				       .mtime_ns = 1700000000123456789,
				       .ctime_ns = -1,
				       .pin_left_s = 7200,
				       .keep_left_s = STATE_FOREVER,
				       .uid = 4294967294,
				       .is_raw = true,
				       .pin = true};
	struct state_wish keep = pin;

	keep.keep = true;
	keep.pin_left_s = STATE_FOREVER;
	keep.keep_left_s = 1;
	assert_true(state_add_setting(&state, "memory.ram", "48G"));
	assert_true(state_add_warm(&state, "/srv/models/one two.safetensors"));
	assert_true(state_add_warm(&state, "/srv/\xc3\xa9.gguf"));
	assert_true(state_add_wish(&state, &pin));
	assert_true(state_add_wish(&state, &keep));
	return state;
}

static void expect_same(const struct state *a, const struct state *b)
{
	assert_int_equal(a->saved_s, b->saved_s);
	assert_int_equal(a->n_settings, b->n_settings);
	assert_int_equal(a->n_warm, b->n_warm);
	assert_int_equal(a->n_wishes, b->n_wishes);
	for (uint32_t i = 0; i < a->n_settings; i++) {
		assert_string_equal(a->settings[i].key, b->settings[i].key);
		assert_string_equal(a->settings[i].value, b->settings[i].value);
	}
	for (uint32_t i = 0; i < a->n_warm; i++) {
		assert_string_equal(a->warm[i], b->warm[i]);
	}
	for (uint32_t i = 0; i < a->n_wishes; i++) {
		const struct state_wish *one = &a->wishes[i];
		const struct state_wish *other = &b->wishes[i];

		assert_string_equal(one->path, other->path);
		assert_true(one->dev == other->dev && one->ino == other->ino &&
			    one->size == other->size);
		assert_true(one->mtime_ns == other->mtime_ns && one->ctime_ns == other->ctime_ns);
		assert_true(one->pin_left_s == other->pin_left_s &&
			    one->keep_left_s == other->keep_left_s);
		assert_true(one->uid == other->uid && one->is_raw == other->is_raw &&
			    one->pin == other->pin && one->keep == other->keep);
	}
}

static void what_is_written_is_read_again(void **unused)
{
	struct state state = given_state();
	struct state again = {0};
	struct err err = {0};
	struct stat status;
	char path[256];

	(void)unused;
	(void)umask(0);
	assert_int_equal(state_write(folder, &state, &err), 0);
	assert_int_equal(state_read(folder, &again, &err), 0);
	expect_same(&state, &again);
	assert_int_equal(stat(in_folder(STATE_NAME, path), &status), 0);
	assert_int_equal(status.st_mode & 0777, 0600);
	assert_int_equal(access(in_folder(STATE_NAME ".new", path), F_OK), -1);
	state_fini(&again);
	assert_true(state_copy(&state, &again));
	expect_same(&state, &again);
	assert_true(state_remove_setting(&again, "memory.ram"));
	assert_false(state_remove_setting(&again, "memory.ram"));
	assert_true(state_remove_warm(&again, "/srv/\xc3\xa9.gguf"));
	assert_false(state_remove_warm(&again, "/srv/\xc3\xa9.gguf"));
	state_remove_wish(&again, 0);
	assert_int_equal(state_write(folder, &again, &err), 0);
	state_fini(&state);
	assert_int_equal(state_read(folder, &state, &err), 0);
	expect_same(&state, &again);
	assert_int_equal(state.n_wishes, 1);
	state_fini(&again);
	state_fini(&state);
	state_fini(&state);
}

static void without_a_file_there_is_none(void **unused)
{
	struct state state = {0};

	(void)unused;
	assert_int_equal(state_read(folder, &state, NULL), -WIRE_NOT_FOUND);
	assert_int_equal(state_read("/nonexistent/folder", &state, NULL), -WIRE_NOT_FOUND);
}

#define HEAD "{\"version\": 1, \"saved_s\": 1, "
#define REST "\"settings\": {}, \"warm\": [], \"wishes\": []}"
#define WISH                                                                     \
	"{\"uid\":0,\"path\":\"/a\",\"dev\":\"1\",\"ino\":\"2\",\"size\":\"3\"," \
	"\"mtime_ns\":\"4\",\"ctime_ns\":\"5\",\"raw\":false,\"pin\":true,\"keep\":false"
#define WISHES HEAD "\"settings\": {}, \"warm\": [], \"wishes\": ["

/* fault: X04 */
static void what_is_no_state_is_refused_in_words(void **unused)
{
	static const struct {
		const char *text;
		int code;
		const char *part;
	} rows[] = {
		{HEAD REST, 0, ""},
		{WISHES WISH "}]}", 0, ""},
		{"", WIRE_BAD_FILE, "it is empty"},
		{" ", WIRE_BAD_FILE, "byte 1"},
		{"{}", WIRE_BAD_FILE, "byte 1"},
		{"[]", WIRE_BAD_FILE, "byte 0"},
		{"not json", WIRE_BAD_FILE, "byte 0"},
		{"\xff\xfe", WIRE_BAD_FILE, "byte 0"},
		{HEAD REST "x", WIRE_BAD_FILE, "byte"},
		{"{\"saved_s\": 1, \"version\": 1}", WIRE_BAD_FILE, "begin with its version"},
		{"{\"version\": 2, \"what\": [", WIRE_UNSUPPORTED, "version 2"},
		{"{\"version\": 0}", WIRE_UNSUPPORTED, "version 0"},
		{"{\"version\": 1}", WIRE_BAD_FILE, "\"saved_s\""},
		{"{\"version\": 1, \"saved_s\": 1.5, " REST, WIRE_BAD_FILE, "byte 26"},
		{"{\"version\": 1, \"version\": 1, " REST, WIRE_BAD_FILE, "not known"},
		{HEAD "\"wishes\": [], " REST, WIRE_BAD_FILE, "given before"},
		{HEAD "\"more\": 1, " REST, WIRE_BAD_FILE, "not known"},
		{HEAD "\"settings\": {\"a.b\": \"1\", \"a.b\": \"2\"}, \"warm\": [], "
		      "\"wishes\": []}",
		 WIRE_BAD_FILE, "given before"},
		{HEAD "\"settings\": {\"a.b\": 1}, \"warm\": [], \"wishes\": []}", WIRE_BAD_FILE,
		 "'\"' is missing"},
		{HEAD "\"settings\": {}, \"warm\": [\"/a\\u0000b\"], \"wishes\": []}",
		 WIRE_BAD_FILE, "NUL"},
		{WISHES WISH "}", WIRE_BAD_FILE, "in the middle"},
		{WISHES "{\"uid\": 1}]}", WIRE_BAD_FILE, "missing"},
		{WISHES WISH ", \"pin\": true}]}", WIRE_BAD_FILE, "given before"},
		{WISHES WISH ", \"pin_left_s\": -1}]}", WIRE_BAD_FILE, "whole number"},
		{WISHES "{\"uid\": 4294967295}]}", WIRE_BAD_FILE, "uid"},
		{WISHES "{\"path\": \"%\"}]}", WIRE_BAD_FILE, "a path"},
		{WISHES "{\"path\": \"%4\"}]}", WIRE_BAD_FILE, "a path"},
		{WISHES "{\"path\": \"%zz\"}]}", WIRE_BAD_FILE, "a path"},
		{WISHES "{\"path\": \"%00\"}]}", WIRE_BAD_FILE, "a path"},
		{WISHES "{\"dev\": \"\"}]}", WIRE_BAD_FILE, "digits"},
		{WISHES "{\"dev\": \"-1\"}]}", WIRE_BAD_FILE, "digits"},
		{WISHES "{\"dev\": \"1x\"}]}", WIRE_BAD_FILE, "digits"},
		{WISHES "{\"dev\": \"18446744073709551616\"}]}", WIRE_BAD_FILE, "64 bits"},
		{WISHES "{\"dev\": 1}]}", WIRE_BAD_FILE, "'\"' is missing"},
		{WISHES "{\"mtime_ns\": \"9223372036854775808\"}]}", WIRE_BAD_FILE, "63 bits"},
		{WISHES "{\"mtime_ns\": \"--1\"}]}", WIRE_BAD_FILE, "digits"},
		{WISHES "{\"pin\": tru}]}", WIRE_BAD_FILE, "another kind"},
		{WISHES "{\"pin\": 1}]}", WIRE_BAD_FILE, "another kind"},
	};

	(void)unused;
	for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
		struct state state = {0};
		struct err err = {0};
		int code;

		given_text(rows[i].text);
		code = state_read(folder, &state, &err);
		if (code != -rows[i].code || strstr(err.text, rows[i].part) == NULL) {
			print_error("%s: %d %s\n", rows[i].text, code, err.text);
		}
		assert_int_equal(code, -rows[i].code);
		assert_non_null(strstr(err.text, rows[i].part));
		assert_true(code == 0 || state.n_wishes == 0);
		state_fini(&state);
	}
}

static void every_start_of_a_good_file_is_refused(void **unused)
{
	struct state state = given_state();
	char *text = state_print(&state);

	(void)unused;
	assert_non_null(text);
	for (size_t size = 0; size < strlen(text); size++) {
		struct state again = {0};
		char *exact = malloc(size + 1); /* so that a sanitizer sees any read past it */

		assert_non_null(exact);
		memcpy(exact, text, size);
		assert_int_equal(state_parse(exact, size, &again, NULL), -WIRE_BAD_FILE);
		assert_null(again.wishes);
		free(exact);
	}
	free(text);
	state_fini(&state);
}

static void there_may_be_so_many_and_no_more(void **unused)
{
	struct state state = {0};
	struct state again = {0};
	struct err err = {0};
	char name[32];
	char path[] = "/x";
	const struct state_wish wish = {.path = path, .pin = true};
	char *text;

	(void)unused;
	for (uint32_t i = 0; i < STATE_MAX_SETTINGS; i++) {
		(void)snprintf(name, sizeof name, "a.%u", i);
		assert_true(state_add_setting(&state, name, "v"));
	}
	for (uint32_t i = 0; i < STATE_MAX_WARM; i++) {
		assert_true(state_add_warm(&state, "/x"));
	}
	for (uint32_t i = 0; i < STATE_MAX_WISHES; i++) {
		assert_true(state_add_wish(&state, &wish));
	}
	assert_false(state_add_setting(&state, "b", "v"));
	assert_false(state_add_warm(&state, "/x"));
	assert_false(state_add_wish(&state, &wish));
	text = state_print(&state);
	assert_non_null(text);
	assert_true(strlen(text) < STATE_MAX_BYTES);
	assert_int_equal(state_parse(text, strlen(text), &again, &err), 0);
	expect_same(&state, &again);
	state_fini(&again);
	free(text);
	state_fini(&state);
}

/* fault: X04 */
static void a_file_that_is_none_or_too_large_is_not_read(void **unused)
{
	struct state state = {0};
	struct err err = {0};
	char path[256];

	(void)unused;
	assert_int_equal(mkfifo(in_folder(STATE_NAME, path), 0600), 0);
	assert_int_equal(state_read(folder, &state, &err), -WIRE_BAD_FILE);
	assert_int_equal(state_set_aside(folder, &err), 0);
	assert_int_equal(mkdir(path, 0700), 0);
	assert_int_equal(state_read(folder, &state, &err), -WIRE_BAD_FILE);
	assert_int_equal(rmdir(path), 0);
	given_text(HEAD REST);
	assert_int_equal(truncate(path, 1 << 30), 0); /* a gigabyte, sparse */
	assert_int_equal(state_read(folder, &state, &err), -WIRE_BAD_FILE);
	assert_non_null(strstr(err.text, "1073741824 bytes"));
	assert_int_equal(state_set_aside(folder, &err), 0);
	assert_int_equal(state_read(folder, &state, &err), -WIRE_NOT_FOUND);
	assert_int_equal(access(in_folder(STATE_NAME ".bad", path), F_OK), 0);
}

static void expect_old_file(const struct state *old)
{
	struct state there = {0};
	struct err err = {0};
	char path[256];

	sys_fault_clear();
	if (state_read(folder, &there, &err) < 0) {
		print_error("%s\n", err.text);
		fail();
	}
	expect_same(old, &there);
	state_fini(&there);
	assert_int_equal(access(in_folder(STATE_NAME ".new", path), F_OK), -1);
}

/* fault: X02 */
static void whatever_fails_the_old_file_is_whole(void **unused)
{
	static const struct {
		const char *call;
		int error;
	} rows[] = {{"open", ENOSPC},  {"open", EROFS}, {"fchmod", EPERM},  {"write", ENOSPC},
		    {"write", EDQUOT}, {"fsync", EIO},  {"rename", ENOSPC}, {"malloc", ENOMEM}};
	struct state old = given_state();
	struct state new = {.saved_s = 2};

	(void)unused;
	assert_int_equal(state_write(folder, &old, NULL), 0);
	for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
		struct err err = {0};

		assert_true(sys_fault_set(rows[i].call,
					  (struct sys_fault){.nth = 1, .error = rows[i].error}));
		assert_true(state_write(folder, &new, &err) < 0);
		assert_true(err.text[0] != '\0');
		expect_old_file(&old);
	}
	assert_true(sys_fault_set("fsync", (struct sys_fault){.nth = 2, .error = EIO}));
	assert_int_equal(state_write(folder, &old, NULL), 0);
	assert_int_equal(state_sync_folder(folder, NULL), -WIRE_IO); /* that is another matter */
	/* One byte at a time is only slow. */
	assert_true(
		sys_fault_set("write",
			      (struct sys_fault){.nth = 1, .short_size = 1, .is_forever = true}));
	assert_int_equal(state_write(folder, &new, NULL), 0);
	sys_fault_clear();
	expect_old_file(&new);
	state_fini(&old);
}

static void write_and_read(void *unused)
{
	struct state state = {.saved_s = 3};
	struct state again = {0};
	struct err err = {0};
	char path[] = "/x";
	const struct state_wish wish = {.path = path, .keep = true};
	bool is_good = state_add_wish(&state, &wish) && state_add_setting(&state, "a.b", "1") &&
		       state_add_warm(&state, "/x");

	(void)unused;
	if (is_good && state_write(folder, &state, &err) == 0 &&
	    state_sync_folder(folder, &err) == 0 && state_read(folder, &again, &err) == 0) {
		expect_same(&state, &again);
	}
	state_fini(&again);
	state_fini(&state);
}

static void no_failure_leaves_anything(void **unused)
{
	static const char *const calls[] = {"malloc", "open",  "pread",  "write",
					    "fstat",  "fsync", "rename", "fchmod"};

	(void)unused;
	for (size_t i = 0; i < sizeof calls / sizeof calls[0]; i++) {
		assert_true(fault_loop(calls[i], EIO, false, write_and_read, NULL) > 0);
		assert_true(fault_loop(calls[i], EIO, true, write_and_read, NULL) > 0);
	}
}

/* fault: X03 */
static void what_a_killed_writer_left_is_removed(void **unused)
{
	struct state old = given_state();
	char path[256];
	FILE *file;

	(void)unused;
	assert_int_equal(state_write(folder, &old, NULL), 0);
	file = fopen(in_folder(STATE_NAME ".new", path), "we");
	assert_non_null(file);
	assert_int_equal(fclose(file), 0);
	state_remove_stray(folder);
	expect_old_file(&old);
	state_remove_stray(folder); /* there is none */
	file = fopen(path, "we");
	assert_non_null(file);
	assert_int_equal(fclose(file), 0);
	assert_int_equal(state_write(folder, &old, NULL), 0); /* nor is it in the way */
	expect_old_file(&old);
	state_fini(&old);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(what_is_written_is_read_again),
		TEST(without_a_file_there_is_none),
		TEST(what_is_no_state_is_refused_in_words),
		TEST(every_start_of_a_good_file_is_refused),
		TEST(there_may_be_so_many_and_no_more),
		TEST(a_file_that_is_none_or_too_large_is_not_read),
		TEST(whatever_fails_the_old_file_is_whole),
		TEST(no_failure_leaves_anything),
		TEST(what_a_killed_writer_left_is_removed),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
