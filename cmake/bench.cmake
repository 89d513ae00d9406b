# SPDX-License-Identifier: Apache-2.0
# Benchmarks, built on request only (scripts/bench); never tests.
add_executable(bench_cold_read EXCLUDE_FROM_ALL tests/bench/cold_read.c)
house_flags(bench_cold_read)
target_link_libraries(bench_cold_read PRIVATE room_daemon_load)
set_target_properties(bench_cold_read PROPERTIES
	RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/bench)

add_executable(bench_attach EXCLUDE_FROM_ALL tests/bench/attach.c)
house_flags(bench_attach)
target_link_libraries(bench_attach PRIVATE distorch)
set_target_properties(bench_attach PROPERTIES
	RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/bench)

add_executable(bench_core_step EXCLUDE_FROM_ALL tests/bench/core_step.c)
house_flags(bench_core_step)
target_link_libraries(bench_core_step PRIVATE room_daemon_core room_base_os)
set_target_properties(bench_core_step PROPERTIES
	RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/bench)
