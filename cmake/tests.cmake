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

# fuzz_target(name rooms...): tests/fuzz/fuzz_<name>.c over tests/fuzz/corpus/<name>. With
# DISTORCH_FUZZ a libFuzzer program, else an ordinary test that replays the corpus.
add_custom_target(fuzz_targets)
function(fuzz_target name)
	set(target "fuzz_${name}")
	add_executable(${target} tests/fuzz/fuzz_${name}.c)
	house_flags(${target})
	foreach(room IN LISTS ARGN)
		string(REPLACE "/" "_" slug "${room}")
		target_link_libraries(${target} PRIVATE room_${slug})
	endforeach()
	set_target_properties(${target} PROPERTIES
		RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/fuzz)
	if(DISTORCH_FUZZ)
		target_link_options(${target} PRIVATE -fsanitize=fuzzer)
		add_dependencies(fuzz_targets ${target})
		return()
	endif()
	target_sources(${target} PRIVATE tests/fuzz/replay.c)
	add_test(NAME fuzz/${name}
		COMMAND ${target} ${CMAKE_SOURCE_DIR}/tests/fuzz/corpus/${name})
	set_tests_properties(fuzz/${name} PROPERTIES LABELS "fuzz;fast" TIMEOUT 120)
endfunction()

# ---- base ----
unit_test(base checked)
unit_test(base err)
unit_test(base idtab)
unit_test(base list)
unit_test(base require)
unit_test(base text)
unit_test(base units)
unit_test(base/os clock)
unit_test(base/os fdpass)
unit_test(base/os closer)
unit_test(base/os crash)
unit_test(base/os memfd)
unit_test(base/os log)
if(SYSTEMD_FOUND)
	target_compile_definitions(test_base_os_log PRIVATE HAVE_SYSTEMD)
endif()
unit_test(base/os mailbox)
unit_test(base/os sys)
fuzz_target(units base)
fuzz_target(control base/os)

# ---- proto ----
unit_test(proto wire)
unit_test(proto wire_body)
unit_test(proto wire_encode)
unit_test(proto vectors)
unit_test(proto table)
unit_test(proto gen)
target_compile_definitions(test_proto_vectors PRIVATE
	VECTORS_FILE="${CMAKE_SOURCE_DIR}/tests/unit/proto/vectors.txt")
# The virtual environment of scripts/bootstrap where there is one: it has msgpack.
if(EXISTS ${CMAKE_SOURCE_DIR}/build/venv/bin/python)
	set(Python3_EXECUTABLE ${CMAKE_SOURCE_DIR}/build/venv/bin/python)
endif()
find_package(Python3 COMPONENTS Interpreter)
if(Python3_FOUND)
	add_test(NAME proto/wiregen
		COMMAND ${Python3_EXECUTABLE} ${CMAKE_SOURCE_DIR}/tests/unit/proto/test_wiregen.py)
	add_test(NAME proto/vectors_current
		COMMAND ${Python3_EXECUTABLE} ${CMAKE_SOURCE_DIR}/tests/unit/proto/vectors.py --check)
	set_tests_properties(proto/wiregen proto/vectors_current PROPERTIES
		LABELS "unit;fast" TIMEOUT 120 SKIP_RETURN_CODE 77)
endif()
fuzz_target(wire proto)
fuzz_target(reply proto)
fuzz_target(table proto)
add_executable(bench_wire tests/bench/bench_wire.c)
house_flags(bench_wire)
target_link_libraries(bench_wire PRIVATE room_proto)

# ---- client ----
foreach(name IN ITEMS call given_up hostile keeper weights)
	unit_test(client ${name})
	target_sources(test_client_${name} PRIVATE tests/unit/client/peer.c)
endforeach()

# ---- abi: what users of libdistorch get; the examples are built as users build them ----
function(example name source standard)
	add_executable(example_${name} ${source})
	target_link_libraries(example_${name} PRIVATE distorch)
	target_compile_options(example_${name} PRIVATE -Wall -Wextra -Wpedantic -Werror)
	if(DISTORCH_SANITIZE)
		target_link_options(example_${name} PRIVATE ${HOUSE_LINK})
	endif()
	set_target_properties(example_${name} PROPERTIES C_STANDARD ${standard}
		CXX_STANDARD ${standard} CXX_STANDARD_REQUIRED ON CXX_EXTENSIONS OFF
		RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/examples)
endfunction()
example(load docs/examples/load.c 99)
example(unload_not_kept docs/examples/unload_not_kept.c 99)
example(tensors docs/examples/tensors.cpp 17)
add_test(NAME abi/symbols
	COMMAND ${CMAKE_SOURCE_DIR}/tests/abi/check_symbols.sh $<TARGET_FILE:distorch>)
add_test(NAME abi/header_c99
	COMMAND ${CMAKE_C_COMPILER} -std=c99 -pedantic-errors -Wall -Wextra -Werror -fsyntax-only
		-I${CMAKE_SOURCE_DIR}/client/include ${CMAKE_SOURCE_DIR}/tests/abi/header.c)
add_test(NAME abi/header_cxx17
	COMMAND ${CMAKE_CXX_COMPILER} -std=c++17 -pedantic-errors -Wall -Wextra -Werror
		-fsyntax-only -I${CMAKE_SOURCE_DIR}/client/include -x c++
		${CMAKE_SOURCE_DIR}/tests/abi/header.c)
set_tests_properties(abi/symbols abi/header_c99 abi/header_cxx17 PROPERTIES
	LABELS "abi;fast" TIMEOUT 60)
if(Python3_FOUND)
	add_test(NAME abi/python_layout
		COMMAND ${Python3_EXECUTABLE} ${CMAKE_SOURCE_DIR}/tests/abi/test_layout.py
			${CMAKE_C_COMPILER} ${CMAKE_SOURCE_DIR})
	set_tests_properties(abi/python_layout PROPERTIES LABELS "abi;fast" TIMEOUT 60)
endif()

# ---- device and load ----
unit_test(daemon/load hash)
unit_test(daemon/load memory)
unit_test(daemon/load file)
unit_test(daemon/load thread)
unit_test(daemon/load reader)
unit_test(daemon/load loader)
add_executable(test_contract_device tests/contract/test_device.c)
house_flags(test_contract_device)
target_link_libraries(test_contract_device PRIVATE room_daemon_device PkgConfig::CMOCKA)
set_target_properties(test_contract_device PROPERTIES
	RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/tests)
add_test(NAME contract/device COMMAND test_contract_device)
set_tests_properties(contract/device PROPERTIES LABELS "unit;fast" TIMEOUT 120)

# ---- format and config ----
unit_test(daemon/format safetensors)
unit_test(daemon/format json_scan)
unit_test(daemon/format blocks)
unit_test(daemon/format dtype)
unit_test(daemon/format order)
unit_test(daemon/format format)
unit_test(daemon/format gguf)
unit_test(daemon/format utf8)
foreach(name safetensors blocks gguf) # they include tests/support/heap_watch.h
	target_link_options(test_daemon_format_${name} PRIVATE
		-Wl,--wrap=malloc,--wrap=realloc,--wrap=free)
endforeach()
# The driver of tests/e2e/test_format_differential.py.
add_executable(format_dump tests/support/format_dump.c)
house_flags(format_dump)
target_link_libraries(format_dump PRIVATE room_daemon_format)
set_target_properties(format_dump PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/tests)
fuzz_target(safetensors daemon/format)
target_link_libraries(fuzz_safetensors PRIVATE PkgConfig::CJSON) # the oracle
fuzz_target(safetensors_structured daemon/format)
fuzz_target(gguf daemon/format)
fuzz_target(gguf_structured daemon/format)
# The configuration without the rest of the corridor.
room(config DEPENDS base base/os proto
	SOURCES daemon/config.c daemon/config_file.c daemon/config_table.c daemon/config_value.c)
add_executable(test_daemon_config tests/unit/daemon/test_config.c)
house_flags(test_daemon_config)
target_link_libraries(test_daemon_config PRIVATE room_config PkgConfig::CMOCKA)
set_target_properties(test_daemon_config PROPERTIES
	RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/tests)
add_test(NAME daemon/config COMMAND test_daemon_config)
set_tests_properties(daemon/config PROPERTIES LABELS "unit;fast" TIMEOUT 120)
fuzz_target(config config)

# What outlives the daemon, without the rest of the corridor.
room(restart DEPENDS base base/os proto daemon/load
	SOURCES daemon/ledger.c daemon/notify_parse.c)
foreach(name ledger notify_parse)
	add_executable(test_daemon_${name} tests/unit/daemon/test_${name}.c)
	house_flags(test_daemon_${name})
	target_link_libraries(test_daemon_${name} PRIVATE room_restart PkgConfig::CMOCKA)
	set_target_properties(test_daemon_${name} PROPERTIES
		RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/tests)
	add_test(NAME daemon/${name} COMMAND test_daemon_${name})
	set_tests_properties(daemon/${name} PROPERTIES LABELS "unit;fast" TIMEOUT 120)
endforeach()
fuzz_target(ledger restart)
fuzz_target(notify restart)

# ---- core ----
unit_test(daemon/core limits)
unit_test(daemon/core loads)
unit_test(daemon/core policy)
add_library(core_driver STATIC tests/core/driver.c tests/core/reference.c)
house_flags(core_driver)
target_link_libraries(core_driver PUBLIC room_daemon_core)
add_executable(test_core_histories tests/core/test_histories.c)
house_flags(test_core_histories)
target_link_libraries(test_core_histories PRIVATE core_driver PkgConfig::CMOCKA)
set_target_properties(test_core_histories PROPERTIES
	RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/tests)
add_test(NAME core/histories COMMAND test_core_histories)
set_tests_properties(core/histories PROPERTIES LABELS "core;fast" TIMEOUT 600)
fuzz_target(core daemon/core)
target_link_libraries(fuzz_core PRIVATE core_driver)

# ---- end to end ----
if(NOT DISTORCH_SANITIZE) # a sanitizer's runtime has to be the first library
	add_library(fd_guard SHARED tests/support/fd_guard.c)
	house_flags(fd_guard)
	target_link_libraries(fd_guard PRIVATE ${CMAKE_DL_LIBS})
	set_target_properties(fd_guard PROPERTIES
		LIBRARY_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/tests)
endif()
