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
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
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
#include "proto/table.h"

#define HUGE_PAGE         ((uint64_t)2 << 20)
#define TABLE_BYTES_MAX   ((uint64_t)256 << 20)
#define ID_SIZE           33
#define IMAGE_SEALS       (F_SEAL_SHRINK | F_SEAL_GROW)
#define IMAGE_SEALS_WRITE (F_SEAL_WRITE | F_SEAL_FUTURE_WRITE)

struct image {
	int fd; /* owned; read-only, sealed */
	void *base;
	size_t bytes;
};

struct distorch_weights {
	uint32_t n_refs;
	struct distorch *c; /* counted; NULL without a lease */
	struct lease lease;
	char id[ID_SIZE];
	uint8_t *table_bytes; /* owned; private copy of the table memfd */
	struct table table;
	struct image *images; /* owned; one a shard, none where nothing is mapped */
	uint32_t n_images;
	struct distorch_tensor *tensors; /* owned; in the table's order */
	char *names;                     /* owned; each with its NUL */
	size_t names_size;
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

/* The image's address of a tensor; NULL where nothing is mapped. False when it lies outside. */
static bool tensor_data(const struct distorch_weights *weights, const struct table_tensor *from,
			void **ret_data)
{
	const struct image *image;

	*ret_data = NULL;
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
		if (!tensor_data(weights, from, &tensor->data)) {
			return bad_table("a tensor lies outside of its image");
		}
		name += table_tensor_name(&weights->table, i).size + 1;
	}
	return 0;
}

/* ---- the images ---- */

/* Map 'bytes' of 'fd' privately at an address that 2 MiB pages can back. */
static void *map_aligned(int fd, size_t bytes)
{
	uint64_t padded;
	uint64_t reserve;
	unsigned char *room;
	unsigned char *base;
	size_t head;

	if (!checked_round_up(bytes, HUGE_PAGE, &padded) ||
	    !checked_add(padded, HUGE_PAGE, &reserve)) {
		errno = EOVERFLOW;
		return MAP_FAILED;
	}
	room = mmap(NULL, reserve, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (room == MAP_FAILED) {
		return MAP_FAILED;
	}
	head = (size_t)(-(uintptr_t)room & (HUGE_PAGE - 1));
	base = room + head;
	if (mmap(base, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED, fd, 0) ==
	    MAP_FAILED) {
		int sys = errno;

		(void)munmap(room, reserve); /* ours and whole */
		errno = sys;
		return MAP_FAILED;
	}
	if (head > 0) {
		(void)munmap(room, head); /* ours; never fails on a whole reservation */
	}
	(void)munmap(base + padded, reserve - head - padded); /* likewise */
	/* Hints; where they are refused, the memory is as good. */
	(void)madvise(base, bytes, MADV_HUGEPAGE);
	(void)madvise(base, bytes, MADV_DONTDUMP);
	return base;
}

/* Unmap what map_aligned gave: the image and the padding behind it. */
static void unmap_aligned(void *base, size_t bytes)
{
	(void)munmap(base, (bytes + HUGE_PAGE - 1) & ~(HUGE_PAGE - 1)); /* ours */
}

static int check_image(int fd, const struct table_shard *shard)
{
	struct stat status;
	int seals = fcntl(fd, F_GET_SEALS);

	if (seals < 0 || (seals & IMAGE_SEALS) != IMAGE_SEALS || (seals & IMAGE_SEALS_WRITE) == 0) {
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

static int map_images(struct distorch_weights *weights, struct answer *answer)
{
	uint32_t n_shards = weights->table.header->n_shards;

	if (weights->lease.n_images == 0) {
		return 0;
	}
	if (weights->lease.n_images != n_shards || answer->n_fds != n_shards + 1) {
		return bad_table("it has more or fewer shards than images came");
	}
	weights->images = calloc(n_shards, sizeof *weights->images);
	if (weights->images == NULL) {
		return failure_memory();
	}
	for (uint32_t i = 0; i < n_shards; i++) {
		const struct table_shard *shard = &weights->table.shards[i];
		struct image *image = &weights->images[i];
		int rc = check_image(answer->fds[i + 1], shard);

		if (rc < 0) {
			return rc;
		}
		image->base = map_aligned(answer->fds[i + 1], (size_t)shard->image_size);
		if (image->base == MAP_FAILED) {
			return failure_set(DISTORCH_E_INTERNAL, errno, "is there a ulimit -v?",
					   "mapping %llu bytes failed: %s",
					   (unsigned long long)shard->image_size, strerror(errno));
		}
		image->bytes = (size_t)shard->image_size;
		image->fd = steal_fd(&answer->fds[i + 1]);
		weights->n_images++;
	}
	return 0;
}

/* ---- life ---- */

static void weights_free(struct distorch_weights *weights)
{
	for (uint32_t i = 0; i < weights->n_images; i++) {
		unmap_aligned(weights->images[i].base, weights->images[i].bytes);
		(void)close(weights->images[i].fd); /* read only: nothing can be lost */
	}
	(void)pthread_mutex_destroy(&weights->index_lock); /* nobody uses it any more */
	free(weights->images);
	free(weights->tensors);
	free(weights->names);
	free(weights->index);
	free(weights->table_bytes);
	free(weights);
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
	weights->lease = *lease;
	(void)pthread_mutex_init(&weights->index_lock, NULL); /* cannot fail with defaults */
	if (getrandom(&weights->seed, sizeof weights->seed, GRND_NONBLOCK) < 0) {
		weights->seed = (uint64_t)(uintptr_t)weights; /* early in boot */
	}
	rc = open_table(weights, answer->n_fds > 0 ? answer->fds[0] : -1);
	if (rc == 0) {
		rc = map_images(weights, answer);
	}
	if (rc == 0) {
		rc = copy_names(weights);
	}
	if (rc == 0) {
		rc = make_tensors(weights);
	}
	if (rc < 0) {
		weights_free(weights);
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
	weights_free(weights); /* unmapped before the daemon is told so */
	if (kept != NULL) {
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

int distorch_weights_fd(const struct distorch_weights *weights, uint32_t shard)
{
	int fd;

	failure_clear(NULL);
	if (shard >= weights->n_images) {
		return failure_set(DISTORCH_E_NOT_FOUND, 0, NULL, "no image of shard %u is mapped",
				   shard);
	}
	fd = fcntl(weights->images[shard].fd, F_DUPFD_CLOEXEC, 0);
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
