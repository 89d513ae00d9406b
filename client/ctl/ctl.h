/* SPDX-License-Identifier: Apache-2.0 */
/*
 * distorchctl: one command, many verbs. A verb is a row of a table: its words for the help
 * are the words of the man page and of the nearest-match hints. Uses the public header and
 * base only.
 */
#ifndef CTL_CTL_H
#define CTL_CTL_H

#include "distorch.h"

#include <argp.h>
#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct err;

enum exit_status {
	EXIT_DONE = 0,
	EXIT_FAILED = 1,
	EXIT_USAGE = 2,
	EXIT_NOT_RUNNING = 3,
	EXIT_NO_SUCH_MODEL = 4,
	EXIT_NOT_ALLOWED = 5,
	EXIT_NO_MEMORY = 6,
	EXIT_BAD_FILE = 7,
	EXIT_TIMED_OUT = 8,
	EXIT_FINDINGS = 9,
	EXIT_INTERRUPTED = 130,
};

enum output { OUTPUT_TABLE, OUTPUT_WIDE, OUTPUT_JSON, OUTPUT_JSONL, OUTPUT_CSV, OUTPUT_ID };

#define CTL_MAX_WORDS 256

/* Everything that was said on the command line; options a verb does not take stay zero. */
struct arguments {
	const char *socket_path;
	enum output output;
	bool is_quiet, is_verbose, is_si;
	uint32_t timeout_ms;
	const char *words[CTL_MAX_WORDS]; /* what is not an option */
	size_t n_words;
	/* of single verbs */
	const char *allocation, *compute, *format, *backing, *device, *under, *types;
	const char *devices, *virtual_vram, *donors, *strategy, *granularity;
	bool pin, keep, no_wait, all, not_kept, mine, recall, force, tensors, clients, watch;
	bool has_for, has_priority, has_lines, is_forever, save, off, follow;
	uint32_t n_lines;
	uint64_t for_ms, idle_ms, since_ms, watch_ms, recall_ms;
	int32_t priority;
};

struct ctl {
	struct arguments arguments;
	struct distorch *c; /* NULL until ctl_connect */
	bool is_tty;        /* standard output is a terminal */
	bool has_bar;       /* standard error is one that can redraw a line */
	bool has_color;     /* standard error takes colours; the output has none */
};

enum verb_group { VERB_EVERYDAY, VERB_MORE, VERB_OPERATOR, VERB_N_GROUPS };

/* What is offered where a word or an option's value is typed. */
enum words_kind {
	WORDS_NONE,
	WORDS_CHOICES, /* those named beside it */
	WORDS_MODELS,
	WORDS_FILES,
	WORDS_FOLDERS,
	WORDS_VERBS,
};

struct verb {
	const char *name;
	const char *const *aliases; /* ends with NULL; NULL: none */
	enum verb_group group;
	const char *usage;   /* "FILE…" */
	const char *summary; /* one line */
	const char *text;    /* examples and exit codes, for --help */
	const struct argp_option *options;
	size_t min_words, max_words;
	enum words_kind words;       /* for completion: what the words are */
	const char *choices;         /* and these, with blanks between; NULL: none */
	bool has_csv, has_id;        /* takes -o csv, -o id */
	int (*run)(struct ctl *ctl); /* returns an exit status */
};

extern const struct verb *const verbs[]; /* ends with NULL */
const struct verb *verb_find(const char *name);

/* Refuse a verb that there is not, with what may have been meant. Returns an exit status. */
int verb_refuse(struct ctl *ctl, const char *word);
/* Print what VERB --help prints. */
int verb_print_help(struct ctl *ctl, const struct verb *verb);

/* Connect with the options that were said. Returns 0 or the library's code; prints nothing. */
int ctl_open(struct ctl *ctl);

/* Connect once; on failure the error is printed and the exit status returned, else 0. */
int ctl_connect(struct ctl *ctl);

/* Print the failure of the last call and return its exit status. 'subject' may be NULL. */
int ctl_fail(struct ctl *ctl);
/* Print a failure of our own. */
int ctl_refuse(struct ctl *ctl, enum exit_status status, const char *word, const char *hint,
	       const char *format, ...) __attribute__((format(printf, 5, 6)));

/* The same of one that is filled: ctl_error, then what is known besides. */
int ctl_refuse_error(struct ctl *ctl, enum exit_status status, const struct distorch_error *error);
/* Without numbers, and worth another try where its code is. The texts are borrowed. */
struct distorch_error ctl_error(const char *word, const char *hint, const char *message);

/* On the monotonic clock. */
uint64_t ctl_now_ms(void);

/* Write what was printed; false: it cannot be, which the end of the program tells. */
bool ctl_flush(void);
/* For what ends by _exit: tell what could not be written. Returns the exit status then. */
int ctl_end_output(int status);

/* What Ctrl-C does now: end with 130 at once, end with 0 at once, or set ctl_interrupted (and
 * end with 130 when pressed again). */
enum interrupt { INTERRUPT_FAILS, INTERRUPT_ENDS, INTERRUPT_IS_ASKED };
extern volatile sig_atomic_t ctl_on_interrupt, ctl_interrupted;

extern const struct verb verb_status, verb_ps, verb_show, verb_load, verb_unload, verb_pin,
	verb_unpin, verb_keep, verb_unkeep, verb_why, verb_verify, verb_clients, verb_events,
	verb_budget, verb_config, verb_doctor, verb_ping, verb_version, verb_help, verb_devices,
	verb_reload, verb_shutdown, verb_store, verb_metrics, verb_completion, verb_warm,
	verb_drain, verb_logs, verb_plan, verb_top, verb_place, verb_make_room;

#endif
