/* SPDX-License-Identifier: Apache-2.0 */
/* Any file as one tensor "data" of its bytes: U8, shape [size], one block "(head)". */
#ifndef FORMAT_RAW_H
#define FORMAT_RAW_H

#include <stdint.h>

struct err;
struct tensor_map;

/* Returns 0 or -WIRE_NO_MEMORY; -WIRE_BAD_FILE for an empty file. */
int raw_check(uint64_t file_size, struct err *err);
int raw_parse(uint64_t file_size, struct tensor_map **ret_map, struct err *err);

#endif
