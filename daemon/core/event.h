/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What may happen: the closed list of facts the corridor tells the core. Every fact from
 * outside is in the event, the time included; the core never asks. Pointers are borrowed
 * for the one call.
 */
#ifndef CORE_EVENT_H
#define CORE_EVENT_H

#include <stdbool.h>
#include <stdint.h>

/* Who a file is (dev, ino) and which content it has (size, mtime, ctime). Read raw, for its bytes
 * and not for its tensors, it is another model. Several files that are one model have one key:
 * their total size, and hashes of the rest. */
struct core_file_key {
	uint64_t dev, ino;
	uint64_t size; /* bytes */
	int64_t mtime_ns, ctime_ns;
	bool is_raw;
	bool is_sharded; /* of several files: never one of a single file */
	bool is_young;   /* the file could be written with none of that changing */
};

/* One uid's wishes about a model; only those whose bit is set in 'said' change. */
enum core_said {
	CORE_SAID_PIN = 1,
	CORE_SAID_KEEP = 2,
	CORE_SAID_TTL = 4,
	CORE_SAID_PRIORITY = 8,
};

struct core_policy {
	uint32_t said; /* bits of enum core_said */
	bool pin;
	bool keep;
	int16_t priority; /* -100 .. 100 */
	uint64_t ttl_ns;  /* 0 withdraws */
	uint64_t for_ns;  /* pin and keep said here lapse after this; 0: never */
};

#define CORE_ALL_DEVICES UINT32_MAX

/* What a copy lies in. */
enum core_backing {
	CORE_BACKING_AUTO,   /* a wish only: whichever suits */
	CORE_BACKING_IMAGE,  /* memory of our own, which nobody can change */
	CORE_BACKING_FILE,   /* the source file's page cache; costs no budget */
	CORE_BACKING_LOCKED, /* the same, kept in memory, and charged */
	CORE_BACKING_N_VALUES,
};

/* How a model's blocks lie: the corridor's word for an allocation with all its options. */
#define CORE_PLACEMENT_ANY  0 /* of a load: as they lie, or as is usual */
#define CORE_PLACEMENT_HOST 1 /* all in images; greater ones: some on other devices */

/* One segment of a model: a file's image on the host, a block on another device. */
struct core_need {
	uint32_t device;  /* index of the device */
	uint32_t index;   /* of the file or the block; of each device at most one */
	uint64_t bytes;   /* rounded to what the device really takes */
	uint32_t padding; /* of them: no tensor's own */
	bool is_block;    /* evicted by itself; else only with the others of its kind there */
	bool is_same;     /* the copy of the published generation would do: it is the same bytes */
	bool is_bare;     /* an image of no tensor's bytes: its model does not lie there by it */
};

enum core_event_type {
	EV_CONTINUE,      /* give me the next page of actions */
	EV_TICK,          /* the deadline that core_update named has come */
	EV_CLIENT_OPENED, /* -> update->ret_id is the client's id */
	EV_CLIENT_CLOSED, /* its connection is gone; what it mapped may still be mapped */
	EV_PROCESS_GONE,  /* its process is gone: nothing of it is mapped any more */
	EV_LOAD,
	EV_PLACE, /* a resident model: move its blocks */
	EV_ATTACH,
	EV_MAPPED,   /* the lease's descriptors went out after the attach */
	EV_UNMAPPED, /* client's word: the lease's bytes are no longer mapped */
	EV_DETACH,
	EV_UNLOAD,
	EV_SET,
	EV_RESERVE, /* room on a device, to be released */
	EV_RELEASE,
	EV_CANCEL,
	EV_VERIFY,      /* hash again what is there of a model */
	EV_HEADER_READ, /* result of ACT_READ_HEADER */
	EV_FILL_PROGRESS,
	EV_FILLED,         /* result of ACT_FILL */
	EV_TABLED,         /* result of ACT_MAKE_TABLE */
	EV_RECHECKED,      /* result of ACT_RECHECK */
	EV_DROPPED,        /* result of ACT_DROP */
	EV_VERIFIED,       /* result of ACT_VERIFY */
	EV_CHANGED,        /* the file behind a copy that is not an image is another by now */
	EV_GROWN,          /* who maps an image with holes has filled some of them by reading */
	EV_ADOPT,          /* at start: a copy that survived -> update->ret_id is its segment */
	EV_ADOPT_WISH,     /* at start: what a uid had said of an adopted model */
	EV_ADOPT_LEASE,    /* at start: who still maps it -> update->ret_id is the lease */
	EV_ADOPT_PLACED,   /* at start, after the copies: what lay on other devices too and is to be
			  * made again -> update->ret_id is its model */
	EV_DEVICES_FOUND,  /* the devices that such a model lay on are known: back to them */
	EV_ADOPTED,        /* that was all */
	EV_BUDGET,         /* a device's budget was set */
	EV_AVAILABLE,      /* what may really be taken of it now, whatever the budget says */
	EV_DRAIN,          /* a device takes no new loads, or takes them again */
	EV_PRESSURE,       /* the machine is short of memory: give back what nobody uses */
	EV_DEVICE_SHORT,   /* others need its room: what nobody uses there does not linger */
	EV_DEVICE_DOUBTED, /* what lies on it is to be compared */
	EV_DEVICE_LOST,
	EV_DEVICE_BACK, /* it holds nothing */
	EV_SHUTDOWN,    /* refuse new requests, abandon loads */
	EV_N_VALUES,
};

struct core_event {
	enum core_event_type type;
	uint32_t request; /* the client's request id, where one is to be answered */
	uint64_t now_ns;  /* monotonic */
	uint64_t client;  /* core id of the client */
	union {
		struct {
			uint32_t uid;
			bool is_admin;
			bool is_back; /* of before a restart, for EV_ADOPT_LEASE: always let in */
		} opened;
		struct {
			uint64_t file; /* corridor's id; the core owns it now and
							* gives it back by ACT_CLOSE_FILE, once */
			const struct core_file_key *key;
			const uint8_t *fresh_id; /* 16 random bytes, used if it is new */
			const struct core_policy *policy;
			uint32_t format;
			uint64_t placement;
			enum core_backing backing; /* not LOCKED */
			bool insists_backing;      /* also where it lies in another already */
			bool no_wait;
			bool attach; /* not with no_wait: bad-argument */
			bool map;    /* the answer carries the image descriptors */
		} load;
		struct {
			uint64_t model;
			uint64_t placement; /* not ANY */
			bool no_wait;
		} place;
		struct {
			uint32_t device;
			uint64_t bytes;
			uint64_t ttl_ns;    /* it ends by itself after this; 0: never */
			uint64_t recall_ns; /* for those who are asked to let go; 0: nobody is */
		} reserve;
		struct {
			uint64_t reservation;
		} release;
		struct {
			uint64_t model; /* core id; 0 when a file is presented */
			uint64_t file;  /* 0, or as in load */
			const struct core_file_key *key;
			bool map;
			/* The holder of a lease that lost its connection asserts it again: it
			 * maps this generation still, which proves its right. */
			uint64_t generation; /* 0: not such a one */
			uint64_t ghost;      /* the lease it replaces, 0: not known any more */
		} attach;
		struct {
			uint64_t lease;
		} lease; /* EV_MAPPED, EV_UNMAPPED, EV_DETACH */
		struct {
			const uint64_t *models; /* named ones; NULL: all that match */
			uint32_t n_models;
			bool by_name; /* models were named outright: own wishes are withdrawn */
			bool not_kept;
			bool mine;
			bool has_device;
			uint32_t device;
			uint64_t idle_ns;
			uint64_t recall_ns; /* those who lease it are asked to let go within
					     * this; 0: they are not */
		} unload;
		struct {
			uint64_t model;
			const struct core_policy *policy;
		} set;
		struct {
			uint32_t request; /* the one to cancel */
		} cancel;
		struct {
			uint64_t model;
		} verify;
		struct {
			uint64_t job;
			int code;                        /* 0 or enum wire_code */
			const struct core_file_key *key; /* as found by fstat before the header */
			const struct core_need *needs;   /* one a segment */
			uint32_t n_needs;
			bool is_cached; /* the file may serve as it is; where that was left to us:
					 * it is warm too, so that mapping it costs nothing */
		} header;
		struct {
			uint64_t job;
			uint64_t bytes; /* so far, over all its segments */
			bool is_stalled;
		} progress;
		struct {
			uint64_t segment;
			int code; /* 0 or enum wire_code */
			uint64_t duration_ns;
		} filled;
		struct {
			uint64_t job;
			int code;
		} tabled;
		struct {
			uint64_t job;
			int code;
			bool is_equal;
		} rechecked;
		struct {
			uint64_t segment;
		} dropped;
		struct {
			uint64_t segment;
			int code; /* 0: could be hashed */
			bool is_equal;
		} verified;
		struct {
			uint64_t segment;
			bool was_written; /* and not only renamed, linked or the like */
		} changed;
		struct {
			uint64_t segment;
			uint64_t bytes; /* of memory behind it by now */
		} grown;
		struct {
			const struct core_file_key *key;
			const uint8_t *uuid; /* 16 bytes */
			uint64_t file;       /* as in load */
			uint64_t generation;
			uint64_t bytes; /* as in core_need */
			uint32_t format, owner_uid, device, index;
			enum core_backing backing;
		} adopt;
		struct {
			uint64_t model;
			uint64_t ttl_ns, pin_until_ns, keep_until_ns;
			uint32_t uid;
			int16_t priority;
			bool pin, keep;
		} adopt_wish;
		struct {
			uint64_t model;
			uint64_t generation;
			/* Of its images: held, where they are not there any more. */
			uint64_t bytes;
		} adopt_lease; /* of 'client', which is closed next */
		struct {
			const struct core_file_key *key;
			const uint8_t *uuid; /* 16 bytes */
			uint64_t file;       /* as in load */
			uint64_t generation;
			uint64_t placement; /* over HOST */
			uint32_t format, owner_uid, placed_uid;
		} adopt_placed;
		struct {
			uint64_t model;
			uint64_t placement; /* as they are called now; over HOST */
			uint32_t devices;   /* bits */
		} devices_found;
		struct {
			uint64_t quiet_ns; /* nothing is evicted for another so long */
		} adopted;
		struct {
			uint32_t device;
			uint64_t bytes;
			bool by_others; /* it is what they leave, not what was said */
		} budget;               /* also of EV_AVAILABLE */
		struct {
			uint32_t device; /* or CORE_ALL_DEVICES */
			bool is_on;
		} drain;
		struct {
			uint32_t device;
			uint64_t wanted; /* bytes to be given back, as far as they reach */
		} pressure;
		struct {
			uint32_t device;
		} device;
	};
};

#endif
