/* SPDX-License-Identifier: Apache-2.0 */
/* Devices by the names people give them, and as they are printed. Pure; any thread. */
#ifndef PLAN_NAME_H
#define PLAN_NAME_H

#include <stddef.h>

#include "daemon/plan/plan.h"

#define PLAN_LABEL_SIZE 96

/*
 * The device that 'text' names: "cpu", "ram" and "host" are the host; "cuda:0"; a UUID or its
 * first 8 letters or more; the card's own name, whole, its end or words out of it ("RTX 4090").
 * Case does not matter. Returns those that it may be: bit i for device i.
 */
uint32_t name_find(const struct plan_device *devices, uint32_t n_devices, struct plan_text text);
uint32_t name_count(uint32_t found);
uint32_t name_first(uint32_t found); /* of at least one */

/* "ram", "cuda:0 (RTX 4090, PCI 01:00)". Returns 'buffer'. */
const char *name_label(const struct plan_device *device, char *buffer, size_t buffer_size);

/* "ram, cuda:0, cuda:1" of those in the set, cut where the buffer ends. Returns 'buffer'. */
const char *name_list(const struct plan_device *devices, uint32_t n_devices, uint32_t set,
		      char *buffer, size_t buffer_size);
#define NAME_ALL UINT32_MAX

/* ---- texts that are not terminated ---- */

struct plan_text text_trim(struct plan_text text);     /* without blanks around */
bool text_is(struct plan_text text, const char *word); /* case does not matter */
const char *text_print(struct plan_text text, char *buffer, size_t buffer_size); /* harmless */

#endif
