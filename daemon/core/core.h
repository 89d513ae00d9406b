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
	uint32_t max_reservations;
	uint32_t max_reservations_per_uid; /* admins excepted; 0: as many as there are */
	uint32_t max_wishes;               /* (uid, model) pairs */
	uint32_t n_devices;                /* at most CORE_MAX_DEVICES */
	uint32_t loads_per_uid;
	/* Even, other in each life: what names a lease or a reservation names none of a later one. */
	uint32_t first_tag;
	uint64_t linger_ns;     /* that blocks stay on other devices unused; 0: until needed */
	uint64_t idle_evict_ns; /* for models that nobody named a time for; 0: until needed */
	/* What one uid may have of a device while loads of others wait; both 0: as much as there is. */
	uint32_t share_milli_pct; /* of the budget */
	uint64_t share_bytes;     /* where there is no share_milli_pct */
};

/* A load that would take its uid above the share lets those of others go first so long. */
#define CORE_SHARE_PATIENCE_NS 60000000000U

#define CORE_MAX_DEVICES 16
#define CORE_MAX_ACTIONS 64    /* in one update */
#define CORE_MAX_NEEDS   33024 /* copies of one generation: files and blocks */

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
	SEGMENT_PLANNED, /* its load waits for room: nothing is charged */
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
	uint64_t generation;       /* published one, 0: none */
	enum core_backing backing; /* of the published one */
	uint64_t placement;        /* likewise; ANY: there is none */
	uint64_t job_placement;    /* of what is being loaded; ANY: nothing */
	bool is_moving;            /* it serves while that goes on */
	uint32_t placed_uid;       /* whose processes may have its blocks on other devices */
	uint32_t job_placed_uid;   /* likewise of what is being loaded */
	bool has_host;             /* all of it is in images besides */
	bool is_torn;              /* some of it was on a device that is lost: it comes back */
	uint32_t torn_devices;     /* with the last of these (bits); 0: it is not known yet which */
	uint64_t file;             /* corridor's id of the open source, 0: none */
	uint64_t progress_bytes;   /* of a running load */
	uint64_t job;              /* the running one, 0: none */
	uint32_t n_leases;
	bool is_pinned, is_kept;
	int16_t priority;
	uint64_t ttl_left_ns; /* UINT64_MAX: until needed */
	uint64_t last_used_ns;
	uint64_t blocks_used_ns; /* likewise, by those who have what lies on other devices */
	uint64_t load_ns;        /* how long the last load read */
};

struct core_segment_view {
	uint64_t id, model;
	uint64_t generation, last; /* it is of these and those between; last: the published one
				    * too, and those that are made of it, as UINT64_MAX */
	uint64_t bytes;            /* charged */
	uint64_t size;             /* of what is there, charged or not */
	uint32_t padding;          /* of size: no tensor's own */
	uint32_t device, index;
	enum core_backing backing;
	bool is_block;
	bool is_counted; /* a load under way counts on it: it stays until that ends */
	bool may_go;     /* it is of what core_account_view.evictable counts */
	bool is_bare;    /* an image of no tensor's bytes */
	bool is_remnant; /* images that nobody kept over a restart but who maps them */
	bool is_older;   /* of no generation that is to be had, but somebody leases or maps it */
	enum segment_state state;
};

struct core_lease_view {
	uint64_t id, client, model, generation, bytes;
	bool is_mapped;  /* its descriptors went out and it has not said unmapped */
	bool is_ghost;   /* connection closed, process still maps it */
	bool has_blocks; /* it may have them where they lie, on other devices too */
};

/* One client's leases of one generation: it holds those bytes once, however many they are. */
struct core_holder_view {
	uint64_t client, model, generation;
	/* What is of these older generations of the client's too is counted with them; 0: none. */
	uint64_t images_before, blocks_before;
	uint64_t bytes; /* the rest */
	uint32_t n_leases;
	bool is_live;    /* one of them is of a connection; else what it maps is all it has */
	bool is_mapped;  /* one of them is */
	bool has_blocks; /* as they lie; else the images alone */
	bool is_remnant; /* has what was made before a restart, and nothing else */
};

/* Room that was granted for what is not ours. */
struct core_reservation_view {
	uint64_t client, bytes;
	uint32_t device;
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
	uint64_t room;      /* what the machine really has of free, and of what is being dropped */
	uint64_t evictable; /* and what may go for a load */
	uint64_t later;     /* and what may once the loads under way have ended */
	bool is_lost, is_draining;
};

struct core_counters {
	uint64_t hits, misses, bytes_saved, evictions, refusals;
	uint64_t saved_ns; /* that the loads of what was hit had taken */
};

bool core_model_get(const struct core *core, uint64_t model, struct core_model_view *ret);
/* Bytes of the model that are being dropped. */
uint64_t core_model_dropping(const struct core *core, uint64_t id);
/* Does somebody who is there lease it? */
bool core_model_is_leased(const struct core *core, uint64_t id);
/* How often one of these two has ended for a model: no byte, no lease any more. */
uint64_t core_n_let_go(const struct core *core);
bool core_client_get(const struct core *core, uint64_t client, struct core_client_view *ret);
bool core_lease_get(const struct core *core, uint64_t lease, struct core_lease_view *ret);
/* What its process maps in host memory: the first generation that it is of, and its bytes. */
void core_lease_images(const struct core *core, uint64_t id, uint64_t *ret_generation,
		       uint64_t *ret_bytes);
bool core_wish_get(const struct core *core, uint64_t wish, struct core_wish_view *ret);
/* Is the copy of this generation, which was published? */
static inline bool core_segment_is_of(const struct core_segment_view *segment, uint64_t generation)
{
	return segment->generation <= generation && generation <= segment->last;
}
/* Is it of what the holder's bytes are? */
static inline bool core_holder_counts(const struct core_holder_view *holder,
				      const struct core_segment_view *segment)
{
	return segment->is_remnant == holder->is_remnant &&
	       core_segment_is_of(segment, holder->generation) &&
	       (segment->is_block
			? holder->has_blocks && segment->generation > holder->blocks_before
			: segment->generation > holder->images_before);
}
bool core_segment_get(const struct core *core, uint64_t segment, struct core_segment_view *ret);
/* Does somebody who is there lease it? Not part of the view: it asks all who lease the model. */
bool core_segment_is_leased(const struct core *core, uint64_t id);
/* One of the clients that have its descriptor, ghosts included; 0: none has. */
uint64_t core_segment_mapper(const struct core *core, uint64_t id);
/* 0 when there is none. */
uint64_t core_model_find(const struct core *core, const struct core_file_key *key);

/*
 * Walk: *cursor = 0 first; false at the end. The cursor is opaque. A walk of one model's parts
 * costs as much as it has parts, and ends early when the part just given is removed meanwhile.
 */
/* Each placement that something has use for, some more than once. */
void core_placements_used(const struct core *core, void (*use)(void *context, uint64_t placement),
			  void *context);
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
/* Of those that were granted. */
bool core_reservation_next(const struct core *core, uint32_t *cursor,
			   struct core_reservation_view *ret);
/* What a uid may have of the device while others wait; UINT64_MAX: as much as there is. */
uint64_t core_share(const struct core *core, uint32_t device);
/* Who has most of the device, of those above the share; false: nobody is above it. */
bool core_above_share(const struct core *core, uint32_t device, uint32_t *ret_uid,
		      uint64_t *ret_bytes);
void core_account_get(const struct core *core, uint32_t device, struct core_account_view *ret);
/* Does a load that was begun before the device drained wait for room there, or may it yet ask for
 * some once its header is read? */
bool core_is_awaited(const struct core *core, uint32_t device);
/* What a load of the model (0: of one that is not known) would have evicted there for so many bytes
 * that are not free: at least these, or 0 where it cannot be had. */
uint64_t core_would_free(struct core *core, uint32_t device, uint64_t bytes, uint64_t model);
/* That have bytes of tensors there. */
uint32_t core_account_models(const struct core *core, uint32_t device);
void core_counters_get(const struct core *core, struct core_counters *ret);

/* Which limit stands in the way of another client of this uid, and its number. */
enum core_limit core_client_limit(const struct core *core, uint32_t uid, bool is_admin,
				  uint64_t *ret_number);
/* May this client see and use the model (admin, or its uid has presented the file)? */
bool core_client_may(const struct core *core, uint64_t client, uint64_t model);
/* May it say where the model's blocks lie (admin, or they are its uid's or nobody's)? */
bool core_client_may_place(const struct core *core, uint64_t client, uint64_t model);
/* Has this uid a wish about the model? */
bool core_uid_has_wish(const struct core *core, uint32_t uid, uint64_t model);

#endif
