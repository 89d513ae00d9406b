/* SPDX-License-Identifier: Apache-2.0 */
/* Question 4: registering memory where it is. See docs/gpu-notes.md. */
#include "base/os/clock.h"
#include "tests/gpu/parts.h"

#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

#ifndef MADV_COLLAPSE
#	define MADV_COLLAPSE 25
#endif
#define HUGE_PAGE (2 * MIB)

/* Where pages of 2 MiB can be; NULL: errno says why not. */
static void *map_aligned(int fd, uint64_t bytes)
{
	char *memory = mmap(NULL, bytes + HUGE_PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (memory == MAP_FAILED) {
		return NULL;
	}
	memory += (HUGE_PAGE - (uintptr_t)memory % HUGE_PAGE) % HUGE_PAGE;
	memory = mmap(memory, bytes, PROT_READ, MAP_SHARED | MAP_FIXED, fd, 0);
	return memory == MAP_FAILED ? NULL : memory;
}

/* How many of the memory's bytes lie in 2 MiB pages now. */
static uint64_t collapse(char *memory, uint64_t bytes)
{
	uint64_t n_bytes = 0;

	for (uint64_t at = 0; at < bytes; at += HUGE_PAGE) {
		n_bytes += madvise(memory + at, HUGE_PAGE, MADV_COLLAPSE) == 0 ? HUGE_PAGE : 0;
	}
	return n_bytes;
}

static int register_memory(bool is_huge)
{
	const char *question = is_huge ? "4 the same, in pages of 2 MiB"
				       : "4 registering a read-only mapping of a sealed memfd";
	CUresult (*add)(void *, size_t, unsigned) = NULL;
	char pages[64] = "";
	void *symbol;
	char *memory;
	CUcontext context;
	uint64_t begun_ns;
	uint64_t bytes;
	CUresult result;

	open_driver();
	bytes = is_stand_in ? SIZE : 1024 * MIB;
	symbol = dlsym(dlopen("libcuda.so.1", RTLD_NOW), "cuMemHostRegister_v2");
	memory = map_aligned(make_source(bytes), bytes);
	if (symbol == NULL || memory == NULL) {
		say(question, "not tried (%s)", symbol == NULL ? "no such call" : strerror(errno));
		return 0;
	}
	if (is_huge) {
		(void)snprintf(pages, sizeof pages, " (%llu %% of it in such)",
			       (unsigned long long)(collapse(memory, bytes) * 100 / bytes));
	}
	memcpy(&add, &symbol, sizeof add);
	result = cuda->cuDevicePrimaryCtxRetain(&context, 0);
	if (result == CUDA_SUCCESS) {
		result = cuda->cuCtxSetCurrent(context);
	}
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
