/* SPDX-License-Identifier: Apache-2.0 */
/* See last_good.h. */
#include "daemon/last_good.h"

#include "base/cleanup.h"
#include "base/err.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "daemon/config.h"
#include "daemon/config_saved.h"
#include "daemon/daemon.h"
#include "daemon/ledger.h"
#include "daemon/persist_inside.h"

#define FIRST_FD 3

/* A walk over the descriptors that were handed over. */
struct handed_over {
	int fd;
	const char *name; /* ends with ':' or NUL */
	unsigned long long n_left;
};

static struct handed_over handed_over_begin(void)
{
	const char *pid = getenv("LISTEN_PID");
	const char *count = getenv("LISTEN_FDS");
	const char *names = getenv("LISTEN_FDNAMES");
	bool is_ours = pid != NULL && count != NULL && names != NULL &&
		       strtoull(pid, NULL, 10) == (unsigned long long)getpid();

	return (struct handed_over){.fd = FIRST_FD - 1,
				    .name = is_ours ? names : "",
				    .n_left = is_ours ? strtoull(count, NULL, 10) : 0};
}

static bool handed_over_next(struct handed_over *at)
{
	if (at->fd >= FIRST_FD) {
		at->name += strcspn(at->name, ":");
		at->n_left = *at->name == '\0' ? 0 : at->n_left;
		at->name += *at->name == '\0' ? 0 : 1;
	}
	if (at->n_left == 0) {
		return false;
	}
	at->n_left--;
	at->fd++;
	return true;
}

uint32_t last_good_n_waiting(void)
{
	struct handed_over at = handed_over_begin();
	uint32_t n_waiting = 0;

	while (handed_over_next(&at)) {
		n_waiting += strncmp(at.name, "hdr.", 4) == 0 ? 1 : 0;
	}
	return n_waiting;
}

/* The youngest life's text; NULL: there is none. */
static char *find_text(size_t *ret_size)
{
	char *text = NULL;
	uint64_t life = 0;
	struct handed_over at = handed_over_begin();

	while (handed_over_next(&at)) {
		struct ledger *ledger = NULL;
		size_t size = 0;
		char *found;

		if (strncmp(at.name, "ledger.", 7) != 0 || ledger_open(at.fd, &ledger, NULL) < 0) {
			continue;
		}
		found = ledger_life(ledger) >= life ? ledger_get_text(ledger, &size) : NULL;
		if (found != NULL) {
			life = ledger_life(ledger);
			free(text);
			text = found;
			*ret_size = size;
		}
		(void)ledger_free(ledger);
	}
	return text;
}

int last_good_find(struct config **ret, struct err *err)
{
	size_t size = 0;
	AUTO_FREE char *text = find_text(&size);

	if (text == NULL) {
		return err_set(err, WIRE_NOT_FOUND, "no earlier one is known");
	}
	return config_from_text(text, size, ret, err);
}

void last_good_keep(struct daemon *daemon)
{
	struct ledger *ledger = daemon->persist == NULL ? NULL : daemon->persist->ledger;
	size_t size = 0;
	AUTO_FREE char *text = ledger == NULL ? NULL : config_to_text(daemon->config, &size);

	if (text == NULL) {
		return; /* nothing survives that would need it; or no memory: the one before stays */
	}
	/* Never empty: then it would be as if there was none. */
	(void)ledger_set_text(ledger, size == 0 ? "\n" : text, size == 0 ? 1 : size); /* it fits */
}
