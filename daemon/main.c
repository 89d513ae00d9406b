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
#include "daemon/daemon.h"

/* argp finds it only where the linker may export it. */
__attribute__((visibility("default")))
const char *argp_program_version = "distorchd " DISTORCH_VERSION;
const char *argp_program_bug_address = NULL;

#define MAX_SETS 64

enum option_key {
	OPTION_SOCKET = 's',
	OPTION_STATE_DIR = 'S',
	OPTION_CONFIG = 'c',
	OPTION_SET = 0x100,
	OPTION_CHECK_CONFIG,
	OPTION_HELP_CONFIG,
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
};

static const struct argp_option options[] = {
	{"socket", OPTION_SOCKET, "PATH", 0, "Listen on this Unix socket", 0},
	{"state-dir", OPTION_STATE_DIR, "DIR", 0,
	 "Folder for what has to outlive the machine (a later version uses it)", 0},
	{"config", OPTION_CONFIG, "FILE", 0, "Read this file instead of the standard ones", 0},
	{"set", OPTION_SET, "SECTION.KEY=VALUE", 0, "Set one value; wins over every file", 0},
	{"system", OPTION_SYSTEM, NULL, 0, "Serve the whole machine (default for root)", 0},
	{"user", OPTION_USER, NULL, 0, "Serve this user (default for everybody else)", 0},
	{"check-config", OPTION_CHECK_CONFIG, NULL, 0,
	 "Read the configuration, report the first error, and end", 0},
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

	(void)signal(SIGPIPE, SIG_IGN); /* cannot fail for SIGPIPE */
	(void)umask(0077);              /* modes are set explicitly where more is meant */
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

static int serve(const struct arguments *arguments, const struct config_request *request,
		 const struct config *config)
{
	static struct daemon daemon; /* large: kept off the stack */
	char path[4096];
	const struct daemon_options daemon_options = {
		.config = config,
		.request = request,
		.socket_path = arguments->socket_path != NULL
				       ? arguments->socket_path
				       : default_socket(arguments->is_user, path, sizeof path),
		.is_user = arguments->is_user,
	};
	struct err err = {0};
	int exit_code = EXIT_FAILURE;

	if (daemon_options.socket_path == NULL || prepare_state_dir(arguments->state_dir) < 0) {
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

/* What is set in vain, for --check-config. */
static void print_idle(const struct config *config)
{
	struct config_item item;
	uint32_t cursor = 0;

	while (config_next(config, &cursor, &item)) {
		if (item.is_idle) {
			(void)printf("%s = %s: %s\n", item.key, item.value, item.source);
		}
	}
}

int main(int argc, char **argv)
{
	static const struct argp parser = {options, parse_option, NULL, doc, NULL, NULL, NULL};
	struct arguments arguments = {.is_user = geteuid() != 0};
	struct config_request request = {0};
	struct config *config = NULL;
	struct err err = {0};
	int exit_code;

	argp_err_exit_status = 2;
	if (argp_parse(&parser, argc, argv, 0, NULL, &arguments) != 0) {
		return 2;
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
	if (config_load(&request, &config, &err) < 0) {
		(void)fprintf(stderr, "distorchd: %s\n", err.text);
		return 2;
	}
	if (arguments.only_check) {
		print_idle(config);
		(void)printf("the configuration is good\n");
		config_free(config);
		return EXIT_SUCCESS;
	}
	log_open(config->log_level, config->log_format);
	crash_watch();
	exit_code = serve(&arguments, &request, config);
	config_free(config);
	return exit_code;
}
