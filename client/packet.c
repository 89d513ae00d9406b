/* SPDX-License-Identifier: Apache-2.0 */
#include "client/packet.h"

#include "base/cleanup.h"

#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "client/error.h"

void answer_fini(struct answer *answer)
{
	free(answer->packet);
	free(answer->spill);
	for (uint32_t i = 0; i < answer->n_fds; i++) {
		if (answer->fds[i] >= 0) {
			(void)close(answer->fds[i]); /* nothing can be done about it */
		}
	}
	*answer = (struct answer){0};
}

bool packet_has_right_fds(enum wire_method method, const struct wire_packet *packet, uint32_t n_fds)
{
	uint32_t n_spill = packet->spill_bytes > 0 ? 1 : 0;

	if (packet->n_fds != n_fds) {
		return false;
	}
	if (packet->error != NULL) {
		return n_fds == 0;
	}
	return n_fds >= wire_messages[method].response_fds_min + n_spill &&
	       n_fds <= wire_messages[method].response_fds_max + n_spill;
}

static int bad_reply(enum wire_method method, const struct wire_fault *fault)
{
	return failure_set(DISTORCH_E_INTERNAL, 0, NULL,
			   "the daemon's answer to %s cannot be used: %s %s",
			   wire_messages[method].method, fault->field, fault->text);
}

/* Copy the spilled result out of its memfd, so that nobody can change it under us, and drop
 * the descriptor from the answer. */
static int take_spill(struct answer *answer, uint64_t bytes)
{
	AUTO_CLOSE int fd = steal_fd(&answer->fds[0]);
	struct stat status;
	size_t at = 0;

	memmove(answer->fds, answer->fds + 1, (answer->n_fds - 1) * sizeof *answer->fds);
	answer->n_fds--;
	if (bytes > WIRE_SPILL_BYTES || fstat(fd, &status) != 0 || !S_ISREG(status.st_mode) ||
	    status.st_size < 0 || (uint64_t)status.st_size < bytes) {
		return failure_set(DISTORCH_E_INTERNAL, 0, NULL,
				   "the daemon announced a listing of %llu bytes and sent another",
				   (unsigned long long)bytes);
	}
	answer->spill = malloc((size_t)bytes);
	if (answer->spill == NULL) {
		return failure_memory();
	}
	while (at < bytes) {
		ssize_t n = pread(fd, answer->spill + at, (size_t)bytes - at, (off_t)at);

		if (n <= 0) {
			return failure_set(DISTORCH_E_INTERNAL, 0, NULL,
					   "the daemon's listing ends after %zu of %llu bytes", at,
					   (unsigned long long)bytes);
		}
		at += (size_t)n;
	}
	return 0;
}

static int decode_error(const struct wire_packet *packet, enum wire_method method)
{
	struct wire_error error;
	struct wire_fault fault;

	if (wire_decode_body(&wire_type_error, packet->error, packet->error_size, false, &error,
			     &fault) < 0) {
		return bad_reply(method, &fault);
	}
	return failure_from_wire(&error);
}

int packet_decode(enum wire_method method, struct answer *answer, void *ret_body)
{
	const struct wire_type *type = wire_messages[method].response;
	struct wire_packet packet;
	struct wire_fault fault;
	const uint8_t *body;
	uint32_t body_size;
	int rc;

	if (wire_decode_packet(answer->packet, answer->size, &wire_packet_limits, &packet, &fault) <
	    0) {
		return bad_reply(method, &fault); /* it was readable when it came */
	}
	if (packet.error != NULL) {
		return decode_error(&packet, method);
	}
	body = packet.body;
	body_size = packet.body_size;
	if (packet.spill_bytes > 0) {
		rc = take_spill(answer, packet.spill_bytes);
		if (rc < 0) {
			return rc;
		}
		body = answer->spill;
		body_size = (uint32_t)packet.spill_bytes;
		if (wire_check_map(body, body_size, &wire_listing_limits, &fault) < 0) {
			return bad_reply(method, &fault);
		}
	}
	if (ret_body == NULL) {
		return 0;
	}
	if (body == NULL) {
		return failure_set(DISTORCH_E_INTERNAL, 0, NULL,
				   "the daemon's answer to %s is empty",
				   wire_messages[method].method);
	}
	if (wire_decode_body(type, body, body_size, false, ret_body, &fault) < 0) {
		return bad_reply(method, &fault);
	}
	return 0;
}
