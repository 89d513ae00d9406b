/* SPDX-License-Identifier: Apache-2.0 */
/* See names.h. */
#include "daemon/names.h"

#include "base/cleanup.h"
#include "base/err.h"
#include "base/os/sys.h"

#include <errno.h>
#include <grp.h>
#include <pwd.h>
#include <stdbool.h>
#include <string.h>

#include "daemon/config.h"
#include "proto/gen/wire_code.h"

#define FIRST_BYTES 4096U
#define MOST_BYTES  (16U << 20) /* a group lists its members */

/* Returns 0 or an errno; '*ret_id' is UINT32_MAX where there is none. */
static int look_up(const char *name, bool is_group, uint32_t *ret_id)
{
	int code = ERANGE;

	*ret_id = UINT32_MAX;
	for (size_t size = FIRST_BYTES; size <= MOST_BYTES && code == ERANGE; size *= 8) {
		AUTO_FREE char *buffer = sys_malloc(size);
		struct passwd user;
		struct passwd *found_user = NULL;
		struct group group;
		struct group *found_group = NULL;

		if (buffer == NULL) {
			return ENOMEM;
		}
		code = is_group ? getgrnam_r(name, &group, buffer, size, &found_group)
				: getpwnam_r(name, &user, buffer, size, &found_user);
		if (found_group != NULL) {
			*ret_id = group.gr_gid;
		} else if (found_user != NULL) {
			*ret_id = user.pw_uid;
		}
	}
	return code;
}

uint32_t names_find_group(const char *name)
{
	uint32_t gid;

	(void)look_up(name, true, &gid);
	return gid;
}

uint32_t names_find_user(const char *name)
{
	uint32_t uid;

	(void)look_up(name, false, &uid);
	return uid;
}

int names_check_value(const char *source, const char *key, const char *value, struct err *err)
{
	bool is_group = strcmp(key, "access.group") == 0;
	uint32_t id = UINT32_MAX;
	int code;

	if ((!is_group && strcmp(key, "access.control") != 0) || value[0] == '\0') {
		return 0;
	}
	code = look_up(value, is_group, &id);
	if (id != UINT32_MAX) {
		return 0;
	}
	if (code == ENOMEM) {
		return err_set(err, WIRE_NO_MEMORY, "no memory to look %.64s up", value);
	}
	/* Some say that it is not there by a code. */
	if (code != 0 && code != ENOENT && code != ESRCH) {
		return err_set_sys(err, WIRE_BAD_ARGUMENT, code,
				   "%.96s: %s = %.64s: it cannot be looked up: %s", source, key,
				   value, strerror(code));
	}
	return err_set(err, WIRE_BAD_ARGUMENT, "%.96s: %s = %.64s: there is no such %s", source,
		       key, value, is_group ? "group" : "user");
}

int names_check(const struct config *config, struct err *err)
{
	struct config_item item;
	uint32_t cursor = 0;
	int code = 0;

	while (code == 0 && config_next(config, &cursor, &item)) {
		if (strcmp(item.source, "default") != 0) {
			code = names_check_value(item.source, item.key, item.value, err);
		}
	}
	return code;
}
