# SPDX-License-Identifier: Apache-2.0
# Runs in cpack, when the files of each package are gathered and before the packages are made:
# debhelper writes the maintainer scripts and lays out what Debian wants besides. In: CPACK_*.
cmake_minimum_required(VERSION 3.22)
get_filename_component(source ${CMAKE_CURRENT_LIST_DIR} DIRECTORY)
set(work ${CPACK_TOPLEVEL_DIRECTORY}/debhelper)
set(packages distorchd libdistorch1 libdistorch-dev python3-distorch)
if(NOT CPACK_DEBIAN_PACKAGE_VERSION)
	set(CPACK_DEBIAN_PACKAGE_VERSION ${CPACK_PACKAGE_VERSION})
endif()

function(run)
	execute_process(COMMAND ${ARGN} WORKING_DIRECTORY ${work} RESULT_VARIABLE result
		OUTPUT_VARIABLE output ERROR_VARIABLE output)
	if(NOT result EQUAL 0)
		list(JOIN ARGN " " command)
		message(FATAL_ERROR "${command}: ${result}\n${output}")
	endif()
endfunction()

if(CPACK_DISTORCH_TESTING)
	message(FATAL_ERROR "a testing build is not for packages: scripts/build makes the right one")
endif()
foreach(tool IN ITEMS dh_installsystemd dh_python3 dpkg-shlibdeps)
	find_program(found_${tool} ${tool})
	if(NOT found_${tool})
		message(FATAL_ERROR "${tool} is not there: apt-get install debhelper dh-python dpkg-dev")
	endif()
endforeach()

# ---- what debhelper reads ----
set(ENV{DEB_RULES_REQUIRES_ROOT} no) # the owners of files are said by cpack
file(REMOVE_RECURSE ${work})
file(COPY ${CMAKE_CURRENT_LIST_DIR}/debian DESTINATION ${work})
foreach(package IN LISTS packages)
	file(RENAME ${CPACK_TEMPORARY_DIRECTORY}/${package} ${work}/debian/${package})
endforeach()
file(READ ${source}/NEWS.md news)
string(REGEX REPLACE "^.*\n## ${CPACK_PACKAGE_VERSION}[^\n]*\n+" "" news "${news}")
string(REGEX REPLACE "\n## .*$" "" news "${news}")
string(REPLACE "\n" "\n  " news "  ${news}")
string(STRIP "${news}" news)
file(WRITE ${work}/news "  ${news}\n")
execute_process(COMMAND fmt -t -w 78 ${work}/news OUTPUT_VARIABLE news COMMAND_ERROR_IS_FATAL ANY)
string(TIMESTAMP now "%a, %d %b %Y %H:%M:%S +0000" UTC)
file(WRITE ${work}/debian/changelog
	"distorchd (${CPACK_DEBIAN_PACKAGE_VERSION}) unstable; urgency=medium\n\n${news}\n"
	" -- ${CPACK_PACKAGE_CONTACT}  ${now}\n")

# ---- files that only packages have ----
execute_process(COMMAND ${CPACK_DISTORCH_BUILD}/bin/distorchd --help-config
	OUTPUT_VARIABLE settings COMMAND_ERROR_IS_FATAL ANY)
string(REGEX REPLACE "\n([a-z-]+ = )" "\n; \\1" settings "${settings}")
file(WRITE ${work}/debian/distorchd/etc/distorchd/distorchd.conf
	"# Settings of distorchd, each with its default; see distorchd.conf(5). Then:\n"
	"#   systemctl reload distorchd\n\n${settings}")
file(RPATH_REMOVE FILE ${work}/debian/distorchd/usr/bin/distorchctl) # the library is the system's
run(dh_installdocs -p distorchd ${source}/README.md ${source}/SECURITY.md)
run(dh_installdocs -p libdistorch1 -p libdistorch-dev -p python3-distorch)
run(dh_installchangelogs)
run(dh_strip --no-automatic-dbgsym)
run(dh_compress)
run(dh_fixperms)

# ---- maintainer scripts ----
# A restart of the socket would refuse those who connect meanwhile, so it is only started. The
# service is restarted, never stopped and started: that would give the models away.
file(CREATE_LINK usr/lib ${work}/debian/distorchd/lib SYMBOLIC) # where dh_installsystemd looks
run(dh_installsysusers)
run(dh_installtmpfiles)
run(dh_installsystemd -p distorchd --no-also distorchd.service)
run(dh_installsystemd -p distorchd --no-also --no-stop-on-upgrade distorchd.socket)
file(REMOVE ${work}/debian/distorchd/lib)
run(dh_python3)
run(dh_makeshlibs)
run(dh_shlibdeps -- -xlibdistorch1) # that one it says itself, to the version
run(dh_installdeb)

foreach(package IN LISTS packages)
	if(EXISTS ${work}/debian/${package}/DEBIAN)
		file(RENAME ${work}/debian/${package}/DEBIAN ${work}/${package})
	endif()
	file(RENAME ${work}/debian/${package} ${CPACK_TEMPORARY_DIRECTORY}/${package})
	string(TOUPPER ${package} name)
	file(GLOB CPACK_DEBIAN_${name}_PACKAGE_CONTROL_EXTRA ${work}/${package}/*)
	file(APPEND ${work}/debian/${package}.substvars "") # not every package gets one
	file(STRINGS ${work}/debian/${package}.substvars depends REGEX ":Depends=.")
	list(TRANSFORM depends REPLACE "^[a-z0-9]+:Depends=" "")
	list(JOIN depends ", " CPACK_DEBIAN_${name}_PACKAGE_DEPENDS)
endforeach()
