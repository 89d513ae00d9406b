/* SPDX-License-Identifier: Apache-2.0 */
/* Values and pieces of text. See value.h. */
#include "daemon/plan/value.h"

#include "base/err.h"
#include "base/text.h"
#include "base/units.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "daemon/plan/name.h"

#define MAX_VALUE   40
#define MAX_PERCENT (1000000ULL * SPEC_ONE)

/* ---- refusals ---- */

const char *spec_print_item(const struct spec_item *item, char *buffer, size_t buffer_size)
{
	char text[56];

	if (item->column == 0) {
		buffer[0] = '\0';
		return buffer;
	}
	(void)snprintf(buffer, buffer_size, "item %u (column %u) \"%s\": ", item->number,
		       item->column, text_print(item->text, text, sizeof text));
	return buffer;
}

int value_refuse(struct spec_parser *parser, int code, const char *format, ...)
{
	char item[112] = "";
	char text[200];
	va_list arguments;

	va_start(arguments, format);
	(void)vsnprintf(text, sizeof text, format, arguments);
	va_end(arguments);
	if (parser->item != NULL) {
		(void)spec_print_item(parser->item, item, sizeof item);
	}
	return err_set(parser->err, code, "%s%s", item, text);
}

uint32_t value_column(const struct spec_parser *parser, const char *at)
{
	uint32_t column = 1;

	for (const char *c = parser->all.text; c < at; c++) {
		column += ((unsigned char)*c & 0xc0) != 0x80;
	}
	return column;
}

/* ---- texts ---- */

bool value_cut(struct plan_text text, char mark, struct plan_text *ret, struct plan_text *rest)
{
	const char *at = text.size == 0 ? NULL : memchr(text.text, mark, text.size);

	if (at == NULL) {
		*ret = text;
		*rest = (struct plan_text){0};
		return false;
	}
	*ret = (struct plan_text){text.text, (uint32_t)(at - text.text)};
	*rest = (struct plan_text){at + 1, text.size - ret->size - 1};
	return true;
}

bool value_has(struct plan_text text, char mark)
{
	return text.size > 0 && memchr(text.text, mark, text.size) != NULL;
}

static bool ends_with(struct plan_text text, char mark)
{
	return text.size > 0 && text.text[text.size - 1] == mark;
}

/* ---- values ---- */

/* Digits and perhaps a point: no unit, no sign. */
static bool is_plain(const char *value)
{
	return value[0] != '\0' && strspn(value, "0123456789.") == strlen(value);
}

/* More behind the point than is told apart. */
static bool is_too_exact(const char *value)
{
	const char *point = strchr(value, '.');

	return point != NULL && strspn(&point[1], "0123456789") > 9;
}

static int refuse_exact(struct spec_parser *parser)
{
	return value_refuse(parser, WIRE_BAD_ARGUMENT,
			    "that is not a number with at most 9 decimals");
}

static int parse_plain(struct spec_parser *parser, const char *value, enum value_kind *ret)
{
	uint64_t billionths = 0;

	if (strchr(value, '.') == NULL) {
		if (units_parse_size(value, &parser->item->value, NULL) < 0) {
			return value_refuse(parser, WIRE_BAD_ARGUMENT,
					    "that is more than 2^64 bytes");
		}
		if (parser->item->value == 1) {
			return value_refuse(parser, WIRE_BAD_ARGUMENT,
					    "1 has no unit: 1gb, 1%% or 1.0 (all of the device's "
					    "memory)?");
		}
		*ret = parser->item->value == 0 ? VALUE_ZERO : VALUE_SIZE;
		return 0;
	}
	if (units_parse_decimal(value, &billionths, NULL) < 0) {
		return refuse_exact(parser);
	}
	if (billionths > SPEC_ONE) {
		return value_refuse(
			parser, WIRE_BAD_ARGUMENT,
			"more than 1 needs a unit: %sgb or %s%%? (0 to 1 is a share of the "
			"device's memory)",
			value, value);
	}
	parser->item->value = billionths;
	*ret = VALUE_FRACTION;
	return 0;
}

static int parse_percent(struct spec_parser *parser, const char *value)
{
	uint64_t billionths = 0;

	if (is_too_exact(value)) {
		return refuse_exact(parser);
	}
	if (units_parse_decimal(value, &billionths, NULL) < 0 || billionths > MAX_PERCENT) {
		return value_refuse(parser, WIRE_BAD_ARGUMENT,
				    "before the %% there is no number like 25 or 12.5");
	}
	parser->item->value = billionths;
	return 0;
}

static int parse_size(struct spec_parser *parser, const char *value)
{
	struct err err = {0};
	char safe[160]; /* it quotes what was written */

	if (is_too_exact(value)) {
		return refuse_exact(parser);
	}
	if (parser->item->is_wildcard && strcmp(value, "1") == 0) {
		return value_refuse(parser, WIRE_BAD_ARGUMENT, "1 has no unit: 1gb*?");
	}
	if (units_parse_size(value, &parser->item->value, &err) < 0) {
		return value_refuse(parser, WIRE_BAD_ARGUMENT, "%s",
				    text_escape(err.text, safe, sizeof safe));
	}
	return 0;
}

/* A copy with an end and, for ".5", a digit before the point. */
static bool copy_value(struct plan_text text, char buffer[MAX_VALUE + 2])
{
	size_t at = text.size > 0 && text.text[0] == '.' ? 1 : 0;

	buffer[0] = '0';
	if (text.size > MAX_VALUE) {
		return false;
	}
	memcpy(&buffer[at], text.size == 0 ? "" : text.text, text.size);
	buffer[at + text.size] = '\0';
	return strlen(buffer) == at + text.size;
}

int value_parse(struct spec_parser *parser, struct plan_text text, enum value_kind *ret)
{
	char value[MAX_VALUE + 2];
	bool has_star = ends_with(text, '*');

	if (value_has(text, ',')) {
		return value_refuse(
			parser, WIRE_BAD_ARGUMENT,
			"there are two commas: write 2.5gb with a point, and a ; between "
			"items");
	}
	if (has_star) {
		text.size--;
		text = text_trim(text);
		parser->item->is_wildcard = true;
		*ret = VALUE_REST;
		if (text.size == 0) {
			return 0;
		}
	}
	if (text.size == 0) {
		return value_refuse(parser, WIRE_BAD_ARGUMENT,
				    "there is no value behind the comma");
	}
	if (text.text[0] == '-') {
		return value_refuse(parser, WIRE_BAD_ARGUMENT,
				    "a share cannot be less than nothing");
	}
	if (!copy_value(text, value)) {
		return value_refuse(parser, WIRE_BAD_ARGUMENT,
				    "that is no size, percentage or fraction");
	}
	if (!has_star && ends_with(text, '%')) {
		value[strlen(value) - 1] = '\0';
		*ret = VALUE_PERCENT;
		return parse_percent(parser, value);
	}
	if (!has_star && is_plain(value)) {
		return parse_plain(parser, value, ret);
	}
	*ret = VALUE_SIZE; /* "5gb*" too */
	return parse_size(parser, value);
}
