/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the files of the CUDA backend share. A card's primary context, with the memory that it
 * costs, is there while extents are. Calls come from any thread; 'lock' guards what changes.
 */
#ifndef DEVICE_CUDA_DEVICE_H
#define DEVICE_CUDA_DEVICE_H

#include "base/err.h"

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "daemon/device/cuda_dl.h"
#include "daemon/device/device.h"

#define CUDA_N_STAGING     32
#define CUDA_STAGING_BYTES ((uint64_t)2 << 20)

struct cuda_health;

/* Pinned memory that the card reads by itself. */
struct staging {
	uint8_t *bytes; /* owned; NULL: not there */
	CUevent event;  /* owned with it; the last copy out of it */
	uint64_t serial;
	bool is_taken;
	bool is_unusable;  /* not there, and not to be had beside the others */
	bool is_in_flight; /* 'event' has not yet been seen to happen */
};

struct cuda_device {
	struct device base;
	const struct cuda_calls *calls;
	CUdevice ordinal;
	CUdevice peers[DEVICE_MAX_PEERS]; /* ordinals of those in 'info' */
	struct device_info info;          /* what does not change, and else as last known */
	struct cuda_health *health;       /* owned; NULL without NVML */
	bool is_open;                     /* it has been tried, and serves */

	pthread_mutex_t lock;
	pthread_cond_t given_back; /* a staging buffer */
	uint32_t n_refs;           /* extents, and who opened it */
	uint32_t n_users;          /* of the context */
	CUcontext context;         /* counted by the driver; NULL without users */
	CUstream stream;           /* owned, likewise */
	uint64_t context_bytes;    /* of the card, that the last one took when it was made */
	struct staging staging[CUDA_N_STAGING];
	uint64_t n_copies;
	uint64_t held_bytes; /* of the card, by extents */
	uint32_t n_changing; /* extents whose memory is being taken or given back */
	uint64_t n_changes;  /* so far, begun; and contexts that came or went */
	uint32_t n_exports;  /* descriptors that extents keep */
};

struct cuda_extent {
	struct extent base;
	struct cuda_device *device; /* counted */
	CUmemGenericAllocationHandle handle;
	CUdeviceptr address; /* 0: not mapped */
	uint64_t size;       /* whole granules */
	uint64_t held_bytes; /* of them, what its device counts: not those of another card */
	CUdevice home;       /* whose memory it is */
	int fd;              /* owned; of its memory, to be handed on; -1: each is made anew */
	bool is_imported;    /* 'fd' is what it was imported from */
	bool is_sealed;
	bool is_writable; /* mapped so */
};

static inline struct cuda_device *cuda_device_of(const struct device *device)
{
	return (struct cuda_device *)(uintptr_t)device; /* base is the first member */
}

static inline struct cuda_extent *cuda_extent_of(const struct extent *extent)
{
	return (struct cuda_extent *)(uintptr_t)extent; /* likewise */
}

/* cuda_fail, with the device's name before. */
int cuda_device_fail(const struct cuda_device *device, struct err *err, CUresult result,
		     const char *what);

/* ---- cuda_context.c: a context is there between the two, and current after the first ---- */

int cuda_use(struct cuda_device *device, struct err *err);
void cuda_unuse(struct cuda_device *device);
/* Make it current in this thread. */
int cuda_enter(struct cuda_device *device, struct err *err);
void cuda_ref(struct cuda_device *device);
void cuda_unref(struct cuda_device *device);

/* ---- cuda_memory.c ---- */

CUmemAllocationProp cuda_properties(CUdevice ordinal);
int cuda_alloc(struct device *base, const struct device_alloc *request, struct extent **ret,
	       struct err *err);
int cuda_map(struct cuda_extent *extent, CUmemAccess_flags access, struct err *err);
int cuda_unmap(struct cuda_extent *extent, struct err *err);
int cuda_seal(struct extent *base, struct err *err);
int cuda_release(struct extent *base, struct err *err);
int cuda_export(const struct extent *base, int *ret_fd, struct err *err);
int cuda_import(struct device *base, int fd, uint64_t bytes, struct extent **ret, struct err *err);

/* ---- cuda_fill.c ---- */

int cuda_fill(struct extent *base, uint64_t offset, const struct device_source *source,
	      uint64_t *ret_bytes, struct err *err);
int cuda_read(const struct extent *base, uint64_t offset, void *bytes, uint64_t n_bytes,
	      struct err *err);
int cuda_copy(struct extent *to_base, const struct extent *from_base, struct err *err);
void cuda_free_staging(struct cuda_device *device); /* lock held, context current */
/* Bytes a second to the card, by doing; left alone where it has no room to try. */
int cuda_measure(struct cuda_device *device, uint64_t *ret_bytes_per_s, struct err *err);

/* ---- cuda_nvml.c ---- */

struct cuda_health *cuda_health_new(const char *uuid); /* NULL: nothing can be known */
struct cuda_health *cuda_health_free(struct cuda_health *health);
/* What is free of the card, or 'unknown'. */
uint64_t cuda_health_free_bytes(struct cuda_health *health, uint64_t unknown);
/* Fills temperature, Xids and what is free of the card: what is not known is left alone. Of a card
 * that has to be reset or does not answer: WIRE_DEVICE_LOST. */
int cuda_health_look(struct cuda_health *health, struct device_info *info, uint64_t *ret_free,
		     struct err *err);

#endif
