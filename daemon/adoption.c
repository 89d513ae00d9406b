/* SPDX-License-Identifier: Apache-2.0 */
/*
 * At start: what an earlier life parked comes in as descriptors with names. Nothing of it is
 * believed (adopt_generation.c). What cannot be is given up with a warning, and the rest is
 * adopted. Before the first client, so it may take the time that it takes.
 */
#include "base/cleanup.h"
#include "base/err.h"
#include "base/os/log.h"
#include "base/os/sys.h"
#include "base/require.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include "daemon/config.h"
#include "daemon/daemon.h"
#include "daemon/last_good.h"
#include "daemon/persist.h"
#include "daemon/persist_inside.h"
#include "daemon/watch.h"

#define FIRST_FD      3
#define MAX_INHERITED 65536
#define QUIET_NS      5000000000U /* those who used it come back first */
#define SKIP_SUSPECT  2           /* starts in a row that did not get ready */
#define SKIP_ALL      3
#define REST_FDS      32 /* for the rest of a start: its workers, its socket */

/* ---- what was handed over ---- */

static uint64_t take_number(const char *name)
{
	const char *text = getenv(name);
	char *end = NULL;
	uint64_t number = text == NULL ? 0 : strtoull(text, &end, 10);

	return end == NULL || *end != '\0' ? 0 : number;
}

static void take_names(struct persist *persist)
{
	const char *names = getenv("LISTEN_FDNAMES");

	for (uint32_t i = 0; names != NULL && i < persist->n_inherited; i++) {
		size_t size = strcspn(names, ":");

		(void)snprintf(persist->inherited[i].name, NOTIFY_NAME_SIZE, "%.*s",
			       (int)(size < NOTIFY_NAME_SIZE ? size : NOTIFY_NAME_SIZE - 1), names);
		names = names[size] == '\0' ? NULL : names + size + 1;
	}
}

int inherited_take(struct persist *persist, struct err *err)
{
	uint64_t pid = take_number("LISTEN_PID");
	uint64_t n_fds = take_number("LISTEN_FDS");
	bool is_ours = pid == (uint64_t)getpid() && n_fds > 0;

	if (is_ours && n_fds > MAX_INHERITED) {
		log_warning("LISTEN_FDS says %llu; at most %d are taken over",
			    (unsigned long long)n_fds, MAX_INHERITED);
		n_fds = MAX_INHERITED;
	}
	persist->inherited = !is_ours ? NULL : sys_calloc(n_fds, sizeof *persist->inherited);
	if (is_ours && persist->inherited == NULL) {
		/* Whoever keeps them gives them to the next start too. */
		return err_set(err, WIRE_NO_MEMORY, "no memory to take %llu descriptors over",
			       (unsigned long long)n_fds);
	}
	persist->n_inherited = is_ours ? (uint32_t)n_fds : 0;
	for (uint32_t i = 0; i < persist->n_inherited; i++) {
		int fd = FIRST_FD + (int)i;

		persist->inherited[i].fd = fcntl(fd, F_SETFD, FD_CLOEXEC) < 0 ? -1 : fd;
	}
	take_names(persist);
	(void)unsetenv("LISTEN_PID");
	(void)unsetenv("LISTEN_FDS");
	(void)unsetenv("LISTEN_FDNAMES");
	return 0;
}

void inherited_free(struct persist *persist)
{
	for (uint32_t i = 0; i < persist->n_inherited; i++) {
		if (persist->inherited[i].fd >= 0) {
			(void)close(persist->inherited[i].fd); /* what keeps it has its own */
		}
	}
	free(persist->inherited);
	persist->inherited = NULL;
	persist->n_inherited = 0;
}

static bool is_named_again(const struct persist *persist, const char *name)
{
	for (uint32_t i = 0; i < persist->n_inherited; i++) {
		if (persist->inherited[i].is_kept &&
		    strcmp(persist->inherited[i].name, name) == 0) {
			return true;
		}
	}
	return false;
}

void inherited_give_back(struct persist *persist)
{
	for (uint32_t i = 0; i < persist->n_inherited; i++) {
		const struct inherited *inherited = &persist->inherited[i];

		if (inherited->fd >= 0 && !inherited->is_kept && inherited->name[0] != '\0' &&
		    !is_named_again(persist, inherited->name)) {
			notify_unstore(persist->notify, inherited->name);
		}
	}
	inherited_free(persist);
	persist->old_ledger = ledger_free(persist->old_ledger);
}

static bool is_listener(int fd)
{
	int is_listening = 0;
	int type = 0;
	socklen_t size = sizeof is_listening;

	return getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &is_listening, &size) == 0 &&
	       is_listening != 0 && getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &size) == 0 &&
	       type == SOCK_SEQPACKET;
}

int persist_take_listener(struct persist *persist)
{
	for (uint32_t i = 0; i < persist->n_inherited; i++) {
		struct inherited *inherited = &persist->inherited[i];
		int fd = inherited->fd;

		if (fd >= 0 && is_listener(fd)) {
			if (fcntl(fd, F_SETFL, O_RDWR | O_NONBLOCK) < 0) {
				log_warning("the inherited socket cannot be made non-blocking");
				continue;
			}
			inherited->fd = -1;
			inherited->is_kept = true;
			persist->has_listener = true;
			(void)snprintf(persist->listener, sizeof persist->listener, "%s",
				       inherited->name[0] == '\0' ? "unknown" : inherited->name);
			persist->n_fds++;
			return fd;
		}
	}
	return -1;
}

struct inherited *inherited_find(struct persist *persist, const char *name)
{
	for (uint32_t i = 0; i < persist->n_inherited; i++) {
		struct inherited *inherited = &persist->inherited[i];

		if (inherited->fd >= 0 && strcmp(inherited->name, name) == 0) {
			return inherited;
		}
	}
	return NULL;
}

/* ---- the ledger ---- */

/* Of several (a life that ended between two messages), the youngest. */
static int open_old_ledger(struct persist *persist, struct err *ret_err)
{
	for (uint32_t i = 0; i < persist->n_inherited; i++) {
		struct inherited *inherited = &persist->inherited[i];
		struct ledger *ledger = NULL;
		struct err err = {0};

		if (inherited->fd < 0 || strncmp(inherited->name, "ledger.", 7) != 0) {
			continue;
		}
		if (ledger_open(inherited->fd, &ledger, &err) < 0) {
			if (persist->max_fds > 0 && err.sys == ENFILE) {
				*ret_err = err;
				return err_wrap(ret_err, "%s", inherited->name);
			}
			log_warning("%s is of no use: %s", inherited->name, err.text);
		} else if (persist->old_ledger == NULL ||
			   ledger_life(ledger) > ledger_life(persist->old_ledger)) {
			(void)ledger_free(persist->old_ledger);
			persist->old_ledger = ledger;
		} else {
			(void)ledger_free(ledger);
		}
	}
	persist->life = persist->old_ledger == NULL ? 1 : ledger_life(persist->old_ledger) + 1;
	return 0;
}

/* ---- models ---- */

/* "hdr.ID.GENERATION", of several files "hdr.ID.GENERATION.DEV.INO" */
static bool read_name(const char *name, struct park *ret)
{
	const char *digits = "0123456789abcdef";
	const char *text = name + 4;
	char again[NOTIFY_NAME_SIZE];
	char *end;

	if (strncmp(name, "hdr.", 4) != 0 || strspn(text, digits) != 32 || text[32] != '.') {
		return false;
	}
	for (size_t i = 0; i < 16; i++) {
		uint8_t high = (uint8_t)(strchr(digits, text[2 * i]) - digits);
		uint8_t low = (uint8_t)(strchr(digits, text[2 * i + 1]) - digits);

		ret->uuid[i] = (uint8_t)(high << 4 | low);
	}
	ret->generation = strtoull(text + 33, &end, 10);
	ret->is_sharded = *end == '.';
	ret->index_dev = *end == '.' ? strtoull(end + 1, &end, 16) : 0;
	ret->index_ino = *end == '.' ? strtoull(end + 1, &end, 16) : 0;
	ret->has_index = ret->index_dev != 0 || ret->index_ino != 0;
	ret->is_parked = ret->is_taken = true;
	return ret->generation != 0 && strcmp(persist_name(again, PART_TABLE, ret), name) == 0;
}

/* A table that is one, by its name. */
struct candidate {
	struct inherited *table;
	struct park park;
};

static int compare_generations(const void *a, const void *b)
{
	const struct candidate *one = a;
	const struct candidate *other = b;

	return one->park.generation < other->park.generation   ? -1
	       : one->park.generation > other->park.generation ? 1
							       : 0;
}

static void give_up(struct daemon *daemon, const struct inherited *table, const struct err *err)
{
	daemon->metrics.n_given_up++;
	if (err->sys == EMFILE) {
		log_warning("%s is given up: no descriptors are left for it: raise the limit of "
			    "open files (LimitNOFILE=, ulimit -n), which is %u",
			    table->name, daemon->persist->max_files);
	} else {
		log_warning("%s is given up: %s", table->name, err->text);
	}
}

/* So many are not for adoption. */
static void spare_fds(const struct persist *persist, uint32_t n_spare)
{
	struct rlimit files;

	if (getrlimit(RLIMIT_NOFILE, &files) == 0) {
		files.rlim_cur = persist->max_files < n_spare ? 0 : persist->max_files - n_spare;
		(void)setrlimit(RLIMIT_NOFILE, &files); /* then adoption may have them all */
	}
}

/* Older generations first, so that the newest is the published one. */
static int adopt_models(struct daemon *daemon, bool skip_suspect, uint64_t *ret_bytes,
			struct err *err)
{
	struct persist *persist = daemon->persist;
	AUTO_FREE struct candidate *all = sys_calloc((size_t)persist->n_inherited + 1, sizeof *all);
	uint8_t suspect[16] = {0};
	uint32_t n_found = 0;
	int code;

	if (all == NULL) {
		return err_set(err, WIRE_NO_MEMORY, "no memory to look at what is kept");
	}
	if (skip_suspect) {
		ledger_get_suspect(persist->old_ledger, suspect);
	}
	for (uint32_t i = 0; i < persist->n_inherited; i++) {
		struct inherited *table = &persist->inherited[i];

		all[n_found].table = table;
		all[n_found].park = (struct park){0};
		n_found += table->fd >= 0 && read_name(table->name, &all[n_found].park) ? 1 : 0;
	}
	if (n_found > 0) {
		qsort(all, n_found, sizeof *all, compare_generations);
	}
	for (uint32_t i = 0; i < n_found; i++) {
		if (skip_suspect && memcmp(suspect, all[i].park.uuid, sizeof suspect) == 0) {
			daemon->metrics.n_given_up++;
			log_warning("%s is given up: two starts ended while it was looked at",
				    all[i].table->name);
			continue;
		}
		if (persist->old_ledger != NULL) {
			ledger_suspect(persist->old_ledger, all[i].park.uuid);
		}
		code = generation_adopt(daemon, all[i].table, &all[i].park, ret_bytes, err);
		if (code < 0 && is_passing(err)) {
			return code; /* the next start gets it all */
		}
		if (code < 0) {
			give_up(daemon, all[i].table, err);
		}
	}
	return 0;
}

/* ---- all of it ---- */

static void watch_adopted(struct daemon *daemon)
{
	struct core_model_view view;
	uint32_t cursor = 0;

	while (core_model_next(daemon->core, &cursor, &view)) {
		(void)watch_add(daemon, view.id, view.generation); /* else looked at when asked */
	}
}

/* How many models they would have been. */
static uint32_t count_tables(const struct persist *persist)
{
	struct park park;
	uint32_t n_tables = 0;

	for (uint32_t i = 0; i < persist->n_inherited; i++) {
		park = (struct park){0};
		n_tables += read_name(persist->inherited[i].name, &park) ? 1 : 0;
	}
	return n_tables;
}

int persist_adopt(struct daemon *daemon, uint64_t *ret_bytes, struct err *err)
{
	struct persist *persist = daemon->persist;
	struct core_event event = {.type = EV_ADOPTED, .adopted = {.quiet_ns = QUIET_NS}};
	const struct ledger_room room = {.n_leases = DAEMON_MAX_LEASES,
					 .n_wishes = DAEMON_MAX_WISHES,
					 .text_bytes = LAST_GOOD_MAX_BYTES};
	struct err ledger_err = {0};
	uint32_t n_failed = 0;
	int code;

	*ret_bytes = 0;

	code = open_old_ledger(persist, err);
	if (code < 0) {
		return code;
	}
	if (persist->max_fds > 0 &&
	    ledger_new(persist->life, &room, &persist->ledger, &ledger_err) < 0) {
		if (count_tables(persist) > 0 &&
		    ledger_err.sys != EMFILE) { /* the next start may have what it takes */
			*err = ledger_err;
			return -err->code;
		}
		log_warning("nothing survives a restart: %s", ledger_err.text);
		persist->max_fds = 0;
	}
	if (persist->old_ledger != NULL && persist->max_fds > 0) {
		n_failed = ledger_count_start(persist->old_ledger);
		persist->is_counted = true;
	}
	if (persist->max_fds == 0 || n_failed >= SKIP_ALL) {
		if (n_failed >= SKIP_ALL) {
			log_warning("%u starts ended before they were ready: starting empty",
				    n_failed);
		} else if (count_tables(persist) > 0) {
			log_notice("%u models of before the restart are %s", count_tables(persist),
				   notify_is_heard(persist->notify)
					   ? "given up: nothing is kept over restarts"
					   : "left alone: who keeps them does not answer");
		}
		return 0;
	}
	sources_identify(persist);
	spare_fds(persist, REST_FDS);
	code = adopt_models(daemon, n_failed >= SKIP_SUSPECT, ret_bytes, err);
	spare_fds(persist, 0);
	if (code < 0) {
		return code;
	}
	if (persist->old_ledger != NULL) {
		adoption_take_ledger(daemon);
	}
	if (daemon->metrics.n_adopted > 0) {
		log_notice("took over %llu models from before the restart, with %llu bytes",
			   (unsigned long long)daemon->metrics.n_adopted,
			   (unsigned long long)*ret_bytes);
		watch_adopted(daemon);
		(void)daemon_step(daemon, &event);
	}
	return 0;
}
