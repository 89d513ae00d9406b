# SPDX-License-Identifier: Apache-2.0
# The headers of NVIDIA's driver, which the CUDA backend is built with: the CUDA Toolkit's, else
# what scripts/bootstrap brought into build/venv. Nothing is linked: the driver is opened when
# the program runs, so one binary runs with and without a card.
option(DISTORCH_CUDA "Build the CUDA backend where its headers are found" ON)
set(DISTORCH_WITH_CUDA OFF)
if(DISTORCH_CUDA)
	file(GLOB venv_headers ${CMAKE_SOURCE_DIR}/build/venv/lib/python3*/site-packages/nvidia/*/include)
	find_path(DISTORCH_CUDA_HEADERS cuda.h
		HINTS ENV CUDA_HOME ENV CUDA_PATH PATHS /usr/local/cuda /opt/cuda ${venv_headers}
		PATH_SUFFIXES include)
	find_path(DISTORCH_NVML_HEADERS nvml.h
		HINTS ${DISTORCH_CUDA_HEADERS} PATHS ${venv_headers})
	mark_as_advanced(DISTORCH_CUDA_HEADERS DISTORCH_NVML_HEADERS)
	if(DISTORCH_CUDA_HEADERS AND DISTORCH_NVML_HEADERS)
		file(STRINGS ${DISTORCH_CUDA_HEADERS}/cuda.h cuda_version REGEX "define CUDA_VERSION +[0-9]+")
		string(REGEX MATCH "[0-9]+" cuda_version "${cuda_version}")
		if(cuda_version GREATER_EQUAL 12000)
			set(DISTORCH_WITH_CUDA ON)
			message(STATUS "CUDA backend: with the headers of CUDA ${cuda_version}")
		else()
			message(STATUS "CUDA backend: left out, ${DISTORCH_CUDA_HEADERS}/cuda.h is older than CUDA 12")
		endif()
	else()
		message(STATUS "CUDA backend: left out, no cuda.h and nvml.h (scripts/bootstrap brings them)")
	endif()
else()
	message(STATUS "CUDA backend: left out, as DISTORCH_CUDA=OFF says")
endif()

# cuda_headers(target): for those that include them.
function(cuda_headers target)
	target_include_directories(${target} SYSTEM PRIVATE
		${DISTORCH_CUDA_HEADERS} ${DISTORCH_NVML_HEADERS})
endfunction()
