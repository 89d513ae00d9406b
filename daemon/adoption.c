/* SPDX-License-Identifier: Apache-2.0 */
/*
 * At start: what an earlier life parked comes in as descriptors with names. Nothing of it is
 * believed: table, image and source must fit one another by number, seal, inode and hash. What
 * does not is given up with a warning, and the rest is adopted. Before the first client, so it
 * may take the time that it takes.
 */
#include "base/cleanup.h"
#include "base/err.h"
#include "base/os/log.h"
#include "base/os/memfd.h"
#include "base/os/sys.h"
#include "base/require.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>
#include <utlist.h>

#include "daemon/config.h"
#include "daemon/daemon.h"
#include "daemon/device/device.h"
#include "daemon/format/format.h"
#include "daemon/ipc/peer.h"
#include "daemon/load/file.h"
#include "daemon/load/hash.h"
#include "daemon/persist.h"
#include "daemon/persist_inside.h"
#include "proto/table.h"

#define FIRST_FD       3
#define MAX_INHERITED  65536
#define MAX_TABLE_SIZE (256ULL << 20)
#define QUIET_NS       5000000000U /* those who used it come back first */
#define SKIP_SUSPECT   2           /* starts in a row that did not get ready */
#define SKIP_ALL       3

/* ---- what was handed over ---- */

static uint64_t take_number(const char *name)
{
	const char *text = getenv(name);
	char *end = NULL;
	uint64_t number = text == NULL ? 0 : strtoull(text, &end, 10);

	return end == NULL || *end != '\0' ? 0 : number;
}

static void take_names(struct persist *persist)
{
	const char *names = getenv("LISTEN_FDNAMES");

	for (uint32_t i = 0; names != NULL && i < persist->n_inherited; i++) {
		size_t size = strcspn(names, ":");

		(void)snprintf(persist->inherited[i].name, NOTIFY_NAME_SIZE, "%.*s",
			       (int)(size < NOTIFY_NAME_SIZE ? size : NOTIFY_NAME_SIZE - 1), names);
		names = names[size] == '\0' ? NULL : names + size + 1;
	}
}

int inherited_take(struct persist *persist, struct err *err)
{
	uint64_t pid = take_number("LISTEN_PID");
	uint64_t n_fds = take_number("LISTEN_FDS");
	bool is_ours = pid == (uint64_t)getpid() && n_fds > 0;

	if (is_ours && n_fds > MAX_INHERITED) {
		log_warning("LISTEN_FDS says %llu; at most %d are taken over",
			    (unsigned long long)n_fds, MAX_INHERITED);
		n_fds = MAX_INHERITED;
	}
	persist->inherited = !is_ours ? NULL : sys_calloc(n_fds, sizeof *persist->inherited);
	if (is_ours && persist->inherited == NULL) {
		/* Whoever keeps them gives them to the next start too. */
		return err_set(err, WIRE_NO_MEMORY, "no memory to take %llu descriptors over",
			       (unsigned long long)n_fds);
	}
	persist->n_inherited = is_ours ? (uint32_t)n_fds : 0;
	for (uint32_t i = 0; i < persist->n_inherited; i++) {
		int fd = FIRST_FD + (int)i;

		persist->inherited[i].fd = fcntl(fd, F_SETFD, FD_CLOEXEC) < 0 ? -1 : fd;
	}
	take_names(persist);
	(void)unsetenv("LISTEN_PID");
	(void)unsetenv("LISTEN_FDS");
	(void)unsetenv("LISTEN_FDNAMES");
	return 0;
}

void inherited_free(struct persist *persist)
{
	for (uint32_t i = 0; i < persist->n_inherited; i++) {
		if (persist->inherited[i].fd >= 0) {
			(void)close(persist->inherited[i].fd); /* what keeps it has its own */
		}
	}
	free(persist->inherited);
	persist->inherited = NULL;
	persist->n_inherited = 0;
}

static bool is_named_again(const struct persist *persist, const char *name)
{
	for (uint32_t i = 0; i < persist->n_inherited; i++) {
		if (persist->inherited[i].is_kept &&
		    strcmp(persist->inherited[i].name, name) == 0) {
			return true;
		}
	}
	return false;
}

void inherited_give_back(struct persist *persist)
{
	for (uint32_t i = 0; i < persist->n_inherited; i++) {
		const struct inherited *inherited = &persist->inherited[i];

		if (inherited->fd >= 0 && !inherited->is_kept && inherited->name[0] != '\0' &&
		    !is_named_again(persist, inherited->name)) {
			notify_unstore(persist->notify, inherited->name);
		}
	}
	inherited_free(persist);
	persist->old_ledger = ledger_free(persist->old_ledger);
}

static bool is_listener(int fd)
{
	int is_listening = 0;
	int type = 0;
	socklen_t size = sizeof is_listening;

	return getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &is_listening, &size) == 0 &&
	       is_listening != 0 && getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &size) == 0 &&
	       type == SOCK_SEQPACKET;
}

int persist_take_listener(struct persist *persist)
{
	for (uint32_t i = 0; i < persist->n_inherited; i++) {
		struct inherited *inherited = &persist->inherited[i];
		int fd = inherited->fd;

		if (fd >= 0 && is_listener(fd)) {
			if (fcntl(fd, F_SETFL, O_RDWR | O_NONBLOCK) < 0) {
				log_warning("the inherited socket cannot be made non-blocking");
				continue;
			}
			inherited->fd = -1;
			inherited->is_kept = true;
			persist->has_listener = true;
			(void)snprintf(persist->listener, sizeof persist->listener, "%s",
				       inherited->name[0] == '\0' ? "unknown" : inherited->name);
			persist->n_fds++;
			return fd;
		}
	}
	return -1;
}

static struct inherited *find_named(struct persist *persist, const char *name)
{
	for (uint32_t i = 0; i < persist->n_inherited; i++) {
		struct inherited *inherited = &persist->inherited[i];

		if (inherited->fd >= 0 && strcmp(inherited->name, name) == 0) {
			return inherited;
		}
	}
	return NULL;
}

/* ---- the ledger ---- */

/* Of several (a life that ended between two messages), the youngest. */
static void open_old_ledger(struct persist *persist)
{
	for (uint32_t i = 0; i < persist->n_inherited; i++) {
		struct inherited *inherited = &persist->inherited[i];
		struct ledger *ledger = NULL;
		struct err err = {0};

		if (inherited->fd < 0 || strncmp(inherited->name, "ledger.", 7) != 0) {
			continue;
		}
		if (ledger_open(inherited->fd, &ledger, &err) < 0) {
			log_warning("%s is of no use: %s", inherited->name, err.text);
		} else if (persist->old_ledger == NULL ||
			   ledger_life(ledger) > ledger_life(persist->old_ledger)) {
			(void)ledger_free(persist->old_ledger);
			persist->old_ledger = ledger;
		} else {
			(void)ledger_free(ledger);
		}
	}
	persist->life = persist->old_ledger == NULL ? 1 : ledger_life(persist->old_ledger) + 1;
}

/* ---- one model ---- */

/* All that belongs to one generation. The descriptors stay the inherited ones'. */
struct found {
	struct inherited *table, *image, *source;
	struct park park;
	struct table view;
	void *memory; /* the table, mapped; owner: found */
	size_t size;
};

static int map_table(struct found *found, struct err *err)
{
	struct stat status;
	int fd = found->table->fd;
	void *memory;

	if (sys_fstat(fd, &status) < 0 || status.st_size <= 0 ||
	    (uint64_t)status.st_size > MAX_TABLE_SIZE ||
	    memfd_check_seals(fd, (uint64_t)status.st_size, NULL) < 0) {
		return err_set(err, WIRE_BAD_FILE, "its table is not a sealed memfd");
	}
	memory = sys_mmap(NULL, (size_t)status.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
	if (memory == MAP_FAILED) {
		return err_set(err, WIRE_NO_MEMORY, "its table cannot be mapped");
	}
	found->memory = memory;
	found->size = (size_t)status.st_size;
	return table_open(memory, found->size, hash_bytes, &found->view, err);
}

static int check_table(const struct found *found, struct err *err)
{
	const struct table_header *header = found->view.header;
	const struct table_shard *shard = found->view.shards;
	struct stat image;
	struct stat source;

	if (memcmp(header->model_id, found->park.uuid, sizeof found->park.uuid) != 0 ||
	    header->generation != found->park.generation) {
		return err_set(err, WIRE_BAD_FILE, "its table is of another model");
	}
	if (header->n_shards != 1 || header->sum_range != HASH_RANGE_BYTES ||
	    header->n_sums != hash_count_sums(shard->image_size)) {
		return err_set(err, WIRE_UNSUPPORTED, "its table has %u shards and %u sums",
			       header->n_shards, header->n_sums);
	}
	if (sys_fstat(found->image->fd, &image) < 0 || image.st_ino != shard->image_ino) {
		return err_set(err, WIRE_BAD_FILE, "its image is another one");
	}
	if (sys_fstat(found->source->fd, &source) < 0 || source.st_dev != shard->dev ||
	    source.st_ino != shard->ino) {
		return err_set(err, WIRE_BAD_FILE, "its source is another file");
	}
	return 0;
}

static struct core_file_key key_of(const struct table_shard *shard)
{
	return (struct core_file_key){.dev = shard->dev,
				      .ino = shard->ino,
				      .size = shard->size,
				      .mtime_ns = shard->mtime_ns,
				      .ctime_ns = shard->ctime_ns};
}

/* The copy as the core sees it. Takes 'file', and 'extent' unless it fails. */
static int give_to_core(struct daemon *daemon, const struct found *found, struct file *file,
			struct extent *extent, struct core_segment_view *ret, struct err *err)
{
	const struct table_header *header = found->view.header;
	struct core_file_key key = key_of(found->view.shards);
	const bool is_raw = header->format == FORMAT_RAW;
	struct core_event event = {.type = EV_ADOPT};
	uint64_t segment;

	event.adopt.key = &key;
	event.adopt.uuid = found->park.uuid;
	event.adopt.generation = found->park.generation;
	key.is_raw = is_raw;
	event.adopt.format = is_raw ? FORMAT_RAW
				    : FORMAT_AUTO; /* its next content may be another */
	event.adopt.owner_uid = header->owner_uid;
	event.adopt.bytes = device_charge(daemon->host, extent->bytes);
	event.adopt.file = store_add_file(daemon->store, file);
	if (event.adopt.file == 0) {
		(void)file_unref(file);
		return err_set(err, WIRE_NO_MEMORY, "no memory for its file");
	}
	segment = daemon_step(daemon, &event); /* gives the file back when it refuses */
	if (!core_segment_get(daemon->core, segment, ret)) {
		return err_set(err, WIRE_TOO_MANY, "there is one of it already, or no room");
	}
	if (store_add_extent(daemon->store, segment, extent) < 0) {
		return err_set(err, WIRE_NO_MEMORY, "no memory to keep it");
	}
	store_set_park(daemon->store, segment, &found->park);
	return 0;
}

static bool describe_generation(const struct found *found, const struct extent *extent,
				struct generation_info *ret)
{
	const struct table_header *header = found->view.header;
	struct device_pages pages;
	struct stat image;

	*ret = (struct generation_info){.table_fd = sys_fcntl_dup(found->table->fd)};
	ret->sums = sys_calloc((size_t)header->n_sums + 1, sizeof *ret->sums);
	if (ret->table_fd < 0 || ret->sums == NULL || sys_fstat(found->image->fd, &image) < 0) {
		generation_info_fini(ret);
		return false;
	}
	memcpy(ret->sums, found->view.sums, header->n_sums * sizeof *ret->sums);
	device_pages(extent, &pages);
	ret->n_sums = header->n_sums;
	ret->format = header->format;
	ret->n_tensors = header->n_tensors;
	ret->n_blocks = header->n_blocks;
	ret->page_bytes = pages.page_bytes;
	ret->huge_bytes = pages.huge_bytes;
	ret->checksum = hash_sums(ret->sums, ret->n_sums);
	ret->image_dev = image.st_dev;
	ret->image_ino = image.st_ino;
	ret->is_from_store = ret->is_parked = true;
	(void)snprintf(ret->notice, sizeof ret->notice, "%s", pages.notice);
	return true;
}

static int adopt_one(struct daemon *daemon, struct found *found, struct err *err)
{
	struct generation_info info;
	struct core_segment_view segment;
	struct model_info *model;
	struct extent *extent = NULL;
	struct file *file = NULL;
	char name[512];
	int code = map_table(found, err);

	if (code == 0) {
		code = check_table(found, err);
	}
	if (code == 0) {
		code = device_import(daemon->host, found->image->fd,
				     found->view.shards[0].image_size, &extent, err);
	}
	if (code == 0) {
		code = file_new(sys_fcntl_dup(found->source->fd), -1, &file, err);
	}
	if (code < 0 || !describe_generation(found, extent, &info)) {
		(void)device_release(extent, NULL);
		(void)file_unref(file);
		return code < 0 ? code : err_set(err, WIRE_NO_MEMORY, "no memory for it");
	}
	REQUIRE(extent != NULL && file != NULL); /* as both calls went well */
	(void)wire_str_copy(table_shard_name(&found->view, 0), name, sizeof name);
	(void)file_ref(file); /* its path is wanted still */
	code = give_to_core(daemon, found, file, extent, &segment, err);
	if (code < 0) {
		generation_info_fini(&info);
		(void)device_release(extent, NULL);
		(void)file_unref(file);
		return code;
	}
	model = store_find_model(daemon->store, segment.model);
	if (model == NULL) {
		model = store_add_model(daemon->store, segment.model, found->park.uuid,
					name[0] == '\0' ? "unnamed" : name, file_path(file));
	}
	(void)file_unref(file);
	if (model == NULL) {
		generation_info_fini(&info);
		return err_set(err, WIRE_NO_MEMORY, "no memory for its name");
	}
	generation_info_fini(&model->current);
	model->current = info;
	return 0;
}

/* "hdr.ID.GENERATION" */
static bool read_name(const char *name, struct park *ret)
{
	const char *digits = "0123456789abcdef";
	const char *text = name + 4;

	if (strncmp(name, "hdr.", 4) != 0 || strspn(text, digits) != 32 || text[32] != '.' ||
	    strspn(text + 33, digits) != strlen(text + 33) || text[33] == '\0') {
		return false;
	}
	for (size_t i = 0; i < 16; i++) {
		uint8_t high = (uint8_t)(strchr(digits, text[2 * i]) - digits);
		uint8_t low = (uint8_t)(strchr(digits, text[2 * i + 1]) - digits);

		ret->uuid[i] = (uint8_t)(high << 4 | low);
	}
	ret->generation = strtoull(text + 33, NULL, 10);
	ret->is_parked = ret->is_taken = true;
	return ret->generation != 0;
}

static bool find_parts(struct persist *persist, struct inherited *table, struct found *ret)
{
	char name[NOTIFY_NAME_SIZE];

	*ret = (struct found){.table = table};
	if (table->fd < 0 || !read_name(table->name, &ret->park)) {
		return false;
	}
	ret->image = find_named(persist, persist_name(name, "img", &ret->park));
	ret->source = find_named(persist, persist_name(name, "src", &ret->park));
	return true;
}

/* Without memory the start fails, and the next one gets it all; what is bad is given up. */
static int adopt_found(struct daemon *daemon, struct found *found, uint64_t *bytes, struct err *err)
{
	struct persist *persist = daemon->persist;
	int code = 0;

	if (found->image == NULL || found->source == NULL) {
		daemon->metrics.n_given_up++;
		log_warning("%s is given up: its %s is missing", found->table->name,
			    found->image == NULL ? "image" : "source");
		return 0;
	}
	code = adopt_one(daemon, found, err);
	if (code == 0) {
		daemon->metrics.n_adopted++;
		*bytes += found->view.shards[0].image_size;
		found->table->is_kept = found->image->is_kept = found->source->is_kept = true;
		persist->n_fds += 3;
		testing_point("adopted");
	} else if (code != -WIRE_NO_MEMORY) {
		daemon->metrics.n_given_up++;
		log_warning("%s is given up: %s", found->table->name, err->text);
		code = 0;
	}
	if (found->memory != NULL) {
		(void)munmap(found->memory, found->size); /* ours */
	}
	return code;
}

static int compare_generations(const void *a, const void *b)
{
	const struct found *one = a;
	const struct found *other = b;

	return one->park.generation < other->park.generation   ? -1
	       : one->park.generation > other->park.generation ? 1
							       : 0;
}

/* Older generations first, so that the newest is the published one. */
static int adopt_models(struct daemon *daemon, bool skip_suspect, uint64_t *ret_bytes,
			struct err *err)
{
	struct persist *persist = daemon->persist;
	AUTO_FREE struct found *all = sys_calloc((size_t)persist->n_inherited + 1, sizeof *all);
	uint8_t suspect[16] = {0};
	uint32_t n_found = 0;
	int code;

	if (all == NULL) {
		return err_set(err, WIRE_NO_MEMORY, "no memory to look at what is kept");
	}
	if (skip_suspect) {
		ledger_get_suspect(persist->old_ledger, suspect);
	}
	for (uint32_t i = 0; i < persist->n_inherited; i++) {
		n_found += find_parts(persist, &persist->inherited[i], &all[n_found]) ? 1 : 0;
	}
	if (n_found > 0) {
		qsort(all, n_found, sizeof *all, compare_generations);
	}
	for (uint32_t i = 0; i < n_found; i++) {
		if (skip_suspect && memcmp(suspect, all[i].park.uuid, sizeof suspect) == 0) {
			daemon->metrics.n_given_up++;
			log_warning("%s is given up: two starts ended while it was looked at",
				    all[i].table->name);
			continue;
		}
		if (persist->old_ledger != NULL) {
			ledger_suspect(persist->old_ledger, all[i].park.uuid);
		}
		code = adopt_found(daemon, &all[i], ret_bytes, err);
		if (code < 0) {
			return code;
		}
	}
	return 0;
}

/* ---- who used it, and what was said ---- */

static const struct model_info *find_model(const struct daemon *daemon, const uint8_t uuid[16])
{
	const struct model_info *model = NULL;

	while ((model = store_next_model(daemon->store, model)) != NULL) {
		if (memcmp(model->uuid, uuid, sizeof model->uuid) == 0) {
			return model;
		}
	}
	return NULL;
}

static void adopt_wishes(struct daemon *daemon)
{
	struct ledger_wish wish;
	uint32_t cursor = 0;

	while (ledger_next_wish(daemon->persist->old_ledger, &cursor, &wish)) {
		const struct model_info *model = find_model(daemon, wish.uuid);
		struct core_event event = {.type = EV_ADOPT_WISH};

		if (model == NULL) {
			continue;
		}
		event.adopt_wish.model = model->id;
		event.adopt_wish.uid = wish.uid;
		event.adopt_wish.pin = wish.pin == 1;
		event.adopt_wish.keep = wish.keep == 1;
		event.adopt_wish.priority = wish.priority;
		event.adopt_wish.ttl_ns = wish.ttl_ns;
		event.adopt_wish.pin_until_ns = wish.pin_until_ns;
		event.adopt_wish.keep_until_ns = wish.keep_until_ns;
		(void)daemon_step(daemon, &event);
	}
}

static void warn_of_lost_lease(const struct ledger_lease *lease)
{
	log_warning("a lease of pid %u is lost: no room for it; what it maps is not counted",
		    lease->pid);
}

/* The client that stands for a process of an earlier life; NULL: it is gone. */
static struct client *find_client(struct daemon *daemon, const struct ledger_lease *lease)
{
	struct core_event event = {.type = EV_CLIENT_OPENED,
				   .opened = {.uid = lease->uid, .is_back = true}};
	struct client *client;
	struct peer peer;

	DL_FOREACH(daemon->clients, client)
	{
		if (client->pid == lease->pid && client->start_time == lease->start_time &&
		    client->uid == lease->uid) {
			return client;
		}
	}
	if (peer_find((pid_t)lease->pid, lease->start_time, &peer, NULL) < 0) {
		return NULL;
	}
	client = client_new();
	if (client != NULL) {
		client->id = daemon_step(daemon, &event);
	}
	if (client == NULL || client->id == 0) {
		warn_of_lost_lease(lease);
		(void)client_free(client);
		peer_fini(&peer);
		return NULL;
	}
	client->uid = lease->uid;
	client->pid = lease->pid;
	client->start_time = lease->start_time;
	(void)snprintf(client->comm, sizeof client->comm, "%s", peer.comm);
	daemon_watch_process(daemon, client, steal_fd(&peer.pidfd));
	DL_PREPEND(daemon->clients, client);
	return client;
}

static void adopt_leases(struct daemon *daemon)
{
	struct ledger_lease lease;
	uint32_t cursor = 0;

	while (ledger_next_lease(daemon->persist->old_ledger, &cursor, &lease)) {
		const struct model_info *model = find_model(daemon, lease.uuid);
		struct client *client = model == NULL ? NULL : find_client(daemon, &lease);
		struct origin *origin = client == NULL ? NULL : sys_calloc(1, sizeof *origin);
		struct core_event event = {.type = EV_ADOPT_LEASE};

		if (origin == NULL) {
			if (client != NULL) {
				warn_of_lost_lease(&lease);
			}
			continue;
		}
		event.client = client->id;
		event.adopt_lease.model = model->id;
		event.adopt_lease.generation = lease.generation;
		*origin = (struct origin){.lease = daemon_step(daemon, &event),
					  .epoch = lease.epoch,
					  .known_as = lease.lease};
		if (origin->lease == 0) {
			free(origin);
			continue;
		}
		list_append(&daemon->persist->origins, &origin->link);
		persist_record_lease(daemon, origin->lease); /* by the name its client knows */
	}
}

/* They have no connection: until they come back, what they map is held for them. */
static void close_clients(struct daemon *daemon)
{
	struct client *client;
	struct client *next;

	DL_FOREACH_SAFE(daemon->clients, client, next)
	{
		struct core_event event = {.type = EV_CLIENT_CLOSED, .client = client->id};

		(void)daemon_step(daemon, &event);
	}
}

int persist_adopt(struct daemon *daemon, uint64_t *ret_bytes, struct err *err)
{
	struct persist *persist = daemon->persist;
	struct core_event event = {.type = EV_ADOPTED, .adopted = {.quiet_ns = QUIET_NS}};
	struct err ledger_err = {0};
	uint32_t n_failed = 0;
	int code;

	*ret_bytes = 0;

	open_old_ledger(persist);
	if (persist->max_fds > 0 && ledger_new(persist->life, DAEMON_MAX_LEASES, DAEMON_MAX_WISHES,
					       &persist->ledger, &ledger_err) < 0) {
		log_warning("nothing survives a restart: %s", ledger_err.text);
		persist->max_fds = 0;
	}
	if (persist->old_ledger != NULL && persist->max_fds > 0) {
		n_failed = ledger_count_start(persist->old_ledger);
	}
	if (persist->max_fds == 0 || n_failed >= SKIP_ALL) {
		if (n_failed >= SKIP_ALL) {
			log_warning("%u starts ended before they were ready: starting empty",
				    n_failed);
		}
		return 0;
	}
	code = adopt_models(daemon, n_failed >= SKIP_SUSPECT, ret_bytes, err);
	if (code < 0) {
		return code;
	}
	if (persist->old_ledger != NULL) {
		adopt_wishes(daemon);
		adopt_leases(daemon);
		close_clients(daemon);
	}
	if (*ret_bytes > 0) {
		log_notice("took over %llu bytes of models from before the restart",
			   (unsigned long long)*ret_bytes);
		(void)daemon_step(daemon, &event);
	}
	return 0;
}
