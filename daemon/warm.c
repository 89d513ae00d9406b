/* SPDX-License-Identifier: Apache-2.0 */
/* See warm.h. */
#include "daemon/warm.h"

#include "base/cleanup.h"
#include "base/err.h"
#include "base/list.h"
#include "base/os/clock.h"
#include "base/os/log.h"
#include "base/os/sys.h"
#include "base/units.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <utlist.h>

#include "daemon/config.h"
#include "daemon/daemon.h"
#include "daemon/device/device.h"
#include "daemon/dispatch.h"
#include "daemon/errand.h"
#include "daemon/failure.h"
#include "daemon/load/file.h"
#include "daemon/testing.h"
#include "daemon/warm_open.h"

#define TICK_MS   250
#define OPEN_MS   10000 /* then the next one gets its turn */
#define NS_PER_MS 1000000U

enum state { WARM_WAITING, WARM_OPENING, WARM_LOADING, WARM_ENDED, WARM_FAILED };

/* owner: warm::entries */
struct entry {
	uint32_t serial; /* tells it from another of the same path; the request's number too */
	char *path, *source;
	enum state state;
	bool has_key;
	struct core_file_key key; /* of the file that was opened last */
	char text[512];
};

/* owner: its errand; warm::openings knows it */
struct opening {
	struct errand errand;
	struct list link;
	char *path;
	uint64_t deadline_ns;
	bool is_late;    /* nobody waits for it any more */
	uint32_t serial; /* of the entry; 0: a probe, for this request */
	uint64_t client;
	uint32_t request;
	struct file *file;
	struct err err;
};

struct warm {
	struct entry *entries;
	uint32_t n_entries;
	uint32_t n_serials;
	uint32_t current; /* serial of the one whose turn it is; 0: none */
	uint64_t client;  /* ours, while something is loaded; 0: none */
	struct list openings;
	uv_timer_t timer;
};

static struct entry *find_serial(const struct warm *warm, uint32_t serial)
{
	for (uint32_t i = 0; i < warm->n_entries; i++) {
		if (warm->entries[i].serial == serial) {
			return &warm->entries[i];
		}
	}
	return NULL;
}

static struct entry *find_path(const struct warm *warm, const char *path)
{
	for (uint32_t i = 0; i < warm->n_entries; i++) {
		const char *listed = warm->entries[i].path; /* NULL: it was taken over */

		if (listed != NULL && strcmp(listed, path) == 0) {
			return &warm->entries[i];
		}
	}
	return NULL;
}

/* ---- opening, on a thread ---- */

static void opening_free(struct errand *errand)
{
	struct opening *opening = container_of(errand, struct opening, errand);

	(void)file_unref(opening->file);
	free(opening->path);
	free(opening);
}

static void open_it(struct errand *errand)
{
	struct opening *opening = container_of(errand, struct opening, errand);

	if (warm_open(opening->path, &opening->file, &opening->err) < 0 && opening->err.code == 0) {
		(void)err_set(&opening->err, WIRE_INTERNAL, "it cannot be opened");
	}
}

/* ---- loading ---- */

static void go_on(struct daemon *daemon);

/* Its turn is over, whatever came of it. */
static void end_turn(struct daemon *daemon, uint32_t serial)
{
	if (daemon->warm->current == serial) {
		daemon->warm->current = 0;
	}
	go_on(daemon);
}

static void fail_entry(struct entry *entry, const char *text)
{
	entry->state = WARM_FAILED;
	(void)wire_str_copy(wire_str(text), entry->text, sizeof entry->text);
}

/* Told once a try: nobody waits who would hear of it. */
static void warn_of(const struct entry *entry)
{
	log_warning("of the warm list %s is not loaded: %s", entry->path, entry->text);
}

/* The core's client that the loads are for: there while it is needed. */
static bool have_client(struct daemon *daemon)
{
	struct warm *warm = daemon->warm;
	struct core_event event = {.type = EV_CLIENT_OPENED,
				   .opened = {.uid = geteuid(), .is_admin = true}};
	struct client *client;

	if (warm->client != 0) {
		return true;
	}
	client = client_new();
	if (client == NULL) {
		return false;
	}
	client->id = daemon_step(daemon, &event);
	if (client->id == 0) {
		(void)client_free(client);
		return false;
	}
	client->uid = event.opened.uid;
	client->gid = getegid();
	client->pid = (uint32_t)getpid();
	client->is_admin = true;
	client->opened_ns = clock_boot_ns();
	(void)snprintf(client->comm, sizeof client->comm, "distorchd");
	(void)snprintf(client->label, sizeof client->label, "warm list");
	DL_PREPEND(daemon->clients, client);
	warm->client = client->id;
	return true;
}

static void leave(struct daemon *daemon)
{
	const struct core_event event = {.type = EV_CLIENT_CLOSED, .client = daemon->warm->client};

	if (daemon->warm->client == 0) {
		return;
	}
	if (!daemon->is_stepping) {
		struct core_event now = event;

		daemon->warm->client = 0;
		(void)daemon_step(daemon, &now);
	} else if (daemon_follow(daemon, &event)) {
		daemon->warm->client = 0;
	}
}

/* 0: the core knows no model of this file. */
static uint64_t model_of(const struct daemon *daemon, const struct entry *entry)
{
	return entry->has_key ? core_model_find(daemon->core, &entry->key) : 0;
}

static bool is_resident(const struct daemon *daemon, const struct entry *entry)
{
	struct core_model_view model;

	return core_model_get(daemon->core, model_of(daemon, entry), &model) &&
	       model.state == CORE_MODEL_RESIDENT;
}

/* What the others take of the RAM budget: they are not to be evicted for this one. */
static uint64_t charged_bytes(const struct daemon *daemon, const struct entry *except)
{
	const struct warm *warm = daemon->warm;
	struct core_segment_view segment;
	uint64_t bytes = 0;

	for (uint32_t i = 0; i < warm->n_entries; i++) {
		uint64_t model = model_of(daemon, &warm->entries[i]);
		uint32_t cursor = 0;

		while (&warm->entries[i] != except && model != 0 &&
		       core_segment_next(daemon->core, model, &cursor, &segment)) {
			bool is_there = segment.device == 0 && segment.state != SEGMENT_PLANNED;

			bytes += is_there ? segment.bytes : 0;
		}
	}
	return bytes;
}

static uint64_t charge_of(const struct daemon *daemon, struct file *file)
{
	uint64_t charge = 0;

	for (uint32_t i = 0; i < file_n_shards(file); i++) {
		charge += device_charge(daemon->host, file_shard(file, i)->key.size);
	}
	return charge;
}

/* Alone it always does: the core says what it thinks of it. */
static bool fits(struct daemon *daemon, struct entry *entry, uint64_t need)
{
	struct core_account_view account;
	uint64_t before = charged_bytes(daemon, entry);
	char texts[3][16];

	core_account_get(daemon->core, 0, &account);
	if (before == 0 || (before < account.budget && need <= account.budget - before)) {
		return true;
	}
	entry->state = WARM_FAILED;
	(void)snprintf(entry->text, sizeof entry->text,
		       "it needs %s, and the others of the list take %s of the budget of %s",
		       units_format_size(need, texts[0], sizeof texts[0]),
		       units_format_size(before, texts[1], sizeof texts[1]),
		       units_format_size(account.budget, texts[2], sizeof texts[2]));
	return false;
}

/* Takes the file over. False: the entry says why. */
static bool begin_load(struct daemon *daemon, struct entry *entry, struct file *file)
{
	static const struct core_policy nothing;
	struct core_event event = {.type = EV_LOAD, .request = entry->serial};
	struct core_file_key key;
	uint8_t fresh_id[16];

	char name[513];

	key = entry->key = dispatch_key_of(file);
	entry->has_key = true;
	if (!dispatch_is_alike(daemon, model_of(daemon, entry), file)) {
		(void)file_unref(file);
		fail_entry(entry, "its files cannot be told from those of another model");
		return false;
	}
	if (!is_resident(daemon, entry) && !fits(daemon, entry, charge_of(daemon, file))) {
		(void)file_unref(file);
		return false;
	}
	if (!have_client(daemon) || sys_getrandom(fresh_id, sizeof fresh_id) < 0) {
		(void)file_unref(file);
		fail_entry(entry, "there is no memory or no place for a client to load it");
		return false;
	}
	event.load.file = store_add_file(daemon->store, file);
	if (event.load.file == 0) {
		(void)file_unref(file);
		fail_entry(entry, "too many source files are open already");
		return false;
	}
	event.client = daemon->warm->client;
	event.load.key = &key;
	event.load.fresh_id = fresh_id;
	event.load.policy = &nothing;
	event.load.backing = dispatch_default_backing(daemon);
	entry->state = WARM_LOADING;
	entry->text[0] = '\0';
	dispatch_name_of(file, name);
	dispatch_step_with_file(daemon, &event, wire_str(name)); /* may be answered at once */
	return true;
}

/* A failure is large: apart from its caller, which is inside a step. */
__attribute__((noinline)) static void take_failure(const struct daemon *daemon, struct entry *entry,
						   const struct core_action *action)
{
	struct failure failure;

	failure_from_reply(&failure, daemon, action);
	fail_entry(entry, failure.message);
	if (action->job == 0) {
		warn_of(entry); /* of a job that failed there is a line already */
	}
}

void warm_answered(struct daemon *daemon, const struct core_action *action)
{
	struct warm *warm = daemon->warm;
	struct entry *entry;

	if (warm == NULL || warm->client == 0 || action->client != warm->client) {
		return;
	}
	entry = find_serial(warm, action->request);
	if (entry != NULL && action->code != 0) {
		take_failure(daemon, entry, action);
	} else if (entry != NULL) {
		entry->state = WARM_ENDED;
	}
	end_turn(daemon, action->request);
}

/* ---- turns ---- */

static void take_opened(struct daemon *daemon, struct opening *opening)
{
	struct entry *entry = find_serial(daemon->warm, opening->serial);

	if (entry == NULL || entry->state != WARM_OPENING) {
		return; /* taken off the list meanwhile */
	}
	if (opening->err.code != 0) {
		fail_entry(entry, opening->err.text);
	}
	if (opening->err.code != 0 || !begin_load(daemon, entry, steal_ptr(&opening->file))) {
		warn_of(entry);
		end_turn(daemon, opening->serial);
	}
}

static void on_opened(struct daemon *daemon, struct errand *errand)
{
	struct opening *opening = container_of(errand, struct opening, errand);

	list_remove(&opening->link);
	if (daemon->is_stopping) {
		/* It ends. */
	} else if (opening->serial != 0) {
		take_opened(daemon, opening);
	} else if (!opening->is_late) {
		dispatch_warm_opened(daemon, opening->client, opening->request, opening->path,
				     &opening->err);
	}
	opening_free(errand);
}

static bool begin_opening(struct daemon *daemon, const struct opening *like, const char *path)
{
	struct opening *opening = sys_calloc(1, sizeof *opening);

	if (opening == NULL) {
		return false;
	}
	*opening = *like;
	/* One that is dropped stays in the list, which nobody looks at then. */
	opening->errand = (struct errand){.work = open_it, .done = on_opened, .drop = opening_free};
	opening->path = sys_strdup(path);
	opening->deadline_ns = clock_mono_ns() +
			       (uint64_t)NS_PER_MS * testing_ms("DISTORCHD_TEST_OPEN_MS", OPEN_MS);
	if (opening->path == NULL || !errand_start(daemon->errands, &opening->errand)) {
		opening_free(&opening->errand);
		return false;
	}
	list_append(&daemon->warm->openings, &opening->link);
	return true;
}

static void on_tick(uv_timer_t *timer);

static void watch_openings(struct daemon *daemon)
{
	if (!list_is_empty(&daemon->warm->openings)) {
		(void)uv_timer_start(&daemon->warm->timer, on_tick, TICK_MS, 0); /* not closing */
	}
}

static void give_up_waiting(struct daemon *daemon, struct opening *opening)
{
	struct entry *entry = find_serial(daemon->warm, opening->serial);
	struct err err = {0};

	opening->is_late = true;
	(void)err_set(&err, WIRE_TIMEOUT,
		      "the daemon cannot open it yet: its disk or its server does not answer");
	if (opening->serial == 0) {
		dispatch_warm_opened(daemon, opening->client, opening->request, opening->path,
				     &err);
	} else if (entry != NULL) {
		(void)snprintf(entry->text, sizeof entry->text, "%s", err.text);
		warn_of(entry);
		end_turn(daemon, opening->serial);
	}
}

static void on_tick(uv_timer_t *timer)
{
	struct daemon *daemon = timer->data;
	uint64_t now_ns = clock_mono_ns();

	LIST_FOR_EACH_SAFE (link, &daemon->warm->openings) {
		struct opening *opening = container_of(link, struct opening, link);

		if (!opening->is_late && now_ns >= opening->deadline_ns) {
			give_up_waiting(daemon, opening);
		}
	}
	watch_openings(daemon);
}

/* The next one that waits, if it is nobody's turn. */
static void go_on(struct daemon *daemon)
{
	struct warm *warm = daemon->warm;
	bool is_busy = warm->current != 0;

	for (uint32_t i = 0; i < warm->n_entries && warm->current == 0; i++) {
		struct entry *entry = &warm->entries[i];
		const struct opening like = {.serial = entry->serial};

		if (entry->state != WARM_WAITING) {
			is_busy = is_busy || entry->state == WARM_LOADING;
			continue;
		}
		if (!begin_opening(daemon, &like, entry->path)) {
			fail_entry(entry, "there is no memory or no thread to open it");
			warn_of(entry);
		} else {
			entry->state = WARM_OPENING;
			warm->current = entry->serial;
		}
	}
	watch_openings(daemon);
	if (!is_busy && warm->current == 0) {
		leave(daemon);
	}
}

int warm_probe(struct daemon *daemon, const char *path, uint64_t client, uint32_t request)
{
	const struct opening like = {.client = client, .request = request};

	if (daemon->warm == NULL || !begin_opening(daemon, &like, path)) {
		return -WIRE_NO_MEMORY;
	}
	watch_openings(daemon);
	return 0;
}

/* ---- the list ---- */

static void entry_fini(struct entry *entry)
{
	free(entry->path);
	free(entry->source);
}

/* The old one of this path with its new source, or a new one. False: no memory. */
static bool take_entry(struct warm *warm, const struct config_item *item, struct entry *ret)
{
	struct entry *old = find_path(warm, item->value);
	char *source = sys_strdup(item->source);

	if (source == NULL) {
		return false;
	}
	if (old != NULL) {
		*ret = *old;
		ret->path = steal_ptr(&old->path);
		ret->source = source;
		return true;
	}
	*ret = (struct entry){.serial = ++warm->n_serials,
			      .path = sys_strdup(item->value),
			      .source = source};
	if (ret->path == NULL) {
		free(source);
		return false;
	}
	return true;
}

static bool has_path(const struct entry *entries, uint32_t n_entries, const char *path)
{
	const struct warm list = {.entries = (struct entry *)(uintptr_t)entries,
				  .n_entries = n_entries};

	return find_path(&list, path) != NULL;
}

void warm_take_list(struct daemon *daemon)
{
	struct warm *warm = daemon->warm;
	struct entry *entries;
	struct config_item item;
	uint32_t n_entries = 0;
	uint32_t cursor = 0;

	if (warm == NULL) {
		return;
	}
	entries = sys_calloc((size_t)daemon->config->n_warm_models + 1, sizeof *entries);
	while (entries != NULL && config_next(daemon->config, &cursor, &item)) {
		if (strcmp(item.key, "warm.model") != 0 || item.value[0] == '\0' ||
		    has_path(entries, n_entries, item.value)) {
			continue;
		}
		if (take_entry(warm, &item, &entries[n_entries])) {
			n_entries++;
		} else {
			log_error("no memory for %s of the warm list", item.value);
		}
	}
	if (entries == NULL) {
		log_error("no memory for the warm list: it stays as it was");
		return;
	}
	for (uint32_t i = 0; i < warm->n_entries; i++) {
		entry_fini(&warm->entries[i]);
	}
	free(warm->entries);
	warm->entries = entries;
	warm->n_entries = n_entries;
	if (find_serial(warm, warm->current) == NULL) {
		warm->current = 0; /* it is off the list: nobody's turn any more */
	}
	go_on(daemon);
}

void warm_retry(struct daemon *daemon, const char *path)
{
	struct warm *warm = daemon->warm;

	for (uint32_t i = 0; warm != NULL && i < warm->n_entries; i++) {
		struct entry *entry = &warm->entries[i];

		if (entry->state == WARM_FAILED &&
		    (path == NULL || strcmp(entry->path, path) == 0)) {
			entry->state = WARM_WAITING;
			entry->text[0] = '\0';
		}
	}
	if (warm != NULL) {
		go_on(daemon);
	}
}

static const char *state_word(const struct daemon *daemon, const struct entry *entry)
{
	static const char *const words[] = {
		[WARM_WAITING] = "waiting", [WARM_OPENING] = "opening", [WARM_LOADING] = "loading",
		[WARM_ENDED] = "unloaded",  [WARM_FAILED] = "failed",
	};
	bool is_over = entry->state == WARM_ENDED || entry->state == WARM_FAILED;

	return is_over && is_resident(daemon, entry) ? "loaded" : words[entry->state];
}

bool warm_next(const struct daemon *daemon, uint32_t *cursor, struct warm_view *ret)
{
	const struct warm *warm = daemon->warm;
	const struct entry *entry;

	if (warm == NULL || *cursor == warm->n_entries) {
		return false;
	}
	entry = &warm->entries[(*cursor)++];
	*ret = (struct warm_view){.path = entry->path,
				  .source = entry->source,
				  .state = state_word(daemon, entry),
				  .text = entry->text,
				  .model = model_of(daemon, entry),
				  .bytes = entry->has_key ? entry->key.size : 0};
	return true;
}

/* ---- life ---- */

void warm_start(struct daemon *daemon)
{
	struct warm *warm = sys_calloc(1, sizeof *warm);

	if (warm == NULL) {
		log_error("no memory for the warm list: nothing of it is loaded");
		return;
	}
	list_init(&warm->openings);
	warm->timer.data = daemon;
	(void)uv_timer_init(&daemon->loop, &warm->timer); /* always succeeds */
	daemon->warm = warm;
	warm_take_list(daemon);
}

struct warm *warm_free(struct warm *warm)
{
	if (warm != NULL) {
		for (uint32_t i = 0; i < warm->n_entries; i++) {
			entry_fini(&warm->entries[i]);
		}
		free(warm->entries);
		free(warm);
	}
	return NULL;
}
