/* SPDX-License-Identifier: Apache-2.0 */
/* A bar on the terminal while a load or a move is under way; Ctrl-C cancels that at the daemon. */
#ifndef CTL_PROGRESS_H
#define CTL_PROGRESS_H

#include "ctl.h"

struct watcher {
	struct ctl *ctl;
	const char *doing;    /* "Loading" */
	const char *name;     /* of the model, or its path */
	uint64_t first_bytes; /* that were there at the first look with some; 0: none yet */
	uint64_t first_ms;    /* when that was */
	bool has_line;        /* a bar stands on the terminal */
};

/* Around the call. */
void progress_begin(struct watcher *watcher);
void progress_end(const struct watcher *watcher);

/* A distorch_progress_fn; 'user' is the watcher. */
int progress_show(const struct distorch_progress *progress, void *user);

#endif
