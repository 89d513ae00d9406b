/* SPDX-License-Identifier: Apache-2.0 */
/* What is known of one content of a model, besides what the core decides by. Loop only. */
#ifndef DAEMON_GENERATION_H
#define DAEMON_GENERATION_H

#include <stdbool.h>
#include <stdint.h>

/*
 * Under which names the descriptors of a copy, or those of a generation that lies on other devices
 * too, are parked with who restarts us (daemon/persist.h).
 */
struct park {
	bool is_parked;
	bool is_taken; /* he said so */
	bool is_file;  /* no image: its source is all there is */
	uint8_t uuid[16];
	uint64_t generation;
	uint32_t index;   /* which of the generation's files */
	uint32_t n_files; /* of what lies on other devices too; 0: of a copy */
	bool is_sharded;  /* it has several */
	bool has_index;   /* which is parked too: that file */
	uint64_t index_dev, index_ino;
	bool is_named_as_before; /* its table, which does not tell the index */
};

/* One of the files of a model. */
struct shard_info {
	char *name; /* NULL: the model has a single file, which is called as it is */
	uint64_t bytes;
	uint32_t first_sum, n_sums;
};

/* Everything about one content of a model that the core has no use for. */
struct generation_info {
	int table_fd;   /* sealed memfd; -1: none */
	uint64_t *sums; /* XXH3 of each 64 MiB, file by file */
	uint32_t n_sums;
	struct shard_info *shards;
	uint32_t n_shards;
	uint32_t format; /* enum format, as read */
	uint32_t n_tensors;
	uint32_t n_blocks;
	uint8_t *places; /* the core's device of each block, 0 the host; NULL: all on the host */
	bool with_host;  /* what lies on other devices is in images too */
	bool by_tensor;  /* each tensor is a block */
	uint64_t page_bytes; /* page size obtained */
	uint64_t huge_bytes; /* of the image in 2 MiB pages */
	uint64_t checksum;
	char notice[160];              /* why less than asked was obtained; empty: nothing to say */
	uint64_t image_dev, image_ino; /* of the first image, as fstat of a client has it */
	bool is_from_store;            /* taken over from an earlier life, not read */
	bool is_parked;                /* survives a restart */
};

/* Room for so many files, their sizes to be given by generation_info_set_shard in order. False:
 * no memory. */
bool generation_info_add_shards(struct generation_info *info, uint32_t n_shards);
/* 'name' NULL: a single file. False: no memory. */
bool generation_info_set_shard(struct generation_info *info, uint32_t shard, const char *name,
			       uint64_t bytes);
void generation_info_fini(struct generation_info *info);

#endif
