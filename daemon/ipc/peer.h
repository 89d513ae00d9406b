/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Who is at the other end, by the kernel's word: fixed when the connection was made. Decide
 * on the uid, never on the pid; the pid and its descriptor are for display and for noticing
 * that the process is gone.
 */
#ifndef IPC_PEER_H
#define IPC_PEER_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>
#include <uv.h>

struct err;

struct peer {
	uint32_t uid;
	uint32_t gid;
	pid_t pid;
	int pidfd; /* -1: the kernel gave none, or it was taken; owner: peer */
	bool is_admin;
	char comm[64]; /* made harmless */
};

/* 0, or a negative code. 'extra_admin_uid': besides root and our own; UINT32_MAX: nobody. */
/* When the process was started, in ticks since boot: with its pid, who it is. 0: not known. */
uint64_t peer_start_time(pid_t pid);

/* The process that had this pid and start time, if it lives still: pid, pidfd and comm. */
int peer_find(pid_t pid, uint64_t start_time, struct peer *ret, struct err *err);

int peer_read(int socket, uint32_t extra_admin_uid, struct peer *ret, struct err *err);
void peer_fini(struct peer *peer);

/* Is the peer in the group, by its own gid or its supplementary ones? */
bool peer_is_in_group(int socket, const struct peer *peer, uint32_t gid);

/* Made before it is wanted, so that its start needs no memory. NULL: no memory. */
struct process_watch;
struct process_watch *process_watch_new(void);
/*
 * Tell once, on the loop, when the process behind 'pidfd' is gone. Takes the descriptor over
 * in any case. False when it cannot be watched.
 */
typedef void (*process_gone_fn)(void *context, uint64_t id);
bool process_watch_start(struct process_watch *watch, uv_loop_t *loop, int pidfd,
			 process_gone_fn gone, void *context, uint64_t id);
/* No call afterwards; frees itself on the loop. NULL is fine. Also after it has told. */
void process_watch_free(struct process_watch *watch);

#endif
