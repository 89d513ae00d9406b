/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The terminal of distorchctl top. ncurses is loaded here and not linked: no other verb pays for
 * it, and where it is missing top says so. One terminal a program; called by its main thread.
 */
#include "render.h"
#include "top.h"

#define NCURSES_NOMACROS 1
#define NCURSES_WIDECHAR 1
#include <curses.h>
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define LIBRARY       "libncursesw.so.6"
#define ESCAPE_MS     50 /* what follows Escape so soon belongs to it */
#define LEAST_ROWS    3
#define LEAST_COLUMNS 20
#define MAX_COLUMNS   1000

#define EACH_CALL(X)    \
	X(newterm)      \
	X(endwin)       \
	X(cbreak)       \
	X(noecho)       \
	X(nonl)         \
	X(curs_set)     \
	X(set_escdelay) \
	X(use_tioctl)   \
	X(newwin)       \
	X(keypad)       \
	X(nodelay)      \
	X(getmaxx)      \
	X(getmaxy)      \
	X(werase)       \
	X(wmove)        \
	X(wattrset)     \
	X(waddstr)      \
	X(wrefresh)     \
	X(wget_wch)     \
	X(tigetstr)

#define DECLARE(name) __typeof__(name) *(name);
#define NAME(name)    #name,

static struct {
	EACH_CALL(DECLARE)
} curses;

static WINDOW *window; /* NULL: the terminal is not ours */

static bool load_library(char *why, size_t why_size)
{
	static const char *const names[] = {EACH_CALL(NAME)};
	void *library = dlopen(LIBRARY, RTLD_NOW | RTLD_LOCAL);
	void *calls[sizeof names / sizeof names[0]];

	_Static_assert(sizeof calls == sizeof curses, "a pointer each");
	if (library == NULL) {
		(void)snprintf(why, why_size, "%s", dlerror());
		return false;
	}
	for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
		calls[i] = dlsym(library, names[i]);
		if (calls[i] == NULL) {
			(void)snprintf(why, why_size, "%s", dlerror());
			return false;
		}
	}
	memcpy(&curses, calls, sizeof curses);
	return true;
}

/* Can a terminal of that description be drawn on? */
static bool has_cursor_address(void)
{
	char name[] = "cup"; /* not const in the oldest headers */
	const char *text = curses.tigetstr(name);

	return text != NULL && text != (const char *)-1;
}

bool screen_open(char *why, size_t why_size)
{
	const char *term = getenv("TERM");
	char safe[64];

	if (!load_library(why, why_size)) {
		return false;
	}
	(void)curses.set_escdelay(ESCAPE_MS);
	curses.use_tioctl(TRUE); /* the terminal knows its size better than COLUMNS */
	if (curses.newterm(NULL, stdout, stdin) == NULL) {
		(void)snprintf(why, why_size, "the terminal \"%s\" is not known here",
			       safe_text(term, safe, sizeof safe));
		return false;
	}
	window = curses.newwin(0, 0, 0, 0);
	if (window == NULL || !has_cursor_address()) {
		(void)curses.endwin();
		window = NULL;
		(void)snprintf(why, why_size, "the terminal \"%s\" cannot be drawn on",
			       safe_text(term, safe, sizeof safe));
		return false;
	}
	(void)atexit(screen_close); /* whoever ends the program */
	(void)curses.cbreak();
	(void)curses.noecho();
	(void)curses.nonl();
	(void)curses.keypad(window, TRUE);
	(void)curses.nodelay(window, TRUE);
	(void)curses.curs_set(0); /* some cannot */
	return true;
}

void screen_close(void)
{
	if (window != NULL) {
		(void)curses.endwin();
		window = NULL;
	}
}

void screen_size(int *ret_rows, int *ret_columns)
{
	*ret_rows = curses.getmaxy(window);
	*ret_columns = curses.getmaxx(window);
}

void screen_begin(void)
{
	(void)curses.werase(window);
}

void screen_show(void)
{
	int rows = curses.getmaxy(window);
	int columns = curses.getmaxx(window);

	if (rows < LEAST_ROWS || columns < LEAST_COLUMNS) {
		(void)curses.werase(window);
		screen_put(0, 0, columns, INK_PLAIN, "too small");
	}
	(void)curses.wrefresh(window);
}

void screen_put(int row, int column, int width, enum ink ink, const char *text)
{
	static const int inks[] =
		{[INK_PLAIN] = 0, [INK_BOLD] = (int)A_BOLD, [INK_REVERSE] = (int)A_REVERSE};
	char fitted[MAX_COLUMNS * 4 + 8];
	size_t used;

	if (row < 0 || row >= curses.getmaxy(window) || column < 0 ||
	    curses.wmove(window, row, column) == ERR) {
		return;
	}
	if (width > curses.getmaxx(window) - column) {
		width = curses.getmaxx(window) - column;
	}
	width = width > MAX_COLUMNS ? MAX_COLUMNS : width;
	if (width <= 0) {
		return;
	}
	(void)text_fit(text, (size_t)width, fitted, sizeof fitted - MAX_COLUMNS);
	used = text_columns(fitted);
	if (used < (size_t)width) {
		size_t size = strlen(fitted);

		memset(fitted + size, ' ', (size_t)width - used);
		fitted[size + (size_t)width - used] = '\0';
	}
	(void)curses.wattrset(window, inks[ink]);
	(void)curses.waddstr(window, fitted); /* fails in the last corner, where all is drawn */
	(void)curses.wattrset(window, 0);
}

wint_t screen_key(void)
{
	static const struct {
		wint_t code;
		wint_t key; /* enum key, or what is typed */
	} keys[] = {
		{KEY_UP, KEY_IS_UP},         {KEY_DOWN, KEY_IS_DOWN},
		{KEY_PPAGE, KEY_IS_PAGE_UP}, {KEY_NPAGE, KEY_IS_PAGE_DOWN},
		{KEY_HOME, KEY_IS_FIRST},    {KEY_END, KEY_IS_LAST},
		{KEY_RESIZE, KEY_IS_RESIZE}, {KEY_BACKSPACE, KEY_IS_BACKSPACE},
		{KEY_ENTER, L'\n'},
	};
	wint_t key = 0;
	int kind = curses.wget_wch(window, &key);

	if (kind == ERR) {
		return KEY_IS_NONE;
	}
	if (kind != KEY_CODE_YES) {
		return key == L'\b' || key == 0x7f ? (wint_t)KEY_IS_BACKSPACE
		       : key == L'\r'              ? (wint_t)L'\n'
						   : key;
	}
	for (size_t i = 0; i < sizeof keys / sizeof keys[0]; i++) {
		if (keys[i].code == key) {
			return (wint_t)keys[i].key;
		}
	}
	return KEY_IS_OTHER;
}
