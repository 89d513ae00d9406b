/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The completion of three shells, made of the table of verbs as the help is. What the table knows
 * goes into the scripts as words; names of models they ask for when TAB is pressed, by
 * "completion models". Those are strangers' text: no script evaluates them.
 */
#include "completion.h"

#include "options.h"

#include <string.h>

enum shell { SHELL_BASH, SHELL_ZSH, SHELL_FISH };

/* What the value of an option may be; those that are not here: anything. */
static const struct {
	int key;
	enum words_kind kind;
	const char *choices;
} values[] = {
	{'H', WORDS_FILES, NULL},
	{'o', WORDS_CHOICES, "table wide json jsonl csv id"},
	{OPTION_TO, WORDS_CHOICES, "ram auto"},
	{OPTION_COMPUTE, WORDS_CHOICES, "cpu"},
	{OPTION_FORMAT, WORDS_CHOICES, "auto safetensors gguf raw"},
	{OPTION_BACKING, WORDS_CHOICES, "auto image file"},
	{OPTION_DEVICE, WORDS_CHOICES, "ram"},
	{OPTION_UNDER, WORDS_FOLDERS, NULL},
	{OPTION_STRATEGY, WORDS_CHOICES, "contiguous spread"},
	{OPTION_GRANULARITY, WORDS_CHOICES, "block tensor"},
	{OPTION_TYPE, WORDS_CHOICES,
	 "load load.begun load.done load.failed load.cancelled evicted unloaded refused pinned "
	 "unpinned kept unkept held freed stale quarantined placed place.failed place.cancelled"},
};

static enum words_kind value_kind(int key, const char **ret_choices)
{
	*ret_choices = "";
	for (size_t i = 0; i < sizeof values / sizeof values[0]; i++) {
		if (values[i].key == key) {
			*ret_choices = values[i].choices == NULL ? "" : values[i].choices;
			return values[i].kind;
		}
	}
	return WORDS_NONE;
}

/* ---- walking the table ---- */

/* Options with a name or a letter; NULL at the end. '*at' is 0 first. */
static const struct argp_option *next_option(const struct argp_option *options, size_t *at)
{
	while (!option_is_end(&options[*at])) {
		const struct argp_option *option = &options[(*at)++];

		if (option->name != NULL) {
			return option;
		}
	}
	return NULL;
}

static bool has_letter(const struct argp_option *option)
{
	return option->key > ' ' && option->key < 0x7f && option->key != '?';
}

static bool needs_value(const struct argp_option *option)
{
	return option->arg != NULL && (option->flags & OPTION_ARG_OPTIONAL) == 0;
}

/* Its name and aliases, with 'between' between them. */
static void put_names(FILE *out, const struct verb *verb, const char *between)
{
	(void)fputs(verb->name, out);
	for (size_t i = 0; verb->aliases != NULL && verb->aliases[i] != NULL; i++) {
		(void)fprintf(out, "%s%s", between, verb->aliases[i]);
	}
}

static void put_all_verbs(FILE *out)
{
	for (size_t i = 0; verbs[i] != NULL; i++) {
		(void)fputs(i == 0 ? "" : " ", out);
		put_names(out, verbs[i], " ");
	}
}

/* Within single quotes. 'special' get a backslash: what means something to the reader there. */
static void put_text(FILE *out, const char *text, enum shell shell, const char *special)
{
	for (; *text != '\0'; text++) {
		if (*text == '\'') {
			(void)fputs(shell == SHELL_FISH ? "\\'" : "'\\''", out);
		} else {
			(void)fprintf(out, "%s%c", strchr(special, *text) != NULL ? "\\" : "",
				      *text);
		}
	}
}

/* ---- bash ---- */

static void put_bash_options(FILE *out, const struct argp_option *options)
{
	const struct argp_option *option;
	size_t at = 0;

	while ((option = next_option(options, &at)) != NULL) {
		(void)fprintf(out, " --%s", option->name);
		if (has_letter(option)) {
			(void)fprintf(out, " -%c", option->key);
		}
	}
}

/* Has a verb before this one an option of that name? It means the same there. */
static bool was_before(size_t verb, const char *name)
{
	for (size_t i = 0; i < verb; i++) {
		const struct argp_option *option;
		size_t at = 0;

		while ((option = next_option(verbs[i]->options, &at)) != NULL) {
			if (strcmp(option->name, name) == 0) {
				return true;
			}
		}
	}
	return false;
}

/* One case an option that takes a value, of those that no verb before has. */
static void put_bash_values(FILE *out, const struct argp_option *options, size_t verb)
{
	static const char *const words[] = {
		[WORDS_NONE] = "none",
		[WORDS_FILES] = "files",
		[WORDS_FOLDERS] = "folders",
		[WORDS_CHOICES] = "words",
	};
	const struct argp_option *option;
	const char *choices;
	size_t at = 0;

	while ((option = next_option(options, &at)) != NULL) {
		enum words_kind kind = value_kind(option->key, &choices);

		if (!needs_value(option) || was_before(verb, option->name)) {
			continue;
		}
		(void)fprintf(out, "\t--%s", option->name);
		if (has_letter(option)) {
			(void)fprintf(out, " | -%c", option->key);
		}
		(void)fprintf(out, ") kind='%s %s' ;;\n", words[kind], choices);
	}
}

static const char bash_head[] =
	"# bash completion of distorchctl; made by: distorchctl completion bash\n"
	"\n"
	"# Those of the words on standard input that go on with what is typed. They may be\n"
	"# anybody's text: never evaluated, and quoted for the line.\n"
	"_distorchctl_add()\n"
	"{\n"
	"\tlocal word\n"
	"\twhile IFS= read -r word; do\n"
	"\t\t[[ $word == \"$typed\"* ]] || continue\n"
	"\t\tword=$before$word\n"
	"\t\tword=${word#\"$cut\"}\n"
	"\t\t[[ $cur == [\\'\\\"]* ]] || printf -v word %q \"$word\"\n"
	"\t\tCOMPREPLY+=(\"$word\")\n"
	"\tdone\n"
	"}\n"
	"\n"
	"# What may stand there: $1 is the kind and, for words, the words.\n"
	"_distorchctl_offer()\n"
	"{\n"
	"\tlocal typed=${cur//\\\\/}\n"
	"\ttyped=${typed#[\\'\\\"]}\n"
	"\tcase $1 in\n"
	"\tmodels*) _distorchctl_add < <(distorchctl \"${socket[@]}\" --timeout 2s completion \\\n"
	"\t\tmodels -- \"$typed\" 2>/dev/null) ;;\n"
	"\twords*) _distorchctl_add < <(printf '%s\\n' ${1#words}) ;;\n"
	"\tfiles* | folders*)\n"
	"\t\tcompopt -o filenames 2>/dev/null\n"
	"\t\tlocal -a found\n"
	"\t\tif [[ $1 == files* ]]; then\n"
	"\t\t\tmapfile -t found < <(compgen -f -- \"$cur\")\n"
	"\t\telse\n"
	"\t\t\tmapfile -t found < <(compgen -d -- \"$cur\")\n"
	"\t\tfi\n"
	"\t\tCOMPREPLY+=(\"${found[@]}\")\n"
	"\t\t;;\n"
	"\tesac\n"
	"}\n"
	"\n";

static const char bash_tail[] =
	"_distorchctl()\n"
	"{\n"
	"\tlocal cur word kind real i verb='' wants='' before='' cut='' joins=''\n"
	"\tlocal -a words=() socket=()\n"
	"\n"
	"\tCOMPREPLY=()\n"
	"\t# \"--output=json\" and \"cuda:0\" come in three words; one of them is replaced.\n"
	"\tfor ((i = 1; i <= COMP_CWORD; i++)); do\n"
	"\t\tword=${COMP_WORDS[i]}\n"
	"\t\tif ((${#words[@]})) && [[ $joins || $word == [=:] ]]; then\n"
	"\t\t\twords[${#words[@]} - 1]+=$word\n"
	"\t\telse\n"
	"\t\t\twords+=(\"$word\")\n"
	"\t\tfi\n"
	"\t\t[[ $word == [=:] ]] && joins=1 || joins=\n"
	"\tdone\n"
	"\ti=$((${#words[@]} - 1))\n"
	"\tcur=${words[i]}\n"
	"\tunset \"words[i]\"\n"
	"\treal=${COMP_WORDS[COMP_CWORD]}\n"
	"\t[[ $real == [=:] ]] && real=\n"
	"\tcut=${cur%\"$real\"}\n"
	"\n"
	"\tfor word in \"${words[@]}\"; do\n"
	"\t\tif [[ $wants ]]; then\n"
	"\t\t\t[[ $wants == --socket || $wants == -H ]] && socket=(--socket \"$word\")\n"
	"\t\t\twants=\n"
	"\t\telif [[ $word == --socket=* ]]; then\n"
	"\t\t\tsocket=(\"$word\")\n"
	"\t\telif [[ $word == -* ]]; then\n"
	"\t\t\t_distorchctl_value \"$word\" && wants=$word\n"
	"\t\telif [[ ! $verb ]]; then\n"
	"\t\t\tverb=$word\n"
	"\t\tfi\n"
	"\tdone\n"
	"\n"
	"\tif [[ $wants ]]; then\n"
	"\t\t_distorchctl_value \"$wants\"\n"
	"\t\t_distorchctl_offer \"$kind\"\n"
	"\telif [[ $cur == --*=* ]]; then\n"
	"\t\tbefore=${cur%%=*}=\n"
	"\t\tcur=${cur#*=}\n"
	"\t\t_distorchctl_value \"${before%=}\" && _distorchctl_offer \"$kind\"\n"
	"\telif [[ $cur == -* ]]; then\n"
	"\t\t_distorchctl_offer \"words $(_distorchctl_options \"$verb\")\"\n"
	"\telif [[ ! $verb ]]; then\n"
	"\t\t_distorchctl_offer \"words $_distorchctl_verbs\"\n"
	"\telse\n"
	"\t\t_distorchctl_words \"$verb\"\n"
	"\tfi\n"
	"}\n"
	"\n"
	"complete -F _distorchctl distorchctl\n";

static void put_bash_words(FILE *out, const struct verb *verb)
{
	if (verb->choices != NULL || verb->words == WORDS_VERBS) {
		(void)fprintf(out, "\t\t_distorchctl_offer \"words %s%s\"\n",
			      verb->words == WORDS_VERBS ? "$_distorchctl_verbs " : "",
			      verb->choices == NULL ? "" : verb->choices);
	}
	if (verb->words == WORDS_MODELS || verb->words == WORDS_FILES) {
		(void)fprintf(out, "\t\t_distorchctl_offer %s\n",
			      verb->words == WORDS_MODELS ? "models" : "files");
	}
}

void completion_bash(FILE *out)
{
	(void)fputs(bash_head, out);
	(void)fputs("_distorchctl_verbs='", out);
	put_all_verbs(out);
	(void)fputs("'\n\n# The options of a verb.\n_distorchctl_options()\n{\n\techo", out);
	put_bash_options(out, ctl_global_options);
	put_bash_options(out, ctl_built_in_options);
	(void)fputs(" -h\n\tcase $1 in\n", out);
	for (size_t i = 0; verbs[i] != NULL; i++) {
		(void)fputc('\t', out);
		put_names(out, verbs[i], " | ");
		(void)fputs(") echo", out);
		put_bash_options(out, verbs[i]->options);
		(void)fputs(" ;;\n", out);
	}
	(void)fputs(
		"\tesac\n}\n\n# What the value of an option may be, into 'kind'; fails where it "
		"takes none.\n_distorchctl_value()\n{\n\tcase $1 in\n",
		out);
	put_bash_values(out, ctl_global_options, 0);
	for (size_t i = 0; verbs[i] != NULL; i++) {
		put_bash_values(out, verbs[i]->options, i);
	}
	(void)fputs("\t*) return 1 ;;\n\tesac\n}\n\n# What stands behind a verb.\n"
		    "_distorchctl_words()\n{\n\tcase $1 in\n",
		    out);
	for (size_t i = 0; verbs[i] != NULL; i++) {
		(void)fputc('\t', out);
		put_names(out, verbs[i], " | ");
		(void)fputs(")\n", out);
		put_bash_words(out, verbs[i]);
		(void)fputs("\t\t;;\n", out);
	}
	(void)fputs("\tesac\n}\n\n", out);
	(void)fputs(bash_tail, out);
}

/* ---- zsh ---- */

static const char *zsh_action(enum words_kind kind)
{
	return kind == WORDS_FILES     ? "_files"
	       : kind == WORDS_FOLDERS ? "_files -/"
	       : kind == WORDS_MODELS  ? "_distorchctl_models"
				       : " "; /* anything: nothing is offered */
}

/* One form of an option, as _arguments wants it. */
static void put_zsh_form(FILE *out, const struct argp_option *option, bool is_letter)
{
	const char *choices;
	enum words_kind kind = value_kind(option->key, &choices);

	if (is_letter) {
		(void)fprintf(out, "\t'-%c%s[", option->key,
			      needs_value(option)   ? "+"
			      : option->arg != NULL ? "-"
						    : "");
	} else {
		(void)fprintf(out, "\t'--%s%s[", option->name,
			      needs_value(option)   ? "="
			      : option->arg != NULL ? "=-"
						    : "");
	}
	put_text(out, option->doc == NULL ? "" : option->doc, SHELL_ZSH, "[]\\");
	(void)fputc(']', out);
	if (option->arg != NULL) {
		(void)fputs(needs_value(option) ? ":" : "::", out);
		put_text(out, option->arg, SHELL_ZSH, ":\\");
		(void)fprintf(out, kind == WORDS_CHOICES ? ":(%s)" : ":%s",
			      kind == WORDS_CHOICES ? choices : zsh_action(kind));
	}
	(void)fputs("'\n", out);
}

static void put_zsh_options(FILE *out, const struct argp_option *options)
{
	const struct argp_option *option;
	size_t at = 0;

	while ((option = next_option(options, &at)) != NULL) {
		put_zsh_form(out, option, false);
		if (has_letter(option)) {
			put_zsh_form(out, option, true);
		}
	}
}

static void put_zsh_words(FILE *out, const struct verb *verb)
{
	const char *place = verb->max_words > 2 ? "*" : "1";

	if (verb->max_words == 0) {
		return;
	}
	(void)fprintf(out, "\t\t\t'%s:", verb->choices != NULL ? "1" : place);
	put_text(out, verb->usage, SHELL_ZSH, ":\\");
	if (verb->choices != NULL || verb->words == WORDS_VERBS) {
		(void)fprintf(out, ":(%s%s", verb->choices == NULL ? "" : verb->choices,
			      verb->words == WORDS_VERBS ? " " : "");
		if (verb->words == WORDS_VERBS) {
			put_all_verbs(out);
		}
		(void)fputs(")'\n", out);
	} else {
		(void)fprintf(out, ":%s'\n", zsh_action(verb->words));
	}
	if (verb->choices != NULL && verb->words == WORDS_FILES) {
		(void)fprintf(out, "\t\t\t'2:FILE:%s'\n", zsh_action(verb->words));
	}
}

static const char zsh_head[] =
	"#compdef distorchctl\n"
	"# zsh completion of distorchctl; made by: distorchctl completion zsh\n"
	"\n"
	"# Names may be anybody's text: never evaluated.\n"
	"_distorchctl_models()\n"
	"{\n"
	"\tlocal -a found socket\n"
	"\tlocal given=${opt_args[--socket]:-${opt_args[-H]}}\n"
	"\t[[ -n $given ]] && socket=(--socket \"${(Q)given}\")\n"
	"\tfound=(${(f)\"$(distorchctl \"${socket[@]}\" --timeout 2s completion models -- "
	"\"${(Q)PREFIX}\" 2>/dev/null)\"})\n"
	"\t(( $#found )) && compadd -a found\n"
	"}\n"
	"\n"
	"_distorchctl()\n"
	"{\n"
	"local curcontext=$curcontext state line ret=1\n"
	"local -A opt_args\n"
	"local -a global known own\n"
	"global=(\n";

static const char zsh_tail[] = "*)\n"
			       "\t_message 'there is no such verb'\n"
			       "\t;;\n"
			       "esac\n"
			       "return ret\n"
			       "}\n"
			       "\n"
			       "if [[ $funcstack[1] == _distorchctl ]]; then\n"
			       "\t_distorchctl \"$@\"\n"
			       "else\n"
			       "\tcompdef _distorchctl distorchctl\n"
			       "fi\n";

void completion_zsh(FILE *out)
{
	(void)fputs(zsh_head, out);
	put_zsh_options(out, ctl_global_options);
	put_zsh_options(out, ctl_built_in_options);
	(void)fputs(")\n_arguments -C $global '1: :->verb' '*:: :->words' && ret=0\n"
		    "if [[ $state == verb ]]; then\n\tknown=(\n",
		    out);
	for (size_t i = 0; verbs[i] != NULL; i++) {
		(void)fprintf(out, "\t'%s:", verbs[i]->name);
		put_text(out, verbs[i]->summary, SHELL_ZSH, "\\");
		(void)fputs("'\n", out);
		for (size_t j = 0; verbs[i]->aliases != NULL && verbs[i]->aliases[j] != NULL; j++) {
			(void)fprintf(out, "\t'%s:the same as %s'\n", verbs[i]->aliases[j],
				      verbs[i]->name);
		}
	}
	(void)fputs("\t)\n\t_describe -t verbs verb known && ret=0\n\treturn ret\nfi\n"
		    "[[ $state == words ]] || return ret\ncase $words[1] in\n",
		    out);
	for (size_t i = 0; verbs[i] != NULL; i++) {
		put_names(out, verbs[i], "|");
		(void)fputs(")\n\town=(\n", out);
		put_zsh_options(out, verbs[i]->options);
		put_zsh_words(out, verbs[i]);
		(void)fputs("\t)\n\t_arguments $global $own && ret=0\n\t;;\n", out);
	}
	(void)fputs(zsh_tail, out);
}

/* ---- fish ---- */

static const char fish_head[] =
	"# fish completion of distorchctl; made by: distorchctl completion fish\n"
	"\n"
	"# The verb that was typed, or an empty line.\n"
	"function __distorchctl_verb\n"
	"    set -l wants\n"
	"    for word in (commandline -opc)[2..-1]\n"
	"        if set -q wants[1]\n"
	"            set -e wants\n"
	"            continue\n"
	"        end\n"
	"        switch $word\n"
	"            case -H -o --socket --output --timeout\n"
	"                set wants yes\n"
	"            case '-*'\n"
	"            case '*'\n"
	"                echo $word\n"
	"                return\n"
	"        end\n"
	"    end\n"
	"    echo ''\n"
	"end\n"
	"\n"
	"function __distorchctl_is\n"
	"    contains -- (__distorchctl_verb) $argv\n"
	"end\n"
	"\n"
	"# Names may be anybody's text: never evaluated.\n"
	"function __distorchctl_models\n"
	"    set -l socket\n"
	"    set -l wants\n"
	"    for word in (commandline -opc)\n"
	"        if set -q wants[1]\n"
	"            set socket --socket $word\n"
	"            set -e wants\n"
	"        end\n"
	"        switch $word\n"
	"            case -H --socket\n"
	"                set wants yes\n"
	"            case '--socket=*'\n"
	"                set socket $word\n"
	"        end\n"
	"    end\n"
	"    distorchctl $socket --timeout 2s completion models -- (commandline -ct) 2>/dev/null\n"
	"end\n"
	"\n"
	"complete -c distorchctl -f\n";

static void put_fish_options(FILE *out, const struct argp_option *options, const struct verb *verb)
{
	const struct argp_option *option;
	const char *choices;
	size_t at = 0;

	while ((option = next_option(options, &at)) != NULL) {
		enum words_kind kind = value_kind(option->key, &choices);

		(void)fputs("complete -c distorchctl", out);
		if (verb != NULL) {
			(void)fputs(" -n '__distorchctl_is ", out);
			put_names(out, verb, " ");
			(void)fputc('\'', out);
		}
		(void)fprintf(out, " -l %s", option->name);
		if (has_letter(option)) {
			(void)fprintf(out, " -s %c", option->key);
		}
		if (needs_value(option)) {
			(void)fputs(kind == WORDS_FILES ? " -r -F" : " -x", out);
		}
		if (kind == WORDS_CHOICES) {
			(void)fprintf(out, " -a '%s'", choices);
		} else if (kind == WORDS_FOLDERS) {
			(void)fputs(" -a '(__fish_complete_directories)'", out);
		}
		(void)fputs(" -d '", out);
		put_text(out, option->doc == NULL ? "" : option->doc, SHELL_FISH, "\\");
		(void)fputs("'\n", out);
	}
}

static void put_fish_words(FILE *out, const struct verb *verb)
{
	if (verb->words == WORDS_NONE && verb->choices == NULL) {
		return;
	}
	(void)fputs("complete -c distorchctl -n '__distorchctl_is ", out);
	put_names(out, verb, " ");
	if (verb->words == WORDS_FILES && verb->choices != NULL) {
		(void)fprintf(out, "' -F -a '%s'\n", verb->choices);
		return;
	}
	if (verb->words == WORDS_FILES) {
		(void)fputs("' -F\n", out);
		return;
	}
	(void)fputs("' -a '", out);
	if (verb->words == WORDS_MODELS) {
		(void)fputs("(__distorchctl_models)", out);
	} else if (verb->words == WORDS_VERBS) {
		put_all_verbs(out);
	}
	(void)fprintf(out, "%s%s'\n", verb->choices == NULL ? "" : " ",
		      verb->choices == NULL ? "" : verb->choices);
}

void completion_fish(FILE *out)
{
	(void)fputs(fish_head, out);
	put_fish_options(out, ctl_global_options, NULL);
	put_fish_options(out, ctl_built_in_options, NULL);
	for (size_t i = 0; verbs[i] != NULL; i++) {
		(void)fputs("\ncomplete -c distorchctl -n '__distorchctl_is \"\"' -a '", out);
		put_names(out, verbs[i], " ");
		(void)fputs("' -d '", out);
		put_text(out, verbs[i]->summary, SHELL_FISH, "\\");
		(void)fputs("'\n", out);
		put_fish_options(out, verbs[i]->options, verbs[i]);
		put_fish_words(out, verbs[i]);
	}
}
