/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A loader over a host and two more devices, and generations of the model of spread_model.h: what
 * is filled, from what, and whether every byte came out. The state of a test says what the devices
 * are: "host" (NULL), "sim", "worker" (simulated, in a process of their own) or "peers" (likewise,
 * and they copy to each other).
 */
#ifndef TESTS_SPREAD_H
#define TESTS_SPREAD_H

#include "base/os/sys.h"
#include "tests/support/baseline.h"
#include "tests/support/scratch.h"
#include "tests/support/unit.h"
#include "tests/unit/daemon/load/spread_model.h"

#include <poll.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/device/sim.h"
#include "daemon/load/image_set.h"
#include "daemon/load/loader.h"
#include "proto/gen/wire_code.h"

#define SIM_BYTES   (64 * SPREAD_MIB)
#define SIM_GRANULE (2 * SPREAD_MIB)

#define JOB        7
#define WAIT_MS    20000
#define N_DEVICES  3 /* the host, and two others */
#define FILE_BASE  100U
#define BLOCK_BASE 200U

/* One generation and what its copies are. */
struct generation {
	uint8_t places[SPREAD_BLOCKS];
	struct image_set *set;
	struct load_result *images[SPREAD_FILES];
	struct load_result *blocks[SPREAD_BLOCKS];
	struct load_result *table;
};

extern struct spread {
	struct baseline before;
	uint32_t n_threads;
	const char *subject;
	struct device *devices[N_DEVICES];
	pid_t workers[N_DEVICES];
	struct sim_config sims[N_DEVICES]; /* sim:0 is devices[1] */
	struct mailbox *box;
	struct loader *loader;
	struct spread_model model;
	struct tensor_map *map;
} spread;

/* What 'earlier' has, as sources of the next generation; 'is_kept' of all its images. */
struct sources {
	struct earlier_image images[SPREAD_FILES];
	struct extent *blocks[SPREAD_BLOCKS];
};

struct load_result *spread_next(void);
struct tensor_map *spread_read_header(bool by_tensor);
/* One of the other devices, anew where it was there before. */
void spread_attach(uint32_t index);
/* What: daemon/device/worker.h has the words. */
void spread_let_fail(uint32_t index, const char *what);
void spread_kill_worker(uint32_t index);
void spread_start_loader(uint64_t stall_ns);
int spread_setup(void **state);
int spread_teardown(void **state);
void generation_begin(struct generation *generation, struct image_set_request *request);
void generation_submit_block(const struct generation *generation, uint32_t block);
/* Everything that 'earlier' does not keep. Returns how many results there will be. */
uint32_t generation_submit(const struct generation *generation,
			   const struct earlier_image *earlier);
/* Returns how many failed. */
uint32_t generation_collect(struct generation *generation, uint32_t n_fills);
void generation_make_table(struct generation *generation);
void generation_fill(struct generation *generation, struct image_set_request *request);
void generation_fini(struct generation *generation);
/* Of blocks by the names of one of their tensors: "b.0.w=1 top=2"; the others are on the host. */
void generation_place(struct generation *generation, const char *text);
/* Of those that there are. */
void generation_check_copies(const struct generation *generation);
/* 'images': of each file, or NULL where there is none. */
void generation_check_table(const struct generation *generation,
			    const struct extent *const images[SPREAD_FILES]);
void generation_check(const struct generation *generation);
void sources_take(const struct generation *earlier, bool is_kept, struct sources *ret);
struct image_set_request sources_request(const struct generation *earlier,
					 const struct sources *sources);
/* Nothing of the files is left that could be read. */
void spread_spoil(void);

#endif
