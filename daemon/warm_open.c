/* SPDX-License-Identifier: Apache-2.0 */
/* See warm_open.h. */
#include "daemon/warm_open.h"

#include "base/cleanup.h"
#include "base/err.h"
#include "base/os/model_path.h"
#include "base/os/sys.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "daemon/load/file.h"
#include "proto/gen/wire_code.h"

static int fail_open(struct err *err, int error)
{
	int code = error == ENOENT || error == ENOTDIR  ? WIRE_NOT_FOUND
		   : error == EACCES || error == EPERM  ? WIRE_NOT_ALLOWED
		   : error == EMFILE || error == ENFILE ? WIRE_TOO_MANY
							: WIRE_IO;

	return err_set_sys(err, code, error, "the daemon cannot open it: %s", strerror(error));
}

/* What it is is asked before it is opened: opening a device does something. */
static int open_single(const char *path, struct file **ret, struct err *err)
{
	AUTO_CLOSE int place = sys_open(path, O_PATH);
	char again[64];
	struct stat status;
	int fd;

	if (place < 0 || sys_fstat(place, &status) < 0) {
		return fail_open(err, errno);
	}
	if (!S_ISREG(status.st_mode)) {
		return err_set(err, WIRE_BAD_FILE, "it is %s, not a file",
			       S_ISDIR(status.st_mode)    ? "a folder"
			       : S_ISFIFO(status.st_mode) ? "a pipe"
							  : "a device or a socket");
	}
	(void)snprintf(again, sizeof again, "/proc/self/fd/%d", place);
	fd = sys_open(again, O_RDONLY | O_NOCTTY | O_NONBLOCK);
	if (fd < 0) {
		return fail_open(err, errno);
	}
	/* Without the second one everything goes through the page cache. */
	return file_new(fd, sys_open(again, O_RDONLY | O_NOCTTY | O_DIRECT), ret, err);
}

static int open_named(const char *path, const char *name, struct file **ret, struct err *err)
{
	int code = open_single(path, ret, err);

	if (code < 0) {
		(void)err_wrap(err, "%.100s", name);
		return code;
	}
	if (!file_set_name(*ret, name)) {
		*ret = file_unref(*ret);
		return err_set(err, WIRE_NO_MEMORY, "no memory for a file's name");
	}
	return 0;
}

static int open_shard(const struct model_path *found, const char *name, struct file **ret,
		      struct err *err)
{
	AUTO_FREE char *path = model_path_of_file(found, name);

	return path == NULL ? err_set(err, WIRE_NO_MEMORY, "no memory for a path")
			    : open_named(path, name, ret, err);
}

static int open_index(const struct model_path *found, struct file **ret, struct err *err)
{
	const char *slash = strrchr(found->whole, '/');

	return !found->has_index ? 0
				 : open_named(found->whole,
					      slash == NULL ? found->whole : slash + 1, ret, err);
}

static int open_several(const struct model_path *found, struct file **ret, struct err *err)
{
	const uint32_t n_files = found->files->n;
	AUTO_FREE struct file **files = sys_calloc(n_files, sizeof(struct file *));
	struct file *index = NULL;
	uint32_t n_opened = 0;
	int code = files == NULL ? err_set(err, WIRE_NO_MEMORY, "no memory for %u files", n_files)
				 : open_index(found, &index, err);

	while (code == 0 && n_opened < n_files) {
		code = open_shard(found, found->files->names[n_opened], &files[n_opened], err);
		n_opened += code == 0 ? 1 : 0;
	}
	if (code == 0) {
		return file_join(geteuid(), index, files, n_files, ret, err);
	}
	for (uint32_t i = 0; i < n_opened; i++) {
		(void)file_unref(files[i]);
	}
	(void)file_unref(index);
	return code;
}

int warm_open(const char *path, struct file **ret, struct err *err)
{
	AUTO_FREE struct model_path *found = sys_malloc(sizeof *found);
	int code;

	if (found == NULL) {
		return err_set(err, WIRE_NO_MEMORY, "no memory for a path");
	}
	code = model_path_find(path, found, err);
	if (code == 0) {
		code = found->files == NULL ? open_single(path, ret, err)
					    : open_several(found, ret, err);
	}
	model_path_fini(found);
	return code;
}
