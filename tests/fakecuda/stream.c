/* SPDX-License-Identifier: Apache-2.0 */
/* Streams, events, pinned memory and copies, done as late as is allowed. See fake.h. */
#include "tests/fakecuda/fake.h"

#include <stdlib.h>
#include <string.h>

struct work {
	struct work *next;
	CUdeviceptr to; /* a device's or the host's, which are alike here */
	CUdeviceptr from;
	size_t size;
	unsigned char value; /* where there is no 'from' */
	bool to_device;
	bool from_device;
};

struct CUstream_st {
	struct CUstream_st *next;
	struct work *first;
	struct work **last;
	uint64_t n_queued; /* works ever */
	uint64_t n_done;
};

struct CUevent_st {
	struct CUstream_st *stream;
	uint64_t n_before; /* it happens when so many works of the stream are done */
};

struct pinned {
	struct pinned *next;
	char *at;
	size_t size;
	bool is_ours;
};

static struct CUstream_st *streams;
static struct pinned *pinned_ranges;

static void do_work(struct CUstream_st *stream)
{
	struct work *work = stream->first;
	void *to = (void *)(uintptr_t)work->to;

	stream->first = work->next;
	if (stream->first == NULL) {
		stream->last = &stream->first;
	}
	stream->n_done++;
	if ((work->to_device && !fake_is_mapped(work->to, work->size, true)) ||
	    (work->from_device && !fake_is_mapped(work->from, work->size, false))) {
		fake_break(CUDA_ERROR_ILLEGAL_ADDRESS);
	} else if (work->from == 0) {
		memset(to, work->value, work->size);
	} else {
		memcpy(to, (const void *)(uintptr_t)work->from, work->size);
	}
	free(work);
}

static void run(struct CUstream_st *stream, uint64_t n_before)
{
	while (stream->first != NULL && stream->n_done < n_before) {
		do_work(stream);
	}
}

void fake_run_all(void)
{
	for (struct CUstream_st *stream = streams; stream != NULL; stream = stream->next) {
		run(stream, UINT64_MAX);
	}
}

static CUresult queue(CUstream stream, struct work work, bool is_now)
{
	struct work *queued;

	if (!fake_has_context()) {
		return CUDA_ERROR_INVALID_CONTEXT;
	}
	if (stream == NULL || work.size == 0) {
		return CUDA_ERROR_INVALID_VALUE; /* the legacy stream is not stood in for */
	}
	if ((work.to_device && !fake_is_mapped(work.to, work.size, true)) ||
	    (work.from_device && !fake_is_mapped(work.from, work.size, false))) {
		return CUDA_ERROR_INVALID_VALUE;
	}
	queued = malloc(sizeof *queued);
	if (queued == NULL) {
		abort();
	}
	*queued = work;
	queued->next = NULL;
	*stream->last = queued;
	stream->last = &queued->next;
	stream->n_queued++;
	if (is_now) {
		run(stream, UINT64_MAX);
	}
	return CUDA_SUCCESS;
}

FAKE_API CUresult CUDAAPI cuStreamCreate(CUstream *ret, unsigned flags)
{
	struct CUstream_st *stream;

	FAKE_CALL(cuStreamCreate)
	(void)flags;
	if (!fake_has_context()) {
		return CUDA_ERROR_INVALID_CONTEXT;
	}
	stream = calloc(1, sizeof *stream);
	if (stream == NULL) {
		abort();
	}
	stream->last = &stream->first;
	stream->next = streams;
	streams = stream;
	fake_n_objects++;
	*ret = stream;
	return CUDA_SUCCESS;
}

FAKE_API CUresult CUDAAPI cuStreamDestroy(CUstream stream)
{
	struct CUstream_st **link = &streams;

	FAKE_CALL(cuStreamDestroy)
	while (*link != NULL && *link != stream) {
		link = &(*link)->next;
	}
	if (*link == NULL) {
		return CUDA_ERROR_INVALID_HANDLE;
	}
	run(stream, UINT64_MAX);
	*link = stream->next;
	free(stream);
	fake_n_objects--;
	return CUDA_SUCCESS;
}

/* What went wrong in the work itself is said by the wait for it. */
static CUresult wait_for(CUstream stream, uint64_t n_before)
{
	run(stream, n_before);
	return fake_broken();
}

FAKE_API CUresult CUDAAPI cuStreamSynchronize(CUstream stream)
{
	FAKE_CALL(cuStreamSynchronize)
	return wait_for(stream, UINT64_MAX);
}

FAKE_API CUresult CUDAAPI cuCtxSynchronize(void)
{
	FAKE_CALL(cuCtxSynchronize)
	if (!fake_has_context()) {
		return CUDA_ERROR_INVALID_CONTEXT;
	}
	fake_run_all();
	return fake_broken();
}

FAKE_API CUresult CUDAAPI cuEventCreate(CUevent *ret, unsigned flags)
{
	FAKE_CALL(cuEventCreate)
	(void)flags;
	if (!fake_has_context()) {
		return CUDA_ERROR_INVALID_CONTEXT;
	}
	*ret = calloc(1, sizeof **ret);
	if (*ret == NULL) {
		abort();
	}
	fake_n_objects++;
	return CUDA_SUCCESS;
}

FAKE_API CUresult CUDAAPI cuEventDestroy(CUevent event)
{
	FAKE_CALL(cuEventDestroy)
	free(event);
	fake_n_objects--;
	return CUDA_SUCCESS;
}

FAKE_API CUresult CUDAAPI cuEventRecord(CUevent event, CUstream stream)
{
	FAKE_CALL(cuEventRecord)
	event->stream = stream;
	event->n_before = stream->n_queued;
	return CUDA_SUCCESS;
}

FAKE_API CUresult CUDAAPI cuEventSynchronize(CUevent event)
{
	FAKE_CALL(cuEventSynchronize)
	return event->stream == NULL ? CUDA_SUCCESS : wait_for(event->stream, event->n_before);
}

/* Who asks again and again gets there: each question that is denied lets one work be done. */
FAKE_API CUresult CUDAAPI cuEventQuery(CUevent event)
{
	FAKE_CALL(cuEventQuery)
	if (event->stream == NULL || event->stream->n_done >= event->n_before) {
		return CUDA_SUCCESS;
	}
	run(event->stream, event->stream->n_done + 1);
	return CUDA_ERROR_NOT_READY;
}

/* ---- the host's memory ---- */

bool fake_is_pinned(const void *at, size_t size)
{
	for (const struct pinned *range = pinned_ranges; range != NULL; range = range->next) {
		if ((uintptr_t)at >= (uintptr_t)range->at &&
		    (uintptr_t)at + size <= (uintptr_t)range->at + range->size) {
			return true;
		}
	}
	return false;
}

static CUresult pin(void *at, size_t size, bool is_ours)
{
	struct pinned *range = calloc(1, sizeof *range);

	if (range == NULL) {
		abort();
	}
	*range = (struct pinned){.next = pinned_ranges, .at = at, .size = size, .is_ours = is_ours};
	pinned_ranges = range;
	fake_n_objects++;
	return CUDA_SUCCESS;
}

/* The driver waits for everything before it lets pinned memory go. */
static CUresult unpin(const void *at, bool is_ours)
{
	struct pinned **link = &pinned_ranges;
	struct pinned *range;

	while (*link != NULL && ((*link)->at != at || (*link)->is_ours != is_ours)) {
		link = &(*link)->next;
	}
	range = *link;
	if (range == NULL) {
		return CUDA_ERROR_INVALID_VALUE;
	}
	fake_run_all();
	*link = range->next;
	if (is_ours) {
		free(range->at);
	}
	free(range);
	fake_n_objects--;
	return CUDA_SUCCESS;
}

FAKE_API CUresult CUDAAPI cuMemHostAlloc(void **ret, size_t size, unsigned flags)
{
	FAKE_CALL(cuMemHostAlloc)
	(void)flags;
	if (!fake_has_context()) {
		return CUDA_ERROR_INVALID_CONTEXT;
	}
	*ret = aligned_alloc(4096, (size + 4095) & ~(size_t)4095);
	return *ret == NULL ? CUDA_ERROR_OUT_OF_MEMORY : pin(*ret, size, true);
}

FAKE_API CUresult CUDAAPI cuMemFreeHost(void *at)
{
	FAKE_CALL(cuMemFreeHost)
	return unpin(at, true);
}

FAKE_API CUresult CUDAAPI cuMemHostRegister(void *at, size_t size, unsigned flags)
{
	FAKE_CALL(cuMemHostRegister)
	(void)flags;
	return pin(at, size, false);
}

FAKE_API CUresult CUDAAPI cuMemHostUnregister(void *at)
{
	FAKE_CALL(cuMemHostUnregister)
	return unpin(at, false);
}

/* ---- copies ---- */

/* Host memory that is not pinned is done with when the call returns. */
FAKE_API CUresult CUDAAPI cuMemcpyHtoDAsync(CUdeviceptr to, const void *from, size_t size,
					    CUstream stream)
{
	FAKE_CALL(cuMemcpyHtoDAsync)
	return queue(stream,
		     (struct work){.to = to,
				   .to_device = true,
				   .from = (uintptr_t)from,
				   .size = size},
		     !fake_is_pinned(from, size));
}

FAKE_API CUresult CUDAAPI cuMemcpyDtoHAsync(void *to, CUdeviceptr from, size_t size,
					    CUstream stream)
{
	FAKE_CALL(cuMemcpyDtoHAsync)
	return queue(stream,
		     (struct work){.to = (uintptr_t)to,
				   .from = from,
				   .from_device = true,
				   .size = size},
		     !fake_is_pinned(to, size));
}

FAKE_API CUresult CUDAAPI cuMemcpyDtoDAsync(CUdeviceptr to, CUdeviceptr from, size_t size,
					    CUstream stream)
{
	FAKE_CALL(cuMemcpyDtoDAsync)
	return queue(stream,
		     (struct work){.to = to,
				   .to_device = true,
				   .from = from,
				   .from_device = true,
				   .size = size},
		     false);
}

FAKE_API CUresult CUDAAPI cuMemsetD8Async(CUdeviceptr to, unsigned char value, size_t size,
					  CUstream stream)
{
	FAKE_CALL(cuMemsetD8Async)
	return queue(stream,
		     (struct work){.to = to, .to_device = true, .size = size, .value = value},
		     false);
}

FAKE_API CUresult CUDAAPI cuMemGetInfo(size_t *ret_free, size_t *ret_total)
{
	const struct card *card;
	uint64_t used;

	FAKE_CALL(cuMemGetInfo)
	if (!fake_has_context()) {
		return CUDA_ERROR_INVALID_CONTEXT;
	}
	card = &fake_current()->card;
	used = card_use(card, 0, NULL);
	*ret_total = card->bytes;
	*ret_free = used > card->bytes ? 0 : card->bytes - used;
	return CUDA_SUCCESS;
}
