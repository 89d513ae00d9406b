/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Places are sorted once by (stem, number), which brings blocks together; stems are then
 * sorted by where they begin in the file; one pass over the result counts blocks, a second
 * writes them. See blocks.h.
 */
#include "daemon/format/blocks.h"

#include "base/checked.h"
#include "base/err.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/format/order.h"
#include "proto/gen/wire_code.h"

#define PART_NAME_SIZE 12 /* "#4294967295" */

static const char head_name[] = "(head)";

/* Where a tensor belongs, read from its name. */
struct place {
	const char *name;
	uint32_t stem_size;      /* up to the number: "double_blocks." */
	uint32_t number_at;      /* the number without leading zeros begins here */
	uint32_t prefix_size;    /* up to the number's end; 0: (head) */
	uint32_t component_size; /* "vae.", of which it is; 0: of the whole */
	enum component component;
};

/* A run of the sorted tensors. */
struct stem {
	uint32_t start, end;
	uint32_t first_tensor;
};

/* All arrays have room for every tensor. */
struct work {
	struct tensor *tensors;
	uint32_t n_tensors;
	uint32_t n_stems;
	struct place *places;
	uint32_t *sorted; /* tensors by stem, number, file order */
	uint32_t *scratch;
	struct stem *stems;
	uint32_t *stem_order;
};

/* The result of one pass; 'blocks' NULL: only count. */
struct emitted {
	struct block *blocks;
	char *names;
	uint32_t n_blocks;
	uint64_t name_bytes;
};

/* ---- places ---- */

/* '*ret_size': of what the name says of it, 0 where that is nothing. */
static enum component find_component(const char *name, uint32_t name_size, uint32_t *ret_size)
{
	static const struct {
		const char *prefix;
		enum component component;
	} prefixes[] = {
		{"model.diffusion_model.", COMPONENT_UNET},
		{"first_stage_model.", COMPONENT_VAE},
		{"vae.", COMPONENT_VAE},
		{"cond_stage_model.", COMPONENT_CLIP},
		{"conditioner.", COMPONENT_CLIP},
		{"text_encoders.", COMPONENT_CLIP},
	};

	for (unsigned i = 0; i < sizeof prefixes / sizeof prefixes[0]; i++) {
		size_t size = strlen(prefixes[i].prefix);

		if (name_size >= size && memcmp(name, prefixes[i].prefix, size) == 0) {
			*ret_size = (uint32_t)size;
			return prefixes[i].component;
		}
	}
	*ret_size = 0;
	return COMPONENT_WHOLE;
}

static struct place find_place(const char *name, uint32_t name_size)
{
	struct place place = {.name = name};
	uint32_t start = 0;
	bool is_number = true;

	place.component = find_component(name, name_size, &place.component_size);
	for (uint32_t at = 0; at <= name_size; at++) {
		bool is_end = at == name_size || name[at] == '.';

		if (is_end && is_number && at > start) {
			place.stem_size = start;
			place.prefix_size = at;
			break;
		}
		if (is_end) {
			start = at + 1;
			is_number = true;
		} else {
			is_number = is_number && name[at] >= '0' && name[at] <= '9';
		}
	}
	place.number_at = place.stem_size;
	while (place.number_at < place.prefix_size && name[place.number_at] == '0') {
		place.number_at++;
	}
	return place;
}

/* The name without the "#2" of a further part. */
static uint32_t whole_name_size(const char *name, uint32_t name_size)
{
	uint32_t size = name_size;

	while (size > 0 && name[size - 1] >= '0' && name[size - 1] <= '9') {
		size--;
	}
	return size > 0 && size < name_size && name[size - 1] == '#' ? size - 1 : name_size;
}

void block_read_name(const char *name, uint32_t name_size, enum component *ret_component,
		     bool *ret_is_head)
{
	const struct place place = find_place(name, whole_name_size(name, name_size));

	*ret_component = place.component;
	*ret_is_head = place.prefix_size == 0;
}

static int compare_texts(const char *a, uint32_t size_a, const char *b, uint32_t size_b)
{
	int difference = memcmp(a, b, size_a < size_b ? size_a : size_b);

	if (difference != 0) {
		return difference;
	}
	return (size_a > size_b) - (size_a < size_b);
}

static int compare_stems(const struct place *a, const struct place *b)
{
	bool a_is_head = a->prefix_size == 0;
	bool b_is_head = b->prefix_size == 0;

	if (a_is_head || b_is_head) {
		if (a_is_head != b_is_head) {
			return a_is_head ? -1 : 1;
		}
		return (a->component > b->component) - (a->component < b->component);
	}
	return compare_texts(a->name, a->stem_size, b->name, b->stem_size);
}

static int compare_places(const struct place *a, const struct place *b)
{
	uint32_t digits_a = a->prefix_size - a->number_at;
	uint32_t digits_b = b->prefix_size - b->number_at;
	int difference = compare_stems(a, b);

	if (difference != 0 || a->prefix_size == 0) {
		return difference;
	}
	/* Without leading zeros the longer number is the larger one. */
	if (digits_a != digits_b) {
		return digits_a < digits_b ? -1 : 1;
	}
	difference = memcmp(&a->name[a->number_at], &b->name[b->number_at], digits_a);
	if (difference != 0) {
		return difference;
	}
	return (a->prefix_size > b->prefix_size) - (a->prefix_size < b->prefix_size); /* 7, 07 */
}

static bool is_place_before(const void *context, uint32_t a, uint32_t b)
{
	const struct place *places = context;

	return compare_places(&places[a], &places[b]) < 0;
}

static bool is_stem_before(const void *context, uint32_t a, uint32_t b)
{
	const struct stem *stems = context;

	return stems[a].first_tensor < stems[b].first_tensor;
}

static void sort_places(struct work *work)
{
	for (uint32_t i = 0; i < work->n_tensors; i++) {
		work->places[i] = find_place(work->tensors[i].name, work->tensors[i].name_size);
		work->sorted[i] = i;
	}
	order_sort(work->sorted, work->scratch, work->n_tensors, is_place_before, work->places);
}

static void sort_stems(struct work *work)
{
	for (uint32_t i = 0; i < work->n_tensors; i++) {
		uint32_t tensor = work->sorted[i];
		struct stem *stem;

		if (i == 0 ||
		    compare_stems(&work->places[work->sorted[i - 1]], &work->places[tensor]) != 0) {
			work->stem_order[work->n_stems] = work->n_stems;
			work->stems[work->n_stems++] =
				(struct stem){.start = i, .first_tensor = tensor};
		}
		stem = &work->stems[work->n_stems - 1];
		stem->end = i + 1;
		if (tensor < stem->first_tensor) {
			stem->first_tensor = tensor;
		}
	}
	order_sort(work->stem_order, work->scratch, work->n_stems, is_stem_before, work->stems);
}

/* ---- blocks ---- */

/* A text of a block's name; 'names' NULL: it is only counted. */
static void add_name(struct emitted *emitted, const char *text, uint32_t size)
{
	if (emitted->names != NULL) {
		memcpy(&emitted->names[emitted->name_bytes], text, size);
	}
	emitted->name_bytes += size;
}

/* "vae.(head)", "double_blocks.7#2": borrowed where a text has it whole. */
static const char *make_name(struct emitted *emitted, const struct place *place, uint32_t part,
			     uint32_t *ret_size)
{
	const bool is_head = place->prefix_size == 0;
	const uint64_t start = emitted->name_bytes;
	char suffix[PART_NAME_SIZE];

	if (part <= 1 && (!is_head || place->component_size == 0)) {
		*ret_size = is_head ? (uint32_t)(sizeof head_name - 1) : place->prefix_size;
		return is_head ? head_name : place->name;
	}
	add_name(emitted, place->name, is_head ? place->component_size : place->prefix_size);
	if (is_head) {
		add_name(emitted, head_name, sizeof head_name - 1);
	}
	if (part > 1) {
		add_name(emitted, suffix, (uint32_t)snprintf(suffix, sizeof suffix, "#%u", part));
	}
	*ret_size = (uint32_t)(emitted->name_bytes - start); /* a header's name and a few letters */
	return emitted->names == NULL ? NULL : &emitted->names[start];
}

static void begin_block(struct emitted *emitted, const struct place *place, uint32_t tensor,
			uint32_t part)
{
	uint32_t name_size = 0;
	const char *name = make_name(emitted, place, part, &name_size);

	if (emitted->blocks != NULL) {
		emitted->blocks[emitted->n_blocks] =
			(struct block){.name = name,
				       .name_size = name_size,
				       .first_tensor = tensor,
				       .component = place->component,
				       .is_head = place->prefix_size == 0};
	}
	emitted->n_blocks++;
}

static void emit_stem(struct work *work, const struct stem *stem, struct emitted *emitted)
{
	uint64_t size = 0; /* of the block so far */
	uint32_t part = 0;

	for (uint32_t i = stem->start; i < stem->end; i++) {
		uint32_t tensor = work->sorted[i];
		const struct place *place = &work->places[tensor];
		uint64_t grown = UINT64_MAX;
		bool is_new = i == stem->start ||
			      compare_places(&work->places[work->sorted[i - 1]], place) != 0;

		(void)checked_add(size, work->tensors[tensor].size, &grown);
		part = is_new ? 0 : part;
		if (is_new || (size > 0 && grown > FORMAT_MAX_BLOCK)) {
			begin_block(emitted, place, tensor, ++part);
			grown = work->tensors[tensor].size;
		}
		size = grown;
		if (emitted->blocks != NULL) {
			struct block *block = &emitted->blocks[emitted->n_blocks - 1];

			block->n_tensors++;
			block->size = size;
			work->tensors[tensor].block = emitted->n_blocks - 1;
		}
	}
}

static void emit_all(struct work *work, struct emitted *emitted)
{
	for (uint32_t i = 0; i < work->n_stems; i++) {
		emit_stem(work, &work->stems[work->stem_order[i]], emitted);
	}
}

/* Memory for the work arrays: the structs first, so that all are aligned. */
static void *take_work(struct work *work)
{
	size_t count = work->n_tensors == 0 ? 1 : work->n_tensors;
	size_t size =
		count * (sizeof *work->places + sizeof *work->stems + 3 * sizeof *work->sorted);
	void *memory = malloc(size);

	if (memory != NULL) {
		memset(memory, 0, size);
		work->places = memory;
		work->stems = (void *)&work->places[count];
		work->sorted = (void *)&work->stems[count];
		work->scratch = &work->sorted[count];
		work->stem_order = &work->scratch[count];
	}
	return memory;
}

int blocks_compute(struct tensor *tensors, uint32_t n_tensors, void **ret_memory,
		   const struct block **ret_blocks, uint32_t *ret_n_blocks, struct err *err)
{
	struct work work = {.tensors = tensors, .n_tensors = n_tensors};
	struct emitted emitted = {0};
	void *work_memory = take_work(&work);
	uint64_t size = 0;
	void *memory = NULL;

	if (work_memory != NULL) {
		sort_places(&work);
		sort_stems(&work);
		emit_all(&work, &emitted);
		if (checked_mul(emitted.n_blocks, sizeof *emitted.blocks, &size) &&
		    checked_add(size, emitted.name_bytes, &size)) {
			memory = malloc(size == 0 ? 1 : size);
		}
	}
	if (memory == NULL) {
		free(work_memory);
		return err_set(err, WIRE_NO_MEMORY, "no memory for the blocks of %u tensors",
			       n_tensors);
	}
	emitted = (struct emitted){.blocks = memory,
				   .names = (char *)&((struct block *)memory)[emitted.n_blocks]};
	emit_all(&work, &emitted);
	free(work_memory);
	*ret_memory = memory;
	*ret_blocks = memory;
	*ret_n_blocks = emitted.n_blocks;
	return 0;
}

/* Where the first tensor of each block comes among all, by the blocks' order. */
static void count_before(const struct tensor_map *map, uint32_t *ret)
{
	uint32_t n_before = 0;

	for (uint32_t i = 0; i < map->n_blocks; i++) {
		ret[i] = n_before;
		n_before += map->blocks[i].n_tensors;
	}
}

int blocks_by_tensor(struct tensor_map *map, struct err *err)
{
	struct tensor *tensors = map->tensor_memory; /* they come first in it */
	struct block *blocks = calloc((size_t)map->n_tensors + 1, sizeof *blocks);
	uint32_t *next = calloc((size_t)map->n_blocks + 1, sizeof *next);

	if (blocks == NULL || next == NULL) {
		free(blocks);
		free(next);
		return err_set(err, WIRE_NO_MEMORY, "no memory for the blocks of %u tensors",
			       map->n_tensors);
	}
	count_before(map, next);
	for (uint32_t i = 0; i < map->n_tensors; i++) {
		struct tensor *tensor = &tensors[i];
		const struct block *whole = &map->blocks[tensor->block];

		tensor->block = next[tensor->block]++;
		blocks[tensor->block] = (struct block){.name = tensor->name,
						       .name_size = tensor->name_size,
						       .first_tensor = i,
						       .n_tensors = 1,
						       .component = whole->component,
						       .size = tensor->size,
						       .is_head = whole->is_head};
	}
	free(next);
	free(map->block_memory);
	map->block_memory = blocks;
	map->blocks = blocks;
	map->n_blocks = map->n_tensors;
	return 0;
}
