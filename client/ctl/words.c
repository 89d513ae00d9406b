/* SPDX-License-Identifier: Apache-2.0 */
/* Sizes, times, places and bars in words, and text cut to columns. See render.h. */
#include "base/err.h"
#include "base/text.h"
#include "base/units.h"
#include "render.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>
#include <wchar.h>

#define MAX_COLUMNS 10000 /* that COLUMNS may say */

/* The character at 'text': its bytes, and the columns it takes. Never 0 bytes. */
static size_t read_character(const char *text, size_t *ret_columns)
{
	mbstate_t state = {0};
	wchar_t character = 0;
	size_t size = mbrtowc(&character, text, strlen(text), &state);
	int columns = 1;

	if (size == 0 || size > strlen(text)) { /* not of this locale */
		size = 1;
	} else {
		columns = wcwidth(character);
	}
	*ret_columns = columns < 0 ? 1 : (size_t)columns;
	return size;
}

size_t text_columns(const char *text)
{
	size_t sum = 0;

	while (*text != '\0') {
		size_t columns;

		text += read_character(text, &columns);
		sum += columns;
	}
	return sum;
}

const char *text_fit(const char *text, size_t room, char *buffer, size_t buffer_size)
{
	bool is_cut = text_columns(text) > room;
	size_t used = 0;
	size_t at = 0;

	while (text[at] != '\0') {
		size_t columns;
		size_t size = read_character(text + at, &columns);

		if (used + columns + (is_cut ? 1 : 0) > room ||
		    at + size + sizeof "…" > buffer_size) {
			break;
		}
		used += columns;
		at += size;
	}
	memcpy(buffer, text, at);
	memcpy(buffer + at, is_cut && room > 0 ? "…" : "", is_cut && room > 0 ? sizeof "…" : 1);
	return buffer;
}

void text_append(char *buffer, size_t buffer_size, size_t *used, const char *format, ...)
{
	va_list arguments;
	int size;

	va_start(arguments, format);
	size = vsnprintf(buffer + *used, buffer_size - *used, format, arguments);
	va_end(arguments);
	if (size > 0) {
		*used += (size_t)size < buffer_size - *used ? (size_t)size
							    : buffer_size - *used - 1;
	}
}

const char *size_text(const struct ctl *ctl, uint64_t bytes, char buffer[24])
{
	return ctl->arguments.is_si ? units_format_size_si(bytes, buffer, 24)
				    : units_format_size(bytes, buffer, 24);
}

const char *ms_text(uint64_t ms, char buffer[32])
{
	return units_format_duration(ms > UINT64_MAX / 1000000U ? UNITS_FOREVER : ms * 1000000U,
				     buffer, 32);
}

const char *ago_text(uint64_t ms, char buffer[32])
{
	char text[32];

	if (ms < 1000) {
		(void)snprintf(buffer, 32, "now");
	} else {
		(void)snprintf(buffer, 32, "%.26s ago", ms_text(ms / 1000 * 1000, text));
	}
	return buffer;
}

const char *size_cell(const struct ctl *ctl, uint64_t bytes, char buffer[24])
{
	if (ctl->arguments.output != OUTPUT_CSV) {
		return size_text(ctl, bytes, buffer);
	}
	(void)snprintf(buffer, 24, "%" PRIu64, bytes);
	return buffer;
}

const char *ago_cell(const struct ctl *ctl, uint64_t ms, char buffer[32])
{
	if (ctl->arguments.output != OUTPUT_CSV) {
		return ago_text(ms, buffer);
	}
	(void)snprintf(buffer, 32, "%" PRIu64, ms / 1000);
	return buffer;
}

const char *time_text(uint64_t time_ms, bool has_date, char buffer[40])
{
	time_t seconds = (time_t)(time_ms / 1000);
	struct tm local;

	if (localtime_r(&seconds, &local) == NULL ||
	    strftime(buffer, 40, has_date ? "%Y-%m-%d %H:%M:%S" : "%H:%M:%S", &local) == 0) {
		(void)snprintf(buffer, 40, "?");
	}
	return buffer;
}

const char *safe_text(const char *text, char *buffer, size_t buffer_size)
{
	return text_escape(text == NULL ? "-" : text, buffer, buffer_size);
}

const char *device_text(const char *device)
{
	return device != NULL && strcmp(device, "cpu") == 0 ? "ram" : device;
}

const char *device_cell(const struct ctl *ctl, const char *device)
{
	return ctl->arguments.output == OUTPUT_CSV ? device : device_text(device);
}

/* "0000:01:00.0" as people say it: the bus and the slot, and the domain where it is not the first. */
static void append_pci(const char *pci, char *buffer, size_t buffer_size, size_t *used)
{
	size_t length = strlen(pci);

	if (length > 5 && strncmp(pci, "0000:", 5) == 0) {
		pci += 5;
		length -= 5;
	}
	if (length > 2 && strcmp(pci + length - 2, ".0") == 0) {
		length -= 2;
	}
	text_append(buffer, buffer_size, used, "PCI %.*s", (int)length, pci);
}

const char *device_label(const struct distorch_device *device, char *buffer, size_t buffer_size)
{
	bool has_product = device->product != NULL && device->product[0] != '\0';
	bool has_pci = device->pci != NULL && device->pci[0] != '\0';
	size_t used = 0;

	text_append(buffer, buffer_size, &used, "%s", device_text(device->name));
	if (has_product || has_pci) {
		text_append(buffer, buffer_size, &used, " (%s%s",
			    has_product ? device->product : "", has_product && has_pci ? ", " : "");
		if (has_pci) {
			append_pci(device->pci, buffer, buffer_size, &used);
		}
		text_append(buffer, buffer_size, &used, ")");
	}
	return buffer;
}

static void append_share(uint64_t part, uint64_t total, char *buffer, size_t buffer_size,
			 size_t *used)
{
	char share[8];

	text_append(buffer, buffer_size, used, " %s",
		    units_format_share(part, total, share, sizeof share));
}

static bool is_host(const struct distorch_place *place)
{
	return strcmp(place->device, "cpu") == 0;
}

/* Shares are of what the tensors have, as the plan's are: a device rounds up each block. */
static uint64_t tensor_bytes(const struct distorch_place *place)
{
	return place->tensor_bytes == DISTORCH_ABSENT ? place->bytes : place->tensor_bytes;
}

/* Headers stay on the host where all the tensors are elsewhere, and a tensor may have no bytes: not
 * worth a word. */
static bool is_told(const struct distorch_model *model, const struct distorch_place *place,
		    uint64_t total)
{
	return model->n_where == 1 || tensor_bytes(place) > (is_host(place) ? total / 200 : 0);
}

/* Is something in its file alone? What has gone from a card may be in RAM besides; what there is of
 * an image of all of it is no less than the file, be a tensor without bytes elsewhere. */
static bool is_short(const struct distorch_model *model)
{
	bool is_whole = strcmp(model->state, "partial") != 0;

	for (size_t i = 0; i < model->n_where; i++) {
		is_whole = is_whole || (strcmp(model->where[i]->backing, "image") == 0 &&
					model->where[i]->bytes >= model->bytes);
	}
	return !is_whole;
}

/* Cards first, then the host, and of one that is partial what only its file has. */
const char *where_text(const struct ctl *ctl, const struct distorch_model *model, char *buffer,
		       size_t buffer_size)
{
	const bool lacks_some = is_short(model);
	uint64_t total = 0;
	uint64_t most = 0;
	uint64_t there;
	size_t used = 0;
	size_t n_told = 0;
	size_t n_words = 0;

	for (size_t i = 0; i < model->n_where; i++) {
		total += tensor_bytes(model->where[i]);
		most = tensor_bytes(model->where[i]) > most ? tensor_bytes(model->where[i]) : most;
	}
	there = total;
	if (lacks_some) {
		total = model->bytes; /* what is missing has its share too */
	} else if (total > model->bytes) {
		total = most; /* blocks on cards are in RAM besides, where all of them are */
	}
	for (size_t i = 0; i < model->n_where; i++) {
		n_told += is_told(model, model->where[i], total) ? 1 : 0;
	}
	text_append(buffer, buffer_size, &used, n_told == 0 && !lacks_some ? "-" : "");
	for (size_t i = 0; i < 2 * model->n_where; i++) {
		const struct distorch_place *place = model->where[i % model->n_where];

		if (is_host(place) != (i >= model->n_where) || !is_told(model, place, total)) {
			continue;
		}
		text_append(buffer, buffer_size, &used, "%s%s", n_words++ == 0 ? "" : " + ",
			    strcmp(place->backing, "file") == 0 ? "cache"
								: device_cell(ctl, place->device));
		if (n_told > 1 || lacks_some) {
			append_share(tensor_bytes(place), total, buffer, buffer_size, &used);
		}
	}
	if (lacks_some) {
		text_append(buffer, buffer_size, &used, "%sfile", n_words == 0 ? "" : " + ");
		append_share(total > there ? total - there : 0, total, buffer, buffer_size, &used);
	}
	return buffer;
}

uint64_t model_image_bytes(const struct distorch_model *model)
{
	for (size_t i = 0; i < model->n_where; i++) {
		if (strcmp(model->where[i]->backing, "image") == 0) {
			return model->where[i]->bytes;
		}
	}
	return 0;
}

const char *older_text(const struct ctl *ctl, const struct distorch_model *model, char *buffer,
		       size_t buffer_size)
{
	uint64_t bytes = 0;
	size_t used = 0;
	char size[24];

	buffer[0] = '\0';
	if (model->n_older == 0) {
		return buffer;
	}
	for (size_t i = 0; i < model->n_older; i++) {
		bytes += model->older[i]->bytes;
	}
	text_append(buffer, buffer_size, &used, "%s stay on", size_text(ctl, bytes, size));
	for (size_t i = 0; i < model->n_older; i++) {
		text_append(buffer, buffer_size, &used, "%s %s", i == 0 ? "" : " +",
			    device_text(model->older[i]->device));
	}
	if (model->n_users == 1) {
		text_append(buffer, buffer_size, &used, " until %s (PID %u) lets go",
			    model->users[0]->comm, model->users[0]->pid);
	} else {
		text_append(buffer, buffer_size, &used, " until who uses it lets go");
	}
	return buffer;
}

const char *where_now_text(const struct ctl *ctl, const struct distorch_model *model, char *buffer,
			   size_t buffer_size)
{
	size_t used;

	if (strcmp(model->state, "loading") == 0) {
		(void)snprintf(buffer, buffer_size, "loading %u%%",
			       model->progress_bytes == DISTORCH_ABSENT || model->bytes == 0
				       ? 0U
				       : (unsigned)(model->progress_bytes /
						    (model->bytes / 100 + 1)));
	} else if (model->n_where == 0 && strcmp(model->state, "partial") != 0) {
		(void)snprintf(buffer, buffer_size, "%.32s", model->state);
	} else {
		(void)where_text(ctl, model, buffer, buffer_size);
	}
	used = strlen(buffer);
	text_append(buffer, buffer_size, &used, "%s", model->moving ? ", moving" : "");
	for (size_t i = 0; i < model->n_older; i++) {
		text_append(buffer, buffer_size, &used, "%s%s", i == 0 ? ", older on " : " + ",
			    device_cell(ctl, model->older[i]->device));
	}
	return buffer;
}

const char *stays_text(const struct distorch_model *model, char *buffer, size_t buffer_size)
{
	char left[32];
	size_t used = 0;

	if (model->n_stays == 0) {
		text_append(buffer, buffer_size, &used, "%s",
			    model->n_where > 0 ? "until needed" : "-");
	}
	for (size_t i = 0; i < model->n_stays; i++) {
		const char *word = model->stays[i];

		if (strcmp(word, "in-use") == 0) {
			word = "in use";
		} else if (strcmp(word, "ttl") == 0) {
			word = ms_text(model->ttl_left_ms, left);
		}
		text_append(buffer, buffer_size, &used, "%s%s", i == 0 ? "" : " · ", word);
	}
	return buffer;
}

const char *users_text(const struct distorch_model *model, char *buffer, size_t buffer_size)
{
	char more[24] = "";

	if (model->n_users == 0) {
		(void)snprintf(buffer, buffer_size, "%s", model->leases > 0 ? "others" : "-");
		return buffer;
	}
	if (model->n_users > 1) {
		(void)snprintf(more, sizeof more, " +%zu", model->n_users - 1);
	}
	(void)snprintf(buffer, buffer_size, "%s/%u%s", model->users[0]->comm, model->users[0]->pid,
		       more);
	return buffer;
}

const char *bar_text(uint64_t part, uint64_t whole, unsigned width, char *buffer,
		     size_t buffer_size)
{
	unsigned n_full = whole == 0 ? 0 : (unsigned)((double)part / (double)whole * width + 0.5);
	size_t used = 0;

	for (unsigned i = 0; i < width && used + 4 < buffer_size; i++) {
		memcpy(buffer + used, i < n_full ? "█" : "░", 3);
		used += 3;
	}
	buffer[used] = '\0';
	return buffer;
}

const char *path_base(const char *path)
{
	const char *slash = strrchr(path, '/');

	return slash == NULL ? path : slash + 1;
}

unsigned terminal_columns(int fd)
{
	struct winsize size;

	return ioctl(fd, TIOCGWINSZ, &size) == 0 && size.ws_col > 0 ? size.ws_col : 80;
}

unsigned said_columns(void)
{
	const char *text = getenv("COLUMNS");
	const unsigned long columns = text == NULL ? 0 : strtoul(text, NULL, 10);

	return columns < MAX_COLUMNS ? (unsigned)columns : MAX_COLUMNS;
}

unsigned terminal_width(void)
{
	const unsigned said = said_columns();

	return said > 0 ? said : terminal_columns(STDOUT_FILENO);
}
