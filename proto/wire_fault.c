/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The words of a refusal: which field, which limit. Written by hand because the room may not
 * format with the C library; what does not fit is cut.
 */
#include <string.h>

#include "proto/wire_read.h"

int wire_fault_begin(struct wire_fault *fault, enum wire_code code, const char *text)
{
	fault->code = code;
	fault->field[0] = '\0';
	fault->text[0] = '\0';
	wire_fault_text(fault, text);
	return -(int)code;
}

void wire_fault_text(struct wire_fault *fault, const char *text)
{
	size_t used = strlen(fault->text);
	size_t size = strlen(text);

	if (size > sizeof fault->text - 1 - used) {
		size = sizeof fault->text - 1 - used;
	}
	memcpy(fault->text + used, text, size);
	fault->text[used + size] = '\0';
}

void wire_fault_number(struct wire_fault *fault, uint64_t number)
{
	char digits[21];
	char *at = digits + sizeof digits - 1;

	*at = '\0';
	do {
		*--at = (char)('0' + number % 10);
		number /= 10;
	} while (number > 0);
	wire_fault_text(fault, at);
}

void wire_fault_field(struct wire_fault *fault, const char *name, size_t size)
{
	size_t used = strlen(fault->field);

	if (used > 0 && used < sizeof fault->field - 1) {
		fault->field[used++] = '.';
	}
	for (size_t i = 0; i < size && used < sizeof fault->field - 1; i++) {
		fault->field[used++] = name[i] >= ' ' && name[i] <= '~' ? name[i] : '?';
	}
	fault->field[used] = '\0';
}
