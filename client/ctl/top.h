/* SPDX-License-Identifier: Apache-2.0 */
/*
 * distorchctl top, in parts: a thread that looks at the daemon, so that one that hangs does not
 * hang the screen; the terminal by ncurses, which is loaded when it is wanted; what is drawn.
 */
#ifndef CTL_TOP_H
#define CTL_TOP_H

#include "ctl.h"

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <wchar.h>

#define TOP_TEXT_SIZE 1024 /* harmless text of one row */

/* ---- top_watch.c: what the daemon said ---- */

/* One answer to all that is shown. */
struct look {
	struct distorch_status *status; /* owner: look, as the next two; NULL before the first */
	struct distorch_models *models;
	struct distorch_clients *clients;
	uint64_t at_ms; /* when, on the monotonic clock */
};

/* Ask once. Returns 0, or the library's code and leaves 'look' as it was. */
int look_take(struct distorch *c, struct look *look);
void look_free(struct look *look);

enum order_kind { ORDER_NONE, ORDER_PIN, ORDER_UNPIN, ORDER_EVICT };

/* What a key asked for. */
struct order {
	enum order_kind kind;
	char model[40]; /* id */
	char name[TOP_TEXT_SIZE / 2];
};

/* What came of an order: a sentence, and what to do about it or nothing. */
struct told {
	char text[TOP_TEXT_SIZE];
	char hint[TOP_TEXT_SIZE];
};

struct watcher {
	struct distorch *c; /* owner: watcher; used by its thread alone */
	uint64_t pause_ms;
	int news_fd; /* readable when there is something to take */
	pthread_t thread;
	pthread_mutex_t lock; /* over all below */
	pthread_cond_t wake;
	bool is_ending;
	struct look fresh;
	struct order order;
	struct told told;
	char fault[TOP_TEXT_SIZE]; /* why the last look failed; empty: it did not */
};

/* Takes over 'c'. False where the system has no thread or descriptor left. */
bool watcher_start(struct watcher *watcher, struct distorch *c, uint64_t pause_ms);
/* False while another order waits. */
bool watcher_order(struct watcher *watcher, const struct order *order);
/* What is new: a look (true), what came of an order, why there is no look; both or none. */
bool watcher_take(struct watcher *watcher, struct look *ret_look, struct told *ret_told,
		  char fault[TOP_TEXT_SIZE]);
/* A thread that waits for the daemon is left behind: the program ends. */
void watcher_end(struct watcher *watcher);

/* ---- top_screen.c: the terminal ---- */

enum ink { INK_PLAIN, INK_BOLD, INK_REVERSE };

/* What wget_wch may return besides characters. */
enum key {
	KEY_IS_NONE = 0x200000,
	KEY_IS_UP,
	KEY_IS_DOWN,
	KEY_IS_PAGE_UP,
	KEY_IS_PAGE_DOWN,
	KEY_IS_FIRST,
	KEY_IS_LAST,
	KEY_IS_BACKSPACE,
	KEY_IS_RESIZE,
	KEY_IS_OTHER,
};

/* Take the terminal over. On failure 'why' says why not, and nothing was changed. */
bool screen_open(char *why, size_t why_size);
/* Give it back as it was; again is fine. */
void screen_close(void);
void screen_size(int *ret_rows, int *ret_columns);
void screen_begin(void);
void screen_show(void);
/* Text that is harmless, cut and filled up to 'width' columns. What is outside is not drawn. */
void screen_put(int row, int column, int width, enum ink ink, const char *text);
/* The next key (an enum key or a character), without waiting. */
wint_t screen_key(void);

/* ---- top_draw.c: what is where ---- */

enum top_sort { SORT_BY_USE, SORT_BY_SIZE, SORT_BY_NAME, SORT_N };
enum top_mode { MODE_LIST, MODE_FILTER, MODE_CONFIRM, MODE_HELP };

struct top {
	const struct ctl *ctl;
	struct look look, before; /* the one before, for speeds */
	char fault[TOP_TEXT_SIZE];
	struct told told;
	uint64_t told_until_ms;
	enum top_mode mode;
	enum top_sort sort;
	char filter[64];
	char selected[40];                   /* id */
	struct order asked;                  /* what MODE_CONFIRM asks about */
	const struct distorch_model **shown; /* owner: top; into 'look' */
	size_t n_shown;
	size_t at;     /* of the selected one in 'shown' */
	size_t first;  /* of 'shown' on the screen */
	size_t n_rows; /* for models, when last drawn */
};

/* Choose and order what is shown, and keep the selection where it is. After each change. */
void top_arrange(struct top *top);
/* One that is shown, by its id; NULL: it is not. */
const struct distorch_model *top_find(const struct top *top, const char *id);
void top_draw(struct top *top);

#endif
