/* SPDX-License-Identifier: Apache-2.0 */
/* See show.h. */
#include "daemon/format/show.h"

#include "base/err.h"
#include "base/text.h"

#include <stdio.h>
#include <string.h>

#include "proto/gen/wire_code.h"

const char *show_name(const char *name, size_t size, char buffer[SHOW_NAME_SIZE])
{
	char start[SHOW_NAME_SIZE];
	size_t shown = size < sizeof start ? size : sizeof start - 1;

	memcpy(start, name, shown);
	start[shown] = '\0';
	return text_escape(start, buffer, SHOW_NAME_SIZE);
}

const char *show_count(uint64_t count, char buffer[SHOW_COUNT_SIZE])
{
	char digits[SHOW_COUNT_SIZE];
	int n_digits = snprintf(digits, sizeof digits, "%llu", (unsigned long long)count);
	char *at = buffer;

	for (int i = 0; i < n_digits; i++) {
		if (i > 0 && (n_digits - i) % 3 == 0) {
			*at++ = ',';
		}
		*at++ = digits[i];
	}
	*at = '\0';
	return buffer;
}

int show_incomplete(uint64_t file_size, uint64_t described, struct err *err)
{
	char file_count[SHOW_COUNT_SIZE];
	char described_count[SHOW_COUNT_SIZE];

	return err_set(err, WIRE_BAD_FILE,
		       "file is %s bytes but its header describes %s: "
		       "the download is incomplete",
		       show_count(file_size, file_count), show_count(described, described_count));
}
