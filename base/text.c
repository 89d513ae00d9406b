/* SPDX-License-Identifier: Apache-2.0 */
/* Escaping and distances. See text.h. */
#include "base/text.h"

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#define MAX_DISTANCE_SIZE 63
#define FAR               3

/* "\x0a": it has been escaped before, as a part of this text. */
static bool is_escape(const unsigned char *text)
{
	return text[0] == '\\' && text[1] == 'x' &&
	       strspn((const char *)text + 2, "0123456789abcdef") >= 2;
}

/* Bytes of the UTF-8 character at 'text' that may be shown as it is; 0: escape one byte. */
static size_t printable_size(const unsigned char *text)
{
	static const uint32_t smallest[] = {0, 0, 0x80, 0x800, 0x10000};
	size_t size = text[0] < 0x80 ? 1 : text[0] >= 0xf0 ? 4 : text[0] >= 0xe0 ? 3 : 2;
	uint32_t code;

	if (size == 1) {
		bool is_harmless = text[0] >= 0x20 && text[0] != 0x7f && text[0] != '\\';

		return is_harmless || is_escape(text) ? 1 : 0;
	}
	if (text[0] < 0xc2 || text[0] > 0xf4) {
		return 0;
	}
	code = text[0] & (0xffU >> (size + 1));
	for (size_t i = 1; i < size; i++) {
		if ((text[i] & 0xc0) != 0x80) {
			return 0;
		}
		code = code << 6 | (text[i] & 0x3fU);
	}
	/* Overlong forms, C1 controls, direction marks and overrides, line separators, tags. */
	if (code < smallest[size] || code < 0xa0 || code == 0x61c ||
	    (code >= 0x200b && code <= 0x200f) || (code >= 0x2028 && code <= 0x202e) ||
	    (code >= 0x2060 && code <= 0x2069) || code == 0xfeff ||
	    (code >= 0xd800 && code <= 0xdfff) || code > 0x10ffff ||
	    (code >= 0xe0000 && code <= 0xe007f)) {
		return 0;
	}
	return size;
}

const char *text_escape(const char *text, char *buffer, size_t buffer_size)
{
	const unsigned char *at = (const unsigned char *)text;
	size_t used = 0;

	while (*at != '\0') {
		size_t size = printable_size(at);

		if (used + (size == 0 ? 4 : size) >= buffer_size) {
			break;
		}
		if (size == 0) {
			(void)snprintf(buffer + used, buffer_size - used, "\\x%02x", *at);
			used += 4;
			at++;
		} else {
			memcpy(buffer + used, at, size);
			used += size;
			at += size;
		}
	}
	buffer[used] = '\0';
	return buffer;
}

size_t text_distance(const char *a, const char *b)
{
	size_t row[MAX_DISTANCE_SIZE + 1];
	size_t size_a = strlen(a);
	size_t size_b = strlen(b);

	if (size_a > MAX_DISTANCE_SIZE || size_b > MAX_DISTANCE_SIZE) {
		return SIZE_MAX;
	}
	for (size_t j = 0; j <= size_b; j++) {
		row[j] = j;
	}
	for (size_t i = 1; i <= size_a; i++) {
		size_t diagonal = row[0];

		row[0] = i;
		for (size_t j = 1; j <= size_b; j++) {
			size_t above = row[j];
			size_t best = diagonal + (a[i - 1] == b[j - 1] ? 0 : 1);

			best = above + 1 < best ? above + 1 : best;
			best = row[j - 1] + 1 < best ? row[j - 1] + 1 : best;
			diagonal = above;
			row[j] = best;
		}
	}
	return row[size_b];
}

const char *text_nearest(const char *text, const char *const *names, size_t n_names)
{
	const char *nearest = NULL;
	const size_t size = strlen(text);
	size_t best = size < FAR ? size : FAR; /* something of a short word is left */

	for (size_t i = 0; i < n_names; i++) {
		size_t distance = text_distance(text, names[i]);

		if (distance < best) {
			best = distance;
			nearest = names[i];
		}
	}
	return nearest;
}
