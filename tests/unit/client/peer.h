/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The other end of a connection under the test's control: a listening socket and a thread
 * that runs a script. It says what no daemon would, or nothing. Faults of the script itself
 * abort.
 */
#ifndef TESTS_UNIT_CLIENT_PEER_H
#define TESTS_UNIT_CLIENT_PEER_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "proto/gen/wire_gen.h"

struct peer {
	char folder[64];
	char path[96];
	int listener;
	int fd; /* of the connection in progress */
	pthread_t thread;
	void (*script)(struct peer *peer);
	bool is_mute; /* the script answers the hello itself */
	void *user;
	uint8_t in[WIRE_PACKET_BYTES];
	uint32_t n_detached; /* detach requests seen by peer_receive */
	uint64_t detached;   /* lease of the last one */
};

/* Listen and run 'script' in a thread for the first connection, after its hello. */
void peer_start(struct peer *peer, void (*script)(struct peer *peer), void *user);
void peer_start_mute(struct peer *peer, void (*script)(struct peer *peer), void *user);
void peer_stop(struct peer *peer); /* wait for the script's end */

/* For scripts. */
void peer_accept(struct peer *peer);
bool peer_receive(struct peer *peer, struct wire_packet *packet); /* false: closed */
uint32_t peer_expect(struct peer *peer, enum wire_method method); /* the request's id */
bool peer_is_closed(struct peer *peer);                           /* by the client; waits for it */
void peer_send(struct peer *peer, const void *bytes, size_t size, const int *fds, uint32_t n);
void peer_hello(struct peer *peer, uint64_t protocol);
void peer_respond(struct peer *peer, uint32_t id, enum wire_method method, const void *body,
		  const int *fds, uint32_t n);
void peer_fail(struct peer *peer, uint32_t id, const char *code, const char *message);
void peer_event(struct peer *peer, enum wire_event event, const void *fields);

/* A model that may stand in any response. */
struct wire_model peer_model(void);

/* A sealed memfd of these bytes. */
int peer_memfd(const void *bytes, size_t size, int seals);

/*
 * A model of one shard: "a" F32 [2, 3], "b.weight" U8 [5], "empty" F16 [0, 4] and a scalar
 * "s" BF16, its image filled with a pattern. 'claimed' is the image's size in the table, 0:
 * the true one. The memfds are the caller's.
 */
#define PEER_IMAGE_BYTES ((size_t)3 * 1024 * 1024 + 77)
#define PEER_SEALS       (F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE)
uint8_t peer_pattern(size_t offset);
int peer_make_image(int seals);
int peer_make_table(uint64_t claimed, int seals);
/* The table's bytes; returns their size. */
size_t peer_table_bytes(uint64_t claimed, uint8_t *memory, size_t capacity);

/* Open descriptors of this process. */
int peer_count_fds(void);
/* So many are open, or will be when threads that end have closed theirs. */
void peer_wait_fds(int n_fds);

#endif
