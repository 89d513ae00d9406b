/* SPDX-License-Identifier: Apache-2.0 */
/* Which files an index names; what the walk makes of its entries is tested with the formats. */
#include "base/err.h"
#include "base/os/model_files.h"
#include "tests/support/heap_watch.h"
#include "tests/support/unit.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "proto/gen/wire_code.h"

#define INDEX(entries) "{\"metadata\":{\"total_size\":16},\"weight_map\":{" entries "}}"

static void expect_refusal(const char *text, int code, const char *words)
{
	struct model_files *files = NULL;
	struct err err = {0};
	int rc = model_files_read(text, strlen(text), &files, &err);

	assert_null(files);
	if (rc != -code || err.code != code || strstr(err.text, words) == NULL) {
		fail_msg("%.80s\n%d: %s", text, rc, err.text);
	}
}

static void files_are_sorted_and_named_once(void **state)
{
	static const char text[] =
		INDEX("\"a\":\"m-3\",\"b\":\"m-1\",\"c\":\"m-1\",\"d\":\"m-3\","
		      "\"e\":\"m-2\",\"f\":\"..m\",\"g\":\"m-\\u00fc\",\"h\":\"m-1\"");
	static const char *const names[] = {"..m", "m-1", "m-2", "m-3", "m-\xc3\xbc"};
	struct model_files *files = NULL;

	(void)state;
	assert_int_equal(model_files_read(text, strlen(text), &files, NULL), 0);
	assert_int_equal(files->n, 5);
	for (uint32_t i = 0; i < files->n; i++) {
		assert_string_equal(files->names[i], names[i]);
	}
	assert_null(model_files_free(files));
}

static void what_is_no_name_of_a_file_is_refused(void **state)
{
	(void)state;
	expect_refusal(INDEX("\"a\":\"../m\""), WIRE_BAD_FILE,
		       "byte 44: \"../m\" is no name of a file beside the index");
	expect_refusal(INDEX("\"a\":\"/etc/passwd\""), WIRE_BAD_FILE, "is no name of a file");
	expect_refusal(INDEX("\"a\":\"x/m\""), WIRE_BAD_FILE, "is no name of a file");
	expect_refusal(INDEX("\"a\":\"..\""), WIRE_BAD_FILE, "is no name of a file");
	expect_refusal(INDEX("\"a\":\".\""), WIRE_BAD_FILE, "is no name of a file");
	expect_refusal(INDEX("\"a\":\"\""), WIRE_BAD_FILE, "is no name of a file");
	expect_refusal(INDEX("\"a\":\"m\\u0000\""), WIRE_BAD_FILE, "holds NUL");
	expect_refusal(INDEX(""), WIRE_BAD_FILE, "its weight_map names no file");
	expect_refusal("{}", WIRE_BAD_FILE, "there is no weight_map");
	expect_refusal(INDEX("\"a\":{\"b\":\"m\"}"), WIRE_BAD_FILE, "'\"' is missing");
}

/* An index of 'n' files that come in an order that is not theirs. */
static char *index_of(uint32_t n)
{
	size_t room = 64 + (size_t)n * 32;
	char *text = malloc(room);
	size_t size;

	assert_non_null(text);
	size = (size_t)snprintf(text, room, "{\"weight_map\":{");
	for (uint32_t i = 0; i < n; i++) {
		size += (size_t)snprintf(text + size, room - size, "%s\"%u\":\"m-%05u\"",
					 i == 0 ? "" : ",", i, i * 7919 % n);
	}
	(void)snprintf(text + size, room - size, "}}");
	return text;
}

static void too_many_files_are_refused(void **state)
{
	char *most = index_of(MODEL_MAX_FILES);
	char *more = index_of(MODEL_MAX_FILES + 1);
	struct model_files *files = NULL;

	(void)state;
	assert_int_equal(model_files_read(most, strlen(most), &files, NULL), 0);
	assert_int_equal(files->n, MODEL_MAX_FILES);
	for (uint32_t i = 1; i < files->n; i++) {
		assert_true(strcmp(files->names[i - 1], files->names[i]) < 0);
	}
	(void)model_files_free(files);
	expect_refusal(more, WIRE_TOO_LARGE, "more than 256 files");
	free(most);
	free(more);
}

static void any_allocation_may_fail(void **state)
{
	static const char text[] = INDEX("\"a\":\"m-2\",\"b\":\"m-1\"");
	int code = -1;

	(void)state;
	for (size_t n = 1; code != 0; n++) {
		struct model_files *files = NULL;
		struct err err = {0};

		assert_true(n < 10);
		heap_watch_begin();
		heap.fail_at = n;
		code = model_files_read(text, strlen(text), &files, &err);
		heap.fail_at = 0;
		if (code != 0) {
			assert_int_equal(code, -WIRE_NO_MEMORY);
			assert_int_equal(err.code, WIRE_NO_MEMORY);
			assert_int_equal(heap.n_live, 0);
		}
		(void)model_files_free(files);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(files_are_sorted_and_named_once),
		cmocka_unit_test(what_is_no_name_of_a_file_is_refused),
		cmocka_unit_test(too_many_files_are_refused),
		cmocka_unit_test(any_allocation_may_fail),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
