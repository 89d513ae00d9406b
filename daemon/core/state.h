/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The core's own tables, shared by its files and nobody else. Everything lives in the one
 * block given to core_init; lists link objects inside it.
 *
 *   model ── segments (copies), wishes, leases, at most one job
 *   client ── leases, waiters        job ── waiters, segments being filled
 */
#ifndef CORE_STATE_H
#define CORE_STATE_H

#include "base/idtab.h"
#include "base/list.h"

#include "daemon/core/core.h"
#include "proto/gen/wire_code.h"

#define JOB_MAX_NEEDS       16
#define NEVER               UINT64_MAX
#define DEFAULT_NS_PER_BYTE 2        /* 500 MB a second, until a load was measured */
#define COUNT_MAX           1000000U /* leases of one model: refused above, never wraps */

struct model {
	struct idtab_slot slot;
	uint32_t hash_next; /* index + 1 in the chain of its (dev, ino) */
	uint32_t format;
	uint32_t owner_uid;
	uint32_t n_leases; /* of live connections */
	uint8_t uuid[16];
	struct core_file_key key; /* of the published generation, else of the last load */
	uint64_t generation;      /* published; 0: none */
	uint64_t last_generation; /* numbers only grow */
	uint32_t n_copies;        /* of the published generation when it was whole */
	uint64_t file;            /* open source; 0: none */
	struct job *job;          /* running one; NULL: none */
	struct list segments;     /* segment::by_model */
	struct list wishes;       /* wish::by_model */
	struct list leases;       /* lease::by_model */
	uint64_t last_used_ns;
	uint64_t load_ns;
	int fail_code;  /* of the last load, until the next one */
	bool is_doomed; /* unload when the last lease ends */
};

struct segment {
	struct idtab_slot slot;
	struct list by_model;
	struct model *model;
	uint64_t generation;
	uint64_t bytes;
	uint64_t job; /* that brings it, until it is published; 0: none */
	uint16_t device;
	uint16_t index;
	uint8_t state; /* enum segment_state */
	uint8_t why;   /* enum core_why it is dropped for */
	bool is_verifying;
	bool is_bad;           /* failed its checksum */
	uint32_t victim_order; /* while victims are chosen; 0: none */
};

struct lease {
	struct idtab_slot slot;
	struct list by_model;
	struct list by_client;
	struct model *model;
	struct client *client;
	uint64_t generation;
	bool is_mapped;
	bool is_ghost;
};

struct wish {
	struct idtab_slot slot;
	struct list by_model;
	struct model *model;
	uint32_t uid;
	int16_t priority;
	bool pin;
	bool keep;
	uint64_t ttl_ns; /* 0: none, until needed */
	uint64_t pin_until_ns;
	uint64_t keep_until_ns;
};

struct client {
	struct idtab_slot slot;
	struct list leases;  /* lease::by_client */
	struct list waiters; /* waiter::by_client */
	uint32_t uid;
	bool is_admin;
	bool is_connected;
	bool is_process_gone;
};

enum waiter_kind { WAITER_LOAD, WAITER_ATTACH, WAITER_VERIFY };

struct waiter {
	struct idtab_slot slot;
	struct list by_client;
	struct list by_owner; /* job::waiters or core::verifiers */
	struct client *client;
	struct model *model; /* of WAITER_VERIFY */
	uint32_t request;
	enum waiter_kind kind;
	bool attach;
	bool map;
	bool is_first; /* began the job: its source is the disk */
};

enum job_kind { JOB_LOAD, JOB_RECHECK };
enum job_state { JOB_QUEUED, JOB_HEADER, JOB_ROOM, JOB_FILLING, JOB_ENDING, JOB_CHECKING };

struct job {
	struct idtab_slot slot;
	struct list by_age;  /* core::jobs, oldest first */
	struct list waiters; /* waiter::by_owner */
	struct model *model; /* NULL once it is ending: only results are still to come */
	struct core_file_key key;
	uint64_t file; /* the core's until it is the model's or given back; 0: none */
	uint64_t generation;
	uint64_t begun_ns;
	uint64_t progress;
	struct core_need needs[JOB_MAX_NEEDS];
	uint32_t n_needs;
	uint32_t n_outstanding; /* results of the loader still to come */
	uint32_t uid;
	enum job_kind kind;
	enum job_state state;
	int code; /* of a failed one */
	uint8_t n_restarts;
	bool no_wait;
	bool is_reload; /* after a bad checksum: nobody asked */
	bool has_shortage;
	bool has_joined; /* with 'joined', another content than the one being read */
	uint32_t short_device;
	struct core_shortage shortage;
	struct core_file_key joined;
};

struct account {
	uint64_t budget;
	uint64_t bucket[SEGMENT_N_STATES];
	uint64_t available; /* fresh bound by the outside, as last told */
	bool is_lost;
};

struct core {
	struct core_config config;
	struct core_counters counters;
	struct idtab models, segments, leases, wishes, clients, waiters, job_table;
	struct list jobs;      /* job::by_age */
	struct list verifiers; /* waiter::by_owner */
	uint32_t *hash;        /* heads of chains: index + 1 of a model */
	uint32_t n_hash;       /* a power of two */
	struct account accounts[CORE_MAX_DEVICES];
	struct core_action *actions;
	uint32_t n_actions, max_actions, n_given;
	uint64_t now_ns;
	uint64_t quiet_until_ns; /* after a restart: nothing is evicted for another */
	bool is_shutting_down;
};

/* core.c */
struct core_action *core_act(struct core *core, enum core_action_type type);
void core_reply(struct core *core, const struct client *client, uint32_t request, int code,
		const struct model *model);
void core_note(struct core *core, enum core_note_type note, enum core_why why,
	       const struct model *model, uint64_t bytes);
void core_close_file(struct core *core, uint64_t file);

/* model.c */
bool model_is_same_content(const struct core_file_key *a, const struct core_file_key *b);
struct model *model_find(const struct core *core, uint64_t dev, uint64_t ino);
struct model *model_add(struct core *core, const struct core_file_key *key, const uint8_t *uuid,
			uint32_t format, uint32_t uid);
void model_settle(struct core *core, struct model *model); /* gives up what nothing needs */
void model_forget(struct core *core, struct model *model);
bool model_is_resident(const struct model *model);
bool model_is_idle(const struct model *model); /* no lease of a live connection */
bool model_is_pinned(const struct core *core, const struct model *model);
bool model_is_kept(const struct core *core, const struct model *model);
int16_t model_priority(const struct model *model);
uint64_t model_ttl_ns(const struct core *core, const struct model *model); /* NEVER: until needed */
enum core_model_state model_state(const struct model *model);
/* Drop every READY copy of it. Returns the bytes that will come free. */
uint64_t model_drop(struct core *core, struct model *model, enum core_note_type note,
		    enum core_why why);
void model_drain(struct core *core, struct model *model); /* old generations without leases */

/* segment.c */
struct segment *segment_add(struct core *core, struct job *job, uint32_t index);
void segment_set_state(struct core *core, struct segment *segment, enum segment_state state);
void segment_drop(struct core *core, struct segment *segment, enum core_why why);
void segment_remove(struct core *core, struct segment *segment);
bool segment_is_droppable(const struct segment *segment); /* whole, and no job counts on it */
uint32_t segment_n_mappers(const struct segment *segment);
void segment_verify(struct core *core, struct segment *segment);
void segment_on_filled(struct core *core, const struct core_event *event);
void segment_on_dropped(struct core *core, const struct core_event *event);
void segment_on_verified(struct core *core, const struct core_event *event);
void segment_on_device_lost(struct core *core, const struct core_event *event);
void segment_release_held(struct core *core, struct model *model);

/* adopt.c */
uint64_t adopt_copy(struct core *core, const struct core_event *event);
void adopt_wish(struct core *core, const struct core_event *event);
uint64_t adopt_lease(struct core *core, const struct core_event *event);
void adopt_end(struct core *core, const struct core_event *event);

/* account.c */
uint64_t account_charged(const struct account *account);
uint64_t account_add(uint64_t a, uint64_t b);       /* NEVER: more than there can be */
uint64_t account_left(uint64_t of, uint64_t taken); /* at least 0 */
/* What may still be taken once 'coming' of the charged bytes are free. */
uint64_t account_room(const struct account *account, uint64_t coming);
uint64_t account_lacking(const struct account *account, uint64_t coming, uint64_t wanted);
uint64_t account_dropping(const struct core *core, uint32_t device);
void account_set_available(struct core *core, const uint64_t *available);
void account_on_budget(struct core *core, const struct core_event *event);

/* evict.c */
uint64_t evict_evictable(const struct core *core, uint32_t device, const struct model *spare);
/* What running loads bring that may go as soon as they have ended. */
uint64_t evict_evictable_later(const struct core *core, uint32_t device);
/* Choose and drop victims for 'bytes' on the device; all or none. */
bool evict_make_room(struct core *core, uint32_t device, uint64_t bytes, const struct job *job);
void evict_expired(struct core *core);
uint64_t evict_deadline(const struct core *core);

/* admit.c */
void admit_run(struct core *core); /* let waiting jobs go on that can */

/* job.c */
struct job *job_begin(struct core *core, struct model *model, enum job_kind kind,
		      const struct core_file_key *key, uint64_t file, uint32_t uid);
/* Somebody who presents the file joins: what he has seen must be what he gets. */
void job_join(struct job *job, const struct core_file_key *key);
void job_run(struct core *core); /* start queued ones */
void job_on_header(struct core *core, const struct core_event *event);
void job_on_progress(struct core *core, const struct core_event *event);
void job_on_rechecked(struct core *core, const struct core_event *event);
void job_fill(struct core *core, struct job *job);
void job_result(struct core *core, struct job *job, int code); /* one fill has ended */
void job_fail(struct core *core, struct job *job, int code);
void job_drop_if_unwanted(struct core *core, struct job *job);
struct job *job_of(const struct core *core, uint64_t id);

/* lease.c */
struct lease *lease_add(struct core *core, struct model *model, struct client *client, bool map);
void lease_end(struct core *core, struct lease *lease);
void lease_record(struct core *core, const struct lease *lease);
bool lease_grant(struct core *core, const struct waiter *waiter, struct model *model,
		 enum core_source source, const struct job *job);
void lease_on_attach(struct core *core, const struct core_event *event);
void lease_on_lease_event(struct core *core, const struct core_event *event);

/* client.c */
struct client *client_of(const struct core *core, uint64_t id);
uint64_t client_open(struct core *core, const struct core_event *event);
void client_on_closed(struct core *core, const struct core_event *event);
/* Its process has unmapped it, or holds it by another lease now. */
void client_end_ghost(struct core *core, struct lease *ghost);
void client_on_process_gone(struct core *core, const struct core_event *event);
struct waiter *waiter_add(struct core *core, struct client *client, uint32_t request,
			  struct list *owner);
void waiter_remove(struct core *core, struct waiter *waiter);
void client_on_cancel(struct core *core, const struct core_event *event);

/* wish.c */
struct wish *wish_find(const struct model *model, uint32_t uid);
struct wish *wish_get(struct core *core, struct model *model, uint32_t uid);
void wish_apply(struct core *core, struct wish *wish, const struct core_policy *policy);
void wish_record(struct core *core, const struct wish *wish);
void wish_withdraw(struct core *core, struct wish *wish);
void wish_remove(struct core *core, struct wish *wish);
void wish_on_set(struct core *core, const struct core_event *event);
void wish_lapse(struct core *core);
uint64_t wish_deadline(const struct core *core);

/* load.c */
void load_on_load(struct core *core, const struct core_event *event);

/* unload.c */
void unload_on_unload(struct core *core, const struct core_event *event);
void unload_on_verify(struct core *core, const struct core_event *event);

#define OF(link, type, member) container_of(link, type, member)

#endif
