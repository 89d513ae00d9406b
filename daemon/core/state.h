/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The core's own tables, shared by its files and nobody else. Everything lives in the one
 * block given to core_init; lists link objects inside it.
 *
 *   model ── segments (copies), wishes, leases, holders, verifiers, at most one job
 *   client ── leases, holders, waiters        job ── waiters, segments being filled
 *   user ── queued jobs, and counts of clients, models and jobs
 *
 * A step must not cost more where the tables are full. So what follows from a model's parts (the
 * bytes that may go, when its time runs out) is kept, and worked out again by model_recount for
 * the models that model_touch named; core_check compares it with the parts.
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

/* A moment that something waits for. owner: the timers it is in */
struct timer {
	uint64_t at_ns; /* NEVER: not in the heap */
	uint32_t place; /* in the heap */
};

/* Timers with the soonest first: a heap. */
struct timers {
	struct timer **heap; /* borrowed from the owner of the core */
	uint32_t n_timers, capacity;
};

/* One uid, while it has anything. owner: core::users */
struct user {
	struct idtab_slot slot;
	uint32_t hash_next; /* index + 1 in the chain of its uid */
	uint32_t uid;
	uint32_t n_clients; /* ghosts included */
	uint32_t n_models;  /* that it loaded first */
	uint32_t n_leaving; /* of them */
	uint32_t n_leases;  /* of its clients */
	uint32_t n_queued, n_running;
	struct list queued;    /* job::by_user, oldest first */
	struct list startable; /* core::startable: may have a job that can start */
};

struct model {
	struct idtab_slot slot;
	uint32_t hash_next; /* index + 1 in the chain of its (dev, ino) */
	uint32_t format;    /* that the last load asked for */
	uint32_t owner_uid;
	struct user *owner;
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
	struct list holders;      /* holder::by_model */
	struct list verifiers;    /* waiter::by_owner */
	struct list touched;      /* core::touched: to be counted again */
	struct timer expiry;      /* core::expiries: its time without use runs out */
	uint64_t last_used_ns;
	uint64_t load_ns;
	uint64_t unload; /* core::n_unloads when one last named it */
	int fail_code;   /* of the last load, until the next one */
	bool is_doomed;  /* unload when the last lease ends */
	bool is_leaving; /* forget it when its copies are gone: another needs the place */
};

/* What of a segment's bytes admission may count on. */
enum segment_sum {
	SUM_NONE,
	SUM_DROPPING,  /* come back without anybody's help */
	SUM_EVICTABLE, /* come back when they are evicted */
	SUM_LATER,     /* may be evicted once the load that brings them has ended */
	SUM_N_VALUES,
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
	uint8_t sum;   /* enum segment_sum it is counted in */
	bool is_verifying;
	bool is_bad; /* failed its checksum */
};

/* One client's leases of one generation: its bytes are held by it once. owner: core::holders */
struct holder {
	struct idtab_slot slot;
	struct list by_model;
	struct model *model;
	struct list by_client;
	struct client *client;
	uint64_t generation;
	uint32_t n_leases;
	uint32_t n_live;   /* of them not ghosts */
	uint32_t n_mapped; /* of them with descriptors out */
};

struct lease {
	struct idtab_slot slot;
	struct list by_model;
	struct list by_client;
	struct model *model;
	struct client *client;
	struct holder *holder;
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
	struct timer lapse; /* core::lapses: its pin or keep ends */
};

struct client {
	struct idtab_slot slot;
	struct list leases;  /* lease::by_client */
	struct list holders; /* holder::by_client */
	struct list waiters; /* waiter::by_client */
	struct user *user;
	uint32_t uid;
	bool is_admin;
	bool is_connected;
	bool is_process_gone;
};

struct waiter {
	struct idtab_slot slot;
	struct list by_client;
	struct list by_owner; /* job::waiters or model::verifiers */
	struct client *client;
	struct model *model;
	struct job *job; /* NULL: it verifies */
	uint32_t request;
	bool attach;
	bool map;
	bool is_first; /* began the job: its source is the disk */
};

enum job_kind { JOB_LOAD, JOB_RECHECK };
enum job_state { JOB_QUEUED, JOB_HEADER, JOB_ROOM, JOB_FILLING, JOB_ENDING, JOB_CHECKING };

struct job {
	struct idtab_slot slot;
	struct list by_age;  /* core::jobs, oldest first */
	struct list by_user; /* user::queued, in JOB_QUEUED */
	struct list by_room; /* core::rooms, oldest first, in JOB_ROOM */
	struct list waiters; /* waiter::by_owner */
	struct user *user;
	uint64_t age;        /* grows from job to job */
	struct model *model; /* NULL once it is ending: only results are still to come */
	struct core_file_key key;
	uint64_t file; /* the core's until it is the model's or given back; 0: none */
	uint64_t generation;
	uint64_t begun_ns;
	uint64_t progress;
	struct core_need needs[JOB_MAX_NEEDS];
	uint32_t n_needs;
	uint32_t n_outstanding; /* results of the loader still to come */
	uint32_t n_attaching;   /* waiters that will have a lease */
	uint32_t uid;
	enum job_kind kind;
	enum job_state state;
	int code; /* of a failed one */
	uint8_t n_restarts;
	bool is_running; /* keeps a reader busy or holds room: counted in its user */
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
	uint64_t sums[SUM_N_VALUES]; /* see core_settle */
	uint64_t available;          /* fresh bound by the outside, as last told */
	bool is_lost;
};

struct core {
	struct core_config config;
	struct core_counters counters;
	struct idtab models, segments, leases, holders, wishes, clients, waiters, job_table, users;
	struct list jobs;      /* job::by_age */
	struct list rooms;     /* job::by_room */
	struct list startable; /* user::startable */
	struct list touched;   /* model::touched */
	struct timers expiries, lapses;
	struct segment **victims;     /* room for all segments, while victims are chosen */
	uint32_t *hash;               /* heads of chains: index + 1 of a model */
	uint32_t *user_hash;          /* likewise of a user */
	uint32_t n_hash, n_user_hash; /* powers of two */
	struct account accounts[CORE_MAX_DEVICES];
	struct core_action *actions;
	uint32_t n_actions, max_actions, n_given;
	uint64_t now_ns;
	uint64_t n_jobs_begun;
	uint32_t n_leaving; /* models */
	uint64_t n_unloads;
	uint64_t quiet_until_ns; /* after a restart: nothing is evicted for another */
	bool is_shutting_down;
};

/* core.c */
struct core_action *core_act(struct core *core, enum core_action_type type);
void core_reply(struct core *core, const struct client *client, uint32_t request, int code,
		const struct model *model);
/* The table is full, or the uid's share of it. */
void core_reply_too_many(struct core *core, const struct client *client, uint32_t request,
			 enum core_limit limit, const struct model *model);
uint64_t core_limit_number(const struct core *core, enum core_limit limit);
void core_note(struct core *core, enum core_note_type note, enum core_why why,
	       const struct model *model, uint64_t bytes);
void core_close_file(struct core *core, uint64_t file);

/* timer.c */
void timer_set(struct timers *timers, struct timer *timer, uint64_t at_ns); /* NEVER: stops it */
struct timer *timer_first(const struct timers *timers);                     /* NULL: none */
uint64_t timer_deadline(const struct timers *timers);                       /* NEVER: none */

/* user.c */
struct user *user_find(const struct core *core, uint32_t uid); /* NULL: it has nothing */
struct user *user_get(struct core *core, uint32_t uid);        /* give it something at once */
void user_settle(struct core *core, struct user *user);        /* it has less than before */
void user_may_start(struct core *core, struct user *user);     /* job_run looks at its jobs */

/* model.c */
bool model_is_same_content(const struct core_file_key *a, const struct core_file_key *b);
struct model *model_find(const struct core *core, const struct core_file_key *key);
/* NULL: the table is full. */
struct model *model_add(struct core *core, const struct core_file_key *key, const uint8_t *uuid,
			uint32_t format, uint32_t uid);
uint32_t model_capacity(const struct core_config *config); /* those that leave included */
/* Let go of models that nobody uses until this uid may add one, or name what stands in the way. */
enum core_limit model_make_place(struct core *core, uint32_t uid);
void model_stay(struct core *core, struct model *model); /* it is wanted again */
/* Something of it has changed that core_settle looks at. */
void model_touch(struct core *core, struct model *model);
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
bool segment_is_mapped(const struct segment *segment);    /* by a lease or a ghost */
enum segment_sum segment_sum_of(const struct core *core, const struct segment *segment);
void segment_answer_verifiers(struct core *core, const struct model *model, int code);
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
/* Bytes of the device in one of the sums. */
uint64_t account_sum(struct core *core, uint32_t device, enum segment_sum sum);
/* Count again what was touched: sums of the accounts, expiries of the models. */
void account_settle(struct core *core);
void account_set_available(struct core *core, const uint64_t *available);
void account_on_budget(struct core *core, const struct core_event *event);
void account_on_pressure(struct core *core, const struct core_event *event);

/* evict.c */
uint64_t evict_evictable(struct core *core, uint32_t device, const struct model *spare);
/* Choose and drop victims for 'bytes' on the device; all or none. */
bool evict_make_room(struct core *core, uint32_t device, uint64_t bytes, const struct job *job,
		     enum core_why why);
/* Have one idle model leave, of this user or (NULL) of any: another needs its place. */
bool evict_model(struct core *core, const struct user *owner, bool may_be_kept);
uint64_t evict_expiry(const struct core *core, const struct model *model); /* NEVER: none */
void evict_expired(struct core *core);

/* admit.c */
void admit_run(struct core *core); /* let waiting jobs go on that can */

/* job.c */
enum core_limit job_limit(const struct core *core, uint32_t uid); /* in the way of one more */
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
struct lease *lease_add(struct core *core, struct model *model, struct client *client,
			uint64_t generation, bool map);
void lease_set_mapped(struct core *core, struct lease *lease, bool is_mapped);
/* Its connection is gone, its process maps it still: it protects nothing, its bytes are held. */
void lease_become_ghost(struct core *core, struct lease *lease);
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
/* One like this (client, request, model and what it waits for); NULL: the table is full. */
struct waiter *waiter_add(struct core *core, const struct waiter *like, struct job *job);
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
void wish_changed(struct core *core, struct wish *wish);
void wish_lapse(struct core *core);

/* load.c */
void load_on_load(struct core *core, const struct core_event *event);

/* unload.c */
void unload_on_unload(struct core *core, const struct core_event *event);
void unload_on_verify(struct core *core, const struct core_event *event);

static inline void *core_slot(const struct idtab *tab, uint32_t index)
{
	return (char *)tab->slots + (size_t)index * tab->slot_size;
}

static inline uint32_t core_index(const struct idtab *tab, const void *object)
{
	return (uint32_t)((size_t)((const char *)object - (const char *)tab->slots) /
			  tab->slot_size);
}

#define OF(link, type, member) container_of(link, type, member)

#endif
