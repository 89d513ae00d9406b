/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Simulated devices. See sim.h. A link is a moment: until when it is busy. A transfer books its
 * time behind what was booked before and, as with two pinned staging buffers, returns while up
 * to RUN_AHEAD_BYTES of it are still on their way; seal waits for the last byte. The bytes
 * themselves are in the memfd at once. Any thread.
 */
#include "daemon/device/sim.h"

#include "base/checked.h"
#include "base/err.h"
#include "base/list.h"
#include "base/os/clock.h"
#include "base/os/memfd.h"
#include "base/os/sys.h"
#include "base/require.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "daemon/device/device.h"
#include "proto/gen/wire_code.h"

#define RUN_AHEAD_BYTES (2ULL * 32 << 20)
#define COPY_PART_BYTES (8ULL << 20)
#define PART_BYTES      65536 /* for each thread that fills */
#define NS_PER_S        1000000000ULL

enum direction { TO_DEVICE, TO_HOST, N_DIRECTIONS };

/* What the machine has: like a card, it is there whether somebody has opened it or not. */
static struct sim {
	struct sim_config config;
	pthread_mutex_t lock;
	uint64_t used_bytes;               /* of the pool */
	uint64_t busy_until[N_DIRECTIONS]; /* on the monotonic clock */
} sims[SIM_MAX_DEVICES];
static uint32_t n_sims; /* written before the first is opened */

struct sim_device {
	struct device base;
	struct sim *sim;
};

struct sim_extent {
	struct extent base;
	struct sim *sim;
	struct sim *maker;      /* whose memory it is; another's after an import */
	uint64_t charged_bytes; /* of the pool; 0 for an import */
	int fd;                 /* read-write; never leaves this process */
#ifdef DISTORCH_TESTING
	uint8_t *
		memory; /* shared, writable, for sim_corrupt; owner: the extent. NULL until sealed */
#endif
	bool is_sealed;
	uint64_t arrives_ns; /* when the last byte that was filled has arrived; under sim::lock */
};

#ifdef DISTORCH_TESTING
static struct sim_fault faults[SIM_N_CALLS];
static pthread_mutex_t faults_lock = PTHREAD_MUTEX_INITIALIZER;
static uint64_t foreign_bytes;

void sim_fault_set(enum sim_call call, struct sim_fault fault)
{
	(void)pthread_mutex_lock(&faults_lock);
	faults[call] = fault;
	(void)pthread_mutex_unlock(&faults_lock);
}

void sim_fault_clear(void)
{
	(void)pthread_mutex_lock(&faults_lock);
	memset(faults, 0, sizeof faults);
	(void)pthread_mutex_unlock(&faults_lock);
}

void sim_set_foreign(uint64_t bytes)
{
	__atomic_store_n(&foreign_bytes, bytes, __ATOMIC_RELAXED);
}

static uint64_t taken_by_others(void)
{
	return __atomic_load_n(&foreign_bytes, __ATOMIC_RELAXED);
}

static int strike(enum sim_call call, struct err *err)
{
	struct sim_fault *fault = &faults[call];
	bool strikes;
	bool hangs;
	int code;

	(void)pthread_mutex_lock(&faults_lock);
	strikes = fault->nth == 1;
	hangs = fault->hangs;
	code = fault->code;
	if (fault->nth > 1 || (strikes && !fault->is_forever)) {
		fault->nth--;
	}
	(void)pthread_mutex_unlock(&faults_lock);
	if (strikes && hangs) {
		(void)sleep(UINT32_MAX);
	}
	return strikes ? err_set(err, code, "a fault was asked for") : 0;
}
#	define STRIKE(call, err)                           \
		do {                                        \
			int struck = strike((call), (err)); \
			if (struck < 0) {                   \
				return struck;              \
			}                                   \
		} while (0)
#else
#	define STRIKE(call, err) ((void)0)

static uint64_t taken_by_others(void)
{
	return 0;
}
#endif

static struct sim_extent *sim_of(struct extent *extent)
{
	return container_of(extent, struct sim_extent, base);
}

static const struct sim_extent *sim_of_const(const struct extent *extent)
{
	return (const struct sim_extent *)extent; /* base is the first member */
}

static struct sim *sim_of_device(const struct device *device)
{
	return ((const struct sim_device *)device)->sim; /* base is the first member */
}

void sim_configure(const struct sim_config *configs, uint32_t n_configs)
{
	REQUIRE(n_configs <= SIM_MAX_DEVICES);
	for (uint32_t i = 0; i < n_configs; i++) {
		sims[i] = (struct sim){.config = configs[i]};
		(void)pthread_mutex_init(&sims[i].lock, NULL); /* with NULL it does not fail */
	}
	n_sims = n_configs;
}

/* ---- the link ---- */

static void sleep_until(uint64_t mono_ns)
{
	const struct timespec moment = {.tv_sec = (time_t)(mono_ns / NS_PER_S),
					.tv_nsec = (long)(mono_ns % NS_PER_S)};

	while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &moment, NULL) == EINTR) {
	}
}

static uint64_t transfer_ns(uint64_t bytes, uint64_t bytes_per_s)
{
	return bytes_per_s == 0 ? 0
				: (bytes / bytes_per_s) * NS_PER_S +
					  (bytes % bytes_per_s) * NS_PER_S / bytes_per_s;
}

/* When 'bytes' that start now, or behind what is under way, have arrived. */
static uint64_t book(struct sim *sim, enum direction direction, uint64_t bytes,
		     uint64_t bytes_per_s)
{
	const uint64_t now_ns = clock_mono_ns();
	uint64_t *busy_until = &sim->busy_until[direction];
	uint64_t arrives_ns;

	(void)pthread_mutex_lock(&sim->lock);
	*busy_until =
		(*busy_until > now_ns ? *busy_until : now_ns) + transfer_ns(bytes, bytes_per_s);
	arrives_ns = *busy_until + sim->config.latency_ns;
	(void)pthread_mutex_unlock(&sim->lock);
	return arrives_ns;
}

/* The extent's bytes are there at 'arrives_ns' only; wait for what no staging buffer holds. */
static void let_arrive(struct sim_extent *extent, uint64_t arrives_ns, uint64_t bytes_per_s)
{
	struct sim *sim = extent->sim;
	const uint64_t ahead_ns = transfer_ns(RUN_AHEAD_BYTES, bytes_per_s);

	(void)pthread_mutex_lock(&sim->lock);
	if (extent->arrives_ns < arrives_ns) {
		extent->arrives_ns = arrives_ns;
	}
	(void)pthread_mutex_unlock(&sim->lock);
	if (arrives_ns > ahead_ns) {
		sleep_until(arrives_ns - ahead_ns);
	}
}

/* ---- the device ---- */

/* The number in "sim:N", or in what follows it up to 'end'; SIM_MAX_DEVICES for none. */
static uint32_t parse_name(const char *name, char end)
{
	uint32_t number = 0;
	const char *at = name + 4;

	if (strncmp(name, "sim:", 4) != 0 || *at < '0' || *at > '9' ||
	    (at[0] == '0' && at[1] >= '0' && at[1] <= '9')) {
		return SIM_MAX_DEVICES;
	}
	for (; *at >= '0' && *at <= '9' && number < SIM_MAX_DEVICES; at++) {
		number = number * 10 + (uint32_t)(*at - '0');
	}
	return *at == end && number < n_sims ? number : SIM_MAX_DEVICES;
}

static uint32_t sim_probe(char (*names)[DEVICE_NAME_SIZE], uint32_t max_names)
{
	for (uint32_t i = 0; i < n_sims && i < max_names; i++) {
		(void)snprintf(names[i], DEVICE_NAME_SIZE, "sim:%" PRIu32, i);
	}
	return n_sims;
}

static int sim_open(const char *name, struct device **ret, struct err *err)
{
	const uint32_t number = parse_name(name, '\0');
	struct sim_device *device;

	if (number >= n_sims) {
		return err_set(err, WIRE_NOT_FOUND,
			       "there is no simulated device \"%s\"; sim.count makes %" PRIu32,
			       name, n_sims);
	}
	device = sys_calloc(1, sizeof *device);
	if (device == NULL) {
		return err_set(err, WIRE_NO_MEMORY, "no memory to open %s", name);
	}
	device->sim = &sims[number];
	*ret = &device->base;
	return 0;
}

static void sim_close(struct device *device)
{
	free(container_of(device, struct sim_device, base));
}

static void uuid_of(const struct sim *sim, char uuid[DEVICE_UUID_SIZE])
{
	(void)snprintf(uuid, DEVICE_UUID_SIZE, "SIM-00000000-0000-4000-8000-%012td", sim - sims);
}

static int sim_info(const struct device *device, struct device_info *ret, struct err *err)
{
	const struct sim *sim = sim_of_device(device);

	(void)err;
	STRIKE(SIM_CALL_INFO, err);
	*ret = (struct device_info){.total_bytes = sim->config.memory_bytes,
				    .granularity = sim->config.granularity,
				    .product = "Simulated device",
				    .foreign_bytes = taken_by_others(),
				    .bytes_per_s = sim->config.bytes_per_s};
	uuid_of(sim, ret->uuid);
	for (uint32_t i = 0; sim->config.has_peers && i < n_sims; i++) {
		const uint64_t theirs = sims[i].config.bytes_per_s;
		struct device_peer *peer = &ret->peers[ret->n_peers];

		if (&sims[i] != sim && sims[i].config.has_peers) {
			uuid_of(&sims[i], peer->uuid);
			peer->bytes_per_s = theirs != 0 && theirs < ret->bytes_per_s
						    ? theirs
						    : ret->bytes_per_s;
			ret->n_peers++;
		}
	}
	return 0;
}

static uint64_t sim_charge(const struct device *device, uint64_t bytes)
{
	uint64_t charged = UINT64_MAX; /* more than any budget: what cannot be rounded is refused */

	(void)checked_round_up(bytes, sim_of_device(device)->config.granularity, &charged);
	return charged;
}

/* ---- memory ---- */

static int take_from_pool(struct sim *sim, uint64_t bytes, struct err *err)
{
	const uint64_t foreign = taken_by_others();
	const uint64_t ours =
		foreign < sim->config.memory_bytes ? sim->config.memory_bytes - foreign : 0;
	uint64_t free_bytes;

	(void)pthread_mutex_lock(&sim->lock);
	free_bytes = ours > sim->used_bytes ? ours - sim->used_bytes : 0;
	if (bytes <= free_bytes) {
		sim->used_bytes += bytes;
	}
	(void)pthread_mutex_unlock(&sim->lock);
	return bytes <= free_bytes
		       ? 0
		       : err_set(err, WIRE_NO_MEMORY,
				 "out of memory: %" PRIu64 " bytes needed, %" PRIu64 " of %" PRIu64
				 " free on sim:%td",
				 bytes, free_bytes, sim->config.memory_bytes, sim - sims);
}

static void give_to_pool(struct sim *sim, uint64_t bytes)
{
	(void)pthread_mutex_lock(&sim->lock);
	sim->used_bytes -= bytes;
	(void)pthread_mutex_unlock(&sim->lock);
}

/* From any state. */
static void free_extent(struct sim_extent *extent)
{
#ifdef DISTORCH_TESTING
	memfd_unmap(extent->memory, extent->base.bytes);
#endif
	if (extent->fd >= 0) {
		(void)close(extent->fd); /* memory: nothing could not be written back */
	}
	give_to_pool(extent->sim, extent->charged_bytes);
	free(extent);
}

static int sim_alloc(struct device *device, const struct device_alloc *request, struct extent **ret,
		     struct err *err)
{
	struct sim *sim = sim_of_device(device);
	const uint64_t charged = sim_charge(device, request->bytes);
	struct sim_extent *extent;
	char name[64];
	int code;

	STRIKE(SIM_CALL_ALLOC, err);
	code = take_from_pool(sim, charged, err);
	if (code < 0) {
		return code;
	}
	extent = sys_calloc(1, sizeof *extent);
	if (extent == NULL) {
		give_to_pool(sim, charged);
		return err_set(err, WIRE_NO_MEMORY, "no memory for an extent");
	}
	*extent = (struct sim_extent){.base.bytes = request->bytes,
				      .sim = sim,
				      .maker = sim,
				      .charged_bytes = charged,
				      .fd = -1};
	/* The name says whose memory it is, also to those who import it. */
	(void)snprintf(name, sizeof name, "sim:%td/%s", sim - sims, request->name);
	code = memfd_create_sized(name, request->bytes, &extent->fd, err);
	if (code < 0) {
		free_extent(extent);
		return code;
	}
	*ret = &extent->base;
	return 0;
}

/*
 * Write what is at the source, up to its bytes, and say how much that was; without the link. By
 * descriptors and in small parts: no page is cleared or faulted in before it is written, and what
 * is on its way stays in the processor's cache.
 */
static int write_memory(struct sim_extent *extent, uint64_t offset,
			const struct device_source *source, uint64_t *ret_bytes, struct err *err)
{
	static _Thread_local uint8_t part[PART_BYTES];
	uint64_t done = 0;

	while (done < source->bytes) {
		const uint64_t left = source->bytes - done;
		const ssize_t n_read = sys_pread(source->fd, part,
						 left < sizeof part ? left : sizeof part,
						 source->offset + done);

		if (n_read < 0 && done == 0) {
			const int error = errno;
			const int code = err_set_sys(err, WIRE_IO, error,
						     "reading at byte %" PRIu64 ": %s",
						     source->offset, strerror(error));

			if (err != NULL) {
				err->offset = source->offset;
			}
			return code;
		}
		if (n_read <= 0) {
			break; /* what came is said; the next fill meets the rest */
		}
		if (pwrite(extent->fd, part, (size_t)n_read, (off_t)(offset + done)) != n_read) {
			return err_set_sys(err, WIRE_NO_MEMORY, errno,
					   "no memory for byte %" PRIu64 " of a simulated device",
					   offset + done);
		}
		done += (uint64_t)n_read;
	}
	*ret_bytes = done;
	return 0;
}

static int sim_fill(struct extent *base, uint64_t offset, const struct device_source *source,
		    uint64_t *ret_bytes, struct err *err)
{
	struct sim_extent *extent = sim_of(base);
	const uint64_t bytes_per_s = extent->sim->config.bytes_per_s;
	int code;

	STRIKE(SIM_CALL_FILL, err);
	if (extent->is_sealed) {
		return err_set(err, WIRE_NOT_ALLOWED, "the extent is sealed");
	}
	code = write_memory(extent, offset, source, ret_bytes, err);
	if (code == 0) {
		let_arrive(extent, book(extent->sim, TO_DEVICE, *ret_bytes, bytes_per_s),
			   bytes_per_s);
	}
	return code;
}

/* 'n_bytes' at 'offset' of the memory, without the link. */
static int read_memory(int fd, uint64_t offset, uint8_t *to, uint64_t n_bytes, struct err *err)
{
	while (n_bytes > 0) {
		ssize_t n_read = sys_pread(fd, to, n_bytes, offset);

		if (n_read < 0 && errno == EINTR) {
			continue;
		}
		if (n_read <= 0) {
			return err_set_sys(err, WIRE_IO, n_read < 0 ? errno : 0,
					   "the memory cannot be read at byte %" PRIu64, offset);
		}
		to += n_read;
		offset += (uint64_t)n_read;
		n_bytes -= (uint64_t)n_read;
	}
	return 0;
}

static int sim_read(const struct extent *base, uint64_t offset, void *bytes, uint64_t n_bytes,
		    struct err *err)
{
	const struct sim_extent *extent = sim_of_const(base);
	int code;

	STRIKE(SIM_CALL_READ, err);
	code = read_memory(extent->fd, offset, bytes, n_bytes, err);
	if (code == 0) {
		sleep_until(book(extent->sim, TO_HOST, n_bytes, extent->sim->config.bytes_per_s));
	}
	return code;
}

static int sim_seal(struct extent *base, struct err *err)
{
	struct sim_extent *extent = sim_of(base);

	STRIKE(SIM_CALL_SEAL, err);
	if (extent->is_sealed) {
		return 0;
	}
	sleep_until(extent->arrives_ns); /* nobody fills it any more */
#ifdef DISTORCH_TESTING
	{
		void *memory = NULL; /* a sealed one cannot be mapped like this any more */

		(void)memfd_map(extent->fd, base->bytes, PROT_READ | PROT_WRITE, MAP_SHARED,
				&memory, NULL);
		extent->memory = memory;
	}
#endif
	extent->is_sealed = true; /* also on failure: it cannot be filled any more */
	return memfd_seal(extent->fd, err);
}

static int sim_release(struct extent *base, struct err *err)
{
	(void)err;
	STRIKE(SIM_CALL_RELEASE, err);
	free_extent(sim_of(base));
	return 0;
}

static int sim_export(const struct extent *base, int *ret_fd, struct err *err)
{
	const struct sim_extent *extent = sim_of_const(base);

	STRIKE(SIM_CALL_EXPORT, err);
	if (!extent->is_sealed) {
		return err_set(err, WIRE_NOT_ALLOWED, "the extent is not sealed yet");
	}
	return memfd_reopen(extent->fd, ret_fd, err);
}

/* Whose memory 'fd' is; NULL for none of ours. */
static struct sim *maker_of(int fd)
{
	static const char before[] = "/memfd:";
	char path[64];
	char target[128];
	uint32_t number;
	ssize_t size;

	(void)snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
	size = readlink(path, target, sizeof target - 1);
	if (size < 0) {
		return NULL;
	}
	target[size] = '\0';
	if (strncmp(target, before, sizeof before - 1) != 0) {
		return NULL;
	}
	number = parse_name(target + sizeof before - 1, '/');
	return number < n_sims ? &sims[number] : NULL;
}

static int sim_import(struct device *device, int fd, uint64_t bytes, struct extent **ret,
		      struct err *err)
{
	struct sim *sim = sim_of_device(device);
	struct sim_extent *extent;
	struct sim *maker;
	int code;

	STRIKE(SIM_CALL_IMPORT, err);
	code = memfd_check_seals(fd, bytes, err);
	if (code < 0) {
		return code;
	}
	maker = maker_of(fd);
	if (maker == NULL) {
		return err_set(err, WIRE_BAD_FD, "not the memory of a simulated device");
	}
	if (maker != sim && !(maker->config.has_peers && sim->config.has_peers)) {
		return err_set(err, WIRE_UNSUPPORTED, "sim:%td and sim:%td are no peers",
			       maker - sims, sim - sims);
	}
	extent = sys_calloc(1, sizeof *extent);
	if (extent == NULL) {
		return err_set(err, WIRE_NO_MEMORY, "no memory for an extent");
	}
	*extent = (struct sim_extent){.base.bytes = bytes,
				      .sim = sim,
				      .maker = maker,
				      .is_sealed = true};
	extent->fd = sys_fcntl_dup(fd);
	if (extent->fd < 0) {
		code = err_set_sys(err, WIRE_TOO_MANY, errno, "taking over memory: %s",
				   strerror(errno));
		free_extent(extent);
		return code;
	}
	*ret = &extent->base;
	return 0;
}

/* Over the slower of the two links; within a device over none. */
static int sim_copy(struct extent *to_base, const struct extent *from_base, struct err *err)
{
	struct sim_extent *to = sim_of(to_base);
	const struct sim_extent *from = sim_of_const(from_base);
	const uint64_t theirs = from->maker->config.bytes_per_s;
	uint64_t bytes_per_s = to->sim->config.bytes_per_s;

	STRIKE(SIM_CALL_COPY, err);
	if (to->is_sealed || !from->is_sealed) {
		return err_set(err, WIRE_NOT_ALLOWED,
			       "a copy is from a sealed extent into one "
			       "that is not");
	}
	if (bytes_per_s == 0 || (theirs != 0 && theirs < bytes_per_s)) {
		bytes_per_s = theirs;
	}
	for (uint64_t at = 0; at < to_base->bytes;) {
		const uint64_t left = to_base->bytes - at;
		const struct device_source source = {.fd = from->fd,
						     .offset = at,
						     .bytes = left < COPY_PART_BYTES
								      ? left
								      : COPY_PART_BYTES};
		uint64_t n_bytes = 0;
		int code = write_memory(to, at, &source, &n_bytes, err);

		if (code == 0 && n_bytes == 0) {
			code = err_set(err, WIRE_IO, "the copied memory ended at byte %" PRIu64,
				       at);
		}
		if (code < 0) {
			return code;
		}
		if (from->maker != to->sim) {
			let_arrive(to, book(to->sim, TO_DEVICE, n_bytes, bytes_per_s), bytes_per_s);
		}
		at += n_bytes;
	}
	return 0;
}

#ifdef DISTORCH_TESTING
bool sim_corrupt(struct extent *base, uint64_t offset)
{
	struct sim_extent *extent = sim_of(base);

	if (!extent->is_sealed || extent->memory == NULL || offset >= base->bytes) {
		return false;
	}
	extent->memory[offset] ^= 0xff;
	return true;
}
#endif

const struct device_ops sim_device_ops = {
	.version = DEVICE_OPS_VERSION,
	.name = "sim",
	.probe = sim_probe,
	.open = sim_open,
	.close = sim_close,
	.info = sim_info,
	.charge = sim_charge,
	.alloc = sim_alloc,
	.fill = sim_fill,
	.read = sim_read,
	.seal = sim_seal,
	.release = sim_release,
	.export = sim_export,
	.import = sim_import,
	.copy = sim_copy,
};
