/* SPDX-License-Identifier: Apache-2.0 */
/*
 * distorchd-hold -- COMMAND…: keeps what the daemon parks (the protocol of sd_notify(3) and its
 * descriptor store), starts the daemon again when it dies, and hands everything back to it. Where
 * there is no systemd this is what makes models outlive the daemon. It holds descriptors and
 * looks at none of them; the daemon believes nothing that it gets back.
 *
 * SIGTERM, SIGINT: end the daemon in order, then this. SIGHUP goes on to the daemon. SIGUSR1:
 * a new daemon in an orderly way (an upgrade).
 */
#include "base/cleanup.h"
#include "base/list.h"
#include "base/os/fdpass.h"
#include "base/os/sys.h"

#include <argp.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/kcmp.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "daemon/notify.h"

#define MAX_FDS         2048 /* their names fit the environment */
#define SPARE_FDS       32   /* for what is open besides, and a message's */
#define FIRST_FD        3
#define MESSAGE_BYTES   4096
#define END_WAIT_MS     10000 /* then the daemon is killed */
#define CALM_MS         10000 /* a daemon that lived so long did not fail at its start */
#define BACKOFF_MS      100   /* doubled by each failure in a row */
#define LONGEST_MS      10000
#define EXIT_BAD_CONFIG 2
#define EXIT_NO_COMMAND 127
#define SOCKET_NAME     "sock" /* as the daemon calls it */
#define MODEL_NAME      "hdr." /* begins one for each model */
#define OOM_SCORE       "500"

const char *argp_program_version
	__attribute__((visibility("default"))) = "distorchd-hold " DISTORCH_VERSION;

/* owner: hold::stored */
struct stored {
	struct list link;
	int fd;
	char name[NOTIFY_NAME_SIZE];
};

struct hold {
	char **command;
	int socket;
	int signals;
	char address[128]; /* for NOTIFY_SOCKET */
	struct list stored;
	uint32_t n_stored, max_fds;
	uint64_t name_dev, name_ino; /* of the daemon's socket in the filesystem; 0: not known */
	pid_t child;                 /* 0: none */
	int64_t started_ms;
	uint32_t n_failures; /* in a row */
	bool is_ready;       /* the daemon said so in this life */
	bool is_ending, is_restarting;
	int64_t kill_ms; /* when an end that takes too long is hurried; 0: never */
};

static int64_t now_ms(void)
{
	struct timespec now;

	(void)clock_gettime(CLOCK_MONOTONIC, &now); /* cannot fail */
	return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

static void say(const char *text)
{
	(void)fprintf(stderr, "distorchd-hold: %s\n", text); /* nobody else to tell */
}

/* ---- the store ---- */

static void stored_free(struct hold *hold, struct stored *stored)
{
	list_remove(&stored->link);
	hold->n_stored--;
	(void)close(stored->fd); /* the last one frees what it stands for */
	free(stored);
}

/* The name of a listening socket, and what it stands for in the filesystem now. */
static bool find_name(int fd, struct sockaddr_un *ret, struct stat *ret_status)
{
	socklen_t size = sizeof *ret - 1;
	size_t length;

	*ret = (struct sockaddr_un){0};
	if (getsockname(fd, (struct sockaddr *)ret, &size) < 0 || ret->sun_family != AF_UNIX ||
	    ret->sun_path[0] != '/') {
		return false;
	}
	/* It was bound as PATH~ and then renamed. */
	length = strlen(ret->sun_path);
	if (ret->sun_path[length - 1] == '~') {
		ret->sun_path[length - 1] = '\0';
	}
	return lstat(ret->sun_path, ret_status) == 0 && S_ISSOCK(ret_status->st_mode);
}

/* Of one open file systemd keeps the first descriptor, under whatever name: so here. */
static bool is_kept(const struct hold *hold, int fd)
{
	const pid_t self = getpid();

	LIST_FOR_EACH (link, &hold->stored) {
		/* Where the kernel does not compare them, all are kept. */
		if (syscall(SYS_kcmp, self, self, KCMP_FILE,
			    (unsigned long)container_of(link, struct stored, link)->fd,
			    (unsigned long)fd) == 0) {
			return true;
		}
	}
	return false;
}

static void store(struct hold *hold, const char *name, int *fd)
{
	struct stored *stored = hold->n_stored >= hold->max_fds ? NULL : calloc(1, sizeof *stored);
	struct sockaddr_un address;
	struct stat status;

	if (stored == NULL) {
		say("the store is full: a descriptor is not kept");
		return; /* the caller closes it; the daemon counts for itself */
	}
	if (is_kept(hold, *fd)) {
		free(stored);
		return;
	}
	stored->fd = steal_fd(fd);
	if (strcmp(name, SOCKET_NAME) == 0 && find_name(stored->fd, &address, &status)) {
		hold->name_dev = status.st_dev;
		hold->name_ino = status.st_ino;
	}
	(void)snprintf(stored->name, sizeof stored->name, "%s", name);
	list_append(&hold->stored, &stored->link);
	hold->n_stored++;
}

static void unstore(struct hold *hold, const char *name)
{
	LIST_FOR_EACH_SAFE (link, &hold->stored) {
		struct stored *stored = container_of(link, struct stored, link);

		if (strcmp(stored->name, name) == 0) {
			stored_free(hold, stored);
		}
	}
}

/* ---- what the daemon says ---- */

/* Only from the child itself: the socket's name can be guessed. A process that we cannot see is 0. */
static bool is_from_child(const struct hold *hold, const struct msghdr *message)
{
	struct msghdr copy = *message;

	for (struct cmsghdr *part = CMSG_FIRSTHDR(&copy); part != NULL;
	     part = CMSG_NXTHDR(&copy, part)) {
		if (part->cmsg_level == SOL_SOCKET && part->cmsg_type == SCM_CREDENTIALS) {
			struct ucred credentials;

			memcpy(&credentials, CMSG_DATA(part), sizeof credentials);
			return hold->child > 0 && credentials.pid == hold->child;
		}
	}
	return false;
}

static void close_one(int fd)
{
	(void)close(fd); /* nobody asked for it */
}

static void take_message(struct hold *hold, const char *bytes, size_t size, int *fds, int n_fds)
{
	struct notify_message message;

	notify_parse(bytes, size, &message);
	hold->is_ready |= message.is_ready;
	if (message.is_unstore && !message.has_bad_name) {
		unstore(hold, message.name);
	}
	for (int i = 0; message.is_store && !message.has_bad_name && i < n_fds; i++) {
		store(hold, message.name, &fds[i]);
	}
	/* A barrier's descriptor is closed by the caller, and that is the answer. */
}

static void read_message(struct hold *hold)
{
	char bytes[MESSAGE_BYTES];
	union {
		struct cmsghdr aligned;
		char bytes[CMSG_SPACE(sizeof(int) * FDPASS_MAX_FDS) +
			   CMSG_SPACE(sizeof(struct ucred))];
	} control;
	struct iovec part = {.iov_base = bytes, .iov_len = sizeof bytes};
	struct msghdr message = {.msg_iov = &part,
				 .msg_iovlen = 1,
				 .msg_control = &control,
				 .msg_controllen = sizeof control};
	int fds[FDPASS_MAX_FDS];
	ssize_t size = recvmsg(hold->socket, &message, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
	bool is_whole = (message.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) == 0;
	bool is_good = size >= 0 && is_from_child(hold, &message);
	int n_fds = size < 0 ? 0 : fdpass_collect(&control, message.msg_controllen, fds, close_one);

	if (is_good && !is_whole) {
		say("a message of the daemon came without all its descriptors: raise the limit "
		    "of open files (ulimit -n)");
	} else if (is_good && n_fds >= 0) {
		take_message(hold, bytes, (size_t)size, fds, n_fds);
	}
	for (int i = 0; i < n_fds; i++) {
		if (fds[i] >= 0) {
			(void)close(fds[i]); /* not kept */
		}
	}
}

/* What a daemon said before it died counts: all of it, before the next one is started. */
static void read_all(struct hold *hold)
{
	struct pollfd poller = {.fd = hold->socket, .events = POLLIN};

	while (poll(&poller, 1, 0) > 0) {
		read_message(hold);
	}
}

/* ---- the daemon ---- */

/* A daemon without some of them would give up the rest; all is still here for the next one. */
static void check_passed(int fd, const struct stored *stored)
{
	if (fd < 0) {
		(void)fprintf(stderr, "distorchd-hold: cannot hand over %s: %s\n", stored->name,
			      strerror(errno));
		_exit(EXIT_FAILURE);
	}
}

/* In the child: the stored descriptors to 3, 4, …, and their names into the environment. */
static void pass_on(const struct hold *hold)
{
	char number[32];
	size_t size = (size_t)hold->n_stored * NOTIFY_NAME_SIZE + 1;
	char *names = calloc(1, size);
	char *end = names;
	int base = FIRST_FD + (int)hold->n_stored;
	int at = FIRST_FD;

	if (names == NULL) {
		_exit(EXIT_FAILURE);
	}
	/* Out of the way first, so that none is overwritten before it is moved. */
	LIST_FOR_EACH (link, &hold->stored) {
		struct stored *stored = container_of(link, struct stored, link);

		stored->fd = fcntl(stored->fd, F_DUPFD_CLOEXEC, base);
		check_passed(stored->fd, stored);
		end = stpcpy(stpcpy(end, end == names ? "" : ":"), stored->name);
	}
	LIST_FOR_EACH (link, &hold->stored) {
		const struct stored *stored = container_of(link, struct stored, link);

		check_passed(dup2(stored->fd, at++), stored); /* leaves it open over exec */
	}
	(void)snprintf(number, sizeof number, "%u", hold->n_stored);
	(void)setenv("LISTEN_FDS", number, 1); /* no memory: the daemon starts without */
	(void)setenv("LISTEN_FDNAMES", names, 1);
	(void)snprintf(number, sizeof number, "%d", (int)getpid());
	(void)setenv("LISTEN_PID", number, 1);
}

/* As the unit says it: what is kept is ours too, so killing another program brings none of it
 * back. The daemon goes first, and the next one keeps only what fits. */
static void go_first(void)
{
	AUTO_CLOSE int fd = sys_open("/proc/self/oom_score_adj", O_WRONLY);

	if (fd >= 0) {
		/* Refused where ours is higher already. */
		(void)sys_write(fd, OOM_SCORE, sizeof OOM_SCORE - 1);
	}
}

static void run_child(const struct hold *hold)
{
	char number[32];
	sigset_t none;

	(void)sigemptyset(&none);
	(void)sigprocmask(SIG_SETMASK, &none, NULL);
	go_first();
	(void)unsetenv("LISTEN_FDS");
	if (hold->n_stored > 0) {
		pass_on(hold);
	}
	(void)snprintf(number, sizeof number, "%u", hold->max_fds);
	(void)setenv("NOTIFY_SOCKET", hold->address, 1);
	(void)setenv("FDSTORE", number, 1);
	(void)execvp(hold->command[0], hold->command);
	(void)fprintf(stderr, "distorchd-hold: cannot run %s: %s\n", hold->command[0],
		      strerror(errno));
	_exit(EXIT_NO_COMMAND);
}

static void start(struct hold *hold)
{
	pid_t child = fork();

	if (child == 0) {
		run_child(hold);
	}
	hold->started_ms = now_ms();
	if (child < 0) {
		say("no process for the daemon; trying again");
		hold->n_failures++;
		return;
	}
	hold->child = child;
	hold->is_ready = false;
	hold->kill_ms = 0;
}

/* 'is_told': it knows already, and being told twice is to end at once. */
static void end_child(struct hold *hold, bool is_told)
{
	if (hold->child > 0) {
		if (!is_told) {
			(void)kill(hold->child, SIGTERM); /* it is ours and not reaped yet */
		}
		hold->kill_ms = now_ms() + END_WAIT_MS;
	}
}

static bool has_models(const struct hold *hold)
{
	LIST_FOR_EACH (link, &hold->stored) {
		const struct stored *stored = container_of(link, struct stored, link);

		if (strncmp(stored->name, MODEL_NAME, sizeof MODEL_NAME - 1) == 0) {
			return true;
		}
	}
	return false;
}

/* True when this ends too; '*ret_code' is its status then. */
static bool child_ended(struct hold *hold, int status, int *ret_code)
{
	bool is_calm = now_ms() - hold->started_ms >= CALM_MS;
	char text[128];

	read_all(hold); /* as long as we know it for the child */
	hold->child = 0;
	*ret_code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
	if (hold->is_restarting) {
		hold->is_restarting = false;
		hold->n_failures = 0;
		return false;
	}
	/* An orderly end was asked for; a command or a configuration that is none, and nothing to
	 * lose. */
	if (hold->is_ending || *ret_code == 0 ||
	    ((*ret_code == EXIT_NO_COMMAND || *ret_code == EXIT_BAD_CONFIG) && !has_models(hold))) {
		if (hold->n_stored > 0 && *ret_code == EXIT_BAD_CONFIG) {
			say("the configuration is broken and no model waits for it to be mended: "
			    "ending");
		}
		return true;
	}
	/* One that got ready did not fail at its start: no more than the shortest wait. */
	hold->n_failures = is_calm ? 1 : hold->is_ready ? 2 : hold->n_failures + 1;
	(void)snprintf(text, sizeof text, "the daemon ended by %s %d; starting it again",
		       WIFSIGNALED(status) ? "signal" : "status",
		       WIFSIGNALED(status) ? WTERMSIG(status) : *ret_code);
	say(text);
	return false;
}

/* At once after a first death, then ever later. */
static int64_t next_start_ms(const struct hold *hold)
{
	int64_t wait_ms = BACKOFF_MS;

	if (hold->n_failures <= 1) {
		return 0;
	}
	for (uint32_t i = 2; i < hold->n_failures && wait_ms < LONGEST_MS; i++) {
		wait_ms *= 2;
	}
	return hold->started_ms + (wait_ms < LONGEST_MS ? wait_ms : LONGEST_MS);
}

/* A terminal tells its whole group. */
static bool is_of_terminal(const struct hold *hold, const struct signalfd_siginfo *info)
{
	return info->ssi_signo == SIGINT && info->ssi_code == SI_KERNEL && hold->child > 0 &&
	       getpgid(hold->child) == getpgrp();
}

static void take_signal(struct hold *hold)
{
	struct signalfd_siginfo info;

	if (read(hold->signals, &info, sizeof info) != (ssize_t)sizeof info) {
		return;
	}
	if (info.ssi_signo == SIGTERM || info.ssi_signo == SIGINT) {
		hold->is_ending = true;
		end_child(hold, is_of_terminal(hold, &info));
	} else if (info.ssi_signo == SIGHUP && hold->child > 0) {
		(void)kill(hold->child, SIGHUP);
	} else if (info.ssi_signo == SIGUSR1 && hold->child > 0) {
		hold->is_restarting = true;
		end_child(hold, false);
	}
}

static int wait_time(const struct hold *hold)
{
	int64_t until = hold->child > 0 ? hold->kill_ms : next_start_ms(hold);
	int64_t left = until - now_ms();

	if (hold->child > 0 && until == 0) {
		return -1;
	}
	return left < 0 ? 0 : (int)left;
}

static int serve(struct hold *hold)
{
	int code = 0;

	for (;;) {
		struct pollfd pollers[2] = {{.fd = hold->socket, .events = POLLIN},
					    {.fd = hold->signals, .events = POLLIN}};
		int status = 0;

		if (hold->child == 0 && !hold->is_ending && now_ms() >= next_start_ms(hold)) {
			start(hold);
		}
		if (hold->child == 0 && hold->is_ending) {
			return code;
		}
		(void)poll(pollers, 2, wait_time(hold)); /* EINTR: look again */
		if ((pollers[1].revents & POLLIN) != 0) {
			take_signal(hold);
		}
		if ((pollers[0].revents & POLLIN) != 0) {
			read_message(hold);
		}
		if (hold->child > 0 && hold->kill_ms != 0 && now_ms() >= hold->kill_ms) {
			say("the daemon does not end; killing it");
			(void)kill(hold->child, SIGKILL);
			hold->kill_ms = 0;
		}
		if (hold->child > 0 && waitpid(hold->child, &status, WNOHANG) == hold->child &&
		    child_ended(hold, status, &code)) {
			return code;
		}
	}
}

/* ---- life ---- */

/* How many may be kept: each has two numbers while they are handed over. */
static uint32_t find_room(void)
{
	struct rlimit files = {0};
	rlim_t n_fds = 0;

	if (getrlimit(RLIMIT_NOFILE, &files) == 0) {
		n_fds = files.rlim_cur;
		files.rlim_cur = files.rlim_max;
		if (setrlimit(RLIMIT_NOFILE, &files) == 0) {
			n_fds = files.rlim_max; /* the old limit holds less */
		}
	}
	n_fds = n_fds < SPARE_FDS ? 0 : (n_fds - SPARE_FDS) / 2;
	return n_fds < MAX_FDS ? (uint32_t)n_fds : MAX_FDS;
}

static int open_socket(struct hold *hold)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	socklen_t size = sizeof(sa_family_t); /* the kernel chooses an abstract name */
	int on = 1;
	AUTO_CLOSE int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);

	if (fd < 0 || bind(fd, (const struct sockaddr *)&address, size) < 0 ||
	    setsockopt(fd, SOL_SOCKET, SO_PASSCRED, &on, sizeof on) < 0) {
		return -1;
	}
	size = sizeof address;
	if (getsockname(fd, (struct sockaddr *)&address, &size) < 0) {
		return -1;
	}
	(void)snprintf(hold->address, sizeof hold->address, "@%.*s",
		       (int)(size - offsetof(struct sockaddr_un, sun_path) - 1),
		       address.sun_path + 1);
	hold->socket = steal_fd(&fd);
	return 0;
}

static int open_signals(struct hold *hold)
{
	static const int numbers[] = {SIGTERM, SIGINT, SIGHUP, SIGUSR1, SIGCHLD};
	sigset_t set;

	(void)sigemptyset(&set);
	for (size_t i = 0; i < sizeof numbers / sizeof numbers[0]; i++) {
		(void)sigaddset(&set, numbers[i]); /* valid numbers */
	}
	if (sigprocmask(SIG_BLOCK, &set, NULL) < 0) {
		return -1;
	}
	hold->signals = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
	return hold->signals < 0 ? -1 : 0;
}

/* The daemon leaves the socket's name for its next life; now there is none. */
static void remove_name(const struct hold *hold, int fd)
{
	struct sockaddr_un address;
	struct stat status;

	if (find_name(fd, &address, &status) && status.st_ino == hold->name_ino &&
	    status.st_dev == hold->name_dev) {
		(void)unlink(address.sun_path); /* a dead name only refuses connections */
	}
}

static void finish(struct hold *hold)
{
	LIST_FOR_EACH_SAFE (link, &hold->stored) {
		struct stored *stored = container_of(link, struct stored, link);

		if (strcmp(stored->name, SOCKET_NAME) == 0) {
			remove_name(hold, stored->fd);
		}
		stored_free(hold, stored);
	}
	(void)close(hold->signals);
	(void)close(hold->socket);
}

static error_t parse_option(int key, char *text, struct argp_state *state)
{
	struct hold *hold = state->input;

	(void)text;
	if (key == ARGP_KEY_ARGS) {
		hold->command = state->argv + state->next;
		return 0;
	}
	if (key == ARGP_KEY_NO_ARGS) {
		argp_usage(state);
	}
	return ARGP_ERR_UNKNOWN;
}

int main(int argc, char **argv)
{
	static const char doc[] =
		"Keep the memory of a daemon over its death, and start it again.\v"
		"  distorchd-hold -- distorchd --socket /tmp/d.sock --state-dir /tmp/d\n\n"
		"SIGTERM or SIGINT ends both in order, SIGHUP goes on to the daemon, SIGUSR1 "
		"starts a new daemon that keeps all models (after an upgrade). See "
		"distorchd-hold(8).";
	static const struct argp parser = {NULL, parse_option, "-- COMMAND [ARGUMENT...]",
					   doc,  NULL,         NULL,
					   NULL};
	struct hold hold = {.socket = -1, .signals = -1};
	int code;

	list_init(&hold.stored);
	if (!sys_open_standard_streams()) {
		return EXIT_FAILURE; /* and nowhere to say it */
	}
	argp_err_exit_status = 2;
	if (argp_parse(&parser, argc, argv, ARGP_IN_ORDER, NULL, &hold) != 0) {
		return 2;
	}
	hold.max_fds = find_room();
	if (open_socket(&hold) < 0 || open_signals(&hold) < 0) {
		(void)fprintf(stderr, "distorchd-hold: cannot start: %s\n", strerror(errno));
		return EXIT_FAILURE;
	}
	code = serve(&hold);
	finish(&hold);
	return code;
}
