/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a warm file costs with backing auto: load, attach and every page mapped, against mapping
 * the file oneself with every page (mmap and MADV_POPULATE_READ), in turns, in one run. Against
 * itself the peer gives the null. At a multiple of 2 MiB the kernel may map large pages of the
 * cache whole: that is the limit. Usage: warm_file FILE [ROUNDS]
 */
#include "distorch.h"

#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#ifndef MADV_POPULATE_READ
#	define MADV_POPULATE_READ 22
#endif

#define MAX_ROUNDS 200

static double now_ms(void)
{
	struct timespec now = {0};

	(void)clock_gettime(CLOCK_MONOTONIC, &now);
	return (double)now.tv_sec * 1e3 + (double)now.tv_nsec / 1e6;
}

static int compare(const void *a, const void *b)
{
	double x = *(const double *)a;
	double y = *(const double *)b;

	return x < y ? -1 : x > y;
}

static void *map_at(size_t bytes, size_t alignment, int fd)
{
	char *room = alignment == 0 ? NULL
				    : mmap(NULL, bytes + alignment, PROT_NONE,
					   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (room == MAP_FAILED) {
		return room;
	}
	room += alignment == 0 ? 0 : alignment - (uintptr_t)room % alignment;
	return mmap(room, bytes, PROT_READ, MAP_PRIVATE | (alignment == 0 ? 0 : MAP_FIXED), fd, 0);
}

/* The file's own mapping, with every page, at a multiple of 'alignment' bytes or (0) anywhere.
 * Negative: failed. */
static double map_file(const char *path, size_t alignment)
{
	struct stat status;
	double begun = now_ms();
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	void *memory = MAP_FAILED;
	double took = -1;

	if (fd >= 0 && fstat(fd, &status) == 0) {
		memory = map_at((size_t)status.st_size, alignment, fd);
	}
	if (memory != MAP_FAILED &&
	    madvise(memory, (size_t)status.st_size, MADV_POPULATE_READ) == 0) {
		took = now_ms() - begun;
		(void)munmap(memory, (size_t)status.st_size); /* the rest of a reservation stays */
	}
	if (fd >= 0) {
		(void)close(fd);
	}
	return took;
}

/* Loaded by the daemon anew, attached, with every page. Negative: failed. */
static double load_file(struct distorch *c, const char *path, char *ret_backing)
{
	const struct distorch_load_options options = {.size = sizeof options};
	struct distorch_loaded *loaded = NULL;
	struct distorch_weights *weights = NULL;
	const char *id;
	struct distorch_select select = {.size = sizeof select, .n_models = 1, .models = &id};
	uint64_t bytes = 0;
	void *base;
	double begun = now_ms();
	double took = -1;

	if (distorch_load(c, path, &options, &loaded, &weights) < 0) {
		(void)fprintf(stderr, "load: %s\n", distorch_error(c)->message);
		return -1;
	}
	base = distorch_weights_base(weights, 0, &bytes);
	if (madvise(base, bytes, MADV_POPULATE_READ) == 0) {
		took = now_ms() - begun;
	}
	(void)snprintf(ret_backing, 16, "%s", loaded->model->where[0]->backing);
	(void)distorch_weights_unref(weights);
	id = loaded->model->id;
	if (distorch_unload(c, &select, NULL) < 0) { /* the next one begins at the beginning */
		took = -1;
	}
	distorch_loaded_free(loaded);
	return took;
}

static double median(double *times, size_t n_times)
{
	qsort(times, n_times, sizeof *times, compare);
	return times[n_times / 2];
}

int main(int argc, char **argv)
{
	static double ours[MAX_ROUNDS];
	static double peer[MAX_ROUNDS];
	static double again[MAX_ROUNDS];
	static double limit[MAX_ROUNDS];
	struct distorch *c = NULL;
	char backing[16] = "";
	size_t n_rounds = argc > 2 ? strtoul(argv[2], NULL, 10) : 30;

	if (argc < 2 || n_rounds == 0 || n_rounds > MAX_ROUNDS) {
		(void)fprintf(stderr, "usage: warm_file FILE [ROUNDS]\n");
		return 2;
	}
	if (distorch_open(NULL, NULL, &c) < 0) {
		(void)fprintf(stderr, "open: %s\n", distorch_error(NULL)->message);
		return 1;
	}
	for (size_t i = 0; i < n_rounds; i++) {
		peer[i] = map_file(argv[1], 0);
		ours[i] = load_file(c, argv[1], backing);
		again[i] = map_file(argv[1], 0);
		limit[i] = map_file(argv[1], 2U << 20);
		if (peer[i] < 0 || ours[i] < 0 || again[i] < 0 || limit[i] < 0) {
			(void)fprintf(stderr, "a round failed\n");
			return 1;
		}
	}
	c = distorch_close(c);
	(void)printf("%zu rounds, backing obtained: %s\n", n_rounds, backing);
	(void)printf("%-52s %8.1f ms\n", "mmap and MADV_POPULATE_READ of the warm file",
		     median(peer, n_rounds));
	(void)printf("%-52s %8.1f ms\n", "the same again (the null)", median(again, n_rounds));
	(void)printf("%-52s %8.1f ms\n", "the same at a multiple of 2 MiB, as we map (the limit)",
		     median(limit, n_rounds));
	(void)printf("%-52s %8.1f ms\n", "load, attach and MADV_POPULATE_READ",
		     median(ours, n_rounds));
	(void)printf("ratio %.2f (asked: at most 1.2), null %.2f; to the limit %.2f\n",
		     ours[n_rounds / 2] / peer[n_rounds / 2],
		     again[n_rounds / 2] / peer[n_rounds / 2],
		     ours[n_rounds / 2] / limit[n_rounds / 2]);
	return 0;
}
