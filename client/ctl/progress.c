/* SPDX-License-Identifier: Apache-2.0 */
/* See progress.h. */
#include "progress.h"

#include "base/text.h"
#include "print.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define BAR_WIDTH  24U
#define LEAST_BAR  10U /* with the two blanks before it; a shorter one says nothing */
#define LEAST_NAME 12U
#define FIGURES    36U /* the most that most take: a bar does not change its length with them */
#define MS_PER_S   1000U

static const char *phase_text(const char *phase)
{
	static const struct {
		const char *phase;
		const char *words;
	} words[] = {
		{"queued", "waiting for its turn"},
		{"header", "reading the header"},
		{"room", "making room"},
		{"checking", "checking"},
		{"stalled", "the disk does not answer"},
	};

	for (size_t i = 0; phase != NULL && i < sizeof words / sizeof words[0]; i++) {
		if (strcmp(words[i].phase, phase) == 0) {
			return words[i].words;
		}
	}
	return "";
}

/* "  1.2G/8.0G  500M/s  14s left reading"; speed and time once two looks tell them: bytes that came
 * before the first one are another's, who loads the same. */
static void tell_figures(struct watcher *watcher, const struct distorch_progress *progress,
			 char *buffer, size_t buffer_size)
{
	uint64_t now = ctl_now_ms();
	uint64_t a_second = 0;
	char sizes[3][24];
	char span[32];
	size_t used = 0;

	if (watcher->first_bytes == 0 || progress->bytes < watcher->first_bytes) {
		watcher->first_bytes = progress->bytes;
		watcher->first_ms = now;
	} else if (now > watcher->first_ms) {
		a_second = (uint64_t)((double)(progress->bytes - watcher->first_bytes) * MS_PER_S /
				      (double)(now - watcher->first_ms));
	}
	text_append(buffer, buffer_size, &used, "  %s/%s",
		    size_text(watcher->ctl, progress->bytes, sizes[0]),
		    size_text(watcher->ctl, progress->total, sizes[1]));
	if (a_second > 0 && progress->total > progress->bytes) {
		uint64_t left_s = (progress->total - progress->bytes) / a_second + 1;

		text_append(buffer, buffer_size, &used, "  %s/s  %s left",
			    size_text(watcher->ctl, a_second, sizes[2]),
			    ms_text(left_s * MS_PER_S, span));
	}
	text_append(buffer, buffer_size, &used, " %s", phase_text(progress->phase));
}

/* One row of the terminal, whatever its width: the figures stay, and the bar goes before the name
 * does. */
static void draw(struct watcher *watcher, const struct distorch_progress *progress)
{
	const size_t room = terminal_columns(STDERR_FILENO) - 1;
	char bar[BAR_WIDTH * 3 + 8] = "";
	char figures[256] = "";
	char name[512];
	char fitted[512];
	char line[1200];
	char row[1200];
	size_t n_figures;
	size_t n_others;
	size_t n_bar;

	if (progress->total > 0 && progress->bytes > 0) {
		tell_figures(watcher, progress, figures, sizeof figures);
	} else {
		(void)snprintf(figures, sizeof figures, "  %s", phase_text(progress->phase));
	}
	n_figures = text_columns(figures);
	n_others = strlen(watcher->doing) + 1;
	if (n_figures < FIGURES && room >= n_others + FIGURES + LEAST_BAR + LEAST_NAME) {
		n_figures = FIGURES;
	}
	n_others += n_figures;
	(void)text_escape(path_base(watcher->name), name, sizeof name);
	(void)text_fit(name,
		       room > n_others + LEAST_BAR + LEAST_NAME ? room - n_others - LEAST_BAR
								: LEAST_NAME,
		       fitted, sizeof fitted);
	n_others += text_columns(fitted) + 2;
	n_bar = room > n_others ? room - n_others : 0;
	if (progress->total > 0 && progress->bytes > 0 && n_bar + 2 >= LEAST_BAR) {
		(void)bar_text(progress->bytes, progress->total,
			       n_bar < BAR_WIDTH ? (unsigned)n_bar : BAR_WIDTH, bar, sizeof bar);
	}
	(void)snprintf(line, sizeof line, "%s %s%s%s%s", watcher->doing, fitted,
		       bar[0] != '\0' ? "  " : "", bar, figures);
	(void)fprintf(stderr, "\r\033[K%s", text_fit(line, room, row, sizeof row));
	(void)fflush(stderr);
	watcher->has_line = true;
}

int progress_show(const struct distorch_progress *progress, void *user)
{
	struct watcher *watcher = user;

	if (!watcher->ctl->arguments.is_quiet && watcher->ctl->has_bar) {
		draw(watcher, progress);
	}
	return ctl_interrupted;
}

void progress_begin(struct watcher *watcher)
{
	watcher->first_bytes = 0;
	ctl_on_interrupt = INTERRUPT_IS_ASKED;
}

void progress_end(const struct watcher *watcher)
{
	ctl_on_interrupt = INTERRUPT_FAILS;
	if (watcher->has_line) {
		(void)fputs("\r\033[K", stderr);
	}
}
