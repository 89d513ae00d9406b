/* SPDX-License-Identifier: Apache-2.0 */
/* One connection. See conn.h. */
#include "daemon/ipc/conn.h"

#include "base/err.h"
#include "base/os/clock.h"
#include "base/os/closer.h"
#include "base/os/fdpass.h"
#include "base/os/log.h"
#include "base/os/sys.h"
#include "base/require.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "daemon/ipc/internal.h"

#define PACKETS_A_TURN    16
#define HALF_CLOSED_MS    100
#define SEND_BUFFER_BYTES (512 * 1024)
#define LIMIT_TEXT_SIZE   160

void *conn_user(const struct conn *conn)
{
	return conn->user;
}

void conn_set_user(struct conn *conn, void *user)
{
	conn->user = user;
}

const struct peer *conn_peer(const struct conn *conn)
{
	return &conn->peer;
}

int conn_take_pidfd(struct conn *conn)
{
	int pidfd = conn->peer.pidfd;

	conn->peer.pidfd = -1;
	return pidfd;
}

/* ---- the end of a connection ---- */

/* Do packets wait in the socket that carry descriptors? Unknown is yes (before Linux 5.7). */
static bool holds_descriptors(int fd)
{
	static const char none[] = "\nscm_fds: 0\n";
	char path[64];
	char text[512];
	ssize_t size;
	int info;

	(void)snprintf(path, sizeof path, "/proc/self/fdinfo/%d", fd);
	info = sys_open(path, O_RDONLY);
	if (info < 0) {
		return true;
	}
	size = read(info, text, sizeof text - 1);
	(void)close(info); /* of procfs */
	text[size > 0 ? size : 0] = '\0';
	return strstr(text, none) == NULL;
}

void conn_close_socket(int fd)
{
	struct ucred peer = {.uid = UINT32_MAX};
	socklen_t size = sizeof peer;

	/* From here on nothing more comes in; the peer sees the end whenever the rest goes. */
	(void)shutdown(fd, SHUT_RDWR);
	if (!holds_descriptors(fd)) {
		(void)close(fd); /* nothing to act on */
		return;
	}
	(void)getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &size); /* else nobody's */
	closer_give(peer.uid, &fd, 1);
}

static void on_handle_closed(uv_handle_t *handle)
{
	struct conn *conn = handle->data;
	struct server *server = conn->server;

	conn->n_open_handles--;
	if (conn->n_open_handles > 0) {
		return;
	}
	conn_close_socket(conn->fd);
	list_remove(&conn->by_server);
	packet_free(conn->reserve);
	packet_free(conn->farewell);
	peer_fini(&conn->peer);
	free(conn);
	server_release(server);
}

void conn_close(struct conn *conn)
{
	if (conn->state == CONN_CLOSED) {
		return;
	}
	conn->state = CONN_CLOSED;
	list_remove(&conn->by_dirty);
	conn->server->handlers.closed(conn->server->handlers.context, conn);
	conn_drop_output(conn);
	uv_close((uv_handle_t *)&conn->poll, on_handle_closed);
	uv_close((uv_handle_t *)&conn->deadline, on_handle_closed);
	uv_close((uv_handle_t *)&conn->retry, on_handle_closed);
}

/* ---- in ---- */

static bool is_in_flight(const struct conn *conn, uint32_t request)
{
	for (uint32_t i = 0; i < conn->n_in_flight; i++) {
		if (conn->in_flight[i].id == request) {
			return true;
		}
	}
	return false;
}

static void refuse(struct conn *conn, uint32_t request, enum wire_code code, const char *field,
		   const char *text)
{
	struct wire_error error = {
		.code = wire_str(wire_code_info(code)->word),
		.message = wire_str(text),
		.retryable = wire_code_info(code)->is_retryable,
		.has_detail = field != NULL,
	};

	if (field != NULL) {
		error.detail.has_field = true;
		error.detail.field = wire_str(field);
	}
	conn_respond_error(conn, request, &error);
}

static void refuse_frame(struct conn *conn, const char *reason)
{
	uint32_t n_skipped = 0;

	conn->server->counters.n_bad_frames++;
	if (log_allows("bad-frame", conn->peer.uid, clock_mono_ns(), &n_skipped)) {
		log_warning("bad packet from pid %d (%s, uid %u): %s (%u more since)",
			    (int)conn->peer.pid, conn->peer.comm, conn->peer.uid, reason,
			    n_skipped);
	}
	conn_say_goodbye(conn, WIRE_BAD_FRAME, reason);
}

/* Are there as many connections as may be, in all or of this uid, that have said hello or, with
 * 'state' so, have not? Beside this one; '*ret_all': it is the first of the two. */
static bool is_over_limit(const struct conn *conn, enum conn_state state, bool *ret_all)
{
	const struct server *server = conn->server;
	uint32_t n_all = 0;
	uint32_t n_same_uid = 0;

	LIST_FOR_EACH (link, &server->conns) {
		const struct conn *other = container_of(link, struct conn, by_server);

		if (other != conn && other->state == state) {
			n_all++;
			n_same_uid += other->peer.uid == conn->peer.uid ? 1 : 0;
		}
	}
	*ret_all = n_all >= server->options.connections;
	return *ret_all || n_same_uid >= server->options.connections_per_uid;
}

/* Which limit that is, its number and whose: 'all', or of this uid. */
static const char *limit_text(const struct conn *conn, bool is_all, const char *what,
			      char buffer[LIMIT_TEXT_SIZE])
{
	const struct server_options *options = &conn->server->options;

	if (is_all) {
		(void)snprintf(buffer, LIMIT_TEXT_SIZE,
			       "there are %u connections%s, as many as there may be "
			       "(limits.connections)",
			       options->connections, what);
	} else {
		(void)snprintf(buffer, LIMIT_TEXT_SIZE,
			       "uid %u has %u connection%s%s, as many as one user may have "
			       "(limits.connections-per-user)",
			       conn->peer.uid, options->connections_per_uid,
			       options->connections_per_uid == 1 ? "" : "s", what);
	}
	return buffer;
}

/* True: it has been refused. */
static bool refuse_over_limit(struct conn *conn, uint32_t request)
{
	char text[LIMIT_TEXT_SIZE];
	struct wire_error error = {
		.code = wire_str(wire_code_info(WIRE_TOO_MANY)->word),
		.retryable = wire_code_info(WIRE_TOO_MANY)->is_retryable,
		.has_hint = true,
	};
	bool is_all;

	if (!is_over_limit(conn, CONN_READY, &is_all)) {
		return false;
	}
	error.message = wire_str(limit_text(conn, is_all, "", text));
	error.hint = wire_str(is_all ? "end a program that has one, or have an administrator raise "
				       "limits.connections"
				     : "end a program of that user that has one, or have an "
				       "administrator raise limits.connections-per-user");
	conn->server->counters.n_refused++;
	conn_respond_error(conn, request, &error);
	conn_close_after_flush(conn);
	return true;
}

static void refuse_user(struct conn *conn, uint32_t request, const char *method)
{
	uint32_t n_skipped = 0;
	char text[160];

	if (log_allows("may-not-use", conn->peer.uid, clock_mono_ns(), &n_skipped)) {
		log_warning("pid %d (%s, uid %u) may not use %s (%u more since)",
			    (int)conn->peer.pid, conn->peer.comm, conn->peer.uid, method,
			    n_skipped);
	}
	(void)snprintf(text, sizeof text, "%s needs an administrator", method);
	refuse(conn, request, WIRE_NOT_ALLOWED, NULL, text);
}

/* The method asked for, or NULL: this connection may not use it now, and was told so. */
static const struct wire_message *permitted(struct conn *conn, const struct wire_packet *packet)
{
	const struct wire_message *message = packet->message;
	bool is_hello = message != NULL && message->number == WIRE_METHOD_HELLO;
	char text[160];

	if (conn->state == CONN_NEW && !is_hello) {
		refuse(conn, packet->id, WIRE_NOT_ALLOWED, NULL, "the first request must be hello");
	} else if (message == NULL) {
		char name[64];

		(void)snprintf(text, sizeof text, "there is no method %s",
			       wire_str_copy(packet->name, name, sizeof name));
		refuse(conn, packet->id, WIRE_UNKNOWN_METHOD, NULL, text);
	} else if (message->is_draft) {
		(void)snprintf(text, sizeof text, "%s is not built in this version",
			       message->method);
		refuse(conn, packet->id, WIRE_UNSUPPORTED, NULL, text);
	} else if (conn->state == CONN_READY && is_hello) {
		refuse(conn, packet->id, WIRE_BAD_ARGUMENT, NULL, "hello was said already");
	} else if (is_hello && refuse_over_limit(conn, packet->id)) {
		return NULL;
	} else if (message->role == WIRE_ROLE_ADMIN && !conn->peer.is_admin) {
		refuse_user(conn, packet->id, message->method);
	} else {
		return message;
	}
	return NULL;
}

static void handle_request(struct conn *conn, const struct wire_packet *packet, int *fds,
			   uint32_t n_fds)
{
	const uint32_t n_unclosed = n_fds == 0 ? 0 : closer_count(conn->peer.uid);
	const struct wire_message *message = permitted(conn, packet);
	struct wire_fault fault;
	union wire_body body;
	char text[272]; /* a field and what is wrong with it */

	if (message == NULL) {
		return;
	}
	if (n_unclosed >= CLOSER_LIMIT) {
		(void)snprintf(
			text, sizeof text,
			"%u descriptors of uid %u cannot be closed: a file's server does not "
			"answer",
			n_unclosed, conn->peer.uid);
		refuse(conn, packet->id, WIRE_TOO_MANY, NULL, text);
		return;
	}
	if (n_fds < message->request_fds_min || n_fds > message->request_fds_max) {
		(void)snprintf(text, sizeof text, "%s takes %u to %u descriptors, not %u",
			       message->method, message->request_fds_min, message->request_fds_max,
			       n_fds);
		refuse(conn, packet->id, WIRE_BAD_FD, NULL, text);
		return;
	}
	if (wire_decode_body(message->request, packet->body, packet->body_size, true, &body,
			     &fault) < 0) {
		(void)snprintf(text, sizeof text, "%s%s%s", fault.field,
			       fault.field[0] == '\0' ? "" : ": ", fault.text);
		refuse(conn, packet->id, fault.code, fault.field, text);
		return;
	}
	conn->server->handlers.request(conn->server->handlers.context, conn, packet, &body, fds,
				       n_fds);
}

static void handle_packet(struct conn *conn, const uint8_t *bytes, size_t size, int *fds,
			  uint32_t n_fds)
{
	struct wire_packet packet;
	struct wire_fault fault;
	char reason[128];

	if (wire_decode_packet(bytes, size, &wire_packet_limits, &packet, &fault) < 0) {
		refuse_frame(conn, fault.text);
	} else if (packet.kind != WIRE_REQUEST) {
		refuse_frame(conn, "only requests may be sent to the daemon");
	} else if (packet.n_fds != n_fds) {
		(void)snprintf(reason, sizeof reason, "%u descriptors came, %u were announced",
			       n_fds, packet.n_fds);
		refuse_frame(conn, reason);
	} else if (is_in_flight(conn, packet.id)) {
		/* Answering by that id would end the older request. */
		refuse_frame(conn, "the id of a request in flight was used again");
	} else {
		if (packet.message != NULL && packet.message->role == WIRE_ROLE_WORKER) {
			packet.message = NULL; /* not for clients */
		}
		conn->in_flight[conn->n_in_flight].id = packet.id;
		conn->in_flight[conn->n_in_flight].method =
			packet.message == NULL ? WIRE_N_METHODS : packet.message->number;
		conn->n_in_flight++;
		handle_request(conn, &packet, fds, n_fds);
	}
}

static bool may_read(const struct conn *conn)
{
	return !conn->is_at_end && (conn->state == CONN_NEW || conn->state == CONN_READY) &&
	       conn->n_in_flight + conn->n_unsent < WIRE_REQUESTS_IN_FLIGHT &&
	       conn->out_bytes <= conn->server->options.output_bytes / 2 &&
	       conn->spill_bytes <= WIRE_UNREAD_SPILL_BYTES / 2;
}

bool conn_hear_out(struct conn *conn)
{
	struct pollfd poll_fd = {.fd = conn->fd, .events = POLLIN};

	conn->is_gone = true;
	conn_drop_output(conn);
	if (conn->state == CONN_READY) {
		(void)uv_timer_stop(&conn->deadline); /* that of what was queued */
	}
	(void)poll(&poll_fd, 1, 0); /* at once; without an answer nothing is to be read */
	if ((poll_fd.revents & POLLIN) == 0 || !may_read(conn)) { /* or no more can be begun */
		conn_close(conn);
		return false;
	}
	conn_mark_dirty(conn);
	return true;
}

/* The peer sends no more. It may be gone, or only waiting for its answers (P18). */
static void note_end(struct conn *conn)
{
	struct pollfd poll_fd = {.fd = conn->fd, .events = POLLIN};

	(void)poll(&poll_fd, 1, 0); /* at once; without an answer the peer counts as there */
	if ((poll_fd.revents & (POLLHUP | POLLERR)) != 0) {
		(void)conn_hear_out(conn); /* whether it closes or not, the caller is done */
	} else {
		conn->is_half_closed = true;
		conn_mark_dirty(conn);
	}
}

/* Nobody may fill our table of descriptors with what cannot be closed. */
static void drop_descriptors(struct conn *conn, struct fdpass_packet *packet)
{
	if (packet->n_fds > 0) {
		closer_give(conn->peer.uid, packet->fds, packet->n_fds);
		if (closer_count(conn->peer.uid) >= 2 * CLOSER_LIMIT) {
			conn_say_goodbye(conn, WIRE_TOO_MANY,
					 "too many of your descriptors cannot be closed");
		}
	}
}

void conn_read_turn(struct conn *conn)
{
	struct server *server = conn->server;
	size_t n_bytes = 0;

	for (int i = 0; i < PACKETS_A_TURN && n_bytes < WIRE_PACKET_BYTES && may_read(conn); i++) {
		struct fdpass_packet packet;
		enum fdpass_status status =
			fdpass_receive(conn->fd, server->in, sizeof server->in, &packet);

		if (status != FDPASS_OK) {
			drop_descriptors(conn, &packet);
		}
		switch (status) {
		case FDPASS_OK:
			n_bytes += packet.size;
			server->is_flushing = true;
			handle_packet(conn, server->in, packet.size, packet.fds, packet.n_fds);
			server->is_flushing = false;
			drop_descriptors(conn, &packet);
			break;
		case FDPASS_AGAIN:
			if (conn->is_gone) {
				conn_close(conn);
			}
			return;
		case FDPASS_TOO_LARGE:
			refuse_frame(conn, "a packet of more than 64 KiB");
			return;
		case FDPASS_BAD_FDS:
			refuse_frame(conn, "more descriptors than may ride with a packet");
			return;
		case FDPASS_END:
			conn->is_at_end = true;
			note_end(conn);
			return;
		case FDPASS_FAILED:
			conn_close(conn);
			return;
		}
	}
	if (conn->is_gone && !may_read(conn)) {
		conn_close(conn);
	}
}

/* ---- the turn ---- */

static void on_poll(uv_poll_t *poll, int status, int events)
{
	struct conn *conn = poll->data;
	struct server *server = conn->server;

	/* A peer that closed with something unread is told as an error of the socket: what it had
	 * sent before is read all the same, and then the end. */
	if ((status < 0 && may_read(conn)) || (events & UV_READABLE) != 0) {
		conn_read_turn(conn);
	} else if (status < 0 || (events & UV_DISCONNECT) != 0) {
		note_end(conn);
	}
	conn_mark_dirty(conn);
	server_flush(server);
}

/* Send, end, and say what the loop is to wait for. */
static void conn_update(struct conn *conn)
{
	bool is_done = conn->state == CONN_FLUSHING || (conn->is_at_end && conn->n_in_flight == 0);
	int events = 0;

	if (!conn_flush(conn)) {
		return;
	}
	if (is_done && conn->out_first == NULL) {
		conn_close(conn);
		return;
	}
	if (conn->is_half_closed) {
		note_end(conn); /* gone altogether meanwhile? */
		if (conn->state == CONN_CLOSED) {
			return;
		}
		list_remove(&conn->by_dirty);
		conn_arm_retry(conn, HALF_CLOSED_MS);
	} else {
		events |= UV_DISCONNECT;
	}
	events |= may_read(conn) ? UV_READABLE : 0;
	events |= conn->wants_write ? UV_WRITABLE : 0;
	/* Both fail only on a handle that is closing. */
	(void)(events == 0 ? uv_poll_stop(&conn->poll)
			   : uv_poll_start(&conn->poll, events, on_poll));
}

void server_flush(struct server *server)
{
	/* Closing steps the core, which flushes: never deeper than once, however many close, and
	 * never while a request is being handled, whose connection has to outlive the handler. */
	if (server->is_flushing) {
		return;
	}
	server->is_flushing = true;
	while (!list_is_empty(&server->dirty)) {
		struct conn *conn = container_of(server->dirty.next, struct conn, by_dirty);

		list_remove(&conn->by_dirty);
		conn_update(conn);
	}
	server->is_flushing = false;
}

/* ---- the beginning ---- */

void conn_accept_hello(struct conn *conn)
{
	if (conn->state == CONN_NEW) {
		conn->state = CONN_READY;
		conn->server->counters.n_served++;
		conn_arm_deadline(conn,
				  conn->server->options.drain_ms); /* until the answer is out */
	}
}

/* Why this peer may not connect; NULL when it may. */
static const char *refusal(const struct conn *conn, enum wire_code *ret_code,
			   char buffer[LIMIT_TEXT_SIZE])
{
	const struct server *server = conn->server;
	bool is_all;

	if (closer_count(conn->peer.uid) >= 2 * CLOSER_LIMIT) {
		*ret_code = WIRE_TOO_MANY;
		return "too many of your descriptors cannot be closed";
	}
	if (server->options.gid != UINT32_MAX && !conn->peer.is_admin &&
	    !peer_is_in_group(conn->fd, &conn->peer, server->options.gid)) {
		*ret_code = WIRE_NOT_ALLOWED;
		return "you are not in the group that may use this daemon";
	}
	*ret_code = WIRE_TOO_MANY;
	return is_over_limit(conn, CONN_NEW, &is_all)
		       ? limit_text(conn, is_all, " that have not said hello", buffer)
		       : NULL;
}

static void init_handles(struct conn *conn)
{
	uv_loop_t *loop = conn->server->loop;

	/* Timers and polls on a fresh socket cannot fail to be made. */
	REQUIRE(uv_poll_init(loop, &conn->poll, conn->fd) == 0);
	REQUIRE(uv_timer_init(loop, &conn->deadline) == 0);
	REQUIRE(uv_timer_init(loop, &conn->retry) == 0);
	conn->poll.data = conn->deadline.data = conn->retry.data = conn;
	conn->n_open_handles = 3;
}

void conn_open(struct server *server, int fd)
{
	const int send_bytes = SEND_BUFFER_BYTES;
	struct conn *conn = sys_calloc(1, sizeof *conn);
	enum wire_code code = WIRE_OK;
	char text[LIMIT_TEXT_SIZE];
	const char *reason;

	if (conn != NULL) {
		conn->reserve = packet_new(RESERVE_BYTES);
		conn->farewell = packet_new(RESERVE_BYTES);
	}
	if (conn == NULL || conn->reserve == NULL || conn->farewell == NULL ||
	    peer_read(fd, server->options.admin_uid, &conn->peer, NULL) < 0) {
		server->counters.n_refused++;
		if (conn != NULL) {
			packet_free(conn->reserve);
			packet_free(conn->farewell);
		}
		free(conn);
		conn_close_socket(fd);
		return;
	}
	/* The default holds only three or four full packets; a smaller one serves, slower. */
	(void)setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &send_bytes, sizeof send_bytes);
	conn->server = server;
	conn->fd = fd;
	list_init(&conn->by_dirty);
	list_append(&server->conns, &conn->by_server);
	init_handles(conn);
	conn_arm_deadline(conn, server->options.hello_ms);
	reason = refusal(conn, &code, text);
	if (reason != NULL) {
		server->counters.n_refused++;
		conn_say_goodbye(conn, code, reason);
	}
	conn_mark_dirty(conn);
}
