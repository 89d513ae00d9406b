/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Worker processes. See workers.h. A worker's life: begun (uv_spawn, one socket); it opens its
 * device (an errand waits for that); it is there, and asked now and then how it is; it ends, or
 * its socket hangs up because it did not answer in time, and is killed; after a rest, that grows
 * with each failure, it is begun again. Whatever waits in the kernel for a device waits in the
 * worker, or on an errand: never here.
 */
#include "daemon/workers.h"

#include "base/checked.h"
#include "base/cleanup.h"
#include "base/err.h"
#include "base/list.h"
#include "base/os/clock.h"
#include "base/os/log.h"
#include "base/os/sys.h"
#include "base/units.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "daemon/answer.h"
#include "daemon/daemon.h"
#include "daemon/device/remote.h"
#include "daemon/device/xid.h"
#include "daemon/errand.h"
#include "daemon/ipc/server.h"
#include "daemon/persist.h"
#include "daemon/testing.h"
#include "daemon/workers_inside.h"

#define REST_MS     200 /* before the second try; doubled up to the next */
#define MAX_REST_MS 30000
#define LOOK_MS     5000        /* how often a device is asked how it is */
#define STUCK_MS    1000        /* that a killed worker is waited for */
#define STEADY_MS   60000       /* what was well for so long begins to rest anew */
#define ENOUGH      16          /* such a part of a device, free, lets the unused stay there */
#define SLEPT_NS    1000000000U /* less is no sleep: both clocks are read one after the other */

static struct known_device *known(const struct worker *worker)
{
	return &worker->daemon->devices[worker->device];
}

const char *device_state_name(enum device_state state)
{
	static const char *const names[] = {"ok", "starting", "lost", "unavailable"};

	return names[state];
}

static void log_device(enum log_level level, const struct worker *worker, const char *text)
{
	const struct log_field fields[] = {{"DISTORCHD_EVENT", "device"},
					   {"DISTORCHD_DEVICE", known(worker)->name},
					   {"DISTORCHD_STATE",
					    device_state_name(known(worker)->state)}};

	log_event(level, fields, sizeof fields / sizeof fields[0], "%s %s", known(worker)->name,
		  text);
}

static void set_state(struct worker *worker, enum device_state state, const char *reason)
{
	struct known_device *device = known(worker);
	bool is_new = device->state != state;

	device->state = state;
	(void)snprintf(device->reason, sizeof device->reason, "%s", reason);
	if (is_new) {
		answer_device(worker->daemon, worker->device);
	}
}

/* ---- what becomes of a worker ---- */

static bool is_draining(const struct worker *worker)
{
	struct core_account_view account;

	core_account_get(worker->daemon->core, worker->device, &account);
	return account.is_draining;
}

static uint32_t rest_ms(const struct worker *worker)
{
	const uint32_t first = testing_ms("DISTORCHD_TEST_REST_MS", REST_MS);
	const uint32_t shift = worker->n_tries < 16 ? worker->n_tries : 16;
	const uint64_t rest = (uint64_t)first << shift;

	return rest < MAX_REST_MS ? (uint32_t)rest : MAX_REST_MS;
}

static void on_rested(uv_timer_t *timer)
{
	worker_begin(timer->data);
}

static void flush(const struct worker *worker)
{
	if (worker->daemon->server != NULL) {
		server_flush(worker->daemon->server); /* no step follows that would */
	}
}

/* No worker is begun for a device that drains. */
static void stay_away(struct worker *worker)
{
	char text[160];

	(void)uv_timer_stop(&worker->timer);
	worker->is_let_go = true;
	(void)snprintf(text, sizeof text,
		       "drained, and its driver is let go of, until: distorchctl drain --off "
		       "--device %s",
		       known(worker)->name);
	set_state(worker, DEVICE_STATE_UNAVAILABLE, text);
	log_device(LOG_LEVEL_INFO, worker, "is drained and holds nothing: its driver is let go of");
	flush(worker);
}

/* All of the last process is gone: begin the next after a while. */
static void rest(struct worker *worker)
{
	if (worker->n_open > 0 || worker->is_opening || worker->is_unwanted || worker->is_let_go ||
	    worker->daemon->workers->is_stopped) {
		return;
	}
	if (is_draining(worker)) {
		stay_away(worker);
		return;
	}
	if (known(worker)->state == DEVICE_STATE_STARTING) { /* somebody waits for it */
		(void)uv_timer_start(&worker->timer, on_rested, 0, 0);
		return;
	}
	(void)uv_timer_start(&worker->timer, on_rested, rest_ms(worker), 0);
	worker->n_tries++;
}

/* It was let go of on purpose: that was no failure to rest after. */
static void begin_again(struct worker *worker)
{
	worker->is_let_go = false;
	worker->n_tries = 0;
	set_state(worker, DEVICE_STATE_STARTING, "it drains no longer, and its worker is begun");
	flush(worker);
	rest(worker); /* or when the last one has ended */
}

/* It was well, and is no more. */
static void lose(struct worker *worker, const char *why)
{
	struct known_device *device = known(worker);
	struct core_event event = {.type = EV_DEVICE_LOST};
	char reason[160];
	char text[256];

	(void)snprintf(reason, sizeof reason, "%s", why);
	/* That it has ended says less than how; that it was given up, why it was killed. */
	if (remote_detach(device->device, why, reason, sizeof reason)) {
		(void)snprintf(reason, sizeof reason, "%s", why);
	}
	device->n_lost++;
	if ((clock_mono_ns() - worker->ok_since_ns) / 1000000 >
	    testing_ms("DISTORCHD_TEST_STEADY_MS", STEADY_MS)) {
		worker->n_tries = 0;
	}
	(void)uv_timer_stop(&worker->timer);
	set_state(worker, DEVICE_STATE_LOST, reason);
	(void)snprintf(text, sizeof text, "is lost, and what it held with it: %s", reason);
	log_device(LOG_LEVEL_WARNING, worker, text);
	event.device.device = worker->device;
	(void)daemon_step(worker->daemon, &event); /* what it held is gone */
}

/* It could not be opened. */
static void fail(struct worker *worker, const char *why)
{
	struct known_device *device = known(worker);
	bool is_news = device->state == DEVICE_STATE_STARTING || strcmp(device->reason, why) != 0;
	char text[320];

	set_state(worker, DEVICE_STATE_UNAVAILABLE, why);
	if (is_news) { /* and not at each try */
		(void)snprintf(text, sizeof text, "cannot be used: %s", why);
		log_device(LOG_LEVEL_WARNING, worker, text);
	}
	flush(worker);
}

static void kill_worker(struct worker *worker)
{
	if (worker->is_running) {
		(void)uv_process_kill(&worker->process, SIGKILL); /* it may have ended by itself */
	}
}

static void on_closed(uv_handle_t *handle)
{
	struct worker *worker = handle->data;

	if (handle == (uv_handle_t *)&worker->hangup) {
		(void)close(worker->hangup_fd);
		worker->hangup_fd = -1;
	}
	worker->n_open--;
	rest(worker);
}

static void close_hangup(struct worker *worker)
{
	if (worker->hangup_fd >= 0 && !uv_is_closing((uv_handle_t *)&worker->hangup)) {
		uv_close((uv_handle_t *)&worker->hangup, on_closed);
	}
}

static void on_exit_of_worker(uv_process_t *process, int64_t status, int number)
{
	struct worker *worker = process->data;

	workers_describe_end(status, number, worker->end, sizeof worker->end);
	worker->is_running = false;
	known(worker)->pid = 0;
	if (known(worker)->state == DEVICE_STATE_OK) {
		lose(worker, worker->end);
	} else if (worker->has_failed) {
		fail(worker, worker->end);
	}
	close_hangup(worker);
	uv_close((uv_handle_t *)process, on_closed);
}

/* It does not end, though it was killed: it is stuck in the kernel. */
static void on_stuck(uv_timer_t *timer)
{
	struct worker *worker = timer->data;

	if (known(worker)->state == DEVICE_STATE_OK) {
		lose(worker, "its worker does not end: it is stuck in the driver");
	}
}

static void wait_for_end(struct worker *worker)
{
	(void)uv_timer_start(&worker->timer, on_stuck, STUCK_MS, 0);
}

/* It has ended, or was given up and has to: how, its end will tell. */
static void on_hangup(uv_poll_t *poll, int status, int events)
{
	struct worker *worker = poll->data;

	(void)status; /* whatever it is: the socket is of no use any more */
	(void)events;
	worker->has_hung_up = true;
	close_hangup(worker);
	kill_worker(worker);
	if (known(worker)->state == DEVICE_STATE_OK) {
		wait_for_end(worker);
	}
}

/* And nothing that was begun before will. */
static bool holds_nothing(const struct worker *worker)
{
	struct core_account_view account;

	core_account_get(worker->daemon->core, worker->device, &account);
	return account.resident + account.loading + account.dropping + account.held +
			       account.reserved ==
		       0 &&
	       !core_is_awaited(worker->daemon->core, worker->device);
}

/* Nothing is lost by it. */
static void let_go(struct worker *worker)
{
	struct core_event event = {.type = EV_DEVICE_LOST, .device = {.device = worker->device}};

	(void)remote_detach(known(worker)->device, "it is drained", NULL, 0);
	worker->has_hung_up = true;
	close_hangup(worker);
	stay_away(worker);
	(void)daemon_step(worker->daemon, &event);
	kill_worker(worker);
}

void workers_apply_drain(struct daemon *daemon)
{
	struct workers *workers = daemon->workers;

	for (uint32_t i = 1; workers != NULL && i < daemon->n_devices; i++) {
		struct worker *worker = &workers->workers[i];

		if (worker->is_let_go != is_draining(worker)) {
			if (worker->is_let_go) {
				begin_again(worker);
			} else if (daemon->devices[i].state != DEVICE_STATE_OK) {
				rest(worker); /* no longer, if that is what it does */
			} else if (holds_nothing(worker)) {
				let_go(worker);
			}
		}
	}
}

void workers_notice_sleep(struct daemon *daemon)
{
	struct workers *workers = daemon->workers;
	const uint64_t slept_ns = workers_slept_ns();

	if (workers == NULL || slept_ns < workers->slept_ns + SLEPT_NS) {
		return;
	}
	workers->slept_ns = slept_ns;
	for (uint32_t i = 1; i < daemon->n_devices && !workers->keeps_in_sleep; i++) {
		struct worker *worker = &workers->workers[i];

		if (strncmp(daemon->devices[i].name, "cuda:", 5) != 0) {
			continue;
		}
		worker->has_hung_up = true;
		close_hangup(worker);
		if (daemon->devices[i].state == DEVICE_STATE_OK) {
			lose(worker, "the machine slept, and the driver keeps nothing on cards "
				     "over that (PreserveVideoMemoryAllocations)");
		}
		kill_worker(worker);
	}
}

/* ---- it is there ---- */

struct look {
	struct errand errand;
	struct workers *workers;
	struct worker *worker;
	struct device *device;
	struct device_info info;
	struct err err;
	int code;
	bool has_ended;       /* the worker, while it opened its device */
	int socket;           /* of a worker that is to open its device; -1: it has */
	uint64_t held_before; /* of the device, dropped and mapped by clients; at its beginning */
	struct remote_options options;
};

static void look_drop(struct errand *errand)
{
	struct look *look = container_of(errand, struct look, errand);
	struct workers *workers = look->workers;

	free(look);
	(void)__atomic_sub_fetch(&workers->n_looks, 1, __ATOMIC_ACQ_REL);
}

static void look_work(struct errand *errand)
{
	struct look *look = container_of(errand, struct look, errand);

	look->code = look->socket >= 0
			     ? remote_attach(look->device, steal_fd(&look->socket), &look->options,
					     &look->info, &look->has_ended, &look->err)
			     : device_info(look->device, &look->info, &look->err);
}

static bool look_start(struct worker *worker, int socket,
		       void (*done)(struct daemon *daemon, struct errand *errand))
{
	struct look *look = sys_calloc(1, sizeof *look);
	struct core_account_view account;

	if (look == NULL) {
		return false;
	}
	core_account_get(worker->daemon->core, worker->device, &account);
	*look = (struct look){.errand = {.work = look_work, .done = done, .drop = look_drop},
			      .workers = worker->daemon->workers,
			      .worker = worker,
			      .device = known(worker)->device,
			      .socket = socket,
			      .held_before = account.held,
			      .options = worker->daemon->workers->options};
	(void)__atomic_add_fetch(&look->workers->n_looks, 1, __ATOMIC_ACQ_REL);
	if (!errand_start(worker->daemon->errands, &look->errand)) {
		look_drop(&look->errand);
		return false;
	}
	return true;
}

static void on_look_due(uv_timer_t *timer);

/* It is well, unless it has hung up meanwhile: then nothing but its end is waited for. */
static void look_later(struct worker *worker)
{
	if (worker->has_hung_up) {
		wait_for_end(worker);
		return;
	}
	(void)uv_timer_start(&worker->timer, on_look_due,
			     testing_ms("DISTORCHD_TEST_LOOK_MS", LOOK_MS), 0);
}

/* Bytes of the card that nobody has, by what it and the core say. */
static uint64_t count_free(const struct known_device *device,
			   const struct core_account_view *account)
{
	const struct device_info *info = &device->info;
	const uint64_t ours =
		account->resident + account->loading + account->dropping + account->held;
	uint64_t taken = UINT64_MAX;

	(void)checked_add(ours, info->foreign_bytes, &taken);
	return taken < info->total_bytes ? info->total_bytes - taken : 0;
}

/* Others take more of it, and little is left: what nobody uses there goes before they run out. */
static void make_way(const struct worker *worker)
{
	struct daemon *daemon = worker->daemon;
	const struct known_device *device = known(worker);
	const uint64_t enough = device->info.total_bytes / ENOUGH;
	struct core_event event = {.type = EV_DEVICE_SHORT, .device = {.device = worker->device}};
	struct core_account_view account;
	uint64_t n_free;
	char free_text[16];
	char text[64];

	core_account_get(daemon->core, worker->device, &account);
	n_free = count_free(device, &account);
	if (n_free >= enough || account.evictable == 0) {
		return;
	}
	(void)snprintf(text, sizeof text, "is short of memory: others use more of it, %s free",
		       units_format_size(n_free, free_text, sizeof free_text));
	log_device(LOG_LEVEL_INFO, worker, text);
	answer_pressure(daemon, device->name, n_free, enough - n_free);
	(void)daemon_step(daemon, &event);
}

/* The driver has reported faults of the card. */
static void take_xid(struct worker *worker, uint32_t xid)
{
	struct core_event event = {.type = EV_DEVICE_DOUBTED, .device = {.device = worker->device}};
	char text[160];

	switch (xid_class_of(xid)) {
	case XID_OF_PROGRAM:
		(void)snprintf(text, sizeof text, "Xid %u was reported of it: some program's fault",
			       xid);
		log_device(LOG_LEVEL_INFO, worker, text);
		break;
	case XID_OF_MEMORY:
		(void)snprintf(text, sizeof text,
			       "Xid %u was reported of it, a fault of memory: what lies there is "
			       "compared with what it was made of",
			       xid);
		log_device(LOG_LEVEL_WARNING, worker, text);
		(void)daemon_step(worker->daemon, &event);
		break;
	case XID_OF_CARD:
		(void)snprintf(text, sizeof text,
			       "Xid %u was reported of it: it does not answer or has to be reset",
			       xid);
		worker->has_hung_up = true;
		close_hangup(worker);
		lose(worker, text);
		kill_worker(worker);
		break;
	}
}

static void take_look(struct worker *worker, const struct look *look)
{
	const struct device_info *info = &look->info;
	struct known_device *device = known(worker);
	const bool is_faulty = info->n_xids != device->info.n_xids;
	const bool is_more =
		workers_take_info(worker->daemon, worker->device, info, look->held_before);

	if (is_faulty) {
		take_xid(worker, info->last_xid);
	}
	if (device->state != DEVICE_STATE_OK) {
		return;
	}
	if (is_more) {
		make_way(worker);
	}
	workers_tell_budget(worker->daemon, worker->device);
}

static void on_looked(struct daemon *daemon, struct errand *errand)
{
	struct look *look = container_of(errand, struct look, errand);
	struct worker *worker = look->worker;

	worker->is_looking = false;
	if (known(worker)->state == DEVICE_STATE_OK) {
		if (look->code == 0) {
			take_look(worker, look);
		} /* else it has hung up, or says more the next time */
	}
	workers_apply_drain(daemon);
	if (known(worker)->state == DEVICE_STATE_OK) {
		look_later(worker);
	}
	look_drop(errand);
}

static void on_look_due(uv_timer_t *timer)
{
	struct worker *worker = timer->data;

	workers_notice_sleep(worker->daemon);
	if (worker->has_hung_up) {
		return; /* its end is on its way */
	}
	if (!worker->is_looking && look_start(worker, -1, on_looked)) {
		worker->is_looking = true;
	} else {
		look_later(worker);
	}
}

/* Has room been given back that a program had taken? It may have the memory still. */
static bool has_room_ended(const struct worker *worker)
{
	const struct known_device *device = known(worker);
	const uint64_t taken = device->info.foreign_bytes - device->strangers_bytes;
	struct core_account_view account;

	if (taken == 0) {
		return false;
	}
	core_account_get(worker->daemon->core, worker->device, &account);
	return account.reserved < taken;
}

void workers_look_now(struct daemon *daemon, uint32_t device)
{
	struct worker *worker = &daemon->workers->workers[device];

	if (known(worker)->state == DEVICE_STATE_OK && !worker->is_looking) {
		(void)uv_timer_start(&worker->timer, on_look_due, 0, 0);
	}
}

/* In the next turn of the loop: this one may be in the midst of something. */
void workers_notice_step(struct daemon *daemon)
{
	struct workers *workers = daemon->workers;

	for (uint32_t i = 1; workers != NULL && !workers->is_stopped && i < daemon->n_devices;
	     i++) {
		struct worker *worker = &workers->workers[i];

		if (daemon->devices[i].state == DEVICE_STATE_OK && !worker->has_hung_up &&
		    !worker->is_looking &&
		    ((is_draining(worker) && holds_nothing(worker)) || has_room_ended(worker))) {
			(void)uv_timer_start(&worker->timer, on_look_due, 0, 0);
		}
	}
}

static bool is_other_card(const struct known_device *device, const struct device_info *info)
{
	return device->info.uuid[0] != '\0' && strcmp(device->info.uuid, info->uuid) != 0;
}

static void be_there(struct worker *worker, const struct look *look)
{
	const struct device_info *info = &look->info;
	struct known_device *device = known(worker);
	struct core_event event = {.type = EV_DEVICE_BACK, .device = {.device = worker->device}};
	char total[16];
	char text[256];

	(void)workers_take_info(worker->daemon, worker->device, info, look->held_before);
	worker->ok_since_ns = clock_mono_ns();
	(void)snprintf(text, sizeof text, "%s: %s, %s, process %u",
		       device->n_lost > 0 ? "is back" : "is there",
		       units_format_size(info->total_bytes, total, sizeof total), info->uuid,
		       device->pid);
	set_state(worker, DEVICE_STATE_OK, "");
	log_device(LOG_LEVEL_INFO, worker, text);
	look_later(worker); /* or sooner, by what the steps bring */
	workers_tell_budget(worker->daemon, worker->device);
	(void)daemon_step(worker->daemon, &event);
	if (info->n_xids > 0) { /* while it was opened */
		take_xid(worker, info->last_xid);
	}
	persist_come_back(worker->daemon);
}

static void on_opened(struct daemon *daemon, struct errand *errand)
{
	struct look *look = container_of(errand, struct look, errand);
	struct worker *worker = look->worker;
	struct known_device *device = known(worker);

	worker->is_opening = false;
	if (look->code == 0 && is_other_card(device, &look->info)) {
		(void)err_set(&look->err, WIRE_DEVICE_LOST,
			      "it is another card by now: %s, and was %s; restart the daemon",
			      look->info.uuid, device->info.uuid);
	} else if (look->code == 0 && !workers_is_wanted(daemon->config, device, &look->info)) {
		worker->is_unwanted = true;
		(void)err_set(&look->err, WIRE_NOT_ALLOWED, "gpu.devices does not name %s",
			      look->info.uuid);
	} else if (look->code == 0 && !worker->is_running) {
		(void)err_set(&look->err, WIRE_DEVICE_LOST, "%s", worker->end);
	}
	if (look->err.code == 0) {
		be_there(worker, look);
	} else {
		(void)remote_detach(device->device, look->err.text, NULL, 0);
		worker->has_failed = look->has_ended;
		if (!worker->has_failed) {
			fail(worker, look->err.text);
		} else if (!worker->is_running) {
			fail(worker, worker->end);
		} /* else its end tells, in a moment */
		kill_worker(worker);
	}
	look_drop(errand);
	rest(worker);
}

/* ---- its beginning ---- */

static bool watch_hangup(struct worker *worker, int socket)
{
	worker->hangup_fd = sys_fcntl_dup(socket);
	if (worker->hangup_fd < 0) {
		return false;
	}
	worker->hangup.data = worker;
	if (uv_poll_init(&worker->daemon->loop, &worker->hangup, worker->hangup_fd) < 0) {
		(void)close(worker->hangup_fd);
		worker->hangup_fd = -1;
		return false;
	}
	worker->n_open++;
	return uv_poll_start(&worker->hangup, UV_DISCONNECT, on_hangup) == 0;
}

void worker_begin(struct worker *worker)
{
	struct workers *workers = worker->daemon->workers;
	struct known_device *device = known(worker);
	char why[640];
	int socket = -1;
	int code;

	worker->end[0] = '\0';
	worker->has_failed = false;
	worker->has_hung_up = false;
	worker->process.data = worker;
	code = workers_spawn(workers, &worker->process, device->name, on_exit_of_worker, &socket);
	worker->n_open++; /* also when it failed */
	if (code < 0) {
		(void)snprintf(why, sizeof why, "%s cannot be begun: %s", workers->program,
			       uv_strerror(code));
		fail(worker, why);
		uv_close((uv_handle_t *)&worker->process, on_closed);
		return;
	}
	worker->is_running = true;
	device->pid = (uint32_t)worker->process.pid;
	if (!watch_hangup(worker, socket) || !look_start(worker, socket, on_opened)) {
		(void)close(socket);
		fail(worker, "no memory, thread or descriptor to open it");
		kill_worker(worker);
		return;
	}
	worker->is_opening = true;
}
