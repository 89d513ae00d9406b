/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One table describes every key; a value goes through it whatever layer it comes from. A
 * value is parsed where it is read, also when a later layer replaces it, so that no mistake
 * hides behind another file. See config.h; files are read by config_file.c.
 */
#include "daemon/config.h"

#include "base/cleanup.h"
#include "base/err.h"
#include "base/os/sys.h"
#include "base/text.h"

#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "daemon/config_file.h"
#include "daemon/config_saved.h"
#include "daemon/config_table.h"
#include "daemon/config_value.h"
#include "proto/gen/wire_code.h"

#define FOLDER         "/distorchd/distorchd.conf" /* and the drop-ins' folder with .d */
#define MAX_WHERE_SIZE 4200                        /* as long as the wire allows a source to be */
#define ENV_PREFIX     "DISTORCHD_"

struct builder {
	struct config *config;
	uint32_t layer;
	FILE *list; /* NULL; else the files are named there and not read */
};

/* ---- keys ---- */

static int fail_section(const char *where, const char *section, struct err *err)
{
	const char *names[CONFIG_MAX_ROWS] = {NULL};
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
	const char *names[CONFIG_MAX_ROWS] = {NULL};
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
		     const char *value, const struct config_origin *origin, struct err *err)
{
	const char *device;
	const struct config_row *row = find_row(section, key, &device);

	if (row == NULL) {
		return fail_key(origin->where, section, key, err);
	}
	return config_apply(builder->config, row, device, value, origin, err);
}

/* ---- layers ---- */

static int apply_defaults(struct builder *builder, struct err *err)
{
	const struct config_origin origin = {"default", "default", builder->layer++, false};

	for (uint32_t i = 0; i < config_n_rows; i++) {
		const struct config_row *row = &config_rows[i];
		int code =
			config_apply(builder->config, row, NULL, row->default_value, &origin, err);

		if (code < 0) {
			return code;
		}
	}
	return 0;
}

static int take_line(void *context, const struct config_line *line, struct err *err)
{
	struct builder *builder = context;
	char where[MAX_WHERE_SIZE];
	const struct config_origin origin = {where, where, builder->layer, false};
	size_t size = strnlen(line->path, sizeof where - 16);

	memcpy(where, line->path, size);
	(void)snprintf(&where[size], 16, ":%u", line->number);
	if (line->key == NULL) {
		return has_section(line->section) ? 0 : fail_section(where, line->section, err);
	}
	return apply_key(builder, line->section, line->key, line->value, &origin, err);
}

static int apply_file(struct builder *builder, const char *path, bool is_required, struct err *err)
{
	if (builder->list != NULL) {
		(void)fprintf(builder->list, "%s%s\n", path,
			      access(path, F_OK) == 0 ? "" : "  (not there)");
		return 0;
	}
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

static int apply_file_below(struct builder *builder, const char *base, const char *below,
			    struct err *err)
{
	AUTO_FREE char *path = config_join(base, below);

	if (path == NULL) {
		return err_set(err, WIRE_NO_MEMORY, "no memory for the configuration");
	}
	return apply_file(builder, path, false, err);
}

static int apply_system_files(struct builder *builder, const char *root, struct err *err)
{
	AUTO_FREE char *vendor = config_join(root, "/usr/lib" FOLDER ".d");
	AUTO_FREE char *runtime = config_join(root, "/run" FOLDER ".d");
	AUTO_FREE char *local = config_join(root, "/etc" FOLDER ".d");
	const char *const folders[] = {vendor, runtime, local};
	int code;

	if (vendor == NULL || runtime == NULL || local == NULL) {
		return err_set(err, WIRE_NO_MEMORY, "no memory for the configuration");
	}
	code = apply_file_below(builder, root, "/usr/lib" FOLDER, err);
	if (code == 0) {
		code = apply_file_below(builder, root, "/etc" FOLDER, err);
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
	const char *base = find_variable(environment, "XDG_CONFIG_HOME");
	const char *below = FOLDER;
	AUTO_FREE char *folder = NULL;
	const char *folders[3] = {NULL};
	int code;

	if (base == NULL || base[0] != '/') { /* a relative one counts as not set */
		base = find_variable(environment, "HOME");
		below = "/.config" FOLDER;
	}
	if (base == NULL || base[0] != '/') {
		return 0;
	}
	code = apply_file_below(builder, base, below, err);
	if (code < 0) {
		return code;
	}
	folder = config_join(base, below[1] == '.' ? "/.config" FOLDER ".d" : FOLDER ".d");
	if (folder == NULL) {
		return err_set(err, WIRE_NO_MEMORY, "no memory for the configuration");
	}
	folders[0] = folder;
	return apply_folders(builder, folders, err);
}

/* MEMORY_IDLE_EVICT of memory.idle-evict. */
static const char *format_variable(const struct config_row *row, char buffer[CONFIG_MAX_KEY_SIZE])
{
	(void)snprintf(buffer, CONFIG_MAX_KEY_SIZE, "%s_%s", row->section, row->key);
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
	char texts[CONFIG_MAX_ROWS][CONFIG_MAX_KEY_SIZE];
	const char *names[CONFIG_MAX_ROWS] = {NULL};
	const char *nearest;

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

		if (strncmp(name, texts[i], size + 1) == 0) {
			return err_set(err, WIRE_BAD_ARGUMENT,
				       "environment: " ENV_PREFIX "%.64s: [%s] has no such key",
				       name, config_rows[i].section);
		}
	}
	return 0;
}

/* As much of the first 'size' bytes as there is room for. */
static void copy_start(char buffer[CONFIG_MAX_KEY_SIZE], const char *text, size_t size)
{
	size = size < CONFIG_MAX_KEY_SIZE ? size : CONFIG_MAX_KEY_SIZE - 1;
	memcpy(buffer, text, size);
	buffer[size] = '\0';
}

static int apply_variable(struct builder *builder, const char *variable, struct err *err)
{
	const char *equals = strchr(variable, '=');
	char where[CONFIG_MAX_KEY_SIZE + 32];
	const struct config_origin origin = {where, "environment", builder->layer, false};
	char name[CONFIG_MAX_KEY_SIZE];
	char known[CONFIG_MAX_KEY_SIZE];

	if (equals == NULL || equals - variable >= CONFIG_MAX_KEY_SIZE) {
		return 0;
	}
	copy_start(name, variable, (size_t)(equals - variable));
	(void)snprintf(where, sizeof where, "environment: " ENV_PREFIX "%s", name);
	for (uint32_t i = 0; i < config_n_rows; i++) {
		if (strcmp(format_variable(&config_rows[i], known), name) == 0) {
			return config_apply(builder->config, &config_rows[i], NULL, &equals[1],
					    &origin, err);
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

/* "section.key=value" */
static int apply_text(struct builder *builder, const char *text, const struct config_origin *origin,
		      struct err *err)
{
	char section[CONFIG_MAX_KEY_SIZE];
	const char *equals = strchr(text, '=');
	char *dot = NULL;

	if (equals != NULL && equals - text < CONFIG_MAX_KEY_SIZE) {
		copy_start(section, text, (size_t)(equals - text));
		dot = strchr(section, '.');
	}
	if (dot == NULL) {
		return err_set(err, WIRE_BAD_ARGUMENT, "%s: section.key=value is wanted",
			       origin->where);
	}
	*dot = '\0';
	return apply_key(builder, section, &dot[1], &equals[1], origin, err);
}

/* A later one wins. */
static int apply_set(struct builder *builder, const char *set, struct err *err)
{
	char where[CONFIG_MAX_KEY_SIZE + 16];
	const struct config_origin origin = {where, "command line", ++builder->layer, false};
	char key[CONFIG_MAX_KEY_SIZE];

	copy_start(key, set, strcspn(set, "="));
	(void)snprintf(where, sizeof where, "--set %s", key);
	return apply_text(builder, set, &origin, err);
}

static int apply_saved(struct builder *builder, const char *source, const char *text, bool is_kept,
		       struct err *err)
{
	const struct config_origin origin = {source, source, ++builder->layer, is_kept};

	return apply_text(builder, text, &origin, err);
}

static int apply_all_saved(struct builder *builder, const struct config_saved *saved,
			   struct err *err)
{
	int code = 0;

	for (uint32_t i = 0; saved != NULL && code == 0 && i < saved->n_texts; i++) {
		code = apply_saved(builder,
				   saved->sources == NULL ? saved->source : saved->sources[i],
				   saved->texts[i], saved->is_kept, err);
		if (saved->is_of_any_version && code != -WIRE_NO_MEMORY) {
			code = 0;
		}
	}
	return code;
}

static const char *const *environment_of(const struct config_request *request)
{
	return request->environment != NULL ? request->environment : (const char *const *)environ;
}

static int apply_files(struct builder *builder, const struct config_request *request,
		       struct err *err)
{
	int code;

	if (request->path != NULL) {
		return apply_file(builder, request->path, true, err);
	}
	code = apply_system_files(builder, request->root == NULL ? "" : request->root, err);
	if (code == 0 && request->is_user) {
		code = apply_user_files(builder, environment_of(request), err);
	}
	return code;
}

static int apply_layers(struct builder *builder, const struct config_request *request,
			struct err *err)
{
	int code = apply_defaults(builder, err);

	if (code == 0) {
		code = apply_files(builder, request, err);
	}
	if (code == 0) {
		code = apply_all_saved(builder, request->saved, err);
	}
	if (code == 0) {
		code = apply_environment(builder, environment_of(request), err);
	}
	for (uint32_t i = 0; code == 0 && i < request->n_sets; i++) {
		code = apply_set(builder, request->sets[i], err);
	}
	return code;
}

int config_print_files(const struct config_request *request, FILE *file, struct err *err)
{
	struct builder builder = {.list = file};

	return apply_files(&builder, request, err);
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

		if (setting->row->kind == CONFIG_KIND_TEXT ||
		    setting->row->kind == CONFIG_KIND_LISTEN) {
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

int config_check_saved(const char *source, const char *text, bool is_kept, struct err *err)
{
	static const char *const nothing[] = {NULL};
	const struct config_saved saved = {.source = source,
					   .texts = &text,
					   .n_texts = 1,
					   .is_kept = is_kept};
	const struct config_request request = {.path = "/dev/null",
					       .environment = nothing,
					       .saved = &saved};
	struct config *config = NULL;
	int code = config_load(&request, &config, err);

	(void)config_free(config);
	return code;
}

/* ---- a snapshot with other saved values ---- */

/* Words may stand behind the source. */
static bool is_from(const struct config_setting *setting, const char *source)
{
	size_t size = strlen(source);

	return strncmp(setting->source, source, size) == 0 &&
	       (setting->source[size] == '\0' || setting->source[size] == ',' ||
		strncmp(&setting->source[size], CONFIG_LAST_GOOD, sizeof CONFIG_LAST_GOOD - 1) ==
			0);
}

/* By environment or command line: above what is saved. */
static bool is_above(const struct config_setting *setting)
{
	return is_from(setting, "environment") || is_from(setting, "command line");
}

/* They have the last word on this key. */
static bool is_decided(const struct config *config, const char *text)
{
	size_t size = strcspn(text, "=");

	for (uint32_t i = 0; i < config->n_settings; i++) {
		const struct config_setting *setting = &config->settings[i];
		bool is_cleared = setting->value[0] == '\0';

		if (strncmp(setting->key, text, size) == 0 && setting->key[size] == '\0' &&
		    is_above(setting) && (setting->row->kind != CONFIG_KIND_LIST || is_cleared)) {
			return true;
		}
	}
	return false;
}

static bool has_row(const struct config *config, const struct config_row *row)
{
	for (uint32_t i = 0; i < config->n_settings; i++) {
		if (config->settings[i].row == row) {
			return true;
		}
	}
	return false;
}

/* A list that has lost all its values is the empty one. */
static int restore_lists(struct config *config, struct err *err)
{
	const struct config_origin origin = {"default", "default", 0, false};
	int code = 0;

	for (uint32_t i = 0; code == 0 && i < config_n_rows; i++) {
		const struct config_row *row = &config_rows[i];

		if (row->kind == CONFIG_KIND_LIST && !has_row(config, row)) {
			code = config_apply(config, row, NULL, row->default_value, &origin, err);
		}
	}
	return code;
}

/* Without what was saved of lists and of single devices, which is set anew; with room for the
 * layers of what is saved now below those that rank above. */
static int copy_settings(struct builder *builder, const struct config *from,
			 const struct config_saved *saved)
{
	struct config *config = builder->config;

	*config = *from;
	config->settings = sys_calloc((size_t)from->n_settings + 1, sizeof *config->settings);
	config->warm_models = NULL;
	config->n_settings = config->n_warm_models = 0;
	if (config->settings == NULL) {
		return -WIRE_NO_MEMORY;
	}
	for (uint32_t i = 0; i < from->n_settings; i++) {
		const struct config_setting *old = &from->settings[i];
		struct config_setting *copy = &config->settings[config->n_settings];

		if ((old->row->kind == CONFIG_KIND_LIST || old->device != NULL) &&
		    is_from(old, saved->source)) {
			continue;
		}
		if (!config_setting_copy(old, copy)) {
			return -WIRE_NO_MEMORY;
		}
		config->n_settings++;
		if (is_above(old)) {
			copy->layer += saved->n_texts;
		} else if (old->layer > builder->layer) {
			builder->layer = old->layer;
		}
	}
	return 0;
}

int config_resave(const struct config *from, const struct config_saved *saved, struct config **ret,
		  struct err *err)
{
	struct builder builder = {.config = sys_calloc(1, sizeof *builder.config)};
	int code = builder.config == NULL ? -WIRE_NO_MEMORY : copy_settings(&builder, from, saved);

	if (code < 0) {
		(void)config_free(builder.config);
		return err_set(err, WIRE_NO_MEMORY, "no memory for the configuration");
	}
	code = restore_lists(builder.config, err);
	for (uint32_t i = 0; code == 0 && i < saved->n_texts; i++) {
		if (!is_decided(from, saved->texts[i])) {
			code = apply_saved(&builder, saved->source, saved->texts[i], saved->is_kept,
					   err);
		}
	}
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
			config_setting_fini(&config->settings[i]);
		}
		free(config->settings);
		free((void *)(uintptr_t)config->warm_models);
		free(config);
	}
	return NULL;
}

bool config_next(const struct config *config, uint32_t *cursor, struct config_item *ret)
{
	const struct config_setting *setting = &config->settings[*cursor];

	if (*cursor == config->n_settings) {
		return false;
	}
	*ret = (struct config_item){.key = setting->key,
				    .value = setting->value,
				    .source = setting->source,
				    .is_idle = setting->row->is_later &&
					       strcmp(setting->source, "default") != 0};
	(*cursor)++;
	return true;
}
