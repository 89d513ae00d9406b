/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The models of the soak: every byte of a file follows from its slot, its seed and its size, but
 * for the eight of its stamp, which may be written in place. So any mapping can be judged without
 * the file that it was made of.
 */
#ifndef TESTS_SOAK_ORACLE_H
#define TESTS_SOAK_ORACLE_H

#include <stdbool.h>
#include <stdint.h>

#define ORACLE_HEADER   4096
#define ORACLE_STAMP_AT ORACLE_HEADER
#define ORACLE_PAGE     4096

/* What a file says that it is. Seeds and stamps of a slot only grow. */
struct content {
	uint32_t slot;
	uint64_t seed, stamp, size;
};

/* Write a whole file anew, under another name first. 0, or -1 with errno. */
int oracle_write(const char *path, const struct content *content);
/* Write the stamp in place. */
int oracle_stamp(const char *path, uint64_t stamp);
/* False: it is no whole file now. */
bool oracle_read(int fd, struct content *ret);
bool oracle_read_memory(const uint8_t *memory, uint64_t size, struct content *ret);

/*
 * Is this memory the content, stamp apart? 'written' has a byte for each page, other than 0 for
 * those that this process has filled with that byte. On false '*ret_at' is the first wrong one.
 */
bool oracle_check(const uint8_t *memory, const struct content *content, const uint8_t *written,
		  uint64_t *ret_at);

#endif
