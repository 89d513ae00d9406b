/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What distorchctl top draws: a line about the daemon, then three panes (memory; models; live
 * loads and clients), what a key came to, and the keys. All text from elsewhere goes through
 * safe_text; all of it is cut by screen_put.
 */
#include "render.h"
#include "top.h"

#include <fnmatch.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <time.h>

#define MS_PER_S     1000U
#define SILENT_MS    4000U /* an answer that takes longer is said */
#define NARROW       60    /* columns; below, models show less */
#define MOST_NAME    40
#define BAR_WIDTH    16
#define FOOT_ROWS    2
#define LEAST_MODELS 3 /* rows that the other panes leave to them */

/* ---- what is shown of the models ---- */

static int by_name(const struct distorch_model *a, const struct distorch_model *b)
{
	int order = strcmp(a->name != NULL ? a->name : "", b->name != NULL ? b->name : "");

	return order != 0 ? order : strcmp(a->id, b->id);
}

static int order_numbers(uint64_t a, uint64_t b)
{
	return a < b ? -1 : a > b;
}

static int compare_use(const void *left, const void *right)
{
	const struct distorch_model *a = *(const struct distorch_model *const *)left;
	const struct distorch_model *b = *(const struct distorch_model *const *)right;
	int order = order_numbers(b->leases, a->leases);

	if (order == 0) { /* by the second: what is used at once keeps its place */
		order = order_numbers(a->last_used_ms / MS_PER_S, b->last_used_ms / MS_PER_S);
	}
	return order != 0 ? order : by_name(a, b);
}

static int compare_size(const void *left, const void *right)
{
	const struct distorch_model *a = *(const struct distorch_model *const *)left;
	const struct distorch_model *b = *(const struct distorch_model *const *)right;
	int order = order_numbers(b->bytes, a->bytes);

	return order != 0 ? order : by_name(a, b);
}

static int compare_name(const void *left, const void *right)
{
	return by_name(*(const struct distorch_model *const *)left,
		       *(const struct distorch_model *const *)right);
}

static bool is_wanted(const struct top *top, const struct distorch_model *model)
{
	const char *name = model->name != NULL ? model->name : "";

	return top->filter[0] == '\0' || fnmatch(top->filter, name, FNM_CASEFOLD) == 0 ||
	       strcasestr(name, top->filter) != NULL ||
	       strncmp(model->id, top->filter, strlen(top->filter)) == 0;
}

const struct distorch_model *top_find(const struct top *top, const char *id)
{
	for (size_t i = 0; i < top->n_shown; i++) {
		if (strcmp(top->shown[i]->id, id) == 0) {
			return top->shown[i];
		}
	}
	return NULL;
}

/* Where the selected model is now; where it is not any more, what took its place. */
static size_t find_selected(const struct top *top)
{
	for (size_t i = 0; i < top->n_shown; i++) {
		if (strcmp(top->shown[i]->id, top->selected) == 0) {
			return i;
		}
	}
	return top->at < top->n_shown ? top->at : top->n_shown - 1;
}

void top_arrange(struct top *top)
{
	static int (*const compare[])(const void *, const void *) = {
		[SORT_BY_USE] = compare_use,
		[SORT_BY_SIZE] = compare_size,
		[SORT_BY_NAME] = compare_name,
	};
	size_t n_models = top->look.models->n_models;

	free(top->shown);
	top->n_shown = 0;
	top->shown = calloc(n_models + 1, sizeof(void *));
	for (size_t i = 0; top->shown != NULL && i < n_models; i++) {
		if (is_wanted(top, top->look.models->models[i])) {
			top->shown[top->n_shown++] = top->look.models->models[i];
		}
	}
	if (top->n_shown == 0) {
		top->selected[0] = '\0';
		top->first = 0;
		return;
	}
	qsort(top->shown, top->n_shown, sizeof(void *), compare[top->sort]);
	top->at = find_selected(top);
	(void)snprintf(top->selected, sizeof top->selected, "%s", top->shown[top->at]->id);
	/* The selection stays on the screen. */
	if (top->at < top->first) {
		top->first = top->at;
	} else if (top->n_rows > 0 && top->at >= top->first + top->n_rows) {
		top->first = top->at - top->n_rows + 1;
	}
	if (top->first + top->n_rows > top->n_shown) {
		top->first = top->n_shown > top->n_rows ? top->n_shown - top->n_rows : 0;
	}
}

/* ---- the first line ---- */

static void draw_head(const struct top *top, int columns)
{
	const struct distorch_status *status = top->look.status;
	uint64_t silent_ms = ctl_now_ms() - top->look.at_ms;
	uint64_t n_asked = status->hits + status->misses;
	char text[TOP_TEXT_SIZE + 128];
	char version[64];
	char clock[40];
	char span[32];
	size_t used = 0;

	(void)ms_text(silent_ms / MS_PER_S * MS_PER_S, span);
	if (top->fault[0] != '\0') {
		(void)snprintf(text, sizeof text, "reconnecting… (last answer %s ago) %s", span,
			       top->fault);
	} else if (silent_ms > SILENT_MS) {
		(void)snprintf(text, sizeof text,
			       "reconnecting… no answer from the daemon since %s", span);
	} else {
		text_append(text, sizeof text, &used, "distorchd %s  up %s  models %" PRIu64,
			    safe_text(status->version, version, sizeof version),
			    ms_text(status->uptime_ms / MS_PER_S * MS_PER_S, span), status->models);
		if (status->pinned > 0) {
			text_append(text, sizeof text, &used, " (%" PRIu64 " pinned)",
				    status->pinned);
		}
		text_append(text, sizeof text, &used, "  clients %" PRIu64, status->clients);
		if (n_asked > 0) {
			text_append(text, sizeof text, &used, "  hits %" PRIu64 "%%",
				    status->hits * 100 / n_asked);
		}
		screen_put(0, 0, columns, INK_BOLD, text);
		(void)time_text((uint64_t)time(NULL) * MS_PER_S, false, clock);
		if ((int)text_columns(text) + 10 < columns) {
			screen_put(0, columns - 8, 8, INK_BOLD, clock);
		}
		return;
	}
	screen_put(0, 0, columns, INK_REVERSE, text);
}

/* ---- memory ---- */

static void draw_device(const struct top *top, int row, int columns,
			const struct distorch_device *device, int name_width)
{
	char text[TOP_TEXT_SIZE];
	char safe[TOP_TEXT_SIZE / 2];
	char label[256];
	char bar[BAR_WIDTH * 3 + 8];
	char sizes[3][24];
	size_t used = 0;

	text_append(text, sizeof text, &used, "%s  %6s of %-6s  %6s free",
		    bar_text(device->used, device->budget, BAR_WIDTH, bar, sizeof bar),
		    size_text(top->ctl, device->used, sizes[0]),
		    size_text(top->ctl, device->budget, sizes[1]),
		    size_text(top->ctl, device->free, sizes[2]));
	if (strcmp(device->state, "ok") != 0) {
		text_append(text, sizeof text, &used, "  %s",
			    safe_text(device->state, safe, sizeof safe));
	}
	if (device->draining) {
		text_append(text, sizeof text, &used, "  draining");
	}
	if (device->held > 0) {
		text_append(text, sizeof text, &used, "  held %s",
			    size_text(top->ctl, device->held, sizes[0]));
	}
	if (device->foreign != DISTORCH_ABSENT && device->foreign > 0) {
		text_append(text, sizeof text, &used, "  others %s",
			    size_text(top->ctl, device->foreign, sizes[0]));
	}
	if (device->reserved > 0) {
		text_append(text, sizeof text, &used, "  reserved %s",
			    size_text(top->ctl, device->reserved, sizes[0]));
	}
	screen_put(row, 1, name_width, INK_PLAIN,
		   safe_text(device_label(device, label, sizeof label), safe, sizeof safe));
	screen_put(row, name_width + 2, columns - name_width - 2, INK_PLAIN, text);
}

/* From 'row', in at most so many rows. Returns the rows taken. */
static int draw_devices(const struct top *top, int row, int n_rows, int columns)
{
	const struct distorch_status *status = top->look.status;
	int n_devices = (int)status->n_devices;
	int n_drawn = n_devices > n_rows ? n_rows - 1 : n_devices;
	int name_width = 6;
	char label[256];
	char text[64];

	for (int i = 0; i < n_devices; i++) {
		int width =
			(int)text_columns(device_label(status->devices[i], label, sizeof label));

		name_width = width > name_width ? width : name_width;
	}
	name_width = name_width > columns / 3 ? columns / 3 : name_width;
	for (int i = 0; i < n_drawn; i++) {
		draw_device(top, row + i, columns, status->devices[i], name_width);
	}
	if (n_drawn < n_devices) {
		(void)snprintf(text, sizeof text, "… %d more: distorchctl devices",
			       n_devices - n_drawn);
		screen_put(row + n_drawn, 1, columns - 1, INK_PLAIN, text);
	}
	return n_devices > n_rows ? n_rows : n_devices;
}

/* ---- models ---- */

enum { CELL_NAME, CELL_SIZE, CELL_WHERE, CELL_USERS, CELL_LAST, CELL_STAYS, N_CELLS };

static const char *const titles[N_CELLS] = {"NAME", "SIZE", "WHERE", "USED BY", "LAST", "STAYS"};

/* Columns of each cell, with one between two; 0: it is left out. */
static void fit_cells(int columns, int widths[N_CELLS])
{
	static const struct {
		int cell, most;
	} grow[] = {{CELL_NAME, MOST_NAME}, {CELL_WHERE, 34}, {CELL_USERS, 24}, {CELL_STAYS, 24}};
	static const int narrow[N_CELLS] = {8, 6, 14, 0, 0, 10};
	static const int usual[N_CELLS] = {16, 6, 16, 14, 8, 13};
	int room = columns - 2;

	memcpy(widths, columns < NARROW ? narrow : usual, sizeof usual);
	for (int i = 0; i < N_CELLS; i++) {
		room -= widths[i] > 0 ? widths[i] + 1 : 0;
	}
	for (size_t i = 0; room > 0 && i < sizeof grow / sizeof grow[0]; i++) {
		int *width = &widths[grow[i].cell];
		int more = *width == 0 || *width >= grow[i].most ? 0 : grow[i].most - *width;

		more = more > room ? room : more;
		*width += more;
		room -= more;
	}
}

static void draw_cells(int row, int columns, const int widths[N_CELLS], enum ink ink,
		       const char *const cells[N_CELLS])
{
	int at = 1;

	screen_put(row, 0, columns, ink, "");
	for (int i = 0; i < N_CELLS; i++) {
		int blank = 0;

		if (widths[i] == 0) {
			continue;
		}
		if (i == CELL_SIZE) { /* a number: to the right */
			int used = (int)text_columns(cells[i]);

			blank = used < widths[i] ? widths[i] - used : 0;
		}
		screen_put(row, at + blank, widths[i] - blank, ink, cells[i]);
		at += widths[i] + 1;
	}
}

static void draw_model(const struct top *top, int row, int columns, const int widths[N_CELLS],
		       const struct distorch_model *model)
{
	bool is_selected = strcmp(model->id, top->selected) == 0;
	char name[TOP_TEXT_SIZE];
	char where[TOP_TEXT_SIZE];
	char users[TOP_TEXT_SIZE];
	char stays[TOP_TEXT_SIZE];
	char words[512];
	char size[24];
	char last[32];
	const char *const cells[N_CELLS] = {name, size, where, users, last, stays};

	(void)safe_text(model->name != NULL ? model->name : "(another user's)", name, sizeof name);
	(void)size_text(top->ctl, model->bytes, size);
	(void)safe_text(where_now_text(top->ctl, model, words, sizeof words), where, sizeof where);
	(void)safe_text(users_text(model, words, sizeof words), users, sizeof users);
	if (model->last_used_ms < MS_PER_S) {
		(void)snprintf(last, sizeof last, "now");
	} else {
		(void)ms_text(model->last_used_ms / MS_PER_S * MS_PER_S, last);
	}
	(void)safe_text(stays_text(model, words, sizeof words), stays, sizeof stays);
	draw_cells(row, columns, widths, is_selected ? INK_REVERSE : INK_PLAIN, cells);
}

static void draw_models(struct top *top, int row, int n_rows, int columns)
{
	static const char *const sorts[SORT_N] = {"use", "size", "name"};
	char text[TOP_TEXT_SIZE];
	char safe[sizeof top->filter * 4];
	int widths[N_CELLS];
	size_t used = 0;

	top->n_rows = n_rows > 2 ? (size_t)n_rows - 2 : 0;
	top_arrange(top); /* for so many rows */
	text_append(text, sizeof text, &used, "MODELS by %s", sorts[top->sort]);
	if (top->filter[0] != '\0' || top->mode == MODE_FILTER) {
		text_append(text, sizeof text, &used, "   %zu of %zu match %s", top->n_shown,
			    top->look.models->n_models, safe_text(top->filter, safe, sizeof safe));
	}
	if (top->n_shown > top->n_rows && top->n_rows > 0) {
		text_append(text, sizeof text, &used, "   %zu to %zu of %zu", top->first + 1,
			    top->first + top->n_rows, top->n_shown);
	}
	screen_put(row, 0, columns, INK_BOLD, text);
	fit_cells(columns, widths);
	draw_cells(row + 1, columns, widths, INK_PLAIN, titles);
	for (size_t i = 0; i < top->n_rows && top->first + i < top->n_shown; i++) {
		draw_model(top, row + 2 + (int)i, columns, widths, top->shown[top->first + i]);
	}
	if (top->n_shown == 0 && top->n_rows > 0) {
		screen_put(row + 2, 1, columns - 1, INK_PLAIN,
			   top->look.models->n_models > 0
				   ? "No model matches."
				   : "No models. Load one: distorchctl load FILE");
	}
}

/* ---- live loads and clients ---- */

static bool is_loading(const struct distorch_model *model)
{
	return strcmp(model->state, "loading") == 0 && model->progress_bytes != DISTORCH_ABSENT;
}

/* Bytes a second between the last two looks; 0: not known. */
static uint64_t speed_of(const struct top *top, const struct distorch_model *model)
{
	const struct distorch_models *before = top->before.models;
	uint64_t passed_ms = top->look.at_ms - top->before.at_ms;

	for (size_t i = 0; before != NULL && i < before->n_models; i++) {
		const struct distorch_model *old = before->models[i];

		if (strcmp(old->id, model->id) == 0 && is_loading(old) && passed_ms > 0 &&
		    model->progress_bytes > old->progress_bytes) {
			return (uint64_t)((double)(model->progress_bytes - old->progress_bytes) *
					  MS_PER_S / (double)passed_ms);
		}
	}
	return 0;
}

static void draw_load(const struct top *top, int row, int columns,
		      const struct distorch_model *model)
{
	uint64_t speed = speed_of(top, model);
	uint64_t left = model->bytes > model->progress_bytes ? model->bytes - model->progress_bytes
							     : 0;
	char name[TOP_TEXT_SIZE];
	char bar[BAR_WIDTH * 3 + 8];
	char sizes[3][24];
	char span[32];
	char text[TOP_TEXT_SIZE];
	size_t used = 0;
	int name_width = columns / 3;

	text_append(text, sizeof text, &used, "%s  %s of %s",
		    bar_text(model->progress_bytes, model->bytes, BAR_WIDTH, bar, sizeof bar),
		    size_text(top->ctl, model->progress_bytes, sizes[0]),
		    size_text(top->ctl, model->bytes, sizes[1]));
	if (speed > 0) {
		text_append(text, sizeof text, &used, "  %s/s  %s left",
			    size_text(top->ctl, speed, sizes[2]),
			    ms_text((left / speed + 1) * MS_PER_S, span));
	}
	screen_put(row, 1, name_width, INK_PLAIN,
		   safe_text(model->name != NULL ? model->name : "(another user's)", name,
			     sizeof name));
	screen_put(row, name_width + 2, columns - name_width - 2, INK_PLAIN, text);
}

static void draw_client(const struct top *top, int row, int columns,
			const struct distorch_client *client)
{
	const char *name = client->label != NULL ? client->label : client->comm;
	char text[TOP_TEXT_SIZE];
	char safe[TOP_TEXT_SIZE / 2];
	char size[24];
	char age[32];
	size_t used = 0;
	int name_width = columns / 3;

	text_append(text, sizeof text, &used, "%s/%u", safe_text(name, safe, sizeof safe),
		    client->pid);
	screen_put(row, 1, name_width, INK_PLAIN, text);
	used = 0;
	text_append(text, sizeof text, &used, "uid %-6u %3" PRIu64 " leased  %6s  %s", client->uid,
		    client->leases, size_text(top->ctl, client->held_bytes, size),
		    client->connected ? ms_text(client->age_ms / MS_PER_S * MS_PER_S, age)
				      : "no connection, still maps it");
	screen_put(row, name_width + 2, columns - name_width - 2, INK_PLAIN, text);
}

static int n_loading(const struct top *top)
{
	int n_found = 0;

	for (size_t i = 0; i < top->look.models->n_models; i++) {
		n_found += is_loading(top->look.models->models[i]) ? 1 : 0;
	}
	return n_found;
}

/* Those who hold most first; the daemon's order among equals. */
static const struct distorch_client *next_client(const struct distorch_clients *clients,
						 const struct distorch_client *last, size_t *at)
{
	const struct distorch_client *best = NULL;
	size_t best_at = 0;

	for (size_t i = 0; i < clients->n_clients; i++) {
		const struct distorch_client *client = clients->clients[i];
		bool is_behind = last == NULL || client->held_bytes < last->held_bytes ||
				 (client->held_bytes == last->held_bytes && i > *at);

		if (is_behind && (best == NULL || client->held_bytes > best->held_bytes)) {
			best = client;
			best_at = i;
		}
	}
	*at = best_at;
	return best;
}

static void draw_clients(const struct top *top, int row, int n_rows, int columns)
{
	const struct distorch_models *models = top->look.models;
	const struct distorch_clients *clients = top->look.clients;
	const struct distorch_client *client = NULL;
	int end = row + n_rows;
	int n_left = n_loading(top) + (int)clients->n_clients;
	size_t at = 0;
	char text[64];

	if (n_rows < 2) {
		return;
	}
	screen_put(row++, 0, columns, INK_BOLD,
		   n_loading(top) > 0 ? "LOADS AND CLIENTS" : "CLIENTS");
	for (size_t i = 0; i < models->n_models; i++) {
		if (is_loading(models->models[i]) && (row < end - 1 || n_left == 1)) {
			draw_load(top, row++, columns, models->models[i]);
			n_left--;
		}
	}
	while (row < end && (row < end - 1 || n_left == 1) &&
	       (client = next_client(clients, client, &at)) != NULL) {
		draw_client(top, row++, columns, client);
		n_left--;
	}
	if (n_left > 0 && row < end) {
		(void)snprintf(text, sizeof text, "… %d more: distorchctl clients", n_left);
		screen_put(row, 1, columns - 1, INK_PLAIN, text);
	}
}

/* ---- the foot ---- */

static void draw_foot(const struct top *top, int row, int columns)
{
	char text[TOP_TEXT_SIZE];
	char safe[TOP_TEXT_SIZE / 2];
	bool is_told = ctl_now_ms() < top->told_until_ms;

	if (top->mode == MODE_CONFIRM) {
		const struct distorch_model *model = top_find(top, top->asked.model);

		(void)snprintf(text, sizeof text, "Evict %s?%s", top->asked.name,
			       model != NULL && (model->pinned || model->keep)
				       ? " Your pin and keep go too."
				       : "");
		screen_put(row, 0, columns, INK_BOLD, text);
		screen_put(row + 1, 0, columns, INK_REVERSE,
			   "y evict it   any other key: leave it");
		return;
	}
	if (top->mode == MODE_FILTER) {
		(void)snprintf(text, sizeof text, "/%s_",
			       safe_text(top->filter, safe, sizeof safe));
		screen_put(row, 0, columns, INK_BOLD, text);
		screen_put(row + 1, 0, columns, INK_REVERSE,
			   "Enter keep the filter   Esc show all");
		return;
	}
	if (is_told) {
		screen_put(row, 0, columns, INK_BOLD, top->told.text);
	}
	if (is_told && top->told.hint[0] != '\0') {
		(void)snprintf(text, sizeof text, "hint: %.1000s", top->told.hint);
		screen_put(row + 1, 0, columns, INK_PLAIN, text);
	} else {
		screen_put(row + 1, 0, columns, INK_REVERSE,
			   "q quit  s sort  p pin  e evict  / filter  ? help");
	}
}

static void draw_help(int columns)
{
	static const char *const lines[] = {
		"Keys",
		"",
		"  q, Ctrl-C           quit",
		"  s                   sort by use, size or name",
		"  p                   pin the selected model, or withdraw your pin",
		"  e                   evict it (asks first)",
		"  /                   show only names with these letters, or like 'flux*'",
		"  Esc                 show all again",
		"  arrows, j k, Home, End, Page Up, Page Down   select",
		"",
		"  The bars show what is used of the budget. \"held\" is memory that was let go of",
		"  and that a client still maps.",
		"",
		"Any key goes back.",
	};

	for (int i = 0; i < (int)(sizeof lines / sizeof lines[0]); i++) {
		screen_put(i, 0, columns, i == 0 ? INK_BOLD : INK_PLAIN, lines[i]);
	}
}

/* ---- all of it ---- */

void top_draw(struct top *top)
{
	int rows;
	int columns;
	int row = 1;
	int n_clients;

	screen_begin();
	screen_size(&rows, &columns);
	if (top->mode == MODE_HELP) {
		draw_help(columns);
		screen_show();
		return;
	}
	draw_head(top, columns);
	row += draw_devices(top, row, rows / 3 > 0 ? rows / 3 : 1, columns);
	n_clients = 1 + n_loading(top) + (int)top->look.clients->n_clients;
	n_clients = n_clients > rows / 3 ? rows / 3 : n_clients;
	if (rows - row - FOOT_ROWS - n_clients < LEAST_MODELS + 2) {
		n_clients = 0;
	}
	draw_models(top, row, rows - row - FOOT_ROWS - n_clients, columns);
	draw_clients(top, rows - FOOT_ROWS - n_clients, n_clients, columns);
	draw_foot(top, rows - FOOT_ROWS, columns);
	screen_show();
}
