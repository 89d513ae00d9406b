/* SPDX-License-Identifier: Apache-2.0 */
/* The command line: find the verb, parse what follows with argp, run it. See ctl.h. */
#include "base/err.h"
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
#include <time.h>
#include <unistd.h>

#define NS_PER_MS      1000000U
#define MOST_RECALL_MS 3600000U

volatile sig_atomic_t ctl_on_interrupt = INTERRUPT_FAILS;
volatile sig_atomic_t ctl_interrupted;

/* argp finds it only where the linker may export it. */
__attribute__((visibility("default")))
const char *argp_program_version = "distorchctl " DISTORCH_VERSION;

const struct verb *const verbs[] = {
	&verb_status,     &verb_ps,        &verb_load,    &verb_unload,  &verb_pin,
	&verb_plan,       &verb_top,       &verb_doctor,  &verb_show,    &verb_unpin,
	&verb_keep,       &verb_unkeep,    &verb_why,     &verb_clients, &verb_devices,
	&verb_place,      &verb_make_room, &verb_events,  &verb_verify,  &verb_budget,
	&verb_warm,       &verb_config,    &verb_ping,    &verb_version, &verb_help,
	&verb_completion, &verb_store,     &verb_metrics, &verb_reload,  &verb_drain,
	&verb_logs,       &verb_shutdown,  NULL,
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

/* Whose memory stands in the way. */
static void print_holders(const struct ctl *ctl, const struct distorch_error *error)
{
	char safe[128];
	char size[24];

	for (size_t i = 0; i < error->n_holders; i++) {
		const struct distorch_holder *holder = error->holders[i];

		(void)fprintf(stderr, "held:  %s by PID %u (%s), uid %u\n",
			      size_text(ctl, holder->held_bytes, size), holder->pid,
			      safe_text(holder->comm, safe, sizeof safe), holder->uid);
	}
}

static void print_failure(const struct ctl *ctl, const struct distorch_error *error)
{
	char safe[2048];

	(void)fprintf(stderr, "%serror:%s %s\n", ctl->has_color ? "\033[1;31m" : "",
		      ctl->has_color ? "\033[0m" : "",
		      safe_text(error->message, safe, sizeof safe));
	print_holders(ctl, error);
	if (error->hint != NULL) {
		(void)fprintf(stderr, "hint:  %s\n", safe_text(error->hint, safe, sizeof safe));
	}
}

/* For people, or as the JSON object that stands for the whole answer. */
static void tell_failure(struct ctl *ctl, const struct distorch_error *error)
{
	cJSON *object;

	if (is_json(ctl)) {
		object = json_new();
		(void)json_of_error(cJSON_AddObjectToObject(object, "error"), error);
		(void)json_print(ctl, object);
	} else {
		print_failure(ctl, error);
	}
}

int ctl_fail(struct ctl *ctl)
{
	const struct distorch_error *error = distorch_error(ctl->c);

	tell_failure(ctl, error);
	return ctl_interrupted ? EXIT_INTERRUPTED : error->exit_code;
}

/* As the library has it of the code with this word. */
static bool is_retryable(const char *word)
{
	for (int code = 1; code <= DISTORCH_E_INTERNAL; code++) {
		if (strcmp(distorch_code_word(code), word) == 0) {
			return distorch_code_is_retryable(code);
		}
	}
	return strcmp(distorch_code_word(DISTORCH_E_NO_CONNECTION), word) == 0;
}

struct distorch_error ctl_error(const char *word, const char *hint, const char *message)
{
	return (struct distorch_error){
		.word = word,
		.message = message,
		.hint = hint,
		.is_retryable = is_retryable(word),
		.need = DISTORCH_ABSENT,
		.budget = DISTORCH_ABSENT,
		.free = DISTORCH_ABSENT,
		.evictable = DISTORCH_ABSENT,
		.held = DISTORCH_ABSENT,
		.foreign = DISTORCH_ABSENT,
		.in_use = DISTORCH_ABSENT,
		.pinned = DISTORCH_ABSENT,
		.sys_errno = DISTORCH_ABSENT,
		.offset = DISTORCH_ABSENT,
		.current = DISTORCH_ABSENT,
		.min = DISTORCH_ABSENT,
		.max = DISTORCH_ABSENT,
	};
}

int ctl_refuse_error(struct ctl *ctl, enum exit_status status, const struct distorch_error *error)
{
	tell_failure(ctl, error);
	return (int)status;
}

int ctl_refuse(struct ctl *ctl, enum exit_status status, const char *word, const char *hint,
	       const char *format, ...)
{
	struct distorch_error error;
	char message[1024];
	va_list arguments;

	va_start(arguments, format);
	(void)vsnprintf(message, sizeof message, format, arguments);
	va_end(arguments);
	error = ctl_error(word, hint, message);
	return ctl_refuse_error(ctl, status, &error);
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

const struct argp_option ctl_global_options[] = {
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

static const char *const output_names[] = {"table", "wide", "json", "jsonl", "csv", "id"};

/* A value that cannot be meant: as JSON too where that was asked for. Does not return. */
static void refuse_value(struct argp_state *state, const char *hint, const char *format, ...)
	__attribute__((format(printf, 3, 4), noreturn));

static void refuse_value(struct argp_state *state, const char *hint, const char *format, ...)
{
	char message[512];
	va_list arguments;

	va_start(arguments, format);
	(void)vsnprintf(message, sizeof message, format, arguments);
	va_end(arguments);
	exit(ctl_refuse(state->input, EXIT_USAGE, "bad-argument", hint, "%s", message));
}

static enum output parse_output(struct argp_state *state, const char *text)
{
	for (size_t i = 0; i < sizeof output_names / sizeof output_names[0]; i++) {
		if (strcmp(output_names[i], text) == 0) {
			return (enum output)i;
		}
	}
	refuse_value(state, "it is table, wide, json, jsonl, csv or id",
		     "there is no output format \"%s\"", text);
}

static uint64_t parse_ms(struct argp_state *state, const char *text)
{
	struct err err = {0};
	uint64_t ns = 0;

	if (units_parse_duration(text, &ns, &err) < 0) {
		refuse_value(state, NULL, "%s", err.text);
	}
	return ns == UNITS_FOREVER ? DISTORCH_ABSENT : ns / NS_PER_MS;
}

static uint32_t parse_lines(struct argp_state *state, const char *text)
{
	if (strspn(text, "0123456789") != strlen(text) || text[0] == '\0' || strlen(text) > 6) {
		refuse_value(state, NULL, "a number of lines has up to six digits, not \"%s\"",
			     text);
	}
	return (uint32_t)strtoul(text, NULL, 10);
}

static int32_t parse_priority(struct argp_state *state, const char *text)
{
	char *end = NULL;
	long value = strtol(text, &end, 10);

	if (*text == '\0' || *end != '\0' || value < -100 || value > 100) {
		refuse_value(state, NULL, "a priority is a number from -100 to 100, not \"%s\"",
			     text);
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
		if (ms == 0) {
			refuse_value(state, "say how long: --timeout 5s",
				     "--timeout %s waits for nothing", text);
		}
		arguments->timeout_ms = ms > UINT32_MAX - 1 ? UINT32_MAX - 1 : (uint32_t)ms;
		break;
	case OPTION_SI:
		arguments->is_si = true;
		break;
	case ARGP_KEY_ARG:
		if (arguments->n_words == CTL_MAX_WORDS) {
			refuse_value(state, NULL, "more than %d arguments", CTL_MAX_WORDS);
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
		refuse_value(state, "say how long, or forever", "--for 0 means nothing");
	}
}

static void parse_watch(struct argp_state *state, struct arguments *arguments, const char *text)
{
	arguments->watch = true;
	arguments->watch_ms = text == NULL ? 1000 : parse_ms(state, text);
	if (arguments->watch_ms == 0) {
		refuse_value(state, "say how often: --watch=1s, or -w alone",
			     "--watch=%s is no pause between two looks", text);
	}
}

static uint64_t parse_recall(struct argp_state *state, const char *text)
{
	uint64_t ms = parse_ms(state, text);

	if (ms == 0 || ms > MOST_RECALL_MS) {
		refuse_value(state, "say how long they are given: --recall 5s",
			     "--recall is more than nothing and at most an hour, not %s", text);
	}
	return ms;
}

static void parse_delay(struct argp_state *state, struct arguments *arguments, const char *text)
{
	arguments->watch_ms = parse_ms(state, text);
	if (arguments->watch_ms == 0) {
		refuse_value(state, "say how often: -d 1s", "-d %s is no pause between two looks",
			     text);
	}
}

/* Those that only stand there, and those whose text is taken as it is. False: another one. */
static bool take_plain(struct arguments *arguments, int key, const char *text)
{
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
		[OPTION_OFF - OPTION_FIRST_FLAG] = &arguments->off,
	};
	const char **texts[] = {
		[OPTION_TO - OPTION_FIRST_TEXT] = &arguments->allocation,
		[OPTION_COMPUTE - OPTION_FIRST_TEXT] = &arguments->compute,
		[OPTION_FORMAT - OPTION_FIRST_TEXT] = &arguments->format,
		[OPTION_BACKING - OPTION_FIRST_TEXT] = &arguments->backing,
		[OPTION_DEVICE - OPTION_FIRST_TEXT] = &arguments->device,
		[OPTION_UNDER - OPTION_FIRST_TEXT] = &arguments->under,
		[OPTION_TYPE - OPTION_FIRST_TEXT] = &arguments->types,
		[OPTION_DEVICES - OPTION_FIRST_TEXT] = &arguments->devices,
		[OPTION_VIRTUAL_VRAM - OPTION_FIRST_TEXT] = &arguments->virtual_vram,
		[OPTION_DONORS - OPTION_FIRST_TEXT] = &arguments->donors,
		[OPTION_STRATEGY - OPTION_FIRST_TEXT] = &arguments->strategy,
		[OPTION_GRANULARITY - OPTION_FIRST_TEXT] = &arguments->granularity,
	};

	if (key >= OPTION_FIRST_FLAG &&
	    key < OPTION_FIRST_FLAG + (int)(sizeof flags / sizeof *flags)) {
		*flags[key - OPTION_FIRST_FLAG] = true;
		return true;
	}
	if (key >= OPTION_FIRST_TEXT &&
	    key < OPTION_FIRST_TEXT + (int)(sizeof texts / sizeof *texts)) {
		*texts[key - OPTION_FIRST_TEXT] = text;
		return true;
	}
	return false;
}

static error_t parse_verb(int key, char *text, struct argp_state *state)
{
	struct ctl *ctl = state->input;
	struct arguments *arguments = &ctl->arguments;

	if (key == ARGP_KEY_INIT) {
		state->child_inputs[0] = ctl;
		return 0;
	}
	if (take_plain(arguments, key, text)) {
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
		arguments->recall_ms = parse_recall(state, text);
		return 0;
	case OPTION_PRIORITY:
		arguments->has_priority = true;
		arguments->priority = parse_priority(state, text);
		return 0;
	case 'f':
		arguments->follow = true;
		return 0;
	case 'n':
		arguments->has_lines = true;
		arguments->n_lines = parse_lines(state, text);
		return 0;
	case 'w':
		parse_watch(state, arguments, text);
		return 0;
	case 'd':
		parse_delay(state, arguments, text);
		return 0;
	default:
		return ARGP_ERR_UNKNOWN;
	}
}

/* ---- a verb ---- */

/* What fits each other only when all is read. */
static int check_arguments(struct ctl *ctl, const struct verb *verb)
{
	const struct arguments *arguments = &ctl->arguments;
	char hint[160] = "something is missing";
	char word[96];

	if (arguments->n_words > verb->max_words) {
		(void)snprintf(hint, sizeof hint, "%s is one too many",
			       safe_text(arguments->words[verb->max_words], word, sizeof word));
	}
	if (arguments->n_words < verb->min_words || arguments->n_words > verb->max_words) {
		return ctl_refuse(ctl, EXIT_USAGE, "bad-argument", hint,
				  "usage: distorchctl %s%s%s", verb->name,
				  verb->usage[0] == '\0' ? "" : " ", verb->usage);
	}
	if ((arguments->output == OUTPUT_CSV && !verb->has_csv) ||
	    (arguments->output == OUTPUT_ID && !verb->has_id)) {
		return ctl_refuse(ctl, EXIT_USAGE, "bad-argument",
				  "-o json is there for every verb", "%s has no -o %s", verb->name,
				  output_names[arguments->output]);
	}
	return EXIT_DONE;
}

static int run_verb(struct ctl *ctl, const struct verb *verb, int argc, char **argv)
{
	static char name[64];
	char usage[256];
	char text[2048];
	const struct argp global = {ctl_global_options, parse_global, NULL, NULL, NULL, NULL, NULL};
	const struct argp_child children[] = {{&global, 0, NULL, 0}, {NULL, 0, NULL, 0}};
	const struct argp parser = {verb->options, parse_verb, usage, text, children, NULL, NULL};
	int status = flags_check(ctl, verb, argc, argv);

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
	status = check_arguments(ctl, verb);
	return status != EXIT_DONE ? status : verb->run(ctl);
}

int verb_print_help(struct ctl *ctl, const struct verb *verb)
{
	char name[] = "distorchctl";
	char flag[] = "--help";
	char *words[] = {name, flag, NULL};

	return run_verb(ctl, verb, 2, words); /* argp prints it and ends the program */
}

/* ---- start and end ---- */

bool ctl_flush(void)
{
	return fflush(stdout) == 0 && ferror(stdout) == 0;
}

int ctl_end_output(int status)
{
	if (ctl_flush()) {
		return status;
	}
	(void)fprintf(stderr, "error: cannot write the output: %s\n", strerror(errno));
	return status == EXIT_DONE ? EXIT_FAILED : status;
}

/* However it ends: argp ends it behind --help and --version. */
static void on_end(int status, void *user)
{
	(void)user;
	if (ctl_end_output(status) != status) {
		_exit(EXIT_FAILED);
	}
}

uint64_t ctl_now_ms(void)
{
	struct timespec now = {0};

	(void)clock_gettime(CLOCK_MONOTONIC, &now); /* cannot fail */
	return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / NS_PER_MS;
}

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
	const char *no_color = getenv("NO_COLOR");
	const char *term = getenv("TERM");

	/* Widths of characters; what we print is UTF-8 in any locale. */
	if (setlocale(LC_CTYPE, "") == NULL || MB_CUR_MAX == 1) {
		(void)setlocale(LC_CTYPE, "C.UTF-8"); /* without it tables are less straight */
	}
	(void)signal(SIGPIPE, SIG_DFL); /* "| head" ends us quietly */
	(void)sigaction(SIGINT, &action, NULL);
	(void)on_exit(on_end, NULL); /* without it a full disk is not told */
	argp_err_exit_status = EXIT_USAGE;
	ctl->is_tty = isatty(STDOUT_FILENO) != 0;
	ctl->has_bar = isatty(STDERR_FILENO) != 0 && term != NULL && strcmp(term, "dumb") != 0;
	ctl->has_color = ctl->has_bar && (no_color == NULL || no_color[0] == '\0');
}

static const char *const value_options[] = {"-H", "-o", "--socket", "--output", "--timeout"};

static bool has_value_behind(const char *word)
{
	for (size_t i = 0; i < sizeof value_options / sizeof value_options[0]; i++) {
		if (strcmp(word, value_options[i]) == 0) {
			return true;
		}
	}
	return false;
}

/* Global options may stand before the verb: move the verb to the front. Returns its index. */
static int find_verb_index(int argc, char **argv)
{
	for (int i = 1; i < argc; i++) {
		if (argv[i][0] != '-') {
			return i;
		}
		i += has_value_behind(argv[i]) ? 1 : 0;
	}
	return 0;
}

/* JSON or not, known before the words are judged, so that a refusal can be either. */
static enum output find_output(int argc, char **argv)
{
	enum output output = OUTPUT_TABLE;

	for (int i = 1; i < argc && strcmp(argv[i], "--") != 0; i++) {
		const char *value = NULL;

		if (strcmp(argv[i], "--json") == 0) {
			value = "json";
		} else if (strncmp(argv[i], "--output=", 9) == 0) {
			value = argv[i] + 9;
		} else if (strncmp(argv[i], "-o", 2) == 0 && argv[i][2] != '\0') {
			value = argv[i] + 2;
		} else if (has_value_behind(argv[i]) && i + 1 < argc) {
			i++;
			value = argv[i - 1][strspn(argv[i - 1], "-")] == 'o' ? argv[i] : NULL;
		}
		if (value != NULL) {
			output = strcmp(value, "json") == 0    ? OUTPUT_JSON
				 : strcmp(value, "jsonl") == 0 ? OUTPUT_JSONL
							       : OUTPUT_TABLE;
		}
	}
	return output;
}

static void spell_out_help(int argc, char **argv)
{
	static char help[] = "--help";

	for (int i = 1; i < argc && strcmp(argv[i], "--") != 0; i++) {
		if (strcmp(argv[i], "-h") == 0 && !has_value_behind(argv[i - 1])) {
			argv[i] = help;
		}
	}
}

int main(int argc, char **argv)
{
	static struct ctl ctl;
	const struct verb *verb = &verb_status;
	int at = find_verb_index(argc, argv);
	int status;

	prepare(&ctl);
	ctl.arguments.output = find_output(argc, argv);
	spell_out_help(argc, argv);
	if (at == 0 && argc > 1 && (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-?") == 0)) {
		verb = &verb_help;
		argc = 1;
	} else if (at == 0 && argc == 1 && !ctl.is_tty) {
		verb = &verb_help;
	} else if (at > 0) {
		verb = verb_find(argv[at]);
		if (verb == NULL) {
			return verb_refuse(&ctl, argv[at]);
		}
		memmove(&argv[at], &argv[at + 1], (size_t)(argc - at) * sizeof *argv);
		argc--;
	}
	status = run_verb(&ctl, verb, argc, argv);
	(void)distorch_close(ctl.c);
	return status;
}
