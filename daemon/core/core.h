/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The policy of distorchd as a pure function: core_step takes one event and gives back the
 * actions that follow from it. It knows ids and numbers only: no descriptor, clock, thread,
 * log line or string. All memory is taken at core_new's caller; nothing is allocated later.
 *
 * Words.  model: the bytes behind one file (dev, ino). generation: one content of it.
 * segment: the unit of memory and eviction. copy: a segment on one device. lease: "in use",
 * a connection attached it. pin: never evict. keep: survive a selective unload. wish: what
 * one uid said of a model. held: dropped by us, still mapped by a process. charge: bytes of
 * a device's budget that a copy takes from RESERVED to ABSENT. job: one load or recheck.
 * waiter: a request that is owed an answer when a job ends.
 *
 * The invariants I1 ... I14 stand in docs/memory-model.md; core_check tests those that can
 * be seen from inside. Not thread-safe: the loop's only.
 */
#ifndef CORE_CORE_H
#define CORE_CORE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "daemon/core/action.h"
#include "daemon/core/event.h"

struct core;

struct core_config {
	uint32_t max_clients;         /* ghosts (closed, still mapping) included */
	uint32_t max_clients_per_uid; /* likewise, admins excepted; 0: as many as there are */
	uint32_t reserved_clients;    /* of max_clients, for admins */
	uint32_t max_models;          /* and some more while others leave for them */
	uint32_t max_models_per_uid;  /* that it loaded first; 0: as many as there are */
	uint32_t max_queued_per_uid;  /* loads that wait for their turn; 0: no bound */
	uint32_t max_segments;
	uint32_t max_leases;
	uint32_t max_leases_per_uid; /* 0: as many as there are */
	uint32_t max_waiters;        /* requests owed an answer */
	uint32_t max_wishes;         /* (uid, model) pairs */
	uint32_t n_devices;          /* at most CORE_MAX_DEVICES */
	uint32_t loads_per_uid;
	uint64_t idle_evict_ns; /* for models that nobody named a time for; 0: until needed */
};

#define CORE_MAX_DEVICES 16
#define CORE_MAX_ACTIONS 64 /* in one update */

/* Borrowed until the next core_step. */
struct core_update {
	const struct core_action *actions;
	uint32_t n_actions;
	bool again;           /* more to come: step with EV_CONTINUE before any other event */
	uint64_t ret_id;      /* of what the event made, where event.h says so; 0: no room */
	uint64_t deadline_ns; /* when the core wants EV_TICK; UINT64_MAX: never */
};

/* Bytes of memory that a core of this configuration needs; 0 when it is out of range. */
size_t core_size(const struct core_config *config);

/* 'memory': core_size() bytes, zeroed, 16-aligned, the caller's; freed by the caller. */
struct core *core_init(void *memory, const struct core_config *config);

void core_step(struct core *core, const struct core_event *event, struct core_update *update);

/*
 * Test the invariants. Returns NULL, or the name of the broken one ("I3 ..."), static.
 * Linear in what is in the tables; for tests, fuzzers and debug builds.
 */
const char *core_check(const struct core *core);

/* ---- views: read-only snapshots, valid until the next step ---- */

enum core_model_state {
	CORE_MODEL_REGISTERED,
	CORE_MODEL_LOADING,
	CORE_MODEL_RESIDENT,
	CORE_MODEL_PARTIAL,
	CORE_MODEL_DRAINING,
	CORE_MODEL_FAILED,
	CORE_MODEL_QUARANTINED,
	CORE_MODEL_N_STATES,
};

enum segment_state {
	SEGMENT_ABSENT, /* never stored: an absent copy has no entry */
	SEGMENT_RESERVED,
	SEGMENT_FILLING,
	SEGMENT_READY,
	SEGMENT_DROPPING,
	SEGMENT_HELD,
	SEGMENT_LOST,
	SEGMENT_N_STATES,
};

struct core_model_view {
	uint64_t id;
	const uint8_t *uuid; /* 16 bytes, shown as hex */
	struct core_file_key key;
	enum core_model_state state;
	int fail_code;   /* CORE_MODEL_FAILED */
	uint32_t format; /* that the last load asked for */
	uint32_t owner_uid;
	uint64_t generation;     /* published one, 0: none */
	uint64_t file;           /* corridor's id of the open source, 0: none */
	uint64_t progress_bytes; /* of a running load */
	uint64_t job;            /* the running one, 0: none */
	uint32_t n_leases;
	bool is_pinned, is_kept;
	int16_t priority;
	uint64_t ttl_left_ns; /* UINT64_MAX: until needed */
	uint64_t last_used_ns;
	uint64_t load_ns; /* how long the last load took */
};

struct core_segment_view {
	uint64_t id, model, generation, bytes;
	uint32_t device, index;
	enum segment_state state;
	uint32_t n_mappers; /* clients that have its descriptor, ghosts included */
};

struct core_lease_view {
	uint64_t id, client, model, generation, bytes;
	bool is_mapped; /* its descriptors went out and it has not said unmapped */
	bool is_ghost;  /* connection closed, process still maps it */
};

/* One client's leases of one generation: it holds those bytes once, however many they are. */
struct core_holder_view {
	uint64_t client, model, generation, bytes;
	uint32_t n_leases;
	bool is_mapped; /* one of them is */
};

struct core_client_view {
	uint64_t id;
	uint32_t uid;
	bool is_admin, is_connected;
	uint32_t n_leases;
	uint64_t held_bytes; /* that its leases and ghosts map, each byte once */
};

struct core_wish_view {
	uint64_t model;
	uint32_t uid;
	bool pin, keep;
	int16_t priority;
	uint64_t ttl_ns;                      /* 0: none */
	uint64_t pin_until_ns, keep_until_ns; /* monotonic; UINT64_MAX: for ever */
};

struct core_account_view {
	uint64_t budget, resident, loading, dropping, held, reserved, free;
	uint32_t n_models;
	bool is_lost;
};

struct core_counters {
	uint64_t hits, misses, bytes_saved, evictions, refusals;
};

bool core_model_get(const struct core *core, uint64_t model, struct core_model_view *ret);
bool core_client_get(const struct core *core, uint64_t client, struct core_client_view *ret);
bool core_lease_get(const struct core *core, uint64_t lease, struct core_lease_view *ret);
bool core_wish_get(const struct core *core, uint64_t wish, struct core_wish_view *ret);
bool core_segment_get(const struct core *core, uint64_t segment, struct core_segment_view *ret);
/* 0 when there is none. */
uint64_t core_model_find(const struct core *core, const struct core_file_key *key);

/*
 * Walk: *cursor = 0 first; false at the end. The cursor is opaque. A walk of one model's parts
 * costs as much as it has parts, and ends early when the part just given is removed meanwhile.
 */
bool core_model_next(const struct core *core, uint32_t *cursor, struct core_model_view *ret);
bool core_client_next(const struct core *core, uint32_t *cursor, struct core_client_view *ret);
bool core_lease_next(const struct core *core, uint32_t *cursor, struct core_lease_view *ret);
/* Segments of one model, or of all when model is 0. */
bool core_segment_next(const struct core *core, uint64_t model, uint32_t *cursor,
		       struct core_segment_view *ret);
bool core_wish_next(const struct core *core, uint64_t model, uint32_t *cursor,
		    struct core_wish_view *ret);
/* Holders of one model, or of all when model is 0. */
bool core_holder_next(const struct core *core, uint64_t model, uint32_t *cursor,
		      struct core_holder_view *ret);
void core_account_get(const struct core *core, uint32_t device, struct core_account_view *ret);
void core_counters_get(const struct core *core, struct core_counters *ret);

/* Which limit stands in the way of another client of this uid, and its number. */
enum core_limit core_client_limit(const struct core *core, uint32_t uid, bool is_admin,
				  uint64_t *ret_number);
/* May this client see and use the model (admin, or its uid has presented the file)? */
bool core_client_may(const struct core *core, uint64_t client, uint64_t model);
/* Has this uid a wish about the model? */
bool core_uid_has_wish(const struct core *core, uint32_t uid, uint64_t model);

#endif
