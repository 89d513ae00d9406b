/* SPDX-License-Identifier: Apache-2.0 */
/* See metrics.h. A family is its type, unit and help, then its samples, as the format wants. */
#include "daemon/metrics.h"

#include "base/os/clock.h"

#include <dirent.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include "daemon/daemon.h"
#include "daemon/describe.h"
#include "daemon/ipc/server.h"
#include "daemon/load/memory.h"
#include "daemon/persist.h"
#include "daemon/saved.h"

#define MS_PER_S  1000U
#define NS_PER_MS 1000000U
#define NS_PER_S  1000000000U
#define NO_TIER   CORE_MAX_DEVICES /* where models are that have bytes nowhere */

struct page {
	char *text;
	size_t size, used; /* used: needed so far; size or more: it does not fit */
};

static void write_line(struct page *page, const char *format, ...)
	__attribute__((format(printf, 2, 3)));

static void write_line(struct page *page, const char *format, ...)
{
	bool has_room = page->used < page->size;
	va_list arguments;
	int n;

	va_start(arguments, format);
	n = vsnprintf(has_room ? page->text + page->used : NULL,
		      has_room ? page->size - page->used : 0, format, arguments);
	va_end(arguments);
	page->used += n > 0 ? (size_t)n : 0;
}

/* 'unit' may be empty. Counters' samples have _total behind the family's name. */
static void begin_family(struct page *page, const char *name, const char *type, const char *unit,
			 const char *help)
{
	write_line(page, "# TYPE %s %s\n", name, type);
	if (unit[0] != '\0') {
		write_line(page, "# UNIT %s %s\n", name, unit);
	}
	write_line(page, "# HELP %s %s\n", name, help);
}

static void write_gauge(struct page *page, const char *name, const char *unit, const char *help,
			uint64_t value)
{
	begin_family(page, name, "gauge", unit, help);
	write_line(page, "%s %llu\n", name, (unsigned long long)value);
}

static void write_counter(struct page *page, const char *name, const char *unit, const char *help,
			  uint64_t value)
{
	begin_family(page, name, "counter", unit, help);
	write_line(page, "%s_total %llu\n", name, (unsigned long long)value);
}

/* One sample of several: 'label' is one of our own words. */
static void write_counted(struct page *page, const char *name, const char *label, const char *value,
			  uint64_t number)
{
	write_line(page, "%s_total{%s=\"%s\"} %llu\n", name, label, value,
		   (unsigned long long)number);
}

/* ---- times ---- */

struct bound {
	uint64_t ns;
	const char *seconds;
};

static const struct bound load_bounds[METRICS_BUCKETS] = {
	{100000000U, "0.1"},      {300000000U, "0.3"},      {1000000000U, "1.0"},
	{3000000000U, "3.0"},     {10000000000U, "10.0"},   {30000000000U, "30.0"},
	{100000000000U, "100.0"}, {300000000000U, "300.0"},
};
static const struct bound turn_bounds[METRICS_BUCKETS] = {
	{300000U, "0.0003"}, {1000000U, "0.001"}, {3000000U, "0.003"}, {10000000U, "0.01"},
	{30000000U, "0.03"}, {100000000U, "0.1"}, {300000000U, "0.3"}, {1000000000U, "1.0"},
};

static void count_time(struct metrics_times *times, const struct bound *bounds, uint64_t ns)
{
	uint32_t bucket = 0;

	while (bucket < METRICS_BUCKETS && ns > bounds[bucket].ns) {
		bucket++;
	}
	times->n[bucket]++;
	times->sum_ns += ns;
}

void metrics_count_load(struct metrics *metrics, uint64_t duration_ns)
{
	count_time(&metrics->loads, load_bounds, duration_ns);
}

/* Behind each wait of the loop: what it did since the last one is how long others waited for it. */
static void on_turn(uv_check_t *check)
{
	struct metrics *metrics = check->data;
	uint64_t now_ns = uv_hrtime();
	uint64_t waited_ns = uv_metrics_idle_time(check->loop);
	uint64_t spent_ns = now_ns - metrics->turned_ns;
	uint64_t idle_ns = waited_ns - metrics->waited_ns;

	if (metrics->turned_ns != 0) { /* the start is no turn */
		count_time(&metrics->turns, turn_bounds,
			   spent_ns > idle_ns ? spent_ns - idle_ns : 0);
	}
	metrics->turned_ns = now_ns;
	metrics->waited_ns = waited_ns;
}

void metrics_watch_loop(struct metrics *metrics, uv_loop_t *loop)
{
	/* Neither can fail on a loop that does not run yet. */
	(void)uv_loop_configure(loop, UV_METRICS_IDLE_TIME);
	(void)uv_check_init(loop, &metrics->turn);
	metrics->turn.data = metrics;
	(void)uv_check_start(&metrics->turn, on_turn);
	uv_unref((uv_handle_t *)&metrics->turn);
}

static void write_times(struct page *page, const char *name, const char *help,
			const struct metrics_times *times, const struct bound *bounds)
{
	uint64_t n_times = 0;

	begin_family(page, name, "histogram", "seconds", help);
	for (uint32_t i = 0; i <= METRICS_BUCKETS; i++) {
		n_times += times->n[i];
		write_line(page, "%s_bucket{le=\"%s\"} %llu\n", name,
			   i < METRICS_BUCKETS ? bounds[i].seconds : "+Inf",
			   (unsigned long long)n_times);
	}
	write_line(page, "%s_sum %llu.%09llu\n", name,
		   (unsigned long long)(times->sum_ns / NS_PER_S),
		   (unsigned long long)(times->sum_ns % NS_PER_S));
	write_line(page, "%s_count %llu\n", name, (unsigned long long)n_times);
}

/* ---- the daemon ---- */

static void write_daemon(struct page *page, const struct daemon *daemon)
{
	uint64_t started_ms = daemon->metrics.started_real_ns / NS_PER_MS;

	/* A gauge: readers of the older text format know no type "info", and node_exporter is one. */
	begin_family(page, "distorchd_build_info", "gauge", "",
		     "Always 1; the labels are the versions of the daemon and its protocol.");
	write_line(page, "distorchd_build_info{version=\"%s\",protocol=\"%d\"} 1\n",
		   DISTORCH_VERSION, WIRE_PROTOCOL_VERSION);
	begin_family(page, "distorchd_start_time_seconds", "gauge", "seconds",
		     "When the daemon was started, since 1970.");
	write_line(page, "distorchd_start_time_seconds %llu.%03llu\n",
		   (unsigned long long)(started_ms / MS_PER_S),
		   (unsigned long long)(started_ms % MS_PER_S));
	write_counter(page, "distorchd_restarts", "",
		      "Lives before this one that left their models to it.",
		      persist_n_restarts(daemon->persist));
	begin_family(page, "distorchd_faults", "gauge", "",
		     "What the daemon goes on without: 1 for a configuration that is broken, and "
		     "for a state that cannot be saved.");
	write_line(page, "distorchd_faults{what=\"config\"} %d\n",
		   daemon->config_fault.code != 0 ? 1 : 0);
	write_line(page, "distorchd_faults{what=\"state\"} %d\n",
		   saved_fault(daemon) != NULL ? 1 : 0);
	write_gauge(page, "distorchd_store_fds", "",
		    "Descriptors parked with whoever restarts the daemon.",
		    persist_n_fds(daemon->persist));
	begin_family(page, "distorchd_adopted", "counter", "",
		     "Models of an earlier life at the start, by what became of them.");
	write_counted(page, "distorchd_adopted", "result", "done", daemon->metrics.n_adopted);
	write_counted(page, "distorchd_adopted", "result", "given_up", daemon->metrics.n_given_up);
	write_times(page, "distorchd_loop_lag_seconds",
		    "How long the event loop was at work in one turn, while others waited for it.",
		    &daemon->metrics.turns, turn_bounds);
}

/* ---- models and memory ---- */

struct tier {
	uint64_t n_models[CORE_MODEL_N_STATES];
	uint64_t pinned_bytes;
};

struct census {
	struct tier tiers[CORE_MAX_DEVICES + 1];
	uint64_t n_leases, n_loads;
};

static void count_model(const struct daemon *daemon, const struct core_model_view *model,
			struct census *census)
{
	struct core_segment_view segment;
	bool is_on[CORE_MAX_DEVICES + 1] = {false};
	uint32_t cursor = 0;

	is_on[NO_TIER] = true;
	while (core_segment_next(daemon->core, model->id, &cursor, &segment)) {
		if (segment.state == SEGMENT_PLANNED) {
			continue; /* nothing is there yet */
		}
		if (!segment.is_bare) { /* else a file's header and none of its tensors */
			is_on[segment.device] = true;
			is_on[NO_TIER] = false;
		}
		if (model->is_pinned && segment.state == SEGMENT_READY) {
			census->tiers[segment.device].pinned_bytes += segment.bytes;
		}
	}
	for (uint32_t tier = 0; tier <= NO_TIER; tier++) {
		census->tiers[tier].n_models[model->state] += is_on[tier] ? 1 : 0;
	}
	census->n_leases += model->n_leases;
	census->n_loads += model->job != 0 ? 1 : 0;
}

static const char *tier_name(const struct daemon *daemon, uint32_t tier, char buffer[16])
{
	return tier == NO_TIER ? "none"
	       : tier == 0     ? "ram"
			       : describe_device_name(daemon, tier, buffer);
}

/* Of those with a worker; of the host there would be nothing to tell. */
static void write_devices(struct page *page, const struct daemon *daemon)
{
	char name[16];

	if (daemon->n_devices == 1) {
		return;
	}
	begin_family(page, "distorchd_device_up", "gauge", "", "1 while the device can be used.");
	for (uint32_t i = 1; i < daemon->n_devices; i++) {
		write_line(page, "distorchd_device_up{tier=\"%s\"} %d\n",
			   tier_name(daemon, i, name),
			   daemon->devices[i].state == DEVICE_STATE_OK ? 1 : 0);
	}
	begin_family(page, "distorchd_device_losses", "counter", "",
		     "How often the device was lost, and what it held with it.");
	for (uint32_t i = 1; i < daemon->n_devices; i++) {
		write_line(page, "distorchd_device_losses_total{tier=\"%s\"} %llu\n",
			   tier_name(daemon, i, name),
			   (unsigned long long)daemon->devices[i].n_lost);
	}
	begin_family(page, "distorchd_foreign_bytes", "gauge", "bytes",
		     "Memory of the device that others than the daemon have taken.");
	for (uint32_t i = 1; i < daemon->n_devices; i++) {
		write_line(page, "distorchd_foreign_bytes{tier=\"%s\"} %llu\n",
			   tier_name(daemon, i, name),
			   (unsigned long long)daemon->devices[i].info.foreign_bytes);
	}
}

static void write_models(struct page *page, const struct daemon *daemon,
			 const struct census *census)
{
	static const char *const states[] = {
		[CORE_MODEL_REGISTERED] = "registered",   [CORE_MODEL_LOADING] = "loading",
		[CORE_MODEL_RESIDENT] = "resident",       [CORE_MODEL_PARTIAL] = "partial",
		[CORE_MODEL_DRAINING] = "draining",       [CORE_MODEL_FAILED] = "failed",
		[CORE_MODEL_QUARANTINED] = "quarantined",
	};
	char name[16];

	begin_family(page, "distorchd_models", "gauge", "",
		     "Models by where they have tensors (none: nowhere) and by state.");
	for (uint32_t tier = 0; tier <= NO_TIER; tier++) {
		for (int state = 0;
		     state < CORE_MODEL_N_STATES && (tier < daemon->n_devices || tier == NO_TIER);
		     state++) {
			write_line(page, "distorchd_models{tier=\"%s\",state=\"%s\"} %llu\n",
				   tier_name(daemon, tier, name), states[state],
				   (unsigned long long)census->tiers[tier].n_models[state]);
		}
	}
	write_gauge(page, "distorchd_leases", "", "How many times models are in use.",
		    census->n_leases);
}

enum tier_bytes { BYTES_MODEL, BYTES_PINNED, BYTES_HELD, BYTES_FREE, BYTES_BUDGET, BYTES_N };

static void write_memory(struct page *page, const struct daemon *daemon,
			 const struct census *census)
{
	static const struct {
		const char *name, *help;
	} families[BYTES_N] = {
		[BYTES_MODEL] = {"distorchd_model_bytes", "Bytes of models that are resident."},
		[BYTES_PINNED] = {"distorchd_pinned_bytes",
				  "Bytes of resident models that are pinned."},
		[BYTES_HELD] = {"distorchd_held_bytes",
				"Bytes that were dropped but are still mapped by a client."},
		[BYTES_FREE] = {"distorchd_free_bytes",
				"Bytes of the budget that nothing is charged to."},
		[BYTES_BUDGET] = {"distorchd_budget_bytes", "Bytes that may be used."},
	};
	uint64_t bytes[CORE_MAX_DEVICES][BYTES_N];
	struct core_account_view account;
	char name[16];

	for (uint32_t device = 0; device < daemon->n_devices; device++) {
		core_account_get(daemon->core, device, &account);
		bytes[device][BYTES_MODEL] = account.resident;
		bytes[device][BYTES_PINNED] = census->tiers[device].pinned_bytes;
		bytes[device][BYTES_HELD] = account.held;
		bytes[device][BYTES_FREE] = account.free;
		bytes[device][BYTES_BUDGET] = account.budget;
	}
	begin_family(page, "distorchd_draining", "gauge", "",
		     "1 while new loads that need the tier are refused.");
	for (uint32_t device = 0; device < daemon->n_devices; device++) {
		core_account_get(daemon->core, device, &account);
		write_line(page, "distorchd_draining{tier=\"%s\"} %d\n",
			   tier_name(daemon, device, name), account.is_draining ? 1 : 0);
	}
	write_devices(page, daemon);
	for (int kind = 0; kind < BYTES_N; kind++) {
		begin_family(page, families[kind].name, "gauge", "bytes", families[kind].help);
		for (uint32_t device = 0; device < daemon->n_devices; device++) {
			write_line(page, "%s{tier=\"%s\"} %llu\n", families[kind].name,
				   tier_name(daemon, device, name),
				   (unsigned long long)bytes[device][kind]);
		}
	}
}

/* ---- loads and evictions ---- */

static uint64_t count_notes(const struct daemon *daemon, enum core_note_type type)
{
	uint64_t n_notes = 0;

	for (int why = 0; why < CORE_WHY_N_VALUES; why++) {
		n_notes += daemon->metrics.n_notes[type][why];
	}
	return n_notes;
}

static void write_loads(struct page *page, const struct daemon *daemon, const struct census *census)
{
	static const struct {
		enum core_note_type type;
		const char *word;
	} ends[] = {
		{CORE_NOTE_LOAD_DONE, "done"},
		{CORE_NOTE_LOAD_FAILED, "failed"},
		{CORE_NOTE_LOAD_CANCELLED, "cancelled"},
		{CORE_NOTE_REFUSED, "refused"},
	};
	static const char line[] = "distorchd_loads_total{result=\"%s\",source=\"%s\"} %llu\n";
	struct core_counters counters;

	core_counters_get(daemon->core, &counters);
	begin_family(
		page, "distorchd_loads", "counter", "",
		"Loads by how they ended (refused: no memory, also of a move) and where the bytes "
		"were.");
	for (size_t i = 0; i < sizeof ends / sizeof ends[0]; i++) {
		write_line(page, line, ends[i].word, "disk",
			   (unsigned long long)count_notes(daemon, ends[i].type));
	}
	write_line(page, line, "done", "ram", (unsigned long long)daemon->metrics.n_from_memory);
	write_counter(page, "distorchd_load_bytes", "bytes", "Bytes read by loads that succeeded.",
		      daemon->metrics.bytes_read);
	begin_family(page, "distorchd_hits", "counter", "",
		     "Loads and attaches served from memory.");
	write_counted(page, "distorchd_hits", "tier", "ram", counters.hits);
	write_counter(page, "distorchd_misses", "", "Loads that read a file.", counters.misses);
	begin_family(page, "distorchd_seconds_saved", "counter", "",
		     "Time that the loads of what was served from memory had taken.");
	write_line(page, "distorchd_seconds_saved_total %llu.%03llu\n",
		   (unsigned long long)(counters.saved_ns / NS_PER_S),
		   (unsigned long long)(counters.saved_ns % NS_PER_S / NS_PER_MS));
	write_times(page, "distorchd_load_seconds", "How long loads took that read a file.",
		    &daemon->metrics.loads, load_bounds);
	write_gauge(page, "distorchd_load_inflight", "",
		    "Loads under way or waiting for their turn.", census->n_loads);
	begin_family(page, "distorchd_verify_failures", "counter", "",
		     "Copies whose bytes no longer matched their checksum.");
	write_counted(page, "distorchd_verify_failures", "tier", "ram",
		      count_notes(daemon, CORE_NOTE_QUARANTINED));
}

static void write_evictions(struct page *page, const struct daemon *daemon)
{
	static const char name[] = "distorchd_evictions";
	const uint64_t *evicted = daemon->metrics.n_notes[CORE_NOTE_EVICTED];
	const uint64_t *moved = daemon->metrics.n_notes[CORE_NOTE_PLACED];
	const uint64_t *unloaded = daemon->metrics.n_notes[CORE_NOTE_UNLOADED];

	begin_family(
		page, name, "counter", "",
		"Times that a model's bytes left a tier, by what made them (budget: room for "
		"another or reserved, or a lower budget; fault: a device or the bytes were bad).");
	write_counted(page, name, "reason", "budget",
		      evicted[CORE_WHY_ROOM] + evicted[CORE_WHY_RESERVED] +
			      evicted[CORE_WHY_BUDGET]);
	write_counted(page, name, "reason", "idle",
		      evicted[CORE_WHY_IDLE] + evicted[CORE_WHY_LINGERED] +
			      moved[CORE_WHY_LINGERED]);
	write_counted(page, name, "reason", "pressure",
		      evicted[CORE_WHY_PRESSURE] + moved[CORE_WHY_PRESSURE]);
	write_counted(page, name, "reason", "user", unloaded[CORE_WHY_ASKED]);
	write_counted(page, name, "reason", "fault",
		      evicted[CORE_WHY_LOST] + count_notes(daemon, CORE_NOTE_QUARANTINED));
}

/* ---- clients ---- */

static uint64_t count_connections(const struct core *core)
{
	struct core_client_view client;
	uint64_t n_connections = 0;
	uint32_t cursor = 0;

	while (core_client_next(core, &cursor, &client)) {
		n_connections += client.is_connected ? 1 : 0;
	}
	return n_connections;
}

static void write_requests(struct page *page, const struct server_counters *counters)
{
	begin_family(page, "distorchd_requests", "counter", "",
		     "Requests that were answered, by method and code.");
	for (uint32_t method = 0; method <= WIRE_N_METHODS; method++) {
		for (uint32_t code = 0; code < WIRE_N_CODES; code++) {
			uint64_t n_answers = counters->n_answers[method][code];

			if (n_answers > 0) {
				write_line(page,
					   "distorchd_requests_total{verb=\"%s\",code=\"%s\"} "
					   "%llu\n",
					   method == WIRE_N_METHODS ? "unknown"
								    : wire_messages[method].method,
					   wire_codes[code].word, (unsigned long long)n_answers);
			}
		}
	}
}

static void write_clients(struct page *page, const struct daemon *daemon)
{
	static const char name[] = "distorchd_connections";
	const struct server_counters *counters = server_counters(daemon->server);

	write_gauge(page, "distorchd_clients", "", "Connections that have said hello.",
		    count_connections(daemon->core));
	begin_family(page, name, "counter", "",
		     "Connections that said hello (served), were sent away (refused), or found no "
		     "descriptor left (shed).");
	write_counted(page, name, "result", "served", counters->n_served);
	write_counted(page, name, "result", "refused", counters->n_refused);
	write_counted(page, name, "result", "shed", counters->n_shed);
	write_requests(page, counters);
	begin_family(page, "distorchd_protocol_errors", "counter", "",
		     "Connections ended for what is no message.");
	write_counted(page, "distorchd_protocol_errors", "code", "bad-frame",
		      counters->n_bad_frames);
	write_counter(page, "distorchd_slow_clients", "",
		      "Connections ended for not taking what was sent.", counters->n_slow);
}

/* ---- the process ---- */

uint64_t metrics_open_fds(void)
{
	struct stat status;
	uint64_t n_fds = 0;
	DIR *folder;

	/* Linux 6.2 and later say it at once; reading 10,000 names would hold the loop up. */
	if (stat("/proc/self/fd", &status) == 0 && status.st_size > 0) {
		return (uint64_t)status.st_size;
	}
	folder = opendir("/proc/self/fd");
	if (folder == NULL) {
		return 0;
	}
	for (const struct dirent *entry = readdir(folder); entry != NULL; entry = readdir(folder)) {
		n_fds += entry->d_name[0] != '.' ? 1 : 0;
	}
	(void)closedir(folder);
	return n_fds - 1; /* the folder's own */
}

static void write_process(struct page *page)
{
	struct rusage usage = {0};
	struct rlimit limit = {0};
	uint64_t swapped;
	long microseconds;

	(void)getrusage(RUSAGE_SELF, &usage); /* neither fails for this process */
	(void)getrlimit(RLIMIT_NOFILE, &limit);
	microseconds = usage.ru_utime.tv_usec + usage.ru_stime.tv_usec;
	begin_family(page, "process_cpu_seconds", "counter", "seconds",
		     "Processor time, user and system.");
	write_line(page, "process_cpu_seconds_total %ld.%06ld\n",
		   usage.ru_utime.tv_sec + usage.ru_stime.tv_sec + microseconds / 1000000,
		   microseconds % 1000000);
	if (host_memory_read_swapped(NULL, &swapped)) {
		write_gauge(page, "distorchd_swapped_bytes", "bytes",
			    "Bytes swapped out of the daemon's control group.", swapped);
	}
	write_gauge(page, "process_resident_memory_bytes", "bytes", "Own memory, images apart.",
		    memory_own_bytes());
	write_gauge(page, "process_open_fds", "", "Open descriptors.", metrics_open_fds());
	write_gauge(page, "process_max_fds", "", "Descriptors that may be open.", limit.rlim_cur);
}

bool metrics_write(const struct daemon *daemon, char *ret_text, size_t size)
{
	struct page page = {.text = ret_text, .size = size};
	struct census census = {0};
	struct core_model_view model;
	uint32_t cursor = 0;

	while (core_model_next(daemon->core, &cursor, &model)) {
		count_model(daemon, &model, &census);
	}
	write_daemon(&page, daemon);
	write_models(&page, daemon, &census);
	write_memory(&page, daemon, &census);
	write_loads(&page, daemon, &census);
	write_evictions(&page, daemon);
	write_clients(&page, daemon);
	write_process(&page);
	write_line(&page, "# EOF\n");
	return page.used < page.size;
}
