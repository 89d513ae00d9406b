/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The tensor table of one generation (the table memfd): fixed little-endian records as
 * proto/schema.toml lays them out, made once by the loader, sent to clients and parked for
 * a restart. Pure; any thread. The reader trusts nothing: lengths, offsets, indices, UTF-8
 * and the hash are checked once by table_open; afterwards the getters only index.
 */
#ifndef PROTO_TABLE_H
#define PROTO_TABLE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "proto/gen/wire_gen.h" /* struct table_header, table_shard, table_tensor, table_block */
#include "proto/wire.h"

struct err;

/* What a table is made of; all borrowed. Strings need not be terminated. */
struct table_source {
	const uint8_t *model_id; /* 16 bytes */
	uint64_t generation;
	uint32_t owner_uid;
	uint32_t format;
	uint32_t n_shards, n_tensors, n_blocks, n_sums;
	const struct table_source_shard *shards;
	const struct table_source_tensor *tensors;
	const struct table_source_block *blocks;
	const uint64_t *sums;
	uint64_t sum_range;
};

struct table_source_shard {
	uint64_t dev, ino, size;
	int64_t mtime_ns, ctime_ns;
	uint64_t image_ino, image_size;
	uint32_t first_sum, n_sums;
	struct wire_str name;
};

struct table_source_tensor {
	struct wire_str name;
	const uint64_t *shape;
	uint8_t rank;
	uint8_t encoding;
	uint16_t dtype; /* enum wire_dtype */
	uint32_t shard;
	uint32_t block;
	uint64_t offset, size; /* bytes in the shard's image */
};

struct table_source_block {
	struct wire_str name;
	uint64_t size;
	uint32_t first_tensor, n_tensors;
	uint32_t component;
	bool is_head;
};

/* Bytes the table will take; 0 when it would not fit 4 GiB or a count overflows. */
uint64_t table_size(const struct table_source *source);

/*
 * Write the whole table into 'memory' of table_size() bytes, hash included. 'hash' computes
 * XXH3-64 (given by the caller, so that this room stays pure).
 */
typedef uint64_t (*table_hash_fn)(const void *bytes, size_t size);
void table_write(const struct table_source *source, void *memory, table_hash_fn hash);

/* A checked, borrowed view of a table in memory. */
struct table {
	const uint8_t *bytes;
	const struct table_header *header;
	const struct table_shard *shards;
	const struct table_tensor *tensors;
	const struct table_block *blocks;
	const uint64_t *sums;
	const char *strings;
};

/*
 * Check and index. The memory must be 8-aligned and must not change while 'ret' is used
 * (it is sealed). 'hash' NULL skips the hash. Returns 0 or -WIRE_BAD_FILE.
 */
int table_open(const void *memory, size_t size, table_hash_fn hash, struct table *ret,
	       struct err *err);

struct wire_str table_tensor_name(const struct table *table, uint32_t tensor);
const uint64_t *table_tensor_shape(const struct table *table, uint32_t tensor);
struct wire_str table_block_name(const struct table *table, uint32_t block);
struct wire_str table_shard_name(const struct table *table, uint32_t shard);

/*
 * On a device that is not the host each block is a segment of its own: its tensors lie in it in
 * the table's order, each at the next multiple of TABLE_SEGMENT_ALIGNMENT behind the one before,
 * and it has at least so many bytes. UINT64_MAX: farther than can be counted.
 */
#define TABLE_SEGMENT_ALIGNMENT 256U
/* Where one tensor begins, by a look at those between the first of its block and itself. */
uint64_t table_segment_offset(const struct table *table, uint32_t tensor);
/* Where each begins and how many bytes each block's segment has, by one look at each. */
void table_segment_offsets(const struct table *table, uint64_t *ret_offsets, uint64_t *ret_bytes);

const char *wire_dtype_name(uint16_t dtype);             /* "BF16"; NULL when unknown */
uint32_t wire_dtype_bits(uint16_t dtype);                /* of a group; 0 when unknown */
uint32_t wire_dtype_group(uint16_t dtype);               /* elements; 1 unless quantised */
uint16_t wire_dtype_find(const char *name, size_t size); /* 0 when unknown */

#endif
