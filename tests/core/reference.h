/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A second, naive account of what the core must hold, kept in plain arrays from the events
 * and the actions alone. It does not choose; it knows what no choice may break.
 */
#ifndef TESTS_CORE_REFERENCE_H
#define TESTS_CORE_REFERENCE_H

#include <stdbool.h>
#include <stdint.h>

#include "daemon/core/core.h"

#define REFERENCE_COPIES  64
#define REFERENCE_LEASES  64
#define REFERENCE_MODELS  16
#define REFERENCE_WISHES  64
#define REFERENCE_JOBS    32
#define REFERENCE_CLIENTS 16
#define REFERENCE_NEEDS   4
#define REFERENCE_ROOMS   8

struct reference_copy {
	uint64_t segment;                      /* 0: free */
	uint64_t model, job, generation, last; /* of these generations; last: UINT64_MAX yet */
	uint64_t bytes, size;                  /* charged, and there */
	uint32_t device, index;
	enum core_backing backing;
	enum segment_state state;
	bool is_block, is_bad, is_verifying, is_stale, is_remnant;
};

struct reference_lease {
	uint64_t id; /* 0: free */
	uint64_t client, model, generation;
	bool is_mapped, is_ghost;
	bool has_blocks; /* as they lie; else the images alone */
	bool is_remnant; /* has what was made before a restart, and nothing else */
};

struct reference_model {
	uint64_t id; /* 0: free */
	uint64_t generation, last_generation;
	uint32_t n_copies; /* of the published generation */
	uint32_t n_images; /* of them no blocks */
	enum core_backing backing;
	uint64_t placement;
	uint32_t placed_uid;
	bool has_host;
	bool is_published; /* in this step */
	bool is_overdue;   /* its blocks should leave */
	int64_t content;   /* mtime of the published one, counts contents */
	uint32_t owner;    /* uid */
	struct core_file_key key;
};

struct reference_wish {
	uint64_t model; /* 0: free */
	uint32_t uid;
	bool pin, keep;
	uint64_t pin_until_ns, keep_until_ns, ttl_ns;
	int16_t priority;
	bool is_of_load; /* said by loads alone, none granted so far: it goes if they fail */
};

struct reference_job {
	uint64_t id; /* 0: free */
	uint64_t model;
	struct core_file_key key;
	struct core_need needs[REFERENCE_NEEDS];
	uint32_t n_needs;
	uint64_t generation; /* that it fills */
	uint64_t placement;
	bool with_host;
	bool is_doubtful; /* it began with looking at the bytes: they are not the same */
	bool is_of_file;  /* the file itself is to serve */
	bool is_free;     /* likewise, and nothing is charged */
	uint64_t number;  /* of all that were seen */
	uint64_t step;    /* in which it was: of those of the same one none is known as the older */
	enum core_backing wanted;
	bool was_over;  /* in this step: it, or an older one of its user, would exceed the share */
	bool is_over;   /* when the step began, and when it was admitted */
	bool is_within; /* when the step began */
	bool is_move;   /* of what is resident */
	bool may_be_file;
	bool is_waiting;  /* for room */
	bool is_admitted; /* in this step */
};

/* Room that is reserved, or asked for. */
struct reference_room {
	uint64_t client; /* 0: free */
	uint64_t id;     /* 0: it waits */
	uint64_t bytes, ttl_ns, end_ns;
	uint32_t device, request;
};

struct reference_client {
	uint64_t id; /* 0: free */
	uint32_t uid;
	bool is_admin, is_connected, is_process_gone;
};

struct reference {
	const struct core *core; /* for the comparison at the end of a step only */
	struct core_config config;
	uint64_t now_ns;
	uint64_t budget[CORE_MAX_DEVICES];
	bool has_budget[CORE_MAX_DEVICES]; /* one was said */
	bool is_lost[CORE_MAX_DEVICES];
	uint64_t drained_after[CORE_MAX_DEVICES]; /* jobs seen when it began; UINT64_MAX: not */
	uint64_t n_jobs_seen, n_steps;
	struct reference_copy copies[REFERENCE_COPIES];
	uint64_t lost[REFERENCE_COPIES]; /* READY ones, in this step */
	uint32_t n_lost;
	struct reference_lease leases[REFERENCE_LEASES];
	struct reference_model models[REFERENCE_MODELS];
	struct reference_wish wishes[REFERENCE_WISHES];
	struct reference_job jobs[REFERENCE_JOBS]; /* in the order of their arrival */
	uint32_t n_jobs;
	struct reference_job begun[REFERENCE_JOBS]; /* in this step, not yet in jobs */
	uint32_t n_begun;
	struct reference_client clients[REFERENCE_CLIENTS];
	struct reference_room rooms[REFERENCE_ROOMS];
	struct core_event event;   /* of this step */
	struct core_policy policy; /* its policy, and its other borrowed parts */
	struct core_file_key key;
	int expected;                  /* code of the answer in this step; -1: any */
	uint64_t evicted_for, refused; /* models, in this step */
	uint64_t replaced;             /* model whose inode is another file by now */
	uint64_t quiet_until_ns;
	bool is_shut;
};

void reference_init(struct reference *reference, const struct core *core,
		    const struct core_config *config);
void reference_open(struct reference *reference, uint64_t client, uint32_t uid, bool is_admin);
/* Has the uid a place for one more? */
bool reference_may_open(const struct reference *reference, uint32_t uid, bool is_admin);
/* NULL when it is over, or not yet known. */
const struct reference_job *reference_job_of(struct reference *reference, uint64_t id);
/* Each returns NULL, or what is wrong. */
const char *reference_before(struct reference *reference, const struct core_event *event);
/* What an adopting event made; 0: nothing. */
void reference_made(struct reference *reference, uint64_t id);
const char *reference_action(struct reference *reference, const struct core_action *action);
const char *reference_after(struct reference *reference, const struct core_event *event);

#endif
