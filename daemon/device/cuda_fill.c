/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Bytes to and from a card. A fill reads into pinned memory and queues the copy: while the card
 * takes those bytes, the next are read into another buffer. A buffer is read into again when
 * its copy is done. Seal waits for all.
 */
#include "base/os/clock.h"
#include "base/os/sys.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "daemon/device/cuda_device.h"
#include "proto/gen/wire_code.h"

/* One thread copies out of the page cache more slowly than a link takes: parts of a read that are
 * at least so large are read at the same time. */
#define PART_BYTES ((uint64_t)8 << 20)
#define MAX_PARTS  (CUDA_STAGING_BYTES / PART_BYTES)

/* What a bandwidth is measured by: long enough that starting a copy does not count. */
#define PROBE_BYTES ((uint64_t)16 << 20)

/* ---- staging ---- */

void cuda_free_staging(struct cuda_device *device)
{
	for (size_t i = 0; i < CUDA_N_STAGING; i++) {
		struct staging *staging = &device->staging[i];

		if (staging->bytes != NULL) {
			/* Waits for copies out of it. Refused: the end of the process frees it. */
			(void)device->calls->cuMemFreeHost(staging->bytes);
			(void)device->calls->cuEventDestroy(staging->event);
		}
		*staging = (struct staging){0};
	}
}

/* A buffer that nothing copies out of, else one that is not made yet, else the oldest copy's. */
static struct staging *choose_staging(struct cuda_device *device)
{
	struct staging *unmade = NULL;
	struct staging *oldest = NULL;

	for (size_t i = 0; i < CUDA_N_STAGING; i++) {
		struct staging *staging = &device->staging[i];

		if (staging->is_taken || staging->is_unusable) {
			continue;
		}
		if (staging->bytes == NULL) {
			unmade = staging;
		} else if (!staging->is_in_flight ||
			   device->calls->cuEventQuery(staging->event) == CUDA_SUCCESS) {
			staging->is_in_flight = false;
			return staging;
		} else if (oldest == NULL || staging->serial < oldest->serial) {
			oldest = staging;
		}
	}
	return unmade != NULL ? unmade : oldest;
}

/* What cannot be pinned is the host's, which nobody may take for a card that is full. */
static int fail_to_pin(const struct cuda_device *device, CUresult result, struct err *err)
{
	int code;

	if (result != CUDA_ERROR_OUT_OF_MEMORY) {
		return cuda_device_fail(device, err, result, "pinning memory of the host");
	}
	code = err_set(err, WIRE_BUSY,
		       "%s: the host has no %llu MiB now that can be pinned to read into",
		       device->base.name, (unsigned long long)(CUDA_STAGING_BYTES >> 20));
	if (err != NULL) {
		err->driver = (int)result;
	}
	return code;
}

static int make_staging(struct cuda_device *device, struct staging *staging, struct err *err)
{
	const struct cuda_calls *calls = device->calls;
	void *bytes = NULL;
	CUresult result = calls->cuMemHostAlloc(&bytes, CUDA_STAGING_BYTES, 0);

	if (result != CUDA_SUCCESS) {
		return fail_to_pin(device, result, err);
	}
	result = calls->cuEventCreate(&staging->event,
				      CU_EVENT_DISABLE_TIMING | CU_EVENT_BLOCKING_SYNC);
	if (result != CUDA_SUCCESS) {
		(void)calls->cuMemFreeHost(bytes); /* the first failure counts */
		return cuda_device_fail(device, err, result, "making an event");
	}
	(void)pthread_mutex_lock(&device->lock);
	staging->bytes = bytes;
	(void)pthread_mutex_unlock(&device->lock);
	return 0;
}

/* One that could not be made is done without, where another is there or being made. */
static bool do_without(struct cuda_device *device, struct staging *staging)
{
	bool is_other = false;

	(void)pthread_mutex_lock(&device->lock);
	for (size_t i = 0; i < CUDA_N_STAGING; i++) {
		const struct staging *other = &device->staging[i];

		is_other = is_other ||
			   (other != staging && (other->is_taken || other->bytes != NULL));
	}
	staging->is_unusable = is_other;
	(void)pthread_mutex_unlock(&device->lock);
	return is_other;
}

static void give_back(struct cuda_device *device, struct staging *staging)
{
	(void)pthread_mutex_lock(&device->lock);
	staging->is_taken = false;
	(void)pthread_cond_signal(&device->given_back);
	(void)pthread_mutex_unlock(&device->lock);
}

static struct staging *wait_for_staging(struct cuda_device *device)
{
	struct staging *staging;

	(void)pthread_mutex_lock(&device->lock);
	while ((staging = choose_staging(device)) == NULL) {
		(void)pthread_cond_wait(&device->given_back, &device->lock);
	}
	staging->is_taken = true;
	(void)pthread_mutex_unlock(&device->lock);
	return staging;
}

/* A buffer to read into, the caller's until give_back. */
static int take_staging(struct cuda_device *device, struct staging **ret, struct err *err)
{
	struct staging *staging = wait_for_staging(device);
	struct err own = {0};
	CUresult result;
	int code = 0;

	while (staging->bytes == NULL) {
		code = make_staging(device, staging, &own);
		if (code == 0 || code == -WIRE_DEVICE_LOST || !do_without(device, staging)) {
			break;
		}
		code = 0;
		give_back(device, staging);
		staging = wait_for_staging(device);
	}
	if (code < 0 && err != NULL) {
		*err = own;
	} else if (staging->is_in_flight) {
		result = device->calls->cuEventSynchronize(staging->event);
		if (result == CUDA_SUCCESS) {
			staging->is_in_flight = false;
		} else {
			code = cuda_device_fail(device, err, result, "waiting for a copy");
		}
	}
	if (code < 0) {
		give_back(device, staging);
		return code;
	}
	*ret = staging;
	return 0;
}

/* ---- reading ---- */

struct part {
	int fd;
	uint8_t *to;
	uint64_t n_bytes;
	uint64_t offset;
	ssize_t n_read;
	int error;
	bool has_thread;
	pthread_t thread;
};

static void *read_part(void *argument)
{
	struct part *part = argument;

	part->n_read = sys_pread(part->fd, part->to, part->n_bytes, part->offset);
	part->error = part->n_read < 0 ? errno : 0;
	return NULL;
}

/* As pread: what came is whole up to its end, so what was read behind a gap does not count. */
static ssize_t read_source(int fd, uint8_t *to, uint64_t n_bytes, uint64_t offset)
{
	struct part parts[MAX_PARTS];
	size_t n_parts = 0;
	uint64_t n_read = 0;
	bool is_whole = true;

	for (uint64_t at = 0; at < n_bytes; n_parts++) {
		const uint64_t left = n_bytes - at;
		const bool is_last = left < 2 * PART_BYTES || n_parts + 1 == MAX_PARTS;
		struct part *part = &parts[n_parts];

		*part = (struct part){.fd = fd,
				      .to = to + at,
				      .n_bytes = is_last ? left : PART_BYTES,
				      .offset = offset + at};
		at += part->n_bytes;
		/* The last is read by this thread; so is what no thread is to be had for. */
		part->has_thread = !is_last &&
				   sys_pthread_create(&part->thread, read_part, part) == 0;
		if (!part->has_thread) {
			(void)read_part(part);
		}
	}
	for (size_t i = 0; i < n_parts; i++) {
		if (parts[i].has_thread) {
			(void)pthread_join(parts[i].thread, NULL); /* ours, and joined once */
		}
		if (is_whole && parts[i].n_read > 0) {
			n_read += (uint64_t)parts[i].n_read;
		}
		is_whole = is_whole && parts[i].n_read == (ssize_t)parts[i].n_bytes;
	}
	if (n_read == 0 && n_parts > 0 && parts[0].n_read < 0) {
		errno = parts[0].error;
		return -1;
	}
	return (ssize_t)n_read;
}

/* ---- to the card ---- */

static int queue_copy(struct cuda_device *device, CUdeviceptr to, struct staging *staging,
		      uint64_t n_bytes, struct err *err)
{
	const struct cuda_calls *calls = device->calls;
	CUresult result = calls->cuMemcpyHtoDAsync(to, staging->bytes, n_bytes, device->stream);

	if (result != CUDA_SUCCESS) {
		return cuda_device_fail(device, err, result, "copying to the card");
	}
	result = calls->cuEventRecord(staging->event, device->stream);
	if (result != CUDA_SUCCESS) {
		/* Nobody could tell when the buffer is free again: wait now. */
		(void)calls->cuStreamSynchronize(device->stream);
		return cuda_device_fail(device, err, result, "following a copy");
	}
	(void)pthread_mutex_lock(&device->lock);
	staging->is_in_flight = true;
	staging->serial = ++device->n_copies;
	(void)pthread_mutex_unlock(&device->lock);
	return 0;
}

int cuda_fill(struct extent *base, uint64_t offset, const struct device_source *source,
	      uint64_t *ret_bytes, struct err *err)
{
	struct cuda_extent *extent = cuda_extent_of(base);
	struct cuda_device *device = extent->device;
	const uint64_t wanted = source->bytes < CUDA_STAGING_BYTES ? source->bytes
								   : CUDA_STAGING_BYTES;
	struct staging *staging = NULL;
	ssize_t n_read;
	int code;

	if (extent->is_sealed) {
		return err_set(err, WIRE_NOT_ALLOWED, "the extent is sealed");
	}
	code = cuda_enter(device, err);
	if (code == 0) {
		code = take_staging(device, &staging, err);
	}
	if (code != 0) {
		return code;
	}
	n_read = read_source(source->fd, staging->bytes, wanted, source->offset);
	if (n_read < 0) {
		const int error = errno;

		code = err_set_sys(err, WIRE_IO, error, "reading at byte %llu: %s",
				   (unsigned long long)source->offset, strerror(error));
		if (err != NULL) {
			err->offset = source->offset;
		}
	} else if (n_read > 0) {
		code = queue_copy(device, extent->address + offset, staging, (uint64_t)n_read, err);
	}
	give_back(device, staging);
	if (code == 0) {
		*ret_bytes = (uint64_t)n_read;
	}
	return code;
}

/* ---- from the card ---- */

/* A sealed extent is mapped for reading when somebody first reads it. */
static int map_to_read(struct cuda_extent *extent, struct err *err)
{
	struct cuda_device *device = extent->device;
	int code = cuda_enter(device, err);

	if (code < 0) {
		return code;
	}
	(void)pthread_mutex_lock(&device->lock);
	if (extent->address == 0) {
		code = cuda_map(extent, CU_MEM_ACCESS_FLAGS_PROT_READ, err);
	}
	(void)pthread_mutex_unlock(&device->lock);
	return code;
}

int cuda_read(const struct extent *base, uint64_t offset, void *bytes, uint64_t n_bytes,
	      struct err *err)
{
	struct cuda_extent *extent = cuda_extent_of(base);
	struct cuda_device *device = extent->device;
	CUresult result;
	int code = map_to_read(extent, err);

	if (code < 0 || n_bytes == 0) {
		return code;
	}
	/* In the stream: behind what was filled before. */
	result = device->calls->cuMemcpyDtoHAsync(bytes, extent->address + offset, n_bytes,
						  device->stream);
	if (result == CUDA_SUCCESS) {
		result = device->calls->cuStreamSynchronize(device->stream);
	}
	return result == CUDA_SUCCESS
		       ? 0
		       : cuda_device_fail(device, err, result, "copying from the card");
}

/* ---- from card to card ---- */

/* How fast a peer is is learnt from what is copied from it, where that is enough to tell. */
static void learn_bandwidth(struct cuda_device *device, const struct cuda_extent *from, uint64_t ns)
{
	if (from->base.bytes < PROBE_BYTES || ns == 0) {
		return;
	}
	(void)pthread_mutex_lock(&device->lock);
	for (uint32_t i = 0; i < device->info.n_peers; i++) {
		if (device->peers[i] == from->home) {
			device->info.peers[i].bytes_per_s =
				(uint64_t)((double)from->base.bytes * 1e9 / (double)ns);
		}
	}
	(void)pthread_mutex_unlock(&device->lock);
}

/* 'from' is this device's, or was imported to it. */
static int copy_here(struct cuda_extent *to, struct cuda_extent *from, struct err *err)
{
	struct cuda_device *device = to->device;
	uint64_t begun_ns;
	CUresult result;
	int code = map_to_read(from, err);

	if (code < 0) {
		return code;
	}
	begun_ns = clock_mono_ns();
	result = device->calls->cuMemcpyDtoDAsync(to->address, from->address, to->base.bytes,
						  device->stream);
	if (result == CUDA_SUCCESS) {
		result = device->calls->cuStreamSynchronize(device->stream);
	}
	if (result != CUDA_SUCCESS) {
		return cuda_device_fail(device, err, result, "copying from card to card");
	}
	learn_bandwidth(device, from, clock_mono_ns() - begun_ns);
	return 0;
}

int cuda_copy(struct extent *to_base, const struct extent *from_base, struct err *err)
{
	struct cuda_extent *to = cuda_extent_of(to_base);
	struct cuda_extent *from = cuda_extent_of(from_base);
	struct extent *imported = NULL;
	int fd = -1;
	int code;
	int released;

	if (to->is_sealed) {
		return err_set(err, WIRE_NOT_ALLOWED, "the extent is sealed");
	}
	if (from->device == to->device) {
		return copy_here(to, from, err);
	}
	code = cuda_export(from_base, &fd, err);
	if (code == 0) {
		code = cuda_import(&to->device->base, fd, from_base->bytes, &imported, err);
		(void)close(fd); /* memory: there is nothing to write back */
	}
	if (code < 0) {
		return code;
	}
	code = copy_here(to, cuda_extent_of(imported), err);
	released = cuda_release(imported, code == 0 ? err : NULL);
	return code == 0 ? released : code;
}

/* ---- how fast ---- */

static bool copy_timed(const struct cuda_device *device, const struct cuda_extent *extent,
		       const struct staging *staging, uint64_t *ret_ns)
{
	const uint64_t begun_ns = clock_mono_ns();

	if (device->calls->cuMemcpyHtoDAsync(extent->address, staging->bytes, PROBE_BYTES,
					     device->stream) != CUDA_SUCCESS ||
	    device->calls->cuStreamSynchronize(device->stream) != CUDA_SUCCESS) {
		return false;
	}
	*ret_ns = clock_mono_ns() - begun_ns;
	return *ret_ns > 0;
}

int cuda_measure(struct cuda_device *device, uint64_t *ret_bytes_per_s, struct err *err)
{
	const struct device_alloc request = {.name = "probe", .bytes = PROBE_BYTES};
	struct extent *extent = NULL;
	struct staging *staging = NULL;
	uint64_t best_ns = UINT64_MAX;
	uint64_t ns;
	int released;
	int code = cuda_alloc(&device->base, &request, &extent, err);

	if (code < 0) {
		return code == -WIRE_NO_MEMORY ? 0 : code; /* it is full: not measured */
	}
	code = take_staging(device, &staging, err);
	if (code == 0) {
		for (int i = 0; i < 3; i++) { /* the first wakes the link */
			if (copy_timed(device, cuda_extent_of(extent), staging, &ns) &&
			    ns < best_ns) {
				best_ns = ns;
			}
		}
		give_back(device, staging);
	}
	released = cuda_release(extent, code == 0 ? err : NULL);
	if (code == 0 && best_ns != UINT64_MAX) {
		*ret_bytes_per_s = (uint64_t)((double)PROBE_BYTES * 1e9 / (double)best_ns);
	}
	return code == 0 ? released : code;
}
