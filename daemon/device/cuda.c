/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Cards with CUDA, by the driver's API for virtual memory: an extent is one allocation that
 * other processes import by a descriptor. A card is opened by doing: one granule is made,
 * exported, imported, mapped and given back, since what a driver says it can is not what it
 * does everywhere. In a worker process of its own (distorchd-worker): after WIRE_DEVICE_LOST
 * nothing but a new process helps.
 */
#include "base/checked.h"
#include "base/os/sys.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "daemon/device/cuda_device.h"
#include "proto/gen/wire_code.h"

static CUresult count_cards(const struct cuda_calls *calls, uint32_t *ret)
{
	int n_cards = 0;
	const CUresult result = calls->cuDeviceGetCount(&n_cards);

	if (result == CUDA_SUCCESS) {
		*ret = n_cards > DEVICE_MAX_CARDS ? DEVICE_MAX_CARDS : (uint32_t)n_cards;
	}
	return result;
}

static uint32_t cuda_probe(char (*names)[DEVICE_NAME_SIZE], uint32_t max_names)
{
	const struct cuda_calls *calls = cuda_load(NULL);
	uint32_t n_cards = 0;

	if (calls == NULL || count_cards(calls, &n_cards) != CUDA_SUCCESS) {
		return 0; /* who opens one is told why */
	}
	for (uint32_t i = 0; i < n_cards && i < max_names; i++) {
		(void)snprintf(names[i], DEVICE_NAME_SIZE, "cuda:%u", i);
	}
	return n_cards;
}

/* As the driver's tools print it. */
static CUresult read_uuid(const struct cuda_calls *calls, CUdevice ordinal,
			  char ret[DEVICE_UUID_SIZE])
{
	CUuuid uuid;
	const CUresult result = calls->cuDeviceGetUuid(&uuid, ordinal);
	int length;

	if (result != CUDA_SUCCESS) {
		return result;
	}
	length = snprintf(ret, DEVICE_UUID_SIZE, "GPU");
	for (size_t i = 0; i < sizeof uuid.bytes; i++) {
		const bool is_dashed = i == 0 || i == 4 || i == 6 || i == 8 || i == 10;

		length += snprintf(ret + length, DEVICE_UUID_SIZE - (size_t)length, "%s%02x",
				   is_dashed ? "-" : "", (unsigned char)uuid.bytes[i]);
	}
	return CUDA_SUCCESS;
}

/* "cuda:1" by its place among the PCI addresses, or a UUID, which stays when cards are moved. */
static int find_card(struct cuda_device *device, const char *name, struct err *err)
{
	const struct cuda_calls *calls = device->calls;
	char wanted[DEVICE_NAME_SIZE];
	uint32_t n_cards = 0;
	CUresult result = count_cards(calls, &n_cards);

	if (result != CUDA_SUCCESS) {
		return cuda_device_fail(device, err, result, "counting cards");
	}
	for (uint32_t i = 0; i < n_cards; i++) {
		result = calls->cuDeviceGet(&device->ordinal, (int)i);

		if (result == CUDA_SUCCESS) {
			result = read_uuid(calls, device->ordinal, device->info.uuid);
		}
		if (result != CUDA_SUCCESS) {
			return cuda_device_fail(device, err, result, "finding it");
		}
		(void)snprintf(wanted, sizeof wanted, "cuda:%u", i);
		if (strcmp(name, wanted) == 0 || strcasecmp(name, device->info.uuid) == 0) {
			return 0;
		}
	}
	return err_set(err, WIRE_NOT_FOUND, "there is no card \"%s\"; the driver sees %u", name,
		       n_cards);
}

static void find_peers(struct cuda_device *device)
{
	const struct cuda_calls *calls = device->calls;
	struct device_info *info = &device->info;
	uint32_t n_cards = 0;

	(void)count_cards(calls, &n_cards); /* without it there are no peers */
	for (uint32_t i = 0; i < n_cards && info->n_peers < DEVICE_MAX_PEERS; i++) {
		struct device_peer *peer = &info->peers[info->n_peers];
		CUdevice other = 0;
		int can_reach = 0;

		if (calls->cuDeviceGet(&other, (int)i) == CUDA_SUCCESS &&
		    other != device->ordinal &&
		    calls->cuDeviceCanAccessPeer(&can_reach, device->ordinal, other) ==
			    CUDA_SUCCESS &&
		    can_reach != 0 && read_uuid(calls, other, peer->uuid) == CUDA_SUCCESS) {
			device->peers[info->n_peers++] = other;
		}
	}
}

/* What a card must be able to do, and be allowed to. */
static int check_attributes(const struct cuda_device *device, struct err *err)
{
	static const struct {
		CUdevice_attribute attribute;
		const char *lack;
	} needed[] = {
		{CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED, "map memory by itself"},
		{CU_DEVICE_ATTRIBUTE_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR_SUPPORTED,
		 "hand memory to other processes by a descriptor"},
	};
	const struct cuda_calls *calls = device->calls;
	int value = 0;

	for (size_t i = 0; i < sizeof needed / sizeof needed[0]; i++) {
		const CUresult result =
			calls->cuDeviceGetAttribute(&value, needed[i].attribute, device->ordinal);

		if (result != CUDA_SUCCESS) {
			return cuda_device_fail(device, err, result, "looking at it");
		}
		if (value == 0) {
			return err_set(err, WIRE_UNSUPPORTED, "%s (%s) cannot %s",
				       device->base.name, device->info.product, needed[i].lack);
		}
	}
	if (calls->cuDeviceGetAttribute(&value, CU_DEVICE_ATTRIBUTE_COMPUTE_MODE,
					device->ordinal) == CUDA_SUCCESS &&
	    value != CU_COMPUTEMODE_DEFAULT) {
		return err_set(err, WIRE_UNSUPPORTED,
			       "%s (%s) is in compute mode %s, so processes cannot share it: "
			       "nvidia-smi -i %s -c DEFAULT",
			       device->base.name, device->info.product,
			       value == CU_COMPUTEMODE_PROHIBITED ? "Prohibited"
								  : "Exclusive_Process",
			       device->info.uuid);
	}
	return 0;
}

static int look_at_card(struct cuda_device *device, struct err *err)
{
	const struct cuda_calls *calls = device->calls;
	const CUmemAllocationProp properties = cuda_properties(device->ordinal);
	struct device_info *info = &device->info;
	size_t granularity = 0;
	size_t total = 0;
	CUresult result =
		calls->cuDeviceGetName(info->product, sizeof info->product, device->ordinal);
	int code;

	if (result == CUDA_SUCCESS) {
		result = calls->cuDeviceGetPCIBusId(info->pci, sizeof info->pci, device->ordinal);
	}
	if (result == CUDA_SUCCESS) {
		result = calls->cuDeviceTotalMem(&total, device->ordinal);
	}
	if (result != CUDA_SUCCESS) {
		return cuda_device_fail(device, err, result, "looking at it");
	}
	for (char *letter = info->pci; *letter != '\0'; letter++) {
		*letter = (char)tolower((unsigned char)*letter); /* as the kernel writes it */
	}
	code = check_attributes(device, err);
	if (code < 0) {
		return code;
	}
	result = calls->cuMemGetAllocationGranularity(&granularity, &properties,
						      CU_MEM_ALLOC_GRANULARITY_MINIMUM);
	if (result != CUDA_SUCCESS) {
		return cuda_device_fail(device, err, result, "asking for its granularity");
	}
	info->total_bytes = total;
	info->granularity = granularity;
	return 0;
}

/* One granule through everything that will be asked of the card. */
static int try_sharing(struct cuda_device *device, struct err *err)
{
	const struct device_alloc request = {.name = "probe", .bytes = device->info.granularity};
	struct extent *extent = NULL;
	struct extent *imported = NULL;
	int fd = -1;
	int code = cuda_alloc(&device->base, &request, &extent, err);
	int released;

	if (code < 0) { /* one that is full is a card all the same */
		return code == -WIRE_NO_MEMORY ? 0 : code;
	}
	code = cuda_seal(extent, err);
	if (code == 0) {
		code = cuda_export(extent, &fd, err);
	}
	if (code == 0) {
		code = cuda_import(&device->base, fd, request.bytes, &imported, err);
		(void)close(fd); /* memory: there is nothing to write back */
	}
	if (code == 0) {
		code = cuda_release(imported, err);
	}
	released = cuda_release(extent, code == 0 ? err : NULL);
	return code == 0 ? released : code;
}

static int probe_by_doing(struct cuda_device *device, struct err *err)
{
	int code = cuda_use(device, err); /* once for both */

	if (code < 0) {
		return code;
	}
	code = try_sharing(device, err);
	if (code == 0) {
		code = cuda_measure(device, &device->info.bytes_per_s, err);
	}
	cuda_unuse(device);
	if (code == -WIRE_BAD_FD) { /* its own export */
		(void)err_wrap(err, "it cannot share memory between processes");
		code = err_result(WIRE_UNSUPPORTED);
		if (err != NULL) {
			err->code = WIRE_UNSUPPORTED;
		}
	}
	return code;
}

static int cuda_open(const char *name, struct device **ret, struct err *err)
{
	const struct cuda_calls *calls = cuda_load(err);
	struct err failure = {0};
	struct cuda_device *device;
	int code;

	if (calls == NULL) {
		return err == NULL ? -WIRE_NOT_FOUND : -err->code;
	}
	device = sys_calloc(1, sizeof *device);
	if (device == NULL) {
		return err_set(err, WIRE_NO_MEMORY, "no memory to open %s", name);
	}
	device->calls = calls;
	device->n_refs = 1;
	(void)snprintf(device->base.name, sizeof device->base.name, "%s", name);
	(void)pthread_mutex_init(&device->lock, NULL); /* neither can fail with defaults */
	(void)pthread_cond_init(&device->given_back, NULL);
	code = find_card(device, name, &failure);
	if (code == 0) {
		code = look_at_card(device, &failure);
	}
	if (code == 0) { /* what is reported of it while it is tried counts */
		device->health = cuda_health_new(device->info.uuid);
		code = probe_by_doing(device, &failure);
	}
	if (code < 0) {
		cuda_unref(device);
		if (err != NULL) {
			*err = failure;
		}
		return code;
	}
	find_peers(device);
	device->is_open = true;
	*ret = &device->base;
	return 0;
}

static void cuda_close(struct device *device)
{
	cuda_unref(cuda_device_of(device));
}

/*
 * By what is free: NVML counts as used, and in its total, what the driver keeps for itself, which
 * CUDA's total leaves out. The context's own is no extent's, so it is foreign: also while there is
 * none, since what is taken next makes one.
 */
static uint64_t count_foreign(uint64_t total_bytes, uint64_t free_bytes, uint64_t held_bytes,
			      uint64_t missing_bytes)
{
	const uint64_t used_bytes = total_bytes > free_bytes ? total_bytes - free_bytes : 0;
	const uint64_t foreign_bytes = used_bytes > held_bytes ? used_bytes - held_bytes : 0;

	return missing_bytes < total_bytes - foreign_bytes ? foreign_bytes + missing_bytes
							   : total_bytes;
}

static int cuda_info(const struct device *base, struct device_info *ret, struct err *err)
{
	struct cuda_device *device = cuda_device_of(base);
	struct device_info info;
	uint64_t free_bytes = UINT64_MAX; /* not known */
	uint64_t n_changes;
	bool is_changing;
	int code;

	(void)pthread_mutex_lock(&device->lock);
	info = device->info;
	n_changes = device->n_changes;
	is_changing = device->n_changing > 0;
	(void)pthread_mutex_unlock(&device->lock);
	code = cuda_health_look(device->health, &info, &free_bytes, err);
	if (code < 0) {
		return code;
	}
	(void)pthread_mutex_lock(&device->lock);
	/* NVML may count what is taken or given back meanwhile, or not: then it is as last known. */
	info.is_foreign_old = free_bytes == UINT64_MAX || is_changing ||
			      device->n_changes != n_changes;
	if (!info.is_foreign_old) {
		info.foreign_bytes = count_foreign(info.total_bytes, free_bytes, device->held_bytes,
						   device->n_users > 0 ? 0 : device->context_bytes);
	}
	device->info.foreign_bytes = info.foreign_bytes;
	device->info.temperature = info.temperature;
	(void)pthread_mutex_unlock(&device->lock);
	*ret = info;
	return 0;
}

static uint64_t cuda_charge(const struct device *device, uint64_t bytes)
{
	uint64_t charged = UINT64_MAX; /* more than any budget: what cannot be rounded is refused */

	(void)checked_round_up(bytes, cuda_device_of(device)->info.granularity, &charged);
	return charged;
}

const struct device_ops cuda_device_ops = {
	.version = DEVICE_OPS_VERSION,
	.name = "cuda",
	.probe = cuda_probe,
	.open = cuda_open,
	.close = cuda_close,
	.info = cuda_info,
	.charge = cuda_charge,
	.alloc = cuda_alloc,
	.fill = cuda_fill,
	.read = cuda_read,
	.seal = cuda_seal,
	.release = cuda_release,
	.export = cuda_export,
	.import = cuda_import,
	.copy = cuda_copy,
};
