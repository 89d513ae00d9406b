/* SPDX-License-Identifier: Apache-2.0 */
/* Hooks of testing builds. See testing.h. */
#include "daemon/testing.h"

#ifdef DISTORCH_TESTING
#	include <signal.h>
#	include <stdbool.h>
#	include <stdio.h>
#	include <stdlib.h>
#	include <string.h>
#	include <sys/stat.h>
#	include <time.h>
#	include <unistd.h>

#	include "base/err.h"
#	include "base/os/clock.h"
#	include "base/os/log.h"
#	include "base/os/sys.h"
#	include "daemon/daemon.h"
#	include "daemon/core/action.h"
#	include "daemon/device/device.h"
#	include "daemon/device/remote.h"
#	include "daemon/load/loader.h"
#	include "daemon/pressure.h"

#	define NS_PER_S 1000000000LL

uint32_t testing_ms(const char *name, uint32_t usual)
{
	const char *text = getenv(name);

	return text == NULL ? usual : (uint32_t)strtoul(text, NULL, 10);
}

const char *testing_text(const char *name, const char *usual)
{
	const char *text = getenv(name);

	return text == NULL ? usual : text;
}

void testing_point(const char *name)
{
	static struct timespec armed; /* when that was; a new order counts anew */
	static uint64_t n_passed;
	struct stat status;
	const char *path = getenv("DISTORCHD_TEST_POINT");
	FILE *file = path == NULL ? NULL : fopen(path, "re");
	char wanted[64] = "";
	char ever[8] = "";
	unsigned long long nth = 1;

	if (file == NULL) {
		return;
	}
	if (fstat(fileno(file), &status) == 0 &&
	    memcmp(&status.st_ctim, &armed, sizeof armed) != 0) {
		armed = status.st_ctim;
		n_passed = 0;
	}
	if (fscanf(file, "%63[^:]:%llu:%7s", wanted, &nth, ever) >= 1 &&
	    strcmp(wanted, name) == 0 && ++n_passed == nth) {
		if (strcmp(ever, "ever") != 0) {
			(void)unlink(path);
		}
		(void)raise(SIGKILL);
	}
	(void)fclose(file); /* was only read */
}

void testing_action(const struct core_action *action)
{
	static const char *const points[ACT_N_VALUES] = {
		[ACT_READ_HEADER] = "do-read-header",
		[ACT_FILL] = "do-fill",
		[ACT_MAKE_TABLE] = "do-make-table",
		[ACT_RECHECK] = "do-recheck",
		[ACT_VERIFY] = "do-verify",
		[ACT_DROP] = "do-drop",
		[ACT_CANCEL] = "do-cancel",
		[ACT_PUBLISH] = "do-publish",
		[ACT_RETIRE] = "do-retire",
		[ACT_CLOSE_FILE] = "do-close-file",
		[ACT_FORGET_JOB] = "do-forget-job",
		[ACT_FORGET_MODEL] = "do-forget-model",
		[ACT_FORGET_CLIENT] = "do-forget-client",
		[ACT_REPLY] = "do-reply",
		[ACT_UNLOAD_ITEM] = "do-unload-item",
		[ACT_PROGRESS] = "do-progress",
		[ACT_LOST] = "do-lost",
		[ACT_FOLLOW] = "do-follow",
		[ACT_LOAD_ENDED] = "do-load-ended",
		[ACT_RECALL] = "do-recall",
		[ACT_NOTE] = "do-note",
		[ACT_RECORD_LEASE] = "do-record-lease",
		[ACT_RECORD_WISH] = "do-record-wish",
		[ACT_RECORD_PLACED] = "do-record-placed",
	};

	testing_point(points[action->type]);
}

void testing_result(const struct load_result *result)
{
	switch (result->type) {
	case LOAD_HEADER:
		testing_point("got-header");
		break;
	case LOAD_FILLED:
		testing_point("got-filled");
		break;
	case LOAD_TABLED:
		testing_point("got-tabled");
		break;
	case LOAD_PROGRESS:
		testing_point("got-progress");
		break;
	case LOAD_RECHECKED:
		testing_point("got-rechecked");
		break;
	case LOAD_VERIFIED:
		testing_point("got-verified");
		break;
	case LOAD_DROPPED:
		testing_point("got-dropped");
		break;
	case LOAD_MEASURED:
		testing_point("got-measured");
		break;
	}
}

/* The loop is held up, as if by a call that should not have been made on it. */
static void stall(uint64_t ms)
{
	const struct timespec delay = {.tv_sec = (time_t)(ms / 1000),
				       .tv_nsec = (long)(ms % 1000) * 1000000};

	(void)nanosleep(&delay, NULL);
}

static bool corrupt(struct daemon *daemon, uint64_t offset)
{
	const struct model_info *model = store_next_model(daemon->store, NULL);
	struct core_segment_view segment;
	uint32_t cursor = 0;

	while (model != NULL && core_segment_next(daemon->core, model->id, &cursor, &segment)) {
		struct extent *extent = store_find_extent(daemon->store, segment.id);

		if (extent != NULL && host_corrupt(extent, offset, NULL) == 0) {
			return true;
		}
	}
	return false;
}

/* "sim:0 seal:1:io" */
static bool test_worker(struct daemon *daemon, const char *rest)
{
	char name[DEVICE_NAME_SIZE] = "";
	char what[128] = "";

	if (sscanf(rest, "%63s %127s", name, what) == 2) {
		for (uint32_t i = 1; i < daemon->n_devices; i++) {
			if (strcmp(daemon->devices[i].name, name) == 0) {
				return remote_test(daemon->devices[i].device, what, NULL) == 0;
			}
		}
	}
	return false;
}

static void carry_out(struct daemon *daemon, const char *verb, const char *rest, FILE *answer)
{
	bool is_good = true;

	if (strcmp(verb, "hits") == 0) {
		(void)fprintf(answer, "%llu\n", (unsigned long long)sys_fault_n_hits(rest));
		return;
	}
	if (strcmp(verb, "fault") == 0) {
		sys_fault_forget();
		is_good = sys_fault_parse(rest);
	} else if (strcmp(verb, "clear") == 0) {
		sys_fault_clear();
	} else if (strcmp(verb, "reserve") == 0) {
		daemon->reserve_bytes = strtoull(rest, NULL, 10);
	} else if (strcmp(verb, "pressure") == 0) {
		daemon->pressure_ns = 0;
		pressure_felt(daemon);
	} else if (strcmp(verb, "stall") == 0) {
		stall(strtoull(rest, NULL, 10));
	} else if (strcmp(verb, "suspend") == 0) {
		clock_warp_boot(strtoull(rest, NULL, 10) * NS_PER_S);
		clock_alarm_set(daemon->alarm, daemon->alarm_ns); /* the kernel needs no word */
	} else if (strcmp(verb, "clock") == 0) {
		clock_warp_real(strtoll(rest, NULL, 10) * NS_PER_S);
	} else if (strcmp(verb, "worker") == 0) {
		is_good = test_worker(daemon, rest);
	} else if (strcmp(verb, "corrupt") == 0) {
		is_good = corrupt(daemon, strtoull(rest, NULL, 10));
	} else {
		is_good = false;
	}
	(void)fprintf(answer, "%s\n", is_good ? "ok" : "refused");
}

static void on_usr2(uv_signal_t *handle, int number)
{
	const char *path = getenv("DISTORCHD_TEST_FILE");
	char done[512];
	char verb[16] = "";
	char rest[256] = "";
	FILE *file = path == NULL ? NULL : fopen(path, "re");
	FILE *answer;

	(void)number;
	if (file == NULL) {
		log_warning("SIGUSR2, but there is no DISTORCHD_TEST_FILE to read");
		return;
	}
	if (fscanf(file, "%15s %255[^\n]", verb, rest) < 1) {
		log_warning("%s holds no verb", path);
	}
	(void)fclose(file); /* was only read */
	(void)snprintf(done, sizeof done, "%s.done", path);
	answer = fopen(done, "we");
	if (answer != NULL) {
		carry_out(handle->data, verb, rest, answer);
		(void)fclose(answer);
	}
	(void)unlink(path); /* tells the test that the answer is there */
}

void testing_init(void)
{
	const char *faults = getenv("DISTORCHD_FAULT_AT_START");

	if (faults != NULL && !sys_fault_parse(faults)) {
		log_warning("DISTORCHD_FAULT_AT_START cannot be read: %s", faults);
	}
}

/* How often what was to fail until now did. */
static void end_faults_at_start(void)
{
	const char *faults = getenv("DISTORCHD_FAULT_AT_START");
	char name[32] = "";
	uint64_t n_hits;

	if (faults != NULL && sscanf(faults, "%31[^:]", name) == 1) {
		n_hits = sys_fault_n_hits(name);
		sys_fault_clear();
		log_info("%s failed %llu times at the start", name, (unsigned long long)n_hits);
	}
}

void testing_start(struct daemon *daemon)
{
	static uv_signal_t usr2; /* closed with the loop's other handles */
	const char *faults = getenv("DISTORCHD_FAULT");

	end_faults_at_start();
	usr2.data = daemon;
	if (getenv("DISTORCHD_TEST_FILE") != NULL &&
	    (uv_signal_init(&daemon->loop, &usr2) < 0 ||
	     uv_signal_start(&usr2, on_usr2, SIGUSR2) < 0)) {
		log_warning("cannot watch for SIGUSR2");
	}
	if (faults != NULL && !sys_fault_parse(faults)) {
		log_warning("DISTORCHD_FAULT cannot be read: %s", faults);
	}
}
#endif
