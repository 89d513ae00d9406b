/* SPDX-License-Identifier: Apache-2.0 */
/* See notify.h. */
#include "daemon/notify.h"

#include "base/cleanup.h"
#include "base/err.h"
#include "base/list.h"
#include "base/os/fdpass.h"
#include "base/os/sys.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "proto/gen/wire_code.h"

/* owner: notify::out */
struct message {
	struct list link;
	int fd; /* owned; -1: none */
	char text[NOTIFY_TEXT_SIZE];
};

/* owner: notify::barriers until its end of the pipe hangs up or its time is over */
struct barrier {
	struct list link;
	struct notify *notify;
	uv_poll_t poll;
	uv_timer_t timer;
	int fd; /* our end */
	uint32_t n_handles;
	notify_done_fn done; /* NULL: it was called */
	void *context;
};

struct notify {
	uv_loop_t *loop;
	uv_poll_t poll; /* for room, while messages wait */
	int socket;     /* -1: nobody to speak to */
	bool is_heard;
	bool has_poll;
	struct list out;
	struct list barriers;
};

/* ---- sending ---- */

static void message_free(struct message *message)
{
	list_remove(&message->link);
	if (message->fd >= 0) {
		(void)close(message->fd); /* the receiver has its own, or will get none */
	}
	free(message);
}

/* Nobody listens any more: what waits will never be taken, barriers included. */
static void give_up(struct notify *notify)
{
	notify->is_heard = false;
	/* NOLINTNEXTLINE(clang-analyzer-unix.Malloc): each takes itself off the list */
	LIST_FOR_EACH_SAFE (link, &notify->out) {
		message_free(container_of(link, struct message, link));
	}
}

static void on_room(uv_poll_t *poll, int status, int events);

static void flush(struct notify *notify)
{
	while (!list_is_empty(&notify->out)) {
		/* NOLINTBEGIN(clang-analyzer-unix.Malloc): a freed one has left the list */
		struct message *message = container_of(notify->out.next, struct message, link);
		int error = 0;
		enum fdpass_status status = fdpass_send(notify->socket, message->text,
							strlen(message->text), &message->fd,
							message->fd >= 0 ? 1 : 0, &error);
		/* NOLINTEND(clang-analyzer-unix.Malloc) */

		if (status == FDPASS_AGAIN) {
			(void)uv_poll_start(&notify->poll, UV_WRITABLE, on_room); /* is open */
			return;
		}
		if (status != FDPASS_OK) {
			give_up(notify);
			break;
		}
		message_free(message);
	}
	if (notify->has_poll) {
		(void)uv_poll_stop(&notify->poll); /* cannot fail on an open handle */
	}
}

static void on_room(uv_poll_t *poll, int status, int events)
{
	(void)status; /* the send tells */
	(void)events;
	flush(poll->data);
}

/* Takes 'fd' over. False: no memory, or nobody to speak to. */
static bool queue(struct notify *notify, const char *text, int fd)
{
	struct message *message = !notify->is_heard ? NULL : sys_calloc(1, sizeof *message);

	if (message == NULL) {
		if (fd >= 0) {
			(void)close(fd);
		}
		return false;
	}
	message->fd = fd;
	(void)snprintf(message->text, sizeof message->text, "%s", text);
	list_append(&notify->out, &message->link);
	flush(notify);
	return notify->is_heard;
}

void notify_say(struct notify *notify, const char *text)
{
	(void)queue(notify, text, -1);
}

bool notify_store(struct notify *notify, const char *name, int fd)
{
	char text[NOTIFY_TEXT_SIZE];
	int copy = notify->is_heard ? sys_fcntl_dup(fd) : -1;

	(void)snprintf(text, sizeof text, "FDSTORE=1\nFDPOLL=0\nFDNAME=%s", name);
	return copy >= 0 && queue(notify, text, copy);
}

void notify_unstore(struct notify *notify, const char *name)
{
	char text[NOTIFY_TEXT_SIZE];

	(void)snprintf(text, sizeof text, "FDSTOREREMOVE=1\nFDNAME=%s", name);
	(void)queue(notify, text, -1);
}

/* ---- barriers ---- */

static void on_barrier_closed(uv_handle_t *handle)
{
	struct barrier *barrier = handle->data;

	if (--barrier->n_handles == 0) {
		(void)close(barrier->fd); /* a pipe's end */
		free(barrier);
	}
}

static void barrier_end(struct barrier *barrier, bool is_taken)
{
	notify_done_fn done = barrier->done;

	if (done == NULL) {
		return;
	}
	barrier->done = NULL;
	list_remove(&barrier->link);
	uv_close((uv_handle_t *)&barrier->poll, on_barrier_closed);
	uv_close((uv_handle_t *)&barrier->timer, on_barrier_closed);
	done(barrier->context, is_taken);
}

/* The other end was closed: by the receiver, or because nobody is left to receive it. */
static void on_hangup(uv_poll_t *poll, int status, int events)
{
	struct barrier *barrier = poll->data;

	(void)status;
	(void)events;
	barrier_end(barrier, barrier->notify->is_heard);
}

/* The loop may have been held up itself: an answer that is there counts. */
static void on_late(uv_timer_t *timer)
{
	struct barrier *barrier = timer->data;
	struct pollfd poller = {.fd = barrier->fd, .events = POLLIN};
	const bool is_answered = poll(&poller, 1, 0) == 1;

	barrier_end(barrier, is_answered && barrier->notify->is_heard);
}

static bool barrier_start(struct notify *notify, struct barrier *barrier, uint64_t wait_ms)
{
	barrier->poll.data = barrier->timer.data = barrier;
	if (uv_poll_init(notify->loop, &barrier->poll, barrier->fd) < 0) {
		return false;
	}
	(void)uv_timer_init(notify->loop, &barrier->timer); /* always succeeds */
	barrier->n_handles = 2;
	list_append(&notify->barriers, &barrier->link);
	(void)uv_poll_start(&barrier->poll, UV_READABLE | UV_DISCONNECT, on_hangup);
	if (wait_ms > 0) {
		uv_update_time(notify->loop); /* this turn has not waited for it */
		(void)uv_timer_start(&barrier->timer, on_late, wait_ms, 0);
	}
	return true;
}

void notify_barrier(struct notify *notify, uint64_t wait_ms, notify_done_fn done, void *context)
{
	struct barrier *barrier = notify->is_heard ? sys_calloc(1, sizeof *barrier) : NULL;
	int ends[2] = {-1, -1};

	if (barrier == NULL || sys_pipe(ends) < 0) {
		free(barrier);
		done(context, false);
		return;
	}
	*barrier =
		(struct barrier){.notify = notify, .fd = ends[0], .done = done, .context = context};
	if (!barrier_start(notify, barrier, wait_ms)) {
		(void)close(ends[0]);
		(void)close(ends[1]);
		free(barrier);
		done(context, false);
		return;
	}
	/* Else its end is closed, which is no answer: what was said before may wait still. */
	if (!queue(notify, "BARRIER=1", ends[1])) {
		barrier_end(barrier, false);
	}
}

/* ---- life ---- */

static int connect_to(const char *path)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	size_t size = strlen(path);
	AUTO_CLOSE int fd = -1;

	if (size == 0 || size >= sizeof address.sun_path || (path[0] != '/' && path[0] != '@')) {
		return -1;
	}
	memcpy(address.sun_path, path, size);
	if (path[0] == '@') {
		address.sun_path[0] = '\0';
	}
	fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0 || connect(fd, (const struct sockaddr *)&address,
			      (socklen_t)(offsetof(struct sockaddr_un, sun_path) + size)) < 0) {
		return -1;
	}
	return steal_fd(&fd);
}

struct notify *notify_new(uv_loop_t *loop, const char *path, struct err *err)
{
	struct notify *notify = sys_calloc(1, sizeof *notify);

	if (notify == NULL) {
		(void)err_set(err, WIRE_NO_MEMORY, "no memory to speak to the service manager");
		return NULL;
	}
	notify->loop = loop;
	list_init(&notify->out);
	list_init(&notify->barriers);
	notify->socket = path == NULL ? -1 : connect_to(path);
	notify->poll.data = notify;
	if (notify->socket >= 0 && uv_poll_init(loop, &notify->poll, notify->socket) == 0) {
		notify->has_poll = notify->is_heard = true;
	}
	return notify;
}

static void on_notify_closed(uv_handle_t *handle)
{
	struct notify *notify = handle->data;

	(void)close(notify->socket); /* after the loop has let go of it */
	free(notify);
}

struct notify *notify_free(struct notify *notify)
{
	if (notify == NULL) {
		return NULL;
	}
	flush(notify);
	give_up(notify);
	LIST_FOR_EACH_SAFE (link, &notify->barriers) {
		struct barrier *barrier = container_of(link, struct barrier, link);

		list_remove(&barrier->link);
		barrier->done = NULL;
		uv_close((uv_handle_t *)&barrier->poll, on_barrier_closed);
		uv_close((uv_handle_t *)&barrier->timer, on_barrier_closed);
	}
	if (notify->has_poll) {
		uv_close((uv_handle_t *)&notify->poll, on_notify_closed);
		return NULL;
	}
	if (notify->socket >= 0) {
		(void)close(notify->socket);
	}
	free(notify);
	return NULL;
}

bool notify_is_heard(const struct notify *notify)
{
	return notify->is_heard;
}
