/* SPDX-License-Identifier: Apache-2.0 */
/* The listening socket: its name, its lock, accept and its limits. See server.h. */
#include "daemon/ipc/server.h"

#include "base/cleanup.h"
#include "base/err.h"
#include "base/os/closer.h"
#include "base/os/log.h"
#include "base/os/sys.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "daemon/ipc/conn.h"
#include "daemon/ipc/internal.h"

#define ACCEPTS_A_TURN 64
#define BACKLOG        512
#define PAUSE_MS       100
#define MAX_PATH_SIZE  106 /* sun_path less the NUL and one to spare */

/* ---- the name ---- */

static int make_folder(const char *path, struct err *err)
{
	char folder[MAX_PATH_SIZE + 1];
	char *slash;

	(void)snprintf(folder, sizeof folder, "%s", path);
	slash = strrchr(folder, '/');
	if (slash == NULL || slash == folder) {
		return 0;
	}
	*slash = '\0';
	if (mkdir(folder, geteuid() == 0 ? 0755 : 0700) < 0 && errno != EEXIST) {
		return err_set_sys(err, WIRE_BAD_ARGUMENT, errno, "cannot make the folder %s: %s",
				   folder, strerror(errno));
	}
	return 0;
}

static void read_owner(int fd, char *ret, size_t ret_size)
{
	char text[24] = "";
	ssize_t size = pread(fd, text, sizeof text - 1, 0);

	text[size > 0 ? size : 0] = '\0';
	text[strcspn(text, "\n")] = '\0';
	(void)snprintf(ret, ret_size, "%s", text[0] == '\0' ? "unknown" : text);
}

/* Nothing that somebody may want: empty, or a pid and no more. */
static bool is_lock(int fd, const struct stat *status)
{
	char owner[24];

	read_owner(fd, owner, sizeof owner);
	return S_ISREG(status->st_mode) && status->st_uid == geteuid() &&
	       (status->st_size == 0 ||
		(status->st_size < (off_t)sizeof owner &&
		 strspn(owner, "0123456789") + 1 == (size_t)status->st_size));
}

/* One daemon a name: a lock on PATH.lock, which ends with us whatever happens. */
static int take_lock(struct server *server, struct err *err)
{
	char path[MAX_PATH_SIZE + 8];
	AUTO_CLOSE int fd = -1;
	struct stat ours;
	struct stat there;
	char text[24];
	int size;

	(void)snprintf(path, sizeof path, "%s.lock", server->path);
	do {
		if (fd >= 0) {
			(void)close(fd); /* the last holder took the file away: open the new one */
		}
		fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
		if (fd < 0) {
			return err_set_sys(err, WIRE_BAD_ARGUMENT, errno, "cannot make %s: %s",
					   path, strerror(errno));
		}
		if (flock(fd, LOCK_EX | LOCK_NB) < 0) {
			char owner[24];

			read_owner(fd, owner, sizeof owner);
			return err_set(err, WIRE_BUSY, "already running, pid %s, on %s", owner,
				       server->path);
		}
	} while (fstat(fd, &ours) < 0 || stat(path, &there) < 0 || ours.st_ino != there.st_ino);
	if (!is_lock(fd, &ours)) {
		return err_set(err, WIRE_BAD_ARGUMENT,
			       "%s exists and is no lock of ours; choose another socket path",
			       path);
	}
	size = snprintf(text, sizeof text, "%d\n", (int)getpid());
	if (ftruncate(fd, 0) < 0 || pwrite(fd, text, (size_t)size, 0) != size) {
		return err_set_sys(err, WIRE_INTERNAL, errno, "cannot write %s: %s", path,
				   strerror(errno));
	}
	server->lock_fd = steal_fd(&fd);
	return 0;
}

static struct sockaddr_un address_of(const char *path)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};

	(void)snprintf(address.sun_path, sizeof address.sun_path, "%s", path);
	return address;
}

/* What is at the path already may go only if it is a dead socket of ours. */
static int clear_path(const char *path, struct err *err)
{
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
	probe = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
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
static int bind_path(struct server *server, struct err *err)
{
	char name[MAX_PATH_SIZE + 2];
	struct sockaddr_un address;
	struct stat status;
	uint32_t mode = server->options.mode == 0 ? 0660 : server->options.mode;
	AUTO_CLOSE int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

	if (fd < 0) {
		return err_set_sys(err, WIRE_TOO_MANY, errno, "socket: %s", strerror(errno));
	}
	(void)snprintf(name, sizeof name, "%s~", server->path);
	address = address_of(name);
	if (lstat(name, &status) == 0) {
		if (!S_ISSOCK(status.st_mode) || status.st_uid != geteuid()) {
			return err_set(
				err, WIRE_BAD_ARGUMENT,
				"%s is in the way and no socket of ours; choose another path",
				name);
		}
		(void)unlink(name); /* of a daemon killed in between; the lock is ours */
	}
	if (bind(fd, (const struct sockaddr *)&address, sizeof address) < 0) {
		return err_set_sys(err, WIRE_BAD_ARGUMENT, errno, "cannot bind %s: %s",
				   server->path, strerror(errno));
	}
	/* It may be of that group already, and a service may be kept from changing it. */
	if (chmod(name, mode) < 0 || lstat(name, &status) < 0 ||
	    (server->options.gid != UINT32_MAX && server->options.gid != status.st_gid &&
	     chown(name, (uid_t)-1, server->options.gid) < 0) ||
	    listen(fd, BACKLOG) < 0 || sys_rename(name, server->path) < 0) {
		int error = errno;

		(void)unlink(name);
		return err_set_sys(err, WIRE_BAD_ARGUMENT, error, "cannot listen on %s: %s",
				   server->path, strerror(error));
	}
	server->path_dev = status.st_dev;
	server->path_ino = status.st_ino;
	server->listen_fd = steal_fd(&fd);
	return 0;
}

/* Is the inherited socket the one that the path names? */
static bool is_bound_to(int fd, const char *path)
{
	struct sockaddr_un address = {0};
	socklen_t size = sizeof address - 1;

	size_t length = strlen(path);

	/* The kernel knows it by the name that it was bound to, before it was given its own. */
	return getsockname(fd, (struct sockaddr *)&address, &size) == 0 &&
	       address.sun_family == AF_UNIX && strncmp(address.sun_path, path, length) == 0 &&
	       (address.sun_path[length] == '\0' || strcmp(address.sun_path + length, "~") == 0);
}

static int open_path(struct server *server, struct err *err)
{
	int code;

	if (strlen(server->path) > MAX_PATH_SIZE) {
		return err_set(err, WIRE_BAD_ARGUMENT,
			       "the socket path has %zu bytes; the system takes at most %d",
			       strlen(server->path), MAX_PATH_SIZE);
	}
	code = make_folder(server->path, err);
	if (code == 0) {
		code = take_lock(server, err);
	}
	if (server->listen_fd >= 0) {
		return code;
	}
	if (code == 0) {
		code = clear_path(server->path, err);
	}
	return code == 0 ? bind_path(server, err) : code;
}

/* Take the name away if it is still the one we made, then the lock. */
static void drop_path(struct server *server)
{
	char lock[MAX_PATH_SIZE + 8];
	struct stat status;

	if (server->lock_fd < 0) {
		return; /* inherited: not ours to remove */
	}
	if (!server->options.is_kept && server->path_ino != 0 &&
	    lstat(server->path, &status) == 0 && status.st_dev == server->path_dev &&
	    status.st_ino == server->path_ino) {
		(void)unlink(server->path); /* a leftover name only refuses connections */
	}
	(void)snprintf(lock, sizeof lock, "%s.lock", server->path);
	(void)unlink(lock);
	(void)close(server->lock_fd);
	server->lock_fd = -1;
}

/* ---- accept ---- */

static void keep_spare(struct server *server)
{
	if (server->spare_fd < 0) {
		server->spare_fd = sys_open("/dev/null", O_RDONLY);
	}
}

/* Out of descriptors: give up the spare one to take the connection off the queue and end it.
 * False when that cannot be done. */
static bool shed(struct server *server)
{
	int fd;

	if (server->spare_fd < 0) {
		return false;
	}
	(void)close(server->spare_fd); /* of /dev/null */
	server->spare_fd = -1;
	fd = accept4(server->listen_fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
	if (fd >= 0) {
		server->counters.n_shed++;
		conn_close_socket(fd);
	}
	keep_spare(server);
	return fd >= 0;
}

static void on_connection(uv_poll_t *poll, int status, int events);

static void on_pause_over(uv_timer_t *timer)
{
	struct server *server = timer->data;

	keep_spare(server);
	if (!uv_is_closing((uv_handle_t *)&server->listen)) {
		(void)uv_poll_start(&server->listen, UV_READABLE, on_connection); /* did before */
	}
}

/* The connection stays in the queue and the socket readable: looking again at once would be all
 * that we do. */
static void pause_listening(struct server *server)
{
	(void)uv_poll_stop(&server->listen); /* neither fails on a handle that is open */
	(void)uv_timer_start(&server->pause, on_pause_over, PAUSE_MS, 0);
}

static void on_connection(uv_poll_t *poll, int status, int events)
{
	struct server *server = poll->data;

	(void)status; /* accept tells */
	(void)events;
	for (int i = 0; i < ACCEPTS_A_TURN && server->listen_fd >= 0; i++) {
		int fd = sys_accept(server->listen_fd);

		if (fd >= 0) {
			conn_open(server, fd);
		} else if (errno == EMFILE || errno == ENFILE || errno == ENOBUFS ||
			   errno == ENOMEM) {
			uint32_t n_skipped = 0;

			if (log_allows("shed", 0, uv_hrtime(), &n_skipped)) {
				log_warning("no descriptor for a connection: %s", strerror(errno));
			}
			if (!shed(server)) {
				pause_listening(server);
			}
			break;
		} else if (errno != EINTR && errno != ECONNABORTED) {
			break; /* EAGAIN: all taken */
		}
	}
	server_flush(server);
}

/* ---- life ---- */

/* Elsewhere: who was not accepted yet may have sent descriptors already. */
static void close_listener(struct server *server)
{
	closer_give(geteuid(), &server->listen_fd, 1);
}

static void on_handle_closed(uv_handle_t *handle)
{
	struct server *server = handle->data;

	server->n_open_handles--;
	if (server->n_open_handles == 0) {
		close_listener(server);
		server_release(server);
	}
}

void server_release(struct server *server)
{
	if (!server->is_freed || server->n_open_handles > 0 || !list_is_empty(&server->conns)) {
		return;
	}
	if (server->spare_fd >= 0) {
		(void)close(server->spare_fd);
	}
	free(server->path);
	free(server);
}

static int start_listening(struct server *server, struct err *err)
{
	server->listen.data = server->pause.data = server;
	if (uv_poll_init(server->loop, &server->listen, server->listen_fd) < 0) {
		return err_set(err, WIRE_INTERNAL, "cannot watch the socket");
	}
	(void)uv_timer_init(server->loop, &server->pause); /* always succeeds */
	server->n_open_handles = 2;
	if (uv_poll_start(&server->listen, UV_READABLE, on_connection) < 0) {
		return err_set(err, WIRE_INTERNAL, "cannot watch the socket");
	}
	return 0;
}

int server_new(uv_loop_t *loop, const struct server_options *options,
	       const struct server_handlers *handlers, struct server **ret, struct err *err)
{
	struct server *server = sys_calloc(1, sizeof *server);
	int code = 0;

	if (server == NULL) {
		return err_set(err, WIRE_NO_MEMORY, "no memory for the server");
	}
	server->loop = loop;
	server->options = *options;
	server->handlers = *handlers;
	server->listen_fd = options->listen_fd;
	server->lock_fd = -1;
	server->spare_fd = -1;
	keep_spare(server);
	list_init(&server->conns);
	list_init(&server->dirty);
	server->path = sys_strdup(options->socket_path);
	if (server->path == NULL || !closer_start()) {
		code = err_set(err, WIRE_NO_MEMORY, "no memory for the server");
	}
	/* One that a service manager made under another name is its own affair. */
	if (code == 0 && (server->listen_fd < 0 || is_bound_to(server->listen_fd, server->path))) {
		code = open_path(server, err);
	}
	if (code == 0) {
		code = start_listening(server, err);
	}
	if (code < 0) {
		server_stop(server);
		(void)server_free(server);
		return code;
	}
	*ret = server;
	return 0;
}

void server_stop(struct server *server)
{
	drop_path(server);
	if (server->n_open_handles == 2 && !uv_is_closing((uv_handle_t *)&server->listen)) {
		uv_close((uv_handle_t *)&server->listen, on_handle_closed);
		uv_close((uv_handle_t *)&server->pause, on_handle_closed);
	} else if (server->n_open_handles == 0 && server->listen_fd >= 0) {
		close_listener(server);
	}
}

struct server *server_free(struct server *server)
{
	if (server == NULL) {
		return NULL;
	}
	server_stop(server);
	LIST_FOR_EACH (link, &server->conns) {
		conn_say_goodbye(container_of(link, struct conn, by_server), WIRE_SHUTTING_DOWN,
				 "the daemon is ending");
	}
	server_flush(server);
	/* Whoever does not take its goodbye at once goes without it. */
	LIST_FOR_EACH (link, &server->conns) {
		conn_close(container_of(link, struct conn, by_server));
	}
	server->is_freed = true;
	server_release(server);
	return NULL;
}

int server_listen_fd(const struct server *server)
{
	return server->listen_fd;
}

const char *server_path(const struct server *server)
{
	return server->path;
}

void server_limits(const struct server *server, struct wire_limits *ret)
{
	*ret = (struct wire_limits){
		.packet_bytes = WIRE_PACKET_BYTES,
		.fds_per_packet = WIRE_FDS_PER_PACKET,
		.requests_in_flight = WIRE_REQUESTS_IN_FLIGHT,
		.output_bytes = server->options.output_bytes,
		.connections = server->options.connections,
		.connections_per_user = server->options.connections_per_uid,
	};
}

const struct server_counters *server_counters(const struct server *server)
{
	return &server->counters;
}
