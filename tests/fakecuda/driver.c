/* SPDX-License-Identifier: Apache-2.0 */
/* Start, devices, contexts, faults, and the way to the calls. See fake.h. */
#include "tests/fakecuda/fake.h"

#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define FAULTS_MAX 8

struct fault {
	char name[64];
	uint64_t nth; /* 0: it has struck */
	CUresult result;
	bool is_forever;
	bool has_struck;
};

struct fake_device fake_devices[CARDS_MAX];
uint32_t fake_n_devices;
uint64_t fake_n_objects;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* guards everything in this library */
static struct fault faults[FAULTS_MAX];
static uint32_t n_faults;
static uint64_t n_hits;
static const char *struck = "";
static CUresult broken;
static struct timespec faults_read; /* the control file's time */
static bool is_ready;
static _Thread_local struct fake_device *current;
static _Thread_local struct fake_device *below; /* a stack of two is enough for us */

/* ---- faults ---- */

static bool is_fatal(CUresult result)
{
	static const int codes[] = {214, 220, 226, 700, 702, 709, 714,
				    715, 716, 717, 718, 719, 999};

	for (size_t i = 0; i < sizeof codes / sizeof codes[0]; i++) {
		if ((int)result == codes[i]) {
			return true;
		}
	}
	return false;
}

static void set_faults(const char *text)
{
	n_faults = 0;
	while (n_faults < FAULTS_MAX) {
		struct fault *fault = &faults[n_faults];
		unsigned long long nth = 0;
		int code = 0;
		int length = 0;

		if (sscanf(text, " %63[^:;]:%llu:%d%n", fault->name, &nth, &code, &length) != 3) {
			return;
		}
		text += length;
		fault->nth = nth;
		fault->result = (CUresult)code;
		fault->has_struck = false;
		fault->is_forever = strncmp(text, ":ever", 5) == 0;
		n_faults++;
		text += strcspn(text, ";");
		text += *text == ';';
	}
}

/* At most every few milliseconds: calls are counted in microseconds. */
static void read_control_file(void)
{
	static struct timespec looked;
	const char *folder = getenv("FAKECUDA_DIR");
	struct timespec now = {0};
	char path[512];
	char text[1024];
	struct stat status;
	ssize_t length;
	int fd;

	(void)clock_gettime(CLOCK_MONOTONIC_COARSE, &now);
	if (now.tv_sec == looked.tv_sec && now.tv_nsec == looked.tv_nsec) {
		return;
	}
	looked = now;
	(void)snprintf(path, sizeof path, "%s/faults", folder == NULL ? "" : folder);
	if (folder == NULL || stat(path, &status) != 0 ||
	    (status.st_mtim.tv_sec == faults_read.tv_sec &&
	     status.st_mtim.tv_nsec == faults_read.tv_nsec)) {
		return;
	}
	fd = open(path, O_RDONLY | O_CLOEXEC);
	length = fd < 0 ? -1 : read(fd, text, sizeof text - 1);
	if (fd >= 0) {
		(void)close(fd);
	}
	if (length >= 0) {
		text[length] = '\0';
		faults_read = status.st_mtim;
		set_faults(text);
	}
}

static CUresult strike(const char *name)
{
	for (uint32_t i = 0; i < n_faults; i++) {
		struct fault *fault = &faults[i];

		if (strcmp(fault->name, "*") != 0 && strcmp(fault->name, name) != 0) {
			continue;
		}
		if (fault->has_struck && fault->is_forever) {
			n_hits++;
			return fault->result;
		}
		if (fault->nth > 0 && --fault->nth == 0) {
			fault->has_struck = true;
			n_hits++;
			return fault->result;
		}
	}
	return CUDA_SUCCESS;
}

CUresult fake_enter(const char *name, bool is_question)
{
	CUresult result;

	(void)pthread_mutex_lock(&lock);
	read_control_file();
	if (is_question) {
		return CUDA_SUCCESS;
	}
	if (broken != CUDA_SUCCESS) {
		return broken;
	}
	result = strike(name);
	struck = result == CUDA_SUCCESS ? struck : name;
	if (is_fatal(result)) {
		broken = result;
	}
	if (result == CUDA_SUCCESS && !is_ready && strcmp(name, "cuInit") != 0) {
		result = CUDA_ERROR_NOT_INITIALIZED;
	}
	return result;
}

void fake_leave(const int *entered)
{
	(void)entered;
	(void)pthread_mutex_unlock(&lock);
}

void fake_break(CUresult result)
{
	broken = result;
}

CUresult fake_broken(void)
{
	return broken;
}

FAKE_API void fakecuda_fault(const char *text)
{
	(void)pthread_mutex_lock(&lock);
	set_faults(text);
	n_hits = 0;
	struck = "";
	broken = CUDA_SUCCESS;
	(void)pthread_mutex_unlock(&lock);
}

FAKE_API uint64_t fakecuda_n_hits(void)
{
	return n_hits;
}

FAKE_API const char *fakecuda_struck(void)
{
	return struck;
}

FAKE_API uint64_t fakecuda_n_objects(void)
{
	return fake_n_objects;
}

FAKE_API uint64_t fakecuda_used(int ordinal)
{
	return card_use(&fake_devices[ordinal].card, 0, NULL);
}

/* ---- start ---- */

/* As the driver reads CUDA_VISIBLE_DEVICES: ordinals or UUIDs, up to the first that is wrong. */
static uint32_t choose_visible(const struct card *cards, uint32_t n_cards, const char *list)
{
	uint32_t n_visible = 0;

	while (*list != '\0' && n_visible < CARDS_MAX) {
		const size_t length = strcspn(list, ",");
		uint32_t chosen = n_cards;

		for (uint32_t i = 0; i < n_cards; i++) {
			char ordinal[16];

			(void)snprintf(ordinal, sizeof ordinal, "%u", i);
			if ((strlen(ordinal) == length && strncmp(list, ordinal, length) == 0) ||
			    (length > 4 && strncmp(list, cards[i].uuid, length) == 0)) {
				chosen = i;
			}
		}
		if (chosen == n_cards) {
			break;
		}
		fake_devices[n_visible++].card = cards[chosen];
		list += length;
		list += *list == ',';
	}
	return n_visible;
}

FAKE_API CUresult CUDAAPI cuInit(unsigned flags)
{
	const char *order = getenv("CUDA_DEVICE_ORDER");
	const char *visible = getenv("CUDA_VISIBLE_DEVICES");
	const char *fault = getenv("FAKECUDA_FAULT");
	struct card cards[CARDS_MAX];
	uint32_t n_cards;

	if (!is_ready && fault != NULL && n_faults == 0) {
		fakecuda_fault(fault);
	}
	FAKE_CALL(cuInit)
	if (flags != 0) {
		return CUDA_ERROR_INVALID_VALUE;
	}
	if (is_ready) {
		return CUDA_SUCCESS;
	}
	n_cards = cards_read(cards);
	if (order == NULL || strcmp(order, "PCI_BUS_ID") != 0) { /* the fastest first: the last */
		for (uint32_t i = 0; i < n_cards / 2; i++) {
			const struct card card = cards[i];

			cards[i] = cards[n_cards - 1 - i];
			cards[n_cards - 1 - i] = card;
		}
	}
	fake_n_devices =
		choose_visible(cards, n_cards, visible == NULL ? "0,1,2,3,4,5,6,7" : visible);
	is_ready = fake_n_devices > 0;
	return is_ready ? CUDA_SUCCESS : CUDA_ERROR_NO_DEVICE;
}

FAKE_API CUresult CUDAAPI cuDriverGetVersion(int *ret)
{
	const char *version = getenv("FAKECUDA_VERSION");

	FAKE_QUESTION(cuDriverGetVersion)
	*ret = version == NULL ? 13000 : atoi(version);
	return CUDA_SUCCESS;
}

FAKE_API CUresult CUDAAPI cuGetErrorName(CUresult error, const char **ret)
{
	static _Thread_local char name[32];

	FAKE_QUESTION(cuGetErrorName)
	(void)snprintf(name, sizeof name, "FAKE_ERROR_%d", (int)error);
	*ret = name;
	return CUDA_SUCCESS;
}

FAKE_API CUresult CUDAAPI cuGetErrorString(CUresult error, const char **ret)
{
	FAKE_QUESTION(cuGetErrorString)
	*ret = error == CUDA_ERROR_OUT_OF_MEMORY ? "out of memory"
						 : "the stand-in was told to fail";
	return CUDA_SUCCESS;
}

/* ---- devices ---- */

bool fake_is_device(int ordinal)
{
	return ordinal >= 0 && (uint32_t)ordinal < fake_n_devices;
}

bool fake_can_reach(int from, int to)
{
	const char *peers = getenv("FAKECUDA_PEERS");

	return from == to || peers == NULL || strcmp(peers, "none") != 0;
}

FAKE_API CUresult CUDAAPI cuDeviceGetCount(int *ret)
{
	FAKE_CALL(cuDeviceGetCount)
	*ret = (int)fake_n_devices;
	return CUDA_SUCCESS;
}

FAKE_API CUresult CUDAAPI cuDeviceGet(CUdevice *ret, int ordinal)
{
	FAKE_CALL(cuDeviceGet)
	if (!fake_is_device(ordinal)) {
		return CUDA_ERROR_INVALID_DEVICE;
	}
	*ret = ordinal;
	return CUDA_SUCCESS;
}

FAKE_API CUresult CUDAAPI cuDeviceGetName(char *ret, int size, CUdevice device)
{
	FAKE_CALL(cuDeviceGetName)
	if (!fake_is_device(device) || size < 24) {
		return CUDA_ERROR_INVALID_VALUE;
	}
	(void)snprintf(ret, 24, "Stand-in %u", fake_devices[device].card.number);
	return CUDA_SUCCESS;
}

FAKE_API CUresult CUDAAPI cuDeviceGetUuid(CUuuid *ret, CUdevice device)
{
	const char *text;
	unsigned byte;

	FAKE_CALL(cuDeviceGetUuid)
	if (!fake_is_device(device)) {
		return CUDA_ERROR_INVALID_DEVICE;
	}
	text = fake_devices[device].card.uuid + strlen("GPU-");
	for (size_t i = 0; i < sizeof ret->bytes; i++) {
		text += *text == '-';
		if (sscanf(text, "%2x", &byte) != 1) {
			return CUDA_ERROR_UNKNOWN;
		}
		ret->bytes[i] = (char)byte;
		text += 2;
	}
	return CUDA_SUCCESS;
}

FAKE_API CUresult CUDAAPI cuDeviceGetPCIBusId(char *ret, int size, CUdevice device)
{
	FAKE_CALL(cuDeviceGetPCIBusId)
	if (!fake_is_device(device) || size < 13) {
		return CUDA_ERROR_INVALID_VALUE;
	}
	(void)snprintf(ret, (size_t)size, "%s", fake_devices[device].card.pci);
	return CUDA_SUCCESS;
}

FAKE_API CUresult CUDAAPI cuDeviceGetAttribute(int *ret, CUdevice_attribute attribute,
					       CUdevice device)
{
	const char *mode = getenv("FAKECUDA_COMPUTE_MODE");

	FAKE_CALL(cuDeviceGetAttribute)
	if (!fake_is_device(device)) {
		return CUDA_ERROR_INVALID_DEVICE;
	}
	if (attribute == CU_DEVICE_ATTRIBUTE_COMPUTE_MODE) {
		*ret = mode == NULL ? 0 : atoi(mode);
	} else if (attribute == CU_DEVICE_ATTRIBUTE_MPS_ENABLED) {
		*ret = 0;
	} else if (attribute == CU_DEVICE_ATTRIBUTE_HOST_NUMA_ID) {
		*ret = -1;
	} else {
		*ret = 1; /* it can */
	}
	return CUDA_SUCCESS;
}

FAKE_API CUresult CUDAAPI cuDeviceTotalMem(size_t *ret, CUdevice device)
{
	FAKE_CALL(cuDeviceTotalMem)
	if (!fake_is_device(device)) {
		return CUDA_ERROR_INVALID_DEVICE;
	}
	*ret = fake_devices[device].card.bytes;
	return CUDA_SUCCESS;
}

FAKE_API CUresult CUDAAPI cuDeviceCanAccessPeer(int *ret, CUdevice device, CUdevice peer)
{
	FAKE_CALL(cuDeviceCanAccessPeer)
	if (!fake_is_device(device) || !fake_is_device(peer)) {
		return CUDA_ERROR_INVALID_DEVICE;
	}
	*ret = device != peer && fake_can_reach(device, peer);
	return CUDA_SUCCESS;
}

/* ---- contexts ---- */

FAKE_API CUresult CUDAAPI cuDevicePrimaryCtxSetFlags(CUdevice device, unsigned flags)
{
	FAKE_CALL(cuDevicePrimaryCtxSetFlags)
	if (!fake_is_device(device)) {
		return CUDA_ERROR_INVALID_DEVICE;
	}
	fake_devices[device].flags = flags;
	return CUDA_SUCCESS;
}

/* False: there is no room for it. */
static bool take_context(struct fake_device *device)
{
	const uint64_t needed = card_context_bytes();

	device->context_fd = -1;
	if (needed > 0) {
		(void)card_use(&device->card, needed, &device->context_fd);
	}
	return needed == 0 || device->context_fd >= 0;
}

FAKE_API CUresult CUDAAPI cuDevicePrimaryCtxRetain(CUcontext *ret, CUdevice device)
{
	FAKE_CALL(cuDevicePrimaryCtxRetain)
	if (!fake_is_device(device)) {
		return CUDA_ERROR_INVALID_DEVICE;
	}
	if (fake_devices[device].n_retained == 0 && !take_context(&fake_devices[device])) {
		return CUDA_ERROR_OUT_OF_MEMORY;
	}
	fake_devices[device].n_retained++;
	fake_n_objects++;
	*ret = (CUcontext)&fake_devices[device];
	return CUDA_SUCCESS;
}

FAKE_API CUresult CUDAAPI cuDevicePrimaryCtxRelease(CUdevice device)
{
	FAKE_CALL(cuDevicePrimaryCtxRelease)
	if (!fake_is_device(device) || fake_devices[device].n_retained == 0) {
		return CUDA_ERROR_INVALID_CONTEXT;
	}
	fake_devices[device].n_retained--;
	fake_n_objects--;
	if (fake_devices[device].n_retained == 0 && fake_devices[device].context_fd >= 0) {
		(void)close(fake_devices[device].context_fd);
	}
	return CUDA_SUCCESS;
}

FAKE_API CUresult CUDAAPI cuCtxSetCurrent(CUcontext context)
{
	FAKE_CALL(cuCtxSetCurrent)
	current = (struct fake_device *)context;
	return CUDA_SUCCESS;
}

FAKE_API CUresult CUDAAPI cuCtxGetCurrent(CUcontext *ret)
{
	FAKE_CALL(cuCtxGetCurrent)
	*ret = (CUcontext)current;
	return CUDA_SUCCESS;
}

FAKE_API CUresult CUDAAPI cuCtxPushCurrent(CUcontext context)
{
	FAKE_CALL(cuCtxPushCurrent)
	below = current;
	current = (struct fake_device *)context;
	return CUDA_SUCCESS;
}

FAKE_API CUresult CUDAAPI cuCtxPopCurrent(CUcontext *ret)
{
	FAKE_CALL(cuCtxPopCurrent)
	if (ret != NULL) {
		*ret = (CUcontext)current;
	}
	current = below;
	below = NULL;
	return CUDA_SUCCESS;
}

bool fake_has_context(void)
{
	return current != NULL && current->n_retained > 0;
}

const struct fake_device *fake_current(void)
{
	return current;
}

/* ---- the way to the calls ---- */

/* clang-format off */
#define CALLS(X) \
	X(cuInit) X(cuDriverGetVersion) X(cuGetErrorName) X(cuGetErrorString) \
	X(cuDeviceGetCount) X(cuDeviceGet) X(cuDeviceGetName) X(cuDeviceGetUuid) \
	X(cuDeviceGetPCIBusId) X(cuDeviceGetAttribute) X(cuDeviceTotalMem) \
	X(cuDeviceCanAccessPeer) X(cuDevicePrimaryCtxSetFlags) X(cuDevicePrimaryCtxRetain) \
	X(cuDevicePrimaryCtxRelease) X(cuCtxSetCurrent) X(cuCtxGetCurrent) X(cuCtxPushCurrent) \
	X(cuCtxPopCurrent) X(cuCtxSynchronize) X(cuStreamCreate) X(cuStreamDestroy) X(cuStreamSynchronize) \
	X(cuEventCreate) X(cuEventDestroy) X(cuEventRecord) X(cuEventQuery) X(cuEventSynchronize) \
	X(cuMemHostAlloc) X(cuMemFreeHost) X(cuMemHostRegister) X(cuMemHostUnregister) \
	X(cuMemcpyHtoDAsync) X(cuMemcpyDtoHAsync) X(cuMemcpyDtoDAsync) X(cuMemsetD8Async) \
	X(cuMemGetInfo) X(cuMemGetAllocationGranularity) X(cuMemCreate) X(cuMemRelease) \
	X(cuMemAddressReserve) X(cuMemAddressFree) X(cuMemMap) X(cuMemUnmap) X(cuMemSetAccess) \
	X(cuMemExportToShareableHandle) X(cuMemImportFromShareableHandle) \
	X(cuMemGetAllocationPropertiesFromHandle)
/* clang-format on */

FAKE_API CUresult CUDAAPI cuGetProcAddress(const char *symbol, void **ret, int version,
					   cuuint64_t flags, CUdriverProcAddressQueryResult *found)
{
	static const struct {
		const char *name;
		void (*call)(void);
	} calls[] = {
#define CALL_ROW(name) {#name, (void (*)(void))name},
		CALLS(CALL_ROW)
#undef CALL_ROW
	};
	const char *missing = getenv("FAKECUDA_MISSING");

	FAKE_QUESTION(cuGetProcAddress)
	(void)version;
	(void)flags;
	*ret = NULL;
	*found = CU_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND;
	for (size_t i = 0; i < sizeof calls / sizeof calls[0]; i++) {
		if (strcmp(calls[i].name, symbol) == 0 &&
		    (missing == NULL || strcmp(missing, symbol) != 0)) {
			memcpy(ret, &calls[i].call, sizeof *ret);
			*found = CU_GET_PROC_ADDRESS_SUCCESS;
			return CUDA_SUCCESS;
		}
	}
	return CUDA_ERROR_NOT_FOUND;
}
