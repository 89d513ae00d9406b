/* SPDX-License-Identifier: Apache-2.0 */
/* See scrape.h. One answer a connection, which says its length and is the last. */
#include "daemon/ipc/scrape.h"

#include "base/cleanup.h"
#include "base/err.h"
#include "base/list.h"
#include "base/os/clock.h"
#include "base/os/closer.h"
#include "base/os/fdpass.h"
#include "base/os/sys.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "daemon/ipc/http.h"
#include "daemon/ipc/internal.h"

#define MAX_SCRAPES  8
#define BACKLOG      64
#define REQUEST_SIZE 4096
#define HEAD_SIZE    512
#define MAX_IGNORED  65536 /* read behind a request */
#define LOOK_MS      250   /* for those that have had their time, while there are any */
#define NS_PER_MS    1000000U

enum scrape_state { SCRAPE_READING, SCRAPE_WRITING, SCRAPE_ENDING };

struct scrape {
	struct scraper *scraper;
	struct list by_scraper; /* owner: scraper::scrapes */
	uv_poll_t poll;
	int fd;
	enum scrape_state state;
	uint64_t until_ns;
	size_t n_read;
	char *answer; /* owner: scrape */
	size_t size, n_sent;
	char request[REQUEST_SIZE];
};

struct scraper {
	uv_loop_t *loop;
	struct scrape_options options;
	char *path; /* owner: scraper; NULL: TCP */
	struct listen_socket socket;
	uv_poll_t listen;
	uv_timer_t timer; /* runs while there are connections, or none can be taken */
	bool is_paused;
	struct list scrapes; /* scrape::by_scraper */
	uint32_t n_scrapes;
	int n_open_handles; /* listen and timer */
	bool is_freed;
};

static uint32_t uid_of(int fd)
{
	struct ucred peer = {.uid = UINT32_MAX};
	socklen_t size = sizeof peer;

	(void)getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &size); /* else nobody's */
	return peer.uid;
}

/* ---- the end of a connection ---- */

static void release(struct scraper *scraper)
{
	if (scraper->is_freed && scraper->n_open_handles == 0 && scraper->n_scrapes == 0) {
		free(scraper->path);
		free(scraper);
	}
}

static void on_connection(uv_poll_t *poll, int status, int events);

static void resume(struct scraper *scraper)
{
	if (scraper->is_paused && !scraper->is_freed && scraper->n_scrapes < MAX_SCRAPES) {
		scraper->is_paused = false;
		(void)uv_poll_start(&scraper->listen, UV_READABLE, on_connection); /* is open */
	}
}

static void on_scrape_closed(uv_handle_t *handle)
{
	struct scrape *scrape = handle->data;
	struct scraper *scraper = scrape->scraper;

	conn_close_socket(scrape->fd);
	list_remove(&scrape->by_scraper);
	free(scrape->answer);
	free(scrape);
	scraper->n_scrapes--;
	resume(scraper);
	release(scraper);
}

static void end(struct scrape *scrape)
{
	if (!uv_is_closing((uv_handle_t *)&scrape->poll)) {
		uv_close((uv_handle_t *)&scrape->poll, on_scrape_closed);
	}
}

/* ---- the answer ---- */

static const struct {
	const char *status, *text;
} answers[HTTP_N_VALUES] = {
	[HTTP_MORE] = {"431 Request Header Fields Too Large", "The request is too long.\n"},
	[HTTP_GET_METRICS] = {"200 OK", NULL},
	[HTTP_HEAD_METRICS] = {"200 OK", NULL},
	[HTTP_NOT_FOUND] = {"404 Not Found", "There is nothing here but /metrics.\n"},
	[HTTP_NOT_ALLOWED] = {"405 Method Not Allowed\r\nAllow: GET, HEAD",
			      "Metrics can be read (GET) and no more.\n"},
	[HTTP_BAD] = {"400 Bad Request", "This is no request of HTTP/1.1 or 1.0.\n"},
};

/* False: no memory. 'text' NULL: that cannot be had either. */
static bool set_answer(struct scrape *scrape, enum http_request request, const char *text)
{
	bool is_text = answers[request].text == NULL && text != NULL;
	const char *status = text == NULL ? "500 Internal Server Error" : answers[request].status;
	const char *body = text == NULL ? "The metrics cannot be had now.\n" : text;
	size_t body_size = strlen(body);
	int head_size;

	scrape->answer = sys_malloc(HEAD_SIZE + body_size);
	if (scrape->answer == NULL) {
		return false;
	}
	head_size = snprintf(scrape->answer, HEAD_SIZE,
			     "HTTP/1.1 %s\r\nContent-Type: %s; charset=utf-8\r\n"
			     "Content-Length: %zu\r\nCache-Control: no-store\r\n"
			     "X-Content-Type-Options: nosniff\r\nConnection: close\r\n\r\n",
			     status,
			     is_text ? "application/openmetrics-text; version=1.0.0" : "text/plain",
			     body_size);
	scrape->size = (size_t)head_size; /* less than HEAD_SIZE: the words are ours */
	if (request != HTTP_HEAD_METRICS) {
		memcpy(scrape->answer + scrape->size, body, body_size);
		scrape->size += body_size;
	}
	return true;
}

static bool make_answer(struct scrape *scrape, enum http_request request)
{
	const struct scrape_options *options = &scrape->scraper->options;
	AUTO_FREE char *text = NULL;

	if (answers[request].text != NULL) {
		return set_answer(scrape, request, answers[request].text);
	}
	text = sys_malloc(options->text_size);
	if (text == NULL || !options->write(options->context, text, options->text_size)) {
		return set_answer(scrape, request, NULL);
	}
	return set_answer(scrape, request, text);
}

static void on_scrape(uv_poll_t *poll, int status, int events);

/* What is left to be read, and the peer's own end, may come behind: a close before that could
 * make the peer lose the answer. */
static void send_answer(struct scrape *scrape)
{
	while (scrape->n_sent < scrape->size) {
		struct iovec rest = {.iov_base = scrape->answer + scrape->n_sent,
				     .iov_len = scrape->size - scrape->n_sent};
		const struct msghdr message = {.msg_iov = &rest, .msg_iovlen = 1};
		ssize_t n_sent = sys_sendmsg(scrape->fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT);

		if (n_sent < 0 && (errno == EAGAIN || errno == EINTR)) {
			return;
		}
		if (n_sent < 0) {
			end(scrape);
			return;
		}
		scrape->n_sent += (size_t)n_sent;
	}
	scrape->state = SCRAPE_ENDING;
	(void)shutdown(scrape->fd, SHUT_WR); /* it is open, or at its end */
	(void)uv_poll_start(&scrape->poll, UV_READABLE, on_scrape);
}

/* Nobody sends descriptors with a request: they go, and so does the connection. */
static bool take_bytes(struct scrape *scrape, char *bytes, size_t capacity, size_t *ret_size)
{
	struct fdpass_packet packet;
	enum fdpass_status status = fdpass_receive(scrape->fd, bytes, capacity, &packet);

	*ret_size = status == FDPASS_OK ? packet.size : 0;
	if (packet.n_fds > 0) {
		closer_give(uid_of(scrape->fd), packet.fds, packet.n_fds);
		return false;
	}
	return status == FDPASS_OK || status == FDPASS_AGAIN;
}

static void read_request(struct scrape *scrape)
{
	enum http_request request;
	size_t size;

	if (!take_bytes(scrape, scrape->request + scrape->n_read, REQUEST_SIZE - scrape->n_read,
			&size)) {
		end(scrape);
		return;
	}
	scrape->n_read += size;
	request = http_judge(scrape->request, scrape->n_read);
	if (request == HTTP_MORE && scrape->n_read < REQUEST_SIZE) {
		return;
	}
	if (!make_answer(scrape, request)) {
		end(scrape);
		return;
	}
	scrape->state = SCRAPE_WRITING;
	(void)uv_poll_start(&scrape->poll, UV_WRITABLE, on_scrape);
}

static void on_scrape(uv_poll_t *poll, int status, int events)
{
	struct scrape *scrape = poll->data;
	size_t size;

	(void)status; /* the calls tell */
	(void)events;
	switch (scrape->state) {
	case SCRAPE_READING:
		read_request(scrape);
		break;
	case SCRAPE_WRITING:
		send_answer(scrape);
		break;
	case SCRAPE_ENDING:
		if (!take_bytes(scrape, scrape->request, REQUEST_SIZE, &size) ||
		    (scrape->n_read += size) > MAX_IGNORED) {
			end(scrape);
		}
		break;
	}
}

/* ---- accept ---- */

static void pause_listening(struct scraper *scraper)
{
	scraper->is_paused = true;
	(void)uv_poll_stop(&scraper->listen); /* does not fail on a handle that is open */
}

static void on_timer(uv_timer_t *timer)
{
	struct scraper *scraper = timer->data;
	uint64_t now_ns = clock_mono_ns();

	LIST_FOR_EACH (link, &scraper->scrapes) {
		struct scrape *scrape = container_of(link, struct scrape, by_scraper);

		if (now_ns >= scrape->until_ns) {
			end(scrape);
		}
	}
	resume(scraper);
	if (scraper->n_scrapes == 0 && !scraper->is_paused) {
		(void)uv_timer_stop(timer); /* at rest nothing wakes us */
	}
}

static void open_scrape(struct scraper *scraper, int fd)
{
	struct scrape *scrape =
		closer_count(uid_of(fd)) < CLOSER_LIMIT ? sys_calloc(1, sizeof *scrape) : NULL;

	if (scrape == NULL || uv_poll_init(scraper->loop, &scrape->poll, fd) < 0) {
		free(scrape);
		conn_close_socket(fd);
		return;
	}
	scrape->scraper = scraper;
	scrape->fd = fd;
	scrape->poll.data = scrape;
	scrape->until_ns = clock_mono_ns() + (uint64_t)scraper->options.deadline_ms * NS_PER_MS;
	list_append(&scraper->scrapes, &scrape->by_scraper);
	scraper->n_scrapes++;
	(void)uv_poll_start(&scrape->poll, UV_READABLE, on_scrape); /* is open */
}

static void on_connection(uv_poll_t *poll, int status, int events)
{
	struct scraper *scraper = poll->data;
	int fd = sys_accept(scraper->socket.fd);

	(void)status; /* accept tells */
	(void)events;
	if (fd >= 0) {
		open_scrape(scraper, fd);
	} else if (errno == EAGAIN || errno == EINTR || errno == ECONNABORTED) {
		return;
	}
	/* Those that wait stay in the queue; so they do for want of descriptors. */
	if (fd < 0 || scraper->n_scrapes == MAX_SCRAPES) {
		pause_listening(scraper);
	}
	if (!uv_is_active((const uv_handle_t *)&scraper->timer)) {
		(void)uv_timer_start(&scraper->timer, on_timer, LOOK_MS, LOOK_MS);
	}
}

/* ---- life ---- */

static int open_tcp(const struct scrape_options *options, struct listen_socket *ret,
		    struct err *err)
{
	const int yes = 1;
	AUTO_CLOSE int fd =
		socket(options->address->sa_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

	/* Connections of before a restart must not stand in the way. */
	if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes) < 0 ||
	    bind(fd, options->address, options->address_size) < 0 || listen(fd, BACKLOG) < 0) {
		return err_set_sys(err, WIRE_BAD_ARGUMENT, errno, "%s", strerror(errno));
	}
	ret->fd = steal_fd(&fd);
	return 0;
}

static int open_socket(struct scraper *scraper, struct err *err)
{
	const struct listen_name name = {
		.path = scraper->path,
		.type = SOCK_STREAM,
		.backlog = BACKLOG,
		.mode = scraper->options.mode,
		.gid = scraper->options.gid,
	};
	int code;

	if (scraper->path == NULL) {
		return open_tcp(&scraper->options, &scraper->socket, err);
	}
	code = listen_make_folder(scraper->path, err);
	return code < 0 ? code : listen_open(&name, &scraper->socket, err);
}

static void on_handle_closed(uv_handle_t *handle)
{
	struct scraper *scraper = handle->data;

	scraper->n_open_handles--;
	if (scraper->n_open_handles == 0) {
		closer_give(geteuid(), &scraper->socket.fd, 1); /* may hold what was sent */
		release(scraper);
	}
}

int scraper_new(uv_loop_t *loop, const struct scrape_options *options, struct scraper **ret,
		struct err *err)
{
	struct scraper *scraper = sys_calloc(1, sizeof *scraper);
	int code;

	if (scraper == NULL) {
		return err_set(err, WIRE_NO_MEMORY, "no memory");
	}
	scraper->loop = loop;
	scraper->options = *options;
	scraper->socket.fd = -1;
	list_init(&scraper->scrapes);
	scraper->path = options->path == NULL ? NULL : sys_strdup(options->path);
	if (options->path != NULL && scraper->path == NULL) {
		code = err_set(err, WIRE_NO_MEMORY, "no memory");
	} else {
		code = open_socket(scraper, err);
	}
	scraper->listen.data = scraper->timer.data = scraper;
	if (code == 0 && uv_poll_init(loop, &scraper->listen, scraper->socket.fd) < 0) {
		code = err_set(err, WIRE_INTERNAL, "the socket cannot be watched");
		listen_forget(&scraper->socket, options->path);
		(void)close(scraper->socket.fd); /* nobody has connected yet, as good as sure */
	}
	if (code < 0) {
		free(scraper->path);
		free(scraper);
		return code;
	}
	(void)uv_timer_init(loop, &scraper->timer); /* always succeeds */
	scraper->n_open_handles = 2;
	(void)uv_poll_start(&scraper->listen, UV_READABLE, on_connection); /* is open */
	*ret = scraper;
	return 0;
}

struct scraper *scraper_free(struct scraper *scraper)
{
	if (scraper == NULL) {
		return NULL;
	}
	listen_forget(&scraper->socket, scraper->path);
	scraper->is_freed = true;
	LIST_FOR_EACH (link, &scraper->scrapes) {
		end(container_of(link, struct scrape, by_scraper));
	}
	uv_close((uv_handle_t *)&scraper->listen, on_handle_closed);
	uv_close((uv_handle_t *)&scraper->timer, on_handle_closed);
	return NULL;
}
