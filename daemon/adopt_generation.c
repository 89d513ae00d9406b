/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One generation that an earlier life parked: its table, images and sources must fit one another
 * by number, seal, inode and hash, all of them or none is taken over. See adoption.c.
 */
#include "base/cleanup.h"
#include "base/err.h"
#include "base/os/log.h"
#include "base/os/memfd.h"
#include "base/os/model_files.h"
#include "base/os/sys.h"
#include "base/require.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "daemon/daemon.h"
#include "daemon/device/device.h"
#include "daemon/format/format.h"
#include "daemon/load/file.h"
#include "daemon/load/hash.h"
#include "daemon/persist.h"
#include "daemon/persist_inside.h"
#include "daemon/placed_record.h"
#include "daemon/placement.h"
#include "proto/table.h"

#define MAX_TABLE_SIZE (256ULL << 20)

/* An image and the file that it is of. */
struct found_copy {
	struct inherited *image, *source;
	struct extent *extent; /* owner: found, until the store has it */
};

/* All that belongs to one generation. The descriptors stay the inherited ones'. */
struct found {
	struct inherited *table;
	struct inherited *index;   /* of several files; NULL: it came without one */
	struct inherited *placed;  /* how it lay on other devices too; NULL: it lay in images */
	bool has_files;            /* they are taken over for it */
	struct found_copy *copies; /* one a shard of the table; owner: found */
	struct park park;
	struct core_file_key key;
	struct table view;
	void *memory; /* the table, mapped; owner: found */
	size_t size;
};

static int map_table(struct found *found, struct err *err)
{
	struct stat status;
	int fd = found->table->fd;
	void *memory;

	if (sys_fstat(fd, &status) < 0 || status.st_size <= 0 ||
	    (uint64_t)status.st_size > MAX_TABLE_SIZE ||
	    memfd_check_seals(fd, (uint64_t)status.st_size, NULL) < 0) {
		return err_set(err, WIRE_BAD_FILE, "its table is not a sealed memfd");
	}
	memory = sys_mmap(NULL, (size_t)status.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
	if (memory == MAP_FAILED) {
		return err_set(err, WIRE_NO_MEMORY, "its table cannot be mapped");
	}
	found->memory = memory;
	found->size = (size_t)status.st_size;
	return table_open(memory, found->size, hash_bytes, &found->view, err);
}

static int check_copy(const struct found *found, uint32_t shard, struct err *err)
{
	const struct table_shard *row = &found->view.shards[shard];
	const bool is_file = found->park.is_file;
	const bool is_image = !is_file && found->placed == NULL;
	struct stat image;

	if ((is_image && row->n_sums != hash_count_sums(row->image_size)) ||
	    (is_file && (row->n_sums != 0 || row->image_size != row->size))) {
		return err_set(err, WIRE_UNSUPPORTED, "its table has %u sums for %llu bytes",
			       row->n_sums, (unsigned long long)row->image_size);
	}
	if (is_image && (sys_fstat(found->copies[shard].image->fd, &image) < 0 ||
			 image.st_ino != row->image_ino)) {
		return err_set(err, WIRE_BAD_FILE, "its image %u is another one", shard);
	}
	return 0;
}

static int check_table(const struct found *found, struct err *err)
{
	const struct table_header *header = found->view.header;
	uint32_t n_sums = 0;

	if (memcmp(header->model_id, found->park.uuid, sizeof found->park.uuid) != 0 ||
	    header->generation != found->park.generation) {
		return err_set(err, WIRE_BAD_FILE, "its table is of another model");
	}
	for (uint32_t i = 0; i < header->n_shards; i++) {
		int code = check_copy(found, i, err);

		if (code < 0) {
			return code;
		}
		if (found->view.shards[i].first_sum != n_sums) {
			break; /* a table of ours has them file by file */
		}
		n_sums += found->view.shards[i].n_sums; /* within the table's */
	}
	if (header->sum_range != HASH_RANGE_BYTES || header->n_sums != n_sums) {
		return err_set(err, WIRE_UNSUPPORTED, "its table has %u shards and %u sums",
			       header->n_shards, header->n_sums);
	}
	return 0;
}

/* Where the parts of a generation are, once the table says how many. */
static int find_copies(struct persist *persist, struct found *found, struct err *err)
{
	const uint32_t n_shards = found->view.header->n_shards;
	struct park *park = &found->park;
	char name[NOTIFY_NAME_SIZE];
	int code = 0;

	/* Without sums there never was an image (proto/schema.toml). */
	found->placed = inherited_find(persist, persist_name(name, PART_PLACED, park));
	park->is_file = found->view.header->n_sums == 0 && found->placed == NULL;
	park->n_files = found->placed == NULL ? 0 : n_shards;
	if (n_shards == 0 || n_shards > MODEL_MAX_FILES) {
		return err_set(err, WIRE_UNSUPPORTED, "its table has %u shards", n_shards);
	}
	found->copies = sys_calloc(n_shards, sizeof *found->copies);
	if (found->copies == NULL) {
		return err_set(err, WIRE_NO_MEMORY, "no memory for its %u images", n_shards);
	}
	found->index = source_find_index(persist, park, n_shards);
	if (park->has_index ? found->index == NULL
			    : n_shards > 1 && found->view.header->format != FORMAT_GGUF) {
		code = err_set(err, WIRE_BAD_FILE, "its index is missing"); /* see join.h */
	}
	for (uint32_t i = 0; code == 0 && i < n_shards; i++) {
		const struct table_shard *row = &found->view.shards[i];
		struct found_copy *copy = &found->copies[i];
		struct park one = *park;

		one.index = i;
		copy->image = inherited_find(persist, persist_name(name, PART_IMAGE, &one));
		copy->source = source_find(persist, row->dev, row->ino);
		if (copy->source == NULL ||
		    (copy->image == NULL && !park->is_file && found->placed == NULL)) {
			code = err_set(err, WIRE_BAD_FILE, "its %s %u is missing",
				       copy->source == NULL ? "source" : "image", i);
		}
	}
	return code;
}

/* Before the core has it: what it ends at that may have the same ones. */
static int take_files_over(struct persist *persist, struct found *found, struct err *err)
{
	struct park park = found->park;
	bool is_good;

	if (source_is_parked(persist, &park)) {
		return err_set(err, WIRE_BAD_FILE, "there is one of it already");
	}
	found->has_files = true;
	is_good = found->index == NULL ||
		  source_take_over(persist, &park, PART_INDEX, found->index);
	for (; is_good && park.index < found->view.header->n_shards; park.index++) {
		is_good = source_take_over(persist, &park, PART_SOURCE,
					   found->copies[park.index].source);
	}
	return is_good ? 0 : err_set(err, WIRE_NO_MEMORY, "no memory to keep its files");
}

static void leave_files(struct persist *persist, const struct found *found)
{
	struct park park = found->park;

	source_unpark(persist, &park, PART_INDEX);
	for (; park.index < found->view.header->n_shards; park.index++) {
		source_unpark(persist, &park, PART_SOURCE);
	}
}

/* ---- its source ---- */

/* The model's name, and the file's where it has several; 'name' is cut in two. */
static const char *split_name(char *name, bool is_sharded)
{
	char *slash = is_sharded ? strrchr(name, '/') : NULL;

	if (slash == NULL) {
		return NULL;
	}
	*slash = '\0';
	return slash + 1;
}

/* By a descriptor of our own. */
static int take_file(const struct inherited *inherited, struct file **ret, struct err *err)
{
	int fd = sys_fcntl_dup(inherited->fd);

	if (fd < 0) {
		return err_set_sys(err, WIRE_TOO_MANY, errno, "%s cannot be taken over: %s",
				   inherited->name, strerror(errno));
	}
	return file_new(fd, -1, ret, err);
}

static int take_source(const struct found *found, uint32_t shard, struct file **ret,
		       struct err *err)
{
	char name[1024];
	const char *file_name;
	int code = take_file(found->copies[shard].source, ret, err);

	if (code < 0 || !found->park.is_sharded) {
		return code;
	}
	(void)wire_str_copy(table_shard_name(&found->view, shard), name, sizeof name);
	file_name = split_name(name, true);
	if (!file_set_name(*ret, file_name == NULL ? name : file_name)) {
		*ret = file_unref(*ret);
		return err_set(err, WIRE_NO_MEMORY, "no memory for a source file");
	}
	return 0;
}

static int take_index(const struct found *found, struct file **ret, struct err *err)
{
	const char *path;
	const char *slash;
	int code = take_file(found->index, ret, err);

	if (code < 0) {
		return code;
	}
	path = file_path(*ret);
	slash = strrchr(path, '/');
	if (!file_set_name(*ret, slash == NULL ? path : slash + 1)) {
		*ret = file_unref(*ret);
		return err_set(err, WIRE_NO_MEMORY, "no memory for a source file");
	}
	return 0;
}

/* All files of the model, as one source. */
static int take_sources(const struct found *found, struct file **ret, struct err *err)
{
	const uint32_t n_shards = found->view.header->n_shards;
	AUTO_FREE struct file **files = NULL;
	struct file *index = NULL;
	uint32_t n_taken = 0;
	int code = 0;

	if (!found->park.is_sharded) {
		return take_source(found, 0, ret, err);
	}
	files = sys_calloc(n_shards, sizeof(struct file *));
	if (files == NULL) {
		return err_set(err, WIRE_NO_MEMORY, "no memory for its %u sources", n_shards);
	}
	while (code == 0 && n_taken < n_shards) {
		code = take_source(found, n_taken, &files[n_taken], err);
		n_taken += code == 0 ? 1 : 0;
	}
	if (code == 0 && found->index != NULL) {
		code = take_index(found, &index, err);
	}
	if (code == 0) {
		return file_join(geteuid(), index, files, n_shards, ret, err);
	}
	for (uint32_t i = 0; i < n_taken; i++) {
		(void)file_unref(files[i]);
	}
	return code;
}

/* As it was when the images were read, which the files need not be now. */
static int read_key(struct found *found, struct err *err)
{
	const uint32_t n_shards = found->view.header->n_shards;
	AUTO_FREE struct file_key *keys = sys_calloc(n_shards, sizeof *keys);
	struct file_key key;
	int code;

	if (keys == NULL) {
		return err_set(err, WIRE_NO_MEMORY, "no memory for its %u sources", n_shards);
	}
	for (uint32_t i = 0; i < n_shards; i++) {
		const struct table_shard *shard = &found->view.shards[i];

		keys[i] = (struct file_key){.dev = shard->dev,
					    .ino = shard->ino,
					    .size = shard->size,
					    .mtime_ns = shard->mtime_ns,
					    .ctime_ns = shard->ctime_ns};
	}
	key = keys[0];
	code = found->park.is_sharded ? file_join_keys(keys, n_shards, &key, err) : 0;
	found->key = (struct core_file_key){.dev = key.dev,
					    .ino = key.ino,
					    .size = key.size,
					    .mtime_ns = key.mtime_ns,
					    .ctime_ns = key.ctime_ns,
					    .is_raw = found->view.header->format == FORMAT_RAW,
					    .is_sharded = found->park.is_sharded};
	return code;
}

/* ---- into the core ---- */

/* The file itself, if it is what it was. Nobody kept its bytes from changing. */
static int borrow(const struct daemon *daemon, const struct table_shard *row,
		  const struct file *file, struct extent **ret, struct err *err)
{
	struct file_key now;
	int code = file_read_key(file, &now, err);

	if (code < 0) {
		return code;
	}
	if (now.size != row->size || now.mtime_ns != row->mtime_ns ||
	    now.ctime_ns != row->ctime_ns) {
		return err_set(err, WIRE_STALE, "its file has changed");
	}
	if (!file->is_read_only || file_place(file) == FILE_ELSEWHERE) {
		return err_set(err, WIRE_UNSUPPORTED, "its file cannot serve as it is");
	}
	return device_borrow(daemon->host, file->fd, row->size, ret, err);
}

static int import_all(const struct daemon *daemon, const struct found *found, struct file *file,
		      struct err *err)
{
	int code = 0;

	for (uint32_t i = 0; code == 0 && i < found->view.header->n_shards; i++) {
		const struct table_shard *row = &found->view.shards[i];
		struct found_copy *copy = &found->copies[i];

		code = found->park.is_file
			       ? borrow(daemon, row, file_shard(file, i), &copy->extent, err)
			       : device_import(daemon->host, copy->image->fd, row->image_size,
					       &copy->extent, err);
	}
	return code;
}

/* Those that nobody took. */
static void release_all(const struct found *found)
{
	for (uint32_t i = 0; found->copies != NULL && i < found->view.header->n_shards; i++) {
		(void)device_release(found->copies[i].extent, NULL);
	}
}

/* The number by which the core has the file; takes the reference. 0: no memory. */
static uint64_t keep_file(struct daemon *daemon, struct file *file, struct err *err)
{
	uint64_t id = store_add_file(daemon->store, file);

	if (id == 0) {
		(void)file_unref(file);
		(void)err_set(err, WIRE_NO_MEMORY, "no memory for its file");
	}
	return id;
}

/* One copy as the core sees it. Takes the reference of 'file', and the extent unless it fails. */
static int give_to_core(struct daemon *daemon, const struct found *found, uint32_t index,
			struct file *file, struct core_segment_view *ret, struct err *err)
{
	struct extent *extent = found->copies[index].extent;
	struct core_event event = {.type = EV_ADOPT};
	struct park park = found->park;
	uint64_t segment;

	event.adopt.key = &found->key;
	event.adopt.uuid = found->park.uuid;
	event.adopt.generation = found->park.generation;
	/* Its next content may be of another format. */
	event.adopt.format = found->key.is_raw ? FORMAT_RAW : FORMAT_AUTO;
	event.adopt.owner_uid = found->view.header->owner_uid;
	event.adopt.index = index;
	event.adopt.bytes = device_charge(daemon->host, extent->bytes);
	event.adopt.backing = found->park.is_file ? CORE_BACKING_FILE : CORE_BACKING_IMAGE;
	event.adopt.file = keep_file(daemon, file, err);
	if (event.adopt.file == 0) {
		return -WIRE_NO_MEMORY;
	}
	segment = daemon_step(daemon, &event); /* gives the file back when it refuses */
	if (!core_segment_get(daemon->core, segment, ret)) {
		return err_set(err, WIRE_TOO_MANY, "there is one of it already, or no room");
	}
	if (store_add_extent(daemon->store, segment, extent) < 0) {
		return err_set(err, WIRE_NO_MEMORY, "no memory to keep it");
	}
	found->copies[index].extent = NULL;
	park.index = index;
	store_set_park(daemon->store, segment, &park);
	return 0;
}

static bool describe_shards(const struct found *found, struct generation_info *ret)
{
	const uint32_t n_shards = found->view.header->n_shards;
	bool is_good = generation_info_add_shards(ret, n_shards);
	char name[1024];

	for (uint32_t i = 0; is_good && i < n_shards; i++) {
		const struct table_shard *shard = &found->view.shards[i];
		const char *file_name;

		(void)wire_str_copy(table_shard_name(&found->view, i), name, sizeof name);
		file_name = split_name(name, found->park.is_sharded);
		file_name = file_name == NULL && found->park.is_sharded ? name : file_name;
		is_good = generation_info_set_shard(ret, i, file_name, shard->image_size);
	}
	return is_good;
}

/* Takes 'table_fd'. */
static bool describe_generation(const struct found *found, int table_fd,
				struct generation_info *ret)
{
	const struct table_header *header = found->view.header;
	const struct found_copy *first = found->copies;
	struct device_pages pages;
	struct stat image;

	*ret = (struct generation_info){.table_fd = table_fd, .n_sums = header->n_sums};
	ret->sums = sys_calloc((size_t)header->n_sums + 1, sizeof *ret->sums);
	if (ret->sums == NULL || !describe_shards(found, ret) ||
	    sys_fstat(found->park.is_file ? first->source->fd : first->image->fd, &image) < 0) {
		generation_info_fini(ret);
		return false;
	}
	memcpy(ret->sums, found->view.sums, header->n_sums * sizeof *ret->sums);
	for (uint32_t i = 0; i < header->n_shards; i++) {
		device_pages(found->copies[i].extent, &pages);
		ret->huge_bytes += pages.huge_bytes;
		if (i == 0 || pages.page_bytes < ret->page_bytes) {
			ret->page_bytes = pages.page_bytes;
		}
		if (ret->notice[0] == '\0') {
			(void)snprintf(ret->notice, sizeof ret->notice, "%s", pages.notice);
		}
	}
	ret->format = header->format;
	ret->n_tensors = header->n_tensors;
	ret->n_blocks = header->n_blocks;
	ret->checksum = hash_sums(ret->sums, ret->n_sums);
	ret->image_dev = image.st_dev;
	ret->image_ino = image.st_ino;
	ret->is_from_store = ret->is_parked = true;
	return true;
}

/* Each copy, with the one source that they have; '*ret' is the last. */
static int give_all(struct daemon *daemon, const struct found *found, struct file *file,
		    struct core_segment_view *ret, struct err *err)
{
	int code = 0;

	for (uint32_t i = 0; code == 0 && i < found->view.header->n_shards; i++) {
		code = give_to_core(daemon, found, i, file_ref(file), ret, err);
	}
	return code;
}

/* What people call it. Takes 'info' unless it fails; NULL: there is nothing of it. */
static int name_model(struct daemon *daemon, const struct found *found, const struct file *file,
		      uint64_t id, const struct generation_info *info, struct err *err)
{
	struct model_info *model = store_find_model(daemon->store, id);
	char name[1024];

	if (model == NULL) {
		(void)wire_str_copy(table_shard_name(&found->view, 0), name, sizeof name);
		(void)split_name(name, found->park.is_sharded);
		model = store_add_model(daemon->store, id, found->park.uuid,
					name[0] == '\0' ? "unnamed" : name, file_path(file));
	}
	if (model == NULL) {
		return err_set(err, WIRE_NO_MEMORY, "no memory for its name");
	}
	model_info_set_files(model, file);
	if (info != NULL) {
		generation_info_fini(&model->current);
		model->current = *info;
	}
	return 0;
}

/* 'file' stays the caller's. */
static int adopt_with(struct daemon *daemon, const struct found *found, struct file *file,
		      struct err *err)
{
	struct core_segment_view segment = {0};
	struct generation_info info;
	int table_fd = sys_fcntl_dup(found->table->fd);
	int code;

	if (table_fd < 0) {
		return err_set_sys(err, WIRE_TOO_MANY, errno, "its table cannot be taken over: %s",
				   strerror(errno));
	}
	if (!describe_generation(found, table_fd, &info)) {
		return err_set(err, WIRE_NO_MEMORY, "no memory for it");
	}
	code = give_all(daemon, found, file, &segment, err);
	if (code == 0) {
		code = name_model(daemon, found, file, segment.model, &info, err);
	}
	if (code < 0) {
		generation_info_fini(&info);
	}
	return code;
}

static int adopt_images(struct daemon *daemon, struct found *found, struct file *file,
			struct err *err)
{
	int code = import_all(daemon, found, file, err);

	if (code == 0) {
		code = adopt_with(daemon, found, file, err);
	}
	release_all(found);
	return code;
}

/* ---- what lay on other devices too ---- */

/* It is read anew: nobody kept what the next one reads from being another content. */
static int check_sources(const struct found *found, struct file *file, struct err *err)
{
	struct file_key now;

	for (uint32_t i = 0; i < found->view.header->n_shards; i++) {
		const struct table_shard *row = &found->view.shards[i];
		int code = file_look_at_key(file_shard(file, i), &now, err);

		if (code < 0) {
			return code;
		}
		if (now.size != row->size || now.mtime_ns != row->mtime_ns) {
			return err_set(err, WIRE_STALE, "its file has changed");
		}
	}
	return 0;
}

static int read_placed(const struct found *found, struct placed_record *ret, struct err *err)
{
	int code = placed_record_read(found->placed->fd, ret, err);

	if (code == 0 && (memcmp(ret->uuid, found->park.uuid, sizeof ret->uuid) != 0 ||
			  ret->generation != found->park.generation)) {
		return err_set(err, WIRE_BAD_FILE, "how it lay is told of another model");
	}
	return code;
}

/* The core knows it from then on; it is filled when its devices are there. 'file' stays the caller's,
 * and 'record' if it fails. */
static int give_placed(struct daemon *daemon, const struct found *found, struct file *file,
		       struct placed_record *record, struct err *err)
{
	struct core_event event = {.type = EV_ADOPT_PLACED};
	struct model_info *model;
	uint64_t id;
	int code = placement_adopt(daemon, record, &event.adopt_placed.placement, err);

	if (code < 0) {
		return code;
	}
	event.adopt_placed.key = &found->key;
	event.adopt_placed.uuid = found->park.uuid;
	event.adopt_placed.generation = found->park.generation;
	event.adopt_placed.format = found->key.is_raw ? FORMAT_RAW : FORMAT_AUTO;
	event.adopt_placed.owner_uid = found->view.header->owner_uid;
	event.adopt_placed.placed_uid = record->placed_uid;
	event.adopt_placed.file = keep_file(daemon, file_ref(file), err);
	if (event.adopt_placed.file == 0) {
		return -WIRE_NO_MEMORY;
	}
	id = daemon_step(daemon, &event); /* gives the file back when it refuses */
	if (id == 0) {
		return err_set(err, WIRE_TOO_MANY, "there is a newer one of it, or no room");
	}
	code = name_model(daemon, found, file, id, NULL, err);
	if (code == 0) {
		persist_forget_placed(daemon, id); /* how it lay before that */
		model = store_find_model(daemon->store, id);
		model->park = found->park;
		model->returning = record;
	}
	return code;
}

static int adopt_placed(struct daemon *daemon, const struct found *found, struct file *file,
			struct err *err)
{
	struct placed_record *record = sys_calloc(1, sizeof *record);
	int code = 0;

	if (record == NULL) {
		return err_set(err, WIRE_NO_MEMORY, "no memory for how it lay");
	}
	code = check_sources(found, file, err);
	if (code == 0) {
		code = read_placed(found, record, err);
	}
	if (code == 0) {
		code = give_placed(daemon, found, file, record, err);
	}
	if (code < 0) {
		free(record);
	}
	return code;
}

static int adopt_one(struct daemon *daemon, struct found *found, struct err *err)
{
	struct file *file = NULL;
	int code = map_table(found, err);

	if (code == 0) {
		code = find_copies(daemon->persist, found, err);
	}
	if (code == 0) {
		code = check_table(found, err);
	}
	if (code == 0) {
		code = read_key(found, err);
	}
	if (code == 0) {
		code = take_sources(found, &file, err);
	}
	if (code == 0) {
		code = take_files_over(daemon->persist, found, err);
	}
	if (code == 0 && found->placed != NULL) {
		code = adopt_placed(daemon, found, file, err);
	} else if (code == 0) {
		code = adopt_images(daemon, found, file, err);
	}
	(void)file_unref(file);
	return code;
}

/* From now on it is parked by us, as its files are. */
static void keep_found(struct persist *persist, const struct found *found, uint64_t *bytes)
{
	found->table->is_kept = true;
	persist->n_fds++;
	if (found->placed != NULL) {
		found->placed->is_kept = true;
		persist->n_fds++;
	}
	for (uint32_t i = 0; i < found->view.header->n_shards; i++) {
		if (!found->park.is_file && found->placed == NULL) {
			found->copies[i].image->is_kept = true;
			persist->n_fds++;
			*bytes += found->view.shards[i].image_size;
		}
	}
}

int generation_adopt(struct daemon *daemon, struct inherited *table, const struct park *park,
		     uint64_t *bytes, struct err *err)
{
	struct found found = {.table = table, .park = *park};
	int code;

	testing_point("adopting");
	code = adopt_one(daemon, &found, err);

	if (code == 0) {
		daemon->metrics.n_adopted++;
		keep_found(daemon->persist, &found, bytes);
		testing_point("adopted");
	} else if (found.has_files) {
		leave_files(daemon->persist, &found);
	}
	if (found.memory != NULL) {
		(void)munmap(found.memory, found.size); /* ours */
	}
	free(found.copies);
	return code;
}
