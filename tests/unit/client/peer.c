/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/unit/client/peer.h"

#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define XXH_INLINE_ALL
#include "base/os/fdpass.h"
#include "base/require.h"

#include <xxhash.h>

#include "proto/table.h"

void peer_accept(struct peer *peer)
{
	peer->fd = accept4(peer->listener, NULL, NULL, SOCK_CLOEXEC);
	REQUIRE(peer->fd >= 0);
}

static void *peer_run(void *argument)
{
	struct peer *peer = argument;

	peer_accept(peer);
	if (!peer->is_mute) {
		peer_hello(peer, WIRE_PROTOCOL_VERSION);
	}
	peer->script(peer);
	(void)close(peer->fd); /* the test's own */
	return NULL;
}

static void start(struct peer *peer, void (*script)(struct peer *peer), void *user)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};

	peer->script = script;
	peer->user = user;
	peer->n_detached = 0;
	(void)snprintf(peer->folder, sizeof peer->folder, "/tmp/distorch-test-XXXXXX");
	REQUIRE(mkdtemp(peer->folder) != NULL);
	(void)snprintf(peer->path, sizeof peer->path, "%s/s", peer->folder);
	peer->listener = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	REQUIRE(peer->listener >= 0);
	memcpy(address.sun_path, peer->path, strlen(peer->path) + 1);
	REQUIRE(bind(peer->listener, (const struct sockaddr *)&address, sizeof address) == 0);
	REQUIRE(listen(peer->listener, 100) == 0);
	REQUIRE(pthread_create(&peer->thread, NULL, peer_run, peer) == 0);
}

void peer_start(struct peer *peer, void (*script)(struct peer *peer), void *user)
{
	peer->is_mute = false;
	start(peer, script, user);
}

void peer_start_mute(struct peer *peer, void (*script)(struct peer *peer), void *user)
{
	peer->is_mute = true;
	start(peer, script, user);
}

void peer_stop(struct peer *peer)
{
	REQUIRE(pthread_join(peer->thread, NULL) == 0);
	(void)close(peer->listener); /* the test's own, as the two below */
	(void)unlink(peer->path);
	(void)rmdir(peer->folder);
}

bool peer_receive(struct peer *peer, struct wire_packet *packet)
{
	struct wire_fault fault;
	struct wire_detach_request detach;

	for (;;) {
		char control[CMSG_SPACE(sizeof(int) * WIRE_FDS_PER_PACKET)];
		struct iovec vector = {peer->in, sizeof peer->in};
		struct msghdr message = {.msg_iov = &vector,
					 .msg_iovlen = 1,
					 .msg_control = control,
					 .msg_controllen = sizeof control};
		ssize_t n = recvmsg(peer->fd, &message, MSG_CMSG_CLOEXEC);

		if (n <= 0) {
			return false;
		}
		for (struct cmsghdr *header = CMSG_FIRSTHDR(&message); header != NULL;
		     header = CMSG_NXTHDR(&message, header)) {
			int fds[WIRE_FDS_PER_PACKET];
			size_t n_fds = (header->cmsg_len - CMSG_LEN(0)) / sizeof *fds;

			memcpy(fds, CMSG_DATA(header), n_fds * sizeof *fds);
			fdpass_close_all(fds, (uint32_t)n_fds);
		}
		REQUIRE(wire_decode_packet(peer->in, (size_t)n, &wire_packet_limits, packet,
					   &fault) == 0);
		if (packet->message == NULL || packet->message->number != WIRE_METHOD_DETACH) {
			return true;
		}
		REQUIRE(wire_decode_body(&wire_type_detach_request, packet->body, packet->body_size,
					 true, &detach, &fault) == 0);
		peer->n_detached++;
		peer->detached = detach.lease;
	}
}

uint32_t peer_expect(struct peer *peer, enum wire_method method)
{
	struct wire_packet packet;

	REQUIRE(peer_receive(peer, &packet));
	REQUIRE(packet.kind == WIRE_REQUEST && packet.message != NULL);
	REQUIRE(packet.message->number == method);
	return packet.id;
}

bool peer_is_closed(struct peer *peer)
{
	struct wire_packet packet;

	while (peer_receive(peer, &packet)) {
	}
	return true;
}

void peer_send(struct peer *peer, const void *bytes, size_t size, const int *fds, uint32_t n)
{
	int sys = 0;
	enum fdpass_status status;

	do {
		status = fdpass_send(peer->fd, bytes, size, fds, n, &sys);
	} while (status == FDPASS_AGAIN);
}

void peer_hello(struct peer *peer, uint64_t protocol)
{
	const struct wire_hello_response response = {
		.protocol = protocol,
		.server = wire_str("distorchd/test"),
		.epoch = 1,
		.limits = {.packet_bytes = WIRE_PACKET_BYTES,
			   .fds_per_packet = WIRE_FDS_PER_PACKET,
			   .requests_in_flight = WIRE_REQUESTS_IN_FLIGHT},
		.role = wire_str("user"),
		.client = 7,
	};

	peer_respond(peer, peer_expect(peer, WIRE_METHOD_HELLO), WIRE_METHOD_HELLO, &response, NULL,
		     0);
}

void peer_respond(struct peer *peer, uint32_t id, enum wire_method method, const void *body,
		  const int *fds, uint32_t n)
{
	uint8_t bytes[6000];
	struct wire_buffer buffer = {.bytes = bytes, .capacity = sizeof bytes};

	REQUIRE(wire_encode_response(&buffer, id, method, body, n));
	peer_send(peer, bytes, buffer.size, fds, n);
}

void peer_fail(struct peer *peer, uint32_t id, const char *code, const char *message)
{
	const struct wire_error error = {.code = wire_str(code), .message = wire_str(message)};
	uint8_t bytes[4096];
	struct wire_buffer buffer = {.bytes = bytes, .capacity = sizeof bytes};

	REQUIRE(wire_encode_error(&buffer, id, &error));
	peer_send(peer, bytes, buffer.size, NULL, 0);
}

void peer_event(struct peer *peer, enum wire_event event, const void *fields)
{
	uint8_t bytes[4096];
	struct wire_buffer buffer = {.bytes = bytes, .capacity = sizeof bytes};

	REQUIRE(wire_encode_event(&buffer, event, fields, 0));
	peer_send(peer, bytes, buffer.size, NULL, 0);
}

struct wire_model peer_model(void)
{
	return (struct wire_model){
		.id = wire_str("00112233445566778899aabbccddeeff"),
		.has_name = true,
		.name = wire_str("m.safetensors"),
		.state = wire_str("resident"),
		.format = wire_str("safetensors"),
	};
}

int peer_memfd(const void *bytes, size_t size, int seals)
{
	int fd = memfd_create("test", MFD_CLOEXEC | MFD_ALLOW_SEALING);

	REQUIRE(fd >= 0);
	REQUIRE(write(fd, bytes, size) == (ssize_t)size);
	REQUIRE(fcntl(fd, F_ADD_SEALS, seals) == 0);
	return fd;
}

uint8_t peer_pattern(size_t offset)
{
	return (uint8_t)(offset * 7 + (offset >> 8));
}

int peer_make_image(int seals)
{
	uint8_t *bytes = malloc(PEER_IMAGE_BYTES);
	int fd;

	REQUIRE(bytes != NULL);
	for (size_t i = 0; i < PEER_IMAGE_BYTES; i++) {
		bytes[i] = peer_pattern(i);
	}
	fd = peer_memfd(bytes, PEER_IMAGE_BYTES, seals);
	free(bytes);
	return fd;
}

static uint64_t hash(const void *bytes, size_t size)
{
	return XXH3_64bits(bytes, size);
}

size_t peer_table_bytes(uint64_t claimed, uint8_t *memory, size_t capacity)
{
	static const uint8_t id[16] = {0x00, 0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77,
				       0x88, 0x99, 0xaa, 0xbb, 0xcc, 0xdd, 0xee, 0xff};
	static const uint64_t shape_a[] = {2, 3};
	static const uint64_t shape_b[] = {5};
	static const uint64_t shape_empty[] = {0, 4};
	const uint64_t sums[] = {1};
	const struct table_source_shard shard = {
		.size = PEER_IMAGE_BYTES,
		.image_size = claimed != 0 ? claimed : PEER_IMAGE_BYTES,
		.n_sums = 1,
		.name = wire_str("m.safetensors"),
	};
	const struct table_source_tensor tensors[] = {
		{.name = wire_str("a"),
		 .shape = shape_a,
		 .rank = 2,
		 .dtype = WIRE_DTYPE_F32,
		 .offset = 64,
		 .size = 24},
		{.name = wire_str("b.weight"),
		 .shape = shape_b,
		 .rank = 1,
		 .dtype = WIRE_DTYPE_U8,
		 .offset = 88,
		 .size = 5},
		{.name = wire_str("empty"),
		 .shape = shape_empty,
		 .rank = 2,
		 .dtype = WIRE_DTYPE_F16,
		 .offset = 93,
		 .size = 0},
		{.name = wire_str("s"),
		 .dtype = WIRE_DTYPE_BF16,
		 .offset = PEER_IMAGE_BYTES - 2,
		 .size = 2},
	};
	const struct table_source_block block = {.name = wire_str("whole"),
						 .size = 31,
						 .n_tensors = 4};
	const struct table_source source = {
		.model_id = id,
		.generation = 3,
		.format = 1,
		.n_shards = 1,
		.n_tensors = 4,
		.n_blocks = 1,
		.n_sums = 1,
		.shards = &shard,
		.tensors = tensors,
		.blocks = &block,
		.sums = sums,
		.sum_range = (uint64_t)64 << 20,
	};
	size_t size = (size_t)table_size(&source);

	REQUIRE(size > 0 && size <= capacity);
	table_write(&source, memory, hash);
	return size;
}

int peer_make_table(uint64_t claimed, int seals)
{
	_Alignas(8) uint8_t memory[4096];

	return peer_memfd(memory, peer_table_bytes(claimed, memory, sizeof memory), seals);
}

void peer_wait_fds(int n_fds)
{
	const struct timespec moment = {.tv_nsec = 1000000};

	int n_looks = 0;

	/* Once is enough: a thread that tries to connect again has a socket for a moment. */
	while (peer_count_fds() != n_fds) {
		REQUIRE(++n_looks < 5000);
		(void)nanosleep(&moment, NULL);
	}
}

int peer_count_fds(void)
{
	DIR *folder = opendir("/proc/self/fd");
	int n = 0;

	REQUIRE(folder != NULL);
	while (readdir(folder) != NULL) {
		n++;
	}
	(void)closedir(folder); /* the test's own */
	return n - 3;           /* ".", ".." and the folder's own */
}
