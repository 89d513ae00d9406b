/* SPDX-License-Identifier: Apache-2.0 */
/* A device in a worker process: which worker it has now, and what that says. See remote.h. */
#include "daemon/device/remote.h"

#include "base/checked.h"
#include "base/err.h"
#include "base/list.h"
#include "base/os/sys.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/device/remote_inside.h"
#include "daemon/device/sim.h"
#include "daemon/device/worker_link.h"
#include "proto/gen/wire_gen.h"
#include "proto/wire.h"

#define OPEN_LIMITS     4 /* so many times longer may opening take */
#define MAX_GRANULARITY (1ULL << 30)
#define QUEUE_BYTES     (512ULL << 20) /* that may be before us on the link */
/* A worker that says less of its link is not believed: it would have years to answer in. */
#define LEAST_BYTES_PER_S (1ULL << 20)

struct remote_device {
	struct device base;
	pthread_mutex_t lock;
	struct worker_link *link; /* NULL: no worker. Under lock, as the rest */
	uint64_t granularity;     /* as last said; 0: never */
	uint64_t bytes_per_s;
	uint64_t limit_ns;
};

static struct remote_device *remote_of(struct device *device)
{
	return container_of(device, struct remote_device, base);
}

/* ---- the device ---- */

static uint32_t remote_probe_none(char (*names)[DEVICE_NAME_SIZE], uint32_t max_names)
{
	(void)names;
	(void)max_names;
	return 0; /* it takes a worker to know */
}

static int remote_open(const char *name, struct device **ret, struct err *err)
{
	struct remote_device *device = sys_calloc(1, sizeof *device);

	if (device == NULL) {
		return err_set(err, WIRE_NO_MEMORY, "no memory to open %s", name);
	}
	(void)pthread_mutex_init(&device->lock, NULL); /* with NULL it does not fail */
	*ret = &device->base;
	return 0;
}

/* Give the device another link, or none; returns the one it had. */
static struct worker_link *change_link(struct remote_device *device, struct worker_link *link)
{
	struct worker_link *before;

	(void)pthread_mutex_lock(&device->lock);
	before = device->link;
	device->link = link;
	(void)pthread_mutex_unlock(&device->lock);
	return before;
}

bool remote_detach(struct device *device, const char *reason, char *ret_reason, size_t size)
{
	struct worker_link *link = change_link(remote_of(device), NULL);
	bool has_ended = false;

	if (link != NULL) {
		worker_link_lose(link, reason);
		if (ret_reason != NULL) {
			worker_link_reason(link, ret_reason, size);
		}
		has_ended = worker_link_has_ended(link);
		(void)worker_link_unref(link);
	}
	return has_ended;
}

static void remote_close(struct device *base)
{
	struct remote_device *device = remote_of(base);

	(void)worker_link_unref(change_link(device, NULL)); /* extents keep it as it is */
	(void)pthread_mutex_destroy(&device->lock);
	free(device);
}

uint64_t remote_add_ns(uint64_t a, uint64_t b)
{
	uint64_t sum = UINT64_MAX / 2;

	(void)checked_add(a, b, &sum);
	return sum;
}

int remote_use_link(const struct device *base, struct remote_extent *ret, struct err *err)
{
	struct remote_device *device = (struct remote_device *)(uintptr_t)base;
	uint64_t bytes_per_s;

	(void)pthread_mutex_lock(&device->lock);
	*ret = (struct remote_extent){.link = device->link == NULL ? NULL
								   : worker_link_ref(device->link),
				      .limit_ns = device->limit_ns};
	bytes_per_s = device->bytes_per_s;
	(void)pthread_mutex_unlock(&device->lock);
	if (bytes_per_s == 0 || bytes_per_s > SLOWEST_BYTES_PER_S) {
		bytes_per_s = SLOWEST_BYTES_PER_S;
	}
	ret->bytes_limit_ns = remote_add_ns(ret->limit_ns, QUEUE_BYTES / bytes_per_s * NS_PER_S);
	return ret->link != NULL
		       ? 0
		       : err_set(err, WIRE_DEVICE_LOST, "%s has no worker now", base->name);
}

static void copy_text(struct wire_str text, char *to, size_t size)
{
	(void)wire_str_copy(text, to, size);
}

static void take_info(const struct wire_worker_info *wire, struct device_info *ret)
{
	struct wire_list peers = wire->peers;
	struct wire_worker_peer peer;

	*ret = (struct device_info){.total_bytes = wire->total,
				    .granularity = wire->granularity,
				    .foreign_bytes = wire->foreign,
				    .is_foreign_old = wire->foreign_is_old,
				    .bytes_per_s = wire->link,
				    .temperature = (uint32_t)wire->temperature,
				    .n_xids = (uint32_t)wire->n_xids,
				    .last_xid = (uint32_t)wire->last_xid};
	copy_text(wire->uuid, ret->uuid, sizeof ret->uuid);
	copy_text(wire->product, ret->product, sizeof ret->product);
	copy_text(wire->pci, ret->pci, sizeof ret->pci);
	while (ret->n_peers < DEVICE_MAX_PEERS &&
	       wire_list_next(&peers, &wire_type_worker_peer, &peer)) {
		copy_text(peer.uuid, ret->peers[ret->n_peers].uuid, DEVICE_UUID_SIZE);
		ret->peers[ret->n_peers].bytes_per_s = peer.link;
		ret->n_peers++;
	}
}

static void take_info_answer(const void *response, void *to)
{
	take_info(&((const struct wire_worker_info_response *)response)->info, to);
}

static void take_open_answer(const void *response, void *to)
{
	take_info(&((const struct wire_worker_open_response *)response)->info, to);
}

/* With a number that no plan can be made with, all other devices would be refused too. */
static int check_granularity(uint64_t bytes, struct err *err)
{
	if (bytes > 0 && bytes <= MAX_GRANULARITY && (bytes & (bytes - 1)) == 0) {
		return 0;
	}
	return err_set(err, WIRE_DEVICE_LOST,
		       "its worker says that memory comes in pieces of %llu bytes",
		       (unsigned long long)bytes);
}

static int remote_info(const struct device *base, struct device_info *ret, struct err *err)
{
	struct worker_call call = {.method = WIRE_METHOD_WORKER_INFO, .fd = -1};
	struct device_info info;
	struct remote_extent use;
	struct err failure = {0};
	int code = remote_use_link(base, &use, err);

	if (code < 0) {
		return code;
	}
	call.limit_ns = use.limit_ns;
	code = worker_link_call(use.link, &call, NULL, take_info_answer, &info, err);
	if (code == 0 && check_granularity(info.granularity, &failure) < 0) {
		worker_link_lose(use.link, failure.text);
		code = err_set(err, failure.code, "%s: %s", base->name, failure.text);
	}
	if (code == 0) {
		*ret = info;
	}
	(void)worker_link_unref(use.link);
	return code;
}

/* Before its first worker nothing fits a device. */
static uint64_t remote_charge(const struct device *base, uint64_t bytes)
{
	struct remote_device *device = (struct remote_device *)(uintptr_t)base;
	uint64_t charged = UINT64_MAX;
	uint64_t granularity;

	(void)pthread_mutex_lock(&device->lock);
	granularity = device->granularity;
	(void)pthread_mutex_unlock(&device->lock);
	(void)checked_round_up(bytes, granularity, &charged);
	return charged;
}

/* ---- beginning ---- */

static void describe_sims(const struct remote_options *options, struct wire_worker_sim *ret)
{
	for (uint32_t i = 0; i < options->n_sims; i++) {
		ret[i] = (struct wire_worker_sim){.memory = options->sims[i].memory_bytes,
						  .granularity = options->sims[i].granularity,
						  .link = options->sims[i].bytes_per_s,
						  .latency_ns = options->sims[i].latency_ns,
						  .peers = options->sims[i].has_peers};
	}
}

/* Simulated links are as slow as they are configured. */
static uint64_t least_link(const struct device *device, const struct remote_options *options)
{
	const bool is_simulated = strncmp(device->name, "sim:", 4) == 0;
	uint64_t least = LEAST_BYTES_PER_S;

	for (uint32_t i = 0; is_simulated && i < options->n_sims; i++) {
		const uint64_t link = options->sims[i].bytes_per_s;

		least = link != 0 && link < least ? link : least;
	}
	return least;
}

int remote_attach(struct device *device, int socket, const struct remote_options *options,
		  struct device_info *ret, bool *ret_has_ended, struct err *err)
{
	struct remote_device *remote = remote_of(device);
	struct wire_worker_sim sims[SIM_MAX_DEVICES];
	const struct wire_worker_open_request request = {.version = wire_str(DISTORCH_VERSION),
							 .sims = {.count = options->n_sims,
								  .items = sims}};
	const struct worker_call call = {.method = WIRE_METHOD_WORKER_OPEN,
					 .request = &request,
					 .fd = -1,
					 .limit_ns = options->limit_ns * OPEN_LIMITS};
	const uint64_t least = least_link(device, options);
	struct worker_link *link = NULL;
	struct device_info info;
	int code = worker_link_new(socket, device->name, &link, err);

	if (code < 0) {
		return code;
	}
	describe_sims(options, sims);
	code = worker_link_call(link, &call, NULL, take_open_answer, &info, err);
	if (code == 0) {
		code = check_granularity(info.granularity, err);
	}
	if (code < 0) {
		if (ret_has_ended != NULL) {
			*ret_has_ended = worker_link_has_ended(link);
		}
		(void)worker_link_unref(link);
		return code;
	}
	(void)pthread_mutex_lock(&remote->lock);
	remote->granularity = info.granularity;
	/* 0: it was not measured. */
	remote->bytes_per_s = info.bytes_per_s == 0 || info.bytes_per_s > least ? info.bytes_per_s
										: least;
	remote->limit_ns = options->limit_ns;
	(void)pthread_mutex_unlock(&remote->lock);
	(void)worker_link_unref(change_link(remote, link));
	if (ret != NULL) {
		*ret = info;
	}
	return 0;
}

struct names {
	char (*names)[DEVICE_NAME_SIZE];
	uint32_t max_names;
	uint32_t n_names;
};

static void take_names(const void *response, void *to)
{
	struct wire_list list = ((const struct wire_worker_probe_response *)response)->devices;
	struct names *names = to;
	struct wire_str name;

	while (names->n_names < names->max_names && wire_list_next(&list, NULL, &name)) {
		copy_text(name, names->names[names->n_names], DEVICE_NAME_SIZE);
		names->n_names++;
	}
}

int remote_probe(int socket, char (*ret_names)[DEVICE_NAME_SIZE], uint32_t max_names,
		 const struct remote_options *options, uint32_t *ret_n_names, struct err *err)
{
	const struct wire_worker_probe_request request = {.version = wire_str(DISTORCH_VERSION)};
	const struct worker_call call = {.method = WIRE_METHOD_WORKER_PROBE,
					 .request = &request,
					 .fd = -1,
					 .limit_ns = options->limit_ns * OPEN_LIMITS};
	struct names names = {.names = ret_names, .max_names = max_names};
	struct worker_link *link = NULL;
	int code = worker_link_new(socket, "the probe", &link, err);

	if (code < 0) {
		return code;
	}
	code = worker_link_call(link, &call, NULL, take_names, &names, err);
	(void)worker_link_unref(link);
	if (code == 0) {
		*ret_n_names = names.n_names;
	}
	return code;
}

#ifdef DISTORCH_TESTING
int remote_test(struct device *device, const char *what, struct err *err)
{
	const struct wire_worker_test_request wire = {.what = wire_str(what)};
	struct worker_call call = {.method = WIRE_METHOD_WORKER_TEST, .request = &wire, .fd = -1};
	struct remote_extent use;
	int code = remote_use_link(device, &use, err);

	if (code < 0) {
		return code;
	}
	call.limit_ns = use.limit_ns;
	code = worker_link_call(use.link, &call, NULL, NULL, NULL, err);
	(void)worker_link_unref(use.link);
	return code;
}
#endif

const struct device_ops remote_device_ops = {
	.version = DEVICE_OPS_VERSION,
	.name = "remote",
	.probe = remote_probe_none,
	.open = remote_open,
	.close = remote_close,
	.info = remote_info,
	.charge = remote_charge,
	.alloc = remote_alloc,
	.fill = remote_fill,
	.read = remote_read,
	.seal = remote_seal,
	.release = remote_release,
	.export = remote_export,
	.export_all = remote_export_all,
	.import = remote_import,
	.copy = remote_copy,
};
