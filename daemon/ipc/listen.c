/* SPDX-License-Identifier: Apache-2.0 */
/* See listen.h. */
#include "daemon/ipc/listen.h"

#include "base/cleanup.h"
#include "base/err.h"
#include "base/os/sys.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "proto/gen/wire_code.h"

const char *listen_reason(int error)
{
	switch (error) {
	case ENOSPC:
	case EDQUOT:
		return "no room there, or no inode left (df, df -i); choose another path";
	case EROFS:
		return "it cannot be written there; choose another path";
	default:
		return strerror(error);
	}
}

int listen_make_folder(const char *path, struct err *err)
{
	char folder[LISTEN_MAX_PATH + 1];
	char *slash;

	(void)snprintf(folder, sizeof folder, "%s", path);
	slash = strrchr(folder, '/');
	if (slash == NULL || slash == folder) {
		return 0;
	}
	*slash = '\0';
	if (mkdir(folder, 0700) < 0) {
		return errno == EEXIST ? 0
				       : err_set_sys(err, WIRE_BAD_ARGUMENT, errno,
						     "cannot make the folder %s: %s", folder,
						     listen_reason(errno));
	}
	if (chmod(folder, geteuid() == 0 ? 0755 : 0700) < 0) { /* whatever the umask says */
		return err_set_sys(err, WIRE_BAD_ARGUMENT, errno, "the folder %s: %s", folder,
				   strerror(errno));
	}
	return 0;
}

static struct sockaddr_un address_of(const char *path)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};

	(void)snprintf(address.sun_path, sizeof address.sun_path, "%s", path);
	return address;
}

/* What is at the path already may go only if it is a dead socket of ours. */
static int clear_path(const struct listen_name *name, struct err *err)
{
	const char *path = name->path;
	const struct sockaddr_un address = address_of(path);
	struct stat status;
	AUTO_CLOSE int probe = -1;

	if (lstat(path, &status) < 0) {
		return errno == ENOENT ? 0
				       : err_set_sys(err, WIRE_BAD_ARGUMENT, errno, "%s: %s", path,
						     strerror(errno));
	}
	if (!S_ISSOCK(status.st_mode)) {
		return err_set(err, WIRE_BAD_ARGUMENT,
			       "%s exists and is not a socket; choose another path", path);
	}
	if (status.st_uid != geteuid()) {
		return err_set(err, WIRE_NOT_ALLOWED, "the socket %s belongs to uid %u", path,
			       (unsigned)status.st_uid);
	}
	probe = socket(AF_UNIX, name->type | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (probe < 0 || connect(probe, (const struct sockaddr *)&address, sizeof address) == 0 ||
	    errno != ECONNREFUSED) {
		return err_set(err, WIRE_BUSY, "somebody answers on %s already", path);
	}
	if (unlink(path) < 0) {
		return err_set_sys(err, WIRE_NOT_ALLOWED, errno,
				   "cannot remove the dead socket %s: %s", path, strerror(errno));
	}
	return 0;
}

/* Listen under another name first, so that whoever sees the path can connect to it. */
static int bind_path(const struct listen_name *wanted, struct listen_socket *ret, struct err *err)
{
	char name[LISTEN_MAX_PATH + 2];
	struct sockaddr_un address;
	struct stat status;
	AUTO_CLOSE int fd = socket(AF_UNIX, wanted->type | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

	if (fd < 0) {
		return err_set_sys(err, WIRE_TOO_MANY, errno, "socket: %s", strerror(errno));
	}
	(void)snprintf(name, sizeof name, "%s~", wanted->path);
	address = address_of(name);
	if (lstat(name, &status) == 0) {
		if (!S_ISSOCK(status.st_mode) || status.st_uid != geteuid()) {
			return err_set(
				err, WIRE_BAD_ARGUMENT,
				"%s is in the way and no socket of ours; choose another path",
				name);
		}
		(void)unlink(name); /* of a daemon killed in between */
	}
	if (bind(fd, (const struct sockaddr *)&address, sizeof address) < 0) {
		return err_set_sys(err, WIRE_BAD_ARGUMENT, errno, "cannot bind %s: %s",
				   wanted->path, listen_reason(errno));
	}
	/* It may be of that group already, and a service may be kept from changing it. */
	if (chmod(name, wanted->mode) < 0 || lstat(name, &status) < 0 ||
	    (wanted->gid != UINT32_MAX && wanted->gid != status.st_gid &&
	     chown(name, (uid_t)-1, wanted->gid) < 0) ||
	    listen(fd, wanted->backlog) < 0 || sys_rename(name, wanted->path) < 0) {
		int error = errno;

		(void)unlink(name);
		return err_set_sys(err, WIRE_BAD_ARGUMENT, error, "cannot listen on %s: %s",
				   wanted->path, strerror(error));
	}
	*ret = (struct listen_socket){.fd = steal_fd(&fd),
				      .dev = status.st_dev,
				      .ino = status.st_ino};
	return 0;
}

int listen_open(const struct listen_name *name, struct listen_socket *ret, struct err *err)
{
	int code;

	if (strlen(name->path) > LISTEN_MAX_PATH) {
		return err_set(err, WIRE_BAD_ARGUMENT,
			       "the socket path has %zu bytes; the system takes at most %d",
			       strlen(name->path), LISTEN_MAX_PATH);
	}
	code = clear_path(name, err);
	return code == 0 ? bind_path(name, ret, err) : code;
}

bool listen_is_gone(const char *path)
{
	const struct sockaddr_un address = address_of(path);
	/* Of a type that nobody has there: who is there refuses it as such and notices nothing. */
	AUTO_CLOSE int probe = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);

	return probe >= 0 &&
	       connect(probe, (const struct sockaddr *)&address, sizeof address) < 0 &&
	       (errno == ENOENT || errno == ECONNREFUSED);
}

/* What a new name in the path's folder gets where no group is said. */
static gid_t usual_group(const char *path)
{
	struct sockaddr_un address = address_of(path);
	char *slash = strrchr(address.sun_path, '/');
	struct stat status;

	if (slash != NULL) {
		slash[1] = '\0';
	}
	return stat(slash == NULL ? "." : address.sun_path, &status) == 0 &&
			       (status.st_mode & S_ISGID) != 0
		       ? status.st_gid
		       : getegid();
}

int listen_set_rights(const struct listen_name *name, struct err *err)
{
	gid_t gid = name->gid == UINT32_MAX ? usual_group(name->path) : name->gid;
	struct stat status;

	if (lstat(name->path, &status) < 0 || !S_ISSOCK(status.st_mode) ||
	    status.st_uid != geteuid()) {
		return err_set(err, WIRE_NOT_ALLOWED, "%s is no socket of ours", name->path);
	}
	/* Only what differs: a service may be kept from changing it. */
	if (((status.st_mode & 07777) != name->mode && chmod(name->path, name->mode) < 0) ||
	    (status.st_gid != gid && lchown(name->path, (uid_t)-1, gid) < 0)) {
		return err_set_sys(err, WIRE_NOT_ALLOWED, errno, "%s: %s", name->path,
				   strerror(errno));
	}
	return 0;
}

void listen_forget(const struct listen_socket *socket, const char *path)
{
	struct stat status;

	if (socket->ino != 0 && lstat(path, &status) == 0 && status.st_dev == socket->dev &&
	    status.st_ino == socket->ino) {
		(void)unlink(path); /* a leftover name only refuses connections */
	}
}
