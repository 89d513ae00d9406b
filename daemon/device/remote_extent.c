/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Extents of a device in a worker process. See remote.h. The worker reads from sealed memory
 * only: what a client may stop (a file whose server does not answer) is read here, by the thread
 * that fills, into memory that both share. So no file can keep a worker from its other work, and
 * a failed read is the caller's, as with any other device.
 */
#include "base/err.h"
#include "base/list.h"
#include "base/os/sys.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "daemon/device/remote_inside.h"
#include "daemon/device/worker_link.h"
#include "proto/gen/wire_gen.h"
#include "proto/wire.h"

#ifndef F_SEAL_FUTURE_WRITE
#	define F_SEAL_FUTURE_WRITE 0x0010
#endif

#define MAX_FILL_BYTES (32ULL << 20) /* at once: a cancel is looked at between two */

static const struct remote_extent *extent_of(const struct extent *extent)
{
	return (const struct remote_extent *)extent; /* base is the first member */
}

static void take_extent(const void *response, void *to)
{
	*(uint64_t *)to = ((const struct wire_worker_alloc_response *)response)->extent;
}

static void take_import(const void *response, void *to)
{
	*(uint64_t *)to = ((const struct wire_worker_import_response *)response)->extent;
}

static void take_filled(const void *response, void *to)
{
	*(uint64_t *)to = ((const struct wire_worker_fill_response *)response)->bytes;
}

/* An extent without an id yet, with a reference to its worker. */
static int new_extent(const struct device *device, struct remote_extent **ret, struct err *err)
{
	struct remote_extent *extent = sys_calloc(1, sizeof *extent);
	int code;

	if (extent == NULL) {
		return err_set(err, WIRE_NO_MEMORY, "no memory for an extent");
	}
	code = remote_use_link(device, extent, err);
	if (code < 0) {
		free(extent);
		return code;
	}
	*ret = extent;
	return 0;
}

static void free_extent(struct remote_extent *extent)
{
	(void)worker_link_unref(extent->link);
	free(extent);
}

int remote_alloc(struct device *device, const struct device_alloc *request, struct extent **ret,
		 struct err *err)
{
	char name[64];
	struct wire_worker_alloc_request wire = {.bytes = request->bytes,
						 .hugepages = request->hugepages};
	struct remote_extent *extent = NULL;
	struct worker_call call = {.method = WIRE_METHOD_WORKER_ALLOC, .request = &wire, .fd = -1};
	int code;

	(void)snprintf(name, sizeof name, "%s", request->name); /* cut: it is for people */
	wire.name = wire_str(name);
	if (request->bytes > INT64_MAX) { /* no number of the protocol is larger */
		return err_set(err, WIRE_NO_MEMORY, "%" PRIu64 " bytes are more than %s has",
			       request->bytes, device->name);
	}
	code = new_extent(device, &extent, err);
	if (code < 0) {
		return code;
	}
	call.limit_ns = extent->limit_ns;
	code = worker_link_call(extent->link, &call, NULL, take_extent, &extent->id, err);
	if (code < 0) {
		free_extent(extent);
		return code;
	}
	*ret = &extent->base;
	return 0;
}

/* Memory that nothing can keep anybody waiting for: an image of ours, or an export. */
static bool is_sealed_memory(int fd)
{
	const int seals = sys_fcntl(fd, F_GET_SEALS, 0);

	return seals > 0 && (seals & (F_SEAL_WRITE | F_SEAL_FUTURE_WRITE)) != 0 &&
	       (seals & F_SEAL_SHRINK) != 0;
}

/* From memory. Returns how much the worker took. */
static int fill_from(const struct remote_extent *extent, uint64_t offset,
		     const struct device_source *source, uint64_t *ret_bytes, struct err *err)
{
	const struct wire_worker_fill_request wire = {.extent = extent->id,
						      .offset = offset,
						      .from = source->offset,
						      .bytes = source->bytes < MAX_FILL_BYTES
								       ? source->bytes
								       : MAX_FILL_BYTES};
	const struct worker_call call = {.method = WIRE_METHOD_WORKER_FILL,
					 .request = &wire,
					 .fd = source->fd,
					 .limit_ns = extent->bytes_limit_ns};
	uint64_t n_bytes = 0;
	int code;

	if (source->offset > INT64_MAX) {
		*ret_bytes = 0; /* no memory ends later */
		return 0;
	}
	code = worker_link_call(extent->link, &call, NULL, take_filled, &n_bytes, err);
	if (code == 0 && n_bytes > wire.bytes) {
		return err_set(err, WIRE_INTERNAL, "%" PRIu64 " bytes were filled, not %" PRIu64,
			       n_bytes, wire.bytes);
	}
	if (code == 0) {
		*ret_bytes = n_bytes;
	}
	return code;
}

/* What stands in 'staging', all of it. */
static int fill_staged(const struct remote_extent *extent, uint64_t offset,
		       const struct staging *staging, uint64_t n_bytes, struct err *err)
{
	struct device_source source = {.fd = staging->fd, .bytes = n_bytes};

	while (source.bytes > 0) {
		uint64_t n_filled = 0;
		int code = fill_from(extent, offset + source.offset, &source, &n_filled, err);

		if (code < 0) {
			return code;
		}
		if (n_filled == 0) {
			return err_set(err, WIRE_INTERNAL, "the worker took nothing");
		}
		source.offset += n_filled;
		source.bytes -= n_filled;
	}
	return 0;
}

static int fill_from_file(const struct remote_extent *extent, uint64_t offset,
			  const struct device_source *source, uint64_t *ret_bytes, struct err *err)
{
	struct staging *staging = NULL;
	int code = worker_link_borrow(extent->link, source->bytes, &staging, err);
	ssize_t n_read;

	if (code < 0) {
		return code;
	}
	n_read = sys_pread(source->fd, staging->memory,
			   source->bytes < STAGING_BYTES ? source->bytes : STAGING_BYTES,
			   source->offset);
	if (n_read < 0) {
		int error = errno;

		code = err_set_sys(err, WIRE_IO, error, "reading at byte %" PRIu64 ": %s",
				   source->offset, strerror(error));
		if (err != NULL) {
			err->offset = source->offset;
		}
	} else {
		code = fill_staged(extent, offset, staging, (uint64_t)n_read, err);
	}
	worker_link_return(extent->link, staging);
	if (code == 0) {
		*ret_bytes = (uint64_t)n_read;
	}
	return code;
}

int remote_fill(struct extent *base, uint64_t offset, const struct device_source *source,
		uint64_t *ret_bytes, struct err *err)
{
	const struct remote_extent *extent = extent_of(base);

	if (extent->is_sealed) {
		return err_set(err, WIRE_NOT_ALLOWED, "the extent is sealed");
	}
	return is_sealed_memory(source->fd)
		       ? fill_from(extent, offset, source, ret_bytes, err)
		       : fill_from_file(extent, offset, source, ret_bytes, err);
}

/* Into the first bytes of 'staging'. */
static int read_staged(const struct remote_extent *extent, uint64_t offset,
		       const struct staging *staging, uint64_t n_bytes, struct err *err)
{
	const struct wire_worker_read_request wire = {.extent = extent->id,
						      .offset = offset,
						      .bytes = n_bytes};
	const struct worker_call call = {.method = WIRE_METHOD_WORKER_READ,
					 .request = &wire,
					 .fd = staging->fd,
					 .limit_ns = extent->bytes_limit_ns};

	return worker_link_call(extent->link, &call, NULL, NULL, NULL, err);
}

int remote_read(const struct extent *base, uint64_t offset, void *bytes, uint64_t n_bytes,
		struct err *err)
{
	const struct remote_extent *extent = extent_of(base);
	uint8_t *to = bytes;
	struct staging *staging = NULL;
	int code = worker_link_borrow(extent->link, n_bytes, &staging, err);

	if (code < 0) {
		return code;
	}
	while (code == 0 && n_bytes > 0) {
		const uint64_t part = n_bytes < STAGING_BYTES ? n_bytes : STAGING_BYTES;

		code = read_staged(extent, offset, staging, part, err);
		if (code == 0) {
			memcpy(to, staging->memory, part);
		}
		to += part;
		offset += part;
		n_bytes -= part;
	}
	worker_link_return(extent->link, staging);
	return code;
}

int remote_seal(struct extent *base, struct err *err)
{
	struct remote_extent *extent = container_of(base, struct remote_extent, base);
	const struct wire_worker_seal_request wire = {.extent = extent->id};
	const struct worker_call call = {.method = WIRE_METHOD_WORKER_SEAL,
					 .request = &wire,
					 .fd = -1,
					 .limit_ns = extent->bytes_limit_ns};

	if (extent->is_sealed) {
		return 0;
	}
	extent->is_sealed = true; /* also on failure: it cannot be filled any more */
	return worker_link_call(extent->link, &call, NULL, NULL, NULL, err);
}

/* What the worker had is free with it; and what it does not take back with nothing else. */
static void give_back(struct worker_link *link, uint64_t id, uint64_t bytes, uint64_t limit_ns)
{
	const struct wire_worker_release_request wire = {.extent = id};
	const struct worker_call call = {.method = WIRE_METHOD_WORKER_RELEASE,
					 .request = &wire,
					 .fd = -1,
					 .limit_ns = limit_ns};
	struct err failure = {0};
	char reason[sizeof failure.text + 64];

	if (worker_link_call(link, &call, NULL, NULL, NULL, &failure) < 0) {
		(void)snprintf(reason, sizeof reason, "it did not take back %llu bytes: %s",
			       (unsigned long long)bytes, failure.text);
		worker_link_lose(link, reason);
	}
}

int remote_release(struct extent *base, struct err *err)
{
	struct remote_extent *extent = container_of(base, struct remote_extent, base);

	(void)err;
	give_back(extent->link, extent->id, base->bytes, extent->limit_ns);
	free_extent(extent);
	return 0;
}

int remote_export_all(const struct extent *const *extents, uint32_t n_extents, int *ret_fds,
		      struct err *err)
{
	const struct remote_extent *first = extent_of(extents[0]);
	uint64_t ids[DEVICE_MAX_EXPORTS];
	const struct wire_worker_export_request wire = {
		.extents = {.items = ids, .count = n_extents}};
	const struct worker_call call = {.method = WIRE_METHOD_WORKER_EXPORT,
					 .request = &wire,
					 .fd = -1,
					 .limit_ns = first->limit_ns,
					 .n_ret_fds = n_extents};

	for (uint32_t i = 0; i < n_extents; i++) {
		const struct remote_extent *extent = extent_of(extents[i]);

		if (!extent->is_sealed) {
			return err_set(err, WIRE_NOT_ALLOWED, "the extent is not sealed yet");
		}
		if (extent->link != first->link) { /* one of the two is lost */
			return err_set(err, WIRE_DEVICE_LOST, "its worker is another one since");
		}
		ids[i] = extent->id;
	}
	return worker_link_call(first->link, &call, ret_fds, NULL, NULL, err);
}

int remote_export(const struct extent *base, int *ret_fd, struct err *err)
{
	return remote_export_all(&base, 1, ret_fd, err);
}

/* Into 'extent', which has a link and no id yet. */
static int import_into(struct remote_extent *extent, int fd, uint64_t bytes, struct err *err)
{
	const struct wire_worker_import_request wire = {.bytes = bytes};
	const struct worker_call call = {.method = WIRE_METHOD_WORKER_IMPORT,
					 .request = &wire,
					 .fd = fd,
					 .limit_ns = extent->limit_ns};

	if (bytes > INT64_MAX) {
		return err_set(err, WIRE_BAD_FD, "%" PRIu64 " bytes: no memory is so large", bytes);
	}
	return worker_link_call(extent->link, &call, NULL, take_import, &extent->id, err);
}

int remote_import(struct device *device, int fd, uint64_t bytes, struct extent **ret,
		  struct err *err)
{
	struct remote_extent *extent = NULL;
	int code = new_extent(device, &extent, err);

	if (code < 0) {
		return code;
	}
	extent->is_sealed = true;
	code = import_into(extent, fd, bytes, err);
	if (code < 0) {
		free_extent(extent);
		return code;
	}
	*ret = &extent->base;
	return 0;
}

/* ---- copies ---- */

/* Within one worker. */
static int copy_within(const struct remote_extent *to, uint64_t from, struct err *err)
{
	const struct wire_worker_copy_request wire = {.to = to->id, .from = from};
	const uint64_t slow_ns = to->base.bytes / SLOWEST_BYTES_PER_S * NS_PER_S;
	const struct worker_call call = {.method = WIRE_METHOD_WORKER_COPY,
					 .request = &wire,
					 .fd = -1,
					 .limit_ns = remote_add_ns(to->bytes_limit_ns, slow_ns)};

	return worker_link_call(to->link, &call, NULL, NULL, NULL, err);
}

/* From one device to the other; WIRE_UNSUPPORTED where they are no peers. */
static int copy_between(const struct remote_extent *to, const struct remote_extent *from,
			struct err *err)
{
	struct remote_extent imported = {.link = to->link, .limit_ns = to->limit_ns};
	int fd = -1;
	int code = remote_export(&from->base, &fd, err);

	if (code < 0) {
		return code;
	}
	code = import_into(&imported, fd, from->base.bytes, err);
	(void)close(fd); /* of memory, or of a card's */
	if (code < 0) {
		return code;
	}
	code = copy_within(to, imported.id, err);
	give_back(to->link, imported.id, from->base.bytes, to->limit_ns);
	return code;
}

/* Through the host: what was read is on its way up while the next is on its way down. */
static int copy_staged(const struct remote_extent *to, const struct remote_extent *from,
		       struct err *err)
{
	struct staging *staging = NULL;
	int code = worker_link_borrow(to->link, to->base.bytes, &staging, err);

	for (uint64_t at = 0; code == 0 && at < to->base.bytes; at += STAGING_BYTES) {
		const uint64_t left = to->base.bytes - at;
		const uint64_t part = left < STAGING_BYTES ? left : STAGING_BYTES;

		code = read_staged(from, at, staging, part, err);
		if (code == 0) {
			code = fill_staged(to, at, staging, part, err);
		}
	}
	if (code == 0) {
		worker_link_return(to->link, staging);
	} else if (staging != NULL) {
		worker_link_discard(staging);
	}
	return code;
}

int remote_copy(struct extent *to_base, const struct extent *from_base, struct err *err)
{
	const struct remote_extent *to = extent_of(to_base);
	const struct remote_extent *from = extent_of(from_base);
	struct err failure = {0};
	int code;

	if (to->link == from->link) {
		return copy_within(to, from->id, err);
	}
	code = copy_between(to, from, &failure);
	if (code == -WIRE_UNSUPPORTED) {
		return copy_staged(to, from, err);
	}
	if (code < 0 && err != NULL) {
		*err = failure;
	}
	return code;
}
