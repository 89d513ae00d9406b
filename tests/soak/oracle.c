/* SPDX-License-Identifier: Apache-2.0 */
/* See oracle.h. */
#include "tests/soak/oracle.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define UNIT   4093 /* no page is like the next */
#define UNITS  65
#define BUFFER (UNIT * UNITS)

/* The pattern of a seed from offset 0 on. */
static void fill_buffer(uint64_t seed, uint8_t buffer[BUFFER])
{
	uint64_t state = seed * 0x9e3779b97f4a7c15U + 1;

	for (uint32_t i = 0; i < UNIT; i++) {
		state ^= state << 13;
		state ^= state >> 7;
		state ^= state << 17;
		buffer[i] = (uint8_t)(state >> 24);
	}
	for (uint32_t i = 1; i < UNITS; i++) {
		memcpy(buffer + (size_t)i * UNIT, buffer, UNIT);
	}
}

/* The last seed's pattern, kept: most looks are at few models. */
static const uint8_t *pattern_of(uint64_t seed)
{
	static uint8_t buffer[BUFFER];
	static uint64_t filled_with;
	static bool is_filled;

	if (!is_filled || filled_with != seed) {
		fill_buffer(seed, buffer);
		filled_with = seed;
		is_filled = true;
	}
	return buffer;
}

static void fill_header(const struct content *content, uint8_t header[ORACLE_HEADER])
{
	const uint64_t length = ORACLE_HEADER - 8;
	const uint64_t n_bytes = content->size - ORACLE_HEADER;
	char text[1024];
	int size = snprintf(
		text, sizeof text,
		"{\"__metadata__\":{\"slot\":\"%u\",\"seed\":\"%llu\"},\"stamp\":{\"dtype\":\"U8\","
		"\"shape\":[8],\"data_offsets\":[0,8]},\"data\":{\"dtype\":\"U8\",\"shape\":[%llu],"
		"\"data_offsets\":[8,%llu]}}",
		content->slot, (unsigned long long)content->seed, (unsigned long long)(n_bytes - 8),
		(unsigned long long)n_bytes);

	memset(header, ' ', ORACLE_HEADER);
	memcpy(header, &length, sizeof length); /* little-endian machines only */
	memcpy(header + 8, text, (size_t)size);
}

static int write_all(int fd, const uint8_t *bytes, uint64_t size)
{
	while (size > 0) {
		ssize_t n_written = write(fd, bytes, size);

		if (n_written <= 0) {
			return -1;
		}
		bytes += n_written;
		size -= (uint64_t)n_written;
	}
	return 0;
}

static int write_content(int fd, const struct content *content)
{
	const uint8_t *pattern = pattern_of(content->seed);
	uint8_t header[ORACLE_HEADER];
	uint64_t at = ORACLE_HEADER + 8;
	int code;

	fill_header(content, header);
	code = write_all(fd, header, sizeof header);
	if (code == 0) {
		code = write_all(fd, (const uint8_t *)&content->stamp, 8);
	}
	while (code == 0 && at < content->size) {
		uint64_t n_bytes = BUFFER - at % UNIT;

		n_bytes = n_bytes < content->size - at ? n_bytes : content->size - at;
		code = write_all(fd, pattern + at % UNIT, n_bytes);
		at += n_bytes;
	}
	return code;
}

int oracle_write(const char *path, const struct content *content)
{
	char new_path[1024];
	int fd;
	int code;

	(void)snprintf(new_path, sizeof new_path, "%s.new", path);
	fd = open(new_path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
	if (fd < 0) {
		return -1;
	}
	code = write_content(fd, content);
	(void)close(fd);
	return code < 0 ? -1 : rename(new_path, path);
}

int oracle_stamp(const char *path, uint64_t stamp)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);
	int code;

	if (fd < 0) {
		return -1;
	}
	code = pwrite(fd, &stamp, sizeof stamp, ORACLE_STAMP_AT) == (ssize_t)sizeof stamp ? 0 : -1;
	/* The kernel sets a time before it writes: who read in between has to see another one. */
	code = code == 0 ? futimens(fd, NULL) : code;
	(void)close(fd);
	return code;
}

static bool read_number(const uint8_t *header, const char *key, uint64_t *ret)
{
	const char *at = memmem(header, ORACLE_HEADER, key, strlen(key));

	if (at != NULL) {
		*ret = strtoull(at + strlen(key), NULL, 10); /* ends in the header: '"' follows */
	}
	return at != NULL;
}

bool oracle_read_memory(const uint8_t *memory, uint64_t size, struct content *ret)
{
	uint64_t slot = 0;

	if (size <= ORACLE_HEADER + 8 || !read_number(memory, "\"slot\":\"", &slot) ||
	    !read_number(memory, "\"seed\":\"", &ret->seed)) {
		return false;
	}
	ret->slot = (uint32_t)slot;
	ret->size = size;
	memcpy(&ret->stamp, memory + ORACLE_STAMP_AT, sizeof ret->stamp);
	return true;
}

bool oracle_read(int fd, struct content *ret)
{
	uint8_t first[ORACLE_HEADER + 8];
	uint64_t wanted = 0;
	struct stat status;

	if (pread(fd, first, sizeof first, 0) != (ssize_t)sizeof first || fstat(fd, &status) < 0 ||
	    !oracle_read_memory(first, (uint64_t)status.st_size, ret) ||
	    !read_number(first, "\"data_offsets\":[8,", &wanted)) {
		return false;
	}
	return ret->size == wanted + ORACLE_HEADER;
}

static bool is_filled_with(const uint8_t *memory, uint8_t byte, uint64_t n_bytes)
{
	return memory[0] == byte && memcmp(memory, memory + 1, n_bytes - 1) == 0;
}

static bool find_difference(const uint8_t *memory, const uint8_t *wanted, uint64_t n_bytes,
			    uint64_t at, uint64_t *ret_at)
{
	uint64_t i = 0;

	if (memcmp(memory, wanted, n_bytes) == 0) {
		return false;
	}
	while (memory[i] == wanted[i]) {
		i++;
	}
	*ret_at = at + i;
	return true;
}

bool oracle_check(const uint8_t *memory, const struct content *content, const uint8_t *written,
		  uint64_t *ret_at)
{
	const uint8_t *pattern = pattern_of(content->seed);
	uint8_t header[ORACLE_HEADER];

	fill_header(content, header);
	if (find_difference(memory, header, ORACLE_HEADER, 0, ret_at)) {
		return false;
	}
	for (uint64_t page = ORACLE_HEADER; page < content->size; page += ORACLE_PAGE) {
		const uint64_t left = content->size - page;
		const uint64_t n_bytes = left < ORACLE_PAGE ? left : ORACLE_PAGE;
		const uint64_t skipped = page == ORACLE_STAMP_AT ? 8 : 0;
		const uint8_t byte = written == NULL ? 0 : written[page / ORACLE_PAGE];

		if (byte == 0) {
			if (find_difference(memory + page + skipped,
					    pattern + (page + skipped) % UNIT, n_bytes - skipped,
					    page + skipped, ret_at)) {
				return false;
			}
		} else if (!is_filled_with(memory + page, byte, n_bytes)) {
			*ret_at = page;
			return false;
		}
	}
	return true;
}
