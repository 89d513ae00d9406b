/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Blocks on other devices are compared with what they were made of. What is lent for that, the
 * generation's table and images, stays until the last result. A part of execute.c. Loop only.
 */
#ifndef DAEMON_VERIFY_H
#define DAEMON_VERIFY_H

#include <stdint.h>

struct core_segment_view;
struct daemon;
struct extent;
struct model_info;

void verify_init(struct daemon *daemon);
/* No result comes any more. */
void verify_fini(struct daemon *daemon);

/* -> LOAD_VERIFIED, whose 'job' is to be given to verify_end. */
void verify_block(struct daemon *daemon, const struct model_info *model,
		  const struct core_segment_view *segment, struct extent *extent);
/* One of its results has come. 0: it was no block's, or there was no memory to begin. */
void verify_end(struct daemon *daemon, uint64_t id);
/* The copy is to be dropped: what is compared with it is ended, with WIRE_CANCELLED. */
void verify_cancel(struct daemon *daemon, uint64_t segment);

#endif
