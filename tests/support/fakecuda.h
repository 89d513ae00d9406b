/* SPDX-License-Identifier: Apache-2.0 */
/*
 * For tests of what runs over CUDA: the stand-in driver (tests/fakecuda) with cards of this
 * process and its children. With DISTORCH_TEST_CUDA=driver they run over the machine's own
 * driver instead, and what only the stand-in can do is skipped.
 */
#ifndef TESTS_SUPPORT_FAKECUDA_H
#define TESTS_SUPPORT_FAKECUDA_H

#include "tests/support/unit.h"

#include <dirent.h>
#include <dlfcn.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define FAKECUDA_PATIENCE 120

struct fakecuda {
	char folder[64]; /* empty: there is no stand-in */
	void (*fault)(const char *text);
	uint64_t (*n_hits)(void);
	const char *(*struck)(void);
	uint64_t (*n_objects)(void);
	uint64_t (*used)(int ordinal);
};

static struct fakecuda fakecuda;

static inline void fakecuda_find(void *library, const char *name, void *slot)
{
	void *symbol = dlsym(library, name);

	assert_non_null(symbol);
	memcpy(slot, &symbol, sizeof symbol);
}

/* Not yet loaded, but in the way of who looks for a driver: this process and its children. */
static inline void fakecuda_prepare(const char *cards)
{
	(void)snprintf(fakecuda.folder, sizeof fakecuda.folder,
		       "/dev/shm/distorch-fakecuda.XXXXXX");
	assert_non_null(mkdtemp(fakecuda.folder));
	assert_int_equal(setenv("FAKECUDA_DIR", fakecuda.folder, 1), 0);
	assert_int_equal(setenv("FAKECUDA_CARDS", cards, 1), 0);
	assert_int_equal(setenv("LD_LIBRARY_PATH", FAKECUDA_FOLDER, 1), 0);
}

/* Whoever opens a library by that name later gets the one that is loaded. */
static inline void fakecuda_load(void)
{
	void *library = dlopen(FAKECUDA_FOLDER "/libcuda.so.1", RTLD_NOW | RTLD_LOCAL);

	assert_non_null(library);
	assert_non_null(dlopen(FAKECUDA_FOLDER "/libnvidia-ml.so.1", RTLD_NOW | RTLD_LOCAL));
	fakecuda_find(library, "fakecuda_fault", &fakecuda.fault);
	fakecuda_find(library, "fakecuda_n_hits", &fakecuda.n_hits);
	fakecuda_find(library, "fakecuda_struck", &fakecuda.struck);
	fakecuda_find(library, "fakecuda_n_objects", &fakecuda.n_objects);
	fakecuda_find(library, "fakecuda_used", &fakecuda.used);
}

/* In such a process cmocka cannot be told of a failure: it says so and ends. */
#define MUST(condition)                                                                       \
	do {                                                                                  \
		if (!(condition)) {                                                           \
			(void)fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition); \
			_exit(1);                                                             \
		}                                                                             \
	} while (0)

/* A test in a process of its own: what a driver has seen lasts as long as the process. */
static inline void fakecuda_in_process(void (*body)(void))
{
	int status = -1;
	const pid_t child = fork();

	if (child == 0) {
		(void)alarm(FAKECUDA_PATIENCE);
		fakecuda_load();
		body();
		_exit(0);
	}
	assert_int_equal(waitpid(child, &status, 0), child);
	if (!WIFEXITED(status) || WEXITSTATUS(status) != 0) {
		fail_msg("the process ended with status %#x", (unsigned)status);
	}
}

static inline bool fakecuda_is_wanted(void)
{
	const char *which = getenv("DISTORCH_TEST_CUDA");

	return which == NULL || strcmp(which, "driver") != 0;
}

/* A number for the card of that number: "foreign", "temperature", "xid". */
static inline void fakecuda_write(unsigned card, const char *file, const char *text)
{
	char path[128];
	int fd;

	(void)snprintf(path, sizeof path, "%s/%u", fakecuda.folder, card);
	(void)mkdir(path, 0700); /* it may be there */
	(void)snprintf(path, sizeof path, "%s/%u/%s", fakecuda.folder, card, file);
	fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	assert_true(fd >= 0);
	assert_int_equal(write(fd, text, strlen(text)), (ssize_t)strlen(text));
	(void)close(fd);
}

static inline void fakecuda_empty(const char *path)
{
	DIR *folder = opendir(path);
	const struct dirent *entry;
	char inner[512];

	while (folder != NULL && (entry = readdir(folder)) != NULL) {
		if (entry->d_name[0] != '.') {
			(void)snprintf(inner, sizeof inner, "%s/%s", path, entry->d_name);
			if (unlink(inner) != 0) {
				fakecuda_empty(inner);
			}
		}
	}
	if (folder != NULL) {
		(void)closedir(folder);
	}
	(void)rmdir(path);
}

static inline void fakecuda_end(void)
{
	if (fakecuda.folder[0] != '\0') {
		fakecuda_empty(fakecuda.folder);
	}
}

#endif
