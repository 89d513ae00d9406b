/* SPDX-License-Identifier: Apache-2.0 */
/* The life of a card's context in this process, and of what is open. See cuda_device.h. */
#include "base/require.h"

#include <stdio.h>
#include <stdlib.h>

#include "daemon/device/cuda_device.h"

#define MAX_CONTEXT_BYTES (1ULL << 30) /* one of an H200 took 523 MiB */

int cuda_device_fail(const struct cuda_device *device, struct err *err, CUresult result,
		     const char *what)
{
	char text[DEVICE_NAME_SIZE + 96];

	(void)snprintf(text, sizeof text, "%s: %s", device->base.name, what);
	return cuda_fail(err, result, device->is_open, text);
}

/* Lock held. */
static int make_context(struct cuda_device *device, struct err *err)
{
	const struct cuda_calls *calls = device->calls;
	const uint64_t before = cuda_health_free_bytes(device->health, 0);
	uint64_t after;
	CUresult result;

	/* Waiting threads sleep. Where it is refused they spin, which only costs time. */
	(void)calls->cuDevicePrimaryCtxSetFlags(device->ordinal, CU_CTX_SCHED_BLOCKING_SYNC);
	result = calls->cuDevicePrimaryCtxRetain(&device->context, device->ordinal);
	if (result != CUDA_SUCCESS) {
		device->context = NULL;
		return cuda_device_fail(device, err, result, "making a context");
	}
	result = calls->cuCtxSetCurrent(device->context);
	if (result == CUDA_SUCCESS) {
		/* Not the default stream: that waits for everybody's. */
		result = calls->cuStreamCreate(&device->stream, CU_STREAM_NON_BLOCKING);
	}
	if (result != CUDA_SUCCESS) {
		device->context = NULL;
		(void)calls->cuDevicePrimaryCtxRelease(
			device->ordinal); /* the first failure counts */
		return cuda_device_fail(device, err, result, "making a stream");
	}
	/* Each time: what others take or leave in the same moment is counted with it, up to what a
	 * context may take: more would keep the card from the load that measures anew. */
	after = cuda_health_free_bytes(device->health, before);
	device->context_bytes = before > after ? before - after : 0;
	if (device->context_bytes > MAX_CONTEXT_BYTES) {
		device->context_bytes = MAX_CONTEXT_BYTES;
	}
	return 0;
}

int cuda_use(struct cuda_device *device, struct err *err)
{
	int code = 0;

	(void)pthread_mutex_lock(&device->lock);
	if (device->n_users == 0) {
		device->n_changes++;
		code = make_context(device, err);
	}
	if (code == 0) {
		device->n_users++;
	}
	(void)pthread_mutex_unlock(&device->lock);
	if (code == 0) {
		code = cuda_enter(device, err);
		if (code < 0) {
			cuda_unuse(device);
		}
	}
	return code;
}

/* A driver that refuses to take back what it gave is one whose next answer says why. */
void cuda_unuse(struct cuda_device *device)
{
	const struct cuda_calls *calls = device->calls;

	(void)pthread_mutex_lock(&device->lock);
	REQUIRE(device->n_users > 0);
	device->n_users--;
	if (device->n_users == 0) {
		device->n_changes++;
		(void)calls->cuCtxSetCurrent(device->context);
		cuda_free_staging(device);
		(void)calls->cuStreamDestroy(device->stream);
		(void)calls->cuCtxSetCurrent(NULL);
		(void)calls->cuDevicePrimaryCtxRelease(device->ordinal);
		device->stream = NULL;
		device->context = NULL;
	}
	(void)pthread_mutex_unlock(&device->lock);
}

int cuda_enter(struct cuda_device *device, struct err *err)
{
	const CUresult result = device->calls->cuCtxSetCurrent(device->context);

	return result == CUDA_SUCCESS
		       ? 0
		       : cuda_device_fail(device, err, result, "entering its context");
}

void cuda_ref(struct cuda_device *device)
{
	(void)pthread_mutex_lock(&device->lock);
	device->n_refs++;
	(void)pthread_mutex_unlock(&device->lock);
}

void cuda_unref(struct cuda_device *device)
{
	uint32_t n_refs;

	(void)pthread_mutex_lock(&device->lock);
	n_refs = --device->n_refs;
	(void)pthread_mutex_unlock(&device->lock);
	if (n_refs > 0) {
		return;
	}
	device->health = cuda_health_free(device->health);
	(void)pthread_cond_destroy(&device->given_back); /* nobody waits any more */
	(void)pthread_mutex_destroy(&device->lock);
	free(device);
}
