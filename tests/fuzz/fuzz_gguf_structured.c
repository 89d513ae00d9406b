/* SPDX-License-Identifier: Apache-2.0 */
/*
 * GGUF files of the right shape, with numbers, names and types bent: the input's bytes are
 * choices. Without a bend the file must be accepted; with one, what is accepted must still hold
 * together (tests/support/map_check.h).
 */
#include "tests/fuzz/fuzz.h"
#include "tests/support/gguf_file.h"
#include "tests/support/map_check.h"

#include <stdio.h>

#define MAX_TENSORS 10U
#define MAX_KEYS    6U

struct builder {
	const uint8_t *choices;
	size_t n_choices;
	struct gguf_file file;
	uint64_t at; /* where the next tensor begins */
	uint32_t alignment;
	bool is_bent;
};

/* 0 when there are no more. */
static uint8_t choose(struct builder *builder)
{
	if (builder->n_choices == 0) {
		return 0;
	}
	builder->n_choices--;
	return *builder->choices++;
}

/* Mostly the right number; now and then one that sits on an edge. */
static uint64_t bend(struct builder *builder, uint64_t value)
{
	static const uint64_t edges[] = {0,          1,          31,         32,
					 UINT32_MAX, 1ULL << 31, 1ULL << 32, 1ULL << 59,
					 1ULL << 61, INT64_MAX,  1ULL << 63, UINT64_MAX - 31,
					 UINT64_MAX};
	uint8_t choice = choose(builder);
	uint64_t bent = value;

	if (choice >= 246) {
		bent = edges[choose(builder) % (sizeof edges / sizeof edges[0])];
	} else if (choice >= 241) {
		bent = value + 1;
	} else if (choice >= 236) {
		bent = value - 1;
	}
	builder->is_bent = builder->is_bent || bent != value;
	return bent;
}

static void add_name(struct builder *builder, const char *prefix, unsigned number)
{
	char name[48];

	if (choose(builder) >= 250) {
		number = 0; /* perhaps a name that was there before */
		builder->is_bent = true;
	}
	(void)snprintf(name, sizeof name, "%s.%u.w", prefix, number);
	gguf_add_u64(&builder->file, bend(builder, strlen(name)));
	gguf_add(&builder->file, name, strlen(name));
}

static void add_array(struct builder *builder)
{
	static const uint8_t sizes[] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};
	uint32_t type = choose(builder) % 13;
	uint64_t count = choose(builder) % 5;

	type = type == GGUF_ARRAY ? GGUF_STRING : type;
	gguf_add_u32(&builder->file, (uint32_t)bend(builder, type));
	gguf_add_u64(&builder->file, bend(builder, count));
	for (uint64_t i = 0; i < count; i++) {
		if (type == GGUF_STRING) {
			gguf_add_u64(&builder->file, bend(builder, 3));
			gguf_add(&builder->file, "a\xff", 3);
		} else {
			gguf_add_number(&builder->file, i, sizes[type]);
		}
	}
}

static void add_key(struct builder *builder, unsigned number)
{
	uint8_t choice = choose(builder) % 4;

	if (choice == 0 && number == 0) {
		builder->alignment = 1U << choose(builder) % 9;
		gguf_add_key(&builder->file, "general.alignment",
			     (uint32_t)bend(builder, GGUF_U32));
		gguf_add_u32(&builder->file, (uint32_t)bend(builder, builder->alignment));
		return;
	}
	add_name(builder, "key", number);
	if (choice == 1) {
		gguf_add_u32(&builder->file, (uint32_t)bend(builder, GGUF_ARRAY));
		add_array(builder);
	} else if (choice == 2) {
		gguf_add_u32(&builder->file, (uint32_t)bend(builder, GGUF_STRING));
		gguf_add_u64(&builder->file, bend(builder, 2));
		gguf_add(&builder->file, "xy", 2);
	} else {
		gguf_add_u32(&builder->file, (uint32_t)bend(builder, GGUF_U64));
		gguf_add_u64(&builder->file, 7);
	}
}

static void add_tensor(struct builder *builder, unsigned number)
{
	static const struct {
		uint32_t type, group, bytes;
	} types[] = {{0, 1, 4},      {1, 1, 2},    {2, 32, 18},  {8, 32, 34},
		     {12, 256, 144}, {24, 1, 1},   {28, 1, 8},   {30, 1, 2},
		     {34, 256, 54},  {39, 32, 17}, {40, 64, 36}, {41, 128, 18}};
	unsigned kind = choose(builder) % (sizeof types / sizeof types[0]);
	uint32_t n_dims = 1U + choose(builder) % 4U;
	uint64_t size = types[kind].bytes;

	add_name(builder, choose(builder) % 2 == 0 ? "blk" : "output", number);
	gguf_add_u32(&builder->file, (uint32_t)bend(builder, n_dims));
	for (uint32_t i = 0; i < n_dims; i++) {
		uint64_t length = 1U + choose(builder) % 3U;

		size *= length;
		gguf_add_u64(&builder->file,
			     bend(builder, i == 0 ? length * types[kind].group : length));
	}
	gguf_add_u32(&builder->file, (uint32_t)bend(builder, types[kind].type));
	gguf_add_u64(&builder->file, bend(builder, builder->at));
	builder->at += (size + builder->alignment - 1) / builder->alignment * builder->alignment;
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size)
{
	struct builder builder = {.choices = bytes, .n_choices = size, .alignment = 32};
	struct gguf_reading got = {.first = 64};
	unsigned n_tensors = choose(&builder) % (MAX_TENSORS + 1);
	unsigned n_keys = choose(&builder) % (MAX_KEYS + 1);
	uint64_t n_claimed = bend(&builder, n_tensors);
	int code;

	gguf_add_start(&builder.file, 2U + choose(&builder) % 2U, n_claimed,
		       bend(&builder, n_keys));
	for (unsigned i = 0; i < n_keys; i++) {
		add_key(&builder, i);
	}
	for (unsigned i = 0; i < n_tensors; i++) {
		add_tensor(&builder, i);
	}
	gguf_add_data(&builder.file, builder.alignment, builder.at);
	code = gguf_read(builder.file.bytes, builder.file.size, &got);
	free(builder.file.bytes);
	REQUIRE(code == 0 || builder.is_bent);
	REQUIRE(code == 0 || (code == -got.err.code && got.map == NULL && got.err.text[0] != '\0'));
	if (code == 0) {
		map_check(got.map);
		(void)tensor_map_free(got.map);
	}
	return 0;
}
