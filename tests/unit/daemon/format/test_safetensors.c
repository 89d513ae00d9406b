/* SPDX-License-Identifier: Apache-2.0 */
/* The safetensors cases of the fault list, each by its id. */
#include "tests/support/header_file.h"
#include "tests/support/heap_watch.h"

#include <time.h>

#include "daemon/format/safetensors.h"
#include "proto/gen/wire_code.h"

#define BOMB_BYTES  100000000U
#define BOMB_MS     20000U /* of processor time, 100 times the aim: no slow machine fails it */
#define BOMB_MEMORY (20U << 20)
#define MANY_MS     60000U

/* Two tensors of 8 and 4 bytes. */
#define GOOD                                                                 \
	"{\"a\":{\"dtype\":\"F32\",\"shape\":[2,1],\"data_offsets\":[0,8]}," \
	"\"b\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[8,12]}}"
#define GOOD_DATA       12U
#define GOOD_LONG_DTYPE "F32F32F32F32F32F32F32F32F32F32F32F32F32F32F32"

/* Processor time of this thread: others on the machine do not count. */
static uint64_t now_ms(void)
{
	struct timespec now;

	assert_int_equal(clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now), 0);
	return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

static void expect_refused_file(struct header_file file, int code, const char *text)
{
	struct tensor_map *map = NULL;
	struct err err = {0};
	size_t n_live = heap.n_live;
	int result = header_file_read(&file, &map, &err);

	if (result != -code || strstr(err.text, text) == NULL) {
		print_error("got %d \"%s\", wanted %d \"%s\"\n", result, err.text, -code, text);
	}
	assert_int_equal(result, -code);
	assert_int_equal(err.code, code);
	assert_non_null(strstr(err.text, text));
	assert_null(map);
	assert_int_equal(heap.n_live, n_live);
	free(file.bytes);
}

/* Refused with BAD_FILE and this in the text. */
static void expect_bad(const char *json, uint64_t data_bytes, const char *text)
{
	expect_refused_file(header_file(json, data_bytes), WIRE_BAD_FILE, text);
}

static struct tensor_map *expect_loads(const char *json, uint64_t data_bytes)
{
	struct header_file file = header_file(json, data_bytes);
	struct tensor_map *map = NULL;
	struct err err = {0};
	int result = header_file_read(&file, &map, &err);

	if (result < 0) {
		print_error("refused: %s\n", err.text);
	}
	assert_int_equal(result, 0);
	assert_non_null(map);
	free(file.bytes);
	return map;
}

static void expect_one(const char *properties, uint64_t data_bytes, const char *text)
{
	char json[2048];

	assert_true(snprintf(json, sizeof json, "{\"t.x\":{%s}}", properties) < (int)sizeof json);
	expect_bad(json, data_bytes, text);
	if (strstr(text, "tensor") == NULL) {
		expect_bad(json, data_bytes, "tensor \"t.x\": ");
	}
}

static void a_good_file_gives_its_tensors(void **state)
{
	struct tensor_map *map = expect_loads(
		"{\"__metadata__\":{\"format\":\"pt\"},"
		"\"z\\u0041\":{\"dtype\":\"BF16\",\"shape\":[3,2],\"data_offsets\":[4,16]},"
		"\"a\\n\":{\"data_offsets\":[0,4],\"shape\":[1],\"dtype\":\"I32\"} }  ",
		16);
	uint64_t data = map->data_offset;

	(void)state;
	assert_int_equal(map->format, FORMAT_SAFETENSORS);
	assert_int_equal(map->n_tensors, 2);
	assert_int_equal(map->file_size, data + 16);
	assert_memory_equal(map->tensors[0].name, "a\n", 2);
	assert_int_equal(map->tensors[0].name_size, 2);
	assert_int_equal(map->tensors[0].dtype, WIRE_DTYPE_I32);
	assert_int_equal(map->tensors[0].rank, 1);
	assert_int_equal(map->tensors[0].shape[0], 1);
	assert_int_equal(map->tensors[0].offset, data);
	assert_int_equal(map->tensors[0].size, 4);
	assert_int_equal(map->tensors[1].name_size, 2);
	assert_memory_equal(map->tensors[1].name, "zA", 2);
	assert_int_equal(map->tensors[1].dtype, WIRE_DTYPE_BF16);
	assert_int_equal(map->tensors[1].rank, 2);
	assert_int_equal(map->tensors[1].shape[0], 3);
	assert_int_equal(map->tensors[1].shape[1], 2);
	assert_int_equal(map->tensors[1].offset, data + 4);
	assert_int_equal(map->tensors[1].size, 12);
	assert_int_equal(map->n_blocks, 1);
	assert_null(tensor_map_free(map));
	assert_null(tensor_map_free(NULL));
}

/* fault: F01 */
static void impossible_lengths_are_refused_before_any_allocation(void **state)
{
	static const size_t sizes[] = {0, 1, 7};
	uint64_t file_size = 8 + strlen(GOOD) + GOOD_DATA;
	uint64_t lengths[] = {0, 1, file_size - 7, 1ULL << 63, UINT64_MAX, UINT64_MAX - 7};

	(void)state;
	heap_watch_begin();
	for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
		struct header_file file = header_file(GOOD, 0);

		file.size = file.file_size = sizes[i];
		heap_watch_begin();
		expect_refused_file(file, WIRE_BAD_FILE, "header length");
		assert_int_equal(heap.n_calls, 0);
	}
	for (size_t i = 0; i < sizeof lengths / sizeof lengths[0]; i++) {
		struct header_file file = header_file(GOOD, GOOD_DATA);

		put_length(file.bytes, lengths[i]);
		heap_watch_begin();
		expect_refused_file(file, WIRE_BAD_FILE, "header length");
		assert_int_equal(heap.n_calls, 0);
	}
}

/* fault: F01 */
static void files_of_8_and_9_bytes_and_a_length_up_to_the_end_are_refused(void **state)
{
	struct header_file file = header_file("", 0);

	(void)state;
	put_length(file.bytes, 2);
	expect_refused_file(file, WIRE_BAD_FILE, "header length");
	expect_refused_file(header_file("{", 0), WIRE_BAD_FILE, "header length");
	/* N = file - 8: all of the data are taken for JSON. */
	expect_refused_file(header_file_sized(GOOD "\0\1\2\3\4\5\6\7\10\11\12\13",
					      strlen(GOOD) + GOOD_DATA, 0),
			    WIRE_BAD_FILE, "text after the header's last brace");
}

/* fault: F01 */
static void a_length_is_never_trusted_by_the_parser_itself(void **state)
{
	struct header_file file = header_file(GOOD, GOOD_DATA);
	struct tensor_map *map = NULL;
	struct err err = {0};

	(void)state;
	put_length(file.bytes, file.file_size);
	assert_int_equal(format_parse(FORMAT_SAFETENSORS, file.bytes, file.size, file.file_size,
				      &map, &err),
			 -WIRE_BAD_FILE);
	put_length(file.bytes, file.size - 9);
	assert_int_equal(format_parse(FORMAT_SAFETENSORS, file.bytes, file.size, file.file_size,
				      &map, &err),
			 -WIRE_INTERNAL);
	assert_null(map);
	free(file.bytes);
}

/* fault: F02 */
static void the_longest_header_is_judged_and_one_byte_more_is_refused(void **state)
{
	uint8_t first[] = {0, 0, 0, 0, 0, 0, 0, 0, '{', '"'};
	enum format format;
	uint64_t header_bytes = 0;
	struct err err = {0};

	(void)state;
	put_length(first, BOMB_BYTES);
	assert_int_equal(format_probe(first, sizeof first, BOMB_BYTES + 8ULL, FORMAT_AUTO, &format,
				      &header_bytes, &err),
			 0);
	assert_int_equal(header_bytes, BOMB_BYTES + 8ULL);
	assert_int_equal(format_probe(first, sizeof first, BOMB_BYTES + 7ULL, FORMAT_AUTO, &format,
				      &header_bytes, &err),
			 -WIRE_BAD_FILE);
	put_length(first, BOMB_BYTES + 1ULL);
	assert_int_equal(format_probe(first, sizeof first, 1ULL << 40, FORMAT_AUTO, &format,
				      &header_bytes, &err),
			 -WIRE_BAD_FILE);
	assert_non_null(strstr(err.text, "header length 100,000,001"));
}

/* fault: F03 */
static void what_is_not_json_is_refused_with_the_byte(void **state)
{
	static const struct {
		const char *json;
		const char *text;
		uint64_t offset;
	} cases[] = {
		{" {}", "byte 8: a header that does not begin", 8},
		{"[]", "byte 8: a header that does not begin", 8},
		{"\xef\xbb\xbf{}", "byte 8: a header that does not begin", 8},
		{"{}x", "byte 10: text after", 10},
		{"{}{}", "byte 10: text after", 10},
		{"{,}", "byte 9: '\"' is missing", 9},
		{"{\"a\":1}", "byte 13: '{' is missing", 13},
		{"{\"a\":[]}", "byte 13: '{' is missing", 13},
		{"{\"a\":null}", "byte 13: '{' is missing", 13},
		{"{\"a\"}", "byte 12: ':' is missing", 12},
		{"{'a':{}}", "byte 9: '\"' is missing", 9},
		{"{\"a\x01\":{}}", "byte 11: a control byte", 11},
		{"{\"a\\x\":{}}", "byte 11: an escape", 11},
		{"{\"\\ud800\":{}}", "byte 10: an escape", 10},
		{"{\"\xff\":{}}", "byte 10: bytes that are not UTF-8", 10},
		{"{\"a\":{}}", "'\"' is missing", 14},
		{"{\"a\":{},}", "'\"' is missing", 14},
		{GOOD ",", "text after", 8 + sizeof GOOD - 1},
	};

	(void)state;
	for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
		struct header_file file = header_file(cases[i].json, 0);
		struct tensor_map *map = NULL;
		struct err err = {0};

		assert_int_equal(header_file_read(&file, &map, &err), -WIRE_BAD_FILE);
		assert_non_null(strstr(err.text, cases[i].text));
		assert_int_equal(err.offset, cases[i].offset);
		free(file.bytes);
	}
}

/* fault: F03 */
static void every_cut_of_the_json_is_refused(void **state)
{
	(void)state;
	for (size_t size = 2; size < strlen(GOOD); size++) {
		expect_refused_file(header_file_sized(GOOD, size, GOOD_DATA), WIRE_BAD_FILE,
				    "the header ends in the middle");
	}
}

static void every_prefix_of_a_good_file_is_refused(void **state)
{
	struct header_file good = header_file(GOOD, GOOD_DATA);

	(void)state;
	for (uint64_t size = 0; size < good.file_size; size++) {
		size_t held = size < good.size ? size : good.size;
		struct header_file file = {malloc(held + 1), held, size};

		memcpy(file.bytes, good.bytes, held);
		expect_refused_file(file, WIRE_BAD_FILE, "");
	}
	(void)tensor_map_free(expect_loads(GOOD, GOOD_DATA));
	free(good.bytes);
}

static void expect_bomb_refused(struct text bomb, const char *text)
{
	struct header_file file = {(uint8_t *)bomb.text, BOMB_BYTES + 8, BOMB_BYTES + 8};
	uint64_t started;
	size_t before = heap.bytes;

	put_length(file.bytes, BOMB_BYTES);
	started = now_ms();
	heap_watch_begin();
	expect_refused_file(file, WIRE_BAD_FILE, text);
	assert_true(heap.peak_bytes - before < BOMB_MEMORY);
	assert_true(now_ms() - started < BOMB_MS);
}

/* 'start', then 'repeated' up to 100 MB. */
static struct text make_bomb(const char *start, const char *repeated)
{
	struct text bomb = {malloc(BOMB_BYTES + 8), 8, 0};
	size_t size = strlen(repeated);

	assert_non_null(bomb.text);
	memcpy(&bomb.text[bomb.size], start, strlen(start));
	bomb.size += strlen(start);
	while (bomb.size < BOMB_BYTES + 8) {
		size_t left = BOMB_BYTES + 8 - bomb.size;

		memcpy(&bomb.text[bomb.size], repeated, size < left ? size : left);
		bomb.size += size < left ? size : left;
	}
	return bomb;
}

/* fault: F04 */
static void bombs_of_100_mb_are_refused_soon_and_cheaply(void **state)
{
	static const struct {
		const char *start;
		const char *repeated;
		const char *text;
	} bombs[] = {
		{"", "[", "does not begin"},
		{"", "{\"dtype\":", "'\"' is missing"},
		{"{\"a\":", "[", "'{' is missing"},
		{"{\"a\":{\"dtype\":", "[", "'\"' is missing"},
		{"{\"a\":{\"shape\":[", "0,", "more than 64 dimensions"},
		{"{\"a\":{\"shape\":[", "0", "begins with 0"},
		{"{\"a\":{\"shape\":[", "9", "over 2^53"},
		{"{\"a\":{\"data_offsets\":[", "0,", "']' is missing"},
		{"{\"", "x", "too long"},
		{"{\"a\":{\"dtype\":\"", "x", "too long"},
		{"{\"__metadata__\":{\"a\":\"", "x", "more than 16 MiB"},
		{"{\"__metadata__\":{\"a\":\"", "\\u0041", "more than 16 MiB"},
		{"{\"__metadata__\":{", "\"\":\"\",", "more than 16 MiB"},
		{"{\"__metadata__\":", "{\"a\":", "'\"' is missing"},
		{"{", "                                ", "ends in the middle"},
		{"{", "\"a\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0]},",
		 "more than 262,144 tensors"},
	};

	(void)state;
	for (size_t i = 0; i < sizeof bombs / sizeof bombs[0]; i++) {
		expect_bomb_refused(make_bomb(bombs[i].start, bombs[i].repeated), bombs[i].text);
	}
}

#define U8_AT(name, begin, end, size)                                                             \
	"\"" name "\":{\"dtype\":\"U8\",\"shape\":[" #size "],\"data_offsets\":[" #begin "," #end \
	"]}"

/* fault: F05 */
static void holes_are_refused(void **state)
{
	(void)state;
	expect_bad("{" U8_AT("a", 0, 4, 4) "," U8_AT("b", 5, 8, 3) "}", 8, "tensor \"b\" at byte");
	expect_bad("{" U8_AT("b", 5, 8, 3) "," U8_AT("a", 0, 4, 4) "}", 8, "leaves a hole");
	expect_bad("{" U8_AT("a", 1, 8, 7) "}", 8, "tensor \"a\" at byte");
	expect_bad("{" U8_AT("a", 8, 8, 0) "}", 8, "leaves a hole");
}

/* fault: F06 */
static void a_file_of_another_size_than_described_is_refused_with_both(void **state)
{
	char wanted[128];
	uint64_t header = 8 + strlen(GOOD);

	(void)state;
	for (uint64_t data = 0; data < 30; data++) {
		if (data == GOOD_DATA) {
			continue;
		}
		(void)snprintf(wanted, sizeof wanted,
			       data < GOOD_DATA
				       ? "file is %llu bytes but its header describes %llu: the "
					 "download is incomplete"
				       : "file is %llu bytes but its header describes only %llu",
			       (unsigned long long)(header + data),
			       (unsigned long long)(header + GOOD_DATA));
		expect_bad(GOOD, data, wanted);
	}
	expect_bad("{" U8_AT("a", 0, 11901525000, 11901525000) "}", 9402000,
		   "header describes 11,901,525,");
	expect_bad("{}", 1, "something was appended");
}

/* fault: F07 */
static void names_that_are_equal_are_refused(void **state)
{
	(void)state;
	expect_bad("{" U8_AT("a", 0, 4, 4) "," U8_AT("a", 4, 8, 4) "}", 8,
		   "tensor \"a\" is described twice");
	expect_bad("{" U8_AT("abc", 0, 4, 4) "," U8_AT("x", 4, 5, 1) "," U8_AT("a\\u0062c", 5, 8,
									       3) "}",
		   8, "tensor \"abc\" is described twice");
	expect_bad("{" U8_AT("\xc3\xa9", 0, 4, 4) "," U8_AT("\\u00e9", 4, 8, 4) "}", 8,
		   "is described twice");
	expect_bad("{" U8_AT("\xf0\x9f\x98\x80", 0, 4, 4) "," U8_AT("\\ud83d\\ude00", 4, 8, 4) "}",
		   8, "is described twice");
	expect_bad("{\"__metadata__\":{},\"__metadata__\":{}}", 0, "a second __metadata__");
	expect_bad("{\"__metadata__\":null,\"\\u005f_metadata__\":{}}", 0, "a second __metadata__");
	expect_bad("{\"t.x\":{\"dtype\":\"U8\",\"dtype\":\"U8\",\"shape\":[],\"data_offsets\":[0,"
		   "1]}}",
		   1, "given before");
	(void)tensor_map_free(
		expect_loads("{" U8_AT("ab", 0, 4, 4) "," U8_AT("a", 4, 8, 4) "," U8_AT("b", 8, 9,
											1) "}",
			     9));
}

/* fault: F08 */
static void overlaps_are_refused(void **state)
{
	(void)state;
	expect_bad("{" U8_AT("a", 0, 4, 4) "," U8_AT("b", 3, 8, 5) "}", 8, "tensor \"b\" at byte");
	expect_bad("{" U8_AT("a", 0, 8, 8) "," U8_AT("b", 0, 8, 8) "}", 8, "overlaps");
	expect_bad("{" U8_AT("a", 0, 8, 8) "," U8_AT("b", 2, 4, 2) "}", 8, "overlaps");
	/* Empty, but inside another. */
	expect_bad("{" U8_AT("a", 0, 8, 8) "," U8_AT("b", 4, 4, 0) "}", 8, "overlaps");
	expect_one("\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[8,7]", 8,
		   "end before they begin");
	expect_one("\"dtype\":\"U8\",\"shape\":[8],\"data_offsets\":[8,0]", 8,
		   "end before they begin");
}

/* fault: F08 */
static void empty_tensors_may_share_an_offset(void **state)
{
	struct tensor_map *map =
		expect_loads("{" U8_AT("a", 0, 4, 4) "," U8_AT("e", 4, 4, 0) "," U8_AT(
				     "b", 4, 8, 4) "," U8_AT("c", 0, 0,
							     0) "," U8_AT("f", 4, 4,
									  0) "," U8_AT("d", 8, 8,
										       0) "}",
			     8);

	(void)state;
	assert_int_equal(map->n_tensors, 6);
	assert_memory_equal(map->tensors[0].name, "c", 1);
	assert_memory_equal(map->tensors[1].name, "a", 1);
	assert_memory_equal(map->tensors[2].name, "e", 1);
	assert_memory_equal(map->tensors[3].name, "f", 1);
	assert_memory_equal(map->tensors[4].name, "b", 1);
	assert_memory_equal(map->tensors[5].name, "d", 1);
	assert_non_null(strstr(map->notices[map->n_notices - 1], "4 of 6 tensors hold no bytes"));
	(void)tensor_map_free(map);
}

/* fault: F09 */
static void metadata_is_a_map_of_strings(void **state)
{
	(void)state;
	expect_bad("{\"__metadata__\":{\"a\":{}}}", 0, "__metadata__: byte 29: '\"' is missing");
	expect_bad("{\"__metadata__\":{\"a\":1}}", 0, "__metadata__");
	expect_bad("{\"__metadata__\":{\"a\":null}}", 0, "__metadata__");
	expect_bad("{\"__metadata__\":[]}", 0, "__metadata__: byte 24: a value of another kind");
	expect_bad("{\"__metadata__\":nul}", 0, "a value of another kind");
	(void)tensor_map_free(expect_loads("{\"__metadata__\":null}", 0));
	(void)tensor_map_free(expect_loads("{\"__metadata__\":{}}", 0));
	(void)tensor_map_free(expect_loads("{\"__metadata__\":{\"a\":\"\\u0000\",\"\":\"\"}}", 0));
}

/* fault: F09 */
static void metadata_of_10_mb_is_read_and_not_kept(void **state)
{
	size_t value = 10U << 20;
	struct text json = {malloc(value + 64), 0, value + 64};
	struct header_file file;
	struct tensor_map *map = NULL;
	struct err err = {0};
	size_t before;

	(void)state;
	json.size = (size_t)snprintf(json.text, 64, "{\"__metadata__\":{\"a\":\"");
	memset(&json.text[json.size], 'x', value);
	json.size += value;
	memcpy(&json.text[json.size], "\"}}", 3);
	file = header_file_sized(json.text, json.size + 3, 0);
	free(json.text);
	before = heap.bytes;
	heap_watch_begin();
	assert_int_equal(header_file_read(&file, &map, &err), 0);
	assert_true(heap.peak_bytes - before < 1U << 20);
	(void)tensor_map_free(map);
	free(file.bytes);
}

/* fault: F09 */
static void metadata_of_16_mib_loads_and_a_byte_more_is_refused(void **state)
{
	static const char start[] = "{\"__metadata__\":{\"a\":\"";
	size_t value = (16U << 20) - strlen("{\"a\":\"") - 2;

	(void)state;
	for (size_t more = 0; more <= 1; more++) {
		size_t size = strlen(start) + value + more + 3;
		char *json = malloc(size + 1);

		memset(json, 'x', size);
		memcpy(json, start, strlen(start));
		memcpy(&json[size - 3], "\"}}", 4);
		if (more > 0) {
			expect_bad(json, 0, "byte 24: __metadata__ takes more than 16 MiB");
		} else {
			(void)tensor_map_free(expect_loads(json, 0));
		}
		free(json);
	}
}

/* fault: F10 */
static void shapes_that_do_not_fit_are_refused_with_the_tensor(void **state)
{
	(void)state;
	expect_one("\"dtype\":\"F32\",\"shape\":[3],\"data_offsets\":[0,8]", 8,
		   "its shape of F32 takes 12 bytes, its data_offsets 8");
	expect_one("\"dtype\":\"F32\",\"shape\":[],\"data_offsets\":[0,8]", 8, "takes 4 bytes");
	expect_one("\"dtype\":\"U8\",\"shape\":[4294967296,4294967296],\"data_offsets\":[0,0]", 0,
		   "more than 2^64 bits");
	expect_one("\"dtype\":\"U8\",\"shape\":[4294967296,4294967296,0],\"data_offsets\":[0,0]", 0,
		   "more than 2^64 bits");
	/* 2^61 elements of a byte wrap only as bits. */
	expect_one("\"dtype\":\"U8\",\"shape\":[2147483648,1073741824],\"data_offsets\":[0,0]", 0,
		   "more than 2^64 bits");
	expect_one("\"dtype\":\"U8\",\"shape\":[-1],\"data_offsets\":[0,1]", 1, "plain digits");
	expect_one("\"dtype\":\"U8\",\"shape\":[-0],\"data_offsets\":[0,0]", 0, "plain digits");
	expect_one("\"dtype\":\"U8\",\"shape\":[+1],\"data_offsets\":[0,1]", 1, "plain digits");
	expect_one("\"dtype\":\"U8\",\"shape\":[1.0],\"data_offsets\":[0,1]", 1, "plain digits");
	expect_one("\"dtype\":\"U8\",\"shape\":[1e3],\"data_offsets\":[0,1000]", 1000,
		   "plain digits");
	expect_one("\"dtype\":\"U8\",\"shape\":[1E0],\"data_offsets\":[0,1]", 1, "plain digits");
	expect_one("\"dtype\":\"U8\",\"shape\":[01],\"data_offsets\":[0,1]", 1, "begins with 0");
	expect_one("\"dtype\":\"U8\",\"shape\":[\"1\"],\"data_offsets\":[0,1]", 1, "plain digits");
	expect_one("\"dtype\":\"U8\",\"shape\":[1,],\"data_offsets\":[0,1]", 1, "plain digits");
	expect_one("\"dtype\":\"U8\",\"shape\":[0,9007199254740993],\"data_offsets\":[0,0]", 0,
		   "over 2^53");
	expect_one("\"dtype\":\"U8\",\"shape\":[18446744073709551617],\"data_offsets\":[0,1]", 1,
		   "over 2^53");
	expect_one("\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0]", 1, "',' is missing");
	expect_one("\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1,1]", 1, "']' is missing");
	expect_one("\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1e0]", 1, "plain digits");
	expect_one("\"dtype\":\"U8\",\"shape\":[1]", 1, "data_offsets is missing");
	expect_one("\"dtype\":\"U8\",\"data_offsets\":[0,1]", 1, "is missing");
	expect_one("\"shape\":[1],\"data_offsets\":[0,1]", 1, "is missing");
	(void)tensor_map_free(expect_loads(
		"{\"t\":{\"dtype\":\"U8\",\"shape\":[0,9007199254740992],\"data_offsets\":[0,0]}}",
		0));
}

/* fault: F10 */
static void a_shape_of_64_dimensions_loads_and_of_65_is_refused(void **state)
{
	struct text json = {0};
	struct tensor_map *map;

	(void)state;
	for (int rank = FORMAT_MAX_RANK; rank <= FORMAT_MAX_RANK + 1; rank++) {
		json.size = 0;
		text_add(&json, "{\"t\":{\"dtype\":\"U8\",\"data_offsets\":[0,2],\"shape\":[2");
		for (int i = 1; i < rank; i++) {
			text_add(&json, ",1");
		}
		text_add(&json, "]}}");
		if (rank > FORMAT_MAX_RANK) {
			expect_bad(json.text, 2, "tensor \"t\": byte");
			expect_bad(json.text, 2, "more than 64 dimensions");
			continue;
		}
		map = expect_loads(json.text, 2);
		assert_int_equal(map->tensors[0].rank, FORMAT_MAX_RANK);
		assert_int_equal(map->tensors[0].shape[0], 2);
		assert_int_equal(map->tensors[0].shape[63], 1);
		(void)tensor_map_free(map);
	}
	free(json.text);
}

/* fault: F11 */
static void unknown_dtypes_are_unsupported_by_name(void **state)
{
	static const char *const dtypes[] = {"Q4_K", "f32", "F32 ", "", "F3", "F322", "\\n"};
	char json[256];

	(void)state;
	for (size_t i = 0; i < sizeof dtypes / sizeof dtypes[0]; i++) {
		char wanted[64];

		(void)snprintf(json, sizeof json,
			       "{\"t\":{\"dtype\":\"%s\",\"shape\":[1],\"data_offsets\":[0,4]}}",
			       dtypes[i]);
		(void)snprintf(wanted, sizeof wanted, "tensor \"t\": dtype \"%s\" is not known",
			       strcmp(dtypes[i], "\\n") == 0 ? "\\x0a" : dtypes[i]);
		expect_refused_file(header_file(json, 4), WIRE_UNSUPPORTED, wanted);
	}
	expect_refused_file(header_file("{\"t\":{\"dtype\":\"" GOOD_LONG_DTYPE
					"\",\"shape\":[],\"data_offsets\":[0,4]}}",
					4),
			    WIRE_UNSUPPORTED, "is not known");
	expect_refused_file(header_file("{\"t\":{\"stride\":[1]}}", 4), WIRE_UNSUPPORTED,
			    "tensor \"t\": key \"stride\" is not known");
}

/* fault: F11 */
static void parts_of_a_byte_are_unsupported_unless_they_fill_it(void **state)
{
	(void)state;
	expect_refused_file(
		header_file("{\"t\":{\"dtype\":\"F4\",\"shape\":[3],\"data_offsets\":[0,2]}}", 2),
		WIRE_UNSUPPORTED, "tensor \"t\": its 12 bits of F4 do not end on a whole byte");
	expect_refused_file(
		header_file("{\"t\":{\"dtype\":\"F6_E2M3\",\"shape\":[2],\"data_offsets\":[0,1]}}",
			    1),
		WIRE_UNSUPPORTED, "12 bits of F6_E2M3");
	(void)tensor_map_free(
		expect_loads("{\"t\":{\"dtype\":\"F4\",\"shape\":[2,2],\"data_offsets\":[0,2]},"
			     "\"u\":{\"dtype\":\"F6_E3M2\",\"shape\":[4],\"data_offsets\":[2,5]}}",
			     5));
}

/* fault: F12 */
static void a_misaligned_start_loads_with_a_notice(void **state)
{
	static const char *const padding[] = {"",     " ",     "  ",     "   ",
					      "    ", "     ", "      ", "       "};
	unsigned n_aligned = 0;

	(void)state;
	for (size_t i = 0; i < sizeof padding / sizeof padding[0]; i++) {
		char json[512];
		struct tensor_map *map;

		(void)snprintf(json, sizeof json, "%s%s", GOOD, padding[i]);
		map = expect_loads(json, GOOD_DATA);
		if (map->data_offset % 8 == 0) {
			assert_int_equal(map->n_notices, 0);
			n_aligned++;
		} else {
			assert_int_equal(map->n_notices, 1);
			assert_non_null(strstr(map->notices[0], "not a multiple of 8"));
		}
		(void)tensor_map_free(map);
	}
	assert_int_equal(n_aligned, 1);
}

/* fault: F13 */
static void nothing_a_scalar_and_an_empty_tensor_load(void **state)
{
	struct tensor_map *map = expect_loads("{}", 0);

	(void)state;
	assert_int_equal(map->n_tensors, 0);
	assert_int_equal(map->n_blocks, 0);
	(void)tensor_map_free(map);
	map = expect_loads("{ }", 0);
	assert_int_equal(map->n_tensors, 0);
	(void)tensor_map_free(map);
	map = expect_loads("{" U8_AT("", 0, 0, 0) "}", 0);
	assert_int_equal(map->n_tensors, 1);
	assert_int_equal(map->tensors[0].name_size, 0);
	(void)tensor_map_free(map);
	map = expect_loads("{\"s\":{\"dtype\":\"F64\",\"shape\":[],\"data_offsets\":[0,8]}}", 8);
	assert_int_equal(map->tensors[0].rank, 0);
	assert_int_equal(map->tensors[0].size, 8);
	(void)tensor_map_free(map);
}

/* Names of 'name_size' bytes that differ only at their end, in descending order. */
static struct text make_many(uint32_t n_tensors, int name_size)
{
	struct text json = {0};

	text_add(&json, "{");
	for (uint32_t i = 0; i < n_tensors; i++) {
		text_add(&json,
			 "%s\"%0*u\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[%u,%u]}",
			 i == 0 ? "" : ",", name_size, n_tensors - i, i, i + 1);
	}
	text_add(&json, "}");
	return json;
}

static void expect_many_load(uint32_t n_tensors, int name_size, size_t most_bytes)
{
	struct text json = make_many(n_tensors, name_size);
	struct header_file file = header_file_sized(json.text, json.size, n_tensors);
	struct tensor_map *map = NULL;
	struct err err = {0};
	uint64_t started;
	size_t before;

	free(json.text);
	before = heap.bytes;
	heap_watch_begin();
	started = now_ms();
	assert_int_equal(header_file_read(&file, &map, &err), 0);
	assert_true(now_ms() - started < MANY_MS);
	assert_true(heap.peak_bytes - before < most_bytes);
	assert_int_equal(map->n_tensors, n_tensors);
	assert_int_equal(map->tensors[1].name_size, name_size);
	(void)tensor_map_free(map);
	free(file.bytes);
}

/* fault: F14 */
static void many_tensors_and_long_names_load_in_time(void **state)
{
	(void)state;
	expect_many_load(100000, 8, 40U << 20);
	expect_many_load(FORMAT_MAX_TENSORS, 8, 100U << 20);
	expect_many_load(20000, 4096, 100U << 20);
}

/* fault: F14 */
static void a_name_of_4096_bytes_loads_and_one_of_4097_is_refused(void **state)
{
	struct text json = make_many(1, 4096);

	(void)state;
	(void)tensor_map_free(expect_loads(json.text, 1));
	free(json.text);
	json = make_many(1, 4097);
	expect_bad(json.text, 1, "byte 9: a string that is too long");
	free(json.text);
	json = make_many(FORMAT_MAX_TENSORS + 1, 8);
	expect_bad(json.text, FORMAT_MAX_TENSORS + 1, "more than 262,144 tensors");
	free(json.text);
}

static void names_hold_no_nul_and_are_shown_escaped(void **state)
{
	struct tensor_map *map;

	(void)state;
	expect_bad("{" U8_AT("a\\u0000b", 0, 1, 1) "}", 1,
		   "byte 9: a tensor's name that holds NUL");
	expect_bad("{\"\\u001b[31m\":{\"dtype\":1}}", 1, "tensor \"\\x1b[31m\": ");
	map = expect_loads("{" U8_AT("\\u001b\\t\\u202e", 0, 1, 1) "}", 1);
	assert_int_equal(map->tensors[0].name_size, 5);
	assert_memory_equal(map->tensors[0].name, "\033\t\xe2\x80\xae", 5);
	(void)tensor_map_free(map);
}

/* The probe's 64 KiB may end anywhere inside a good header. */
static void a_probe_accepts_every_beginning_of_a_good_header(void **state)
{
	struct header_file file = header_file(
		"{\"\\ud83d\\ude00\xc3\xa9\":{\"dtype\":\"F32\",\"shape\":[2, 1 ],\"data_offsets\":[0,"
		"8]},\"__metadata__\":null}  ",
		8);

	(void)state;
	for (size_t size = 9; size <= file.size; size++) {
		uint8_t *first = malloc(size);
		enum format format = FORMAT_AUTO;
		uint64_t header_bytes = 0;
		struct err err = {0};

		memcpy(first, file.bytes, size);
		assert_int_equal(format_probe(first, size, file.file_size, FORMAT_AUTO, &format,
					      &header_bytes, &err),
				 0);
		assert_int_equal(header_bytes, file.size);
		assert_int_equal(err.code, 0);
		free(first);
	}
	free(file.bytes);
}

/* fault: M10 */
static void every_failed_allocation_is_no_memory_and_leaves_nothing(void **state)
{
	struct header_file file =
		header_file("{" U8_AT("l.0.a", 4, 8, 4) "," U8_AT("l.1.a", 0, 4,
								  4) "," U8_AT("x", 8, 9, 1) "}",
			    9);
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
			code = header_file_read(&file, &map, &err);
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
		cmocka_unit_test(a_good_file_gives_its_tensors),
		cmocka_unit_test(impossible_lengths_are_refused_before_any_allocation),
		cmocka_unit_test(files_of_8_and_9_bytes_and_a_length_up_to_the_end_are_refused),
		cmocka_unit_test(a_length_is_never_trusted_by_the_parser_itself),
		cmocka_unit_test(the_longest_header_is_judged_and_one_byte_more_is_refused),
		cmocka_unit_test(what_is_not_json_is_refused_with_the_byte),
		cmocka_unit_test(every_cut_of_the_json_is_refused),
		cmocka_unit_test(every_prefix_of_a_good_file_is_refused),
		cmocka_unit_test(bombs_of_100_mb_are_refused_soon_and_cheaply),
		cmocka_unit_test(holes_are_refused),
		cmocka_unit_test(a_file_of_another_size_than_described_is_refused_with_both),
		cmocka_unit_test(names_that_are_equal_are_refused),
		cmocka_unit_test(overlaps_are_refused),
		cmocka_unit_test(empty_tensors_may_share_an_offset),
		cmocka_unit_test(metadata_is_a_map_of_strings),
		cmocka_unit_test(metadata_of_10_mb_is_read_and_not_kept),
		cmocka_unit_test(metadata_of_16_mib_loads_and_a_byte_more_is_refused),
		cmocka_unit_test(shapes_that_do_not_fit_are_refused_with_the_tensor),
		cmocka_unit_test(a_shape_of_64_dimensions_loads_and_of_65_is_refused),
		cmocka_unit_test(unknown_dtypes_are_unsupported_by_name),
		cmocka_unit_test(parts_of_a_byte_are_unsupported_unless_they_fill_it),
		cmocka_unit_test(a_misaligned_start_loads_with_a_notice),
		cmocka_unit_test(nothing_a_scalar_and_an_empty_tensor_load),
		cmocka_unit_test(many_tensors_and_long_names_load_in_time),
		cmocka_unit_test(a_name_of_4096_bytes_loads_and_one_of_4097_is_refused),
		cmocka_unit_test(names_hold_no_nul_and_are_shown_escaped),
		cmocka_unit_test(a_probe_accepts_every_beginning_of_a_good_header),
		cmocka_unit_test(every_failed_allocation_is_no_memory_and_leaves_nothing),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
