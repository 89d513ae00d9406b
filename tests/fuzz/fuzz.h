/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The door of every fuzz target. libFuzzer calls it with inputs of its making; linked with
 * tests/fuzz/replay.c it runs over saved inputs, as an ordinary test.
 */
#ifndef TESTS_FUZZ_FUZZ_H
#define TESTS_FUZZ_FUZZ_H

#include <stddef.h>
#include <stdint.h>

/* Returns 0; a fault found ends the process. */
int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size);

#endif
