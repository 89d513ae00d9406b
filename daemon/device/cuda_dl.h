/* SPDX-License-Identifier: Apache-2.0 */
/*
 * NVIDIA's driver and its NVML, opened when they are needed: nothing links to them, so one
 * binary runs with and without a card. That a driver is not there is a state, not a fault:
 * cuda_load says in one line why. Any thread; once loaded they stay.
 */
#ifndef DEVICE_CUDA_DL_H
#define DEVICE_CUDA_DL_H

#include <cuda.h>
#include <nvml.h>
#include <stdbool.h>

struct err;

/* The calls of the driver that we make. Names are the header's, versions its newest. */
/* clang-format off */
#define CUDA_CALLS(X) \
	X(cuInit) X(cuDriverGetVersion) X(cuGetErrorName) X(cuGetErrorString) \
	X(cuDeviceGetCount) X(cuDeviceGet) X(cuDeviceGetName) X(cuDeviceGetUuid) \
	X(cuDeviceGetPCIBusId) X(cuDeviceGetAttribute) X(cuDeviceTotalMem) \
	X(cuDeviceCanAccessPeer) X(cuDevicePrimaryCtxSetFlags) X(cuDevicePrimaryCtxRetain) \
	X(cuDevicePrimaryCtxRelease) X(cuCtxSetCurrent) X(cuStreamCreate) X(cuStreamDestroy) \
	X(cuStreamSynchronize) X(cuEventCreate) X(cuEventDestroy) X(cuEventRecord) \
	X(cuEventSynchronize) X(cuEventQuery) X(cuMemHostAlloc) X(cuMemFreeHost) X(cuMemcpyHtoDAsync) \
	X(cuMemcpyDtoHAsync) X(cuMemcpyDtoDAsync) X(cuMemsetD8Async) \
	X(cuMemGetAllocationGranularity) X(cuMemCreate) X(cuMemRelease) X(cuMemAddressReserve) \
	X(cuMemAddressFree) X(cuMemMap) X(cuMemUnmap) X(cuMemSetAccess) \
	X(cuMemExportToShareableHandle) X(cuMemImportFromShareableHandle) \
	X(cuMemGetAllocationPropertiesFromHandle)

#define NVML_CALLS(X) \
	X(nvmlInit) X(nvmlErrorString) X(nvmlDeviceGetHandleByUUID) X(nvmlDeviceGetMemoryInfo) \
	X(nvmlDeviceGetTemperature) X(nvmlEventSetCreate) X(nvmlEventSetFree) \
	X(nvmlDeviceRegisterEvents) X(nvmlEventSetWait)
/* clang-format on */

/* NOLINTBEGIN(bugprone-macro-parentheses): 'name' is declared here */
struct cuda_calls {
#define CUDA_MEMBER(name) __typeof__(name) *name;
	CUDA_CALLS(CUDA_MEMBER)
#undef CUDA_MEMBER
};

/* The call for the temperature has a newer one beside it, which older drivers do not have. */
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wdeprecated-declarations"
struct nvml_calls {
#define NVML_MEMBER(name) __typeof__(name) *name;
	NVML_CALLS(NVML_MEMBER)
#undef NVML_MEMBER
};
#pragma GCC diagnostic pop
/* NOLINTEND(bugprone-macro-parentheses) */

/*
 * The driver, initialised; NULL with 'err' filled where there is none that serves: no
 * libcuda.so.1, one older than CUDA 12, or no device (WIRE_NOT_FOUND); one that is not ready
 * (WIRE_BUSY) may be when it is asked again. The first call sets what the driver takes from the
 * environment: order by PCI address, all cards visible, nothing cached, no MPS.
 */
const struct cuda_calls *cuda_load(struct err *err);

/* NVML, initialised; NULL where there is none: then nobody knows who else uses a card. */
const struct nvml_calls *nvml_load(void);

/*
 * Fill 'err' from what the driver said; 'what' was tried. Returns the negative code:
 * WIRE_NO_MEMORY, WIRE_DEVICE_LOST where nothing can be done with the card in this process any
 * more, WIRE_UNSUPPORTED where the card is not to be had by it, WIRE_BUSY where the driver is
 * not ready, else WIRE_INTERNAL. With a card that 'is_open' a driver that is not ready, or knows
 * no such card, is WIRE_DEVICE_LOST: for this process that does not heal.
 */
int cuda_fail(struct err *err, CUresult result, bool is_open, const char *what);

#endif
