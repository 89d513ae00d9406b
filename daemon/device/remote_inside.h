/* SPDX-License-Identifier: Apache-2.0 */
/* What remote.c and remote_extent.c share. */
#ifndef DEVICE_REMOTE_INSIDE_H
#define DEVICE_REMOTE_INSIDE_H

#include <stdbool.h>
#include <stdint.h>

#include "daemon/device/device.h"

struct worker_link;

#define NS_PER_S 1000000000ULL
/* No link is slower when time is allowed. */
#define SLOWEST_BYTES_PER_S (64ULL << 20)

struct remote_extent {
	struct extent base;
	struct worker_link *link; /* owner of a reference: the extent */
	uint64_t id;              /* the worker's number of it */
	uint64_t limit_ns;        /* for a call without bytes */
	uint64_t bytes_limit_ns;  /* for one that waits for the link */
	bool is_sealed;
};

/* An extent without a number: the caller owns the reference to its link. Or WIRE_DEVICE_LOST. */
int remote_use_link(const struct device *base, struct remote_extent *ret, struct err *err);

uint64_t remote_add_ns(uint64_t a, uint64_t b);

/* Members of the contract. */
int remote_alloc(struct device *device, const struct device_alloc *request, struct extent **ret,
		 struct err *err);
int remote_fill(struct extent *base, uint64_t offset, const struct device_source *source,
		uint64_t *ret_bytes, struct err *err);
int remote_read(const struct extent *base, uint64_t offset, void *bytes, uint64_t n_bytes,
		struct err *err);
int remote_seal(struct extent *base, struct err *err);
int remote_release(struct extent *base, struct err *err);
int remote_export(const struct extent *base, int *ret_fd, struct err *err);
int remote_export_all(const struct extent *const *extents, uint32_t n_extents, int *ret_fds,
		      struct err *err);
int remote_import(struct device *device, int fd, uint64_t bytes, struct extent **ret,
		  struct err *err);
int remote_copy(struct extent *to_base, const struct extent *from_base, struct err *err);

#endif
