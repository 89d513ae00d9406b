/* SPDX-License-Identifier: Apache-2.0 */
/* What persist.c, adoption.c and dispatch_store.c share, and nobody else. */
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
};

const char *persist_name(char *buffer, const char *kind, const struct park *park);

/* adoption.c */
/* What LISTEN_FDS says, if it is for us. */
int inherited_take(struct persist *persist, struct err *err);
void inherited_free(struct persist *persist);
/* Whatever was not adopted is parked no longer. */
void inherited_give_back(struct persist *persist);

#endif
