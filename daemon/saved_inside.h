/* SPDX-License-Identifier: Apache-2.0 */
/* What saved.c, saved_folder.c and saved_wish.c share, and nobody else. */
#ifndef DAEMON_SAVED_INSIDE_H
#define DAEMON_SAVED_INSIDE_H

#include <stdbool.h>
#include <stdint.h>
#include <uv.h>

#include "daemon/saved.h"
#include "daemon/state_file.h"

#define SAVED_NS_PER_S 1000000000U

struct saved {
	char *folder;       /* NULL: nothing is saved */
	char *source;       /* the path of the file */
	int lock_fd;        /* the folder: nobody else writes there */
	struct state state; /* its wishes wait for their files */
	uint64_t opened_ns; /* when they were read */
	bool is_bad;        /* the file: to be set aside before one is written */
	char notice[512];   /* what was wrong with the file, told once */
	char fault[512];    /* why nothing is saved; empty: it is */
	bool has_no_name;   /* the folder: nobody wants anything saved */
	bool *is_wished;    /* by wish of the core: it stands in the file, or is to */
	bool is_started, is_dirty, is_writing;
	uint64_t written_ns; /* when a write last began; 0: never */
	uv_timer_t timer;
	struct saved_change *change; /* to be written with the next one */
	uint64_t n_changes;
	uint32_t said_uid, said; /* in the running step: by whom, bits of enum core_said */
};

/* What is of no use, once the start is told in the log; the notice says where it went. */
void saved_set_bad_aside(struct saved *saved);

/* What a wish has left once so much time has passed; neither pin nor keep: nothing. */
void saved_let_pass(struct state_wish *wish, uint64_t passed_s);

/* Settings and list of 'from', and the wishes as they stand. False: no memory, nothing is made. */
bool saved_gather(const struct daemon *daemon, const struct state *from, struct state *ret);

/* Those that wait for this model's file. 'is_known': the ledger told what was said of it. */
void saved_settle(struct daemon *daemon, uint64_t model, bool is_known);

/* Have it written, if there is something to write. */
void saved_arrange(struct daemon *daemon);

#endif
