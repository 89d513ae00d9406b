/* SPDX-License-Identifier: Apache-2.0 */
/* distorchctl completion: a script for a shell, or the models that a script asks for. */
#include "completion.h"
#include "options.h"
#include "render.h"

#include <stdlib.h>
#include <string.h>

/* A word that a line can hold and that is not taken for an option. */
static bool is_typable(const char *name)
{
	for (const char *at = name; *at != '\0'; at++) {
		if ((unsigned char)*at < ' ' || *at == 0x7f) {
			return false;
		}
	}
	return name[0] != '\0' && name[0] != '-';
}

static size_t print_names(const struct distorch_models *models, const char *prefix, bool are_ids,
			  cJSON *array)
{
	size_t n_printed = 0;

	for (size_t i = 0; i < models->n_models; i++) {
		const struct distorch_model *model = models->models[i];
		bool has_name = model->name != NULL && is_typable(model->name);
		const char *word = has_name && !are_ids ? model->name : model->id;

		if (strncmp(word, prefix, strlen(prefix)) != 0) {
			continue;
		}
		n_printed++;
		if (array != NULL) {
			json_add_string(array, word);
		} else {
			(void)printf("%s\n", word);
		}
	}
	return n_printed;
}

static int run_models(struct ctl *ctl)
{
	const char *prefix = ctl->arguments.n_words > 1 ? ctl->arguments.words[1] : "";
	struct distorch_models *models = NULL;
	cJSON *object;
	cJSON *array = NULL;
	int status = ctl_connect(ctl);

	if (status != EXIT_DONE) {
		return status;
	}
	if (distorch_list(ctl->c, NULL, &models) < 0) {
		return ctl_fail(ctl);
	}
	object = is_json(ctl) ? json_new() : NULL;
	array = object == NULL ? NULL : json_add_array(object, "models");
	if (print_names(models, prefix, false, array) == 0) {
		(void)print_names(models, prefix, true, array);
	}
	distorch_models_free(models);
	return object == NULL ? EXIT_DONE : json_print(ctl, object);
}

static int print_script(struct ctl *ctl, const char *shell, void (*put)(FILE *out))
{
	cJSON *object;
	char *text = NULL;
	size_t size = 0;
	FILE *memory;

	if (!is_json(ctl)) {
		put(stdout); /* main looks whether it could be written */
		return EXIT_DONE;
	}
	memory = open_memstream(&text, &size);
	if (memory == NULL) {
		return ctl_refuse(ctl, EXIT_FAILED, "no-memory", NULL, "no memory for the script");
	}
	put(memory);
	if (fclose(memory) != 0) {
		free(text);
		return ctl_refuse(ctl, EXIT_FAILED, "no-memory", NULL, "no memory for the script");
	}
	object = json_new();
	json_add_text(object, "shell", shell);
	json_add_text(object, "script", text);
	free(text);
	return json_print(ctl, object);
}

static int run(struct ctl *ctl)
{
	static const struct {
		const char *name;
		void (*put)(FILE *out);
	} shells[] = {{"bash", completion_bash},
		      {"zsh", completion_zsh},
		      {"fish", completion_fish}};
	const char *word = ctl->arguments.words[0];

	if (strcmp(word, "models") == 0) {
		return run_models(ctl);
	}
	for (size_t i = 0; i < sizeof shells / sizeof shells[0]; i++) {
		if (strcmp(shells[i].name, word) != 0) {
			continue;
		}
		if (ctl->arguments.n_words > 1) {
			return ctl_refuse(ctl, EXIT_USAGE, "bad-argument", NULL,
					  "completion %s takes no \"%s\"", word,
					  ctl->arguments.words[1]);
		}
		return print_script(ctl, word, shells[i].put);
	}
	return ctl_refuse(ctl, EXIT_USAGE, "bad-argument", "it is bash, zsh or fish",
			  "there is no completion for \"%s\"", word);
}

static const struct argp_option no_options[] = {OPTIONS_END};

const struct verb verb_completion = {
	.name = "completion",
	.group = VERB_MORE,
	.usage = "bash | zsh | fish",
	.summary = "Print what makes TAB complete verbs, options and models in a shell.",
	.text = "An installed distorchctl has it already. Without, for one shell:\n"
		"  source <(distorchctl completion bash)     likewise zsh\n"
		"  distorchctl completion fish | source\n\n"
		"What these scripts ask is \"completion models [PREFIX]\": it prints the names "
		"that\ngo on with PREFIX, or ids where no name does.",
	.options = no_options,
	.choices = "bash zsh fish",
	.min_words = 1,
	.max_words = 2,
	.run = run,
};
