/* SPDX-License-Identifier: Apache-2.0 */
/* Runs a fuzz target over every file of the folders given: `replay FOLDER…`. */
#include "tests/fuzz/fuzz.h"

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>

/* One input in memory of exactly its size, so that a sanitizer sees any read past it. */
static int replay_file(const char *folder, const char *name)
{
	char path[4096];
	FILE *file;
	uint8_t *bytes;
	long size;

	if (snprintf(path, sizeof path, "%s/%s", folder, name) >= (int)sizeof path) {
		return -1;
	}
	file = fopen(path, "re");
	if (!file) {
		return -1;
	}
	if (fseek(file, 0, SEEK_END) != 0 || (size = ftell(file)) < 0) {
		(void)fclose(file);
		return -1;
	}
	rewind(file);
	bytes = malloc((size_t)size + (size == 0));
	if (!bytes || fread(bytes, 1, (size_t)size, file) != (size_t)size) {
		free(bytes);
		(void)fclose(file);
		return -1;
	}
	(void)fclose(file);
	(void)LLVMFuzzerTestOneInput(bytes, (size_t)size);
	free(bytes);
	return 0;
}

int main(int argc, char **argv)
{
	int n_inputs = 0;

	for (int i = 1; i < argc; i++) {
		DIR *folder = opendir(argv[i]);
		struct dirent *entry;

		if (!folder) {
			perror(argv[i]);
			return 1;
		}
		while ((entry = readdir(folder)) != NULL) {
			if (entry->d_name[0] == '.') {
				continue;
			}
			if (replay_file(argv[i], entry->d_name) != 0) {
				(void)fprintf(stderr, "%s/%s: cannot be read\n", argv[i],
					      entry->d_name);
				return 1;
			}
			n_inputs++;
		}
		(void)closedir(folder);
	}
	(void)printf("%d inputs\n", n_inputs);
	return n_inputs > 0 ? 0 : 1;
}
