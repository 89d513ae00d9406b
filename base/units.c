/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Exact parsing: whole and fraction are kept as integers, the fraction as at most nine
 * digits over its power of ten. See units.h.
 */
#include "base/units.h"

#include "base/checked.h"
#include "base/err.h"

#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include "proto/gen/wire_code.h"

#define MAX_FRACTION_DIGITS 9

struct number {
	uint64_t whole;
	uint64_t fraction; /* over 'scale' */
	uint64_t scale;    /* 1, 10, 100, ... */
};

struct unit {
	const char *name;
	uint64_t factor;
};

static const char *skip_blanks(const char *text)
{
	while (*text == ' ' || *text == '\t') {
		text++;
	}
	return text;
}

static bool is_digit(char c)
{
	return c >= '0' && c <= '9';
}

static char to_lower(char c)
{
	return c >= 'A' && c <= 'Z' ? (char)(c - 'A' + 'a') : c;
}

/* Advances *text past a decimal number. */
static bool read_number(const char **text, struct number *ret)
{
	struct number number = {.scale = 1};
	const char *at = *text;
	unsigned n_digits = 0;

	if (!is_digit(*at)) {
		return false;
	}
	for (; is_digit(*at); at++) {
		if (!checked_mul(number.whole, 10, &number.whole) ||
		    !checked_add(number.whole, (uint64_t)(*at - '0'), &number.whole)) {
			return false;
		}
	}
	if (*at == '.') {
		at++;
		for (; is_digit(*at); at++, n_digits++) {
			if (n_digits == MAX_FRACTION_DIGITS) {
				return false;
			}
			number.fraction = number.fraction * 10 + (uint64_t)(*at - '0');
			number.scale *= 10;
		}
		if (n_digits == 0) {
			return false;
		}
	}
	*text = at;
	*ret = number;
	return true;
}

/* whole * factor + fraction * factor / scale */
static bool scale_number(const struct number *number, uint64_t factor, uint64_t *ret)
{
	uint64_t whole;
	uint64_t part;

	return checked_mul(number->whole, factor, &whole) &&
	       checked_mul(number->fraction, factor / number->scale, &part) &&
	       checked_add(part, number->fraction * (factor % number->scale) / number->scale,
			   &part) &&
	       checked_add(whole, part, ret);
}

/* The unit whose name *text begins with, up to the end of its letters. */
static const struct unit *read_unit(const char **text, const struct unit *units, size_t n_units)
{
	const char *at = *text;
	size_t size = 0;

	while (to_lower(at[size]) >= 'a' && to_lower(at[size]) <= 'z') {
		size++;
	}
	for (size_t i = 0; i < n_units; i++) {
		size_t j = 0;

		while (j < size && units[i].name[j] == to_lower(at[j])) {
			j++;
		}
		if (j == size && units[i].name[size] == '\0') {
			*text = at + size;
			return &units[i];
		}
	}
	return NULL;
}

static int parse_size(const char *text, bool needs_unit, uint64_t *ret_bytes, struct err *err)
{
	static const struct unit units[] = {
		{"", 1},
		{"b", 1},
		{"k", 1ULL << 10},
		{"kb", 1ULL << 10},
		{"kib", 1ULL << 10},
		{"m", 1ULL << 20},
		{"mb", 1ULL << 20},
		{"mib", 1ULL << 20},
		{"g", 1ULL << 30},
		{"gb", 1ULL << 30},
		{"gib", 1ULL << 30},
		{"t", 1ULL << 40},
		{"tb", 1ULL << 40},
		{"tib", 1ULL << 40},
	};
	const char *at = skip_blanks(text);
	const struct unit *unit;
	struct number number;
	uint64_t bytes;

	if (!read_number(&at, &number)) {
		return err_set(err, WIRE_BAD_ARGUMENT, "\"%.64s\" is not a size like 48G or 512M",
			       text);
	}
	at = skip_blanks(at);
	unit = read_unit(&at, units, sizeof units / sizeof units[0]);
	if (unit == NULL || *skip_blanks(at) != '\0') {
		return err_set(err, WIRE_BAD_ARGUMENT,
			       "\"%.64s\" has no unit that is known: B, K, M, G or T", text);
	}
	if (number.scale != 1 && unit->factor == 1) {
		return err_set(err, WIRE_BAD_ARGUMENT, "\"%.64s\" is a fraction of a byte", text);
	}
	if (!scale_number(&number, unit->factor, &bytes)) {
		return err_set(err, WIRE_BAD_ARGUMENT, "\"%.64s\" is more than 2^64 bytes", text);
	}
	if (bytes == 0 && number.fraction != 0) {
		return err_set(err, WIRE_BAD_ARGUMENT, "\"%.64s\" is less than one byte", text);
	}
	if (needs_unit && bytes != 0 && unit == &units[0]) {
		return err_set(err, WIRE_BAD_ARGUMENT,
			       "%.32s has no unit: say %.32sM or %.32sG (%.32sB for bytes)", text,
			       text, text, text);
	}
	*ret_bytes = bytes;
	return 0;
}

int units_parse_size(const char *text, uint64_t *ret_bytes, struct err *err)
{
	return parse_size(text, false, ret_bytes, err);
}

int units_parse_size_with_unit(const char *text, uint64_t *ret_bytes, struct err *err)
{
	return parse_size(text, true, ret_bytes, err);
}

/* Is 'word' all that is there, but for blanks behind it? */
static bool is_only(const char *text, const char *word)
{
	size_t size = strlen(word);

	return strncmp(text, word, size) == 0 && *skip_blanks(text + size) == '\0';
}

int units_parse_duration(const char *text, uint64_t *ret_ns, struct err *err)
{
	static const struct unit units[] = {
		{"ns", 1},
		{"us", 1000},
		{"ms", 1000000},
		{"s", 1000000000},
		{"sec", 1000000000},
		{"m", 60000000000},
		{"min", 60000000000},
		{"h", 3600000000000},
		{"d", 86400000000000},
	};
	const char *at = skip_blanks(text);
	uint64_t total = 0;

	if (is_only(at, "forever")) {
		*ret_ns = UNITS_FOREVER;
		return 0;
	}
	if (is_only(at, "0")) {
		*ret_ns = 0;
		return 0;
	}
	do {
		struct number number;
		const struct unit *unit;
		uint64_t ns;

		if (!read_number(&at, &number)) {
			return err_set(err, WIRE_BAD_ARGUMENT,
				       "\"%.64s\" is not a duration like 10m, 2h30m or forever",
				       text);
		}
		at = skip_blanks(at);
		unit = read_unit(&at, units, sizeof units / sizeof units[0]);
		if (unit == NULL) {
			return err_set(err, WIRE_BAD_ARGUMENT,
				       "\"%.64s\" needs a unit: ms, s, m, h or d", text);
		}
		if (!scale_number(&number, unit->factor, &ns) || !checked_add(total, ns, &total) ||
		    total == UNITS_FOREVER) {
			return err_set(err, WIRE_BAD_ARGUMENT, "\"%.64s\" is too long", text);
		}
		at = skip_blanks(at);
	} while (*at != '\0');
	*ret_ns = total;
	return 0;
}

int units_parse_percent(const char *text, uint32_t *ret_milli_pct, struct err *err)
{
	const char *at = skip_blanks(text);
	struct number number;
	uint64_t milli;

	if (!read_number(&at, &number) || *skip_blanks(at) != '%' ||
	    *skip_blanks(skip_blanks(at) + 1) != '\0') {
		return err_set(err, WIRE_BAD_ARGUMENT, "\"%.64s\" is not a percentage like 40%%",
			       text);
	}
	if (number.scale > 1000 || !scale_number(&number, 1000, &milli) || milli > 100000) {
		return err_set(err, WIRE_BAD_ARGUMENT,
			       "\"%.64s\" is not between 0%% and 100%% with at most 3 decimals",
			       text);
	}
	*ret_milli_pct = (uint32_t)milli;
	return 0;
}

int units_parse_decimal(const char *text, uint64_t *ret_billionths, struct err *err)
{
	const char *at = skip_blanks(text);
	struct number number;
	uint64_t billionths;

	if (!read_number(&at, &number) || *skip_blanks(at) != '\0' ||
	    !scale_number(&number, 1000000000, &billionths)) {
		return err_set(err, WIRE_BAD_ARGUMENT,
			       "\"%.64s\" is not a number like 2.5 with at most 9 decimals", text);
	}
	*ret_billionths = billionths;
	return 0;
}

static uint64_t divide_rounded(uint64_t value, uint64_t by)
{
	return value / by + (value % by >= by - by / 2 ? 1 : 0);
}

static const char *format_scaled(uint64_t bytes, uint64_t step, char *buffer, size_t buffer_size)
{
	static const char letters[] = {'K', 'M', 'G', 'T', 'P', 'E'};
	uint64_t factor = 1;
	int power = -1;
	uint64_t tenths;

	/* What rounds to a whole step is shown as one of the next unit: never 1024M. */
	while (power < 5 && divide_rounded(bytes, factor) >= step) {
		factor *= step;
		power++;
	}
	if (power < 0) {
		(void)snprintf(buffer, buffer_size, "%llu", (unsigned long long)bytes);
		return buffer;
	}
	tenths = bytes / factor * 10 + (bytes % factor * 10 + factor / 2) / factor;
	if (tenths >= 1000) {
		(void)snprintf(buffer, buffer_size, "%llu%c",
			       (unsigned long long)divide_rounded(bytes, factor), letters[power]);
	} else {
		(void)snprintf(buffer, buffer_size, "%llu.%llu%c", (unsigned long long)tenths / 10,
			       (unsigned long long)tenths % 10, letters[power]);
	}
	return buffer;
}

const char *units_format_size(uint64_t bytes, char *buffer, size_t buffer_size)
{
	return format_scaled(bytes, 1024, buffer, buffer_size);
}

const char *units_format_size_si(uint64_t bytes, char *buffer, size_t buffer_size)
{
	return format_scaled(bytes, 1000, buffer, buffer_size);
}

const char *units_format_duration(uint64_t ns, char *buffer, size_t buffer_size)
{
	uint64_t ms = ns / 1000000;
	uint64_t s = ms / 1000;
	unsigned long long days = s / 86400;
	unsigned long long hours = s / 3600 % 24;
	unsigned long long minutes = s / 60 % 60;

	if (ns == UNITS_FOREVER) {
		(void)snprintf(buffer, buffer_size, "forever");
	} else if (ms < 1000) {
		(void)snprintf(buffer, buffer_size, "%llums", (unsigned long long)ms);
	} else if (s < 10) {
		(void)snprintf(buffer, buffer_size, "%llu.%llus", (unsigned long long)s,
			       (unsigned long long)(ms % 1000 / 100));
	} else if (s < 60) {
		(void)snprintf(buffer, buffer_size, "%llus", (unsigned long long)s);
	} else if (s < 3600) {
		(void)snprintf(buffer, buffer_size, "%llum", minutes);
	} else if (s < 86400) {
		(void)snprintf(buffer, buffer_size, minutes != 0 ? "%lluh %llum" : "%lluh", hours,
			       minutes);
	} else {
		(void)snprintf(buffer, buffer_size, hours != 0 ? "%llud %lluh" : "%llud", days,
			       hours);
	}
	return buffer;
}

const char *units_format_share(uint64_t part, uint64_t total, char *buffer, size_t buffer_size)
{
	const double percent = total == 0 ? 0 : (double)part * 100 / (double)total;

	if (part > 0 && percent < 0.5) {
		(void)snprintf(buffer, buffer_size, "<1%%");
	} else if (part < total && percent >= 99.5) {
		(void)snprintf(buffer, buffer_size, ">99%%");
	} else {
		(void)snprintf(buffer, buffer_size, "%.0f%%", percent);
	}
	return buffer;
}
