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

add_executable(bench_warm_file EXCLUDE_FROM_ALL tests/bench/warm_file.c)
house_flags(bench_warm_file)
target_link_libraries(bench_warm_file PRIVATE distorch)
set_target_properties(bench_warm_file PROPERTIES
	RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/bench)

add_executable(bench_core_step EXCLUDE_FROM_ALL tests/bench/core_step.c)
house_flags(bench_core_step)
target_link_libraries(bench_core_step PRIVATE room_daemon_core room_base_os)
set_target_properties(bench_core_step PROPERTIES
	RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/bench)

add_executable(bench_plan EXCLUDE_FROM_ALL tests/bench/plan.c)
house_flags(bench_plan)
target_link_libraries(bench_plan PRIVATE room_daemon_plan room_base_os)
set_target_properties(bench_plan PROPERTIES
	RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/bench)

if(DISTORCH_WITH_CUDA)
	add_executable(bench_import_cuda EXCLUDE_FROM_ALL tests/bench/import_cuda.c)
	house_flags(bench_import_cuda)
	on_fakecuda(bench_import_cuda)
	target_link_libraries(bench_import_cuda PRIVATE room_client room_daemon_device)
	set_target_properties(bench_import_cuda PROPERTIES
		RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/bench)
	add_custom_target(bench_cuda DEPENDS bench_import_cuda)
else()
	add_custom_target(bench_cuda) # nothing: built without the headers of CUDA
endif()

add_executable(bench_device_fill EXCLUDE_FROM_ALL tests/bench/device_fill.c)
house_flags(bench_device_fill)
target_link_libraries(bench_device_fill PRIVATE room_daemon_load)
add_dependencies(bench_device_fill distorchd-worker)
set_target_properties(bench_device_fill PROPERTIES
	RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/bench)
