/* SPDX-License-Identifier: Apache-2.0 */
/* See alarm.h. */
#include "daemon/alarm.h"

#include "base/err.h"
#include "base/os/clock.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "daemon/daemon.h"

static void on_alarm(uv_poll_t *poll, int status, int events)
{
	struct daemon *daemon = poll->data;
	struct core_event event = {.type = EV_TICK};

	(void)status; /* a timer has no error of its own */
	(void)events;
	clock_alarm_clear(daemon->alarm);
	daemon->alarm_ns = UINT64_MAX;
	(void)daemon_step(daemon, &event);
}

int alarm_init(struct daemon *daemon, struct err *err)
{
	daemon->deadline_ns = daemon->alarm_ns = UINT64_MAX;
	daemon->alarm = clock_alarm_new();
	daemon->alarm_poll.data = daemon;
	if (daemon->alarm < 0) {
		return err_set_sys(err, WIRE_TOO_MANY, errno, "cannot make a timer: %s",
				   strerror(errno));
	}
	if (uv_poll_init(&daemon->loop, &daemon->alarm_poll, daemon->alarm) < 0 ||
	    uv_poll_start(&daemon->alarm_poll, UV_READABLE, on_alarm) < 0) {
		return err_set(err, WIRE_INTERNAL, "cannot watch a timer");
	}
	return 0;
}

void alarm_set(struct daemon *daemon)
{
	if (daemon->alarm_ns != daemon->deadline_ns) {
		daemon->alarm_ns = daemon->deadline_ns;
		clock_alarm_set(daemon->alarm, daemon->deadline_ns);
	}
}

void alarm_fini(struct daemon *daemon)
{
	if (daemon->alarm >= 0) {
		(void)close(daemon->alarm); /* a timer: nothing can be lost */
		daemon->alarm = -1;
	}
}
