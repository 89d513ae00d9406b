/* SPDX-License-Identifier: Apache-2.0 */
/* Pins and keeps: which are written, and who gets them back. See saved.h. */
#include "base/cleanup.h"
#include "base/os/clock.h"
#include "base/os/log.h"
#include "base/os/sys.h"
#include "base/require.h"

#include <stdlib.h>
#include <string.h>

#include "daemon/daemon.h"
#include "daemon/saved_inside.h"

#define WISHES_BYTES (5U << 20) /* of the file's, so that it stays readable */
#define WISH_BYTES   400U       /* without its path, whose bytes take three at most */

/* ---- what is written ---- */

static uint64_t left_s(uint64_t until_ns, uint64_t now_ns)
{
	if (until_ns == UINT64_MAX) {
		return STATE_FOREVER;
	}
	return until_ns > now_ns ? (until_ns - now_ns + SAVED_NS_PER_S - 1) / SAVED_NS_PER_S : 0;
}

static struct state_wish make_wish(const struct core_model_view *model, char *path,
				   const struct core_wish_view *wish, uint64_t now_ns)
{
	return (struct state_wish){.path = path,
				   .dev = model->key.dev,
				   .ino = model->key.ino,
				   .size = model->key.size,
				   .mtime_ns = model->key.mtime_ns,
				   .ctime_ns = model->key.ctime_ns,
				   .is_raw = model->key.is_raw,
				   .uid = wish->uid,
				   .pin = wish->pin,
				   .keep = wish->keep,
				   .pin_left_s = left_s(wish->pin_until_ns, now_ns),
				   .keep_left_s = left_s(wish->keep_until_ns, now_ns)};
}

/* False: no memory. What finds no place is counted. */
static bool add_wish(struct state *state, const struct state_wish *wish, size_t *bytes,
		     uint32_t *n_left_out)
{
	size_t size = WISH_BYTES + 3 * strlen(wish->path);

	if (state->n_wishes == STATE_MAX_WISHES || *bytes + size > WISHES_BYTES) {
		(*n_left_out)++;
		return true;
	}
	*bytes += size;
	return state_add_wish(state, wish);
}

/* A memfd comes no second time. */
static bool can_return(const struct model_info *info)
{
	return info != NULL && info->path[0] == '/' && strncmp(info->path, "/memfd:", 7) != 0 &&
	       strlen(info->path) <= STATE_MAX_TEXT;
}

/* To be written, if there is place for it. */
struct candidate {
	struct state_wish wish; /* its path borrowed */
	uint32_t number, rank;  /* of all, and of its uid's */
};

static int compare(uint32_t one, uint32_t other)
{
	return one < other ? -1 : one > other ? 1 : 0;
}

static int compare_uids(const void *a, const void *b)
{
	const struct candidate *one = a;
	const struct candidate *other = b;
	const int uids = compare(one->wish.uid, other->wish.uid);

	return uids != 0 ? uids : compare(one->number, other->number);
}

static int compare_ranks(const void *a, const void *b)
{
	const struct candidate *one = a;
	const struct candidate *other = b;
	const int ranks = compare(one->rank, other->rank);

	return ranks != 0 ? ranks : compare(one->number, other->number);
}

/* Everybody's first, then everybody's second, …: nobody's many push another's few out. */
static void take_turns(struct candidate *all, uint32_t n)
{
	if (n == 0) {
		return;
	}
	qsort(all, n, sizeof *all, compare_uids);
	for (uint32_t i = 1; i < n; i++) {
		all[i].rank = all[i].wish.uid == all[i - 1].wish.uid ? all[i - 1].rank + 1 : 0;
	}
	qsort(all, n, sizeof *all, compare_ranks);
}

static void add_candidate(const struct state_wish *wish, struct candidate *all, uint32_t *n)
{
	if (wish->pin || wish->keep) {
		all[*n] = (struct candidate){.wish = *wish, .number = *n};
		(*n)++;
	}
}

/* 'all' has room for the core's wishes and those that wait. Returns how many there are. */
static uint32_t find_candidates(const struct daemon *daemon, struct candidate *all)
{
	const struct saved *saved = daemon->saved;
	const struct model_info *info = NULL;
	uint64_t now_ns = clock_boot_ns();
	struct core_model_view model;
	struct core_wish_view wish;
	uint32_t n = 0;

	while ((info = store_next_model(daemon->store, info)) != NULL) {
		uint32_t cursor = 0;

		if (!can_return(info) || !core_model_get(daemon->core, info->id, &model)) {
			continue;
		}
		while (core_wish_next(daemon->core, info->id, &cursor, &wish)) {
			const struct state_wish made = make_wish(&model, info->path, &wish, now_ns);

			add_candidate(&made, all, &n);
		}
	}
	for (uint32_t i = 0; i < saved->state.n_wishes; i++) {
		struct state_wish waiting = saved->state.wishes[i];

		saved_let_pass(&waiting, (now_ns - saved->opened_ns) / SAVED_NS_PER_S);
		add_candidate(&waiting, all, &n);
	}
	return n;
}

/* False: no memory. */
static bool gather_wishes(const struct daemon *daemon, struct state *state, uint32_t *n_left_out)
{
	const size_t max = (size_t)DAEMON_MAX_WISHES + daemon->saved->state.n_wishes;
	AUTO_FREE struct candidate *all = sys_calloc(max, sizeof *all);
	uint32_t n = all == NULL ? 0 : find_candidates(daemon, all);
	size_t bytes = 0;

	take_turns(all, n);
	for (uint32_t i = 0; i < n; i++) {
		if (!add_wish(state, &all[i].wish, &bytes, n_left_out)) {
			return false;
		}
	}
	return all != NULL;
}

bool saved_gather(const struct daemon *daemon, const struct state *from, struct state *ret)
{
	uint32_t n_left_out = 0;
	struct state lists = *from;

	lists.n_wishes = 0;
	lists.saved_s = clock_real_ns() / SAVED_NS_PER_S;
	if (!state_copy(&lists, ret)) {
		return false;
	}
	if (!gather_wishes(daemon, ret, &n_left_out)) {
		state_fini(ret);
		return false;
	}
	if (n_left_out > 0) {
		log_warning("%u pins and keeps are not saved: no more than %u of them, or %u bytes",
			    n_left_out, STATE_MAX_WISHES, WISHES_BYTES);
	}
	return true;
}

/* ---- who gets his pin back ---- */

enum fit { FIT_NONE, FIT_GOOD, FIT_CHANGED };

/* 'is_present': its uid has presented the model's file in this life. */
static enum fit judge(const struct state_wish *wish, const struct core_file_key *key,
		      const char *path, bool is_present)
{
	bool is_inode = wish->dev == key->dev && wish->ino == key->ino;
	bool is_path = strcmp(wish->path, path) == 0;
	bool is_content = wish->size == key->size && wish->mtime_ns == key->mtime_ns;

	if (wish->is_raw != key->is_raw) {
		return FIT_NONE;
	}
	/* A change of the inode's own time cannot be forged: it is the file that it was. */
	if (is_inode && is_content && wish->ctime_ns == key->ctime_ns) {
		return FIT_GOOD;
	}
	if (!is_present || (!is_inode && !is_path)) {
		return FIT_NONE;
	}
	return is_content ? FIT_GOOD : is_path ? FIT_CHANGED : FIT_NONE;
}

static bool find_wish(const struct daemon *daemon, uint64_t model, uint32_t uid,
		      struct core_wish_view *ret)
{
	uint32_t cursor = 0;

	while (core_wish_next(daemon->core, model, &cursor, ret)) {
		if (ret->uid == uid) {
			return true;
		}
	}
	return false;
}

static uint64_t until_ns(uint64_t left)
{
	uint64_t now_ns = clock_boot_ns();

	return left > (UINT64_MAX - now_ns) / SAVED_NS_PER_S ? UINT64_MAX
							     : now_ns + left * SAVED_NS_PER_S;
}

/* What is said now stays; the rest comes back. False: not now. */
static bool give_back(struct daemon *daemon, const struct state_wish *waiting, uint64_t model)
{
	const struct saved *saved = daemon->saved;
	uint32_t said = saved->said_uid == waiting->uid ? saved->said : 0;
	struct core_wish_view wish = {.pin_until_ns = UINT64_MAX, .keep_until_ns = UINT64_MAX};
	struct core_event event = {.type = EV_ADOPT_WISH};

	(void)find_wish(daemon, model, waiting->uid, &wish);
	if (waiting->pin && !wish.pin && (said & CORE_SAID_PIN) == 0) {
		wish.pin = true;
		wish.pin_until_ns = until_ns(waiting->pin_left_s);
	}
	if (waiting->keep && !wish.keep && (said & CORE_SAID_KEEP) == 0) {
		wish.keep = true;
		wish.keep_until_ns = until_ns(waiting->keep_left_s);
	}
	event.adopt_wish.model = model;
	event.adopt_wish.uid = waiting->uid;
	event.adopt_wish.pin = wish.pin;
	event.adopt_wish.keep = wish.keep;
	event.adopt_wish.priority = wish.priority;
	event.adopt_wish.ttl_ns = wish.ttl_ns;
	event.adopt_wish.pin_until_ns = wish.pin_until_ns;
	event.adopt_wish.keep_until_ns = wish.keep_until_ns;
	return daemon_follow(daemon, &event);
}

static const char *words_of(const struct state_wish *wish)
{
	return wish->pin && wish->keep ? "pin and keep" : wish->pin ? "pin" : "keep";
}

void saved_settle(struct daemon *daemon, uint64_t model, bool is_known)
{
	struct saved *saved = daemon->saved;
	const struct model_info *info = daemon_know_model(daemon, model);
	struct core_model_view view;

	if (info == NULL || !core_model_get(daemon->core, model, &view)) {
		return;
	}
	for (uint32_t i = saved->state.n_wishes; i > 0; i--) {
		struct state_wish waiting = saved->state.wishes[i - 1];
		enum fit fit = judge(&waiting, &view.key, info->path,
				     core_uid_has_wish(daemon->core, waiting.uid, model));

		if (fit == FIT_NONE) {
			continue;
		}
		saved_let_pass(&waiting, (clock_boot_ns() - saved->opened_ns) / SAVED_NS_PER_S);
		if (fit == FIT_CHANGED) {
			log_notice("the %s of uid %u on %s is not given back: the file has another "
				   "content now",
				   words_of(&waiting), waiting.uid, info->name);
		} else if (!is_known && (waiting.pin || waiting.keep)) {
			if (!give_back(daemon, &waiting, model)) {
				continue;
			}
			log_info("the %s of uid %u on %s is back", words_of(&waiting), waiting.uid,
				 info->name);
		}
		state_remove_wish(&saved->state, i - 1);
		saved->is_dirty = true;
	}
}

void saved_hear(struct daemon *daemon, const struct core_event *event)
{
	struct saved *saved = daemon->saved;
	const struct core_policy *policy = event->type == EV_LOAD  ? event->load.policy
					   : event->type == EV_SET ? event->set.policy
								   : NULL;
	const struct client *client = policy == NULL ? NULL
						     : daemon_find_client(daemon, event->client);

	saved->said = client == NULL ? 0 : policy->said;
	saved->said_uid = client == NULL ? UINT32_MAX : client->uid;
}

void saved_record_wish(struct daemon *daemon, uint64_t id)
{
	struct saved *saved = daemon->saved;
	uint32_t index = (uint32_t)id - 1;
	struct core_wish_view wish;
	bool is_there = core_wish_get(daemon->core, id, &wish);
	bool is_wished = is_there && (wish.pin || wish.keep);

	if (saved->folder == NULL) {
		return;
	}
	REQUIRE(saved->is_wished != NULL && index < DAEMON_MAX_WISHES);
	if (is_wished || saved->is_wished[index]) {
		saved->is_dirty = true;
	}
	saved->is_wished[index] = is_wished;
	if (is_there && saved->is_started && saved->state.n_wishes > 0) {
		saved_settle(daemon, wish.model, false);
	}
	saved_arrange(daemon);
}

void saved_record_model(struct daemon *daemon, uint64_t model)
{
	struct core_model_view view;

	if (core_model_get(daemon->core, model, &view) && (view.is_pinned || view.is_kept)) {
		daemon->saved->is_dirty = true;
		saved_arrange(daemon);
	}
}
