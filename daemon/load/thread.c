/* SPDX-License-Identifier: Apache-2.0 */
/* Counted detached threads. See thread.h. */
#include "daemon/load/thread.h"

#include "base/os/sys.h"
#include "base/require.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define NS_PER_S 1000000000ULL
#define NICE     10

/* linux/ioprio.h is newer than some of the systems that this is built on */
#define IOPRIO_WHO_PROCESS 1
#define IOPRIO_LOWEST      ((2 << 13) | 7) /* best effort, last; idle could starve for ever */

struct thread_start {
	struct thread_group *group;
	const char *name;
	void (*body)(void *argument);
	void *argument;
};

void thread_lock(pthread_mutex_t *lock)
{
	REQUIRE(pthread_mutex_lock(lock) == 0);
}

void thread_unlock(pthread_mutex_t *lock)
{
	REQUIRE(pthread_mutex_unlock(lock) == 0);
}

void thread_cond_init(pthread_cond_t *cond)
{
	pthread_condattr_t attributes;

	REQUIRE(pthread_condattr_init(&attributes) == 0);
	REQUIRE(pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC) == 0);
	REQUIRE(pthread_cond_init(cond, &attributes) == 0);
	REQUIRE(pthread_condattr_destroy(&attributes) == 0);
}

void thread_wait(pthread_cond_t *cond, pthread_mutex_t *lock, uint64_t limit_ns)
{
	struct timespec until;
	uint64_t ns;
	int error;

	if (limit_ns == UINT64_MAX) {
		REQUIRE(pthread_cond_wait(cond, lock) == 0);
		return;
	}
	/* The kernel's clock, not base/os/clock.h: a test may have warped that. */
	REQUIRE(clock_gettime(CLOCK_MONOTONIC, &until) == 0);
	ns = (uint64_t)until.tv_nsec + limit_ns % NS_PER_S;
	until.tv_sec += (time_t)(limit_ns / NS_PER_S + ns / NS_PER_S);
	until.tv_nsec = (long)(ns % NS_PER_S);
	error = pthread_cond_timedwait(cond, lock, &until);
	REQUIRE(error == 0 || error == ETIMEDOUT);
}

void thread_group_init(struct thread_group *group)
{
	REQUIRE(pthread_mutex_init(&group->lock, NULL) == 0);
	thread_cond_init(&group->changed);
	group->n_running = 0;
}

void thread_group_fini(struct thread_group *group)
{
	REQUIRE(group->n_running == 0);
	REQUIRE(pthread_cond_destroy(&group->changed) == 0);
	REQUIRE(pthread_mutex_destroy(&group->lock) == 0);
}

static void leave(struct thread_group *group)
{
	thread_lock(&group->lock);
	group->n_running--;
	(void)pthread_cond_broadcast(&group->changed); /* cannot fail on a valid one */
	thread_unlock(&group->lock);
}

static void *run(void *argument)
{
	struct thread_start start = *(struct thread_start *)argument;

	free(argument);
	(void)pthread_setname_np(pthread_self(), start.name);
	/* Lower is always allowed; refused, it only runs at normal priority. */
	(void)setpriority(PRIO_PROCESS, (id_t)syscall(SYS_gettid), NICE);
	(void)syscall(SYS_ioprio_set, IOPRIO_WHO_PROCESS, 0, IOPRIO_LOWEST);
	start.body(start.argument);
	leave(start.group);
	return NULL;
}

bool thread_start(struct thread_group *group, const char *name, void (*body)(void *argument),
		  void *argument)
{
	struct thread_start *start = sys_malloc(sizeof *start);
	pthread_t thread;
	sigset_t all;
	sigset_t before;
	int error;

	if (start == NULL) {
		return false;
	}
	*start = (struct thread_start){.group = group,
				       .name = name,
				       .body = body,
				       .argument = argument};
	thread_lock(&group->lock);
	group->n_running++;
	thread_unlock(&group->lock);
	/* Signals are the loop's: a thread inherits the mask of who makes it. */
	(void)sigfillset(&all);
	(void)sigdelset(&all, SIGBUS); /* for whoever causes it: see base/os/crash.h */
	REQUIRE(pthread_sigmask(SIG_SETMASK, &all, &before) == 0);
	error = sys_pthread_create(&thread, run, start);
	REQUIRE(pthread_sigmask(SIG_SETMASK, &before, NULL) == 0);
	if (error != 0) {
		free(start);
		leave(group);
		return false;
	}
	REQUIRE(pthread_detach(thread) == 0);
	return true;
}

/* On the stack of who waits for it. */
struct share {
	pthread_mutex_t lock;
	pthread_cond_t ended;
	uint32_t n_running;
	void (*body)(void *argument);
	void *argument;
};

static void leave_share(struct share *share)
{
	thread_lock(&share->lock);
	share->n_running--;
	(void)pthread_cond_signal(&share->ended); /* under the lock: it may go right after */
	thread_unlock(&share->lock);
}

static void run_share(void *argument)
{
	struct share *share = argument;

	share->body(share->argument);
	leave_share(share);
}

void thread_share(struct thread_group *group, const char *name, uint32_t n_more,
		  void (*body)(void *argument), void *argument)
{
	struct share share = {.body = body, .argument = argument};
	bool is_had = true;

	REQUIRE(pthread_mutex_init(&share.lock, NULL) == 0);
	thread_cond_init(&share.ended);
	for (uint32_t i = 0; i < n_more && is_had; i++) {
		thread_lock(&share.lock);
		share.n_running++;
		thread_unlock(&share.lock);
		is_had = thread_start(group, name, run_share, &share);
		if (!is_had) {
			leave_share(&share);
		}
	}
	body(argument);
	thread_lock(&share.lock);
	while (share.n_running > 0) {
		thread_wait(&share.ended, &share.lock, UINT64_MAX);
	}
	thread_unlock(&share.lock);
	REQUIRE(pthread_cond_destroy(&share.ended) == 0);
	REQUIRE(pthread_mutex_destroy(&share.lock) == 0);
}

bool thread_group_wait(struct thread_group *group, uint64_t limit_ns)
{
	struct timespec begun;
	struct timespec now;
	bool is_empty;

	REQUIRE(clock_gettime(CLOCK_MONOTONIC, &begun) == 0);
	thread_lock(&group->lock);
	while (group->n_running > 0) {
		uint64_t waited_ns;

		REQUIRE(clock_gettime(CLOCK_MONOTONIC, &now) == 0);
		waited_ns = (uint64_t)(now.tv_sec - begun.tv_sec) * NS_PER_S +
			    (uint64_t)now.tv_nsec - (uint64_t)begun.tv_nsec;
		if (waited_ns >= limit_ns) {
			break;
		}
		thread_wait(&group->changed, &group->lock, limit_ns - waited_ns);
	}
	is_empty = group->n_running == 0;
	thread_unlock(&group->lock);
	return is_empty;
}
