/* SPDX-License-Identifier: Apache-2.0 */
/* Buckets of hashes of texts. See model_text.h. */
#include "daemon/model_text.h"

#include "base/require.h"

#include <ctype.h>
#include <stdio.h>
#include <string.h>

#include "daemon/store.h"

/* Not to be foreseen by who chooses the names: begins with where the index happens to lie. */
static uint32_t hash_text(const struct text_index *index, const char *text, size_t size)
{
	uint32_t hash = 0x811c9dc5U ^ (uint32_t)((uintptr_t)index >> 4);

	for (size_t i = 0; i < size; i++) {
		hash = (hash ^ (unsigned char)text[i]) * 0x01000193U;
	}
	return hash ^ hash >> 15;
}

static uint32_t hash_id(const struct text_index *index, const char *digits)
{
	char lower[4];

	for (size_t i = 0; i < sizeof lower; i++) {
		lower[i] = (char)tolower((unsigned char)digits[i]);
	}
	return hash_text(index, lower, sizeof lower);
}

static const char *last_part(const char *path)
{
	const char *slash = strrchr(path, '/');

	return slash == NULL ? path : slash + 1;
}

/* Up to the ending of its last part. */
static size_t stem_size(const char *name)
{
	const char *dot = strrchr(last_part(name), '.');

	return dot == NULL ? strlen(name) : (size_t)(dot - name);
}

void text_index_add(struct text_index *index, struct model_info *model)
{
	const char *file = last_part(model->path);
	char digits[5];

	(void)snprintf(digits, sizeof digits, "%02x%02x", model->uuid[0], model->uuid[1]);
	model->texts[MODEL_TEXT_ID].hash = hash_id(index, digits);
	model->texts[MODEL_TEXT_PATH].hash = hash_text(index, model->path, strlen(model->path));
	model->texts[MODEL_TEXT_FILE].hash = hash_text(index, file, strlen(file));
	model->texts[MODEL_TEXT_NAME].hash = hash_text(index, model->name, strlen(model->name));
	model->texts[MODEL_TEXT_FILE_STEM].hash = hash_text(index, file, stem_size(file));
	model->texts[MODEL_TEXT_NAME_STEM].hash =
		hash_text(index, model->name, stem_size(model->name));
	for (int kind = 0; kind < MODEL_TEXT_N_KINDS; kind++) {
		struct model_text *text = &model->texts[kind];
		struct model_text **end = &index->buckets[text->hash & (TEXT_BUCKETS - 1)];

		while (*end != NULL) {
			end = &(*end)->next;
		}
		text->model = model;
		*end = text;
	}
}

void text_index_remove(struct text_index *index, const struct model_info *model)
{
	for (int kind = 0; kind < MODEL_TEXT_N_KINDS; kind++) {
		const struct model_text *text = &model->texts[kind];
		struct model_text **link = &index->buckets[text->hash & (TEXT_BUCKETS - 1)];

		while (*link != text) {
			REQUIRE(*link != NULL);
			link = &(*link)->next;
		}
		*link = text->next;
	}
}

static void begin_walk(struct text_index *index, const char *text, struct text_walk *walk)
{
	const char *file = last_part(text);

	walk->number = ++index->n_walks;
	walk->hashes[walk->n_hashes++] = hash_text(index, text, strlen(text));
	if (file != text) {
		walk->hashes[walk->n_hashes++] = hash_text(index, file, strlen(file));
	}
	if (strspn(text, "0123456789abcdefABCDEF") >= 4) {
		walk->hashes[walk->n_hashes++] = hash_id(index, text);
	}
}

struct model_info *text_index_next(struct text_index *index, const char *text,
				   struct text_walk *walk)
{
	if (walk->n_hashes == 0) {
		begin_walk(index, text, walk);
		walk->next = index->buckets[walk->hashes[0] & (TEXT_BUCKETS - 1)];
	}
	while (walk->n_done < walk->n_hashes) {
		const struct model_text *found = walk->next;

		if (found == NULL) {
			walk->n_done++;
			walk->next = walk->n_done == walk->n_hashes
					     ? NULL
					     : index->buckets[walk->hashes[walk->n_done] &
							      (TEXT_BUCKETS - 1)];
			continue;
		}
		walk->next = found->next;
		if (found->hash == walk->hashes[walk->n_done] &&
		    found->model->seen != walk->number) {
			found->model->seen = walk->number;
			return found->model;
		}
	}
	return NULL;
}
