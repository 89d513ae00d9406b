/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Headers that are well-formed JSON of the right shape, with numbers, names and dtypes bent:
 * the input's bytes are choices. Without a bend the file must be accepted; with one, what is
 * accepted must still hold together (tests/support/map_check.h).
 */
#include "base/err.h"
#include "tests/fuzz/fuzz.h"
#include "tests/support/map_check.h"

#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_TENSORS 12U
#define JSON_SIZE   32768U

struct choices {
	const uint8_t *bytes;
	size_t left;
};

struct builder {
	struct choices choices;
	char json[JSON_SIZE];
	size_t size;
	uint64_t at; /* where the next tensor begins */
	bool is_bent;
};

/* 0 when there are no more. */
static uint8_t choose(struct choices *choices)
{
	if (choices->left == 0) {
		return 0;
	}
	choices->left--;
	return *choices->bytes++;
}

__attribute__((format(printf, 2, 3))) static void add(struct builder *builder, const char *format,
						      ...)
{
	va_list arguments;
	int size;

	va_start(arguments, format);
	size = vsnprintf(&builder->json[builder->size], JSON_SIZE - builder->size, format,
			 arguments);
	va_end(arguments);
	REQUIRE(size >= 0 && (size_t)size < JSON_SIZE - builder->size);
	builder->size += (size_t)size;
}

/* Mostly the right number; now and then one that sits on an edge. */
static uint64_t bend(struct builder *builder, uint64_t value)
{
	static const uint64_t edges[] = {0,
					 1,
					 2,
					 7,
					 8,
					 UINT32_MAX,
					 1ULL << 31,
					 1ULL << 32,
					 1ULL << 33,
					 (1ULL << 53) - 1,
					 1ULL << 53,
					 (1ULL << 53) + 1,
					 1ULL << 60,
					 1ULL << 61,
					 INT64_MAX,
					 1ULL << 63,
					 UINT64_MAX - 7,
					 UINT64_MAX};
	uint8_t choice = choose(&builder->choices);
	uint64_t bent = value;

	if (choice >= 240) {
		bent = edges[choose(&builder->choices) % (sizeof edges / sizeof edges[0])];
	} else if (choice >= 232) {
		bent = value + 1;
	} else if (choice >= 224) {
		bent = value - 1;
	}
	builder->is_bent = builder->is_bent || bent != value;
	return bent;
}

static void add_name(struct builder *builder, unsigned number)
{
	uint8_t choice = choose(&builder->choices);

	if (choice >= 250) {
		number = 0; /* perhaps a name that was there before */
		builder->is_bent = true;
	}
	add(builder, "\"");
	switch (choice % 5) {
	case 0:
		add(builder, "blocks.%u.w", number);
		break;
	case 1:
		add(builder, "model.diffusion_model.%u", number);
		break;
	case 2:
		add(builder, "vae.head%u", number);
		break;
	case 3:
		add(builder, "\\u0041\\ud83d\\ude00%u", number);
		break;
	default:
		add(builder, "%u.x.0%u", number, choice);
		break;
	}
	add(builder, "\":");
}

static void add_tensor(struct builder *builder, unsigned number)
{
	uint16_t dtype = (uint16_t)(1 + choose(&builder->choices) % 22);
	uint64_t size = dtype_bits(dtype); /* eight elements at least: whole bytes */
	unsigned rank = choose(&builder->choices) % 5;

	add_name(builder, number);
	add(builder, "{\"shape\":[%llu", (unsigned long long)bend(builder, 8));
	for (unsigned i = 0; i < rank; i++) {
		uint64_t length = choose(&builder->choices) % 5;

		size *= length;
		add(builder, ",%llu", (unsigned long long)bend(builder, length));
	}
	add(builder, "],\"dtype\":\"%s\",", dtype_name(dtype));
	add(builder, "\"data_offsets\":[%llu,", (unsigned long long)bend(builder, builder->at));
	builder->at += size;
	add(builder, "%llu]}", (unsigned long long)bend(builder, builder->at));
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size)
{
	static struct builder builder; /* large: kept off the stack */
	unsigned n_tensors;
	struct tensor_map *map = NULL;
	struct err err = {0};
	uint64_t file_size;
	uint8_t *file;
	int code;

	builder.choices = (struct choices){bytes, size};
	builder.size = 0;
	builder.at = 0;
	builder.is_bent = false;
	n_tensors = choose(&builder.choices) % (MAX_TENSORS + 1);
	add(&builder, "{");
	for (unsigned i = 0; i < n_tensors; i++) {
		add(&builder, "%s", i == 0 ? "" : ",");
		add_tensor(&builder, i);
	}
	add(&builder, "}");

	file = malloc(8 + builder.size);
	REQUIRE(file != NULL);
	for (unsigned i = 0; i < 8; i++) {
		file[i] = (uint8_t)((uint64_t)builder.size >> 8 * i);
	}
	memcpy(&file[8], builder.json, builder.size);
	file_size = bend(&builder, 8 + builder.size + builder.at);
	code = format_parse(FORMAT_SAFETENSORS, file, 8 + builder.size, file_size, &map, &err);
	free(file);
	REQUIRE(code == 0 || builder.is_bent);
	REQUIRE(code == 0 || (code == -err.code && map == NULL && err.text[0] != '\0'));
	if (code == 0) {
		map_check(map);
		(void)tensor_map_free(map);
	}
	return 0;
}
