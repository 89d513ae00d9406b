/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The cursor, and the walk that decides whether bytes are a message at all. Every length a
 * peer declares is compared with the bytes that are left before it is believed.
 */
#include "proto/wire_read.h"

#include <string.h>

#include "proto/gen/wire_gen.h"

#define SMALL_MAP 16 /* keys that are compared each with each; more are sorted */

static bool read_number(struct wire_reader *reader, uint32_t size, uint64_t *ret)
{
	uint64_t value = 0;

	if ((size_t)(reader->end - reader->at) < size) {
		return false;
	}
	for (uint32_t i = 0; i < size; i++) {
		value = value << 8 | reader->at[i];
	}
	reader->at += size;
	*ret = value;
	return true;
}

static bool take_text(struct wire_reader *reader, enum wire_item_kind kind, uint64_t size,
		      struct wire_item *ret)
{
	if (size > (uint64_t)(reader->end - reader->at)) {
		return false;
	}
	*ret = (struct wire_item){.kind = kind, .number = size, .text = reader->at};
	reader->at += size;
	return true;
}

static bool take_head(struct wire_reader *reader, enum wire_item_kind kind, uint64_t count,
		      struct wire_item *ret)
{
	uint64_t least = kind == WIRE_ITEM_MAP ? 2 * count : count;

	if (least > (uint64_t)(reader->end - reader->at)) {
		return false;
	}
	*ret = (struct wire_item){.kind = kind, .number = count};
	return true;
}

static bool take_value(enum wire_item_kind kind, uint64_t number, struct wire_item *ret)
{
	*ret = (struct wire_item){.kind = kind, .number = number};
	return true;
}

/* int8 to int64 after their first byte; what is not negative is an ordinary number. */
static bool read_signed(struct wire_reader *reader, uint32_t size, struct wire_item *ret)
{
	uint64_t value;
	uint64_t sign = 1ULL << (8 * size - 1);

	if (!read_number(reader, size, &value)) {
		return false;
	}
	if ((value & sign) == 0) {
		return take_value(WIRE_ITEM_UINT, value, ret);
	}
	return take_value(WIRE_ITEM_NEGATIVE, value | ~(sign - 1), ret);
}

/* The items whose first byte is 0xc0 to 0xdf. */
static bool read_marked(struct wire_reader *reader, uint8_t mark, struct wire_item *ret)
{
	uint64_t number = 0;

	switch (mark) {
	case 0xc0:
		return take_value(WIRE_ITEM_NIL, 0, ret);
	case 0xc2:
	case 0xc3:
		return take_value(WIRE_ITEM_BOOL, mark & 1, ret);
	case 0xc4:
	case 0xc5:
	case 0xc6:
		return read_number(reader, 1U << (mark - 0xc4), &number) &&
		       take_text(reader, WIRE_ITEM_BIN, number, ret);
	case 0xca:
	case 0xcb:
		return read_number(reader, mark == 0xca ? 4 : 8, &number) &&
		       take_value(WIRE_ITEM_FLOAT, 0, ret);
	case 0xcc:
	case 0xcd:
	case 0xce:
	case 0xcf:
		return read_number(reader, 1U << (mark - 0xcc), &number) &&
		       take_value(WIRE_ITEM_UINT, number, ret);
	case 0xd0:
	case 0xd1:
	case 0xd2:
	case 0xd3:
		return read_signed(reader, 1U << (mark - 0xd0), ret);
	case 0xd9:
	case 0xda:
	case 0xdb:
		return read_number(reader, 1U << (mark - 0xd9), &number) &&
		       take_text(reader, WIRE_ITEM_STR, number, ret);
	case 0xdc:
	case 0xdd:
		return read_number(reader, mark == 0xdc ? 2 : 4, &number) &&
		       take_head(reader, WIRE_ITEM_ARRAY, number, ret);
	case 0xde:
	case 0xdf:
		return read_number(reader, mark == 0xde ? 2 : 4, &number) &&
		       take_head(reader, WIRE_ITEM_MAP, number, ret);
	default:
		return false; /* 0xc1 and the ext types */
	}
}

bool wire_read_item(struct wire_reader *reader, struct wire_item *ret)
{
	uint8_t mark;

	if (reader->at == reader->end) {
		return false;
	}
	mark = *reader->at++;
	if (mark < 0x80) {
		return take_value(WIRE_ITEM_UINT, mark, ret);
	}
	if (mark < 0x90) {
		return take_head(reader, WIRE_ITEM_MAP, mark & 0x0f, ret);
	}
	if (mark < 0xa0) {
		return take_head(reader, WIRE_ITEM_ARRAY, mark & 0x0f, ret);
	}
	if (mark < 0xc0) {
		return take_text(reader, WIRE_ITEM_STR, mark & 0x1f, ret);
	}
	if (mark >= 0xe0) {
		return take_value(WIRE_ITEM_NEGATIVE, mark | ~(uint64_t)0xff, ret);
	}
	return read_marked(reader, mark, ret);
}

bool wire_skip_value(struct wire_reader *reader)
{
	struct wire_item item;
	uint64_t left = 1; /* grows by the bytes left at most: cannot overflow */

	while (left > 0) {
		if (!wire_read_item(reader, &item)) {
			return false;
		}
		left--;
		if (item.kind == WIRE_ITEM_ARRAY) {
			left += item.number;
		} else if (item.kind == WIRE_ITEM_MAP) {
			left += 2 * item.number;
		}
	}
	return true;
}

/* Order of two keys by size and bytes; any total order will do. */
static int key_compare(const struct wire_walk *walk, uint32_t a, uint32_t b)
{
	struct wire_reader reader_a = {walk->begin + a, walk->reader.at};
	struct wire_reader reader_b = {walk->begin + b, walk->reader.at};
	struct wire_item item_a = {0};
	struct wire_item item_b = {0};

	(void)wire_read_item(&reader_a, &item_a); /* was read before */
	(void)wire_read_item(&reader_b, &item_b);
	if (item_a.number != item_b.number) {
		return item_a.number < item_b.number ? -1 : 1;
	}
	return memcmp(item_a.text, item_b.text, item_a.number);
}

/* Shell's sort: in place, no recursion, and no input makes it slow. */
static void sort_keys(const struct wire_walk *walk, uint32_t *keys, uint32_t n_keys)
{
	static const uint32_t gaps[] = {701, 301, 132, 57, 23, 10, 4, 1};

	for (uint32_t g = 0; g < sizeof gaps / sizeof *gaps; g++) {
		for (uint32_t i = gaps[g]; i < n_keys; i++) {
			uint32_t key = keys[i];
			uint32_t j = i;

			while (j >= gaps[g] && key_compare(walk, keys[j - gaps[g]], key) > 0) {
				keys[j] = keys[j - gaps[g]];
				j -= gaps[g];
			}
			keys[j] = key;
		}
	}
}

static bool keys_are_unique(const struct wire_walk *walk, uint32_t *keys, uint32_t n_keys)
{
	if (n_keys > SMALL_MAP) {
		sort_keys(walk, keys, n_keys);
		for (uint32_t i = 1; i < n_keys; i++) {
			if (key_compare(walk, keys[i - 1], keys[i]) == 0) {
				return false;
			}
		}
		return true;
	}
	for (uint32_t i = 1; i < n_keys; i++) {
		for (uint32_t j = 0; j < i; j++) {
			if (key_compare(walk, keys[j], keys[i]) == 0) {
				return false;
			}
		}
	}
	return true;
}

static bool refuse(struct wire_walk *walk, const char *fault)
{
	walk->fault = fault;
	return false;
}

/* An open array or map. */
struct frame {
	uint64_t left;      /* items still to come; of a map keys and values */
	uint32_t first_key; /* in the keys noted */
	bool is_map;
};

static bool open_frame(struct wire_walk *walk, const struct wire_item *item, uint32_t depth,
		       uint32_t first_key, struct frame *ret)
{
	bool is_map = item->kind == WIRE_ITEM_MAP;

	if (depth > walk->bounds.depth) {
		return refuse(walk, "arrays and maps are nested too deep");
	}
	*ret = (struct frame){is_map ? 2 * item->number : item->number, first_key, is_map};
	return true;
}

/* "fds" and "spill" belong to the envelope wherever the body goes. */
static void note_number(struct wire_walk *walk, uint32_t key, const struct wire_item *item)
{
	struct wire_reader reader = {walk->begin + key, walk->reader.end};
	struct wire_item name = {0};
	uint64_t number = item->kind == WIRE_ITEM_UINT ? item->number : UINT64_MAX;

	(void)wire_read_item(&reader, &name); /* was read before */
	if (name.number == 3 && memcmp(name.text, "fds", 3) == 0) {
		walk->fds = number;
	} else if (name.number == 5 && memcmp(name.text, "spill", 5) == 0) {
		walk->spill = number;
	}
}

/* Read one item and count it. */
static bool walk_item(struct wire_walk *walk, bool is_key, struct wire_item *ret)
{
	if (walk->n_nodes++ >= walk->bounds.nodes) {
		return refuse(walk, "more values than a message may hold");
	}
	if (!wire_read_item(&walk->reader, ret)) {
		return refuse(walk, "ends early, or holds a type that is not used here");
	}
	if (is_key && ret->kind != WIRE_ITEM_STR) {
		return refuse(walk, "a key is not a string");
	}
	if (ret->kind == WIRE_ITEM_STR && !wire_utf8_is_valid(ret->text, ret->number)) {
		return refuse(walk, "a string is not UTF-8 or holds NUL");
	}
	return true;
}

bool wire_walk_value(struct wire_walk *walk, uint32_t depth)
{
	struct frame frames[WIRE_DEPTH];
	uint32_t keys[WIRE_KEYS]; /* offsets of the keys of all open maps */
	uint32_t n_frames = 0;
	uint32_t n_keys = 0;
	uint32_t last_key = 0;

	do {
		struct frame *top = n_frames > 0 ? &frames[n_frames - 1] : NULL;
		bool is_key = top && top->is_map && top->left % 2 == 0;
		uint32_t offset = (uint32_t)(walk->reader.at - walk->begin);
		struct wire_item item;

		if (!walk_item(walk, is_key, &item)) {
			return false;
		}
		if (is_key) {
			if (n_keys == WIRE_KEYS) {
				return refuse(walk, "more keys than open maps may hold");
			}
			keys[n_keys++] = last_key = offset;
		} else if (walk->is_noting && n_frames == 1 && top->is_map) {
			note_number(walk, last_key, &item);
		}
		if (top) {
			top->left--;
		}
		if (item.kind == WIRE_ITEM_ARRAY || item.kind == WIRE_ITEM_MAP) {
			if (!open_frame(walk, &item, depth + n_frames + 1, n_keys,
					&frames[n_frames])) {
				return false;
			}
			n_frames++;
		}
		while (n_frames > 0 && frames[n_frames - 1].left == 0) {
			uint32_t first = frames[--n_frames].first_key;

			if (!keys_are_unique(walk, keys + first, n_keys - first)) {
				return refuse(walk, "a map has the same key twice");
			}
			n_keys = first;
		}
	} while (n_frames > 0);
	return true;
}

uint32_t wire_utf8_step(const uint8_t *text, size_t left)
{
	uint8_t first = text[0];
	uint32_t size;
	uint8_t low = 0x80; /* what the second byte may be: no long forms, no surrogates */
	uint8_t high = 0xbf;

	if (first < 0x80) {
		return first != 0;
	}
	if (first < 0xc2 || first > 0xf4) {
		return 0;
	}
	size = first < 0xe0 ? 2 : first < 0xf0 ? 3 : 4;
	if (left < size) {
		return 0;
	}
	if (first == 0xe0) {
		low = 0xa0;
	} else if (first == 0xed) {
		high = 0x9f;
	} else if (first == 0xf0) {
		low = 0x90;
	} else if (first == 0xf4) {
		high = 0x8f;
	}
	if (text[1] < low || text[1] > high) {
		return 0;
	}
	for (uint32_t i = 2; i < size; i++) {
		if ((text[i] & 0xc0) != 0x80) {
			return 0;
		}
	}
	return size;
}

/* Eight bytes of ASCII without NUL? */
static bool is_plain(const uint8_t *text)
{
	uint64_t word;

	memcpy(&word, text, sizeof word);
	/* The subtraction borrows into a top bit where a byte is zero. */
	return ((word | (word - 0x0101010101010101U)) & 0x8080808080808080U) == 0;
}

bool wire_utf8_is_valid(const uint8_t *text, size_t size)
{
	size_t at = 0;

	while (at < size) {
		uint32_t step = 8;

		if (size - at < 8 || !is_plain(text + at)) {
			step = wire_utf8_step(text + at, size - at);
		}
		if (step == 0) {
			return false;
		}
		at += step;
	}
	return true;
}

void wire_utf8_clean(const uint8_t *text, size_t size, uint8_t *copy)
{
	size_t at = 0;

	while (at < size) {
		uint32_t step = wire_utf8_step(text + at, size - at);

		if (step == 0) {
			copy[at++] = '?';
			continue;
		}
		memcpy(copy + at, text + at, step);
		at += step;
	}
}

uint32_t wire_utf8_cut(const uint8_t *text, uint32_t size, uint64_t most)
{
	uint32_t cut;

	if (size <= most) {
		return size;
	}
	cut = (uint32_t)most;
	while (cut > 0 && (text[cut] & 0xc0) == 0x80) {
		cut--;
	}
	return cut;
}
