/* SPDX-License-Identifier: Apache-2.0 */
/* distorchctl doctor: looks at what usually goes wrong; each finding comes with its fix. */
#include "options.h"
#include "render.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

struct report {
	struct ctl *ctl;
	cJSON *array; /* NULL: for people */
	unsigned n_findings;
};

/* A line: good, or a finding with its fix. */
static void tell(struct report *report, bool is_good, const char *text, const char *fix)
{
	char safe[1024];

	report->n_findings += is_good ? 0 : 1;
	if (report->array != NULL) {
		cJSON *item = json_add_item(report->array);

		json_add_bool(item, "ok", is_good);
		json_add_text(item, "text", text);
		json_add_text(item, "fix", is_good ? NULL : fix);
		return;
	}
	if (is_good && report->ctl->arguments.is_quiet) {
		return;
	}
	(void)printf("%s %s\n", is_good ? "✔" : "✖", safe_text(text, safe, sizeof safe));
	if (!is_good && fix != NULL) {
		(void)printf("  fix: %s\n", safe_text(fix, safe, sizeof safe));
	}
}

/* Is there a socket that can be tried? */
static bool check_socket(struct report *report, const char *path)
{
	struct stat status;
	char text[512];

	if (stat(path, &status) < 0) {
		(void)snprintf(text, sizeof text, "no socket at %.400s: %s", path, strerror(errno));
		tell(report, false, text, "start it: distorchd (or name its socket with --socket)");
		return false;
	} else if (!S_ISSOCK(status.st_mode)) {
		(void)snprintf(text, sizeof text, "%.400s is not a socket", path);
		tell(report, false, text, "choose another path with --socket");
		return false;
	} else if (access(path, W_OK) < 0) {
		(void)snprintf(text, sizeof text,
			       "socket %.300s (mode %04o, gid %u) is closed to you", path,
			       (unsigned)(status.st_mode & 07777U), (unsigned)status.st_gid);
		tell(report, false, text, "join its group, then log in again");
		return false;
	} else {
		(void)snprintf(text, sizeof text, "socket %.400s, mode %04o", path,
			       (unsigned)(status.st_mode & 07777U));
		tell(report, true, text, NULL);
	}
	return true;
}

static bool check_daemon(struct report *report)
{
	struct distorch_server *server = NULL;
	struct timespec begun = {0};
	struct timespec ended = {0};
	struct ctl *ctl = report->ctl;
	char text[256];

	if (ctl_open(ctl) < 0) {
		const struct distorch_error *error = distorch_error(NULL);

		tell(report, false, error->message,
		     error->hint != NULL ? error->hint : "start it: distorchd");
		return false;
	}
	(void)clock_gettime(CLOCK_MONOTONIC, &begun); /* cannot fail */
	if (distorch_ping(ctl->c) < 0 || distorch_server(ctl->c, &server) < 0) {
		tell(report, false, distorch_error(ctl->c)->message,
		     "look into the log: distorchctl logs");
		return false;
	}
	(void)clock_gettime(CLOCK_MONOTONIC, &ended);
	(void)snprintf(text, sizeof text,
		       "daemon answers (%lld us), protocol %llu, %.64s, you are %.16s",
		       (long long)(ended.tv_sec - begun.tv_sec) * 1000000 +
			       (ended.tv_nsec - begun.tv_nsec) / 1000,
		       (unsigned long long)server->protocol, server->version, server->role);
	tell(report, true, text, NULL);
	(void)snprintf(text, sizeof text, "distorchd/%s", DISTORCH_VERSION);
	if (strcmp(server->version, text) != 0) {
		(void)snprintf(text, sizeof text, "the daemon is %.64s, this program %s",
			       server->version, DISTORCH_VERSION);
		tell(report, false, text, "restart the daemon after an upgrade");
	}
	distorch_server_free(server);
	return true;
}

static void tell_fault(struct report *report, const char *what, const char *fault, const char *fix)
{
	char text[700];

	if (fault != NULL) {
		(void)snprintf(text, sizeof text, "%s: %.600s", what, fault);
		tell(report, false, text, fix);
	}
}

/* Of that device alone, unless all of them drain: others' drains go on. */
static const char *end_of_drain(const struct distorch_status *status,
				const struct distorch_device *device, char *fix, size_t size)
{
	bool is_all = true;

	for (size_t i = 0; i < status->n_devices; i++) {
		is_all = is_all && status->devices[i]->draining;
	}
	(void)snprintf(fix, size, "end the drain: distorchctl drain --off%s%.32s",
		       is_all ? "" : " --device ", is_all ? "" : device_text(device->name));
	return fix;
}

static void check_status(struct report *report)
{
	struct distorch_status *status = NULL;
	char fix[96];
	char budget[24];
	char total[24];
	char text[256];

	if (distorch_status(report->ctl->c, &status) < 0) {
		tell(report, false, distorch_error(report->ctl->c)->message,
		     "look into the log: distorchctl logs");
		return;
	}
	for (size_t i = 0; i < status->n_devices; i++) {
		const struct distorch_device *device = status->devices[i];
		bool is_good = device->budget <= device->total - device->total / 10 || i > 0;

		if (strcmp(device->state, "ok") != 0) {
			(void)snprintf(text, sizeof text, "%.32s is %.16s: %.180s",
				       device_text(device->name), device->state,
				       device->text == NULL ? "nothing more is known"
							    : device->text);
			tell(report, false, text,
			     device->draining ? end_of_drain(status, device, fix, sizeof fix)
					      : "look into the log: distorchctl logs");
			continue;
		}
		(void)snprintf(text, sizeof text, "%.32s budget %s of %s",
			       device_text(device->name),
			       size_text(report->ctl, device->budget, budget),
			       size_text(report->ctl, device->total, total));
		tell(report, is_good, text,
		     "leave a tenth to the rest of the machine: memory.ram in distorchd.conf");
		if (device->draining) {
			(void)snprintf(text, sizeof text, "%.32s takes no new loads: it is drained",
				       device_text(device->name));
			tell(report, false, text, end_of_drain(status, device, fix, sizeof fix));
		}
	}
	if (status->no_cards != NULL) {
		(void)snprintf(text, sizeof text, "no GPU is used: %.200s", status->no_cards);
		tell(report, true, text, NULL);
	}
	tell(report, true,
	     status->survives_restart
		     ? "models outlive the daemon"
		     : "models do not outlive the daemon; by distorchd-hold or as a service they do",
	     NULL);
	tell_fault(report, CONFIG_FAULT_TEXT, status->config_fault, CONFIG_FAULT_FIX);
	tell_fault(report, STATE_FAULT_TEXT, status->state_fault, STATE_FAULT_FIX);
	distorch_status_free(status);
}

/* Did the largest image get 2 MiB pages? */
static void check_pages(struct report *report)
{
	struct distorch_models *models = NULL;
	const struct distorch_model *largest = NULL;
	struct distorch_detail *detail = NULL;
	uint64_t most = 0;
	char text[512];

	if (distorch_list(report->ctl->c, NULL, &models) < 0) {
		return; /* told by another check */
	}
	for (size_t i = 0; i < models->n_models; i++) {
		const uint64_t bytes = model_image_bytes(models->models[i]);

		if (bytes > most && models->models[i]->name != NULL) {
			largest = models->models[i];
			most = bytes;
		}
	}
	if (most >= 4U << 20 && distorch_show(report->ctl->c, largest->id, &detail, NULL) == 0) {
		bool is_good = detail->huge_bytes != DISTORCH_ABSENT &&
			       detail->huge_bytes >= most / 2;
		const char *notice = is_good || detail->notice == NULL ? "" : detail->notice;

		(void)snprintf(text, sizeof text, "images %s in 2 MiB pages%s%.200s",
			       is_good ? "are" : "are not", notice[0] == '\0' ? "" : ": ", notice);
		tell(report, is_good, text,
		     "allow them: set /sys/kernel/mm/transparent_hugepage/shmem_enabled to advise");
		distorch_detail_free(detail);
	}
	distorch_models_free(models);
}

/* What was to be loaded at the start and is not. Only administrators may ask. */
static void check_warm(struct report *report)
{
	struct distorch_warm *warm = NULL;
	size_t n_failed = 0;
	char text[700];

	if (distorch_warm(report->ctl->c, DISTORCH_WARM_LOOK, NULL, &warm) < 0) {
		return;
	}
	for (size_t i = 0; i < warm->n_entries; i++) {
		const struct distorch_warm_entry *entry = warm->entries[i];

		if (entry->text == NULL) {
			continue;
		}
		n_failed++;
		(void)snprintf(text, sizeof text, "of the warm list %.160s is not loaded: %.500s",
			       entry->path, entry->text);
		tell(report, false, text,
		     "mend it, then distorchctl reload; or take it off: distorchctl warm rm FILE");
	}
	if (warm->n_entries > 0 && n_failed == 0) {
		(void)snprintf(text, sizeof text, "%zu model%s of the warm list", warm->n_entries,
			       warm->n_entries == 1 ? "" : "s");
		tell(report, true, text, NULL);
	}
	distorch_warm_free(warm);
}

static void check_limits(struct report *report)
{
	struct rlimit files;
	char text[128];

	if (getrlimit(RLIMIT_NOFILE, &files) < 0) {
		return;
	}
	(void)snprintf(text, sizeof text, "open files of what is started here: at most %llu",
		       (unsigned long long)files.rlim_max);
	tell(report, files.rlim_max >= 4096, text, "raise LimitNOFILE (or ulimit -Hn) to 65536");
}

static int run(struct ctl *ctl)
{
	cJSON *object = is_json(ctl) ? json_new() : NULL;
	struct report report = {.ctl = ctl,
				.array = object == NULL ? NULL : json_add_array(object, "checks")};
	char path[512];

	if (ctl->arguments.socket_path != NULL) {
		(void)snprintf(path, sizeof path, "%s", ctl->arguments.socket_path);
	} else if (distorch_default_path(path, sizeof path) < 0) {
		(void)snprintf(path, sizeof path, "?");
	}
	if (check_socket(&report, path) && check_daemon(&report)) {
		check_status(&report);
		check_pages(&report);
		check_warm(&report);
	}
	check_limits(&report);
	if (object != NULL) {
		json_add_number(object, "findings", report.n_findings);
		(void)json_print(ctl, object);
	} else if (report.n_findings == 0) {
		(void)printf("all good\n");
	} else {
		(void)printf("%u finding%s (exit %d)\n", report.n_findings,
			     report.n_findings == 1 ? "" : "s", EXIT_FINDINGS);
	}
	return report.n_findings == 0 ? EXIT_DONE : EXIT_FINDINGS;
}

static const struct argp_option no_options[] = {OPTIONS_END};

const struct verb verb_doctor = {
	.name = "doctor",
	.group = VERB_EVERYDAY,
	.usage = "",
	.summary = "Look at what usually goes wrong, with a fix for each finding.",
	.text = "Exit status: 0 all good, 9 findings.",
	.options = no_options,
	.run = run,
};
