/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the format room says of files: `format_dump FILE…` prints one line of JSON a file,
 * {"error": code, "text": …} or {"tensors": [[name, dtype, shape, offset, bytes], …]}. For
 * the differential test against another reader of the same files.
 */
#include "base/err.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/format/dtype.h"
#include "daemon/format/format.h"

static void print_text(const char *text, size_t size)
{
	(void)putchar('"');
	for (size_t i = 0; i < size; i++) {
		unsigned char c = (unsigned char)text[i];

		if (c < 0x20 || c == '"' || c == '\\') {
			(void)printf("\\u%04x", c);
		} else {
			(void)putchar(c);
		}
	}
	(void)putchar('"');
}

static void print_map(const struct tensor_map *map)
{
	(void)printf("{\"tensors\": [");
	for (uint32_t i = 0; i < map->n_tensors; i++) {
		const struct tensor *tensor = &map->tensors[i];

		(void)printf("%s[", i == 0 ? "" : ", ");
		print_text(tensor->name, tensor->name_size);
		(void)printf(", \"%s\", [", dtype_name(tensor->dtype));
		for (uint8_t j = 0; j < tensor->rank; j++) {
			(void)printf("%s%llu", j == 0 ? "" : ", ",
				     (unsigned long long)tensor->shape[j]);
		}
		(void)printf("], %llu, %llu]", (unsigned long long)tensor->offset,
			     (unsigned long long)tensor->size);
	}
	(void)printf("]}\n");
}

static int read_map(const unsigned char *bytes, size_t size, struct tensor_map **ret,
		    struct err *err)
{
	enum format format;
	uint64_t header_bytes = size < FORMAT_PROBE_SIZE ? size : FORMAT_PROBE_SIZE;
	uint64_t first;
	int code;

	do {
		first = header_bytes;
		code = format_probe(bytes, first, size, FORMAT_AUTO, &format, &header_bytes, err);
	} while (code == 0 && header_bytes > first);
	return code < 0 ? code : format_parse(format, bytes, header_bytes, size, ret, err);
}

static int dump_file(const char *path)
{
	FILE *file = fopen(path, "re");
	struct tensor_map *map = NULL;
	struct err err = {0};
	unsigned char *bytes = NULL;
	long size;
	int code;

	if (file == NULL || fseek(file, 0, SEEK_END) != 0 || (size = ftell(file)) < 0) {
		perror(path);
		return -1;
	}
	rewind(file);
	bytes = malloc((size_t)size + 1);
	if (bytes == NULL || fread(bytes, 1, (size_t)size, file) != (size_t)size) {
		perror(path);
		return -1;
	}
	(void)fclose(file);
	code = read_map(bytes, (size_t)size, &map, &err);
	if (code == 0) {
		print_map(map);
	} else {
		(void)printf("{\"error\": %d, \"text\": ", code);
		print_text(err.text, strlen(err.text));
		(void)printf("}\n");
	}
	(void)tensor_map_free(map);
	free(bytes);
	return 0;
}

int main(int argc, char **argv)
{
	for (int i = 1; i < argc; i++) {
		if (dump_file(argv[i]) < 0) {
			return 1;
		}
	}
	return 0;
}
