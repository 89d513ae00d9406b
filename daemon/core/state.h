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
 * bytes that may go, when its time runs out) is kept, and worked out again by account_settle for
 * the parts that segment_touch and model_touch named; core_check compares it with the parts.
 */
#ifndef CORE_STATE_H
#define CORE_STATE_H

#include "base/idtab.h"
#include "base/list.h"

#include "daemon/core/core.h"
#include "proto/gen/wire_code.h"

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
	uint32_t n_reservations;
	uint32_t n_queued, n_running;
	bool is_deferred;      /* in admit_run: a job for its models has let others go first */
	struct list queued;    /* job::by_user, oldest first */
	struct list startable; /* core::startable: may have a job that can start */
	/* Charged for its models' copies, those apart that are being dropped, and reserved. */
	uint64_t taken[CORE_MAX_DEVICES];
	uint64_t left; /* of that, while victims are chosen */
};

/* What of a segment's bytes admission may count on. */
enum segment_sum {
	SUM_NONE,
	SUM_DROPPING,  /* come back without anybody's help */
	SUM_EVICTABLE, /* come back when they are evicted */
	SUM_LATER,     /* may be evicted once the load that brings them has ended */
	SUM_N_VALUES,
};

/* How many of a model's segments are what: see segment_counts. */
enum segment_count {
	COUNT_READY,  /* of the published generation: they are there, */
	COUNT_FREE,   /* and no job counts on them, */
	COUNT_GOOD,   /* or would serve, */
	COUNT_IMAGES, /* and are no blocks */
	COUNT_BAD,    /* of any generation */
	COUNT_OLD,    /* dropped, be they held */
	COUNT_N_VALUES,
};

/* What a holder like this has, beside what was counted with older generations: most have the same. */
struct beside {
	uint64_t generation, images, blocks, bytes;
	bool has_blocks, is_remnant;
	bool is_known; /* until the model is touched */
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
	uint32_t n_images;        /* of them no blocks */
	uint8_t backing;          /* enum core_backing of the published generation */
	uint64_t placement;       /* likewise; ANY: nothing was published */
	uint32_t placed_uid;      /* whose processes may have its blocks on other devices */
	uint32_t devices;         /* bits: it has copies there */
	bool has_host;            /* it has all in images, what lies on other devices too */
	bool is_displaced;        /* something went for a reservation: it comes back */
	uint64_t retry_ns;        /* when that is tried again; NEVER: with the end of one */
	uint32_t n_tries;         /* in vain */
	bool is_torn; /* a device that had some of it was lost, or a restart: it comes back */
	uint64_t torn_placement; /* then: like this, */
	uint32_t torn_uid;       /* for his processes, */
	uint32_t torn_devices;   /* with the last of these (bits); 0: not known yet which */
	bool comes_back;         /* also after a restart, as last recorded */
	uint8_t wanted;          /* likewise, as the last load that said one wanted it */
	uint64_t file;           /* open source; 0: none */
	struct job *job;         /* running one; NULL: none */
	struct list segments;    /* segment::by_model */
	struct list wishes;      /* wish::by_model */
	struct list leases;      /* lease::by_model */
	struct list holders;     /* holder::by_model */
	struct list verifiers;   /* waiter::by_owner */
	struct list touched;     /* core::touched: to be counted again, */
	struct list parts;       /* segment::touched: of its segments these, */
	bool is_touched;         /* or all of them */
	bool is_counted;         /* its counts are those of its segments, whatever is touched */
	uint32_t counts[COUNT_N_VALUES];
	uint64_t sums[CORE_MAX_DEVICES][SUM_N_VALUES]; /* its part of those of the accounts */
	struct list changed;  /* core::changed: likewise, whether it comes back */
	uint64_t dropping;    /* bytes of its segments that are */
	struct beside beside; /* view.c's, as last asked for */
	struct timer expiry;  /* core::expiries: its time without use runs out */
	struct timer linger;  /* core::lingers: its blocks leave other devices */
	struct timer retry;   /* core::retries: what went for a reservation comes back */
	uint64_t last_used_ns;
	uint64_t blocks_used_ns; /* likewise, by those who have what lies on other devices */
	uint64_t load_ns;
	uint64_t unload; /* core::n_unloads when one last named it */
	uint64_t going;  /* bytes of victims that are not noted yet */
	int fail_code;   /* of the last load, until the next one */
	bool is_doomed;  /* unload when the last lease ends */
	bool is_leaving; /* forget it when its copies are gone: another needs the place */
};

struct segment {
	struct idtab_slot slot;
	struct list by_model;
	struct model *model;
	struct list touched; /* model::parts */
	uint64_t generation; /* the first that it is of */
	uint64_t last;       /* and the last; NEVER: none has been published without it */
	uint64_t size;       /* of what is there */
	uint64_t bytes;      /* of it charged; more than all where holes were filled since */
	uint64_t job;        /* that brings it or counts on it, until it is published; 0: none */
	uint32_t padding;    /* of size: no tensor's own */
	uint16_t device;
	uint16_t index;
	uint8_t state;   /* enum segment_state */
	uint8_t why;     /* enum core_why it is dropped for */
	uint8_t sum;     /* enum segment_sum it is counted in */
	uint8_t counts;  /* bits of enum segment_count: likewise */
	uint8_t backing; /* enum core_backing, not AUTO */
	bool is_block;
	bool is_verifying;
	bool is_retained; /* the generation that 'job' makes has it too */
	bool is_same;     /* planned: a copy like it that is there would do; READY: such a one */
	bool is_bare;     /* an image of no tensor's bytes */
	bool is_bad;      /* failed its checksum */
	bool is_stale;    /* its file is another by now */
	bool is_remnant;  /* images that nobody kept over a restart but who maps them */
	bool is_above;    /* while victims are chosen: its user has more than the share */
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
	bool lies_on;      /* as holder_find found last */
	bool is_obstacle;  /* while recalls are counted: it would not let go */
	bool has_blocks;   /* as they lie, whatever becomes of the model; else its images alone */
	bool is_remnant;   /* has what an earlier life's daemon made, and nothing of this one's */
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
	uint64_t job;       /* all of this was said by loads that wait for it; 0: by more */
};

struct client {
	struct idtab_slot slot;
	struct list leases;       /* lease::by_client */
	struct list holders;      /* holder::by_client */
	struct list waiters;      /* waiter::by_client */
	struct list reservations; /* reservation::by_client */
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
	bool is_first;      /* began the job: its source is the disk */
	bool is_place;      /* wants no bytes: that they lie there */
	uint64_t placement; /* that it wants */
	enum core_phase told;
};

/* Room on a device, granted or waited for. owner: core::reservations */
struct reservation {
	struct idtab_slot slot;
	struct list by_client;
	struct list by_age; /* core::reserving, while it waits */
	struct client *client;
	uint64_t bytes, ttl_ns, recall_ns;
	uint64_t age;        /* among those of jobs */
	struct timer end;    /* core::reservation_ends: of its time, or of the wait for recalls */
	uint64_t recallable; /* bytes that recalls may bring, as last counted: */
	uint64_t counted_at; /* after so many touches, and one; 0: never */
	uint32_t device, request;
	bool is_granted, has_recalled, has_displaced;
};

enum job_kind { JOB_LOAD, JOB_RECHECK };
enum job_state {
	JOB_QUEUED,
	JOB_HEADER,
	JOB_ROOM,
	JOB_FILLING,
	JOB_TABLE,
	JOB_ENDING,
	JOB_CHECKING,
};

struct job {
	struct idtab_slot slot;
	struct list by_age;  /* core::jobs, oldest first */
	struct list by_user; /* user::queued, in JOB_QUEUED */
	struct list by_room; /* core::rooms, oldest first, in JOB_ROOM */
	struct list to_tell; /* core::to_tell */
	struct list waiters; /* waiter::by_owner */
	struct user *user;
	uint64_t age;        /* grows from job to job */
	struct model *model; /* NULL once it is ending: only results are still to come */
	struct core_file_key key;
	uint64_t file; /* the core's until it is the model's or given back; 0: none */
	uint64_t generation;
	uint64_t begun_ns;
	uint64_t room_ns;    /* since when it waits for room */
	uint64_t filling_ns; /* since when it fills */
	uint64_t fill_ns;    /* the longest of its fills; a suspended machine not counted */
	uint64_t fills_ns;   /* all of them */
	uint64_t progress;
	uint64_t need[CORE_MAX_DEVICES]; /* bytes of what is planned */
	/* Of those, what a device that had room by its account turned out to have none for. */
	uint64_t refused[CORE_MAX_DEVICES];
	uint32_t devices;        /* bits: it has planned something there, be it free */
	uint32_t n_copies;       /* of the generation it makes */
	uint32_t n_images;       /* of them no blocks */
	uint64_t moved;          /* bytes of tensors in those filled anew */
	uint64_t placement;      /* not ANY */
	uint64_t next_placement; /* wanted by one who does not wait; ANY: by none */
	uint32_t next_uid;       /* he */
	bool is_next_admin;
	uint32_t placed_uid;
	uint32_t takes;         /* bits: it makes something there */
	bool has_given_way;     /* an older one took what it counted on */
	bool is_too_many;       /* and there was no place to plan that anew */
	bool with_host;         /* all in images besides */
	bool may_share;         /* of the same content: copies that stay are not made again */
	bool is_tabled;         /* no fill makes the table of its generation */
	bool is_demotion;       /* nobody asked: from other devices to the host ... */
	enum core_why why;      /* ... for this */
	uint32_t n_outstanding; /* results of the loader still to come */
	uint32_t n_attaching;   /* waiters that will have a lease */
	uint32_t uid;
	enum job_kind kind;
	enum job_state state;
	int code; /* of a failed one */
	uint8_t n_restarts;
	bool is_running; /* keeps a reader busy or holds room: counted in its user */
	bool no_wait;
	bool is_asked;         /* by somebody, be he gone: that is use */
	bool uses_blocks;      /* by one for whom its blocks are not another's */
	bool is_reload;        /* what was lost comes back, for 'why': nobody asked */
	bool is_return;        /* after a reservation that it had to go for */
	bool is_told;          /* that it has begun */
	bool is_move;          /* of a model that serves meanwhile to another backing: likewise */
	bool insists;          /* on what is wanted */
	uint8_t wanted;        /* enum core_backing */
	uint8_t joined_wanted; /* likewise, by one who joined and insists; AUTO: by none */
	uint8_t backing;       /* likewise, decided; AUTO: not yet */
	bool is_deferred;      /* in admit_run */
	bool has_shortage;
	bool has_joined; /* with 'joined', another content than the one being read */
	bool is_mixed;   /* somebody joined with another content at any time */
	uint32_t short_device;
	struct core_shortage shortage;
	struct core_file_key joined;
};

struct account {
	uint64_t budget;
	uint64_t bucket[SEGMENT_N_STATES];
	uint64_t sums[SUM_N_VALUES]; /* see account_settle */
	uint64_t reserved;           /* by reservations that were granted */
	uint64_t available;          /* fresh bound by the outside, as last told */
	uint64_t drained_age;        /* jobs that are younger may take nothing; NEVER: all may */
	bool is_by_others;           /* the budget is what they leave of it */
	bool has_budget; /* one was said: before that an earlier life's copies are adopted */
	bool is_lost;
};

struct core {
	struct core_config config;
	struct core_counters counters;
	struct idtab models, segments, leases, holders, wishes, clients, waiters, job_table, users;
	struct idtab reservations;
	struct list reserving;      /* reservation::by_age, oldest first */
	uint64_t displacing_client; /* victims are chosen for its reservation; 0: for none */
	bool has_recalled;          /* in this step, for a reservation: one does */
	bool has_to_recall;         /* another one does in the next */
	struct list jobs;           /* job::by_age */
	struct list rooms;          /* job::by_room */
	struct list to_tell;        /* job::to_tell, empty between steps */
	struct list startable;      /* user::startable */
	struct list touched;        /* model::touched */
	uint64_t n_touches;         /* of models that somebody holds */
	struct list changed;        /* model::changed */
	struct timers expiries, lapses, lingers, retries, reservation_ends;
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
	uint64_t n_let_go;       /* see core_n_let_go */
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
/* Of no device in particular: who knows one says so in the action. */
void core_note(struct core *core, enum core_note_type note, enum core_why why,
	       const struct model *model, uint64_t bytes);
/* One for each device that has some; n_devices of them. */
void core_note_by_device(struct core *core, enum core_note_type note, enum core_why why,
			 const struct model *model, const uint64_t *bytes);
void core_close_file(struct core *core, uint64_t file);

/* backing.c */
/* For a load that wants this one, of a file that lies in the page cache or not. */
enum core_backing backing_choose(const struct core *core, const struct model *model,
				 enum core_backing wanted, bool is_cached);
/* Does the published generation lie in what is wanted? */
bool backing_suits(const struct model *model, enum core_backing wanted);
/* Pins and keeps have changed: another backing may suit the model now. */
void backing_settle(struct core *core, struct model *model);
void backing_on_changed(struct core *core, const struct core_event *event);

/* timer.c */
void timer_set(struct timers *timers, struct timer *timer, uint64_t at_ns); /* NEVER: stops it */
struct timer *timer_first(const struct timers *timers);                     /* NULL: none */
uint64_t timer_deadline(const struct timers *timers);                       /* NEVER: none */

/* user.c */
struct user *user_find(const struct core *core, uint32_t uid); /* NULL: it has nothing */
struct user *user_get(struct core *core, uint32_t uid);        /* give it something at once */
void user_settle(struct core *core, struct user *user);        /* it has less than before */
void user_may_start(struct core *core, struct user *user);     /* job_run looks at its jobs */
/* Its copy is there, or is no longer: of one that is being dropped nothing is taken. */
void user_take(struct segment *segment);
void user_give_back(struct segment *segment);

/* model.c */
/* For certain: what was loaded is what there is now. */
bool model_is_unchanged(const struct model *model, const struct core_file_key *key);
bool model_is_same_content(const struct core_file_key *a, const struct core_file_key *b);
struct model *model_find(const struct core *core, const struct core_file_key *key);
/* NULL: the table is full. */
struct model *model_add(struct core *core, const struct core_file_key *key, const uint8_t *uuid,
			uint32_t format, uint32_t uid);
uint32_t model_capacity(const struct core_config *config); /* those that leave included */
/* Let go of models that nobody uses until this uid may add one, or name what stands in the way. */
enum core_limit model_make_place(struct core *core, uint32_t uid);
void model_stay(struct core *core, struct model *model); /* it is wanted again */
/* Something of it has changed that account_settle looks at. */
void model_touch(struct core *core, struct model *model);
/* Likewise, but its parts have not: who uses or wants it. */
void model_touch_use(struct core *core, struct model *model);
/* How many of its segments are that; without a walk where none has changed since they were counted. */
uint32_t model_count(const struct model *model, enum segment_count count);
void model_settle(struct core *core, struct model *model); /* gives up what nothing needs */
void model_forget(struct core *core, struct model *model);
bool model_is_resident(const struct model *model);
bool model_is_idle(const struct model *model); /* no lease of a live connection */
/* As it is published, by the living who have all of it, not its images alone. */
bool model_is_leased(const struct model *model);
/* Now, by this one. */
void model_use(const struct core *core, struct model *model, const struct client *client);
bool model_is_pinned(const struct core *core, const struct model *model);
bool model_is_kept(const struct core *core, const struct model *model);
int16_t model_priority(const struct model *model);
uint64_t model_ttl_ns(const struct core *core, const struct model *model); /* NEVER: until needed */
enum core_model_state model_state(const struct model *model);
/* Drop every READY copy of it that nobody leases. Returns the bytes that will come free. */
uint64_t model_drop(struct core *core, struct model *model, enum core_note_type note,
		    enum core_why why);
void model_drain(struct core *core, struct model *model); /* old generations without leases */

/* segment.c */
/* For a job's generation; nothing is charged yet. NULL: the table is full. */
struct segment *segment_plan(struct core *core, struct job *job, const struct core_need *need);
/* Is it of this generation, which was published? */
static inline bool segment_is_of(const struct segment *segment, uint64_t generation)
{
	return segment->generation <= generation && generation <= segment->last;
}
/* Of its size, what is tensors' own. */
static inline uint64_t segment_tensor_bytes(const struct segment *segment)
{
	return segment->size > segment->padding ? segment->size - segment->padding : 0;
}
/* Of the published one: there is one, and none was made without it. */
static inline bool segment_is_current(const struct segment *segment)
{
	return segment->last == NEVER && segment->generation <= segment->model->generation;
}
/* Of those before it, and somebody leases or maps it. */
bool segment_is_older(const struct segment *segment);
/* It is in its model now. */
void segment_add(struct model *model, struct segment *segment);
/* It alone has changed. */
void segment_touch(struct core *core, struct segment *segment);
/* In which of the counts it is, as bits. */
uint8_t segment_counts(const struct segment *segment);
/* It is of no later generation than those there are. */
void segment_end(struct segment *segment);
void segment_set_state(struct core *core, struct segment *segment, enum segment_state state);
void segment_drop(struct core *core, struct segment *segment, enum core_why why);
void segment_remove(struct core *core, struct segment *segment);
/* Current, and would serve. */
bool segment_is_good(const struct segment *segment);
bool segment_is_droppable(const struct segment *segment); /* whole, and no job counts on it */
bool segment_is_leased(const struct segment *segment);    /* by the living */
/* Would a process still map its bytes after we let go: by a lease or a ghost? */
bool segment_is_held(const struct segment *segment);
/* One who has its descriptor; NULL: none has. */
const struct holder *segment_mapper(const struct segment *segment);
enum segment_sum segment_sum_of(const struct core *core, const struct segment *segment);
void segment_answer_verifiers(struct core *core, const struct model *model, int code);
void segment_verify(struct core *core, struct segment *segment);
/* All copies of the published generation. */
void segment_verify_all(struct core *core, const struct model *model);
/* Another generation was: who waits for a verification is told of that one. */
void segment_verify_published(struct core *core, const struct model *model);
void segment_on_filled(struct core *core, const struct core_event *event);
void segment_on_dropped(struct core *core, const struct core_event *event);
void segment_on_grown(struct core *core, const struct core_event *event);
void segment_on_verified(struct core *core, const struct core_event *event);
void segment_on_device_doubted(struct core *core, const struct core_event *event);
void segment_on_device_lost(struct core *core, const struct core_event *event);
void segment_release_held(struct core *core, struct model *model);

/* adopt.c */
uint64_t adopt_copy(struct core *core, const struct core_event *event);
void adopt_wish(struct core *core, const struct core_event *event);
uint64_t adopt_lease(struct core *core, const struct core_event *event);
uint64_t adopt_placed(struct core *core, const struct core_event *event);
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
/* The segment is in no sum and no count any more. */
void account_uncount(struct core *core, struct segment *segment);
/* Count again what was touched: sums of the accounts, counts and expiries of the models. */
void account_settle(struct core *core);
void account_on_available(struct core *core, const struct core_event *event);
/* What was in use or pinned when a budget was lowered goes once it is not. */
void account_keep_budgets(struct core *core);
void account_on_budget(struct core *core, const struct core_event *event);
void account_on_pressure(struct core *core, const struct core_event *event);
void account_on_drain(struct core *core, const struct core_event *event);
bool account_is_lost(const struct core *core, uint32_t devices); /* one of these bits */
bool account_is_drained(const struct core *core);                /* no device takes a new load */

/* evict.c */
/* What may go now, or once the loads that count on it have ended; never of 'spare'. */
uint64_t evict_evictable(struct core *core, uint32_t device, const struct model *spare);
uint64_t evict_later(struct core *core, uint32_t device, const struct model *spare);
/* What evict_make_room would free, as things are; 0 where it would not. */
uint64_t evict_would_free(struct core *core, uint32_t device, uint64_t bytes,
			  const struct model *spare);
/* Choose and drop victims for 'bytes' on the device; all or none. */
bool evict_make_room(struct core *core, uint32_t device, uint64_t bytes, const struct job *job,
		     enum core_why why);
/* Devices had no room for the job, though by their accounts they had: may what is lacking be had
 * from others there? And have it dropped. */
bool evict_can_make_up(struct core *core, const struct job *job);
void evict_make_up(struct core *core, const struct job *job);
/* Have one idle model leave, of this user or (NULL) of any: another needs its place. */
bool evict_model(struct core *core, const struct user *owner, bool may_be_kept);
uint64_t evict_expiry(const struct core *core, const struct model *model); /* NEVER: none */
/* Has that time run out, be nothing of the model there? Then it need not come back. */
bool evict_is_overdue(const struct core *core, const struct model *model);
void evict_expired(struct core *core);

/* admit.c */
void admit_run(struct core *core);                /* let waiting jobs go on that can */
uint64_t admit_deadline(const struct core *core); /* when one has let others go first; NEVER */

/* job.c */
enum core_limit job_limit(const struct core *core, uint32_t uid); /* in the way of one more */
struct job *job_begin(struct core *core, struct model *model, enum job_kind kind,
		      const struct core_file_key *key, uint64_t file, uint32_t uid);
/* Nobody asked for it since what it brings back had to go: it takes nothing from others. */
static inline bool job_is_modest(const struct job *job)
{
	return job->is_return && !job->is_asked;
}
/* Does it make a generation that lies on other devices too? */
static inline bool job_is_placed(const struct job *job)
{
	return job->placement > CORE_PLACEMENT_HOST;
}
/* Somebody who presents the file joins: what he has seen must be what he gets. */
void job_join(struct job *job, const struct core_file_key *key);
void job_run(struct core *core); /* start queued ones */
void job_on_header(struct core *core, const struct core_event *event);
void job_on_tabled(struct core *core, const struct core_event *event);
void job_on_rechecked(struct core *core, const struct core_event *event);
void job_fill(struct core *core, struct job *job);
void job_result(struct core *core, struct job *job, int code); /* one fill has ended */
void job_fail(struct core *core, struct job *job, int code);
/* Nobody waits any more for what it makes. */
void job_drop_if_unwanted(struct core *core, struct job *job);
struct job *job_of(const struct core *core, uint64_t id);

/* progress.c */
/* It waits for something else, or others wait for it: they are told where the step leaves it. */
void progress_touch(struct core *core, struct job *job);
bool progress_is_told(const struct job *job, const struct waiter *waiter);
void progress_settle(struct core *core);
void progress_on_fill(struct core *core, const struct core_event *event);

/* lease.c */
struct lease *lease_add(struct core *core, struct model *model, struct client *client,
			uint64_t generation, bool map);
void lease_set_mapped(struct core *core, struct lease *lease, bool is_mapped);
/* Its connection is gone, its process maps it still: it protects nothing, its bytes are held. */
void lease_become_ghost(struct core *core, struct lease *lease);
void lease_end(struct core *core, struct lease *lease);
void lease_record(struct core *core, const struct lease *lease);
bool holder_has(const struct holder *holder, const struct segment *segment);
bool holder_is_like(const struct holder *holder, const struct holder *other); /* has the same */
/* Those of the model that have something there: their leases are in the way, and asked or told. */
void holder_find(const struct model *model, uint32_t device);
bool lease_grant(struct core *core, const struct waiter *waiter, struct model *model,
		 enum core_source source, const struct job *job);
void lease_count_hit(struct core *core, const struct model *model); /* served from memory */
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
bool wish_says(const struct wish *wish);
void wish_withdraw(struct core *core, struct wish *wish);
/* What a load said that waited for the job is no longer to be taken back. */
void wish_grant(struct core *core, const struct model *model, uint32_t uid, const struct job *job);
/* What was said by loads that waited for the job alone goes as they fail, or is said by those of
 * them who have another job now. */
void wish_end_job(struct core *core, const struct model *model, const struct job *job);
void wish_remove(struct core *core, struct wish *wish);
void wish_on_set(struct core *core, const struct core_event *event);
void wish_changed(struct core *core, struct wish *wish);
void wish_lapse(struct core *core);

/* load.c */
void load_on_load(struct core *core, const struct core_event *event);
/* To one who does not wait for the job; what he wants comes with it, or after it. */
void load_answer_begun(struct core *core, const struct client *client, uint32_t request,
		       struct job *job, uint64_t placement);

/* retain.c */
/* Are they on devices that there are, and does what each device needs fit a number? */
bool retain_is_countable(const struct core *core, const struct core_need *needs, uint32_t n_needs);
/* What the job takes over and what it makes. False: the table is full. */
bool retain_plan(struct core *core, struct job *job, const struct core_need *needs,
		 uint32_t n_needs);
/* Those who wait for room, but for one model's, let go of what is on these devices (bits): the
 * first one needs it. True: something. */
bool retain_give_way(struct core *core, const struct model *spare, uint32_t devices);
void retain_take_back(struct core *core, struct job *job); /* what is still there */
void retain_lose_bad(struct core *core, struct job *job);  /* it counts on copies found bad */

/* place.c */
/* May this uid have the blocks where they lie? */
bool place_has_blocks_for(const struct model *model, uint32_t uid);
/* Do its blocks lie for another, and may he not move them either? */
bool place_is_foreign(const struct model *model, const struct client *client);
void place_ask(struct job *job, const struct client *client); /* he wants what it makes */
/* Is there what it may have: that, or for another uid images of all of it? */
bool place_serves(const struct model *model, uint32_t uid);
/* Is the next generation that lies as this one to be in images besides: for the uid, or because it
 * costs nothing? */
bool place_needs_host(const struct model *model, uint32_t uid);
/* Does its published generation lie as this client wants it, to use it or (is_place) not? */
bool place_suits(const struct model *model, const struct client *client, uint64_t wanted,
		 bool is_place);
/* Would a load that is wanted like this leave its blocks on other devices where they lie? */
bool place_stays(const struct model *model, const struct client *client, uint64_t wanted);
/* May the client have its blocks lie like this? Not where they lie for another user. */
bool place_may(const struct model *model, const struct client *client, uint64_t wanted);
/* For whom they lie when the client places them. */
uint32_t place_uid(const struct model *model, const struct client *client);
void place_on_place(struct core *core, const struct core_event *event);
uint64_t place_linger(const struct core *core, const struct model *model); /* NEVER: they stay */
/* Where what had to go comes back to: to RAM, where its time elsewhere is over. */
uint64_t place_to_return(const struct core *core, const struct model *model);
void place_expired(struct core *core);
void place_on_device_short(struct core *core, const struct core_event *event);
void place_stay(struct core *core, const struct model *model); /* it is used again */
void place_drop_blocks(struct core *core, struct model *model, enum core_why why);
/* A job of 'uid' for the content that is there; NULL: none can be begun. */
struct job *place_begin(struct core *core, struct model *model, uint64_t placement,
			uint32_t placed_uid, uint32_t uid);
/* Does he say where its blocks are to lie? Not with CORE_PLACEMENT_ANY, and not who is to have its
 * images beside the blocks of another user. */
bool place_decides(const struct model *model, const struct client *client, uint64_t wanted);
/* Somebody waits for a placement: who said one before, and did not wait, gets that no more. */
void place_supersede(struct job *job, const struct client *client, uint64_t placement);
/* The move fails: for whom it lies as he asked still, it has not. */
void place_serve_suited(struct core *core, struct job *job);
/* Is what the job makes what he waits for? */
bool place_is_for(const struct job *job, const struct waiter *waiter);
/* Does somebody wait for it, or who can have what he wants only with it? */
bool place_is_wanted(const struct job *job);
/* It fails with 'code': has that nothing to do with who waits for another placement? */
bool place_may_go_on(const struct job *job, int code);
/* Those whom the published generation does not suit get another. */
void place_go_on(struct core *core, struct model *model, struct job *ended);
void place_on_device_back(struct core *core, const struct core_event *event);
void place_on_devices_found(struct core *core, const struct core_event *event);
/* It is to come back as it lies now. */
void place_tear(struct model *model);
/* It is not to come back; with give_up, settled. */
void place_stay_away(struct core *core, struct model *model);
void place_give_up(struct core *core, struct model *model);
/* What the device's loss tore, once all of its devices are there. */
void place_come_back(struct core *core, struct model *model, uint32_t device);
/* After a restart too? */
bool place_comes_back(const struct model *model);
void place_settle(struct core *core); /* tell of those that do not any more */

/* reserve.c */
void reserve_on_reserve(struct core *core, const struct core_event *event);
void reserve_on_release(struct core *core, const struct core_event *event);
/* What had to go for reservations or was lost, and lay on the device too, is loaded again if it has
 * room now. */
void reserve_bring_back(struct core *core, uint32_t device);
/* One of them has gone. */
void reserve_note_displaced(struct model *model);
/* A job of one ended without it: it is tried again, later each time, or not where that is in vain. */
void reserve_note_failed(struct core *core, struct model *model, const struct job *job);
uint64_t reserve_retry_at(const struct model *model); /* NEVER: it is not due */
void reserve_retry(struct core *core);
/* Let it in, or make room for it, or put it among the older ones. True: it waits. */
bool reserve_admit(struct core *core, struct reservation *reservation, uint64_t *older,
		   bool is_first);
void reserve_expired(struct core *core);
void reserve_end_all(struct core *core, struct client *client);
void reserve_cancel(struct core *core, struct client *client, uint32_t request);
void reserve_shut_down(struct core *core);

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
