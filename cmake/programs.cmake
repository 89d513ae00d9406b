# SPDX-License-Identifier: Apache-2.0
# The daemon, the client library and the command line.

# ---- client: libdistorch ----
include(GNUInstallDirs)
room(client DEPENDS base base/os proto
	SOURCES client/connect.c client/call.c client/packet.c client/event.c client/error.c
		client/convert.c client/result.c client/options.c client/file.c client/shards.c client/map.c
		client/map_cuda.c client/load.c client/place.c client/segments.c client/memory.c
		client/listing.c client/keeper.c client/steer.c
	LINKS Threads::Threads PkgConfig::XXHASH)
if(DISTORCH_WITH_CUDA)
	target_link_libraries(room_client PUBLIC ${CMAKE_DL_LIBS})
	cuda_headers(room_client)
endif()
add_library(distorch SHARED $<TARGET_OBJECTS:room_client>)
house_flags(distorch)
target_include_directories(distorch INTERFACE
	$<BUILD_INTERFACE:${CMAKE_SOURCE_DIR}/client/include> $<INSTALL_INTERFACE:include>)
target_link_libraries(distorch PRIVATE room_base_os room_proto room_base Threads::Threads
	${CMAKE_DL_LIBS})
# nodelete: fork handlers and thread-specific keys outlive a dlclose.
target_link_options(distorch PRIVATE -Wl,-z,nodelete -Wl,--no-undefined
	-Wl,--version-script=${CMAKE_SOURCE_DIR}/client/libdistorch.map)
set_target_properties(distorch PROPERTIES VERSION ${PROJECT_VERSION} SOVERSION 1
	LINK_DEPENDS ${CMAKE_SOURCE_DIR}/client/libdistorch.map
	PUBLIC_HEADER ${CMAKE_SOURCE_DIR}/client/include/distorch.h)
file(RELATIVE_PATH DISTORCH_PC_TO_PREFIX "/prefix/${CMAKE_INSTALL_LIBDIR}/pkgconfig" "/prefix")
string(REGEX REPLACE "/$" "" DISTORCH_PC_TO_PREFIX "${DISTORCH_PC_TO_PREFIX}")
configure_file(client/distorch.pc.in distorch.pc @ONLY)
install(TARGETS distorch
	LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR} COMPONENT libdistorch1
		NAMELINK_COMPONENT libdistorch-dev
	PUBLIC_HEADER DESTINATION ${CMAKE_INSTALL_INCLUDEDIR} COMPONENT libdistorch-dev)
install(FILES ${CMAKE_BINARY_DIR}/distorch.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig
	COMPONENT libdistorch-dev)

# ---- distorchctl: on the public header and base alone; "plan" on two pure rooms besides ----
add_executable(distorchctl client/ctl/main.c client/ctl/flags.c client/ctl/render.c client/ctl/words.c client/ctl/outcome.c client/ctl/verb_load.c
	client/ctl/verb_unload.c client/ctl/verb_wish.c client/ctl/verb_ps.c
	client/ctl/verb_show.c client/ctl/verb_status.c client/ctl/verb_events.c
	client/ctl/verb_admin.c client/ctl/verb_config.c client/ctl/verb_warm.c client/ctl/verb_doctor.c
	client/ctl/verb_help.c client/ctl/verb_store.c client/ctl/verb_drain.c client/ctl/verb_logs.c
	client/ctl/verb_completion.c client/ctl/completion.c
	client/ctl/verb_plan.c client/ctl/plan_file.c client/ctl/plan_report.c
	client/ctl/verb_devices.c client/ctl/placement.c client/ctl/progress.c client/ctl/verb_place.c
	client/ctl/verb_make_room.c client/ctl/verb_top.c client/ctl/top_watch.c client/ctl/top_screen.c client/ctl/top_draw.c)
house_flags(distorchctl)
target_link_libraries(distorchctl PRIVATE distorch room_base room_daemon_plan room_daemon_format
	room_base_os PkgConfig::CJSON PkgConfig::SMARTCOLS Threads::Threads ${CMAKE_DL_LIBS})
target_include_directories(distorchctl PRIVATE ${NCURSES_INCLUDE_DIRS})
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
room(corridor DEPENDS base base/os proto daemon/core daemon/plan daemon/format daemon/device daemon/load
		daemon/ipc
	SOURCES daemon/daemon.c daemon/alarm.c daemon/dispatch.c daemon/dispatch_device.c daemon/dispatch_model.c daemon/dispatch_place.c daemon/dispatch_plan.c daemon/dispatch_view.c
		daemon/dispatch_store.c daemon/metrics.c daemon/metrics_socket.c
		daemon/execute.c daemon/fill.c daemon/verify.c daemon/holes.c daemon/answer.c daemon/news.c daemon/failure.c daemon/failure_drain.c daemon/failure_memory.c daemon/describe.c daemon/describe_use.c daemon/where.c
		daemon/persist.c daemon/persist_placed.c daemon/persist_source.c daemon/placed_record.c daemon/placement.c daemon/placement_room.c daemon/recall.c daemon/pressure.c daemon/watch.c daemon/dispatch_select.c daemon/dispatch_wish.c daemon/reload.c daemon/adoption.c daemon/adoption_ledger.c
		daemon/gather.c daemon/adopt_generation.c daemon/generation.c daemon/ledger.c
		daemon/notify.c daemon/notify_parse.c daemon/store.c daemon/model_text.c daemon/clients.c daemon/history.c daemon/config.c
		daemon/config_file.c daemon/config_table.c daemon/config_value.c daemon/config_text.c daemon/last_good.c daemon/names.c daemon/testing.c
		daemon/change.c daemon/dispatch_saved.c daemon/dispatch_warm.c daemon/warm.c daemon/warm_open.c daemon/errand.c daemon/workers.c daemon/workers_budget.c daemon/workers_start.c daemon/saved.c daemon/saved_folder.c daemon/saved_wish.c
		daemon/state_file.c daemon/state_text.c daemon/state_list.c
	LINKS PkgConfig::UV PkgConfig::CJSON)
file(RELATIVE_PATH WORKER_PLACE "/prefix/${CMAKE_INSTALL_BINDIR}"
	"/prefix/${CMAKE_INSTALL_LIBEXECDIR}/distorchd/distorchd-worker")
set_source_files_properties(daemon/workers_start.c PROPERTIES
	COMPILE_DEFINITIONS WORKER_PLACE="${WORKER_PLACE}") # from the folder of distorchd
add_executable(distorchd daemon/main.c)
house_flags(distorchd)
target_link_libraries(distorchd PRIVATE room_corridor)
add_executable(distorchd-hold daemon/hold_main.c daemon/notify_parse.c)
house_flags(distorchd-hold)
target_link_libraries(distorchd-hold PRIVATE room_base_os room_base PkgConfig::UV)
add_executable(distorchd-worker daemon/device/worker_main.c)
house_flags(distorchd-worker)
target_link_libraries(distorchd-worker PRIVATE room_daemon_device)
install(TARGETS distorchd distorchd-hold RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
install(TARGETS distorchd-worker RUNTIME DESTINATION ${CMAKE_INSTALL_LIBEXECDIR}/distorchd)

# ---- for whoever programs against it: what the header and libdistorch(3) name ----
install(FILES docs/protocol.md DESTINATION ${CMAKE_INSTALL_DOCDIR} COMPONENT libdistorch-dev)
install(FILES docs/examples/load.c docs/examples/placed.c docs/examples/placed.py
	docs/examples/tensors.cpp docs/examples/unload_not_kept.c
	DESTINATION ${CMAKE_INSTALL_DOCDIR}/examples COMPONENT libdistorch-dev)

# ---- for whoever watches it ----
install(FILES docs/allocation-strings.md docs/devices.md docs/memory-model.md docs/metrics.md
	docs/operations.md DESTINATION ${CMAKE_INSTALL_DOCDIR})
install(FILES docs/monitoring/distorchd-dashboard.json docs/monitoring/distorchd-alerts.yml
	DESTINATION ${CMAKE_INSTALL_DOCDIR}/monitoring)

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
	foreach(page distorchd.8 distorchd-hold.8 distorchd-worker.8 distorchctl.1 distorchd.conf.5 libdistorch.3)
		set(source ${CMAKE_SOURCE_DIR}/docs/man/${page}.scd)
		if(page STREQUAL "distorchd.conf.5")
			set(source ${man_dir}/${page}.scd)
		endif()
		string(REGEX MATCH "[0-9]$" section ${page})
		add_custom_command(OUTPUT ${man_dir}/${page} DEPENDS ${source}
			COMMAND sh -c "'${SCDOC}' < '${source}' > '${man_dir}/${page}'" VERBATIM)
		list(APPEND man_pages ${man_dir}/${page})
		set(component distorchd)
		if(section EQUAL 3)
			set(component libdistorch-dev)
		endif()
		install(FILES ${man_dir}/${page} COMPONENT ${component}
			DESTINATION ${CMAKE_INSTALL_MANDIR}/man${section})
	endforeach()
	add_custom_target(man ALL DEPENDS ${man_pages})
endif()
