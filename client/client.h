/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A connection and the calls that wait on it. One lock guards everything in struct
 * distorch. Among the threads that wait, one at a time leads (reads the socket, without the
 * lock) and hands answers to the others by id; when its own answer is there, the next one
 * leads. While nobody waits the keeper's thread reads (keeper.h). Lock order: registry, then
 * connection.
 */
#ifndef CLIENT_CLIENT_H
#define CLIENT_CLIENT_H

#include "base/list.h"

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "client/include/distorch.h"
#include "proto/gen/wire_gen.h"

#define CLIENT_LOST_SIZE 320

struct distorch {
	pthread_mutex_t lock;
	pthread_cond_t changed; /* an answer, an event, a free slot, or the lead */
	struct list link;       /* owner: the registry, for fork */
	uint32_t n_refs;        /* the user's, until closed, and one for each weights */
	pid_t pid;              /* whose connection it is */

	int fd;          /* owned; -1 before connect, after close and in a forked child */
	uint64_t serial; /* grows with each connect; leases belong to one */
	bool is_closed;  /* by the user */
	bool is_opening; /* one thread says hello; the others wait */
	bool is_lost;    /* the other side has gone; see 'lost' */
	bool is_led;     /* a thread reads the socket */
	int lost_code;   /* from goodbye, else DISTORCH_E_NO_CONNECTION */
	char lost[CLIENT_LOST_SIZE];

	uint32_t next_id;
	uint32_t n_calls;
	uint32_t max_calls; /* one less than the daemon takes, so that a cancel gets through */
	struct list calls;  /* struct call on the stacks of waiting threads */
	struct list events; /* struct event; owner: the connection; see event.c */
	size_t n_events;
	size_t events_bytes;
	struct list leases;       /* struct kept_lease; see keeper.h */
	void *subscription_texts; /* owned: what 'subscription' borrows; NULL: none */
	struct wire_subscribe_request subscription;
	bool has_keeper; /* its thread runs */
	uint64_t heard_ms;

	uint8_t *in; /* room for one packet; the leader's */
	char *path;
	char *client;
	char *label;              /* or NULL */
	struct wire_list devices; /* owned: its items are a result that has their texts */
	uint32_t timeout_ms;
	struct distorch_server *server; /* a result; what hello told */
};

/* What a call asks. Everything is borrowed for the call. */
struct request {
	enum wire_method method;
	const void *body; /* the generated request struct, or NULL where there is nothing to say */
	const int *fds;
	uint32_t n_fds;
	struct source *source;     /* the rest of its files follows; NULL: there is none */
	bool is_patient;           /* waits as long as the daemon answers pings */
	bool is_hello;             /* goes out while is_opening */
	bool is_whole_without_fds; /* its answer */
	uint64_t tag;
	distorch_progress_fn progress;
	void *user;
};

/* What came back; the decoded response borrows from it. */
struct answer {
	uint8_t *packet; /* owned */
	size_t size;
	uint8_t *spill;               /* owned; the result when it came in a memfd */
	uint64_t serial;              /* of the connection it came on */
	int fds[WIRE_FDS_PER_PACKET]; /* owned; -1 once taken */
	uint32_t n_fds;
};

/* A call that waits; lives on the stack of its thread. */
struct call {
	struct list link; /* owner: distorch::calls */
	uint32_t id;
	uint64_t serial; /* of the connection that it was sent on */
	enum wire_method method;
	uint64_t tag;
	bool has_progress;         /* a load or a move */
	bool is_done;              /* 'answer' is there */
	bool is_without_memory;    /* the answer came, but could not be kept */
	bool is_whole_without_fds; /* as the request's */
	bool has_lost_fds;         /* the answer came without them */
	bool is_cancelled;         /* by us; 'cancel' was sent */
	uint64_t cancelled_ms;
	bool has_news; /* of progress */
	char model[WIRE_LOAD_PROGRESS_EVENT_MODEL_MAX + 1];
	char phase[WIRE_LOAD_PROGRESS_EVENT_PHASE_MAX + 1];
	uint64_t bytes;
	uint64_t total;
	struct answer *answer;
};

/* Send a request, wait for its response and decode that into 'ret_body' (the generated response
 * struct; NULL where there is nothing in it). On success the caller ends with answer_fini; on
 * failure the thread's error is filled and there is nothing to free. */
int client_call(struct distorch *c, const struct request *request, struct answer *ret_answer,
		void *ret_body);

void answer_fini(struct answer *answer);
#define AUTO_ANSWER __attribute__((cleanup(answer_fini)))

/* One turn of waiting with the lock held: lead and read, or wait for who leads. */
void client_turn(struct distorch *c, uint64_t wait_ms);
/* Its parts: wait until something changed; read what is there and tell. Lock held. */
void client_follow(struct distorch *c, uint64_t wait_ms);
void client_read(struct distorch *c);

/* Fill the thread's error with why the connection is lost. */
int client_lost(const struct distorch *c);

/* The other side is gone or cannot be trusted; the first reason counts. Lock held. */
void client_lose(struct distorch *c, int code, const char *reason);

/* Take the lock; fails when the connection was closed, and in a process that has not opened it
 * (clone without fork handlers). Another thread may be connecting. */
int client_lock(struct distorch *c);
/* Likewise, wait for who is connecting, and connect anew where the connection was lost, and in a
 * forked child. */
int client_enter(struct distorch *c);
bool client_can_return(const struct distorch *c); /* is a lost one worth another try? */
void client_leave(struct distorch *c);

/* Connect and say hello, also again after a loss; then what the connection had is restored. Lock
 * held, given back while waiting; nobody else may be connecting. */
int client_connect(struct distorch *c);

void client_ref(struct distorch *c); /* owners of the memory of 'c' */
void client_unref(struct distorch *c);

/* A request whose answer nobody waits for; false when the socket does not take it now. */
bool client_post(struct distorch *c, enum wire_method method, const void *body);
uint64_t client_now_ms(void);

#endif
