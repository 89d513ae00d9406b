/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Files that models are read from are parked once each, whatever generations and models need them:
 * systemd drops a second descriptor of one open file without a word. Two are one by inode and by
 * whether they may be written; systemd itself looks no closer where its kernel does not compare
 * open files (kcmp).
 */
#define HASH_NONFATAL_OOM            1
#define uthash_nonfatal_oom(element) ((void)(element), source_out_of_memory = true)

/* Their number is bounded by the store's. */
#define HASH_FUNCTION(key, size, hash) ((hash) = (unsigned)hash_bytes(key, size))

#include "base/os/sys.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <uthash.h>

#include "daemon/describe.h"
#include "daemon/load/file.h"
#include "daemon/load/hash.h"
#include "daemon/persist_inside.h"

#define INDEX_NUMBER UINT32_MAX /* of the generation's files: the one that says what is in which */
#define PLACED_BIT   (1ULL << 32)

static bool source_out_of_memory; /* the loop's thread only */

/* owner: persist::sources, as long as something uses it */
struct source {
	struct source_key key;
	char name[NOTIFY_NAME_SIZE];
	bool is_sent;
	uint32_t n_uses;
	uint64_t walk; /* that listed it last */
	UT_hash_handle hh;
};

struct use_key {
	uint8_t uuid[16];
	uint64_t generation, file;
};

/* By a file of a generation that is parked. owner: persist::source_uses */
struct source_use {
	struct use_key key;
	struct source *source;
	UT_hash_handle hh;
};

static bool is_writable(int fd)
{
	return (sys_fcntl(fd, F_GETFL, 0) & O_ACCMODE) != O_RDONLY;
}

static struct source_key key_of(const struct file *file)
{
	return (struct source_key){.dev = file->key.dev,
				   .ino = file->key.ino,
				   .is_writable = is_writable(file->fd)};
}

static struct source *find_source(const struct persist *persist, const struct source_key *key)
{
	struct source *source = NULL;

	HASH_FIND(hh, persist->sources, key, sizeof *key, source);
	return source;
}

static struct use_key use_key_of(const struct park *park, enum part part)
{
	struct use_key key = {.generation = park->generation,
			      .file = part == PART_INDEX ? INDEX_NUMBER : park->index};

	memcpy(key.uuid, park->uuid, sizeof key.uuid);
	key.file |= park->n_files > 0 ? PLACED_BIT : 0; /* its images may be parked as well */
	return key;
}

static struct source_use *find_use(const struct persist *persist, const struct park *park,
				   enum part part)
{
	const struct use_key key = use_key_of(park, part);
	struct source_use *use = NULL;

	HASH_FIND(hh, persist->source_uses, &key, sizeof key, use);
	return use;
}

/* ---- uses ---- */

/* Made if it is new, to be parked; NULL: no memory. */
static struct source *get_source(struct persist *persist, const struct source_key *key,
				 enum part part)
{
	struct source *source = find_source(persist, key);

	if (source != NULL) {
		return source;
	}
	source = sys_calloc(1, sizeof *source);
	if (source == NULL) {
		return NULL;
	}
	source->key = *key;
	(void)snprintf(source->name, sizeof source->name, "%s.%llx.%llx%s",
		       part == PART_INDEX ? "idx" : "src", (unsigned long long)key->dev,
		       (unsigned long long)key->ino, key->is_writable != 0 ? ".w" : "");
	source_out_of_memory = false;
	HASH_ADD(hh, persist->sources, key, sizeof source->key, source);
	if (source_out_of_memory) {
		free(source);
		return NULL;
	}
	persist->n_fds++;
	return source;
}

static void release(struct persist *persist, struct source *source)
{
	struct inherited *inherited;

	if (source->n_uses > 0) {
		return;
	}
	inherited = inherited_find(persist, source->name);
	if (inherited != NULL) {
		inherited->is_kept = false; /* what is adopted after this may need it */
	} else {
		notify_unstore(persist->notify, source->name);
	}
	persist->n_fds--;
	HASH_DELETE(hh, persist->sources, source);
	free(source);
}

/* NULL: no memory. */
static struct source *add_use(struct persist *persist, const struct park *park, enum part part,
			      const struct source_key *key)
{
	struct source_use *use = sys_calloc(1, sizeof *use);
	struct source *source;

	source_unpark(persist, park, part); /* what it was parked with before */
	source = use == NULL ? NULL : get_source(persist, key, part);
	if (source == NULL) {
		free(use);
		return NULL;
	}
	use->key = use_key_of(park, part);
	use->source = source;
	source_out_of_memory = false;
	HASH_ADD(hh, persist->source_uses, key, sizeof use->key, use);
	if (source_out_of_memory) {
		free(use);
		release(persist, source);
		return NULL;
	}
	source->n_uses++;
	return source;
}

bool source_park(struct persist *persist, const struct park *park, enum part part,
		 const struct file *file)
{
	const struct source_key key = key_of(file);
	struct source *source = add_use(persist, park, part, &key);

	if (source != NULL && !source->is_sent) {
		source->is_sent = notify_store(persist->notify, source->name, file->fd);
	}
	return source != NULL && source->is_sent;
}

bool source_take_over(struct persist *persist, const struct park *park, enum part part,
		      struct inherited *inherited)
{
	struct source *source = add_use(persist, park, part, &inherited->key);

	if (source != NULL && !source->is_sent) {
		(void)snprintf(source->name, sizeof source->name, "%s", inherited->name);
		source->is_sent = inherited->is_kept = true;
	}
	return source != NULL;
}

void source_unpark(struct persist *persist, const struct park *park, enum part part)
{
	struct source_use *use = find_use(persist, park, part);
	struct source *source;

	if (use != NULL) {
		source = use->source;
		HASH_DELETE(hh, persist->source_uses, use);
		free(use);
		source->n_uses--;
		release(persist, source);
	}
}

bool source_is_parked(const struct persist *persist, const struct park *park)
{
	return find_use(persist, park, PART_SOURCE) != NULL;
}

uint32_t sources_count_new(const struct persist *persist, struct file *file)
{
	uint32_t n_new = 0;

	for (uint32_t i = 0; i < file_n_shards(file); i++) {
		const struct source_key key = key_of(file_shard(file, i));

		n_new += find_source(persist, &key) == NULL ? 1 : 0;
	}
	if (file->index != NULL) {
		const struct source_key key = key_of(file->index);

		n_new += find_source(persist, &key) == NULL ? 1 : 0;
	}
	return n_new;
}

const char *source_list(struct persist *persist, const struct park *park, enum part part,
			uint64_t walk)
{
	const struct source_use *use = find_use(persist, park, part);

	if (use == NULL || use->source->walk == walk) {
		return NULL;
	}
	use->source->walk = walk;
	return use->source->name;
}

void sources_free(struct persist *persist)
{
	struct source_use *use;
	struct source_use *next_use;
	struct source *source;
	struct source *next;

	HASH_ITER(hh, persist->source_uses, use, next_use)
	{
		/* NOLINTNEXTLINE(clang-analyzer-unix.Malloc): HASH_ITER has the next one already */
		HASH_DELETE(hh, persist->source_uses, use);
		free(use);
	}
	HASH_ITER(hh, persist->sources, source, next)
	{
		/* NOLINTNEXTLINE(clang-analyzer-unix.Malloc): HASH_ITER has the next one already */
		HASH_DELETE(hh, persist->sources, source);
		free(source);
	}
}

/* ---- what an earlier life parked ---- */

void sources_identify(struct persist *persist)
{
	for (uint32_t i = 0; i < persist->n_inherited; i++) {
		struct inherited *inherited = &persist->inherited[i];
		bool is_named = strncmp(inherited->name, "src.", 4) == 0 ||
				strncmp(inherited->name, "idx.", 4) == 0;
		struct statx status;

		/* Not waiting for the server of the file. */
		if (is_named && inherited->fd >= 0 &&
		    sys_statx(inherited->fd, AT_STATX_DONT_SYNC, &status) == 0) {
			inherited->is_source = true;
			inherited->key =
				(struct source_key){.dev = makedev(status.stx_dev_major,
								   status.stx_dev_minor),
						    .ino = status.stx_ino,
						    .is_writable = is_writable(inherited->fd)};
		}
	}
}

struct inherited *source_find(struct persist *persist, uint64_t dev, uint64_t ino)
{
	struct inherited *found = NULL;

	for (uint32_t i = 0; i < persist->n_inherited; i++) {
		struct inherited *inherited = &persist->inherited[i];

		if (inherited->is_source && inherited->key.dev == dev &&
		    inherited->key.ino == ino && (found == NULL || found->key.is_writable != 0)) {
			found = inherited;
			if (found->key.is_writable == 0) {
				break;
			}
		}
	}
	return found;
}

/* As daemons before this named a file of a generation. systemd dropped it where another generation of
 * the model had it parked already. */
static struct inherited *find_as_before(struct persist *persist, const char *kind,
					const struct park *park, const char *number)
{
	char name[NOTIFY_NAME_SIZE];
	char id[33];
	int size = snprintf(name, sizeof name, "%s.%s.", kind, describe_id(park->uuid, id));
	struct inherited *found;

	(void)snprintf(name + size, sizeof name - (size_t)size, "%llu%s",
		       (unsigned long long)park->generation, number);
	found = inherited_find(persist, name);
	for (uint32_t i = 0; found == NULL && i < persist->n_inherited; i++) {
		struct inherited *other = &persist->inherited[i];
		const char *generation = other->name + size;

		if (other->fd >= 0 && strncmp(other->name, name, (size_t)size) == 0 &&
		    strcmp(generation + strspn(generation, "0123456789"), number) == 0) {
			found = other;
		}
	}
	return found;
}

struct inherited *source_find_index(struct persist *persist, struct park *park, uint32_t n_shards)
{
	struct inherited *found;

	if (park->is_sharded) {
		return !park->has_index ? NULL
					: source_find(persist, park->index_dev, park->index_ino);
	}
	/* The name of its table tells that it is a single file, or is one of before. */
	if (n_shards == 1 && find_as_before(persist, "src", park, ".0") == NULL) {
		return NULL;
	}
	park->is_sharded = park->is_named_as_before = true;
	found = find_as_before(persist, "idx", park, "");
	park->has_index = found != NULL;
	return found == NULL || !found->is_source ? NULL : found;
}
