/* SPDX-License-Identifier: Apache-2.0 */
/* Texts become the snapshot's fields, and settings that remember them. See config_value.h. */
#include "daemon/config_value.h"

#include "base/checked.h"
#include "base/err.h"
#include "base/os/sys.h"
#include "base/units.h"

#include <arpa/inet.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "daemon/config.h"
#include "daemon/config_file.h"
#include "daemon/config_table.h"
#include "proto/gen/wire_code.h"

#define MAX_DEVICE_SIZE 48U /* a GPU's UUID has 40 */
#define MAX_SOCKET_PATH 106

/* ---- values ---- */

static int parse_size(const struct config_row *row, const char *text, bool may_be_bare,
		      struct config_size *ret, struct err *err)
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
		code = may_be_bare ? units_parse_size(text, &size.bytes, err)
				   : units_parse_size_with_unit(text, &size.bytes, err);
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

static bool parse_port(const char *text, uint16_t *ret)
{
	unsigned port = 0;

	if (strlen(text) > 5 || strspn(text, "0123456789") != strlen(text)) {
		return false;
	}
	for (; *text != '\0'; text++) {
		port = port * 10 + (unsigned)(*text - '0');
	}
	*ret = (uint16_t)port;
	return port > 0 && port <= UINT16_MAX;
}

/* "127.0.0.1:9477", "[::1]:9477"; false: it is none. */
static bool parse_address(const char *text, struct config_listen *ret)
{
	const char *colon = strrchr(text, ':');
	size_t size = colon == NULL ? 0 : (size_t)(colon - text);
	bool is_v6 = size > 2 && text[0] == '[' && text[size - 1] == ']';
	char host[64];

	if (size == 0 || size >= sizeof host || !parse_port(&colon[1], &ret->port)) {
		return false;
	}
	(void)snprintf(host, sizeof host, "%.*s", (int)(is_v6 ? size - 2 : size),
		       is_v6 ? &text[1] : text);
	ret->kind = is_v6 ? CONFIG_LISTEN_TCP6 : CONFIG_LISTEN_TCP4;
	return inet_pton(is_v6 ? AF_INET6 : AF_INET,
			 strcmp(host, "localhost") == 0 ? "127.0.0.1" : host, ret->address) == 1;
}

int config_parse_listen(const char *text, struct config_listen *ret, struct err *err)
{
	static const uint8_t loopback[16] = {[15] = 1};
	bool is_off = strcmp(text, "off") == 0 || text[0] == '\0';

	*ret = (struct config_listen){.kind = is_off           ? CONFIG_LISTEN_OFF
					      : text[0] == '/' ? CONFIG_LISTEN_PATH
							       : CONFIG_LISTEN_AUTO};
	if (is_off || strcmp(text, "auto") == 0) {
		return 0;
	}
	if (ret->kind == CONFIG_LISTEN_PATH) {
		return strlen(text) <= MAX_SOCKET_PATH
			       ? 0
			       : err_set(err, WIRE_BAD_ARGUMENT,
					 "the path of a socket has at most %d bytes, this one %zu",
					 MAX_SOCKET_PATH, strlen(text));
	}
	if (!parse_address(text, ret)) {
		return err_set(err, WIRE_BAD_ARGUMENT,
			       "\"%.64s\" is none of auto, off, a path from /, an address like "
			       "127.0.0.1:9477 or [::1]:9477",
			       text);
	}
	if (ret->kind == CONFIG_LISTEN_TCP4 ? ret->address[0] != 127
					    : memcmp(ret->address, loopback, 16) != 0) {
		return err_set(
			err, WIRE_BAD_ARGUMENT,
			"%.64s can be reached from elsewhere: only 127.0.0.0/8 and [::1] may "
			"be listened on",
			text);
	}
	return 0;
}

/* Into the field of the snapshot. Texts are the setting's and are pointed to later. */
static int parse_value(const struct config_row *row, const char *text, bool may_be_bare,
		       struct config *config, struct err *err)
{
	void *field = (char *)config + row->offset;
	struct config_listen listen;
	struct config_size size;
	int choice = 0;
	int code;

	switch (row->kind) {
	case CONFIG_KIND_SIZE:
		return parse_size(row, text, may_be_bare, field, err);
	case CONFIG_KIND_BYTES:
		code = parse_size(row, text, may_be_bare, &size, err);
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
	case CONFIG_KIND_LISTEN:
		return config_parse_listen(text, &listen, err);
	case CONFIG_KIND_LIST: /* of paths; an empty one forgets those before it */
		if (text[0] != '\0' && text[0] != '/') {
			return err_set(err, WIRE_BAD_ARGUMENT,
				       "%.200s is no absolute path: write it from / on", text);
		}
		break;
	case CONFIG_KIND_TEXT:
		break;
	}
	return 0;
}

/* ---- settings ---- */

void config_setting_fini(struct config_setting *setting)
{
	free(setting->key);
	free(setting->value);
	free(setting->source);
}

bool config_setting_copy(const struct config_setting *from, struct config_setting *ret)
{
	struct config_setting copy = *from;

	copy.key = sys_strdup(from->key);
	copy.value = sys_strdup(from->value);
	copy.source = sys_strdup(from->source);
	if (copy.key == NULL || copy.value == NULL || copy.source == NULL) {
		config_setting_fini(&copy);
		return false;
	}
	if (from->device != NULL) {
		copy.device = &copy.key[from->device - from->key];
	}
	*ret = copy;
	return true;
}

static char *join_key(const struct config_row *row, const char *device)
{
	const char *dot = device == NULL ? "" : ".";
	const char *end = device == NULL ? "" : device;
	size_t size = strlen(row->section) + strlen(row->key) + strlen(end) + 3;
	char *key = sys_malloc(size);

	if (key != NULL) {
		(void)snprintf(key, size, "%s.%s%s%s", row->section, row->key, dot, end);
	}
	return key;
}

char *config_join(const char *base, const char *below)
{
	size_t base_size = strlen(base);
	size_t below_size = strlen(below) + 1;
	char *path = sys_malloc(base_size + below_size);

	if (path != NULL) {
		memcpy(path, base, base_size); /* NOLINT(bugprone-not-null-terminated-result) */
		memcpy(&path[base_size], below, below_size);
	}
	return path;
}

/* Where the value came from; with a word when it is set in vain. */
static char *make_source(const struct config_row *row, const char *origin)
{
	return row->is_later && strcmp(origin, "default") != 0
		       ? config_join(origin, CONFIG_NO_EFFECT)
		       : sys_strdup(origin);
}

static int fill_setting(struct config_setting *setting, const char *device, const char *value,
			const struct config_origin *origin)
{
	struct config_setting filled = {.row = setting->row,
					.key = join_key(setting->row, device),
					.value = sys_strdup(value),
					.source = make_source(setting->row, origin->source),
					.layer = origin->layer};

	if (filled.key == NULL || filled.value == NULL || filled.source == NULL) {
		config_setting_fini(&filled);
		return -WIRE_NO_MEMORY;
	}
	if (device != NULL) {
		filled.device = &filled.key[strlen(filled.key) - strlen(device)];
	}
	config_setting_fini(setting);
	*setting = filled;
	return 0;
}

static void remove_settings(struct config *config, const struct config_row *row, bool only_empty)
{
	uint32_t kept = 0;

	for (uint32_t i = 0; i < config->n_settings; i++) {
		struct config_setting *setting = &config->settings[i];

		if (setting->row == row && (!only_empty || setting->value[0] == '\0')) {
			config_setting_fini(setting);
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

/* One more, or does it take another's place? */
static bool is_more(const struct config_row *row, const struct config_setting *old,
		    const char *value)
{
	return old == NULL ||
	       (row->kind == CONFIG_KIND_LIST && value[0] != '\0' && old->value[0] != '\0');
}

/* An insertion that could not be filled goes again. */
static int store_value(struct config *config, const struct config_row *row, const char *device,
		       const char *value, const struct config_origin *origin)
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

int config_apply(struct config *config, const struct config_row *row, const char *device,
		 const char *value, const struct config_origin *origin, struct err *err)
{
	const struct config_setting *old = find_setting(config, row, device);
	struct config_size size = {0};
	int code;

	if (row->kind != CONFIG_KIND_LIST && old != NULL && old->layer == origin->layer) {
		return err_set(err, WIRE_BAD_ARGUMENT, "%s: %s.%s was set before, at %s",
			       origin->where, row->section, row->key, old->source);
	}
	if (device != NULL &&
	    (strlen(device) > MAX_DEVICE_SIZE || !config_text_is_plain(device, strlen(device)))) {
		return err_set(err, WIRE_BAD_ARGUMENT,
			       "%s: the device's name is too long, holds a control byte or is not "
			       "UTF-8",
			       origin->where);
	}
	if (!config_text_is_plain(value, strlen(value))) {
		return err_set(err, WIRE_BAD_ARGUMENT,
			       "%s: the value is longer than 4096 bytes, holds a control byte or "
			       "is not UTF-8",
			       origin->where);
	}
	code = device != NULL ? parse_size(row, value, origin->is_kept, &size, err)
			      : parse_value(row, value, origin->is_kept, config, err);
	if (code < 0) {
		(void)err_wrap(err, "%s: %s.%s", origin->where, row->section, row->key);
		return code;
	}
	if (config->n_settings == CONFIG_MAX_SETTINGS && is_more(row, old, value)) {
		return err_set(err, WIRE_BAD_ARGUMENT, "%s: more than 256 values are set",
			       origin->where);
	}
	if (store_value(config, row, device, value, origin) < 0) {
		return err_set(err, WIRE_NO_MEMORY, "no memory for the configuration");
	}
	if (device != NULL) {
		find_setting(config, row, device)->size = size;
	}
	return 0;
}

bool config_find_override(const struct config *config, const char *key, const char *uuid,
			  const char *name, struct config_size *ret)
{
	const size_t size = strlen(key);
	const struct config_setting *found = NULL;

	for (uint32_t i = 0; i < config->n_settings; i++) {
		const struct config_setting *setting = &config->settings[i];
		const char *device = setting->device;
		bool is_uuid;

		if (device == NULL || strncmp(setting->key, key, size) != 0 ||
		    setting->key[size] != '.') {
			continue;
		}
		is_uuid = uuid != NULL && strcasecmp(device, uuid) == 0;
		if ((is_uuid || strcasecmp(device, name) == 0) &&
		    (found == NULL || setting->layer > found->layer ||
		     (setting->layer == found->layer && is_uuid))) {
			found = setting;
		}
	}
	if (found != NULL) {
		*ret = found->size;
	}
	return found != NULL;
}

uint64_t config_size_of(const struct config_size *size, uint64_t total)
{
	const uint64_t whole = 100000; /* thousandths of a percent */
	uint64_t product;

	if (size->kind != CONFIG_SIZE_PERCENT) {
		return size->bytes;
	}
	return checked_mul(total, size->milli_pct, &product) ? product / whole
							     : total / whole * size->milli_pct;
}
