/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A queue of descriptors for each uid, linked through a table that has a place for every
 * descriptor number, so that queueing needs no memory. See closer.h.
 */
#include "base/os/closer.h"

#include "base/os/sys.h"
#include "base/require.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <time.h>

#define NS_PER_S         1000000000L
#define MAX_FD           (1 << 20) /* the usual fs.nr_open: there are no higher numbers */
#define N_OWNERS         64        /* uids with a queue of their own; further ones share one */
#define MAX_THREADS      64
#define THREADS_AN_OWNER 8
#define IDLE_NS          100000000L /* then a thread that is not needed goes */

struct owner {
	uint32_t uid;
	uint32_t n_pending; /* queued or being closed; 0: the place is free */
	uint32_t n_closing;
	int first, last; /* of the queue, while n_pending > n_closing */
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* of everything below */
static pthread_cond_t wanted = PTHREAD_COND_INITIALIZER;
static struct owner owners[N_OWNERS + 1]; /* the last one is shared */
static int next_fd[MAX_FD];
static uint32_t turn; /* whose turn it is next */
static uint32_t n_threads;
static uint32_t n_idle;
static uint32_t n_in_close;
static bool is_kept; /* the last idle thread stays */

static void closer_lock(void)
{
	REQUIRE(pthread_mutex_lock(&lock) == 0);
}

static void closer_unlock(void)
{
	REQUIRE(pthread_mutex_unlock(&lock) == 0);
}

/* The uid's place, else a free one, else the shared one. */
static struct owner *find_owner(uint32_t uid)
{
	struct owner *unused = &owners[N_OWNERS];

	for (uint32_t i = 0; i < N_OWNERS; i++) {
		if (owners[i].n_pending > 0 && owners[i].uid == uid) {
			return &owners[i];
		}
		if (owners[i].n_pending == 0) {
			unused = &owners[i];
		}
	}
	return unused;
}

static bool has_work(const struct owner *owner)
{
	return owner->n_pending > owner->n_closing && owner->n_closing < THREADS_AN_OWNER;
}

/* Whose descriptor is closed next, in turn; NULL: nothing that may be closed now. */
static struct owner *choose_owner(void)
{
	for (uint32_t i = 0; i <= N_OWNERS; i++) {
		struct owner *owner = &owners[(turn + i) % (N_OWNERS + 1)];

		if (has_work(owner)) {
			return owner;
		}
	}
	return NULL;
}

static void *run(void *unused);

static void start_thread(void)
{
	pthread_t thread;
	sigset_t all;
	sigset_t before;

	if (n_threads == MAX_THREADS) {
		return; /* the next one that comes back goes on */
	}
	/* Signals are the loop's: a thread inherits the mask of who makes it. */
	(void)sigfillset(&all);
	REQUIRE(pthread_sigmask(SIG_SETMASK, &all, &before) == 0);
	if (sys_pthread_create(&thread, run, NULL) == 0) {
		REQUIRE(pthread_detach(thread) == 0);
		n_threads++;
	}
	REQUIRE(pthread_sigmask(SIG_SETMASK, &before, NULL) == 0);
}

/* Somebody has to look at what is left: who is about to close may never come back. */
static void hand_on(void)
{
	if (n_threads > n_idle + n_in_close || choose_owner() == NULL) {
		return; /* one is on its way to look, or there is nothing */
	}
	if (n_idle > 0) {
		(void)pthread_cond_signal(&wanted); /* cannot fail on a valid one */
	} else {
		start_thread();
	}
}

static void close_one(struct owner *owner)
{
	const int fd = owner->first;

	turn = (uint32_t)(owner - owners) + 1;
	owner->first = next_fd[fd];
	owner->n_closing++;
	n_in_close++;
	hand_on();
	closer_unlock();
	(void)sys_close(fd); /* a stranger's: its errors are not ours */
	closer_lock();
	owner->n_closing--;
	n_in_close--;
	owner->n_pending--;
}

/* False: this thread is not needed any more. */
static bool wait_for_work(void)
{
	const bool stays = is_kept && n_idle == 0;
	struct timespec until;
	int error;

	n_idle++;
	if (stays) {
		error = pthread_cond_wait(&wanted, &lock);
	} else {
		/* A clock that is set only changes how long an idle thread stays. */
		REQUIRE(clock_gettime(CLOCK_REALTIME, &until) == 0);
		until.tv_nsec += IDLE_NS;
		until.tv_sec += until.tv_nsec / NS_PER_S;
		until.tv_nsec %= NS_PER_S;
		error = pthread_cond_timedwait(&wanted, &lock, &until);
	}
	n_idle--;
	REQUIRE(error == 0 || error == ETIMEDOUT);
	return error == 0 || choose_owner() != NULL || (is_kept && n_idle == 0);
}

static void *run(void *unused)
{
	struct owner *owner;

	(void)unused;
	(void)pthread_setname_np(pthread_self(), "distorch-close");
	closer_lock();
	do {
		while ((owner = choose_owner()) != NULL) {
			close_one(owner);
		}
	} while (wait_for_work());
	n_threads--;
	closer_unlock();
	return NULL;
}

bool closer_start(void)
{
	bool is_running;

	closer_lock();
	is_kept = true;
	if (n_threads == 0) {
		start_thread();
	}
	is_running = n_threads > 0;
	closer_unlock();
	return is_running;
}

void closer_give(uint32_t uid, int *fds, uint32_t n_fds)
{
	closer_lock();
	for (uint32_t i = 0; i < n_fds; i++) {
		const int fd = fds[i];
		struct owner *owner;

		fds[i] = -1;
		if (fd < 0 || fd >= MAX_FD) {
			continue; /* too high a number stays open: better than to wait here */
		}
		owner = find_owner(uid);
		if (owner->n_pending == owner->n_closing) {
			owner->first = fd;
		} else {
			next_fd[owner->last] = fd;
		}
		owner->last = fd;
		owner->uid = uid;
		owner->n_pending++;
	}
	hand_on();
	closer_unlock();
}

uint32_t closer_count(uint32_t uid)
{
	const struct owner *owner;
	uint32_t n_pending;

	closer_lock();
	owner = find_owner(uid);
	n_pending = owner->n_pending; /* of a free place: none */
	closer_unlock();
	return n_pending;
}
