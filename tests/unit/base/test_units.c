/* SPDX-License-Identifier: Apache-2.0 */
/* Sizes, durations and percentages: exact, and every odd text refused by name. */
#include "base/err.h"
#include "base/units.h"
#include "tests/support/unit.h"

#include <string.h>

#include "proto/gen/wire_code.h"

#define UNTOUCHED 0x5eedULL
#define K         (1ULL << 10)
#define M         (1ULL << 20)
#define G         (1ULL << 30)
#define T         (1ULL << 40)
#define MS        1000000ULL
#define S         (1000 * MS)

struct good_case {
	const char *text;
	uint64_t value;
};

static void sizes_are_powers_of_1024(void **state)
{
	static const struct good_case cases[] = {
		{"0", 0},
		{"512", 512},
		{"1048576", M},
		{"7b", 7},
		{"1k", K},
		{"1KB", K},
		{"1KiB", K},
		{"48G", 48 * G},
		{"48gb", 48 * G},
		{"512 MiB", 512 * M},
		{"\t 3 mb ", 3 * M},
		{"2T", 2 * T},
		{"2tib", 2 * T},
		{"2.5gb", 2 * G + 512 * M},
		{"0.5K", 512},
		{"0.001K", 1},
		{"1.999999999K", 2047},
		{"18446744073709551615", UINT64_MAX},
		{"16777215.999999T", 16777215 * T + 1099510528264ULL},
	};
	uint64_t bytes;

	(void)state;
	for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
		bytes = UNTOUCHED;
		assert_int_equal(units_parse_size(cases[i].text, &bytes, NULL), 0);
		if (bytes != cases[i].value) {
			fail_msg("%s is %llu", cases[i].text, (unsigned long long)bytes);
		}
	}
}

static void odd_sizes_are_refused_by_name(void **state)
{
	static const char *const texts[] = {
		"",
		" ",
		"G",
		"-1",
		"+1",
		"1x",
		"1 G G",
		"1Gx",
		"1.G",
		".5G",
		"1..5G",
		"1.5",
		"1.5b",
		"0.0001K",
		"1,5G",
		"0x10",
		"1e3",
		"infinity",
		"nan",
		"1 2",
		"1GiBi",
		"1.0009765625K",
		"18446744073709551616",
		"16777216T",
		"17179869184G",
		"99999999999999999999999",
		"16777215.9999999999T",
		"1\n",
		"1\xc2\xa0G",
	};
	struct err err;
	uint64_t bytes = UNTOUCHED;

	(void)state;
	for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++) {
		err = (struct err){0};
		if (units_parse_size(texts[i], &bytes, &err) != -WIRE_BAD_ARGUMENT) {
			fail_msg("\"%s\" was taken", texts[i]);
		}
		assert_int_equal(err.code, WIRE_BAD_ARGUMENT);
		assert_non_null(strstr(err.text, texts[i]));
		assert_true(bytes == UNTOUCHED);
	}
}

static void sizes_that_are_set_need_their_unit(void **state)
{
	static const char *const texts[] = {"48", "1", " 1048576 ", "18446744073709551615"};
	struct err err;
	uint64_t bytes = UNTOUCHED;

	(void)state;
	for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++) {
		err = (struct err){0};
		assert_int_equal(units_parse_size_with_unit(texts[i], &bytes, &err),
				 -WIRE_BAD_ARGUMENT);
		assert_non_null(strstr(err.text, "has no unit: say "));
		assert_true(bytes == UNTOUCHED);
	}
	assert_int_equal(units_parse_size_with_unit("0", &bytes, NULL), 0);
	assert_int_equal(bytes, 0);
	assert_int_equal(units_parse_size_with_unit("48B", &bytes, NULL), 0);
	assert_int_equal(bytes, 48);
	assert_int_equal(units_parse_size_with_unit("2.5 gb", &bytes, NULL), 0);
	assert_true(bytes == 5ULL << 29);
}

static void durations_need_a_unit_and_add_up(void **state)
{
	static const struct good_case cases[] = {
		{"0", 0},
		{" 0 ", 0},
		{"5ns", 5},
		{"10us", 10000},
		{"250ms", 250 * MS},
		{"30s", 30 * S},
		{"30 sec", 30 * S},
		{"5m", 300 * S},
		{"5min", 300 * S},
		{"2h", 7200 * S},
		{"3d", 3 * 86400 * S},
		{"1h30m", 5400 * S},
		{"1H 30M", 5400 * S},
		{"1.5h", 5400 * S},
		{"0.5ms", 500000},
		{"forever", UNITS_FOREVER},
		{" forever ", UNITS_FOREVER},
		{"18446744073709551614ns", UINT64_MAX - 1},
	};
	uint64_t ns;

	(void)state;
	for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
		ns = UNTOUCHED;
		assert_int_equal(units_parse_duration(cases[i].text, &ns, NULL), 0);
		if (ns != cases[i].value) {
			fail_msg("%s is %llu", cases[i].text, (unsigned long long)ns);
		}
	}
}

static void odd_durations_are_refused_by_name(void **state)
{
	static const char *const texts[] = {
		"",
		" ",
		"5",
		"1h30",
		"s",
		"-1s",
		"1w",
		"1.s",
		"1,5s",
		"forever1",
		"1s forever",
		"1s,2s",
		"00",
		"18446744073709551615ns",
		"18446744073709551616ns",
		"213504d",
		"213503d 86400d",
		"infinity",
	};
	struct err err;
	uint64_t ns = UNTOUCHED;

	(void)state;
	for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++) {
		err = (struct err){0};
		if (units_parse_duration(texts[i], &ns, &err) != -WIRE_BAD_ARGUMENT) {
			fail_msg("\"%s\" was taken", texts[i]);
		}
		assert_non_null(strstr(err.text, texts[i]));
		assert_true(ns == UNTOUCHED);
	}
}

static void percentages_have_three_decimals(void **state)
{
	static const struct good_case good[] = {
		{"40%", 40000},  {"12.5%", 12500}, {"0%", 0},          {"100%", 100000},
		{" 7 % ", 7000}, {"0.001%", 1},    {"99.999%", 99999}, {"100.000%", 100000},
	};
	static const char *const bad[] = {
		"",
		"%",
		"40",
		"40%%",
		"-1%",
		"100.001%",
		"101%",
		"0.0001%",
		"1.%",
		"40%x",
		"18446744073709551616%",
		"18446744073709551615%",
		"4 0%",
	};
	struct err err = {0};
	uint32_t milli = 7;

	(void)state;
	for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
		if (units_parse_percent(bad[i], &milli, &err) != -WIRE_BAD_ARGUMENT) {
			fail_msg("\"%s\" was taken", bad[i]);
		}
		assert_non_null(strstr(err.text, bad[i]));
		assert_int_equal(milli, 7);
	}
	for (size_t i = 0; i < sizeof good / sizeof good[0]; i++) {
		milli = 7;
		assert_int_equal(units_parse_percent(good[i].text, &milli, NULL), 0);
		assert_int_equal(milli, good[i].value);
	}
}

struct print_case {
	uint64_t value;
	const char *expected;
};

static void sizes_print_in_four_characters(void **state)
{
	static const struct print_case cases[] = {
		{0, "0"},
		{512, "512"},
		{1023, "1023"},
		{K, "1.0K"},
		{K + 51, "1.0K"},
		{K + 52, "1.1K"},
		{100 * K - 52, "99.9K"},
		{100 * K - 51, "100K"},
		{320 * M, "320M"},
		{320 * M + M / 2, "321M"},
		{1023 * M + M / 2 - 1, "1023M"},
		{1023 * M + M / 2, "1.0G"}, /* never 1024M */
		{48 * G, "48.0G"},
		{11901525888, "11.1G"},
		{UINT64_MAX, "16.0E"},
	};
	char buffer[16];

	(void)state;
	for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
		assert_string_equal(units_format_size(cases[i].value, buffer, sizeof buffer),
				    cases[i].expected);
	}
	assert_string_equal(units_format_size_si(999, buffer, sizeof buffer), "999");
	assert_string_equal(units_format_size_si(1000, buffer, sizeof buffer), "1.0K");
	assert_string_equal(units_format_size_si(999499, buffer, sizeof buffer), "999K");
	assert_string_equal(units_format_size_si(999500, buffer, sizeof buffer), "1.0M");
	assert_string_equal(units_format_size_si(90900000, buffer, sizeof buffer), "90.9M");
}

static void durations_print_their_two_largest_parts(void **state)
{
	static const struct print_case cases[] = {
		{0, "0ms"},
		{999999, "0ms"},
		{250 * MS, "250ms"},
		{999 * MS, "999ms"},
		{S, "1.0s"},
		{9999 * MS, "9.9s"},
		{12 * S, "12s"},
		{59 * S, "59s"},
		{60 * S, "1m"},
		{48 * 60 * S, "48m"},
		{3600 * S, "1h"},
		{5400 * S, "1h 30m"},
		{86400 * S, "1d"},
		{(3 * 86400 + 4 * 3600 + 59) * S, "3d 4h"},
		{UNITS_FOREVER, "forever"},
		{UNITS_FOREVER - 1, "213503d 23h"},
	};
	char buffer[32];

	(void)state;
	for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
		assert_string_equal(units_format_duration(cases[i].value, buffer, sizeof buffer),
				    cases[i].expected);
	}
}

static void printing_stays_within_the_buffer(void **state)
{
	char buffer[4] = {'#', '#', '#', '#'};

	(void)state;
	assert_string_equal(units_format_size(48 * G, buffer, 3), "48");
	assert_int_equal(buffer[3], '#');
	assert_string_equal(units_format_duration(UNITS_FOREVER, buffer, 3), "fo");
	assert_int_equal(buffer[3], '#');
}

static void shares_never_read_as_all_or_nothing(void **state)
{
	char share[8];

	(void)state;
	assert_string_equal(units_format_share(0, 0, share, sizeof share), "0%");
	assert_string_equal(units_format_share(0, 7, share, sizeof share), "0%");
	assert_string_equal(units_format_share(1, 1000, share, sizeof share), "<1%");
	assert_string_equal(units_format_share(620, 1000, share, sizeof share), "62%");
	assert_string_equal(units_format_share(999, 1000, share, sizeof share), ">99%");
	assert_string_equal(units_format_share(1000, 1000, share, sizeof share), "100%");
}

static void a_long_text_is_cut_in_the_error(void **state)
{
	char text[4096];
	struct err err = {0};
	uint64_t value = 0;

	(void)state;
	memset(text, '9', sizeof text - 1);
	text[sizeof text - 1] = '\0';
	assert_int_equal(units_parse_size(text, &value, &err), -WIRE_BAD_ARGUMENT);
	assert_true(strlen(err.text) < 200);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(sizes_are_powers_of_1024),
		cmocka_unit_test(odd_sizes_are_refused_by_name),
		cmocka_unit_test(sizes_that_are_set_need_their_unit),
		cmocka_unit_test(durations_need_a_unit_and_add_up),
		cmocka_unit_test(odd_durations_are_refused_by_name),
		cmocka_unit_test(percentages_have_three_decimals),
		cmocka_unit_test(sizes_print_in_four_characters),
		cmocka_unit_test(durations_print_their_two_largest_parts),
		cmocka_unit_test(printing_stays_within_the_buffer),
		cmocka_unit_test(shares_never_read_as_all_or_nothing),
		cmocka_unit_test(a_long_text_is_cut_in_the_error),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
