/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Extents of a card: a handle, mapped for writing until seal and for reading when that is
 * needed. What cannot be undone on the way out of a failure is neither free nor ours: then the
 * device is lost, since only the end of the process frees it.
 */
#include "base/checked.h"
#include "base/os/sys.h"
#include "base/units.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "daemon/device/cuda_device.h"
#include "proto/gen/wire_code.h"

/* Descriptors of a device that are kept: well below what any process may have open. */
#ifdef DISTORCH_TESTING
#	define MAX_KEPT_EXPORTS 32
#else
#	define MAX_KEPT_EXPORTS 256
#endif

CUmemAllocationProp cuda_properties(CUdevice ordinal)
{
	CUmemAllocationProp properties = {
		.type = CU_MEM_ALLOCATION_TYPE_PINNED,
		.requestedHandleTypes = CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR,
		.location = {.type = CU_MEM_LOCATION_TYPE_DEVICE},
	};

	properties.location.id = ordinal;
	return properties;
}

/* After a failure that 'code' tells: give back what was had. */
static int undone(const struct cuda_device *device, struct err *err, int code, CUresult result)
{
	if (result == CUDA_SUCCESS) {
		return code;
	}
	(void)cuda_device_fail(device, err, result, "giving memory back after a failure");
	if (err != NULL) {
		err->code = WIRE_DEVICE_LOST;
	}
	return -WIRE_DEVICE_LOST;
}

/* Said of the descriptor: the driver has many words for what is not memory of a card, or not so
 * much of it. Among them are UNKNOWN, which is fatal elsewhere, and NOT_SUPPORTED (of a mapping). */
static int bad_import(struct err *err)
{
	if (err != NULL) {
		err->code = WIRE_BAD_FD;
	}
	return -WIRE_BAD_FD;
}

/* Of memory that was imported: that this card does not reach the other is no fault of either. */
static int extent_fail(const struct cuda_extent *extent, struct err *err, CUresult result,
		       const char *what)
{
	const int code = cuda_device_fail(extent->device, err, result, what);

	if (!extent->is_imported || result != CUDA_ERROR_INVALID_DEVICE) {
		return code;
	}
	if (err != NULL) {
		err->code = WIRE_UNSUPPORTED;
	}
	return -WIRE_UNSUPPORTED;
}

int cuda_map(struct cuda_extent *extent, CUmemAccess_flags access, struct err *err)
{
	const struct cuda_device *device = extent->device;
	const struct cuda_calls *calls = device->calls;
	CUmemAccessDesc wanted = {.location = {.type = CU_MEM_LOCATION_TYPE_DEVICE},
				  .flags = access};
	CUdeviceptr address = 0;
	CUresult undo;
	int code;
	CUresult result = calls->cuMemAddressReserve(&address, extent->size, 0, 0, 0);

	wanted.location.id = device->ordinal;
	if (result != CUDA_SUCCESS) {
		return cuda_device_fail(device, err, result, "reserving addresses");
	}
	result = calls->cuMemMap(address, extent->size, 0, extent->handle, 0);
	if (result != CUDA_SUCCESS) {
		code = extent_fail(extent, err, result, "mapping memory");
		if (extent->is_imported && result == CUDA_ERROR_NOT_SUPPORTED) {
			code = bad_import(err);
		}
		(void)calls->cuMemAddressFree(address, extent->size); /* addresses, no memory */
		return code;
	}
	result = calls->cuMemSetAccess(address, extent->size, &wanted, 1);
	if (result != CUDA_SUCCESS) {
		code = extent_fail(extent, err, result, "opening memory to the card");
		undo = calls->cuMemUnmap(address, extent->size);
		(void)calls->cuMemAddressFree(address, extent->size); /* likewise */
		return undone(device, err, code, undo);
	}
	extent->address = address;
	extent->is_writable = access == CU_MEM_ACCESS_FLAGS_PROT_READWRITE;
	return 0;
}

int cuda_unmap(struct cuda_extent *extent, struct err *err)
{
	const struct cuda_calls *calls = extent->device->calls;
	CUresult result;

	if (extent->address == 0) {
		return 0;
	}
	result = calls->cuMemUnmap(extent->address, extent->size);
	if (result != CUDA_SUCCESS) {
		return cuda_device_fail(extent->device, err, result, "unmapping memory");
	}
	(void)calls->cuMemAddressFree(extent->address, extent->size); /* addresses, no memory */
	extent->address = 0;
	extent->is_writable = false;
	return 0;
}

/* An extent with a context to work in, and no memory yet. */
static int make_extent(struct cuda_device *device, uint64_t bytes, uint64_t limit,
		       struct cuda_extent **ret, struct err *err)
{
	struct cuda_extent *extent;
	uint64_t size = 0;
	int code;

	if (!checked_round_up(bytes, device->info.granularity, &size) || size > limit) {
		return err_set(err, WIRE_NO_MEMORY, "%s: %llu bytes are more than it has (%llu)",
			       device->base.name, (unsigned long long)bytes,
			       (unsigned long long)device->info.total_bytes);
	}
	extent = sys_calloc(1, sizeof *extent);
	if (extent == NULL) {
		return err_set(err, WIRE_NO_MEMORY, "no memory for an extent");
	}
	code = cuda_use(device, err);
	if (code < 0) {
		free(extent);
		return code;
	}
	cuda_ref(device);
	*extent = (struct cuda_extent){.base.bytes = bytes,
				       .device = device,
				       .size = size,
				       .home = device->ordinal,
				       .fd = -1};
	*ret = extent;
	return 0;
}

/* A descriptor keeps the memory as a handle does. */
static void drop_fd(struct cuda_extent *extent)
{
	struct cuda_device *device = extent->device;

	if (extent->fd < 0) {
		return;
	}
	(void)close(extent->fd); /* memory: there is nothing to write back */
	extent->fd = -1;
	(void)pthread_mutex_lock(&device->lock);
	device->n_exports -= extent->is_imported ? 0 : 1;
	(void)pthread_mutex_unlock(&device->lock);
}

static void free_extent(struct cuda_extent *extent)
{
	struct cuda_device *device = extent->device;

	drop_fd(extent);
	free(extent);
	cuda_unuse(device);
	cuda_unref(device);
}

static void hold(struct cuda_extent *extent)
{
	(void)pthread_mutex_lock(&extent->device->lock);
	extent->held_bytes = extent->size;
	extent->device->held_bytes += extent->size;
	(void)pthread_mutex_unlock(&extent->device->lock);
}

/* Between the two, what the card has free and 'held_bytes' are not of the same moment. */
static void begin_change(struct cuda_device *device)
{
	(void)pthread_mutex_lock(&device->lock);
	device->n_changing++;
	device->n_changes++;
	(void)pthread_mutex_unlock(&device->lock);
}

static void end_change(struct cuda_device *device)
{
	(void)pthread_mutex_lock(&device->lock);
	device->n_changing--;
	(void)pthread_mutex_unlock(&device->lock);
}

static void let_go(const struct cuda_extent *extent)
{
	(void)pthread_mutex_lock(&extent->device->lock);
	extent->device->held_bytes -= extent->held_bytes;
	(void)pthread_mutex_unlock(&extent->device->lock);
}

/* Take the memory. What is in it is somebody's: the card wipes it before anything is written. */
static int take_memory(struct cuda_extent *extent, struct err *err)
{
	const struct cuda_device *device = extent->device;
	const struct cuda_calls *calls = device->calls;
	const CUmemAllocationProp properties = cuda_properties(device->ordinal);
	char what[96];
	char size[2][16];
	CUresult undo;
	int code;
	CUresult result = calls->cuMemCreate(&extent->handle, extent->size, &properties, 0);

	if (result != CUDA_SUCCESS) {
		(void)snprintf(what, sizeof what, "taking %s of %s",
			       units_format_size(extent->size, size[0], sizeof size[0]),
			       units_format_size(device->info.total_bytes, size[1],
						 sizeof size[1]));
		return cuda_device_fail(device, err, result, what);
	}
	code = cuda_map(extent, CU_MEM_ACCESS_FLAGS_PROT_READWRITE, err);
	if (code == 0) {
		result = calls->cuMemsetD8Async(extent->address, 0, extent->size, device->stream);
		if (result == CUDA_SUCCESS) {
			return 0;
		}
		code = cuda_device_fail(device, err, result, "wiping memory");
		undo = cuda_unmap(extent, NULL) == 0 ? CUDA_SUCCESS : CUDA_ERROR_UNMAP_FAILED;
		code = undone(device, err, code, undo);
	}
	return undone(device, err, code, calls->cuMemRelease(extent->handle));
}

int cuda_alloc(struct device *base, const struct device_alloc *request, struct extent **ret,
	       struct err *err)
{
	struct cuda_device *device = cuda_device_of(base);
	struct cuda_extent *extent = NULL;
	int code = make_extent(device, request->bytes, device->info.total_bytes, &extent, err);

	if (code < 0) {
		return code;
	}
	begin_change(device);
	code = take_memory(extent, err);
	if (code == 0) {
		hold(extent);
	}
	end_change(device);
	if (code < 0) {
		free_extent(extent);
		return code;
	}
	*ret = &extent->base;
	return 0;
}

/* The context is current. */
static int export_anew(const struct cuda_extent *extent, int *ret_fd, struct err *err)
{
	struct cuda_device *device = extent->device;
	CUresult result =
		device->calls
			->cuMemExportToShareableHandle(ret_fd, extent->handle,
						       CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR, 0);

	return result == CUDA_SUCCESS ? 0
				      : cuda_device_fail(device, err, result, "exporting memory");
}

/*
 * Before anybody asks: a first export took a card three times as long as all else of an attach
 * (docs/gpu-notes.md). One that is refused, or too many, is made when it is asked for.
 */
static int keep_export(struct cuda_extent *extent, struct err *err)
{
	struct cuda_device *device = extent->device;
	struct err own = {0};
	bool is_kept;
	int code;

	(void)pthread_mutex_lock(&device->lock);
	is_kept = device->n_exports < MAX_KEPT_EXPORTS;
	device->n_exports += is_kept ? 1 : 0;
	(void)pthread_mutex_unlock(&device->lock);
	if (!is_kept) {
		return 0;
	}
	code = export_anew(extent, &extent->fd, &own);
	if (code == 0) {
		return 0;
	}
	extent->fd = -1;
	(void)pthread_mutex_lock(&device->lock);
	device->n_exports--;
	(void)pthread_mutex_unlock(&device->lock);
	if (code == -WIRE_DEVICE_LOST && err != NULL) {
		*err = own;
	}
	return code == -WIRE_DEVICE_LOST ? code : 0;
}

int cuda_seal(struct extent *base, struct err *err)
{
	struct cuda_extent *extent = cuda_extent_of(base);
	struct cuda_device *device = extent->device;
	CUresult result;
	int code;

	if (extent->is_sealed) {
		return 0;
	}
	extent->is_sealed = true; /* also on failure: it cannot be filled any more */
	code = cuda_enter(device, err);
	if (code < 0) {
		return code;
	}
	result = device->calls->cuStreamSynchronize(device->stream); /* the bytes are there */
	if (result != CUDA_SUCCESS) {
		return cuda_device_fail(device, err, result, "waiting for copies to the card");
	}
	code = cuda_unmap(extent, err); /* from here on it is mapped for reading only */
	return code < 0 ? code : keep_export(extent, err);
}

int cuda_release(struct extent *base, struct err *err)
{
	struct cuda_extent *extent = cuda_extent_of(base);
	struct cuda_device *device = extent->device;
	CUresult result;
	int code = 0;

	(void)cuda_enter(device, NULL); /* where that fails, so does what needs it */
	if (extent->is_writable) {      /* copies to it may be under way */
		result = device->calls->cuStreamSynchronize(device->stream);
		if (result != CUDA_SUCCESS) {
			code = cuda_device_fail(device, err, result, "waiting for copies");
		}
	}
	if (code == 0) {
		code = cuda_unmap(extent, err);
	}
	drop_fd(extent);
	if (code == 0) {
		begin_change(device);
		result = device->calls->cuMemRelease(extent->handle);
		if (result == CUDA_SUCCESS) {
			let_go(extent);
		} else {
			code = cuda_device_fail(device, err, result, "giving memory back");
		}
		end_change(device);
	}
	if (code == 0) {
		free_extent(extent);
		return 0;
	}
	/* The bytes are not free, so the context stays, and the device counts them as held. */
	free(extent);
	cuda_unref(device);
	return code;
}

int cuda_export(const struct extent *base, int *ret_fd, struct err *err)
{
	const struct cuda_extent *extent = cuda_extent_of(base);
	int exported = extent->fd;
	int code;
	int fd;

	if (!extent->is_sealed) {
		return err_set(err, WIRE_NOT_ALLOWED, "the extent is not sealed yet");
	}
	code = cuda_enter(extent->device, err); /* of a lost card nothing is handed on */
	if (code == 0 && extent->fd < 0) {
		code = export_anew(extent, &exported, err);
	}
	if (code < 0) {
		return code;
	}
	fd = sys_fcntl_dup(exported); /* close-on-exec, which the driver's need not be */
	if (fd < 0) {
		(void)err_set_sys(err, WIRE_TOO_MANY, errno, "exporting memory of %s: %s",
				  extent->device->base.name, strerror(errno));
	} else {
		*ret_fd = fd;
	}
	if (extent->fd < 0) {
		(void)close(exported); /* a second one of the same */
	}
	return fd < 0 ? -WIRE_TOO_MANY : 0;
}

static int take_import(struct cuda_extent *extent, int fd, struct err *err)
{
	const struct cuda_device *device = extent->device;
	const struct cuda_calls *calls = device->calls;
	CUmemAllocationProp properties = {0};
	int code;
	/* The descriptor's number goes where others take a pointer. */
	CUresult result = calls->cuMemImportFromShareableHandle(
		&extent->handle, (void *)(intptr_t)fd, // NOLINT(performance-no-int-to-ptr)
		CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR);

	if (result != CUDA_SUCCESS) {
		code = extent_fail(extent, err, result, "importing memory");
		return code == -WIRE_INTERNAL || result == CUDA_ERROR_UNKNOWN ? bad_import(err)
									      : code;
	}
	result = calls->cuMemGetAllocationPropertiesFromHandle(&properties, extent->handle);
	if (result != CUDA_SUCCESS) {
		code = extent_fail(extent, err, result, "looking at imported memory");
	} else if (properties.type != CU_MEM_ALLOCATION_TYPE_PINNED ||
		   properties.location.type != CU_MEM_LOCATION_TYPE_DEVICE) {
		code = err_set(err, WIRE_BAD_FD, "%s: the descriptor is of no card's memory",
			       device->base.name);
	} else { /* also of another card that this one reaches */
		code = cuda_map(extent, CU_MEM_ACCESS_FLAGS_PROT_READ, err);
		code = code == -WIRE_INTERNAL ? bad_import(err) : code;
	}
	extent->home = properties.location.id;
	if (code == 0 && extent->home == device->ordinal) {
		hold(extent);
	}
	if (code == 0) {
		return 0;
	}
	return undone(device, err, code, calls->cuMemRelease(extent->handle));
}

int cuda_import(struct device *base, int fd, uint64_t bytes, struct extent **ret, struct err *err)
{
	struct cuda_device *device = cuda_device_of(base);
	struct cuda_extent *extent = NULL;
	int code = make_extent(device, bytes, UINT64_MAX, &extent, err);

	if (code < 0) {
		return code;
	}
	extent->is_sealed = true;
	extent->is_imported = true;
	extent->fd = sys_fcntl_dup(fd); /* its own export */
	code = extent->fd >= 0 ? take_import(extent, extent->fd, err)
			       : err_set_sys(err, WIRE_TOO_MANY, errno, "importing memory: %s",
					     strerror(errno));
	if (code < 0) {
		free_extent(extent);
		return code;
	}
	*ret = &extent->base;
	return 0;
}
