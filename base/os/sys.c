/* SPDX-License-Identifier: Apache-2.0 */
/* The seam and, in testing builds, its fault table. See sys.h. */
#include "base/os/sys.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/inotify.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#ifdef DISTORCH_TESTING
#	define STEP_MS 5U /* of a delay that may be ended */

static pthread_mutex_t faults_lock = PTHREAD_MUTEX_INITIALIZER;
static struct {
	struct sys_fault fault;
	uint64_t n_calls; /* since the fault was set */
	uint64_t n_hits;
	bool is_set;
} faults[SYS_N_CALLS];
static bool has_faults; /* read without the lock: a call that races with setting may pass */
static uint32_t n_clears;

static const char *const call_names[SYS_N_CALLS] = {
#	define SYS_CALL_NAME(name) #        name,
	SYS_CALLS(SYS_CALL_NAME)
#	undef SYS_CALL_NAME
};

/* A clear ends it: who waits until a delay was seen need not guess how long that takes. */
static void delay(uint32_t ms, uint32_t begun_at)
{
	while (ms > 0 && __atomic_load_n(&n_clears, __ATOMIC_ACQUIRE) == begun_at) {
		const uint32_t step = ms < STEP_MS ? ms : STEP_MS;
		const struct timespec time = {.tv_nsec = (long)step * 1000000};

		(void)nanosleep(&time, NULL);
		ms -= step;
	}
}

/* Does a fault strike this call? Fills it. */
static bool strike(enum sys_call call, struct sys_fault *ret)
{
	uint32_t begun_at;
	bool is_hit = false;

	if (!__atomic_load_n(&has_faults, __ATOMIC_ACQUIRE)) {
		return false;
	}
	(void)pthread_mutex_lock(&faults_lock);
	if (faults[call].is_set) {
		faults[call].n_calls++;
		is_hit = faults[call].n_calls == faults[call].fault.nth ||
			 (faults[call].fault.is_forever &&
			  faults[call].n_calls > faults[call].fault.nth);
		faults[call].n_hits += is_hit ? 1 : 0;
		*ret = faults[call].fault;
	}
	begun_at = __atomic_load_n(&n_clears, __ATOMIC_ACQUIRE);
	(void)pthread_mutex_unlock(&faults_lock);
	if (is_hit && ret->is_deadly) {
		(void)raise(SIGKILL);
	}
	if (is_hit) {
		delay(ret->delay_ms, begun_at);
	}
	return is_hit;
}

/* True when the call has to fail; errno is set then. */
static bool fails(enum sys_call call)
{
	struct sys_fault fault = {0};

	if (!strike(call, &fault) || fault.error == 0) {
		return false;
	}
	errno = fault.error;
	return true;
}

/* False when the call has to fail; a shorter '*size' is what a short fault asks for. */
static bool shortens(enum sys_call call, size_t *size)
{
	struct sys_fault fault = {0};

	if (!strike(call, &fault)) {
		return true;
	}
	if (fault.error != 0) {
		errno = fault.error;
		return false;
	}
	*size = fault.short_size != 0 && fault.short_size < *size ? fault.short_size : *size;
	return true;
}

static int find_call(const char *name, size_t size)
{
	for (int i = 0; i < SYS_N_CALLS; i++) {
		if (strlen(call_names[i]) == size && memcmp(call_names[i], name, size) == 0) {
			return i;
		}
	}
	return -1;
}

bool sys_fault_set(const char *name, struct sys_fault fault)
{
	int call = find_call(name, strlen(name));

	if (call < 0) {
		return false;
	}
	(void)pthread_mutex_lock(&faults_lock);
	faults[call].fault = fault;
	faults[call].n_calls = 0;
	faults[call].n_hits = 0;
	faults[call].is_set = true;
	(void)pthread_mutex_unlock(&faults_lock);
	__atomic_store_n(&has_faults, true, __ATOMIC_RELEASE);
	return true;
}

void sys_fault_forget(void)
{
	(void)pthread_mutex_lock(&faults_lock);
	memset(faults, 0, sizeof faults);
	(void)pthread_mutex_unlock(&faults_lock);
	__atomic_store_n(&has_faults, false, __ATOMIC_RELEASE);
}

void sys_fault_clear(void)
{
	sys_fault_forget();
	(void)__atomic_add_fetch(&n_clears, 1, __ATOMIC_ACQ_REL);
}

uint64_t sys_fault_n_hits(const char *name)
{
	int call = find_call(name, strlen(name));
	uint64_t n_hits;

	(void)pthread_mutex_lock(&faults_lock);
	n_hits = call < 0 ? 0 : faults[call].n_hits;
	(void)pthread_mutex_unlock(&faults_lock);
	return n_hits;
}

static int error_by_name(const char *name)
{
	for (int error = 1; error < 134; error++) {
		const char *known = strerrorname_np(error);

		if (known != NULL && strcmp(known, name) == 0) {
			return error;
		}
	}
	return 0;
}

static bool parse_number(const char *text, uint64_t max, uint64_t *ret)
{
	char *end = NULL;

	errno = 0;
	*ret = strtoull(text, &end, 10);
	return text[0] >= '0' && text[0] <= '9' && *end == '\0' && errno == 0 && *ret > 0 &&
	       *ret <= max;
}

/* "name:nth:EIO|short=n|delay=ms|kill[:once|:ever]" */
static bool parse_one(char *text)
{
	struct sys_fault fault = {0};
	char *rest = text;
	const char *name = strsep(&rest, ":");
	const char *nth = strsep(&rest, ":");
	const char *what = strsep(&rest, ":");
	const char *how_often = strsep(&rest, ":");
	uint64_t number = 0;

	if (nth == NULL || what == NULL || rest != NULL ||
	    !parse_number(nth, UINT64_MAX, &fault.nth)) {
		return false;
	}
	fault.is_forever = how_often != NULL && strcmp(how_often, "ever") == 0;
	if (how_often != NULL && !fault.is_forever && strcmp(how_often, "once") != 0) {
		return false;
	}
	if (strncmp(what, "short=", 6) == 0) {
		if (!parse_number(what + 6, UINT32_MAX, &number)) {
			return false;
		}
		fault.short_size = (uint32_t)number;
	} else if (strncmp(what, "delay=", 6) == 0) {
		if (!parse_number(what + 6, UINT32_MAX, &number)) {
			return false;
		}
		fault.delay_ms = (uint32_t)number;
	} else if (strcmp(what, "kill") == 0) {
		fault.is_deadly = true;
	} else {
		fault.error = error_by_name(what);
		if (fault.error == 0) {
			return false;
		}
	}
	return sys_fault_set(name, fault);
}

bool sys_fault_parse(const char *text)
{
	char *copy = strdup(text);
	char *rest = copy;
	bool is_good = copy != NULL;

	while (is_good && rest != NULL) {
		char *one = strsep(&rest, ";");

		is_good = *one == '\0' || parse_one(one);
	}
	free(copy);
	if (!is_good) {
		sys_fault_clear();
	}
	return is_good;
}
#else
#	define fails(call)          (false)
#	define shortens(call, size) (true)
#endif

ssize_t sys_recvmsg(int fd, struct msghdr *message, int flags)
{
	return fails(SYS_CALL_recvmsg) ? -1 : recvmsg(fd, message, flags);
}

ssize_t sys_sendmsg(int fd, const struct msghdr *message, int flags)
{
	return fails(SYS_CALL_sendmsg) ? -1 : sendmsg(fd, message, flags);
}

int sys_accept(int fd)
{
	return fails(SYS_CALL_accept) ? -1 : accept4(fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
}

int sys_memfd_create(const char *name, unsigned flags)
{
	return fails(SYS_CALL_memfd_create) ? -1 : memfd_create(name, flags);
}

int sys_ftruncate(int fd, uint64_t size)
{
	if (size > INT64_MAX) {
		errno = EFBIG;
		return -1;
	}
	return fails(SYS_CALL_ftruncate) ? -1 : ftruncate(fd, (off_t)size);
}

void *sys_mmap(void *address, size_t size, int protection, int flags, int fd, uint64_t offset)
{
	return fails(SYS_CALL_mmap) ? MAP_FAILED
				    : mmap(address, size, protection, flags, fd, (off_t)offset);
}

int sys_madvise(void *address, size_t size, int advice)
{
	return fails(SYS_CALL_madvise) ? -1 : madvise(address, size, advice);
}

int sys_mlock(const void *address, size_t size)
{
	return fails(SYS_CALL_mlock) ? -1 : mlock(address, size);
}

ssize_t sys_pread(int fd, void *bytes, size_t size, uint64_t offset)
{
	return shortens(SYS_CALL_pread, &size) ? pread(fd, bytes, size, (off_t)offset) : -1;
}

ssize_t sys_write(int fd, const void *bytes, size_t size)
{
	return shortens(SYS_CALL_write, &size) ? write(fd, bytes, size) : -1;
}

int sys_fchmod(int fd, mode_t mode)
{
	return fails(SYS_CALL_fchmod) ? -1 : fchmod(fd, mode);
}

int sys_fcntl(int fd, int command, long argument)
{
	return fails(SYS_CALL_fcntl) ? -1 : fcntl(fd, command, argument);
}

int sys_fcntl_dup(int fd)
{
	return sys_fcntl(fd, F_DUPFD_CLOEXEC, 3);
}

int sys_fstat(int fd, struct stat *ret)
{
	return fails(SYS_CALL_fstat) ? -1 : fstat(fd, ret);
}

int sys_statx(int fd, int flags, struct statx *ret)
{
	return fails(SYS_CALL_statx) ? -1
				     : statx(fd, "", flags | AT_EMPTY_PATH, STATX_BASIC_STATS, ret);
}

int sys_open(const char *path, int flags)
{
	return fails(SYS_CALL_open) ? -1 : open(path, flags | O_CLOEXEC, 0600);
}

void *sys_malloc(size_t size)
{
	return fails(SYS_CALL_malloc) ? NULL : malloc(size);
}

void *sys_calloc(size_t count, size_t size)
{
	return fails(SYS_CALL_malloc) ? NULL : calloc(count, size);
}

void *sys_realloc(void *memory, size_t size)
{
	return fails(SYS_CALL_malloc) ? NULL : realloc(memory, size);
}

char *sys_strdup(const char *text)
{
	return fails(SYS_CALL_malloc) ? NULL : strdup(text);
}

int sys_pthread_create(void *ret_thread, void *(*body)(void *), void *argument)
{
	return fails(SYS_CALL_pthread_create) ? EAGAIN
					      : pthread_create(ret_thread, NULL, body, argument);
}

int sys_getrandom(void *bytes, size_t size)
{
	if (fails(SYS_CALL_getrandom)) {
		return -1;
	}
	return getrandom(bytes, size, 0) == (ssize_t)size ? 0 : -1;
}

int sys_pipe(int ret_ends[2])
{
	return fails(SYS_CALL_pipe) ? -1 : pipe2(ret_ends, O_CLOEXEC | O_NONBLOCK);
}

int sys_timerfd_create(int clock, int flags)
{
	return fails(SYS_CALL_timerfd_create) ? -1 : timerfd_create(clock, flags);
}

int sys_rename(const char *from, const char *to)
{
	return fails(SYS_CALL_rename) ? -1 : rename(from, to);
}

int sys_inotify_add_watch(int fd, const char *path, uint32_t mask)
{
	return fails(SYS_CALL_inotify_add_watch) ? -1 : inotify_add_watch(fd, path, mask);
}

int sys_fsync(int fd)
{
	return fails(SYS_CALL_fsync) ? -1 : fsync(fd);
}

bool sys_open_standard_streams(void)
{
	for (int fd = 0; fd <= 2; fd++) {
		/* The lowest free number: what is below is open. Programs that are run inherit it. */
		if (fcntl(fd, F_GETFD) < 0 &&
		    open("/dev/null", O_RDWR) != fd) { // NOLINT(android-cloexec-open)
			return false;
		}
	}
	return true;
}

int sys_close(int fd)
{
	const bool is_struck = fails(SYS_CALL_close);
	const int error = errno;
	const int result = close(fd); /* a close that fails has closed all the same */

	errno = is_struck ? error : errno;
	return is_struck ? -1 : result;
}
