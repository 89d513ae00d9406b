/* SPDX-License-Identifier: Apache-2.0 */
/* See generation.h. */
#include "daemon/generation.h"

#include "base/os/sys.h"
#include "base/require.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "daemon/load/hash.h"

bool generation_info_add_shards(struct generation_info *info, uint32_t n_shards)
{
	info->shards = sys_calloc(n_shards, sizeof *info->shards);
	info->n_shards = info->shards == NULL ? 0 : n_shards;
	return info->shards != NULL;
}

bool generation_info_set_shard(struct generation_info *info, uint32_t shard, const char *name,
			       uint64_t bytes)
{
	struct shard_info *ret = info->shards + shard;
	const struct shard_info *before = shard == 0 ? NULL : ret - 1;

	REQUIRE(info->shards != NULL && shard < info->n_shards);
	*ret = (struct shard_info){
		.name = name == NULL ? NULL : sys_strdup(name),
		.bytes = bytes,
		.first_sum = before == NULL ? 0 : before->first_sum + before->n_sums,
		.n_sums = info->n_sums == 0 ? 0
					    : hash_count_sums(bytes), /* the file itself: none */
	};
	return (name == NULL) == (ret->name == NULL);
}

void generation_info_fini(struct generation_info *info)
{
	for (uint32_t i = 0; info->shards != NULL && i < info->n_shards; i++) {
		free(info->shards[i].name);
	}
	free(info->shards);
	if (info->table_fd >= 0) {
		(void)close(info->table_fd); /* a small memfd: at once, cannot fail usefully */
	}
	free(info->sums);
	free(info->places);
	memset(info, 0, sizeof *info);
	info->table_fd = -1;
}
