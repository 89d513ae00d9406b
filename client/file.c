/* SPDX-License-Identifier: Apache-2.0 */
#include "client/file.h"

#include "base/cleanup.h"
#include "base/os/model_path.h"
#include "base/utf8.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "client/error.h"

static int open_failed(const char *path, int sys)
{
	if (sys == ENOENT || sys == ENOTDIR) {
		return failure_set(DISTORCH_E_NOT_FOUND, sys, NULL, "there is no file %s", path);
	}
	if (sys == EACCES || sys == EPERM) {
		return failure_set(DISTORCH_E_NOT_ALLOWED, sys, NULL, "you may not read %s", path);
	}
	if (sys == EMFILE || sys == ENFILE) {
		return failure_set(DISTORCH_E_TOO_MANY, sys, "raise ulimit -n",
				   "%s cannot be opened: %s", path, strerror(sys));
	}
	if (sys == EAGAIN) { /* it is opened without waiting */
		return failure_set(DISTORCH_E_BUSY, sys, "try again in a moment",
				   "%s cannot be opened: another process holds a lease on it",
				   path);
	}
	return failure_set(DISTORCH_E_IO, sys, NULL, "%s cannot be opened: %s", path,
			   strerror(sys));
}

static const char *kind_name(mode_t mode)
{
	switch (mode & S_IFMT) {
	case S_IFDIR:
		return "a folder";
	case S_IFIFO:
		return "a pipe";
	case S_IFSOCK:
		return "a socket";
	case S_IFCHR:
	case S_IFBLK:
		return "a device";
	default:
		return "no regular file";
	}
}

/* A second description with O_DIRECT; the first one's flags are never changed. */
static void add_direct(struct file *file)
{
	char path[64];

	(void)snprintf(path, sizeof path, "/proc/self/fd/%d", file->fds[0]); /* fits */
	file->fds[1] = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_DIRECT);
	if (file->fds[1] >= 0) {
		file->n_fds = 2;
	}
}

int file_open(const char *path, struct file *ret)
{
	/* O_NONBLOCK: opening a pipe must not wait for a writer. Files ignore it. */
	AUTO_CLOSE int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
	struct stat status;

	if (fd < 0) {
		return open_failed(path, errno);
	}
	if (fstat(fd, &status) != 0) {
		return open_failed(path, errno);
	}
	if (!S_ISREG(status.st_mode)) {
		return failure_set(DISTORCH_E_BAD_FILE, 0, "name one file of a model", "%s is %s",
				   path, kind_name(status.st_mode));
	}
	*ret = (struct file){.fds = {steal_fd(&fd), -1}, .n_fds = 1};
	add_direct(ret);
	return 0;
}

int file_borrow(int fd, struct file *ret)
{
	struct stat status;

	if (fd < 0 || fstat(fd, &status) != 0) {
		return failure_set(DISTORCH_E_BAD_FD, EBADF, NULL, "%d is no open descriptor", fd);
	}
	*ret = (struct file){.fds = {fd, -1}, .n_fds = 1, .is_borrowed = true};
	if (S_ISREG(status.st_mode)) {
		add_direct(ret);
	}
	return 0; /* what it is good for is for the daemon to say */
}

void file_close(struct file *file)
{
	if (file->n_fds > 0 && !file->is_borrowed) {
		(void)close(file->fds[0]); /* read only: nothing can be lost */
	}
	if (file->n_fds > 1) {
		(void)close(file->fds[1]); /* likewise */
	}
	*file = (struct file){.fds = {-1, -1}};
}

bool file_exists(const char *text)
{
	struct model_path found;
	bool exists = model_path_is_file(text);

	if (!exists) {
		exists = model_path_find(text, &found, NULL) < 0 || found.files != NULL;
		model_path_fini(&found);
	}
	return exists;
}

/* The protocol's text is UTF-8: what is not would be asked for by other bytes, and meet another
 * model or none. */
static int put_text(const char *text, const char *hint, struct wire_str *ret)
{
	if (!utf8_is_name(text, strlen(text))) {
		return failure_set(DISTORCH_E_BAD_ARGUMENT, 0, hint,
				   "%s has bytes that are not UTF-8, which cannot be asked for",
				   text);
	}
	*ret = wire_str(text);
	return 0;
}

int file_name_text(const char *text, struct wire_str *ret)
{
	return put_text(text, "name the model by its id: distorchctl ps", ret);
}

int file_model_text(const char *text, char *buffer, struct wire_str *ret)
{
	struct model_path found;
	const char *path = text;

	if (strchr(text, '/') != NULL) {
		/* What cannot be read is told when it is loaded; here it is only a name. */
		(void)model_path_find(text, &found, NULL);
		path = realpath(found.whole[0] == '\0' ? text : found.whole, buffer);
		model_path_fini(&found);
	}
	return file_name_text(path != NULL ? path : text, ret);
}

int file_folder_text(const char *text, char *buffer, struct wire_str *ret)
{
	return put_text(realpath(text, buffer) != NULL ? buffer : text,
			"name its models by their ids: distorchctl ps", ret);
}
