/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A stand-in for libnvidia-ml.so.1 over the same cards (card.h): what is used, by whomever, the
 * temperature, and Xid events: what DIR/N/xid, numbers in a row, has new behind what it had. While there is a code in
 * DIR/N/nvml, each question about that card is answered with it.
 */
#include "tests/fakecuda/card.h"

#include <nvml.h>
#include <stdlib.h>
#include <string.h>

#define XIDS_MAX 16
#define NVML_API __attribute__((visibility("default")))

static struct card cards[CARDS_MAX];
static uint32_t n_cards;
static struct seen {
	uint64_t xids[XIDS_MAX];
	uint32_t n_xids;
} seen[CARDS_MAX];

NVML_API nvmlReturn_t nvmlInit(void)
{
	n_cards = cards_read(cards);
	return n_cards > 0 && getenv("FAKECUDA_NO_NVML") == NULL ? NVML_SUCCESS
								 : NVML_ERROR_DRIVER_NOT_LOADED;
}

NVML_API const char *nvmlErrorString(nvmlReturn_t result)
{
	return result == NVML_SUCCESS ? "success" : "the stand-in says no";
}

NVML_API nvmlReturn_t nvmlDeviceGetHandleByUUID(const char *uuid, nvmlDevice_t *ret)
{
	for (uint32_t i = 0; i < n_cards; i++) {
		if (strcmp(cards[i].uuid, uuid) == 0) {
			*ret = (nvmlDevice_t)&cards[i];
			return NVML_SUCCESS;
		}
	}
	return NVML_ERROR_NOT_FOUND;
}

static nvmlReturn_t failure_of(nvmlDevice_t device)
{
	return (nvmlReturn_t)card_number_of((const struct card *)device, "nvml");
}

NVML_API nvmlReturn_t nvmlDeviceGetMemoryInfo(nvmlDevice_t device, nvmlMemory_t *ret)
{
	const struct card *card = (const struct card *)device;
	const nvmlReturn_t failure = failure_of(device);

	if (failure != NVML_SUCCESS) {
		return failure;
	}
	card_wait(card, "stop-look");
	ret->total = card->bytes;
	ret->used = card_use(card, 0, NULL);
	ret->used = ret->used > card->bytes ? card->bytes : ret->used;
	ret->free = ret->total - ret->used;
	card_wait(card, "stop-counted");
	return NVML_SUCCESS;
}

NVML_API nvmlReturn_t nvmlDeviceGetTemperature(nvmlDevice_t device, nvmlTemperatureSensors_t sensor,
					       unsigned *ret)
{
	const nvmlReturn_t failure = failure_of(device);

	(void)sensor;
	if (failure != NVML_SUCCESS) {
		return failure;
	}
	*ret = (unsigned)card_number_of((const struct card *)device, "temperature");
	return NVML_SUCCESS;
}

NVML_API nvmlReturn_t nvmlEventSetCreate(nvmlEventSet_t *ret)
{
	*ret = (nvmlEventSet_t)calloc(1, sizeof(nvmlDevice_t));
	return *ret == NULL ? NVML_ERROR_MEMORY : NVML_SUCCESS;
}

NVML_API nvmlReturn_t nvmlEventSetFree(nvmlEventSet_t set)
{
	free((void *)set);
	return NVML_SUCCESS;
}

/* One device a set. */
NVML_API nvmlReturn_t nvmlDeviceRegisterEvents(nvmlDevice_t device, unsigned long long types,
					       nvmlEventSet_t set)
{
	const struct card *card = (const struct card *)device;
	struct seen *before = &seen[card->number];

	(void)types;
	memcpy((void *)set, &device, sizeof device);
	before->n_xids = card_numbers_of(card, "xid", before->xids, XIDS_MAX);
	return NVML_SUCCESS;
}

NVML_API nvmlReturn_t nvmlEventSetWait(nvmlEventSet_t set, nvmlEventData_t *ret, unsigned wait_ms)
{
	nvmlDevice_t device;
	const struct card *card;
	nvmlReturn_t failure;
	struct seen *before;
	struct seen now;
	uint32_t n_old = 0;

	(void)wait_ms;
	memcpy(&device, (const void *)set, sizeof device);
	failure = failure_of(device);
	if (failure != NVML_SUCCESS) {
		return failure;
	}
	card = (const struct card *)device;
	before = &seen[card->number];
	now.n_xids = card_numbers_of(card, "xid", now.xids, XIDS_MAX);
	while (n_old < before->n_xids && n_old < now.n_xids &&
	       before->xids[n_old] == now.xids[n_old]) {
		n_old++;
	}
	if (n_old == now.n_xids) {
		return NVML_ERROR_TIMEOUT;
	}
	before->xids[n_old] = now.xids[n_old];
	before->n_xids = n_old + 1;
	*ret = (nvmlEventData_t){.device = device,
				 .eventType = nvmlEventTypeXidCriticalError,
				 .eventData = now.xids[n_old]};
	return NVML_SUCCESS;
}
