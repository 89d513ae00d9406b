/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How long a process needs to have all tensors of a resident model: attach, map, and look at
 * every tensor of the table. Beside it, in the same run, the limit: a socket round trip that
 * does nothing (ping) and mapping the file itself. Usage: attach MODEL.safetensors [ROUNDS]
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

#define MAX_ROUNDS 10000

static double now_us(void)
{
	struct timespec now = {0};

	(void)clock_gettime(CLOCK_MONOTONIC, &now);
	return (double)now.tv_sec * 1e6 + (double)now.tv_nsec / 1e3;
}

static int compare(const void *a, const void *b)
{
	double x = *(const double *)a;
	double y = *(const double *)b;

	return x < y ? -1 : x > y;
}

static void print_row(const char *what, double *times, size_t n_times)
{
	qsort(times, n_times, sizeof *times, compare);
	(void)printf("%-44s %8.1f %8.1f %8.1f\n", what, times[n_times / 2],
		     times[n_times * 99 / 100], times[n_times - 1]);
}

/* Attach, and read where each tensor lies. Returns their number, or 0 on failure. */
static uint32_t attach_once(struct distorch *c, const char *path, uint64_t *sum)
{
	struct distorch_weights *weights = NULL;
	uint32_t n_tensors;

	if (distorch_attach(c, path, &weights) < 0) {
		(void)fprintf(stderr, "attach: %s\n", distorch_error(c)->message);
		return 0;
	}
	n_tensors = distorch_weights_n_tensors(weights);
	for (uint32_t i = 0; i < n_tensors; i++) {
		*sum += (uintptr_t)distorch_weights_tensor(weights, i)->data;
	}
	(void)distorch_weights_unref(weights);
	return n_tensors;
}

static int map_file(const char *path)
{
	struct stat status;
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	void *memory = MAP_FAILED;

	if (fd >= 0 && fstat(fd, &status) == 0) {
		memory = mmap(NULL, (size_t)status.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
	}
	if (fd >= 0) {
		(void)close(fd);
	}
	return memory == MAP_FAILED ? -1 : munmap(memory, (size_t)status.st_size);
}

int main(int argc, char **argv)
{
	static double times[3][MAX_ROUNDS];
	struct distorch *c = NULL;
	uint64_t sum = 0;
	uint32_t n_tensors = 0;
	size_t n_rounds = argc > 2 ? strtoul(argv[2], NULL, 10) : 500;

	if (argc < 2 || n_rounds == 0 || n_rounds > MAX_ROUNDS ||
	    distorch_open(NULL, NULL, &c) < 0) {
		(void)fprintf(stderr,
			      "usage: attach MODEL.safetensors [ROUNDS]; a daemon must run\n");
		return 2;
	}
	if (distorch_load(c, argv[1], NULL, NULL, NULL) < 0) {
		(void)fprintf(stderr, "load: %s\n", distorch_error(c)->message);
		return 1;
	}
	for (size_t i = 0; i < n_rounds; i++) {
		double begun = now_us();

		n_tensors = attach_once(c, argv[1], &sum);
		times[0][i] = now_us() - begun;
		begun = now_us();
		(void)distorch_ping(c);
		times[1][i] = now_us() - begun;
		begun = now_us();
		(void)map_file(argv[1]);
		times[2][i] = now_us() - begun;
		if (n_tensors == 0) {
			return 1;
		}
	}
	(void)printf("%-44s %8s %8s %8s\n", "microseconds", "median", "p99", "max");
	(void)printf("attach %u tensors%s\n", n_tensors, sum == 0 ? "?" : "");
	print_row("  attach, all tensors, detach", times[0], n_rounds);
	print_row("  limit: one round trip (ping)", times[1], n_rounds);
	print_row("  limit: open, mmap, munmap of the file", times[2], n_rounds);
	(void)distorch_close(c);
	return 0;
}
