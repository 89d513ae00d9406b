/* SPDX-License-Identifier: Apache-2.0 */
/* See holes.h. */
#include "daemon/holes.h"

#include "daemon/daemon.h"

#define MAX_LOOKS 256U /* at once, at less than a microsecond each; the next ones come next time */

void holes_look(struct daemon *daemon)
{
	const uint32_t n_sparse = store_n_sparse(daemon->store);
	struct core_segment_view view;

	for (uint32_t i = 0; i < n_sparse && i < MAX_LOOKS; i++) {
		uint64_t taken = 0;
		const uint64_t segment = store_next_sparse(daemon->store, &taken);

		if (core_segment_get(daemon->core, segment, &view) && taken > view.bytes) {
			struct core_event event = {.type = EV_GROWN,
						   .grown = {.segment = segment, .bytes = taken}};

			(void)daemon_step(daemon, &event);
		}
	}
}
