/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A plan as it is printed, wherever it was made: here, for devices that were named, or by the
 * daemon.
 */
#ifndef CTL_PLAN_REPORT_H
#define CTL_PLAN_REPORT_H

#include "ctl.h"

#define PLAN_REPORT_MAX_DEVICES  16
#define PLAN_REPORT_MAX_WARNINGS 32

struct plan_report_device {
	const char *name; /* "cpu", "cuda:0": of the JSON */
	char label[96];   /* "ram", "cuda:0 (RTX 4090, PCI 01:00)": for people */
	uint64_t bytes, blocks, total, free_after; /* total: DISTORCH_ABSENT where not known */
};

struct plan_report_block {
	const char *name; /* not terminated */
	uint32_t name_size;
	uint32_t device; /* index into the devices */
	uint64_t bytes, tensors;
};

/* All is borrowed. */
struct plan_report {
	const char *model;   /* for people: as it was said, a path is shown without its folder */
	const char *compute; /* its label */
	uint64_t bytes;
	uint32_t n_devices, n_warnings;
	struct plan_report_device devices[PLAN_REPORT_MAX_DEVICES];
	const struct plan_report_block *blocks;
	uint64_t n_blocks;
	char warnings[PLAN_REPORT_MAX_WARNINGS][512];
	uint64_t moved;    /* bytes a pass */
	uint64_t floor_ns; /* 0: not known */
};

/* As a table, JSON or CSV, as was asked for. Returns an exit status. */
int plan_report_print(struct ctl *ctl, const struct plan_report *report);
/* The same of what the daemon planned, with its devices as they are now. */
int plan_report_answer(struct ctl *ctl, const struct distorch_plan *plan);

#endif
