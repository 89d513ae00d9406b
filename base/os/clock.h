/* SPDX-License-Identifier: Apache-2.0 */
/* Clocks in nanoseconds. Deadlines use clock_mono_ns alone. Any thread. */
#ifndef BASE_OS_CLOCK_H
#define BASE_OS_CLOCK_H

#include <stdint.h>

uint64_t clock_mono_ns(void); /* does not count a suspended machine */
uint64_t clock_boot_ns(void); /* counts it */
uint64_t clock_real_ns(void); /* since 1970; for people only */

#ifdef DISTORCH_TESTING
void clock_warp(uint64_t ns); /* all three jump forward */
#endif

#endif
