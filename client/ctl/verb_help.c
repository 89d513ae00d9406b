/* SPDX-License-Identifier: Apache-2.0 */
/* distorchctl help: the verbs in groups, one verb, the exit codes, or what was meant instead. */
#include "base/text.h"
#include "options.h"
#include "render.h"

#include <stdio.h>
#include <string.h>

static const struct {
	unsigned code;
	const char *text;
} exit_codes[] = {
	{EXIT_DONE, "done"},
	{EXIT_FAILED, "failed"},
	{EXIT_USAGE, "wrong usage"},
	{EXIT_NOT_RUNNING, "the daemon is not running"},
	{EXIT_NO_SUCH_MODEL, "no such model, or it is not in memory"},
	{EXIT_NOT_ALLOWED, "not allowed"},
	{EXIT_NO_MEMORY, "not enough memory"},
	{EXIT_BAD_FILE, "bad or unsupported file"},
	{EXIT_TIMED_OUT, "timed out"},
	{EXIT_FINDINGS, "findings (doctor, verify)"},
	{EXIT_INTERRUPTED, "interrupted by Ctrl-C"},
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

/* Words that people know from elsewhere. None may lead to what frees or ends by surprise. */
static const char *familiar_hint(const char *word)
{
	static const struct {
		const char *word;
		const char *hint;
	} words[] = {
		{"rm", "did you mean unload? It frees memory and deletes no file"},
		{"remove", "did you mean unload? It frees memory and deletes no file"},
		{"delete", "did you mean unload? It frees memory and deletes no file"},
		{"free", "did you mean unload? status shows what is free"},
		{"watch", "did you mean top, or ps --watch?"},
		{"run", "did you mean load?"},
		{"start", "distorchd starts the daemon"},
	};

	for (size_t i = 0; i < sizeof words / sizeof words[0]; i++) {
		if (strcmp(words[i].word, word) == 0) {
			return words[i].hint;
		}
	}
	return NULL;
}

int verb_refuse(struct ctl *ctl, const char *word)
{
	const char *names[64];
	size_t n_names = 0;
	const char *known = familiar_hint(word);
	const char *nearest;
	char hint[128];

	for (size_t i = 0; verbs[i] != NULL; i++) {
		const char *const *aliases = verbs[i]->aliases;

		if (verbs[i] == &verb_shutdown) {
			continue;
		}
		names[n_names++] = verbs[i]->name;
		for (; aliases != NULL && verbs[i] != &verb_unload && *aliases != NULL; aliases++) {
			names[n_names++] = *aliases;
		}
	}
	nearest = text_nearest(word, names, n_names);
	(void)snprintf(hint, sizeof hint,
		       nearest != NULL ? "did you mean %s?"
				       : "distorchctl --help lists the verbs%s",
		       nearest != NULL ? nearest : "");
	return ctl_refuse(ctl, EXIT_USAGE, "bad-argument", known != NULL ? known : hint,
			  "there is no verb \"%s\"", word);
}

static void add_verb(cJSON *array, const struct verb *verb)
{
	cJSON *item = json_add_item(array);
	cJSON *aliases;

	json_add_text(item, "name", verb->name);
	aliases = json_add_array(item, "aliases");
	for (size_t i = 0; verb->aliases != NULL && verb->aliases[i] != NULL; i++) {
		json_add_string(aliases, verb->aliases[i]);
	}
	json_add_text(item, "usage", verb->usage);
	json_add_text(item, "summary", verb->summary);
}

/* 'verb' NULL: all of them. */
static int print_json(struct ctl *ctl, const struct verb *verb)
{
	cJSON *object = json_new();
	cJSON *array = json_add_array(object, "verbs");

	for (size_t i = 0; verb == NULL && verbs[i] != NULL; i++) {
		add_verb(array, verbs[i]);
	}
	if (verb != NULL) {
		add_verb(array, verb);
	}
	return json_print(ctl, object);
}

static int print_exit_codes(struct ctl *ctl)
{
	cJSON *object = is_json(ctl) ? json_new() : NULL;
	cJSON *array = object == NULL ? NULL : json_add_array(object, "exit_codes");

	for (size_t i = 0; i < sizeof exit_codes / sizeof exit_codes[0]; i++) {
		if (array != NULL) {
			cJSON *item = json_add_item(array);

			json_add_number(item, "code", exit_codes[i].code);
			json_add_text(item, "text", exit_codes[i].text);
		} else {
			(void)printf("%-3u  %s\n", exit_codes[i].code, exit_codes[i].text);
		}
	}
	return object == NULL ? EXIT_DONE : json_print(ctl, object);
}

static int run(struct ctl *ctl)
{
	const char *word = ctl->arguments.n_words == 0 ? NULL : ctl->arguments.words[0];
	const struct verb *verb = word == NULL ? NULL : verb_find(word);

	if (word != NULL && strcmp(word, "exit-codes") == 0) {
		return print_exit_codes(ctl);
	}
	if (word != NULL && verb == NULL) {
		return verb_refuse(ctl, word);
	}
	if (is_json(ctl)) {
		return print_json(ctl, verb);
	}
	if (verb != NULL) {
		return verb_print_help(ctl, verb);
	}
	print_all();
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
	.words = WORDS_VERBS,
	.choices = "exit-codes",
	.run = run,
};
