/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Sizes, durations and percentages as text. Oracle: what is refused leaves the result alone
 * and names an error; what is accepted prints, and a size printed as plain bytes reads back
 * as the same number, one printed for people as one at most a twentieth away. Printing stays
 * within four characters and a unit.
 */
#include "base/err.h"
#include "base/require.h"
#include "base/units.h"
#include "tests/fuzz/fuzz.h"

#include <stdio.h>
#include <string.h>

#include "proto/gen/wire_code.h"

#define MAX_TEXT  256
#define UNTOUCHED 0x5eed5eedU

static void check_code(int code, const struct err *err)
{
	REQUIRE(code == 0 || code == -WIRE_BAD_ARGUMENT);
	REQUIRE(err->code == -code);
	REQUIRE(code == 0 || err->text[0] != '\0');
	REQUIRE(strlen(err->text) < ERR_TEXT_SIZE);
}

static void check_size(const char *text)
{
	struct err err = {0};
	uint64_t bytes = UNTOUCHED;
	uint64_t again = 0;
	char plain[32];
	char printed[32];
	int code = units_parse_size(text, &bytes, &err);

	check_code(code, &err);
	REQUIRE(code == 0 || bytes == UNTOUCHED);
	(void)snprintf(plain, sizeof plain, "%llu", (unsigned long long)bytes);
	REQUIRE(units_parse_size(plain, &again, NULL) == 0 && again == bytes);
	REQUIRE(strlen(units_format_size(bytes, printed, sizeof printed)) <= 5);
	REQUIRE(strlen(units_format_size_si(bytes, printed, sizeof printed)) <= 5);
	(void)units_format_size(bytes, printed, sizeof printed);
	if (strpbrk(printed, "PE") != NULL) {
		return; /* printed for people; nobody configures that much */
	}
	REQUIRE(units_parse_size(printed, &again, NULL) == 0);
	REQUIRE((again > bytes ? again - bytes : bytes - again) * 20 <= bytes);
}

static void check_duration(const char *text)
{
	struct err err = {0};
	uint64_t ns = UNTOUCHED;
	char printed[32];
	int code = units_parse_duration(text, &ns, &err);

	check_code(code, &err);
	REQUIRE(code == 0 || ns == UNTOUCHED);
	REQUIRE(strlen(units_format_duration(ns, printed, sizeof printed)) < sizeof printed - 1);
}

static void check_percent(const char *text)
{
	struct err err = {0};
	uint32_t milli = UNTOUCHED;
	int code = units_parse_percent(text, &milli, &err);

	check_code(code, &err);
	REQUIRE(code == 0 ? milli <= 100000 : milli == UNTOUCHED);
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size)
{
	char text[MAX_TEXT];

	if (size >= sizeof text) {
		return 0;
	}
	memcpy(text, bytes, size);
	text[size] = '\0';
	check_size(text);
	check_duration(text);
	check_percent(text);
	return 0;
}
