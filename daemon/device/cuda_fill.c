/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Bytes to and from a card, through pinned memory. A fill reads into a buffer and queues the copy:
 * while the card takes those bytes, the next are read into another one. A buffer is read into
 * again when its copy is done. Seal waits for all.
 *
 * Buffers are small: what was just read is still in the processor's cache when the card takes it,
 * which is what a link of 50 GB/s needs (docs/gpu-notes.md).
 */
#include "base/os/clock.h"
#include "base/os/sys.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "daemon/device/cuda_device.h"
#include "proto/gen/wire_code.h"

/* What one call fills at most, so that a cancel is looked at between two. */
#define MAX_FILL_BYTES ((uint64_t)32 << 20)
#define MAX_PARTS      (MAX_FILL_BYTES / CUDA_STAGING_BYTES)

/* One thread reads memory more slowly than a link takes it. A job has four fills under way, two of a
 * block each; on 16 processors three threads each were the fastest (docs/gpu-notes.md). */
#define MIN_THREADS           2
#define MAX_THREADS           3
#define PROCESSORS_PER_THREAD 4

/* What a bandwidth is measured by: long enough that starting a copy does not count. */
#define PROBE_BYTES ((uint64_t)64 << 20)
#define LEARN_BYTES ((uint64_t)16 << 20) /* a copy between cards, likewise */

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
			unmade = unmade == NULL ? staging : unmade;
		} else if (!staging->is_in_flight) {
			return staging;
		} else if (oldest == NULL || staging->serial < oldest->serial) {
			oldest = staging;
		}
	}
	/* One stream: if that one is not done, hardly another is. */
	if (oldest != NULL && device->calls->cuEventQuery(oldest->event) == CUDA_SUCCESS) {
		oldest->is_in_flight = false;
		return oldest;
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

		/* Of two that fail at the same time the second has no other. */
		is_other = is_other || (other != staging && !other->is_unusable &&
					(other->is_taken || other->bytes != NULL));
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

/* ---- to the card ---- */

/* A part of a fill: so many bytes as a buffer has. */
struct part {
	int code; /* of the driver's, with 'err' */
	struct err err;
	int error;      /* of a read that failed */
	ssize_t n_read; /* -1: it failed */
};

/* What the threads of one fill share. Lives on the caller's stack until all are done. */
struct filling {
	struct cuda_device *device;
	CUdeviceptr to;
	const struct device_source *source;
	uint64_t bytes;
	size_t n_parts;
	size_t n_taken; /* atomic: parts that threads have begun */
	struct part parts[MAX_PARTS];
};

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

static void fill_part(const struct filling *filling, uint64_t at, struct part *part)
{
	struct cuda_device *device = filling->device;
	const uint64_t left = filling->bytes - at;
	struct staging *staging = NULL;

	part->code = take_staging(device, &staging, &part->err);
	if (part->code < 0) {
		return;
	}
	part->n_read = sys_pread(filling->source->fd, staging->bytes,
				 left < CUDA_STAGING_BYTES ? left : CUDA_STAGING_BYTES,
				 filling->source->offset + at);
	if (part->n_read < 0) {
		part->error = errno;
	} else if (part->n_read > 0) {
		part->code = queue_copy(device, filling->to + at, staging, (uint64_t)part->n_read,
					&part->err);
	}
	give_back(device, staging);
}

/* Take parts until there are none left. */
static void *fill_parts(void *argument)
{
	struct filling *filling = argument;
	struct err err = {0};
	const int code = cuda_enter(filling->device, &err);
	size_t i;

	while ((i = __atomic_fetch_add(&filling->n_taken, 1, __ATOMIC_RELAXED)) <
	       filling->n_parts) {
		struct part *part = &filling->parts[i];

		*part = (struct part){.code = code, .err = err};
		if (code == 0) {
			fill_part(filling, i * CUDA_STAGING_BYTES, part);
		}
	}
	return NULL;
}

static size_t count_threads(size_t n_parts)
{
	const long n_processors = sysconf(_SC_NPROCESSORS_ONLN);
	long n_threads = n_processors / PROCESSORS_PER_THREAD;

	n_threads = n_threads < MIN_THREADS ? MIN_THREADS : n_threads;
	n_threads = n_threads > MAX_THREADS ? MAX_THREADS : n_threads;
	return (size_t)n_threads < n_parts ? (size_t)n_threads : n_parts;
}

static void run_threads(struct filling *filling)
{
	const size_t n_threads = count_threads(filling->n_parts);
	pthread_t threads[MAX_THREADS];
	size_t n_begun = 0;

	/* This one is the last; what no thread is to be had for, it does as well. */
	while (n_begun + 1 < n_threads &&
	       sys_pthread_create(&threads[n_begun], fill_parts, filling) == 0) {
		n_begun++;
	}
	(void)fill_parts(filling);
	for (size_t i = 0; i < n_begun; i++) {
		(void)pthread_join(threads[i], NULL); /* ours, and joined once */
	}
}

/* As pread: what came is whole up to its end, so what was read behind a gap does not count. */
static int add_up(const struct filling *filling, uint64_t *ret_bytes, struct err *err)
{
	uint64_t n_bytes = 0;

	for (size_t i = 0; i < filling->n_parts; i++) {
		const struct part *part = &filling->parts[i];

		if (part->code < 0) {
			if (err != NULL) {
				*err = part->err;
			}
			return part->code;
		}
	}
	for (size_t i = 0; i < filling->n_parts && filling->parts[i].n_read >= 0; i++) {
		n_bytes += (uint64_t)filling->parts[i].n_read;
		if (filling->parts[i].n_read < (ssize_t)CUDA_STAGING_BYTES) {
			break;
		}
	}
	if (n_bytes == 0 && filling->n_parts > 0 && filling->parts[0].n_read < 0) {
		const uint64_t offset = filling->source->offset;
		const int error = filling->parts[0].error;
		const int code = err_set_sys(err, WIRE_IO, error, "reading at byte %llu: %s",
					     (unsigned long long)offset, strerror(error));

		if (err != NULL) {
			err->offset = offset;
		}
		return code;
	}
	*ret_bytes = n_bytes;
	return 0;
}

int cuda_fill(struct extent *base, uint64_t offset, const struct device_source *source,
	      uint64_t *ret_bytes, struct err *err)
{
	struct cuda_extent *extent = cuda_extent_of(base);
	struct filling filling = {.device = extent->device,
				  .to = extent->address + offset,
				  .source = source,
				  .bytes = source->bytes < MAX_FILL_BYTES ? source->bytes
									  : MAX_FILL_BYTES};

	if (extent->is_sealed) {
		return err_set(err, WIRE_NOT_ALLOWED, "the extent is sealed");
	}
	filling.n_parts = (filling.bytes + CUDA_STAGING_BYTES - 1) / CUDA_STAGING_BYTES;
	run_threads(&filling);
	return add_up(&filling, ret_bytes, err);
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

/* Through a pinned buffer, into which a card writes as fast as its link is. */
static int read_part(struct cuda_device *device, CUdeviceptr from, uint8_t *to, uint64_t n_bytes,
		     struct err *err)
{
	const struct cuda_calls *calls = device->calls;
	struct staging *staging = NULL;
	CUresult result;
	int code = take_staging(device, &staging, err);

	if (code < 0) {
		return code;
	}
	/* In the stream: behind what was filled before. */
	result = calls->cuMemcpyDtoHAsync(staging->bytes, from, n_bytes, device->stream);
	if (result == CUDA_SUCCESS) {
		result = calls->cuEventRecord(staging->event, device->stream);
	}
	if (result == CUDA_SUCCESS) {
		result = calls->cuEventSynchronize(staging->event);
	}
	if (result != CUDA_SUCCESS) { /* the copy may be under way: neither end is free yet */
		(void)calls->cuStreamSynchronize(device->stream);
	}
	if (result == CUDA_SUCCESS) {
		memcpy(to, staging->bytes, n_bytes);
	}
	give_back(device, staging);
	return result == CUDA_SUCCESS
		       ? 0
		       : cuda_device_fail(device, err, result, "copying from the card");
}

int cuda_read(const struct extent *base, uint64_t offset, void *bytes, uint64_t n_bytes,
	      struct err *err)
{
	struct cuda_extent *extent = cuda_extent_of(base);
	uint8_t *to = bytes;
	int code = map_to_read(extent, err);

	for (uint64_t at = 0; code == 0 && at < n_bytes; at += CUDA_STAGING_BYTES) {
		const uint64_t left = n_bytes - at;

		code = read_part(extent->device, extent->address + offset + at, to + at,
				 left < CUDA_STAGING_BYTES ? left : CUDA_STAGING_BYTES, err);
	}
	return code;
}

/* ---- from card to card ---- */

/* How fast a peer is is learnt from what is copied from it, where that is enough to tell. */
static void learn_bandwidth(struct cuda_device *device, const struct cuda_extent *from, uint64_t ns)
{
	if (from->base.bytes < LEARN_BYTES || ns == 0) {
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

/* The same bytes again and again. */
static bool copy_timed(const struct cuda_device *device, const struct cuda_extent *extent,
		       const struct staging *staging, uint64_t *ret_ns)
{
	const uint64_t begun_ns = clock_mono_ns();

	for (uint64_t at = 0; at < PROBE_BYTES; at += CUDA_STAGING_BYTES) {
		if (device->calls->cuMemcpyHtoDAsync(extent->address, staging->bytes,
						     CUDA_STAGING_BYTES,
						     device->stream) != CUDA_SUCCESS) {
			return false;
		}
	}
	if (device->calls->cuStreamSynchronize(device->stream) != CUDA_SUCCESS) {
		return false;
	}
	*ret_ns = clock_mono_ns() - begun_ns;
	return *ret_ns > 0;
}

int cuda_measure(struct cuda_device *device, uint64_t *ret_bytes_per_s, struct err *err)
{
	const struct device_alloc request = {.name = "probe", .bytes = CUDA_STAGING_BYTES};
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
