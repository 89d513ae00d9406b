/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The planner: blocks, devices and an allocation in, a device for each block out, or an error
 * that names what is wrong (docs/allocation-strings.md has the grammar and what it means). Pure:
 * nothing is allocated, read or remembered; any thread. Capacity is counted in what a
 * device gives for a block, quotas in the model's bytes.
 */
#ifndef PLAN_PLAN_H
#define PLAN_PLAN_H

#include <stdbool.h>
#include <stdint.h>

struct err;

#define PLAN_MAX_DEVICES  16
#define PLAN_MAX_BLOCKS   32768U /* each has a letter in a packet */
#define PLAN_MAX_WARNINGS 16
#define PLAN_MAX_DONORS   16U
#define PLAN_MAX_TEXT     1024U /* bytes of an allocation */

/* Borrowed, not terminated. */
struct plan_text {
	const char *text;
	uint32_t size;
};

/* As daemon/format numbers them. */
enum plan_component { PLAN_WHOLE, PLAN_UNET, PLAN_CLIP, PLAN_VAE, PLAN_N_COMPONENTS };

/* In execution order. */
struct plan_block {
	uint64_t bytes;  /* of its tensors: quotas, shares and sums are about these */
	uint64_t packed; /* of its segment on a device that is not the host; less is as 'bytes' */
	const char *name;
	uint32_t name_size;
	uint32_t component; /* enum plan_component */
	bool is_head;       /* it has no numbered place: it stays where the model computes */
};

/* Texts are terminated; those that are not known are NULL or empty. */
struct plan_device {
	const char *name;    /* "cpu", "cuda:0", "sim:1"; empty: nobody can name it */
	const char *uuid;    /* "GPU-..." */
	const char *product; /* "NVIDIA GeForce RTX 4090" */
	const char *pci;     /* "0000:01:00.0" */
	uint64_t total;      /* bytes of memory it has; for the host those it may have */
	uint64_t free;       /* bytes that may be taken at once: within its budget, foreign use
				 seen; with those of copies that this plan is to replace: */
	uint64_t own;        /* so much of it */
	uint64_t evictable;  /* and those that can be had by evicting */
	uint64_t later;      /* and those once the loads under way have ended: worth waiting for */
	/* And those that cannot, for the errors: */
	uint64_t held;     /* in use, pinned, or dropped and still mapped */
	uint64_t loading;  /* for loads under way */
	uint64_t reserved; /* room that is kept for others */
	uint64_t foreign;  /* taken by others than the daemon */
	uint64_t spare;    /* of 'total', beyond its budget and used by nobody: room to compute */
	uint64_t granularity; /* a power of two; 0 is 1 */
	bool is_host;         /* one of them is */
	bool is_lost;         /* it cannot be used now */
	bool is_draining;     /* it takes no new loads: auto has it take what fits nowhere else */
	uint32_t peers;       /* bit i: device i reads from it without the host between */
	uint64_t link[PLAN_MAX_DEVICES]; /* bytes a second from it to device i; 0: not known */
};

enum plan_strategy { PLAN_USUAL, PLAN_CONTIGUOUS, PLAN_SPREAD };

struct plan_request {
	const struct plan_block *blocks;
	uint32_t n_blocks;
	uint32_t n_devices;
	const struct plan_device *devices;
	struct plan_text allocation;    /* empty: by virtual VRAM, else all on the host */
	struct plan_text compute;       /* empty: the first device named that is not the host */
	uint64_t virtual_vram;          /* bytes that are to live off the compute device */
	const struct plan_text *donors; /* none: the host */
	uint32_t n_donors;
	enum plan_strategy strategy; /* usual: spread for auto and virtual VRAM, else contiguous */
	uint64_t activations;        /* auto leaves so much of the compute device; 0: a tenth */
};

struct plan_share {
	uint64_t bytes; /* of the model */
	uint64_t taken; /* of the device: each block rounded up to the granularity */
	uint32_t n_blocks;
};

enum plan_warning_kind {
	PLAN_OVER_WILDCARD, /* the rest (a) is more than the number at the * (b) */
	PLAN_REST_ON_HOST,  /* the host's size (b) is no limit: it takes the rest (a) */
	PLAN_CLAMPED,       /* "up to" a fraction (b), and no more than a was free */
	PLAN_HEAD_OVER,     /* the head (a) is more than the compute device's share (b) */
	PLAN_SHORT_DONORS,  /* asked off the compute device: b; the donors take a */
	PLAN_SHORT_BLOCKS,  /* the same; whole blocks come to a */
	PLAN_NOTHING_OFF,   /* virtual VRAM where the model computes on the host */
	PLAN_TIGHT,         /* a of the compute device's b are in use then, by models and by
			       others on the machine: over 90 % */
	PLAN_SLOW_DONOR,    /* no peer access: its blocks go through the host */
	PLAN_NOT_SPREAD,    /* the blocks are too unequal to be spread within the limits */
	PLAN_NOT_NAMED,     /* the allocation says nothing of this component (a) */
	PLAN_EVICTS,        /* so much (a) is not free: idle models have to go for it */
};

struct plan_warning {
	enum plan_warning_kind kind;
	uint32_t device;
	uint64_t a, b;
};

#define PLAN_ALL_DEVICES UINT32_MAX

/* Which device is short of room. */
struct plan_shortage {
	uint32_t device;      /* PLAN_ALL_DEVICES: with auto, all of them together do not take it */
	uint64_t need;        /* 0: nothing is short */
	bool is_head;         /* no more than the head has to be there, and that is too much */
	bool is_rest_on_host; /* what is said of it leaves the rest to the host already */
	uint64_t evictable;   /* there, of others */
	uint64_t virtual_vram; /* so much would be enough; 0: it is not asked for, or none is */
};

struct plan_summary {
	uint32_t compute; /* of the first part of the allocation */
	enum plan_strategy strategy;
	uint64_t bytes;                             /* of the model */
	struct plan_share shares[PLAN_MAX_DEVICES]; /* by device */
	uint64_t moved;        /* bytes that one pass copies to where they are used */
	uint64_t floor_ns;     /* no pass is faster than that copy; 0: a link is not known */
	uint64_t virtual_vram; /* the least that leaves a tenth of the compute device; 0: this does,
				  or none would */
	uint32_t n_warnings;
	struct plan_warning warnings[PLAN_MAX_WARNINGS];
	struct plan_shortage shortage; /* all that is valid after -WIRE_NO_MEMORY */
};

/*
 * Plan. 'ret_devices' has room for an index a block; it holds nothing of use on failure. Returns
 * 0; -WIRE_BAD_ARGUMENT for what is written wrong, -WIRE_NO_MEMORY for what does not fit,
 * -WIRE_DEVICE_LOST where a device that is named is lost. The text names item and column.
 */
int plan_make(const struct plan_request *request, uint8_t *ret_devices,
	      struct plan_summary *ret_summary, struct err *err);
/* The same of its texts alone, whatever the model: no blocks are looked at. */
int plan_check(const struct plan_request *request, struct err *err);

/* "contiguous", "spread", "" (usual). Returns 0 or -WIRE_BAD_ARGUMENT. */
int plan_strategy_find(struct plan_text text, enum plan_strategy *ret, struct err *err);

#endif
