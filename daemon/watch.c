/* SPDX-License-Identifier: Apache-2.0 */
/* See watch.h. */
#include "daemon/watch.h"

#include "base/list.h"
#include "base/os/log.h"
#include "base/os/sys.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/inotify.h>
#include <unistd.h>

#include "daemon/daemon.h"
#include "daemon/load/file.h"

#define MASK          (IN_MODIFY | IN_ATTRIB | IN_CLOSE_WRITE)
#define N_CHAINS      1024 /* power of two */
#define LOOKS_A_TURN  256
#define READS_A_TURN  16
#define NOT_TOLD      (-1) /* no inotify watch */
#define EVENTS_A_READ 128
#define EVENT_SIZE    sizeof(struct inotify_event) /* of a file: no name follows */

/* A copy whose bytes are its file's own. owner: watch::by_segment, until it is dropped */
struct watched {
	struct list by_segment; /* chain of its segment */
	struct list by_number;  /* chain of its number, while there is one */
	struct list waiting;    /* watch::waiting */
	uint64_t segment;
	int number;        /* of the inotify watch, one an inode; NOT_TOLD: none */
	struct file *file; /* a reference */
	struct file_key key;
	bool is_written; /* whatever its times say */
	bool is_unlinked;
	bool is_changed;
};

struct watch {
	struct daemon *daemon;
	struct list by_segment[N_CHAINS];
	struct list by_number[N_CHAINS];
	struct list waiting; /* to be looked at soon */
	int fd;              /* inotify; -1: none */
	uv_poll_t poll;
	uv_timer_t soon;
};

static struct list *segment_chain(struct watch *watch, uint64_t segment)
{
	return &watch->by_segment[(uint32_t)segment & (N_CHAINS - 1)];
}

static struct list *number_chain(struct watch *watch, int number)
{
	return &watch->by_number[(uint32_t)number & (N_CHAINS - 1)];
}

static struct watched *find(struct watch *watch, uint64_t segment)
{
	LIST_FOR_EACH (link, segment_chain(watch, segment)) {
		struct watched *copy = container_of(link, struct watched, by_segment);

		if (copy->segment == segment) {
			return copy;
		}
	}
	return NULL;
}

static struct watched *find_told(struct watch *watch, int number)
{
	LIST_FOR_EACH (link, number_chain(watch, number)) {
		struct watched *copy = container_of(link, struct watched, by_number);

		if (copy->number == number) {
			return copy;
		}
	}
	return NULL;
}

/* Two models may lie in one inode (read for its tensors and for its bytes): one watch. */
static void stop_telling(struct watch *watch, struct watched *copy)
{
	int number = copy->number;

	copy->number = NOT_TOLD;
	list_remove(&copy->by_number);
	if (number != NOT_TOLD && find_told(watch, number) == NULL) {
		(void)inotify_rm_watch(watch->fd, number); /* gone already: as good */
	}
}

/* A file without a name is kept by those who have it open; losing it changed no byte. */
static bool has_lost_its_name(struct watched *copy, const struct file_key *now)
{
	if (copy->is_unlinked || !file_is_unlinked(copy->file)) {
		return false;
	}
	copy->is_unlinked = true;
	copy->key.ctime_ns = now->ctime_ns; /* what comes after it counts again */
	return true;
}

static bool has_changed(struct watched *copy, bool *ret_was_written)
{
	struct file_key now;

	if (copy->is_changed || file_look_at_key(copy->file, &now, NULL) < 0) {
		return false;
	}
	*ret_was_written = copy->is_written || now.size != copy->key.size ||
			   now.mtime_ns != copy->key.mtime_ns;
	return *ret_was_written ||
	       (now.ctime_ns != copy->key.ctime_ns && !has_lost_its_name(copy, &now));
}

/* Steps when it has changed, and the copy may be gone then. */
static void look(struct watch *watch, struct watched *copy)
{
	struct core_event event = {.type = EV_CHANGED, .changed = {.segment = copy->segment}};

	list_remove(&copy->waiting);
	if (has_changed(copy, &event.changed.was_written)) {
		copy->is_changed = true;
		stop_telling(watch, copy);
		(void)daemon_step(watch->daemon, &event);
	}
}

static void on_soon(uv_timer_t *timer)
{
	struct watch *watch = timer->data;

	for (int i = 0; i < LOOKS_A_TURN && !list_is_empty(&watch->waiting); i++) {
		look(watch, container_of(watch->waiting.next, struct watched, waiting));
	}
	if (!list_is_empty(&watch->waiting)) {
		(void)uv_timer_start(timer, on_soon, 1, 0); /* 0 would be this turn still */
	}
}

/* Not at once: a step may drop any of them, and it may be many. */
static void look_soon(struct watch *watch, struct watched *copy)
{
	list_remove(&copy->waiting);
	list_append(&watch->waiting, &copy->waiting);
	(void)uv_timer_start(&watch->soon, on_soon, 0, 0);
}

static void take_event(struct watch *watch, const struct inotify_event *event)
{
	const bool is_any = (event->mask & IN_Q_OVERFLOW) != 0; /* it has no number */

	for (uint32_t i = 0; is_any && i < N_CHAINS; i++) {
		LIST_FOR_EACH (link, &watch->by_number[i]) {
			look_soon(watch, container_of(link, struct watched, by_number));
		}
	}
	if (is_any || (event->mask & IN_IGNORED) != 0) {
		return;
	}
	LIST_FOR_EACH (link, number_chain(watch, event->wd)) {
		struct watched *copy = container_of(link, struct watched, by_number);

		if (copy->number == event->wd) {
			copy->is_written = copy->is_written || (event->mask & IN_MODIFY) != 0;
			look_soon(watch, copy);
		}
	}
}

static void read_events(struct watch *watch)
{
	_Alignas(struct inotify_event) uint8_t bytes[EVENTS_A_READ * EVENT_SIZE];
	struct inotify_event event;
	ssize_t n_read;

	for (int i = 0; watch->fd >= 0 && i < READS_A_TURN; i++) {
		n_read = read(watch->fd, bytes, sizeof bytes);
		if (n_read <= 0) {
			return;
		}
		for (ssize_t at = 0; at < n_read; at += (ssize_t)EVENT_SIZE) {
			memcpy(&event, bytes + at, EVENT_SIZE);
			take_event(watch, &event);
		}
	}
}

static void on_events(uv_poll_t *poll, int status, int events)
{
	(void)status; /* an inotify has no error of its own */
	(void)events;
	read_events(poll->data);
}

struct watch *watch_new(struct daemon *daemon)
{
	struct watch *watch = sys_calloc(1, sizeof *watch);

	if (watch == NULL) {
		return NULL;
	}
	watch->daemon = daemon;
	watch->poll.data = watch->soon.data = watch;
	list_init(&watch->waiting);
	for (uint32_t i = 0; i < N_CHAINS; i++) {
		list_init(&watch->by_segment[i]);
		list_init(&watch->by_number[i]);
	}
	(void)uv_timer_init(&daemon->loop, &watch->soon); /* always succeeds */
	watch->fd = inotify_init1(IN_NONBLOCK | IN_CLOEXEC);
	if (watch->fd >= 0 && uv_poll_init(&daemon->loop, &watch->poll, watch->fd) < 0) {
		(void)close(watch->fd); /* nothing is watched yet */
		watch->fd = -1;
	}
	if (watch->fd < 0) {
		log_warning("no inotify (%s): files that serve as they are, are only looked at "
			    "when they are asked for",
			    strerror(errno));
	} else {
		(void)uv_poll_start(&watch->poll, UV_READABLE, on_events);
	}
	return watch;
}

void watch_stop(struct watch *watch)
{
	if (watch == NULL) {
		return;
	}
	uv_close((uv_handle_t *)&watch->soon, NULL);
	if (watch->fd >= 0) {
		uv_close((uv_handle_t *)&watch->poll, NULL);
	}
}

static void forget(struct watched *copy)
{
	list_remove(&copy->by_segment);
	list_remove(&copy->by_number);
	list_remove(&copy->waiting);
	(void)file_unref(copy->file);
	free(copy);
}

struct watch *watch_free(struct watch *watch)
{
	for (uint32_t i = 0; watch != NULL && i < N_CHAINS; i++) {
		LIST_FOR_EACH_SAFE (link, &watch->by_segment[i]) {
			forget(container_of(link, struct watched, by_segment));
		}
	}
	if (watch != NULL && watch->fd >= 0) {
		(void)close(watch->fd); /* and with it all it watched */
	}
	free(watch);
	return NULL;
}

static bool add(struct watch *watch, uint64_t segment, struct file *file)
{
	struct watched *copy = sys_calloc(1, sizeof *copy);
	const struct core_event event = {.type = EV_CHANGED, .changed = {.segment = segment}};
	char path[64];

	if (copy == NULL) {
		/* What nobody looks at serves nobody else. */
		(void)daemon_follow(watch->daemon, &event);
		return false;
	}
	*copy = (struct watched){.segment = segment, .number = NOT_TOLD, .key = file->read_key};
	copy->file = file_ref(file);
	list_init(&copy->waiting);
	list_init(&copy->by_number);
	list_append(segment_chain(watch, segment), &copy->by_segment);
	(void)snprintf(path, sizeof path, "/proc/self/fd/%d", file->fd);
	copy->number = watch->fd < 0 ? NOT_TOLD : sys_inotify_add_watch(watch->fd, path, MASK);
	if (copy->number != NOT_TOLD) {
		list_append(number_chain(watch, copy->number), &copy->by_number);
	}
	look_soon(watch, copy); /* it may have changed between its fill and now */
	return copy->number != NOT_TOLD;
}

bool watch_add(struct daemon *daemon, uint64_t model, uint64_t generation)
{
	struct core_segment_view segment;
	struct core_model_view view;
	struct file *file = core_model_get(daemon->core, model, &view)
				    ? store_find_file(daemon->store, view.file)
				    : NULL;
	uint32_t cursor = 0;
	bool is_told = true;

	while (file != NULL && core_segment_next(daemon->core, model, &cursor, &segment)) {
		if (core_segment_is_of(&segment, generation) &&
		    segment.backing != CORE_BACKING_IMAGE) {
			is_told = add(daemon->watch, segment.id, file_shard(file, segment.index)) &&
				  is_told;
		}
	}
	return is_told;
}

void watch_remove(struct daemon *daemon, uint64_t segment)
{
	struct watched *copy = find(daemon->watch, segment);

	if (copy != NULL) {
		stop_telling(daemon->watch, copy);
		forget(copy);
	}
}

void watch_check(struct daemon *daemon, uint64_t model)
{
	struct core_segment_view segment;
	uint32_t cursor = 0;

	read_events(daemon->watch); /* they know more than the file's times */
	while (core_segment_next(daemon->core, model, &cursor, &segment)) {
		struct watched *copy = find(daemon->watch, segment.id);

		if (copy != NULL) {
			look(daemon->watch, copy); /* a walk may go on over a step */
		}
	}
}
