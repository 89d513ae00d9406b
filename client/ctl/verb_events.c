/* SPDX-License-Identifier: Apache-2.0 */
/* distorchctl why, events: what happened, to one model or to all, so far or from now on. */
#include "options.h"
#include "render.h"

#include <stdio.h>
#include <string.h>

#define MAX_TYPES 32
#define DAY_MS    86400000U

static void print_record(const struct ctl *ctl, const struct distorch_record *record, bool has_date)
{
	char time[40];
	char name[256];
	char why[512];
	char device[80];
	char size[24];
	char duration[32];
	bool has_left = strcmp(record->type, "evicted") == 0 ||
			strcmp(record->type, "unloaded") == 0;
	bool tells_where = strcmp(record->type, "placed") == 0 || /* 'why' does */
			   strcmp(record->type, "load.done") == 0;

	(void)printf("%s  %-14s %s", time_text(record->time_ms, has_date, time), record->type,
		     safe_text(record->name != NULL ? record->name : record->model, name,
			       sizeof name));
	if (record->bytes != DISTORCH_ABSENT) {
		(void)printf("  %s", size_text(ctl, record->bytes, size));
	}
	if (record->device != NULL && strcmp(record->device, "cpu") != 0 && !tells_where) {
		(void)printf("  %s %s", has_left ? "from" : "on",
			     safe_text(record->device, device, sizeof device));
	}
	if (record->duration_ms != DISTORCH_ABSENT) {
		(void)printf("  in %s", ms_text(record->duration_ms, duration));
	}
	if (record->why != NULL) {
		(void)printf("  %s", safe_text(record->why, why, sizeof why));
	}
	(void)putchar('\n');
}

/* 'nothing': what is said, for people, where there are none. */
static int print_records(struct ctl *ctl, const struct distorch_records *records,
			 const char *nothing)
{
	bool has_date = ctl->arguments.since_ms > DAY_MS;
	cJSON *object;
	cJSON *array;

	if (ctl->arguments.output == OUTPUT_JSON) {
		object = json_new();
		array = json_add_array(object, "records");
		for (size_t i = 0; i < records->n_records; i++) {
			(void)json_of_record(json_add_item(array), records->records[i]);
		}
		return json_print(ctl, object);
	}
	for (size_t i = 0; i < records->n_records; i++) {
		has_date = has_date || records->records[i]->age_ms > DAY_MS;
		if (ctl->arguments.output == OUTPUT_JSONL) {
			(void)json_print(ctl, json_of_record(json_new(), records->records[i]));
		} else {
			print_record(ctl, records->records[i], has_date);
		}
	}
	if (records->n_records == 0 && !is_json(ctl) && !ctl->arguments.is_quiet) {
		(void)fprintf(stderr, "%s\n", nothing);
	}
	return EXIT_DONE;
}

/* What is to be said of it now: with which devices it comes back, say. */
static void print_notice(const struct ctl *ctl)
{
	struct distorch_detail *detail = NULL;
	char notice[512];

	if (distorch_show(ctl->c, ctl->arguments.words[0], &detail, NULL) == 0 &&
	    detail->notice != NULL) {
		(void)printf("now: %s\n", safe_text(detail->notice, notice, sizeof notice));
	}
	distorch_detail_free(detail);
}

static int run_why(struct ctl *ctl)
{
	const struct distorch_history_filter filter = {.size = sizeof filter,
						       .model = ctl->arguments.words[0]};
	struct distorch_records *records = NULL;
	int status = ctl_connect(ctl);

	if (status != EXIT_DONE) {
		return status;
	}
	if (distorch_history(ctl->c, &filter, &records) < 0) {
		return ctl_fail(ctl);
	}
	status = print_records(ctl, records, "Nothing is recorded of it since the daemon's start.");
	distorch_records_free(records);
	if (!is_json(ctl)) {
		print_notice(ctl);
	}
	return status;
}

/* "load,evict" into a list of names; 'text' is cut in place. */
static size_t split_types(char *text, const char *types[MAX_TYPES])
{
	size_t n_types = 0;

	for (char *type = strsep(&text, ","); type != NULL && n_types < MAX_TYPES;
	     type = strsep(&text, ",")) {
		if (strcmp(type, "evict") == 0) {
			types[n_types++] = "evicted";
		} else if (strcmp(type, "unload") == 0) {
			types[n_types++] = "unloaded";
		} else if (*type != '\0') {
			types[n_types++] = type;
		}
	}
	return n_types;
}

static bool is_wanted(const char *type, const char *const *types, size_t n_types)
{
	for (size_t i = 0; i < n_types; i++) {
		size_t size = strlen(types[i]);

		if (strncmp(type, types[i], size) == 0 &&
		    (type[size] == '\0' || type[size] == '.')) {
			return true;
		}
	}
	return n_types == 0;
}

static int follow(struct ctl *ctl, const char *const *types, size_t n_types)
{
	static const char *const names[] = {"record", "overflow", "goodbye"};
	const struct distorch_event_filter filter = {.size = sizeof filter,
						     .events = names,
						     .n_events = 3};

	ctl_on_interrupt = INTERRUPT_ENDS;
	if (distorch_subscribe(ctl->c, &filter) < 0) {
		return ctl_fail(ctl);
	}
	for (;;) {
		struct distorch_event *event = NULL;

		if (distorch_next_event(ctl->c, DISTORCH_FOREVER, &event) < 0) {
			return ctl_fail(ctl);
		}
		if (event->record != NULL && is_wanted(event->record->type, types, n_types)) {
			if (is_json(ctl)) {
				ctl->arguments.output = OUTPUT_JSONL;
				(void)json_print(ctl, json_of_record(json_new(), event->record));
			} else {
				print_record(ctl, event->record, false);
			}
		}
		distorch_event_free(event);
		if (!ctl_flush()) {
			return EXIT_FAILED;
		}
	}
}

/* Refuses what nothing is recorded as, in the daemon's words: a subscription takes any. */
static int check_types(struct ctl *ctl, const struct distorch_history_filter *filter)
{
	struct distorch_history_filter latest = *filter;
	struct distorch_records *records = NULL;

	if (filter->n_types == 0) {
		return EXIT_DONE;
	}
	latest.since_ms = 1;
	if (distorch_history(ctl->c, &latest, &records) < 0) {
		return ctl_fail(ctl);
	}
	distorch_records_free(records);
	return EXIT_DONE;
}

static int run_events(struct ctl *ctl)
{
	const char *types[MAX_TYPES];
	char text[1024] = "";
	struct distorch_history_filter filter = {.size = sizeof filter,
						 .types = types,
						 .since_ms = ctl->arguments.since_ms};
	struct distorch_records *records = NULL;
	int status;

	if (ctl->arguments.types != NULL) {
		(void)snprintf(text, sizeof text, "%s", ctl->arguments.types);
	}
	filter.n_types = split_types(text, types);
	status = ctl_connect(ctl);
	if (status != EXIT_DONE) {
		return status;
	}
	if (ctl->arguments.since_ms == 0) {
		status = check_types(ctl, &filter);
		return status != EXIT_DONE ? status : follow(ctl, types, filter.n_types);
	}
	if (distorch_history(ctl->c, &filter, &records) < 0) {
		return ctl_fail(ctl);
	}
	status = print_records(ctl, records, "Nothing is recorded of that time.");
	distorch_records_free(records);
	return status;
}

static const struct argp_option no_options[] = {OPTIONS_END};

const struct verb verb_why = {
	.name = "why",
	.group = VERB_MORE,
	.usage = "MODEL",
	.summary =
		"Why a model is where it is: its loads, moves, evictions and refusals, and for whom.",
	.text = "Example:\n  distorchctl why flux1-dev.safetensors",
	.options = no_options,
	.min_words = 1,
	.max_words = 1,
	.words = WORDS_MODELS,
	.run = run_why,
};

static const struct argp_option events_options[] = {
	{"since", OPTION_SINCE, "TIME", 0, "What happened in this last time, then end", 0},
	{"type", OPTION_TYPE, "TYPE,…", 0,
	 "Only these: load, evict, unload, placed, refused, pinned, unpinned, kept, unkept, held, "
	 "freed, stale, quarantined",
	 0},
	OPTIONS_END,
};

const struct verb verb_events = {
	.name = "events",
	.group = VERB_MORE,
	.usage = "",
	.summary = "What happens from now on, a line each, until Ctrl-C; or what happened.",
	.text = "Examples:\n"
		"  distorchctl events --type load,evict\n"
		"  distorchctl events --since 10m\n"
		"  distorchctl events -o jsonl",
	.options = events_options,
	.run = run_events,
};
