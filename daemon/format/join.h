/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Several files that are one model: their tensor maps become one map, and the index that came
 * with them is compared with what is in them. Pure but for memory; any thread.
 *
 * The index is hostile (base/weight_map.h). Every tensor that it names must be in the file that it
 * says, and every file must be named by it. Tensors that it does not name are no fault.
 * Without one the files say themselves that they are parts of one model, which and of how many:
 * GGUF has words for it (split.no, split.count).
 */
#ifndef FORMAT_JOIN_H
#define FORMAT_JOIN_H

#include <stddef.h>
#include <stdint.h>

struct err;
struct tensor_map;

/* A file of the model; names are unique, ascending as bytes are. */
struct join_part {
	const char *name;
	struct tensor_map *map; /* of a single file; taken over when the join is done, NULL then */
};

/* The index; all NULL and 0: there is none. */
struct join_index {
	const char *name; /* for messages */
	const void *bytes;
	size_t size;
};

/*
 * '*ret_map' is the caller's; on failure the parts' maps are still. -WIRE_BAD_FILE,
 * -WIRE_UNSUPPORTED (formats that differ), -WIRE_TOO_LARGE, -WIRE_NO_MEMORY; messages name the
 * tensor and the files.
 */
int join_maps(struct join_part *parts, uint32_t n_parts, const struct join_index *index,
	      struct tensor_map **ret_map, struct err *err);

#endif
