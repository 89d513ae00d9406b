/* SPDX-License-Identifier: Apache-2.0 */
/* The command line: find the verb, parse what follows with argp, run it. See ctl.h. */
#include "base/err.h"
#include "base/text.h"
#include "base/units.h"
#include "options.h"
#include "render.h"

#include <errno.h>
#include <inttypes.h>
#include <locale.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define NS_PER_MS 1000000U

volatile sig_atomic_t ctl_on_interrupt = INTERRUPT_FAILS;
volatile sig_atomic_t ctl_interrupted;

/* argp finds it only where the linker may export it. */
__attribute__((visibility("default")))
const char *argp_program_version = "distorchctl " DISTORCH_VERSION;

const struct verb *const verbs[] = {
	&verb_status,  &verb_ps,     &verb_load,     &verb_unload, &verb_pin,    &verb_doctor,
	&verb_show,    &verb_unpin,  &verb_keep,     &verb_unkeep, &verb_why,    &verb_clients,
	&verb_devices, &verb_events, &verb_verify,   &verb_budget, &verb_config, &verb_ping,
	&verb_version, &verb_help,   &verb_shutdown, NULL,
};

const struct verb *verb_find(const char *name)
{
	for (size_t i = 0; verbs[i] != NULL; i++) {
		if (strcmp(verbs[i]->name, name) == 0) {
			return verbs[i];
		}
		for (size_t j = 0; verbs[i]->aliases != NULL && verbs[i]->aliases[j] != NULL; j++) {
			if (strcmp(verbs[i]->aliases[j], name) == 0) {
				return verbs[i];
			}
		}
	}
	return NULL;
}

/* ---- failures ---- */

static void print_failure(const struct ctl *ctl, const char *message, const char *hint)
{
	char safe[2048];

	(void)fprintf(stderr, "%serror:%s %s\n", ctl->has_color ? "\033[1;31m" : "",
		      ctl->has_color ? "\033[0m" : "", safe_text(message, safe, sizeof safe));
	if (hint != NULL) {
		(void)fprintf(stderr, "hint:  %s\n", safe_text(hint, safe, sizeof safe));
	}
}

int ctl_fail(struct ctl *ctl)
{
	const struct distorch_error *error = distorch_error(ctl->c);

	if (is_json(ctl)) {
		cJSON *object = json_new();
		cJSON *member = cJSON_AddObjectToObject(object, "error");

		(void)json_of_error(member, error);
		(void)json_print(ctl, object);
	} else {
		print_failure(ctl, error->message, error->hint);
	}
	return ctl_interrupted ? EXIT_INTERRUPTED : error->exit_code;
}

int ctl_refuse(struct ctl *ctl, enum exit_status status, const char *word, const char *hint,
	       const char *format, ...)
{
	char message[1024];
	va_list arguments;

	va_start(arguments, format);
	(void)vsnprintf(message, sizeof message, format, arguments);
	va_end(arguments);
	if (is_json(ctl)) {
		const struct distorch_error error = {
			.word = word,
			.message = message,
			.hint = hint,
			.need = UINT64_MAX,
			.budget = UINT64_MAX,
			.free = UINT64_MAX,
			.evictable = UINT64_MAX,
			.held = UINT64_MAX,
			.foreign = UINT64_MAX,
			.sys_errno = UINT64_MAX,
			.offset = UINT64_MAX,
			.current = UINT64_MAX,
			.min = UINT64_MAX,
			.max = UINT64_MAX,
		};
		cJSON *object = json_new();

		(void)json_of_error(cJSON_AddObjectToObject(object, "error"), &error);
		(void)json_print(ctl, object);
	} else {
		print_failure(ctl, message, hint);
	}
	return (int)status;
}

int ctl_open(struct ctl *ctl)
{
	const struct distorch_options options = {.size = sizeof options,
						 .client = "distorchctl/" DISTORCH_VERSION,
						 .timeout_ms = ctl->arguments.timeout_ms};

	return distorch_open(ctl->arguments.socket_path, &options, &ctl->c);
}

int ctl_connect(struct ctl *ctl)
{
	return ctl_open(ctl) < 0 ? ctl_fail(ctl) : EXIT_DONE;
}

/* ---- options ---- */

static const struct argp_option global_options[] = {
	{NULL, 0, NULL, 0, "Everywhere:", 90},
	{"socket", 'H', "PATH", 0, "Talk to the daemon on this socket (else DISTORCH_SOCKET)", 90},
	{"output", 'o', "FORMAT", 0, "table, wide, json, jsonl, csv or id", 90},
	{"json", OPTION_JSON, NULL, 0, "Same as -o json", 90},
	{"quiet", 'q', NULL, 0, "Say only what was asked for", 90},
	{"verbose", 'v', NULL, 0, "Say more", 90},
	{"no-color", OPTION_NO_COLOR, NULL, 0, "No colours (also NO_COLOR, TERM=dumb)", 90},
	{"no-pager", OPTION_NO_PAGER, NULL, 0, "Accepted; no pager is ever used", 90},
	{"no-input", OPTION_NO_INPUT, NULL, 0, "Accepted; nothing is ever asked", 90},
	{"timeout", OPTION_TIMEOUT, "TIME", 0, "Wait this long for an answer (30s)", 90},
	{"si", OPTION_SI, NULL, 0, "Sizes in powers of 1000", 90},
	{NULL, 0, NULL, 0, NULL, 0},
};

static enum output parse_output(struct argp_state *state, const char *text)
{
	static const char *const names[] = {"table", "wide", "json", "jsonl", "csv", "id"};

	for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
		if (strcmp(names[i], text) == 0) {
			return (enum output)i;
		}
	}
	argp_error(state,
		   "there is no output format \"%s\"; it is table, wide, json, jsonl, csv or id",
		   text);
	return OUTPUT_TABLE;
}

static uint64_t parse_ms(struct argp_state *state, const char *text)
{
	struct err err = {0};
	uint64_t ns = 0;

	if (units_parse_duration(text, &ns, &err) < 0) {
		argp_error(state, "%s", err.text);
	}
	return ns == UNITS_FOREVER ? DISTORCH_ABSENT : ns / NS_PER_MS;
}

static int32_t parse_priority(struct argp_state *state, const char *text)
{
	char *end = NULL;
	long value = strtol(text, &end, 10);

	if (*text == '\0' || *end != '\0' || value < -100 || value > 100) {
		argp_error(state, "a priority is a number from -100 to 100, not \"%s\"", text);
	}
	return (int32_t)value;
}

static error_t parse_global(int key, char *text, struct argp_state *state)
{
	struct ctl *ctl = state->input;
	struct arguments *arguments = &ctl->arguments;
	uint64_t ms;

	switch (key) {
	case 'H':
		arguments->socket_path = text;
		break;
	case 'o':
		arguments->output = parse_output(state, text);
		break;
	case OPTION_JSON:
		arguments->output = OUTPUT_JSON;
		break;
	case 'q':
		arguments->is_quiet = true;
		break;
	case 'v':
		arguments->is_verbose = true;
		break;
	case OPTION_NO_COLOR:
		ctl->has_color = false;
		break;
	case OPTION_NO_PAGER:
	case OPTION_NO_INPUT:
		break;
	case OPTION_TIMEOUT:
		ms = parse_ms(state, text);
		arguments->timeout_ms = ms > UINT32_MAX - 1 ? UINT32_MAX - 1 : (uint32_t)ms;
		break;
	case OPTION_SI:
		arguments->is_si = true;
		break;
	case ARGP_KEY_ARG:
		if (arguments->n_words == CTL_MAX_WORDS) {
			argp_error(state, "more than %d arguments", CTL_MAX_WORDS);
		}
		arguments->words[arguments->n_words++] = text;
		break;
	default:
		return ARGP_ERR_UNKNOWN;
	}
	return 0;
}

static void parse_for(struct argp_state *state, struct arguments *arguments, const char *text)
{
	uint64_t ms = parse_ms(state, text);

	arguments->has_for = true;
	arguments->is_forever = ms == DISTORCH_ABSENT;
	arguments->for_ms = ms == DISTORCH_ABSENT ? 0 : ms;
	if (ms == 0) {
		argp_error(state, "--for 0 means nothing; say how long, or forever");
	}
}

static error_t parse_verb(int key, char *text, struct argp_state *state)
{
	struct ctl *ctl = state->input;
	struct arguments *arguments = &ctl->arguments;
	bool *flags[] = {
		[OPTION_PIN - OPTION_FIRST_FLAG] = &arguments->pin,
		[OPTION_KEEP - OPTION_FIRST_FLAG] = &arguments->keep,
		[OPTION_NO_WAIT - OPTION_FIRST_FLAG] = &arguments->no_wait,
		[OPTION_ALL - OPTION_FIRST_FLAG] = &arguments->all,
		[OPTION_NOT_KEPT - OPTION_FIRST_FLAG] = &arguments->not_kept,
		[OPTION_MINE - OPTION_FIRST_FLAG] = &arguments->mine,
		[OPTION_FORCE - OPTION_FIRST_FLAG] = &arguments->force,
		[OPTION_TENSORS - OPTION_FIRST_FLAG] = &arguments->tensors,
		[OPTION_CLIENTS - OPTION_FIRST_FLAG] = &arguments->clients,
		[OPTION_SAVE - OPTION_FIRST_FLAG] = &arguments->save,
	};
	const char **texts[] = {
		[OPTION_TO - OPTION_FIRST_TEXT] = &arguments->allocation,
		[OPTION_COMPUTE - OPTION_FIRST_TEXT] = &arguments->compute,
		[OPTION_FORMAT - OPTION_FIRST_TEXT] = &arguments->format,
		[OPTION_DEVICE - OPTION_FIRST_TEXT] = &arguments->device,
		[OPTION_UNDER - OPTION_FIRST_TEXT] = &arguments->under,
		[OPTION_TYPE - OPTION_FIRST_TEXT] = &arguments->types,
	};

	if (key == ARGP_KEY_INIT) {
		state->child_inputs[0] = ctl;
		return 0;
	}
	if (key >= OPTION_FIRST_FLAG &&
	    key < OPTION_FIRST_FLAG + (int)(sizeof flags / sizeof *flags)) {
		*flags[key - OPTION_FIRST_FLAG] = true;
		return 0;
	}
	if (key >= OPTION_FIRST_TEXT &&
	    key < OPTION_FIRST_TEXT + (int)(sizeof texts / sizeof *texts)) {
		*texts[key - OPTION_FIRST_TEXT] = text;
		return 0;
	}
	switch (key) {
	case OPTION_FOR:
		parse_for(state, arguments, text);
		return 0;
	case OPTION_IDLE:
		arguments->idle_ms = parse_ms(state, text);
		return 0;
	case OPTION_SINCE:
		arguments->since_ms = parse_ms(state, text);
		return 0;
	case OPTION_RECALL:
		arguments->recall = true;
		return 0;
	case OPTION_PRIORITY:
		arguments->has_priority = true;
		arguments->priority = parse_priority(state, text);
		return 0;
	case 'w':
	case OPTION_WATCH:
		arguments->watch = true;
		arguments->watch_ms = text == NULL ? 1000 : parse_ms(state, text);
		return 0;
	default:
		return ARGP_ERR_UNKNOWN;
	}
}

static void collect_names(const struct argp_option *options, const char **names, size_t *n_names)
{
	for (; options != NULL && (options->name != NULL || options->doc != NULL); options++) {
		if (options->name != NULL && *n_names < 62) {
			names[(*n_names)++] = options->name;
		}
	}
}

/* Abbreviated and unknown long options are refused with the nearest one. */
static int check_flags(struct ctl *ctl, const struct verb *verb, int argc, char **argv)
{
	const char *names[64] = {"help", "usage", "version"};
	size_t n_names = 3;

	collect_names(verb->options, names, &n_names);
	collect_names(global_options, names, &n_names);
	for (int i = 1; i < argc && strcmp(argv[i], "--") != 0; i++) {
		char flag[64];
		bool is_known = false;
		const char *nearest;

		if (strncmp(argv[i], "--", 2) != 0) {
			continue;
		}
		(void)snprintf(flag, sizeof flag, "%.63s", argv[i] + 2);
		flag[strcspn(flag, "=")] = '\0';
		for (size_t j = 0; j < n_names; j++) {
			is_known = is_known || strcmp(names[j], flag) == 0;
		}
		if (!is_known) {
			char hint[160];

			nearest = text_nearest(flag, names, n_names);
			(void)snprintf(hint, sizeof hint,
				       nearest != NULL ? "did you mean --%s?"
						       : "see distorchctl %s --help",
				       nearest != NULL ? nearest : verb->name);
			return ctl_refuse(ctl, EXIT_USAGE, "bad-argument", hint,
					  "%s has no option --%s", verb->name, flag);
		}
	}
	return EXIT_DONE;
}

static int run_verb(struct ctl *ctl, const struct verb *verb, int argc, char **argv)
{
	static char name[64];
	char usage[256];
	char text[2048];
	const struct argp global = {global_options, parse_global, NULL, NULL, NULL, NULL, NULL};
	const struct argp_child children[] = {{&global, 0, NULL, 0}, {NULL, 0, NULL, 0}};
	const struct argp parser = {verb->options, parse_verb, usage, text, children, NULL, NULL};
	int status = check_flags(ctl, verb, argc, argv);

	if (status != EXIT_DONE) {
		return status;
	}
	(void)snprintf(usage, sizeof usage, "%s", verb->usage);
	(void)snprintf(text, sizeof text, "%s\v%s", verb->summary, verb->text);
	(void)snprintf(name, sizeof name, "distorchctl %s", verb->name);
	argv[0] = name;
	if (argp_parse(&parser, argc, argv, 0, NULL, ctl) != 0) {
		return EXIT_USAGE;
	}
	if (ctl->arguments.n_words < verb->min_words || ctl->arguments.n_words > verb->max_words) {
		return ctl_refuse(ctl, EXIT_USAGE, "bad-argument", NULL, "usage: distorchctl %s %s",
				  verb->name, verb->usage);
	}
	return verb->run(ctl);
}

/* ---- start ---- */

static void on_interrupt(int number)
{
	(void)number;
	if (ctl_on_interrupt == INTERRUPT_IS_ASKED && ctl_interrupted == 0) {
		ctl_interrupted = 1;
		return;
	}
	_exit(ctl_on_interrupt == INTERRUPT_ENDS ? EXIT_DONE : EXIT_INTERRUPTED);
}

static void prepare(struct ctl *ctl)
{
	const struct sigaction action = {.sa_handler = on_interrupt};
	const char *term = getenv("TERM");

	(void)setlocale(LC_CTYPE, "");  /* widths of characters; C serves too */
	(void)signal(SIGPIPE, SIG_DFL); /* "| head" ends us quietly */
	(void)sigaction(SIGINT, &action, NULL);
	argp_err_exit_status = EXIT_USAGE;
	ctl->is_tty = isatty(STDOUT_FILENO) != 0;
	ctl->has_color = isatty(STDERR_FILENO) != 0 && getenv("NO_COLOR") == NULL && term != NULL &&
			 strcmp(term, "dumb") != 0;
}

static int refuse_verb(struct ctl *ctl, const char *word)
{
	const char *names[64];
	size_t n_names = 0;
	char hint[128];
	const char *nearest;

	for (size_t i = 0; verbs[i] != NULL; i++) {
		names[n_names++] = verbs[i]->name;
		for (size_t j = 0; verbs[i]->aliases != NULL && verbs[i]->aliases[j] != NULL; j++) {
			names[n_names++] = verbs[i]->aliases[j];
		}
	}
	nearest = text_nearest(word, names, n_names);
	(void)snprintf(hint, sizeof hint,
		       nearest != NULL ? "did you mean %s?"
				       : "distorchctl --help lists the verbs%s",
		       nearest != NULL ? nearest : "");
	return ctl_refuse(ctl, EXIT_USAGE, "bad-argument", hint, "there is no verb \"%s\"", word);
}

/* Global options may stand before the verb: move the verb to the front. Returns its index. */
static int find_verb_index(int argc, char **argv)
{
	for (int i = 1; i < argc; i++) {
		if (argv[i][0] != '-') {
			return i;
		}
		if (strcmp(argv[i], "-H") == 0 || strcmp(argv[i], "-o") == 0 ||
		    strcmp(argv[i], "--socket") == 0 || strcmp(argv[i], "--output") == 0 ||
		    strcmp(argv[i], "--timeout") == 0) {
			i++;
		}
	}
	return 0;
}

static bool is_help_flag(const char *word)
{
	return strcmp(word, "--help") == 0 || strcmp(word, "-h") == 0 || strcmp(word, "-?") == 0;
}

int main(int argc, char **argv)
{
	static struct ctl ctl;
	const struct verb *verb = &verb_status;
	int at = find_verb_index(argc, argv);
	int status;

	prepare(&ctl);
	if (at == 0 && argc > 1 && is_help_flag(argv[1])) {
		verb = &verb_help;
		argc = 1;
	} else if (at == 0 && argc > 1 &&
		   (strcmp(argv[1], "-V") == 0 || strcmp(argv[1], "--version") == 0)) {
		(void)printf("%s\n", argp_program_version);
		return EXIT_DONE;
	} else if (at == 0 && argc == 1 && !ctl.is_tty) {
		verb = &verb_help;
	} else if (at > 0) {
		verb = verb_find(argv[at]);
		if (verb == NULL) {
			return refuse_verb(&ctl, argv[at]);
		}
		memmove(&argv[at], &argv[at + 1], (size_t)(argc - at) * sizeof *argv);
		argc--;
		for (int i = 1; i < argc; i++) {
			if (strcmp(argv[i], "-h") == 0) {
				static char help[] = "--help";

				argv[i] = help;
			}
		}
	}
	status = run_verb(&ctl, verb, argc, argv);
	(void)distorch_close(ctl.c);
	return fflush(stdout) != 0 && status == EXIT_DONE ? EXIT_FAILED : status;
}
