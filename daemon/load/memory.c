/* SPDX-License-Identifier: Apache-2.0 */
/* /proc/meminfo and the cgroup files, v1 and v2. See memory.h. */
#include "daemon/load/memory.h"

#include "base/cleanup.h"
#include "base/err.h"
#include "base/os/sys.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "proto/gen/wire_code.h"

#define KIB       1024ULL
#define GIB       (1ULL << 30)
#define TEXT_SIZE 8192U /* more than the part of any of these files that is looked at */
#define PATH_SIZE 2048U /* a cgroup of a longer path bounds nothing */
#define NAME_SIZE 32U

/* The names that one generation of cgroups gives to the same things. */
struct cgroup_names {
	const char *mount;
	const char *limit;
	const char *current;
	const char *inactive_file; /* in memory.stat, of the group and all below it */
	const char *active_file;
};

static const struct cgroup_names cgroup_v1 = {
	.mount = "/sys/fs/cgroup/memory",
	.limit = "memory.limit_in_bytes",
	.current = "memory.usage_in_bytes",
	.inactive_file = "total_inactive_file",
	.active_file = "total_active_file",
};

static const struct cgroup_names cgroup_v2 = {
	.mount = "/sys/fs/cgroup",
	.limit = "memory.max",
	.current = "memory.current",
	.inactive_file = "inactive_file",
	.active_file = "active_file",
};

/* The beginning of a small file as a string. False when there is none. */
static bool read_text(const char *path, char *text, size_t text_size)
{
	AUTO_CLOSE int fd = sys_open(path, O_RDONLY | O_NOCTTY);
	size_t size = 0;

	if (fd < 0) {
		return false;
	}
	while (size < text_size - 1) {
		ssize_t n_read = sys_pread(fd, text + size, text_size - 1 - size, size);

		if (n_read < 0 && errno == EINTR) {
			continue;
		}
		if (n_read < 0) {
			return false;
		}
		if (n_read == 0) {
			break;
		}
		size += (size_t)n_read;
	}
	text[size] = '\0';
	return true;
}

/* The number after "key " or "key: " at the beginning of a line. */
static bool find_number(const char *text, const char *key, uint64_t *ret)
{
	const size_t key_size = strlen(key);

	for (const char *line = text; line != NULL && *line != '\0';) {
		if (strncmp(line, key, key_size) == 0 &&
		    (line[key_size] == ' ' || line[key_size] == ':')) {
			return sscanf(line + key_size + 1, "%" SCNu64, ret) == 1;
		}
		line = strchr(line, '\n');
		line = line == NULL ? NULL : line + 1;
	}
	return false;
}

static bool read_in(const char *folder, const char *name, char *text)
{
	char path[PATH_SIZE + NAME_SIZE];

	(void)snprintf(path, sizeof path, "%s/%.*s", folder, (int)NAME_SIZE - 2, name); /* fits */
	return read_text(path, text, TEXT_SIZE);
}

/* Lower 'total' and 'available' to what one group leaves. */
static void bound_by_group(const char *folder, const struct cgroup_names *names, char *text,
			   struct host_memory *memory)
{
	uint64_t limit;
	uint64_t current;
	uint64_t inactive = 0;
	uint64_t active = 0;
	uint64_t taken;

	/* "max" is no number: no limit. */
	if (!read_in(folder, names->limit, text) || sscanf(text, "%" SCNu64, &limit) != 1) {
		return;
	}
	memory->total = limit < memory->total ? limit : memory->total;
	if (!read_in(folder, names->current, text) || sscanf(text, "%" SCNu64, &current) != 1) {
		return;
	}
	/* Page cache is charged to the group and given back when it wants more. */
	if (read_in(folder, "memory.stat", text)) {
		(void)find_number(text, names->inactive_file, &inactive);
		(void)find_number(text, names->active_file, &active);
	}
	taken = current > inactive ? current - inactive : 0;
	taken = taken > active ? taken - active : 0;
	limit = limit > taken ? limit - taken : 0;
	memory->available = limit < memory->available ? limit : memory->available;
}

/* The group and every group above it, up to the mount. */
static void bound_by_groups(const char *root, const char *group, const struct cgroup_names *names,
			    char *text, struct host_memory *memory)
{
	char folder[PATH_SIZE];
	int length = snprintf(folder, sizeof folder, "%s%s%s", root, names->mount, group);
	const size_t mount_size = strlen(root) + strlen(names->mount);

	if (length < 0 || (size_t)length >= sizeof folder) {
		return;
	}
	for (;;) {
		char *slash;

		bound_by_group(folder, names, text, memory);
		slash = strrchr(folder, '/');
		if (slash == NULL || (size_t)(slash - folder) < mount_size) {
			break;
		}
		*slash = '\0';
	}
}

/* Does a comma-separated list hold "memory"? */
static bool has_memory(const char *controllers)
{
	for (const char *at = controllers; *at != '\0';) {
		size_t size = strcspn(at, ",");

		if (size == strlen("memory") && strncmp(at, "memory", size) == 0) {
			return true;
		}
		at += size + (at[size] == ',' ? 1 : 0);
	}
	return false;
}

/* /proc/self/cgroup: "4:memory:/group" (v1), "0::/group" (v2). */
static void bound_by_cgroups(const char *root, const char *groups, char *text,
			     struct host_memory *memory)
{
	AUTO_FREE char *copy = sys_strdup(groups);
	char *rest = copy;
	char *line;

	while ((line = strsep(&rest, "\n")) != NULL) {
		const char *number = strsep(&line, ":");
		const char *controllers = strsep(&line, ":");

		if (line == NULL || number == NULL || controllers == NULL) {
			continue;
		}
		if (controllers[0] == '\0') {
			bound_by_groups(root, line, &cgroup_v2, text, memory);
		} else if (has_memory(controllers)) {
			bound_by_groups(root, line, &cgroup_v1, text, memory);
		}
	}
}

static bool read_path(const char *root, const char *path, char *text)
{
	char full[PATH_SIZE];
	int length = snprintf(full, sizeof full, "%s%s", root, path);

	return length > 0 && (size_t)length < sizeof full && read_text(full, text, TEXT_SIZE);
}

int host_memory_read(const char *root, struct host_memory *ret, struct err *err)
{
	AUTO_FREE char *text = sys_malloc(TEXT_SIZE);
	AUTO_FREE char *groups = sys_malloc(TEXT_SIZE);
	struct host_memory memory = {0};

	if (text == NULL || groups == NULL) {
		return err_set(err, WIRE_NO_MEMORY, "no memory to read /proc/meminfo");
	}
	root = root == NULL ? "" : root;
	if (!read_path(root, "/proc/meminfo", text) ||
	    !find_number(text, "MemTotal", &memory.total) ||
	    !find_number(text, "MemAvailable", &memory.available) ||
	    memory.total > UINT64_MAX / KIB || memory.available > UINT64_MAX / KIB) {
		return err_set(err, WIRE_INTERNAL, "%s/proc/meminfo cannot be read", root);
	}
	memory.total *= KIB;
	memory.available *= KIB;
	if (read_path(root, "/proc/self/cgroup", groups)) {
		bound_by_cgroups(root, groups, text, &memory);
	}
	*ret = memory;
	return 0;
}

uint64_t host_memory_auto_budget(const struct host_memory *memory)
{
	const uint64_t share = memory->total / 5 * 2;
	const uint64_t quarter = memory->total / 4;
	const uint64_t least = memory->available / 8;
	uint64_t budget = memory->available > quarter ? memory->available - quarter : 0;

	budget = budget < share ? budget : share;
	return budget > least ? budget : least;
}

uint64_t host_memory_auto_reserve(const struct host_memory *memory)
{
	const uint64_t share = memory->total / 100 * 12;
	const uint64_t most = memory->total / 4;
	const uint64_t reserve = share > 4 * GIB ? share : 4 * GIB;

	return reserve < most ? reserve : most;
}

bool host_memory_read_swapped(const char *root, uint64_t *ret)
{
	AUTO_FREE char *text = sys_malloc(TEXT_SIZE);
	char path[PATH_SIZE];
	char *group;
	int length;

	root = root == NULL ? "" : root;
	if (text == NULL || !read_path(root, "/proc/self/cgroup", text)) {
		return false;
	}
	group = strstr(text, "0::/"); /* its line is the last */
	if (group == NULL) {
		return false;
	}
	group += strlen("0::");
	group[strcspn(group, "\n")] = '\0';
	length = snprintf(path, sizeof path, "%s%s%s/memory.swap.current", root, cgroup_v2.mount,
			  group);
	return length > 0 && (size_t)length < sizeof path && read_text(path, text, TEXT_SIZE) &&
	       sscanf(text, "%" SCNu64, ret) == 1;
}

uint64_t memory_own_bytes(void)
{
	char text[4096];
	uint64_t anonymous;
	uint64_t of_files;

	if (!read_text("/proc/self/status", text, sizeof text) ||
	    !find_number(text, "RssAnon", &anonymous) || !find_number(text, "RssFile", &of_files)) {
		return 0;
	}
	return (anonymous + of_files) * KIB;
}
