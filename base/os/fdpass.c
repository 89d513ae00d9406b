/* SPDX-License-Identifier: Apache-2.0 */
/* Packets with descriptors. See fdpass.h. */
#include "base/os/fdpass.h"

#include "base/os/sys.h"

#include <errno.h>
#include <stdbool.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#ifndef SCM_PIDFD
#	define SCM_PIDFD 0x04
#endif

/* Beside the descriptors there may be credentials and a pidfd. */
#define CONTROL_BYTES                                                                       \
	(CMSG_SPACE(FDPASS_MAX_RECEIVED * sizeof(int)) + CMSG_SPACE(sizeof(struct ucred)) + \
	 CMSG_SPACE(sizeof(int)))

void fdpass_close_all(int *fds, uint32_t n_fds)
{
	for (uint32_t i = 0; i < n_fds; i++) {
		if (fds[i] >= 0) {
			(void)close(fds[i]); /* there is nothing to do about a failed close */
			fds[i] = -1;
		}
	}
}

static void close_one(int fd)
{
	(void)close(fd); /* a pidfd: does not block */
}

/* As fdpass_collect, for any capacity: what is over that goes to 'drop'. Returns how many came. */
static uint32_t collect(void *control, size_t control_size, int *fds, uint32_t capacity,
			void (*drop)(int fd))
{
	struct msghdr message = {.msg_control = control, .msg_controllen = control_size};
	uint32_t n_fds = 0;

	for (struct cmsghdr *header = CMSG_FIRSTHDR(&message); header != NULL;
	     header = CMSG_NXTHDR(&message, header)) {
		const unsigned char *data = CMSG_DATA(header);
		size_t left = (size_t)((const unsigned char *)control + control_size - data);
		bool is_rights = header->cmsg_type == SCM_RIGHTS;
		size_t size;

		if (header->cmsg_len < CMSG_LEN(0)) {
			break;
		}
		if (header->cmsg_level != SOL_SOCKET ||
		    (!is_rights && header->cmsg_type != SCM_PIDFD)) {
			continue;
		}
		size = header->cmsg_len - CMSG_LEN(0);
		size = size > left ? left : size;
		for (size_t at = 0; at + sizeof(int) <= size; at += sizeof(int)) {
			int fd;

			memcpy(&fd, data + at, sizeof fd);
			if (is_rights && n_fds < capacity) {
				fds[n_fds] = fd;
			} else {
				drop(fd);
			}
			n_fds += is_rights ? 1 : 0;
		}
	}
	return n_fds;
}

int fdpass_collect(void *control, size_t control_size, int fds[FDPASS_MAX_FDS],
		   void (*drop)(int fd))
{
	const uint32_t n_fds = collect(control, control_size, fds, FDPASS_MAX_FDS, drop);

	for (uint32_t i = 0; n_fds > FDPASS_MAX_FDS && i < FDPASS_MAX_FDS; i++) {
		drop(fds[i]);
		fds[i] = -1;
	}
	return n_fds > FDPASS_MAX_FDS ? -1 : (int)n_fds;
}

enum fdpass_status fdpass_receive(int socket, void *bytes, size_t capacity,
				  struct fdpass_packet *ret)
{
	_Alignas(struct cmsghdr) unsigned char control[CONTROL_BYTES];
	struct iovec vector = {.iov_base = bytes, .iov_len = capacity};
	struct msghdr message = {.msg_iov = &vector,
				 .msg_iovlen = 1,
				 .msg_control = control,
				 .msg_controllen = sizeof control};
	bool was_reset = false;
	ssize_t size;
	uint32_t n_fds;

	*ret = (struct fdpass_packet){0};
	memset(ret->fds, 0xff, sizeof ret->fds); /* -1: no stale number is ever closed again */
	/* A peer that closed with something unread is a reset, said once; what it had sent before
	 * can still be read. */
	do {
		size = sys_recvmsg(socket, &message, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
		was_reset = size < 0 && errno == ECONNRESET && !was_reset;
	} while (size < 0 && (errno == EINTR || was_reset));
	if (size < 0) {
		ret->error = errno;
		return errno == EAGAIN       ? FDPASS_AGAIN
		       : errno == ECONNRESET ? FDPASS_END
					     : FDPASS_FAILED;
	}
	ret->size = (size_t)size;
	n_fds = collect(control, message.msg_controllen, ret->fds, FDPASS_MAX_RECEIVED, close_one);
	ret->n_fds = n_fds < FDPASS_MAX_RECEIVED ? n_fds : FDPASS_MAX_RECEIVED;
	if (ret->n_fds > FDPASS_MAX_FDS || (message.msg_flags & MSG_CTRUNC) != 0) {
		return FDPASS_BAD_FDS;
	}
	if (size == 0) {
		return FDPASS_END;
	}
	if ((message.msg_flags & MSG_TRUNC) != 0) {
		return FDPASS_TOO_LARGE;
	}
	return FDPASS_OK;
}

enum fdpass_status fdpass_send(int socket, const void *bytes, size_t size, const int *fds,
			       uint32_t n_fds, int *ret_errno)
{
	_Alignas(struct cmsghdr) unsigned char control[CMSG_SPACE(FDPASS_MAX_FDS * sizeof(int))];
	union {
		const void *bytes;
		void *base; /* sendmsg does not write */
	} start = {.bytes = bytes};
	struct iovec vector = {.iov_base = start.base, .iov_len = size};
	struct msghdr message = {.msg_iov = &vector, .msg_iovlen = 1};
	ssize_t n_sent;

	if (n_fds > FDPASS_MAX_FDS || size == 0) {
		*ret_errno = EINVAL;
		return FDPASS_FAILED;
	}
	if (n_fds > 0) {
		struct cmsghdr *header;

		memset(control, 0, sizeof control);
		message.msg_control = control;
		message.msg_controllen = CMSG_SPACE(n_fds * sizeof(int));
		header = CMSG_FIRSTHDR(&message);
		header->cmsg_level = SOL_SOCKET;
		header->cmsg_type = SCM_RIGHTS;
		header->cmsg_len = CMSG_LEN(n_fds * sizeof(int));
		memcpy(CMSG_DATA(header), fds, n_fds * sizeof(int));
	}
	do {
		n_sent = sys_sendmsg(socket, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
	} while (n_sent < 0 && errno == EINTR);
	if (n_sent >= 0) {
		return FDPASS_OK;
	}
	*ret_errno = errno;
	if (errno == EAGAIN || errno == ENOBUFS || errno == ETOOMANYREFS) {
		return FDPASS_AGAIN;
	}
	return errno == EPIPE || errno == ECONNRESET ? FDPASS_END : FDPASS_FAILED;
}
