/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Inside the grammar: the value of an item, read by its own letters, and the pieces of a text that
 * is not terminated. Pure; any thread.
 */
#ifndef PLAN_VALUE_H
#define PLAN_VALUE_H

#include "daemon/plan/spec.h"
#include "proto/gen/wire_code.h"

struct err;

enum value_kind {
	VALUE_ZERO, /* fits every mode */
	VALUE_REST, /* "*" */
	VALUE_SIZE,
	VALUE_PERCENT,
	VALUE_FRACTION,
	VALUE_NONE, /* a device alone */
	VALUE_N_KINDS,
};

struct spec_parser {
	const struct plan_request *request;
	struct plan_text all; /* to count columns in */
	struct err *err;
	struct spec_item *item; /* being read; NULL: none */
};

/* Says which item is meant; returns -code. */
int value_refuse(struct spec_parser *parser, int code, const char *format, ...)
	__attribute__((format(printf, 3, 4)));

/* Of characters, from 1. */
uint32_t value_column(const struct spec_parser *parser, const char *at);

/* What is before the first 'mark'; '*rest' is what is behind it. False: there is none, and
 * '*ret' is all. */
bool value_cut(struct plan_text text, char mark, struct plan_text *ret, struct plan_text *rest);
bool value_has(struct plan_text text, char mark);

/* Into the item that is being read. */
int value_parse(struct spec_parser *parser, struct plan_text text, enum value_kind *ret);

#endif
