/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the files of the codec share and nobody else includes: the cursor that reads one
 * MessagePack item at a time, the walk that checks a whole structure, UTF-8, and the text of
 * faults. Nothing here allocates, recurses or reads past 'end'. Pure; any thread.
 */
#ifndef PROTO_WIRE_READ_H
#define PROTO_WIRE_READ_H

#include "proto/wire.h"

enum wire_item_kind {
	WIRE_ITEM_NIL,
	WIRE_ITEM_BOOL,
	WIRE_ITEM_UINT,
	WIRE_ITEM_NEGATIVE,
	WIRE_ITEM_FLOAT,
	WIRE_ITEM_STR,
	WIRE_ITEM_BIN,
	WIRE_ITEM_ARRAY,
	WIRE_ITEM_MAP,
};

struct wire_item {
	enum wire_item_kind kind;
	uint64_t number;     /* value (two's complement if negative), size, items or pairs */
	const uint8_t *text; /* of strings and bin */
};

struct wire_reader {
	const uint8_t *at;
	const uint8_t *end;
};

/*
 * Read a scalar, or the head of an array or a map. False for ext types and 0xc1, and where
 * what is declared does not fit the bytes left (one byte an item at least, two a pair).
 */
bool wire_read_item(struct wire_reader *reader, struct wire_item *ret);

/* Skip one value with all it contains; checks no more than wire_read_item does. */
bool wire_skip_value(struct wire_reader *reader);

/* One walk over a packet or a listing. */
struct wire_walk {
	struct wire_reader reader;
	const uint8_t *begin; /* keys are noted as offsets from here */
	struct wire_bounds bounds;
	uint32_t n_nodes;
	bool is_noting;    /* take "fds" and "spill" of the outermost map */
	uint64_t fds;      /* UINT64_MAX when not a number */
	uint64_t spill;    /* likewise */
	const char *fault; /* why it was refused; static */
};

/* Check one value inside 'depth' open containers. False with walk->fault filled. */
bool wire_walk_value(struct wire_walk *walk, uint32_t depth);

/* Bytes of the character at 'text', 0 when it is no UTF-8 or NUL. 'left' is at least 1. */
uint32_t wire_utf8_step(const uint8_t *text, size_t left);
bool wire_utf8_is_valid(const uint8_t *text, size_t size);

/* Copy, with '?' for each byte that is no UTF-8. */
void wire_utf8_clean(const uint8_t *text, size_t size, uint8_t *copy);

/* The largest size <= 'most' that does not cut a character of 'text' in two. */
uint32_t wire_utf8_cut(const uint8_t *text, uint32_t size, uint64_t most);

/* Empty the fault and set its code; then add words. Returns -code. */
int wire_fault_begin(struct wire_fault *fault, enum wire_code code, const char *text);
void wire_fault_text(struct wire_fault *fault, const char *text);
void wire_fault_number(struct wire_fault *fault, uint64_t number);
/* One more part of the dotted name, made printable. */
void wire_fault_field(struct wire_fault *fault, const char *name, size_t size);

#endif
