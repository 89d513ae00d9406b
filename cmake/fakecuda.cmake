# SPDX-License-Identifier: Apache-2.0
# The stand-in for NVIDIA's driver, with the names that the real one has, and what asks a card.
# In builds that are no tests only on request (scripts/bench, scripts/gpu-check).
set(on_request EXCLUDE_FROM_ALL)
if(DISTORCH_TESTING)
	set(on_request)
endif()
add_library(fakecuda SHARED ${on_request} tests/fakecuda/driver.c tests/fakecuda/memory.c
	tests/fakecuda/stream.c tests/fakecuda/card.c)
add_library(fakenvml SHARED ${on_request} tests/fakecuda/nvml.c tests/fakecuda/card.c)
set_target_properties(fakecuda PROPERTIES OUTPUT_NAME cuda)
set_target_properties(fakenvml PROPERTIES OUTPUT_NAME nvidia-ml)
foreach(library fakecuda fakenvml)
	house_flags(${library})
	cuda_headers(${library})
	target_include_directories(${library} PRIVATE ${CMAKE_SOURCE_DIR})
	target_link_libraries(${library} PRIVATE Threads::Threads)
	set_target_properties(${library} PROPERTIES SOVERSION 1
		LIBRARY_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/fakecuda)
endforeach()

# on_fakecuda(target): a program that loads them, by tests/support/fakecuda.h.
function(on_fakecuda target)
	cuda_headers(${target})
	add_dependencies(${target} fakecuda fakenvml)
	target_compile_definitions(${target} PRIVATE FAKECUDA_FOLDER="${CMAKE_BINARY_DIR}/fakecuda")
	target_link_libraries(${target} PRIVATE ${CMAKE_DL_LIBS})
endfunction()

add_executable(gpu_check ${on_request} tests/gpu/gpu_check.c tests/gpu/parts.c tests/gpu/memory.c)
house_flags(gpu_check)
cuda_headers(gpu_check)
target_link_libraries(gpu_check PRIVATE room_daemon_device)
set_target_properties(gpu_check PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/gpu)
