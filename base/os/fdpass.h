/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One packet with descriptors over SOCK_SEQPACKET. What is received is close-on-exec and the
 * receiver's in any case: closing a stranger's descriptor may block, so it is not done here.
 * Never blocks, no SIGPIPE. Any thread, one at a time a socket.
 */
#ifndef BASE_OS_FDPASS_H
#define BASE_OS_FDPASS_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#define FDPASS_MAX_FDS      32
#define FDPASS_MAX_RECEIVED 253 /* the kernel passes no more with a message */

enum fdpass_status {
	FDPASS_OK,
	FDPASS_AGAIN,     /* nothing there, or no room: poll and try again */
	FDPASS_END,       /* the peer has closed, or sent an empty packet */
	FDPASS_TOO_LARGE, /* larger than the buffer: cut, and so of no use */
	FDPASS_BAD_FDS,   /* more than 32, or cut by our own descriptor limit */
	FDPASS_FAILED,    /* 'ret_errno' says why */
};

struct fdpass_packet {
	size_t size;                  /* bytes received */
	int fds[FDPASS_MAX_RECEIVED]; /* -1 where there is none */
	uint32_t n_fds;
	int error; /* errno of FDPASS_FAILED */
};

/* 'ret' is filled in any case and its descriptors are the caller's, also those of a packet that
 * is refused; with FDPASS_OK they are at most 32. */
enum fdpass_status fdpass_receive(int socket, void *bytes, size_t capacity,
				  struct fdpass_packet *ret);

/*
 * The descriptors stay the caller's. Whole packets only. '*ret_errno' is set unless the
 * result is FDPASS_OK. FDPASS_AGAIN with EAGAIN: poll; with ETOOMANYREFS or ENOBUFS a poll
 * would return at once, so wait a moment instead.
 */
enum fdpass_status fdpass_send(int socket, const void *bytes, size_t size, const int *fds,
			       uint32_t n_fds, int *ret_errno);

/*
 * Collect the descriptors of raw control bytes (aligned as a struct cmsghdr). A header that
 * claims more than is there is cut at the end of the bytes; all SCM_RIGHTS count together;
 * a pidfd that nobody asked for goes to 'drop'. Returns how many are in 'fds', or -1 when
 * there were more than 32: then every one went to 'drop'.
 */
int fdpass_collect(void *control, size_t control_size, int fds[FDPASS_MAX_FDS],
		   void (*drop)(int fd));

/* Close and set to -1 those that are not -1 already. */
void fdpass_close_all(int *fds, uint32_t n_fds);

#endif
