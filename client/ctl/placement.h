/* SPDX-License-Identifier: Apache-2.0 */
/* --virtual-vram, --donors, --strategy and --granularity beside an allocation, as the library takes
 * them. */
#ifndef CTL_PLACEMENT_H
#define CTL_PLACEMENT_H

#include "ctl.h"

#define PLACEMENT_MAX_DONORS 16

struct placement {
	char texts[1024]; /* the donors, each with its NUL */
	const char *donors[PLACEMENT_MAX_DONORS];
	struct distorch_placement wanted;
};

/* 'allocation' may be NULL. Returns 0, or what was refused, which is printed then. */
int placement_read(struct ctl *ctl, const char *allocation, struct placement *ret);

#endif
