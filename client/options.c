/* SPDX-License-Identifier: Apache-2.0 */
#include "client/options.h"

#include <string.h>

#include "client/error.h"

#define LARGEST_OPTIONS ((size_t)4096)

int options_take(const void *given, size_t size, void *ret)
{
	const unsigned char *bytes = given;
	size_t given_size;

	if (given == NULL) {
		return 0;
	}
	memcpy(&given_size, given, sizeof given_size);
	if (given_size < sizeof given_size || given_size > LARGEST_OPTIONS) {
		return failure_set(DISTORCH_E_BAD_ARGUMENT, 0,
				   "set 'size' to sizeof of the structure",
				   "a structure of options says that it has %zu bytes", given_size);
	}
	for (size_t i = size; i < given_size; i++) {
		if (bytes[i] != 0) {
			return failure_set(DISTORCH_E_UNSUPPORTED, 0, "update libdistorch",
					   "an option is set that this library does not know");
		}
	}
	memcpy(ret, given, given_size < size ? given_size : size);
	return 0;
}

int options_need(const char *name, const void *given)
{
	return given != NULL ? 0
			     : failure_set(DISTORCH_E_BAD_ARGUMENT, 0, NULL,
					   "the argument '%s' is NULL", name);
}

int options_need_all(const char *name, const char *const *texts, size_t n)
{
	int rc = n == 0 ? 0 : options_need(name, texts);

	for (size_t i = 0; rc == 0 && i < n; i++) {
		if (texts[i] == NULL) {
			rc = failure_set(DISTORCH_E_BAD_ARGUMENT, 0, NULL,
					 "the argument '%s' holds a NULL at %zu", name, i);
		}
	}
	return rc;
}

int options_texts(const char *name, const char *const *texts, size_t n, size_t max,
		  struct wire_str *items, struct wire_list *ret)
{
	int rc = options_need_all(name, texts, n < max ? n : max);

	if (rc < 0) {
		return rc;
	}
	if (n > max) {
		return failure_set(DISTORCH_E_TOO_MANY, 0, NULL,
				   "the argument '%s' has %zu entries; it may have %zu", name, n,
				   max);
	}
	for (size_t i = 0; i < n; i++) {
		items[i] = wire_str(texts[i]);
	}
	*ret = (struct wire_list){.count = (uint32_t)n, .items = items};
	return 0;
}

void options_text(const char *text, bool *ret_has, struct wire_str *ret)
{
	*ret_has = text != NULL;
	if (text != NULL) {
		*ret = wire_str(text);
	}
}
