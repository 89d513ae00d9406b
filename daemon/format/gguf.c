/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The file: magic, version, two counts, keys with values, tensors' descriptions, then, aligned,
 * the tensors' bytes, each padded to the alignment. The header does not say how long it is, so
 * a probe that meets the end of its bytes asks for more. It is walked twice, as safetensors'
 * is: the first walk checks each entry and counts, the second stores. Offsets must be what the
 * sizes before them add up to, as ggml demands; overlaps, holes and falling offsets have no
 * other way in. All numbers go through base/checked.h. See format.h, gguf_scan.h.
 */
#include "daemon/format/gguf.h"

#include "base/checked.h"
#include "base/err.h"
#include "base/utf8.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/format/blocks.h"
#include "daemon/format/dtype.h"
#include "daemon/format/format.h"
#include "daemon/format/gguf_scan.h"
#include "daemon/format/order.h"
#include "daemon/format/shelf.h"
#include "daemon/format/show.h"
#include "proto/gen/wire_code.h"

#define MAGIC_SIZE        4U
#define MAX_KEYS          65536U
#define MAX_KEY_SIZE      65535U /* of spec */
#define MAX_DIMS          4U
#define LEAST_KEY_BYTES   13U /* length, type, one byte of value */
#define LEAST_TENSOR      32U /* length, n_dims, one dimension, type, offset */
#define DEFAULT_ALIGNMENT 32U
#define MAX_ALIGNMENT     (1U << 20)
#define GROWTH            4U

/* What the first walk found. */
struct tally {
	uint64_t n_tensors, n_keys;
	uint64_t n_dims;
	uint64_t name_bytes;
	uint32_t alignment;
	uint16_t split_no, split_count;
	uint64_t next;       /* in the data: where the next tensor has to begin */
	uint64_t end;        /* in the data: where the last one ends, without padding */
	uint64_t header_end; /* in the file */
};

/* Where the second walk stores. */
struct store {
	struct shelf shelf;
	struct gguf_string *keys;
};

/* One description of a tensor, as it was read. */
struct entry {
	struct gguf_string name;
	uint32_t n_dims;
	uint64_t dims[MAX_DIMS]; /* the fastest first */
	uint16_t dtype;
	uint64_t offset; /* in the data */
	uint64_t size;
	uint64_t padded;
};

bool gguf_is_likely(const void *first, size_t size)
{
	return size >= MAGIC_SIZE &&
	       (memcmp(first, "GGUF", MAGIC_SIZE) == 0 || memcmp(first, "FUGG", MAGIC_SIZE) == 0);
}

/* ---- types ---- */

/* ggml's type numbers. A retired one has a name and no dtype. */
static const struct {
	uint16_t dtype;
	const char *retired;
} types[] = {
	[0] = {WIRE_DTYPE_F32, NULL},
	[1] = {WIRE_DTYPE_F16, NULL},
	[2] = {WIRE_DTYPE_Q4_0, NULL},
	[3] = {WIRE_DTYPE_Q4_1, NULL},
	[4] = {0, "Q4_2"},
	[5] = {0, "Q4_3"},
	[6] = {WIRE_DTYPE_Q5_0, NULL},
	[7] = {WIRE_DTYPE_Q5_1, NULL},
	[8] = {WIRE_DTYPE_Q8_0, NULL},
	[9] = {WIRE_DTYPE_Q8_1, NULL},
	[10] = {WIRE_DTYPE_Q2_K, NULL},
	[11] = {WIRE_DTYPE_Q3_K, NULL},
	[12] = {WIRE_DTYPE_Q4_K, NULL},
	[13] = {WIRE_DTYPE_Q5_K, NULL},
	[14] = {WIRE_DTYPE_Q6_K, NULL},
	[15] = {WIRE_DTYPE_Q8_K, NULL},
	[16] = {WIRE_DTYPE_IQ2_XXS, NULL},
	[17] = {WIRE_DTYPE_IQ2_XS, NULL},
	[18] = {WIRE_DTYPE_IQ3_XXS, NULL},
	[19] = {WIRE_DTYPE_IQ1_S, NULL},
	[20] = {WIRE_DTYPE_IQ4_NL, NULL},
	[21] = {WIRE_DTYPE_IQ3_S, NULL},
	[22] = {WIRE_DTYPE_IQ2_S, NULL},
	[23] = {WIRE_DTYPE_IQ4_XS, NULL},
	[24] = {WIRE_DTYPE_I8, NULL},
	[25] = {WIRE_DTYPE_I16, NULL},
	[26] = {WIRE_DTYPE_I32, NULL},
	[27] = {WIRE_DTYPE_I64, NULL},
	[28] = {WIRE_DTYPE_F64, NULL},
	[29] = {WIRE_DTYPE_IQ1_M, NULL},
	[30] = {WIRE_DTYPE_BF16, NULL},
	[31] = {0, "Q4_0_4_4"},
	[32] = {0, "Q4_0_4_8"},
	[33] = {0, "Q4_0_8_8"},
	[34] = {WIRE_DTYPE_TQ1_0, NULL},
	[35] = {WIRE_DTYPE_TQ2_0, NULL},
	[36] = {0, "IQ4_NL_4_4"},
	[37] = {0, "IQ4_NL_4_8"},
	[38] = {0, "IQ4_NL_8_8"},
	[39] = {WIRE_DTYPE_MXFP4, NULL},
	[40] = {WIRE_DTYPE_NVFP4, NULL},
	[41] = {WIRE_DTYPE_Q1_0, NULL},
};

static int read_type(struct gguf_cursor *cursor, struct entry *entry)
{
	const size_t at = cursor->at;
	uint32_t type = 0;
	int code = gguf_read_u32(cursor, "a type", &type);

	if (code < 0) {
		return code;
	}
	if (type >= sizeof types / sizeof types[0]) {
		return gguf_fail(cursor, at, WIRE_UNSUPPORTED,
				 "type %u is not known to this version", type);
	}
	if (types[type].dtype == 0) {
		return gguf_fail(cursor, at, WIRE_UNSUPPORTED,
				 "type %u (%s) was retired: quantise the model again", type,
				 types[type].retired);
	}
	entry->dtype = types[type].dtype;
	return 0;
}

/* ---- names ---- */

static int read_name(struct gguf_cursor *cursor, const char *what, uint64_t max_size,
		     struct gguf_string *ret)
{
	struct gguf_string name = {0};
	int code = gguf_read_string(cursor, what, max_size, &name);

	if (code == 0 && !utf8_is_name(name.text, name.size)) {
		code = gguf_fail(cursor, name.at, WIRE_BAD_FILE,
				 "%s that is not UTF-8 or holds NUL", what);
	}
	if (code == 0) {
		*ret = name;
	}
	return code;
}

/* ---- one tensor ---- */

static int read_dims(struct gguf_cursor *cursor, struct entry *entry)
{
	size_t at = cursor->at;
	int code = gguf_read_u32(cursor, "a number of dimensions", &entry->n_dims);

	if (code == 0 && (entry->n_dims == 0 || entry->n_dims > MAX_DIMS)) {
		return gguf_fail(cursor, at, WIRE_BAD_FILE, "%u dimensions: 1 to 4 are possible",
				 entry->n_dims);
	}
	for (uint32_t i = 0; i < entry->n_dims && code == 0; i++) {
		at = cursor->at;
		code = gguf_read_u64(cursor, "a dimension", &entry->dims[i]);
		if (code == 0 && (entry->dims[i] == 0 || entry->dims[i] > INT64_MAX)) {
			return gguf_fail(cursor, at, WIRE_BAD_FILE,
					 "a dimension of %lld: it must be positive",
					 (long long)entry->dims[i]);
		}
	}
	return code;
}

/* How many bytes are so many elements, with and without padding? */
static int measure(struct gguf_cursor *cursor, uint32_t alignment, struct entry *entry)
{
	const uint32_t group = dtype_group(entry->dtype);
	uint64_t n_elements = 1;

	for (uint32_t i = 0; i < entry->n_dims; i++) {
		if (!checked_mul(n_elements, entry->dims[i], &n_elements)) {
			return gguf_fail(cursor, entry->name.at, WIRE_BAD_FILE,
					 "a shape of more than 2^64 elements");
		}
	}
	if (entry->dims[0] % group != 0) {
		return gguf_fail(cursor, entry->name.at, WIRE_BAD_FILE,
				 "its rows of %llu elements are no multiple of %s's %u",
				 (unsigned long long)entry->dims[0], dtype_name(entry->dtype),
				 group);
	}
	if (!checked_mul(entry->dims[0] / group, dtype_bits(entry->dtype) / 8, &entry->size)) {
		return gguf_fail(cursor, entry->name.at, WIRE_BAD_FILE,
				 "a row of more than 2^64 bytes");
	}
	for (uint32_t i = 1; i < entry->n_dims; i++) {
		if (!checked_mul(entry->size, entry->dims[i], &entry->size)) {
			return gguf_fail(cursor, entry->name.at, WIRE_BAD_FILE,
					 "a shape of more than 2^64 bytes");
		}
	}
	if (!checked_round_up(entry->size, alignment, &entry->padded)) {
		return gguf_fail(cursor, entry->name.at, WIRE_BAD_FILE,
				 "its padded size is more than 2^64 bytes");
	}
	return 0;
}

static int read_offset(struct gguf_cursor *cursor, const struct tally *tally, struct entry *entry)
{
	const size_t at = cursor->at;
	int code = gguf_read_u64(cursor, "an offset", &entry->offset);

	if (code < 0 || entry->offset == tally->next) {
		return code;
	}
	if (entry->offset % tally->alignment != 0) {
		return gguf_fail(cursor, at, WIRE_BAD_FILE,
				 "its offset %llu is not aligned to %u bytes",
				 (unsigned long long)entry->offset, tally->alignment);
	}
	return gguf_fail(cursor, at, WIRE_BAD_FILE,
			 entry->offset < tally->next
				 ? "its offset %llu overlaps the tensor before, which ends at %llu"
				 : "its offset %llu leaves a hole after %llu",
			 (unsigned long long)entry->offset, (unsigned long long)tally->next);
}

/* The description behind the name. */
static int read_entry(struct gguf_cursor *cursor, const struct tally *tally, struct entry *entry)
{
	int code = read_dims(cursor, entry);

	if (code == 0) {
		code = read_type(cursor, entry);
	}
	if (code == 0) {
		code = read_offset(cursor, tally, entry);
	}
	return code == 0 ? measure(cursor, tally->alignment, entry) : code;
}

static int count_entry(struct gguf_cursor *cursor, const struct entry *entry, struct tally *tally)
{
	/* The first two are bounded by the bytes of the header. */
	(void)checked_add(tally->n_dims, entry->n_dims, &tally->n_dims);
	(void)checked_add(tally->name_bytes, entry->name.size, &tally->name_bytes);
	if (!checked_add(entry->offset, entry->size, &tally->end) ||
	    !checked_add(entry->offset, entry->padded, &tally->next)) {
		return gguf_fail(cursor, entry->name.at, WIRE_BAD_FILE,
				 "the tensors up to this one take more than 2^64 bytes");
	}
	return 0;
}

static void store_entry(const struct entry *entry, struct shelf *shelf)
{
	struct tensor *tensor = shelf->tensors++;

	*tensor = (struct tensor){.name = shelf->names,
				  .name_size = (uint32_t)entry->name.size,
				  .dtype = entry->dtype,
				  .rank = (uint8_t)entry->n_dims,
				  .shape = shelf->shapes,
				  .size = entry->size};
	/* The first walk saw that the tensors lie within the file. */
	(void)checked_add(shelf->data_offset, entry->offset, &tensor->offset);
	for (uint32_t i = entry->n_dims; i > 0; i--) {
		*shelf->shapes++ = entry->dims[i - 1];
	}
	memcpy(shelf->names, entry->name.text, entry->name.size);
	shelf->names += entry->name.size;
}

static int read_tensor(struct gguf_cursor *cursor, struct tally *tally, struct store *store)
{
	struct entry entry = {0};
	char shown[SHOW_NAME_SIZE];
	int code = read_name(cursor, "a tensor's name", FORMAT_MAX_NAME, &entry.name);

	if (code < 0) {
		return code;
	}
	code = read_entry(cursor, tally, &entry);
	if (code == 0) {
		code = count_entry(cursor, &entry, tally);
	}
	if (code < 0) {
		(void)err_wrap(cursor->err, "tensor \"%s\"",
			       show_name(entry.name.text, entry.name.size, shown));
	} else if (store != NULL) {
		store_entry(&entry, &store->shelf);
	}
	return code;
}

/* ---- keys ---- */

static int read_alignment(struct gguf_cursor *cursor, uint32_t type, uint32_t *ret)
{
	const size_t at = cursor->at;
	uint32_t alignment = 0;
	int code;

	if (type != GGUF_TYPE_UINT32) {
		return gguf_fail(cursor, at, WIRE_BAD_FILE, "it is of type %u, not uint32", type);
	}
	code = gguf_read_u32(cursor, "a value", &alignment);
	if (code < 0) {
		return code;
	}
	if (alignment == 0 || (alignment & (alignment - 1)) != 0 || alignment > MAX_ALIGNMENT) {
		return gguf_fail(cursor, at, WIRE_BAD_FILE,
				 "%u is no power of two from 1 to 1,048,576", alignment);
	}
	*ret = alignment;
	return 0;
}

static bool is_key(const struct gguf_string *key, const char *name)
{
	return key->size == strlen(name) && memcmp(key->text, name, key->size) == 0;
}

/* One of another type tells nothing: nobody who writes parts has it so. */
static int read_split(struct gguf_cursor *cursor, uint32_t type, uint16_t *ret)
{
	const uint8_t *bytes = cursor->bytes + cursor->at;
	int code = gguf_skip_value(cursor, type);

	if (code == 0 && type == GGUF_TYPE_UINT16) {
		*ret = (uint16_t)(bytes[0] | bytes[1] << 8);
	}
	return code;
}

/* The value of one that says something to us, or of any other. */
static int read_value(struct gguf_cursor *cursor, const struct gguf_string *key, uint32_t type,
		      struct tally *tally)
{
	if (is_key(key, "general.alignment")) {
		return read_alignment(cursor, type, &tally->alignment);
	}
	if (is_key(key, "split.no")) {
		return read_split(cursor, type, &tally->split_no);
	}
	if (is_key(key, "split.count")) {
		return read_split(cursor, type, &tally->split_count);
	}
	return gguf_skip_value(cursor, type);
}

static int read_key(struct gguf_cursor *cursor, struct tally *tally, struct gguf_string *ret)
{
	struct gguf_string key = {0};
	char shown[SHOW_NAME_SIZE];
	uint32_t type = 0;
	int code = read_name(cursor, "a key", MAX_KEY_SIZE, &key);

	if (code < 0) {
		return code;
	}
	code = gguf_read_u32(cursor, "a value's type", &type);
	if (code == 0) {
		code = read_value(cursor, &key, type, tally);
	}
	if (code < 0) {
		(void)err_wrap(cursor->err, "key \"%s\"", show_name(key.text, key.size, shown));
		return code;
	}
	*ret = key;
	return 0;
}

/* ---- the whole header ---- */

static int refuse_big_endian(struct err *err)
{
	return err_set(err, WIRE_UNSUPPORTED,
		       "the file is big-endian GGUF: only little-endian files are read; convert "
		       "the model again");
}

static int read_start(struct gguf_cursor *cursor)
{
	uint32_t version = 0;
	int code;

	if (!gguf_is_likely(cursor->bytes, cursor->size)) {
		return err_set(cursor->err, WIRE_UNSUPPORTED,
			       "not a GGUF file: it does not begin with \"GGUF\"");
	}
	if (memcmp(cursor->bytes, "FUGG", MAGIC_SIZE) == 0) {
		return refuse_big_endian(cursor->err);
	}
	cursor->at = MAGIC_SIZE;
	code = gguf_read_u32(cursor, "a version", &version);
	if (code < 0 || version == 2 || version == 3) {
		return code;
	}
	if (version != 0 && (version & 0xffffU) == 0) {
		return refuse_big_endian(cursor->err);
	}
	return gguf_fail(cursor, MAGIC_SIZE, WIRE_UNSUPPORTED,
			 version == 1
				 ? "GGUF version %u is too old (2 and 3 are read): convert the "
				   "model again"
				 : "GGUF version %u is not known (2 and 3 are read)",
			 version);
}

/* 'store' NULL: only check and count. Two walks over the same bytes find the same. */
static int walk(struct gguf_cursor *cursor, struct tally *tally, struct store *store)
{
	int code = read_start(cursor);

	*tally = (struct tally){.alignment = DEFAULT_ALIGNMENT};
	if (code == 0) {
		code = gguf_read_count(cursor, "tensors", LEAST_TENSOR, FORMAT_MAX_TENSORS,
				       &tally->n_tensors);
	}
	if (code == 0) {
		code = gguf_read_count(cursor, "keys", LEAST_KEY_BYTES, MAX_KEYS, &tally->n_keys);
	}
	for (uint64_t i = 0; i < tally->n_keys && code == 0; i++) {
		struct gguf_string key = {0};

		code = read_key(cursor, tally, store == NULL ? &key : &store->keys[i]);
	}
	for (uint64_t i = 0; i < tally->n_tensors && code == 0; i++) {
		code = read_tensor(cursor, tally, store);
	}
	tally->header_end = cursor->at;
	return code;
}

/* Do the tensors end within the file? Gives where the data begin. */
static int check_file_size(const struct tally *tally, uint64_t file_size, uint64_t *ret_data,
			   struct err *err)
{
	uint64_t data;
	uint64_t end;

	/* Both are far below 2^64; what the file only claims is the end of the tensors. */
	if (!checked_round_up(tally->header_end, tally->alignment, &data) ||
	    !checked_add(data, tally->end, &end)) {
		end = UINT64_MAX;
		data = end;
	}
	if (tally->n_tensors == 0 && data > file_size) {
		data = file_size; /* no padding for nothing */
		end = data;
	}
	if (end > file_size) {
		return show_incomplete(file_size, end, err);
	}
	*ret_data = data;
	return 0;
}

int gguf_probe(const void *first, size_t size, uint64_t file_size, uint64_t *ret_header_bytes,
	       struct err *err)
{
	struct err found = {0};
	struct gguf_cursor cursor = {.bytes = first,
				     .size = size,
				     .file_size = file_size,
				     .err = &found};
	struct tally tally;
	uint64_t wanted;
	uint64_t data;
	int code = walk(&cursor, &tally, NULL);

	if (code == 0) {
		code = check_file_size(&tally, file_size, &data, &found);
	}
	if (code == 0) {
		*ret_header_bytes = tally.header_end;
		return 0;
	}
	if (cursor.is_past_end && size < FORMAT_MAX_HEADER) {
		wanted = FORMAT_MAX_HEADER;
		(void)checked_mul(size, GROWTH, &wanted);
		wanted = wanted < FORMAT_MAX_HEADER ? wanted : FORMAT_MAX_HEADER;
		*ret_header_bytes = wanted < file_size ? wanted : file_size;
		return 0;
	}
	if (cursor.is_past_end) {
		code = err_set(&found, WIRE_BAD_FILE,
			       "a GGUF header of more than 100,000,000 bytes");
	}
	if (err != NULL) {
		*err = found;
	}
	return code;
}

/* ---- the map ---- */

static struct order_name name_of_key(const void *context, uint32_t item)
{
	const struct gguf_string *keys = context;

	return (struct order_name){keys[item].text, (uint32_t)keys[item].size};
}

/* No two keys and no two tensors have one name. */
static int check_names(const struct tensor_map *map, const struct gguf_string *keys,
		       uint32_t n_keys, uint32_t *scratch, struct err *err)
{
	char shown[SHOW_NAME_SIZE];
	uint32_t twice;
	int code;

	if (order_find_twice(scratch, n_keys, name_of_key, keys, &twice)) {
		code = err_set(err, WIRE_BAD_FILE, "key \"%s\" is there twice",
			       show_name(keys[twice].text, keys[twice].size, shown));
		if (err != NULL) {
			err->offset = keys[twice].at;
		}
		return code;
	}
	return shelf_check_names(map->tensors, map->n_tensors, scratch, err);
}

static void add_notices(struct tensor_map *map, const struct tally *tally)
{
	uint64_t end;
	uint64_t rest;

	if (checked_add(map->data_offset, tally->next, &end) &&
	    checked_sub(map->file_size, end, &rest) && rest > 0) {
		(void)snprintf(map->notices[map->n_notices++], sizeof map->notices[0],
			       "%llu bytes follow the last tensor", (unsigned long long)rest);
	}
}

/* 'tally' is what the first walk found. */
static int fill_map(struct tensor_map *map, struct gguf_cursor *cursor, const struct tally *tally)
{
	const size_t n_names = tally->n_keys > tally->n_tensors ? tally->n_keys : tally->n_tensors;
	struct store store = {.keys = malloc((size_t)(tally->n_keys + 1) * sizeof *store.keys)};
	uint32_t *scratch = malloc(2 * sizeof *scratch * (n_names + 1));
	struct tally again;
	struct tensor *tensors = NULL;
	int code = -WIRE_NO_MEMORY;

	if (store.keys == NULL || scratch == NULL) {
		(void)err_set(cursor->err, WIRE_NO_MEMORY, "no memory for %zu names", n_names);
	} else {
		code = shelf_take(map, (uint32_t)tally->n_tensors, tally->n_dims, tally->name_bytes,
				  &store.shelf, cursor->err);
	}
	if (code == 0) {
		tensors = store.shelf.tensors;
		cursor->at = 0;
		code = walk(cursor, &again, &store);
	}
	if (code == 0) {
		code = check_names(map, store.keys, (uint32_t)tally->n_keys, scratch, cursor->err);
	}
	if (code == 0) {
		code = blocks_compute(tensors, map->n_tensors, &map->block_memory, &map->blocks,
				      &map->n_blocks, cursor->err);
	}
	free(scratch);
	free(store.keys);
	return code;
}

int gguf_parse(const void *header, size_t size, uint64_t file_size, struct tensor_map **ret_map,
	       struct err *err)
{
	struct gguf_cursor cursor = {.bytes = header,
				     .size = size,
				     .file_size = file_size,
				     .err = err};
	struct tensor_map *map;
	struct tally tally;
	uint64_t data = 0;
	int code = walk(&cursor, &tally, NULL);

	if (code == 0) {
		code = check_file_size(&tally, file_size, &data, err);
	}
	if (code < 0) {
		return code;
	}
	map = malloc(sizeof *map);
	if (map == NULL) {
		return err_set(err, WIRE_NO_MEMORY, "no memory for a tensor map");
	}
	*map = (struct tensor_map){.format = FORMAT_GGUF,
				   .data_offset = data,
				   .file_size = file_size,
				   .split_no = tally.split_no,
				   .split_count = tally.split_count};
	code = fill_map(map, &cursor, &tally);
	if (code < 0) {
		(void)tensor_map_free(map);
		return code;
	}
	add_notices(map, &tally);
	*ret_map = map;
	return 0;
}
