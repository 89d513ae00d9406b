/* SPDX-License-Identifier: Apache-2.0 */
/* Reading of files and folders. See config_file.h. */
#include "daemon/config_file.h"

#include "base/cleanup.h"
#include "base/err.h"
#include "base/os/sys.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "proto/gen/wire_code.h"
#include "proto/wire_read.h"

struct reader {
	struct config_line line;
	config_line_fn take;
	void *context;
};

/* ---- lines ---- */

static int fail_line(const struct reader *reader, struct err *err, const char *what)
{
	return err_set(err, WIRE_BAD_ARGUMENT, "%s:%u: %s", reader->line.path, reader->line.number,
		       what);
}

static bool is_blank(char c)
{
	return c == ' ' || c == '\t';
}

static char *strip(char *text)
{
	size_t size;

	while (is_blank(*text)) {
		text++;
	}
	size = strlen(text);
	while (size > 0 && is_blank(text[size - 1])) {
		size--;
	}
	text[size] = '\0';
	return text;
}

/* A comment begins at the start of the line or behind a blank: "a#b" is a value. */
static void cut_comment(char *text)
{
	for (char *at = text; *at != '\0'; at++) {
		if ((*at == '#' || *at == ';') && (at == text || is_blank(at[-1]))) {
			*at = '\0';
			return;
		}
	}
}

bool config_text_is_plain(const char *text, size_t size)
{
	if (size > CONFIG_LINE_MAX_BYTES || !wire_utf8_is_valid((const uint8_t *)text, size)) {
		return false;
	}
	for (size_t i = 0; i < size; i++) {
		unsigned char c = (unsigned char)text[i];

		if ((c < 0x20 && c != '\t') || c == 0x7f) {
			return false;
		}
	}
	return true;
}

static int take_section(struct reader *reader, char *text, struct err *err)
{
	size_t size = strlen(text);

	if (text[size - 1] != ']') {
		return fail_line(reader, err, "']' is missing");
	}
	text[size - 1] = '\0';
	reader->line.section = strip(&text[1]);
	reader->line.key = NULL;
	reader->line.value = NULL;
	return reader->take(reader->context, &reader->line, err);
}

/* 'text' is terminated and the reader's to change. */
static int take_line(struct reader *reader, char *text, size_t size, struct err *err)
{
	char *equals;

	if (size > 0 && text[size - 1] == '\r') {
		text[--size] = '\0';
	}
	if (!config_text_is_plain(text, size)) {
		return fail_line(reader, err,
				 "the line is longer than 4096 bytes, holds NUL or another control "
				 "byte, or is not UTF-8");
	}
	cut_comment(text);
	text = strip(text);
	if (*text == '\0') {
		return 0;
	}
	if (*text == '[') {
		return take_section(reader, text, err);
	}
	equals = strchr(text, '=');
	if (equals == NULL) {
		return fail_line(reader, err, "neither [section] nor key = value");
	}
	if (reader->line.section == NULL) {
		return fail_line(reader, err, "a key before the first [section]");
	}
	*equals = '\0';
	reader->line.key = strip(text);
	reader->line.value = strip(&equals[1]);
	return reader->take(reader->context, &reader->line, err);
}

/* 'bytes' has a NUL behind its end. */
static int take_lines(struct reader *reader, char *bytes, size_t size, struct err *err)
{
	static const char mark[] = "\xef\xbb\xbf"; /* some editors begin UTF-8 with it */
	size_t mark_size = strlen(mark);
	char *end = &bytes[size];
	char *at = size >= mark_size && memcmp(bytes, mark, mark_size) == 0 ? &bytes[mark_size]
									    : bytes;

	while (at < end) {
		char *next = memchr(at, '\n', (size_t)(end - at));
		int code;

		next = next == NULL ? end : next;
		*next = '\0';
		reader->line.number++;
		code = take_line(reader, at, (size_t)(next - at), err);
		if (code < 0) {
			return code;
		}
		at = next + 1;
	}
	return 0;
}

/* ---- files ---- */

static int read_all(int fd, const char *path, char **ret_bytes, size_t *ret_size, struct err *err)
{
	AUTO_FREE char *bytes = sys_malloc(CONFIG_FILE_MAX_BYTES + 1);
	size_t size = 0;

	if (bytes == NULL) {
		return err_set(err, WIRE_NO_MEMORY, "no memory to read %s", path);
	}
	for (;;) {
		ssize_t n_read =
			sys_pread(fd, &bytes[size], CONFIG_FILE_MAX_BYTES + 1 - size, size);

		if (n_read < 0 && errno == EINTR) {
			continue;
		}
		if (n_read < 0) {
			return err_set_sys(err, WIRE_IO, errno, "cannot read %s: %s", path,
					   strerror(errno));
		}
		size += (size_t)n_read;
		if (size > CONFIG_FILE_MAX_BYTES) {
			return err_set(err, WIRE_BAD_ARGUMENT,
				       "%s:1: a configuration file has at most 1 MiB", path);
		}
		if (n_read == 0) {
			break;
		}
	}
	bytes[size] = '\0';
	*ret_size = size;
	*ret_bytes = steal_ptr(&bytes);
	return 0;
}

static int check_kind(int fd, const char *path, struct err *err)
{
	struct stat status;

	if (sys_fstat(fd, &status) < 0) {
		return err_set_sys(err, WIRE_IO, errno, "cannot ask about %s: %s", path,
				   strerror(errno));
	}
	/* A link to /dev/null is the usual way to switch a file off. */
	if (!S_ISREG(status.st_mode) && !S_ISCHR(status.st_mode)) {
		return err_set(err, WIRE_IO, "%s is not a file", path);
	}
	return 0;
}

int config_file_read(const char *path, bool is_required, config_line_fn take, void *context,
		     struct err *err)
{
	struct reader reader = {.line = {.path = path}, .take = take, .context = context};
	AUTO_CLOSE int fd = sys_open(path, O_RDONLY | O_NONBLOCK | O_NOCTTY);
	AUTO_FREE char *bytes = NULL;
	size_t size = 0;
	int code;

	if (fd < 0) {
		if (!is_required && (errno == ENOENT || errno == ENOTDIR)) {
			return 0;
		}
		return err_set_sys(err, WIRE_IO, errno, "cannot open %s: %s", path,
				   strerror(errno));
	}
	code = check_kind(fd, path, err);
	if (code == 0) {
		code = read_all(fd, path, &bytes, &size, err);
	}
	return code < 0 ? code : take_lines(&reader, bytes, size, err);
}

/* ---- folders ---- */

struct path_list {
	char **paths; /* NULL-terminated once there is one */
	size_t n_paths;
};

static const char *base_name(const char *path)
{
	const char *slash = strrchr(path, '/');

	return slash == NULL ? path : &slash[1];
}

static int compare_names(const void *a, const void *b)
{
	const char *const *path_a = a;
	const char *const *path_b = b;

	return strcmp(base_name(*path_a), base_name(*path_b));
}

static bool is_conf(const char *name)
{
	static const char ending[] = ".conf";
	size_t size = strlen(name);

	return name[0] != '.' && size > strlen(ending) &&
	       strcmp(&name[size - strlen(ending)], ending) == 0;
}

/* Takes 'path' over, also on failure. A path of the same name is replaced. */
static int add_path(struct path_list *list, char *path, struct err *err)
{
	char **grown;

	for (size_t i = 0; path != NULL && i < list->n_paths; i++) {
		if (strcmp(base_name(list->paths[i]), base_name(path)) == 0) {
			free(list->paths[i]);
			list->paths[i] = path;
			return 0;
		}
	}
	grown = path == NULL ? NULL : sys_realloc(list->paths, (list->n_paths + 2) * sizeof *grown);
	if (grown == NULL) {
		free(path);
		return err_set(err, WIRE_NO_MEMORY, "no memory to list configuration files");
	}
	list->paths = grown;
	list->paths[list->n_paths++] = path;
	list->paths[list->n_paths] = NULL;
	return 0;
}

static char *join_path(const char *folder, const char *name)
{
	size_t size = strlen(folder) + strlen(name) + 2;
	char *path = sys_malloc(size);

	if (path != NULL) {
		(void)snprintf(path, size, "%s/%s", folder, name);
	}
	return path;
}

static int add_folder(struct path_list *list, const char *path, struct err *err)
{
	DIR *folder = opendir(path);
	struct dirent *entry;
	int code = 0;

	if (folder == NULL) {
		if (errno == ENOENT || errno == ENOTDIR) {
			return 0;
		}
		return err_set_sys(err, WIRE_IO, errno, "cannot read the folder %s: %s", path,
				   strerror(errno));
	}
	while (code == 0 && (entry = readdir(folder)) != NULL) {
		if (is_conf(entry->d_name)) {
			code = add_path(list, join_path(path, entry->d_name), err);
		}
	}
	(void)closedir(folder); /* it was only read */
	return code;
}

int config_file_list(const char *const folders[3], char ***ret_paths, struct err *err)
{
	struct path_list list = {0};

	for (int i = 0; i < 3; i++) {
		int code = folders[i] == NULL ? 0 : add_folder(&list, folders[i], err);

		if (code < 0) {
			config_file_free_paths(list.paths);
			return code;
		}
	}
	if (list.n_paths > 0) {
		qsort(list.paths, list.n_paths, sizeof *list.paths, compare_names);
	}
	*ret_paths = list.paths;
	return 0;
}

void config_file_free_paths(char **paths)
{
	for (size_t i = 0; paths != NULL && paths[i] != NULL; i++) {
		free(paths[i]);
	}
	free(paths);
}
