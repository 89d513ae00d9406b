/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One table describes every key; a value goes through it whatever layer it comes from. A
 * value is parsed where it is read, also when a later layer replaces it, so that no mistake
 * hides behind another file. See config.h; files are read by config_file.c.
 */
#include "daemon/config.h"

#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/err.h"
#include "base/os/sys.h"
#include "base/text.h"
#include "base/units.h"
#include "daemon/config_file.h"
#include "daemon/config_table.h"
#include "proto/gen/wire_code.h"

#define MAX_KEY_SIZE  128
#define MAX_PATH_SIZE 4096
#define ENV_PREFIX    "DISTORCHD_"

struct config_setting {
	const struct config_row *row;
	char *device; /* of an override; else NULL */
	char *value;
	char *source;
	struct config_size size; /* of an override */
	uint32_t layer;		 /* which file, variable or argument set it */
};

/* Where a value comes from. */
struct origin {
	const char *where;  /* for errors and as source: "FILE:LINE" */
	const char *source; /* as config_next shows it */
	uint32_t layer;
};

struct builder {
	struct config *config;
	uint32_t layer;
};

/* ---- values ---- */

static int parse_size(const struct config_row *row, const char *text, struct config_size *ret,
		      struct err *err)
{
	struct config_size size = {.kind = CONFIG_SIZE_AUTO};
	int code = 0;

	if (strcmp(text, "auto") == 0 && row->has_auto) {
		*ret = size;
		return 0;
	}
	if (row->kind == CONFIG_KIND_SIZE && strchr(text, '%') != NULL) {
		size.kind = CONFIG_SIZE_PERCENT;
		code = units_parse_percent(text, &size.milli_pct, err);
	} else {
		size.kind = CONFIG_SIZE_BYTES;
		code = units_parse_size(text, &size.bytes, err);
	}
	if (code < 0) {
		return code;
	}
	if (size.kind == CONFIG_SIZE_PERCENT ? row->min > 0 && size.milli_pct == 0
					     : size.bytes < row->min || size.bytes > row->max) {
		return err_set(err, WIRE_BAD_ARGUMENT, "%.64s is out of range (%s)", text,
			       row->range);
	}
	*ret = size;
	return 0;
}

static int parse_count(const struct config_row *row, const char *text, uint32_t *ret,
		       struct err *err)
{
	uint64_t count = 0;
	const char *at = text;

	if (strcmp(text, "auto") == 0 && row->has_auto) {
		*ret = 0;
		return 0;
	}
	/* The largest count has seven digits. */
	for (; *at >= '0' && *at <= '9' && at - text < 8; at++) {
		count = count * 10 + (uint64_t)(*at - '0');
	}
	if (at == text || *at != '\0' || count < row->min || count > row->max) {
		return err_set(err, WIRE_BAD_ARGUMENT, "\"%.64s\" is not a number %s", text,
			       row->range);
	}
	*ret = (uint32_t)count;
	return 0;
}

static int parse_choice(const struct config_row *row, const char *text, int *ret, struct err *err)
{
	const struct config_choice *choice = row->choices;

	while (choice->word != NULL && strcmp(choice->word, text) != 0) {
		choice++;
	}
	if (choice->word == NULL) {
		return err_set(err, WIRE_BAD_ARGUMENT, "\"%.64s\" is not one of %s", text,
			       row->range);
	}
	if (choice->value == CONFIG_CHOICE_LATER) {
		return err_set(err, WIRE_UNSUPPORTED, "\"%s\" comes with a later version", text);
	}
	*ret = choice->value;
	return 0;
}

/* Into the field of the snapshot. Texts are the setting's and are pointed to later. */
static int parse_value(const struct config_row *row, const char *text, struct config *config,
		       struct err *err)
{
	void *field = (char *)config + row->offset;
	struct config_size size;
	int choice = 0;
	int code;

	switch (row->kind) {
	case CONFIG_KIND_SIZE:
		return parse_size(row, text, field, err);
	case CONFIG_KIND_BYTES:
		code = parse_size(row, text, &size, err);
		if (code == 0) {
			*(uint64_t *)field = size.bytes;
		}
		return code;
	case CONFIG_KIND_DURATION:
		return units_parse_duration(text, field, err);
	case CONFIG_KIND_COUNT:
		return parse_count(row, text, field, err);
	case CONFIG_KIND_FLAG:
		code = parse_choice(row, text, &choice, err);
		if (code == 0) {
			*(bool *)field = choice != 0;
		}
		return code;
	case CONFIG_KIND_CHOICE:
		code = parse_choice(row, text, &choice, err);
		if (code == 0) {
			*(unsigned *)field = (unsigned)choice;
		}
		return code;
	case CONFIG_KIND_TEXT:
	case CONFIG_KIND_LIST:
	default:
		return 0;
	}
}

/* ---- settings ---- */

static void setting_fini(struct config_setting *setting)
{
	free(setting->device);
	free(setting->value);
	free(setting->source);
}

static int fill_setting(struct config_setting *setting, const char *device, const char *value,
			const struct origin *origin)
{
	struct config_setting filled = {.row = setting->row, .layer = origin->layer};

	filled.device = device == NULL ? NULL : sys_strdup(device);
	filled.value = sys_strdup(value);
	filled.source = sys_strdup(origin->source);
	if (filled.value == NULL || filled.source == NULL || (device && filled.device == NULL)) {
		setting_fini(&filled);
		return -WIRE_NO_MEMORY;
	}
	setting_fini(setting);
	*setting = filled;
	return 0;
}

static void remove_settings(struct config *config, const struct config_row *row, bool only_empty)
{
	uint32_t kept = 0;

	for (uint32_t i = 0; i < config->n_settings; i++) {
		struct config_setting *setting = &config->settings[i];

		if (setting->row == row && (!only_empty || setting->value[0] == '\0')) {
			setting_fini(setting);
		} else {
			config->settings[kept++] = *setting;
		}
	}
	config->n_settings = kept;
}

static struct config_setting *find_setting(const struct config *config,
					   const struct config_row *row, const char *device)
{
	for (uint32_t i = 0; i < config->n_settings; i++) {
		struct config_setting *setting = &config->settings[i];

		if (setting->row == row && (device == NULL) == (setting->device == NULL) &&
		    (device == NULL || strcmp(setting->device, device) == 0)) {
			return setting;
		}
	}
	return NULL;
}

/* A new one, empty, behind those of its row and of the rows before; NULL: no memory. */
static struct config_setting *insert_setting(struct config *config, const struct config_row *row)
{
	struct config_setting *grown =
		sys_realloc(config->settings, (config->n_settings + 1) * sizeof *grown);
	uint32_t at = config->n_settings;

	if (grown == NULL) {
		return NULL;
	}
	config->settings = grown;
	while (at > 0 && grown[at - 1].row > row) {
		grown[at] = grown[at - 1];
		at--;
	}
	grown[at] = (struct config_setting){.row = row};
	config->n_settings++;
	return &grown[at];
}

/* An insertion that could not be filled goes again. */
static int store_value(struct config *config, const struct config_row *row, const char *device,
		       const char *value, const struct origin *origin)
{
	struct config_setting *setting = NULL;
	bool is_new;
	int code;

	if (row->kind == CONFIG_KIND_LIST) {
		remove_settings(config, row, value[0] != '\0');
	} else {
		setting = find_setting(config, row, device);
	}
	is_new = setting == NULL;
	setting = is_new ? insert_setting(config, row) : setting;
	if (setting == NULL) {
		return -WIRE_NO_MEMORY;
	}
	code = fill_setting(setting, device, value, origin);
	if (code < 0 && is_new) {
		size_t behind = (size_t)(&config->settings[config->n_settings] - setting) - 1;

		memmove(setting, &setting[1], behind * sizeof *setting);
		config->n_settings--;
	}
	return code;
}

/* Parse and store one value of a key that exists. */
static int apply(struct builder *builder, const struct config_row *row, const char *device,
		 const char *value, const struct origin *origin, struct err *err)
{
	struct config *config = builder->config;
	const struct config_setting *old = find_setting(config, row, device);
	struct config_size size = {0};
	int code;

	if (row->kind != CONFIG_KIND_LIST && old != NULL && old->layer == origin->layer) {
		return err_set(err, WIRE_BAD_ARGUMENT, "%s: %s.%s was set before, at %s",
			       origin->where, row->section, row->key, old->source);
	}
	code = device != NULL ? parse_size(row, value, &size, err)
			      : parse_value(row, value, config, err);
	if (code < 0) {
		(void)err_wrap(err, "%s: %s.%s", origin->where, row->section, row->key);
		return code;
	}
	if (store_value(config, row, device, value, origin) < 0) {
		return err_set(err, WIRE_NO_MEMORY, "no memory for the configuration");
	}
	if (device != NULL) {
		find_setting(config, row, device)->size = size;
	}
	return 0;
}

/* ---- keys ---- */

static int fail_section(const char *where, const char *section, struct err *err)
{
	const char *names[CONFIG_MAX_ROWS];
	const char *nearest;

	for (uint32_t i = 0; i < config_n_rows; i++) {
		names[i] = config_rows[i].section;
	}
	nearest = text_nearest(section, names, config_n_rows);
	if (nearest == NULL) {
		return err_set(err, WIRE_BAD_ARGUMENT, "%s: there is no section [%.64s]", where,
			       section);
	}
	return err_set(err, WIRE_BAD_ARGUMENT,
		       "%s: there is no section [%.64s]; did you mean [%s]?", where, section,
		       nearest);
}

static bool has_section(const char *section)
{
	for (uint32_t i = 0; i < config_n_rows; i++) {
		if (strcmp(config_rows[i].section, section) == 0) {
			return true;
		}
	}
	return false;
}

/* The nearest key of the section, else the same key of another one. */
static int fail_key(const char *where, const char *section, const char *key, struct err *err)
{
	const char *names[CONFIG_MAX_ROWS];
	const struct config_row *elsewhere = NULL;
	const char *nearest;
	uint32_t n_names = 0;

	if (!has_section(section)) {
		return fail_section(where, section, err);
	}
	for (uint32_t i = 0; i < config_n_rows; i++) {
		if (strcmp(config_rows[i].section, section) == 0) {
			names[n_names++] = config_rows[i].key;
		} else if (strcmp(config_rows[i].key, key) == 0) {
			elsewhere = &config_rows[i];
		}
	}
	nearest = text_nearest(key, names, n_names);
	if (nearest != NULL) {
		return err_set(err, WIRE_BAD_ARGUMENT,
			       "%s: [%s] has no key \"%.64s\"; did you mean \"%s\"?", where,
			       section, key, nearest);
	}
	if (elsewhere != NULL) {
		return err_set(err, WIRE_BAD_ARGUMENT,
			       "%s: [%s] has no key \"%.64s\"; it belongs to [%s]", where, section,
			       key, elsewhere->section);
	}
	return err_set(err, WIRE_BAD_ARGUMENT, "%s: [%s] has no key \"%.64s\"", where, section,
		       key);
}

/* The row of a key, and the device of "budget.GPU-1234"; NULL when there is none. */
static const struct config_row *find_row(const char *section, const char *key,
					 const char **ret_device)
{
	for (uint32_t i = 0; i < config_n_rows; i++) {
		const struct config_row *row = &config_rows[i];
		size_t size = strlen(row->key);

		if (strcmp(row->section, section) != 0 || strncmp(row->key, key, size) != 0) {
			continue;
		}
		if (key[size] == '\0') {
			*ret_device = NULL;
			return row;
		}
		if (row->has_overrides && key[size] == '.' && key[size + 1] != '\0') {
			*ret_device = &key[size + 1];
			return row;
		}
	}
	return NULL;
}

static int apply_key(struct builder *builder, const char *section, const char *key,
		     const char *value, const struct origin *origin, struct err *err)
{
	const char *device;
	const struct config_row *row = find_row(section, key, &device);

	if (row == NULL) {
		return fail_key(origin->where, section, key, err);
	}
	return apply(builder, row, device, value, origin, err);
}

/* ---- layers ---- */

static int apply_defaults(struct builder *builder, struct err *err)
{
	const struct origin origin = {"default", "default", builder->layer++};

	for (uint32_t i = 0; i < config_n_rows; i++) {
		const struct config_row *row = &config_rows[i];
		int code = apply(builder, row, NULL, row->default_value, &origin, err);

		if (code < 0) {
			return code;
		}
	}
	return 0;
}

static int take_line(void *context, const struct config_line *line, struct err *err)
{
	struct builder *builder = context;
	char where[MAX_PATH_SIZE + 16];
	const struct origin origin = {where, where, builder->layer};

	(void)snprintf(where, sizeof where, "%.4096s:%u", line->path, line->number);
	if (line->key == NULL) {
		return has_section(line->section) ? 0 : fail_section(where, line->section, err);
	}
	return apply_key(builder, line->section, line->key, line->value, &origin, err);
}

static int apply_file(struct builder *builder, const char *path, bool is_required,
		      struct err *err)
{
	builder->layer++;
	return config_file_read(path, is_required, take_line, builder, err);
}

static int apply_folders(struct builder *builder, const char *const folders[3], struct err *err)
{
	char **paths = NULL;
	int code = config_file_list(folders, &paths, err);

	for (size_t i = 0; code == 0 && paths != NULL && paths[i] != NULL; i++) {
		/* One that vanished since is as if it had never been there. */
		code = apply_file(builder, paths[i], false, err);
	}
	config_file_free_paths(paths);
	return code;
}

static int apply_system_files(struct builder *builder, const char *root, struct err *err)
{
	static const char *const places[] = {"/usr/lib", "/run", "/etc"};
	char files[3][MAX_PATH_SIZE];
	char texts[3][MAX_PATH_SIZE];
	const char *const folders[] = {texts[0], texts[1], texts[2]};
	int code;

	for (int i = 0; i < 3; i++) {
		if (snprintf(files[i], sizeof files[i], "%s%s/distorchd/distorchd.conf", root,
			     places[i]) >= MAX_PATH_SIZE ||
		    snprintf(texts[i], sizeof texts[i], "%s%s/distorchd/distorchd.conf.d", root,
			     places[i]) >= MAX_PATH_SIZE) {
			return err_set(err, WIRE_BAD_ARGUMENT, "the root folder's name is too long");
		}
	}
	code = apply_file(builder, files[0], false, err);
	if (code == 0) {
		code = apply_file(builder, files[2], false, err);
	}
	return code < 0 ? code : apply_folders(builder, folders, err);
}

static const char *find_variable(const char *const *environment, const char *name)
{
	size_t size = strlen(name);

	for (; *environment != NULL; environment++) {
		if (strncmp(*environment, name, size) == 0 && (*environment)[size] == '=') {
			return &(*environment)[size + 1];
		}
	}
	return NULL;
}

static int apply_user_files(struct builder *builder, const char *const *environment,
			    struct err *err)
{
	const char *home = find_variable(environment, "HOME");
	const char *base = find_variable(environment, "XDG_CONFIG_HOME");
	const char *below = "";
	char file[MAX_PATH_SIZE];
	char folder[MAX_PATH_SIZE];
	const char *const folders[] = {folder, NULL, NULL};
	int code;

	if (base == NULL || base[0] != '/') { /* a relative one counts as not set */
		base = home;
		below = "/.config";
	}
	if (base == NULL || base[0] != '/') {
		return 0;
	}
	if (snprintf(file, sizeof file, "%s%s/distorchd/distorchd.conf", base, below) >=
		    MAX_PATH_SIZE ||
	    snprintf(folder, sizeof folder, "%s%s/distorchd/distorchd.conf.d", base, below) >=
		    MAX_PATH_SIZE) {
		return err_set(err, WIRE_BAD_ARGUMENT, "XDG_CONFIG_HOME or HOME is too long");
	}
	code = apply_file(builder, file, false, err);
	return code < 0 ? code : apply_folders(builder, folders, err);
}

/* MEMORY_IDLE_EVICT of memory.idle-evict. */
static const char *format_variable(const struct config_row *row, char buffer[MAX_KEY_SIZE])
{
	(void)snprintf(buffer, MAX_KEY_SIZE, "%s_%s", row->section, row->key);
	for (char *at = buffer; *at != '\0'; at++) {
		if (*at >= 'a' && *at <= 'z') {
			*at = (char)(*at - 'a' + 'A');
		} else if (*at == '-') {
			*at = '_';
		}
	}
	return buffer;
}

/*
 * Other variables may begin with DISTORCHD_ too; one that names a section, or nearly names a
 * key, is a mistake.
 */
static int judge_variable(const char *name, struct err *err)
{
	static char texts[CONFIG_MAX_ROWS][MAX_KEY_SIZE];
	const char *names[CONFIG_MAX_ROWS];
	const char *nearest;
	char section[MAX_KEY_SIZE];

	for (uint32_t i = 0; i < config_n_rows; i++) {
		names[i] = format_variable(&config_rows[i], texts[i]);
	}
	nearest = text_nearest(name, names, config_n_rows);
	if (nearest != NULL) {
		return err_set(err, WIRE_BAD_ARGUMENT,
			       "environment: there is no " ENV_PREFIX
			       "%.64s; did you mean " ENV_PREFIX "%s?",
			       name, nearest);
	}
	for (uint32_t i = 0; i < config_n_rows; i++) {
		size_t size = strlen(config_rows[i].section);

		(void)snprintf(section, sizeof section, "%.*s", (int)size + 1, texts[i]);
		if (strncmp(name, section, size + 1) == 0) {
			return err_set(err, WIRE_BAD_ARGUMENT,
				       "environment: " ENV_PREFIX "%.64s: [%s] has no such key",
				       name, config_rows[i].section);
		}
	}
	return 0;
}

static int apply_variable(struct builder *builder, const char *variable, struct err *err)
{
	const char *equals = strchr(variable, '=');
	char where[MAX_KEY_SIZE + 32];
	const struct origin origin = {where, "environment", builder->layer};
	char name[MAX_KEY_SIZE];
	char known[MAX_KEY_SIZE];

	if (equals == NULL || equals - variable >= MAX_KEY_SIZE) {
		return 0;
	}
	(void)snprintf(name, sizeof name, "%.*s", (int)(equals - variable), variable);
	(void)snprintf(where, sizeof where, "environment: " ENV_PREFIX "%s", name);
	for (uint32_t i = 0; i < config_n_rows; i++) {
		if (strcmp(format_variable(&config_rows[i], known), name) == 0) {
			return apply(builder, &config_rows[i], NULL, &equals[1], &origin, err);
		}
	}
	return judge_variable(name, err);
}

static int apply_environment(struct builder *builder, const char *const *environment,
			     struct err *err)
{
	size_t size = strlen(ENV_PREFIX);

	builder->layer++;
	for (; *environment != NULL; environment++) {
		int code = 0;

		if (strncmp(*environment, ENV_PREFIX, size) == 0) {
			code = apply_variable(builder, *environment + size, err);
		}
		if (code < 0) {
			return code;
		}
	}
	return 0;
}

/* "section.key=value"; a later one wins. */
static int apply_set(struct builder *builder, const char *set, struct err *err)
{
	char where[MAX_KEY_SIZE + 16];
	const struct origin origin = {where, "command line", ++builder->layer};
	char section[MAX_KEY_SIZE];
	const char *equals = strchr(set, '=');
	char *dot;

	(void)snprintf(where, sizeof where, "--set %.*s",
		       equals == NULL ? MAX_KEY_SIZE : (int)(equals - set), set);
	if (equals == NULL || equals - set >= MAX_KEY_SIZE) {
		return err_set(err, WIRE_BAD_ARGUMENT, "%s: section.key=value is wanted", where);
	}
	(void)snprintf(section, sizeof section, "%.*s", (int)(equals - set), set);
	dot = strchr(section, '.');
	if (dot == NULL) {
		return err_set(err, WIRE_BAD_ARGUMENT, "%s: section.key=value is wanted", where);
	}
	*dot = '\0';
	return apply_key(builder, section, &dot[1], &equals[1], &origin, err);
}

static int apply_layers(struct builder *builder, const struct config_request *request,
			struct err *err)
{
	const char *const *environment = request->environment;
	const char *root = request->root == NULL ? "" : request->root;
	int code = apply_defaults(builder, err);

	if (environment == NULL) {
		environment = (const char *const *)environ;
	}
	if (code == 0 && request->path != NULL) {
		code = apply_file(builder, request->path, true, err);
	} else if (code == 0) {
		code = apply_system_files(builder, root, err);
		if (code == 0 && request->is_user) {
			code = apply_user_files(builder, environment, err);
		}
	}
	if (code == 0) {
		code = apply_environment(builder, environment, err);
	}
	for (uint32_t i = 0; code == 0 && i < request->n_sets; i++) {
		code = apply_set(builder, request->sets[i], err);
	}
	return code;
}

/* ---- the snapshot ---- */

/* Texts and lists are the last settings' own. */
static int point_to_texts(struct config *config, struct err *err)
{
	const char **models = sys_calloc(config->n_settings + 1, sizeof *models);

	if (models == NULL) {
		return err_set(err, WIRE_NO_MEMORY, "no memory for the configuration");
	}
	config->warm_models = models;
	for (uint32_t i = 0; i < config->n_settings; i++) {
		const struct config_setting *setting = &config->settings[i];

		if (setting->row->kind == CONFIG_KIND_TEXT) {
			*(const char **)(void *)((char *)config + setting->row->offset) =
				setting->value;
		} else if (setting->row->kind == CONFIG_KIND_LIST && setting->value[0] != '\0') {
			models[config->n_warm_models++] = setting->value;
		}
	}
	return 0;
}

int config_load(const struct config_request *request, struct config **ret, struct err *err)
{
	struct builder builder = {.config = sys_calloc(1, sizeof *builder.config)};
	int code;

	if (builder.config == NULL) {
		return err_set(err, WIRE_NO_MEMORY, "no memory for the configuration");
	}
	code = apply_layers(&builder, request, err);
	if (code == 0) {
		code = point_to_texts(builder.config, err);
	}
	if (code < 0) {
		(void)config_free(builder.config);
		return code;
	}
	*ret = builder.config;
	return 0;
}

struct config *config_free(struct config *config)
{
	if (config != NULL) {
		for (uint32_t i = 0; i < config->n_settings; i++) {
			setting_fini(&config->settings[i]);
		}
		free(config->settings);
		free((void *)(uintptr_t)config->warm_models);
		free(config);
	}
	return NULL;
}
