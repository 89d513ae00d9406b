# SPDX-License-Identifier: Apache-2.0
# Tests. unit_test(room name): tests/unit/<room>/test_<name>.c, cmocka, linked with that
# room alone.
pkg_check_modules(CMOCKA REQUIRED IMPORTED_TARGET cmocka)

# With a sanitizer, on a machine that has other work, a test takes ten times as long and more: what
# ends it is for those that hang.
set(patience 600)

function(unit_test room name)
	string(REPLACE "/" "_" slug "${room}")
	set(target "test_${slug}_${name}")
	add_executable(${target} tests/unit/${room}/test_${name}.c)
	house_flags(${target})
	target_link_libraries(${target} PRIVATE room_${slug} PkgConfig::CMOCKA)
	set_target_properties(${target} PROPERTIES
		RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/tests)
	add_test(NAME ${room}/${name} COMMAND ${target})
	set_tests_properties(${room}/${name} PROPERTIES LABELS "unit;fast" TIMEOUT ${patience})
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
	set_tests_properties(fuzz/${name} PROPERTIES LABELS "fuzz;fast" TIMEOUT ${patience})
endfunction()

# ---- base ----
unit_test(base checked)
unit_test(base err)
unit_test(base idtab)
unit_test(base list)
unit_test(base require)
unit_test(base text)
unit_test(base units)
unit_test(base shard_name)
unit_test(base json_scan)
unit_test(base utf8)
unit_test(base/os clock)
unit_test(base/os fdpass)
unit_test(base/os closer)
unit_test(base/os crash)
unit_test(base/os memfd)
unit_test(base/os log)
unit_test(base/os mailbox)
unit_test(base/os model_path)
unit_test(base/os model_files)
target_link_options(test_base_os_model_files PRIVATE # it includes tests/support/heap_watch.h
	-Wl,--wrap=malloc,--wrap=calloc,--wrap=realloc,--wrap=free)
unit_test(base/os sys)
fuzz_target(units base)
fuzz_target(model_files base/os)
target_link_libraries(fuzz_model_files PRIVATE PkgConfig::CJSON) # the oracle
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
		LABELS "unit;fast" TIMEOUT ${patience} SKIP_RETURN_CODE 77)
endif()
fuzz_target(wire proto)
fuzz_target(reply proto)
fuzz_target(table proto)
add_executable(bench_wire tests/bench/bench_wire.c)
house_flags(bench_wire)
target_link_libraries(bench_wire PRIVATE room_proto)

# ---- client ----
foreach(name IN ITEMS call given_up hostile keeper plan segments weights)
	unit_test(client ${name})
	target_sources(test_client_${name} PRIVATE tests/unit/client/peer.c)
endforeach()
if(DISTORCH_WITH_CUDA)
	unit_test(client map_cuda)
	on_fakecuda(test_client_map_cuda)
endif()

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
example(placed docs/examples/placed.c 99)
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
unit_test(daemon/load shards)
unit_test(daemon/load piece)
unit_test(daemon/load transfer)
foreach(name IN ITEMS places places_faults places_devices places_verify)
	unit_test(daemon/load ${name})
	target_sources(test_daemon_load_${name} PRIVATE tests/unit/daemon/load/spread.c
		tests/unit/daemon/load/spread_model.c)
	target_compile_definitions(test_daemon_load_${name} PRIVATE
		WORKER_PROGRAM="$<TARGET_FILE:distorchd-worker>")
	add_dependencies(test_daemon_load_${name} distorchd-worker)
	set_tests_properties(daemon/load/${name} PROPERTIES TIMEOUT 600)
endforeach()
if(DISTORCH_WITH_CUDA)
	unit_test(daemon/device cuda_dl)
	on_fakecuda(test_daemon_device_cuda_dl)
endif()
foreach(name IN ITEMS device lies sim worker sandbox)
	add_executable(test_contract_${name} tests/contract/test_${name}.c)
	house_flags(test_contract_${name})
	target_link_libraries(test_contract_${name} PRIVATE room_daemon_device PkgConfig::CMOCKA)
	target_compile_definitions(test_contract_${name} PRIVATE
		WORKER_PROGRAM="$<TARGET_FILE:distorchd-worker>")
	add_dependencies(test_contract_${name} distorchd-worker)
	set_target_properties(test_contract_${name} PROPERTIES
		RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/tests)
	add_test(NAME contract/${name} COMMAND test_contract_${name})
	set_tests_properties(contract/${name} PROPERTIES LABELS "unit;fast" TIMEOUT ${patience})
endforeach()
if(DISTORCH_WITH_CUDA)
	on_fakecuda(test_contract_device)
	add_executable(test_contract_cuda tests/contract/test_cuda.c)
	house_flags(test_contract_cuda)
	target_link_libraries(test_contract_cuda PRIVATE room_daemon_device PkgConfig::CMOCKA)
	on_fakecuda(test_contract_cuda)
	set_target_properties(test_contract_cuda PROPERTIES
		RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/tests)
	add_test(NAME contract/cuda COMMAND test_contract_cuda)
	set_tests_properties(contract/cuda PROPERTIES LABELS "contract" TIMEOUT 600)
endif()

# ---- format and config ----
unit_test(daemon/format safetensors)
unit_test(daemon/format blocks)
unit_test(daemon/format dtype)
unit_test(daemon/format order)
unit_test(daemon/format format)
unit_test(daemon/format gguf)
unit_test(daemon/format join)
unit_test(daemon/format segment_layout)
foreach(name safetensors blocks gguf join) # they include tests/support/heap_watch.h
	target_link_options(test_daemon_format_${name} PRIVATE
		-Wl,--wrap=malloc,--wrap=calloc,--wrap=realloc,--wrap=free)
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
fuzz_target(index daemon/format)
target_link_libraries(fuzz_index PRIVATE PkgConfig::CJSON) # likewise
# The configuration without the rest of the corridor.
room(config DEPENDS base base/os proto
	SOURCES daemon/config.c daemon/config_file.c daemon/config_table.c daemon/config_value.c
		daemon/config_text.c)
add_executable(test_daemon_config tests/unit/daemon/test_config.c)
house_flags(test_daemon_config)
target_link_libraries(test_daemon_config PRIVATE room_config PkgConfig::CMOCKA)
set_target_properties(test_daemon_config PROPERTIES
	RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/tests)
add_test(NAME daemon/config COMMAND test_daemon_config)
set_tests_properties(daemon/config PROPERTIES LABELS "unit;fast" TIMEOUT ${patience})
fuzz_target(config config)

# What outlives the daemon, without the rest of the corridor.
room(restart DEPENDS base base/os proto daemon/load
	SOURCES daemon/ledger.c daemon/placed_record.c daemon/notify_parse.c)
foreach(name ledger placed_record notify_parse)
	add_executable(test_daemon_${name} tests/unit/daemon/test_${name}.c)
	house_flags(test_daemon_${name})
	target_link_libraries(test_daemon_${name} PRIVATE room_restart PkgConfig::CMOCKA)
	set_target_properties(test_daemon_${name} PROPERTIES
		RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/tests)
	add_test(NAME daemon/${name} COMMAND test_daemon_${name})
	set_tests_properties(daemon/${name} PROPERTIES LABELS "unit;fast" TIMEOUT ${patience})
endforeach()
add_executable(test_daemon_notify tests/unit/daemon/test_notify.c daemon/notify.c)
house_flags(test_daemon_notify)
target_link_libraries(test_daemon_notify PRIVATE room_base_os room_base PkgConfig::UV PkgConfig::CMOCKA)
set_target_properties(test_daemon_notify PROPERTIES
	RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/tests)
add_test(NAME daemon/notify COMMAND test_daemon_notify)
set_tests_properties(daemon/notify PROPERTIES LABELS "unit;fast" TIMEOUT ${patience})
fuzz_target(ledger restart)
fuzz_target(placed restart)
fuzz_target(notify restart)

# ---- ipc ----
unit_test(daemon/ipc http)
fuzz_target(http daemon/ipc)

# What outlives the machine, likewise.
room(saved_state DEPENDS base base/os proto daemon/format
	SOURCES daemon/state_file.c daemon/state_text.c daemon/state_list.c
	LINKS PkgConfig::CJSON)
add_executable(test_daemon_state_file tests/unit/daemon/test_state_file.c)
house_flags(test_daemon_state_file)
target_link_libraries(test_daemon_state_file PRIVATE room_saved_state PkgConfig::CMOCKA)
set_target_properties(test_daemon_state_file PROPERTIES
	RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/tests)
add_test(NAME daemon/state_file COMMAND test_daemon_state_file)
set_tests_properties(daemon/state_file PROPERTIES LABELS "unit;fast" TIMEOUT ${patience})
fuzz_target(state saved_state)

# ---- plan ----
unit_test(daemon/plan cases)
unit_test(daemon/plan properties)
target_sources(test_daemon_plan_properties PRIVATE tests/unit/daemon/plan/random.c)
unit_test(daemon/plan spec)
if(Python3_FOUND)
	add_test(NAME daemon/plan/table
		COMMAND ${Python3_EXECUTABLE} ${CMAKE_SOURCE_DIR}/tests/unit/daemon/plan/table.py
			--check $<TARGET_FILE:test_daemon_plan_cases>)
	set_tests_properties(daemon/plan/table PROPERTIES LABELS "unit;fast" TIMEOUT 60)
endif()
fuzz_target(plan daemon/plan)

# ---- core ----
unit_test(daemon/core backing)
unit_test(daemon/core limits)
unit_test(daemon/core loads)
unit_test(daemon/core moves)
unit_test(daemon/core place)
unit_test(daemon/core policy)
unit_test(daemon/core shares)
unit_test(daemon/core shards)
unit_test(daemon/core reserve)
unit_test(daemon/core displaced)
unit_test(daemon/core later)
unit_test(daemon/core return)
unit_test(daemon/core users)
unit_test(daemon/core verify)
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

# ---- the soak: tests/soak/soak.py runs these ----
add_executable(soak_client tests/soak/client.c tests/soak/garbage.c tests/soak/oracle.c)
house_flags(soak_client)
target_include_directories(soak_client PRIVATE ${CMAKE_SOURCE_DIR})
target_link_libraries(soak_client PRIVATE distorch)
set_target_properties(soak_client PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/tests)

# ---- end to end ----
if(NOT DISTORCH_SANITIZE) # a sanitizer's runtime has to be the first library
	foreach(preload fd_guard wall_clock)
		add_library(${preload} SHARED tests/support/${preload}.c)
		house_flags(${preload})
		target_link_libraries(${preload} PRIVATE ${CMAKE_DL_LIBS})
		set_target_properties(${preload} PROPERTIES
			LIBRARY_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/tests)
	endforeach()
endif()

# The longest begin first, for several at once to end together.
foreach(long core/histories daemon/plan/properties contract/cuda contract/device
	daemon/load/places_faults daemon/load/places daemon/load/places_devices daemon/load/loader)
	if(TEST ${long})
		set_tests_properties(${long} PROPERTIES COST 100)
	endif()
endforeach()
