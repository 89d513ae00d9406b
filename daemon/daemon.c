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

#include <errno.h>
#include <grp.h>
#include <pwd.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <utlist.h>

#include "daemon/config.h"
#include "daemon/device/device.h"
#include "daemon/ipc/conn.h"
#include "daemon/ipc/peer.h"
#include "daemon/ipc/server.h"
#include "daemon/load/file.h"
#include "daemon/load/loader.h"
#include "daemon/load/memory.h"
#include "daemon/persist.h"
#include "daemon/pressure.h"
#include "daemon/reload.h"
#include "daemon/testing.h"

#define NS_PER_MS      1000000U
#define RESULTS_A_TURN 64 /* then requests get their turn again */
#define STALL_MS       30000

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
	return store_add_model(daemon->store, id, view.uuid, name[0] == '\0' ? "unnamed" : name,
			       path);
}

/* ---- the step ---- */

static void step_once(struct daemon *daemon, struct core_event *event, uint64_t *ret_id)
{
	struct core_update update;
	bool is_first = true;

	daemon->is_stepping = true;
	do {
		event->now_ns = clock_mono_ns();
		core_step(daemon->core, event, &update);
		if (is_first) {
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

static void on_tick(uv_timer_t *timer)
{
	struct core_event event = {.type = EV_TICK};

	(void)daemon_step(timer->data, &event);
}

static void arm_tick(struct daemon *daemon)
{
	uint64_t now_ns = clock_mono_ns();
	uint64_t wait_ms;

	if (daemon->is_stopped) {
		return;
	}
	if (daemon->deadline_ns == UINT64_MAX) {
		(void)uv_timer_stop(&daemon->tick); /* at rest nothing wakes us */
		return;
	}
	wait_ms = daemon->deadline_ns > now_ns
			  ? (daemon->deadline_ns - now_ns + NS_PER_MS - 1) / NS_PER_MS
			  : 0;
	uv_update_time(&daemon->loop);
	(void)uv_timer_start(&daemon->tick, on_tick, wait_ms, 0); /* fails only when closing */
}

uint64_t daemon_step(struct daemon *daemon, struct core_event *event)
{
	uint64_t id = 0;
	uint64_t ignored = 0;

	REQUIRE(!daemon->is_stepping);
	step_once(daemon, event, &id);
	daemon->presented = NULL;
	daemon->presented_name = wire_str("");
	for (uint32_t i = 0; i < daemon->n_revoked; i++) {
		struct core_event revoked = daemon->revoked[i];

		step_once(daemon, &revoked, &ignored);
	}
	daemon->n_revoked = 0;
	arm_tick(daemon);
	if (daemon->server != NULL) {
		server_flush(daemon->server); /* may step again: clients that are gone */
	}
	return id;
}

void daemon_revoke(struct daemon *daemon, uint64_t client, uint64_t lease)
{
	if (daemon->n_revoked == DAEMON_MAX_REVOKED) {
		return; /* the lease ends with its connection */
	}
	daemon->revoked[daemon->n_revoked++] =
		(struct core_event){.type = EV_DETACH, .client = client, .lease = {.lease = lease}};
}

/* ---- clients whose process we watch ---- */

static void on_process_gone(void *context, uint64_t id)
{
	struct core_event event = {.type = EV_PROCESS_GONE, .client = id};

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

	(void)status; /* an eventfd has no error of its own */
	(void)events;
	for (int i = 0; i < RESULTS_A_TURN; i++) {
		struct mail *mail = mailbox_take(daemon->mailbox);

		if (mail == NULL) {
			return;
		}
		execute_result(daemon, load_result_from_mail(mail));
	}
	mailbox_wake(daemon->mailbox);
}

uint64_t daemon_available(const struct daemon *daemon, uint64_t host_available)
{
	return host_available > daemon->reserve_bytes ? host_available - daemon->reserve_bytes : 0;
}

/* ---- start ---- */

static uint64_t choose_size(const struct config_size *size, const struct host_memory *memory,
			    uint64_t automatic)
{
	switch (size->kind) {
	case CONFIG_SIZE_BYTES:
		return size->bytes;
	case CONFIG_SIZE_PERCENT:
		return memory->total / 100000U * size->milli_pct;
	case CONFIG_SIZE_AUTO:
		break;
	}
	return automatic;
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
		.max_leases = DAEMON_MAX_LEASES,
		.max_leases_per_uid = DAEMON_MAX_LEASES / 2,
		.max_waiters = WIRE_REQUESTS_IN_FLIGHT * daemon->config->limits_connections,
		.max_wishes = DAEMON_MAX_WISHES,
		.n_devices = daemon->n_devices,
		.loads_per_uid = daemon->config->limits_loads_per_user,
		.idle_evict_ns = daemon->config->memory_idle_evict_ns,
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
	code = device_open("host", "cpu", &daemon->host, err);
	if (code < 0) {
		return code;
	}
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
		if (reload_begin(handle->data, 0, 0) == -WIRE_BUSY) {
			log_notice("SIGHUP: the configuration is being read already");
		}
		return;
	}
	log_notice("%s", number == SIGTERM ? "told to end by SIGTERM" : "told to end by SIGINT");
	daemon_stop(handle->data);
}

static int init_signals(struct daemon *daemon, struct err *err)
{
	static const int numbers[] = {SIGTERM, SIGINT, SIGHUP};

	for (size_t i = 0; i < sizeof numbers / sizeof numbers[0]; i++) {
		daemon->signals[i].data = daemon;
		if (uv_signal_init(&daemon->loop, &daemon->signals[i]) < 0 ||
		    uv_signal_start(&daemon->signals[i], on_signal, numbers[i]) < 0) {
			return err_set(err, WIRE_INTERNAL, "cannot watch for signals");
		}
	}
	return 0;
}

static bool is_default(const struct config *config, const char *key)
{
	struct config_item item;
	uint32_t cursor = 0;

	while (config_next(config, &cursor, &item)) {
		if (strcmp(item.key, key) == 0) {
			return strcmp(item.source, "default") == 0;
		}
	}
	return true;
}

/* Names that somebody wrote must exist: a typo would open or close the door unseen. */
static int check_names(const struct daemon_options *options, struct err *err)
{
	const char *group = options->config->access_group;
	const char *user = options->config->access_control;

	if (group != NULL && group[0] != '\0' && getgrnam(group) == NULL) {
		if (!is_default(options->config, "access.group")) {
			return err_set(err, WIRE_BAD_ARGUMENT,
				       "access.group = %s: there is no such group", group);
		}
		if (!options->is_user) {
			log_notice("there is no group %s: only root may connect", group);
		}
	}
	if (user != NULL && user[0] != '\0' && getpwnam(user) == NULL) {
		return err_set(err, WIRE_BAD_ARGUMENT, "access.control = %s: there is no such user",
			       user);
	}
	return 0;
}

/* The group that may connect to a machine-wide daemon; UINT32_MAX: there is none. */
static uint32_t find_group(const struct daemon_options *options)
{
	const char *name = options->config->access_group;
	const struct group *group = options->is_user || name == NULL || name[0] == '\0'
					    ? NULL
					    : getgrnam(name); /* at start: may ask a directory */

	return group == NULL ? UINT32_MAX : group->gr_gid;
}

/* The administrator besides root and ourselves; UINT32_MAX: nobody. */
static uint32_t find_administrator(const struct config *config)
{
	const char *name = config->access_control;
	const struct passwd *user = name == NULL || strcmp(name, "root") == 0 ? NULL
									      : getpwnam(name);

	return user == NULL ? UINT32_MAX : user->pw_uid;
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

	return server_new(&daemon->loop, &server, &handlers, &daemon->server, err);
}

int daemon_init(struct daemon *daemon, const struct daemon_options *options, struct err *err)
{
	uint64_t adopted_bytes = 0;
	int listen_fd;
	int code;

	memset(daemon, 0, sizeof *daemon);
	daemon->config = daemon->start_config = options->config;
	daemon->request = options->request;
	daemon->n_devices = 1;
	daemon->deadline_ns = UINT64_MAX;
	daemon->started_ns = clock_mono_ns();
	daemon->metrics.started_real_ns = clock_real_ns();
	testing_init();
	if (sys_getrandom(&daemon->epoch, sizeof daemon->epoch) < 0 ||
	    uv_loop_init(&daemon->loop) < 0) {
		return err_set(err, WIRE_INTERNAL, "cannot make an event loop");
	}
	daemon->has_loop = true;
	daemon->epoch >>= 1; /* fits a signed number in every language */
	(void)uv_timer_init(&daemon->loop, &daemon->tick); /* always succeeds */
	daemon->tick.data = daemon;
	daemon->store = store_new();
	if (daemon->store == NULL || history_init(&daemon->history) < 0) {
		return err_set(err, WIRE_NO_MEMORY, "no memory for the tables");
	}
	code = init_core(daemon, err);
	if (code == 0) {
		code = init_loader(daemon, err);
	}
	if (code == 0) {
		code = persist_new(daemon, err);
	}
	if (code == 0) {
		code = persist_adopt(daemon, &adopted_bytes, err);
	}
	if (code == 0) {
		code = init_memory(daemon, adopted_bytes, err);
	}
	if (code == 0) {
		code = init_signals(daemon, err);
	}
	if (code == 0) {
		code = check_names(options, err);
	}
	if (code < 0) {
		return code;
	}
	listen_fd = persist_take_listener(daemon->persist);
	persist_begin(daemon);
	/* Last: the socket accepts as soon as it exists. */
	code = init_server(daemon, options, listen_fd, err);
	if (code == 0) {
		daemon->pressure = pressure_start(daemon);
		persist_ready(daemon);
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
	daemon->is_stopped = true;
	if (daemon->server != NULL) {
		daemon->server = server_free(daemon->server); /* goodbye to all, then close */
	}
	daemon->loader = loader_free(daemon->loader);
	drain_mailbox(daemon);
	DL_FOREACH_SAFE(daemon->clients, client, next)
	{
		/* NOLINTNEXTLINE(clang-analyzer-core.NullDereference): it is in the list */
		DL_DELETE(daemon->clients, client);
		client_free(client); /* its handle with it */
	}
	daemon->persist = persist_free(daemon->persist);
	pressure_stop(daemon->pressure);
	uv_walk(&daemon->loop, close_handle, NULL);
	while (uv_run(&daemon->loop, UV_RUN_DEFAULT) != 0) {
		/* closing handles */
	}
	REQUIRE(uv_loop_close(&daemon->loop) == 0);
	daemon->store = store_free(daemon->store);
	daemon->host = device_close(daemon->host);
	daemon->mailbox = mailbox_free(daemon->mailbox);
	history_fini(&daemon->history);
	daemon->reloaded = config_free(daemon->reloaded);
	free(daemon->core_memory);
	log_notice("ended");
}
