# SPDX-License-Identifier: Apache-2.0
# Packages of Debian and its relatives: cpack -G DEB, in the folder of a build for /usr (the preset
# "debian"). Components of the installation are the packages; cmake/debian.cmake adds what
# Debian wants in each, and says what each depends on.
install(DIRECTORY client/python/distorch DESTINATION lib/python3/dist-packages
	COMPONENT python3-distorch EXCLUDE_FROM_ALL PATTERN "__pycache__" EXCLUDE)

set(CPACK_GENERATOR DEB)
set(CPACK_PACKAGE_CONTACT "distorchd maintainers <maintainers@distorchd.example>")
set(CPACK_OUTPUT_FILE_PREFIX ${CMAKE_BINARY_DIR}/packages)
set(CPACK_SET_DESTDIR ON) # the units have paths in them
set(CPACK_INSTALL_PREFIX /usr)
set(CPACK_COMPONENTS_ALL distorchd units libdistorch1 libdistorch-dev python3-distorch)
set(CPACK_PRE_BUILD_SCRIPTS ${CMAKE_SOURCE_DIR}/cmake/debian.cmake)
set(CPACK_DISTORCH_BUILD ${CMAKE_BINARY_DIR})
set(CPACK_DISTORCH_TESTING ${DISTORCH_TESTING})

set(CPACK_DEB_COMPONENT_INSTALL ON)
set(CPACK_DEBIAN_FILE_NAME DEB-DEFAULT)
set(CPACK_DEBIAN_PACKAGE_CONTROL_STRICT_PERMISSION ON)
set(CPACK_DEBIAN_PACKAGE_SOURCE distorchd)
set(CPACK_DEBIAN_ENABLE_COMPONENT_DEPENDS ON)

set(about "distorchd reads a file of model weights once into sealed shared memory and
hands that memory, without a copy, to any number of processes. It keeps, pins
and evicts models by policy, and models outlive clients and the daemon.")
function(deb package section synopsis text)
	cmake_parse_arguments(DEB "" "RECOMMENDS;SUGGESTS" "DEPENDS" ${ARGN})
	string(TOUPPER ${package} name)
	set(CPACK_DEBIAN_${name}_PACKAGE_NAME ${package} PARENT_SCOPE)
	set(CPACK_DEBIAN_${name}_PACKAGE_SECTION ${section} PARENT_SCOPE)
	set(CPACK_DEBIAN_${name}_PACKAGE_RECOMMENDS "${DEB_RECOMMENDS}" PARENT_SCOPE)
	set(CPACK_DEBIAN_${name}_PACKAGE_SUGGESTS "${DEB_SUGGESTS}" PARENT_SCOPE)
	set(CPACK_DEBIAN_${name}_DESCRIPTION "${synopsis}\n${about}\n\n${text}" PARENT_SCOPE)
	set(CPACK_COMPONENT_${name}_DEPENDS ${DEB_DEPENDS} PARENT_SCOPE) # ours, of this very version
endfunction()
deb(distorchd admin "owner of the weights of models in shared memory"
	"This package has the daemon, as a service, and the command distorchctl."
	RECOMMENDS libncursesw6 SUGGESTS python3-distorch)
deb(libdistorch1 libs "weights of models shared between processes, library"
	"This package has the library that programs use to connect to the daemon."
	SUGGESTS distorchd)
deb(libdistorch-dev libdevel "weights of models shared between processes, headers"
	"This package has what is needed to build programs with libdistorch."
	DEPENDS libdistorch1)
deb(python3-distorch python "weights of models shared between processes, for Python"
	"This package has the module distorch for Python 3."
	DEPENDS libdistorch1 RECOMMENDS python3-numpy SUGGESTS distorchd)
set(CPACK_DEBIAN_PYTHON3-DISTORCH_PACKAGE_ARCHITECTURE all)

include(CPack)
cpack_add_component(units GROUP distorchd)
cpack_add_component(distorchd GROUP distorchd DEPENDS libdistorch1)
