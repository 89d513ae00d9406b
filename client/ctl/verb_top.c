/* SPDX-License-Identifier: Apache-2.0 */
/*
 * distorchctl top: the live view. This thread has the terminal, its keys and the signals; it
 * never waits for the daemon (top_watch.c does). However it ends, the terminal is given back.
 */
#include "options.h"
#include "print.h"
#include "top.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define MS_PER_S       1000U
#define USUAL_PAUSE_MS 1000U
#define LEAST_PAUSE_MS 500U /* two looks a second, and redraws with them */
#define MOST_PAUSE_MS  3600000U
#define TOLD_MS        6000U
#define CLOCK_MS       1000U /* the clock and the ages go on without news */

/* ---- once, where there is no terminal ---- */

static int print_look(struct ctl *ctl, const struct look *look)
{
	const struct distorch_status *status = look->status;
	int exit_status;

	if (is_json(ctl)) {
		cJSON *object = json_new();
		cJSON *array = json_add_array(object, "devices");

		for (size_t i = 0; i < status->n_devices; i++) {
			(void)json_of_device(json_add_item(array), status->devices[i]);
		}
		array = json_add_array(object, "models");
		for (size_t i = 0; i < look->models->n_models; i++) {
			(void)json_of_model(json_add_item(array), look->models->models[i]);
		}
		array = json_add_array(object, "clients");
		for (size_t i = 0; i < look->clients->n_clients; i++) {
			(void)json_of_client(json_add_item(array), look->clients->clients[i]);
		}
		return json_print(ctl, object);
	}
	print_devices(ctl, status->devices, status->n_devices);
	(void)putchar('\n');
	exit_status = print_models(ctl, look->models);
	(void)putchar('\n');
	return exit_status == EXIT_DONE ? print_clients(ctl, look->clients) : exit_status;
}

static int print_once(struct ctl *ctl)
{
	struct look look = {0};
	int status;

	if (look_take(ctl->c, &look) < 0) {
		return ctl_fail(ctl);
	}
	status = print_look(ctl, &look);
	look_free(&look);
	return status;
}

/* ---- signals: the terminal is given back before the program ends ---- */

static volatile sig_atomic_t last_signal;

static void on_signal(int number)
{
	last_signal = number;
}

/* Take them, but only within ppoll; 'ret_within' is its mask. */
static void take_signals(sigset_t *ret_within)
{
	static const int numbers[] = {SIGINT, SIGTERM, SIGHUP, SIGQUIT};
	const struct sigaction action = {.sa_handler = on_signal};
	struct sigaction before;
	sigset_t blocked;

	(void)sigemptyset(&blocked);
	(void)sigaddset(&blocked, SIGWINCH); /* ncurses': what it notes is read behind ppoll */
	for (size_t i = 0; i < sizeof numbers / sizeof numbers[0]; i++) {
		if (sigaction(numbers[i], NULL, &before) == 0 && before.sa_handler != SIG_IGN) {
			(void)sigaction(numbers[i], &action, NULL);
			(void)sigaddset(&blocked, numbers[i]);
		}
	}
	(void)sigprocmask(SIG_BLOCK, &blocked, ret_within);
}

/* Ctrl-C is the usual end; what others send ends the program as it would have. */
static int end_by(int number)
{
	sigset_t one;

	if (number == 0 || number == SIGINT) {
		return EXIT_DONE;
	}
	(void)fflush(stdout);
	(void)signal(number, SIG_DFL);
	(void)sigemptyset(&one);
	(void)sigaddset(&one, number);
	(void)raise(number);
	(void)sigprocmask(SIG_UNBLOCK, &one, NULL);
	return EXIT_FAILED; /* not reached */
}

/* ---- keys ---- */

static void tell(struct top *top, const char *text)
{
	top->told = (struct told){0};
	(void)snprintf(top->told.text, sizeof top->told.text, "%s", text);
	top->told_until_ms = ctl_now_ms() + TOLD_MS;
}

/* What 'kind' would do with the selected model. False: there is none. */
static bool order_of(const struct top *top, enum order_kind kind, struct order *ret)
{
	const struct distorch_model *model = top->n_shown > 0 ? top->shown[top->at] : NULL;

	if (model == NULL) {
		return false;
	}
	*ret = (struct order){.kind = kind};
	(void)snprintf(ret->model, sizeof ret->model, "%s", model->id);
	(void)safe_text(model->name != NULL ? model->name : model->id, ret->name, sizeof ret->name);
	return true;
}

static void give(struct top *top, struct watcher *watcher, const struct order *order)
{
	if (!watcher_order(watcher, order)) {
		tell(top, "the order before is still under way");
	}
}

static void toggle_pin(struct top *top, struct watcher *watcher)
{
	struct order order;

	if (!order_of(top, ORDER_PIN, &order)) {
		tell(top, "no model is selected");
		return;
	}
	order.kind = top->shown[top->at]->pinned ? ORDER_UNPIN : ORDER_PIN;
	give(top, watcher, &order);
}

/* The question is about one model: with that it ends. */
static void check_asked(struct top *top)
{
	char text[TOP_TEXT_SIZE];

	if (top->mode == MODE_CONFIRM && top_find(top, top->asked.model) == NULL) {
		top->mode = MODE_LIST;
		(void)snprintf(text, sizeof text, "%s is gone: nothing was evicted",
			       top->asked.name);
		tell(top, text);
	}
}

static void select_at(struct top *top, size_t at)
{
	if (top->n_shown > 0) {
		at = at < top->n_shown ? at : top->n_shown - 1;
		(void)snprintf(top->selected, sizeof top->selected, "%s", top->shown[at]->id);
	}
}

static void move(struct top *top, wint_t key)
{
	size_t page = top->n_rows > 1 ? top->n_rows - 1 : 1;

	switch (key) {
	case KEY_IS_UP:
	case L'k':
		select_at(top, top->at > 0 ? top->at - 1 : 0);
		break;
	case KEY_IS_DOWN:
	case L'j':
		select_at(top, top->at + 1);
		break;
	case KEY_IS_PAGE_UP:
		select_at(top, top->at > page ? top->at - page : 0);
		break;
	case KEY_IS_PAGE_DOWN:
		select_at(top, top->at + page);
		break;
	case KEY_IS_FIRST:
		select_at(top, 0);
		break;
	case KEY_IS_LAST:
		select_at(top, SIZE_MAX);
		break;
	default:
		break;
	}
}

static void edit_filter(struct top *top, wint_t key)
{
	size_t length = strlen(top->filter);
	char bytes[MB_LEN_MAX];
	mbstate_t state = {0};
	size_t size;

	if (key == L'\n') {
		top->mode = MODE_LIST;
	} else if (key == L'\033') {
		top->filter[0] = '\0';
		top->mode = MODE_LIST;
	} else if (key == KEY_IS_BACKSPACE) {
		while (length > 0 && ((unsigned char)top->filter[--length] & 0xC0U) == 0x80U) {
		}
		top->filter[length] = '\0';
	} else if (key < KEY_IS_NONE && key >= L' ') {
		size = wcrtomb(bytes, (wchar_t)key, &state);
		if (size != (size_t)-1 && length + size < sizeof top->filter) {
			memcpy(top->filter + length, bytes, size);
			top->filter[length + size] = '\0';
		}
	}
}

/* In the list. False: the end. */
static bool press(struct top *top, struct watcher *watcher, wint_t key)
{
	switch (key) {
	case L'q':
	case L'Q':
		return false;
	case L's':
		top->sort = (top->sort + 1) % SORT_N;
		break;
	case L'p':
		toggle_pin(top, watcher);
		break;
	case L'e':
		if (order_of(top, ORDER_EVICT, &top->asked)) {
			top->mode = MODE_CONFIRM;
		}
		break;
	case L'/':
	case L'f':
		top->mode = MODE_FILTER;
		break;
	case L'?':
	case L'h':
		top->mode = MODE_HELP;
		break;
	case L'\033':
		top->filter[0] = '\0';
		break;
	default:
		move(top, key);
	}
	return true;
}

/* All keys that wait. False: the end. */
static bool read_keys(struct top *top, struct watcher *watcher)
{
	wint_t key;

	while ((key = screen_key()) != KEY_IS_NONE) {
		if (key == KEY_IS_RESIZE) {
			continue;
		}
		switch (top->mode) {
		case MODE_FILTER:
			edit_filter(top, key);
			break;
		case MODE_CONFIRM:
			top->mode = MODE_LIST;
			if (key == L'y' || key == L'Y') {
				give(top, watcher, &top->asked);
			}
			break;
		case MODE_HELP:
			top->mode = MODE_LIST;
			break;
		case MODE_LIST:
			if (!press(top, watcher, key)) {
				return false;
			}
		}
		top_arrange(top);
	}
	return true;
}

/* ---- the loop ---- */

static void take_news(struct top *top, struct watcher *watcher)
{
	struct look look = {0};
	struct told told;

	if (watcher_take(watcher, &look, &told, top->fault)) {
		look_free(&top->before);
		top->before = top->look;
		top->look = look;
		top_arrange(top);
	}
	if (told.text[0] != '\0') {
		top->told = told;
		top->told_until_ms = ctl_now_ms() + TOLD_MS;
	}
	check_asked(top);
}

/* Until a key or a signal ends it; returns the signal or 0. */
static int loop(struct top *top, struct watcher *watcher, const sigset_t *within)
{
	struct pollfd waits[] = {{.fd = STDIN_FILENO, .events = POLLIN},
				 {.fd = watcher->news_fd, .events = POLLIN}};
	const struct timespec tick = {.tv_sec = CLOCK_MS / MS_PER_S};

	for (;;) {
		top_draw(top);
		if (ppoll(waits, 2, &tick, within) < 0 && errno != EINTR) {
			return 0;
		}
		if (last_signal != 0) {
			return last_signal;
		}
		if ((waits[1].revents & POLLIN) != 0) {
			take_news(top, watcher);
		}
		if (!read_keys(top, watcher) || (waits[0].revents & (POLLHUP | POLLERR)) != 0) {
			return 0; /* also when the terminal is gone */
		}
		waits[0].revents = waits[1].revents = 0; /* an interrupted ppoll leaves them */
	}
}

/* Returns an exit status, or -1 where the terminal cannot be drawn on: 'why' tells. */
static int run_live(struct ctl *ctl, char *why, size_t why_size)
{
	static struct top top;
	static struct watcher watcher; /* its thread may be the last to end */
	sigset_t within;
	int number;

	top.ctl = ctl;
	if (look_take(ctl->c, &top.look) < 0) {
		return ctl_fail(ctl);
	}
	take_signals(&within);
	if (!watcher_start(&watcher, ctl->c, ctl->arguments.watch_ms)) {
		look_free(&top.look);
		(void)sigprocmask(SIG_SETMASK, &within, NULL);
		(void)snprintf(why, why_size, "there is no thread or descriptor left");
		return -1;
	}
	ctl->c = NULL; /* the watcher's */
	if (!screen_open(why, why_size)) {
		watcher_end(&watcher);
		look_free(&top.look);
		(void)sigprocmask(SIG_SETMASK, &within, NULL);
		return -1;
	}
	number = loop(&top, &watcher, &within);
	screen_close();
	watcher_end(&watcher);
	look_free(&top.look);
	look_free(&top.before);
	free(top.shown);
	return end_by(number);
}

static int run(struct ctl *ctl)
{
	const char *term = getenv("TERM");
	uint64_t *pause_ms = &ctl->arguments.watch_ms;
	char why[256];
	int status = ctl_connect(ctl);

	if (status != EXIT_DONE) {
		return status;
	}
	*pause_ms = *pause_ms == 0 ? USUAL_PAUSE_MS : *pause_ms;
	*pause_ms = *pause_ms < LEAST_PAUSE_MS  ? LEAST_PAUSE_MS
		    : *pause_ms > MOST_PAUSE_MS ? MOST_PAUSE_MS
						: *pause_ms;
	if (!ctl->is_tty || isatty(STDIN_FILENO) == 0 || is_json(ctl) || term == NULL ||
	    strcmp(term, "dumb") == 0) {
		return print_once(ctl);
	}
	status = run_live(ctl, why, sizeof why);
	if (status >= 0) {
		return status;
	}
	(void)fprintf(stderr, "note: no live view: %s\n", why);
	if (ctl->c == NULL) {
		status = ctl_connect(ctl);
	}
	return status > 0 ? status : print_once(ctl);
}

static const struct argp_option options[] = {
	{"delay", 'd', "TIME", 0, "Look so often (1s; at most twice a second)", 0},
	OPTIONS_END,
};

const struct verb verb_top = {
	.name = "top",
	.group = VERB_EVERYDAY,
	.usage = "",
	.summary = "Live view: memory, models, loads and clients.",
	.text = "Keys: q quit, s sort (use, size, name), p pin or unpin, e evict, / filter, ? help; "
		"arrows select.\n"
		"Where the output is no terminal it is printed once.\n"
		"Examples:\n"
		"  distorchctl top\n"
		"  distorchctl top -d 5s\n"
		"  distorchctl top | head",
	.options = options,
	.run = run,
};
