/* SPDX-License-Identifier: Apache-2.0 */
/* What a message of sd_notify(3) says. Pure; see notify.h. */
#include <string.h>

#include "daemon/notify.h"

static bool is_line(const char *line, size_t size, const char *text)
{
	return size == strlen(text) && memcmp(line, text, size) == 0;
}

/* As systemd has it: printable ASCII without a colon, which separates names later. */
static bool is_good_name(const char *name, size_t size)
{
	for (size_t i = 0; i < size; i++) {
		if (name[i] <= ' ' || name[i] > '~' || name[i] == ':') {
			return false;
		}
	}
	return size > 0 && size < NOTIFY_NAME_SIZE;
}

static void take_line(const char *line, size_t size, struct notify_message *ret)
{
	static const char name_is[] = "FDNAME=";
	const size_t prefix = sizeof name_is - 1;

	ret->is_ready |= is_line(line, size, "READY=1");
	ret->is_stopping |= is_line(line, size, "STOPPING=1");
	ret->is_store |= is_line(line, size, "FDSTORE=1");
	ret->is_unstore |= is_line(line, size, "FDSTOREREMOVE=1");
	ret->is_barrier |= is_line(line, size, "BARRIER=1");
	ret->is_alive |= is_line(line, size, "WATCHDOG=1");
	if (size >= prefix && memcmp(line, name_is, prefix) == 0) {
		if (is_good_name(line + prefix, size - prefix)) {
			memcpy(ret->name, line + prefix, size - prefix);
			ret->name[size - prefix] = '\0';
		} else {
			ret->has_bad_name = true;
		}
	}
}

void notify_parse(const char *bytes, size_t size, struct notify_message *ret)
{
	memset(ret, 0, sizeof *ret);
	while (size > 0) {
		const char *end = memchr(bytes, '\n', size);
		size_t line_size = end == NULL ? size : (size_t)(end - bytes);

		take_line(bytes, line_size, ret);
		if (end == NULL) {
			break;
		}
		size -= line_size + 1;
		bytes = end + 1;
	}
	if (ret->name[0] == '\0') {
		memcpy(ret->name, "stored", sizeof "stored");
	}
}
