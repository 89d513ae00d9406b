/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Writer and reader of the tensor table. The writer lays the sections out one behind the
 * other: header, shards, tensors, blocks, sums, strings (the shapes first, then the names).
 * The reader believes nothing before it has compared it with the size of the memory.
 */
#include "proto/table.h"

#include "base/checked.h"
#include "base/err.h"
#include "base/require.h"

#include <string.h>

#include "proto/wire_read.h"

#define TABLE_MAGIC    "DISTTBL"
#define TABLE_LAYOUT   1
#define TABLE_COMPLETE 0x444f4e45U
#define COMPONENT_LAST 3
#define FORMAT_LAST    3

/* ---- sizes ---- */

/* Where the sections begin; each is a multiple of 8 long but the last. */
struct layout {
	uint64_t shards, tensors, blocks, sums, strings, names, end;
};

static struct layout layout_of(const struct table_source *source)
{
	struct layout layout = {.shards = sizeof(struct table_header)};

	/* 32-bit counts of small records: their sum stays far below 2^64. */
	layout.tensors = layout.shards + source->n_shards * sizeof(struct table_shard);
	layout.blocks = layout.tensors + source->n_tensors * sizeof(struct table_tensor);
	layout.sums = layout.blocks + source->n_blocks * sizeof(struct table_block);
	layout.strings = layout.sums + source->n_sums * sizeof(uint64_t);
	layout.names = layout.strings;
	for (uint32_t i = 0; i < source->n_tensors; i++) {
		layout.names += source->tensors[i].rank * sizeof(uint64_t);
	}
	layout.end = layout.names;
	for (uint32_t i = 0; i < source->n_shards; i++) {
		layout.end += source->shards[i].name.size;
	}
	for (uint32_t i = 0; i < source->n_tensors; i++) {
		layout.end += source->tensors[i].name.size;
	}
	for (uint32_t i = 0; i < source->n_blocks; i++) {
		layout.end += source->blocks[i].name.size;
	}
	return layout;
}

uint64_t table_size(const struct table_source *source)
{
	struct layout layout = layout_of(source);

	return layout.end <= UINT32_MAX ? layout.end : 0;
}

/* ---- writing ---- */

struct writer {
	uint8_t *bytes;
	struct layout layout;
	uint64_t shape_at; /* where the next shape goes */
	uint64_t name_at;
};

static uint32_t put_name(struct writer *writer, struct wire_str name)
{
	uint32_t offset = (uint32_t)(writer->name_at - writer->layout.strings);

	wire_utf8_clean((const uint8_t *)name.text, name.size, writer->bytes + writer->name_at);
	writer->name_at += name.size;
	return offset;
}

static void put_shards(struct writer *writer, const struct table_source *source)
{
	struct table_shard *shards = (void *)(writer->bytes + writer->layout.shards);

	for (uint32_t i = 0; i < source->n_shards; i++) {
		const struct table_source_shard *shard = &source->shards[i];

		shards[i] = (struct table_shard){
			.dev = shard->dev,
			.ino = shard->ino,
			.size = shard->size,
			.mtime_ns = shard->mtime_ns,
			.ctime_ns = shard->ctime_ns,
			.image_ino = shard->image_ino,
			.image_size = shard->image_size,
			.first_sum = shard->first_sum,
			.n_sums = shard->n_sums,
			.name_offset = put_name(writer, shard->name),
			.name_size = shard->name.size,
		};
	}
}

static void put_tensors(struct writer *writer, const struct table_source *source)
{
	struct table_tensor *tensors = (void *)(writer->bytes + writer->layout.tensors);

	for (uint32_t i = 0; i < source->n_tensors; i++) {
		const struct table_source_tensor *tensor = &source->tensors[i];
		size_t shape_size = tensor->rank * sizeof(uint64_t);

		tensors[i] = (struct table_tensor){
			.offset = tensor->offset,
			.size = tensor->size,
			.name_offset = put_name(writer, tensor->name),
			.name_size = tensor->name.size,
			.shape_offset = (uint32_t)(writer->shape_at - writer->layout.strings),
			.shard = tensor->shard,
			.block = tensor->block,
			.dtype = tensor->dtype,
			.rank = tensor->rank,
			.encoding = tensor->encoding,
		};
		if (shape_size > 0) {
			memcpy(writer->bytes + writer->shape_at, tensor->shape, shape_size);
		}
		writer->shape_at += shape_size;
	}
}

static void put_blocks(struct writer *writer, const struct table_source *source)
{
	struct table_block *blocks = (void *)(writer->bytes + writer->layout.blocks);

	for (uint32_t i = 0; i < source->n_blocks; i++) {
		const struct table_source_block *block = &source->blocks[i];

		blocks[i] = (struct table_block){
			.size = block->size,
			.name_offset = put_name(writer, block->name),
			.name_size = block->name.size,
			.first_tensor = block->first_tensor,
			.n_tensors = block->n_tensors,
			.component = block->component,
			.is_head = block->is_head,
		};
	}
}

/* Over the header with its own hash as zero, and over what follows, without a copy of it. */
static uint64_t hash_of(const uint8_t *bytes, size_t size, table_hash_fn hash)
{
	struct table_header header;
	uint64_t parts[2];

	memcpy(&header, bytes, sizeof header);
	header.hash = 0;
	parts[0] = hash(&header, sizeof header);
	parts[1] = hash(bytes + sizeof header, size - sizeof header);
	return hash(parts, sizeof parts);
}

void table_write(const struct table_source *source, void *memory, table_hash_fn hash)
{
	struct writer writer = {.bytes = memory, .layout = layout_of(source)};
	struct table_header *header = memory;

	REQUIRE(writer.layout.end <= UINT32_MAX); /* table_size said 0 */
	writer.shape_at = writer.layout.strings;
	writer.name_at = writer.layout.names;
	*header = (struct table_header){
		.magic = TABLE_MAGIC,
		.layout = TABLE_LAYOUT,
		.complete = TABLE_COMPLETE,
		.table_size = writer.layout.end,
		.generation = source->generation,
		.owner_uid = source->owner_uid,
		.format = source->format,
		.n_shards = source->n_shards,
		.n_tensors = source->n_tensors,
		.n_blocks = source->n_blocks,
		.n_sums = source->n_sums,
		.shards_offset = writer.layout.shards,
		.tensors_offset = writer.layout.tensors,
		.blocks_offset = writer.layout.blocks,
		.sums_offset = writer.layout.sums,
		.strings_offset = writer.layout.strings,
		.strings_size = writer.layout.end - writer.layout.strings,
		.sum_range = source->sum_range,
	};
	memcpy(header->model_id, source->model_id, sizeof header->model_id);
	put_shards(&writer, source);
	put_tensors(&writer, source);
	put_blocks(&writer, source);
	if (source->n_sums > 0) {
		memcpy(writer.bytes + writer.layout.sums, source->sums,
		       source->n_sums * sizeof(uint64_t));
	}
	header->hash = hash_of(memory, writer.layout.end, hash);
}

/* ---- reading ---- */

static int refuse(struct err *err, const char *thing, uint32_t index, const char *fault)
{
	return err_set(err, WIRE_BAD_FILE, "table: %s %u %s", thing, index, fault);
}

/* A section of 'count' records begins right behind the one before. */
static bool check_section(uint64_t *at, uint64_t offset, uint64_t count, uint64_t size)
{
	uint64_t bytes;

	return offset == *at && checked_mul(count, size, &bytes) && checked_add(*at, bytes, at);
}

static int check_header(const void *memory, size_t size, table_hash_fn hash, struct err *err)
{
	const struct table_header *header = memory;
	uint64_t at = sizeof *header;

	if (size < sizeof *header || ((uintptr_t)memory & 7) != 0) {
		return err_set(err, WIRE_BAD_FILE, "table: %zu bytes hold no header", size);
	}
	if (memcmp(header->magic, TABLE_MAGIC, sizeof header->magic) != 0 ||
	    header->layout != TABLE_LAYOUT || header->complete != TABLE_COMPLETE) {
		return err_set(err, WIRE_BAD_FILE, "table: no complete table of layout %d",
			       TABLE_LAYOUT);
	}
	if (header->table_size != size || size > UINT32_MAX) {
		return err_set(err, WIRE_BAD_FILE, "table: is %zu bytes, says %llu", size,
			       (unsigned long long)header->table_size);
	}
	if (!check_section(&at, header->shards_offset, header->n_shards,
			   sizeof(struct table_shard)) ||
	    !check_section(&at, header->tensors_offset, header->n_tensors,
			   sizeof(struct table_tensor)) ||
	    !check_section(&at, header->blocks_offset, header->n_blocks,
			   sizeof(struct table_block)) ||
	    !check_section(&at, header->sums_offset, header->n_sums, sizeof(uint64_t)) ||
	    !check_section(&at, header->strings_offset, header->strings_size, 1) || at != size) {
		return err_set(err, WIRE_BAD_FILE, "table: its sections do not fill %zu bytes",
			       size);
	}
	if (header->format == 0 || header->format > FORMAT_LAST) {
		return err_set(err, WIRE_BAD_FILE, "table: format %u is unknown", header->format);
	}
	if (hash && hash_of(memory, size, hash) != header->hash) {
		return err_set(err, WIRE_BAD_FILE, "table: its hash does not match");
	}
	return 0;
}

static bool name_is_good(const struct table *table, uint32_t offset, uint32_t size)
{
	return checked_range(offset, size, table->header->strings_size) &&
	       wire_utf8_is_valid((const uint8_t *)table->strings + offset, size);
}

static int check_shards(const struct table *table, struct err *err)
{
	for (uint32_t i = 0; i < table->header->n_shards; i++) {
		const struct table_shard *shard = &table->shards[i];

		if (!name_is_good(table, shard->name_offset, shard->name_size)) {
			return refuse(err, "shard", i, "has no readable name");
		}
		if (!checked_range(shard->first_sum, shard->n_sums, table->header->n_sums)) {
			return refuse(err, "shard", i, "has sums that are not there");
		}
	}
	return 0;
}

/* Do shape and dtype give just the tensor's bytes, in whole groups a row? */
static bool shape_is_good(const struct table *table, const struct table_tensor *tensor)
{
	const uint64_t *shape;
	uint64_t bits = wire_dtype_bits(tensor->dtype);
	uint32_t group = wire_dtype_group(tensor->dtype);
	bool is_empty = false;
	uint64_t want;

	if (bits == 0 || tensor->encoding != 0 || tensor->shape_offset % 8 != 0 ||
	    !checked_range(tensor->shape_offset, tensor->rank * sizeof *shape,
			   table->header->strings_size)) {
		return false;
	}
	shape = (const void *)(table->strings + tensor->shape_offset);
	if (group > 1 && (tensor->rank == 0 || shape[tensor->rank - 1] % group != 0)) {
		return false;
	}
	for (uint32_t i = 0; i < tensor->rank; i++) {
		is_empty = is_empty || shape[i] == 0;
	}
	if (is_empty) { /* however many the others would make: they are not multiplied */
		return tensor->size == 0;
	}
	for (uint32_t i = 0; i < tensor->rank; i++) {
		uint64_t n_groups = i + 1U == tensor->rank ? shape[i] / group : shape[i];

		if (!checked_mul(bits, n_groups, &bits)) {
			return false;
		}
	}
	return checked_mul(tensor->size, 8, &want) && bits == want;
}

static int check_tensors(const struct table *table, struct err *err)
{
	for (uint32_t i = 0; i < table->header->n_tensors; i++) {
		const struct table_tensor *tensor = &table->tensors[i];

		if (!name_is_good(table, tensor->name_offset, tensor->name_size)) {
			return refuse(err, "tensor", i, "has no readable name");
		}
		if (tensor->shard >= table->header->n_shards ||
		    tensor->block >= table->header->n_blocks) {
			return refuse(err, "tensor", i, "has a shard or block that is not there");
		}
		if (!checked_range(tensor->offset, tensor->size,
				   table->shards[tensor->shard].image_size)) {
			return refuse(err, "tensor", i, "lies outside its image");
		}
		if (!shape_is_good(table, tensor)) {
			return refuse(err, "tensor", i, "has a shape that its bytes do not fit");
		}
	}
	return 0;
}

static int check_blocks(const struct table *table, struct err *err)
{
	for (uint32_t i = 0; i < table->header->n_blocks; i++) {
		const struct table_block *block = &table->blocks[i];

		if (!name_is_good(table, block->name_offset, block->name_size)) {
			return refuse(err, "block", i, "has no readable name");
		}
		if (!checked_range(block->first_tensor, block->n_tensors,
				   table->header->n_tensors)) {
			return refuse(err, "block", i, "has tensors that are not there");
		}
		if (block->component > COMPONENT_LAST || block->is_head > 1) {
			return refuse(err, "block", i, "is of no known kind");
		}
	}
	return 0;
}

int table_open(const void *memory, size_t size, table_hash_fn hash, struct table *ret,
	       struct err *err)
{
	const uint8_t *bytes = memory;
	const struct table_header *header = memory;
	struct table table;
	int error = check_header(memory, size, hash, err);

	if (error) {
		return error;
	}
	table = (struct table){
		.bytes = bytes,
		.header = header,
		.shards = (const void *)(bytes + header->shards_offset),
		.tensors = (const void *)(bytes + header->tensors_offset),
		.blocks = (const void *)(bytes + header->blocks_offset),
		.sums = (const void *)(bytes + header->sums_offset),
		.strings = (const char *)bytes + header->strings_offset,
	};
	error = check_shards(&table, err);
	if (!error) {
		error = check_tensors(&table, err);
	}
	if (!error) {
		error = check_blocks(&table, err);
	}
	if (!error) {
		*ret = table;
	}
	return error;
}

struct wire_str table_tensor_name(const struct table *table, uint32_t tensor)
{
	const struct table_tensor *row = &table->tensors[tensor];

	return (struct wire_str){table->strings + row->name_offset, row->name_size};
}

const uint64_t *table_tensor_shape(const struct table *table, uint32_t tensor)
{
	return (const void *)(table->strings + table->tensors[tensor].shape_offset);
}

struct wire_str table_block_name(const struct table *table, uint32_t block)
{
	const struct table_block *row = &table->blocks[block];

	return (struct wire_str){table->strings + row->name_offset, row->name_size};
}

struct wire_str table_shard_name(const struct table *table, uint32_t shard)
{
	const struct table_shard *row = &table->shards[shard];

	return (struct wire_str){table->strings + row->name_offset, row->name_size};
}

/* ---- segments ---- */

/* Where the next tensor begins, behind 'bytes' of those before it. */
static uint64_t segment_next(uint64_t bytes)
{
	uint64_t at = UINT64_MAX;

	(void)checked_round_up(bytes, TABLE_SEGMENT_ALIGNMENT, &at);
	return at;
}

static uint64_t segment_add(uint64_t bytes, uint64_t tensor_bytes)
{
	uint64_t end = UINT64_MAX;

	(void)checked_add(segment_next(bytes), tensor_bytes, &end);
	return end;
}

uint64_t table_segment_offset(const struct table *table, uint32_t tensor)
{
	const uint32_t block = table->tensors[tensor].block;
	uint64_t bytes = 0;

	for (uint32_t i = table->blocks[block].first_tensor; i < tensor; i++) {
		if (table->tensors[i].block == block) {
			bytes = segment_add(bytes, table->tensors[i].size);
		}
	}
	return segment_next(bytes);
}

void table_segment_offsets(const struct table *table, uint64_t *ret_offsets, uint64_t *ret_bytes)
{
	for (uint32_t i = 0; i < table->header->n_blocks; i++) {
		ret_bytes[i] = 0;
	}
	for (uint32_t i = 0; i < table->header->n_tensors; i++) {
		uint64_t *bytes = &ret_bytes[table->tensors[i].block];

		ret_offsets[i] = segment_next(*bytes);
		*bytes = segment_add(*bytes, table->tensors[i].size);
	}
	for (uint32_t i = 0; i < table->header->n_blocks; i++) {
		ret_bytes[i] = ret_bytes[i] == 0 ? TABLE_SEGMENT_ALIGNMENT : ret_bytes[i];
	}
}

/* ---- dtypes ---- */

struct dtype_row {
	const char *name;
	uint32_t bits;
	uint32_t group;
};

#define DTYPE_ROW(number, word, width, count) [number] = {#word, width, count},
static const struct dtype_row dtypes[] = {WIRE_DTYPES(DTYPE_ROW)};

#define N_DTYPES ((uint16_t)(sizeof dtypes / sizeof *dtypes))

const char *wire_dtype_name(uint16_t dtype)
{
	return dtype < N_DTYPES ? dtypes[dtype].name : NULL;
}

uint32_t wire_dtype_bits(uint16_t dtype)
{
	return dtype < N_DTYPES ? dtypes[dtype].bits : 0;
}

uint32_t wire_dtype_group(uint16_t dtype)
{
	return dtype < N_DTYPES ? dtypes[dtype].group : 0;
}

uint16_t wire_dtype_find(const char *name, size_t size)
{
	for (uint16_t i = 1; i < N_DTYPES; i++) {
		if (strlen(dtypes[i].name) == size && memcmp(dtypes[i].name, name, size) == 0) {
			return i;
		}
	}
	return 0;
}
