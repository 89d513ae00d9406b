/* SPDX-License-Identifier: Apache-2.0 */
/* See pressure.h. */
#include "daemon/pressure.h"

#include "base/os/clock.h"
#include "base/os/log.h"
#include "base/os/sys.h"
#include "base/units.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "daemon/answer.h"
#include "daemon/config.h"
#include "daemon/daemon.h"
#include "daemon/load/loader.h"

/* 150 ms of waiting for memory in 2 s: plain users may ask for multiples of 2 s only. */
static const char trigger[] = "some 150000 2000000";

#define SLOW_MS    10000
#define REST_NS    2000000000U /* one look in so long */
#define HYSTERESIS 8           /* a so-manieth of the reserve beyond it */

struct pressure {
	struct daemon *daemon;
	int fd; /* the trigger; -1: none, the timer looks */
	uv_poll_t poll;
	uv_timer_t timer;
};

static void on_trigger(uv_poll_t *poll, int status, int events)
{
	struct pressure *pressure = poll->data;

	(void)events;
	if (status < 0) { /* its cgroup is gone */
		(void)uv_poll_stop(poll);
		return;
	}
	pressure_felt(pressure->daemon);
}

static void on_timer(uv_timer_t *timer)
{
	struct pressure *pressure = timer->data;
	struct core_account_view account;

	core_account_get(pressure->daemon->core, 0, &account);
	if (account.resident > 0) {
		pressure_felt(pressure->daemon);
	}
}

static int open_trigger(void)
{
	int fd = sys_open("/proc/pressure/memory", O_RDWR | O_NONBLOCK);

	if (fd >= 0 && sys_write(fd, trigger, sizeof trigger) < 0) {
		(void)close(fd); /* not armed */
		fd = -1;
	}
	return fd;
}

struct pressure *pressure_start(struct daemon *daemon)
{
	struct pressure *pressure =
		daemon->config->memory_pressure_evict ? sys_calloc(1, sizeof *pressure) : NULL;

	if (pressure == NULL) {
		return NULL;
	}
	pressure->daemon = daemon;
	pressure->poll.data = pressure->timer.data = pressure;
	pressure->fd = open_trigger();
	if (pressure->fd >= 0 && uv_poll_init(&daemon->loop, &pressure->poll, pressure->fd) < 0) {
		(void)close(pressure->fd);
		pressure->fd = -1;
	}
	if (pressure->fd >= 0) {
		(void)uv_poll_start(&pressure->poll, UV_PRIORITIZED, on_trigger); /* is open */
		return pressure;
	}
	log_notice("the kernel tells nothing of memory pressure: looking every %d s instead",
		   SLOW_MS / 1000);
	(void)uv_timer_init(&daemon->loop, &pressure->timer); /* always succeeds */
	(void)uv_timer_start(&pressure->timer, on_timer, SLOW_MS, SLOW_MS);
	return pressure;
}

static void on_closed(uv_handle_t *handle)
{
	struct pressure *pressure = handle->data;

	if (pressure->fd >= 0) {
		(void)close(pressure->fd); /* after the loop has let go of it */
	}
	free(pressure);
}

void pressure_stop(struct pressure *pressure)
{
	if (pressure != NULL) {
		uv_close(pressure->fd >= 0 ? (uv_handle_t *)&pressure->poll
					   : (uv_handle_t *)&pressure->timer,
			 on_closed);
	}
}

void pressure_felt(struct daemon *daemon)
{
	uint64_t now_ns = clock_mono_ns();

	if (now_ns - daemon->pressure_ns < REST_NS && daemon->pressure_ns != 0) {
		return; /* what was given back has to show first */
	}
	daemon->pressure_ns = now_ns;
	loader_measure(daemon->loader);
}

void pressure_measured(struct daemon *daemon, uint64_t available)
{
	uint64_t reserve = daemon->reserve_bytes;
	struct core_event event = {.type = EV_PRESSURE};
	struct core_account_view before;
	struct core_account_view after;
	char free_text[16];
	char wanted_text[16];
	char given_text[16];

	if (available >= reserve) {
		return; /* tasks waited, but not for what we could give */
	}
	event.pressure.wanted = reserve - available + reserve / HYSTERESIS;
	(void)units_format_size(available, free_text, sizeof free_text);
	(void)units_format_size(event.pressure.wanted, wanted_text, sizeof wanted_text);
	answer_pressure(daemon, daemon->devices[0].name, available, event.pressure.wanted);
	core_account_get(daemon->core, 0, &before);
	(void)daemon_step(daemon, &event);
	core_account_get(daemon->core, 0, &after);
	log_warning("memory is short: %s free, %s wanted back, %s given back", free_text,
		    wanted_text,
		    units_format_size(before.resident - after.resident, given_text,
				      sizeof given_text));
}
