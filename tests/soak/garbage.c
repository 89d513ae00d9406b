/* SPDX-License-Identifier: Apache-2.0 */
/* See garbage.h. A connection of its own each time: most end by the daemon's hand. */
#include "tests/soak/garbage.h"

#include "tests/soak/board.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define MAX_BYTES 70000
#define MAX_FDS   40

/* [0, 1, "hello", {"protocol": [1, 1], "client": "soak/1"}] */
static const uint8_t hello[] = "\x94\x00\x01\xa5hello\x82\xa8protocol\x92\x01\x01\xa6"
			       "client\xa6soak/1";
/* [0, 2, METHOD, {…}]: good packets, to be bent */
static const uint8_t requests[][64] = {
	"\x94\x00\x02\xa4load\x81\xa3"
	"fds\x01",
	"\x94\x00\x02\xa6"
	"attach\x82\xa3"
	"fds\x01\xa3map\xc3",
	"\x94\x00\x02\xa6unload\x81\xa6select\x81\xa3"
	"all\xc2",
	"\x94\x00\x02\xa4list\x81\xa3"
	"all\xc3",
	"\x94\x00\x02\xa4show\x81\xa5model\xa4"
	"abcd",
	"\x94\x00\x02\xa6"
	"detach\x81\xa5lease\x05",
	"\x94\x00\x02\xa6"
	"cancel\x81\xa2id\x02",
	"\x94\x00\x02\xa9subscribe\x80",
};

static int open_any(void)
{
	static const char *const paths[] = {"/dev/zero", "/dev/null", "/", "/proc/self/status",
					    "/etc/passwd"};
	int ends[2];

	switch (chance(8)) {
	case 0:
		if (pipe2(ends, O_CLOEXEC) < 0) {
			return -1;
		}
		(void)close(ends[1]);
		return ends[0];
	case 1:
		return eventfd(0, EFD_CLOEXEC);
	case 2:
		return socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	default:
		return open(paths[chance(5)], O_RDONLY | O_CLOEXEC);
	}
}

static void send_packet(int fd, const uint8_t *bytes, size_t size, uint32_t n_fds)
{
	union {
		struct cmsghdr aligned;
		char bytes[CMSG_SPACE(sizeof(int) * MAX_FDS)];
	} control;
	struct iovec part = {.iov_base = (void *)(uintptr_t)bytes, .iov_len = size};
	struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
	int fds[MAX_FDS];

	for (uint32_t i = 0; i < n_fds; i++) {
		fds[i] = open_any();
		n_fds = fds[i] < 0 ? i : n_fds;
	}
	if (n_fds > 0) {
		struct cmsghdr *header = &control.aligned;

		memset(&control, 0, sizeof control);
		header->cmsg_level = SOL_SOCKET;
		header->cmsg_type = SCM_RIGHTS;
		header->cmsg_len = CMSG_LEN(sizeof(int) * n_fds);
		memcpy(CMSG_DATA(header), fds, sizeof(int) * n_fds);
		message.msg_control = &control;
		message.msg_controllen = CMSG_SPACE(sizeof(int) * n_fds);
	}
	(void)sendmsg(fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT); /* who cannot be told is not */
	for (uint32_t i = 0; i < n_fds; i++) {
		(void)close(fds[i]);
	}
	board_add(BOARD_N_GARBAGE, 1);
}

static void send_noise(int fd)
{
	static uint8_t bytes[MAX_BYTES];
	size_t size = chance(4) == 0 ? chance(MAX_BYTES) : chance(200);

	for (size_t i = 0; i < size; i++) {
		bytes[i] = (uint8_t)chance(256);
	}
	if (size > 4 && chance(2) == 0) {
		memcpy(bytes, "\x94\x00\x02\xa4", 4); /* begins as a request does */
	}
	send_packet(fd, bytes, size, chance(3) == 0 ? (uint32_t)chance(MAX_FDS) : 0);
}

static void send_bent(int fd)
{
	const uint8_t *good = requests[chance(sizeof requests / sizeof requests[0])];
	uint8_t bytes[sizeof requests[0]];
	size_t size = sizeof bytes;

	memcpy(bytes, good, sizeof bytes);
	while (size > 1 && bytes[size - 1] == 0) {
		size--;
	}
	switch (chance(4)) {
	case 0:
		size = chance(size);
		break;
	case 1:
		bytes[chance(size)] = (uint8_t)chance(256);
		break;
	default:
		break; /* good, but its descriptors may be none that it should have */
	}
	send_packet(fd, bytes, size, (uint32_t)chance(4));
}

/* Take some answers, or none. */
static void listen_a_little(int fd)
{
	struct pollfd poller = {.fd = fd, .events = POLLIN};
	uint8_t bytes[4096];
	int n_answers = (int)chance(4);

	while (n_answers-- > 0 && poll(&poller, 1, (int)chance(100)) == 1) {
		if (recv(fd, bytes, sizeof bytes, MSG_DONTWAIT) <= 0) {
			return;
		}
	}
}

void garbage_send(const char *socket_path)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

	(void)snprintf(address.sun_path, sizeof address.sun_path, "%s", socket_path);
	if (fd < 0 || connect(fd, (const struct sockaddr *)&address, sizeof address) < 0) {
		if (fd >= 0) {
			(void)close(fd);
		}
		return; /* it is between two lives */
	}
	if (chance(4) != 0) {
		send_packet(fd, hello, sizeof hello - 1, 0);
	}
	for (uint64_t n = chance(40); n > 0; n--) {
		if (chance(2) == 0) {
			send_noise(fd);
		} else {
			send_bent(fd);
		}
	}
	if (chance(4) == 0) {
		(void)shutdown(fd, SHUT_WR);
	}
	listen_a_little(fd);
	(void)close(fd);
}
