/* SPDX-License-Identifier: Apache-2.0 */
/* UTF-8 as RFC 3629 has it: no overlong forms, no surrogates. Pure; any thread. */
#ifndef BASE_UTF8_H
#define BASE_UTF8_H

#include <stdbool.h>
#include <stddef.h>

/*
 * Bytes of the character at 'text', which is not ASCII; 'left' bytes, one at least, are there.
 * 0 when it is none, SIZE_MAX when it is cut.
 */
size_t utf8_size(const unsigned char *text, size_t left);

/* UTF-8 without NUL, from the first byte to the last? */
bool utf8_is_name(const char *text, size_t size);

#endif
