/* SPDX-License-Identifier: Apache-2.0 */
/* The host's memory: registering it where it is, pinning it, reading it. See docs/gpu-notes.md. */
#include "base/os/clock.h"
#include "base/os/memfd.h"
#include "base/os/sys.h"
#include "tests/gpu/parts.h"

#include <dlfcn.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define BUFFER    ((size_t)MEMFD_HUGE_BYTES) /* as those of the backend */
#define N_BUFFERS 32

typedef CUresult register_call(void *memory, size_t bytes, unsigned flags);

/* The backend does not need it. NULL: the driver has none. */
static register_call *find_register(void)
{
	void *symbol = dlsym(dlopen("libcuda.so.1", RTLD_NOW), "cuMemHostRegister_v2");
	register_call *call = NULL;

	memcpy(&call, &symbol, sizeof call);
	return call;
}

static CUresult enter_context(void)
{
	CUcontext context;
	CUresult result = cuda->cuDevicePrimaryCtxRetain(&context, 0);

	return result == CUDA_SUCCESS ? cuda->cuCtxSetCurrent(context) : result;
}

/* How many of the memory's bytes lie in 2 MiB pages. */
static uint64_t count_huge(char *memory, uint64_t bytes)
{
	uint64_t n_bytes = 0;

	for (uint64_t at = 0; at < bytes; at += MEMFD_HUGE_BYTES) {
		n_bytes += madvise(memory + at, MEMFD_HUGE_BYTES, MADV_COLLAPSE) == 0
				   ? MEMFD_HUGE_BYTES
				   : 0;
	}
	return n_bytes;
}

static int register_memory(bool is_huge)
{
	const char *question = is_huge ? "4 the same, in pages of 2 MiB"
				       : "4 registering a read-only mapping of a sealed memfd";
	register_call *add;
	char pages[64] = "";
	void *memory = NULL;
	uint64_t begun_ns;
	uint64_t bytes;
	CUresult result;

	open_driver();
	bytes = is_stand_in ? SIZE : 1024 * MIB;
	add = find_register();
	if (add == NULL || memfd_map(make_source(bytes, is_huge), bytes, PROT_READ, MAP_SHARED,
				     &memory, NULL) < 0) {
		say(question, "not tried (no such %s)", add == NULL ? "call" : "memory");
		return 0;
	}
	if (is_huge) {
		(void)snprintf(pages, sizeof pages, " (%llu %% of it in such)",
			       (unsigned long long)(count_huge(memory, bytes) * 100 / bytes));
	}
	result = enter_context();
	begun_ns = clock_mono_ns();
	if (result == CUDA_SUCCESS) {
		result = add(memory, bytes,
			     CU_MEMHOSTREGISTER_PORTABLE | CU_MEMHOSTREGISTER_READ_ONLY);
	}
	if (result != CUDA_SUCCESS) {
		refused(question, result, "register");
		return 0;
	}
	say(question, "works, %.3f s a GiB%s",
	    (double)(clock_mono_ns() - begun_ns) / 1e9 * 1024.0 * (double)MIB / (double)bytes,
	    pages);
	return 0;
}

int ask_registering(int none)
{
	(void)none;
	return register_memory(false);
}

int ask_registering_huge(int none)
{
	(void)none;
	return register_memory(true);
}

static double milliseconds_since(uint64_t *begun_ns)
{
	const uint64_t now_ns = clock_mono_ns();
	const double ms = (double)(now_ns - *begun_ns) / 1e6;

	*begun_ns = now_ns;
	return ms;
}

/* What the first fill of an empty card waits for, and whether memory that is there is had sooner. */
int ask_pinning(int none)
{
	static const char question[] = "4 ms to pin 64 MiB: by the driver; page them in, register";
	register_call *add;
	double ms[3];
	uint64_t begun_ns;
	char *memory;
	CUresult result;

	(void)none;
	open_driver();
	add = find_register();
	result = enter_context();
	begun_ns = clock_mono_ns();
	for (int i = 0; result == CUDA_SUCCESS && i < N_BUFFERS; i++) {
		void *buffer;

		result = cuda->cuMemHostAlloc(&buffer, BUFFER, 0);
	}
	ms[0] = milliseconds_since(&begun_ns);
	memory = mmap(NULL, (N_BUFFERS + 1) * BUFFER, PROT_READ | PROT_WRITE,
		      MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (add == NULL || memory == MAP_FAILED) {
		say(question, "not tried (no such %s)", add == NULL ? "call" : "memory");
		return 0;
	}
	memory += (BUFFER - (uintptr_t)memory % BUFFER) % BUFFER;
	(void)madvise(memory, N_BUFFERS * BUFFER, MADV_HUGEPAGE);
	(void)madvise(memory, N_BUFFERS * BUFFER, MADV_POPULATE_WRITE);
	ms[1] = milliseconds_since(&begun_ns);
	for (int i = 0; result == CUDA_SUCCESS && i < N_BUFFERS; i++) {
		result = add(memory + (size_t)i * BUFFER, BUFFER, 0);
	}
	ms[2] = milliseconds_since(&begun_ns);
	if (result != CUDA_SUCCESS) {
		refused(question, result, "pin");
		return 0;
	}
	say(question, "%.1f; %.1f %.1f", ms[0], ms[1], ms[2]);
	return 0;
}

/* GB/s of one thread that reads all of it into a buffer that stays in the processor's cache. */
static double read_all(int fd, uint64_t bytes, char *buffer)
{
	double best = 0;

	for (int i = 0; i < 3; i++) {
		uint64_t begun_ns = clock_mono_ns();
		double rate;

		for (uint64_t at = 0; at < bytes; at += BUFFER) {
			if (sys_pread(fd, buffer, BUFFER, at) != (ssize_t)BUFFER) {
				return 0;
			}
		}
		rate = (double)bytes / 1e6 / milliseconds_since(&begun_ns);
		best = rate > best ? rate : best;
	}
	return best;
}

/* Milliseconds until it is there, of the memory that a window of a copy has. */
static double take_window(bool is_huge)
{
	const uint64_t bytes = 4 * BUFFER;
	uint64_t begun_ns = clock_mono_ns();
	void *memory = NULL;
	double ms;
	int fd = -1;

	if (memfd_create_sized("window", bytes, &fd, NULL) < 0 ||
	    memfd_map(fd, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, &memory, NULL) < 0) {
		return 0;
	}
	if (is_huge) {
		(void)memfd_take_huge(memory, bytes);
	}
	(void)sys_madvise(memory, bytes, MADV_POPULATE_WRITE);
	ms = milliseconds_since(&begun_ns);
	memfd_unmap(memory, bytes);
	(void)close(fd);
	return ms;
}

/* The host's share of question 7: fills read images and windows, which lie in pages of 2 MiB. */
int ask_reading(int none)
{
	static char buffer[BUFFER];
	double rates[2];
	double ms[2];

	(void)none;
	open_driver();
	for (int is_huge = 0; is_huge < 2; is_huge++) {
		const int fd = make_source(SIZE, is_huge != 0);

		rates[is_huge] = read_all(fd, SIZE, buffer);
		ms[is_huge] = take_window(is_huge != 0);
		(void)close(fd);
	}
	say("7 one thread reads memory in pages of 4 KiB, of 2 MiB", "%.1f %.1f GB/s", rates[0],
	    rates[1]);
	say("7 ms until 8 MiB of either are there", "%.1f %.1f", ms[0], ms[1]);
	return 0;
}
