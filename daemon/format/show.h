/* SPDX-License-Identifier: Apache-2.0 */
/* Names and numbers of a file in the words of a refusal. Pure; any thread. */
#ifndef FORMAT_SHOW_H
#define FORMAT_SHOW_H

#include <stddef.h>
#include <stdint.h>

struct err;

#define SHOW_NAME_SIZE  96
#define SHOW_COUNT_SIZE 32

/* A name that may hold anything, as much of it as a message has room for. */
const char *show_name(const char *name, size_t size, char buffer[SHOW_NAME_SIZE]);

/* "9,402,112" */
const char *show_count(uint64_t count, char buffer[SHOW_COUNT_SIZE]);

/* Refuse: the file ends before what its header describes. */
int show_incomplete(uint64_t file_size, uint64_t described, struct err *err);

#endif
