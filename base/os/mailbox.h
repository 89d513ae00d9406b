/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Results from worker threads to the loop: many producers, one consumer, in order. A mail
 * belongs to the mailbox from mailbox_post until mailbox_take. The eventfd becomes readable
 * when there is something; it is written only when the box was empty.
 */
#ifndef BASE_OS_MAILBOX_H
#define BASE_OS_MAILBOX_H

struct err;
struct mailbox;

/* Embedded in what is sent; found again with container_of. */
struct mail {
	struct mail *next; /* owner: mailbox */
};

struct mailbox *mailbox_new(struct err *err);      /* NULL with 'err' filled */
struct mailbox *mailbox_free(struct mailbox *box); /* must be empty */

/* Any thread. Cannot fail. */
void mailbox_post(struct mailbox *box, struct mail *mail);

/* The consumer's: the oldest mail or NULL, and then the eventfd is quiet again. */
struct mail *mailbox_take(struct mailbox *box);
/* The consumer stops before the box is empty: make the eventfd readable again. */
void mailbox_wake(struct mailbox *box);
int mailbox_fd(const struct mailbox *box); /* to poll; stays the mailbox's */

#endif
