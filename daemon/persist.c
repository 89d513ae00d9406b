/* SPDX-License-Identifier: Apache-2.0 */
/* Parking, records, and speaking to who restarts us. Adoption is in adoption.c. */
#include "daemon/persist.h"

#include "base/cleanup.h"
#include "base/err.h"
#include "base/os/clock.h"
#include "base/os/log.h"
#include "base/os/sys.h"
#include "base/require.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "daemon/clients.h"
#include "daemon/config.h"
#include "daemon/daemon.h"
#include "daemon/describe.h"
#include "daemon/device/device.h"
#include "daemon/execute.h"
#include "daemon/ipc/peer.h"
#include "daemon/ipc/server.h"
#include "daemon/last_good.h"
#include "daemon/load/file.h"
#include "daemon/load/loader.h"
#include "daemon/persist_inside.h"

#define PARK_WAIT_MS   2000 /* then a load is published without */
#define PROBE_NS       1000000000U
#define US_PER_MS      1000U
#define WATCHDOG_PARTS 2
#define FILES_A_PARKED 4
#define SPARE_FDS      64 /* for all else */

/* ---- names ---- */

const char *persist_name(char *buffer, enum part part, const struct park *park)
{
	static const char *const prefixes[N_PARTS] =
		{[PART_TABLE] = "hdr", [PART_IMAGE] = "img", [PART_PLACED] = "plc"};
	char number[64] = "";
	char id[33];

	REQUIRE(prefixes[part] != NULL);
	if (part == PART_IMAGE) {
		(void)snprintf(number, sizeof number, ".%u", park->index);
	} else if (part == PART_TABLE && park->is_sharded && !park->is_named_as_before) {
		(void)snprintf(number, sizeof number, ".%llx.%llx",
			       (unsigned long long)park->index_dev,
			       (unsigned long long)park->index_ino);
	}
	(void)snprintf(buffer, NOTIFY_NAME_SIZE, "%s.%s.%llu%s", prefixes[part],
		       describe_id(park->uuid, id), (unsigned long long)park->generation, number);
	return buffer;
}

uint32_t persist_fds_of(const struct park *park)
{
	if (park->n_files > 0) { /* table, and how it lies */
		return 2;
	}
	/* The first copy of a generation counts what they have together: the table. */
	return (park->is_file ? 0U : 1U) + (park->index == 0 ? 1U : 0U);
}

void park_set_index(struct park *park, const struct file *index)
{
	park->has_index = index != NULL;
	park->index_dev = index == NULL ? 0 : index->key.dev;
	park->index_ino = index == NULL ? 0 : index->key.ino;
}

/* ---- parking ---- */

/* owner: persist::parkings, until the barrier has answered */
struct parking {
	struct list link;
	struct daemon *daemon;
	uint64_t job, segment, duration_ns;
	struct extent *extent; /* of a drop: owned; NULL: of a fill */
	bool is_tabled;        /* of a generation whose table was made apart */
	bool is_sent;          /* all of it */
};

static struct parking *parking_new(struct daemon *daemon, uint64_t segment)
{
	struct parking *parking = sys_calloc(1, sizeof *parking);

	if (parking != NULL) {
		parking->daemon = daemon;
		parking->segment = segment;
		list_append(&daemon->persist->parkings, &parking->link);
	}
	return parking;
}

static void note_unparked(struct daemon *daemon, uint64_t job_id, const char *why)
{
	struct job_info *job = store_find_job(daemon->store, job_id);

	if (job != NULL && job->next.notice[0] == '\0' && daemon->persist->max_fds > 0) {
		(void)snprintf(job->next.notice, sizeof job->next.notice,
			       "it does not survive a restart: %s", why);
	}
}

/* Of the generation that is being filled, one after the other; 'cursor' 0 first. */
static bool next_copy(const struct daemon *daemon, const struct core_segment_view *last,
		      uint32_t *cursor, struct core_segment_view *ret)
{
	while (core_segment_next(daemon->core, last->model, cursor, ret)) {
		if (ret->generation == last->generation) {
			return true;
		}
	}
	return false;
}

static void set_taken(const struct daemon *daemon, uint64_t segment)
{
	struct core_segment_view last;
	struct core_segment_view copy;
	uint32_t cursor = 0;

	if (!core_segment_get(daemon->core, segment, &last)) {
		return;
	}
	while (next_copy(daemon, &last, &cursor, &copy)) {
		const struct park *park = store_find_park(daemon->store, copy.id);
		struct park taken;

		if (park != NULL) {
			taken = *park;
			taken.is_taken = true;
			store_set_park(daemon->store, copy.id, &taken);
		}
	}
}

static void on_parked(void *context, bool is_taken)
{
	struct parking done = *(struct parking *)context;
	struct job_info *job = store_find_job(done.daemon->store, done.job);

	list_remove(&((struct parking *)context)->link);
	free(context);
	if (job != NULL) {
		job->next.is_parked = is_taken;
		job->park.is_taken = is_taken;
	}
	if (is_taken) {
		set_taken(done.daemon, done.segment);
	} else {
		note_unparked(done.daemon, done.job, "who restarts the daemon did not take it");
	}
	if (done.is_tabled) {
		execute_tabled(done.daemon, done.job, 0);
	} else {
		execute_filled(done.daemon, done.segment, 0, done.duration_ns);
	}
}

/* An image and its source. */
static bool store_copy(struct daemon *daemon, struct file *file, uint64_t segment,
		       const struct park *park)
{
	struct notify *notify = daemon->persist->notify;
	const struct extent *extent = store_find_extent(daemon->store, segment);
	AUTO_CLOSE int image_fd = -1;
	char name[NOTIFY_NAME_SIZE];

	return (park->is_file ||
		(extent != NULL && device_export(extent, &image_fd, NULL) == 0 &&
		 notify_store(notify, persist_name(name, PART_IMAGE, park), image_fd))) &&
	       source_park(daemon->persist, park, PART_SOURCE, file_shard(file, park->index));
}

/* What all have together, the table last: without it the rest is nothing. */
static bool store_common(const struct daemon *daemon, const struct job_info *job,
			 const struct file *file, const struct park *park)
{
	struct persist *persist = daemon->persist;
	char name[NOTIFY_NAME_SIZE];

	return (!park->has_index || source_park(persist, park, PART_INDEX, file->index)) &&
	       notify_store(persist->notify, persist_name(name, PART_TABLE, park),
			    job->next.table_fd);
}

/* All copies of the generation or none: false, and what was sent is given up with them. */
static bool store_all(struct daemon *daemon, const struct job_info *job,
		      const struct core_segment_view *last, struct park *park)
{
	struct file *file = store_find_file(daemon->store, job->file);
	struct core_segment_view copy;
	uint32_t cursor = 0;
	bool is_good = file != NULL;

	while (next_copy(daemon, last, &cursor, &copy)) {
		park->index = copy.index;
		daemon->persist->n_fds += persist_fds_of(park);
		store_set_park(daemon->store, copy.id, park);
		is_good = is_good && store_copy(daemon, file, copy.id, park);
	}
	return is_good && store_common(daemon, job, file, park);
}

/* What the copies of a job are parked as, and how many descriptors that takes. */
static bool describe_park(const struct daemon *daemon, const struct job_info *job,
			  const struct core_segment_view *last, struct park *ret,
			  uint32_t *ret_n_fds)
{
	struct file *file = store_find_file(daemon->store, job->file);
	struct core_model_view model;

	if (file == NULL || !core_model_get(daemon->core, last->model, &model)) {
		return false;
	}
	*ret = (struct park){.is_parked = true,
			     .is_file = last->backing != CORE_BACKING_IMAGE,
			     .generation = last->generation,
			     .is_sharded = file->shards != NULL};
	park_set_index(ret, file->index);
	memcpy(ret->uuid, model.uuid, sizeof ret->uuid);
	*ret_n_fds = persist_fds_of(ret) + (ret->is_file ? 0U : file_n_shards(file) - 1) +
		     sources_count_new(daemon->persist, file);
	return true;
}

/* Of a generation that lies in images, 'segment' one of them. NULL: it is not parked. */
static struct parking *park_images(struct daemon *daemon, uint64_t job_id, uint64_t segment)
{
	struct persist *persist = daemon->persist;
	const struct job_info *job = store_find_job(daemon->store, job_id);
	struct parking *parking = NULL;
	struct core_segment_view last;
	struct park park;
	uint32_t n_fds = 0;
	bool is_known = persist->max_fds > 0 && job != NULL &&
			core_segment_get(daemon->core, segment, &last) &&
			describe_park(daemon, job, &last, &park, &n_fds);

	if (is_known && persist->n_fds + n_fds > persist->max_fds) {
		note_unparked(daemon, job_id, "the store for descriptors is full");
	} else if (is_known) {
		parking = parking_new(daemon, segment);
	}
	if (parking != NULL) {
		parking->job = job_id;
		parking->is_sent = store_all(daemon, job, &last, &park);
	}
	return parking;
}

/* Of one that lies on other devices too: how it does. */
static struct parking *park_placed(struct daemon *daemon, struct job_info *job)
{
	struct persist *persist = daemon->persist;
	struct parking *parking = NULL;
	struct park park = {0};
	uint32_t n_fds = 0;
	bool is_known = persist->max_fds > 0 && placed_describe_park(daemon, job, &park, &n_fds);

	if (is_known && persist->n_fds + n_fds > persist->max_fds) {
		note_unparked(daemon, job->id, "the store for descriptors is full");
	} else if (is_known) {
		parking = parking_new(daemon, 0);
	}
	if (parking != NULL) {
		persist->n_fds += persist_fds_of(&park);
		job->park = park;
		parking->job = job->id;
		parking->is_sent = placed_store(daemon, job);
	}
	return parking;
}

static void wait_until_parked(struct daemon *daemon, struct parking *parking)
{
	if (parking->is_sent) {
		testing_point("stored");
		notify_barrier(daemon->persist->notify, PARK_WAIT_MS, on_parked, parking);
	} else {
		on_parked(parking, false);
	}
}

void persist_park(struct daemon *daemon, uint64_t job, uint64_t segment, uint64_t duration_ns)
{
	struct parking *parking = park_images(daemon, job, segment);

	if (parking == NULL) {
		execute_filled(daemon, segment, 0, duration_ns);
		return;
	}
	parking->duration_ns = duration_ns;
	wait_until_parked(daemon, parking);
}

/* One of its images, where all are new; 0: some are those of an earlier generation, parked as such. */
static uint64_t find_image(struct daemon *daemon, const struct job_info *job)
{
	struct core_segment_view copy;
	uint64_t found = 0;
	uint32_t cursor = 0;
	uint32_t n_new = 0;

	while (core_segment_next(daemon->core, job->model, &cursor, &copy)) {
		if (copy.generation == job->images_of && !copy.is_block) {
			found = copy.id;
			n_new++;
		}
	}
	if (n_new > 0 && n_new < job->n_shards) {
		note_unparked(daemon, job->id, "it has images in common with an earlier placement");
	}
	return n_new == job->n_shards ? found : 0;
}

/* A card that was named may have got no block: then all is in images, as if none had been. */
static bool lies_on_devices(const struct generation_info *next)
{
	bool is_found = false;

	for (uint32_t i = 0; next->places != NULL && i < next->n_blocks; i++) {
		is_found = is_found || next->places[i] != 0;
	}
	return is_found;
}

void persist_park_tabled(struct daemon *daemon, uint64_t job_id)
{
	struct job_info *job = store_find_job(daemon->store, job_id);
	struct parking *parking = NULL;

	if (job != NULL) {
		persist_unpark(daemon, &job->park); /* it began again */
		parking = lies_on_devices(&job->next)
				  ? park_placed(daemon, job)
				  : park_images(daemon, job_id, find_image(daemon, job));
	}
	if (parking == NULL) {
		execute_tabled(daemon, job_id, 0);
		return;
	}
	parking->is_tabled = true;
	wait_until_parked(daemon, parking);
}

static void on_unparked(void *context, bool is_taken)
{
	struct parking done = *(struct parking *)context;

	(void)is_taken; /* not taken: who kept it is gone, and with it what it kept */
	list_remove(&((struct parking *)context)->link);
	free(context);
	testing_point("unstored");
	loader_drop(done.daemon->loader, done.segment, done.extent);
}

void persist_drop(struct daemon *daemon, uint64_t segment, struct extent *extent,
		  const struct park *park)
{
	/* Without its table a generation is nothing: that goes first, with any of its copies. */
	struct persist *persist = daemon->persist;
	struct parking *parking = NULL;
	char name[NOTIFY_NAME_SIZE];

	if (extent != NULL && park->is_parked) {
		parking = parking_new(daemon, segment);
		persist->n_fds -= persist_fds_of(park);
		notify_unstore(persist->notify, persist_name(name, PART_TABLE, park));
		source_unpark(persist, park, PART_INDEX);
		if (!park->is_file) {
			notify_unstore(persist->notify, persist_name(name, PART_IMAGE, park));
		}
		source_unpark(persist, park, PART_SOURCE);
	}
	if (parking == NULL) {
		loader_drop(daemon->loader, segment, extent);
		return;
	}
	/* As long as it takes: while it is parked, its memory is not free. */
	parking->extent = extent;
	notify_barrier(persist->notify, 0, on_unparked, parking);
}

/* ---- records ---- */

static struct origin *find_origin(const struct persist *persist, uint64_t lease)
{
	LIST_FOR_EACH (link, &persist->origins) {
		struct origin *origin = container_of(link, struct origin, link);

		if (origin->lease == lease) {
			return origin;
		}
	}
	return NULL;
}

void persist_record_lease(struct daemon *daemon, uint64_t id)
{
	struct persist *persist = daemon->persist;
	struct origin *origin = find_origin(persist, id);
	uint32_t index = (uint32_t)id - 1;
	struct ledger_lease record = {.epoch = daemon->epoch, .lease = id};
	struct core_lease_view lease;
	struct core_model_view model;
	struct client *client;

	if (persist->ledger == NULL) {
		return;
	}
	if (!core_lease_get(daemon->core, id, &lease) || !lease.is_mapped ||
	    !core_model_get(daemon->core, lease.model, &model) ||
	    (client = daemon_find_client(daemon, lease.client)) == NULL) {
		ledger_set_lease(persist->ledger, index, NULL);
		if (origin != NULL) {
			list_remove(&origin->link);
			free(origin);
		}
		return;
	}
	if (client->start_time == 0) {
		client->start_time = peer_start_time((pid_t)client->pid);
	}
	if (origin != NULL) {
		record.epoch = origin->epoch;
		record.lease = origin->known_as;
	}
	memcpy(record.uuid, model.uuid, sizeof record.uuid);
	core_lease_images(daemon->core, id, &record.generation, &record.bytes);
	record.start_time = client->start_time;
	record.pid = client->pid;
	record.uid = client->uid;
	ledger_set_lease(persist->ledger, index, &record);
}

void persist_record_wish(struct daemon *daemon, uint64_t id)
{
	struct core_wish_view wish;
	struct core_model_view model;
	struct ledger_wish record = {0};

	if (daemon->persist->ledger == NULL) {
		return;
	}
	if (!core_wish_get(daemon->core, id, &wish) ||
	    !core_model_get(daemon->core, wish.model, &model)) {
		ledger_set_wish(daemon->persist->ledger, (uint32_t)id - 1, NULL);
		return;
	}
	memcpy(record.uuid, model.uuid, sizeof record.uuid);
	record.ttl_ns = wish.ttl_ns;
	record.pin_until_ns = wish.pin_until_ns;
	record.keep_until_ns = wish.keep_until_ns;
	record.uid = wish.uid;
	record.priority = wish.priority;
	record.pin = wish.pin;
	record.keep = wish.keep;
	ledger_set_wish(daemon->persist->ledger, (uint32_t)id - 1, &record);
}

uint64_t persist_find_lease(const struct daemon *daemon, uint64_t epoch, uint64_t lease)
{
	LIST_FOR_EACH (link, &daemon->persist->origins) {
		const struct origin *origin = container_of(link, struct origin, link);

		if (origin->epoch == epoch && origin->known_as == lease) {
			return origin->lease;
		}
	}
	return epoch == daemon->epoch ? lease : 0;
}

/* ---- life ---- */

static uint64_t take_number(const char *name)
{
	const char *text = getenv(name);
	uint64_t number = text == NULL ? 0 : strtoull(text, NULL, 10);

	(void)unsetenv(name); /* children are not meant */
	return number;
}

/* systemd says it from 254 on; before that its unit does, by a name that overrides nothing. */
static uint32_t take_store_size(void)
{
	const bool is_said = getenv("FDSTORE") != NULL;
	const uint64_t said = take_number("FDSTORE");
	const uint64_t usual = take_number("FDSTORE_DEFAULT");
	const uint64_t size = is_said ? said : usual;

	return size > UINT32_MAX ? UINT32_MAX : (uint32_t)size;
}

/* No more than the next life can take over: it has each one from who kept it, and up to three of
 * its own for it. */
static uint32_t limit_store(const struct persist *persist, uint32_t size)
{
	const uint32_t max_files = persist->max_files;
	const uint32_t most = max_files < SPARE_FDS ? 0 : (max_files - SPARE_FDS) / FILES_A_PARKED;

	if (size <= most) {
		return size;
	}
	log_notice("no more than %u descriptors are kept over restarts: the limit of open files is "
		   "%u",
		   most, max_files);
	return most;
}

static void on_watchdog(uv_timer_t *timer)
{
	struct persist *persist = timer->data;

	notify_say(persist->notify, "WATCHDOG=1");
}

static void start_watchdog(struct daemon *daemon)
{
	uint64_t pid = take_number("WATCHDOG_PID");
	uint64_t wait_ms = take_number("WATCHDOG_USEC") / US_PER_MS / WATCHDOG_PARTS;

	if (wait_ms > 0 && (pid == 0 || pid == (uint64_t)getpid())) {
		daemon->watchdog.data = daemon->persist;
		(void)uv_timer_init(&daemon->loop, &daemon->watchdog); /* always succeeds */
		(void)uv_timer_start(&daemon->watchdog, on_watchdog, wait_ms, wait_ms);
	}
}

int persist_new(struct daemon *daemon, struct err *err)
{
	struct persist *persist = sys_calloc(1, sizeof *persist);
	bool keeps = daemon->config->restart_keep;
	uint32_t store_size;

	if (persist == NULL) {
		return err_set(err, WIRE_NO_MEMORY, "no memory for what outlives the daemon");
	}
	list_init(&persist->parkings);
	list_init(&persist->origins);
	daemon->persist = persist;
	persist->notify = notify_new(&daemon->loop, getenv("NOTIFY_SOCKET"), err);
	if (persist->notify == NULL) {
		return -err->code;
	}
	(void)unsetenv("NOTIFY_SOCKET");
	persist->max_files = clients_max_fds();
	store_size = take_store_size();
	if (keeps && notify_is_heard(persist->notify)) {
		persist->max_fds = limit_store(persist, store_size);
	}
	start_watchdog(daemon);
	return inherited_take(persist, err);
}

struct persist *persist_free(struct persist *persist)
{
	if (persist == NULL) {
		return NULL;
	}
	(void)notify_free(persist->notify);
	LIST_FOR_EACH_SAFE (link, &persist->parkings) {
		struct parking *parking = container_of(link, struct parking, link);

		(void)device_release(parking->extent, NULL); /* the process ends: no way to act */
		free(parking);
	}
	LIST_FOR_EACH_SAFE (link, &persist->origins) {
		free(container_of(link, struct origin, link));
	}
	inherited_free(persist);
	sources_free(persist);
	(void)ledger_free(persist->ledger);
	(void)ledger_free(persist->old_ledger);
	free(persist);
	return NULL;
}

bool persist_is_safe(struct persist *persist)
{
	uint64_t now_ns = clock_mono_ns();

	if (persist->max_fds == 0) {
		return false;
	}
	/* Whoever keeps our descriptors is not heard of; a message tells if he is there. */
	if (now_ns - persist->probed_ns > PROBE_NS) {
		persist->probed_ns = now_ns;
		notify_say(persist->notify, "STATUS=serving");
	}
	if (!notify_is_heard(persist->notify)) {
		log_warning("who keeps our descriptors is gone: nothing survives a restart now");
		persist->max_fds = 0;
	}
	return persist->max_fds > 0;
}

uint32_t persist_n_fds(struct persist *persist)
{
	return persist_is_safe(persist) ? persist->n_fds : 0;
}

uint64_t persist_n_restarts(const struct persist *persist)
{
	return persist->life == 0 ? 0 : persist->life - 1;
}

bool persist_has_old_ledger(const struct persist *persist)
{
	return persist->old_ledger != NULL;
}

void persist_start_failed(struct persist *persist)
{
	if (persist != NULL && persist->is_counted && persist->old_ledger != NULL) {
		ledger_uncount_start(persist->old_ledger);
	}
}

static void on_begun(void *context, bool is_taken)
{
	struct persist *persist = context;

	persist->has_begun = true;
	if (!is_taken) {
		log_warning("who restarts the daemon did not take its ledger: nothing survives");
		persist->max_fds = 0;
	}
}

void persist_begin(struct daemon *daemon)
{
	struct persist *persist = daemon->persist;

	if (persist->max_fds == 0 || persist->ledger == NULL) {
		inherited_give_back(persist); /* nobody would count it, for ever */
		return;
	}
	last_good_keep(daemon);
	testing_point("beginning");
	ledger_complete(persist->ledger);
	persist->n_fds++;
	(void)snprintf(persist->ledger_name, sizeof persist->ledger_name, "ledger.%016llx",
		       (unsigned long long)daemon->epoch);
	(void)notify_store(persist->notify, persist->ledger_name,
			   ledger_fd(persist->ledger)); /* the barrier tells */
	inherited_give_back(persist);
	notify_barrier(persist->notify, PARK_WAIT_MS, on_begun, persist);
	while (!persist->has_begun) {
		(void)uv_run(&daemon->loop, UV_RUN_ONCE);
	}
	testing_point("begun");
}

void persist_ready(struct daemon *daemon)
{
	struct persist *persist = daemon->persist;
	int fd = server_listen_fd(daemon->server);

	if (persist->has_listener && server_made_name(daemon->server)) {
		/* The name of the old one was gone. */
		notify_unstore(persist->notify, persist->listener);
		persist->has_listener = false;
		persist->listener[0] = '\0';
		persist->n_fds--;
	}
	if (persist->max_fds > 0 && !persist->has_listener && fd >= 0) {
		persist->n_fds++;
		(void)snprintf(persist->listener, sizeof persist->listener, "sock");
		(void)notify_store(persist->notify, "sock", fd); /* without, it is bound anew */
	}
	notify_say(persist->notify, "READY=1\nSTATUS=serving");
	persist->is_ready = true;
	persist_come_back(daemon);
}

void persist_stopping(struct persist *persist)
{
	notify_say(persist->notify, "STOPPING=1");
}
