/* SPDX-License-Identifier: Apache-2.0 */
/* distorchctl help: the verbs in groups, one verb, or the exit codes. */
#include "options.h"
#include "render.h"

#include <stdio.h>
#include <string.h>

static const char *const exit_codes[] = {
	"0    done",
	"1    failed",
	"2    wrong usage",
	"3    the daemon is not running",
	"4    no such model, or it is not in memory",
	"5    not allowed",
	"6    not enough memory",
	"7    bad or unsupported file",
	"8    timed out",
	"9    findings (doctor, verify)",
	"130  interrupted by Ctrl-C",
};

static void print_group(enum verb_group group, const char *title)
{
	(void)printf("\n%s\n", title);
	for (size_t i = 0; verbs[i] != NULL; i++) {
		if (verbs[i]->group == group) {
			(void)printf("  %-10s %s\n", verbs[i]->name, verbs[i]->summary);
		}
	}
}

static void print_all(void)
{
	(void)printf("distorchctl – share the weights of models between processes\n\n"
		     "  distorchctl load model.safetensors    load a file once, for every process\n"
		     "  distorchctl ps                        what is held, where, by whom\n"
		     "  distorchctl unload --not-kept         free what is not to be kept\n"
		     "  distorchctl doctor                    when something does not work\n");
	print_group(VERB_EVERYDAY, "Everyday");
	print_group(VERB_MORE, "More");
	print_group(VERB_OPERATOR, "For whoever runs the daemon");
	(void)printf(
		"\nOne verb: distorchctl VERB --help. Exit codes: distorchctl help exit-codes.\n"
		"The socket: --socket PATH, DISTORCH_SOCKET, or the usual places.\n");
}

static int run(struct ctl *ctl)
{
	const char *word = ctl->arguments.n_words == 0 ? NULL : ctl->arguments.words[0];
	const struct verb *verb;

	if (word == NULL) {
		print_all();
		return EXIT_DONE;
	}
	if (strcmp(word, "exit-codes") == 0) {
		for (size_t i = 0; i < sizeof exit_codes / sizeof exit_codes[0]; i++) {
			(void)printf("%s\n", exit_codes[i]);
		}
		return EXIT_DONE;
	}
	verb = verb_find(word);
	if (verb == NULL) {
		return ctl_refuse(ctl, EXIT_USAGE, "bad-argument", "distorchctl help lists them",
				  "there is no verb \"%s\"", word);
	}
	(void)printf("Usage: distorchctl %s [OPTION…] %s\n\n%s\n", verb->name, verb->usage,
		     verb->summary);
	for (const struct argp_option *option = verb->options; option->name != NULL; option++) {
		(void)printf("  --%s%s%s  %s\n", option->name, option->arg == NULL ? "" : "=",
			     option->arg == NULL ? "" : option->arg, option->doc);
	}
	(void)printf("\n%s\n", verb->text);
	return EXIT_DONE;
}

static const struct argp_option no_options[] = {OPTIONS_END};

const struct verb verb_help = {
	.name = "help",
	.group = VERB_MORE,
	.usage = "[VERB | exit-codes]",
	.summary = "This overview, one verb, or the exit codes.",
	.text = "Example:\n  distorchctl help load",
	.options = no_options,
	.max_words = 1,
	.run = run,
};
