/* SPDX-License-Identifier: Apache-2.0 */
/* The safetensors half of format.h; the contracts stand there. Pure but for memory. */
#ifndef FORMAT_SAFETENSORS_H
#define FORMAT_SAFETENSORS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct err;
struct tensor_map;

/* Eight bytes of a length that is possible, then a brace. */
bool safetensors_is_likely(const void *first, size_t size);

int safetensors_probe(const void *first, size_t size, uint64_t file_size,
		      uint64_t *ret_header_bytes, struct err *err);

int safetensors_parse(const void *header, size_t size, uint64_t file_size,
		      struct tensor_map **ret_map, struct err *err);

#endif
