/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The layer of the configuration that was saved at run time (daemon/saved.h), in config.c; and a
 * whole snapshot as text, in config_text.c.
 */
#ifndef DAEMON_CONFIG_SAVED_H
#define DAEMON_CONFIG_SAVED_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct config;
struct err;

struct config_saved {
	const char *source;         /* as config_next shows it: the file */
	const char *const *texts;   /* "section.key=value" */
	const char *const *sources; /* of each, where they have several; else NULL */
	uint32_t n_texts;
	bool is_of_any_version; /* what this one does not understand is left out */
	bool is_kept;           /* a daemon wrote them, maybe one that needed no unit of a size */
};

/* May 'text' stand among them? As config_load; errors begin with 'source'. */
int config_check_saved(const char *source, const char *text, bool is_kept, struct err *err);

/*
 * The same snapshot with 'saved' instead of what it has from that source. No file is read, so
 * a value that is saved no longer stays, unless it is of a list. What environment or command
 * line say stays above it. As config_load.
 */
int config_resave(const struct config *from, const struct config_saved *saved, struct config **ret,
		  struct err *err);

/* What is set, each with its source, so that another process can have the same. The caller frees;
 * NULL: no memory. */
char *config_to_text(const struct config *config, size_t *ret_size);

/* Hostile input. What is no setting of this version is left out. Sources say that they are the last
 * good ones. -WIRE_BAD_FILE, -WIRE_NO_MEMORY. */
int config_from_text(const char *text, size_t size, struct config **ret, struct err *err);

#endif
