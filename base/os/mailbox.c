/* SPDX-License-Identifier: Apache-2.0 */
/* A locked queue and an eventfd. See mailbox.h. */
#include "base/os/mailbox.h"

#include "base/err.h"
#include "base/os/sys.h"
#include "base/require.h"

#include <errno.h>
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "proto/gen/wire_code.h"

struct mailbox {
	pthread_mutex_t lock;
	struct mail *first;
	struct mail *last;
	int fd;
};

struct mailbox *mailbox_new(struct err *err)
{
	struct mailbox *box = sys_calloc(1, sizeof *box);

	if (box == NULL) {
		(void)err_set(err, WIRE_NO_MEMORY, "no memory for a mailbox");
		return NULL;
	}
	box->fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
	if (box->fd < 0) {
		(void)err_set_sys(err, WIRE_TOO_MANY, errno, "eventfd: %s", strerror(errno));
		free(box);
		return NULL;
	}
	REQUIRE(pthread_mutex_init(&box->lock, NULL) == 0);
	return box;
}

struct mailbox *mailbox_free(struct mailbox *box)
{
	if (box == NULL) {
		return NULL;
	}
	REQUIRE(box->first == NULL);
	REQUIRE(pthread_mutex_destroy(&box->lock) == 0);
	(void)close(box->fd);
	free(box);
	return NULL;
}

void mailbox_wake(struct mailbox *box)
{
	const uint64_t one = 1;

	/* EAGAIN means that it is readable already. */
	while (write(box->fd, &one, sizeof one) < 0 && errno == EINTR) {
	}
}

void mailbox_post(struct mailbox *box, struct mail *mail)
{
	int was_empty;

	mail->next = NULL;
	REQUIRE(pthread_mutex_lock(&box->lock) == 0);
	was_empty = box->first == NULL;
	if (was_empty) {
		box->first = mail;
	} else {
		box->last->next = mail;
	}
	box->last = mail;
	/* Under the lock: the consumer may free the box once it has seen this mail. */
	if (was_empty) {
		mailbox_wake(box);
	}
	REQUIRE(pthread_mutex_unlock(&box->lock) == 0);
}

struct mail *mailbox_take(struct mailbox *box)
{
	struct mail *mail;
	uint64_t count;

	REQUIRE(pthread_mutex_lock(&box->lock) == 0);
	mail = box->first;
	if (mail == NULL) {
		/* Quiet under the lock, so that no later post is swallowed. */
		while (read(box->fd, &count, sizeof count) < 0 && errno == EINTR) {
		}
	} else {
		box->first = mail->next;
		mail->next = NULL;
	}
	REQUIRE(pthread_mutex_unlock(&box->lock) == 0);
	return mail;
}

int mailbox_fd(const struct mailbox *box)
{
	return box->fd;
}
