/* SPDX-License-Identifier: Apache-2.0 */
/* Text from strangers made harmless, and the nearest of several names. Pure; any thread. */
#ifndef BASE_TEXT_H
#define BASE_TEXT_H

#include <stddef.h>

/*
 * Copy with control bytes, bytes that are not UTF-8, backslashes and direction overrides
 * written as \xNN; what is written so already stays, as texts go from one to the next. Cut where
 * the buffer ends. Returns 'buffer'.
 */
const char *text_escape(const char *text, char *buffer, size_t buffer_size);

/* How many letters have to be changed, added or taken away; texts over 63 bytes: SIZE_MAX. */
size_t text_distance(const char *a, const char *b);

/* The nearest of 'n_names' names, or NULL when none is nearer than three letters, and than nothing
 * at all would be. */
const char *text_nearest(const char *text, const char *const *names, size_t n_names);

#endif
