/* SPDX-License-Identifier: Apache-2.0 */
/* Opening the driver, and its codes in our words. See cuda_dl.h. */
#include "daemon/device/cuda_dl.h"

#include "base/err.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "proto/gen/wire_code.h"

/* All that we call is as it was in CUDA 12.0, the first with this way of asking for a call. */
#define API_VERSION 12000

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* guards all that is static here */
static struct cuda_calls cuda;
static struct nvml_calls nvml;
static bool has_cuda_calls;
static bool is_cuda_ready;
static bool is_nvml_tried;
static bool is_nvml_ready;

/* Before the driver looks at it, and before this process has more than one thread. */
static void set_environment(void)
{
	static const char *const wanted[][2] = {
		{"CUDA_DEVICE_ORDER", "PCI_BUS_ID"},
		{"CUDA_MODULE_LOADING", "LAZY"},
		{"CUDA_CACHE_DISABLE", "1"},
		/* Nobody can make a folder there: no MPS is found, whose faults would be shared. */
		{"CUDA_MPS_PIPE_DIRECTORY", "/proc/distorchd-without-mps"},
	};

	for (size_t i = 0; i < sizeof wanted / sizeof wanted[0]; i++) {
		(void)setenv(wanted[i][0], wanted[i][1], 1); /* fails without memory only */
	}
	(void)unsetenv("CUDA_VISIBLE_DEVICES"); /* the name is right */
}

/* One call by name; ISO C has no way from an object's address to a function's. */
static bool ask_for_call(__typeof__(cuGetProcAddress) *ask, const char *name, void *slot)
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

static int too_old(struct err *err, const char *what)
{
	return err_set(err, WIRE_NOT_FOUND,
		       "the NVIDIA driver is too old: it has no %s; CUDA 12 (driver 525) or newer "
		       "is needed",
		       what);
}

static int find_calls(struct err *err)
{
	__typeof__(cuGetProcAddress) *ask = NULL;
	void *library;
	void *symbol;

	set_environment();
	library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL); /* stays loaded */
	if (library == NULL) {
		return err_set(err, WIRE_NOT_FOUND, "no NVIDIA driver: %s", dlerror());
	}
	symbol = dlsym(library, "cuGetProcAddress_v2");
	if (symbol == NULL) {
		(void)dlclose(library); /* not used */
		return too_old(err, "cuGetProcAddress_v2");
	}
	memcpy(&ask, &symbol, sizeof ask);
#define CUDA_FIND(name)                              \
	if (!ask_for_call(ask, #name, &cuda.name)) { \
		(void)dlclose(library);              \
		return too_old(err, #name);          \
	}
	CUDA_CALLS(CUDA_FIND)
#undef CUDA_FIND
	has_cuda_calls = true;
	return 0;
}

static int initialise(struct err *err)
{
	int version = 0;
	CUresult result;

	if (cuda.cuDriverGetVersion(&version) == CUDA_SUCCESS && version < API_VERSION) {
		return too_old(err, "support for CUDA 12.0");
	}
	result = cuda.cuInit(0);
	if (result == CUDA_ERROR_NO_DEVICE) {
		return err_set(err, WIRE_NOT_FOUND,
			       "the NVIDIA driver sees no card: look at nvidia-smi, and at the "
			       "permissions of /dev/nvidia*");
	}
	if (result != CUDA_SUCCESS) {
		return cuda_fail(err, result, false, "starting the NVIDIA driver");
	}
	is_cuda_ready = true;
	return 0;
}

const struct cuda_calls *cuda_load(struct err *err)
{
	const struct cuda_calls *ready;

	(void)pthread_mutex_lock(&lock); /* cannot fail: it is never taken twice */
	if ((has_cuda_calls || find_calls(err) == 0) && !is_cuda_ready) {
		(void)initialise(err); /* it says why in 'err' */
	}
	ready = is_cuda_ready ? &cuda : NULL;
	(void)pthread_mutex_unlock(&lock);
	return ready;
}

static bool find_nvml(void)
{
	void *library = dlopen("libnvidia-ml.so.1", RTLD_NOW | RTLD_LOCAL); /* stays loaded */
	void *symbol;

	if (library == NULL) {
		return false;
	}
#define NVML_TEXT(name) #name
#define NVML_NAME(name) NVML_TEXT(name)
#define NVML_FIND(name)                           \
	symbol = dlsym(library, NVML_NAME(name)); \
	if (symbol == NULL) {                     \
		return false;                     \
	}                                         \
	memcpy(&nvml.name, &symbol, sizeof symbol);
	NVML_CALLS(NVML_FIND)
#undef NVML_FIND
	return nvml.nvmlInit() == NVML_SUCCESS;
}

const struct nvml_calls *nvml_load(void)
{
	const struct nvml_calls *ready;

	(void)pthread_mutex_lock(&lock); /* as above */
	if (!is_nvml_tried) {
		is_nvml_tried = true;
		is_nvml_ready = find_nvml();
	}
	ready = is_nvml_ready ? &nvml : NULL;
	(void)pthread_mutex_unlock(&lock);
	return ready;
}

/* The codes after which a context, or the card, is of no use to this process. */
static bool is_fatal(CUresult result)
{
	static const int fatal[] = {
		CUDA_ERROR_ECC_UNCORRECTABLE,
		CUDA_ERROR_NVLINK_UNCORRECTABLE,
		CUDA_ERROR_CONTAINED,
		CUDA_ERROR_ILLEGAL_ADDRESS,
		CUDA_ERROR_LAUNCH_TIMEOUT,
		CUDA_ERROR_CONTEXT_IS_DESTROYED,
		CUDA_ERROR_HARDWARE_STACK_ERROR,
		CUDA_ERROR_ILLEGAL_INSTRUCTION,
		CUDA_ERROR_MISALIGNED_ADDRESS,
		CUDA_ERROR_INVALID_ADDRESS_SPACE,
		CUDA_ERROR_INVALID_PC,
		CUDA_ERROR_LAUNCH_FAILED,
		CUDA_ERROR_UNKNOWN,
	};

	for (size_t i = 0; i < sizeof fatal / sizeof fatal[0]; i++) {
		if ((int)result == fatal[i]) {
			return true;
		}
	}
	return false;
}

/* Those of a driver that is not ready. A process that has opened a card will not see it ready. */
static bool is_not_ready(CUresult result)
{
	return result == CUDA_ERROR_NOT_INITIALIZED || result == CUDA_ERROR_DEINITIALIZED ||
	       result == CUDA_ERROR_DEVICE_UNAVAILABLE || result == CUDA_ERROR_NO_DEVICE ||
	       result == CUDA_ERROR_INVALID_CONTEXT || result == CUDA_ERROR_SYSTEM_NOT_READY;
}

/* Not a switch: newer drivers have codes that no header of ours knows. */
static int code_of(CUresult result, bool is_open)
{
	if (result == CUDA_ERROR_OUT_OF_MEMORY) {
		return WIRE_NO_MEMORY;
	}
	if (is_fatal(result) ||
	    (is_open && (is_not_ready(result) || result == CUDA_ERROR_INVALID_DEVICE))) {
		return WIRE_DEVICE_LOST;
	}
	if (result == CUDA_ERROR_NOT_SUPPORTED || result == CUDA_ERROR_INVALID_DEVICE) {
		return WIRE_UNSUPPORTED;
	}
	return is_not_ready(result) ? WIRE_BUSY : WIRE_INTERNAL;
}

int cuda_fail(struct err *err, CUresult result, bool is_open, const char *what)
{
	const char *name = NULL;
	const char *text = NULL;
	int code;

	/* Neither looks at the state of the driver. They leave the texts alone on failure. */
	(void)cuda.cuGetErrorName(result, &name);
	(void)cuda.cuGetErrorString(result, &text);
	code = err_set(err, code_of(result, is_open), "%s: %s (%s, %d)", what,
		       text == NULL ? "the driver says nothing more" : text,
		       name == NULL ? "a code that this driver does not know" : name, (int)result);
	if (err != NULL) {
		err->driver = (int)result;
	}
	return code;
}
