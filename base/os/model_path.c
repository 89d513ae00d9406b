/* SPDX-License-Identifier: Apache-2.0 */
/* See model_path.h. */
#include "base/os/model_path.h"

#include "base/cleanup.h"
#include "base/err.h"
#include "base/os/sys.h"
#include "base/shard_name.h"
#include "base/text.h"
#include "base/weight_map.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "proto/gen/wire_code.h"

#define GGUF       ".gguf"
#define SHOWN_SIZE 160

bool model_path_is_file(const char *path)
{
	AUTO_CLOSE int place = sys_open(path, O_PATH); /* opening what it is may do something */
	struct stat status;

	return place >= 0 && sys_fstat(place, &status) == 0 && S_ISREG(status.st_mode);
}

static const char *base_of(const char *path)
{
	const char *slash = strrchr(path, '/');

	return slash == NULL ? path : slash + 1;
}

/* Append 'n' bytes to the text at 'ret'. False: it has no room. */
static bool append(char *ret, size_t size, const char *text, size_t n)
{
	size_t at = strlen(ret);

	if (n >= size - at) {
		return false;
	}
	memcpy(ret + at, text, n);
	ret[at + n] = '\0';
	return true;
}

/* "FOLDER/NAME" of a file beside 'beside'. */
static bool make_path(const char *beside, const char *name, char *ret, size_t size)
{
	ret[0] = '\0';
	return append(ret, size, beside, (size_t)(base_of(beside) - beside)) &&
	       append(ret, size, name, strlen(name));
}

char *model_path_of_file(const struct model_path *found, const char *name)
{
	size_t size = strlen(found->whole) + strlen(name) + 1;
	char *path = sys_malloc(size);

	if (path != NULL) {
		(void)make_path(found->whole, name, path, size); /* it has room for both */
	}
	return path;
}

void model_path_fini(struct model_path *found)
{
	found->files = model_files_free(found->files);
}

/* ---- the index ---- */

static int fail_index(const char *path, int code, int sys, struct err *err)
{
	char shown[SHOWN_SIZE];

	text_escape(path, shown, sizeof shown);
	return sys == 0 ? err_wrap(err, "index %s", shown)
			: err_set_sys(err, code, sys, "index %s cannot be read: %s", shown,
				      strerror(sys));
}

static int read_all(int fd, char *bytes, size_t size)
{
	size_t at = 0;

	while (at < size) {
		ssize_t n = sys_pread(fd, bytes + at, size - at, at);

		if (n < 0 && errno == EINTR) {
			continue;
		}
		if (n <= 0) {
			errno = n < 0 ? errno : ENODATA; /* it became shorter */
			return -1;
		}
		at += (size_t)n;
	}
	return 0;
}

static int read_index(const char *path, struct model_files **ret, struct err *err)
{
	AUTO_CLOSE int fd = sys_open(path, O_RDONLY | O_NOCTTY | O_NONBLOCK);
	AUTO_FREE char *bytes = NULL;
	struct stat status;
	int code;

	if (fd < 0 || sys_fstat(fd, &status) < 0) {
		code = errno;
		return fail_index(path,
				  (int)(code == EACCES || code == EPERM ? WIRE_NOT_ALLOWED
									: WIRE_IO),
				  code, err);
	}
	if (status.st_size > (off_t)WEIGHT_MAP_MAX_SIZE) {
		(void)err_set(err, WIRE_TOO_LARGE, "it has %llu bytes; %u are the most it may have",
			      (unsigned long long)status.st_size, WEIGHT_MAP_MAX_SIZE);
		return fail_index(path, WIRE_TOO_LARGE, 0, err);
	}
	bytes = sys_malloc((size_t)status.st_size + 1);
	if (bytes == NULL) {
		return err_set(err, WIRE_NO_MEMORY, "no memory to read an index");
	}
	if (read_all(fd, bytes, (size_t)status.st_size) < 0) {
		return fail_index(path, WIRE_IO, errno, err);
	}
	code = model_files_read(bytes, (size_t)status.st_size, ret, err);
	return code < 0 ? fail_index(path, -code, 0, err) : 0;
}

/* "A.V.E" is what the model of "A.E.index.V.json" is called. False: it has no such form. */
static bool make_variant(const char *called, char *ret, size_t size)
{
	const char *ending = strrchr(called, '.');
	const char *variant = ending == NULL ? NULL
					     : memrchr(called, '.', (size_t)(ending - called));

	if (variant == NULL || variant == called) {
		return false;
	}
	ret[0] = '\0';
	return append(ret, size, called, (size_t)(variant - called)) &&
	       append(ret, size, ending, strlen(ending)) &&
	       append(ret, size, ".index", strlen(".index")) &&
	       append(ret, size, variant, (size_t)(ending - variant)) &&
	       append(ret, size, ".json", strlen(".json"));
}

/* The index of what is called 'called', in the folder of 'path'. */
static bool find_index(const char *path, const char *called, char *ret, size_t size)
{
	char name[NAME_MAX + 1];
	int n = snprintf(name, sizeof name, "%s.index.json", called);

	if (n >= 0 && (size_t)n < sizeof name && make_path(path, name, ret, size) &&
	    model_path_is_file(ret)) {
		return true;
	}
	if (make_variant(called, name, sizeof name) && make_path(path, name, ret, size) &&
	    model_path_is_file(ret)) {
		return true;
	}
	ret[0] = '\0';
	return false;
}

static bool is_named(const struct model_files *files, const char *name)
{
	for (uint32_t i = 0; i < files->n; i++) {
		if (strcmp(files->names[i], name) == 0) {
			return true;
		}
	}
	return false;
}

/* ---- parts of a GGUF file ---- */

static void write_digits(char *ret, int n_digits, uint32_t number)
{
	while (n_digits-- > 0) {
		ret[n_digits] = (char)('0' + number % 10);
		number /= 10;
	}
}

static int name_parts(const char *name, const struct shard_number *number,
		      struct model_files *files, struct err *err)
{
	size_t size = strlen(name) + 1;

	for (uint32_t i = 0; i < number->count; i++) {
		char *part = sys_malloc(size);

		if (part == NULL) {
			return err_set(err, WIRE_NO_MEMORY, "no memory for a file's name");
		}
		memcpy(part, name, size);
		write_digits(part + number->start + 1, number->n_digits, i + 1);
		files->names[files->n++] = part;
	}
	return 0;
}

static bool is_part_of_gguf(const char *name, const struct shard_number *number)
{
	size_t size = strlen(name);

	return size > strlen(GGUF) && strcmp(name + size - strlen(GGUF), GGUF) == 0 &&
	       number->n_digits > 0 && number->count > 1 && number->number > 0 &&
	       number->number <= number->count;
}

static int take_parts(const char *path, const struct shard_number *number, struct model_path *ret,
		      struct err *err)
{
	int code;

	if (number->count > MODEL_MAX_FILES) {
		return err_set(err, WIRE_TOO_LARGE,
			       "%.160s is one of %u files; a model has at most %d", base_of(path),
			       number->count, MODEL_MAX_FILES);
	}
	ret->files = sys_calloc(1, sizeof *ret->files);
	if (ret->files == NULL) {
		return err_set(err, WIRE_NO_MEMORY, "no memory for a model's files");
	}
	code = name_parts(base_of(path), number, ret->files, err);
	if (code == 0 && !make_path(path, ret->files->names[0], ret->whole, sizeof ret->whole)) {
		code = err_set(err, WIRE_BAD_ARGUMENT, "the path is too long"); /* it was not */
	}
	if (code < 0) {
		model_path_fini(ret);
	}
	return code;
}

/* ---- which it is ---- */

static int take_index(struct model_path *ret, struct err *err)
{
	ret->has_index = true;
	return read_index(ret->whole, &ret->files, err);
}

int model_path_find(const char *path, struct model_path *ret, struct err *err)
{
	const char *name = base_of(path);
	bool is_file = model_path_is_file(path);
	struct shard_number number;
	char called[NAME_MAX + 1];
	int code;

	*ret = (struct model_path){0};
	if (strlen(name) > NAME_MAX || strlen(path) >= sizeof ret->whole) {
		return 0; /* there can be no such file */
	}
	(void)snprintf(called, sizeof called, "%s", name);
	shard_name_of_model(called);
	if (is_file && shard_name_is_index(name)) {
		(void)snprintf(ret->whole, sizeof ret->whole, "%s", path);
		return take_index(ret, err);
	}
	if (!is_file) {
		return strcmp(called, name) == 0 &&
				       find_index(path, called, ret->whole, sizeof ret->whole)
			       ? take_index(ret, err)
			       : 0;
	}
	if (!shard_name_number(name, &number)) {
		return 0;
	}
	if (find_index(path, called, ret->whole, sizeof ret->whole)) {
		code = take_index(ret, err);
		if (code < 0 || is_named(ret->files, name)) {
			return code;
		}
		model_path_fini(ret);
		*ret = (struct model_path){0}; /* it is of others */
	}
	return is_part_of_gguf(name, &number) ? take_parts(path, &number, ret, err) : 0;
}
