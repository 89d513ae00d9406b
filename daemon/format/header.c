/* SPDX-License-Identifier: Apache-2.0 */
/* One function a rule of the grammar; each error names the tensor and the byte. See header.h. */
#include "daemon/format/header.h"

#include "base/checked.h"
#include "base/err.h"
#include "base/json_scan.h"

#include <string.h>

#include "daemon/format/dtype.h"
#include "daemon/format/format.h"
#include "daemon/format/shelf.h"
#include "daemon/format/show.h"
#include "proto/gen/wire_code.h"

#define MAX_METADATA (16U << 20)
#define ALL_SEEN     7U

/* One entry of the header, as it was read. */
struct entry {
	struct json_string name;
	uint16_t dtype;
	uint8_t rank;
	uint64_t begin, end; /* in the data */
	uint64_t shape[FORMAT_MAX_RANK];
};

/* ---- texts of errors ---- */

static const char *show_string(const struct json_string *string, char buffer[SHOW_NAME_SIZE])
{
	char start[SHOW_NAME_SIZE];

	return show_name(start, json_string_decode(string, start, sizeof start), buffer);
}

static int fail_at(struct json_cursor *cursor, size_t at, int code)
{
	if (cursor->err != NULL) {
		cursor->err->offset = cursor->base;
		(void)checked_add(cursor->base, at, &cursor->err->offset);
	}
	return code;
}

/* ---- one entry ---- */

static int read_dtype(struct json_cursor *cursor, struct entry *entry)
{
	struct json_string name;
	char decoded[DTYPE_MAX_NAME];
	char shown[SHOW_NAME_SIZE];
	int code = json_read_string(cursor, FORMAT_MAX_NAME, &name);

	if (code < 0) {
		return code;
	}
	/* A name that was cut is longer than any we know. */
	entry->dtype = dtype_find(decoded, json_string_decode(&name, decoded, sizeof decoded));
	if (entry->dtype == 0 || dtype_group(entry->dtype) != 1) { /* those are GGUF's */
		return fail_at(cursor, name.at,
			       err_set(cursor->err, WIRE_UNSUPPORTED, "dtype \"%s\" is not known",
				       show_string(&name, shown)));
	}
	return 0;
}

static int read_shape(struct json_cursor *cursor, struct entry *entry)
{
	int code = json_expect(cursor, '[');

	if (code < 0 || json_take(cursor, ']')) {
		return code;
	}
	do {
		if (entry->rank == FORMAT_MAX_RANK) {
			return json_fail(cursor, cursor->at, "a shape of more than 64 dimensions");
		}
		code = json_read_integer(cursor, &entry->shape[entry->rank]);
		if (code < 0) {
			return code;
		}
		entry->rank++;
	} while (json_take(cursor, ','));
	return json_expect(cursor, ']');
}

static int read_offsets(struct json_cursor *cursor, struct entry *entry)
{
	int code = json_expect(cursor, '[');

	if (code == 0) {
		code = json_read_integer(cursor, &entry->begin);
	}
	if (code == 0) {
		code = json_expect(cursor, ',');
	}
	if (code == 0) {
		code = json_read_integer(cursor, &entry->end);
	}
	return code == 0 ? json_expect(cursor, ']') : code;
}

/* Do dtype, shape and range agree? */
static int check_entry(struct json_cursor *cursor, const struct entry *entry)
{
	uint64_t bits = 1;
	uint64_t span;
	bool fits = true;

	for (uint8_t i = 0; i < entry->rank && fits; i++) {
		fits = checked_mul(bits, entry->shape[i], &bits);
	}
	if (!fits || !checked_mul(bits, dtype_bits(entry->dtype), &bits)) {
		return json_fail(cursor, entry->name.at, "a shape of more than 2^64 bits");
	}
	if (bits % 8 != 0) {
		return fail_at(cursor, entry->name.at,
			       err_set(cursor->err, WIRE_UNSUPPORTED,
				       "its %llu bits of %s do not end on a whole byte",
				       (unsigned long long)bits, dtype_name(entry->dtype)));
	}
	if (!checked_sub(entry->end, entry->begin, &span)) {
		return json_fail(cursor, entry->name.at, "data_offsets that end before they begin");
	}
	if (span != bits / 8) {
		return fail_at(cursor, entry->name.at,
			       err_set(cursor->err, WIRE_BAD_FILE,
				       "its shape of %s takes %llu bytes, its data_offsets %llu",
				       dtype_name(entry->dtype), (unsigned long long)(bits / 8),
				       (unsigned long long)span));
	}
	return 0;
}

/* One "key": value of an entry. */
static int read_property(struct json_cursor *cursor, struct entry *entry, unsigned *seen)
{
	static const struct {
		const char *key;
		int (*read)(struct json_cursor *cursor, struct entry *entry);
	} properties[] = {{"dtype", read_dtype},
			  {"shape", read_shape},
			  {"data_offsets", read_offsets}};
	struct json_string key;
	char shown[SHOW_NAME_SIZE];
	int code = json_read_string(cursor, FORMAT_MAX_NAME, &key);

	if (code == 0) {
		code = json_expect(cursor, ':');
	}
	for (unsigned i = 0; code == 0 && i < sizeof properties / sizeof properties[0]; i++) {
		if (!json_string_is(&key, properties[i].key)) {
			continue;
		}
		if ((*seen & 1U << i) != 0) {
			return json_fail(cursor, key.at, "a key that was given before");
		}
		*seen |= 1U << i;
		return properties[i].read(cursor, entry);
	}
	if (code < 0) {
		return code;
	}
	return fail_at(cursor, key.at,
		       err_set(cursor->err, WIRE_UNSUPPORTED,
			       "key \"%s\" is not known: a tensor has dtype, shape, data_offsets",
			       show_string(&key, shown)));
}

static int read_properties(struct json_cursor *cursor, struct entry *entry)
{
	unsigned seen = 0;
	int code = json_expect(cursor, '{');

	if (code < 0) {
		return code;
	}
	do {
		code = read_property(cursor, entry, &seen);
		if (code < 0) {
			return code;
		}
	} while (json_take(cursor, ','));
	code = json_expect(cursor, '}');
	if (code < 0) {
		return code;
	}
	if (seen != ALL_SEEN) {
		return json_fail(cursor, entry->name.at, "dtype, shape or data_offsets is missing");
	}
	return check_entry(cursor, entry);
}

/* Reads the value of entry->name. Every error says whose it is. */
static int read_entry(struct json_cursor *cursor, struct entry *entry)
{
	char shown[SHOW_NAME_SIZE];
	int code = read_properties(cursor, entry);

	if (code < 0) {
		(void)err_wrap(cursor->err, "tensor \"%s\"", show_string(&entry->name, shown));
	}
	return code;
}

/* ---- the whole header ---- */

/* Strings to strings, or null. */
static int read_strings(struct json_cursor *cursor)
{
	struct json_string string;
	int code;

	if (!json_take(cursor, '{')) {
		return json_expect_word(cursor, "null");
	}
	if (json_take(cursor, '}')) {
		return 0;
	}
	do {
		code = json_read_string(cursor, MAX_METADATA, &string);
		if (code == 0) {
			code = json_expect(cursor, ':');
		}
		if (code == 0) {
			code = json_read_string(cursor, MAX_METADATA, &string);
		}
		if (code < 0) {
			return code;
		}
	} while (json_take(cursor, ','));
	return json_expect(cursor, '}');
}

/* Nothing of it is kept. Read through a window, so that its size is bounded as written. */
static int read_metadata(struct json_cursor *cursor)
{
	struct json_cursor window = *cursor;
	int code;

	if (cursor->size - cursor->at > MAX_METADATA) {
		window.size = cursor->at + MAX_METADATA;
	}
	code = read_strings(&window);
	if (code < 0 && window.is_past_end && window.size < cursor->size) {
		return json_fail(cursor, cursor->at, "__metadata__ takes more than 16 MiB");
	}
	cursor->at = window.at;
	cursor->is_past_end = window.is_past_end;
	if (code < 0) {
		(void)err_wrap(cursor->err, "__metadata__");
	}
	return code;
}

static int count_entry(struct json_cursor *cursor, const struct entry *entry,
		       struct header_tally *tally)
{
	if (tally->n_tensors == FORMAT_MAX_TENSORS) {
		return json_fail(cursor, entry->name.at, "more than 262,144 tensors");
	}
	tally->n_tensors++;
	/* Each is bounded by the bytes of the header. */
	(void)checked_add(tally->n_dims, entry->rank, &tally->n_dims);
	(void)checked_add(tally->name_bytes, entry->name.size, &tally->name_bytes);
	tally->end = entry->end > tally->end ? entry->end : tally->end;
	return 0;
}

static void store_entry(const struct entry *entry, struct shelf *shelf)
{
	struct tensor *tensor = shelf->tensors++;

	*tensor = (struct tensor){.name = shelf->names,
				  .name_size = (uint32_t)entry->name.size,
				  .dtype = entry->dtype,
				  .rank = entry->rank,
				  .shape = shelf->shapes,
				  .size = entry->end - entry->begin};
	/* The first walk saw that the tensors end where the file does. */
	(void)checked_add(shelf->data_offset, entry->begin, &tensor->offset);
	memcpy(shelf->shapes, entry->shape, entry->rank * sizeof *shelf->shapes);
	(void)json_string_decode(&entry->name, shelf->names, entry->name.size);
	shelf->shapes += entry->rank;
	shelf->names += entry->name.size;
}

/* One "name": value of the header. */
static int read_member(struct json_cursor *cursor, struct header_tally *tally, struct shelf *shelf)
{
	struct entry entry = {0};
	int code = json_read_string(cursor, FORMAT_MAX_NAME, &entry.name);

	if (code == 0) {
		code = json_expect(cursor, ':');
	}
	if (code < 0) {
		return code;
	}
	if (json_string_is(&entry.name, "__metadata__")) {
		if (tally->has_metadata) {
			return json_fail(cursor, entry.name.at, "a second __metadata__");
		}
		tally->has_metadata = true;
		return read_metadata(cursor);
	}
	if (entry.name.has_nul) {
		return json_fail(cursor, entry.name.at, "a tensor's name that holds NUL");
	}
	code = read_entry(cursor, &entry);
	if (code < 0) {
		return code;
	}
	if (shelf != NULL) {
		store_entry(&entry, shelf);
	}
	return count_entry(cursor, &entry, tally);
}

/* 'shelf' NULL: only check and count. */
int header_walk(struct json_cursor *cursor, struct header_tally *tally, struct shelf *shelf)
{
	int code;

	if (cursor->size == 0 || cursor->bytes[0] != '{') {
		return json_fail(cursor, 0, "a header that does not begin with '{'");
	}
	cursor->at = 1;
	if (json_take(cursor, '}')) {
		return json_expect_end(cursor);
	}
	do {
		code = read_member(cursor, tally, shelf);
		if (code < 0) {
			return code;
		}
	} while (json_take(cursor, ','));
	code = json_expect(cursor, '}');
	return code < 0 ? code : json_expect_end(cursor);
}
