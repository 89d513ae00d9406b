/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Messages of sd_notify(3). Oracle: nothing is read past the end (the input is copied to memory
 * of its own size), and a name is never empty, too long or one that a list could not carry.
 */
#include "base/require.h"
#include "tests/fuzz/fuzz.h"

#include <stdlib.h>
#include <string.h>

#include "daemon/notify.h"

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size)
{
	struct notify_message message;
	char *copy = malloc(size == 0 ? 1 : size);

	REQUIRE(copy != NULL);
	memcpy(copy, bytes, size);
	notify_parse(copy, size, &message);
	free(copy);
	REQUIRE(message.name[0] != '\0' && strlen(message.name) < NOTIFY_NAME_SIZE);
	for (const char *at = message.name; *at != '\0'; at++) {
		REQUIRE(*at > ' ' && *at <= '~' && *at != ':');
	}
	return 0;
}
