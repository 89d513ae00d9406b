/* SPDX-License-Identifier: Apache-2.0 */
/* What the fills of a generation found, until all have. See image_set.h. */
#include "daemon/load/image_set.h"

#include "base/cleanup.h"
#include "base/err.h"
#include "base/os/sys.h"
#include "base/require.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "daemon/format/format.h"
#include "daemon/format/segment_layout.h"
#include "daemon/load/hash.h"
#include "daemon/load/image_table.h"
#include "daemon/load/loader.h"
#include "daemon/load/thread.h"
#include "proto/gen/wire_code.h"

/* One image, once it is known. */
struct image {
	struct image_facts facts; /* name NULL: not yet */
	uint64_t *sums;           /* facts.n_sums of them */
	uint64_t dev;
	uint64_t page_bytes, huge_bytes;
	char notice[DEVICE_NOTICE_SIZE];
};

struct image_set {
	const struct tensor_map *map;
	uint8_t model_id[16];
	uint64_t generation;
	uint32_t owner_uid;
	bool has_sums;
	char *name;
	uint32_t n_images;
	uint8_t *places;                      /* of each block; NULL: all on the host */
	struct earlier_image *earlier_images; /* of each; their sums are owned. NULL: none */
	uint8_t *earlier_places;
	struct extent **earlier_blocks;
	pthread_mutex_t lock;
	uint32_t n_done;      /* guarded by lock; with the last nobody else looks */
	struct image *images; /* of each; likewise */
};

/* A copy, or NULL: of nothing, or for want of memory, which 'is_good' then says. */
static void *copy_of(const void *bytes, size_t count, size_t size, bool *is_good)
{
	void *copy = bytes == NULL ? NULL : sys_calloc(count + 1, size);

	if (copy != NULL && count > 0) {
		memcpy(copy, bytes, count * size);
	}
	*is_good = *is_good && (bytes == NULL || copy != NULL);
	return copy;
}

static bool copy_earlier(struct image_set *set, const struct image_set_request *request)
{
	const uint32_t n_blocks = request->map->n_blocks;
	bool is_good = true;

	set->places = copy_of(request->places, n_blocks, 1, &is_good);
	set->earlier_places = copy_of(request->earlier_places, n_blocks, 1, &is_good);
	set->earlier_blocks = copy_of((const void *)request->earlier_blocks, n_blocks,
				      sizeof(struct extent *), &is_good);
	set->earlier_images = copy_of(request->earlier_images, set->n_images,
				      sizeof *set->earlier_images, &is_good);
	for (uint32_t i = 0; set->earlier_images != NULL && i < set->n_images; i++) {
		struct earlier_image *image = &set->earlier_images[i];

		image->sums = copy_of(image->sums, image->n_sums, sizeof *image->sums, &is_good);
	}
	return is_good;
}

struct image_set *image_set_new(const struct image_set_request *request)
{
	struct image_set *set = sys_calloc(1, sizeof *set);
	bool is_good;

	if (set == NULL) {
		return NULL;
	}
	set->map = request->map;
	memcpy(set->model_id, request->model_id, sizeof set->model_id);
	set->generation = request->generation;
	set->owner_uid = request->owner_uid;
	set->has_sums = request->has_sums;
	set->n_images = tensor_map_n_shards(request->map);
	REQUIRE(pthread_mutex_init(&set->lock, NULL) == 0);
	set->name = sys_strdup(request->name);
	set->images = sys_calloc(set->n_images, sizeof *set->images);
	is_good = copy_earlier(set, request);
	return set->name == NULL || set->images == NULL || !is_good ? image_set_free(set) : set;
}

struct image_set *image_set_free(struct image_set *set)
{
	if (set == NULL) {
		return NULL;
	}
	for (uint32_t i = 0; set->images != NULL && i < set->n_images; i++) {
		free(set->images[i].facts.name);
		free(set->images[i].sums);
	}
	for (uint32_t i = 0; set->earlier_images != NULL && i < set->n_images; i++) {
		free((void *)(uintptr_t)set->earlier_images[i].sums);
	}
	REQUIRE(pthread_mutex_destroy(&set->lock) == 0);
	free(set->images);
	free(set->places);
	free(set->earlier_images);
	free(set->earlier_places);
	free(set->earlier_blocks);
	free(set->name);
	free(set);
	return NULL;
}

const char *image_set_name(const struct image_set *set)
{
	return set->name;
}

uint64_t image_set_bytes(const struct image_set *set, uint32_t index)
{
	return tensor_map_shard_size(set->map, index);
}

const struct tensor_map *image_set_map(const struct image_set *set)
{
	return set->map;
}

const uint8_t *image_set_places(const struct image_set *set)
{
	return set->places;
}

struct extent *image_set_earlier_header(const struct image_set *set, uint32_t file)
{
	return set->earlier_images == NULL ? NULL : set->earlier_images[file].extent;
}

struct extent *image_set_earlier_image(const struct image_set *set, uint32_t file, uint32_t block)
{
	const bool has_block = set->earlier_places == NULL || set->earlier_places[block] == 0;

	return has_block ? image_set_earlier_header(set, file) : NULL;
}

struct extent *image_set_earlier_block(const struct image_set *set, uint32_t block)
{
	return set->earlier_blocks == NULL ? NULL : set->earlier_blocks[block];
}

uint64_t image_set_host_bytes(const struct tensor_map *map, const uint8_t *places, uint32_t file)
{
	const uint64_t page_bytes = (uint64_t)sysconf(_SC_PAGESIZE);

	return file_part_pages(map, places, file, page_bytes) * page_bytes;
}

/* As the table has it. */
static char *name_image(const struct image_set *set, const struct file *file)
{
	const size_t size = strlen(set->name);
	char *name;

	if (file->name == NULL) {
		return sys_strdup(set->name);
	}
	name = sys_malloc(size + strlen(file->name) + 2);
	if (name != NULL) {
		memcpy(name, set->name, size);
		name[size] = '/';
		memcpy(name + size + 1, file->name, strlen(file->name) + 1);
	}
	return name;
}

/* False: no memory for its name. */
static bool describe(const struct image_set *set, const struct file *file,
		     const struct stat *status, const struct file_key *key, struct image *ret)
{
	*ret = (struct image){.facts = {.name = name_image(set, file),
					.key = *key,
					.image_ino = status->st_ino,
					.image_bytes = (uint64_t)status->st_size},
			      .dev = status->st_dev};
	return ret->facts.name != NULL;
}

/* What its fill found goes over to the set. */
static void take_facts(struct load_result *result, struct image *image)
{
	image->sums = steal_ptr(&result->sums);
	image->facts.n_sums = result->n_sums;
	result->n_sums = 0;
	image->page_bytes = result->page_bytes;
	image->huge_bytes = result->huge_bytes;
	memcpy(image->notice, result->notice, sizeof image->notice);
}

/* Returns whether it was the last. */
static bool keep(struct image_set *set, uint32_t index, const struct image *image)
{
	const uint32_t n_sums = set->has_sums ? hash_count_sums(image_set_bytes(set, index)) : 0;
	bool is_last;

	thread_lock(&set->lock);
	REQUIRE(index < set->n_images && set->images[index].facts.name == NULL);
	REQUIRE(image->facts.n_sums == n_sums);
	set->images[index] = *image;
	is_last = ++set->n_done == set->n_images;
	thread_unlock(&set->lock);
	return is_last;
}

/* ---- what is known of all ---- */

/* One array of the sums of all, and where those of each begin. */
static int join_sums(struct image_set *set, struct image_facts *facts, struct load_result *result,
		     struct err *err)
{
	uint64_t n_sums = 0;

	for (uint32_t i = 0; i < set->n_images; i++) {
		facts[i] = set->images[i].facts;
		facts[i].first_sum = (uint32_t)n_sums;
		n_sums += facts[i].n_sums;
		if (n_sums > UINT32_MAX) {
			return err_set(err, WIRE_TOO_LARGE, "more sums than can be counted");
		}
	}
	result->sums = sys_calloc(n_sums + 1, sizeof *result->sums);
	if (result->sums == NULL) {
		return err_set(err, WIRE_NO_MEMORY, "no memory for %u sums", (uint32_t)n_sums);
	}
	result->n_sums = (uint32_t)n_sums;
	for (uint32_t i = 0; i < set->n_images; i++) {
		if (facts[i].n_sums > 0 && set->images[i].sums != NULL) {
			memcpy(result->sums + facts[i].first_sum, set->images[i].sums,
			       facts[i].n_sums * sizeof *result->sums);
		}
	}
	return 0;
}

/* Over the images that there are. */
static void sum_up(const struct image_set *set, struct load_result *result)
{
	bool is_first = true;

	result->page_bytes = result->huge_bytes = 0;
	result->notice[0] = '\0';
	for (uint32_t i = 0; i < set->n_images; i++) {
		const struct image *image = &set->images[i];

		if (image->facts.image_ino == 0) {
			continue;
		}
		if (is_first) {
			result->image_dev = image->dev;
			result->image_ino = image->facts.image_ino;
		}
		if (is_first || image->page_bytes < result->page_bytes) {
			result->page_bytes = image->page_bytes;
		}
		is_first = false;
		result->huge_bytes += image->huge_bytes;
		if (result->notice[0] == '\0') {
			memcpy(result->notice, image->notice, sizeof result->notice);
		}
	}
}

static int finish(struct image_set *set, struct load_result *result, struct err *err)
{
	AUTO_FREE struct image_facts *facts = sys_calloc(set->n_images, sizeof *facts);
	struct image_table table = {
		.model_id = set->model_id,
		.generation = set->generation,
		.owner_uid = set->owner_uid,
		.images = facts,
		.n_images = set->n_images,
	};
	int code;

	if (facts == NULL) {
		return err_set(err, WIRE_NO_MEMORY, "no memory for the table of %u files",
			       set->n_images);
	}
	code = join_sums(set, facts, result, err);
	if (code < 0) {
		return code;
	}
	table.sums = result->sums;
	table.n_sums = result->n_sums;
	result->checksum = hash_sums(result->sums, result->n_sums);
	sum_up(set, result);
	return image_table_make(set->map, &table, &result->table_fd, err);
}

static int look_at_fd(int image_fd, struct stat *ret, struct err *err)
{
	return sys_fstat(image_fd, ret) == 0
		       ? 0
		       : err_set_sys(err, WIRE_INTERNAL, errno, "fstat of an image: %s",
				     strerror(errno));
}

int image_set_add(struct image_set *set, uint32_t index, const struct file *file, int image_fd,
		  struct load_result *result, struct err *err)
{
	struct stat status = {0};
	struct image image;
	bool is_last;
	int code = look_at_fd(image_fd, &status, err);

	if (code < 0) {
		return code;
	}
	if (!describe(set, file, &status, &result->key, &image)) {
		return err_set(err, WIRE_NO_MEMORY, "no memory for a file's name");
	}
	take_facts(result, &image);
	is_last = keep(set, index, &image);
	return is_last && set->places == NULL ? finish(set, result, err) : 0;
}

/* ---- with places ---- */

/* An image of an earlier generation that stays. */
static int look_at_kept(const struct image_set *set, const struct file *file,
			const struct file_key *key, const struct earlier_image *earlier,
			struct image *ret, struct err *err)
{
	AUTO_CLOSE int fd = -1;
	struct device_pages pages;
	struct stat status = {0};
	bool is_good;
	int code = device_export(earlier->extent, &fd, err);

	if (code == 0) {
		code = look_at_fd(fd, &status, err);
	}
	if (code < 0) {
		return code;
	}
	is_good = describe(set, file, &status, key, ret);
	device_pages(earlier->extent, &pages);
	ret->page_bytes = pages.page_bytes;
	ret->huge_bytes = pages.huge_bytes;
	memcpy(ret->notice, pages.notice, sizeof ret->notice);
	ret->facts.n_sums = earlier->n_sums;
	ret->sums = copy_of(earlier->sums, earlier->n_sums, sizeof *ret->sums, &is_good);
	return is_good ? 0 : err_set(err, WIRE_NO_MEMORY, "no memory for an image's sums");
}

static int add_unfilled(struct image_set *set, uint32_t index, const struct file *file,
			const struct file_key *key, struct err *err)
{
	const struct stat none = {.st_size = (off_t)image_set_bytes(set, index)};
	const struct earlier_image *earlier =
		set->earlier_images == NULL ? NULL : &set->earlier_images[index];
	struct image image = {0};
	int code = 0;

	if (earlier != NULL && earlier->is_kept) {
		code = look_at_kept(set, file, key, earlier, &image, err);
	} else if (!describe(set, file, &none, key, &image)) {
		code = err_set(err, WIRE_NO_MEMORY, "no memory for a file's name");
	}
	if (code < 0) {
		free(image.facts.name);
		return code;
	}
	set->images[index] = image;
	return 0;
}

int image_set_finish(struct image_set *set, struct file *file, const struct file_key *keys,
		     struct load_result *result, struct err *err)
{
	int code = 0;

	for (uint32_t i = 0; code == 0 && i < set->n_images; i++) {
		if (set->images[i].facts.name == NULL) {
			code = add_unfilled(set, i, file_shard(file, i), &keys[i], err);
		}
	}
	return code < 0 ? code : finish(set, result, err);
}
