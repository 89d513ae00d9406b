/* SPDX-License-Identifier: Apache-2.0 */
/* The file itself: where it lies and how it is replaced. Its text: state_text.c. */
#include "daemon/state_file.h"

#include "base/cleanup.h"
#include "base/err.h"
#include "base/os/sys.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "proto/gen/wire_code.h"

#define NEW_NAME STATE_NAME ".new"
#define BAD_NAME STATE_NAME ".bad"

static char *join(const char *folder, const char *name)
{
	char *path = sys_malloc(strlen(folder) + strlen(name) + 2);

	if (path != NULL) {
		(void)stpcpy(stpcpy(stpcpy(path, folder), "/"), name);
	}
	return path;
}

static int fail_memory(struct err *err)
{
	return err_set(err, WIRE_NO_MEMORY, "no memory for " STATE_NAME);
}

/* ---- reading ---- */

static int read_all(int fd, size_t size, char *bytes, struct err *err)
{
	size_t used = 0;

	while (used < size) {
		ssize_t n = sys_pread(fd, &bytes[used], size - used, used);

		if (n < 0 && errno == EINTR) {
			continue;
		}
		if (n < 0) {
			return err_set_sys(err, WIRE_IO, errno, "it cannot be read: %s",
					   strerror(errno));
		}
		if (n == 0) {
			return err_set(err, WIRE_BAD_FILE, "it became shorter while it was read");
		}
		used += (size_t)n;
	}
	return 0;
}

static int read_open(int fd, struct state *ret, struct err *err)
{
	AUTO_FREE char *bytes = NULL;
	struct stat status;
	size_t size;
	int code;

	if (sys_fstat(fd, &status) < 0) {
		return err_set_sys(err, WIRE_IO, errno, "it cannot be looked at: %s",
				   strerror(errno));
	}
	if (!S_ISREG(status.st_mode)) {
		return err_set(err, WIRE_BAD_FILE, "it is not a regular file");
	}
	if (status.st_size == 0) {
		return err_set(err, WIRE_BAD_FILE, "it is empty");
	}
	if (status.st_size > (off_t)STATE_MAX_BYTES) {
		return err_set(err, WIRE_BAD_FILE, "it has %lld bytes, at most %u are read",
			       (long long)status.st_size, STATE_MAX_BYTES);
	}
	size = (size_t)status.st_size;
	bytes = sys_malloc(size);
	if (bytes == NULL) {
		return fail_memory(err);
	}
	code = read_all(fd, size, bytes, err);
	return code < 0 ? code : state_parse(bytes, size, ret, err);
}

int state_read(const char *folder, struct state *ret, struct err *err)
{
	AUTO_FREE char *path = join(folder, STATE_NAME);
	AUTO_CLOSE int fd = -1;

	if (path == NULL) {
		return fail_memory(err);
	}
	/* O_NONBLOCK: a pipe of that name must not be waited for. */
	fd = sys_open(path, O_RDONLY | O_NONBLOCK | O_NOCTTY);
	if (fd < 0 && (errno == ENOENT || errno == ENOTDIR)) {
		return err_set(err, WIRE_NOT_FOUND, "there is none");
	}
	if (fd < 0) {
		return err_set_sys(err, WIRE_IO, errno, "it cannot be opened: %s", strerror(errno));
	}
	return read_open(fd, ret, err);
}

void state_remove_stray(const char *folder)
{
	AUTO_FREE char *path = join(folder, NEW_NAME);

	if (path != NULL) {
		(void)unlink(path); /* there is none, or the next write says why it cannot go */
	}
}

int state_set_aside(const char *folder, struct err *err)
{
	AUTO_FREE char *path = join(folder, STATE_NAME);
	AUTO_FREE char *bad = join(folder, BAD_NAME);

	if (path == NULL || bad == NULL) {
		return fail_memory(err);
	}
	if (sys_rename(path, bad) < 0) {
		return err_set_sys(err, WIRE_IO, errno, "it cannot be renamed " BAD_NAME ": %s",
				   strerror(errno));
	}
	return 0;
}

/* ---- writing ---- */

static int write_all(int fd, const char *bytes, size_t size)
{
	while (size > 0) {
		ssize_t n = sys_write(fd, bytes, size);

		if (n < 0 && errno == EINTR) {
			continue;
		}
		if (n < 0) {
			return -1;
		}
		bytes += n;
		size -= (size_t)n;
	}
	return 0;
}

/* What fails is told by errno. */
static int write_new(const char *path, const char *text)
{
	AUTO_CLOSE int fd = sys_open(path, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_NOCTTY);

	/* The mode stands whatever umask says. */
	return fd < 0 || sys_fchmod(fd, 0600) < 0 || write_all(fd, text, strlen(text)) < 0 ||
			       sys_fsync(fd) < 0
		       ? -1
		       : 0;
}

int state_write(const char *folder, const struct state *state, struct err *err)
{
	AUTO_FREE char *text = state_print(state);
	AUTO_FREE char *path = join(folder, STATE_NAME);
	AUTO_FREE char *fresh = join(folder, NEW_NAME);
	int error;

	if (text == NULL || path == NULL || fresh == NULL) {
		return fail_memory(err);
	}
	if (strlen(text) > STATE_MAX_BYTES) {
		return err_set(err, WIRE_TOO_LARGE, "%s would have %zu bytes, at most %u are read",
			       path, strlen(text), STATE_MAX_BYTES);
	}
	(void)unlink(fresh); /* of a writer that was killed or failed */
	if (write_new(fresh, text) < 0 || sys_rename(fresh, path) < 0) {
		error = errno;
		(void)unlink(fresh); /* what is there of it is of no use */
		return err_set_sys(err, WIRE_IO, error, "%s cannot be written: %s", path,
				   strerror(error));
	}
	return 0;
}

int state_sync_folder(const char *folder, struct err *err)
{
	AUTO_CLOSE int fd = sys_open(folder, O_RDONLY | O_DIRECTORY);

	return fd < 0 || sys_fsync(fd) < 0
		       ? err_set_sys(err, WIRE_IO, errno, "the folder %s cannot be synced: %s",
				     folder, strerror(errno))
		       : 0;
}
