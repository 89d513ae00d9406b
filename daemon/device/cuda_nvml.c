/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What NVML knows of a card: who else uses it, how warm it is, what faults were reported. Found
 * by UUID, since its order is not that of CUDA. Any thread.
 */
#include "base/os/sys.h"

#include <pthread.h>
#include <stdlib.h>

#include "daemon/device/cuda_device.h"
#include "daemon/device/xid.h"
#include "proto/gen/wire_code.h"

struct cuda_health {
	const struct nvml_calls *calls;
	nvmlDevice_t card;
	bool has_events;
	nvmlEventSet_t events; /* owned, where there are */
	pthread_mutex_t lock;  /* guards the following */
	uint32_t n_xids;
	uint32_t last_xid;
};

struct cuda_health *cuda_health_new(const char *uuid)
{
	const struct nvml_calls *calls = nvml_load();
	struct cuda_health *health;
	nvmlDevice_t card;

	if (calls == NULL || calls->nvmlDeviceGetHandleByUUID(uuid, &card) != NVML_SUCCESS) {
		return NULL;
	}
	health = sys_calloc(1, sizeof *health);
	if (health == NULL) {
		return NULL;
	}
	health->calls = calls;
	health->card = card;
	(void)pthread_mutex_init(&health->lock, NULL); /* cannot fail with defaults */
	if (calls->nvmlEventSetCreate(&health->events) == NVML_SUCCESS) {
		health->has_events =
			calls->nvmlDeviceRegisterEvents(card, nvmlEventTypeXidCriticalError,
							health->events) == NVML_SUCCESS;
		if (!health->has_events) { /* some cards have none */
			(void)calls->nvmlEventSetFree(health->events);
		}
	}
	return health;
}

struct cuda_health *cuda_health_free(struct cuda_health *health)
{
	if (health == NULL) {
		return NULL;
	}
	if (health->has_events) {
		(void)health->calls->nvmlEventSetFree(health->events); /* a small leak at worst */
	}
	(void)pthread_mutex_destroy(&health->lock); /* nobody uses it any more */
	free(health);
	return NULL;
}

/* Faults that were reported since the last look: how many, and the gravest. Lock held. What ended
 * it is returned: that there are no more, or a failure. */
static nvmlReturn_t look_at_events(struct cuda_health *health)
{
	const uint32_t n_before = health->n_xids;
	nvmlEventData_t event;
	uint32_t xid;

	for (int i = 0; i < 64; i++) { /* a card that falls apart must not keep us here */
		const nvmlReturn_t result =
			health->calls->nvmlEventSetWait(health->events, &event, 0);

		if (result != NVML_SUCCESS) {
			return result;
		}
		if (event.eventType != nvmlEventTypeXidCriticalError) {
			continue;
		}
		xid = (uint32_t)event.eventData;
		if (health->n_xids == n_before ||
		    xid_class_of(xid) >= xid_class_of(health->last_xid)) {
			health->last_xid = xid;
		}
		health->n_xids++;
	}
	return NVML_SUCCESS;
}

uint64_t cuda_health_free_bytes(struct cuda_health *health, uint64_t unknown)
{
	nvmlMemory_t memory;

	return health != NULL && health->calls->nvmlDeviceGetMemoryInfo(health->card, &memory) ==
					 NVML_SUCCESS
		       ? memory.free
		       : unknown;
}

int cuda_health_look(struct cuda_health *health, struct device_info *info, uint64_t *ret_free,
		     struct err *err)
{
	enum { MEMORY, TEMPERATURE, EVENTS, N_ANSWERS };
	nvmlReturn_t answers[N_ANSWERS] = {NVML_SUCCESS};
	nvmlMemory_t memory = {0};
	unsigned temperature = 0;

	if (health == NULL) {
		return 0;
	}
	answers[MEMORY] = health->calls->nvmlDeviceGetMemoryInfo(health->card, &memory);
	answers[TEMPERATURE] = health->calls->nvmlDeviceGetTemperature(health->card,
								       NVML_TEMPERATURE_GPU,
								       &temperature);
	(void)pthread_mutex_lock(&health->lock);
	if (health->has_events) {
		answers[EVENTS] = look_at_events(health);
	}
	info->n_xids = health->n_xids;
	info->last_xid = health->last_xid;
	(void)pthread_mutex_unlock(&health->lock);
	for (int i = 0; i < N_ANSWERS; i++) {
		if (answers[i] == NVML_ERROR_GPU_IS_LOST ||
		    answers[i] == NVML_ERROR_RESET_REQUIRED) {
			return err_set(err, WIRE_DEVICE_LOST, "NVML says of %s: %s (%d)",
				       info->uuid, health->calls->nvmlErrorString(answers[i]),
				       (int)answers[i]);
		}
	}
	if (answers[MEMORY] == NVML_SUCCESS) {
		*ret_free = memory.free;
	}
	if (answers[TEMPERATURE] == NVML_SUCCESS) {
		info->temperature = temperature;
	}
	return 0;
}
