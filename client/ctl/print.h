/* SPDX-License-Identifier: Apache-2.0 */
/* What one verb prints and another prints too. Each is in the file of its own verb. */
#ifndef CTL_PRINT_H
#define CTL_PRINT_H

#include "render.h"

#include <stdio.h>

/* verb_devices.c: a line each, with a bar. */
void print_devices(struct ctl *ctl, const struct distorch_device *const *devices, size_t n_devices);
/* verb_devices.c: NULL: 'word' is none of them, or several. */
const struct distorch_device *device_find(const struct distorch_devices *devices, const char *word);
/* verb_devices.c: refuse what device_find does not find, with those that it may be, or all there
 * are. Returns an exit status. */
int device_refuse(struct ctl *ctl, const struct distorch_devices *devices, const char *word);
/* verb_ps.c, verb_admin.c: a table. Each returns an exit status. */
int print_models(struct ctl *ctl, const struct distorch_models *models);
int print_clients(struct ctl *ctl, const struct distorch_clients *clients);
/* verb_load.c: of a placement, to stderr, and as the array "warnings". */
void print_warnings(const struct ctl *ctl, const char *const *warnings, size_t n_warnings);
void add_warnings(cJSON *object, const char *const *warnings, size_t n_warnings);
/* verb_load.c: " Evicted: a (1.0G), b (2.0G).", or nothing. */
void print_evicted(struct ctl *ctl, FILE *out, const struct distorch_outcome *const *evicted,
		   size_t n_evicted);
cJSON *json_of_client(cJSON *object, const struct distorch_client *client);

#endif
