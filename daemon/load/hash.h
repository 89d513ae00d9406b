/* SPDX-License-Identifier: Apache-2.0 */
/* XXH3-64, of tables and of each 64 MiB of a file. Pure; any thread. */
#ifndef LOAD_HASH_H
#define LOAD_HASH_H

#include <stddef.h>
#include <stdint.h>

#define HASH_RANGE_BYTES (64ULL << 20) /* one sum stands for so many bytes; the last for less */
#define HASH_OF_HOLE     0x0939aaa27d431ff2ULL /* the sum of a range that is all zeros */

/* Fits table_hash_fn of proto/table.h. */
uint64_t hash_bytes(const void *bytes, size_t size);

/* How many sums a file of so many bytes has. */
uint32_t hash_count_sums(uint64_t bytes);

/* One number for all sums. */
uint64_t hash_sums(const uint64_t *sums, uint32_t n_sums);

/* 128 bits. */
void hash_wide(const void *bytes, size_t size, uint64_t ret[2]);

/* Bytes that come in pieces. */
struct hash_stream;
struct hash_stream *hash_stream_new(void); /* NULL: no memory */
struct hash_stream *hash_stream_free(struct hash_stream *stream);
void hash_stream_begin(struct hash_stream *stream);
void hash_stream_add(struct hash_stream *stream, const void *bytes, size_t size);
uint64_t hash_stream_end(const struct hash_stream *stream);

#endif
