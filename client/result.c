/* SPDX-License-Identifier: Apache-2.0 */
#include "client/result.h"

#include "base/list.h"

#include <stdalign.h>
#include <stdlib.h>
#include <string.h>

#define BLOCK_BYTES ((size_t)4000)

struct block {
	struct block *next;
	size_t size;
	size_t used;
	alignas(16) unsigned char bytes[];
};

struct result {
	struct block *blocks; /* owner: the result; newest first */
	alignas(16) unsigned char structure[];
};

void *result_new(size_t size)
{
	struct result *result = calloc(1, sizeof *result + size);

	return result != NULL ? result->structure : NULL;
}

void result_free(void *structure)
{
	struct result *result;

	if (structure == NULL) {
		return;
	}
	result = container_of(structure, struct result, structure);
	while (result->blocks != NULL) {
		struct block *block = result->blocks;

		result->blocks = block->next;
		free(block);
	}
	free(result);
}

void *result_add(void *structure, size_t size)
{
	struct result *result = container_of(structure, struct result, structure);
	struct block *block = result->blocks;
	size_t padded = (size + 15) & ~(size_t)15;
	void *memory;

	if (block == NULL || block->size - block->used < padded) {
		size_t room = padded > BLOCK_BYTES ? padded : BLOCK_BYTES;

		block = calloc(1, sizeof *block + room);
		if (block == NULL) {
			return NULL;
		}
		block->size = room;
		block->next = result->blocks;
		result->blocks = block;
	}
	memory = block->bytes + block->used;
	block->used += padded;
	return memory;
}

char *result_text(void *structure, struct wire_str text)
{
	char *copy = result_add(structure, (size_t)text.size + 1);

	if (copy != NULL && text.size > 0) {
		memcpy(copy, text.text, text.size);
	}
	return copy;
}
