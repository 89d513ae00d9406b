/* SPDX-License-Identifier: Apache-2.0 */
/* Element types: safetensors' and ggml's names, the numbers of tables. Pure; any thread. */
#ifndef FORMAT_DTYPE_H
#define FORMAT_DTYPE_H

#include <stddef.h>
#include <stdint.h>

#define DTYPE_MAX_NAME 32 /* bytes; a longer name is none of ours */

uint16_t dtype_find(const char *name, size_t size); /* enum wire_dtype; 0 when unknown */
uint32_t dtype_bits(uint16_t dtype);                /* of one group; 0 when unknown */
uint32_t dtype_group(uint16_t dtype);               /* its elements: 1 unless quantised */
const char *dtype_name(uint16_t dtype);             /* "BF16"; NULL when unknown */

#endif
