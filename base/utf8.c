/* SPDX-License-Identifier: Apache-2.0 */
/* See utf8.h. */
#include "base/utf8.h"

#include <stdint.h>

size_t utf8_size(const unsigned char *text, size_t left)
{
	size_t size = text[0] >= 0xf0 ? 4 : text[0] >= 0xe0 ? 3 : 2;
	unsigned char least = 0x80;
	unsigned char most = 0xbf;

	if (text[0] < 0xc2 || text[0] > 0xf4) {
		return 0;
	}
	if (left < 2) {
		return SIZE_MAX;
	}
	/* The second byte rules out overlong forms, surrogates and what is past 0x10ffff. */
	if (text[0] == 0xe0) {
		least = 0xa0;
	} else if (text[0] == 0xed) {
		most = 0x9f;
	} else if (text[0] == 0xf0) {
		least = 0x90;
	} else if (text[0] == 0xf4) {
		most = 0x8f;
	}
	if (text[1] < least || text[1] > most) {
		return 0;
	}
	for (size_t i = 2; i < size; i++) {
		if (i == left) {
			return SIZE_MAX;
		}
		if ((text[i] & 0xc0) != 0x80) {
			return 0;
		}
	}
	return size;
}

bool utf8_is_name(const char *text, size_t size)
{
	const unsigned char *bytes = (const unsigned char *)text;
	size_t at = 0;

	while (at < size) {
		size_t step = bytes[at] < 0x80 ? bytes[at] != 0 : utf8_size(&bytes[at], size - at);

		if (step == 0 || step == SIZE_MAX) {
			return false;
		}
		at += step;
	}
	return true;
}
