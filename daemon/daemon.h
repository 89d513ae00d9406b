/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The corridor: owns the loop, the core, the store, the loader and the server, and is the
 * only place where two rooms meet. One turn: mailbox or request -> core_step -> execute.
 * dispatch.c turns messages into events and answers into messages; execute.c carries out
 * what the core decided. Everything here runs on the loop and never blocks.
 */
#ifndef DAEMON_DAEMON_H
#define DAEMON_DAEMON_H

#include "base/err.h"

#include <stdbool.h>
#include <stdint.h>
#include <uv.h>

#include "daemon/clients.h"
#include "daemon/core/core.h"
#include "daemon/history.h"
#include "daemon/metrics.h"
#include "daemon/store.h"
#include "daemon/workers.h"
#include "proto/wire.h"

#define DAEMON_MAX_FOLLOWING    64
#define DAEMON_MAX_MODELS       4096
#define DAEMON_MAX_QUEUED       512 /* loads of one uid that wait for their turn */
#define DAEMON_MAX_LEASES       65536
#define DAEMON_MAX_WISHES       16384
#define DAEMON_MAX_RESERVATIONS 256
#define DAEMON_MAX_RECALLS      WIRE_REQUESTS_IN_FLIGHT /* unloads of one uid that wait for leases */

struct config;
struct config_request;
struct errands;
struct host_memory;
struct file;
struct loader;
struct mailbox;
struct persist;
struct placement;
struct pressure;
struct reload;
struct saved;
struct server;
struct warm;
struct watch;

struct daemon_options {
	const struct config *config;          /* borrowed for the daemon's life */
	const struct config_request *request; /* how it was read; likewise */
	struct saved *saved;                  /* likewise */
	const char *socket_path;              /* NULL: the configured or default one */
	const struct err *config_fault; /* why 'config' is the last good one; NULL: it is not */
	bool is_user;
};

struct daemon {
	uv_loop_t loop;
	uv_poll_t mailbox_poll, alarm_poll;
	uv_timer_t watchdog, gather_timer, recall_timer;
	uv_signal_t signals[3];            /* SIGTERM, SIGINT, SIGHUP */
	const struct config *config;       /* the snapshot now */
	const struct config *start_config; /* what was in effect at the start */
	struct config *reloaded;           /* 'config' after a reload; owner: daemon */
	struct err config_fault;           /* why not the files' of now; code 0: they are */
	const struct config_request *request;
	struct reload *reload; /* under way */
	struct saved *saved;
	struct errands *errands;
	struct warm *warm;
	struct core *core;
	void *core_memory; /* owner: daemon */
	struct store *store;
	struct placement *placements; /* uthash, by id */
	uint32_t max_placements;      /* then those of no use are forgotten */
	struct loader *loader;
	struct mailbox *mailbox;
	struct server *server;
	struct scraper *scraper; /* NULL: metrics are fetched nowhere */
	struct persist *persist;
	struct pressure *pressure;
	struct watch *watch;
	struct list verifications; /* verification::link (verify.c) */
	uint64_t last_verification;
	struct workers *workers;
	uint64_t pressure_ns; /* when memory was last looked at for pressure; 0: never */
	struct history history;
	struct client *clients;         /* newest first; owner: daemon */
	int alarm;                      /* rings at alarm_ns */
	uint64_t deadline_ns, alarm_ns; /* of the core, on clock_boot_ns; UINT64_MAX: none */
	uint64_t stepped_ns;            /* likewise: what it takes for now */
	uint64_t epoch, started_ns;
	uint32_t n_devices;
	struct known_device devices[CORE_MAX_DEVICES]; /* the first is the host */
	struct device *host;
	uint64_t host_total_bytes;
	uint64_t reserve_bytes;
	struct metrics metrics;
	const struct file *presented; /* during the step of a load or attach */
	struct wire_str presented_name;
	uint64_t n_brought;                                /* files by loads */
	struct core_event following[DAEMON_MAX_FOLLOWING]; /* to be stepped after this step */
	uint32_t n_following;
	uint64_t recalls_seen;  /* core_n_let_go at the last look; UINT64_MAX: look again */
	bool has_recalls;       /* an unload's answer waits (recall.h) */
	bool is_taking_results; /* of the loader: it is looked at once after them */
	bool is_stepping, is_stopping, has_loop;
	bool is_stopped; /* handles are being closed */
	int exit_code;
};

/* Start everything; the socket accepts when it returns. Returns 0 or a negative wire code. */
int daemon_init(struct daemon *daemon, const struct daemon_options *options, struct err *err);

/* Serve until SIGTERM, SIGINT or `shutdown`. Returns the exit code. */
int daemon_run(struct daemon *daemon);

void daemon_fini(struct daemon *daemon);

/* Begin an orderly end; a second call ends at once. */
void daemon_stop(struct daemon *daemon);

/* Give the core one event and do all that follows. 'event' has type and fields; the time is
 * filled in here, and is clock_boot_ns. Returns update.ret_id of the first page. */
uint64_t daemon_step(struct daemon *daemon, struct core_event *event);

/* For the step that follows: who a new model is (borrowed for that step). */
void daemon_present(struct daemon *daemon, const struct file *file);
void daemon_present_name(struct daemon *daemon, struct wire_str name);
/* What is known of a model; made from what was presented when the core has just made it. */
struct model_info *daemon_know_model(struct daemon *daemon, uint64_t id);

/* What may be taken now beyond the budget's word: less the reserve of the configuration. */
uint64_t daemon_available(const struct daemon *daemon, uint64_t host_available);

uint64_t daemon_choose_budget(const struct daemon *daemon, const struct host_memory *memory);
uint64_t daemon_choose_reserve(const struct daemon *daemon, const struct host_memory *memory);

/* Step this too, after the running step. False: too many wait already. */
bool daemon_follow(struct daemon *daemon, const struct core_event *event);

/* End a lease that could not be handed over, after the running step. */
void daemon_revoke(struct daemon *daemon, uint64_t client, uint64_t lease);

/* Watch the client's process, so that bytes it maps are known to be free when it is gone. */
void daemon_watch_client(struct daemon *daemon, struct client *client);
/* Likewise by a pidfd, which is taken over. */
void daemon_watch_process(struct daemon *daemon, struct client *client, int pidfd);

void daemon_forget_client(struct daemon *daemon, uint64_t id);
struct client *daemon_find_client(const struct daemon *daemon, uint64_t id);

#endif
