/* SPDX-License-Identifier: Apache-2.0 */
/* Judging and counting source files. See file.h. */
#include "daemon/load/file.h"

#include "base/checked.h"
#include "base/cleanup.h"
#include "base/err.h"
#include "base/os/clock.h"
#include "base/os/closer.h"
#include "base/os/sys.h"
#include "base/require.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/magic.h>
#include <linux/openat2.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/vfs.h>
#include <time.h>
#include <unistd.h>

#include "daemon/load/hash.h"
#include "daemon/load/thread.h"
#include "proto/gen/wire_code.h"

#ifndef XFS_SUPER_MAGIC
#	define XFS_SUPER_MAGIC 0x58465342
#endif
#ifndef EXFAT_SUPER_MAGIC
#	define EXFAT_SUPER_MAGIC 0x2011BAB0
#endif
#define NTFS3_SUPER_MAGIC 0x7366746e
#ifndef RESOLVE_CACHED
#	define RESOLVE_CACHED 0x20
#endif
#ifndef F_SEAL_FUTURE_WRITE
#	define F_SEAL_FUTURE_WRITE 0x0010
#endif

#define NS_PER_S   1000000000U
#define N_KEEPERS  64 /* uids that are counted apart */
#define COARSEST_S 2  /* FAT: times in steps of two seconds */

#define MAX_TICK_NS 20000000U /* of the kernel's clock: 100 in a second are the fewest */
#define MAX_LOOKS   20

static const char *kind_name(unsigned mode)
{
	switch (mode & S_IFMT) {
	case S_IFDIR:
		return "a directory";
	case S_IFIFO:
		return "a pipe";
	case S_IFSOCK:
		return "a socket";
	case S_IFCHR:
		return "a character device";
	case S_IFBLK:
		return "a block device";
	case S_IFLNK:
		return "a symbolic link";
	default:
		return "a kernel object without a file (epoll, eventfd or the like)";
	}
}

static int64_t ns_of(const struct statx_timestamp *time)
{
	return (int64_t)((uint64_t)time->tv_sec * NS_PER_S + time->tv_nsec);
}

/* By the wall clock, as the filesystem's times are: the worst that a wrong one does is a look at
 * bytes that are the same, or none. */
static bool is_young(const struct statx *status)
{
	const int64_t now = (int64_t)(clock_real_ns() / NS_PER_S);
	int64_t age = 0;

	return status->stx_mtime.tv_nsec == 0 && status->stx_ctime.tv_nsec == 0 &&
	       !__builtin_sub_overflow(now, status->stx_ctime.tv_sec, &age) && age >= -1 &&
	       age <= COARSEST_S;
}

static struct file_key key_of(const struct statx *status)
{
	return (struct file_key){
		.dev = makedev(status->stx_dev_major, status->stx_dev_minor),
		.ino = status->stx_ino,
		.size = status->stx_size,
		.mtime_ns = ns_of(&status->stx_mtime),
		.ctime_ns = ns_of(&status->stx_ctime),
		.is_young = is_young(status),
	};
}

/* How the description was opened; 'what' names the descriptor in the refusal. */
static int check_access(int fd, const char *what, int *ret_flags, struct err *err)
{
	const int flags = sys_fcntl(fd, F_GETFL, 0);

	if (flags < 0) {
		return err_set_sys(err, WIRE_BAD_FD, errno, "%s: %s", what, strerror(errno));
	}
	if ((flags & O_PATH) != 0) {
		return err_set(err, WIRE_BAD_FD, "%s was opened with O_PATH and cannot be read",
			       what);
	}
	if ((flags & O_ACCMODE) != O_RDONLY && (flags & O_ACCMODE) != O_RDWR) {
		return err_set(err, WIRE_BAD_FD, "%s was opened for writing only", what);
	}
	*ret_flags = flags;
	return 0;
}

static int check_regular(int fd, const char *what, struct file_key *ret, struct err *err)
{
	struct statx status;

	if (sys_statx(fd, AT_STATX_DONT_SYNC, &status) < 0) {
		return err_set_sys(err, WIRE_BAD_FD, errno, "%s: %s", what, strerror(errno));
	}
	if ((status.stx_mode & S_IFMT) != S_IFREG) {
		return err_set(err, WIRE_BAD_FD, "%s is %s, not a regular file", what,
			       kind_name(status.stx_mode));
	}
	*ret = key_of(&status);
	return 0;
}

/* A memfd is its sender's to write until it is sealed; unless against all writing, by mappings
 * that he has. */
static int check_memfd(struct file *file, struct err *err)
{
	int seals;

	if (strncmp(file->path, "/memfd:", strlen("/memfd:")) != 0) {
		return 0;
	}
	seals = sys_fcntl(file->fd, F_GET_SEALS, 0);
	if (seals < 0 || (seals & F_SEAL_SHRINK) == 0 ||
	    (seals & (F_SEAL_WRITE | F_SEAL_FUTURE_WRITE)) == 0) {
		return err_set(err, WIRE_BAD_FD,
			       "the descriptor is a memfd without seals against shrinking and "
			       "writing");
	}
	file->is_read_only = file->is_read_only && (seals & F_SEAL_WRITE) != 0;
	return 0;
}

static int check_direct(const struct file *file, struct err *err)
{
	struct file_key key;
	int flags;
	int code = check_access(file->direct_fd, "the second descriptor", &flags, err);

	if (code == 0) {
		code = check_regular(file->direct_fd, "the second descriptor", &key, err);
	}
	if (code < 0) {
		return code;
	}
	if (key.dev != file->key.dev || key.ino != file->key.ino) {
		return err_set(err, WIRE_BAD_FD, "the second descriptor is another file");
	}
	if ((flags & O_DIRECT) == 0) {
		return err_set(err, WIRE_BAD_FD,
			       "the second descriptor was opened without O_DIRECT");
	}
	return 0;
}

/* By names that the kernel has at hand: where a server would have to be asked, it is not. */
static bool is_found_at(int fd, const char *path)
{
	const struct open_how how = {.flags = O_PATH | O_NOFOLLOW | O_CLOEXEC,
				     .resolve = RESOLVE_CACHED};
	AUTO_CLOSE int found_fd = (int)syscall(SYS_openat2, AT_FDCWD, path, &how, sizeof how);
	struct statx own;
	struct statx found;

	return found_fd >= 0 && sys_statx(fd, AT_STATX_DONT_SYNC, &own) == 0 &&
	       sys_statx(found_fd, AT_STATX_DONT_SYNC, &found) == 0 &&
	       own.stx_dev_major == found.stx_dev_major &&
	       own.stx_dev_minor == found.stx_dev_minor && own.stx_ino == found.stx_ino;
}

/* The kernel's word for where it lies; asks no server. Empty when it cannot be told. True: it lies
 * there no more. */
static bool read_own_path(int fd, char ret[PATH_MAX])
{
	static const char deleted[] = " (deleted)";
	char link[64];
	ssize_t length;

	(void)snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
	length = readlink(link, ret, PATH_MAX - 1);
	length = length < 0 ? 0 : length;
	ret[length] = '\0';
	if ((size_t)length < sizeof deleted ||
	    strcmp(ret + length - (ssize_t)strlen(deleted), deleted) != 0 ||
	    is_found_at(fd, ret)) { /* so it is called */
		return false;
	}
	ret[length - (ssize_t)strlen(deleted)] = '\0';
	return true;
}

bool file_is_gone(const struct file *file)
{
	char path[PATH_MAX];

	if (file->shards == NULL) {
		return read_own_path(file->fd, path);
	}
	for (uint32_t i = 0; i < file->n_shards; i++) {
		if (read_own_path(file->shards[i]->fd, path)) {
			return true;
		}
	}
	return false;
}

/* Not here: asking the file's server can take for ever. */
static void give_up(uint32_t owner, int fd, int direct_fd)
{
	int fds[] = {fd, direct_fd};

	closer_give(owner, fds, 2);
}

/* ---- how many descriptors each uid keeps open by them ---- */

static struct {
	uint32_t uid;
	uint32_t n_fds;   /* 0: the place is free */
} keepers[N_KEEPERS + 1]; /* the last one is shared by those who found no place */
static pthread_mutex_t keepers_lock = PTHREAD_MUTEX_INITIALIZER;

static uint32_t *find_count(uint32_t uid)
{
	uint32_t place = N_KEEPERS;

	for (uint32_t i = 0; i < N_KEEPERS; i++) {
		if (keepers[i].n_fds > 0 && keepers[i].uid == uid) {
			return &keepers[i].n_fds;
		}
		place = keepers[i].n_fds == 0 ? i : place;
	}
	keepers[place].uid = uid;
	return &keepers[place].n_fds;
}

static void count_fds(const struct file *file, bool is_new)
{
	uint32_t n_fds = (file->fd >= 0 ? 1U : 0U) + (file->direct_fd >= 0 ? 1U : 0U);
	uint32_t *count;

	thread_lock(&keepers_lock);
	count = find_count(file->owner);
	if (is_new) {
		*count += n_fds;
	} else { /* one that was counted in the shared place may have one of its own now */
		*count -= n_fds < *count ? n_fds : *count;
	}
	thread_unlock(&keepers_lock);
}

uint32_t file_n_descriptors(uint32_t uid)
{
	uint32_t n_fds;

	thread_lock(&keepers_lock);
	n_fds = *find_count(uid);
	thread_unlock(&keepers_lock);
	return n_fds;
}

int file_take(uint32_t owner, int fd, int direct_fd, struct file **ret, struct err *err)
{
	struct file *file = sys_calloc(1, sizeof *file);
	char path[PATH_MAX];
	int flags;
	int code;

	if (file == NULL) {
		give_up(owner, fd, direct_fd);
		return err_set(err, WIRE_NO_MEMORY, "no memory for a source file");
	}
	*file = (struct file){.fd = fd, .direct_fd = direct_fd, .owner = owner, .n_refs = 1};
	count_fds(file, true);
	code = check_access(fd, "the descriptor", &flags, err);
	file->is_read_only = code == 0 && (flags & O_ACCMODE) == O_RDONLY;
	if (code == 0) {
		code = check_regular(fd, "the descriptor", &file->key, err);
	}
	if (code == 0 && direct_fd >= 0) {
		code = check_direct(file, err);
	}
	if (code == 0) {
		(void)read_own_path(fd, path);
		file->path = sys_strdup(path);
		code = file->path == NULL
			       ? err_set(err, WIRE_NO_MEMORY, "no memory for a source file")
			       : check_memfd(file, err);
	}
	if (code < 0) {
		(void)file_unref(file);
		return code;
	}
	file->read_key = file->key;
	*ret = file;
	return 0;
}

int file_new(int fd, int direct_fd, struct file **ret, struct err *err)
{
	return file_take(geteuid(), fd, direct_fd, ret, err);
}

struct file *file_ref(struct file *file)
{
	REQUIRE(__atomic_add_fetch(&file->n_refs, 1, __ATOMIC_RELAXED) > 1);
	return file;
}

static void free_one(struct file *file)
{
	count_fds(file, false);
	give_up(file->owner, file->fd, file->direct_fd);
	free(file->path);
	free(file->name);
	free(file);
}

/* One that is not made of others. */
static void unref_single(struct file *file)
{
	if (file != NULL && __atomic_sub_fetch(&file->n_refs, 1, __ATOMIC_ACQ_REL) == 0) {
		free_one(file);
	}
}

struct file *file_unref(struct file *file)
{
	if (file == NULL || __atomic_sub_fetch(&file->n_refs, 1, __ATOMIC_ACQ_REL) > 0) {
		return NULL;
	}
	for (uint32_t i = 0; i < file->n_shards; i++) {
		unref_single(file->shards[i]);
	}
	unref_single(file->index);
	free(file->shards);
	free(file->ids);
	free_one(file);
	return NULL;
}

const char *file_path(const struct file *file)
{
	return file->path;
}

/* ---- several files as one ---- */

bool file_set_name(struct file *file, const char *name)
{
	free(file->name);
	file->name = sys_strdup(name);
	return file->name != NULL;
}

uint32_t file_n_shards(const struct file *file)
{
	return file->shards == NULL ? 1 : file->n_shards;
}

struct file *file_shard(struct file *file, uint32_t shard)
{
	return file->shards == NULL ? file : file->shards[shard];
}

/* One key for all, the same in each life of the daemon. Who chooses inode numbers (a filesystem of
 * his own) may be able to make two sources that have the same: their ids tell them apart. */
int file_join_keys(const struct file_key *keys, uint32_t n_keys, struct file_key *ret,
		   struct err *err)
{
	const size_t n_numbers = 2 * (size_t)n_keys;
	AUTO_FREE uint64_t *numbers = sys_calloc(n_numbers, sizeof *numbers);
	struct file_key all = {0};
	uint64_t hash[2];

	if (numbers == NULL) {
		return err_set(err, WIRE_NO_MEMORY, "no memory for %u source files", n_keys);
	}
	for (size_t i = 0; i < n_keys; i++) {
		numbers[2 * i] = keys[i].dev;
		numbers[2 * i + 1] = keys[i].ino;
		all.is_young = all.is_young || keys[i].is_young;
		if (!checked_add(all.size, keys[i].size, &all.size) || all.size > INT64_MAX) {
			return err_set(err, WIRE_TOO_LARGE, "the files have more than 2^63 bytes");
		}
	}
	hash_wide(numbers, n_numbers * sizeof *numbers, hash);
	all.dev = hash[0];
	all.ino = hash[1];
	for (size_t i = 0; i < n_keys; i++) {
		numbers[2 * i] = keys[i].size;
		numbers[2 * i + 1] = (uint64_t)keys[i].mtime_ns;
	}
	hash_wide(numbers, n_numbers * sizeof *numbers, hash);
	all.mtime_ns = (int64_t)hash[0];
	for (size_t i = 0; i < n_keys; i++) {
		numbers[i] = (uint64_t)keys[i].ctime_ns;
	}
	hash_wide(numbers, n_keys * sizeof *numbers, hash);
	all.ctime_ns = (int64_t)hash[0];
	*ret = all;
	return 0;
}

static int join_own_keys(struct file *file, struct err *err)
{
	AUTO_FREE struct file_key *keys = sys_calloc(file->n_shards, sizeof *keys);

	file->ids = sys_calloc(file->n_shards, sizeof *file->ids);
	if (keys == NULL || file->ids == NULL) {
		return err_set(err, WIRE_NO_MEMORY, "no memory for %u source files",
			       file->n_shards);
	}
	file->is_read_only = true;
	for (uint32_t i = 0; i < file->n_shards; i++) {
		const struct file *shard = file->shards[i];

		keys[i] = shard->key;
		file->ids[i] = (struct file_id){shard->key.dev, shard->key.ino};
		file->is_read_only = file->is_read_only && shard->is_read_only;
	}
	return file_join_keys(keys, file->n_shards, &file->key, err);
}

int file_join(uint32_t owner, struct file *index, struct file *const *shards, uint32_t n_shards,
	      struct file **ret, struct err *err)
{
	struct file *file = sys_calloc(1, sizeof *file);
	struct file **copy = sys_calloc((size_t)n_shards, sizeof(struct file *));
	int code;

	if (file == NULL || copy == NULL) {
		free(file);
		free(copy);
		for (uint32_t i = 0; i < n_shards; i++) {
			unref_single(shards[i]);
		}
		unref_single(index);
		return err_set(err, WIRE_NO_MEMORY, "no memory for %u source files", n_shards);
	}
	memcpy(copy, shards, n_shards * sizeof(struct file *));
	*file = (struct file){.fd = -1,
			      .direct_fd = -1,
			      .owner = owner,
			      .n_refs = 1,
			      .index = index,
			      .shards = copy,
			      .n_shards = n_shards};
	file->path = sys_strdup(index == NULL ? shards[0]->path : index->path);
	code = file->path == NULL ? err_set(err, WIRE_NO_MEMORY, "no memory for a source file")
				  : join_own_keys(file, err);
	if (code < 0) {
		(void)file_unref(file);
		return code;
	}
	*ret = file;
	return 0;
}

int file_read_keys(struct file *file, struct file_key *keys, struct file_key *ret, struct err *err)
{
	for (uint32_t i = 0; i < file_n_shards(file); i++) {
		const struct file *shard = file_shard(file, i);
		int code = file_read_key(shard, &keys[i], err);

		if (code < 0) {
			return shard->name == NULL ? code : err_wrap(err, "%s", shard->name);
		}
	}
	if (file->shards == NULL) {
		*ret = keys[0];
		return 0;
	}
	return file_join_keys(keys, file->n_shards, ret, err);
}

static int read_key(const struct file *file, int flags, struct file_key *ret, struct err *err)
{
	struct statx status;

	if (sys_statx(file->fd, flags, &status) < 0) {
		int error = errno;

		return err_set_sys(err, WIRE_IO, error, "the file's size cannot be read: %s",
				   strerror(error));
	}
	*ret = key_of(&status);
	return 0;
}

/* The kernel gives files the time of its last tick, before Linux 6.13 always: what is written in the
 * same one again would have the same key. */
static bool is_of_this_tick(const struct file_key *key, uint64_t tick_ns)
{
	/* One that is far ahead is not our clock's. */
	return (uint64_t)key->ctime_ns - tick_ns < MAX_TICK_NS;
}

int file_read_key(const struct file *file, struct file_key *ret, struct err *err)
{
	const struct timespec moment = {.tv_nsec = 1000000};
	uint64_t tick_ns = clock_tick_ns(); /* before each look: it is not after it */
	int code = read_key(file, AT_STATX_SYNC_AS_STAT, ret, err);

	for (int i = 0; code == 0 && is_of_this_tick(ret, tick_ns) && i < MAX_LOOKS; i++) {
		(void)nanosleep(&moment, NULL); /* cut short: the next one is not */
		tick_ns = clock_tick_ns();
		code = read_key(file, AT_STATX_SYNC_AS_STAT, ret, err);
	}
	return code;
}

int file_look_at_key(const struct file *file, struct file_key *ret, struct err *err)
{
	return read_key(file, AT_STATX_DONT_SYNC, ret, err);
}

bool file_is_unlinked(const struct file *file)
{
	struct statx status;

	return sys_statx(file->fd, AT_STATX_DONT_SYNC, &status) == 0 && status.stx_nlink == 0;
}

bool file_is_reopenable(const struct file *file)
{
	char path[64];
	int fd;

	/* Not waiting: somebody may have a lease on it that an open would have to break. */
	(void)snprintf(path, sizeof path, "/proc/self/fd/%d", file->fd);
	fd = sys_open(path, O_RDONLY | O_NONBLOCK);
	if (fd >= 0) {
		(void)close(fd); /* only read */
	}
	return fd >= 0;
}

bool file_key_is_equal(const struct file_key *a, const struct file_key *b)
{
	return a->dev == b->dev && a->ino == b->ino && a->size == b->size &&
	       a->mtime_ns == b->mtime_ns && a->ctime_ns == b->ctime_ns;
}

int file_check_filesystem(const struct file *file, struct err *err)
{
	struct statfs status;

	if (fstatfs(file->fd, &status) < 0) {
		int error = errno;

		return err_set_sys(err, WIRE_IO, error, "the file's filesystem cannot be read: %s",
				   strerror(error));
	}
	switch ((unsigned long)status.f_type) {
	case PROC_SUPER_MAGIC:
	case SYSFS_MAGIC:
	case CGROUP_SUPER_MAGIC:
	case CGROUP2_SUPER_MAGIC:
	case DEBUGFS_MAGIC:
	case TRACEFS_MAGIC:
	case SECURITYFS_MAGIC:
		return err_set(err, WIRE_BAD_FD,
			       "the file is made up by the kernel (proc, sysfs or the like)");
	default:
		return 0;
	}
}

enum file_place file_place(const struct file *file)
{
	struct statfs status;

	if (fstatfs(file->fd, &status) < 0) {
		return FILE_ELSEWHERE;
	}
	switch ((unsigned long)status.f_type) {
	case EXT4_SUPER_MAGIC: /* and ext2, ext3 */
	case XFS_SUPER_MAGIC:
	case F2FS_SUPER_MAGIC:
	case TMPFS_MAGIC:
		return FILE_PLAIN;
	case BTRFS_SUPER_MAGIC:
	case EXFAT_SUPER_MAGIC:
	case MSDOS_SUPER_MAGIC:
	case NTFS3_SUPER_MAGIC:
		return FILE_LOCAL;
	default:
		return FILE_ELSEWHERE;
	}
}
