/* SPDX-License-Identifier: Apache-2.0 */
/*
 * distorchd: options, then daemon_init, daemon_run, daemon_fini. The only file of the
 * corridor that the tests do not link.
 */
#include "base/err.h"
#include "base/os/crash.h"
#include "base/os/log.h"
#include "base/os/sys.h"

#include <argp.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "daemon/config.h"
#include "daemon/config_saved.h"
#include "daemon/daemon.h"
#include "daemon/last_good.h"
#include "daemon/names.h"
#include "daemon/saved.h"

/* argp finds it only where the linker may export it. */
__attribute__((visibility("default")))
const char *argp_program_version = "distorchd " DISTORCH_VERSION;
const char *argp_program_bug_address = NULL;

#define MAX_SETS        64
#define EXIT_BAD_CONFIG 2

enum option_key {
	OPTION_SOCKET = 's',
	OPTION_STATE_DIR = 'S',
	OPTION_CONFIG = 'c',
	OPTION_SET = 0x100,
	OPTION_CHECK_CONFIG,
	OPTION_HELP_CONFIG,
	OPTION_LIST_CONFIG,
	OPTION_SYSTEM,
	OPTION_USER,
};

struct arguments {
	const char *socket_path;
	const char *state_dir;
	const char *config_path;
	const char *sets[MAX_SETS];
	uint32_t n_sets;
	bool is_user;
	bool only_check;
	bool only_reference;
	bool only_list;
};

static const struct argp_option options[] = {
	{"socket", OPTION_SOCKET, "PATH", 0, "Listen on this Unix socket", 0},
	{"state-dir", OPTION_STATE_DIR, "DIR", 0,
	 "Folder for what has to outlive the machine: pins and what was saved", 0},
	{"config", OPTION_CONFIG, "FILE", 0, "Read this file instead of the standard ones", 0},
	{"set", OPTION_SET, "SECTION.KEY=VALUE", 0, "Set one value; wins over every file", 0},
	{"system", OPTION_SYSTEM, NULL, 0, "Serve the whole machine (default for root)", 0},
	{"user", OPTION_USER, NULL, 0, "Serve this user (default for everybody else)", 0},
	{"check-config", OPTION_CHECK_CONFIG, NULL, 0,
	 "Read the configuration, report the first error, and end", 0},
	{"list-config", OPTION_LIST_CONFIG, NULL, 0,
	 "List the files that settings are read from, in their order, and end", 0},
	{"help-config", OPTION_HELP_CONFIG, NULL, 0, "List every setting with its default", 0},
	{NULL, 0, NULL, 0, NULL, 0},
};

static const char doc[] =
	"Own the weights of models: load each file once, share it with every process.\v"
	"A private daemon in the foreground:\n"
	"  distorchd --socket /tmp/d.sock --state-dir /tmp/d --set memory.ram=2G\n"
	"then, in another terminal:\n"
	"  DISTORCH_SOCKET=/tmp/d.sock distorchctl load model.safetensors\n\n"
	"It runs in the foreground and ends in order on SIGTERM or SIGINT; a second one ends it "
	"at once. See distorchd(8), distorchd.conf(5).";

static error_t parse_option(int key, char *text, struct argp_state *state)
{
	struct arguments *arguments = state->input;

	switch (key) {
	case OPTION_SOCKET:
		arguments->socket_path = text;
		break;
	case OPTION_STATE_DIR:
		arguments->state_dir = text;
		break;
	case OPTION_CONFIG:
		arguments->config_path = text;
		break;
	case OPTION_SET:
		if (arguments->n_sets == MAX_SETS) {
			argp_error(state, "more than %d --set", MAX_SETS);
		} else {
			arguments->sets[arguments->n_sets++] = text;
		}
		break;
	case OPTION_SYSTEM:
		arguments->is_user = false;
		break;
	case OPTION_USER:
		arguments->is_user = true;
		break;
	case OPTION_CHECK_CONFIG:
		arguments->only_check = true;
		break;
	case OPTION_LIST_CONFIG:
		arguments->only_list = true;
		break;
	case OPTION_HELP_CONFIG:
		arguments->only_reference = true;
		break;
	default:
		return ARGP_ERR_UNKNOWN;
	}
	return 0;
}

/* Nothing of a model's bytes may land in a core file, and every model costs descriptors. */
static void prepare_process(void)
{
	struct rlimit files;
	sigset_t reload;

	(void)signal(SIGPIPE, SIG_IGN); /* cannot fail for SIGPIPE */
	/* Until the loop watches for it (daemon.c): a reload of a daemon that starts ends no start. */
	(void)sigemptyset(&reload);
	(void)sigaddset(&reload, SIGHUP);
	(void)sigprocmask(SIG_BLOCK, &reload, NULL); /* cannot fail */
	(void)umask(0077); /* modes are set explicitly where more is meant */
	if (getrlimit(RLIMIT_NOFILE, &files) == 0) {
		files.rlim_cur = files.rlim_max;
		(void)setrlimit(RLIMIT_NOFILE, &files); /* the old limit serves too */
	}
}

static int prepare_state_dir(const char *path)
{
	struct stat status;

	if (path == NULL) {
		return 0;
	}
	if (mkdir(path, 0700) < 0 && errno != EEXIST) {
		(void)fprintf(stderr, "distorchd: cannot make the folder %s: %s\n", path,
			      strerror(errno));
		return -1;
	}
	if (stat(path, &status) < 0 || !S_ISDIR(status.st_mode) || access(path, W_OK | X_OK) < 0) {
		(void)fprintf(stderr,
			      "distorchd: the state folder %s is not a folder that can be "
			      "written\nhint: name another one: --state-dir DIR\n",
			      path);
		return -1;
	}
	return 0;
}

/* Where clients look for the socket. Returns 'buffer', or NULL without a place for it. */
static const char *default_socket(bool is_user, char *buffer, size_t buffer_size)
{
	const char *folder = getenv("XDG_RUNTIME_DIR");

	if (!is_user) {
		return "/run/distorchd/distorchd.sock";
	}
	if (folder == NULL || folder[0] != '/') {
		(void)fprintf(stderr, "distorchd: XDG_RUNTIME_DIR is not set, so there is no usual "
				      "place for the socket\nhint: name one: --socket PATH\n");
		return NULL;
	}
	(void)snprintf(buffer, buffer_size, "%s/distorchd/distorchd.sock", folder);
	return buffer;
}

/*
 * Where what was said is saved: the folder that was named, systemd's, or the usual one. A daemon
 * with a socket of its own gets none unasked: it would share that of the usual one. NULL: none.
 */
static const char *find_state_dir(const struct arguments *arguments)
{
	static char path[4096];
	const char *given = getenv("STATE_DIRECTORY"); /* of several the first */
	const char *base = getenv("XDG_STATE_HOME");
	const char *below = "/distorchd";

	if (arguments->state_dir != NULL) {
		return arguments->state_dir;
	}
	if (given != NULL && given[0] == '/') {
		(void)snprintf(path, sizeof path, "%s", given);
		path[strcspn(path, ":")] = '\0';
		return path;
	}
	if (arguments->socket_path != NULL) {
		return NULL;
	}
	if (!arguments->is_user) {
		return "/var/lib/distorchd";
	}
	if (base == NULL || base[0] != '/') {
		base = getenv("HOME");
		below = "/.local/state/distorchd";
	}
	if (base == NULL || base[0] != '/') {
		return NULL;
	}
	(void)snprintf(path, sizeof path, "%s%s", base, below);
	return path;
}

static int serve(const struct arguments *arguments, const struct daemon_options *prepared)
{
	static struct daemon daemon; /* large: kept off the stack */
	char path[4096];
	struct daemon_options daemon_options = *prepared;
	struct err err = {0};
	int exit_code = EXIT_FAILURE;

	daemon_options.is_user = arguments->is_user;
	daemon_options.socket_path =
		arguments->socket_path != NULL
			? arguments->socket_path
			: default_socket(arguments->is_user, path, sizeof path);
	if (daemon_options.socket_path == NULL) {
		return EXIT_FAILURE;
	}
	if (daemon_init(&daemon, &daemon_options, &err) < 0) {
		log_error("cannot start: %s", err.text);
	} else {
		exit_code = daemon_run(&daemon);
	}
	daemon_fini(&daemon);
	return exit_code;
}

/* What somebody set, and where. */
static void print_settings(const struct config *config)
{
	struct config_item item;
	uint32_t cursor = 0;

	while (config_next(config, &cursor, &item)) {
		if (strcmp(item.source, "default") != 0) {
			(void)printf("%s = %s  (%s)\n", item.key, item.value, item.source);
		}
	}
}

/* Which files there are to be read, and which are not there. */
static int list(const struct config_request *request, const char *state_dir)
{
	static char path[4096 + sizeof STATE_NAME];
	struct err err = {0};

	if (config_print_files(request, stdout, &err) < 0) {
		(void)fprintf(stderr, "distorchd: %s\n", err.text);
		return EXIT_FAILURE;
	}
	if (state_dir != NULL) {
		(void)snprintf(path, sizeof path, "%s/" STATE_NAME, state_dir);
		(void)printf("%s%s\n", path, access(path, F_OK) == 0 ? "" : "  (not there)");
	}
	return EXIT_SUCCESS;
}

/* Only look: what is saved belongs to a daemon that runs, perhaps. */
static int check(struct config_request *request, const char *state_dir)
{
	struct state state = {0};
	struct config_saved *saved = NULL;
	struct config *config = NULL;
	struct err err = {0};
	static char source[4096 + sizeof STATE_NAME];
	int code;

	if (state_dir != NULL && state_read(state_dir, &state, &err) == 0) {
		(void)snprintf(source, sizeof source, "%s/" STATE_NAME, state_dir);
		saved = saved_config_of(&state, source);
	} else if (state_dir != NULL && err.code != WIRE_NOT_FOUND) {
		(void)printf("%s/" STATE_NAME ": %s\n", state_dir, err.text);
	}
	request->saved = saved;
	code = config_load(request, &config, &err);
	if (code == 0) {
		code = names_check(config, &err);
	}
	if (code < 0) {
		(void)fprintf(stderr, "distorchd: %s\n", err.text);
	} else {
		print_settings(config);
		(void)printf("the configuration is good\n");
	}
	(void)config_free(config);
	saved_config_free(saved);
	state_fini(&state);
	return code < 0 ? EXIT_BAD_CONFIG : EXIT_SUCCESS;
}

/*
 * The configuration of the files, or with a fault in them and models that wait the last good one;
 * then '*ret_fault' says what it is. Returns 0 or what to end with.
 */
static int choose_config(struct config_request *request, const struct config_saved *saved,
			 struct config **ret, struct err *ret_fault)
{
	const uint32_t n_waiting = last_good_n_waiting();
	struct config *good = NULL;
	struct err err = {0};
	bool is_read = config_load(request, ret, ret_fault) == 0;
	int code;

	if (is_read && names_check(*ret, ret_fault) == 0) {
		return 0;
	}
	*ret = config_free(*ret);
	(void)fprintf(stderr, "distorchd: %s\n", ret_fault->text);
	if (n_waiting == 0) {
		/* Memory may be there later, and names: a directory may not answer yet. */
		return is_read || ret_fault->code == WIRE_NO_MEMORY ? EXIT_FAILURE
								    : EXIT_BAD_CONFIG;
	}
	code = last_good_find(&good, &err);
	if (code == 0 && saved != NULL) {
		code = config_resave(good, saved, ret, &err);
		(void)config_free(good);
	} else if (code == 0) {
		*ret = good;
	}
	if (code < 0) {
		(void)fprintf(stderr,
			      "distorchd: %u models wait for it, and the last good configuration "
			      "cannot be had: %s\n",
			      n_waiting, err.text);
		return EXIT_FAILURE;
	}
	return 0;
}

static int start(const struct arguments *arguments, struct config_request *request,
		 const char *state_dir)
{
	struct config_saved *saved_settings = NULL;
	struct saved *saved = NULL;
	struct config *config = NULL;
	struct err fault = {0};
	int exit_code;

	if (prepare_state_dir(arguments->state_dir) < 0) {
		return EXIT_FAILURE;
	}
	saved = saved_open(state_dir);
	if (saved == NULL || !saved_config(saved, &saved_settings)) {
		(void)fprintf(stderr, "distorchd: no memory for what was saved\n");
		(void)saved_close(saved);
		return EXIT_FAILURE;
	}
	request->saved = saved_settings;
	exit_code = choose_config(request, saved_settings, &config, &fault);
	if (exit_code == 0) {
		const struct daemon_options prepared = {.config = config,
							.request = request,
							.saved = saved,
							.config_fault = fault.code == 0 ? NULL
											: &fault};

		log_open(config->log_level, config->log_format);
		crash_watch();
		exit_code = serve(arguments, &prepared);
	}
	(void)config_free(config);
	saved_config_free(saved_settings);
	(void)saved_close(saved);
	return exit_code;
}

int main(int argc, char **argv)
{
	static const struct argp parser = {options, parse_option, NULL, doc, NULL, NULL, NULL};
	struct arguments arguments = {.is_user = geteuid() != 0};
	struct config_request request = {0};
	const char *state_dir;

	if (!sys_open_standard_streams()) {
		return EXIT_FAILURE; /* and nowhere to say it */
	}
	/* "Wrong, and nothing to lose": whoever restarts the daemon gives up. */
	argp_err_exit_status = last_good_n_waiting() == 0 ? EXIT_BAD_CONFIG : EXIT_FAILURE;
	if (argp_parse(&parser, argc, argv, 0, NULL, &arguments) != 0) {
		return argp_err_exit_status;
	}
	if (arguments.only_reference) {
		config_print_reference(stdout);
		return EXIT_SUCCESS;
	}
	prepare_process();
	request.sets = arguments.sets;
	request.n_sets = arguments.n_sets;
	request.is_user = arguments.is_user;
	request.path = arguments.config_path;
	state_dir = find_state_dir(&arguments);
	return arguments.only_check  ? check(&request, state_dir)
	       : arguments.only_list ? list(&request, state_dir)
				     : start(&arguments, &request, state_dir);
}
