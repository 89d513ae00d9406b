/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a plan costs: 2,000 blocks over 8 devices, by strings of each kind. Prints microseconds,
 * the best and the middle of the runs; asserts nothing. The aim is a millisecond. And the most
 * blocks that there can be, with names as a file makes them that wants to hold up the event loop,
 * beside the same with short ones.
 */
#include "daemon/plan/plan.h"

#include "base/err.h"
#include "base/os/clock.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define N_BLOCKS  2000
#define N_DEVICES 8
#define N_RUNS    201
#define GIB       (1ULL << 30)

static const struct {
	const char *what;
	const char *allocation; /* NULL: virtual VRAM */
} rows[] = {
	{"sizes", "cuda:0,20gb;cuda:1,20gb;cuda:2,20gb;cuda:3,20gb;cuda:4,20gb;cuda:5,20gb;"
		  "cuda:6,20gb;cpu,*"},
	{"shares", "cuda:0,1%;cuda:1,1%;cuda:2,1%;cuda:3,1%;cuda:4,1%;cuda:5,1%;cuda:6,1%;cpu,1%"},
	{"fractions", "cuda:0,0.8;cuda:1,0.8;cuda:2,0.8;cuda:3,0.8;cuda:4,0.8;cuda:5,0.8;"
		      "cuda:6,0.8;cpu,*"},
	{"auto, spread", "auto"},
	{"over 90 %, with the least virtual VRAM", "cuda:0,23gb;cpu,*"},
	{"virtual VRAM, spread", NULL},
};

static int compare(const void *a, const void *b)
{
	const uint64_t *x = a;
	const uint64_t *y = b;

	return (*x > *y) - (*x < *y);
}

static int measure(struct plan_request *request, size_t row)
{
	static uint8_t devices[N_BLOCKS];
	uint64_t runs[N_RUNS];
	struct plan_summary summary;
	struct err err = {0};

	request->virtual_vram = rows[row].allocation == NULL ? 115 * GIB : 0;
	request->allocation = (struct plan_text){0};
	if (rows[row].allocation != NULL) {
		request->allocation = (struct plan_text){rows[row].allocation,
							 (uint32_t)strlen(rows[row].allocation)};
	}
	for (size_t i = 0; i < N_RUNS; i++) {
		uint64_t begun = clock_mono_ns();

		if (plan_make(request, devices, &summary, &err) < 0) {
			(void)fprintf(stderr, "%s: %s\n", rows[row].what, err.text);
			return 1;
		}
		runs[i] = clock_mono_ns() - begun;
	}
	qsort(runs, N_RUNS, sizeof runs[0], compare);
	(void)printf("  %-40s %7.1f us best %7.1f us median\n", rows[row].what,
		     (double)runs[0] / 1e3, (double)runs[N_RUNS / 2] / 1e3);
	return 0;
}

/* One plan, which the loop would make, of a text encoder's blocks whose names have so many letters. */
static int measure_names(uint32_t n_letters)
{
	static const char allocation[] = "sim:0,31kb;cpu,*";
	const struct plan_device devices[] =
		{{.name = "cpu", .total = 64 * GIB, .free = 64 * GIB, .is_host = true},
		 {.name = "sim:0", .total = GIB, .free = GIB, .granularity = 2 << 20}};
	struct plan_block *blocks = calloc(PLAN_MAX_BLOCKS, sizeof *blocks);
	uint8_t *places = calloc(PLAN_MAX_BLOCKS, 1);
	char *name = malloc(n_letters);
	struct plan_request request = {.blocks = blocks,
				       .n_blocks = PLAN_MAX_BLOCKS,
				       .devices = devices,
				       .n_devices = 2,
				       .allocation = {allocation, sizeof allocation - 1}};
	struct plan_summary summary;
	struct err err = {0};
	uint64_t begun;
	int code = -1;

	if (blocks != NULL && places != NULL && name != NULL) {
		memset(name, 'e', n_letters);
		for (uint32_t i = 0; i < PLAN_MAX_BLOCKS; i++) {
			blocks[i] = (struct plan_block){.bytes = 1024,
							.name = name,
							.name_size = n_letters,
							.component = PLAN_CLIP};
		}
		begun = clock_mono_ns();
		code = plan_make(&request, places, &summary, &err);
		(void)printf("  %u blocks, names of %4u letters %27.1f ms\n", PLAN_MAX_BLOCKS,
			     n_letters, (double)(clock_mono_ns() - begun) / 1e6);
	}
	free(name);
	free(places);
	free(blocks);
	return code < 0 ? 1 : 0;
}

int main(void)
{
	static struct plan_block blocks[N_BLOCKS];
	static struct plan_device devices[N_DEVICES];
	static char names[N_DEVICES][16];
	struct plan_request request = {.blocks = blocks,
				       .n_blocks = N_BLOCKS,
				       .devices = devices,
				       .n_devices = N_DEVICES};
	int status = 0;

	for (uint32_t i = 0; i < N_BLOCKS; i++) {
		blocks[i] = (struct plan_block){.bytes = (64 + i % 7) << 20,
						.name = "blocks.7",
						.name_size = 8,
						.is_head = i == 0};
	}
	for (uint32_t i = 0; i < N_DEVICES; i++) {
		(void)snprintf(names[i], sizeof names[i], i == 0 ? "cpu" : "cuda:%u", i - 1);
		devices[i] = (struct plan_device){.name = names[i],
						  .total = (i == 0 ? 512 : 24) * GIB,
						  .free = (i == 0 ? 512 : 24) * GIB,
						  .granularity = 2 << 20,
						  .is_host = i == 0,
						  .peers = UINT32_MAX};
	}
	(void)printf("planning %d blocks over %d devices (aim: 1000 us)\n", N_BLOCKS, N_DEVICES);
	for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
		status |= measure(&request, i);
	}
	return status | measure_names(20) | measure_names(2900);
}
