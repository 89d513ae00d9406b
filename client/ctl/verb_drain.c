/* SPDX-License-Identifier: Apache-2.0 */
/* distorchctl drain: have new loads refused, and wait until what is under way has ended. */
#include "options.h"
#include "print.h"
#include "render.h"

#include <stdio.h>
#include <string.h>
#include <time.h>

#define LOOK_MS  200 /* between two looks */
#define START_MS 10000

/* The device that was named, by a word that a command line takes as it is: a card's own name has
 * blanks. Returns 'buffer'. */
static const char *short_name(const struct ctl *ctl, char buffer[64])
{
	struct distorch_devices *devices = NULL;
	const struct distorch_device *device = NULL;

	if (distorch_devices(ctl->c, &devices) == 0) {
		device = device_find(devices, ctl->arguments.device);
	}
	(void)safe_text(device != NULL ? device_text(device->name) : ctl->arguments.device, buffer,
			64);
	distorch_devices_free(devices);
	return buffer;
}

static const char *goes_on(const struct ctl *ctl)
{
	static char text[160];
	const bool is_of_one = ctl->arguments.device != NULL;
	char name[64];

	(void)snprintf(text, sizeof text,
		       "it goes on draining; end that: distorchctl drain --off%s%s",
		       is_of_one ? " --device " : "", is_of_one ? short_name(ctl, name) : "");
	return text;
}

/* Who has room on a device keeps it from being let go of; a shutdown is no matter to him. */
static size_t n_waited_for(const struct ctl *ctl, const struct distorch_drain *drain)
{
	return ctl->arguments.device == NULL ? 0 : drain->n_reservers;
}

static bool is_idle(const struct ctl *ctl, const struct distorch_drain *drain)
{
	return drain->loads + drain->leases + n_waited_for(ctl, drain) == 0;
}

/* " (ComfyUI/812 11.1G, blender/911 2.0G)" */
static void add_holders(const struct ctl *ctl, const struct distorch_holder *const *holders,
			size_t count, char *buffer, size_t buffer_size, size_t *used)
{
	char safe[256];
	char size[24];

	for (size_t i = 0; i < count; i++) {
		text_append(buffer, buffer_size, used, "%s%s/%u %s", i == 0 ? " (" : ", ",
			    safe_text(holders[i]->comm, safe, sizeof safe), holders[i]->pid,
			    size_text(ctl, holders[i]->held_bytes, size));
	}
	text_append(buffer, buffer_size, used, "%s", count > 0 ? ")" : "");
}

/* "2 loads (flux1-dev.safetensors, t5xxl.safetensors) and 1 lease (ComfyUI/812 11.1G) and room
 * reserved (blender/911 2.0G)" */
static const char *rest_text(const struct ctl *ctl, const struct distorch_drain *drain,
			     char *buffer, size_t buffer_size)
{
	const size_t n_reservers = n_waited_for(ctl, drain);
	size_t used = 0;
	char safe[256];

	buffer[0] = '\0';
	if (drain->loads > 0) {
		text_append(buffer, buffer_size, &used, "%llu load%s",
			    (unsigned long long)drain->loads, drain->loads == 1 ? "" : "s");
	}
	for (size_t i = 0; i < drain->n_loading; i++) {
		text_append(buffer, buffer_size, &used, "%s%s", i == 0 ? " (" : ", ",
			    safe_text(drain->loading[i], safe, sizeof safe));
	}
	text_append(buffer, buffer_size, &used, "%s", drain->n_loading > 0 ? ")" : "");
	if (drain->leases > 0) {
		text_append(buffer, buffer_size, &used, "%s%llu lease%s", used > 0 ? " and " : "",
			    (unsigned long long)drain->leases, drain->leases == 1 ? "" : "s");
	}
	add_holders(ctl, drain->holders, drain->n_holders, buffer, buffer_size, &used);
	if (n_reservers > 0) {
		text_append(buffer, buffer_size, &used, "%sroom reserved", used > 0 ? " and " : "");
	}
	add_holders(ctl, drain->reservers, n_reservers, buffer, buffer_size, &used);
	return buffer;
}

static int print_drain(struct ctl *ctl, const struct distorch_drain *drain, const char *words)
{
	char rest[2048];
	cJSON *object;
	cJSON *array;

	if (!is_json(ctl)) {
		if (!ctl->arguments.is_quiet) {
			(void)printf("%s%s%s.\n", words, is_idle(ctl, drain) ? "" : " Under way: ",
				     is_idle(ctl, drain)
					     ? " Nothing is under way"
					     : rest_text(ctl, drain, rest, sizeof rest));
		}
		return EXIT_DONE;
	}
	object = json_new();
	json_add_bool(object, "draining", drain->draining);
	json_add_number(object, "loads", drain->loads);
	array = json_add_array(object, "loading");
	for (size_t i = 0; i < drain->n_loading; i++) {
		json_add_string(array, drain->loading[i]);
	}
	json_add_number(object, "leases", drain->leases);
	array = json_add_array(object, "holders");
	for (size_t i = 0; i < drain->n_holders; i++) {
		(void)json_of_holder(json_add_item(array), drain->holders[i]);
	}
	array = json_add_array(object, "reservers");
	for (size_t i = 0; i < drain->n_reservers; i++) {
		(void)json_of_holder(json_add_item(array), drain->reservers[i]);
	}
	return json_print(ctl, object);
}

/* Say what is waited for, where that has changed. */
static void tell_rest(const struct ctl *ctl, const char *rest, char *told, size_t told_size)
{
	if (!ctl->arguments.is_quiet && strcmp(rest, told) != 0) {
		(void)snprintf(told, told_size, "%s", rest);
		(void)fprintf(stderr, "waiting for %s\n", rest);
	}
}

/* "New loads on cuda:0 are taken." */
static const char *drain_words(const struct ctl *ctl, const char *what, const char *how)
{
	static char text[160];
	const char *device = ctl->arguments.device;
	char safe[64];

	(void)snprintf(text, sizeof text, "%s%s%s %s", what, device == NULL ? "" : " on ",
		       device == NULL ? "" : safe_text(device_text(device), safe, sizeof safe),
		       how);
	return text;
}

/* Idle models stay on a device, and its driver with them: who drains it wants that away, mostly. */
static void tell_idle(const struct ctl *ctl)
{
	const char *name = ctl->arguments.device;
	struct distorch_devices *devices = NULL;
	const struct distorch_device *device;
	char size[24];
	char safe[64];

	if (name == NULL || is_json(ctl) || ctl->arguments.is_quiet ||
	    distorch_devices(ctl->c, &devices) < 0) {
		return;
	}
	device = device_find(devices, name);
	if (device != NULL && device->used > 0 && strcmp(device->name, "cpu") != 0) {
		(void)printf("%s of models that nobody uses stay there, and its driver in use: "
			     "distorchctl unload --device %s (pinned ones: distorchctl unpin)\n",
			     size_text(ctl, device->used, size),
			     safe_text(device->name, safe, sizeof safe));
	}
	distorch_devices_free(devices);
}

/* Until nothing is under way, the time is over, or somebody ends it. Takes 'drain'. */
static int wait_for_end(struct ctl *ctl, struct distorch_drain *drain)
{
	const struct timespec pause = {.tv_nsec = LOOK_MS * 1000000L};
	const uint64_t begun_ms = ctl_now_ms();
	const uint64_t limit_ms = ctl->arguments.timeout_ms;
	char rest[2048];
	char told[2048] = "";
	int status;

	while (!is_idle(ctl, drain)) {
		tell_rest(ctl, rest_text(ctl, drain, rest, sizeof rest), told, sizeof told);
		if (limit_ms != 0 && ctl_now_ms() - begun_ms >= limit_ms) {
			distorch_drain_free(drain);
			return ctl_refuse(ctl, EXIT_TIMED_OUT, "timeout", goes_on(ctl),
					  "still under way: %.900s", rest);
		}
		(void)nanosleep(&pause, NULL); /* Ctrl-C cuts it short */
		distorch_drain_free(drain);
		if (ctl_interrupted) {
			return ctl_refuse(ctl, EXIT_INTERRUPTED, "cancelled", goes_on(ctl),
					  "no longer waiting for %.900s", rest);
		}
		if (distorch_drain(ctl->c, ctl->arguments.device, DISTORCH_DRAIN_LOOK, &drain) <
		    0) {
			return ctl_fail(ctl);
		}
		if (!drain->draining) {
			distorch_drain_free(drain);
			return ctl_refuse(ctl, EXIT_FAILED, "cancelled", NULL,
					  "the daemon drains no longer: it was restarted, or "
					  "somebody said drain --off");
		}
	}
	status = print_drain(ctl, drain, drain_words(ctl, "Drained: new loads", "are refused."));
	distorch_drain_free(drain);
	tell_idle(ctl);
	return status;
}

static bool is_any_starting(const struct ctl *ctl, const struct distorch_devices *devices)
{
	const char *name = ctl->arguments.device;
	const struct distorch_device *named = name == NULL ? NULL : device_find(devices, name);

	for (size_t i = 0; i < devices->n_devices; i++) {
		if ((name == NULL || devices->devices[i] == named) &&
		    strcmp(devices->devices[i]->state, "starting") == 0) {
			return true;
		}
	}
	return false;
}

/* A card that was let go of is opened again: until then it takes no loads. What is wrong with one
 * that is not, whoever loads there is told. */
static void wait_for_start(struct ctl *ctl)
{
	const struct timespec pause = {.tv_nsec = LOOK_MS * 1000000L};
	const uint64_t begun_ms = ctl_now_ms();
	const uint64_t limit_ms = ctl->arguments.timeout_ms != 0 ? ctl->arguments.timeout_ms
								 : START_MS;
	bool is_starting = true;

	while (is_starting && ctl_now_ms() - begun_ms < limit_ms) {
		struct distorch_devices *devices = NULL;

		if (distorch_devices(ctl->c, &devices) < 0) {
			return;
		}
		is_starting = is_any_starting(ctl, devices);
		distorch_devices_free(devices);
		if (is_starting) {
			(void)nanosleep(&pause, NULL);
		}
	}
}

static int run(struct ctl *ctl)
{
	const struct arguments *arguments = &ctl->arguments;
	struct distorch_drain *drain = NULL;
	int status;

	if (arguments->off && arguments->no_wait) {
		return ctl_refuse(
			ctl, EXIT_USAGE, "bad-argument", "say one of them",
			"--off waits for no load and no lease, so --no-wait means nothing with it");
	}
	status = ctl_connect(ctl);
	if (status != EXIT_DONE) {
		return status;
	}
	if (distorch_drain(ctl->c, arguments->device,
			   arguments->off ? DISTORCH_DRAIN_END : DISTORCH_DRAIN_BEGIN,
			   &drain) < 0) {
		return ctl_fail(ctl);
	}
	if (!arguments->off && !arguments->no_wait) {
		ctl_on_interrupt = INTERRUPT_IS_ASKED;
		return wait_for_end(ctl, drain);
	}
	if (arguments->off) {
		wait_for_start(ctl);
	}
	status = print_drain(ctl, drain,
			     drain_words(ctl, "New loads",
					 arguments->off ? "are taken." : "are refused."));
	distorch_drain_free(drain);
	return status;
}

static const struct argp_option options[] = {
	{"device", OPTION_DEVICE, "DEVICE", 0, "Only this one", 0},
	{"off", OPTION_OFF, NULL, 0, "End it: new loads are taken again", 0},
	{"no-wait", OPTION_NO_WAIT, NULL, 0, "Return once new loads are refused", 0},
	OPTIONS_END,
};

const struct verb verb_drain = {
	.name = "drain",
	.group = VERB_OPERATOR,
	.usage = "",
	.summary =
		"Have new loads refused, and wait until loads and leases have ended; on one device "
		"also until nobody has room reserved there.",
	.text = "Examples:\n"
		"  distorchctl drain                  before a shutdown that disturbs nobody\n"
		"  distorchctl drain --timeout 10m    wait no longer than that\n"
		"  distorchctl drain --device cuda:0  then unload --device cuda:0\n"
		"  distorchctl drain --off\n\n"
		"What is in memory is served as before, also to new clients. A restart of the "
		"daemon ends it.\nCtrl-C and --timeout end the waiting and no more. Needs an "
		"administrator.\n"
		"Exit status: 0 nothing is under way any more, 8 something was when the time was "
		"over.",
	.options = options,
	.run = run,
};
