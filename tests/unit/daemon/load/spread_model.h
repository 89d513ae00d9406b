/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A model of two files whose blocks are torn apart in every way: tensors of one block in both
 * files, others between them, empty ones, some of a byte, some larger than a window. Each byte is
 * known.
 */
#ifndef TESTS_SPREAD_MODEL_H
#define TESTS_SPREAD_MODEL_H

#include <stdint.h>

struct extent;
struct file;
struct tensor_map;

#define SPREAD_FILES  2
#define SPREAD_BLOCKS 5 /* (head), b.0, b.1, b.2, b.3 in some order */
#define SPREAD_HEADER 1024U
#define SPREAD_MIB    (1ULL << 20)

#define SPREAD_TENSORS 11

struct spread_model {
	int fds[SPREAD_FILES];
	uint64_t sizes[SPREAD_FILES];
	uint8_t *bytes[SPREAD_FILES]; /* as they were written, to compare with */
	int index_fd;
	struct file *file; /* of both */
};

void spread_fill(int fd, uint32_t file, uint64_t begin, uint64_t size);
void spread_init(struct spread_model *model);
void spread_fini(struct spread_model *model);
/* Cold: the next read goes to the disk, where there is one. */
void spread_forget(const struct spread_model *model);
/* Which block a tensor of that name is in. */
uint32_t spread_block(const struct tensor_map *map, const char *name);
uint8_t *spread_read(const struct extent *extent);
/* Every byte of a block's segment, what lies between its tensors too. */
void spread_check_segment(const struct extent *extent, const struct spread_model *model,
			  const struct tensor_map *map, uint32_t block);
/* Every byte of an image: those of blocks on the host, the header, and zeros. */
void spread_check_image(const struct extent *extent, const struct spread_model *model,
			const struct tensor_map *map, const uint8_t *places, uint32_t file);
/* Memory behind an image, to the byte. */
uint64_t spread_taken(const struct extent *extent);

#endif
