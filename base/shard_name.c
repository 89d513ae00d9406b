/* SPDX-License-Identifier: Apache-2.0 */
/* See shard_name.h. */
#include "base/shard_name.h"

#include <stdio.h>
#include <string.h>

#define INDEX        ".index."
#define JSON         "json"
#define OF           "-of-"
#define DIGITS       "0123456789"
#define MAX_N_DIGITS 9

static uint32_t read_digits(const char *text, size_t n_digits)
{
	uint32_t number = 0;

	for (size_t i = 0; i < n_digits; i++) {
		number = number * 10 + (uint32_t)(text[i] - '0');
	}
	return number;
}

/* The number around "-of-" at 'of'. */
static bool read_number(const char *name, const char *of, struct shard_number *ret)
{
	const char *start = of;
	size_t n_count = strspn(of + strlen(OF), DIGITS);
	size_t n_number;

	while (start > name && strchr(DIGITS, start[-1]) != NULL) {
		start--;
	}
	n_number = (size_t)(of - start);
	if (n_number == 0 || n_number > MAX_N_DIGITS || n_count == 0 || n_count > MAX_N_DIGITS ||
	    start <= name + 1 || start[-1] != '-') {
		return false;
	}
	*ret = (struct shard_number){
		.start = (size_t)(start - 1 - name),
		.end = (size_t)(of - name) + strlen(OF) + n_count,
		.n_digits = n_number == n_count ? (int)n_count : -1,
		.number = read_digits(start, n_number),
		.count = read_digits(of + strlen(OF), n_count),
	};
	return true;
}

bool shard_name_number(const char *name, struct shard_number *ret)
{
	bool is_found = false;

	for (const char *of = strstr(name, OF); of != NULL; of = strstr(of + 1, OF)) {
		is_found = read_number(name, of, ret) || is_found;
	}
	return is_found;
}

/* Where ".index." of an index's name begins, else NULL. */
static char *find_index(char *name)
{
	char *index = strstr(name, INDEX);
	size_t size = strlen(name);

	return index != NULL && index > name && size > strlen("." JSON) &&
			       strcmp(name + size - strlen("." JSON), "." JSON) == 0
		       ? index
		       : NULL;
}

bool shard_name_is_index(const char *name)
{
	union {
		const char *name;
		char *found;
	} same = {.name = name}; /* it is not written to */

	return find_index(same.found) != NULL;
}

/* "BASE.ENDING" and "VARIANT" into "BASE.VARIANT.ENDING", which has room at 'name'. */
static void insert_variant(char *name, const char *variant)
{
	char ending[64];
	char *dot = strrchr(name, '.');

	if (dot == NULL || strlen(dot) >= sizeof ending) {
		dot = name + strlen(name);
	}
	(void)snprintf(ending, sizeof ending, "%s", dot);
	*dot++ = '.';
	while (*variant != '\0') {
		*dot++ = *variant++;
	}
	memcpy(dot, ending, strlen(ending) + 1);
}

/* Of "BASE.index.json" and "BASE.index.VARIANT.json". */
static void cut_index(char *name, char *index)
{
	const char *rest = index + strlen(INDEX);
	size_t size = strlen(rest) - strlen(JSON);
	char variant[64] = "";

	if (size > 0 && size <= sizeof variant) {
		(void)snprintf(variant, sizeof variant, "%.*s", (int)size - 1, rest);
	}
	*index = '\0';
	if (variant[0] != '\0') {
		insert_variant(name, variant);
	}
}

void shard_name_of_model(char *name)
{
	char *index = find_index(name);
	struct shard_number number;

	if (index != NULL) {
		cut_index(name, index);
	} else if (shard_name_number(name, &number)) {
		memmove(name + number.start, name + number.end, strlen(name + number.end) + 1);
	}
}
