/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a daemon that was killed knew a moment before: who maps which model, and what was said
 * of them. A memfd of fixed records, written in place and parked where the next life finds it,
 * so that a kill at any instruction loses nothing that was answered. Each record carries its
 * own sum; one that is half written does not count. Loop only; writing is plain memory.
 */
#ifndef DAEMON_LEDGER_H
#define DAEMON_LEDGER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct err;
struct ledger;

/* A lease whose bytes a process may map. Zero uuid: none. */
struct ledger_lease {
	uint8_t uuid[16];      /* of the model */
	uint64_t generation;   /* the first that its images are of, of several the last */
	uint64_t bytes;        /* of these, held by who maps them if nobody kept them */
	uint64_t epoch, lease; /* as its client knows it */
	uint64_t start_time;   /* of the process, as /proc/PID/stat has it: with pid, who it is */
	uint32_t pid, uid;
	uint64_t sum;
};

struct ledger_wish {
	uint8_t uuid[16];
	uint64_t ttl_ns, pin_until_ns, keep_until_ns; /* monotonic, of the same boot */
	uint32_t uid;
	int16_t priority;
	uint8_t pin, keep;
	uint64_t reserved[2];
	uint64_t sum;
};

_Static_assert(sizeof(struct ledger_lease) == 72, "layout");
_Static_assert(sizeof(struct ledger_wish) == 72, "layout");

/* How much there is room for; what is not written is no memory. */
struct ledger_room {
	uint32_t n_leases, n_wishes;
	uint32_t text_bytes;
};

/* A new, empty one. 'life' counts the daemons since the first. 0, or a negative code with 'err'. */
int ledger_new(uint64_t life, const struct ledger_room *room, struct ledger **ret, struct err *err);
uint64_t ledger_life(const struct ledger *ledger);

/*
 * One that an earlier life left; hostile input. 'fd' stays the caller's. -WIRE_BAD_FILE when it
 * is not one, is of another layout, or was never completed.
 */
int ledger_open(int fd, struct ledger **ret, struct err *err);
struct ledger *ledger_free(struct ledger *ledger); /* NULL is fine; returns NULL */
int ledger_fd(const struct ledger *ledger);        /* borrowed */

/* 'index' below what was asked for at ledger_new; NULL clears. The sum is filled in here. */
void ledger_set_lease(struct ledger *ledger, uint32_t index, const struct ledger_lease *lease);
void ledger_set_wish(struct ledger *ledger, uint32_t index, const struct ledger_wish *wish);

/* Walk the records that are whole; *cursor = 0 first; false at the end. */
bool ledger_next_lease(const struct ledger *ledger, uint32_t *cursor, struct ledger_lease *ret);
bool ledger_next_wish(const struct ledger *ledger, uint32_t *cursor, struct ledger_wish *ret);

/*
 * One text of at most text_bytes; the old one stays until the new one is whole. False: it is too
 * long. What is read is a copy that the caller frees; NULL: none, or no memory.
 */
bool ledger_set_text(struct ledger *ledger, const char *text, size_t size);
char *ledger_get_text(const struct ledger *ledger, size_t *ret_size);

/* From now on it stands for what is known: before, ledger_open refuses it. */
void ledger_complete(struct ledger *ledger);

/*
 * A start that never got ready may be the fault of what it adopts. Count the start (returns how
 * many in a row did not get ready before it), say which model is looked at, and end the count.
 */
uint32_t ledger_count_start(struct ledger *ledger);
void ledger_uncount_start(struct ledger *ledger); /* it failed in order: by no fault of theirs */
void ledger_suspect(struct ledger *ledger, const uint8_t uuid[16]);
void ledger_get_suspect(const struct ledger *ledger, uint8_t ret_uuid[16]);

#endif
