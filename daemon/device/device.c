/* SPDX-License-Identifier: Apache-2.0 */
/* The registry of backends, and the one place that checks ranges. See device.h. */
#include "daemon/device/device.h"

#include "base/checked.h"
#include "base/cleanup.h"
#include "base/err.h"
#include "base/require.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "proto/gen/wire_code.h"

/* Written before the first thread starts, read-only afterwards. */
static struct device_ops backends[DEVICE_MAX_BACKENDS];
static uint32_t n_backends;

/* The way of a device that cannot copy by itself: its export is the other's source. */
static int copy_through_host(struct extent *to, const struct extent *from, struct err *err)
{
	AUTO_CLOSE int fd = -1;
	struct device_source source = {.bytes = from->bytes};
	int code = device_export(from, &fd, err);

	if (code < 0) {
		return code;
	}
	source.fd = fd;
	while (source.bytes > 0) {
		uint64_t n_bytes = 0;

		code = device_fill(to, source.offset, &source, &n_bytes, err);
		if (code < 0) {
			return code;
		}
		if (n_bytes == 0) {
			return err_set(err, WIRE_IO, "the copy ended at byte %llu",
				       (unsigned long long)source.offset);
		}
		source.offset += n_bytes;
		source.bytes -= n_bytes;
	}
	return 0;
}

static int export_each(const struct extent *const *extents, uint32_t n_extents, int *ret_fds,
		       struct err *err)
{
	for (uint32_t i = 0; i < n_extents; i++) {
		int code = device_export(extents[i], &ret_fds[i], err);

		while (code < 0 && i > 0) {
			(void)close(ret_fds[--i]); /* of memory */
		}
		if (code < 0) {
			return code;
		}
	}
	return 0;
}

static void prepare_nothing(struct extent *extent, uint64_t offset, uint64_t n_bytes)
{
	(void)extent;
	(void)offset;
	(void)n_bytes;
}

static const void *see_nothing(const struct extent *extent)
{
	(void)extent;
	return NULL;
}

static int borrow_nothing(struct device *device, int fd, uint64_t bytes, struct extent **ret,
			  struct err *err)
{
	(void)fd;
	(void)bytes;
	(void)ret;
	return err_set(err, WIRE_UNSUPPORTED, "%s cannot serve a file as it is", device->name);
}

static int lock_nothing(struct extent *extent, struct err *err)
{
	(void)extent;
	(void)err;
	return 0;
}

static void pages_of_device(const struct extent *extent, struct device_pages *ret)
{
	(void)extent;
	*ret = (struct device_pages){.page_bytes = (uint64_t)sysconf(_SC_PAGESIZE)};
}

static uint64_t take_no_more(const struct extent *extent)
{
	(void)extent;
	return 0;
}

static void add_backend(const struct device_ops *ops)
{
	struct device_ops *backend;

	REQUIRE(ops->version == DEVICE_OPS_VERSION);
	REQUIRE(ops->name != NULL && ops->probe != NULL && ops->open != NULL);
	REQUIRE(ops->close != NULL && ops->info != NULL && ops->charge != NULL);
	REQUIRE(ops->alloc != NULL && ops->fill != NULL && ops->read != NULL);
	REQUIRE(ops->seal != NULL && ops->release != NULL);
	REQUIRE(ops->export != NULL && ops->import != NULL);
	REQUIRE(n_backends < DEVICE_MAX_BACKENDS);
	backend = &backends[n_backends];
	*backend = *ops;
	backend->export_all = ops->export_all == NULL ? export_each : ops->export_all;
	backend->copy = ops->copy == NULL ? copy_through_host : ops->copy;
	backend->prepare = ops->prepare == NULL ? prepare_nothing : ops->prepare;
	backend->bytes = ops->bytes == NULL ? see_nothing : ops->bytes;
	backend->borrow = ops->borrow == NULL ? borrow_nothing : ops->borrow;
	backend->lock = ops->lock == NULL ? lock_nothing : ops->lock;
	backend->pages = ops->pages == NULL ? pages_of_device : ops->pages;
	backend->taken = ops->taken == NULL ? take_no_more : ops->taken;
	n_backends++;
}

static void know_the_host(void)
{
	if (n_backends == 0) {
		add_backend(&host_device_ops);
	}
}

void device_register(const struct device_ops *ops)
{
	know_the_host();
	add_backend(ops);
}

const struct device_ops *device_backend_find(const char *name)
{
	know_the_host();
	for (uint32_t i = 0; i < n_backends; i++) {
		if (strcmp(backends[i].name, name) == 0) {
			return &backends[i];
		}
	}
	return NULL;
}

int device_open(const char *backend, const char *name, struct device **ret, struct err *err)
{
	const struct device_ops *ops = device_backend_find(backend);
	int code;

	if (ops == NULL) {
		return err_set(err, WIRE_NOT_FOUND, "no devices of kind \"%s\"", backend);
	}
	code = ops->open(name, ret, err);
	if (code == 0) {
		(*ret)->ops = ops;
		(void)snprintf((*ret)->name, sizeof(*ret)->name, "%s", name);
	}
	return code;
}

struct device *device_close(struct device *device)
{
	if (device != NULL) {
		device->ops->close(device);
	}
	return NULL;
}

int device_info(const struct device *device, struct device_info *ret, struct err *err)
{
	return device->ops->info(device, ret, err);
}

uint64_t device_charge(const struct device *device, uint64_t bytes)
{
	return device->ops->charge(device, bytes);
}

int device_alloc(struct device *device, const struct device_alloc *request, struct extent **ret,
		 struct err *err)
{
	int code;

	if (request->bytes == 0) {
		return err_set(err, WIRE_BAD_ARGUMENT, "an extent of 0 bytes");
	}
	code = device->ops->alloc(device, request, ret, err);
	if (code == 0) {
		(*ret)->ops = device->ops;
		(*ret)->device = device;
		(*ret)->bytes = request->bytes;
	}
	return code;
}

static int check_range(const struct extent *extent, uint64_t offset, uint64_t n_bytes,
		       struct err *err)
{
	if (!checked_range(offset, n_bytes, extent->bytes)) {
		return err_set(err, WIRE_BAD_ARGUMENT, "%llu bytes at %llu of an extent of %llu",
			       (unsigned long long)n_bytes, (unsigned long long)offset,
			       (unsigned long long)extent->bytes);
	}
	return 0;
}

int device_fill(struct extent *extent, uint64_t offset, const struct device_source *source,
		uint64_t *ret_bytes, struct err *err)
{
	int code = check_range(extent, offset, source->bytes, err);

	return code < 0 ? code : extent->ops->fill(extent, offset, source, ret_bytes, err);
}

int device_read(const struct extent *extent, uint64_t offset, void *bytes, uint64_t n_bytes,
		struct err *err)
{
	int code = check_range(extent, offset, n_bytes, err);

	return code < 0 ? code : extent->ops->read(extent, offset, bytes, n_bytes, err);
}

int device_seal(struct extent *extent, struct err *err)
{
	return extent->ops->seal(extent, err);
}

int device_release(struct extent *extent, struct err *err)
{
	return extent == NULL ? 0 : extent->ops->release(extent, err);
}

int device_export(const struct extent *extent, int *ret_fd, struct err *err)
{
	return extent->ops->export(extent, ret_fd, err);
}

int device_export_all(const struct extent *const *extents, uint32_t n_extents, int *ret_fds,
		      struct err *err)
{
	REQUIRE(n_extents > 0 && n_extents <= DEVICE_MAX_EXPORTS);
	return extents[0]->ops->export_all(extents, n_extents, ret_fds, err);
}

int device_import(struct device *device, int fd, uint64_t bytes, struct extent **ret,
		  struct err *err)
{
	int code;

	if (bytes == 0) {
		return err_set(err, WIRE_BAD_ARGUMENT, "an extent of 0 bytes");
	}
	code = device->ops->import(device, fd, bytes, ret, err);
	if (code == 0) {
		(*ret)->ops = device->ops;
		(*ret)->device = device;
		(*ret)->bytes = bytes;
	}
	return code;
}

int device_borrow(struct device *device, int fd, uint64_t bytes, struct extent **ret,
		  struct err *err)
{
	int code;

	if (bytes == 0) {
		return err_set(err, WIRE_BAD_ARGUMENT, "an extent of 0 bytes");
	}
	code = device->ops->borrow(device, fd, bytes, ret, err);
	if (code == 0) {
		(*ret)->ops = device->ops;
		(*ret)->device = device;
		(*ret)->bytes = bytes;
	}
	return code;
}

int device_copy(struct extent *to, const struct extent *from, struct err *err)
{
	if (to->bytes != from->bytes) {
		return err_set(err, WIRE_BAD_ARGUMENT, "a copy of %llu bytes into %llu",
			       (unsigned long long)from->bytes, (unsigned long long)to->bytes);
	}
	return to->ops == from->ops ? to->ops->copy(to, from, err)
				    : copy_through_host(to, from, err);
}

void device_prepare(struct extent *extent, uint64_t offset, uint64_t n_bytes)
{
	if (check_range(extent, offset, n_bytes, NULL) == 0) {
		extent->ops->prepare(extent, offset, n_bytes);
	}
}

const void *device_bytes(const struct extent *extent)
{
	return extent->ops->bytes(extent);
}

int device_lock(struct extent *extent, struct err *err)
{
	return extent->ops->lock(extent, err);
}

void device_pages(const struct extent *extent, struct device_pages *ret)
{
	extent->ops->pages(extent, ret);
}

uint64_t device_taken(const struct extent *extent)
{
	return extent->ops->taken(extent);
}
