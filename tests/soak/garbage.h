/* SPDX-License-Identifier: Apache-2.0 */
/* What no client should send, by seed. Never waits long for an answer. */
#ifndef TESTS_SOAK_GARBAGE_H
#define TESTS_SOAK_GARBAGE_H

#include <stdint.h>

uint64_t chance(uint64_t n); /* 0 … n - 1, by this life's seed */
void garbage_send(const char *socket_path);

#endif
