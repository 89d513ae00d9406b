/* SPDX-License-Identifier: Apache-2.0 */
/* What persist*.c, adoption*.c, adopt_generation.c and dispatch_store.c share, and nobody else. */
#ifndef DAEMON_PERSIST_INSIDE_H
#define DAEMON_PERSIST_INSIDE_H

#include "base/err.h"
#include "base/list.h"

#include <errno.h>
#include <stdbool.h>
#include <stdint.h>

#include "daemon/ledger.h"
#include "daemon/notify.h"
#include "daemon/store.h"
#include "daemon/testing.h"
#include "proto/gen/wire_code.h"

/* Which open file, as far as whoever keeps it looks. No padding: it is hashed. */
struct source_key {
	uint64_t dev, ino, is_writable;
};

/* A descriptor that was handed to us at start. owner: persist::inherited */
struct inherited {
	int fd; /* -1 once taken */
	char name[NOTIFY_NAME_SIZE];
	bool is_kept;   /* goes on being parked under its name */
	bool is_source; /* a file that a model is read from: 'key' */
	struct source_key key;
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
	struct source *sources; /* uthash, by key; see persist_source.c */
	struct source_use *source_uses;
	uint64_t walk;      /* counts the listings of them */
	uint32_t max_fds;   /* that may be parked; 0: none */
	uint32_t max_files; /* the limit of open files */
	uint32_t n_fds;     /* that are */
	uint64_t probed_ns;
	uint64_t life;                   /* counts the daemons since the first */
	bool has_listener;               /* it was handed to us */
	char listener[NOTIFY_NAME_SIZE]; /* under which it is parked; empty: it is not */
	bool is_counted;                 /* this start, in the old ledger */
	bool has_begun;
	bool is_ready; /* it serves */
};

/* What is parked of a generation: once, or once a copy. */
enum part { PART_TABLE, PART_INDEX, PART_IMAGE, PART_SOURCE, PART_PLACED, N_PARTS };

/* Of all but its files, PART_SOURCE and PART_INDEX. */
const char *persist_name(char *buffer, enum part part, const struct park *park);
/* How many are parked with this copy, its files apart. */
uint32_t persist_fds_of(const struct park *park);
/* The file that says what is in which; NULL: there is none. */
void park_set_index(struct park *park, const struct file *index);

/* persist_source.c: files of generations, by 'park->index'; counted in persist::n_fds */
/* It is parked from now on, unless it was. False: not all of that could be sent. */
bool source_park(struct persist *persist, const struct park *park, enum part part,
		 const struct file *file);
/* Likewise of one that an earlier life parked. False: no memory. */
bool source_take_over(struct persist *persist, const struct park *park, enum part part,
		      struct inherited *inherited);
/* Has the generation files that are parked? */
bool source_is_parked(const struct persist *persist, const struct park *park);
/* This generation needs it no more. */
void source_unpark(struct persist *persist, const struct park *park, enum part part);
/* How many descriptors more it would take to park all files of the source, its index too. */
uint32_t sources_count_new(const struct persist *persist, struct file *file);
/* Its name, once a walk; NULL: it has been listed, or is not parked. */
const char *source_list(struct persist *persist, const struct park *park, enum part part,
			uint64_t walk);
void sources_free(struct persist *persist);
/* Which files an earlier life parked; source_find has them then, preferring one that nobody may
 * write. NULL: none. */
void sources_identify(struct persist *persist);
struct inherited *source_find(struct persist *persist, uint64_t dev, uint64_t ino);
/* The file that says what is in which, by the name of the table or as it was named before that;
 * the rest of '*park' is filled in. NULL: there is none, or none any more ('park->has_index'). */
struct inherited *source_find_index(struct persist *persist, struct park *park, uint32_t n_shards);

/* persist_placed.c */
/* What the generation that the job makes is parked as, and how many descriptors that takes. False: it lies on no other device. */
bool placed_describe_park(const struct daemon *daemon, const struct job_info *job, struct park *ret,
			  uint32_t *ret_n_fds);
/* By the names of 'job->park'. False: not all of it was taken in. */
bool placed_store(struct daemon *daemon, const struct job_info *job);

/* The next start may have what this one lacks. Its own limit of open files is that one's too. */
static inline bool is_passing(const struct err *err)
{
	return (err->code == WIRE_NO_MEMORY && err->sys != EMFILE) || err->sys == ENFILE;
}

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
/* What belongs to a table, if it can be trusted; '*bytes' grows by its images'. */
int generation_adopt(struct daemon *daemon, struct inherited *table, const struct park *park,
		     uint64_t *bytes, struct err *err);

#endif
