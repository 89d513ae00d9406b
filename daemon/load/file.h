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
	uint64_t size;              /* bytes */
	int64_t mtime_ns, ctime_ns; /* of times that no 64 bits hold, the lowest 64 */
	bool is_young; /* a write now would leave no trace in them: the filesystem counts whole
			* seconds, and it was written in this one */
};

struct file_id {
	uint64_t dev, ino;
};

struct file {
	int fd;              /* the client's description, buffered; its flags are never changed */
	int direct_fd;       /* the same file opened O_DIRECT, or -1 */
	struct file_key key; /* as it was when the descriptor came */
	struct file_key read_key; /* written by a header read, compared by that job's fill */
	bool is_read_only;        /* nobody who is given the descriptor can write by it */
	uint32_t owner;           /* uid that sent the descriptors */
	uint32_t n_refs;
	char *path; /* where it lay when it came, for people only; never NULL */
	char *name; /* of one of several: as its index calls it; else NULL */

	/* Several files that are one model, else NULL and 0. Then there is no descriptor besides
	 * theirs, and the keys are of all of them. */
	struct file **shards; /* owned references */
	struct file_id *ids;  /* of each */
	uint32_t n_shards;
	struct file *index; /* that says what is in which; owned reference, or NULL */
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

/*
 * Several files as one source; its path is that of 'index' (NULL: there is none, then of the first
 * file). Each has its name (file_set_name). The references, not the array, are this function's
 * from the call on. WIRE_TOO_LARGE, WIRE_NO_MEMORY. Does not block.
 */
int file_join(uint32_t owner, struct file *index, struct file *const *shards, uint32_t n_shards,
	      struct file **ret, struct err *err);
/* One key for the keys of several files. Codes as file_join. */
int file_join_keys(const struct file_key *keys, uint32_t n_keys, struct file_key *ret,
		   struct err *err);
/* False: no memory. */
bool file_set_name(struct file *file, const char *name);

/* The files of a source, itself where it is a single one. */
uint32_t file_n_shards(const struct file *file);
struct file *file_shard(struct file *file, uint32_t shard);

struct file *file_ref(struct file *file);
/* The last one has the descriptors closed, elsewhere, for that can block. NULL is fine. Returns
 * NULL. */
struct file *file_unref(struct file *file);

/* Descriptors that sources of this uid keep open. */
uint32_t file_n_descriptors(uint32_t uid);

const char *file_path(const struct file *file);
/* Has its name been deleted, or been given to another file? Asks no server. */
bool file_is_gone(const struct file *file);

/* The key as it is now, of a single file, such that what is written from now on makes another: waits
 * for that, some milliseconds. Asks the file's server and may block. WIRE_IO on failure. */
int file_read_key(const struct file *file, struct file_key *ret, struct err *err);
/* The same without asking: what the kernel has at hand. Does not block. */
int file_look_at_key(const struct file *file, struct file_key *ret, struct err *err);
/* May our user open it, so that nobody is given the description of its sender? May block. */
bool file_is_reopenable(const struct file *file);
/* Has it no name any more? Does not block on a local filesystem. */
bool file_is_unlinked(const struct file *file);
/* Likewise of each file of a source, which 'keys' has room for, and of all. */
int file_read_keys(struct file *file, struct file_key *keys, struct file_key *ret, struct err *err);
bool file_key_is_equal(const struct file_key *a, const struct file_key *b);

/* WIRE_BAD_FD for single files that the kernel makes up on the spot (proc, sysfs and their like).
 * May block. */
int file_check_filesystem(const struct file *file, struct err *err);
enum file_place {
	FILE_ELSEWHERE, /* it may change behind the kernel, and what is asked of it may block */
	FILE_LOCAL,
	FILE_PLAIN, /* and its page cache holds what lies on the disk: it is not compressed */
};
/* What filesystem it lies on. May block. */
enum file_place file_place(const struct file *file);

#endif
