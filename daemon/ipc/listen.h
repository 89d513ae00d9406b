/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A listening Unix socket under a name: made whole, so that whoever sees the name can connect, and
 * never in the place of what is somebody else's. At the start and the end only.
 */
#ifndef IPC_LISTEN_H
#define IPC_LISTEN_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#define LISTEN_MAX_PATH 106 /* sun_path less the NUL and one to spare */

struct err;

struct listen_name {
	const char *path;
	int type; /* SOCK_SEQPACKET or SOCK_STREAM */
	int backlog;
	uint32_t mode;
	uint32_t gid; /* UINT32_MAX: as it comes */
};

struct listen_socket {
	int fd;
	dev_t dev; /* of the name */
	ino_t ino; /* 0: no name was made */
};

/* The system's words for a failure, or what a person can do about it. */
const char *listen_reason(int error);

/* The folder of the path, where there is none; not those above. */
int listen_make_folder(const char *path, struct err *err);

/* Non-blocking, close-on-exec. A dead socket of ours at the path gives way. 0, or a negative code
 * with 'err' and '*ret' as it was. */
int listen_open(const struct listen_name *name, struct listen_socket *ret, struct err *err);

/* Does no socket live under the name any more? False where that cannot be told. */
bool listen_is_gone(const char *path);

/* Give a name that an earlier life made the mode and the group that it would be made with now. */
int listen_set_rights(const struct listen_name *name, struct err *err);

/* Take the name away if it is still the one we made; the descriptor stays. */
void listen_forget(const struct listen_socket *socket, const char *path);

#endif
