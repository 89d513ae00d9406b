/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the generated tables (proto/gen/wire_gen.c) say: of a map on the wire its fields,
 * their limits and where they lie in the C struct; of methods, events and codes a row each.
 */
#ifndef PROTO_WIRE_TYPE_H
#define PROTO_WIRE_TYPE_H

#include <stdbool.h>
#include <stdint.h>

enum wire_value_kind {
	WIRE_KIND_BOOL,
	WIRE_KIND_UINT,
	WIRE_KIND_INT,
	WIRE_KIND_STR,
	WIRE_KIND_MAP,
};

struct wire_field {
	const char *name;
	const struct wire_type *type; /* of WIRE_KIND_MAP, else NULL */
	uint64_t max;        /* largest number, most bytes of a string, most items of a list */
	uint64_t item_max;   /* of lists: largest number or most bytes of each item */
	int64_t min;         /* of WIRE_KIND_INT */
	uint16_t offset;     /* of the member */
	uint16_t has_offset; /* of has_<name>, for optional fields */
	uint8_t name_size;   /* bytes */
	enum wire_value_kind kind; /* of the value, or of a list's items */
	bool is_list;
	bool is_optional;
};

struct wire_type {
	const char *name;
	const struct wire_field *fields; /* in the schema's order, at most 64 */
	uint64_t required;               /* bit n: field n must be there */
	uint16_t n_fields;
	uint16_t size; /* bytes of the C struct */
};

/* One method: what the tables say about it. */
struct wire_message {
	const char *method;
	enum wire_role { WIRE_ROLE_NONE, WIRE_ROLE_ANY, WIRE_ROLE_ADMIN, WIRE_ROLE_WORKER } role;
	bool is_draft;
	uint8_t number; /* enum wire_method */
	uint8_t request_fds_min, request_fds_max;
	uint8_t response_fds_min, response_fds_max;
	const struct wire_type *request;
	const struct wire_type *response;
};

struct wire_event_type {
	const char *name;
	bool is_owned;
	uint8_t number; /* enum wire_event */
	const struct wire_type *fields;
};

/* The error table: one row a code. */
struct wire_code_info {
	const char *word;
	const char *text;
	bool is_retryable;
	bool is_fatal;
	int exit_code;
};

#endif
