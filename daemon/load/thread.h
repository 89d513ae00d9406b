/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Detached threads that are counted, so that an owner can wait for all of them with a limit.
 * They have a name, every signal blocked, and low priority for CPU and disk.
 */
#ifndef LOAD_THREAD_H
#define LOAD_THREAD_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

struct thread_group {
	pthread_mutex_t lock;
	pthread_cond_t changed; /* on the monotonic clock */
	uint32_t n_running;
};

void thread_group_init(struct thread_group *group);
void thread_group_fini(struct thread_group *group); /* none may be running */

/* 'name' has static storage, at most 15 characters. False when there is no thread to be had. */
bool thread_start(struct thread_group *group, const char *name, void (*body)(void *argument),
		  void *argument);

/*
 * Run 'body' on this thread and, as far as there are any to be had, on 'n_more' of the group;
 * returns when all have ended. Fewer only make it slower.
 */
void thread_share(struct thread_group *group, const char *name, uint32_t n_more,
		  void (*body)(void *argument), void *argument);

/* Wait until none is running. False when that took longer than 'limit_ns'. */
bool thread_group_wait(struct thread_group *group, uint64_t limit_ns);

/* A condition variable for thread_wait. */
void thread_cond_init(pthread_cond_t *cond);
/* Wait for a signal, at most 'limit_ns' (UINT64_MAX: for ever). 'lock' is held. */
void thread_wait(pthread_cond_t *cond, pthread_mutex_t *lock, uint64_t limit_ns);

void thread_lock(pthread_mutex_t *lock);
void thread_unlock(pthread_mutex_t *lock);

#endif
