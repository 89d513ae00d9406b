/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Packets with descriptors against the real kernel: cases D01, D02, D03, D05 and D11. After
 * each test as many descriptors are open as before.
 */
#include "base/os/fdpass.h"
#include "base/os/sys.h"
#include "tests/support/baseline.h"
#include "tests/support/unit.h"

#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <signal.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#define KERNEL_MAX_FDS FDPASS_MAX_RECEIVED

struct pair {
	int near;
	int far;
	int null; /* something to pass */
	struct baseline before;
};

static int setup(void **state)
{
	static struct pair pair;
	int sockets[2];

	pair.before = baseline_take();
	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sockets) < 0) {
		return -1;
	}
	pair.near = sockets[0];
	pair.far = sockets[1];
	pair.null = open("/dev/null", O_RDONLY | O_CLOEXEC);
	*state = &pair;
	return 0;
}

static int teardown(void **state)
{
	struct pair *pair = *state;

	sys_fault_clear();
	(void)close(pair->near);
	(void)close(pair->far);
	(void)close(pair->null);
	baseline_check(&pair->before);
	return 0;
}

/* Send by hand what fdpass_send would refuse: n_first and n_second in two headers. */
static int send_raw(const struct pair *pair, size_t n_first, size_t n_second, size_t size)
{
	_Alignas(struct cmsghdr) unsigned char control[2 * CMSG_SPACE(256 * sizeof(int))] = {0};
	static char bytes[4096];
	struct iovec vector = {.iov_base = bytes, .iov_len = size};
	struct msghdr message = {.msg_iov = &vector, .msg_iovlen = 1, .msg_control = control};
	const size_t counts[2] = {n_first, n_second};
	size_t at = 0;

	for (int i = 0; i < 2; i++) {
		struct cmsghdr *header = (struct cmsghdr *)(void *)(control + at);

		if (counts[i] == 0) {
			continue;
		}
		header->cmsg_level = SOL_SOCKET;
		header->cmsg_type = SCM_RIGHTS;
		header->cmsg_len = CMSG_LEN(counts[i] * sizeof(int));
		for (size_t j = 0; j < counts[i]; j++) {
			memcpy(CMSG_DATA(header) + j * sizeof(int), &pair->null, sizeof(int));
		}
		at += CMSG_SPACE(counts[i] * sizeof(int));
	}
	message.msg_controllen = at;
	return sendmsg(pair->far, &message, 0) < 0 ? -errno : 0;
}

static enum fdpass_status receive(const struct pair *pair, struct fdpass_packet *packet)
{
	char bytes[64];

	return fdpass_receive(pair->near, bytes, sizeof bytes, packet);
}

/* A packet that is refused; all its descriptors are handed over all the same. */
static void receive_refused(const struct pair *pair, enum fdpass_status expected, uint32_t n_fds)
{
	struct fdpass_packet packet;

	assert_int_equal(receive(pair, &packet), expected);
	assert_int_equal(packet.n_fds, n_fds);
	fdpass_close_all(packet.fds, packet.n_fds);
	assert_int_equal(baseline_n_fds(), pair->before.n_fds + 3);
}

static void a_packet_arrives_whole_with_its_descriptors(void **state)
{
	struct pair *pair = *state;
	const int sent[] = {pair->null, pair->null, pair->near};
	struct fdpass_packet packet;
	struct stat expected;
	struct stat status;
	char bytes[16];
	int error = 0;

	assert_int_equal(fdpass_send(pair->far, "hello", 5, sent, 3, &error), FDPASS_OK);
	assert_int_equal(fdpass_receive(pair->near, bytes, sizeof bytes, &packet), FDPASS_OK);
	assert_int_equal(packet.size, 5);
	assert_memory_equal(bytes, "hello", 5);
	assert_int_equal(packet.n_fds, 3);
	for (uint32_t i = 0; i < 3; i++) {
		assert_int_equal(fcntl(packet.fds[i], F_GETFD), FD_CLOEXEC);
		assert_int_equal(fstat(sent[i], &expected), 0);
		assert_int_equal(fstat(packet.fds[i], &status), 0);
		assert_true(status.st_ino == expected.st_ino && status.st_dev == expected.st_dev);
	}
	fdpass_close_all(packet.fds, packet.n_fds);
	assert_int_equal(packet.fds[0], -1);
	assert_int_equal(packet.fds[3], -1);        /* unused ones are preset */
	fdpass_close_all(packet.fds, packet.n_fds); /* twice does nothing */
}

static void packets_without_descriptors_keep_their_edges(void **state)
{
	struct pair *pair = *state;
	struct fdpass_packet packet;
	int error = 0;

	assert_int_equal(fdpass_send(pair->far, "a", 1, NULL, 0, &error), FDPASS_OK);
	assert_int_equal(fdpass_send(pair->far, "bc", 2, NULL, 0, &error), FDPASS_OK);
	assert_int_equal(receive(pair, &packet), FDPASS_OK);
	assert_int_equal(packet.size, 1);
	assert_int_equal(packet.n_fds, 0);
	assert_int_equal(receive(pair, &packet), FDPASS_OK);
	assert_int_equal(packet.size, 2);
	assert_int_equal(receive(pair, &packet), FDPASS_AGAIN);
	assert_int_equal(packet.n_fds, 0);
}

/* fault: D01 */
static void d01_up_to_32_descriptors_are_handed_over(void **state)
{
	struct pair *pair = *state;
	struct fdpass_packet packet;

	assert_int_equal(send_raw(pair, FDPASS_MAX_FDS, 0, 1), 0);
	assert_int_equal(receive(pair, &packet), FDPASS_OK);
	assert_int_equal(packet.n_fds, FDPASS_MAX_FDS);
	fdpass_close_all(packet.fds, packet.n_fds);
}

/* fault: D01 */
static void d01_more_than_32_are_refused_and_all_handed_over(void **state)
{
	struct pair *pair = *state;
	struct fdpass_packet packet;

	assert_int_equal(send_raw(pair, FDPASS_MAX_FDS + 1, 0, 1), 0);
	receive_refused(pair, FDPASS_BAD_FDS, FDPASS_MAX_FDS + 1);
	assert_int_equal(send_raw(pair, KERNEL_MAX_FDS, 0, 1), 0);
	receive_refused(pair, FDPASS_BAD_FDS, KERNEL_MAX_FDS);
	assert_int_equal(send_raw(pair, KERNEL_MAX_FDS + 1, 0, 1), -EINVAL);
	/* The connection still works; what to do with it is the caller's choice. */
	assert_int_equal(send_raw(pair, 1, 0, 1), 0);
	assert_int_equal(receive(pair, &packet), FDPASS_OK);
	fdpass_close_all(packet.fds, packet.n_fds);
}

/* fault: D02 */
static void d02_a_flood_of_descriptors_leaves_none(void **state)
{
	struct pair *pair = *state;

	for (int i = 0; i < 2000; i++) {
		assert_int_equal(send_raw(pair, KERNEL_MAX_FDS, 0, 1), 0);
		receive_refused(pair, FDPASS_BAD_FDS, KERNEL_MAX_FDS);
	}
}

/* fault: D03 */
static void d03_several_headers_count_together(void **state)
{
	struct pair *pair = *state;
	struct fdpass_packet packet;

	assert_int_equal(send_raw(pair, 3, 2, 1), 0);
	assert_int_equal(receive(pair, &packet), FDPASS_OK);
	assert_int_equal(packet.n_fds, 5);
	fdpass_close_all(packet.fds, packet.n_fds);
	assert_int_equal(send_raw(pair, 20, 13, 1), 0);
	receive_refused(pair, FDPASS_BAD_FDS, 33);
}

/* fault: D03 */
static void d03_credentials_beside_descriptors_are_skipped(void **state)
{
	struct pair *pair = *state;
	struct fdpass_packet packet;
	const int on = 1;

	assert_int_equal(setsockopt(pair->near, SOL_SOCKET, SO_PASSCRED, &on, sizeof on), 0);
	assert_int_equal(send_raw(pair, KERNEL_MAX_FDS, 0, 1), 0);
	/* Room for both: the credentials do not cut the descriptors. */
	receive_refused(pair, FDPASS_BAD_FDS, KERNEL_MAX_FDS);
	assert_int_equal(send_raw(pair, 2, 0, 1), 0);
	assert_int_equal(receive(pair, &packet), FDPASS_OK);
	assert_int_equal(packet.n_fds, 2);
	fdpass_close_all(packet.fds, packet.n_fds);
}

/* fault: D05 */
static void d05_descriptors_cut_by_our_own_limit_are_refused(void **state)
{
	struct pair *pair = *state;
	struct fdpass_packet packet;
	struct rlimit old;
	struct rlimit few;
	int lowest_free =
		dup(0); /* closed at once: with the limit four above it, at most four fit */
	enum fdpass_status status;

	(void)close(lowest_free);
	assert_int_equal(send_raw(pair, 8, 0, 1), 0);
	assert_int_equal(getrlimit(RLIMIT_NOFILE, &old), 0);
	few = old;
	few.rlim_cur = (rlim_t)lowest_free + 4;
	assert_int_equal(setrlimit(RLIMIT_NOFILE, &few), 0);
	status = receive(pair, &packet);
	assert_int_equal(setrlimit(RLIMIT_NOFILE, &old), 0);
	assert_int_equal(status, FDPASS_BAD_FDS);
	assert_true(packet.n_fds < 8);
	fdpass_close_all(packet.fds, packet.n_fds);
	assert_int_equal(baseline_n_fds(), pair->before.n_fds + 3);
}

/* Each socket waits in the next one's queue; closing the outermost releases the chain. */
/* fault: D11 */
static void d11_sockets_within_sockets_are_closed_with_their_packet(void **state)
{
	struct pair *pair = *state;
	struct fdpass_packet packet;
	int passed = open("/dev/null", O_RDONLY | O_CLOEXEC);
	int depth;
	int error = 0;

	for (depth = 0; depth < 200; depth++) {
		int sockets[2];

		assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sockets), 0);
		if (fdpass_send(sockets[0], "x", 1, &passed, 1, &error) != FDPASS_OK) {
			/* Many kernels allow only a few levels of nesting. */
			assert_int_equal(error, ETOOMANYREFS);
			(void)close(sockets[0]);
			(void)close(sockets[1]);
			break;
		}
		(void)close(sockets[0]);
		(void)close(passed);
		passed = sockets[1];
	}
	assert_true(depth >= 1);
	if (fdpass_send(pair->far, "x", 1, &passed, 1, &error) == FDPASS_OK) {
		(void)close(passed);
		assert_int_equal(receive(pair, &packet), FDPASS_OK);
		fdpass_close_all(packet.fds, packet.n_fds);
	} else {
		assert_int_equal(error, ETOOMANYREFS);
		(void)close(passed);
	}
}

static void a_packet_larger_than_the_buffer_is_refused_whole(void **state)
{
	struct pair *pair = *state;
	struct fdpass_packet packet;

	assert_int_equal(send_raw(pair, 2, 0, 65), 0);
	receive_refused(pair, FDPASS_TOO_LARGE, 2);
	assert_int_equal(send_raw(pair, 0, 0, 64), 0);
	assert_int_equal(receive(pair, &packet), FDPASS_OK);
	assert_int_equal(packet.size, 64);
}

/* fault: P02 */
static void an_empty_packet_and_a_closed_peer_are_the_end(void **state)
{
	struct pair *pair = *state;
	struct fdpass_packet packet;
	int error = 0;

	assert_int_equal(send_raw(pair, 2, 0, 0), 0);
	receive_refused(pair, FDPASS_END, 2);
	assert_int_equal(shutdown(pair->far, SHUT_RDWR), 0);
	assert_int_equal(receive(pair, &packet), FDPASS_END);
	(void)signal(SIGPIPE, SIG_DFL); /* a signal would end the test */
	assert_int_equal(fdpass_send(pair->near, "x", 1, NULL, 0, &error), FDPASS_END);
	assert_int_equal(error, EPIPE);
}

static void a_reset_reads_as_the_end(void **state)
{
	struct pair *pair = *state;
	struct fdpass_packet packet;
	int error = 0;

	/* The peer closes with our packet unread. What it sent before is not lost. */
	assert_int_equal(fdpass_send(pair->near, "x", 1, NULL, 0, &error), FDPASS_OK);
	assert_int_equal(fdpass_send(pair->far, "bye", 3, NULL, 0, &error), FDPASS_OK);
	(void)close(pair->far);
	pair->far = -1;
	assert_int_equal(receive(pair, &packet), FDPASS_OK);
	assert_int_equal(packet.size, 3);
	assert_int_equal(receive(pair, &packet), FDPASS_END);
	assert_int_equal(receive(pair, &packet), FDPASS_END);
}

static void a_full_queue_says_again_and_not_a_byte_is_lost(void **state)
{
	struct pair *pair = *state;
	struct fdpass_packet packet;
	char bytes[32] = {0};
	int n_sent = 0;
	int error = 0;

	while (fdpass_send(pair->far, bytes, sizeof bytes, &pair->null, 1, &error) == FDPASS_OK) {
		n_sent++;
	}
	assert_int_equal(error, EAGAIN);
	assert_true(n_sent > 0);
	for (; n_sent > 0; n_sent--) {
		assert_int_equal(receive(pair, &packet), FDPASS_OK);
		assert_int_equal(packet.size, sizeof bytes);
		assert_int_equal(packet.n_fds, 1);
		fdpass_close_all(packet.fds, packet.n_fds);
	}
	assert_int_equal(receive(pair, &packet), FDPASS_AGAIN);
}

static void what_cannot_be_a_packet_is_not_sent(void **state)
{
	struct pair *pair = *state;
	struct fdpass_packet packet;
	int fds[FDPASS_MAX_FDS + 1];
	const int closed = -1;
	int error = 0;

	for (int i = 0; i <= FDPASS_MAX_FDS; i++) {
		fds[i] = pair->null;
	}
	assert_int_equal(fdpass_send(pair->far, "x", 1, fds, FDPASS_MAX_FDS + 1, &error),
			 FDPASS_FAILED);
	assert_int_equal(error, EINVAL);
	error = 0;
	assert_int_equal(fdpass_send(pair->far, "", 0, NULL, 0, &error), FDPASS_FAILED);
	assert_int_equal(error, EINVAL);
	assert_int_equal(fdpass_send(pair->far, "x", 1, &closed, 1, &error), FDPASS_FAILED);
	assert_int_equal(error, EBADF);
	assert_int_equal(receive(pair, &packet), FDPASS_AGAIN);
	assert_int_equal(fdpass_send(pair->far, "x", 1, fds, FDPASS_MAX_FDS, &error), FDPASS_OK);
	assert_int_equal(receive(pair, &packet), FDPASS_OK);
	assert_int_equal(packet.n_fds, FDPASS_MAX_FDS);
	fdpass_close_all(packet.fds, packet.n_fds);
}

static void send_strikes(struct pair *pair, int fault, enum fdpass_status expected)
{
	struct fdpass_packet packet;
	int error = 0;

	assert_true(sys_fault_set("sendmsg", (struct sys_fault){.nth = 1, .error = fault}));
	assert_int_equal(fdpass_send(pair->far, "x", 1, NULL, 0, &error), expected);
	if (expected == FDPASS_OK) {
		assert_int_equal(receive(pair, &packet), FDPASS_OK);
	} else {
		assert_int_equal(error, fault);
	}
}

static void receive_strikes(struct pair *pair, int fault, enum fdpass_status expected)
{
	struct fdpass_packet packet;

	assert_int_equal(send_raw(pair, 1, 0, 1), 0);
	assert_true(sys_fault_set("recvmsg", (struct sys_fault){.nth = 1, .error = fault}));
	assert_int_equal(receive(pair, &packet), expected);
	if (expected != FDPASS_OK) {
		assert_int_equal(packet.error, fault);
		assert_int_equal(packet.n_fds, 0);
		assert_int_equal(receive(pair, &packet), FDPASS_OK);
	}
	fdpass_close_all(packet.fds, packet.n_fds);
}

static void errors_of_the_kernel_are_told_apart(void **state)
{
	struct pair *pair = *state;

	send_strikes(pair, EINTR, FDPASS_OK);
	send_strikes(pair, EAGAIN, FDPASS_AGAIN);
	send_strikes(pair, ENOBUFS, FDPASS_AGAIN);
	send_strikes(pair, ETOOMANYREFS, FDPASS_AGAIN);
	send_strikes(pair, ECONNRESET, FDPASS_END);
	send_strikes(pair, EPIPE, FDPASS_END);
	send_strikes(pair, EMSGSIZE, FDPASS_FAILED);
	receive_strikes(pair, EINTR, FDPASS_OK);
	receive_strikes(pair, EAGAIN, FDPASS_AGAIN);
	receive_strikes(pair, ECONNRESET, FDPASS_OK); /* what was sent before is there */
	receive_strikes(pair, ENOMEM, FDPASS_FAILED);
}

static uint32_t n_dropped;

static void count_drop(int fd)
{
	(void)fd;
	n_dropped++;
}

/* One header with the numbers 100, 101, ... written by hand. */
static size_t put_header(unsigned char *at, int level, int type, size_t length, uint32_t n_fds)
{
	struct cmsghdr header = {.cmsg_level = level, .cmsg_type = type, .cmsg_len = length};

	memcpy(at, &header, sizeof header);
	for (uint32_t i = 0; i < n_fds; i++) {
		int fd = 100 + (int)i;

		memcpy(at + CMSG_LEN(0) + i * sizeof fd, &fd, sizeof fd);
	}
	return CMSG_SPACE(n_fds * sizeof(int));
}

/* fault: D03 */
static void d03_raw_control_bytes_are_never_read_past_their_end(void **state)
{
	_Alignas(struct cmsghdr) unsigned char control[256];
	int fds[FDPASS_MAX_FDS];
	size_t size;

	(void)state;
	n_dropped = 0;
	assert_int_equal(fdpass_collect(control, 0, fds, count_drop), 0);
	memset(control, 0, sizeof control);
	assert_int_equal(fdpass_collect(control, sizeof control, fds, count_drop), 0);

	/* A length that covers no whole int, and one that is less than a header. */
	(void)put_header(control, SOL_SOCKET, SCM_RIGHTS, CMSG_LEN(3), 1);
	assert_int_equal(fdpass_collect(control, CMSG_SPACE(4), fds, count_drop), 0);
	(void)put_header(control, SOL_SOCKET, SCM_RIGHTS, CMSG_LEN(0) - 1, 1);
	assert_int_equal(fdpass_collect(control, CMSG_SPACE(4), fds, count_drop), 0);

	/* An int and a half: the half is padding, not a descriptor (CVE-2014-3635). */
	(void)put_header(control, SOL_SOCKET, SCM_RIGHTS, CMSG_LEN(6), 2);
	assert_int_equal(fdpass_collect(control, CMSG_SPACE(8), fds, count_drop), 1);
	assert_int_equal(fds[0], 100);

	/* A claim far past the end gives what is there. */
	(void)put_header(control, SOL_SOCKET, SCM_RIGHTS, SIZE_MAX - 7, 2);
	assert_int_equal(fdpass_collect(control, CMSG_LEN(8), fds, count_drop), 2);

	/* Another level and another type are not descriptors. */
	size = put_header(control, SOL_SOCKET, SCM_CREDENTIALS, CMSG_LEN(12), 3);
	size += put_header(control + size, IPPROTO_TCP, SCM_RIGHTS, CMSG_LEN(4), 1);
	size += put_header(control + size, SOL_SOCKET, SCM_RIGHTS, CMSG_LEN(8), 2);
	assert_int_equal(fdpass_collect(control, size, fds, count_drop), 2);
	assert_int_equal(n_dropped, 0);

	/* A pidfd that nobody asked for is closed, and counts as nothing passed. */
	size = put_header(control, SOL_SOCKET, 0x04, CMSG_LEN(4), 1);
	size += put_header(control + size, SOL_SOCKET, SCM_RIGHTS, CMSG_LEN(4), 1);
	assert_int_equal(fdpass_collect(control, size, fds, count_drop), 1);
	assert_int_equal(n_dropped, 1);
}

int main(void)
{
#define PAIR_TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
	const struct CMUnitTest tests[] = {
		PAIR_TEST(a_packet_arrives_whole_with_its_descriptors),
		PAIR_TEST(packets_without_descriptors_keep_their_edges),
		PAIR_TEST(d01_up_to_32_descriptors_are_handed_over),
		PAIR_TEST(d01_more_than_32_are_refused_and_all_handed_over),
		PAIR_TEST(d02_a_flood_of_descriptors_leaves_none),
		PAIR_TEST(d03_several_headers_count_together),
		PAIR_TEST(d03_credentials_beside_descriptors_are_skipped),
		PAIR_TEST(d05_descriptors_cut_by_our_own_limit_are_refused),
		PAIR_TEST(d11_sockets_within_sockets_are_closed_with_their_packet),
		PAIR_TEST(a_packet_larger_than_the_buffer_is_refused_whole),
		PAIR_TEST(an_empty_packet_and_a_closed_peer_are_the_end),
		PAIR_TEST(a_reset_reads_as_the_end),
		PAIR_TEST(a_full_queue_says_again_and_not_a_byte_is_lost),
		PAIR_TEST(what_cannot_be_a_packet_is_not_sent),
		PAIR_TEST(errors_of_the_kernel_are_told_apart),
		cmocka_unit_test(d03_raw_control_bytes_are_never_read_past_their_end),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
