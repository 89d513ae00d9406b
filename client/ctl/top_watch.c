/* SPDX-License-Identifier: Apache-2.0 */
/* The thread of distorchctl top that asks the daemon, and carries out what a key asked for. */
#include "render.h"
#include "top.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#define MS_PER_S  1000U
#define NS_PER_MS 1000000U
#define END_MS    300U /* for a thread to see that all ends */

int look_take(struct distorch *c, struct look *look)
{
	struct look fresh = {.at_ms = ctl_now_ms()};
	int code = distorch_status(c, &fresh.status);

	if (code == 0) {
		code = distorch_list(c, NULL, &fresh.models);
	}
	if (code == 0) {
		code = distorch_clients(c, &fresh.clients);
	}
	if (code < 0) {
		look_free(&fresh);
		return code;
	}
	look_free(look);
	*look = fresh;
	return 0;
}

void look_free(struct look *look)
{
	distorch_status_free(look->status);
	distorch_models_free(look->models);
	distorch_clients_free(look->clients);
	*look = (struct look){0};
}

/* ---- orders ---- */

static void tell_failure(struct distorch *c, struct told *told)
{
	const struct distorch_error *error = distorch_error(c);

	(void)safe_text(error->message, told->text, sizeof told->text);
	if (error->hint != NULL) {
		(void)safe_text(error->hint, told->hint, sizeof told->hint);
	}
}

static void tell_evicted(const struct distorch_report *report, const char *name, struct told *told)
{
	char reason[TOP_TEXT_SIZE / 2];
	char size[24];

	if (report->n_held > 0) {
		(void)snprintf(told->text, sizeof told->text,
			       "held: %s: %s; will be freed when its last user closes it", name,
			       safe_text(report->held[0]->reason, reason, sizeof reason));
	} else if (report->n_kept > 0) {
		(void)snprintf(told->text, sizeof told->text, "kept: %s: %s", name,
			       safe_text(report->kept[0]->reason, reason, sizeof reason));
	} else {
		(void)snprintf(told->text, sizeof told->text, "unloaded %s: %s freed", name,
			       size_text(&(const struct ctl){0}, report->total_bytes, size));
	}
}

static void carry_out(struct distorch *c, const struct order *order, struct told *told)
{
	const char *const models[] = {order->model};
	const struct distorch_select select = {.size = sizeof select,
					       .models = models,
					       .n_models = 1};
	const struct distorch_policy policy = {.size = sizeof policy,
					       .said = DISTORCH_SAID_PIN,
					       .pin = order->kind == ORDER_PIN};
	struct distorch_report *report = NULL;

	if (order->kind == ORDER_EVICT) {
		if (distorch_unload(c, &select, &report) < 0) {
			tell_failure(c, told);
			return;
		}
		tell_evicted(report, order->name, told);
		distorch_report_free(report);
	} else if (distorch_set(c, order->model, &policy, NULL, NULL) < 0) {
		tell_failure(c, told);
	} else {
		(void)snprintf(told->text, sizeof told->text, "%s %s",
			       policy.pin ? "pinned" : "no longer pinned by you:", order->name);
	}
}

/* ---- the thread ---- */

static void announce(const struct watcher *watcher)
{
	const uint64_t one = 1;

	(void)!write(watcher->news_fd, &one, sizeof one); /* full is announced too */
}

/* Until an order, the end, or the next look is due. Called with the lock held. */
static void wait_for_work(struct watcher *watcher)
{
	uint64_t due = ctl_now_ms() + watcher->pause_ms;
	const struct timespec until = {.tv_sec = (time_t)(due / MS_PER_S),
				       .tv_nsec = (long)(due % MS_PER_S * NS_PER_MS)};
	int code = 0;

	while (code != ETIMEDOUT && !watcher->is_ending && watcher->order.kind == ORDER_NONE) {
		code = pthread_cond_timedwait(&watcher->wake, &watcher->lock, &until);
	}
}

static void work(struct watcher *watcher)
{
	struct order order = watcher->order;
	struct look look = {0};
	struct told told = {0};
	char fault[TOP_TEXT_SIZE] = "";

	(void)pthread_mutex_unlock(&watcher->lock);
	if (order.kind != ORDER_NONE) {
		carry_out(watcher->c, &order, &told);
	}
	if (look_take(watcher->c, &look) < 0) {
		(void)safe_text(distorch_error(watcher->c)->message, fault, sizeof fault);
	}
	(void)pthread_mutex_lock(&watcher->lock);
	if (look.status != NULL) {
		look_free(&watcher->fresh);
		watcher->fresh = look;
	}
	if (order.kind != ORDER_NONE) {
		watcher->order.kind = ORDER_NONE;
		watcher->told = told;
	}
	memcpy(watcher->fault, fault, sizeof fault);
	announce(watcher);
}

static void *watch(void *user)
{
	struct watcher *watcher = user;

	(void)pthread_mutex_lock(&watcher->lock);
	while (!watcher->is_ending) {
		work(watcher);
		wait_for_work(watcher);
	}
	(void)pthread_mutex_unlock(&watcher->lock);
	return NULL;
}

bool watcher_start(struct watcher *watcher, struct distorch *c, uint64_t pause_ms)
{
	pthread_condattr_t monotonic;
	sigset_t all;
	sigset_t before;
	bool is_started;

	*watcher = (struct watcher){.c = c, .pause_ms = pause_ms};
	watcher->news_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (watcher->news_fd < 0) {
		return false;
	}
	(void)pthread_mutex_init(&watcher->lock, NULL);
	(void)pthread_condattr_init(&monotonic);
	(void)pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
	(void)pthread_cond_init(&watcher->wake, &monotonic);
	(void)pthread_condattr_destroy(&monotonic);
	(void)sigfillset(&all); /* signals are for the thread that has the terminal */
	(void)pthread_sigmask(SIG_SETMASK, &all, &before);
	is_started = pthread_create(&watcher->thread, NULL, watch, watcher) == 0;
	(void)pthread_sigmask(SIG_SETMASK, &before, NULL);
	if (!is_started) {
		(void)close(watcher->news_fd);
	}
	return is_started;
}

bool watcher_order(struct watcher *watcher, const struct order *order)
{
	bool is_free;

	(void)pthread_mutex_lock(&watcher->lock);
	is_free = watcher->order.kind == ORDER_NONE;
	if (is_free) {
		watcher->order = *order;
		(void)pthread_cond_signal(&watcher->wake);
	}
	(void)pthread_mutex_unlock(&watcher->lock);
	return is_free;
}

bool watcher_take(struct watcher *watcher, struct look *ret_look, struct told *ret_told,
		  char fault[TOP_TEXT_SIZE])
{
	uint64_t count;
	bool has_look;

	(void)!read(watcher->news_fd, &count, sizeof count); /* only to make it quiet */
	(void)pthread_mutex_lock(&watcher->lock);
	has_look = watcher->fresh.status != NULL;
	if (has_look) {
		*ret_look = watcher->fresh;
		watcher->fresh = (struct look){0};
	}
	*ret_told = watcher->told;
	watcher->told = (struct told){0};
	memcpy(fault, watcher->fault, TOP_TEXT_SIZE);
	(void)pthread_mutex_unlock(&watcher->lock);
	return has_look;
}

void watcher_end(struct watcher *watcher)
{
	struct timespec until = {0};

	(void)pthread_mutex_lock(&watcher->lock);
	watcher->is_ending = true;
	(void)pthread_cond_signal(&watcher->wake);
	(void)pthread_mutex_unlock(&watcher->lock);
	(void)clock_gettime(CLOCK_REALTIME, &until); /* what the next call counts by */
	until.tv_nsec += (long)END_MS * NS_PER_MS;
	until.tv_sec += until.tv_nsec / 1000000000;
	until.tv_nsec %= 1000000000;
	if (pthread_timedjoin_np(watcher->thread, NULL, &until) != 0) {
		return;
	}
	look_free(&watcher->fresh);
	(void)distorch_close(watcher->c);
	(void)close(watcher->news_fd);
	(void)pthread_cond_destroy(&watcher->wake);
	(void)pthread_mutex_destroy(&watcher->lock);
}
