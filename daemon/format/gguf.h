/* SPDX-License-Identifier: Apache-2.0 */
/* The GGUF half of format.h; the contracts stand there. Pure but for memory. */
#ifndef FORMAT_GGUF_H
#define FORMAT_GGUF_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct err;
struct tensor_map;

/* The magic, in either byte order. */
bool gguf_is_likely(const void *first, size_t size);

int gguf_probe(const void *first, size_t size, uint64_t file_size, uint64_t *ret_header_bytes,
	       struct err *err);

int gguf_parse(const void *header, size_t size, uint64_t file_size, struct tensor_map **ret_map,
	       struct err *err);

#endif
