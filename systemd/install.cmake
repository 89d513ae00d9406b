# SPDX-License-Identifier: Apache-2.0
# Install the units with the programs' paths in them. Runs when things are installed, because only
# then the prefix is known; scripts/install runs it as well (cmake -P) for one user's unit.
# In: CMAKE_INSTALL_PREFIX, UNITS_BINDIR (below the prefix), UNITS_WORK (a folder for made files),
# and where units go (absolute, or below the prefix; empty: not these): UNITS_SYSTEM_DIR,
# UNITS_USER_DIR, UNITS_SYSUSERS_DIR, UNITS_TMPFILES_DIR.
cmake_minimum_required(VERSION 3.22)
foreach(program IN ITEMS distorchd distorchctl)
	set(path "${CMAKE_INSTALL_PREFIX}/${UNITS_BINDIR}/${program}")
	string(REPLACE "%" "%%" path "${path}") # a % begins a specifier
	if(path MATCHES "[^A-Za-z0-9/._%+@:-]")
		set(path "\"${path}\"")
	endif()
	string(TOUPPER "${program}" name)
	set(${name} "${path}")
endforeach()

function(install_unit directory source name)
	if(directory STREQUAL "")
		return()
	endif()
	if(NOT IS_ABSOLUTE "${directory}")
		set(directory "${CMAKE_INSTALL_PREFIX}/${directory}")
	endif()
	configure_file("${CMAKE_CURRENT_FUNCTION_LIST_DIR}/${source}" "${UNITS_WORK}/${source}" @ONLY)
	file(INSTALL DESTINATION "${directory}" TYPE FILE RENAME "${name}"
		FILES "${UNITS_WORK}/${source}")
	set(CMAKE_INSTALL_MANIFEST_FILES "${CMAKE_INSTALL_MANIFEST_FILES}" PARENT_SCOPE)
endfunction()

install_unit("${UNITS_SYSTEM_DIR}" distorchd.service.in distorchd.service)
install_unit("${UNITS_SYSTEM_DIR}" distorchd.socket distorchd.socket)
install_unit("${UNITS_USER_DIR}" user/distorchd.service.in distorchd.service)
install_unit("${UNITS_USER_DIR}" user/distorchd.socket distorchd.socket)
install_unit("${UNITS_SYSUSERS_DIR}" distorchd.sysusers distorchd.conf)
install_unit("${UNITS_TMPFILES_DIR}" distorchd.tmpfiles distorchd.conf)
