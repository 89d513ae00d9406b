/* SPDX-License-Identifier: Apache-2.0 */
/* Which files a path names, and what is said when they cannot be found out. */
#include "base/err.h"
#include "base/os/model_path.h"
#include "base/os/sys.h"
#include "tests/support/baseline.h"
#include "tests/support/unit.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "proto/gen/wire_code.h"

#define INDEX "{\"weight_map\":{\"a\":\"m-1-of-2.s\",\"b\":\"m-2-of-2.s\"}}"

static struct {
	char folder[64];
	struct baseline before;
} fixture;

static const char *path_of(const char *name)
{
	static char path[PATH_MAX];

	(void)snprintf(path, sizeof path, "%s/%s", fixture.folder, name);
	return path;
}

static void put(const char *name, const char *text)
{
	FILE *file = fopen(path_of(name), "w");

	assert_non_null(file);
	(void)fputs(text, file);
	assert_int_equal(fclose(file), 0);
}

static int setup(void **state)
{
	(void)state;
	(void)snprintf(fixture.folder, sizeof fixture.folder, "/tmp/model-path-XXXXXX");
	fixture.before = baseline_take();
	return mkdtemp(fixture.folder) == NULL ? -1 : 0;
}

static int teardown(void **state)
{
	char command[128];

	(void)state;
	sys_fault_clear();
	baseline_check(&fixture.before);
	(void)snprintf(command, sizeof command, "rm -rf %s", fixture.folder);
	return system(command);
}

static void expect_single(const char *name)
{
	struct model_path found;
	struct err err = {0};

	if (model_path_find(path_of(name), &found, &err) != 0 || found.files != NULL) {
		fail_msg("%s: %s", name, err.text);
	}
	assert_int_equal(found.whole[0], '\0');
	model_path_fini(&found);
}

/* 'whole': the name of what stands for all of them. */
static void expect_several(const char *name, const char *whole, bool has_index, uint32_t n_files)
{
	struct model_path found;
	struct err err = {0};
	char *path;

	if (model_path_find(path_of(name), &found, &err) != 0 || found.files == NULL) {
		fail_msg("%s: %s", name, err.text);
	}
	assert_string_equal(found.whole, path_of(whole));
	assert_int_equal(found.has_index, has_index);
	assert_int_equal(found.files->n, n_files);
	path = model_path_of_file(&found, found.files->names[1]);
	assert_non_null(path);
	assert_string_equal(path, path_of(found.files->names[1]));
	free(path);
	model_path_fini(&found);
}

static void expect_refusal(const char *name, int code, const char *words)
{
	struct model_path found;
	struct err err = {0};

	if (model_path_find(path_of(name), &found, &err) != -code ||
	    strstr(err.text, words) == NULL) {
		fail_msg("%s: %d %s", name, err.code, err.text);
	}
	assert_null(found.files);
	model_path_fini(&found);
}

static void several_are_named_by_their_index_one_of_them_or_the_whole(void **state)
{
	(void)state;
	put("m.s.index.json", INDEX);
	expect_several("m.s.index.json", "m.s.index.json", true, 2);
	expect_several("m.s", "m.s.index.json", true, 2);
	put("m-1-of-2.s", "");
	expect_several("m-1-of-2.s", "m.s.index.json", true, 2);
	expect_single("m-2-of-2.s"); /* there is none */
	put("m-1-of-3.s", "");
	expect_single("m-1-of-3.s"); /* it is not named */
	put("m.s", "");
	expect_single("m.s");
	put("x.s.index.fp16.json", INDEX);
	expect_several("x.fp16.s", "x.s.index.fp16.json", true, 2);
	put("x-1-of-2.fp16.s", "");
	expect_single("x-1-of-2.fp16.s");
}

static void other_names_are_single_files(void **state)
{
	char longest[NAME_MAX + 2];

	(void)state;
	put("m.index.json.d", "");
	assert_int_equal(mkdir(path_of("d.index.json"), 0700), 0);
	assert_int_equal(mkfifo(path_of("p.index.json"), 0600), 0);
	expect_single("m");
	expect_single("d");
	expect_single("d.index.json");
	expect_single("p.index.json");
	expect_single("p");
	expect_single("none/m.s");
	expect_single("");
	memset(longest, 'm', sizeof longest - 1);
	longest[sizeof longest - 1] = '\0';
	expect_single(longest);
}

static void parts_of_a_gguf_file_need_no_index(void **state)
{
	(void)state;
	put("m-00002-of-00012.gguf", "");
	expect_several("m-00002-of-00012.gguf", "m-00001-of-00012.gguf", false, 12);
	put("m-00001-of-00001.gguf", "");
	expect_single("m-00001-of-00001.gguf");
	put("m-2-of-10.gguf", "");
	expect_single("m-2-of-10.gguf"); /* nobody writes them so */
	put("m-3-of-2.gguf", "");
	expect_single("m-3-of-2.gguf");
	put("m-0-of-2.gguf", "");
	expect_single("m-0-of-2.gguf");
	put("m-001-of-257.gguf", "");
	expect_refusal("m-001-of-257.gguf", WIRE_TOO_LARGE, "is one of 257 files");
	put("m.gguf.index.json", "{\"weight_map\":{\"a\":\"m-00002-of-00012.gguf\",\"b\":\"x\"}}");
	expect_several("m-00002-of-00012.gguf", "m.gguf.index.json", true, 2);
}

static void an_index_that_is_none_is_named(void **state)
{
	(void)state;
	put("m.s.index.json", "{\"weight_map\":{\"a\":\"../m\"}}");
	put("m-1-of-2.s", "");
	expect_refusal("m.s.index.json", WIRE_BAD_FILE, "m.s.index.json: byte 15: \"../m\" is no");
	expect_refusal("m.s", WIRE_BAD_FILE, "m.s.index.json: ");
	expect_refusal("m-1-of-2.s", WIRE_BAD_FILE, "m.s.index.json: ");
	assert_int_equal(truncate(path_of("m.s.index.json"), (64 << 20) + 1), 0);
	expect_refusal("m.s", WIRE_TOO_LARGE, "m.s.index.json: it has 67108865 bytes");
}

static void failing_calls_are_told(void **state)
{
	static const struct {
		const char *call;
		struct sys_fault fault;
		int code;
		const char *words;
	} cases[] = {
		{"open",
		 {.nth = 2, .error = EACCES},
		 WIRE_NOT_ALLOWED,
		 "cannot be read: Permission"},
		{"open", {.nth = 2, .error = EMFILE}, WIRE_IO, "cannot be read: Too many"},
		{"fstat", {.nth = 2, .error = EIO}, WIRE_IO, "cannot be read: Input/output"},
		{"pread", {.nth = 1, .error = EIO}, WIRE_IO, "cannot be read: Input/output"},
		{"malloc", {.nth = 1, .error = ENOMEM}, WIRE_NO_MEMORY, "no memory"},
		{"malloc", {.nth = 2, .error = ENOMEM}, WIRE_NO_MEMORY, "no memory"},
		{"malloc", {.nth = 3, .error = ENOMEM}, WIRE_NO_MEMORY, "no memory"},
	};

	(void)state;
	put("m.s.index.json", INDEX);
	for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
		assert_true(sys_fault_set(cases[i].call, cases[i].fault));
		expect_refusal("m.s.index.json", cases[i].code, cases[i].words);
		sys_fault_clear();
	}
	assert_true(sys_fault_set("pread", (struct sys_fault){.nth = 1, .error = EINTR}));
	expect_several("m.s.index.json", "m.s.index.json", true, 2);
	assert_true(
		sys_fault_set("pread",
			      (struct sys_fault){.nth = 1, .short_size = 3, .is_forever = true}));
	expect_several("m.s.index.json", "m.s.index.json", true, 2);
}

#define PATH_TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		PATH_TEST(several_are_named_by_their_index_one_of_them_or_the_whole),
		PATH_TEST(other_names_are_single_files),
		PATH_TEST(parts_of_a_gguf_file_need_no_index),
		PATH_TEST(an_index_that_is_none_is_named),
		PATH_TEST(failing_calls_are_told),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
