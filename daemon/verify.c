/* SPDX-License-Identifier: Apache-2.0 */
/* See verify.h. */
#include "daemon/verify.h"

#include "base/list.h"
#include "base/os/model_files.h"
#include "base/os/sys.h"
#include "base/require.h"

#include <stdlib.h>
#include <unistd.h>

#include "daemon/daemon.h"
#include "daemon/execute.h"
#include "daemon/load/loader.h"

/* What the blocks of one generation are compared with, however many there are. */
struct verification {
	struct list link; /* owner: daemon::verifications */
	uint64_t id;
	uint64_t model, generation;
	uint32_t n_blocks; /* results that are to come */
	bool is_cancelled; /* takes no more */
	int table_fd;
	uint32_t n_held;
	uint64_t held[MODEL_MAX_FILES];         /* segments of the images */
	struct extent *images[MODEL_MAX_FILES]; /* by file; NULL: it has none */
};

static struct verification *verification_free(struct verification *verification)
{
	if (verification == NULL) {
		return NULL;
	}
	list_remove(&verification->link);
	if (verification->table_fd >= 0) {
		(void)close(verification->table_fd); /* a small memfd */
	}
	free(verification);
	return NULL;
}

static void lend_images(struct daemon *daemon, struct verification *verification)
{
	struct core_segment_view image;
	uint32_t cursor = 0;

	while (core_segment_next(daemon->core, verification->model, &cursor, &image)) {
		struct extent *extent = store_find_extent(daemon->store, image.id);

		if (!core_segment_is_of(&image, verification->generation) || image.is_block ||
		    image.state != SEGMENT_READY || extent == NULL ||
		    image.index >= MODEL_MAX_FILES || verification->images[image.index] != NULL) {
			continue;
		}
		store_hold_extent(daemon->store, image.id);
		verification->held[verification->n_held++] = image.id;
		verification->images[image.index] = extent;
	}
}

/* Of the published generation. NULL: no memory, or no descriptor. */
static struct verification *begin(struct daemon *daemon, const struct model_info *model,
				  uint64_t generation)
{
	struct verification *verification = sys_calloc(1, sizeof *verification);

	if (verification == NULL) {
		return NULL;
	}
	list_init(&verification->link);
	verification->table_fd = sys_fcntl_dup(model->current.table_fd);
	if (verification->table_fd < 0) {
		return verification_free(verification);
	}
	verification->id = ++daemon->last_verification;
	verification->model = model->id;
	verification->generation = generation;
	if (model->current.with_host) { /* else images lack what blocks have */
		lend_images(daemon, verification);
	}
	list_append(&daemon->verifications, &verification->link);
	return verification;
}

static struct verification *find(const struct daemon *daemon, uint64_t model, uint64_t generation)
{
	LIST_FOR_EACH (link, &daemon->verifications) {
		struct verification *verification = container_of(link, struct verification, link);

		if (verification->model == model && verification->generation == generation &&
		    !verification->is_cancelled) {
			return verification;
		}
	}
	return NULL;
}

void verify_init(struct daemon *daemon)
{
	list_init(&daemon->verifications);
}

void verify_fini(struct daemon *daemon)
{
	LIST_FOR_EACH_SAFE (link, &daemon->verifications) {
		(void)verification_free(container_of(link, struct verification, link));
	}
}

void verify_block(struct daemon *daemon, const struct model_info *model,
		  const struct core_segment_view *segment, struct extent *extent)
{
	struct verify_request request = {.segment = segment->id,
					 .extent = extent,
					 .block = segment->index,
					 .table_fd = -1};
	struct verification *verification;
	struct core_model_view view;

	REQUIRE(core_model_get(daemon->core, model->id, &view));
	request.file = store_find_file(daemon->store, view.file);
	verification = find(daemon, model->id, view.generation);
	if (verification == NULL) {
		verification = begin(daemon, model, view.generation);
	}
	if (verification != NULL) {
		verification->n_blocks++;
		request.verification = verification->id;
		request.table_fd = verification->table_fd;
		request.images = verification->images;
		request.n_images = MODEL_MAX_FILES;
	}
	loader_verify_device(daemon->loader, &request);
}

static void give_back(struct daemon *daemon, struct verification *verification)
{
	for (uint32_t i = 0; i < verification->n_held; i++) {
		if (store_unhold_extent(daemon->store, verification->held[i])) {
			execute_drop_now(daemon, verification->held[i]);
		}
	}
	(void)verification_free(verification);
}

void verify_end(struct daemon *daemon, uint64_t id)
{
	LIST_FOR_EACH (link, &daemon->verifications) {
		struct verification *verification = container_of(link, struct verification, link);

		if (verification->id == id) {
			if (--verification->n_blocks == 0) {
				give_back(daemon, verification);
			}
			return;
		}
	}
	REQUIRE(id == 0);
}

void verify_cancel(struct daemon *daemon, uint64_t segment)
{
	LIST_FOR_EACH (link, &daemon->verifications) {
		struct verification *verification = container_of(link, struct verification, link);

		for (uint32_t i = 0; i < verification->n_held && !verification->is_cancelled; i++) {
			if (verification->held[i] == segment) {
				verification->is_cancelled = true;
				loader_cancel_verification(daemon->loader, verification->id);
			}
		}
	}
}
