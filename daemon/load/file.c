/* SPDX-License-Identifier: Apache-2.0 */
/* Judging and counting source files. See file.h. */
#include "daemon/load/file.h"

#include "base/cleanup.h"
#include "base/err.h"
#include "base/os/closer.h"
#include "base/os/sys.h"
#include "base/require.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/magic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "proto/gen/wire_code.h"

#ifndef F_SEAL_FUTURE_WRITE
#	define F_SEAL_FUTURE_WRITE 0x0010
#endif

static const char *kind_name(unsigned mode)
{
	switch (mode & S_IFMT) {
	case S_IFDIR:
		return "a directory";
	case S_IFIFO:
		return "a pipe";
	case S_IFSOCK:
		return "a socket";
	case S_IFCHR:
		return "a character device";
	case S_IFBLK:
		return "a block device";
	case S_IFLNK:
		return "a symbolic link";
	default:
		return "a kernel object without a file (epoll, eventfd or the like)";
	}
}

static struct file_key key_of(const struct statx *status)
{
	return (struct file_key){
		.dev = makedev(status->stx_dev_major, status->stx_dev_minor),
		.ino = status->stx_ino,
		.size = status->stx_size,
		.mtime_ns = status->stx_mtime.tv_sec * 1000000000LL + status->stx_mtime.tv_nsec,
		.ctime_ns = status->stx_ctime.tv_sec * 1000000000LL + status->stx_ctime.tv_nsec,
	};
}

/* How the description was opened; 'what' names the descriptor in the refusal. */
static int check_access(int fd, const char *what, int *ret_flags, struct err *err)
{
	const int flags = sys_fcntl(fd, F_GETFL, 0);

	if (flags < 0) {
		return err_set_sys(err, WIRE_BAD_FD, errno, "%s: %s", what, strerror(errno));
	}
	if ((flags & O_PATH) != 0) {
		return err_set(err, WIRE_BAD_FD, "%s was opened with O_PATH and cannot be read",
			       what);
	}
	if ((flags & O_ACCMODE) != O_RDONLY && (flags & O_ACCMODE) != O_RDWR) {
		return err_set(err, WIRE_BAD_FD, "%s was opened for writing only", what);
	}
	*ret_flags = flags;
	return 0;
}

static int check_regular(int fd, const char *what, struct file_key *ret, struct err *err)
{
	struct statx status;

	if (sys_statx(fd, AT_STATX_DONT_SYNC, &status) < 0) {
		return err_set_sys(err, WIRE_BAD_FD, errno, "%s: %s", what, strerror(errno));
	}
	if ((status.stx_mode & S_IFMT) != S_IFREG) {
		return err_set(err, WIRE_BAD_FD, "%s is %s, not a regular file", what,
			       kind_name(status.stx_mode));
	}
	*ret = key_of(&status);
	return 0;
}

/* A memfd is its sender's to write until it is sealed. */
static int check_memfd(int fd, const char *path, struct err *err)
{
	int seals;

	if (strncmp(path, "/memfd:", strlen("/memfd:")) != 0) {
		return 0;
	}
	seals = sys_fcntl(fd, F_GET_SEALS, 0);
	if (seals < 0 || (seals & F_SEAL_SHRINK) == 0 ||
	    (seals & (F_SEAL_WRITE | F_SEAL_FUTURE_WRITE)) == 0) {
		return err_set(err, WIRE_BAD_FD,
			       "the descriptor is a memfd without seals against shrinking and "
			       "writing");
	}
	return 0;
}

static int check_direct(const struct file *file, struct err *err)
{
	struct file_key key;
	int flags;
	int code = check_access(file->direct_fd, "the second descriptor", &flags, err);

	if (code == 0) {
		code = check_regular(file->direct_fd, "the second descriptor", &key, err);
	}
	if (code < 0) {
		return code;
	}
	if (key.dev != file->key.dev || key.ino != file->key.ino) {
		return err_set(err, WIRE_BAD_FD, "the second descriptor is another file");
	}
	if ((flags & O_DIRECT) == 0) {
		return err_set(err, WIRE_BAD_FD,
			       "the second descriptor was opened without O_DIRECT");
	}
	return 0;
}

/* The kernel's word for where it lies; asks no server. Empty when it cannot be told. */
static char *read_own_path(int fd)
{
	static const char deleted[] = " (deleted)";
	char link[64];
	char path[PATH_MAX];
	ssize_t length;

	(void)snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
	length = readlink(link, path, sizeof path - 1);
	length = length < 0 ? 0 : length;
	path[length] = '\0';
	if ((size_t)length >= sizeof deleted &&
	    strcmp(path + length - (ssize_t)strlen(deleted), deleted) == 0) {
		path[length - (ssize_t)strlen(deleted)] = '\0';
	}
	return sys_strdup(path);
}

/* Not here: asking the file's server can take for ever. */
static void give_up(uint32_t owner, int fd, int direct_fd)
{
	int fds[] = {fd, direct_fd};

	closer_give(owner, fds, 2);
}

int file_take(uint32_t owner, int fd, int direct_fd, struct file **ret, struct err *err)
{
	struct file *file = sys_calloc(1, sizeof *file);
	int flags;
	int code;

	if (file == NULL) {
		give_up(owner, fd, direct_fd);
		return err_set(err, WIRE_NO_MEMORY, "no memory for a source file");
	}
	*file = (struct file){.fd = fd, .direct_fd = direct_fd, .owner = owner, .n_refs = 1};
	code = check_access(fd, "the descriptor", &flags, err);
	if (code == 0) {
		code = check_regular(fd, "the descriptor", &file->key, err);
	}
	if (code == 0 && direct_fd >= 0) {
		code = check_direct(file, err);
	}
	if (code == 0) {
		file->path = read_own_path(fd);
		code = file->path == NULL
			       ? err_set(err, WIRE_NO_MEMORY, "no memory for a source file")
			       : check_memfd(fd, file->path, err);
	}
	if (code < 0) {
		(void)file_unref(file);
		return code;
	}
	file->read_key = file->key;
	*ret = file;
	return 0;
}

int file_new(int fd, int direct_fd, struct file **ret, struct err *err)
{
	return file_take(geteuid(), fd, direct_fd, ret, err);
}

struct file *file_ref(struct file *file)
{
	REQUIRE(__atomic_add_fetch(&file->n_refs, 1, __ATOMIC_RELAXED) > 1);
	return file;
}

struct file *file_unref(struct file *file)
{
	if (file == NULL || __atomic_sub_fetch(&file->n_refs, 1, __ATOMIC_ACQ_REL) > 0) {
		return NULL;
	}
	give_up(file->owner, file->fd, file->direct_fd);
	free(file->path);
	free(file);
	return NULL;
}

const char *file_path(const struct file *file)
{
	return file->path;
}

int file_read_key(const struct file *file, struct file_key *ret, struct err *err)
{
	struct statx status;

	if (sys_statx(file->fd, AT_STATX_SYNC_AS_STAT, &status) < 0) {
		int error = errno;

		return err_set_sys(err, WIRE_IO, error, "the file's size cannot be read: %s",
				   strerror(error));
	}
	*ret = key_of(&status);
	return 0;
}

bool file_key_is_equal(const struct file_key *a, const struct file_key *b)
{
	return a->dev == b->dev && a->ino == b->ino && a->size == b->size &&
	       a->mtime_ns == b->mtime_ns && a->ctime_ns == b->ctime_ns;
}

int file_check_filesystem(const struct file *file, struct err *err)
{
	struct statfs status;

	if (fstatfs(file->fd, &status) < 0) {
		int error = errno;

		return err_set_sys(err, WIRE_IO, error, "the file's filesystem cannot be read: %s",
				   strerror(error));
	}
	switch ((unsigned long)status.f_type) {
	case PROC_SUPER_MAGIC:
	case SYSFS_MAGIC:
	case CGROUP_SUPER_MAGIC:
	case CGROUP2_SUPER_MAGIC:
	case DEBUGFS_MAGIC:
	case TRACEFS_MAGIC:
	case SECURITYFS_MAGIC:
		return err_set(err, WIRE_BAD_FD,
			       "the file is made up by the kernel (proc, sysfs or the like)");
	default:
		return 0;
	}
}
