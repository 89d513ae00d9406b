/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Users and groups that the configuration names: one that somebody wrote must exist, or a typo would
 * open or close the door unseen. A directory may be asked: all of it may block. Any thread.
 */
#ifndef DAEMON_NAMES_H
#define DAEMON_NAMES_H

#include <stdint.h>

struct config;
struct err;

/* Returns 0; -WIRE_BAD_ARGUMENT: there is none, or it cannot be known now; -WIRE_NO_MEMORY. */
int names_check(const struct config *config, struct err *err);
/* The same of one value; of another key it is good. */
int names_check_value(const char *source, const char *key, const char *value, struct err *err);

/* UINT32_MAX: it is not there, or cannot be known. */
uint32_t names_find_group(const char *name);
uint32_t names_find_user(const char *name);

#endif
