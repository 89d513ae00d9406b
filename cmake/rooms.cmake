# SPDX-License-Identifier: Apache-2.0
# room(NAME SOURCES ... [DEPENDS rooms] [LINKS targets]): a static library that includes by
# paths from the root of the tree. Which room may include which is checked by
# tests/lint/check_layers.py and by linking each room's tests against it alone.
function(room name)
	cmake_parse_arguments(ROOM "" "" "SOURCES;DEPENDS;LINKS" ${ARGN})
	string(REPLACE "/" "_" target "room_${name}")
	add_library(${target} STATIC ${ROOM_SOURCES})
	target_include_directories(${target} PUBLIC ${CMAKE_SOURCE_DIR})
	house_flags(${target})
	foreach(dependency IN LISTS ROOM_DEPENDS)
		string(REPLACE "/" "_" dependency_target "room_${dependency}")
		target_link_libraries(${target} PUBLIC ${dependency_target})
	endforeach()
	target_link_libraries(${target} PUBLIC ${ROOM_LINKS})
endfunction()
