/* SPDX-License-Identifier: Apache-2.0 */
/* When it is written, and what the loop knows of it. See saved.h. */
#include "daemon/saved.h"

#include "base/err.h"
#include "base/list.h"
#include "base/os/clock.h"
#include "base/os/log.h"
#include "base/os/sys.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/daemon.h"
#include "daemon/errand.h"
#include "daemon/names.h"
#include "daemon/saved_inside.h"
#include "daemon/testing.h"

#define NS_PER_MS    1000000U
#define REST_MS      1000  /* between two writes that nobody waits for */
#define RETRY_MS     60000 /* after one that failed */
#define STOP_WAIT_NS 2000000000U

/* owner: its errand */
struct writing {
	struct errand errand;
	struct state state;
	char *folder;
	bool has_change;
	const struct state_setting *judged; /* what is set, in 'state'; or NULL */
	bool is_refused;                    /* the change, by 'err': the file was not touched */
	bool is_in_place;                   /* the new file, whatever 'err' says */
	bool was_dirty;                     /* without the change */
	struct host_memory memory;          /* for the change */
	struct err err;
};

/* ---- the writing ---- */

static void writing_free(struct errand *errand)
{
	struct writing *writing = container_of(errand, struct writing, errand);

	state_fini(&writing->state);
	free(writing->folder);
	free(writing);
}

/* What cannot be carried out is not saved. */
static bool judge_change(struct writing *writing)
{
	const struct state_setting *set = writing->judged;

	return (set == NULL ||
		names_check_value("config.set", set->key, set->value, &writing->err) == 0) &&
	       host_memory_read(NULL, &writing->memory, &writing->err) == 0;
}

static void write_it(struct errand *errand)
{
	struct writing *writing = container_of(errand, struct writing, errand);

	writing->is_refused = writing->has_change && !judge_change(writing);
	if (!writing->is_refused) {
		writing->is_in_place =
			state_write(writing->folder, &writing->state, &writing->err) == 0;
	}
	if (writing->is_in_place) {
		(void)state_sync_folder(writing->folder, &writing->err);
	}
}

/* Told once, until it goes well again. */
static void note_outcome(struct saved *saved, const struct err *err, bool is_in_place)
{
	if (err->code != 0 && saved->fault[0] == '\0') {
		log_error("what is said %s, and it is tried again: %s",
			  is_in_place ? "is saved, but a loss of power may undo it"
				      : "is not saved, the file is as it was",
			  err->text);
	} else if (err->code == 0 && saved->fault[0] != '\0') {
		log_notice("what is said is saved again, in %s", saved->source);
	}
	(void)snprintf(saved->fault, sizeof saved->fault, "%s", err->code == 0 ? "" : err->text);
}

/* The change that was waited for is made, or is refused. */
static void end_change(struct daemon *daemon, const struct err *err)
{
	struct saved *saved = daemon->saved;
	struct saved_change *change = saved->change;

	saved->change = NULL;
	if (err->code == 0) {
		struct state old = saved->state;

		saved->state = change->next;
		saved->state.wishes = old.wishes;
		saved->state.n_wishes = old.n_wishes;
		old.n_wishes = 0;
		old.wishes = NULL;
		change->next = (struct state){0};
		saved->n_changes++;
		state_fini(&old);
	}
	change->done(daemon, change, err);
}

static void on_written(struct daemon *daemon, struct errand *errand)
{
	const struct writing *writing = container_of(errand, struct writing, errand);
	const struct err good = {0};
	struct saved *saved = daemon->saved;

	saved->is_writing = false;
	if (writing->is_refused) {
		saved->is_dirty = saved->is_dirty || writing->was_dirty;
	} else {
		saved->is_dirty = saved->is_dirty || writing->err.code != 0;
		note_outcome(saved, &writing->err, writing->is_in_place);
	}
	if (writing->has_change) {
		saved->change->memory = writing->memory;
		end_change(daemon, writing->is_in_place ? &good : &writing->err);
	}
	writing_free(errand);
	saved_arrange(daemon);
}

static const struct state_setting *find_setting(const struct state *state, const char *key)
{
	for (uint32_t i = 0; i < state->n_settings; i++) {
		if (strcmp(state->settings[i].key, key) == 0) {
			return &state->settings[i];
		}
	}
	return NULL;
}

/* False: there is no memory or thread for it now. */
static bool begin_writing(struct daemon *daemon)
{
	struct saved *saved = daemon->saved;
	struct saved_change *change = saved->change;
	struct writing *writing = sys_calloc(1, sizeof *writing);

	if (writing == NULL) {
		return false;
	}
	writing->errand =
		(struct errand){.work = write_it, .done = on_written, .drop = writing_free};
	writing->folder = sys_strdup(saved->folder);
	writing->has_change = change != NULL;
	writing->was_dirty = saved->is_dirty;
	if (writing->folder == NULL ||
	    !saved_gather(daemon, change != NULL ? &change->next : &saved->state,
			  &writing->state)) {
		writing_free(&writing->errand);
		return false;
	}
	if (change != NULL && change->key != NULL) {
		writing->judged = find_setting(&writing->state, change->key);
	}
	if (!errand_start(daemon->errands, &writing->errand)) {
		writing_free(&writing->errand);
		return false;
	}
	saved->is_writing = true;
	saved->is_dirty = false;
	saved->written_ns = clock_mono_ns();
	return true;
}

static void on_timer(uv_timer_t *timer)
{
	struct daemon *daemon = timer->data;
	struct err err = {0};

	if (!begin_writing(daemon)) {
		(void)err_set(&err, WIRE_NO_MEMORY, "no memory or no thread to write %s",
			      daemon->saved->source);
		daemon->saved->is_dirty = true;
		daemon->saved->written_ns = clock_mono_ns();
		note_outcome(daemon->saved, &err, false);
		if (daemon->saved->change != NULL) {
			end_change(daemon, &err);
		}
		saved_arrange(daemon);
	}
}

/* When this turn of the loop is over, or once the last time is long enough ago. */
void saved_arrange(struct daemon *daemon)
{
	struct saved *saved = daemon->saved;
	uint64_t rest_ms = saved->fault[0] != '\0' ? RETRY_MS : REST_MS;
	uint64_t passed_ms = (clock_mono_ns() - saved->written_ns) / NS_PER_MS;

	rest_ms = testing_ms("DISTORCHD_TEST_SAVE_MS", (uint32_t)rest_ms);
	if (saved->folder == NULL || !saved->is_started || saved->is_writing ||
	    daemon->is_stopped || (!saved->is_dirty && saved->change == NULL)) {
		return;
	}
	if (saved->change != NULL || saved->written_ns == 0 || passed_ms >= rest_ms) {
		passed_ms = rest_ms;
	}
	uv_update_time(&daemon->loop);
	(void)uv_timer_start(&saved->timer, on_timer, rest_ms - passed_ms, 0); /* not closing */
}

int saved_change(struct daemon *daemon, struct saved_change *change, struct err *err)
{
	struct saved *saved = daemon->saved;

	if (saved->folder == NULL) {
		return err_set(err, WIRE_UNSUPPORTED, "it cannot be saved: %s", saved->fault);
	}
	if (saved->change != NULL) {
		return err_set(err, WIRE_BUSY, "something else is being saved; try again");
	}
	saved->change = change;
	saved_arrange(daemon);
	return 0;
}

/* ---- life ---- */

void saved_start(struct daemon *daemon, bool has_ledger)
{
	struct saved *saved = daemon->saved;
	struct core_event tick = {.type = EV_TICK};
	struct core_model_view model;
	uint32_t cursor = 0;

	saved_set_bad_aside(saved);
	if (saved->notice[0] != '\0') {
		log_warning("%s", saved->notice);
	}
	if (saved->folder == NULL) {
		log_notice("pins are forgotten with the machine: %s", saved->fault);
		return;
	}
	saved->timer.data = daemon;
	(void)uv_timer_init(&daemon->loop, &saved->timer); /* always succeeds */
	while (core_model_next(daemon->core, &cursor, &model)) {
		saved_settle(daemon, model.id, has_ledger);
		if (daemon->n_following > 0) {
			(void)daemon_step(daemon, &tick);
		}
	}
	if (saved->state.n_wishes > 0) {
		log_info("%u pins and keeps wait for their files", saved->state.n_wishes);
	}
	saved->is_started = true;
	saved_arrange(daemon);
}

void saved_stop(struct daemon *daemon)
{
	struct saved *saved = daemon->saved;

	if (saved == NULL || !saved->is_started) {
		return;
	}
	if (saved->is_writing) {
		errands_settle(daemon->errands, STOP_WAIT_NS);
	}
	if (!saved->is_writing && saved->is_dirty) {
		(void)begin_writing(daemon); /* errands_stop waits for it */
	}
	if (saved->change != NULL) {
		saved->change->drop(saved->change);
		saved->change = NULL;
	}
	saved->is_started = false;
}

const char *saved_fault(const struct daemon *daemon)
{
	const struct saved *saved = daemon->saved;

	return saved->fault[0] == '\0' || saved->has_no_name ? NULL : saved->fault;
}

const struct state *saved_now(const struct daemon *daemon)
{
	return &daemon->saved->state;
}

uint64_t saved_n_changes(const struct daemon *daemon)
{
	return daemon->saved->n_changes;
}

const char *saved_source(const struct daemon *daemon)
{
	return daemon->saved->source;
}
