/* SPDX-License-Identifier: Apache-2.0 */
/* XXH3-64 through libxxhash. See hash.h. */
#include "daemon/load/hash.h"

#include "base/require.h"

#include <stdint.h>
#include <xxhash.h>

uint64_t hash_bytes(const void *bytes, size_t size)
{
	return XXH3_64bits(bytes, size);
}

uint32_t hash_count_sums(uint64_t bytes)
{
	const uint64_t n_sums = bytes / HASH_RANGE_BYTES + (bytes % HASH_RANGE_BYTES != 0 ? 1 : 0);

	return n_sums > UINT32_MAX ? UINT32_MAX : (uint32_t)n_sums;
}

uint64_t hash_sums(const uint64_t *sums, uint32_t n_sums)
{
	/* The table is little-endian, and so is every machine that this is built for. */
	return XXH3_64bits(sums, n_sums * sizeof *sums);
}

void hash_wide(const void *bytes, size_t size, uint64_t ret[2])
{
	XXH128_hash_t hash = XXH3_128bits(bytes, size);

	ret[0] = hash.low64;
	ret[1] = hash.high64;
}

struct hash_stream *hash_stream_new(void)
{
	XXH3_state_t *state = XXH3_createState();

	return (struct hash_stream *)(void *)state;
}

static XXH3_state_t *state_of(struct hash_stream *stream)
{
	return (XXH3_state_t *)(void *)stream;
}

struct hash_stream *hash_stream_free(struct hash_stream *stream)
{
	(void)XXH3_freeState(state_of(stream));
	return NULL;
}

void hash_stream_begin(struct hash_stream *stream)
{
	REQUIRE(XXH3_64bits_reset(state_of(stream)) == XXH_OK);
}

void hash_stream_add(struct hash_stream *stream, const void *bytes, size_t size)
{
	REQUIRE(XXH3_64bits_update(state_of(stream), bytes, size) == XXH_OK);
}

uint64_t hash_stream_end(const struct hash_stream *stream)
{
	return XXH3_64bits_digest((const XXH3_state_t *)(const void *)stream);
}
