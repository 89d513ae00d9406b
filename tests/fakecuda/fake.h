/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A stand-in for libcuda.so.1, for tests on machines without a card. What it enforces is what
 * the driver's manual says: granularity, whole ranges, access before use, one current context a
 * thread; and memory is shared between processes and freed at the last reference for real
 * (card.h). Device pointers are this process's own, so a test reads device memory directly.
 *
 * Asynchronous work is put off to the last moment that is allowed: to the wait for it. Who
 * touches a buffer too early sees it. A mapping read with PROT_READ is one: a write is fatal.
 *
 * Faults: "NAME:N:CODE" makes the n-th call of that name ("*": of any) from now on return the
 * code, "NAME:N:CODE:ever" all later ones too; several are separated by ';'. By
 * fakecuda_fault(), by FAKECUDA_FAULT, or by the file DIR/faults, looked at every few milliseconds. A
 * code after which the real driver is of no use is returned by all later calls.
 */
#ifndef TESTS_FAKECUDA_FAKE_H
#define TESTS_FAKECUDA_FAKE_H

#include "tests/fakecuda/card.h"

#include <cuda.h>
#include <stddef.h>

#define FAKE_API __attribute__((visibility("default")))

/* ---- for tests, found by dlsym ---- */

FAKE_API void fakecuda_fault(const char *text); /* "": none, and the driver is as new */
FAKE_API uint64_t fakecuda_n_hits(void);        /* faults that struck since then */
FAKE_API const char *fakecuda_struck(void);     /* the call that the last one struck */
/* Handles, reservations, mappings, pinned memory, contexts, streams and events there are. */
FAKE_API uint64_t fakecuda_n_objects(void);
FAKE_API uint64_t fakecuda_used(int ordinal); /* bytes of the card, of all processes */

/* ---- inside ---- */

struct fake_device {
	struct card card;
	uint32_t n_retained; /* of its primary context, whose address this is */
	int context_fd;      /* of the memory that it takes; -1: none */
	unsigned flags;
};

extern struct fake_device fake_devices[CARDS_MAX]; /* those visible, by ordinal */
extern uint32_t fake_n_devices;
extern uint64_t fake_n_objects;

bool fake_is_device(int ordinal);
bool fake_can_reach(int from, int to);
bool fake_has_context(void);                  /* is one current in this thread? */
const struct fake_device *fake_current(void); /* whose it is */

/* Locks; says what a call is to return at once. */
CUresult fake_enter(const char *name, bool is_question);
void fake_leave(const int *entered);
void fake_break(CUresult result); /* from now on every call returns it */
CUresult fake_broken(void);

/*
 * The first line of every call. Questions are answered also before cuInit and after a fault
 * that broke everything.
 */
#define FAKE_CALL(name)     FAKE_ENTER(#name, false)
#define FAKE_QUESTION(name) FAKE_ENTER(#name, true)
#define FAKE_ENTER(name, is_question)                                    \
	__attribute__((cleanup(fake_leave))) const int fake_entered = 1; \
	const CUresult fake_result = fake_enter(name, is_question);      \
	(void)fake_entered;                                              \
	if (fake_result != CUDA_SUCCESS) {                               \
		return fake_result;                                      \
	}

/* Does [at, at + size) lie in one mapping that allows it? */
bool fake_is_mapped(CUdeviceptr at, size_t size, bool is_write);
bool fake_is_pinned(const void *at, size_t size);
void fake_run_all(void); /* what was put off, of all streams */

#endif
