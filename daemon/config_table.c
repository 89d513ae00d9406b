/* SPDX-License-Identifier: Apache-2.0 */
/* Every key with its default and what it means. See config_table.h, config.h. */
#include "daemon/config_table.h"

#include <stdio.h>
#include <string.h>

#include "daemon/config.h"

#define FIELD(name)          .offset = offsetof(struct config, name)
#define BETWEEN(least, most) .min = (least), .max = (most), .range = "from " #least " to " #most
#define ABOVE_0              .min = 1, .max = UINT64_MAX, .range = "more than 0"
#define ANY_SIZE             .min = 0, .max = UINT64_MAX, .range = "any"
#define WORDS(list, words)   .choices = (list), .range = (words)

static const struct config_choice yes_no[] = {{"yes", 1}, {"no", 0},  {"true", 1}, {"false", 0},
					      {"on", 1},  {"off", 0}, {NULL, 0}};
static const struct config_choice auto_off[] = {{"auto", 1}, {"off", 0}, {NULL, 0}};
static const struct config_choice user_off[] = {{"user", 1}, {"off", 0}, {NULL, 0}};
static const struct config_choice backings[] = {{"auto", CONFIG_BACKING_AUTO},
						{"image", CONFIG_BACKING_IMAGE},
						{"file", CONFIG_BACKING_FILE},
						{NULL, 0}};
static const struct config_choice checks[] = {{"size", CONFIG_VERIFY_SIZE},
					      {"sample", CONFIG_CHOICE_LATER},
					      {"full", CONFIG_CHOICE_LATER},
					      {NULL, 0}};
static const struct config_choice levels[] = {{"error", LOG_LEVEL_ERROR},
					      {"warning", LOG_LEVEL_WARNING},
					      {"notice", LOG_LEVEL_NOTICE},
					      {"info", LOG_LEVEL_INFO},
					      {"debug", LOG_LEVEL_DEBUG},
					      {NULL, 0}};
static const struct config_choice formats[] = {{"auto", LOG_FORMAT_AUTO},
					       {"journal", LOG_FORMAT_JOURNAL},
					       {"text", LOG_FORMAT_TEXT},
					       {"json", LOG_FORMAT_JSON},
					       {NULL, 0}};

#define SIZE     .kind = CONFIG_KIND_SIZE
#define BYTES    .kind = CONFIG_KIND_BYTES
#define DURATION .kind = CONFIG_KIND_DURATION
#define COUNT    .kind = CONFIG_KIND_COUNT
#define FLAG     .kind = CONFIG_KIND_FLAG
#define CHOICE   .kind = CONFIG_KIND_CHOICE
#define TEXT     .kind = CONFIG_KIND_TEXT
#define LISTEN   .kind = CONFIG_KIND_LISTEN
#define LIST     .kind = CONFIG_KIND_LIST
#define LATER    .is_later = true
#define YES_NO   FLAG, WORDS(yes_no, "yes, no")

/* clang-format off: one row a key, its default, what it means */
const struct config_row config_rows[] = {
	{"memory", "ram", SIZE, FIELD(memory_ram), .has_auto = true, ABOVE_0,
	 .default_value = "auto",
	 .doc = "Host memory for models: auto, a share (40%) or a size (48G)."},
	{"memory", "reserve", SIZE, FIELD(memory_reserve), .has_auto = true, ANY_SIZE,
	 .default_value = "auto",
	 .doc = "Never let the memory available to others fall below this; auto is 12%, at least 4G."},
	{"memory", "hugepages", FLAG, FIELD(memory_hugepages), WORDS(auto_off, "auto, off"),
	 .default_value = "auto", .doc = "Try for 2 MiB pages: auto or off."},
	{"memory", "lock", YES_NO, FIELD(memory_lock), .default_value = "no",
	 .doc = "Lock models in RAM, so that they are never swapped out; needs LimitMEMLOCK."},
	{"memory", "backing", CHOICE, FIELD(memory_backing), WORDS(backings, "auto, image, file"),
	 .default_value = "auto",
	 .doc = "What holds a model: a sealed image, the file's own page cache, or auto: the file "
		"where it is warm and nobody wants it to stay."},
	{"memory", "idle-evict", DURATION, FIELD(memory_idle_evict_ns), .default_value = "0",
	 .doc = "Evict what nobody used for so long; 0 is only when the room is needed."},
	{"memory", "pressure-evict", YES_NO, FIELD(memory_pressure_evict), .default_value = "yes",
	 .doc = "Evict what is idle when the machine runs short of memory."},
	{"gpu", "devices", TEXT, FIELD(gpu_devices), .default_value = "all",
	 .doc = "Which GPUs may be used: all, none, or UUIDs with commas between."},
	{"gpu", "budget", SIZE, FIELD(gpu_budget), .has_overrides = true, ABOVE_0,
	 .default_value = "85%",
	 .doc = "Memory for models on each GPU; budget.GPU-1234 = 20G is for that one alone, and so is budget.sim:0."},
	{"gpu", "linger", DURATION, FIELD(gpu_linger_ns), .default_value = "5m",
	 .doc = "How long a copy stays on a GPU after its last lease, then it moves to RAM; 0 is until "
		"the room is needed."},
	{"gpu", "share", FLAG, FIELD(gpu_share), WORDS(user_off, "user, off"),
	 .default_value = "user", LATER,
	 .doc = "Share copies on a GPU between processes of one user: user or off; never between users."},
	{"sim", "count", COUNT, FIELD(sim_count), BETWEEN(0, 15), .default_value = "0",
	 .doc = "Simulated devices, sim:0 and on: memory in processes of their own, for machines without a GPU."},
	{"sim", "memory", BYTES, FIELD(sim_memory_bytes), .has_overrides = true, ABOVE_0,
	 .default_value = "64M", .doc = "Memory of each; memory.1 = 128M is for sim:1 alone."},
	{"sim", "link", BYTES, FIELD(sim_link_bytes), ABOVE_0, .default_value = "12G",
	 .doc = "Bytes a second to and from each."},
	{"sim", "latency", DURATION, FIELD(sim_latency_ns), .default_value = "10us",
	 .doc = "Time each operation takes besides."},
	{"sim", "peers", YES_NO, FIELD(sim_peers), .default_value = "yes",
	 .doc = "They can copy to each other directly."},
	{"limits", "connections", COUNT, FIELD(limits_connections), BETWEEN(1, 65536),
	 .default_value = "1024", .doc = "Connections at a time."},
	{"limits", "connections-per-user", COUNT, FIELD(limits_connections_per_user),
	 BETWEEN(1, 65536), .default_value = "64", .doc = "Connections of one user at a time."},
	{"limits", "pending-output", BYTES, FIELD(limits_pending_output),
	 BETWEEN(131072, 1073741824), .default_value = "1M",
	 .doc = "Answers that wait for one connection; over it, the connection is closed."},
	{"limits", "loads-per-user", COUNT, FIELD(limits_loads_per_user), BETWEEN(1, 1000),
	 .default_value = "2", .doc = "Loads of one user at a time; further ones wait."},
	{"limits", "ram-per-user", SIZE, FIELD(limits_ram_per_user), ABOVE_0,
	 .default_value = "80%",
	 .doc = "Share of memory.ram (80%, 20G; 100%: all) for one user while others wait, "
		"and for his reservations ever."},
	{"access", "group", TEXT, FIELD(access_group), .default_value = "distorchd",
	 .doc = "Group that may connect to the system's daemon."},
	{"access", "control", TEXT, FIELD(access_control), .default_value = "root",
	 .doc = "User who may administer, besides root and the daemon's own."},
	{"load", "verify", CHOICE, FIELD(load_verify), WORDS(checks, "size"),
	 .default_value = "size",
	 .doc = "How a copy that is there is compared with its file: size (and times)."},
	{"load", "threads", COUNT, FIELD(load_threads), .has_auto = true, BETWEEN(1, 64),
	 .default_value = "auto", .doc = "Threads that read one file: auto or a number."},
	{"load", "direct-io", FLAG, FIELD(load_direct_io), WORDS(auto_off, "auto, off"),
	 .default_value = "auto",
	 .doc = "Read around the page cache where that works: auto or off."},
	{"restart", "keep", YES_NO, FIELD(restart_keep), .default_value = "yes",
	 .doc = "Models outlive the daemon, where systemd or distorchd-hold keeps them."},
	{"log", "level", CHOICE, FIELD(log_level),
	 WORDS(levels, "error, warning, notice, info, debug"), .default_value = "info",
	 .doc = "What is worth a line: error, warning, notice, info or debug."},
	{"log", "format", CHOICE, FIELD(log_format), WORDS(formats, "auto, journal, text, json"),
	 .default_value = "auto",
	 .doc = "How: auto (the journal where there is one), journal, text or json."},
	{"metrics", "listen", LISTEN, FIELD(metrics_listen), .default_value = "auto",
	 .doc = "Where HTTP gives /metrics: a path, 127.0.0.1:9477 or the like, off; auto is metrics.sock beside the system's daemon's socket."},
	{"warm", "model", LIST, FIELD(warm_models), .default_value = "",
	 .doc = "A model to load at start; one a line, an empty value forgets the ones before."},
};
/* clang-format on */

const uint32_t config_n_rows = sizeof config_rows / sizeof config_rows[0];

_Static_assert(sizeof config_rows / sizeof config_rows[0] <= CONFIG_MAX_ROWS, "rows");

void config_print_reference(FILE *file)
{
	const char *section = "";

	for (uint32_t i = 0; i < config_n_rows; i++) {
		const struct config_row *row = &config_rows[i];

		if (strcmp(row->section, section) != 0) {
			section = row->section;
			(void)fprintf(file, "%s[%s]\n", i == 0 ? "" : "\n", section);
		}
		(void)fprintf(file, "# %s%s\n%s%s = %s\n", row->doc,
			      row->is_later ? " (No effect in this version.)" : "",
			      row->kind == CONFIG_KIND_LIST ? "#" : "", row->key,
			      row->kind == CONFIG_KIND_LIST ? "/srv/models/model.safetensors"
							    : row->default_value);
	}
}
