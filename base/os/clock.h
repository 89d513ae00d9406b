/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Clocks in nanoseconds, and an alarm. What waits for a process, a peer or a disk is measured by
 * clock_mono_ns: a suspended machine did not keep anybody waiting. What people said ("for an
 * hour") and how long a model was idle is measured by clock_boot_ns. Any thread.
 */
#ifndef BASE_OS_CLOCK_H
#define BASE_OS_CLOCK_H

#include <stdint.h>

uint64_t clock_mono_ns(void); /* does not count a suspended machine */
uint64_t clock_boot_ns(void); /* counts it */
uint64_t clock_real_ns(void); /* since 1970; for people only */
uint64_t clock_tick_ns(void); /* the same when the kernel's clock last ticked: files' times */

/* A descriptor that becomes readable at the moment it is set to, after a suspend at once; or -1. */
int clock_alarm_new(void);
void clock_alarm_set(int alarm, uint64_t boot_ns); /* UINT64_MAX: never */
void clock_alarm_clear(int alarm);                 /* it was readable, and is no more */

#ifdef DISTORCH_TESTING
void clock_warp_boot(uint64_t ns); /* forward, as after a suspend */
void clock_warp_real(int64_t ns);  /* either way, as when somebody sets it */
#endif

#endif
