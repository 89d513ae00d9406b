# SPDX-License-Identifier: Apache-2.0
# Units for systemd, where each looks for them when the prefix is /usr or /usr/local. An empty
# folder leaves its files out. systemd need not be there: they are only files.
option(DISTORCH_UNITS "Install units for systemd" ON)
set(DISTORCH_SYSTEM_UNIT_DIR lib/systemd/system CACHE STRING "Where the system's units go")
set(DISTORCH_USER_UNIT_DIR lib/systemd/user CACHE STRING "Where units for each user go")
set(DISTORCH_SYSUSERS_DIR lib/sysusers.d CACHE STRING "Where users are described")
set(DISTORCH_TMPFILES_DIR lib/tmpfiles.d CACHE STRING "Where folders of /run are described")
if(DISTORCH_UNITS)
	install(CODE "set(UNITS_BINDIR \"${CMAKE_INSTALL_BINDIR}\")
set(UNITS_WORK \"${CMAKE_BINARY_DIR}/units\")
set(UNITS_SYSTEM_DIR \"${DISTORCH_SYSTEM_UNIT_DIR}\")
set(UNITS_USER_DIR \"${DISTORCH_USER_UNIT_DIR}\")
set(UNITS_SYSUSERS_DIR \"${DISTORCH_SYSUSERS_DIR}\")
set(UNITS_TMPFILES_DIR \"${DISTORCH_TMPFILES_DIR}\")
include(\"${CMAKE_SOURCE_DIR}/systemd/install.cmake\")" COMPONENT units)
endif()
