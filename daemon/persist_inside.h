/* SPDX-License-Identifier: Apache-2.0 */
/* What persist.c, adoption.c, adoption_ledger.c and dispatch_store.c share, and nobody else. */
#ifndef DAEMON_PERSIST_INSIDE_H
#define DAEMON_PERSIST_INSIDE_H

#include "base/list.h"

#include <stdbool.h>
#include <stdint.h>

#include "daemon/ledger.h"
#include "daemon/notify.h"
#include "daemon/store.h"
#include "daemon/testing.h"

/* A descriptor that was handed to us at start. owner: persist::inherited */
struct inherited {
	int fd; /* -1 once taken */
	char name[NOTIFY_NAME_SIZE];
	bool is_kept; /* goes on being parked under its name */
};

/* A lease of an earlier life, as its client knows it. owner: persist::origins */
struct origin {
	struct list link;
	uint64_t lease;           /* the core's id now */
	uint64_t epoch, known_as; /* then */
};

struct persist {
	struct notify *notify;
	struct ledger *ledger; /* NULL: nothing is kept */
	char ledger_name[NOTIFY_NAME_SIZE];
	struct ledger *old_ledger; /* of the earlier life, until adoption is over */
	struct inherited *inherited;
	uint32_t n_inherited;
	struct list parkings; /* struct parking */
	struct list origins;
	uint32_t max_fds; /* that may be parked; 0: none */
	uint32_t n_fds;   /* that are */
	uint64_t probed_ns;
	uint64_t life;                   /* counts the daemons since the first */
	bool has_listener;               /* it was handed to us */
	char listener[NOTIFY_NAME_SIZE]; /* under which it is parked; empty: it is not */
	bool has_begun;
	bool is_ready; /* it serves */
};

/* What is parked of a generation: once, or once a copy. */
enum part { PART_TABLE, PART_INDEX, PART_IMAGE, PART_SOURCE, PART_PLACED, N_PARTS };

const char *persist_name(char *buffer, enum part part, const struct park *park);
uint32_t persist_fds_of(const struct park *park); /* how many are parked with this copy */

/* persist_placed.c */
/* What the generation that the job makes is parked as. False: it lies on no other device. */
bool placed_describe_park(const struct daemon *daemon, const struct job_info *job,
			  struct park *ret);
/* By the names of 'job->park'. False: not all of it was taken in. */
bool placed_store(struct daemon *daemon, const struct job_info *job);

/* adoption.c */
/* What LISTEN_FDS says, if it is for us. */
int inherited_take(struct persist *persist, struct err *err);
void inherited_free(struct persist *persist);
struct inherited *inherited_find(struct persist *persist, const char *name); /* NULL: none */
/* What the old ledger says of the models that were adopted. */
void adoption_take_ledger(struct daemon *daemon);
/* Whatever was not adopted is parked no longer. */
void inherited_give_back(struct persist *persist);

/* adopt_generation.c */
/* What belongs to a table, if it can be trusted; '*bytes' grows by its images'. Without memory the
 * start fails, and the next one gets it all; what is bad is given up with a warning. */
int generation_adopt(struct daemon *daemon, struct inherited *table, const struct park *park,
		     uint64_t *bytes, struct err *err);

#endif
