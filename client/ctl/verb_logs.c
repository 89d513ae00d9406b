/* SPDX-License-Identifier: Apache-2.0 */
/*
 * distorchctl logs: what the daemon logged, from where its standard error goes: the journal of its
 * unit, or a file. Works without a daemon too: then most of all somebody wants to know.
 */
#include "options.h"
#include "render.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define SYSTEM_SOCKET "/run/distorchd/distorchd.sock"
#define USUAL_UNIT    "distorchd.service"
#define USUAL_LINES   50
#define PATH_SIZE     512

enum place_kind { PLACE_NONE, PLACE_SYSTEM_UNIT, PLACE_USER_UNIT, PLACE_FILE, PLACE_OTHER };

struct place {
	enum place_kind kind;
	char name[PATH_SIZE]; /* of the unit, the file, or what else it is */
};

/* ---- where it is ---- */

/* What a small file of /proc, or a lock, says: its first bytes. Returns 'buffer'. */
static const char *read_start(const char *path, char *buffer, size_t buffer_size)
{
	FILE *file = fopen(path, "re");
	size_t size = file == NULL ? 0 : fread(buffer, 1, buffer_size - 1, file);

	buffer[size] = '\0';
	if (file != NULL) {
		(void)fclose(file); /* was only read */
	}
	return buffer;
}

/* Of the daemon at this socket; 0: none is known. A lock that was left names somebody else. */
static unsigned long find_pid(const char *socket_path)
{
	char path[PATH_SIZE];
	char text[64];
	unsigned long pid;

	(void)snprintf(path, sizeof path, "%.500s.lock", socket_path);
	pid = strtoul(read_start(path, text, sizeof text), NULL, 10);
	(void)snprintf(path, sizeof path, "/proc/%lu/comm", pid);
	return strcmp(read_start(path, text, sizeof text), "distorchd\n") == 0 ? pid : 0;
}

/* The unit in whose control group the process is; false: it is in none. */
static bool find_unit(unsigned long pid, struct place *ret)
{
	char path[64];
	char text[2048];
	char *line;
	char *rest = text;

	(void)snprintf(path, sizeof path, "/proc/%lu/cgroup", pid);
	(void)read_start(path, text, sizeof text);
	while ((line = strsep(&rest, "\n")) != NULL) {
		const char *name = strrchr(line, '/');
		size_t size = name == NULL ? 0 : strlen(++name);

		if (size > 8 && strcmp(&name[size - 8], ".service") == 0 &&
		    strncmp(name, "user@", 5) != 0) {
			ret->kind = strstr(line, "/user@") != NULL ? PLACE_USER_UNIT
								   : PLACE_SYSTEM_UNIT;
			(void)snprintf(ret->name, sizeof ret->name, "%s", name);
			return true;
		}
	}
	return false;
}

/* Where the running daemon's standard error goes; false: that cannot be seen. */
static bool find_by_process(unsigned long pid, struct place *ret)
{
	char path[64];
	struct stat status = {0};
	struct stat named = {0};
	ssize_t size;

	(void)snprintf(path, sizeof path, "/proc/%lu/fd/2", pid);
	size = readlink(path, ret->name, sizeof ret->name - 1);
	if (size < 0) {
		return find_unit(pid, ret); /* another user's */
	}
	ret->name[size] = '\0';
	if (strncmp(ret->name, "socket:", 7) == 0 && find_unit(pid, ret)) {
		return true;
	}
	ret->kind = stat(path, &status) == 0 && S_ISREG(status.st_mode) ? PLACE_FILE : PLACE_OTHER;
	if (ret->kind == PLACE_FILE &&
	    (stat(ret->name, &named) < 0 || named.st_ino != status.st_ino ||
	     named.st_dev != status.st_dev)) {
		(void)snprintf(ret->name, sizeof ret->name, "%s", path); /* it has no name here */
	}
	return true;
}

/* What scripts/install has a user's daemon log to where no systemd runs it. */
static bool find_by_install(const char *state, struct place *ret)
{
	(void)snprintf(ret->name, sizeof ret->name, "%.500s/log", state);
	ret->kind = PLACE_FILE;
	return access(ret->name, R_OK) == 0;
}

/* By the name of its socket, as the units and scripts/install have it. */
static void find_by_name(const char *socket_path, struct place *ret)
{
	const char *runtime = getenv("XDG_RUNTIME_DIR");
	const char *state_home = getenv("XDG_STATE_HOME");
	const char *home = getenv("HOME");
	char usual[PATH_SIZE];
	char state[PATH_SIZE];
	char other[PATH_SIZE];

	(void)snprintf(usual, sizeof usual, "%s/distorchd/distorchd.sock",
		       runtime == NULL ? "" : runtime);
	(void)snprintf(state, sizeof state, "%s%s/distorchd",
		       state_home != NULL ? state_home
		       : home != NULL     ? home
					  : "",
		       state_home != NULL ? "" : "/.local/state");
	(void)snprintf(other, sizeof other, "%.500s/socket", state);
	ret->kind = PLACE_NONE;
	if (strcmp(socket_path, SYSTEM_SOCKET) == 0) {
		ret->kind = PLACE_SYSTEM_UNIT;
	} else if ((strcmp(socket_path, usual) == 0 || strcmp(socket_path, other) == 0) &&
		   !find_by_install(state, ret)) {
		ret->kind = strcmp(socket_path, usual) == 0 ? PLACE_USER_UNIT : PLACE_NONE;
	}
	if (ret->kind == PLACE_SYSTEM_UNIT || ret->kind == PLACE_USER_UNIT) {
		(void)snprintf(ret->name, sizeof ret->name, "%s", USUAL_UNIT);
	}
}

static void find_place(const char *socket_path, struct place *ret)
{
	unsigned long pid = find_pid(socket_path);

	if (pid == 0 || !find_by_process(pid, ret)) {
		find_by_name(socket_path, ret);
	}
}

/* ---- showing it ---- */

/* The program that shows it, and its arguments. */
struct command {
	const char *words[16];
	char lines[24], since[40];
	size_t n_words;
};

static void add_word(struct command *command, const char *word)
{
	command->words[command->n_words++] = word;
}

static void make_command(const struct arguments *arguments, const struct place *place,
			 struct command *ret)
{
	bool is_file = place->kind == PLACE_FILE;
	bool has_lines = arguments->has_lines || arguments->since_ms == 0;

	*ret = (struct command){.n_words = 0};
	add_word(ret, is_file ? "tail" : "journalctl");
	if (has_lines) {
		(void)snprintf(ret->lines, sizeof ret->lines, "-n%u",
			       arguments->has_lines ? arguments->n_lines : USUAL_LINES);
		add_word(ret, ret->lines);
	}
	if (is_file) {
		add_word(ret, arguments->follow ? "-F" : "--");
		add_word(ret, place->name);
		return;
	}
	add_word(ret, "--quiet");
	add_word(ret, "--no-pager");
	if (place->kind == PLACE_USER_UNIT) {
		add_word(ret, "--user");
	}
	add_word(ret, "--unit");
	add_word(ret, place->name);
	if (arguments->since_ms != 0) {
		(void)snprintf(ret->since, sizeof ret->since, "--since=@%lld",
			       (long long)time(NULL) - (long long)(arguments->since_ms / 1000));
		add_word(ret, ret->since);
	}
	if (arguments->follow) {
		add_word(ret, "--follow");
	}
}

/* Become the program; comes back when there is none. */
static void become(const struct command *command)
{
	char *words[sizeof command->words / sizeof command->words[0] + 1];

	for (size_t i = 0; i < command->n_words; i++) {
		words[i] = strdup(command->words[i]);
	}
	words[command->n_words] = NULL;
	(void)execvp(words[0], words);
}

static int refuse_program(struct ctl *ctl, const struct command *command)
{
	return ctl_refuse(ctl, EXIT_FAILED, "not-found",
			  "install systemd's journalctl, or look where your system keeps its logs",
			  "%s cannot be run", command->words[0]);
}

/* Print its lines, or gather them in 'array'. Returns how many there were; '*ret_exit' is the
 * program's, 127 when there is none. */
__attribute__((noinline)) static size_t take_lines(const struct command *command, cJSON *array,
						   int *ret_exit)
{
	char safe[2048];
	int ends[2];
	int status = 0;
	size_t n_lines = 0;
	size_t capacity = 0;
	char *line = NULL;
	FILE *file;
	pid_t pid;

	*ret_exit = 127;
	if (pipe2(ends, O_CLOEXEC) < 0 || (pid = fork()) < 0) {
		return 0;
	}
	if (pid == 0) {
		(void)dup2(ends[1], STDOUT_FILENO); /* without it the lines are lost, and missed */
		become(command);
		_exit(127);
	}
	(void)close(ends[1]); /* the child has it */
	file = fdopen(ends[0], "r");
	while (file != NULL && getline(&line, &capacity, file) > 0) {
		n_lines++;
		line[strcspn(line, "\n")] = '\0';
		if (array != NULL) {
			json_add_string(array, safe_text(line, safe, sizeof safe));
		} else {
			(void)puts(line); /* main looks whether it could be written */
		}
	}
	free(line);
	if (file != NULL) {
		(void)fclose(file); /* was only read */
	}
	if (waitpid(pid, &status, 0) == pid && WIFEXITED(status)) {
		*ret_exit = WEXITSTATUS(status);
	}
	return n_lines;
}

static int show(struct ctl *ctl, const struct place *place)
{
	bool is_file = place->kind == PLACE_FILE;
	cJSON *object = is_json(ctl) ? json_new() : NULL;
	cJSON *array = NULL;
	struct command command;
	int exit_status = 0;
	size_t n_lines;

	make_command(&ctl->arguments, place, &command);
	if (ctl->arguments.follow) {
		become(&command);
		return refuse_program(ctl, &command);
	}
	if (object != NULL) {
		json_add_text(object, is_file ? "file" : "unit", place->name);
		array = json_add_array(object, "lines");
	}
	n_lines = take_lines(&command, array, &exit_status);
	if (exit_status == 0 && (n_lines > 0 || is_file || ctl->arguments.since_ms != 0)) {
		return object == NULL ? EXIT_DONE : json_print(ctl, object);
	}
	cJSON_Delete(object);
	if (exit_status == 127) {
		return refuse_program(ctl, &command);
	}
	if (is_file) {
		return ctl_refuse(ctl, EXIT_FAILED, "io", NULL, "%s cannot be read", place->name);
	}
	return ctl_refuse(ctl, EXIT_FAILED, "not-found",
			  "is it installed, and may you read the journal (groups systemd-journal, "
			  "adm)? A daemon started by hand logs to its standard error",
			  "the journal has no line of %s%s", place->name,
			  place->kind == PLACE_USER_UNIT ? " of yours" : "");
}

static int run(struct ctl *ctl)
{
	struct place place;
	char path[PATH_SIZE];

	if (ctl->arguments.socket_path != NULL) {
		(void)snprintf(path, sizeof path, "%s", ctl->arguments.socket_path);
	} else if (distorch_default_path(path, sizeof path) < 0) {
		return ctl_fail(ctl);
	}
	find_place(path, &place);
	if (ctl->arguments.follow && is_json(ctl)) {
		return ctl_refuse(ctl, EXIT_USAGE, "bad-argument", "leave one of them out",
				  "--follow prints lines and no JSON");
	}
	if (place.kind == PLACE_NONE) {
		return ctl_refuse(ctl, EXIT_NOT_RUNNING, "no-connection",
				  "a daemon that was started by hand logs to its standard error",
				  "no daemon of yours runs at %s that could tell where it logs to",
				  path);
	}
	if (place.kind == PLACE_OTHER) {
		return ctl_refuse(ctl, EXIT_FAILED, "unsupported",
				  "look there; log.format = journal sends it to the journal",
				  "the daemon was started by hand and logs to %s", place.name);
	}
	if (place.kind == PLACE_FILE && ctl->arguments.since_ms != 0) {
		return ctl_refuse(ctl, EXIT_USAGE, "bad-argument", "say how many: -n 200",
				  "the lines in %s carry no time, so --since cannot be followed",
				  place.name);
	}
	return show(ctl, &place);
}

static const struct argp_option options[] = {
	{"follow", 'f', NULL, 0, "Go on with what is logged from now on, until Ctrl-C", 0},
	{"lines", 'n', "N", 0, "The last so many lines (50; with --since all)", 0},
	{"since", OPTION_SINCE, "TIME", 0, "What was logged in this last time (the journal only)",
	 0},
	OPTIONS_END,
};

const struct verb verb_logs = {
	.name = "logs",
	.group = VERB_OPERATOR,
	.usage = "",
	.summary = "What the daemon logged: of its unit's journal, or of the file it logs to.",
	.text = "Examples:\n"
		"  distorchctl logs -f\n"
		"  distorchctl logs -n 200\n"
		"  distorchctl logs --since 10m\n\n"
		"Works without a daemon where it is run by systemd or was installed by "
		"scripts/install.",
	.options = options,
	.run = run,
};
