/* SPDX-License-Identifier: Apache-2.0 */
/* Filling and prefixing of errors. See err.h. */
#include "base/err.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "proto/gen/wire_code.h"

void err_set_at(struct err *err, const char *where, int code, int sys, const char *format, ...)
{
	va_list arguments;

	if (err == NULL) {
		return;
	}
	err->code = code;
	err->sys = sys;
	err->driver = 0;
	err->offset = 0;
	err->where = where;
	va_start(arguments, format);
	(void)vsnprintf(err->text, sizeof err->text, format, arguments); /* cut where too long */
	va_end(arguments);
}

int err_wrap(struct err *err, const char *format, ...)
{
	char old[ERR_TEXT_SIZE];
	va_list arguments;
	size_t size;

	if (err == NULL) {
		return -WIRE_INTERNAL; /* the code is lost, but it was a failure */
	}
	memcpy(old, err->text, sizeof old);
	va_start(arguments, format);
	(void)vsnprintf(err->text, sizeof err->text, format, arguments);
	va_end(arguments);
	/* What does not fit behind the prefix is cut. */
	size = strlen(err->text);
	for (const char *at = ": "; *at != '\0' && size + 1 < sizeof err->text; at++) {
		err->text[size++] = *at;
	}
	for (const char *at = old; *at != '\0' && size + 1 < sizeof err->text; at++) {
		err->text[size++] = *at;
	}
	err->text[size] = '\0';
	return -err->code;
}
