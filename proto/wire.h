/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One MessagePack-RPC message <-> one generated struct, driven by the tables of
 * proto/gen/wire_gen.h. Decoding walks the packet once, allocates nothing, does not recurse
 * and borrows strings from the packet; what it accepts cannot be malformed, so handlers
 * check meaning only. Packing goes through msgpack-c's write callback into the caller's
 * buffer. Pure; any thread.
 */
#ifndef PROTO_WIRE_H
#define PROTO_WIRE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "proto/gen/wire_code.h"
#include "proto/gen/wire_method.h"
#include "proto/wire_type.h"

struct wire_error; /* generated: proto/gen/wire_gen.h */

/* A borrowed string: not terminated, valid UTF-8 without NUL once decoded. */
struct wire_str {
	const char *text;
	uint32_t size; /* bytes */
};

/*
 * A list. Decoded: 'bytes' borrows the checked items in the packet; read them with
 * wire_list_next. To encode: 'items' points to an array of 'count' items (struct wire_str,
 * uint64_t, int64_t, or the generated struct of the item type) and 'bytes' is NULL.
 */
struct wire_list {
	uint32_t count;
	uint32_t size;
	const uint8_t *bytes;
	const void *items;
};

enum wire_kind { WIRE_REQUEST = 0, WIRE_RESPONSE = 1, WIRE_EVENT = 2 };

/* How much structure is walked before it is refused. */
struct wire_bounds {
	uint32_t depth; /* at most WIRE_DEPTH */
	uint32_t nodes;
};

extern const struct wire_bounds wire_packet_limits;  /* of the schema: 8 deep, 4,096 nodes */
extern const struct wire_bounds wire_listing_limits; /* for long results in a memfd */

/* What could not be decoded: 'code' and the field or method it is about, for the answer. */
struct wire_fault {
	enum wire_code code;
	char field[96]; /* "policy.ttl_ms", or a method's name, made printable */
	char text[160];
};

/* The envelope of one packet; everything borrows from it. */
struct wire_packet {
	enum wire_kind kind;
	uint32_t id;                         /* of requests and responses */
	uint32_t n_fds;                      /* as announced by "fds" in the params or result */
	uint64_t spill_bytes;                /* of a response whose result is in a memfd, else 0 */
	const struct wire_message *message;  /* requests: the method, NULL when unknown */
	const struct wire_event_type *event; /* events: NULL when unknown */
	struct wire_str name;                /* method or event as written */
	const uint8_t *body;                 /* params or result map; NULL when nil */
	uint32_t body_size;
	const uint8_t *error; /* responses: the error map; NULL when nil */
	uint32_t error_size;
};

/*
 * Read the envelope and check the whole packet's structure (depth, nodes, counts against
 * the bytes left, UTF-8, duplicate keys, trailing bytes). Returns 0, or -WIRE_BAD_FRAME
 * with 'fault' filled; then the connection has to end.
 */
int wire_decode_packet(const void *bytes, size_t size, const struct wire_bounds *limits,
		       struct wire_packet *ret, struct wire_fault *fault);

/* The same checks for a lone map: a result that came in a memfd. 0 or -WIRE_BAD_FRAME. */
int wire_check_map(const void *bytes, size_t size, const struct wire_bounds *limits,
		   struct wire_fault *fault);

/*
 * Fill the generated struct of 'type' from a map that was accepted by one of the two above.
 * 'is_strict': unknown keys are an error (requests); else they are skipped.
 * Returns 0, -WIRE_BAD_ARGUMENT or -WIRE_UNKNOWN_FIELD with fault->field filled. Memory-safe
 * on unchecked bytes too, then -WIRE_BAD_FRAME where they make no sense.
 */
int wire_decode_body(const struct wire_type *type, const uint8_t *body, uint32_t body_size,
		     bool is_strict, void *ret_struct, struct wire_fault *fault);

/*
 * Take the next item of a decoded list into 'ret_item' (struct wire_str, uint64_t, int64_t
 * or the item's generated struct). 'list' is the caller's own copy and is advanced.
 * Returns false at the end. 'item_type' is NULL for scalars.
 */
bool wire_list_next(struct wire_list *list, const struct wire_type *item_type, void *ret_item);

/* Where an encoded message goes: the caller's memory, or counting only when bytes is NULL. */
struct wire_buffer {
	uint8_t *bytes;
	size_t capacity;
	size_t size;       /* needed so far; more than capacity means that it did not fit */
	uint32_t n_values; /* written so far, as a reader counts them against its bound */
};

/*
 * Each returns true when the message fits the buffer. 'n_fds' is announced when not 0.
 * A body without fields may be NULL. Bytes that are no UTF-8 (a file's name can be anything)
 * go out as '?'. In what the daemon sends, strings and lists over the schema's 'max' are cut;
 * a request goes out as it is, for the daemon to refuse by name.
 */
bool wire_encode_request(struct wire_buffer *buffer, uint32_t id, enum wire_method method,
			 const void *request, uint32_t n_fds);
bool wire_encode_response(struct wire_buffer *buffer, uint32_t id, enum wire_method method,
			  const void *response, uint32_t n_fds);
bool wire_encode_error(struct wire_buffer *buffer, uint32_t id, const struct wire_error *error);
bool wire_encode_event(struct wire_buffer *buffer, enum wire_event event, const void *fields,
		       uint32_t n_fds);

/* Only the map of a result that travels in a memfd (see "spill" in docs/protocol.md). */
bool wire_encode_body(struct wire_buffer *buffer, const struct wire_type *type, const void *body);
/* The response that announces such a result: {"fds": n, "spill": bytes}; spill is the first fd. */
bool wire_encode_spill(struct wire_buffer *buffer, uint32_t id, uint64_t spill_bytes,
		       uint32_t n_fds);
/* Bytes of the spilled result when 'packet' is such a response, else 0. */
uint64_t wire_packet_spill(const struct wire_packet *packet);

struct wire_str wire_str(const char *text); /* borrow a terminated string */
bool wire_str_is(struct wire_str str, const char *text);
/* Copy, cut at a UTF-8 boundary where needed, and terminate. Returns 'buffer'. */
const char *wire_str_copy(struct wire_str str, char *buffer, size_t buffer_size);

const struct wire_code_info *wire_code_info(enum wire_code code);
enum wire_code wire_code_find(struct wire_str word); /* WIRE_INTERNAL when unknown */

#endif
