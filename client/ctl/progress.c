/* SPDX-License-Identifier: Apache-2.0 */
/* See progress.h. */
#include "progress.h"

#include "base/text.h"
#include "print.h"

#include <stdio.h>
#include <string.h>

#define BAR_WIDTH 24

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

static void draw(struct watcher *watcher, const struct distorch_progress *progress)
{
	char bar[BAR_WIDTH * 3 + 8];
	char done[24];
	char total[24];
	char rate[24];
	char name[128];
	uint64_t elapsed_ms = ctl_now_ms() - watcher->begun_ms;
	uint64_t a_second =
		elapsed_ms == 0 ? 0
				: (uint64_t)((double)progress->bytes * 1000.0 / (double)elapsed_ms);

	(void)text_escape(watcher->name, name, sizeof name);
	if (progress->total == 0 || progress->bytes == 0) {
		(void)fprintf(stderr, "\r\033[K%s %s  %s", watcher->doing, name,
			      phase_text(progress->phase));
	} else {
		uint64_t left_s = a_second == 0 ? 0
						: (progress->total - progress->bytes) / a_second;

		(void)fprintf(stderr, "\r\033[K%s %s  %s  %s/%s  %s/s  %llus left %s",
			      watcher->doing, name,
			      bar_text(progress->bytes, progress->total, BAR_WIDTH, bar,
				       sizeof bar),
			      size_text(watcher->ctl, progress->bytes, done),
			      size_text(watcher->ctl, progress->total, total),
			      size_text(watcher->ctl, a_second, rate), (unsigned long long)left_s,
			      phase_text(progress->phase));
	}
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
	watcher->begun_ms = ctl_now_ms();
	ctl_on_interrupt = INTERRUPT_IS_ASKED;
}

void progress_end(const struct watcher *watcher)
{
	ctl_on_interrupt = INTERRUPT_FAILS;
	if (watcher->has_line) {
		(void)fputs("\r\033[K", stderr);
	}
}
