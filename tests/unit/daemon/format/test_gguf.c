/* SPDX-License-Identifier: Apache-2.0 */
/* The GGUF cases of the fault list, each by its id. */
#include "tests/support/gguf_file.h"
#include "tests/support/heap_watch.h"
#include "tests/support/map_check.h"
#include "tests/support/unit.h"

#include <stdio.h>

#include "daemon/format/gguf.h"
#include "proto/gen/wire_code.h"

#define F32  0U
#define Q4_0 2U
#define Q4_K 12U
#define I8   24U
#define F64  28U

static const uint64_t one[] = {1};

/* The file is given up. */
static void expect_refused(struct gguf_file *file, int code, const char *text)
{
	struct gguf_reading got = {.first = FORMAT_PROBE_SIZE};
	size_t n_live = heap.n_live;
	int result = gguf_read(file->bytes, file->size, &got);

	if (result != -code || strstr(got.err.text, text) == NULL) {
		print_error("got %d \"%s\", wanted %d \"%s\"\n", result, got.err.text, -code, text);
	}
	assert_int_equal(result, -code);
	assert_int_equal(got.err.code, code);
	assert_non_null(strstr(got.err.text, text));
	assert_null(got.map);
	assert_int_equal(heap.n_live, n_live);
	free(file->bytes);
	*file = (struct gguf_file){0};
}

/* The file is given up; the map is the caller's. */
static struct tensor_map *expect_loads(struct gguf_file *file)
{
	struct gguf_reading got = {.first = FORMAT_PROBE_SIZE};
	int code = gguf_read(file->bytes, file->size, &got);

	if (code < 0) {
		print_error("refused: %s\n", got.err.text);
	}
	assert_int_equal(code, 0);
	map_check(got.map);
	assert_int_equal(got.map->format, FORMAT_GGUF);
	free(file->bytes);
	*file = (struct gguf_file){0};
	return got.map;
}

/* One tensor "t.x", and the data that it would take if it were well. */
static struct gguf_file one_tensor(uint32_t n_dims, const uint64_t *dims, uint32_t type,
				   uint64_t offset, size_t data_bytes)
{
	struct gguf_file file = {0};

	gguf_add_start(&file, 3, 1, 0);
	gguf_add_tensor(&file, "t.x", n_dims, dims, type, offset);
	gguf_add_data(&file, 32, data_bytes);
	return file;
}

static void expect_tensor(uint32_t n_dims, const uint64_t *dims, uint32_t type, uint64_t offset,
			  const char *text)
{
	struct gguf_file file = one_tensor(n_dims, dims, type, offset, 64);

	expect_refused(&file, WIRE_BAD_FILE, text);
	file = one_tensor(n_dims, dims, type, offset, 64);
	expect_refused(&file, WIRE_BAD_FILE, "tensor \"t.x\": byte ");
}

/* Keys of every kind, then two blocks and a head; the data end with the last tensor. */
static struct gguf_file good_file(uint32_t version)
{
	struct gguf_file file = {0};

	gguf_add_start(&file, version, 4, 6);
	gguf_add_key(&file, "general.architecture", GGUF_STRING);
	gguf_add_string(&file, "llama");
	gguf_add_key_u32(&file, "general.alignment", 64);
	gguf_add_key(&file, "a.u8", GGUF_U8);
	gguf_add(&file, "\1", 1);
	gguf_add_key(&file, "a.u64", GGUF_U64);
	gguf_add_u64(&file, UINT64_MAX);
	gguf_add_key(&file, "tokens", GGUF_ARRAY);
	gguf_add_u32(&file, GGUF_STRING);
	gguf_add_u64(&file, 3);
	gguf_add_string(&file, "a");
	gguf_add_string(&file, "");
	gguf_add_string(&file, "\xff\xfe");
	gguf_add_key(&file, "scores", GGUF_ARRAY);
	gguf_add_u32(&file, GGUF_U32);
	gguf_add_u64(&file, 2);
	gguf_add_u64(&file, 0);
	gguf_add_tensor(&file, "token_embd.weight", 2, (const uint64_t[]){64, 3}, Q4_0, 0);
	gguf_add_tensor(&file, "blk.1.w", 4, (const uint64_t[]){2, 1, 1, 3}, F32, 128);
	gguf_add_tensor(&file, "blk.0.w", 1, (const uint64_t[]){256}, Q4_K, 192);
	gguf_add_tensor(&file, "blk.0.b", 1, (const uint64_t[]){3}, I8, 384);
	gguf_add_data(&file, 64, 384 + 3);
	return file;
}

static void check_good(const struct tensor_map *map)
{
	assert_int_equal(map->n_tensors, 4);
	assert_int_equal(map->data_offset % 64, 0);
	assert_memory_equal(map->tensors[0].name, "token_embd.weight", 17);
	assert_int_equal(map->tensors[0].dtype, WIRE_DTYPE_Q4_0);
	assert_int_equal(map->tensors[0].rank, 2);
	assert_int_equal(map->tensors[0].shape[0], 3); /* numpy's order */
	assert_int_equal(map->tensors[0].shape[1], 64);
	assert_int_equal(map->tensors[0].size, 3 * 2 * 18);
	assert_int_equal(map->tensors[0].offset, map->data_offset);
	assert_int_equal(map->tensors[1].rank, 4);
	assert_int_equal(map->tensors[1].shape[0], 3);
	assert_int_equal(map->tensors[1].shape[3], 2);
	assert_int_equal(map->tensors[1].size, 24);
	assert_int_equal(map->tensors[1].offset, map->data_offset + 128);
	assert_int_equal(map->tensors[2].dtype, WIRE_DTYPE_Q4_K);
	assert_int_equal(map->tensors[2].size, 144);
	assert_int_equal(map->tensors[3].dtype, WIRE_DTYPE_I8);
	assert_int_equal(map->tensors[3].offset, map->data_offset + 384);
	assert_int_equal(map->n_notices, 0);
	/* The blocks of placement: the head, then blk.0 before blk.1. */
	assert_int_equal(map->n_blocks, 3);
	assert_memory_equal(map->blocks[0].name, "(head)", 6);
	assert_memory_equal(map->blocks[1].name, "blk.0", 5);
	assert_int_equal(map->blocks[1].n_tensors, 2);
	assert_memory_equal(map->blocks[2].name, "blk.1", 5);
	assert_int_equal(map->tensors[1].block, 2);
	assert_int_equal(map->tensors[3].block, 1);
}

static void good_files_of_version_2_and_3_give_their_tensors(void **state)
{
	(void)state;
	for (uint32_t version = 2; version <= 3; version++) {
		struct gguf_file file = good_file(version);
		struct tensor_map *map = expect_loads(&file);

		check_good(map);
		(void)tensor_map_free(map);
	}
}

static void a_file_without_tensors_or_their_padding_loads(void **state)
{
	struct gguf_file file = {0};
	struct tensor_map *map;

	(void)state;
	gguf_add_start(&file, 3, 0, 0);
	map = expect_loads(&file);
	assert_int_equal(map->n_tensors, 0);
	assert_int_equal(map->data_offset, 24);
	(void)tensor_map_free(map);
	file = one_tensor(1, one, I8, 0, 1);
	map = expect_loads(&file);
	assert_int_equal(map->n_notices, 0);
	(void)tensor_map_free(map);
	file = one_tensor(1, one, I8, 0, 33);
	map = expect_loads(&file);
	assert_int_equal(map->n_notices, 1);
	assert_non_null(strstr(map->notices[0], "1 bytes follow the last tensor"));
	(void)tensor_map_free(map);
}

/* A header that goes on behind what was probed is read piece by piece, to the same end. */
static void a_probe_asks_for_more_until_the_header_ends(void **state)
{
	(void)state;
	for (size_t first = 4; first < 600; first++) {
		struct gguf_file file = good_file(3);
		struct gguf_reading got = {.first = first, .wanted = FORMAT_GGUF};

		assert_int_equal(gguf_read(file.bytes, file.size, &got), 0);
		assert_int_equal(got.err.code, 0);
		assert_true(got.header_bytes < got.map->data_offset);
		check_good(got.map);
		(void)tensor_map_free(got.map);
		free(file.bytes);
	}
}

static void a_header_over_100_mb_is_refused(void **state)
{
	struct gguf_file file = {0};
	enum format format = FORMAT_AUTO;
	uint64_t header_bytes = 0;
	struct err err = {0};
	uint8_t *bytes = calloc(1, FORMAT_MAX_HEADER);

	(void)state;
	assert_non_null(bytes);
	gguf_add_start(&file, 3, 0, 1);
	gguf_add_key(&file, "k", GGUF_STRING);
	gguf_add_u64(&file, FORMAT_MAX_HEADER);
	memcpy(bytes, file.bytes, file.size);
	assert_int_equal(format_probe(bytes, FORMAT_MAX_HEADER / 2, 1ULL << 40, FORMAT_AUTO,
				      &format, &header_bytes, &err),
			 0);
	assert_int_equal(header_bytes, FORMAT_MAX_HEADER);
	assert_int_equal(format_probe(bytes, FORMAT_MAX_HEADER, 1ULL << 40, FORMAT_AUTO, &format,
				      &header_bytes, &err),
			 -WIRE_BAD_FILE);
	assert_non_null(strstr(err.text, "more than 100,000,000 bytes"));
	free(bytes);
	free(file.bytes);
}

/* fault: F20 */
static void other_magics_versions_and_byte_orders_are_unsupported(void **state)
{
	static const struct {
		uint32_t version;
		const char *text;
	} versions[] = {{0, "version 0 is not known"},
			{1, "version 1 is too old"},
			{4, "version 4 is not known"},
			{UINT32_MAX, "version 4294967295 is not known"},
			{0x02000000, "big-endian"},
			{0x03000000, "big-endian"}};
	struct gguf_reading got = {.first = FORMAT_PROBE_SIZE, .wanted = FORMAT_GGUF};
	struct gguf_file file;

	(void)state;
	for (size_t i = 0; i < sizeof versions / sizeof versions[0]; i++) {
		file = good_file(versions[i].version);
		heap_watch_begin();
		expect_refused(&file, WIRE_UNSUPPORTED, versions[i].text);
	}
	file = good_file(3);
	memcpy(file.bytes, "FUGG", 4);
	expect_refused(&file, WIRE_UNSUPPORTED, "big-endian");
	file = good_file(3);
	memcpy(file.bytes, "GGML", 4);
	assert_int_equal(gguf_read(file.bytes, file.size, &got), -WIRE_UNSUPPORTED);
	assert_non_null(strstr(got.err.text, "not a GGUF file"));
	expect_refused(&file, WIRE_BAD_FILE, "not a safetensors file");
}

/* fault: F21 */
static void counts_that_do_not_fit_are_refused_before_any_allocation(void **state)
{
	static const uint64_t counts[] = {UINT64_MAX, 1ULL << 63, 1ULL << 59, UINT64_MAX / 13 + 1,
					  100};

	(void)state;
	for (size_t i = 0; i < sizeof counts / sizeof counts[0]; i++) {
		for (int is_keys = 0; is_keys <= 1; is_keys++) {
			struct tensor_map *map = NULL;
			struct gguf_file file = {0};
			struct err err = {0};

			gguf_add_start(&file, 3, is_keys ? 0 : counts[i], is_keys ? counts[i] : 0);
			gguf_add_data(&file, 1, 1000);
			heap_watch_begin();
			assert_int_equal(gguf_parse(file.bytes, file.size, file.size, &map, &err),
					 -WIRE_BAD_FILE);
			assert_int_equal(heap.n_calls, 0);
			assert_non_null(strstr(err.text, "do not fit the"));
			assert_non_null(strstr(err.text, is_keys ? " keys " : " tensors "));
			assert_int_equal(err.offset, is_keys ? 16 : 8);
			free(file.bytes);
		}
	}
}

/* fault: F21 */
static void counts_have_a_limit_whatever_the_file_is(void **state)
{
	uint64_t header_bytes = 0;
	enum format format = FORMAT_AUTO;

	(void)state;
	for (int is_keys = 0; is_keys <= 1; is_keys++) {
		uint64_t most = is_keys ? 65536 : FORMAT_MAX_TENSORS;
		struct gguf_file file = {0};
		struct err err = {0};

		gguf_add_start(&file, 3, is_keys ? 0 : most, is_keys ? most : 0);
		assert_int_equal(format_probe(file.bytes, file.size, 1ULL << 40, FORMAT_AUTO,
					      &format, &header_bytes, &err),
				 0);
		file.bytes[is_keys ? 16 : 8]++;
		assert_int_equal(format_probe(file.bytes, file.size, 1ULL << 40, FORMAT_AUTO,
					      &format, &header_bytes, &err),
				 -WIRE_BAD_FILE);
		assert_non_null(strstr(err.text, "are the most"));
		free(file.bytes);
	}
}

/* fault: F22 */
static void sizes_that_wrap_are_refused_each(void **state)
{
	static const uint64_t product[] = {1ULL << 32, 1ULL << 32};
	static const uint64_t wide_product[] = {1ULL << 62, 3, 3, 3};
	static const uint64_t row[] = {1ULL << 61};
	static const uint64_t rows[] = {1ULL << 60, 2};
	static const uint64_t padded[] = {UINT64_MAX / 3, 3}; /* 2^64 - 1 bytes */
	static const uint64_t half[] = {1ULL << 62, 2};
	struct gguf_file file = {0};

	(void)state;
	expect_tensor(2, product, I8, 0, "a shape of more than 2^64 elements");
	expect_tensor(4, wide_product, I8, 0, "a shape of more than 2^64 elements");
	expect_tensor(1, row, F64, 0, "a row of more than 2^64 bytes");
	expect_tensor(2, rows, F64, 0, "a shape of more than 2^64 bytes");
	expect_tensor(2, padded, I8, 0, "its padded size is more than 2^64 bytes");
	/* The running total, and the total with the header before it. */
	gguf_add_start(&file, 3, 2, 0);
	gguf_add_tensor(&file, "a", 2, half, I8, 0);
	gguf_add_tensor(&file, "b", 2, half, I8, 1ULL << 63);
	gguf_add_data(&file, 32, 64);
	expect_refused(&file, WIRE_BAD_FILE, "tensor \"b\": byte ");
	gguf_add_start(&file, 3, 2, 0);
	gguf_add_tensor(&file, "a", 2, half, I8, 0);
	gguf_add_tensor(&file, "b", 1, (const uint64_t[]){INT64_MAX - 31}, I8, 1ULL << 63);
	gguf_add_data(&file, 32, 64);
	expect_refused(&file, WIRE_BAD_FILE, "describes 18,446,744,073,709,551,615");
}

/* fault: F23 */
static void offsets_are_aligned_ascending_and_inside_the_file(void **state)
{
	static const struct {
		uint64_t second;
		const char *text;
	} offsets[] = {{0, "its offset 0 overlaps the tensor before, which ends at 32"},
		       {33, "its offset 33 is not aligned to 32 bytes"},
		       {4, "its offset 4 is not aligned to 32 bytes"},
		       {64, "its offset 64 leaves a hole after 32"},
		       {1ULL << 63, "leaves a hole"},
		       {UINT64_MAX - 31, "leaves a hole"},
		       {UINT64_MAX, "not aligned"}};
	struct gguf_file file = {0};

	(void)state;
	expect_tensor(1, one, F32, 32, "its offset 32 leaves a hole after 0");
	expect_tensor(1, one, F32, 1, "its offset 1 is not aligned");
	for (size_t i = 0; i < sizeof offsets / sizeof offsets[0]; i++) {
		gguf_add_start(&file, 3, 2, 0);
		gguf_add_tensor(&file, "a", 1, one, F32, 0);
		gguf_add_tensor(&file, "b", 1, one, F32, offsets[i].second);
		gguf_add_data(&file, 32, 128);
		expect_refused(&file, WIRE_BAD_FILE, offsets[i].text);
	}
	/* The first lies behind the second. */
	gguf_add_start(&file, 3, 2, 0);
	gguf_add_tensor(&file, "a", 1, one, F32, 32);
	gguf_add_tensor(&file, "b", 1, one, F32, 0);
	gguf_add_data(&file, 32, 128);
	expect_refused(&file, WIRE_BAD_FILE, "tensor \"a\": ");
	/* A byte short. */
	file = one_tensor(1, (const uint64_t[]){16}, F32, 0, 63);
	expect_refused(&file, WIRE_BAD_FILE,
		       "file is 127 bytes but its header describes 128: the download is "
		       "incomplete");
}

/* fault: F24 */
static void strings_and_arrays_that_do_not_fit_are_refused(void **state)
{
	static const uint64_t lengths[] = {UINT64_MAX, UINT64_MAX - 1, UINT64_MAX - 40, 1ULL << 63,
					   1000};
	static const struct {
		uint32_t type;
		uint64_t count;
		int code;
		const char *text;
	} arrays[] = {{GGUF_ARRAY, 1, WIRE_UNSUPPORTED, "key \"k\": byte 37: an array of arrays"},
		      {13, 1, WIRE_BAD_FILE, "an array of type 13, which is none"},
		      {UINT32_MAX, 1, WIRE_BAD_FILE, "an array of type 4294967295"},
		      {GGUF_U64, 1ULL << 61, WIRE_BAD_FILE, "items of an array do not fit"},
		      {GGUF_U64, (1ULL << 61) + 1, WIRE_BAD_FILE, "items of an array do not fit"},
		      {GGUF_U32, UINT64_MAX, WIRE_BAD_FILE, "items of an array do not fit"},
		      {GGUF_U8, UINT64_MAX, WIRE_BAD_FILE, "items of an array do not fit"},
		      {GGUF_STRING, 1ULL << 61, WIRE_BAD_FILE, "items of an array do not fit"},
		      {GGUF_STRING, UINT64_MAX, WIRE_BAD_FILE, "items of an array do not fit"},
		      {GGUF_U8, 101, WIRE_BAD_FILE, "101 items of an array do not fit the 100"}};
	struct gguf_file file = {0};

	(void)state;
	for (size_t i = 0; i < sizeof lengths / sizeof lengths[0]; i++) {
		/* A value, an item, a key, a tensor's name. */
		gguf_add_start(&file, 3, 0, 1);
		gguf_add_key(&file, "k", GGUF_STRING);
		gguf_add_u64(&file, lengths[i]);
		gguf_add_data(&file, 1, 100);
		expect_refused(&file, WIRE_BAD_FILE, "a string of ");
		gguf_add_start(&file, 3, 0, 1);
		gguf_add_key(&file, "k", GGUF_ARRAY);
		gguf_add_u32(&file, GGUF_STRING);
		gguf_add_u64(&file, 2);
		gguf_add_u64(&file, lengths[i]);
		gguf_add_data(&file, 1, 100);
		expect_refused(&file, WIRE_BAD_FILE, "a string of ");
		gguf_add_start(&file, 3, 0, 1);
		gguf_add_u64(&file, lengths[i]);
		gguf_add_data(&file, 1, 100);
		expect_refused(&file, WIRE_BAD_FILE, ": a key of ");
		gguf_add_start(&file, 3, 1, 0);
		gguf_add_u64(&file, lengths[i]);
		gguf_add_data(&file, 1, 100);
		expect_refused(&file, WIRE_BAD_FILE, ": a tensor's name of ");
	}
	for (size_t i = 0; i < sizeof arrays / sizeof arrays[0]; i++) {
		gguf_add_start(&file, 3, 0, 1);
		gguf_add_key(&file, "k", GGUF_ARRAY);
		gguf_add_u32(&file, arrays[i].type);
		gguf_add_u64(&file, arrays[i].count);
		gguf_add_data(&file, 1, 100);
		expect_refused(&file, arrays[i].code, arrays[i].text);
	}
	gguf_add_start(&file, 3, 0, 1);
	gguf_add_key(&file, "k", 13);
	gguf_add_data(&file, 1, 100);
	expect_refused(&file, WIRE_BAD_FILE, "key \"k\": byte 37: a value of type 13");
}

/* fault: F24 */
static void names_have_a_limit_and_are_utf8(void **state)
{
	char name[FORMAT_MAX_NAME + 2];
	struct gguf_file file = {0};

	(void)state;
	memset(name, 'n', sizeof name);
	name[FORMAT_MAX_NAME] = '\0';
	gguf_add_start(&file, 3, 1, 0);
	gguf_add_tensor(&file, name, 1, one, I8, 0);
	gguf_add_data(&file, 32, 1);
	(void)tensor_map_free(expect_loads(&file));
	name[FORMAT_MAX_NAME] = 'n';
	name[FORMAT_MAX_NAME + 1] = '\0';
	gguf_add_start(&file, 3, 1, 0);
	gguf_add_tensor(&file, name, 1, one, I8, 0);
	gguf_add_data(&file, 32, 1);
	expect_refused(&file, WIRE_BAD_FILE, "4097 bytes: 4096 are the most");
	gguf_add_start(&file, 3, 1, 0);
	gguf_add_tensor(&file, "a\xff", 1, one, I8, 0);
	gguf_add_data(&file, 32, 1);
	expect_refused(&file, WIRE_BAD_FILE, "byte 24: a tensor's name that is not UTF-8");
	file = one_tensor(1, one, I8, 0, 1);
	file.bytes[33] = '\0';
	expect_refused(&file, WIRE_BAD_FILE, "holds NUL");
	gguf_add_start(&file, 3, 0, 1);
	gguf_add_key_u32(&file, "a\xc3", 1);
	expect_refused(&file, WIRE_BAD_FILE, "byte 24: a key that is not UTF-8");
	gguf_add_start(&file, 3, 0, 1);
	gguf_add_u64(&file, 65536);
	gguf_add_data(&file, 1, 70000);
	expect_refused(&file, WIRE_BAD_FILE, "a key of 65536 bytes: 65535 are the most");
}

static void parts_say_which_they_are(void **state)
{
	struct gguf_file file = {0};
	struct tensor_map *map;

	(void)state;
	gguf_add_start(&file, 3, 0, 2);
	gguf_add_key(&file, "split.no", GGUF_U16);
	gguf_add(&file, "\x02\x01", 2);
	gguf_add_key(&file, "split.count", GGUF_U16);
	gguf_add(&file, "\xff\xff", 2);
	map = expect_loads(&file);
	assert_int_equal(map->split_no, 0x102);
	assert_int_equal(map->split_count, 0xffff);
	(void)tensor_map_free(map);
	gguf_add_start(&file, 3, 0, 2); /* of other types: nothing is said */
	gguf_add_key_u32(&file, "split.no", 1);
	gguf_add_key(&file, "split.count", GGUF_STRING);
	gguf_add_string(&file, "2");
	map = expect_loads(&file);
	assert_int_equal(map->split_no, 0);
	assert_int_equal(map->split_count, 0);
	(void)tensor_map_free(map);
	gguf_add_start(&file, 3, 0, 1);
	gguf_add_key(&file, "split.count", GGUF_U16);
	gguf_add(&file, "\x02", 1);
	expect_refused(&file, WIRE_BAD_FILE, "");
}

/* fault: F25 */
static void alignments_are_powers_of_two_up_to_1_mib(void **state)
{
	static const uint32_t bad[] = {0,        3,        31,        33, (1U << 20) + 1,
				       1U << 21, 1U << 31, UINT32_MAX};
	struct gguf_file file = {0};

	(void)state;
	for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
		gguf_add_start(&file, 3, 0, 1);
		gguf_add_key_u32(&file, "general.alignment", bad[i]);
		gguf_add_data(&file, 1, 64);
		expect_refused(&file, WIRE_BAD_FILE, "key \"general.alignment\": byte 53: ");
	}
	for (uint32_t alignment = 1; alignment <= 1U << 20; alignment *= 2) {
		struct tensor_map *map;

		gguf_add_start(&file, 3, 2, 1);
		gguf_add_key_u32(&file, "general.alignment", alignment);
		gguf_add_tensor(&file, "a", 1, one, I8, 0);
		gguf_add_tensor(&file, "b", 1, one, I8, alignment);
		gguf_add_data(&file, alignment, alignment + 1);
		map = expect_loads(&file);
		assert_int_equal(map->tensors[1].offset % alignment, 0);
		(void)tensor_map_free(map);
	}
	gguf_add_start(&file, 3, 0, 1);
	gguf_add_key(&file, "general.alignment", GGUF_U64);
	gguf_add_u64(&file, 1ULL << 63);
	gguf_add_data(&file, 1, 64);
	expect_refused(&file, WIRE_BAD_FILE, "it is of type 10, not uint32");
	gguf_add_start(&file, 3, 0, 1);
	gguf_add_key(&file, "general.alignment", GGUF_STRING);
	gguf_add_string(&file, "32");
	expect_refused(&file, WIRE_BAD_FILE, "it is of type 8, not uint32");
}

/* fault: F26 */
static void every_prefix_of_a_good_file_is_refused(void **state)
{
	struct gguf_file whole = good_file(3);
	const size_t size = whole.size;

	(void)state;
	for (size_t cut = 0; cut < size; cut++) {
		struct gguf_file file = good_file(3);

		file.size = cut;
		expect_refused(&file, WIRE_BAD_FILE, "");
	}
	/* Also where the file is whole and only the header was cut. */
	for (size_t cut = 0; cut < size; cut++) {
		struct tensor_map *map = NULL;
		struct err err = {0};
		uint8_t *copy = gguf_copy(whole.bytes, cut);
		int code = gguf_parse(copy, cut, size, &map, &err);

		free(copy);
		if (code == 0) {
			check_good(map);
			(void)tensor_map_free(map);
			assert_true(cut > 300);
			break;
		}
		assert_null(map);
		assert_int_equal(code, -err.code);
	}
	free(whole.bytes);
}

/* fault: F27 */
static void dimensions_are_1_to_4_and_positive(void **state)
{
	static const uint64_t ones[] = {1, 1, 1, 1, 1};
	static const uint64_t bad[] = {0, 1ULL << 63, UINT64_MAX};
	struct gguf_file file;

	(void)state;
	expect_tensor(0, ones, I8, 0, "0 dimensions: 1 to 4 are possible");
	expect_tensor(5, ones, I8, 0, "5 dimensions: 1 to 4 are possible");
	file = one_tensor(1, ones, I8, 0, 64);
	memset(&file.bytes[24 + 8 + 3], 0xff, 4);
	expect_refused(&file, WIRE_BAD_FILE, "4294967295 dimensions");
	for (uint32_t i = 0; i < 4; i++) {
		for (size_t j = 0; j < sizeof bad / sizeof bad[0]; j++) {
			uint64_t dims[] = {1, 1, 1, 1};

			dims[i] = bad[j];
			expect_tensor(4, dims, I8, 0, "it must be positive");
		}
	}
	expect_tensor(2, (const uint64_t[]){48, 2}, Q4_0, 0,
		      "its rows of 48 elements are no multiple of Q4_0's 32");
	expect_tensor(2, (const uint64_t[]){128, 2}, Q4_K, 0, "no multiple of Q4_K's 256");
}

/* fault: F28 */
static void retired_and_unknown_types_are_unsupported(void **state)
{
	static const uint32_t retired[] = {4, 5, 31, 32, 33, 36, 37, 38};
	static const uint32_t unknown[] = {42, 43, 255, 65536, UINT32_MAX};
	struct gguf_file file;

	(void)state;
	for (size_t i = 0; i < sizeof retired / sizeof retired[0]; i++) {
		file = one_tensor(1, one, retired[i], 0, 64);
		expect_refused(&file, WIRE_UNSUPPORTED, "was retired: quantise the model again");
	}
	for (size_t i = 0; i < sizeof unknown / sizeof unknown[0]; i++) {
		file = one_tensor(1, one, unknown[i], 0, 64);
		expect_refused(&file, WIRE_UNSUPPORTED, "is not known to this version");
	}
	file = one_tensor(1, one, 31, 0, 64);
	expect_refused(&file, WIRE_UNSUPPORTED, "tensor \"t.x\": byte 47: type 31 (Q4_0_4_4)");
}

/* fault: F29 */
static void names_that_are_there_twice_are_refused(void **state)
{
	struct gguf_file file = {0};

	(void)state;
	gguf_add_start(&file, 3, 0, 3);
	gguf_add_key_u32(&file, "a.b", 1);
	gguf_add_key_u32(&file, "a", 1);
	gguf_add_key_u32(&file, "a.b", 2);
	expect_refused(&file, WIRE_BAD_FILE, "key \"a.b\" is there twice");
	gguf_add_start(&file, 3, 0, 2);
	gguf_add_key_u32(&file, "general.alignment", 32);
	gguf_add_key_u32(&file, "general.alignment", 64);
	expect_refused(&file, WIRE_BAD_FILE, "key \"general.alignment\" is there twice");
	gguf_add_start(&file, 3, 3, 0);
	gguf_add_tensor(&file, "w", 1, one, I8, 0);
	gguf_add_tensor(&file, "v", 1, one, I8, 32);
	gguf_add_tensor(&file, "w", 1, one, I8, 64);
	gguf_add_data(&file, 32, 65);
	expect_refused(&file, WIRE_BAD_FILE, "tensor \"w\" is described twice");
	/* A key may be called as a tensor is. */
	gguf_add_start(&file, 3, 1, 1);
	gguf_add_key_u32(&file, "w", 1);
	gguf_add_tensor(&file, "w", 1, one, I8, 0);
	gguf_add_data(&file, 32, 1);
	(void)tensor_map_free(expect_loads(&file));
}

static void names_are_shown_escaped(void **state)
{
	struct gguf_file file = {0};

	(void)state;
	gguf_add_start(&file, 3, 1, 0);
	gguf_add_tensor(&file, "\033[31m", 0, one, I8, 0);
	gguf_add_data(&file, 32, 1);
	expect_refused(&file, WIRE_BAD_FILE, "tensor \"\\x1b[31m\": ");
	gguf_add_start(&file, 3, 0, 1);
	gguf_add_key(&file, "\033[1m", 99);
	gguf_add_data(&file, 32, 1);
	expect_refused(&file, WIRE_BAD_FILE, "key \"\\x1b[1m\": ");
}

static void many_tensors_load_and_take_little(void **state)
{
	struct gguf_file file = {0};
	struct tensor_map *map = NULL;
	struct err err = {0};
	size_t before;

	(void)state;
	gguf_add_start(&file, 3, FORMAT_MAX_TENSORS, 0);
	for (uint32_t i = 0; i < FORMAT_MAX_TENSORS; i++) {
		char name[32];

		(void)snprintf(name, sizeof name, "blk.%u.w", FORMAT_MAX_TENSORS - i);
		gguf_add_tensor(&file, name, 1, one, I8, 32ULL * i);
	}
	gguf_add_data(&file, 32, 32ULL * FORMAT_MAX_TENSORS);
	before = heap.bytes;
	heap_watch_begin();
	assert_int_equal(gguf_parse(file.bytes, file.size, file.size, &map, &err), 0);
	assert_true(heap.peak_bytes - before < 100U << 20);
	assert_int_equal(map->n_tensors, FORMAT_MAX_TENSORS);
	assert_int_equal(map->n_blocks, FORMAT_MAX_TENSORS);
	(void)tensor_map_free(map);
	free(file.bytes);
}

/* fault: M10 */
static void every_failed_allocation_is_no_memory_and_leaves_nothing(void **state)
{
	struct gguf_file file = good_file(3);
	size_t n_live = heap.n_live;

	(void)state;
	for (int is_failing_on = 0; is_failing_on <= 1; is_failing_on++) {
		int code = -WIRE_NO_MEMORY;
		size_t nth;

		for (nth = 1; code == -WIRE_NO_MEMORY; nth++) {
			struct tensor_map *map = NULL;
			struct err err = {0};

			assert_true(nth < 20);
			heap_watch_begin();
			heap.fail_at = nth;
			heap.is_failing_on = is_failing_on;
			code = gguf_parse(file.bytes, file.size, file.size, &map, &err);
			heap_watch_begin();
			assert_true(code == 0 || (map == NULL && err.code == WIRE_NO_MEMORY));
			(void)tensor_map_free(map);
			assert_int_equal(heap.n_live, n_live);
		}
		assert_int_equal(code, 0);
		assert_true(nth > 5);
	}
	free(file.bytes);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(good_files_of_version_2_and_3_give_their_tensors),
		cmocka_unit_test(a_file_without_tensors_or_their_padding_loads),
		cmocka_unit_test(a_probe_asks_for_more_until_the_header_ends),
		cmocka_unit_test(a_header_over_100_mb_is_refused),
		cmocka_unit_test(other_magics_versions_and_byte_orders_are_unsupported),
		cmocka_unit_test(counts_that_do_not_fit_are_refused_before_any_allocation),
		cmocka_unit_test(counts_have_a_limit_whatever_the_file_is),
		cmocka_unit_test(sizes_that_wrap_are_refused_each),
		cmocka_unit_test(offsets_are_aligned_ascending_and_inside_the_file),
		cmocka_unit_test(strings_and_arrays_that_do_not_fit_are_refused),
		cmocka_unit_test(names_have_a_limit_and_are_utf8),
		cmocka_unit_test(parts_say_which_they_are),
		cmocka_unit_test(alignments_are_powers_of_two_up_to_1_mib),
		cmocka_unit_test(every_prefix_of_a_good_file_is_refused),
		cmocka_unit_test(dimensions_are_1_to_4_and_positive),
		cmocka_unit_test(retired_and_unknown_types_are_unsupported),
		cmocka_unit_test(names_that_are_there_twice_are_refused),
		cmocka_unit_test(names_are_shown_escaped),
		cmocka_unit_test(many_tensors_load_and_take_little),
		cmocka_unit_test(every_failed_allocation_is_no_memory_and_leaves_nothing),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
