# SPDX-License-Identifier: Apache-2.0
# Warnings, hardening and sanitizers of everything we build.
include(CheckCCompilerFlag)

set(HOUSE_WARNINGS
	-Wall -Wextra -Wpedantic -Wshadow -Wconversion -Wsign-conversion -Wcast-qual -Wcast-align
	-Wstrict-prototypes -Wmissing-prototypes -Wmissing-declarations -Wold-style-definition
	-Wredundant-decls -Wnested-externs -Wwrite-strings -Wpointer-arith -Wvla -Walloca -Wundef
	-Wformat=2 -Wnull-dereference -Wdouble-promotion -Wfloat-conversion -Wswitch-enum
	-Wimplicit-fallthrough -Wdate-time -Wframe-larger-than=8192 -Wunused-macros)
if(CMAKE_C_COMPILER_ID STREQUAL "GNU")
	list(APPEND HOUSE_WARNINGS
		-Wformat-signedness -Wlogical-op -Wduplicated-cond -Wduplicated-branches
		-Wjump-misses-init -Wtrampolines -Wstringop-overflow=4 -Wformat-overflow=2
		-Wformat-truncation=2 -Warith-conversion -Wcast-align=strict -Wstack-usage=8192)
else()
	list(APPEND HOUSE_WARNINGS
		-Wcomma -Wassign-enum -Wconditional-uninitialized -Wunreachable-code
		-Wshorten-64-to-32 -Wmissing-variable-declarations -Wcovered-switch-default
		-Wthread-safety)
endif()
if(DISTORCH_WERROR)
	list(APPEND HOUSE_WARNINGS -Werror)
endif()

set(HOUSE_HARDENING
	-fno-common -fno-strict-overflow -fno-delete-null-pointer-checks -fvisibility=hidden)
set(HOUSE_LINK -Wl,-z,relro,-z,now,-z,noexecstack,-z,separate-code,--as-needed)
if(DISTORCH_SANITIZE)
	list(JOIN DISTORCH_SANITIZE "," sanitizers)
	list(APPEND HOUSE_HARDENING
		-fsanitize=${sanitizers} -fno-sanitize-recover=all -fno-omit-frame-pointer)
	list(APPEND HOUSE_LINK -fsanitize=${sanitizers})
	# A sanitizer's instrumentation enlarges frames and defeats flow analysis.
	list(REMOVE_ITEM HOUSE_WARNINGS -Wframe-larger-than=8192 -Wstack-usage=8192
		-Wnull-dereference -Wstringop-overflow=4 -Wformat-truncation=2 -Wformat-overflow=2)
else()
	list(APPEND HOUSE_HARDENING
		-fstack-protector-strong -fstack-clash-protection -fcf-protection=full)
	if(NOT CMAKE_BUILD_TYPE STREQUAL "Debug")
		list(APPEND HOUSE_HARDENING -U_FORTIFY_SOURCE -D_FORTIFY_SOURCE=3)
	endif()
endif()
if(DISTORCH_FUZZ)
	list(APPEND HOUSE_HARDENING -fsanitize=fuzzer-no-link)
endif()

function(house_flags target)
	target_compile_definitions(${target} PRIVATE _GNU_SOURCE
		DISTORCH_VERSION="${PROJECT_VERSION}"
		$<$<BOOL:${DISTORCH_TESTING}>:DISTORCH_TESTING>
		$<$<BOOL:${DISTORCH_WITH_CUDA}>:DISTORCH_WITH_CUDA>)
	target_compile_options(${target} PRIVATE
		$<$<COMPILE_LANGUAGE:C>:${HOUSE_WARNINGS}> ${HOUSE_HARDENING})
	target_link_options(${target} PRIVATE ${HOUSE_LINK})
	get_target_property(kind ${target} TYPE)
	if(kind STREQUAL "EXECUTABLE")
		target_compile_options(${target} PRIVATE -fPIE)
		target_link_options(${target} PRIVATE -pie)
	endif()
endfunction()
