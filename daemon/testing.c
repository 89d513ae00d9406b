/* SPDX-License-Identifier: Apache-2.0 */
/* Hooks of testing builds. See testing.h. */
#include "daemon/testing.h"

#ifdef DISTORCH_TESTING
#	include <signal.h>
#	include <stdbool.h>
#	include <stdio.h>
#	include <stdlib.h>
#	include <string.h>
#	include <unistd.h>

#	include "base/err.h"
#	include "base/os/log.h"
#	include "base/os/sys.h"
#	include "daemon/daemon.h"
#	include "daemon/device/device.h"
#	include "daemon/pressure.h"

uint32_t testing_ms(const char *name, uint32_t usual)
{
	const char *text = getenv(name);

	return text == NULL ? usual : (uint32_t)strtoul(text, NULL, 10);
}

void testing_point(const char *name)
{
	static uint64_t n_passed;
	const char *path = getenv("DISTORCHD_TEST_POINT");
	FILE *file = path == NULL ? NULL : fopen(path, "re");
	char wanted[64] = "";
	char ever[8] = "";
	unsigned long long nth = 1;

	if (file == NULL) {
		return;
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

static void carry_out(struct daemon *daemon, const char *verb, const char *rest, FILE *answer)
{
	bool is_good = true;

	if (strcmp(verb, "hits") == 0) {
		(void)fprintf(answer, "%llu\n", (unsigned long long)sys_fault_n_hits(rest));
		return;
	}
	if (strcmp(verb, "fault") == 0) {
		sys_fault_clear();
		is_good = sys_fault_parse(rest);
	} else if (strcmp(verb, "clear") == 0) {
		sys_fault_clear();
	} else if (strcmp(verb, "reserve") == 0) {
		daemon->reserve_bytes = strtoull(rest, NULL, 10);
	} else if (strcmp(verb, "pressure") == 0) {
		daemon->pressure_ns = 0;
		pressure_felt(daemon);
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
