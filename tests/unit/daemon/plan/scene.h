/* SPDX-License-Identifier: Apache-2.0 */
/* Devices and models to plan with. */
#ifndef TESTS_PLAN_SCENE_H
#define TESTS_PLAN_SCENE_H

#include <stdio.h>
#include <string.h>

#include "daemon/plan/plan.h"

#define KIB        1024ULL
#define MIB        (1024 * KIB)
#define GIB        (1024 * MIB)
#define MAX_BLOCKS 64

static inline struct plan_text text_of(const char *text)
{
	return (struct plan_text){text, (uint32_t)strlen(text)};
}

static inline struct plan_device device_of(const char *name, uint64_t total)
{
	bool is_host = strcmp(name, "cpu") == 0;

	return (struct plan_device){.name = name,
				    .total = total,
				    .free = total,
				    .granularity = is_host ? 4 * KIB : 2 * MIB,
				    .is_host = is_host,
				    .peers = UINT32_MAX};
}

/* Where the blocks are, as "cuda:0 2, cpu 10". Returns 'buffer'. */
static inline const char *runs_text(const struct plan_request *request, const uint8_t *devices,
				    char *buffer, size_t buffer_size)
{
	size_t used = 0;

	buffer[0] = '\0';
	for (uint32_t i = 0; i < request->n_blocks;) {
		uint32_t end = i;
		int size;

		while (end < request->n_blocks && devices[end] == devices[i]) {
			end++;
		}
		size = snprintf(buffer + used, buffer_size - used, "%s%s %u", i == 0 ? "" : ", ",
				request->devices[devices[i]].name, end - i);
		if (size < 0 || (size_t)size >= buffer_size - used) {
			break;
		}
		used += (size_t)size;
		i = end;
	}
	return buffer;
}

#endif
