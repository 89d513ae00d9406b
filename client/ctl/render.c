/* SPDX-License-Identifier: Apache-2.0 */
/* Tables and JSON. See render.h. */
#include "render.h"

#include "base/utf8.h"

#include <inttypes.h>
#include <libsmartcols/libsmartcols.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_COLUMNS 16 /* of a sheet */
#define LEAST_CUT   16 /* columns of text that cutting leaves, unless nothing else helps */
#define GAP         2  /* between columns */

static void *must(void *memory)
{
	if (memory == NULL) {
		(void)fputs("distorchctl: no memory\n", stderr);
		exit(EXIT_FAILED);
	}
	return memory;
}

/* ---- tables ---- */

void sheet_init(struct sheet *sheet, const struct column *columns, size_t n_columns)
{
	*sheet = (struct sheet){.columns = columns, .n_columns = n_columns};
}

void sheet_add(struct sheet *sheet, const char *const *cells)
{
	char safe[4096];
	char **row = must(calloc(sheet->n_columns, sizeof *row));

	sheet->rows = must(realloc(sheet->rows, (sheet->n_rows + 1) * sizeof *sheet->rows));
	for (size_t i = 0; i < sheet->n_columns; i++) {
		row[i] = must(strdup(safe_text(cells[i], safe, sizeof safe)));
	}
	sheet->rows[sheet->n_rows++] = row;
}

static void sheet_free(struct sheet *sheet)
{
	for (size_t i = 0; i < sheet->n_rows; i++) {
		for (size_t j = 0; j < sheet->n_columns; j++) {
			free(sheet->rows[i][j]);
		}
		free(sheet->rows[i]);
	}
	free(sheet->rows);
	sheet->rows = NULL;
	sheet->n_rows = 0;
}

static void print_csv_cell(const char *text)
{
	if (strpbrk(text, ",\"") == NULL) {
		(void)fputs(text, stdout);
		return;
	}
	(void)putchar('"');
	for (; *text != '\0'; text++) {
		if (*text == '"') {
			(void)putchar('"');
		}
		(void)putchar(*text);
	}
	(void)putchar('"');
}

static void print_csv(const struct sheet *sheet)
{
	for (size_t i = 0; i < sheet->n_columns; i++) {
		(void)fputs(i == 0 ? "" : ",", stdout);
		print_csv_cell(sheet->columns[i].title);
	}
	(void)putchar('\n');
	for (size_t i = 0; i < sheet->n_rows; i++) {
		for (size_t j = 0; j < sheet->n_columns; j++) {
			(void)fputs(j == 0 ? "" : ",", stdout);
			print_csv_cell(sheet->rows[i][j]);
		}
		(void)putchar('\n');
	}
}

static void cut_text(char **text, size_t room)
{
	size_t size = strlen(*text) + sizeof "…";
	char *cut;

	if (text_columns(*text) > room) {
		cut = must(malloc(size));
		(void)text_fit(*text, room, cut, size);
		free(*text);
		*text = cut;
	}
}

static size_t column_width(const struct sheet *sheet, size_t column)
{
	size_t width = strlen(sheet->columns[column].title);

	for (size_t i = 0; i < sheet->n_rows; i++) {
		size_t columns = text_columns(sheet->rows[i][column]);

		width = columns > width ? columns : width;
	}
	return width;
}

/* Narrow the widest again and again until a line has 'room'. False: each has its least. */
static bool narrow(const struct sheet *sheet, bool is_last_resort, size_t room, size_t *widths)
{
	for (;;) {
		size_t sum = 0;
		size_t widest = sheet->n_columns;

		for (size_t i = 0; i < sheet->n_columns; i++) {
			const bool may_cut = is_last_resort ? widths[i] > 1
							    : sheet->columns[i].may_cut &&
								      widths[i] > LEAST_CUT;

			sum += widths[i] == 0 ? 0 : widths[i] + GAP;
			if (may_cut && (widest == sheet->n_columns || widths[i] > widths[widest])) {
				widest = i;
			}
		}
		if (sum <= room + GAP) {
			return true;
		}
		if (widest == sheet->n_columns) {
			return false;
		}
		widths[widest]--;
	}
}

/* False: none is left out. */
static bool leave_out_last_extra(const struct sheet *sheet, bool *is_shown)
{
	for (size_t i = sheet->n_columns; i-- > 0;) {
		if (is_shown[i] && sheet->columns[i].is_extra) {
			is_shown[i] = false;
			return true;
		}
	}
	return false;
}

/* How wide each column is, so that a line ends where the terminal does: what may be cut is, then
 * columns are left out, then everything is cut. 0: it is not shown. */
static void fit_sheet(const struct ctl *ctl, const struct sheet *sheet, size_t *ret_widths)
{
	const bool is_wide = ctl->arguments.output == OUTPUT_WIDE;
	const bool is_bounded = !is_wide && (ctl->is_tty || said_columns() > 0);
	const size_t room = is_bounded ? terminal_width() : SIZE_MAX - GAP;
	bool is_shown[MAX_COLUMNS];
	bool is_last_resort = false;

	for (size_t i = 0; i < sheet->n_columns; i++) {
		is_shown[i] = is_wide || !sheet->columns[i].is_wide;
	}
	for (;;) {
		for (size_t i = 0; i < sheet->n_columns; i++) {
			ret_widths[i] = is_shown[i] ? column_width(sheet, i) : 0;
		}
		if (narrow(sheet, is_last_resort, room, ret_widths) || is_last_resort) {
			return;
		}
		is_last_resort = !leave_out_last_extra(sheet, is_shown);
	}
}

static void fill_table(struct libscols_table *table, const struct sheet *sheet,
		       const size_t *widths)
{
	for (size_t i = 0; i < sheet->n_columns; i++) {
		char title[32];

		if (widths[i] > 0) {
			(void)text_fit(sheet->columns[i].title, widths[i], title, sizeof title);
			(void)must(scols_table_new_column(table, title, 0,
							  sheet->columns[i].is_right
								  ? SCOLS_FL_RIGHT
								  : 0));
		}
	}
	for (size_t i = 0; i < sheet->n_rows; i++) {
		struct libscols_line *line = must(scols_table_new_line(table, NULL));
		size_t at = 0;

		for (size_t j = 0; j < sheet->n_columns; j++) {
			if (widths[j] == 0) {
				continue;
			}
			cut_text(&sheet->rows[i][j], widths[j]);
			if (scols_line_set_data(line, at++, sheet->rows[i][j]) < 0) {
				(void)must(NULL);
			}
		}
	}
}

int sheet_print(struct ctl *ctl, struct sheet *sheet)
{
	struct libscols_table *table;
	size_t widths[MAX_COLUMNS];
	int failed;

	if (ctl->arguments.output == OUTPUT_CSV) {
		print_csv(sheet);
		sheet_free(sheet);
		return EXIT_DONE;
	}
	table = must(scols_new_table());
	(void)scols_table_set_column_separator(table, "  ");
	(void)scols_table_enable_noencoding(table, 1); /* sheet_add made the cells harmless */
	(void)scols_table_set_termforce(table,
					SCOLS_TERMFORCE_NEVER); /* fit_sheet has seen to it */
	fit_sheet(ctl, sheet, widths);
	fill_table(table, sheet, widths);
	failed = scols_print_table(table);
	scols_unref_table(table);
	sheet_free(sheet);
	return failed == 0 ? EXIT_DONE : EXIT_FAILED;
}

/* ---- JSON ---- */

bool is_json(const struct ctl *ctl)
{
	return ctl->arguments.output == OUTPUT_JSON || ctl->arguments.output == OUTPUT_JSONL;
}

cJSON *json_new(void)
{
	cJSON *object = must(cJSON_CreateObject());

	(void)must(cJSON_AddNumberToObject(object, "schema", 1));
	return object;
}

/* JSON is UTF-8, and a path may be anything: '?' for each other byte, as the daemon has it. */
static cJSON *new_string(const char *text)
{
	char *clean = must(strdup(text));
	const size_t size = strlen(clean);
	cJSON *string;

	for (size_t at = 0; at < size;) {
		unsigned char *byte = (unsigned char *)&clean[at];
		size_t step = *byte < 0x80 ? 1 : utf8_size(byte, size - at);

		if (step == 0 || step == SIZE_MAX) {
			*byte = '?';
			step = 1;
		}
		at += step;
	}
	string = must(cJSON_CreateString(clean));
	free(clean);
	return string;
}

void json_add_text(cJSON *object, const char *key, const char *text)
{
	if (text == NULL) {
		(void)must(cJSON_AddNullToObject(object, key));
	} else if (!cJSON_AddItemToObject(object, key, new_string(text))) {
		(void)must(NULL);
	}
}

void json_add_number(cJSON *object, const char *key, uint64_t number)
{
	char text[24];

	if (number == DISTORCH_ABSENT) {
		(void)must(cJSON_AddNullToObject(object, key));
		return;
	}
	/* As text: a double would lose the last digits of a large number. */
	(void)snprintf(text, sizeof text, "%" PRIu64, number);
	(void)must(cJSON_AddRawToObject(object, key, text));
}

void json_add_bool(cJSON *object, const char *key, bool value)
{
	(void)must(cJSON_AddBoolToObject(object, key, value));
}

cJSON *json_add_array(cJSON *object, const char *key)
{
	return must(cJSON_AddArrayToObject(object, key));
}

cJSON *json_add_item(cJSON *array)
{
	cJSON *object = must(cJSON_CreateObject());

	if (!cJSON_AddItemToArray(array, object)) {
		(void)must(NULL);
	}
	return object;
}

void json_add_string(cJSON *array, const char *text)
{
	if (!cJSON_AddItemToArray(array, new_string(text))) {
		(void)must(NULL);
	}
}

/* cJSON indents by tabs, and has no tab anywhere else but behind a colon. */
static void print_indented(const char *text)
{
	bool is_start = true;

	for (; *text != '\0'; text++) {
		if (*text == '\t') {
			(void)fputs(is_start ? "  " : " ", stdout);
		} else {
			(void)putchar(*text);
			is_start = *text == '\n';
		}
	}
}

int json_print_line(FILE *out, cJSON *object)
{
	char *text = must(cJSON_PrintUnformatted(object));

	(void)fputs(text, out);
	cJSON_free(text);
	cJSON_Delete(object);
	return fputc('\n', out) == EOF ? EXIT_FAILED : EXIT_DONE;
}

int json_print(struct ctl *ctl, cJSON *object)
{
	char *text;

	if (ctl->arguments.output == OUTPUT_JSONL) {
		return json_print_line(stdout, object);
	}
	text = must(cJSON_Print(object));
	print_indented(text);
	cJSON_free(text);
	cJSON_Delete(object);
	return putchar('\n') == EOF ? EXIT_FAILED : EXIT_DONE;
}

cJSON *json_of_holder(cJSON *object, const struct distorch_holder *holder)
{
	json_add_number(object, "pid", holder->pid);
	json_add_text(object, "comm", holder->comm);
	json_add_number(object, "uid", holder->uid);
	json_add_number(object, "held_bytes", holder->held_bytes);
	return object;
}

static void add_holders(cJSON *object, const char *key,
			const struct distorch_holder *const *holders, size_t n_holders)
{
	cJSON *array = json_add_array(object, key);

	for (size_t i = 0; i < n_holders; i++) {
		(void)json_of_holder(json_add_item(array), holders[i]);
	}
}

static void add_places(cJSON *object, const char *key, const struct distorch_place *const *places,
		       size_t n_places)
{
	cJSON *array = json_add_array(object, key);

	for (size_t i = 0; i < n_places; i++) {
		cJSON *place = json_add_item(array);

		json_add_text(place, "device", places[i]->device);
		json_add_number(place, "bytes", places[i]->bytes);
		json_add_text(place, "backing", places[i]->backing);
		json_add_number(place, "tensor_bytes", places[i]->tensor_bytes);
	}
}

cJSON *json_of_model(cJSON *object, const struct distorch_model *model)
{
	cJSON *array;

	json_add_text(object, "id", model->id);
	json_add_text(object, "name", model->name);
	json_add_text(object, "path", model->path);
	json_add_text(object, "label", model->label);
	json_add_number(object, "uid", model->uid);
	json_add_number(object, "bytes", model->bytes);
	json_add_text(object, "state", model->state);
	json_add_number(object, "progress_bytes", model->progress_bytes);
	add_places(object, "where", model->where, model->n_where);
	add_places(object, "older", model->older, model->n_older);
	array = json_add_array(object, "stays");
	for (size_t i = 0; i < model->n_stays; i++) {
		json_add_string(array, model->stays[i]);
	}
	json_add_bool(object, "keep", model->keep);
	json_add_bool(object, "pinned", model->pinned);
	json_add_bool(object, "moving", model->moving);
	json_add_number(object, "ttl_left_ms", model->ttl_left_ms);
	(void)must(cJSON_AddNumberToObject(object, "priority", (double)model->priority));
	json_add_number(object, "leases", model->leases);
	json_add_number(object, "last_used_s", model->last_used_ms / 1000);
	json_add_number(object, "generation", model->generation);
	json_add_number(object, "tensors", model->tensors);
	json_add_number(object, "blocks", model->blocks);
	json_add_text(object, "format", model->format);
	json_add_text(object, "allocation", model->allocation);
	add_holders(object, "users", model->users, model->n_users);
	return object;
}

cJSON *json_of_outcome(cJSON *object, const struct distorch_outcome *outcome)
{
	json_add_text(object, "id", outcome->id);
	json_add_text(object, "name", outcome->name);
	json_add_text(object, "reason", outcome->reason);
	json_add_number(object, "bytes", outcome->bytes);
	add_holders(object, "holders", outcome->holders, outcome->n_holders);
	return object;
}

cJSON *json_of_record(cJSON *object, const struct distorch_record *record)
{
	json_add_number(object, "seq", record->seq);
	json_add_number(object, "age_ms", record->age_ms);
	json_add_number(object, "time_ms", record->time_ms);
	json_add_text(object, "type", record->type);
	json_add_text(object, "model", record->model);
	json_add_text(object, "name", record->name);
	json_add_text(object, "device", record->device);
	json_add_number(object, "bytes", record->bytes);
	json_add_number(object, "duration_ms", record->duration_ms);
	json_add_text(object, "why", record->why);
	json_add_text(object, "for_whom", record->for_whom);
	return object;
}

cJSON *json_of_device(cJSON *object, const struct distorch_device *device)
{
	cJSON *peers;

	json_add_text(object, "name", device->name);
	json_add_text(object, "uuid", device->uuid);
	json_add_text(object, "state", device->state);
	json_add_number(object, "total", device->total);
	json_add_number(object, "budget", device->budget);
	json_add_number(object, "used", device->used);
	json_add_number(object, "held", device->held);
	json_add_number(object, "reserved", device->reserved);
	json_add_number(object, "free", device->free);
	json_add_number(object, "models", device->models);
	json_add_bool(object, "draining", device->draining);
	json_add_text(object, "product", device->product);
	json_add_text(object, "pci", device->pci);
	json_add_number(object, "foreign", device->foreign);
	json_add_number(object, "dropping", device->dropping);
	json_add_number(object, "temperature", device->temperature);
	json_add_number(object, "last_xid", device->last_xid);
	json_add_text(object, "text", device->text);
	json_add_number(object, "link", device->link);
	json_add_number(object, "pid", device->pid);
	json_add_number(object, "room", device->room);
	json_add_number(object, "evictable", device->evictable);
	json_add_number(object, "later", device->later);
	json_add_number(object, "loading", device->loading);
	json_add_number(object, "granularity", device->granularity);
	peers = json_add_array(object, "peers");
	for (size_t i = 0; i < device->n_peers; i++) {
		cJSON *peer = json_add_item(peers);

		json_add_text(peer, "device", device->peers[i]->device);
		json_add_number(peer, "link", device->peers[i]->link);
	}
	return object;
}

int json_print_devices(struct ctl *ctl, const struct distorch_devices *devices)
{
	cJSON *object = json_new();
	cJSON *array = json_add_array(object, "devices");

	for (size_t i = 0; i < devices->n_devices; i++) {
		(void)json_of_device(json_add_item(array), devices->devices[i]);
	}
	if (devices->notice != NULL) {
		json_add_text(object, "notice", devices->notice);
	}
	return json_print(ctl, object);
}

static void add_error_numbers(cJSON *detail, const struct distorch_error *error)
{
	const struct {
		const char *key;
		uint64_t number;
	} numbers[] = {
		{"need", error->need},       {"budget", error->budget},
		{"free", error->free},       {"evictable", error->evictable},
		{"held", error->held},       {"foreign", error->foreign},
		{"in_use", error->in_use},   {"pinned", error->pinned},
		{"errno", error->sys_errno}, {"offset", error->offset},
		{"current", error->current}, {"min", error->min},
		{"max", error->max},
	};

	for (size_t i = 0; i < sizeof numbers / sizeof numbers[0]; i++) {
		if (numbers[i].number != DISTORCH_ABSENT) {
			json_add_number(detail, numbers[i].key, numbers[i].number);
		}
	}
}

cJSON *json_of_error(cJSON *object, const struct distorch_error *error)
{
	cJSON *detail;
	cJSON *array;

	json_add_text(object, "code", error->word);
	json_add_text(object, "message", error->message);
	json_add_text(object, "hint", error->hint);
	json_add_bool(object, "retryable", error->is_retryable);
	detail = must(cJSON_AddObjectToObject(object, "detail"));
	if (error->field != NULL) {
		json_add_text(detail, "field", error->field);
	}
	if (error->device != NULL) {
		json_add_text(detail, "device", error->device);
	}
	add_error_numbers(detail, error);
	if (error->n_holders > 0) {
		add_holders(detail, "holders", error->holders, error->n_holders);
	}
	if (error->n_uids > 0) {
		array = json_add_array(detail, "uids");
		for (size_t i = 0; i < error->n_uids; i++) {
			(void)cJSON_AddItemToArray(array, must(cJSON_CreateNumber(
								  (double)error->uids[i])));
		}
	}
	if (error->n_candidates > 0) {
		array = json_add_array(detail, "models");
		for (size_t i = 0; i < error->n_candidates; i++) {
			json_add_string(array, error->candidates[i]);
		}
	}
	return object;
}
