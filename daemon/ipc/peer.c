/* SPDX-License-Identifier: Apache-2.0 */
/* Credentials of a connection and the life of its process. See peer.h. */
#include "daemon/ipc/peer.h"

#include "base/cleanup.h"
#include "base/err.h"
#include "base/os/sys.h"
#include "base/text.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "proto/gen/wire_code.h"

#ifndef SO_PEERPIDFD
#	define SO_PEERPIDFD 77
#endif
#define MAX_GROUPS  256
#define UID_MAP     "/proc/self/uid_map"
#define GID_MAP     "/proc/self/gid_map"
#define OVERFLOW_ID 65534 /* as the kernel is built; /proc/sys/kernel/overflowuid */

/* By the connection itself where the kernel can (6.5), else by number: the process may have
 * gone since, but a pid is not given out again while its connection is being accepted. */
static int open_pidfd(int socket, pid_t pid)
{
	int pidfd = -1;
	socklen_t size = sizeof pidfd;

	if (getsockopt(socket, SOL_SOCKET, SO_PEERPIDFD, &pidfd, &size) == 0) {
		return pidfd;
	}
	return (int)syscall(SYS_pidfd_open, pid, 0);
}

static void read_comm(pid_t pid, char *ret, size_t ret_size)
{
	char path[64];
	char comm[32] = "";
	AUTO_CLOSE int fd = -1;
	ssize_t size;

	(void)snprintf(path, sizeof path, "/proc/%d/comm", (int)pid);
	fd = sys_open(path, O_RDONLY);
	size = fd < 0 ? -1 : read(fd, comm, sizeof comm - 1);
	if (size > 0) {
		comm[size] = '\0';
		comm[strcspn(comm, "\n")] = '\0';
	}
	(void)text_escape(comm[0] == '\0' ? "?" : comm, ret, ret_size);
}

uint64_t peer_start_time(pid_t pid)
{
	char path[64];
	char text[1024];
	AUTO_CLOSE int fd = -1;
	const char *field;
	ssize_t size;

	(void)snprintf(path, sizeof path, "/proc/%d/stat", (int)pid);
	fd = sys_open(path, O_RDONLY);
	size = fd < 0 ? -1 : read(fd, text, sizeof text - 1);
	text[size > 0 ? size : 0] = '\0';
	field = strrchr(text, ')'); /* the command may hold anything */
	for (int i = 2; field != NULL && i < 22; i++) {
		field = strchr(field + 1, ' ');
	}
	return field == NULL ? 0 : strtoull(field + 1, NULL, 10);
}

int peer_find(pid_t pid, uint64_t start_time, struct peer *ret, struct err *err)
{
	int pidfd = (int)syscall(SYS_pidfd_open, pid, 0);

	if (pidfd < 0) {
		return err_set_sys(err, WIRE_NOT_FOUND, errno, "process %d: %s", (int)pid,
				   strerror(errno));
	}
	/* Asked after the pidfd was opened: it is of the process that is looked at. */
	if (peer_start_time(pid) != start_time || start_time == 0) {
		(void)close(pidfd); /* a pidfd: nothing to lose */
		return err_set(err, WIRE_NOT_FOUND, "process %d is another one now", (int)pid);
	}
	*ret = (struct peer){.pid = pid, .pidfd = pidfd};
	read_comm(pid, ret->comm, sizeof ret->comm);
	return 0;
}

/*
 * In a user namespace of our own the users that it leaves out all come as this one, and so do
 * their groups: a stranger would have the rights of "nobody" if that is what we run as, or whom
 * the configuration names.
 */
static bool is_anybody(uint32_t id, const char *map)
{
	char text[64];
	AUTO_CLOSE int fd = id == OVERFLOW_ID ? sys_open(map, O_RDONLY) : -1;
	ssize_t size = fd < 0 ? -1 : read(fd, text, sizeof text - 1);
	unsigned int inside = 0;
	unsigned int outside = 0;
	unsigned int count = 0;

	text[size > 0 ? size : 0] = '\0';
	return size > 0 && (sscanf(text, "%u %u %u", &inside, &outside, &count) != 3 ||
			    inside != 0 || count != UINT32_MAX);
}

int peer_read(int socket, uint32_t extra_admin_uid, struct peer *ret, struct err *err)
{
	struct ucred credentials;
	socklen_t size = sizeof credentials;

	if (getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &credentials, &size) < 0) {
		return err_set_sys(err, WIRE_NOT_ALLOWED, errno, "no credentials of a peer: %s",
				   strerror(errno));
	}
	*ret = (struct peer){
		.uid = credentials.uid,
		.gid = credentials.gid,
		.pid = credentials.pid,
		.pidfd = open_pidfd(socket, credentials.pid),
		.is_admin = credentials.uid == 0 ||
			    ((credentials.uid == geteuid() || credentials.uid == extra_admin_uid) &&
			     !is_anybody(credentials.uid, UID_MAP)),
	};
	read_comm(ret->pid, ret->comm, sizeof ret->comm);
	return 0;
}

void peer_fini(struct peer *peer)
{
	if (peer->pidfd >= 0) {
		(void)close(peer->pidfd); /* a pidfd: nothing to lose */
		peer->pidfd = -1;
	}
}

bool peer_is_in_group(int socket, const struct peer *peer, uint32_t gid)
{
	gid_t groups[MAX_GROUPS];
	socklen_t size = sizeof groups;

	if (is_anybody(gid, GID_MAP)) {
		return false;
	}
	if (peer->gid == gid) {
		return true;
	}
	if (getsockopt(socket, SOL_SOCKET, SO_PEERGROUPS, groups, &size) < 0) {
		return false;
	}
	for (size_t i = 0; i < size / sizeof groups[0]; i++) {
		if (groups[i] == gid) {
			return true;
		}
	}
	return false;
}

struct process_watch {
	uv_poll_t poll;
	bool has_poll;
	int pidfd;
	process_gone_fn gone;
	void *context;
	uint64_t id;
};

static void on_watch_closed(uv_handle_t *handle)
{
	struct process_watch *watch = handle->data;

	(void)close(watch->pidfd); /* after the loop has let go of it */
	free(watch);
}

static void on_process_event(uv_poll_t *poll, int status, int events)
{
	struct process_watch *watch = poll->data;

	(void)status; /* an error on a pidfd means as much as its end */
	(void)events;
	(void)uv_poll_stop(poll); /* cannot fail on a started handle */
	watch->gone(watch->context, watch->id);
}

struct process_watch *process_watch_new(void)
{
	return sys_calloc(1, sizeof(struct process_watch));
}

bool process_watch_start(struct process_watch *watch, uv_loop_t *loop, int pidfd,
			 process_gone_fn gone, void *context, uint64_t id)
{
	if (pidfd < 0 || uv_poll_init(loop, &watch->poll, pidfd) < 0) {
		if (pidfd >= 0) {
			(void)close(pidfd);
		}
		return false;
	}
	watch->has_poll = true;
	watch->pidfd = pidfd;
	watch->gone = gone;
	watch->context = context;
	watch->id = id;
	watch->poll.data = watch;
	return uv_poll_start(&watch->poll, UV_READABLE, on_process_event) == 0;
}

void process_watch_free(struct process_watch *watch)
{
	if (watch != NULL && watch->has_poll) {
		uv_close((uv_handle_t *)&watch->poll, on_watch_closed);
	} else {
		free(watch);
	}
}
