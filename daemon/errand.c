/* SPDX-License-Identifier: Apache-2.0 */
/* Threads, and a mailbox of their own for the way back. See errand.h. */
#include "daemon/errand.h"

#include "base/err.h"
#include "base/list.h"
#include "base/os/sys.h"
#include "base/require.h"

#include <pthread.h>
#include <stdlib.h>
#include <uv.h>

#include "daemon/daemon.h"
#include "daemon/load/thread.h"

struct errands {
	struct daemon *daemon;
	struct thread_group group;
	struct mailbox *box;
	uv_poll_t poll;
	pthread_mutex_t lock;
	bool is_stopped; /* under the lock: what comes back is dropped */
};

static void run(void *argument)
{
	struct errand *errand = argument;
	struct errands *errands = errand->errands;
	bool is_stopped;

	errand->work(errand);
	thread_lock(&errands->lock);
	is_stopped = errands->is_stopped;
	if (!is_stopped) {
		mailbox_post(errands->box, &errand->mail);
	}
	thread_unlock(&errands->lock);
	if (is_stopped) {
		errand->drop(errand);
	}
}

static struct errand *take(struct errands *errands)
{
	struct mail *mail = mailbox_take(errands->box);

	return mail == NULL ? NULL : container_of(mail, struct errand, mail);
}

static void hear(struct errands *errands)
{
	struct errand *errand;

	while ((errand = take(errands)) != NULL) {
		errand->done(errands->daemon, errand);
	}
}

static void on_back(uv_poll_t *poll, int status, int events)
{
	(void)status; /* an eventfd has no error of its own */
	(void)events;
	hear(poll->data);
}

int errands_new(struct daemon *daemon, struct err *err)
{
	struct errands *errands = sys_calloc(1, sizeof *errands);

	if (errands == NULL) {
		return err_set(err, WIRE_NO_MEMORY, "no memory for threads that may block");
	}
	errands->box = mailbox_new(err);
	if (errands->box == NULL) {
		free(errands);
		return -err->code;
	}
	errands->daemon = daemon;
	errands->poll.data = errands;
	thread_group_init(&errands->group);
	REQUIRE(pthread_mutex_init(&errands->lock, NULL) == 0);
	daemon->errands = errands; /* freed by daemon_fini from here on */
	if (uv_poll_init(&daemon->loop, &errands->poll, mailbox_fd(errands->box)) < 0 ||
	    uv_poll_start(&errands->poll, UV_READABLE, on_back) < 0) {
		return err_set(err, WIRE_INTERNAL, "cannot watch for the end of what may block");
	}
	return 0;
}

bool errand_start(struct errands *errands, struct errand *errand)
{
	errand->errands = errands;
	return thread_start(&errands->group, "distorch-errand", run, errand);
}

void errands_settle(struct errands *errands, uint64_t limit_ns)
{
	(void)thread_group_wait(&errands->group, limit_ns); /* the rest is heard another time */
	hear(errands);
}

void errands_stop(struct errands *errands, uint64_t limit_ns)
{
	struct errand *errand;

	if (errands == NULL) {
		return;
	}
	thread_lock(&errands->lock);
	errands->is_stopped = true;
	thread_unlock(&errands->lock);
	while ((errand = take(errands)) != NULL) {
		errand->drop(errand);
	}
	(void)thread_group_wait(&errands->group, limit_ns); /* errands_free looks again */
}

struct errands *errands_free(struct errands *errands)
{
	if (errands == NULL) {
		return NULL;
	}
	errands->box = mailbox_free(errands->box);
	if (thread_group_wait(&errands->group, 0)) {
		thread_group_fini(&errands->group);
		REQUIRE(pthread_mutex_destroy(&errands->lock) == 0);
		free(errands);
	}
	return NULL;
}
