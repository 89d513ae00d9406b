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

/* ---- the name ---- */

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
	char path[LISTEN_MAX_PATH + 8];
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
					   path, listen_reason(errno));
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
		/* It locks without; only whoever comes second cannot tell who is first. */
		log_warning("%s says nothing of pid %d: %s", path, (int)getpid(), strerror(errno));
	}
	server->lock_fd = steal_fd(&fd);
	return 0;
}

/* Was the inherited socket bound as the path with this end? */
static bool is_bound_to(int fd, const char *path, const char *end)
{
	struct sockaddr_un address = {0};
	socklen_t size = sizeof address - 1;
	size_t length = strlen(path);

	return getsockname(fd, (struct sockaddr *)&address, &size) == 0 &&
	       address.sun_family == AF_UNIX && strncmp(address.sun_path, path, length) == 0 &&
	       strcmp(address.sun_path + length, end) == 0;
}

/* The kernel knows one of ours by the name that it was bound to, before it was given its own. */
static bool is_ours(const struct server *server)
{
	return is_bound_to(server->listen_fd, server->path, "~");
}

/* Elsewhere: who was not accepted yet may have sent descriptors already. */
static void close_listener(struct server *server)
{
	closer_give(geteuid(), &server->listen_fd, 1);
}

/* Of a socket that an earlier life made: who may connect is what is said now; where its name is
 * gone nobody can come, so another takes its place. */
static void heal_name(struct server *server, const struct listen_name *name)
{
	struct err err = {0};

	if (!listen_is_gone(name->path)) {
		if (listen_set_rights(name, &err) < 0) {
			log_warning("the socket keeps its old mode and group: %s", err.text);
		}
		return;
	}
	if (listen_open(name, &server->made, &err) < 0) {
		log_warning("nobody can connect: %s", err.text);
		return;
	}
	log_notice("%s was gone; it is there again", name->path);
	close_listener(server);
	server->listen_fd = server->made.fd;
}

static int open_path(struct server *server, struct err *err)
{
	const struct listen_name name = {
		.path = server->path,
		.type = SOCK_SEQPACKET,
		.backlog = BACKLOG,
		.mode = server->options.mode == 0 ? 0660 : server->options.mode,
		.gid = server->options.gid,
	};
	int code;

	if (strlen(server->path) > LISTEN_MAX_PATH) {
		return err_set(err, WIRE_BAD_ARGUMENT,
			       "the socket path has %zu bytes; the system takes at most %d",
			       strlen(server->path), LISTEN_MAX_PATH);
	}
	code = listen_make_folder(server->path, err);
	if (code == 0) {
		code = take_lock(server, err);
	}
	if (server->listen_fd >= 0 && code < 0 && code != -WIRE_BUSY) {
		/* The socket is there without it, and whoever made it gives it to one at a time. */
		log_warning("serving without a lock: %s", err->text);
		*err = (struct err){0};
		return 0;
	}
	if (code < 0) {
		return code;
	}
	if (server->listen_fd >= 0) {
		if (is_ours(server)) {
			heal_name(server, &name);
		}
		return 0;
	}
	code = listen_open(&name, &server->made, err);
	server->listen_fd = code < 0 ? -1 : server->made.fd;
	return code;
}

/* Take the name away if it is still the one we made, then the lock. */
static void drop_path(struct server *server)
{
	char lock[LISTEN_MAX_PATH + 8];

	if (server->lock_fd < 0) {
		return; /* inherited: not ours to remove */
	}
	if (!server->options.is_kept) {
		listen_forget(&server->made, server->path);
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
	if (code == 0 && (server->listen_fd < 0 || is_ours(server) ||
			  is_bound_to(server->listen_fd, server->path, ""))) {
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

bool server_made_name(const struct server *server)
{
	return server->made.ino != 0;
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
