/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The images of one generation while they are filled, one a file, and what else its fills have to
 * know. Of a generation that lies on the host alone whoever brings the last image makes the table
 * of all. One that is spread over devices has places: its images are sparse, there may be none of
 * a file, and its table is asked for (loader_make_table). Any thread.
 */
#ifndef LOAD_IMAGE_SET_H
#define LOAD_IMAGE_SET_H

#include <stdbool.h>
#include <stdint.h>

#include "daemon/load/file.h"

struct err;
struct extent;
struct image_set;
struct load_result;
struct tensor_map;

/*
 * What an earlier generation of the same content has of one file. Sealed; whoever asks for a fill
 * or a table keeps it until the result.
 */
struct earlier_image {
	struct extent *extent;
	bool is_kept;         /* it serves this generation as it is: the file is not filled */
	const uint64_t *sums; /* of one that is kept; copied */
	uint32_t n_sums;
};

/* Who the generation is. Everything is borrowed as image_set_new says. */
struct image_set_request {
	const struct tensor_map *map;
	const uint8_t *model_id; /* 16 bytes */
	uint64_t generation;
	uint32_t owner_uid;
	bool has_sums;    /* images are made; else the files themselves serve */
	const char *name; /* of the model */

	/* Of a generation that is spread over devices: the device of each block, 0 the host. NULL:
	 * all of it lies on the host. */
	const uint8_t *places;
	/*
	 * What need not be read again, where there are places. Of each file an image ('extent' NULL:
	 * none), which holds the blocks whose earlier place is 0 (NULL: all). Of each block its
	 * segment on another device (NULL: none). Either may be NULL for none at all. An image goes
	 * before all else; then, for a segment, the one of the same block, and then the file; for
	 * an image the file, and a segment only where the file has changed since: who could map it
	 * may have been able to write to it.
	 */
	const struct earlier_image *earlier_images;
	const uint8_t *earlier_places;
	struct extent *const *earlier_blocks;
};

/* 'map' is borrowed until the set is freed, the rest for the call. NULL: no memory. */
struct image_set *image_set_new(const struct image_set_request *request);
/* No fill of it may be under way. NULL is fine; returns NULL. */
struct image_set *image_set_free(struct image_set *set);

const char *image_set_name(const struct image_set *set);
uint64_t image_set_bytes(const struct image_set *set, uint32_t index);
const struct tensor_map *image_set_map(const struct image_set *set);
const uint8_t *image_set_places(const struct image_set *set); /* NULL: none */

/* What of an earlier generation holds a file's header, a block's bytes of a file, or a block's
 * segment; NULL: nothing. */
struct extent *image_set_earlier_header(const struct image_set *set, uint32_t file);
struct extent *image_set_earlier_image(const struct image_set *set, uint32_t file, uint32_t block);
struct extent *image_set_earlier_block(const struct image_set *set, uint32_t block);

/* Memory that the image of a file takes, to the byte: 4 KiB pages, and of 2 MiB only such that
 * are filled whole. 'places' as above. */
uint64_t image_set_host_bytes(const struct tensor_map *map, const uint8_t *places, uint32_t file);

/*
 * One is filled and sealed: 'result' has its sums, key and pages, 'image_fd' is an export of it,
 * 'file' its source. Where it is the last one, and the set has no places, the result gets what is
 * known of all: table, sums, checksum, pages, and the first image's number; else it keeps none of
 * that. 0, or a code.
 */
int image_set_add(struct image_set *set, uint32_t index, const struct file *file, int image_fd,
		  struct load_result *result, struct err *err);

/* The table of a set with places, whose fills are done: the same into 'result'. A file that was
 * neither filled nor kept has no image; 'file' is all of them, 'keys' are of each. */
int image_set_finish(struct image_set *set, struct file *file, const struct file_key *keys,
		     struct load_result *result, struct err *err);

#endif
