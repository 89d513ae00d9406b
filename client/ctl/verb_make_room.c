/* SPDX-License-Identifier: Apache-2.0 */
/*
 * distorchctl make-room: hold room on a device, for as long as a program runs or until Ctrl-C.
 * The room belongs to the connection, so that it ends however this process does. The connection
 * is watched by a thread of its own, which takes the room again when the daemon was restarted:
 * the program's end is seen at once even while the daemon does not answer.
 */
#include "base/err.h"
#include "base/require.h"
#include "base/units.h"
#include "options.h"
#include "print.h"

#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define EXIT_CANNOT_RUN 126 /* as env and nice have it, and the next one */
#define EXIT_NO_COMMAND 127
#define EXIT_BY_SIGNAL  128 /* and its number */
#define MS_PER_S        1000U
#define NS_PER_MS       1000000U
#define LOOK_S          2 /* between two looks whether the daemon is the same */

/* The room, and who watches it. */
struct room {
	struct ctl *ctl;
	const char *device; /* as it was said */
	char name[64];      /* its own */
	uint64_t bytes;
	uint64_t until_ms; /* on the monotonic clock; 0: no time was said */
	uint64_t client;   /* number of the connection that has it, and the daemon's epoch */
	uint64_t epoch;
	uint64_t token; /* 0: it is not had */
};

/* ---- the room ---- */

static int note_server(struct room *room)
{
	struct distorch_server *server = NULL;
	int code = distorch_server(room->ctl->c, &server);

	if (code == 0) {
		room->client = server->client;
		room->epoch = server->epoch;
		distorch_server_free(server);
	}
	return code;
}

/*
 * Returns 0 or the library's code. Who is asked is noted before, so that a daemon or connection
 * that comes between is seen as another one; what it may have given then is given back first.
 */
static int reserve(struct room *room, struct distorch_reservation **ret_reservation)
{
	const struct arguments *arguments = &room->ctl->arguments;
	uint64_t now = ctl_now_ms();
	const struct distorch_reserve_options options = {
		.size = sizeof options,
		.ttl_ms = room->until_ms == 0    ? 0
			  : room->until_ms > now ? room->until_ms - now
						 : 1,
		.recall_ms = arguments->recall ? arguments->recall_ms : 0,
	};
	int code = note_server(room);

	if (code == 0 && room->token != 0) {
		(void)distorch_release(room->ctl->c, room->token); /* mostly it went already */
		room->token = 0;
	}
	if (code == 0) {
		code = distorch_reserve(room->ctl->c, room->device, room->bytes, &options,
					ret_reservation);
	}
	if (code == 0) {
		room->token = (*ret_reservation)->token;
	}
	return code;
}

/* Another connection, or daemon, than the one that has the room. */
static bool is_another(const struct room *room)
{
	struct distorch_server *server = NULL;
	bool is_other;

	if (distorch_ping(room->ctl->c) < 0 || distorch_server(room->ctl->c, &server) < 0) {
		return false; /* nobody answers: later */
	}
	is_other = server->client != room->client || server->epoch != room->epoch;
	distorch_server_free(server);
	return is_other;
}

static void *keep(void *user)
{
	struct room *room = user;
	char safe[1024];
	bool is_told = false;

	for (;;) {
		struct distorch_reservation *reservation = NULL;

		(void)sleep(LOOK_S);
		if (room->until_ms != 0 && ctl_now_ms() >= room->until_ms) {
			return NULL; /* its time is over */
		}
		if (room->token != 0 && !is_another(room)) {
			continue;
		}
		if (reserve(room, &reservation) == 0) {
			is_told = false;
		} else if (!is_told) {
			(void)fprintf(stderr,
				      "note: the daemon was restarted, and does not give the room "
				      "again so far: %s\n",
				      safe_text(distorch_error(room->ctl->c)->message, safe,
						sizeof safe));
			is_told = true;
		}
		distorch_reservation_free(reservation);
	}
}

/* ---- signals ---- */

static const int taken[] = {SIGCHLD, SIGINT, SIGTERM, SIGHUP, SIGQUIT};

/* Wait for them in turn from now on; before any thread. Those that were ignored stay so. */
static void take_signals(sigset_t *ret_taken, sigset_t *ret_before)
{
	struct sigaction action;

	(void)sigemptyset(ret_taken);
	for (size_t i = 0; i < sizeof taken / sizeof taken[0]; i++) {
		if (sigaction(taken[i], NULL, &action) == 0 &&
		    (taken[i] == SIGCHLD || action.sa_handler != SIG_IGN)) {
			(void)sigaddset(ret_taken, taken[i]);
		}
	}
	(void)signal(SIGCHLD, SIG_DFL); /* ignored by whoever started us, nothing would be left to
					   wait for */
	(void)sigprocmask(SIG_BLOCK, ret_taken, ret_before);
}

/* The next one, or 0 when the time is over. 'until_ms' 0: there is none. */
static int next_signal(const sigset_t *wanted, uint64_t until_ms, siginfo_t *ret_info)
{
	for (;;) {
		uint64_t now = ctl_now_ms();
		uint64_t left_ms = until_ms > now ? until_ms - now : 0;
		const struct timespec left = {.tv_sec = (time_t)(left_ms / MS_PER_S),
					      .tv_nsec = (long)(left_ms % MS_PER_S * NS_PER_MS)};
		int number = until_ms == 0 ? sigwaitinfo(wanted, ret_info)
					   : sigtimedwait(wanted, ret_info, &left);

		if (number > 0) {
			return number;
		}
		if (errno == EAGAIN) {
			return 0;
		}
	}
}

/* ---- the program ---- */

/* What a key of the terminal sends goes to the program as well; what somebody sends us does not. */
static void pass_on(pid_t pid, int number, const siginfo_t *info)
{
	if (number == SIGTERM || number == SIGHUP || info->si_code == SI_USER ||
	    info->si_code == SI_QUEUE || info->si_code == SI_TKILL) {
		(void)kill(pid, number);
	}
}

static int wait_for(pid_t pid, const sigset_t *wanted)
{
	siginfo_t info;
	int state = 0;

	for (;;) {
		int number = next_signal(wanted, 0, &info);

		if (number != SIGCHLD) {
			pass_on(pid, number, &info);
			continue;
		}
		if (waitpid(pid, &state, WNOHANG) == pid) {
			return WIFSIGNALED(state) ? EXIT_BY_SIGNAL + WTERMSIG(state)
						  : WEXITSTATUS(state);
		}
	}
}

/* Returns an exit status. 'words' ends with NULL. */
static int run_program(struct ctl *ctl, char *const *words, const sigset_t *wanted,
		       const sigset_t *before)
{
	posix_spawnattr_t attributes;
	pid_t pid = 0;
	int sys;

	(void)posix_spawnattr_init(&attributes);
	(void)posix_spawnattr_setsigmask(&attributes, before);
	(void)posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGMASK);
	sys = posix_spawnp(&pid, words[0], NULL, &attributes, words, environ);
	(void)posix_spawnattr_destroy(&attributes);
	if (sys != 0) {
		(void)ctl_refuse(ctl, EXIT_FAILED, "not-found", NULL, "cannot run %s: %s", words[0],
				 strerror(sys));
		return sys == ENOENT ? EXIT_NO_COMMAND : EXIT_CANNOT_RUN;
	}
	return wait_for(pid, wanted);
}

/* ---- together ---- */

/* What was said may be "host", or a UUID. */
static void find_name(struct room *room)
{
	struct distorch_devices *devices = NULL;
	const struct distorch_device *device = NULL;

	if (distorch_devices(room->ctl->c, &devices) == 0) {
		device = device_find(devices, room->device);
	}
	(void)snprintf(room->name, sizeof room->name, "%s",
		       device == NULL ? room->device : device->name);
	distorch_devices_free(devices);
}

/* How long the room is kept. */
static void print_until(const struct ctl *ctl, FILE *out, bool has_program)
{
	const struct arguments *arguments = &ctl->arguments;
	char lapse[32];

	if (!arguments->has_for || arguments->is_forever) {
		(void)fputs(has_program ? "while it runs." : "until Ctrl-C.", out);
		return;
	}
	(void)fprintf(out, has_program ? "while it runs, at most %s." : "for %s, or until Ctrl-C.",
		      ms_text(arguments->for_ms, lapse));
}

static void tell(struct room *room, const struct distorch_reservation *reservation,
		 bool has_program)
{
	struct ctl *ctl = room->ctl;
	FILE *out = has_program ? stderr : stdout; /* what goes out is the program's */
	char safe[128];
	char size[24];

	if (is_json(ctl)) {
		cJSON *object = json_new();
		cJSON *evicted = json_add_array(object, "evicted");

		json_add_text(object, "device", room->name);
		json_add_number(object, "bytes", room->bytes);
		for (size_t i = 0; i < reservation->n_evicted; i++) {
			(void)json_of_outcome(json_add_item(evicted), reservation->evicted[i]);
		}
		(void)(has_program ? json_print_line(out, object) : json_print(ctl, object));
		return;
	}
	if (ctl->arguments.is_quiet) {
		return;
	}
	(void)fprintf(out, "%s on %s: nothing is put there ", size_text(ctl, room->bytes, size),
		      safe_text(device_text(room->name), safe, sizeof safe));
	print_until(ctl, out, has_program);
	print_evicted(ctl, out, reservation->evicted, reservation->n_evicted);
	(void)fputc('\n', out);
}

/* Have the room watched; without a thread it lasts as long as the daemon does. */
static void start_keeper(struct room *room)
{
	pthread_t thread;

	if (pthread_create(&thread, NULL, keep, room) == 0) {
		(void)pthread_detach(thread);
	}
}

static int hold(struct room *room, char *const *words)
{
	struct distorch_reservation *reservation = NULL;
	sigset_t wanted;
	sigset_t before;
	siginfo_t info;
	int status = ctl_connect(room->ctl);

	if (status != EXIT_DONE) {
		return status;
	}
	find_name(room); /* before it: once there is room, nothing is waited for */
	if (reserve(room, &reservation) < 0) {
		return ctl_fail(room->ctl);
	}
	REQUIRE(reservation != NULL);
	take_signals(&wanted, &before); /* who reads what is told may send one at once */
	tell(room, reservation, words[0] != NULL);
	distorch_reservation_free(reservation);
	if (words[0] != NULL) {
		start_keeper(room);
		status = run_program(room->ctl, words, &wanted, &before);
	} else if (ctl_flush()) { /* else who waits for the word of it would do so for ever */
		start_keeper(room);
		(void)sigdelset(&wanted, SIGCHLD);
		(void)next_signal(&wanted, room->until_ms, &info);
	}
	status = ctl_end_output(status);
	_exit(status); /* the keeper may be in a call; the end of the connection ends the room */
}

static int run(struct ctl *ctl)
{
	static struct room room; /* the keeper's too */
	static char *words[CTL_MAX_WORDS + 1];
	const struct arguments *arguments = &ctl->arguments;
	struct err err = {0};

	room.ctl = ctl;
	room.device = arguments->device;
	if (room.device == NULL) {
		return ctl_refuse(ctl, EXIT_USAGE, "bad-argument",
				  "--device cuda:0; distorchctl devices lists them",
				  "it is not said on which device");
	}
	if (units_parse_size_with_unit(arguments->words[0], &room.bytes, &err) < 0) {
		return ctl_refuse(ctl, EXIT_USAGE, "bad-argument",
				  "distorchctl make-room 6GiB --device cuda:0", "%s", err.text);
	}
	if (room.bytes == 0) {
		return ctl_refuse(ctl, EXIT_USAGE, "bad-argument", NULL,
				  "room for nothing is there already");
	}
	if (arguments->has_for && !arguments->is_forever) {
		room.until_ms = ctl_now_ms() + arguments->for_ms;
	}
	for (size_t i = 1; i < arguments->n_words; i++) {
		words[i - 1] = (char *)(uintptr_t)arguments->words[i]; /* argv's own */
	}
	return hold(&room, words);
}

static const struct argp_option options[] = {
	{"device", OPTION_DEVICE, "DEVICE", 0, "Where", 0},
	{"for", OPTION_FOR, "TIME", 0, "At most so long", 0},
	{"recall", OPTION_RECALL, "TIME", 0,
	 "Ask those who use what is there to let it go, and wait so long", 0},
	OPTIONS_END,
};

const struct verb verb_make_room = {
	.name = "make-room",
	.group = VERB_MORE,
	.usage = "SIZE [-- COMMAND [ARGUMENT…]]",
	.summary =
		"Free memory of a device for a program that knows nothing of the daemon, and keep "
		"it free.",
	.text = "With a COMMAND: while it runs, and the exit status is the command's. Without: until "
		"Ctrl-C, or as long as --for says. Models that nobody uses are evicted for it and come "
		"back afterwards.\n"
		"Examples:\n"
		"  distorchctl make-room 8GiB --device cuda:0 -- blender -b scene.blend -a\n"
		"  distorchctl make-room 6GiB --device cuda:0 --recall 5s -- ./train.sh\n"
		"  distorchctl make-room 16G --device ram --for 10m\n\n"
		"SIZE needs its unit: 8G or 512M. "
		"The room ends with this process, however that ends; the command goes on then. After "
		"a restart of the daemon it is taken again; in the 1.5 to 5 s until then something may be "
		"put there. With a COMMAND what is told of the room goes to standard error; with --json "
		"that is one line of JSON.\n"
		"Exit status: the command's, 128 and the number of a signal that ended it, 126 or "
		"127 where it cannot be run; 1 and 6 where the room is not to be had, and the command "
		"is not run then.",
	.options = options,
	.min_words = 1,
	.max_words = CTL_MAX_WORDS,
	.run = run,
};
