/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What was said at run time and outlives the machine (state_file.h), while the daemon runs:
 * settings that were saved, and pins and keeps. The file is written on a thread, soon after
 * something changed. After a start without a store the pins wait here for their files: one goes
 * back to the model whose file is the very same (device, inode, size and times), or that its own
 * uid presents with the same size and time of change under the same path or inode. Another
 * content gets none. Loop only, but for saved_open and saved_close, which block.
 */
#ifndef DAEMON_SAVED_H
#define DAEMON_SAVED_H

#include <stdbool.h>
#include <stdint.h>

#include "daemon/load/memory.h"
#include "daemon/state_file.h"

struct config_saved;
struct core_event;
struct daemon;
struct err;
struct saved;

/*
 * Before the loop: take the folder (NULL: there is none, nothing is saved), and read what is in
 * it. What is none is set aside by saved_start, what cannot be read stays and nothing is saved over
 * it; the daemon starts all the same. NULL: no memory.
 */
struct saved *saved_open(const char *folder);
struct saved *saved_close(struct saved *saved); /* NULL is fine; returns NULL */

/* Its settings and what to load at start, for config_load; '*ret' is NULL where nothing is saved.
 * The caller frees by saved_config_free, which takes NULL. False: no memory. */
bool saved_config(const struct saved *saved, struct config_saved **ret);
struct config_saved *saved_config_of(const struct state *state, const char *source); /* or NULL */
void saved_config_free(struct config_saved *config);

/* Once what survived in the store is adopted. 'has_ledger': what was said of that is known. */
void saved_start(struct daemon *daemon, bool has_ledger);
/* Before the loop closes: write what is not written, and wait a while for it. */
void saved_stop(struct daemon *daemon);

/* The step that begins: what its client says himself is not given back over his head. */
void saved_hear(struct daemon *daemon, const struct core_event *event);
/* A wish of the core, by its id, began, changed or ended; inside a step. */
void saved_record_wish(struct daemon *daemon, uint64_t id);
/* The model has another content. */
void saved_record_model(struct daemon *daemon, uint64_t model);

/* Why nothing is saved now, in words; NULL: it is, or nobody named a folder. */
const char *saved_fault(const struct daemon *daemon);

/* ---- settings and the warm list ---- */

/* What was saved last; its wishes are not told. */
const struct state *saved_now(const struct daemon *daemon);
uint64_t saved_n_changes(const struct daemon *daemon);
const char *saved_source(const struct daemon *daemon); /* NULL: no folder */

/* Settings and list as they are to be. owner: saved, until 'done' was called, which frees it */
struct saved_change {
	struct state next;
	const char *key;           /* of the setting that is set, or NULL; the change's own */
	struct host_memory memory; /* as it was when it was saved */
	/* 'err' has a code: it is not saved and nothing has changed. */
	void (*done)(struct daemon *daemon, struct saved_change *change, const struct err *err);
	void (*drop)(struct saved_change *change); /* the daemon ends first; frees it */
};

/* Returns 0; -WIRE_BUSY while another one is saved; -WIRE_UNSUPPORTED where nothing is. On failure
 * the change stays the caller's. */
int saved_change(struct daemon *daemon, struct saved_change *change, struct err *err);

#endif
