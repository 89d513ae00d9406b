# SPDX-License-Identifier: Apache-2.0
# Tests. unit_test(room name): tests/unit/<room>/test_<name>.c, cmocka, linked with that
# room alone.
pkg_check_modules(CMOCKA REQUIRED IMPORTED_TARGET cmocka)

function(unit_test room name)
	string(REPLACE "/" "_" slug "${room}")
	set(target "test_${slug}_${name}")
	add_executable(${target} tests/unit/${room}/test_${name}.c)
	house_flags(${target})
	target_link_libraries(${target} PRIVATE room_${slug} PkgConfig::CMOCKA)
	set_target_properties(${target} PROPERTIES
		RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/tests)
	add_test(NAME ${room}/${name} COMMAND ${target})
	set_tests_properties(${room}/${name} PROPERTIES LABELS "unit;fast" TIMEOUT 120)
endfunction()

# ---- proto ----
unit_test(proto wire)
unit_test(proto wire_body)
unit_test(proto wire_encode)
unit_test(proto vectors)
unit_test(proto table)
unit_test(proto gen)
target_compile_definitions(test_proto_vectors PRIVATE
	VECTORS_FILE="${CMAKE_SOURCE_DIR}/tests/unit/proto/vectors.txt")
