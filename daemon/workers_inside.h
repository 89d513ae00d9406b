/* SPDX-License-Identifier: Apache-2.0 */
/* What workers.c and workers_start.c share. */
#ifndef DAEMON_WORKERS_INSIDE_H
#define DAEMON_WORKERS_INSIDE_H

#include <stdbool.h>
#include <stdint.h>
#include <uv.h>

#include "daemon/core/core.h"
#include "daemon/device/remote.h"
#include "daemon/device/sim.h"
#include "daemon/workers.h"

struct worker {
	struct daemon *daemon;
	uint32_t device; /* its index */
	uv_process_t process;
	uv_poll_t hangup; /* of our end of the socket */
	uv_timer_t timer; /* the rest, the next look, or the wait for its end */
	int hangup_fd;    /* -1: none */
	uint32_t n_open;  /* handles of a process that are not closed yet */
	bool is_running;  /* the process has not been waited for */
	bool is_opening;  /* an errand waits for its answer */
	bool is_looking;  /* likewise */
	bool is_unwanted; /* by the configuration: it is not begun again */
	bool is_let_go;   /* its device is drained and holds nothing: not until that ends */
	bool has_hung_up; /* its end of the socket: it ends, or is stuck */
	bool has_failed;  /* it ended before it had opened its device */
	uint32_t n_tries; /* since it was last well for a while */
	uint64_t ok_since_ns;
	char end[96]; /* how the process ended */
};

struct workers {
	struct daemon *daemon;
	char program[512]; /* distorchd-worker */
	struct sim_config sims[SIM_MAX_DEVICES];
	struct remote_options options;
	struct worker workers[CORE_MAX_DEVICES]; /* by the device's index; [0] is not used */
	struct probe {
		uv_process_t process;
		uv_timer_t timer; /* before the next try */
		bool is_running;
	} probe;
	char no_cards[256];
	uint64_t slept_ns;   /* of the machine, ever, when it was last looked at */
	bool keeps_in_sleep; /* the driver, what lies on its cards */
	uint32_t n_looks;    /* errands under way; atomic */
	bool is_stopped;
};

/* 0 or libuv's code; the handle has to be closed in either case. '*ret_socket': our end. */
int workers_spawn(struct workers *workers, uv_process_t *process, const char *name,
		  uv_exit_cb on_exit, int *ret_socket);

/* In words: how a process ended. */
void workers_describe_end(int64_t status, int number, char *ret, size_t size);

/* By gpu.devices: "all" or a list of UUIDs. */
bool workers_is_wanted(const struct config *config, const struct known_device *device,
		       const struct device_info *info);

void worker_begin(struct worker *worker);

/* After a look: what others have on the device, without what of it the core counts as held, and
 * without what they took of room that is reserved there: that is out of the budget already. True:
 * strangers have more than before. 'held_before': what the core counted so when it began. */
bool workers_take_info(struct daemon *daemon, uint32_t index, const struct device_info *info,
		       uint64_t held_before);
/* Tell the core what may be taken of the device now: what strangers have is not there. */
void workers_tell_budget(struct daemon *daemon, uint32_t index);

/* How long the machine has slept since it was started. */
uint64_t workers_slept_ns(void);

#endif
