/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One client of the soak: by its seed it loads, attaches, maps and compares every byte, writes
 * into its own copies, forks, sends garbage, lets go, and now and then ends without a word, until
 * SIGTERM. soak.py stops, kills and restarts it.
 *
 * soak_client run SOCKET FOLDER BOARD ROW SEED N_SLOTS N_ROUGH PACE_MS
 * soak_client write PATH SLOT SEED SIZE        soak_client stamp PATH STAMP
 */
#include "tests/soak/board.h"
#include "tests/soak/garbage.h"
#include "tests/soak/oracle.h"

#include <distorch.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define MAX_KEPT  3
#define PATH_SIZE 1024

uint64_t *board;

/* Weights that this client has, with what they were when they came. */
struct kept {
	struct distorch_weights *weights; /* NULL: the place is free */
	const uint8_t *memory;
	struct content content;
	uint8_t *written; /* for oracle_check */
};

static struct soak {
	struct distorch *connection; /* NULL: none now */
	const char *socket_path, *folder;
	struct kept kept[MAX_KEPT];
	uint64_t state; /* of the chance */
	uint32_t row, n_slots;
	uint32_t n_rough; /* the first ones: written and truncated in place, so always images */
} soak;

static volatile sig_atomic_t is_ending;

/* ---- what is told ---- */

static void tell(const char *word, const char *format, va_list arguments)
	__attribute__((format(printf, 2, 0)));

static void tell(const char *word, const char *format, va_list arguments)
{
	char text[512];
	char line[640];
	int size;

	(void)vsnprintf(text, sizeof text, format, arguments);
	size = snprintf(line, sizeof line, "client %u, step %llu: %s: %s\n", soak.row,
			(unsigned long long)board[BOARD_N_STEPS], word, text);
	if (write(STDERR_FILENO, line, (size_t)size) < 0) {
		return; /* it is counted all the same */
	}
}

void board_wrong(const char *format, ...)
{
	va_list arguments;

	board_add(BOARD_N_WRONG, 1);
	va_start(arguments, format);
	tell("WRONG", format, arguments);
	va_end(arguments);
}

void board_surprise(const char *format, ...)
{
	va_list arguments;

	board_add(BOARD_N_SURPRISES, 1);
	va_start(arguments, format);
	tell("surprise", format, arguments);
	va_end(arguments);
}

uint64_t chance(uint64_t n)
{
	uint64_t mixed = soak.state += 0x9e3779b97f4a7c15U;

	mixed = (mixed ^ mixed >> 30) * 0xbf58476d1ce4e5b9U;
	mixed = (mixed ^ mixed >> 27) * 0x94d049bb133111ebU;
	return (mixed ^ mixed >> 31) % n;
}

static uint64_t now_ms(void)
{
	struct timespec now;

	(void)clock_gettime(CLOCK_MONOTONIC, &now); /* cannot fail */
	return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

/* A request has ended. Which failures the world gives, and which nothing should. */
static bool is_good(int code, const char *what)
{
	board_add(BOARD_N_REQUESTS, 1);
	switch (-code) {
	case 0:
		return true;
	case DISTORCH_E_BAD_FILE: /* truncated */
	case DISTORCH_E_NOT_FOUND:
	case DISTORCH_E_NOT_RESIDENT:
	case DISTORCH_E_NO_MEMORY:
	case DISTORCH_E_TOO_MANY:
	case DISTORCH_E_TOO_LARGE: /* more pins than a user may have */
	case DISTORCH_E_STALE:
	case DISTORCH_E_BUSY:
	case DISTORCH_E_BAD_ARGUMENT: /* an old and a new model of one name */
	case DISTORCH_E_IO:           /* made by soak.py */
	case DISTORCH_E_CHANGED_WHILE_READING:
	case DISTORCH_E_CANCELLED:
	case DISTORCH_E_SHUTTING_DOWN:
	case DISTORCH_E_NO_CONNECTION:
		board_add(BOARD_N_REFUSED, 1);
		return false;
	default:
		board_surprise("%s: %s: %s", what, distorch_code_word(code),
			       distorch_error(soak.connection)->message);
		return false;
	}
}

/* ---- weights ---- */

static void path_of(uint32_t slot, char path[PATH_SIZE])
{
	(void)snprintf(path, PATH_SIZE, "%s/m%02u.safetensors", soak.folder, slot);
}

static void check(struct kept *kept, const char *when)
{
	struct content now;
	uint64_t at = 0;

	if (!oracle_read_memory(kept->memory, kept->content.size, &now) ||
	    now.stamp != kept->content.stamp) {
		board_wrong("slot %u, seed %llu: another stamp %s", kept->content.slot,
			    (unsigned long long)kept->content.seed, when);
	}
	if (!oracle_check(kept->memory, &kept->content, kept->written, &at)) {
		board_wrong("slot %u, seed %llu, lease %llu, %s: byte %llu of %llu",
			    kept->content.slot, (unsigned long long)kept->content.seed,
			    (unsigned long long)distorch_weights_lease(kept->weights), when,
			    (unsigned long long)at, (unsigned long long)kept->content.size);
	}
	board_add(BOARD_BYTES, kept->content.size);
}

static void drop(struct kept *kept)
{
	if (kept->weights != NULL) {
		(void)distorch_weights_unref(kept->weights);
		free(kept->written);
		*kept = (struct kept){0};
	}
}

/* Take the weights over and compare all of them. 'before' and 'after': what the file was. */
static void keep(struct distorch_weights *weights, uint32_t slot, const struct content *before,
		 const struct content *after)
{
	struct kept *kept = &soak.kept[chance(MAX_KEPT)];
	uint64_t size = 0;
	const uint8_t *memory = distorch_weights_base(weights, 0, &size);

	if (kept->weights != NULL) {
		check(kept, "before it is let go");
		drop(kept);
	}
	kept->weights = weights;
	kept->memory = memory;
	if (memory == NULL || !oracle_read_memory(memory, size, &kept->content)) {
		board_wrong("slot %u: %llu bytes that are no model", slot,
			    (unsigned long long)size);
		(void)distorch_weights_unref(weights);
		*kept = (struct kept){0};
		return;
	}
	kept->written = calloc(1, (size_t)(size / ORACLE_PAGE + 1));
	if (kept->content.slot != slot || kept->content.seed != before->seed ||
	    kept->content.stamp < before->stamp || kept->content.stamp > after->stamp ||
	    size != before->size) {
		board_wrong("slot %u, seed %llu, stamp %llu to %llu, %llu bytes: got slot %u, seed "
			    "%llu, stamp %llu, %llu bytes",
			    slot, (unsigned long long)before->seed,
			    (unsigned long long)before->stamp, (unsigned long long)after->stamp,
			    (unsigned long long)before->size, kept->content.slot,
			    (unsigned long long)kept->content.seed,
			    (unsigned long long)kept->content.stamp, (unsigned long long)size);
	}
	check(kept, "as it came");
	board_add(BOARD_N_MAPPINGS, 1);
}

static struct kept *any_kept(void)
{
	struct kept *kept = &soak.kept[chance(MAX_KEPT)];

	return kept->weights == NULL ? NULL : kept;
}

/* ---- steps ---- */

static bool connect_now(void)
{
	const struct distorch_options options = {.size = sizeof options,
						 .label = "soak",
						 .timeout_ms = 20000};

	return soak.connection != NULL ||
	       is_good(distorch_open(soak.socket_path, &options, &soak.connection), "open");
}

static void step_connect(void)
{
	if (soak.connection != NULL) {
		soak.connection = distorch_close(soak.connection); /* weights stay */
	}
	(void)connect_now();
}

static int cancel_at_once(const struct distorch_progress *progress, void *user)
{
	(void)progress;
	(void)user;
	return 1;
}

static int stop_when_ending(const struct distorch_progress *progress, void *user)
{
	(void)progress;
	(void)user;
	return is_ending;
}

static struct distorch_load_options any_options(uint32_t slot)
{
	struct distorch_load_options options = {.size = sizeof options,
						.policy = {.size = sizeof options.policy},
						.progress = stop_when_ending};

	options.backing = slot < soak.n_rough ? "image" : NULL;
	if (chance(4) == 0) {
		options.policy.said = DISTORCH_SAID_TTL;
		options.policy.ttl_ms = chance(5000);
	}
	if (chance(6) == 0) {
		options.policy.said |= DISTORCH_SAID_PRIORITY;
		options.policy.priority = (int32_t)chance(20) - 10;
	}
	if (chance(8) == 0) {
		options.policy.said |= DISTORCH_SAID_KEEP | DISTORCH_SAID_FOR;
		options.policy.keep = true;
		options.policy.for_ms = 1 + chance(3000);
	}
	return options;
}

/* Open a slot's file as it is now; -1: it is deleted, or no whole file. */
static int open_slot(uint32_t slot, struct content *ret)
{
	char path[PATH_SIZE];
	int fd;

	path_of(slot, path);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd >= 0 && !oracle_read(fd, ret)) {
		(void)close(fd);
		return -1;
	}
	return fd;
}

static void load_or_attach(bool wants_load)
{
	const uint32_t slot = (uint32_t)chance(soak.n_slots);
	const struct distorch_load_options options = any_options(slot);
	struct distorch_weights *weights = NULL;
	struct content before = {0};
	struct content after = {0};
	int fd = open_slot(slot, &before);
	int code;

	if (fd < 0 || !connect_now()) {
		if (fd >= 0) {
			(void)close(fd);
		}
		return;
	}
	code = wants_load ? distorch_load_fd(soak.connection, fd, &options, NULL, &weights)
			  : distorch_attach_fd(soak.connection, fd, &weights);
	if (is_good(code, wants_load ? "load" : "attach")) {
		if (!oracle_read(fd, &after)) { /* truncated meanwhile */
			after.stamp = UINT64_MAX;
		}
		keep(weights, slot, &before, &after);
	}
	(void)close(fd);
}

static void step_load(void)
{
	load_or_attach(true);
}

static void step_attach(void)
{
	load_or_attach(false);
}

static void step_cancel(void)
{
	const uint32_t slot = (uint32_t)chance(soak.n_slots);
	struct distorch_load_options options = any_options(slot);
	char path[PATH_SIZE];

	options.progress = cancel_at_once;
	if (chance(2) == 0) {
		options.no_wait = true;
		options.progress = NULL;
	}
	path_of(slot, path);
	if (connect_now()) {
		(void)is_good(distorch_load(soak.connection, path, &options, NULL, NULL), "load");
	}
}

static void step_look_again(void)
{
	struct kept *kept = any_kept();

	if (kept != NULL) {
		check(kept, "later");
	}
}

/* Fill a page; the image, seen through its descriptor, is as before. */
static void write_page(struct kept *kept, int fd, uint64_t page, uint8_t byte)
{
	static uint8_t before[ORACLE_PAGE];
	static uint8_t after[ORACLE_PAGE];
	const off_t at = (off_t)(page * ORACLE_PAGE);
	uint8_t *memory = (uint8_t *)distorch_weights_base(kept->weights, 0, NULL) + at;
	const bool can_see = pread(fd, before, sizeof before, at) == (ssize_t)sizeof before;

	if (can_see && kept->written[page] == 0 && memcmp(before, memory, sizeof before) != 0) {
		board_wrong("slot %u: page %llu differs from its image", kept->content.slot,
			    (unsigned long long)page);
	}
	memset(memory, byte, ORACLE_PAGE);
	kept->written[page] = byte;
	if (can_see && pread(fd, after, sizeof after, at) == (ssize_t)sizeof after &&
	    memcmp(before, after, sizeof after) != 0) {
		board_wrong("slot %u: a private write changed the image at page %llu",
			    kept->content.slot, (unsigned long long)page);
	}
	board_add(BOARD_N_WRITES, 1);
}

static void step_write(void)
{
	struct kept *kept = any_kept();
	int fd;

	if (kept == NULL || kept->written == NULL) {
		return;
	}
	fd = distorch_weights_fd(kept->weights, 0);
	for (uint64_t n = 1 + chance(8); n > 0; n--) {
		/* Not the header and not the stamp. */
		const uint64_t page = 2 + chance(kept->content.size / ORACLE_PAGE - 2);

		write_page(kept, fd, page, (uint8_t)(1 + chance(255)));
	}
	if (fd >= 0) {
		(void)close(fd);
	}
	check(kept, "after a write of its own");
}

static void step_drop(void)
{
	struct kept *kept = any_kept();

	if (kept != NULL) {
		check(kept, "before it is let go");
		drop(kept);
	}
}

static void step_unload(void)
{
	char path[PATH_SIZE];
	const char *models[] = {path};
	struct distorch_select select = {.size = sizeof select};
	struct distorch_report *report = NULL;

	path_of((uint32_t)chance(soak.n_slots), path);
	if (chance(8) == 0) {
		select.mine = select.not_kept = true;
	} else {
		select.models = models;
		select.n_models = 1;
	}
	if (connect_now() &&
	    is_good(distorch_unload(soak.connection, &select, &report), "unload")) {
		distorch_report_free(report);
	}
}

static void step_look_around(void)
{
	struct distorch_models *models = NULL;
	struct distorch_status *status = NULL;
	struct distorch_clients *clients = NULL;
	struct distorch_records *records = NULL;

	if (!connect_now()) {
		return;
	}
	switch (chance(4)) {
	case 0:
		if (is_good(distorch_list(soak.connection, NULL, &models), "list")) {
			distorch_models_free(models);
		}
		break;
	case 1:
		if (is_good(distorch_status(soak.connection, &status), "status")) {
			distorch_status_free(status);
		}
		break;
	case 2:
		if (is_good(distorch_clients(soak.connection, &clients), "clients")) {
			distorch_clients_free(clients);
		}
		break;
	default:
		if (is_good(distorch_history(soak.connection, NULL, &records), "history")) {
			distorch_records_free(records);
		}
		break;
	}
}

static void step_wish(void)
{
	struct distorch_policy policy = {.size = sizeof policy,
					 .said = DISTORCH_SAID_PIN | DISTORCH_SAID_FOR,
					 .pin = chance(3) == 0,
					 .for_ms = 1 + chance(1000)};
	char path[PATH_SIZE];

	path_of((uint32_t)chance(soak.n_slots), path);
	if (connect_now()) {
		(void)is_good(distorch_set(soak.connection, path, &policy, NULL, NULL), "set");
	}
}

static void step_events(void)
{
	struct distorch_event *event = NULL;

	if (connect_now() && is_good(distorch_subscribe(soak.connection, NULL), "subscribe")) {
		while (distorch_next_event(soak.connection, 50, &event) == 0) {
			if (strcmp(event->type, "lost") == 0) {
				board_add(BOARD_N_LOST, 1);
			}
			distorch_event_free(event);
		}
	}
}

/* In the child: what it inherited is as it was, and it is served by a connection of its own. */
static void live_as_a_child(void)
{
	(void)prctl(PR_SET_PDEATHSIG, SIGKILL);
	(void)alarm(60);
	soak.state ^= 0x5555;
	for (uint32_t i = 0; i < MAX_KEPT; i++) {
		if (soak.kept[i].weights != NULL) {
			check(&soak.kept[i], "in a forked child");
		}
	}
	step_look_around();
	load_or_attach(true);
	step_write();
	_exit(0);
}

static void step_fork(void)
{
	int status = 0;
	pid_t child = fork();

	if (child == 0) {
		live_as_a_child();
	}
	board_add(BOARD_N_FORKS, 1);
	while (child > 0 && waitpid(child, &status, 0) < 0 && errno == EINTR) {
	}
	if (child > 0 && (!WIFEXITED(status) || WEXITSTATUS(status) != 0)) {
		board_surprise("a forked child ended with status 0x%x", (unsigned)status);
	}
}

static void step_garbage(void)
{
	garbage_send(soak.socket_path);
}

static void step_vanish(void)
{
	_exit(0); /* with all that it has; another one takes its place */
}

struct step {
	const char *name;
	void (*run)(void);
	uint32_t weight;
};

static const struct step steps[] = {
	{"load", step_load, 30},
	{"attach", step_attach, 15},
	{"look again", step_look_again, 15},
	{"write", step_write, 8},
	{"drop", step_drop, 10},
	{"cancel", step_cancel, 4},
	{"unload", step_unload, 4},
	{"look around", step_look_around, 5},
	{"wish", step_wish, 2},
	{"events", step_events, 2},
	{"fork", step_fork, 2},
	{"garbage", step_garbage, 4},
	{"connect", step_connect, 3},
	{"vanish", step_vanish, 1},
};

static void take_a_step(void)
{
	uint64_t total = 0;
	uint64_t drawn;
	uint32_t i = 0;
	uint64_t took_ms;

	for (size_t n = 0; n < sizeof steps / sizeof steps[0]; n++) {
		total += steps[n].weight;
	}
	drawn = chance(total);
	while (drawn >= steps[i].weight) {
		drawn -= steps[i++].weight;
	}
	board_set(BOARD_STEP, i);
	board_set(BOARD_BEGAN_MS, now_ms());
	steps[i].run();
	took_ms = now_ms() - board[BOARD_BEGAN_MS];
	board_set(BOARD_BEGAN_MS, 0);
	if (took_ms > board[BOARD_LONGEST_MS]) {
		board_set(BOARD_LONGEST_MS, took_ms);
	}
	board_add(BOARD_N_STEPS, 1);
}

/* ---- life ---- */

static void on_sigterm(int number)
{
	(void)number;
	is_ending = 1;
}

static bool map_board(const char *path)
{
	int fd = open(path, O_RDWR | O_CLOEXEC);
	const size_t row_bytes = BOARD_N_CELLS * sizeof *board;
	const size_t all = row_bytes * (soak.row + 1);
	void *memory = fd < 0 ? MAP_FAILED
			      : mmap(NULL, all, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

	if (fd >= 0) {
		(void)close(fd);
	}
	board = memory == MAP_FAILED ? NULL : (uint64_t *)memory + BOARD_N_CELLS * soak.row;
	return board != NULL;
}

static int run(char **arguments)
{
	const struct sigaction action = {.sa_handler = on_sigterm}; /* interrupts its rest */
	uint64_t pace_ms;

	soak.socket_path = arguments[0];
	soak.folder = arguments[1];
	soak.row = (uint32_t)strtoul(arguments[3], NULL, 10);
	soak.state = strtoull(arguments[4], NULL, 10);
	soak.n_slots = (uint32_t)strtoul(arguments[5], NULL, 10);
	soak.n_rough = (uint32_t)strtoul(arguments[6], NULL, 10);
	pace_ms = strtoull(arguments[7], NULL, 10);
	if (!map_board(arguments[2])) {
		return 2;
	}
	(void)sigaction(SIGTERM, &action, NULL);
	board_set(BOARD_PID, (uint64_t)getpid());
	board_set(BOARD_BEGAN_MS, 0);
	board_add(BOARD_N_LIVES, 1);
	while (!is_ending) {
		const uint64_t rest_ms = chance(2 * pace_ms + 1);
		const struct timespec rest = {.tv_sec = (time_t)(rest_ms / 1000),
					      .tv_nsec = (long)(rest_ms % 1000) * 1000000};

		take_a_step();
		(void)nanosleep(&rest, NULL);
	}
	for (uint32_t i = 0; i < MAX_KEPT; i++) {
		if (soak.kept[i].weights != NULL) {
			check(&soak.kept[i], "at the end");
			drop(&soak.kept[i]);
		}
	}
	(void)distorch_close(soak.connection);
	return 0;
}

int main(int argc, char **argv)
{
	if (argc == 10 && strcmp(argv[1], "run") == 0) {
		return run(argv + 2);
	}
	if (argc == 6 && strcmp(argv[1], "write") == 0) {
		const struct content content = {.slot = (uint32_t)strtoul(argv[3], NULL, 10),
						.seed = strtoull(argv[4], NULL, 10),
						.size = strtoull(argv[5], NULL, 10)};

		return oracle_write(argv[2], &content) == 0 ? 0 : 1;
	}
	if (argc == 4 && strcmp(argv[1], "stamp") == 0) {
		return oracle_stamp(argv[2], strtoull(argv[3], NULL, 10)) == 0 ? 0 : 1;
	}
	(void)fprintf(stderr, "soak_client run|write|stamp: see soak.py\n");
	return 2;
}
