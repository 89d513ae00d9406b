/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The configuration as an immutable snapshot. Later layers win: distorchd.conf of
 * /usr/lib/distorchd and /etc/distorchd; distorchd.conf.d/ (every .conf) of /usr/lib, /run and /etc
 * by name (of two with one name the later folder's counts, as with systemd); for a user's
 * daemon the same two of $XDG_CONFIG_HOME/distorchd; what was saved at run time (state.json);
 * DISTORCHD_SECTION_KEY of the environment; --set section.key=value. Each value knows where it
 * came from. One table in config_table.c describes every key. Blocks (reads files); the
 * snapshot is read by any thread.
 */
#ifndef DAEMON_CONFIG_H
#define DAEMON_CONFIG_H

#include "base/os/log.h"

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

struct config_saved; /* config_saved.h */
struct err;

enum config_size_kind { CONFIG_SIZE_AUTO, CONFIG_SIZE_PERCENT, CONFIG_SIZE_BYTES };

/* "auto", "40%" or "48G" */
struct config_size {
	enum config_size_kind kind;
	uint32_t milli_pct; /* PERCENT: thousandths of a percent */
	uint64_t bytes;     /* BYTES */
};

enum config_backing { CONFIG_BACKING_AUTO, CONFIG_BACKING_IMAGE, CONFIG_BACKING_FILE };
enum config_verify { CONFIG_VERIFY_SIZE };

enum config_listen_kind {
	CONFIG_LISTEN_OFF,
	CONFIG_LISTEN_AUTO,
	CONFIG_LISTEN_PATH, /* the text itself */
	CONFIG_LISTEN_TCP4,
	CONFIG_LISTEN_TCP6,
};

struct config_listen {
	enum config_listen_kind kind;
	uint16_t port;
	uint8_t address[16]; /* of the loopback device, in network order; 4 bytes of TCP4 */
};

/* All strings and lists are the snapshot's. */
struct config {
	struct config_size memory_ram;
	struct config_size memory_reserve;
	bool memory_hugepages;
	bool memory_lock;
	enum config_backing memory_backing;
	uint64_t memory_idle_evict_ns; /* 0: only under pressure */
	bool memory_pressure_evict;
	const char *gpu_devices;       /* all, none, or UUIDs with commas */
	struct config_size gpu_budget; /* see config_find_override */
	uint64_t gpu_linger_ns;
	bool gpu_share; /* between processes of one user */
	uint32_t sim_count;
	uint64_t sim_memory_bytes; /* see config_find_override */
	uint64_t sim_link_bytes;   /* a second */
	uint64_t sim_latency_ns;
	bool sim_peers;
	uint32_t limits_connections;
	uint32_t limits_connections_per_user;
	uint64_t limits_pending_output;
	uint32_t limits_loads_per_user;
	struct config_size limits_ram_per_user;
	const char *access_group;
	const char *access_control;
	enum config_verify load_verify;
	uint32_t load_threads; /* 0: auto */
	bool load_direct_io;
	bool restart_keep;
	enum log_level log_level;
	enum log_format log_format;
	const char *metrics_listen;     /* see config_parse_listen */
	const char *const *warm_models; /* paths, in the order they were given */
	uint32_t n_warm_models;
	struct config_setting *settings; /* what config_next walks */
	uint32_t n_settings;
};

struct config_request {
	const char *path;        /* read this file instead of the standard ones; NULL: those */
	const char *root;        /* before /usr/lib, /etc and /run, in tests; NULL: none */
	const char *const *sets; /* "section.key=value" */
	uint32_t n_sets;
	bool is_user;                     /* read $XDG_CONFIG_HOME (or ~/.config) too */
	const char *const *environment;   /* NULL-terminated; NULL: the process's own */
	const struct config_saved *saved; /* NULL: nothing */
};

/*
 * Read all layers. The first fault ends it: err names file and line (or the variable, or the
 * argument), the key, and the nearest key that exists. Returns 0; -WIRE_BAD_ARGUMENT;
 * -WIRE_UNSUPPORTED for a value that a later version brings; -WIRE_IO for a file that is
 * there and cannot be read; -WIRE_NO_MEMORY.
 */
int config_load(const struct config_request *request, struct config **ret, struct err *err);

/* NULL is fine. Returns NULL. */
struct config *config_free(struct config *config);

/* One effective value. Texts are the snapshot's; a list gives one item a value. */
struct config_item {
	const char *key;    /* section.key */
	const char *value;  /* as it was written */
	const char *source; /* "default", "FILE:LINE", what was saved: its FILE, "environment",
			     * "command line"; of one that is_idle with that said behind it */
	bool is_idle;       /* set by somebody, but without effect in this version */
};

/* Walk in the order of the reference: start with *cursor = 0; false at the end. */
bool config_next(const struct config *config, uint32_t *cursor, struct config_item *ret);

/*
 * The value for one device of "gpu.budget" or "sim.memory" (`budget.GPU-1234 = 20G`, in any case);
 * false when it has none of its own. Where it is set by both names, the layer that ranks higher
 * counts, of one layer the UUID; that may be NULL.
 */
bool config_find_override(const struct config *config, const char *key, const char *uuid,
			  const char *name, struct config_size *ret);

/* Of 'total', to the byte; PERCENT and BYTES alone. */
uint64_t config_size_of(const struct config_size *size, uint64_t total);

/* "auto", "off" or "", "/a/path", "127.0.0.1:9477", "[::1]:9477". 0 or -WIRE_BAD_ARGUMENT. */
int config_parse_listen(const char *text, struct config_listen *ret, struct err *err);

/* The files that config_load reads, in its order, one a line; those of the standard ones that are
 * not there with that said behind them. As config_load. */
int config_print_files(const struct config_request *request, FILE *file, struct err *err);

/* Every key with its default and what it means, as a configuration file would have it. */
void config_print_reference(FILE *file);

#endif
