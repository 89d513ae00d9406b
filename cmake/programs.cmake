# SPDX-License-Identifier: Apache-2.0
# The daemon, the client library and the command line.

# ---- client: libdistorch ----
include(GNUInstallDirs)
room(client DEPENDS base base/os proto
	SOURCES client/connect.c client/call.c client/packet.c client/event.c client/error.c
		client/convert.c client/result.c client/options.c client/file.c client/map.c
		client/load.c client/listing.c client/keeper.c
	LINKS Threads::Threads PkgConfig::XXHASH)
add_library(distorch SHARED $<TARGET_OBJECTS:room_client>)
house_flags(distorch)
target_include_directories(distorch INTERFACE
	$<BUILD_INTERFACE:${CMAKE_SOURCE_DIR}/client/include> $<INSTALL_INTERFACE:include>)
target_link_libraries(distorch PRIVATE room_base_os room_proto room_base Threads::Threads)
# nodelete: fork handlers and thread-specific keys outlive a dlclose.
target_link_options(distorch PRIVATE -Wl,-z,nodelete -Wl,--no-undefined
	-Wl,--version-script=${CMAKE_SOURCE_DIR}/client/libdistorch.map)
set_target_properties(distorch PROPERTIES VERSION ${PROJECT_VERSION} SOVERSION 1
	LINK_DEPENDS ${CMAKE_SOURCE_DIR}/client/libdistorch.map
	PUBLIC_HEADER ${CMAKE_SOURCE_DIR}/client/include/distorch.h)
file(RELATIVE_PATH DISTORCH_PC_TO_PREFIX "/prefix/${CMAKE_INSTALL_LIBDIR}/pkgconfig" "/prefix")
string(REGEX REPLACE "/$" "" DISTORCH_PC_TO_PREFIX "${DISTORCH_PC_TO_PREFIX}")
configure_file(client/distorch.pc.in distorch.pc @ONLY)
install(TARGETS distorch LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR}
	PUBLIC_HEADER DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
install(FILES ${CMAKE_BINARY_DIR}/distorch.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)

# ---- distorchctl: on the public header and base alone ----
add_executable(distorchctl client/ctl/main.c client/ctl/render.c client/ctl/verb_load.c
	client/ctl/verb_unload.c client/ctl/verb_wish.c client/ctl/verb_ps.c
	client/ctl/verb_show.c client/ctl/verb_status.c client/ctl/verb_events.c
	client/ctl/verb_admin.c client/ctl/verb_doctor.c client/ctl/verb_help.c
	client/ctl/verb_store.c client/ctl/verb_completion.c client/ctl/completion.c)
house_flags(distorchctl)
target_link_libraries(distorchctl PRIVATE distorch room_base PkgConfig::CJSON PkgConfig::SMARTCOLS)
set_target_properties(distorchctl PROPERTIES BUILD_RPATH_USE_ORIGIN ON
	INSTALL_RPATH "$ORIGIN/../${CMAKE_INSTALL_LIBDIR}")
install(TARGETS distorchctl RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})

# What the shells read, from the program's own table of verbs.
set(completion_dir ${CMAKE_BINARY_DIR}/completion)
file(MAKE_DIRECTORY ${completion_dir})
foreach(shell IN ITEMS bash zsh fish)
	add_custom_command(OUTPUT ${completion_dir}/${shell} DEPENDS distorchctl
		COMMAND sh -c "'$<TARGET_FILE:distorchctl>' completion ${shell} > '${completion_dir}/${shell}'"
		VERBATIM)
	list(APPEND completions ${completion_dir}/${shell})
endforeach()
add_custom_target(completion ALL DEPENDS ${completions})
install(FILES ${completion_dir}/bash RENAME distorchctl
	DESTINATION ${CMAKE_INSTALL_DATADIR}/bash-completion/completions)
install(FILES ${completion_dir}/zsh RENAME _distorchctl
	DESTINATION ${CMAKE_INSTALL_DATADIR}/zsh/site-functions)
install(FILES ${completion_dir}/fish RENAME distorchctl.fish
	DESTINATION ${CMAKE_INSTALL_DATADIR}/fish/vendor_completions.d)

# ---- distorchd: the corridor as a library, so that tests can link it, and its main ----
room(corridor DEPENDS base base/os proto daemon/core daemon/format daemon/device daemon/load
		daemon/ipc
	SOURCES daemon/daemon.c daemon/dispatch.c daemon/dispatch_model.c daemon/dispatch_view.c
		daemon/dispatch_store.c daemon/metrics.c
		daemon/execute.c daemon/answer.c daemon/news.c daemon/failure.c daemon/describe.c
		daemon/persist.c daemon/pressure.c daemon/reload.c daemon/adoption.c daemon/ledger.c
		daemon/notify.c daemon/notify_parse.c daemon/store.c daemon/model_text.c daemon/clients.c daemon/history.c daemon/config.c
		daemon/config_file.c daemon/config_table.c daemon/config_value.c daemon/testing.c
	LINKS PkgConfig::UV PkgConfig::ECONF)
add_executable(distorchd daemon/main.c)
house_flags(distorchd)
target_link_libraries(distorchd PRIVATE room_corridor)
add_executable(distorchd-hold daemon/hold_main.c daemon/notify_parse.c)
house_flags(distorchd-hold)
target_link_libraries(distorchd-hold PRIVATE room_base_os room_base PkgConfig::UV)
install(TARGETS distorchd distorchd-hold RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})

# ---- man pages ----
find_program(SCDOC scdoc)
if(SCDOC)
	set(man_dir ${CMAKE_BINARY_DIR}/man)
	file(MAKE_DIRECTORY ${man_dir})
	# The settings stand once, in the daemon's table; its page takes them from there.
	add_custom_command(OUTPUT ${man_dir}/distorchd.conf.5.scd
		DEPENDS ${CMAKE_SOURCE_DIR}/docs/man/distorchd.conf.5.scd.in distorchd
		COMMAND sh -c "'$<TARGET_FILE:distorchd>' --help-config > reference.txt && sed -e '/@REFERENCE@/r reference.txt' -e '/@REFERENCE@/d' '${CMAKE_SOURCE_DIR}/docs/man/distorchd.conf.5.scd.in' > distorchd.conf.5.scd"
		WORKING_DIRECTORY ${man_dir} VERBATIM)
	foreach(page distorchd.8 distorchd-hold.8 distorchctl.1 distorchd.conf.5 libdistorch.3)
		set(source ${CMAKE_SOURCE_DIR}/docs/man/${page}.scd)
		if(page STREQUAL "distorchd.conf.5")
			set(source ${man_dir}/${page}.scd)
		endif()
		string(REGEX MATCH "[0-9]$" section ${page})
		add_custom_command(OUTPUT ${man_dir}/${page} DEPENDS ${source}
			COMMAND sh -c "'${SCDOC}' < '${source}' > '${man_dir}/${page}'" VERBATIM)
		list(APPEND man_pages ${man_dir}/${page})
		install(FILES ${man_dir}/${page}
			DESTINATION ${CMAKE_INSTALL_MANDIR}/man${section})
	endforeach()
	add_custom_target(man ALL DEPENDS ${man_pages})
endif()
