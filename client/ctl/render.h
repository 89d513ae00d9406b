/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What people see: tables by libsmartcols, JSON by cJSON, sizes and times in words, and text
 * from strangers made harmless. JSON objects carry "schema": 1.
 */
#ifndef CTL_RENDER_H
#define CTL_RENDER_H

#include "ctl.h"

#include <cjson/cJSON.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

/* What status and doctor say of a daemon that goes on without. */
#define CONFIG_FAULT_TEXT "the configuration is broken, and an earlier one is used"
#define CONFIG_FAULT_FIX  "mend it (distorchctl config check), then: distorchctl reload"
#define STATE_FAULT_TEXT  "what is said to the daemon is not saved"
#define STATE_FAULT_FIX \
	"mend that folder (it is tried again by itself), or start it with another: --state-dir DIR"

struct column {
	const char *title;
	bool is_right; /* numbers */
	bool is_wide;  /* only with -o wide */
	bool may_cut;  /* long texts: the first that are cut where the terminal ends */
	bool is_extra; /* left out, the last one first, where that is not enough */
};

/* Rows of text. Freed by sheet_print. */
struct sheet {
	const struct column *columns;
	size_t n_columns;
	char ***rows; /* owner: sheet */
	size_t n_rows;
};

void sheet_init(struct sheet *sheet, const struct column *columns, size_t n_columns);
/* As many texts as there are columns; each is copied and made harmless. */
void sheet_add(struct sheet *sheet, const char *const *cells);
/* As a table, no wider than the terminal (-o wide: as wide as it is), or as CSV. Frees the sheet. Returns an exit status. */
int sheet_print(struct ctl *ctl, struct sheet *sheet);

/* A JSON object that begins with "schema": 1. Never NULL: without memory the program ends. */
cJSON *json_new(void);
/* Texts of any bytes: what is not UTF-8 is made so. */
void json_add_text(cJSON *object, const char *key, const char *text);  /* null when absent */
void json_add_number(cJSON *object, const char *key, uint64_t number); /* null when absent */
void json_add_bool(cJSON *object, const char *key, bool value);
cJSON *json_add_array(cJSON *object, const char *key);
cJSON *json_add_item(cJSON *array); /* a new object in it */
void json_add_string(cJSON *array, const char *text);
/* Print on one line (jsonl) or indented, free it, and return 0. */
int json_print(struct ctl *ctl, cJSON *object);
int json_print_line(FILE *out, cJSON *object);

cJSON *json_of_model(cJSON *object, const struct distorch_model *model);
cJSON *json_of_outcome(cJSON *object, const struct distorch_outcome *outcome);
cJSON *json_of_record(cJSON *object, const struct distorch_record *record);
cJSON *json_of_device(cJSON *object, const struct distorch_device *device);
int json_print_devices(struct ctl *ctl, const struct distorch_devices *devices);
cJSON *json_of_holder(cJSON *object, const struct distorch_holder *holder);
cJSON *json_of_error(cJSON *object, const struct distorch_error *error);

bool is_json(const struct ctl *ctl);

/* Each returns its buffer. */
const char *size_text(const struct ctl *ctl, uint64_t bytes, char buffer[24]);
const char *ms_text(uint64_t ms, char buffer[32]);  /* "3.1s" */
const char *ago_text(uint64_t ms, char buffer[32]); /* "12m ago", "now" */
/* For cells of a table: the words above, and plain bytes and seconds in CSV. */
const char *size_cell(const struct ctl *ctl, uint64_t bytes, char buffer[24]);
const char *ago_cell(const struct ctl *ctl, uint64_t ms, char buffer[32]);
/* "12:04:00", with the date in front where asked for */
const char *time_text(uint64_t time_ms, bool has_date, char buffer[40]);
const char *safe_text(const char *text, char *buffer, size_t buffer_size);
const char *device_text(const char *device); /* "ram" for cpu: people's word */
/* For cells of a table: people's word, and in CSV the name that JSON has. */
const char *device_cell(const struct ctl *ctl, const char *device);
/* "cuda:0 (RTX 4090, PCI 01:00)", as far as it is known. Not yet harmless. */
const char *device_label(const struct distorch_device *device, char *buffer, size_t buffer_size);

/* Of its images, which are in RAM: cards and the page cache have pages of their own. */
uint64_t model_image_bytes(const struct distorch_model *model);
/* "ram", "cuda:0 62% + ram 38%" */
const char *where_text(const struct ctl *ctl, const struct distorch_model *model, char *buffer,
		       size_t buffer_size);
/* The same, or how far it is loaded, or its state where it is nowhere. */
const char *where_now_text(const struct ctl *ctl, const struct distorch_model *model, char *buffer,
			   size_t buffer_size);
/* "50.0M stay on sim:0 until python3 (PID 812) lets go": of generations before; "": nothing. */
const char *older_text(const struct ctl *ctl, const struct distorch_model *model, char *buffer,
		       size_t buffer_size);
/* "in use · pinned · kept · 48m · until needed" */
const char *stays_text(const struct distorch_model *model, char *buffer, size_t buffer_size);
/* "ComfyUI/812" */
const char *users_text(const struct distorch_model *model, char *buffer, size_t buffer_size);

/* A line of the form ████░░░░, 'width' cells. Returns 'buffer'. */
const char *bar_text(uint64_t part, uint64_t whole, unsigned width, char *buffer,
		     size_t buffer_size);

const char *path_base(const char *path); /* behind the last '/' */

unsigned terminal_columns(int fd); /* 80 where it does not say */
unsigned said_columns(void);       /* in COLUMNS; 0: nothing */
unsigned terminal_width(void);     /* of the output, as COLUMNS or the terminal says */

/* How many columns it takes, and it cut to so many, the last of them "…". Returns 'buffer'. */
size_t text_columns(const char *text);
const char *text_fit(const char *text, size_t room, char *buffer, size_t buffer_size);

/* Write behind what is in the buffer, cut where it ends; '*used' grows. */
void text_append(char *buffer, size_t buffer_size, size_t *used, const char *format, ...)
	__attribute__((format(printf, 4, 5)));

#endif
