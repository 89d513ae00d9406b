/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Arithmetic on numbers that came from a file or a peer. Every function returns false
 * when the result does not fit and leaves the out-parameter untouched. Rooms that read
 * foreign numbers use nothing else for + - * and rounding (tests/lint checks it).
 * Pure; any thread.
 */
#ifndef BASE_CHECKED_H
#define BASE_CHECKED_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

static inline bool checked_add(uint64_t a, uint64_t b, uint64_t *ret)
{
	uint64_t sum;

	if (__builtin_add_overflow(a, b, &sum)) {
		return false;
	}
	*ret = sum;
	return true;
}

static inline bool checked_sub(uint64_t a, uint64_t b, uint64_t *ret)
{
	if (b > a) {
		return false;
	}
	*ret = a - b;
	return true;
}

static inline bool checked_mul(uint64_t a, uint64_t b, uint64_t *ret)
{
	uint64_t product;

	if (__builtin_mul_overflow(a, b, &product)) {
		return false;
	}
	*ret = product;
	return true;
}

/* Round up to a multiple of 'granule', a power of two. */
static inline bool checked_round_up(uint64_t value, uint64_t granule, uint64_t *ret)
{
	uint64_t padded;

	if (granule == 0 || (granule & (granule - 1)) != 0) {
		return false;
	}
	if (!checked_add(value, granule - 1, &padded)) {
		return false;
	}
	*ret = padded & ~(granule - 1);
	return true;
}

static inline bool checked_narrow_u32(uint64_t value, uint32_t *ret)
{
	if (value > UINT32_MAX) {
		return false;
	}
	*ret = (uint32_t)value;
	return true;
}

static inline bool checked_narrow_size(uint64_t value, size_t *ret)
{
	if (value > SIZE_MAX) {
		return false;
	}
	*ret = (size_t)value;
	return true;
}

/* Does [offset, offset + size) lie within [0, total)? */
static inline bool checked_range(uint64_t offset, uint64_t size, uint64_t total)
{
	return offset <= total && size <= total - offset;
}

#endif
