/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The options before argp sees them, so that a refusal can hint and be JSON, and so that no
 * abbreviation is taken.
 */
#include "base/text.h"
#include "options.h"

#include <stdio.h>
#include <string.h>

const struct argp_option ctl_built_in_options[] = {
	{"help", '?', NULL, 0, "Explain the verb", 0},
	{"usage", 'u' << 8, NULL, 0, "How it is called", 0},
	{"version", 'V', NULL, 0, "Print the version", 0},
	OPTIONS_END,
};

bool option_is_end(const struct argp_option *option)
{
	return option->name == NULL && option->key == 0 && option->doc == NULL;
}

/* The option of that name or, where 'name' is NULL, of that letter; NULL when there is none. */
static const struct argp_option *option_find(const struct verb *verb, const char *name, int key)
{
	const struct argp_option *const lists[] = {verb->options, ctl_global_options,
						   ctl_built_in_options};

	for (size_t i = 0; i < 3; i++) {
		for (const struct argp_option *option = lists[i]; !option_is_end(option);
		     option++) {
			if (name == NULL
				    ? option->key == key
				    : option->name != NULL && strcmp(option->name, name) == 0) {
				return option;
			}
		}
	}
	return NULL;
}

/* What people write who know another verb. */
static const char *familiar_hint(const struct verb *verb, const char *flag)
{
	static const struct {
		const struct verb *verb;
		const char *flag;
		const char *hint;
	} flags[] = {
		{&verb_unload, "keep", "did you mean --not-kept?"},
		{&verb_place, "to", "without it: distorchctl place MODEL 'cuda:0,6gb;cpu,*'"},
		{&verb_plan, "to", "without it: distorchctl plan FILE 'cuda:0,6gb;cpu,*'"},
	};

	for (size_t i = 0; i < sizeof flags / sizeof flags[0]; i++) {
		if (flags[i].verb == verb && strcmp(flags[i].flag, flag) == 0) {
			return flags[i].hint;
		}
	}
	return NULL;
}

static int refuse_flag(struct ctl *ctl, const struct verb *verb, const char *flag)
{
	const struct argp_option *const lists[] = {verb->options, ctl_global_options,
						   ctl_built_in_options};
	const char *names[64];
	size_t n_names = 0;
	const char *known = familiar_hint(verb, flag);
	const char *nearest;
	char hint[160];

	for (size_t i = 0; i < 3; i++) {
		for (const struct argp_option *option = lists[i]; !option_is_end(option);
		     option++) {
			if (option->name != NULL && n_names < 64) {
				names[n_names++] = option->name;
			}
		}
	}
	nearest = text_nearest(flag, names, n_names);
	(void)snprintf(hint, sizeof hint,
		       nearest != NULL ? "did you mean --%s?" : "see distorchctl %s --help",
		       nearest != NULL ? nearest : verb->name);
	return ctl_refuse(ctl, EXIT_USAGE, "bad-argument", known != NULL ? known : hint,
			  "%s has no option --%s", verb->name, flag);
}

static int refuse_without_value(struct ctl *ctl, const char *flag, const char *value)
{
	return ctl_refuse(ctl, EXIT_USAGE, "bad-argument", NULL, "%s needs a value: %s", flag,
			  value);
}

/* "--name" or "--name=value" at '*at', which moves over a value of its own. */
static int check_long(struct ctl *ctl, const struct verb *verb, int argc, char **argv, int *at)
{
	const char *word = argv[*at];
	const char *equals = strchr(word, '=');
	const struct argp_option *option;
	char flag[66];

	(void)snprintf(flag, sizeof flag, "%.65s", word);
	flag[strcspn(flag, "=")] = '\0';
	option = option_find(verb, flag + 2, 0);
	if (option == NULL) {
		return refuse_flag(ctl, verb, flag + 2);
	}
	if (option->arg == NULL && equals != NULL) {
		return ctl_refuse(ctl, EXIT_USAGE, "bad-argument", NULL, "%s takes no value", flag);
	}
	if (option->arg != NULL && equals == NULL && (option->flags & OPTION_ARG_OPTIONAL) == 0 &&
	    ++*at == argc) {
		return refuse_without_value(ctl, flag, option->arg);
	}
	return EXIT_DONE;
}

/* "-abc" at '*at', which moves over a value of its own. */
static int check_short(struct ctl *ctl, const struct verb *verb, int argc, char **argv, int *at)
{
	for (const char *letter = argv[*at] + 1; *letter != '\0'; letter++) {
		const struct argp_option *option = option_find(verb, NULL, *letter);
		const char flag[] = {'-', *letter, '\0'};

		if (option == NULL) {
			char hint[64];

			(void)snprintf(hint, sizeof hint, "see distorchctl %s --help", verb->name);
			return ctl_refuse(ctl, EXIT_USAGE, "bad-argument", hint,
					  "%s has no option %s", verb->name, flag);
		}
		if (option->arg == NULL) {
			continue;
		}
		if (letter[1] == '\0' && (option->flags & OPTION_ARG_OPTIONAL) == 0 &&
		    ++*at == argc) {
			return refuse_without_value(ctl, flag, option->arg);
		}
		return EXIT_DONE;
	}
	return EXIT_DONE;
}

int flags_check(struct ctl *ctl, const struct verb *verb, int argc, char **argv)
{
	int status = EXIT_DONE;

	for (int i = 1; status == EXIT_DONE && i < argc && strcmp(argv[i], "--") != 0; i++) {
		if (strncmp(argv[i], "--", 2) == 0) {
			status = check_long(ctl, verb, argc, argv, &i);
		} else if (argv[i][0] == '-' && argv[i][1] != '\0') {
			status = check_short(ctl, verb, argc, argv, &i);
		}
	}
	return status;
}
