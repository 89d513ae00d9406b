/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What may be asked for: the closed list of things the corridor does for the core, in the
 * order given. Each action that names a result event is answered by exactly one such event,
 * whatever happens (cancelled and failed included).
 */
#ifndef CORE_ACTION_H
#define CORE_ACTION_H

#include <stdbool.h>
#include <stdint.h>

#include "daemon/core/event.h"

enum core_action_type {
	ACT_READ_HEADER,   /* -> EV_HEADER_READ */
	ACT_FILL,          /* -> EV_FILL_PROGRESS*, EV_FILLED */
	ACT_MAKE_TABLE,    /* all copies of a placed generation are there -> EV_TABLED */
	ACT_RECHECK,       /* hash the file, compare with the model's sums -> EV_RECHECKED */
	ACT_VERIFY,        /* hash the copy, compare with the model's sums -> EV_VERIFIED */
	ACT_DROP,          /* close the copy for good -> EV_DROPPED */
	ACT_CANCEL,        /* hurry up: the job's outstanding results are no longer wanted */
	ACT_PUBLISH,       /* the generation is complete: its table is the current one now */
	ACT_RETIRE,        /* the published generation is gone: its table is of no use */
	ACT_CLOSE_FILE,    /* the core has given the file up */
	ACT_FORGET_JOB,    /* nothing refers to the job any more */
	ACT_FORGET_MODEL,  /* its id means nothing any more */
	ACT_FORGET_CLIENT, /* likewise */
	ACT_REPLY,         /* the one answer of a request; of a verify one for each model, or,
			    * when it was cancelled, one without a model and no more */
	ACT_UNLOAD_ITEM,   /* one line of an unload's answer; ACT_REPLY follows */
	ACT_PROGRESS,      /* tell one waiter how far its load is */
	ACT_LOST,          /* tell the holder that its lease's bytes cannot be trusted */
	ACT_FOLLOW,        /* who did not wait for the job, and wants it to lie elsewhere, has
			    * another one */
	ACT_LOAD_ENDED,    /* tell those who did not wait for it; fields as with ACT_REPLY */
	ACT_RECALL,        /* ask the holder to let its lease go */
	ACT_NOTE,          /* history, log line and event */
	ACT_RECORD_LEASE,  /* a lease that maps something began, changed or ended */
	ACT_RECORD_WISH,   /* likewise what a uid said */
	ACT_RECORD_PLACED, /* what the model has on other devices too is not to be made again after
			    * a restart any more */
	ACT_N_VALUES,
};

enum core_source { CORE_SOURCE_BEGUN, CORE_SOURCE_DISK, CORE_SOURCE_RAM, CORE_SOURCE_JOINED };
enum core_phase {
	CORE_PHASE_QUEUED,
	CORE_PHASE_HEADER,
	CORE_PHASE_ROOM,
	CORE_PHASE_READING,
	CORE_PHASE_CHECKING,
	CORE_PHASE_STALLED
};
enum core_outcome { CORE_OUTCOME_KEPT, CORE_OUTCOME_UNLOADED, CORE_OUTCOME_HELD };

enum core_note_type {
	CORE_NOTE_LOAD_BEGUN,
	CORE_NOTE_LOAD_DONE,
	CORE_NOTE_LOAD_FAILED,
	CORE_NOTE_LOAD_CANCELLED,
	CORE_NOTE_EVICTED,  /* bytes left a device to make room, or a ttl ran out */
	CORE_NOTE_UNLOADED, /* bytes left a device because somebody said so */
	CORE_NOTE_REFUSED,  /* a load or a move did not fit */
	CORE_NOTE_PINNED,
	CORE_NOTE_UNPINNED,
	CORE_NOTE_KEPT,
	CORE_NOTE_UNKEPT,
	CORE_NOTE_QUARANTINED,
	CORE_NOTE_STALE,  /* an older generation's bytes drain */
	CORE_NOTE_HELD,   /* dropped but still mapped by a client */
	CORE_NOTE_FREED,  /* held bytes came back */
	CORE_NOTE_PLACED, /* its blocks lie elsewhere now */
	CORE_NOTE_PLACE_FAILED,
	CORE_NOTE_PLACE_CANCELLED,
	CORE_NOTE_N_VALUES,
};

/* Why: of notes and of an unload's lines. */
enum core_why {
	CORE_WHY_NONE,
	CORE_WHY_ROOM,     /* another model needed the bytes ('for_model') */
	CORE_WHY_IDLE,     /* ttl ran out */
	CORE_WHY_LINGERED, /* core_config::linger_ns ran out, on other devices */
	CORE_WHY_ASKED,    /* unload */
	CORE_WHY_IN_USE,   /* leased */
	CORE_WHY_PINNED,
	CORE_WHY_KEPT,
	CORE_WHY_WANTED, /* another uid's time has not run out, or it said a priority */
	CORE_WHY_MAPPED, /* lease ended, process still maps it */
	CORE_WHY_LOADING,
	CORE_WHY_CHANGED, /* a newer generation */
	CORE_WHY_BAD_SUM,
	CORE_WHY_FAILED, /* 'code' says how */
	CORE_WHY_CANCELLED,
	CORE_WHY_BUDGET,   /* the budget was lowered */
	CORE_WHY_PRESSURE, /* memory was short: the machine's, or a device's by others' use of it */
	CORE_WHY_LOST,     /* device gone */
	CORE_WHY_MOVED,    /* the newest generation has them elsewhere */
	CORE_WHY_RESERVED, /* room for what is not ours */
	CORE_WHY_N_VALUES,
};

/* Which limit an answer of too-many means. */
enum core_limit {
	CORE_LIMIT_NONE, /* not one of the core's */
	CORE_LIMIT_CLIENTS,
	CORE_LIMIT_USER_CLIENTS, /* of one uid, those included that are gone and still map bytes */
	CORE_LIMIT_MODELS,
	CORE_LIMIT_USER_MODELS, /* that one uid loaded first */
	CORE_LIMIT_JOBS,
	CORE_LIMIT_USER_QUEUED, /* loads of one uid that wait for their turn */
	CORE_LIMIT_SEGMENTS,
	CORE_LIMIT_LEASES,
	CORE_LIMIT_USER_LEASES,
	CORE_LIMIT_MODEL_LEASES, /* of one model */
	CORE_LIMIT_WAITERS,
	CORE_LIMIT_WISHES,
	CORE_LIMIT_RESERVATIONS,
	CORE_LIMIT_USER_RESERVATIONS,
	CORE_LIMIT_N_VALUES,
};

/* The numbers behind no-memory, of the first device that falls short. */
struct core_shortage {
	uint64_t need, budget, free, evictable, held, foreign;
	bool is_recalling; /* a reservation, for which others are asked to let go */
	bool is_of_share; /* likewise: budget is what one uid may reserve, free what is left of it */
};

struct core_action {
	enum core_action_type type;
	int code; /* replies, notes: 0 or enum wire_code */
	uint32_t request;
	uint32_t device;
	uint64_t client;
	uint64_t model;
	uint64_t segment;
	uint64_t job;
	union {
		struct {
			uint64_t file;
			uint64_t bytes;
			uint64_t generation;
			uint64_t placement; /* headers and rechecks: of the generation to be */
			uint32_t index;     /* of the file or block */
			bool is_block;      /* fills */
			bool with_host;     /* headers: all of it in images besides */
			bool may_share; /* headers: the published copies are of the same content */
			bool is_tabled; /* headers: of its generation ACT_MAKE_TABLE makes the table */
			enum core_backing backing; /* headers: wished; fills: decided */
			bool insists_backing;      /* headers */
		} fill; /* ACT_READ_HEADER, ACT_RECHECK, ACT_FILL, ACT_MAKE_TABLE, ACT_CLOSE_FILE,
			 * ACT_PUBLISH */
		struct {
			uint64_t lease; /* 0: none; of a reserve: the reservation */
			uint64_t generation;
			enum core_source source;
			uint64_t placement; /* begun: that was asked for, or ANY */
			bool map;           /* send the image descriptors */
			uint64_t current;   /* stale: the current generation */
		} reply;
		struct {
			uint64_t next;      /* job */
			uint64_t placement; /* of the ended one */
		} follow;
		struct core_shortage shortage; /* ACT_REPLY with no-memory; busy of a reserve */
		struct {
			enum core_limit limit;
			uint64_t number;
		} too_many; /* ACT_REPLY with too-many */
		struct {
			enum core_outcome outcome;
			enum core_why why;
			uint64_t bytes;
			uint64_t freed; /* of them charged, by now or then: the page cache is not */
			uint64_t holder; /* client, where one is in the way; 0: none */
			uint32_t uid;    /* whose wish, where one is in the way */
		} unload;
		struct {
			enum core_phase phase;
			uint64_t bytes, total;
		} progress;
		struct {
			uint64_t lease;
			enum core_why why;
		} lost;
		struct {
			uint64_t lease;
			uint64_t for_client;
			uint64_t within_ns;
		} recall;
		struct {
			uint64_t id; /* look at it: core_lease_get, core_wish_get */
		} record;
		struct {
			enum core_note_type note;
			enum core_why why;
			uint64_t bytes;
			uint64_t duration_ns;
			uint64_t for_model; /* 0: nobody's sake */
			uint32_t uid;       /* whose word */
		} note;
	};
};

#endif
