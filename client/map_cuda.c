/* SPDX-License-Identifier: Apache-2.0 */
/* Import of a card's memory. See map_cuda.h. */
#include "client/map_cuda.h"

#include <unistd.h>

#include "client/error.h"

/* One that stays open keeps the memory. */
static void close_all(const struct cuda_source *sources, uint32_t n_sources)
{
	for (uint32_t i = 0; i < n_sources; i++) {
		(void)close(sources[i].fd); /* nothing was written */
	}
}

#ifdef DISTORCH_WITH_CUDA

#	include "base/checked.h"

#	include <cuda.h>
#	include <dlfcn.h>
#	include <pthread.h>
#	include <stdbool.h>
#	include <stdio.h>
#	include <stdlib.h>
#	include <string.h>

/* All that we call is as it was in CUDA 12.0. */
#	define API_VERSION 12000
#	define UUID_SIZE   41

/* clang-format off */
#define CALLS(X) \
	X(cuInit) X(cuGetErrorName) X(cuDeviceGetCount) X(cuDeviceGet) X(cuDeviceGetUuid) \
	X(cuDevicePrimaryCtxRetain) X(cuDevicePrimaryCtxRelease) X(cuCtxPushCurrent) \
	X(cuCtxPopCurrent) X(cuCtxSynchronize) X(cuMemGetAllocationGranularity) \
	X(cuMemImportFromShareableHandle) X(cuMemGetAllocationPropertiesFromHandle) \
	X(cuMemRelease) X(cuMemAddressReserve) X(cuMemAddressFree) X(cuMemMap) X(cuMemUnmap) \
	X(cuMemSetAccess)
/* clang-format on */

/* NOLINTBEGIN(bugprone-macro-parentheses): 'name' is declared here */
struct calls {
#	define MEMBER(name) __typeof__(name) *name;
	CALLS(MEMBER)
#	undef MEMBER
};
/* NOLINTEND(bugprone-macro-parentheses) */

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* guards the two below */
static struct calls cuda;
static bool is_ready;

static int failed(CUresult result, const char *what)
{
	static const int fatal[] = {214, 220, 226, 700, 702, 709, 714,
				    715, 716, 717, 718, 719, 999};
	const char *name = NULL;
	int code = DISTORCH_E_INTERNAL;

	(void)cuda.cuGetErrorName(result, &name); /* it is left NULL where it is unknown */
	for (size_t i = 0; i < sizeof fatal / sizeof fatal[0]; i++) {
		code = (int)result == fatal[i] ? DISTORCH_E_DEVICE_LOST : code;
	}
	if (result == CUDA_ERROR_OUT_OF_MEMORY) {
		code = DISTORCH_E_NO_MEMORY;
	} else if (result == CUDA_ERROR_NOT_SUPPORTED || result == CUDA_ERROR_INVALID_DEVICE) {
		code = DISTORCH_E_UNSUPPORTED;
	}
	return failure_set(code, 0, NULL, "%s failed: %s (%d)", what,
			   name == NULL ? "a code that this driver does not know" : name,
			   (int)result);
}

/* ---- the driver ---- */

static int no_driver(const char *why)
{
	return failure_set(DISTORCH_E_UNSUPPORTED, 0,
			   "map the model's host copy instead, or look at nvidia-smi",
			   "this process has no driver for the card: %s", why);
}

/* ISO C has no way from an object's address to a function's. */
static bool find_call(__typeof__(cuGetProcAddress) *ask, const char *name, void *slot)
{
	CUdriverProcAddressQueryResult found = CU_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND;
	void *call = NULL;

	if (ask(name, &call, API_VERSION, CU_GET_PROC_ADDRESS_DEFAULT, &found) != CUDA_SUCCESS ||
	    call == NULL) {
		return false;
	}
	memcpy(slot, &call, sizeof call);
	return true;
}

/* Lock held. The library stays: the program may use it too. */
static int load(void)
{
	__typeof__(cuGetProcAddress) *ask = NULL;
	void *library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
	void *symbol;
	CUresult result;

	if (library == NULL) {
		return no_driver(dlerror());
	}
	symbol = dlsym(library, "cuGetProcAddress_v2");
	if (symbol == NULL) {
		return no_driver("libcuda.so.1 is older than CUDA 12");
	}
	memcpy(&ask, &symbol, sizeof ask);
#	define FIND(name)                                    \
		if (!find_call(ask, #name, &cuda.name)) {     \
			return no_driver("it has no " #name); \
		}
	CALLS(FIND)
#	undef FIND
	result = cuda.cuInit(0);
	if (result == CUDA_ERROR_NO_DEVICE) {
		return no_driver("it sees no card (CUDA_VISIBLE_DEVICES?)");
	}
	if (result != CUDA_SUCCESS) {
		return failed(result, "starting the driver");
	}
	is_ready = true;
	return 0;
}

static int need_driver(void)
{
	int rc = 0;

	pthread_mutex_lock(&lock);
	if (!is_ready) {
		rc = load();
	}
	pthread_mutex_unlock(&lock);
	return rc;
}

/* ---- the card ---- */

static CUresult read_uuid(CUdevice device, char ret[UUID_SIZE])
{
	CUuuid uuid;
	const CUresult result = cuda.cuDeviceGetUuid(&uuid, device);
	size_t at = 4;

	if (result != CUDA_SUCCESS) {
		return result;
	}
	memcpy(ret, "GPU-", at);
	for (size_t i = 0; i < sizeof uuid.bytes; i++) {
		if (i == 4 || i == 6 || i == 8 || i == 10) {
			ret[at++] = '-';
		}
		(void)snprintf(ret + at, UUID_SIZE - at, "%02x", (unsigned char)uuid.bytes[i]);
		at += 2;
	}
	return CUDA_SUCCESS;
}

static int find_card(const char *uuid, CUdevice *ret)
{
	const char *visible = getenv("CUDA_VISIBLE_DEVICES");
	int n_cards = 0;
	CUresult result = cuda.cuDeviceGetCount(&n_cards);

	for (int i = 0; result == CUDA_SUCCESS && i < n_cards; i++) {
		char found[UUID_SIZE];

		result = cuda.cuDeviceGet(ret, i);
		if (result == CUDA_SUCCESS) {
			result = read_uuid(*ret, found);
		}
		if (result == CUDA_SUCCESS && strcmp(found, uuid) == 0) {
			return 0;
		}
	}
	if (result != CUDA_SUCCESS) {
		return failed(result, "looking for the card");
	}
	return failure_set(DISTORCH_E_UNSUPPORTED, 0,
			   "map the model's host copy instead, or let this process see the card",
			   "card %s is not among the %d that this process sees%s%s", uuid, n_cards,
			   visible == NULL ? "" : ": CUDA_VISIBLE_DEVICES=",
			   visible == NULL ? "" : visible);
}

/* Its primary context, which is also that of torch and of the CUDA runtime, and current. */
static int enter(CUdevice device)
{
	CUcontext context = NULL;
	CUresult result = cuda.cuDevicePrimaryCtxRetain(&context, device);

	if (result != CUDA_SUCCESS) {
		return failed(result, "making a context on the card");
	}
	result = cuda.cuCtxPushCurrent(context);
	if (result != CUDA_SUCCESS) {
		(void)cuda.cuDevicePrimaryCtxRelease(device); /* the first failure counts */
		return failed(result, "entering the card's context");
	}
	return 0;
}

/* ---- the memory ---- */

/* The driver has many words for what is no memory of a card, or not so much of it. Among them are
 * UNKNOWN, which is fatal elsewhere, and NOT_SUPPORTED, of a mapping. */
static int bad_memory(CUresult result, const char *what)
{
	return failure_set(DISTORCH_E_BAD_FD, 0, NULL,
			   "%s failed: the descriptor is not of that memory (%d)", what,
			   (int)result);
}

/* 'properties' are those that the card's own memory has. */
static int check_memory(CUmemGenericAllocationHandle handle, CUdevice device, size_t *ret_granule)
{
	CUmemAllocationProp properties = {0};
	CUresult result = cuda.cuMemGetAllocationPropertiesFromHandle(&properties, handle);

	if (result == CUDA_SUCCESS && (properties.type != CU_MEM_ALLOCATION_TYPE_PINNED ||
				       properties.location.type != CU_MEM_LOCATION_TYPE_DEVICE ||
				       properties.location.id != device)) {
		return failure_set(DISTORCH_E_BAD_FD, 0, NULL,
				   "the daemon sent memory of another card");
	}
	if (result == CUDA_SUCCESS) {
		result = cuda.cuMemGetAllocationGranularity(ret_granule, &properties,
							    CU_MEM_ALLOC_GRANULARITY_MINIMUM);
	}
	return result == CUDA_SUCCESS ? 0 : failed(result, "looking at the card's memory");
}

static int import(int fd, CUdevice device, size_t *ret_granule, CUmemGenericAllocationHandle *ret)
{
	CUresult result = cuda.cuMemImportFromShareableHandle(
		ret, (void *)(intptr_t)fd, /* NOLINT(performance-no-int-to-ptr): its way */
		CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR);
	int rc;

	if (result != CUDA_SUCCESS) {
		rc = failed(result, "importing the card's memory");
		return rc == -DISTORCH_E_INTERNAL || result == CUDA_ERROR_UNKNOWN
			       ? bad_memory(result, "importing the card's memory")
			       : rc;
	}
	rc = check_memory(*ret, device, ret_granule);
	if (rc < 0) {
		(void)cuda.cuMemRelease(*ret); /* the first failure counts */
	}
	return rc;
}

/* The size of each, and of all. */
static int add_up(const struct cuda_source *sources, uint32_t n_sources, size_t granule,
		  struct cuda_range *range)
{
	for (uint32_t i = 0; i < n_sources; i++) {
		if (sources[i].bytes == 0 ||
		    !checked_round_up(sources[i].bytes, granule, &range->sizes[i]) ||
		    !checked_add(range->size, range->sizes[i], &range->size)) {
			return failure_set(DISTORCH_E_BAD_FD, 0, NULL, "a segment of %llu bytes",
					   (unsigned long long)sources[i].bytes);
		}
	}
	return 0;
}

/* From the last one on; 'n_mapped' says what is left when it fails. */
static CUresult unmap(struct cuda_range *range)
{
	CUdeviceptr end = range->address;

	for (uint32_t i = 0; i < range->n_mapped; i++) {
		end += range->sizes[i];
	}
	while (range->n_mapped > 0) {
		const size_t size = range->sizes[range->n_mapped - 1];
		const CUresult result = cuda.cuMemUnmap(end - size, size);

		if (result != CUDA_SUCCESS) {
			return result;
		}
		end -= size;
		range->n_mapped--;
	}
	return CUDA_SUCCESS;
}

static int map(const CUmemGenericAllocationHandle *handles, uint32_t n_handles,
	       struct cuda_range *range)
{
	const CUmemAccessDesc access = {.location = {.type = CU_MEM_LOCATION_TYPE_DEVICE,
						     .id = range->ordinal},
					.flags = CU_MEM_ACCESS_FLAGS_PROT_READ};
	CUdeviceptr at = range->address;
	CUresult result = CUDA_SUCCESS;
	int rc;

	while (result == CUDA_SUCCESS && range->n_mapped < n_handles) {
		const size_t size = range->sizes[range->n_mapped];

		result = cuda.cuMemMap(at, size, 0, handles[range->n_mapped], 0);
		if (result == CUDA_SUCCESS) {
			at += size;
			range->n_mapped++;
		}
	}
	if (result != CUDA_SUCCESS) {
		rc = failed(result, "mapping the card's memory");
		return rc == -DISTORCH_E_INTERNAL || result == CUDA_ERROR_NOT_SUPPORTED
			       ? bad_memory(result, "mapping the card's memory")
			       : rc;
	}
	result = cuda.cuMemSetAccess(range->address, range->size, &access, 1);
	return result == CUDA_SUCCESS ? 0 : failed(result, "opening the card's memory");
}

static int map_all(const CUmemGenericAllocationHandle *handles, uint32_t n_handles,
		   struct cuda_range *range)
{
	CUdeviceptr address = 0;
	CUresult result = cuda.cuMemAddressReserve(&address, range->size, 0, 0, 0);
	int rc;

	if (result != CUDA_SUCCESS) {
		return failed(result, "reserving addresses");
	}
	range->address = address;
	rc = map(handles, n_handles, range);
	if (rc < 0 && unmap(range) == CUDA_SUCCESS) { /* the first failure counts */
		(void)cuda.cuMemAddressFree(range->address, range->size);
	}
	return rc;
}

static int import_all(const struct cuda_source *sources, uint32_t n_sources,
		      struct cuda_range *range)
{
	CUmemGenericAllocationHandle handles[MAP_CUDA_MAX];
	CUresult result = CUDA_SUCCESS;
	uint32_t n_handles = 0;
	size_t granule = 0;
	int rc = 0;

	while (rc == 0 && n_handles < n_sources) {
		rc = import(sources[n_handles].fd, range->ordinal, &granule, &handles[n_handles]);
		n_handles += rc == 0 ? 1 : 0;
	}
	if (rc == 0) {
		rc = add_up(sources, n_sources, granule, range);
	}
	if (rc == 0) {
		rc = map_all(handles, n_handles, range);
	}
	for (uint32_t i = 0; i < n_handles; i++) { /* the mapping keeps the memory */
		const CUresult released = cuda.cuMemRelease(handles[i]);

		result = result == CUDA_SUCCESS ? released : result;
	}
	if (rc == 0 && result != CUDA_SUCCESS) { /* so would the handle, and nobody has it */
		rc = failed(result, "letting go of the card's memory");
		if (unmap(range) == CUDA_SUCCESS) { /* the first failure counts */
			(void)cuda.cuMemAddressFree(range->address, range->size);
		}
	}
	return rc;
}

int map_cuda_import(const char *uuid, const struct cuda_source *sources, uint32_t n_sources,
		    struct cuda_range *ret)
{
	struct cuda_range range = {0};
	int rc = need_driver();

	if (rc == 0) {
		rc = find_card(uuid, &range.ordinal);
	}
	if (rc == 0) {
		rc = enter(range.ordinal);
	}
	if (rc == 0) {
		rc = import_all(sources, n_sources, &range);
		(void)cuda.cuCtxPopCurrent(NULL); /* what was current before is again */
		if (rc < 0) {
			(void)cuda.cuDevicePrimaryCtxRelease(range.ordinal); /* as above */
		}
	}
	close_all(sources, n_sources);
	if (rc == 0) {
		*ret = range;
	}
	return rc;
}

int map_cuda_release(struct cuda_range *range)
{
	CUresult result;
	int rc = enter(range->ordinal);

	if (rc < 0) {
		return rc;
	}
	result = cuda.cuCtxSynchronize(); /* all streams: any of them may still read */
	if (result == CUDA_SUCCESS) {
		result = unmap(range);
	}
	if (result == CUDA_SUCCESS) { /* addresses: at worst they are lost */
		(void)cuda.cuMemAddressFree(range->address, range->size);
	}
	(void)cuda.cuCtxPopCurrent(NULL); /* as above */
	(void)cuda.cuDevicePrimaryCtxRelease(range->ordinal);
	if (result != CUDA_SUCCESS) {
		return failed(result, "unmapping the card's memory");
	}
	(void)cuda.cuDevicePrimaryCtxRelease(range->ordinal); /* that of the import */
	return 0;
}

#else

int map_cuda_import(const char *uuid, const struct cuda_source *sources, uint32_t n_sources,
		    struct cuda_range *ret)
{
	(void)ret;
	close_all(sources, n_sources);
	return failure_set(DISTORCH_E_UNSUPPORTED, 0, "map the model's host copy instead",
			   "card %s: this libdistorch was built without CUDA", uuid);
}

int map_cuda_release(struct cuda_range *range)
{
	return failure_set(DISTORCH_E_UNSUPPORTED, 0, NULL,
			   "%llu bytes: this libdistorch was built without CUDA",
			   (unsigned long long)range->size);
}

#endif
