/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Hooks of testing builds; in others there is nothing of them. Loop only.
 *
 * Environment: DISTORCHD_FAULT (sys_fault_parse, set when the daemon is ready),
 * DISTORCHD_FAULT_AT_START (likewise, until it is ready; a line then says how often it struck),
 * DISTORCHD_TEST_HELLO_MS, DISTORCHD_TEST_DRAIN_MS and DISTORCHD_TEST_GATHER_MS (instead of the
 * protocol's),
 * DISTORCHD_TEST_WORKER_MS, DISTORCHD_TEST_REST_MS, DISTORCHD_TEST_STEADY_MS and
 * DISTORCHD_TEST_LOOK_MS (how long a worker may take to answer, rests before it is begun again, has
 * to be well until it rests as the first time, and is left alone),
 * DISTORCHD_TEST_NVIDIA_PARAMS (instead of the driver's file of its parameters),
 * DISTORCHD_TEST_STALL_MS (a read without a byte for so long is stalled),
 * DISTORCHD_TEST_FILE: on SIGUSR2 its one line is carried out, the file is removed, and what
 * came of it stands in the file of the same name with ".done" behind it:
 *   fault SPEC   as DISTORCHD_FAULT      hits CALL   how often a fault struck it
 *   clear        no faults any more      corrupt OFFSET   flip a byte of the oldest image
 *   stall MS     the loop stands still for so long   suspend S   the machine slept for so long
 *   clock S      somebody set the wall clock, forward or back
 *   worker DEVICE WHAT   let something fail there: daemon/device/worker.h has what
 *   pressure     as if the kernel told of memory pressure      reserve BYTES   memory.reserve
 */
#ifndef DAEMON_TESTING_H
#define DAEMON_TESTING_H

#include <stdint.h>

struct daemon;

#ifdef DISTORCH_TESTING
void testing_init(void); /* first of all */
void testing_start(struct daemon *daemon);
/* The milliseconds that the variable says, else 'usual'. */
uint32_t testing_ms(const char *name, uint32_t usual);
const char *testing_text(const char *name, const char *usual); /* likewise; not copied */
/* A named moment: when the file DISTORCHD_TEST_POINT says NAME, or NAME:N, it is removed and the
 * daemon is killed there (the N-th time); NAME:N:ever leaves it. tests/e2e/kills.py has the
 * names. */
void testing_point(const char *name);
struct core_action;
struct load_result;
/* Points of their own before each action ("do-drop") and each result of the loader ("got-filled"). */
void testing_action(const struct core_action *action);
void testing_result(const struct load_result *result);
#else
struct core_action;
struct load_result;
static inline void testing_action(const struct core_action *action)
{
	(void)action;
}
static inline void testing_result(const struct load_result *result)
{
	(void)result;
}
static inline void testing_point(const char *name)
{
	(void)name;
}
static inline void testing_init(void)
{
}
static inline void testing_start(struct daemon *daemon)
{
	(void)daemon;
}
static inline uint32_t testing_ms(const char *name, uint32_t usual)
{
	(void)name;
	return usual;
}
static inline const char *testing_text(const char *name, const char *usual)
{
	(void)name;
	return usual;
}
#endif

#endif
