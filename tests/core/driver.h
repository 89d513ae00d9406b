/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Drives a core through a history made of bytes: clients that come, ask, map and die, files
 * that change, devices that go, and results that arrive in any order or as failures. After
 * every step the core's own check, the books kept here (one answer a request, files closed
 * once, clients forgotten once) and the reference model must agree. A fault prints where it
 * happened and aborts. The same body serves the random histories and the fuzzer.
 */
#ifndef TESTS_CORE_DRIVER_H
#define TESTS_CORE_DRIVER_H

#include "tests/core/reference.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "daemon/core/core.h"

#define DRIVER_CLIENTS 6 /* places for connections; each is opened again after its end */
#define DRIVER_INODES  7
#define DRIVER_DEVICES 3
#define DRIVER_BLOCKS  3
#define DRIVER_PENDING 64
#define DRIVER_BAG     96
#define DRIVER_FILES   8192
#define DRIVER_KNOWN   32

struct driver_client {
	uint64_t id; /* 0: the place is free */
	uint32_t uid;
	bool is_admin, is_connected, is_alive, is_forgotten;
};

/* A result that the loader still owes. */
struct driver_result {
	enum core_action_type type;
	uint64_t job, segment, model;
	uint32_t inode;
	struct core_file_key seen; /* the file when the work was begun */
	uint64_t placement;        /* headers: that is asked for */
	bool with_host;
};

/* How the copies of a job's generation, or of a model's published one, lie. */
struct driver_layout {
	uint64_t id; /* of the job or model; 0: free */
	uint64_t placement;
	struct core_file_key key;
	bool with_host, is_known;
};

struct driver_pending {
	uint64_t client;
	uint32_t request;
	enum core_event_type kind;
	uint32_t inode;    /* index, of a load and an attach by file */
	int64_t presented; /* mtime, which counts the contents */
	uint64_t placement;
	bool is_recalling; /* a reserve that asks others to let go */
};

struct driver {
	const char *label; /* of the history, for messages */
	uint64_t seed;
	const uint8_t *bytes;
	size_t size, at;
	uint64_t n_steps;
	void *memory;
	struct core *core;
	struct core_config config;
	struct reference reference;
	uint64_t now_ns;
	struct driver_client clients[DRIVER_CLIENTS];
	struct core_file_key keys[DRIVER_INODES];
	struct driver_pending pending[DRIVER_PENDING];
	uint32_t n_pending;
	struct driver_layout asked[DRIVER_KNOWN], published[DRIVER_KNOWN]; /* of jobs; models */
	uint32_t n_asked, n_published;
	struct driver_result bag[DRIVER_BAG];
	uint32_t n_bag;
	uint8_t files[DRIVER_FILES]; /* inode index + 1 while open */
	uint32_t n_files;
	/* Ids seen, stale ones too. */
	uint64_t leases[DRIVER_KNOWN], models[DRIVER_KNOWN], reservations[DRIVER_KNOWN];
	uint32_t n_leases, n_models, n_reservations;
	uint32_t last_request;
	uint64_t quiet_until_ns;      /* until then loads may wait with nothing under way */
	uint64_t counts[EV_N_VALUES]; /* events sent, so that a test can see what was reached */
	uint64_t replies[32];         /* by code */
	uint64_t limits[CORE_LIMIT_N_VALUES];
	uint64_t n_left;    /* models that gave their place to another */
	uint64_t n_returns; /* models that were to come back and began to */
	uint64_t notes[CORE_NOTE_N_VALUES];
	bool is_shut;
};

/* Run the whole history and its end: everybody dies, everything owed comes in. */
void driver_run(struct driver *driver, const char *label, uint64_t seed, const uint8_t *bytes,
		size_t size);

#endif
