/* SPDX-License-Identifier: Apache-2.0 */
/* The corridor: life of the daemon and the turn of its loop. See daemon.h. */
#include "daemon/daemon.h"

#include "base/err.h"
#include "base/os/clock.h"
#include "base/os/log.h"
#include "base/os/mailbox.h"
#include "base/os/sys.h"
#include "base/require.h"
#include "base/units.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <utlist.h>

#include "daemon/alarm.h"
#include "daemon/config.h"
#include "daemon/device/device.h"
#include "daemon/dispatch.h"
#include "daemon/errand.h"
#include "daemon/execute.h"
#include "daemon/gather.h"
#include "daemon/holes.h"
#include "daemon/ipc/conn.h"
#include "daemon/ipc/peer.h"
#include "daemon/ipc/scrape.h"
#include "daemon/ipc/server.h"
#include "daemon/load/file.h"
#include "daemon/load/loader.h"
#include "daemon/load/memory.h"
#include "daemon/names.h"
#include "daemon/persist.h"
#include "daemon/placement.h"
#include "daemon/pressure.h"
#include "daemon/recall.h"
#include "daemon/reload.h"
#include "daemon/saved.h"
#include "daemon/testing.h"
#include "daemon/verify.h"
#include "daemon/warm.h"
#include "daemon/watch.h"

#define RESULTS_A_TURN 64 /* then requests get their turn again */
#define STALL_MS       30000
#define FIRST_TAG_MASK 0xffffeU    /* even; small: a number with it is exact as a double too */
#define STOP_LIMIT_NS  2000000000U /* for what may block for ever */

struct client *daemon_find_client(const struct daemon *daemon, uint64_t id)
{
	struct client *client = NULL;

	DL_SEARCH_SCALAR(daemon->clients, client, id, id);
	return client;
}

void daemon_forget_client(struct daemon *daemon, uint64_t id)
{
	struct client *client = daemon_find_client(daemon, id);

	REQUIRE(client != NULL && client->conn == NULL);
	DL_DELETE(daemon->clients, client);
	client_free(client);
}

/* ---- who a new model is ---- */

void daemon_present(struct daemon *daemon, const struct file *file)
{
	daemon->presented = file;
	daemon->presented_name = wire_str("");
}

void daemon_present_name(struct daemon *daemon, struct wire_str name)
{
	daemon->presented_name = name;
}

static const char *base_name(const char *path)
{
	const char *slash = strrchr(path, '/');

	return slash == NULL ? path : slash + 1;
}

struct model_info *daemon_know_model(struct daemon *daemon, uint64_t id)
{
	struct model_info *model = store_find_model(daemon->store, id);
	struct core_model_view view;
	char name[512];
	const char *path;

	if (model != NULL || id == 0 || !core_model_get(daemon->core, id, &view)) {
		return model;
	}
	path = daemon->presented == NULL ? "" : file_path(daemon->presented);
	(void)wire_str_copy(daemon->presented_name, name, sizeof name);
	if (name[0] == '\0') {
		(void)snprintf(name, sizeof name, "%s", base_name(path));
	}
	model = store_add_model(daemon->store, id, view.uuid, name[0] == '\0' ? "unnamed" : name,
				path);
	if (model != NULL && daemon->presented != NULL) {
		model_info_set_files(model, daemon->presented);
	}
	return model;
}

/* ---- the step ---- */

static void step_once(struct daemon *daemon, struct core_event *event, uint64_t *ret_id)
{
	struct core_update update;
	bool is_first = true;

	daemon->is_stepping = true;
	do {
		event->now_ns = clock_boot_ns();
		core_step(daemon->core, event, &update);
		if (is_first) {
			daemon->stepped_ns = event->now_ns; /* what follows is of the same moment */
			*ret_id = update.ret_id;
		}
		for (uint32_t i = 0; i < update.n_actions; i++) {
			execute(daemon, &update.actions[i]);
		}
		*event = (struct core_event){.type = EV_CONTINUE};
		is_first = false;
	} while (update.again);
	daemon->deadline_ns = update.deadline_ns;
	daemon->is_stepping = false;
}

uint64_t daemon_step(struct daemon *daemon, struct core_event *event)
{
	uint64_t id = 0;
	uint64_t ignored = 0;

	REQUIRE(!daemon->is_stepping);
	saved_hear(daemon, event);
	step_once(daemon, event, &id);
	daemon->presented = NULL;
	daemon->presented_name = wire_str("");
	for (uint32_t i = 0; i < daemon->n_following; i++) {
		struct core_event following = daemon->following[i];

		step_once(daemon, &following, &ignored);
	}
	daemon->n_following = 0;
	recall_look(daemon);
	workers_notice_step(daemon);
	alarm_set(daemon);
	if (daemon->server != NULL) {
		server_flush(daemon->server); /* may step again: clients that are gone */
	}
	return id;
}

bool daemon_follow(struct daemon *daemon, const struct core_event *event)
{
	if (daemon->n_following == DAEMON_MAX_FOLLOWING) {
		return false;
	}
	daemon->following[daemon->n_following++] = *event;
	return true;
}

void daemon_revoke(struct daemon *daemon, uint64_t client, uint64_t lease)
{
	const struct core_event event = {.type = EV_DETACH,
					 .client = client,
					 .lease = {.lease = lease}};

	(void)daemon_follow(daemon, &event); /* else the lease ends with its connection */
}

/* ---- clients whose process we watch ---- */

static void on_process_gone(void *context, uint64_t id)
{
	struct core_event event = {.type = EV_PROCESS_GONE, .client = id};

	holes_look(context);
	(void)daemon_step(context, &event);
}

void daemon_watch_process(struct daemon *daemon, struct client *client, int pidfd)
{
	if (!process_watch_start(client->watch, &daemon->loop, pidfd, on_process_gone, daemon,
				 client->id)) {
		log_warning("cannot watch pid %u: what it maps stays counted until the daemon ends",
			    client->pid);
	}
}

void daemon_watch_client(struct daemon *daemon, struct client *client)
{
	struct core_client_view view;

	if (daemon->is_stopped || !core_client_get(daemon->core, client->id, &view) ||
	    view.held_bytes == 0) {
		return; /* nothing mapped: nothing to wait for */
	}
	daemon_watch_process(daemon, client, conn_take_pidfd(client->conn));
}

/* ---- results of the loader ---- */

static void on_mail(uv_poll_t *poll, int status, int events)
{
	struct daemon *daemon = poll->data;
	struct mail *mail;
	int i = 0;

	(void)status; /* an eventfd has no error of its own */
	(void)events;
	daemon->is_taking_results = true;
	for (; i < RESULTS_A_TURN && (mail = mailbox_take(daemon->mailbox)) != NULL; i++) {
		execute_result(daemon, load_result_from_mail(mail));
	}
	daemon->is_taking_results = false;
	if (i == RESULTS_A_TURN) {
		mailbox_wake(daemon->mailbox);
	}
	recall_look(daemon);
	if (daemon->server != NULL) {
		server_flush(daemon->server); /* no step follows that would */
	}
}

uint64_t daemon_available(const struct daemon *daemon, uint64_t host_available)
{
	return host_available > daemon->reserve_bytes ? host_available - daemon->reserve_bytes : 0;
}

/* ---- start ---- */

static uint64_t choose_size(const struct config_size *size, const struct host_memory *memory,
			    uint64_t automatic)
{
	return size->kind == CONFIG_SIZE_AUTO ? automatic : config_size_of(size, memory->total);
}

uint64_t daemon_choose_budget(const struct daemon *daemon, const struct host_memory *memory)
{
	return choose_size(&daemon->config->memory_ram, memory, host_memory_auto_budget(memory));
}

uint64_t daemon_choose_reserve(const struct daemon *daemon, const struct host_memory *memory)
{
	return choose_size(&daemon->config->memory_reserve, memory,
			   host_memory_auto_reserve(memory));
}

static int init_core(struct daemon *daemon, struct err *err)
{
	const struct core_config config = {
		.max_clients = 2U * daemon->config->limits_connections,
		.max_clients_per_uid = 2U * daemon->config->limits_connections_per_user,
		.reserved_clients = daemon->config->limits_connections / 8U,
		.max_models = DAEMON_MAX_MODELS,
		.max_models_per_uid = DAEMON_MAX_MODELS / 2,
		.max_queued_per_uid = DAEMON_MAX_QUEUED,
		.max_segments = 65536,
		.max_reservations = DAEMON_MAX_RESERVATIONS,
		.max_reservations_per_uid = DAEMON_MAX_RESERVATIONS / 2,
		.first_tag = (uint32_t)daemon->epoch & FIRST_TAG_MASK,
		.linger_ns = daemon->config->gpu_linger_ns,
		.max_leases = DAEMON_MAX_LEASES,
		.max_leases_per_uid = DAEMON_MAX_LEASES / 2,
		.max_waiters = WIRE_REQUESTS_IN_FLIGHT * daemon->config->limits_connections,
		.max_wishes = DAEMON_MAX_WISHES,
		.n_devices = workers_max_devices(daemon->config),
		.loads_per_uid = daemon->config->limits_loads_per_user,
		.idle_evict_ns = daemon->config->memory_idle_evict_ns,
		.share_milli_pct = daemon->config->limits_ram_per_user.milli_pct,
		.share_bytes = daemon->config->limits_ram_per_user.bytes,
	};
	size_t size = core_size(&config);

	/* calloc of this size is fresh zero pages: only what is used becomes resident. */
	daemon->core_memory = size == 0 ? NULL : sys_calloc(1, size);
	if (daemon->core_memory == NULL) {
		return err_set(err, WIRE_NO_MEMORY, "no memory for the tables (%zu bytes)", size);
	}
	daemon->core = core_init(daemon->core_memory, &config);
	return 0;
}

static void set_budget(struct daemon *daemon, uint64_t bytes)
{
	struct core_event event = {.type = EV_BUDGET, .budget = {.bytes = bytes}};

	(void)daemon_step(daemon, &event);
}

/* What was adopted is taken from what is available; the budget is to hold it. */
static int init_memory(struct daemon *daemon, uint64_t adopted_bytes, struct err *err)
{
	struct host_memory memory;
	uint64_t bytes;
	char budget[16];
	char total[16];
	int code = host_memory_read(NULL, &memory, err);

	if (code < 0) {
		return code;
	}
	daemon->host_total_bytes = memory.total;
	daemon->reserve_bytes = daemon_choose_reserve(daemon, &memory);
	if (adopted_bytes > 0 && memory.available < daemon->reserve_bytes) {
		/* More came back than there is room for now: what nobody uses or pins goes. */
		uint64_t lacking = daemon->reserve_bytes - memory.available;

		set_budget(daemon, adopted_bytes > lacking ? adopted_bytes - lacking : 0);
	}
	memory.available += adopted_bytes < memory.total ? adopted_bytes : memory.total;
	bytes = daemon_choose_budget(daemon, &memory);
	log_info("memory budget %s of %s", units_format_size(bytes, budget, sizeof budget),
		 units_format_size(memory.total, total, sizeof total));
	set_budget(daemon, bytes);
	return 0;
}

static int init_loader(struct daemon *daemon, struct err *err)
{
	const struct loader_options options = {
		.n_threads = daemon->config->load_threads,
		.direct_io = daemon->config->load_direct_io,
		.hugepages = daemon->config->memory_hugepages,
		.lock = daemon->config->memory_lock,
		.stall_ns = 1000000ULL * testing_ms("DISTORCHD_TEST_STALL_MS", STALL_MS),
		.progress_ns = 100000000U,
	};
	int code;

	daemon->mailbox = mailbox_new(err);
	if (daemon->mailbox == NULL) {
		return -err->code;
	}
	(void)snprintf(daemon->devices[0].name, sizeof daemon->devices[0].name, "cpu");
	code = device_open("host", "cpu", &daemon->host, err);
	if (code < 0) {
		return code;
	}
	daemon->devices[0].device = daemon->host;
	(void)device_info(daemon->host, &daemon->devices[0].info, NULL);
	daemon->loader = loader_new(&options, daemon->host, daemon->mailbox, err);
	if (daemon->loader == NULL) {
		return -err->code;
	}
	daemon->mailbox_poll.data = daemon;
	if (uv_poll_init(&daemon->loop, &daemon->mailbox_poll, mailbox_fd(daemon->mailbox)) < 0 ||
	    uv_poll_start(&daemon->mailbox_poll, UV_READABLE, on_mail) < 0) {
		return err_set(err, WIRE_INTERNAL, "cannot watch the loader's results");
	}
	return 0;
}

static void on_signal(uv_signal_t *handle, int number)
{
	if (number == SIGHUP) {
		if (reload_begin(handle->data, 0, 0, WIRE_METHOD_RELOAD) < 0) {
			log_error("SIGHUP: no memory to read the configuration again");
		}
		return;
	}
	log_notice("%s", number == SIGTERM ? "told to end by SIGTERM" : "told to end by SIGINT");
	daemon_stop(handle->data);
}

static int init_signals(struct daemon *daemon, struct err *err)
{
	static const int numbers[] = {SIGTERM, SIGINT, SIGHUP};
	sigset_t watched;

	(void)sigemptyset(&watched);

	for (size_t i = 0; i < sizeof numbers / sizeof numbers[0]; i++) {
		daemon->signals[i].data = daemon;
		if (uv_signal_init(&daemon->loop, &daemon->signals[i]) < 0 ||
		    uv_signal_start(&daemon->signals[i], on_signal, numbers[i]) < 0) {
			return err_set(err, WIRE_INTERNAL, "cannot watch for signals");
		}
		(void)sigaddset(&watched, numbers[i]); /* valid numbers */
	}
	(void)pthread_sigmask(SIG_UNBLOCK, &watched, NULL); /* one may be waiting: main.c */
	return 0;
}

/* Who may connect to a socket that we make. UINT32_MAX: nobody else. */
static uint32_t find_group(const struct daemon_options *options)
{
	const char *name = options->config->access_group;
	uint32_t gid = UINT32_MAX;

	if (!options->is_user && name != NULL && name[0] != '\0') {
		gid = names_find_group(name);
		if (gid == UINT32_MAX) {
			log_notice("there is no group %s: only root may connect", name);
		}
	}
	return gid;
}

/* The administrator besides root and ourselves; UINT32_MAX: nobody. */
static uint32_t find_administrator(const struct config *config)
{
	const char *name = config->access_control;

	return name == NULL || name[0] == '\0' || strcmp(name, "root") == 0 ? UINT32_MAX
									    : names_find_user(name);
}

/* 'listen_fd' is taken over; -1: make one. */
static int init_server(struct daemon *daemon, const struct daemon_options *options, int listen_fd,
		       struct err *err)
{
	const struct config *config = daemon->config;
	const struct server_handlers handlers = {.context = daemon,
						 .request = dispatch_request,
						 .closed = dispatch_closed};
	struct server_options server = {
		.socket_path = options->socket_path,
		.listen_fd = listen_fd,
		.is_kept = persist_is_safe(daemon->persist),
		.connections = config->limits_connections,
		.connections_per_uid = config->limits_connections_per_user,
		.output_bytes = (uint32_t)config->limits_pending_output, /* at most 1G */
		.hello_ms = testing_ms("DISTORCHD_TEST_HELLO_MS", WIRE_HELLO_MS),
		.drain_ms = testing_ms("DISTORCHD_TEST_DRAIN_MS", WIRE_DRAIN_MS),
		.mode = options->is_user ? 0600 : 0660,
		.gid = find_group(options),
		.admin_uid = find_administrator(config),
	};
	int code;

	code = server_new(&daemon->loop, &server, &handlers, &daemon->server, err);
	if (code == 0) {
		daemon->scraper = metrics_serve(daemon, options, server.mode, server.gid);
	}
	return code;
}

/* Last: the socket accepts as soon as it exists. */
static int begin_serving(struct daemon *daemon, const struct daemon_options *options,
			 struct err *err)
{
	int listen_fd = persist_take_listener(daemon->persist);
	int code;

	persist_begin(daemon);
	code = init_server(daemon, options, listen_fd, err);
	if (code == 0) {
		/* Not before all is there that they act on: the loop has run already. */
		code = init_signals(daemon, err);
	}
	if (code == 0) {
		daemon->pressure = pressure_start(daemon);
		persist_ready(daemon);
		warm_start(daemon);
	}
	return code;
}

int daemon_init(struct daemon *daemon, const struct daemon_options *options, struct err *err)
{
	uint64_t adopted_bytes = 0;
	int code;

	memset(daemon, 0, sizeof *daemon);
	daemon->config = daemon->start_config = options->config;
	daemon->request = options->request;
	daemon->saved = options->saved;
	if (options->config_fault != NULL) {
		daemon->config_fault = *options->config_fault;
	}
	daemon->n_devices = 1;
	daemon->alarm = -1;
	daemon->started_ns = clock_boot_ns();
	daemon->metrics.started_real_ns = clock_real_ns();
	testing_init();
	if (sys_getrandom(&daemon->epoch, sizeof daemon->epoch) < 0 ||
	    uv_loop_init(&daemon->loop) < 0) {
		return err_set(err, WIRE_INTERNAL, "cannot make an event loop");
	}
	daemon->has_loop = true;
	verify_init(daemon);
	metrics_watch_loop(&daemon->metrics, &daemon->loop);
	daemon->epoch >>= 1; /* fits a signed number in every language */
	daemon->store = store_new();
	if (daemon->store == NULL || history_init(&daemon->history) < 0) {
		return err_set(err, WIRE_NO_MEMORY, "no memory for the tables");
	}
	daemon->watch = watch_new(daemon);
	if (daemon->watch == NULL) {
		return err_set(err, WIRE_NO_MEMORY, "no memory to watch files");
	}
	gather_init(daemon);
	recall_init(daemon);
	code = alarm_init(daemon, err);
	if (code == 0) {
		code = init_core(daemon, err);
	}
	if (code == 0) {
		code = init_loader(daemon, err);
	}
	if (code == 0) {
		code = errands_new(daemon, err);
	}
	if (code == 0) {
		code = persist_new(daemon, err);
	}
	if (code == 0) {
		code = persist_adopt(daemon, &adopted_bytes, err);
	}
	if (code == 0) {
		saved_start(daemon, persist_has_old_ledger(daemon->persist));
		code = init_memory(daemon, adopted_bytes, err);
	}
	if (code == 0) {
		code = workers_start(daemon, err);
	}
	if (code == 0) {
		code = begin_serving(daemon, options, err);
	}
	if (code < 0) {
		persist_start_failed(daemon->persist);
	}
	return code;
}

/* ---- end ---- */

static void close_handle(uv_handle_t *handle, void *unused)
{
	(void)unused;
	if (!uv_is_closing(handle)) {
		uv_close(handle, NULL);
	}
}

void daemon_stop(struct daemon *daemon)
{
	struct core_event event = {.type = EV_SHUTDOWN};

	if (daemon->is_stopping) {
		log_notice("told twice: ending at once");
		daemon->exit_code = 1;
		uv_stop(&daemon->loop);
		return;
	}
	daemon->is_stopping = true;
	if (daemon->is_stepping) {
		return; /* not reached: stops come from signals and requests */
	}
	persist_stopping(daemon->persist);
	(void)daemon_step(daemon, &event);
	server_stop(daemon->server);
	uv_stop(&daemon->loop);
}

/* Whoever looks at the log first sees this. */
static void tell_config_fault(const struct daemon *daemon)
{
	if (daemon->config_fault.code != 0) {
		log_error("THE CONFIGURATION IS BROKEN: %s", daemon->config_fault.text);
		log_error("the last good one is used, for the models that wait; mend it, then: "
			  "distorchctl reload");
	}
}

static void warn_of_idle_settings(const struct config *config)
{
	struct config_item item;
	uint32_t cursor = 0;

	while (config_next(config, &cursor, &item)) {
		if (item.is_idle) {
			log_warning("%s = %s: %s", item.key, item.value, item.source);
		}
	}
}

int daemon_run(struct daemon *daemon)
{
	warn_of_idle_settings(daemon->config);
	tell_config_fault(daemon);
	log_notice("ready: distorchd " DISTORCH_VERSION " on %s", server_path(daemon->server));
	testing_start(daemon);
	(void)uv_run(&daemon->loop, UV_RUN_DEFAULT);
	return daemon->exit_code;
}

/* What the loader still had to say is of no interest any more. */
static void drain_mailbox(struct daemon *daemon)
{
	struct mail *mail;

	while (daemon->mailbox != NULL && (mail = mailbox_take(daemon->mailbox)) != NULL) {
		(void)load_result_free(load_result_from_mail(mail));
	}
}

void daemon_fini(struct daemon *daemon)
{
	struct client *client;
	struct client *next;

	if (!daemon->has_loop) {
		return; /* nothing was made */
	}
	saved_stop(daemon);
	daemon->is_stopped = true;
	if (daemon->server != NULL) {
		daemon->server = server_free(daemon->server); /* goodbye to all, then close */
	}
	daemon->scraper = scraper_free(daemon->scraper);
	workers_stop(daemon);
	errands_stop(daemon->errands, STOP_LIMIT_NS);
	daemon->loader = loader_free(daemon->loader);
	if (daemon->loader == NULL) { /* else threads that are stuck still use what was lent */
		verify_fini(daemon);
	}
	drain_mailbox(daemon);
	DL_FOREACH_SAFE(daemon->clients, client, next)
	{
		/* NOLINTNEXTLINE(clang-analyzer-core.NullDereference): it is in the list */
		DL_DELETE(daemon->clients, client);
		client_free(client); /* its handle with it */
	}
	daemon->persist = persist_free(daemon->persist);
	pressure_stop(daemon->pressure);
	watch_stop(daemon->watch);
	uv_walk(&daemon->loop, close_handle, NULL);
	while (uv_run(&daemon->loop, UV_RUN_DEFAULT) != 0) {
		/* closing handles */
	}
	REQUIRE(uv_loop_close(&daemon->loop) == 0);
	alarm_fini(daemon);
	daemon->watch = watch_free(daemon->watch);
	daemon->store = store_free(daemon->store);
	workers_free(daemon);
	daemon->host = device_close(daemon->host);
	placement_free_all(daemon);
	daemon->mailbox = mailbox_free(daemon->mailbox);
	daemon->errands = errands_free(daemon->errands);
	daemon->warm = warm_free(daemon->warm);
	history_fini(&daemon->history);
	daemon->reloaded = config_free(daemon->reloaded);
	free(daemon->core_memory);
	log_notice("ended");
}
