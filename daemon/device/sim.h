/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Simulated devices, for machines without a GPU and for tests: memory is memfds out of a pool of
 * a fixed size, and what goes over the link takes the time that it would take on such a link.
 */
#ifndef DEVICE_SIM_H
#define DEVICE_SIM_H

#include <stdbool.h>
#include <stdint.h>

#define SIM_MAX_DEVICES 16

extern const struct device_ops sim_device_ops;

struct sim_config {
	uint64_t memory_bytes;
	uint64_t granularity; /* a power of two, at least a page */
	uint64_t bytes_per_s; /* of the link, each way; 0: as fast as it goes */
	uint64_t latency_ns;
	bool has_peers; /* may be copied to from another simulated device, and the other way */
};

/* Describe sim:0, sim:1, ...; others there are not. Before the first is opened. */
void sim_configure(const struct sim_config *configs, uint32_t n_configs);

#ifdef DISTORCH_TESTING
struct extent;

/* What may be made to fail: the members of struct device_ops. */
enum sim_call {
	SIM_CALL_INFO,
	SIM_CALL_ALLOC,
	SIM_CALL_FILL,
	SIM_CALL_READ,
	SIM_CALL_SEAL,
	SIM_CALL_RELEASE,
	SIM_CALL_EXPORT,
	SIM_CALL_IMPORT,
	SIM_CALL_COPY,
	SIM_N_CALLS
};

struct sim_fault {
	uint64_t nth; /* from now on; 1: the next */
	int code;     /* enum wire_code */
	bool is_forever;
	bool hangs; /* it does not return at all */
};

void sim_fault_set(enum sim_call call, struct sim_fault fault);
void sim_fault_clear(void);
/* So much of each device is taken by others from now on. */
void sim_set_foreign(uint64_t bytes);
/* Flip one byte of a sealed extent. False: there is no such byte. */
bool sim_corrupt(struct extent *extent, uint64_t offset);
#endif

#endif
