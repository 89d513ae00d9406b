/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The daemon's end of the socket to a worker. See worker_link.h. There is no thread for it: of
 * those who wait for an answer one reads the socket for all, and hands that over when its own
 * answer is there.
 */
#include "daemon/device/worker_link.h"

#include "base/err.h"
#include "base/os/clock.h"
#include "base/os/fdpass.h"
#include "base/os/memfd.h"
#include "base/os/sys.h"
#include "base/require.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "proto/gen/wire_gen.h"
#include "proto/wire.h"

#define NS_PER_MS        1000000ULL
#define MAX_IDLE_STAGING 2
#define REASON_SIZE      160

/* A request on its way. On the stack of who waits for it. */
struct waiting {
	struct waiting *next; /* owner: the caller */
	uint32_t id;
	enum wire_method method;
	bool is_answered;
	int fds[FDPASS_MAX_FDS]; /* that came with the answer */
	uint32_t n_fds;
	bool are_cut; /* there was no number left here for all that came */
	size_t size;
	uint8_t bytes[WORKER_PACKET_BYTES]; /* the answer */
};

struct worker_link {
	pthread_mutex_t lock;
	pthread_cond_t changed; /* on the monotonic clock */
	int socket;
	uint32_t n_refs;
	uint32_t next_id;
	bool is_lost;
	bool has_ended; /* lost, as its worker closed its end */
	bool has_reader;
	struct waiting *waiting;
	struct staging *idle; /* owner: the link */
	uint32_t n_idle;
	char reason[REASON_SIZE];
	char name[64];
};

static void lock_link(struct worker_link *link)
{
	(void)pthread_mutex_lock(&link->lock);
}

static void unlock_link(struct worker_link *link)
{
	(void)pthread_mutex_unlock(&link->lock);
}

int worker_link_new(int socket, const char *name, struct worker_link **ret, struct err *err)
{
	struct worker_link *link = sys_calloc(1, sizeof *link);
	pthread_condattr_t monotonic;

	if (link == NULL) {
		(void)close(socket);
		return err_set(err, WIRE_NO_MEMORY, "no memory for the worker of %s", name);
	}
	*link = (struct worker_link){.socket = socket, .n_refs = 1};
	(void)snprintf(link->name, sizeof link->name, "%s", name);
	/* None of these fails on Linux. */
	(void)pthread_mutex_init(&link->lock, NULL);
	(void)pthread_condattr_init(&monotonic);
	(void)pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
	(void)pthread_cond_init(&link->changed, &monotonic);
	(void)pthread_condattr_destroy(&monotonic);
	*ret = link;
	return 0;
}

struct worker_link *worker_link_ref(struct worker_link *link)
{
	(void)__atomic_add_fetch(&link->n_refs, 1, __ATOMIC_RELAXED);
	return link;
}

void worker_link_discard(struct staging *staging)
{
	memfd_unmap(staging->memory, STAGING_BYTES);
	if (staging->fd >= 0) {
		(void)close(staging->fd); /* memory */
	}
	free(staging);
}

struct worker_link *worker_link_unref(struct worker_link *link)
{
	if (link == NULL || __atomic_sub_fetch(&link->n_refs, 1, __ATOMIC_ACQ_REL) > 0) {
		return NULL;
	}
	while (link->idle != NULL) {
		struct staging *staging = link->idle;

		link->idle = staging->next;
		worker_link_discard(staging);
	}
	(void)close(link->socket); /* nothing is left unsent: every request was waited for */
	(void)pthread_cond_destroy(&link->changed);
	(void)pthread_mutex_destroy(&link->lock);
	free(link);
	return NULL;
}

static void lose_locked(struct worker_link *link, const char *reason)
{
	if (!link->is_lost) {
		link->is_lost = true;
		(void)snprintf(link->reason, sizeof link->reason, "%s", reason);
		(void)shutdown(link->socket, SHUT_RDWR); /* wakes the reader, ours and theirs */
		(void)pthread_cond_broadcast(&link->changed);
	}
}

void worker_link_lose(struct worker_link *link, const char *reason)
{
	lock_link(link);
	lose_locked(link, reason);
	unlock_link(link);
}

void worker_link_reason(struct worker_link *link, char *ret, size_t size)
{
	lock_link(link);
	(void)snprintf(ret, size, "%s", link->reason);
	unlock_link(link);
}

static void lose_ended(struct worker_link *link)
{
	lock_link(link);
	link->has_ended = link->has_ended || !link->is_lost; /* the first reason counts */
	lose_locked(link, "its worker has ended");
	unlock_link(link);
}

bool worker_link_has_ended(struct worker_link *link)
{
	bool has_ended;

	lock_link(link);
	has_ended = link->has_ended;
	unlock_link(link);
	return has_ended;
}

static void lose_late(struct worker_link *link, const struct worker_call *call)
{
	char reason[REASON_SIZE];

	(void)snprintf(reason, sizeof reason, "its worker did not answer %s within %" PRIu64 " ms",
		       wire_messages[call->method].method, (uint64_t)(call->limit_ns / NS_PER_MS));
	worker_link_lose(link, reason);
}

static int say_lost(struct worker_link *link, struct err *err)
{
	char reason[REASON_SIZE];

	worker_link_reason(link, reason, sizeof reason);
	return err_set(err, WIRE_DEVICE_LOST, "%s is lost: %s", link->name, reason);
}

/* ---- sending ---- */

static int left_ms(uint64_t deadline_ns)
{
	const uint64_t now_ns = clock_mono_ns();
	const uint64_t left = deadline_ns > now_ns ? (deadline_ns - now_ns) / NS_PER_MS + 1 : 0;

	return left > INT32_MAX ? INT32_MAX : (int)left;
}

/* False: the link is lost. */
static bool send_packet(struct worker_link *link, const struct worker_call *call,
			const struct wire_buffer *packet, uint64_t deadline_ns)
{
	struct pollfd poll_fd = {.fd = link->socket, .events = POLLOUT};
	const struct timespec moment = {.tv_nsec = (long)NS_PER_MS};
	int error = 0;

	while (clock_mono_ns() < deadline_ns) {
		switch (fdpass_send(link->socket, packet->bytes, packet->size, &call->fd,
				    call->fd >= 0 ? 1 : 0, &error)) {
		case FDPASS_OK:
			return true;
		case FDPASS_AGAIN:
			if (error == EAGAIN) {
				(void)poll(&poll_fd, 1, left_ms(deadline_ns));
			} else {
				(void)nanosleep(&moment, NULL); /* of descriptors under way */
			}
			break;
		case FDPASS_END:
		case FDPASS_TOO_LARGE:
		case FDPASS_BAD_FDS:
		case FDPASS_FAILED:
			if (error == EPIPE || error == ECONNRESET) {
				lose_ended(link);
			} else {
				worker_link_lose(link, strerror(error));
			}
			return false;
		}
	}
	lose_late(link, call);
	return false;
}

/* Not inlined: so that request and answer are not both on the stack. */
static __attribute__((noinline)) bool send_request(struct worker_link *link,
						   const struct worker_call *call, uint32_t id,
						   uint64_t deadline_ns)
{
	uint8_t bytes[WORKER_PACKET_BYTES];
	struct wire_buffer packet = {.bytes = bytes, .capacity = sizeof bytes};

	REQUIRE(wire_encode_request(&packet, id, call->method, call->request,
				    call->fd >= 0 ? 1 : 0)); /* the schema bounds them */
	return send_packet(link, call, &packet, deadline_ns);
}

/* ---- receiving ---- */

/* Give a packet to who waits for it. Nobody does: a protocol of another kind. */
static void deliver(struct worker_link *link, const uint8_t *bytes, struct fdpass_packet *received,
		    bool is_cut)
{
	struct wire_packet packet;
	struct wire_fault fault;
	struct waiting *waiting = NULL;
	bool is_good = wire_decode_packet(bytes, received->size, &wire_packet_limits, &packet,
					  &fault) == 0 &&
		       packet.kind == WIRE_RESPONSE && packet.n_fds <= FDPASS_MAX_FDS &&
		       (is_cut ? packet.n_fds > received->n_fds : packet.n_fds == received->n_fds);

	lock_link(link);
	if (is_good) {
		for (waiting = link->waiting; waiting != NULL && waiting->id != packet.id;) {
			waiting = waiting->next;
		}
	}
	if (waiting != NULL && !waiting->is_answered) {
		memcpy(waiting->bytes, bytes, received->size);
		waiting->size = received->size;
		memcpy(waiting->fds, received->fds, received->n_fds * sizeof waiting->fds[0]);
		waiting->n_fds = received->n_fds;
		received->n_fds = 0;
		waiting->are_cut = is_cut;
		waiting->is_answered = true;
		(void)pthread_cond_broadcast(&link->changed);
	} else {
		lose_locked(link, "its worker does not speak our protocol");
	}
	unlock_link(link);
}

/* Read one packet, or wait for it until 'deadline_ns' at most. Not inlined: for the stack's sake. */
static __attribute__((noinline)) void read_packet(struct worker_link *link, uint64_t deadline_ns)
{
	struct pollfd poll_fd = {.fd = link->socket, .events = POLLIN};
	uint8_t bytes[WORKER_PACKET_BYTES];
	struct fdpass_packet received;

	(void)poll(&poll_fd, 1, left_ms(deadline_ns)); /* whatever it says: look */
	switch (fdpass_receive(link->socket, bytes, sizeof bytes, &received)) {
	case FDPASS_OK:
		deliver(link, bytes, &received, false);
		break;
	case FDPASS_AGAIN:
		break;
	case FDPASS_END:
		lose_ended(link);
		break;
	case FDPASS_BAD_FDS: /* our own want of descriptors is no fault of the worker's */
		deliver(link, bytes, &received, received.n_fds < FDPASS_MAX_FDS);
		break;
	case FDPASS_TOO_LARGE:
		worker_link_lose(link, "its worker does not speak our protocol");
		break;
	case FDPASS_FAILED:
		worker_link_lose(link, strerror(received.error));
		break;
	}
	fdpass_close_all(received.fds, received.n_fds);
}

static void sleep_locked(struct worker_link *link, uint64_t deadline_ns)
{
	const struct timespec moment = {.tv_sec = (time_t)(deadline_ns / (1000 * NS_PER_MS)),
					.tv_nsec = (long)(deadline_ns % (1000 * NS_PER_MS))};

	(void)pthread_cond_timedwait(&link->changed, &link->lock, &moment);
}

/* Until 'waiting' is answered or the link is lost. */
static void await(struct worker_link *link, const struct worker_call *call,
		  const struct waiting *waiting, uint64_t deadline_ns)
{
	lock_link(link);
	while (!waiting->is_answered && !link->is_lost) {
		if (clock_mono_ns() >= deadline_ns) {
			unlock_link(link);
			lose_late(link, call);
			lock_link(link);
		} else if (link->has_reader) {
			sleep_locked(link, deadline_ns);
		} else {
			link->has_reader = true;
			unlock_link(link);
			read_packet(link, deadline_ns);
			lock_link(link);
			link->has_reader = false;
			(void)pthread_cond_broadcast(&link->changed); /* another may read now */
		}
	}
	unlock_link(link);
}

/* ---- a call ---- */

static void enqueue(struct worker_link *link, struct waiting *waiting)
{
	lock_link(link);
	waiting->id = link->next_id++;
	waiting->next = link->waiting;
	link->waiting = waiting;
	unlock_link(link);
}

/* Was it answered? Told once nobody can answer any more: the answer may have come with a
 * descriptor, also after the link was lost. */
static bool dequeue(struct worker_link *link, const struct waiting *waiting)
{
	struct waiting **at = &link->waiting;
	bool is_answered;

	lock_link(link);
	while (*at != waiting) {
		at = &(*at)->next;
	}
	*at = waiting->next;
	is_answered = waiting->is_answered;
	unlock_link(link);
	return is_answered;
}

/* What the worker could not do, as if it had happened here. */
static int take_error(const struct wire_packet *packet, struct err *err)
{
	struct wire_error error;
	struct wire_fault fault;
	char text[ERR_TEXT_SIZE];
	int code;

	if (wire_decode_body(&wire_type_error, packet->error, packet->error_size, false, &error,
			     &fault) < 0) {
		return err_set(err, WIRE_INTERNAL, "an error that cannot be read: %s", fault.text);
	}
	code = err_set_sys(err, (int)wire_code_find(error.code),
			   error.has_detail && error.detail.has_errno ? (int)error.detail.errno_
								      : 0,
			   "%s", wire_str_copy(error.message, text, sizeof text));
	if (err != NULL && error.has_detail && error.detail.has_offset) {
		err->offset = error.detail.offset;
	}
	return code;
}

static __attribute__((noinline)) int
take_answer(struct worker_link *link, const struct worker_call *call, const struct waiting *waiting,
	    void (*take)(const void *response, void *to), void *to, struct err *err)
{
	const struct wire_message *message = &wire_messages[waiting->method];
	struct wire_packet packet;
	struct wire_fault fault;
	union wire_body response;

	if (wire_decode_packet(waiting->bytes, waiting->size, &wire_packet_limits, &packet,
			       &fault) == 0) {
		if (packet.error != NULL) {
			return take_error(&packet, err);
		}
		if (packet.n_fds == call->n_ret_fds &&
		    wire_decode_body(message->response, packet.body, packet.body_size, false,
				     &response, &fault) == 0) {
			if (take != NULL) {
				take(&response, to);
			}
			return 0;
		}
	}
	worker_link_lose(link, "its worker does not speak our protocol");
	return say_lost(link, err);
}

int worker_link_call(struct worker_link *link, const struct worker_call *call, int *ret_fds,
		     void (*take)(const void *response, void *to), void *to, struct err *err)
{
	const uint64_t deadline_ns = clock_mono_ns() + call->limit_ns;
	struct waiting waiting = {.method = call->method};
	struct err own;
	int code;

	enqueue(link, &waiting);
	if (send_request(link, call, waiting.id, deadline_ns)) {
		await(link, call, &waiting, deadline_ns);
	}
	if (!dequeue(link, &waiting)) {
		return say_lost(link, err);
	}
	err = err == NULL ? &own : err;
	code = take_answer(link, call, &waiting, take, to, err);
	if (code == 0 && waiting.are_cut) {
		code = err_set(err, WIRE_TOO_MANY,
			       "the daemon has no descriptor left for memory of %s: have "
			       "LimitNOFILE or ulimit -n of it raised",
			       link->name);
	}
	if (code == 0 && ret_fds != NULL) {
		memcpy(ret_fds, waiting.fds, waiting.n_fds * sizeof ret_fds[0]);
	} else {
		fdpass_close_all(waiting.fds, waiting.n_fds); /* of memory */
	}
	if (code == -WIRE_DEVICE_LOST) {
		worker_link_lose(link, err->text);
	}
	return code;
}

/* ---- staging ---- */

/* For a copy of a few KiB it is not worth its memory, which stays. */
static struct staging *have_pages(struct staging *staging, uint64_t bytes)
{
	if (!staging->is_huge && bytes >= STAGING_BYTES) {
		(void)memfd_take_huge(staging->memory, STAGING_BYTES); /* else in small pages */
		staging->is_huge = true;
	}
	return staging;
}

int worker_link_borrow(struct worker_link *link, uint64_t bytes, struct staging **ret,
		       struct err *err)
{
	struct staging *staging;
	void *memory = NULL;
	int code;

	lock_link(link);
	staging = link->idle;
	if (staging != NULL) {
		link->idle = staging->next;
		link->n_idle--;
	}
	unlock_link(link);
	if (staging != NULL) {
		*ret = have_pages(staging, bytes);
		return 0;
	}
	staging = sys_calloc(1, sizeof *staging);
	if (staging == NULL) {
		return err_set(err, WIRE_NO_MEMORY, "no memory for a staging buffer");
	}
	staging->fd = -1;
	code = memfd_create_sized("distorch-staging", STAGING_BYTES, &staging->fd, err);
	/* Its worker has it for writing: what it cuts off would end who reads it. */
	if (code == 0 &&
	    sys_fcntl(staging->fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) < 0) {
		code = err_set_sys(err, WIRE_INTERNAL, errno, "sealing a staging buffer: %s",
				   strerror(errno));
	}
	if (code == 0) {
		code = memfd_map(staging->fd, STAGING_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED,
				 &memory, err);
	}
	staging->memory = memory;
	if (code < 0) {
		worker_link_discard(staging);
		return code;
	}
	*ret = have_pages(staging, bytes);
	return 0;
}

void worker_link_return(struct worker_link *link, struct staging *staging)
{
	bool is_kept;

	lock_link(link);
	is_kept = link->n_idle < MAX_IDLE_STAGING && !link->is_lost;
	if (is_kept) {
		staging->next = link->idle;
		link->idle = staging;
		link->n_idle++;
	}
	unlock_link(link);
	if (!is_kept) {
		worker_link_discard(staging);
	}
}
