/* SPDX-License-Identifier: Apache-2.0 */
/* What goes out of a connection: answers and events, their queue and its deadline. */
#include "base/os/fdpass.h"
#include "base/os/log.h"
#include "base/os/memfd.h"
#include "base/os/sys.h"
#include "base/require.h"

#include <errno.h>
#include <linux/sockios.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>

#include "daemon/ipc/conn.h"
#include "daemon/ipc/internal.h"

#define RETRY_MS 5
#define FLUSH_MS 1000

static const struct wire_error no_memory = {
	.code = {"no-memory", 9},
	.message = {"the daemon has no memory for this answer", 40},
	.retryable = true,
};

void conn_mark_dirty(struct conn *conn)
{
	if (conn->state != CONN_CLOSED && list_is_empty(&conn->by_dirty)) {
		list_append(&conn->server->dirty, &conn->by_dirty);
	}
}

/* The loop may have been held up, and in a turn timers come before packets: what the peer did in
 * time counts, however late it is seen. */
static bool was_in_time(struct conn *conn)
{
	const uint64_t n_bytes = conn->out_bytes;

	if (conn->state == CONN_NEW) {
		conn_read_turn(conn);
		return conn->state != CONN_NEW;
	}
	return conn->state == CONN_READY && (!conn_flush(conn) || conn->out_bytes < n_bytes);
}

static void on_deadline(uv_timer_t *timer)
{
	struct conn *conn = timer->data;
	char reason[96];

	if (was_in_time(conn)) {
		conn_mark_dirty(conn); /* unless it ended over it */
	} else if (conn->state == CONN_NEW) {
		(void)snprintf(reason, sizeof reason, "no hello within %u ms",
			       conn->server->options.hello_ms);
		conn_say_goodbye(conn, WIRE_TIMEOUT, reason);
	} else if (conn->state == CONN_READY) {
		conn->server->counters.n_slow++;
		log_info("pid %d (%s) took nothing for %u ms: closing its connection",
			 (int)conn->peer.pid, conn->peer.comm, conn->server->options.drain_ms);
		(void)snprintf(reason, sizeof reason, "nothing was taken for %u ms",
			       conn->server->options.drain_ms);
		conn_say_goodbye(conn, WIRE_TIMEOUT, reason);
	} else {
		conn_close(conn);
	}
	server_flush(conn->server);
}

void conn_arm_deadline(struct conn *conn, uint64_t ms)
{
	uv_update_time(conn->server->loop); /* what was done in this turn is not the peer's time */
	/* Fails only on a handle that is closing. */
	(void)uv_timer_start(&conn->deadline, on_deadline, ms, 0);
}

/* Has the peer taken the descriptors that were sent last? */
static bool has_taken_fds(struct conn *conn)
{
	int n_bytes = 0;

	if (conn->fds_outstanding && (ioctl(conn->fd, SIOCOUTQ, &n_bytes) < 0 || n_bytes == 0)) {
		conn->fds_outstanding = false;
		conn->sent_spill_bytes = 0;
	}
	return !conn->fds_outstanding;
}

/* May this packet go out now? Descriptors wait until the peer has taken the last ones. */
static bool may_send(struct conn *conn, const struct packet *packet)
{
	return (packet->n_fds == 0 && packet->spill == NULL) || has_taken_fds(conn);
}

static void pop_packet(struct conn *conn)
{
	struct packet *packet = conn->out_first;

	conn->out_first = packet->next;
	if (conn->out_first == NULL) {
		conn->out_last = NULL;
	}
	conn->out_bytes -= packet->size;
	conn->n_unsent -= packet->is_response ? 1 : 0;
	conn->n_unsent_fds -= packet->n_fds;
	conn->spill_bytes -= packet->spill_size;
	conn->sent_spill_bytes += packet->spill_size;
	conn->fds_outstanding = conn->fds_outstanding || packet->n_fds > 0;
	packet_free(packet);
}

void conn_drop_output(struct conn *conn)
{
	while (conn->out_first != NULL) {
		pop_packet(conn);
	}
	conn->sent_spill_bytes = 0; /* what was dropped was not sent */
}

static void on_retry(uv_timer_t *timer)
{
	struct conn *conn = timer->data;

	conn_mark_dirty(conn);
	server_flush(conn->server);
}

void conn_arm_retry(struct conn *conn, uint64_t ms)
{
	/* Fails only on a handle that is closing. */
	(void)uv_timer_start(&conn->retry, on_retry, ms, 0);
}

/* A long result is to go: into a memfd, which rides first. Not sooner, so that what waits takes no
 * descriptor. Without memory an error goes in its place. */
static void open_spill(struct conn *conn, struct packet *packet)
{
	struct wire_buffer buffer = {.bytes = packet->bytes, .capacity = RESERVE_BYTES};
	int fd = -1;

	if (memfd_from_bytes("distorch-result", packet->spill, packet->spill_size, &fd, NULL) < 0) {
		fdpass_close_all(packet->fds, packet->n_fds);
		conn->n_unsent_fds -= packet->n_fds;
		packet->n_fds = 0;
		conn->spill_bytes -= packet->spill_size;
		packet->spill_size = 0;
		REQUIRE(wire_encode_error(&buffer, packet->request, &no_memory));
		conn->out_bytes = conn->out_bytes - packet->size + buffer.size;
		packet->size = buffer.size;
	} else {
		memmove(packet->fds + 1, packet->fds, packet->n_fds * sizeof fd);
		packet->fds[0] = fd;
		packet->n_fds++;
		conn->n_unsent_fds++;
	}
	free(packet->spill);
	packet->spill = NULL;
}

/* Send what goes; false when the connection has ended over it. */
bool conn_flush(struct conn *conn)
{
	bool has_sent = false;

	conn->wants_write = false;
	while (conn->out_first != NULL) {
		struct packet *packet = conn->out_first;
		enum fdpass_status status;
		int error = 0;

		if (!may_send(conn, packet)) {
			conn_arm_retry(conn, RETRY_MS);
			break;
		}
		if (packet->spill != NULL) {
			open_spill(conn, packet);
		}
		status = fdpass_send(conn->fd, packet->bytes, packet->size, packet->fds,
				     packet->n_fds, &error);
		if (status == FDPASS_AGAIN) {
			conn->wants_write = error == EAGAIN;
			if (!conn->wants_write) { /* writable, but the kernel has no room */
				conn_arm_retry(conn, RETRY_MS);
			}
			break;
		}
		if (status == FDPASS_END) {
			return conn_hear_out(conn);
		}
		if (status != FDPASS_OK) {
			conn_close(conn);
			return false;
		}
		pop_packet(conn);
		has_sent = true;
	}
	if (has_sent && conn->state == CONN_READY) {
		if (conn->out_first == NULL) {
			(void)uv_timer_stop(&conn->deadline);
		} else {
			conn_arm_deadline(conn, conn->server->options.drain_ms);
		}
	}
	return true;
}

static void append_packet(struct conn *conn, struct packet *packet)
{
	if (conn->out_first == NULL) {
		conn->out_first = packet;
	} else {
		conn->out_last->next = packet;
	}
	conn->out_last = packet;
	conn->out_bytes += packet->size;
	conn->n_unsent += packet->is_response ? 1 : 0;
	conn->n_unsent_fds += packet->n_fds;
	conn->spill_bytes += packet->spill_size;
	conn_mark_dirty(conn);
}

static void queue_packet(struct conn *conn, struct packet *packet)
{
	bool is_first = conn->out_first == NULL;

	if (conn->is_gone || (conn->state != CONN_NEW && conn->state != CONN_READY)) {
		packet_free(packet); /* nothing follows a goodbye */
		return;
	}
	append_packet(conn, packet);
	if (is_first && conn->state == CONN_READY) {
		conn_arm_deadline(conn, conn->server->options.drain_ms);
	}
	if (conn->out_bytes > conn->server->options.output_bytes && conn->state == CONN_READY) {
		conn->server->counters.n_slow++;
		conn_say_goodbye(conn, WIRE_TOO_MANY, "more is queued for you than the limit");
	}
}

/* It is answered: no longer in flight, and counted. */
static void end_request(struct conn *conn, uint32_t request, enum wire_code code)
{
	for (uint32_t i = 0; i < conn->n_in_flight; i++) {
		if (conn->in_flight[i].id == request) {
			conn->server->counters.n_answers[conn->in_flight[i].method][code]++;
			conn->n_in_flight--;
			conn->in_flight[i] = conn->in_flight[conn->n_in_flight];
			return;
		}
	}
}

void conn_respond_no_memory(struct conn *conn, uint32_t request)
{
	struct packet *packet = conn->reserve;
	struct wire_buffer buffer = {.capacity = RESERVE_BYTES};

	conn->reserve = NULL;
	end_request(conn, request, WIRE_NO_MEMORY);
	if (packet == NULL) {
		conn_say_goodbye(conn, WIRE_NO_MEMORY, "no memory for an answer");
		return;
	}
	buffer.bytes = packet->bytes;
	REQUIRE(wire_encode_error(&buffer, request, &no_memory));
	packet->size = buffer.size;
	packet->is_response = true;
	queue_packet(conn, packet);
}

/* Bytes of long results that the connections of this one's user have not taken yet. */
static uint64_t sum_unread(const struct conn *conn)
{
	uint64_t sum = 0;

	LIST_FOR_EACH (link, &conn->server->conns) {
		struct conn *other = container_of(link, struct conn, by_server);

		if (other->peer.uid == conn->peer.uid) {
			(void)has_taken_fds(other);
			sum += other->spill_bytes + other->sent_spill_bytes;
		}
	}
	return sum;
}

/* One long result may always wait, and more of them up to a limit. True: it has been refused. */
static bool refuse_spill(struct conn *conn, uint32_t request, uint64_t bytes)
{
	const uint64_t unread = sum_unread(conn);
	char text[192];
	struct wire_error error = {
		.code = wire_str(wire_code_info(WIRE_TOO_MANY)->word),
		.retryable = wire_code_info(WIRE_TOO_MANY)->is_retryable,
		.has_hint = true,
		.hint = wire_str("take the answers that wait, then ask again"),
	};

	if (unread == 0 || unread + bytes <= WIRE_UNREAD_SPILL_BYTES) {
		return false;
	}
	(void)snprintf(text, sizeof text,
		       "%llu bytes of long answers wait until uid %u takes them, and this one has "
		       "%llu: %d may wait",
		       (unsigned long long)unread, conn->peer.uid, (unsigned long long)bytes,
		       WIRE_UNREAD_SPILL_BYTES);
	error.message = wire_str(text);
	conn_respond_error(conn, request, &error);
	return true;
}

/* A result too long for a packet, or of more values than one may hold; the whole response would
 * have 'size' bytes. NULL: no memory. */
static struct packet *make_spill(uint32_t request, const struct wire_message *message,
				 const void *response, size_t size, uint32_t n_fds)
{
	struct packet *packet = packet_new(RESERVE_BYTES); /* also for an error in its place */
	struct wire_buffer envelope = {.capacity = RESERVE_BYTES};
	struct wire_buffer body = {.capacity = size};

	if (packet == NULL || (packet->spill = sys_malloc(size)) == NULL) {
		return packet_free(packet);
	}
	body.bytes = packet->spill;
	envelope.bytes = packet->bytes;
	REQUIRE(wire_encode_body(&body, message->response, response));
	REQUIRE(wire_encode_spill(&envelope, request, body.size, n_fds + 1));
	packet->size = envelope.size;
	packet->spill_size = body.size;
	packet->request = request;
	return packet;
}

static struct packet *make_response(uint32_t request, const struct wire_message *message,
				    const void *response, size_t size, uint32_t n_fds)
{
	struct packet *packet = packet_new(size);
	struct wire_buffer buffer = {.capacity = size};

	if (packet != NULL) {
		buffer.bytes = packet->bytes;
		REQUIRE(wire_encode_response(&buffer, request, (enum wire_method)message->number,
					     response, n_fds));
	}
	return packet;
}

void conn_respond_ok(struct conn *conn, uint32_t request, const struct wire_message *message,
		     const void *response, int *fds, uint32_t n_fds)
{
	struct wire_buffer count = {0};
	struct packet *packet = NULL;
	bool is_long;
	bool is_view;

	REQUIRE(n_fds < FDPASS_MAX_FDS);
	(void)wire_encode_response(&count, request, (enum wire_method)message->number, response,
				   n_fds);
	is_long = count.size > WIRE_PACKET_BYTES || count.n_values > wire_packet_limits.nodes;
	/* What else brings descriptors is a lease: who is not told of it would not give it back. */
	is_view = n_fds == 0 || message->number == WIRE_METHOD_SHOW;
	if (is_long && is_view && refuse_spill(conn, request, count.size)) {
		fdpass_close_all(fds, n_fds);
		return;
	}
	if (conn->state != CONN_CLOSED) {
		packet = is_long ? make_spill(request, message, response, count.size, n_fds)
				 : make_response(request, message, response, count.size, n_fds);
	}
	if (packet == NULL) {
		fdpass_close_all(fds, n_fds);
		conn_respond_no_memory(conn, request);
		return;
	}
	for (uint32_t i = 0; i < n_fds; i++) {
		packet->fds[packet->n_fds++] = fds[i];
		fds[i] = -1;
	}
	packet->is_response = true;
	end_request(conn, request, WIRE_OK);
	queue_packet(conn, packet);
}

void conn_respond_error(struct conn *conn, uint32_t request, const struct wire_error *error)
{
	struct wire_buffer buffer = {0};
	struct packet *packet;

	(void)wire_encode_error(&buffer, request, error); /* counts only */
	packet = packet_new(buffer.size);
	if (packet == NULL) {
		conn_respond_no_memory(conn, request);
		return;
	}
	buffer = (struct wire_buffer){.bytes = packet->bytes, .capacity = buffer.size};
	REQUIRE(wire_encode_error(&buffer, request, error));
	packet->is_response = true;
	end_request(conn, request, wire_code_find(error->code));
	queue_packet(conn, packet);
}

uint32_t conn_unsent_fds(const struct conn *conn)
{
	return conn->n_unsent_fds;
}

bool conn_send_event(struct conn *conn, enum wire_event event, const void *fields)
{
	struct wire_buffer buffer = {0};
	struct packet *packet;
	bool is_owned = wire_events[event].is_owned;

	if (conn->state != CONN_READY ||
	    (!is_owned && conn->out_bytes > conn->server->options.output_bytes / 2)) {
		return false;
	}
	(void)wire_encode_event(&buffer, event, fields, 0); /* counts only */
	packet = packet_new(buffer.size);
	if (packet == NULL) {
		if (is_owned) {
			conn_say_goodbye(conn, WIRE_NO_MEMORY,
					 "no memory for an event that you have to get");
		}
		return false;
	}
	buffer = (struct wire_buffer){.bytes = packet->bytes, .capacity = buffer.size};
	REQUIRE(wire_encode_event(&buffer, event, fields, 0));
	queue_packet(conn, packet);
	return true;
}

void conn_close_after_flush(struct conn *conn)
{
	if (conn->state == CONN_NEW || conn->state == CONN_READY) {
		conn->state = CONN_FLUSHING;
		conn_arm_deadline(conn, FLUSH_MS);
		conn_mark_dirty(conn);
	}
}

void conn_say_goodbye(struct conn *conn, enum wire_code code, const char *reason)
{
	struct wire_buffer buffer = {.capacity = RESERVE_BYTES};
	const struct wire_goodbye_event goodbye = {.code = wire_str(wire_code_info(code)->word),
						   .reason = wire_str(reason)};
	struct packet *packet = conn->farewell;

	if (conn->state != CONN_NEW && conn->state != CONN_READY) {
		return;
	}
	conn->state = CONN_FLUSHING;
	conn_arm_deadline(conn, FLUSH_MS);
	buffer.bytes = packet->bytes; /* it is there: nothing follows a goodbye */
	if (wire_encode_event(&buffer, WIRE_EVENT_GOODBYE, &goodbye, 0)) {
		packet->size = buffer.size;
		conn->farewell = NULL;
		append_packet(conn, packet);
	}
	conn_mark_dirty(conn);
}
