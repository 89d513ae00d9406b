/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What lies on other devices too, over a restart. Its bytes there are gone with their workers, so
 * nothing of them is parked: its files are, their table, and how it lay. The next life knows the
 * model by that, and makes it again when the devices are there that it lay on (adoption.c,
 * EV_ADOPT_PLACED, EV_DEVICES_FOUND).
 */
#include "base/cleanup.h"
#include "base/err.h"
#include "base/os/log.h"

#include <stdlib.h>
#include <string.h>

#include "daemon/daemon.h"
#include "daemon/describe.h"
#include "daemon/load/file.h"
#include "daemon/persist.h"
#include "daemon/persist_inside.h"
#include "daemon/placed_record.h"
#include "daemon/placement.h"

bool placed_describe_park(const struct daemon *daemon, const struct job_info *job, struct park *ret,
			  uint32_t *ret_n_fds)
{
	struct file *file = store_find_file(daemon->store, job->file);
	struct core_model_view model;

	if (job->placement <= CORE_PLACEMENT_HOST || job->next.places == NULL || file == NULL ||
	    !core_model_get(daemon->core, job->model, &model)) {
		return false;
	}
	*ret = (struct park){.is_parked = true,
			     .generation = job->images_of,
			     .is_sharded = file->shards != NULL,
			     .n_files = file_n_shards(file)};
	park_set_index(ret, file->index);
	memcpy(ret->uuid, model.uuid, sizeof ret->uuid);
	*ret_n_fds = persist_fds_of(ret) + sources_count_new(daemon->persist, file);
	return true;
}

static bool make_record(const struct daemon *daemon, const struct job_info *job,
			struct placed_record *ret)
{
	struct core_model_view model;

	if (!core_model_get(daemon->core, job->model, &model) ||
	    !placement_describe(daemon, job->placement, ret)) {
		return false;
	}
	memcpy(ret->uuid, job->park.uuid, sizeof ret->uuid);
	ret->generation = job->park.generation;
	ret->placed_uid = model.job_placed_uid;
	for (uint32_t i = 0; i < ret->n_devices; i++) {
		uint32_t device = 0;

		(void)workers_find(daemon, ret->devices[i].uuid, &device); /* just named */
		ret->devices[i].is_used =
			memchr(job->next.places, (int)device, job->next.n_blocks) != NULL ? 1 : 0;
	}
	return true;
}

/* Apart: a record is large. -1: it is not to be had. */
__attribute__((noinline)) static int open_record(const struct daemon *daemon,
						 const struct job_info *job)
{
	struct placed_record record = {0};
	struct err err = {0};
	int fd = -1;

	if (make_record(daemon, job, &record) && placed_record_write(&record, &fd, &err) < 0) {
		log_warning("a model is not parked: %s", err.text);
	}
	return fd;
}

/* The table last: without it the rest is nothing. */
bool placed_store(struct daemon *daemon, const struct job_info *job)
{
	struct persist *persist = daemon->persist;
	struct notify *notify = persist->notify;
	struct file *file = store_find_file(daemon->store, job->file);
	struct park park = job->park;
	AUTO_CLOSE int record_fd = open_record(daemon, job);
	char name[NOTIFY_NAME_SIZE];
	bool is_good = record_fd >= 0;

	for (; is_good && park.index < park.n_files; park.index++) {
		is_good = source_park(persist, &park, PART_SOURCE, file_shard(file, park.index));
	}
	if (is_good && park.has_index) {
		is_good = source_park(persist, &park, PART_INDEX, file->index);
	}
	return is_good && notify_store(notify, persist_name(name, PART_PLACED, &park), record_fd) &&
	       notify_store(notify, persist_name(name, PART_TABLE, &park), job->next.table_fd);
}

void persist_unpark(struct daemon *daemon, struct park *park)
{
	struct persist *persist = daemon->persist;
	struct park last = *park;
	char name[NOTIFY_NAME_SIZE];

	*park = (struct park){0};
	if (!last.is_parked) {
		return;
	}
	persist->n_fds -= persist_fds_of(&last);
	notify_unstore(persist->notify, persist_name(name, PART_TABLE, &last));
	notify_unstore(persist->notify, persist_name(name, PART_PLACED, &last));
	source_unpark(persist, &last, PART_INDEX);
	for (; last.index < last.n_files; last.index++) {
		source_unpark(persist, &last, PART_SOURCE);
	}
	testing_point("unstored");
}

void persist_forget_placed(struct daemon *daemon, uint64_t id)
{
	struct model_info *model = store_find_model(daemon->store, id);

	if (model != NULL) {
		persist_unpark(daemon, &model->park);
		free(model->returning);
		model->returning = NULL;
	}
}

/* ---- the next life ---- */

/* All that something lay on, as bits; 0: not all are there yet. */
static uint32_t find_devices(const struct daemon *daemon, const struct placed_record *record)
{
	uint32_t devices = 1; /* the host */

	for (uint32_t i = 0; i < record->n_devices; i++) {
		uint32_t device = 0;

		if (record->devices[i].is_used == 0) {
			continue;
		}
		if (!workers_find(daemon, record->devices[i].uuid, &device)) {
			return 0;
		}
		devices |= 1U << device;
	}
	return devices;
}

/* True: the core has taken a step, over which any model may be forgotten. */
static bool come_back(struct daemon *daemon, struct model_info *model)
{
	struct core_event event = {.type = EV_DEVICES_FOUND, .devices_found = {.model = model->id}};
	struct err err = {0};
	char name[512];

	event.devices_found.devices = find_devices(daemon, model->returning);
	if (event.devices_found.devices == 0) {
		return false;
	}
	if (placement_adopt(daemon, model->returning, &event.devices_found.placement, &err) < 0) {
		log_warning("%s stays where it is: %s", describe_name(daemon, model->id, name),
			    err.text);
		return false; /* looked at again with the next device */
	}
	free(model->returning);
	model->returning = NULL;
	(void)daemon_step(daemon, &event);
	return true;
}

void persist_come_back(struct daemon *daemon)
{
	struct model_info *model = NULL;

	while (daemon->persist->is_ready &&
	       (model = store_next_model(daemon->store, model)) != NULL) {
		if (model->returning != NULL && come_back(daemon, model)) {
			model = NULL; /* from the first again: it waits no longer */
		}
	}
}
