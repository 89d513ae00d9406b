/* SPDX-License-Identifier: Apache-2.0 */
/* The index of a model of several files against what is in them. See join.h. */
#ifndef FORMAT_INDEX_H
#define FORMAT_INDEX_H

#include <stdint.h>

#include "daemon/format/join.h"

/* What the index is compared with. */
struct index_subject {
	const struct join_part *parts;
	uint32_t n_parts;
	const struct tensor *tensors;
	uint32_t n_tensors;
	const uint32_t *sorted; /* the tensors by name */
};

/* Returns 0, -WIRE_BAD_FILE or -WIRE_NO_MEMORY. */
int index_check(const struct join_index *index, const struct index_subject *subject,
		struct err *err);

#endif
