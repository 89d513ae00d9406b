/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Fields of bodies: every field of every map at its limit and one over it, of each wrong type,
 * missing; unknown keys; dotted names of faults. msgpack-c packs the input (cases P08, P10).
 */
#include "tests/support/unit.h"
#include "tests/support/wire_check.h"

/* What a field is given instead of its smallest value. */
struct bend {
	uint16_t field;
	bool is_left_out;
	const msgpack_sbuffer *value; /* packed */
};

static void put_smallest(msgpack_packer *packer, const struct wire_field *field);

static void put_key(msgpack_packer *packer, const char *name)
{
	msgpack_pack_str(packer, strlen(name));
	msgpack_pack_str_body(packer, name, strlen(name));
}

/* The map with its required fields; one field bent. */
static void put_map(msgpack_packer *packer, const struct wire_type *type, const struct bend *bend)
{
	uint32_t n = 0;

	for (uint16_t i = 0; i < type->n_fields; i++) {
		bool is_bent = bend && bend->field == i;

		n += is_bent ? !bend->is_left_out : !type->fields[i].is_optional;
	}
	msgpack_pack_map(packer, n);
	for (uint16_t i = 0; i < type->n_fields; i++) {
		bool is_bent = bend && bend->field == i;

		if (is_bent ? bend->is_left_out : type->fields[i].is_optional) {
			continue;
		}
		put_key(packer, type->fields[i].name);
		if (is_bent) {
			packer->callback(packer->data, bend->value->data, bend->value->size);
		} else {
			put_smallest(packer, &type->fields[i]);
		}
	}
}

static void put_smallest(msgpack_packer *packer, const struct wire_field *field)
{
	if (field->is_list) {
		msgpack_pack_array(packer, 0);
		return;
	}
	switch (field->kind) {
	case WIRE_KIND_BOOL:
		msgpack_pack_false(packer);
		break;
	case WIRE_KIND_UINT:
	case WIRE_KIND_INT:
		msgpack_pack_uint64(packer, 0);
		break;
	case WIRE_KIND_STR:
		msgpack_pack_str(packer, 0);
		break;
	case WIRE_KIND_MAP:
		put_map(packer, field->type, NULL);
		break;
	}
}

/* Pack, check the structure, decode strictly; bytes in exact-size memory. */
static int decode_bent(const struct wire_type *type, const struct bend *bend, union wire_body *ret,
		       struct wire_fault *fault)
{
	msgpack_sbuffer packed;
	msgpack_packer packer;
	uint8_t *copy;
	int error;

	msgpack_sbuffer_init(&packed);
	msgpack_packer_init(&packer, &packed, msgpack_sbuffer_write);
	put_map(&packer, type, bend);
	copy = malloc(packed.size);
	assert_non_null(copy);
	memcpy(copy, packed.data, packed.size);
	error = wire_check_map(copy, packed.size, &wire_listing_limits, fault);
	assert_int_equal(error, 0);
	error = wire_decode_body(type, copy, (uint32_t)packed.size, true, ret, fault);
	free(copy);
	msgpack_sbuffer_destroy(&packed);
	return error;
}

/* One value for one field: is it taken? When not, the fault must name the field. */
static void assert_value(const struct wire_type *type, uint16_t field, const msgpack_sbuffer *value,
			 bool is_good)
{
	struct bend bend = {.field = field, .value = value};
	struct wire_fault fault = {0};
	union wire_body body;
	int error = decode_bent(type, &bend, &body, &fault);

	if (is_good) {
		assert_int_equal(error, 0);
		return;
	}
	assert_int_equal(error, -WIRE_BAD_ARGUMENT);
	assert_int_equal(fault.code, WIRE_BAD_ARGUMENT);
	assert_string_equal(fault.field, type->fields[field].name);
	assert_true(fault.text[0] != '\0');
}

/* Begins a fresh packed value. */
static msgpack_packer *begin(msgpack_sbuffer *value, msgpack_packer *packer)
{
	msgpack_sbuffer_clear(value);
	msgpack_packer_init(packer, value, msgpack_sbuffer_write);
	return packer;
}

static void put_text(msgpack_packer *packer, uint64_t size)
{
	msgpack_pack_str(packer, size);
	for (uint64_t i = 0; i < size; i++) {
		packer->callback(packer->data, "x", 1);
	}
}

/* Numbers and strings around 'max', alone or as the only item of a list. */
static void check_limit(const struct wire_type *type, uint16_t index, msgpack_sbuffer *value)
{
	const struct wire_field *field = &type->fields[index];
	uint64_t max = field->is_list ? field->item_max : field->max;

	for (uint64_t over = 0; over < 2; over++) {
		msgpack_packer packer;

		begin(value, &packer);
		if (field->is_list) {
			msgpack_pack_array(&packer, 1);
		}
		if (field->kind == WIRE_KIND_STR) {
			put_text(&packer, max + over);
		} else {
			msgpack_pack_uint64(&packer, max + over);
		}
		assert_value(type, index, value, over == 0);
	}
}

static void check_count(const struct wire_type *type, uint16_t index, msgpack_sbuffer *value)
{
	const struct wire_field *field = &type->fields[index];
	struct wire_field item = *field;
	msgpack_packer packer;

	item.is_list = false;
	for (uint64_t over = 0; over < 2; over++) {
		begin(value, &packer);
		msgpack_pack_array(&packer, field->max + over);
		for (uint64_t i = 0; i < field->max + over; i++) {
			put_smallest(&packer, &item);
		}
		assert_value(type, index, value, over == 0);
	}
}

/* Each value that the field's type is not. */
static void check_types(const struct wire_type *type, uint16_t index, msgpack_sbuffer *value)
{
	const struct wire_field *field = &type->fields[index];
	bool is_number = field->kind == WIRE_KIND_UINT || field->kind == WIRE_KIND_INT;
	msgpack_packer packer;

	for (int as_item = 0; as_item <= field->is_list; as_item++) {
		bool is_outer_list = field->is_list && !as_item;

#define CHECK_TYPE(is_good, ...)                                               \
	do {                                                                   \
		begin(value, &packer);                                         \
		if (as_item) {                                                 \
			msgpack_pack_array(&packer, 1);                        \
		}                                                              \
		__VA_ARGS__;                                                   \
		assert_value(type, index, value, (is_good) && !is_outer_list); \
	} while (0)

		CHECK_TYPE(false, msgpack_pack_nil(&packer));
		CHECK_TYPE(false, msgpack_pack_double(&packer, 1.0));
		CHECK_TYPE(false, msgpack_pack_float(&packer, 0.0F));
		CHECK_TYPE(false, msgpack_pack_double(&packer, __builtin_nan("")));
		CHECK_TYPE(false, msgpack_pack_bin(&packer, 0));
		CHECK_TYPE(field->kind == WIRE_KIND_BOOL, msgpack_pack_true(&packer));
		CHECK_TYPE(field->kind == WIRE_KIND_STR, msgpack_pack_str(&packer, 0));
		CHECK_TYPE(is_number, msgpack_pack_uint8(&packer, 1));
		CHECK_TYPE(field->kind == WIRE_KIND_INT, msgpack_pack_int8(&packer, -1));
		CHECK_TYPE(false, msgpack_pack_int64(&packer, INT64_MIN));
		CHECK_TYPE(false, msgpack_pack_uint64(&packer, 1ULL << 63));
		CHECK_TYPE(false, msgpack_pack_uint64(&packer, UINT64_MAX));
		if (field->kind != WIRE_KIND_MAP) {
			CHECK_TYPE(false, msgpack_pack_map(&packer, 0));
		}
		if (!is_outer_list) {
			CHECK_TYPE(false, msgpack_pack_array(&packer, 0));
		}
#undef CHECK_TYPE
	}
}

static void check_field(const struct wire_type *type, uint16_t index)
{
	const struct wire_field *field = &type->fields[index];
	msgpack_sbuffer value;
	msgpack_packer packer;

	msgpack_sbuffer_init(&value);
	check_types(type, index, &value);
	if (field->kind == WIRE_KIND_UINT || field->kind == WIRE_KIND_INT ||
	    field->kind == WIRE_KIND_STR) {
		check_limit(type, index, &value);
	}
	if (field->kind == WIRE_KIND_INT) {
		for (int64_t under = 0; under < 2; under++) {
			msgpack_pack_int64(begin(&value, &packer), field->min - under);
			assert_value(type, index, &value, under == 0);
		}
	}
	if (field->is_list) {
		check_count(type, index, &value);
	}
	msgpack_sbuffer_destroy(&value);
}

static void check_missing(const struct wire_type *type, uint16_t index)
{
	struct bend bend = {.field = index, .is_left_out = true};
	struct wire_fault fault = {0};
	union wire_body body;
	int error = decode_bent(type, &bend, &body, &fault);

	if (type->fields[index].is_optional) {
		assert_int_equal(error, 0);
		assert_false(*((bool *)&body + type->fields[index].has_offset));
		return;
	}
	assert_int_equal(error, -WIRE_BAD_ARGUMENT);
	assert_string_equal(fault.field, type->fields[index].name);
	assert_string_equal(fault.text, "is missing");
}

static void for_each_field(void (*check)(const struct wire_type *type, uint16_t index))
{
	for (int i = 0; i < WIRE_N_METHODS; i++) {
		for (uint16_t n = 0; n < wire_messages[i].request->n_fields; n++) {
			check(wire_messages[i].request, n);
		}
		for (uint16_t n = 0; n < wire_messages[i].response->n_fields; n++) {
			check(wire_messages[i].response, n);
		}
	}
	for (int i = 0; i < WIRE_N_EVENTS; i++) {
		for (uint16_t n = 0; n < wire_events[i].fields->n_fields; n++) {
			check(wire_events[i].fields, n);
		}
	}
	for (uint16_t n = 0; n < wire_type_error.n_fields; n++) {
		check(&wire_type_error, n);
	}
}

/* fault: P08 */
static void each_field_takes_its_max_and_its_type_and_nothing_else(void **state)
{
	static const struct wire_type *const nested[] = {
		&wire_type_policy, &wire_type_select,       &wire_type_place,  &wire_type_model,
		&wire_type_holder, &wire_type_outcome,      &wire_type_device, &wire_type_client,
		&wire_type_record, &wire_type_error_detail, &wire_type_wish,
	};

	(void)state;
	for_each_field(check_field);
	for (size_t i = 0; i < sizeof nested / sizeof *nested; i++) {
		for (uint16_t n = 0; n < nested[i]->n_fields; n++) {
			check_field(nested[i], n);
		}
	}
}

/* fault: P10 */
static void each_required_field_is_missed_by_name(void **state)
{
	(void)state;
	for_each_field(check_missing);
}

#define BODY(...)                                               \
	(const uint8_t[]){__VA_ARGS__}, sizeof(const uint8_t[]) \
	{                                                       \
		__VA_ARGS__                                     \
	}

/* fault: P10 */
static void an_unknown_field_fails_a_request_by_name(void **state)
{
	struct wire_ping_request request;
	struct wire_load_request load = {.virtual_vram = 77};
	struct wire_fault fault;

	(void)state;
	assert_int_equal(wire_decode_body(&wire_type_ping_request,
					  BODY(0x82, 0xa3, 'f', 'd', 's', 1, 0xa1, 'x', 0x90), true,
					  &request, &fault),
			 -WIRE_UNKNOWN_FIELD);
	assert_int_equal(fault.code, WIRE_UNKNOWN_FIELD);
	assert_string_equal(fault.field, "x");
	/* wrong case, and inside a nested map */
	assert_int_equal(wire_decode_body(&wire_type_load_request,
					  BODY(0x81, 0xa4, 'N', 'a', 'm', 'e', 0xa0), true, &load,
					  &fault),
			 -WIRE_UNKNOWN_FIELD);
	assert_string_equal(fault.field, "Name");
	assert_int_equal(wire_decode_body(&wire_type_load_request,
					  BODY(0x81, 0xa6, 'p', 'o', 'l', 'i', 'c', 'y', 0x81, 0xa3,
					       'f', 'd', 's', 1),
					  true, &load, &fault),
			 -WIRE_UNKNOWN_FIELD);
	assert_string_equal(fault.field, "policy.fds");
	assert_int_equal(load.virtual_vram, 77); /* untouched on failure */
	/* unprintable names are shown, not passed on */
	assert_int_equal(wire_decode_body(&wire_type_ping_request, BODY(0x81, 0xa2, 0x1b, 'm', 1),
					  true, &request, &fault),
			 -WIRE_UNKNOWN_FIELD);
	assert_string_equal(fault.field, "?m");
}

static void unknown_fields_of_responses_are_skipped(void **state)
{
	struct wire_cancel_response response = {0};
	struct wire_fault fault;

	(void)state;
	assert_int_equal(wire_decode_body(&wire_type_cancel_response,
					  BODY(0x84, 0xa1, 'x', 0x92, 0x81, 0xa1, 'y', 0x90, 0xc0,
					       0xa5, 'f', 'o', 'u', 'n', 'd', 0xc3, 0xa1, 'z', 0xca,
					       0, 0, 0, 0, 0xa5, 's', 'p', 'i', 'l', 'l', 9),
					  false, &response, &fault),
			 0);
	assert_true(response.found);
}

static void fields_may_come_in_any_order(void **state)
{
	struct wire_cancel_request cancel;
	struct wire_policy policy;
	struct wire_fault fault;

	(void)state;
	assert_int_equal(wire_decode_body(&wire_type_policy,
					  BODY(0x83, 0xa8, 'p', 'r', 'i', 'o', 'r', 'i', 't', 'y',
					       0xd0, 0x9c, 0xa4, 'k', 'e', 'e', 'p', 0xc3, 0xa3,
					       'p', 'i', 'n', 0xc2),
					  true, &policy, &fault),
			 0);
	assert_true(policy.has_priority && policy.has_keep && policy.has_pin);
	assert_false(policy.has_ttl_ms || policy.has_for_ms);
	assert_int_equal(policy.priority, -100);
	assert_true(policy.keep);
	assert_false(policy.pin);
	/* a number in a longer form than needed */
	assert_int_equal(wire_decode_body(&wire_type_cancel_request,
					  BODY(0x81, 0xa2, 'i', 'd', 0xd3, 0, 0, 0, 0, 0, 0, 0, 5),
					  true, &cancel, &fault),
			 0);
	assert_int_equal(cancel.id, 5);
}

static void faults_name_nested_fields_with_dots(void **state)
{
	struct wire_load_request load;
	struct wire_unload_response unload;
	struct wire_unload_request request;
	struct wire_fault fault;

	(void)state;
	assert_int_equal(wire_decode_body(&wire_type_load_request,
					  BODY(0x81, 0xa6, 'p', 'o', 'l', 'i', 'c', 'y', 0x81, 0xa8,
					       'p', 'r', 'i', 'o', 'r', 'i', 't', 'y', 0xd0, 0x9b),
					  true, &load, &fault),
			 -WIRE_BAD_ARGUMENT);
	assert_string_equal(fault.field, "policy.priority");
	assert_string_equal(fault.text, "the number -101 is under the smallest allowed, -100");
	assert_int_equal(wire_decode_body(&wire_type_load_request,
					  BODY(0x81, 0xa6, 'p', 'o', 'l', 'i', 'c', 'y', 0x01),
					  true, &load, &fault),
			 -WIRE_BAD_ARGUMENT);
	assert_string_equal(fault.text, "must be a map");
	assert_int_equal(wire_decode_body(&wire_type_unload_response,
					  BODY(0x81, 0xa4, 'k', 'e', 'p', 't', 0x91, 0x81, 0xa2,
					       'i', 'd', 0xa0),
					  false, &unload, &fault),
			 -WIRE_BAD_ARGUMENT);
	assert_string_equal(fault.field, "kept.reason");
	assert_string_equal(fault.text, "is missing");
	assert_int_equal(wire_decode_body(&wire_type_unload_request,
					  BODY(0x81, 0xa6, 's', 'e', 'l', 'e', 'c', 't', 0x81, 0xa6,
					       'd', 'e', 'v', 'i', 'c', 'e', 0x01),
					  true, &request, &fault),
			 -WIRE_BAD_ARGUMENT);
	assert_string_equal(fault.field, "select.device");
	assert_string_equal(fault.text, "must be a string");
}

static void long_names_in_faults_are_cut(void **state)
{
	struct wire_ping_request request;
	struct wire_fault fault;
	uint8_t body[3 + 200 + 1] = {0x81, 0xd9, 200};

	(void)state;
	memset(body + 3, 'n', 200);
	body[203] = 0xc0;
	assert_int_equal(wire_decode_body(&wire_type_ping_request, body, sizeof body, true,
					  &request, &fault),
			 -WIRE_UNKNOWN_FIELD);
	assert_int_equal(strlen(fault.field), sizeof fault.field - 1);
}

static void lists_are_read_item_by_item(void **state)
{
	const uint8_t body[] = {0x81, 0xa8, 's', 'e', 'g', 'm',  'e', 'n', 't',  's', 0x91,
				0x83, 0xa6, 'd', 'e', 'v', 'i',  'c', 'e', 0xa3, 'c', 'p',
				'u',  0xa5, 'b', 'y', 't', 'e',  's', 7,   0xa7, 'b', 'a',
				'c',  'k',  'i', 'n', 'g', 0xa5, 'i', 'm', 'a',  'g', 'e'};
	const uint8_t hello[] = {0x82, 0xa8, 'p', 'r',  'o', 't', 'o', 'c', 'o', 'l', 0x92, 1,
				 0xcd, 1,    0,   0xa6, 'c', 'l', 'i', 'e', 'n', 't', 0xa0};
	struct wire_map_response map;
	struct wire_hello_request request;
	struct wire_list list;
	struct wire_place place;
	struct wire_fault fault;
	uint64_t number;

	(void)state;
	assert_int_equal(wire_decode_body(&wire_type_map_response, body, sizeof body, false, &map,
					  &fault),
			 0);
	list = map.segments;
	assert_int_equal(list.count, 1);
	assert_true(wire_list_next(&list, &wire_type_place, &place));
	assert_true(wire_str_is(place.device, "cpu"));
	assert_int_equal(place.bytes, 7);
	assert_false(wire_list_next(&list, &wire_type_place, &place));
	assert_int_equal(map.segments.count, 1); /* only the copy moved on */

	assert_int_equal(wire_decode_body(&wire_type_hello_request, hello, sizeof hello, true,
					  &request, &fault),
			 0);
	assert_true(wire_list_next(&request.protocol, NULL, &number));
	assert_int_equal(number, 1);
	assert_true(wire_list_next(&request.protocol, NULL, &number));
	assert_int_equal(number, 256);
	assert_false(wire_list_next(&request.protocol, NULL, &number));
}

static void a_body_that_was_never_checked_is_safe(void **state)
{
	struct wire_cancel_request request;
	struct wire_fault fault;
	struct wire_unload_request unload;
	const uint8_t body[] = {0x81, 0xa2, 'i', 'd', 0xcd, 1, 2};
	const uint8_t nested[] = {0x81, 0xa6, 's', 'e', 'l', 'e',  'c',  't', 0x81, 0xa6, 'm',
				  'o',  'd',  'e', 'l', 's', 0x92, 0xa1, 'a', 0xa1, 'b'};

	(void)state;
	for (uint32_t size = 0; size < sizeof nested; size++) {
		uint8_t *prefix = malloc(size + (size == 0));

		assert_non_null(prefix);
		memcpy(prefix, nested, size);
		assert_int_equal(wire_decode_body(&wire_type_unload_request, prefix, size, true,
						  &unload, &fault),
				 -WIRE_BAD_FRAME);
		free(prefix);
	}
	for (uint32_t size = 0; size < sizeof body; size++) {
		uint8_t *prefix = malloc(size + (size == 0));

		assert_non_null(prefix);
		memcpy(prefix, body, size);
		assert_int_equal(wire_decode_body(&wire_type_cancel_request, prefix, size, true,
						  &request, &fault),
				 -WIRE_BAD_FRAME);
		free(prefix);
	}
	assert_int_equal(wire_decode_body(&wire_type_cancel_request, BODY(0x80, 0xc0), true,
					  &request, &fault),
			 -WIRE_BAD_ARGUMENT); /* id is missing */
	assert_int_equal(wire_decode_body(&wire_type_ping_request, BODY(0x80, 0xc0), true, &request,
					  &fault),
			 -WIRE_BAD_FRAME);
	assert_int_equal(wire_decode_body(&wire_type_ping_request, BODY(0x81, 1, 1), true, &request,
					  &fault),
			 -WIRE_BAD_FRAME);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(each_field_takes_its_max_and_its_type_and_nothing_else),
		cmocka_unit_test(each_required_field_is_missed_by_name),
		cmocka_unit_test(an_unknown_field_fails_a_request_by_name),
		cmocka_unit_test(unknown_fields_of_responses_are_skipped),
		cmocka_unit_test(fields_may_come_in_any_order),
		cmocka_unit_test(faults_name_nested_fields_with_dots),
		cmocka_unit_test(long_names_in_faults_are_cut),
		cmocka_unit_test(lists_are_read_item_by_item),
		cmocka_unit_test(a_body_that_was_never_checked_is_safe),
	};

	return cmocka_run_group_tests_name("proto wire body", tests, NULL, NULL);
}
