/* SPDX-License-Identifier: Apache-2.0 */
/* What a device that drains refuses, in words. See failure.h. */
#include <string.h>

#include "daemon/core/core.h"
#include "daemon/daemon.h"
#include "daemon/describe.h"
#include "daemon/device/device.h"
#include "daemon/failure.h"
#include "daemon/format/format.h"

static bool is_drained(const struct daemon *daemon, uint32_t device)
{
	struct core_account_view account;

	core_account_get(daemon->core, device, &account);
	return account.is_draining;
}

bool failure_may_need(const struct job_info *job, uint32_t device)
{
	return device == 0 || job->places == NULL || job->map == NULL ||
	       memchr(job->places, (int)device, job->map->n_blocks) != NULL;
}

/* The draining ones that the load needs, as bits; all of them: nothing is taken at all. */
uint32_t failure_find_drained(const struct daemon *daemon, const struct job_info *job)
{
	uint32_t devices = 0;
	uint32_t needed = 0;

	for (uint32_t i = 0; i < daemon->n_devices; i++) {
		if (is_drained(daemon, i)) {
			devices |= 1U << i;
			needed |= job != NULL && failure_may_need(job, i) ? 1U << i : 0;
		}
	}
	return needed == 0 || devices == (1U << daemon->n_devices) - 1 ? devices : needed;
}

/* "sim:0 (Simulated device)", and of several "sim:0 and ram"; how many they are. */
static uint32_t name_devices(const struct daemon *daemon, uint32_t devices, char *buffer,
			     size_t buffer_size)
{
	const bool is_one = (devices & (devices - 1)) == 0;
	struct sentence sentence = {.text = buffer, .capacity = buffer_size};
	char label[PLAN_LABEL_SIZE];
	uint32_t count = 0;

	buffer[0] = '\0';
	for (uint32_t i = 0; i < daemon->n_devices; i++) {
		if ((devices >> i & 1) != 0) {
			sentence_add(&sentence, "%s%s", count++ == 0 ? "" : " and ",
				     is_one   ? describe_device_label(daemon, i, label)
				     : i == 0 ? "ram"
					      : daemon->devices[i].name);
		}
	}
	return count;
}

static const char *draining_text(const struct daemon *daemon, uint32_t devices, char *buffer,
				 size_t buffer_size)
{
	struct sentence sentence = {.text = buffer, .capacity = buffer_size};
	char names[CORE_MAX_DEVICES * (DEVICE_NAME_SIZE + 5)];
	uint32_t count = name_devices(daemon, devices, names, sizeof names);

	buffer[0] = '\0';
	if (count == 0 || count == daemon->n_devices) {
		sentence_add(&sentence, "distorchd is draining and takes no new loads");
	} else {
		sentence_add(&sentence, "%s %s draining and take%s no new loads", names,
			     count == 1 ? "is" : "are", count == 1 ? "s" : "");
	}
	return buffer;
}

const char *failure_draining_text(const struct daemon *daemon, const struct job_info *job,
				  char *buffer, uint32_t buffer_size)
{
	return draining_text(daemon, failure_find_drained(daemon, job), buffer, buffer_size);
}

void failure_set_draining(struct failure *failure, const struct daemon *daemon, uint32_t devices)
{
	char text[512];
	char name[DEVICE_NAME_SIZE] = "";
	bool is_one = devices != 0 && (devices & (devices - 1)) == 0 && daemon->n_devices > 1;

	for (uint32_t i = 0; is_one && i < daemon->n_devices; i++) {
		if (devices == 1U << i) {
			(void)snprintf(name, sizeof name, "%s",
				       i == 0 ? "ram" : daemon->devices[i].name);
		}
	}

	failure_set(failure, WIRE_BUSY, "%s", draining_text(daemon, devices, text, sizeof text));
	failure_set_hint(failure,
			 "what is in memory is served, and distorchctl status says what drains; an "
			 "administrator ends it: distorchctl drain --off%s%s",
			 is_one ? " --device " : "", is_one ? name : "");
}
