/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The seam to the kernel: every call whose failure has to be survived goes through here, so
 * that testing builds can make the n-th one fail. In other builds these are plain calls.
 * Each behaves as its namesake (result, errno). Any thread.
 */
#ifndef BASE_OS_SYS_H
#define BASE_OS_SYS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/types.h>

/* Since Linux 5.14, 5.14 and 6.1; the headers of a C library may be older. */
#ifndef MADV_POPULATE_READ
#	define MADV_POPULATE_READ 22
#endif
#ifndef MADV_POPULATE_WRITE
#	define MADV_POPULATE_WRITE 23
#endif
#ifndef MADV_COLLAPSE
#	define MADV_COLLAPSE 25
#endif

/* clang-format off */
#define SYS_CALLS(X) \
	X(recvmsg) X(sendmsg) X(accept) X(memfd_create) X(ftruncate) X(mmap) X(madvise) X(mlock) \
	X(pread) X(write) X(fcntl) X(fchmod) X(fstat) X(statx) X(open) X(malloc) \
	X(pthread_create) X(getrandom) X(rename) X(fsync) X(pipe) X(close) X(timerfd_create) \
	X(inotify_add_watch)
/* clang-format on */

enum sys_call {
#define SYS_CALL_ENUM(name) SYS_CALL_##name,
	SYS_CALLS(SYS_CALL_ENUM)
#undef SYS_CALL_ENUM
		SYS_N_CALLS
};

ssize_t sys_recvmsg(int fd, struct msghdr *message, int flags);
ssize_t sys_sendmsg(int fd, const struct msghdr *message, int flags);
int sys_accept(int fd); /* accept4, non-blocking and close-on-exec */
int sys_memfd_create(const char *name, unsigned flags);
int sys_ftruncate(int fd, uint64_t size);
void *sys_mmap(void *address, size_t size, int protection, int flags, int fd, uint64_t offset);
int sys_madvise(void *address, size_t size, int advice);
int sys_mlock(const void *address, size_t size);
ssize_t sys_pread(int fd, void *bytes, size_t size, uint64_t offset);
ssize_t sys_write(int fd, const void *bytes, size_t size);
int sys_fchmod(int fd, mode_t mode);
int sys_fcntl(int fd, int command, long argument);
int sys_fcntl_dup(int fd); /* F_DUPFD_CLOEXEC above the standard streams */
int sys_fstat(int fd, struct stat *ret);
int sys_statx(int fd, int flags, struct statx *ret); /* of the descriptor, basic stats */
int sys_open(const char *path, int flags);           /* O_CLOEXEC is added */
void *sys_malloc(size_t size);
void *sys_calloc(size_t count, size_t size);
void *sys_realloc(void *memory, size_t size);
char *sys_strdup(const char *text);
int sys_pthread_create(void *ret_thread, void *(*body)(void *), void *argument);
int sys_getrandom(void *bytes, size_t size); /* 0, or -1 */
int sys_pipe(int ret_ends[2]);               /* non-blocking and close-on-exec */
int sys_timerfd_create(int clock, int flags);
int sys_inotify_add_watch(int fd, const char *path, uint32_t mask);
int sys_rename(const char *from, const char *to);
int sys_fsync(int fd);
/* Those of 0, 1 and 2 that are closed become /dev/null: what is opened next would get their number,
 * and lines that are meant for people would go there. False: there is no /dev/null. */
bool sys_open_standard_streams(void);
int sys_close(int fd); /* for those whose close may block: it can be made slow */

#ifdef DISTORCH_TESTING
/*
 * Let the nth call from now on (1: the next) fail with 'error'; with 'is_forever' all later
 * ones too. error 0 with short_size > 0: pread and write take at most so many bytes instead.
 * delay_ms: the call is slow instead. Returns false for an unknown name.
 */
struct sys_fault {
	uint64_t nth;
	int error;
	bool is_forever;
	uint32_t short_size;
	uint32_t delay_ms;
	bool is_deadly; /* SIGKILL to this process instead, before the call */
};
bool sys_fault_set(const char *name, struct sys_fault fault);
void sys_fault_forget(void); /* what was set; a call that is slow now goes on being so */
void sys_fault_clear(void);  /* and ends the slowness of calls under way */
/*
 * "pread:3:EIO", "sendmsg:1:EAGAIN:ever", "pread:1:short=7:ever;madvise:1:EINVAL:once",
 * "pread:1:delay=100:ever", "close:2:kill". False when it cannot be read; then nothing is set at all.
 */
bool sys_fault_parse(const char *text);
uint64_t sys_fault_n_hits(const char *name); /* how often a fault struck since it was set */
#endif

#endif
