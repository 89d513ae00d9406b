/* SPDX-License-Identifier: Apache-2.0 */
/* The generated tables agree with each other, with the enumerations and with the structs. */
#include "tests/support/unit.h"
#include "tests/support/wire_check.h"

#include "proto/table.h"

static size_t member_size(const struct wire_field *field)
{
	if (field->is_list) {
		return sizeof(struct wire_list);
	}
	return field->kind == WIRE_KIND_BOOL ? sizeof(bool) : item_size(field);
}

static void check_type(const struct wire_type *type)
{
	assert_true(type->size > 0 && type->size <= sizeof(union wire_body));
	assert_true(type->n_fields <= 64);
	for (uint16_t i = 0; i < type->n_fields; i++) {
		const struct wire_field *field = &type->fields[i];

		assert_int_equal(field->name_size, strlen(field->name));
		assert_true(field->offset + member_size(field) <= type->size);
		assert_int_equal((type->required >> i) & 1, !field->is_optional);
		assert_int_equal(field->kind == WIRE_KIND_MAP, field->type != NULL);
		if (field->kind == WIRE_KIND_STR) {
			assert_true((field->is_list ? field->item_max : field->max) > 0);
		}
		if (field->is_list) {
			assert_true(field->max > 0);
		}
		if (field->type) {
			check_type(field->type);
		}
	}
}

static void types_describe_their_structs(void **state)
{
	(void)state;
	for (int i = 0; i < WIRE_N_METHODS; i++) {
		check_type(wire_messages[i].request);
		check_type(wire_messages[i].response);
	}
	for (int i = 0; i < WIRE_N_EVENTS; i++) {
		check_type(wire_events[i].fields);
	}
	check_type(&wire_type_error);
	assert_int_equal(wire_type_policy.size, sizeof(struct wire_policy));
	assert_int_equal(wire_type_policy.fields[2].offset, offsetof(struct wire_policy, ttl_ms));
	assert_int_equal(wire_type_policy.fields[2].has_offset,
			 offsetof(struct wire_policy, has_ttl_ms));
}

static void every_method_is_found_by_its_name(void **state)
{
	(void)state;
	for (int i = 0; i < WIRE_N_METHODS; i++) {
		uint8_t memory[64];
		struct wire_buffer buffer = {.bytes = memory, .capacity = sizeof memory};
		struct wire_packet packet;
		struct wire_fault fault;
		const char *name = wire_messages[i].method;

		memcpy(memory, (uint8_t[]){0x94, 0, 1, (uint8_t)(0xa0 | strlen(name))}, 4);
		memcpy(memory + 4, name, strlen(name));
		buffer.size = 4 + strlen(name);
		memory[buffer.size++] = 0x80;
		assert_int_equal(wire_decode_packet(memory, buffer.size, &wire_packet_limits,
						    &packet, &fault),
				 0);
		assert_ptr_equal(packet.message, &wire_messages[i]);
		assert_int_equal(wire_messages[i].number, i);
	}
	for (int i = 0; i < WIRE_N_EVENTS; i++) {
		assert_int_equal(wire_events[i].number, i);
	}
	assert_string_equal(wire_messages[WIRE_METHOD_HELLO].method, "hello");
	assert_int_equal(wire_messages[WIRE_METHOD_HELLO].role, WIRE_ROLE_NONE);
	assert_int_equal(wire_messages[WIRE_METHOD_SHUTDOWN].role, WIRE_ROLE_ADMIN);
	assert_int_equal(wire_messages[WIRE_METHOD_LOAD].role, WIRE_ROLE_ANY);
	assert_int_equal(wire_messages[WIRE_METHOD_LOAD].request_fds_min, 1);
	assert_int_equal(wire_messages[WIRE_METHOD_LOAD].request_fds_max, 32);
	assert_true(wire_messages[WIRE_METHOD_PUBLISH_BEGIN].is_draft);
	assert_false(wire_messages[WIRE_METHOD_LOAD].is_draft);
	assert_true(wire_events[WIRE_EVENT_RECALL].is_owned);
	assert_false(wire_events[WIRE_EVENT_PRESSURE].is_owned);
}

static void every_code_has_its_word(void **state)
{
	(void)state;
	for (int code = 1; code < WIRE_N_CODES; code++) {
		const struct wire_code_info *info = wire_code_info((enum wire_code)code);

		assert_int_equal(wire_code_find(wire_str(info->word)), code);
		assert_true(info->exit_code > 0);
		assert_true(info->text[0] != '\0');
	}
	assert_string_equal(wire_code_info(WIRE_NO_MEMORY)->word, "no-memory");
	assert_int_equal(wire_code_info(WIRE_NO_MEMORY)->exit_code, 6);
	assert_true(wire_code_info(WIRE_NO_MEMORY)->is_retryable);
	assert_true(wire_code_info(WIRE_BAD_FRAME)->is_fatal);
	assert_true(wire_code_info(WIRE_VERSION)->is_fatal);
	assert_false(wire_code_info(WIRE_BAD_ARGUMENT)->is_fatal);
	assert_int_equal(wire_code_info(WIRE_OK)->exit_code, 0);
	assert_int_equal(wire_code_find(wire_str("no-such-word")), WIRE_INTERNAL);
	assert_int_equal(wire_code_find(wire_str("ok")), WIRE_INTERNAL); /* no error's word */
}

static void every_dtype_has_its_name(void **state)
{
	(void)state;
#define CHECK_DTYPE(number, name, bits, group)               \
	assert_int_equal(WIRE_DTYPE_##name, number);         \
	assert_string_equal(wire_dtype_name(number), #name); \
	assert_int_equal(wire_dtype_bits(number), bits);     \
	assert_int_equal(wire_dtype_group(number), group);   \
	assert_int_equal(wire_dtype_find(#name, sizeof #name - 1), number);
	WIRE_DTYPES(CHECK_DTYPE)
#undef CHECK_DTYPE
	assert_int_equal(wire_dtype_bits(WIRE_DTYPE_BF16), 16);
	assert_int_equal(wire_dtype_group(WIRE_DTYPE_BF16), 1);
	assert_int_equal(wire_dtype_bits(WIRE_DTYPE_Q4_K), 144 * 8);
	assert_int_equal(wire_dtype_group(WIRE_DTYPE_Q4_K), 256);
	assert_int_equal(wire_dtype_group(0), 0);
	assert_int_equal(wire_dtype_group(UINT16_MAX), 0);
	assert_null(wire_dtype_name(0));
	assert_int_equal(wire_dtype_bits(0), 0);
	assert_null(wire_dtype_name(UINT16_MAX));
	assert_int_equal(wire_dtype_bits(UINT16_MAX), 0);
	assert_int_equal(wire_dtype_find("BF1", 3), 0);
	assert_int_equal(wire_dtype_find("bf16", 4), 0);
	assert_int_equal(wire_dtype_find("", 0), 0);
}

static void limits_are_those_of_the_design(void **state)
{
	(void)state;
	assert_int_equal(WIRE_PACKET_BYTES, 64 * 1024);
	assert_int_equal(WIRE_FDS_PER_PACKET, 32);
	assert_int_equal(wire_packet_limits.depth, 8);
	assert_int_equal(wire_packet_limits.nodes, 4096);
	assert_int_equal(WIRE_REQUESTS_IN_FLIGHT, 32);
	assert_int_equal(WIRE_HELLO_MS, 5000);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(types_describe_their_structs),
		cmocka_unit_test(every_method_is_found_by_its_name),
		cmocka_unit_test(every_code_has_its_word),
		cmocka_unit_test(every_dtype_has_its_name),
		cmocka_unit_test(limits_are_those_of_the_design),
	};

	return cmocka_run_group_tests_name("proto tables", tests, NULL, NULL);
}
