/* SPDX-License-Identifier: Apache-2.0 */
/* Names of files of models that have several, and of those models. Pure; any thread. */
#ifndef BASE_SHARD_NAME_H
#define BASE_SHARD_NAME_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* The "-00002-of-00003" of a name. */
struct shard_number {
	size_t start; /* of it, behind at least one letter */
	size_t end;
	int n_digits; /* of both numbers; -1: they differ */
	uint32_t number;
	uint32_t count;
};

/* False: 'name' has none. The last one of several counts. */
bool shard_name_number(const char *name, struct shard_number *ret);

/* Is it that of an index: "m.safetensors.index.json", "m.safetensors.index.fp16.json"? */
bool shard_name_is_index(const char *name);

/*
 * Make what people call the model of the name of its index, or of one of its files, in place; it
 * only gets shorter: "m.safetensors.index.json" is "m.safetensors",
 * "m.safetensors.index.fp16.json" is "m.fp16.safetensors", "m-00001-of-00003.gguf" is "m.gguf".
 * Other names stay.
 */
void shard_name_of_model(char *name);

#endif
