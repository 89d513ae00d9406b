/* SPDX-License-Identifier: Apache-2.0 */
/*
 * malloc and free of the code under test, watched: how many blocks live, how many bytes at
 * most, and the nth call made to fail. Link with -Wl,--wrap= for malloc, calloc, realloc, free; what a shared
 * library allocates for itself is not seen. One file of a program may include it.
 */
#ifndef TESTS_SUPPORT_HEAP_WATCH_H
#define TESTS_SUPPORT_HEAP_WATCH_H

#include <malloc.h>
#include <stdbool.h>
#include <stddef.h>

static struct {
	size_t n_live;
	size_t bytes;
	size_t peak_bytes;
	size_t n_calls;
	size_t fail_at;     /* 0: never */
	bool is_failing_on; /* all later ones fail too */
} heap;

void *__real_malloc(size_t size);
void *__real_calloc(size_t count, size_t size);
void *__real_realloc(void *memory, size_t size);
void __real_free(void *memory);
void *__wrap_malloc(size_t size);
void *__wrap_calloc(size_t count, size_t size);
void *__wrap_realloc(void *memory, size_t size);
void __wrap_free(void *memory);

static inline bool heap_watch_strikes(void)
{
	heap.n_calls++;
	return heap.fail_at != 0 && (heap.n_calls == heap.fail_at ||
				     (heap.n_calls > heap.fail_at && heap.is_failing_on));
}

static inline void heap_watch_add(void *memory)
{
	heap.n_live++;
	heap.bytes += malloc_usable_size(memory);
	heap.peak_bytes = heap.bytes > heap.peak_bytes ? heap.bytes : heap.peak_bytes;
}

void *__wrap_malloc(size_t size)
{
	void *memory = heap_watch_strikes() ? NULL : __real_malloc(size);

	if (memory != NULL) {
		heap_watch_add(memory);
	}
	return memory;
}

void *__wrap_calloc(size_t count, size_t size)
{
	void *memory = heap_watch_strikes() ? NULL : __real_calloc(count, size);

	if (memory != NULL) {
		heap_watch_add(memory);
	}
	return memory;
}

void *__wrap_realloc(void *memory, size_t size)
{
	size_t old_bytes = memory == NULL ? 0 : malloc_usable_size(memory);
	void *grown = heap_watch_strikes() ? NULL : __real_realloc(memory, size);

	if (grown != NULL) {
		heap.n_live -= memory == NULL ? 0 : 1;
		heap.bytes -= old_bytes;
		heap_watch_add(grown);
	}
	return grown;
}

void __wrap_free(void *memory)
{
	if (memory != NULL) {
		heap.n_live--;
		heap.bytes -= malloc_usable_size(memory);
	}
	__real_free(memory);
}

/* From here on the peak counts from what lives now. */
static inline void heap_watch_begin(void)
{
	heap.peak_bytes = heap.bytes;
	heap.n_calls = 0;
	heap.fail_at = 0;
}

#endif
