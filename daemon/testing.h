/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Hooks of testing builds; in others there is nothing of them. Loop only.
 *
 * Environment: DISTORCHD_FAULT (sys_fault_parse, set when the daemon is ready),
 * DISTORCHD_FAULT_AT_START (likewise, until it is ready; a line then says how often it struck),
 * DISTORCHD_TEST_HELLO_MS and DISTORCHD_TEST_DRAIN_MS (instead of the protocol's),
 * DISTORCHD_TEST_STALL_MS (a read without a byte for so long is stalled),
 * DISTORCHD_TEST_FILE: on SIGUSR2 its one line is carried out, the file is removed, and what
 * came of it stands in the file of the same name with ".done" behind it:
 *   fault SPEC   as DISTORCHD_FAULT      hits CALL   how often a fault struck it
 *   clear        no faults any more      corrupt OFFSET   flip a byte of the oldest image
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
/* A named moment: when the file DISTORCHD_TEST_POINT says NAME, or NAME:N, it is removed and the
 * daemon is killed there (the N-th time); NAME:N:ever leaves it. tests/e2e/test_restart.py has
 * the names. */
void testing_point(const char *name);
#else
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
#endif

#endif
