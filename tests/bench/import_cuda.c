/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Import of 100 segments of a card in a client: descriptors that a worker exported, mapped for
 * reading. Over the stand-in driver, so it is our own work and the kernel's that is measured and
 * no card's (docs/gpu-notes.md has those).
 */
#include "base/err.h"
#include "base/os/clock.h"
#include "base/os/fdpass.h"

#include <dlfcn.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "client/map_cuda.h"
#include "daemon/device/device.h"

#define N_SEGMENTS 100
#define N_TOGETHER 25 /* an answer has up to 30 */
#define BYTES      ((uint64_t)2 << 20)
#define N_ROUNDS   20
#define UUID       "GPU-fa4ecada-0000-4000-8000-000000000000"

static void must(bool is_so, const char *what)
{
	if (!is_so) {
		(void)fprintf(stderr, "import_cuda: %s\n", what);
		_exit(1);
	}
}

static void load_stand_in(void)
{
	must(dlopen(FAKECUDA_FOLDER "/libcuda.so.1", RTLD_NOW) != NULL, "no stand-in");
	must(dlopen(FAKECUDA_FOLDER "/libnvidia-ml.so.1", RTLD_NOW) != NULL, "no stand-in");
}

/* The worker: each round it sends a descriptor of each segment. */
static void be_worker(int socket)
{
	const struct device_alloc request = {.name = "bench", .bytes = BYTES};
	struct device *device = NULL;
	struct extent *extents[N_SEGMENTS];
	struct err err = {0};
	char byte = 'x';

	load_stand_in();
	device_register(&cuda_device_ops);
	must(device_open("cuda", UUID, &device, &err) == 0, err.text);
	for (size_t i = 0; i < N_SEGMENTS; i++) {
		must(device_alloc(device, &request, &extents[i], &err) == 0, err.text);
		must(device_seal(extents[i], &err) == 0, err.text);
	}
	while (read(socket, &byte, 1) == 1) {
		for (size_t i = 0; i < N_SEGMENTS; i++) {
			int error = 0;
			int fd = -1;

			must(device_export(extents[i], &fd, &err) == 0, err.text);
			must(fdpass_send(socket, &byte, 1, &fd, 1, &error) == FDPASS_OK, "send");
			(void)close(fd);
			must(read(socket, &byte, 1) == 1, "the client has gone");
		}
	}
	_exit(0);
}

static void receive(int socket, int fds[N_SEGMENTS])
{
	char byte = 'x';

	must(write(socket, &byte, 1) == 1, "the worker has gone");
	for (size_t i = 0; i < N_SEGMENTS; i++) {
		struct fdpass_packet packet;
		enum fdpass_status status;

		do {
			status = fdpass_receive(socket, &byte, 1, &packet);
		} while (status == FDPASS_AGAIN);
		must(status == FDPASS_OK && packet.n_fds == 1, "receive");
		fds[i] = packet.fds[0];
		must(write(socket, &byte, 1) == 1, "the worker has gone");
	}
}

static void import(const int *fds, struct cuda_range *ret)
{
	struct cuda_source sources[N_TOGETHER];

	for (size_t i = 0; i < N_TOGETHER; i++) {
		sources[i] = (struct cuda_source){.fd = fds[i], .bytes = BYTES};
	}
	must(map_cuda_import(UUID, sources, N_TOGETHER, ret) == 0, "import");
}

static int compare(const void *a, const void *b)
{
	const double x = *(const double *)a;
	const double y = *(const double *)b;

	return (x > y) - (x < y);
}

int main(void)
{
	struct cuda_range ranges[N_SEGMENTS / N_TOGETHER];
	char folder[] = "/dev/shm/distorch-bench.XXXXXX";
	char command[64];
	double ms[N_ROUNDS];
	int fds[N_SEGMENTS];
	int ends[2];
	pid_t worker;

	must(mkdtemp(folder) != NULL, "no folder");
	must(setenv("FAKECUDA_DIR", folder, 1) == 0 && setenv("FAKECUDA_CARDS", "256M", 1) == 0,
	     "no environment");
	must(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) == 0, "no socket");
	worker = fork();
	if (worker == 0) {
		(void)close(ends[0]);
		be_worker(ends[1]);
	}
	(void)close(ends[1]);
	load_stand_in();
	for (size_t round = 0; round < N_ROUNDS; round++) {
		uint64_t begun_ns;

		receive(ends[0], fds);
		begun_ns = clock_mono_ns();
		for (size_t i = 0; i < N_SEGMENTS / N_TOGETHER; i++) {
			import(&fds[i * N_TOGETHER], &ranges[i]);
		}
		ms[round] = (double)(clock_mono_ns() - begun_ns) / 1e6;
		for (size_t i = 0; i < N_SEGMENTS / N_TOGETHER; i++) {
			must(map_cuda_release(&ranges[i]) == 0, "release");
		}
	}
	(void)close(ends[0]);
	(void)waitpid(worker, NULL, 0);
	qsort(ms, N_ROUNDS, sizeof ms[0], compare);
	(void)printf("%-66s %8.2f ms (worst of %d: %.2f; the aim is 5)\n",
		     "import of 100 segments of a card, [stand-in], median", ms[N_ROUNDS / 2],
		     N_ROUNDS, ms[N_ROUNDS - 1]);
	(void)snprintf(command, sizeof command, "rm -rf %s", folder);
	return system(command) == 0 ? 0 : 1;
}
