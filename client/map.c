/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The memory of an attached model. Nothing that a daemon sends can overrun: the table is
 * copied before it is checked, so that it cannot change afterwards; an image is mapped only
 * when its seals say that it cannot shrink and its length is the table's.
 */
#include "client/map.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#define XXH_INLINE_ALL
#include "base/checked.h"
#include "base/cleanup.h"
#include "base/err.h"

#include <xxhash.h>

#include "client/error.h"
#include "client/keeper.h"
#include "client/memory.h"
#include "client/segments.h"
#include "proto/table.h"

#define TABLE_BYTES_MAX ((uint64_t)256 << 20)
#define ID_SIZE         33

struct image {
	int fd; /* owned; read-only, sealed */
	void *base;
	size_t bytes;
};

struct distorch_weights {
	uint32_t n_refs;
	struct distorch *c; /* counted; NULL without a lease */
	pid_t pid;          /* whose mappings these are; a child's copy is not the driver's */
	struct lease lease;
	char id[ID_SIZE];
	uint8_t *table_bytes; /* owned; private copy of the table memfd */
	struct table table;
	struct image *images; /* owned; one a shard, none where nothing is mapped */
	uint32_t n_images;
	struct segments segments;
	struct distorch_tensor *tensors; /* owned; in the table's order */
	struct distorch_block *blocks;   /* owned; in the table's order */
	char *block_names;               /* owned; each with its NUL */
	char *names;                     /* owned; each with its NUL */
	size_t names_size;
	pthread_mutex_t card_lock;  /* one import at a time */
	pthread_mutex_t index_lock; /* guards the making of 'index' */
	uint32_t *index;            /* owned; tensor + 1 by hash, 0: free; made at the first find */
	uint32_t index_mask;
	uint64_t seed; /* of the hash: names come from strangers */
};

static uint64_t hash_bytes(const void *bytes, size_t size)
{
	return XXH3_64bits(bytes, size);
}

static int bad_table(const char *what)
{
	return failure_set(DISTORCH_E_INTERNAL, 0, NULL, "the daemon's tensor table: %s", what);
}

/* ---- the table ---- */

static int copy_table(int fd, uint8_t **ret_bytes, size_t *ret_size)
{
	struct stat status;
	AUTO_FREE uint8_t *bytes = NULL;
	size_t size;
	size_t at = 0;

	if (fd < 0 || (fstat(fd, &status) == 0 && S_ISREG(status.st_mode) && status.st_size == 0)) {
		return failure_set(DISTORCH_E_NOT_RESIDENT, 0,
				   "load it first: distorchctl load FILE",
				   "the model is not in memory, so its tensors are not known");
	}
	if (fstat(fd, &status) != 0 || !S_ISREG(status.st_mode) || status.st_size <= 0 ||
	    (uint64_t)status.st_size > TABLE_BYTES_MAX) {
		return bad_table("it has no usable size");
	}
	size = (size_t)status.st_size;
	bytes = malloc(size);
	if (bytes == NULL) {
		return failure_memory();
	}
	while (at < size) {
		ssize_t n = pread(fd, bytes + at, size - at, (off_t)at);

		if (n <= 0) {
			return bad_table("it cannot be read");
		}
		at += (size_t)n;
	}
	*ret_bytes = steal_ptr(&bytes);
	*ret_size = size;
	return 0;
}

static int open_table(struct distorch_weights *weights, int fd)
{
	static const char digits[] = "0123456789abcdef";
	struct err err = {0};
	size_t size = 0;
	int rc = copy_table(fd, &weights->table_bytes, &size);

	if (rc < 0) {
		return rc;
	}
	if (table_open(weights->table_bytes, size, hash_bytes, &weights->table, &err) < 0) {
		return bad_table(err.text);
	}
	for (size_t i = 0; i < 16; i++) {
		weights->id[2 * i] = digits[weights->table.header->model_id[i] >> 4];
		weights->id[2 * i + 1] = digits[weights->table.header->model_id[i] & 15];
	}
	return 0;
}

/* All names into one piece of memory, each with its NUL. */
static int copy_names(struct distorch_weights *weights)
{
	uint32_t n_tensors = weights->table.header->n_tensors;
	uint64_t size = 1;
	char *at;

	for (uint32_t i = 0; i < n_tensors; i++) {
		struct wire_str name = table_tensor_name(&weights->table, i);

		if (name.size > 0 && memchr(name.text, '\0', name.size) != NULL) {
			return bad_table("a name holds a NUL");
		}
		size += (uint64_t)name.size + 1; /* below 2^32 tensors of 2^32: no overflow */
	}
	weights->names = malloc(size);
	if (weights->names == NULL) {
		return failure_memory();
	}
	at = weights->names;
	for (uint32_t i = 0; i < n_tensors; i++) {
		struct wire_str name = table_tensor_name(&weights->table, i);

		if (name.size > 0) {
			memcpy(at, name.text, name.size);
		}
		at[name.size] = '\0';
		at += name.size + 1;
	}
	weights->names_size = (size_t)(at - weights->names);
	return 0;
}

/* The address of a tensor, in its block or its image; NULL where that is not mapped. False when it
 * lies outside. */
static bool tensor_data(const struct distorch_weights *weights, uint32_t index, void **ret_data)
{
	const struct table_tensor *from = &weights->table.tensors[index];
	const struct segment *segment = segments_of(&weights->segments, from->block);
	const struct image *image;

	*ret_data = NULL;
	if (segment != NULL) {
		if (segment->base != NULL) {
			*ret_data =
				(unsigned char *)segment->base + weights->segments.offsets[index];
		}
		return true;
	}
	if (weights->n_images == 0) {
		return true;
	}
	if (from->shard >= weights->n_images) {
		return false;
	}
	image = &weights->images[from->shard];
	if (!checked_range(from->offset, from->size, image->bytes)) {
		return false;
	}
	*ret_data = (unsigned char *)image->base + from->offset;
	return true;
}

/* Where the block is: a device's number there, or nothing of both. */
static void give_device(const struct distorch_weights *weights, uint32_t block,
			const char **ret_device, const char **ret_uuid)
{
	const struct segment *segment = segments_of(&weights->segments, block);

	*ret_device = segment != NULL         ? weights->segments.names[segment->device]
		      : weights->n_images > 0 ? "cpu"
					      : NULL;
	*ret_uuid = segment != NULL ? weights->segments.uuids[segment->device] : NULL;
}

/* Names of blocks are not the daemon's promise to be without a NUL: what is behind one is cut. */
static int make_blocks(struct distorch_weights *weights)
{
	uint32_t n_blocks = weights->table.header->n_blocks;
	size_t size = 1;
	char *at;

	for (uint32_t i = 0; i < n_blocks; i++) {
		size += (size_t)table_block_name(&weights->table, i).size + 1;
	}
	weights->blocks = calloc((size_t)n_blocks + 1, sizeof *weights->blocks);
	weights->block_names = malloc(size);
	if (weights->blocks == NULL || weights->block_names == NULL) {
		return failure_memory();
	}
	at = weights->block_names;
	for (uint32_t i = 0; i < n_blocks; i++) {
		const struct segment *segment = segments_of(&weights->segments, i);
		struct distorch_block *block = &weights->blocks[i];
		struct wire_str name = table_block_name(&weights->table, i);

		if (name.size > 0) {
			memcpy(at, name.text, name.size);
		}
		at[name.size] = '\0';
		block->name = at;
		block->bytes = segment != NULL ? segment->bytes : weights->table.blocks[i].size;
		block->n_tensors = weights->table.blocks[i].n_tensors;
		block->data = segment != NULL ? segment->base : NULL;
		give_device(weights, i, &block->device, &block->uuid);
		at += name.size + 1;
	}
	return 0;
}

static int make_tensors(struct distorch_weights *weights)
{
	uint32_t n_tensors = weights->table.header->n_tensors;
	const char *name = weights->names;

	weights->tensors = calloc((size_t)n_tensors + 1, sizeof *weights->tensors);
	if (weights->tensors == NULL) {
		return failure_memory();
	}
	for (uint32_t i = 0; i < n_tensors; i++) {
		const struct table_tensor *from = &weights->table.tensors[i];
		struct distorch_tensor *tensor = &weights->tensors[i];

		tensor->name = name;
		tensor->dtype = wire_dtype_name(from->dtype);
		tensor->bits = wire_dtype_bits(from->dtype);
		tensor->group = wire_dtype_group(from->dtype);
		tensor->rank = from->rank;
		tensor->shape = table_tensor_shape(&weights->table, i);
		tensor->bytes = from->size;
		tensor->offset = from->offset;
		tensor->shard = from->shard;
		tensor->block = from->block;
		if (tensor->dtype == NULL) {
			return bad_table("a tensor has a type that this library does not know");
		}
		give_device(weights, from->block, &tensor->device, &tensor->uuid);
		tensor->block_offset = segments_of(&weights->segments, from->block) != NULL
					       ? weights->segments.offsets[i]
					       : 0;
		if (!tensor_data(weights, i, &tensor->data)) {
			return bad_table("a tensor lies outside of its image");
		}
		name += table_tensor_name(&weights->table, i).size + 1;
	}
	return 0;
}

/* ---- the images ---- */

static int check_image(int fd, const struct table_shard *shard)
{
	struct stat status;

	if (!memory_is_sealed(fd)) {
		return failure_set(DISTORCH_E_INTERNAL, 0, NULL,
				   "the daemon sent an image that is not sealed");
	}
	if (fstat(fd, &status) != 0 || status.st_size <= 0 ||
	    (uint64_t)status.st_size != shard->image_size) {
		return failure_set(DISTORCH_E_INTERNAL, 0, NULL,
				   "the daemon sent an image of %lld bytes; its table says %llu",
				   (long long)status.st_size,
				   (unsigned long long)shard->image_size);
	}
	return 0;
}

static int64_t ns_of(struct timespec time)
{
	return time.tv_sec * INT64_C(1000000000) + time.tv_nsec;
}

/* The source file itself: nothing keeps it from changing, but it must be what was read. */
static int check_source(int fd, const struct table_shard *shard)
{
	struct stat status;

	if (fstat(fd, &status) != 0 || status.st_dev != shard->dev || status.st_ino != shard->ino ||
	    (uint64_t)status.st_size != shard->size || shard->image_size != shard->size ||
	    ns_of(status.st_mtim) != shard->mtime_ns) {
		return failure_set(DISTORCH_E_STALE, 0, "load it again",
				   "the file has changed since it was loaded");
	}
	return 0;
}

/* The next image; takes the descriptor out of its variable. */
static int map_image(struct distorch_weights *weights, int *fd)
{
	const struct table_shard *shard = &weights->table.shards[weights->n_images];
	struct image *image = &weights->images[weights->n_images];
	int rc = shard->n_sums == 0 ? check_source(*fd, shard) : check_image(*fd, shard);

	if (rc < 0) {
		return rc;
	}
	image->base = memory_map(*fd, (size_t)shard->image_size);
	if (image->base == NULL) {
		return failure_set(DISTORCH_E_INTERNAL, errno, "is there a ulimit -v?",
				   "mapping %llu bytes failed: %s",
				   (unsigned long long)shard->image_size, strerror(errno));
	}
	image->bytes = (size_t)shard->image_size;
	image->fd = steal_fd(fd);
	weights->n_images++;
	return 0;
}

static int map_answered(struct distorch_weights *weights, struct answer *answer, uint32_t first)
{
	int rc = 0;

	for (uint32_t i = first; rc == 0 && i < answer->n_fds; i++) {
		rc = map_image(weights, &answer->fds[i]);
	}
	return rc;
}

/* Those for which the first answer had no room. */
static int ask_for_images(struct distorch *c, struct distorch_weights *weights)
{
	uint32_t n_shards = weights->table.header->n_shards;
	int rc = 0;

	while (rc == 0 && weights->n_images < n_shards) {
		uint32_t n_left = n_shards - weights->n_images;
		const uint64_t range[] = {weights->n_images, n_left < WIRE_FDS_PER_PACKET
								     ? n_left
								     : WIRE_FDS_PER_PACKET};
		const struct wire_map_request body = {
			.has_segments = true,
			.lease = weights->lease.number,
			.segments = {.count = 2, .items = range},
		};
		const struct request request = {.method = WIRE_METHOD_MAP, .body = &body};
		struct wire_map_response response;
		AUTO_ANSWER struct answer answer = {0};

		rc = client_call(c, &request, &answer, &response);
		if (rc == 0 && (answer.n_fds == 0 || answer.n_fds > n_left)) {
			return bad_table("it has more or fewer shards than images came");
		}
		rc = rc < 0 ? rc : map_answered(weights, &answer, 0);
	}
	return rc;
}

static int map_images(struct distorch *c, struct distorch_weights *weights, struct answer *answer)
{
	uint32_t n_shards = weights->table.header->n_shards;
	uint32_t n_came = weights->lease.n_images;
	int rc;

	if (n_came == 0) {
		return 0;
	}
	if (answer->n_fds != n_came + 1 || n_came > n_shards || (n_came < n_shards && c == NULL)) {
		return bad_table("it has more or fewer shards than images came");
	}
	weights->images = calloc(n_shards, sizeof *weights->images);
	if (weights->images == NULL) {
		return failure_memory();
	}
	rc = map_answered(weights, answer, 1);
	return rc < 0 ? rc : ask_for_images(c, weights);
}

/* ---- life ---- */

/* False: something of it is still mapped. */
static bool weights_free(struct distorch_weights *weights)
{
	bool is_unmapped = segments_free(&weights->segments, weights->pid == getpid());

	for (uint32_t i = 0; i < weights->n_images; i++) {
		memory_unmap(weights->images[i].base, weights->images[i].bytes);
		(void)close(weights->images[i].fd); /* read only: nothing can be lost */
	}
	(void)pthread_mutex_destroy(&weights->card_lock);  /* as the next one */
	(void)pthread_mutex_destroy(&weights->index_lock); /* nobody uses it any more */
	free(weights->images);
	free(weights->tensors);
	free(weights->blocks);
	free(weights->block_names);
	free(weights->names);
	free(weights->index);
	free(weights->table_bytes);
	free(weights);
	return is_unmapped;
}

int weights_make(struct distorch *c, const struct lease *lease, struct answer *answer,
		 struct distorch_weights **ret_weights)
{
	struct distorch_weights *weights = calloc(1, sizeof *weights);
	int rc;

	if (weights == NULL) {
		return failure_memory();
	}
	weights->n_refs = 1;
	weights->pid = getpid();
	weights->lease = *lease;
	(void)pthread_mutex_init(&weights->card_lock, NULL);  /* as the next one */
	(void)pthread_mutex_init(&weights->index_lock, NULL); /* cannot fail with defaults */
	if (getrandom(&weights->seed, sizeof weights->seed, GRND_NONBLOCK) < 0) {
		weights->seed = (uint64_t)(uintptr_t)weights; /* early in boot */
	}
	rc = open_table(weights, answer->n_fds > 0 ? answer->fds[0] : -1);
	if (rc == 0) {
		rc = segments_make(lease->layout, &weights->table, &weights->segments);
	}
	if (rc == 0) {
		rc = map_images(c, weights, answer);
	}
	if (rc == 0) {
		rc = segments_map(c, lease->number, &weights->segments);
	}
	if (rc == 0) {
		rc = copy_names(weights);
	}
	if (rc == 0) {
		rc = make_tensors(weights);
	}
	if (rc == 0) {
		rc = make_blocks(weights);
	}
	weights->lease.layout = NULL; /* the answer's */
	if (rc < 0) {
		(void)weights_free(weights); /* of cards nothing is mapped yet */
		return rc;
	}
	if (c != NULL) {
		client_ref(c);
		weights->c = c;
	}
	if (lease->kept != NULL && weights->n_images > 0) {
		keeper_mapped(c, lease->kept, weights->images[0].fd);
	}
	*ret_weights = weights;
	return 0;
}

struct distorch_weights *distorch_weights_ref(struct distorch_weights *weights)
{
	__atomic_fetch_add(&weights->n_refs, 1, __ATOMIC_RELAXED);
	return weights;
}

struct distorch_weights *distorch_weights_unref(struct distorch_weights *weights)
{
	struct distorch *c;
	struct kept_lease *kept;

	if (weights == NULL || __atomic_sub_fetch(&weights->n_refs, 1, __ATOMIC_ACQ_REL) > 0) {
		return NULL;
	}
	c = weights->c;
	kept = weights->lease.kept;
	if (kept != NULL) {
		keeper_leaving(c, kept);
	}
	/* Unmapped before the daemon is told so; what a card keeps mapped is held, until we end. */
	if (weights_free(weights) && kept != NULL) {
		keeper_over(c, kept);
	}
	if (c != NULL) {
		client_unref(c);
	}
	return NULL;
}

/* ---- looking ---- */

const char *distorch_weights_model(const struct distorch_weights *weights)
{
	return weights->id;
}

uint64_t distorch_weights_generation(const struct distorch_weights *weights)
{
	return weights->table.header->generation;
}

uint64_t distorch_weights_lease(const struct distorch_weights *weights)
{
	const struct kept_lease *kept = weights->lease.kept;
	uint64_t number = weights->lease.number;

	if (kept != NULL) {
		pthread_mutex_lock(&weights->c->lock);
		number = kept->number; /* another one after the daemon's restart */
		pthread_mutex_unlock(&weights->c->lock);
	}
	return number;
}

void *distorch_weights_base(const struct distorch_weights *weights, uint32_t shard,
			    uint64_t *ret_bytes)
{
	bool is_mapped = shard < weights->n_images;

	if (ret_bytes != NULL) {
		*ret_bytes = is_mapped ? weights->images[shard].bytes : 0;
	}
	return is_mapped ? weights->images[shard].base : NULL;
}

/* Of a description of its own, where that may be had: the daemon's is common to all its clients. */
static int open_again(int fd)
{
	char path[64];
	int own_fd;

	(void)snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
	own_fd = open(path, O_RDONLY | O_CLOEXEC);
	return own_fd >= 0 ? own_fd : fcntl(fd, F_DUPFD_CLOEXEC, 0);
}

int distorch_weights_fd(const struct distorch_weights *weights, uint32_t shard)
{
	int fd;

	failure_clear(NULL);
	if (shard >= weights->n_images) {
		return failure_set(DISTORCH_E_NOT_FOUND, 0, NULL, "no image of shard %u is mapped",
				   shard);
	}
	fd = open_again(weights->images[shard].fd);
	if (fd < 0) {
		return failure_set(DISTORCH_E_TOO_MANY, errno, "raise ulimit -n",
				   "no descriptor is left: %s", strerror(errno));
	}
	return fd;
}

uint32_t distorch_weights_n_shards(const struct distorch_weights *weights)
{
	return weights->table.header->n_shards;
}

uint32_t distorch_weights_n_tensors(const struct distorch_weights *weights)
{
	return weights->table.header->n_tensors;
}

const struct distorch_tensor *distorch_weights_tensor(const struct distorch_weights *weights,
						      uint32_t index)
{
	return index < weights->table.header->n_tensors ? &weights->tensors[index] : NULL;
}

/* What is imported, also when that is not all. */
static void give_addresses(struct distorch_weights *weights)
{
	for (uint32_t i = 0; i < weights->table.header->n_tensors; i++) {
		struct distorch_tensor *tensor = &weights->tensors[i];
		const struct segment *segment = segments_of(&weights->segments, tensor->block);

		if (segment != NULL && segment->range != NULL) {
			tensor->device_ordinal = segment->range->card.ordinal;
			tensor->device_data = segment->address + tensor->block_offset;
		}
	}
}

int distorch_map_cuda(struct distorch_weights *weights)
{
	struct distorch *c = weights->c;
	int rc;

	failure_clear(c);
	if (c == NULL) {
		return 0; /* it only describes */
	}
	pthread_mutex_lock(&weights->card_lock);
	rc = segments_import(c, distorch_weights_lease(weights), &weights->segments);
	give_addresses(weights);
	pthread_mutex_unlock(&weights->card_lock);
	return rc;
}

uint32_t distorch_weights_n_blocks(const struct distorch_weights *weights)
{
	return weights->table.header->n_blocks;
}

const struct distorch_block *distorch_weights_block(const struct distorch_weights *weights,
						    uint32_t index)
{
	return index < weights->table.header->n_blocks ? &weights->blocks[index] : NULL;
}

const char *distorch_weights_names(const struct distorch_weights *weights, size_t *ret_size)
{
	*ret_size = weights->names_size;
	return weights->names;
}

static uint32_t hash_name(const struct distorch_weights *weights, const char *name)
{
	return (uint32_t)XXH3_64bits_withSeed(name, strlen(name), weights->seed);
}

/* Open addressing, at most half full. Of equal names (a table has none) the first is found. */
static uint32_t *make_index(const struct distorch_weights *weights, uint32_t *ret_mask)
{
	uint32_t n_tensors = weights->table.header->n_tensors;
	uint64_t n_slots = 16;
	uint32_t *index;

	while (n_slots < 2 * (uint64_t)n_tensors) {
		n_slots *= 2;
	}
	if (n_slots > UINT32_MAX) {
		return NULL;
	}
	index = calloc((size_t)n_slots, sizeof *index);
	if (index == NULL) {
		return NULL;
	}
	*ret_mask = (uint32_t)n_slots - 1;
	for (uint32_t i = 0; i < n_tensors; i++) {
		const char *name = weights->tensors[i].name;
		uint32_t slot = hash_name(weights, name) & *ret_mask;

		while (index[slot] != 0) {
			slot = (slot + 1) & *ret_mask;
		}
		index[slot] = i + 1;
	}
	return index;
}

const struct distorch_tensor *distorch_weights_find(struct distorch_weights *weights,
						    const char *name)
{
	const uint32_t *index;
	uint32_t mask;
	uint32_t slot;

	if (name == NULL) {
		return NULL;
	}
	pthread_mutex_lock(&weights->index_lock);
	if (weights->index == NULL) {
		weights->index = make_index(weights, &weights->index_mask);
	}
	index = weights->index;
	mask = weights->index_mask;
	pthread_mutex_unlock(&weights->index_lock);
	if (index == NULL) { /* without memory for it: look at each */
		for (uint32_t i = 0; i < weights->table.header->n_tensors; i++) {
			if (strcmp(weights->tensors[i].name, name) == 0) {
				return &weights->tensors[i];
			}
		}
		return NULL;
	}
	slot = hash_name(weights, name) & mask;
	while (index[slot] != 0) {
		const struct distorch_tensor *tensor = &weights->tensors[index[slot] - 1];

		if (strcmp(tensor->name, name) == 0) {
			return tensor;
		}
		slot = (slot + 1) & mask;
	}
	return NULL;
}
