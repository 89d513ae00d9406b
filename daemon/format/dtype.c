/* SPDX-License-Identifier: Apache-2.0 */
/* One row a type, from the schema. See dtype.h. */
#include "daemon/format/dtype.h"

#include <string.h>

#include "proto/gen/wire_code.h"

static const struct {
	const char *name;
	uint32_t bits;
	uint32_t group;
} dtypes[] = {
#define DTYPE_ROW(number, word, width, count) [number] = {#word, width, count},
	WIRE_DTYPES(DTYPE_ROW)
#undef DTYPE_ROW
};

#define N_DTYPES (sizeof dtypes / sizeof dtypes[0])

uint16_t dtype_find(const char *name, size_t size)
{
	for (size_t i = 1; i < N_DTYPES; i++) {
		if (strlen(dtypes[i].name) == size && memcmp(dtypes[i].name, name, size) == 0) {
			return (uint16_t)i;
		}
	}
	return 0;
}

uint32_t dtype_bits(uint16_t dtype)
{
	return dtype < N_DTYPES ? dtypes[dtype].bits : 0;
}

uint32_t dtype_group(uint16_t dtype)
{
	return dtype < N_DTYPES ? dtypes[dtype].group : 0;
}

const char *dtype_name(uint16_t dtype)
{
	return dtype < N_DTYPES ? dtypes[dtype].name : NULL;
}
