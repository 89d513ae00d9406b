/* SPDX-License-Identifier: Apache-2.0 */
/* One value of one key: parsed by its row, put into the snapshot, remembered with its source. */
#ifndef DAEMON_CONFIG_VALUE_H
#define DAEMON_CONFIG_VALUE_H

#include <stdbool.h>
#include <stdint.h>

#include "daemon/config.h"

#define CONFIG_MAX_KEY_SIZE 128 /* "section.key.device" and its NUL */
#define CONFIG_MAX_SETTINGS 256 /* as many as the wire lists */

/* Behind a source. */
#define CONFIG_NO_EFFECT ", no effect in this version"
#define CONFIG_LAST_GOOD " (last good)"

struct config_row;

/* owner: config::settings, in the order of the table */
struct config_setting {
	const struct config_row *row;
	char *key;          /* section.key */
	const char *device; /* of an override: the end of 'key'; else NULL */
	char *value;
	char *source;
	struct config_size size; /* of an override */
	uint32_t layer;          /* which file, variable or argument set it */
};

/* Where a value comes from. */
struct config_origin {
	const char *where;  /* in errors: "FILE:LINE" */
	const char *source; /* as config_next shows it */
	uint32_t layer;
	bool is_kept; /* as config_saved::is_kept */
};

/*
 * Parse and store. 'device' NULL: the key itself, else its override. A second value of one
 * layer is refused, except of a list. Returns 0, -WIRE_BAD_ARGUMENT, -WIRE_UNSUPPORTED,
 * -WIRE_NO_MEMORY; errors begin with origin->where.
 */
int config_apply(struct config *config, const struct config_row *row, const char *device,
		 const char *value, const struct config_origin *origin, struct err *err);

void config_setting_fini(struct config_setting *setting);
/* False: no memory. */
bool config_setting_copy(const struct config_setting *from, struct config_setting *ret);

/* base + below; NULL: no memory. The caller frees. */
char *config_join(const char *base, const char *below);

#endif
