/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A source file: the descriptors a client sent, who the file is, and what to call it. Counted,
 * because a running read holds it while the daemon may already have given it up. Any thread.
 */
#ifndef LOAD_FILE_H
#define LOAD_FILE_H

#include <stdbool.h>
#include <stdint.h>

struct err;

/* Who a file is (dev, ino) and which content it has. */
struct file_key {
	uint64_t dev, ino;
	uint64_t size; /* bytes */
	int64_t mtime_ns, ctime_ns;
};

struct file {
	int fd;              /* the client's description, buffered; its flags are never changed */
	int direct_fd;       /* the same file opened O_DIRECT, or -1 */
	struct file_key key; /* as it was when the descriptor came */
	struct file_key read_key; /* written by a header read, compared by that job's fill */
	uint32_t owner;           /* uid that sent the descriptors */
	uint32_t n_refs;
	char *path; /* where it lay when it came, for people only; never NULL */
};

/*
 * Judge and take two descriptors that the uid 'owner' sent; 'direct_fd' may be -1. Both are this
 * function's from the call on: on failure they go to base/os/closer.h. Refuses with WIRE_BAD_FD, naming what it is: anything but a
 * readable regular file, O_PATH, a memfd that its sender could still write or shrink, and a
 * second descriptor that is another file. Does not block: the file's server, if it has one, is
 * not asked (statx with DONT_SYNC), so size and times may be those last seen.
 */
int file_take(uint32_t owner, int fd, int direct_fd, struct file **ret, struct err *err);
/* The same for descriptors of our own. */
int file_new(int fd, int direct_fd, struct file **ret, struct err *err);

struct file *file_ref(struct file *file);
/* The last one has the descriptors closed, elsewhere, for that can block. NULL is fine. Returns
 * NULL. */
struct file *file_unref(struct file *file);

const char *file_path(const struct file *file);

/* The key as it is now. Asks the file's server and may block. WIRE_IO on failure. */
int file_read_key(const struct file *file, struct file_key *ret, struct err *err);
bool file_key_is_equal(const struct file_key *a, const struct file_key *b);

/* WIRE_BAD_FD for files that the kernel makes up on the spot (proc, sysfs and their like).
 * May block. */
int file_check_filesystem(const struct file *file, struct err *err);

#endif
