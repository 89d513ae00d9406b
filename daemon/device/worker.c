/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Serves a device to the daemon. See worker.h. The daemon is trusted: this process does only
 * what the daemon says, and the socket is all it hears. What is a fault of the device's ends the
 * process, so that nothing of it is left: the daemon begins another.
 */
#include "daemon/device/worker.h"

#include "base/cleanup.h"
#include "base/err.h"
#include "base/idtab.h"
#include "base/os/fdpass.h"
#include "base/os/memfd.h"
#include "base/os/sys.h"

#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include "daemon/device/device.h"
#include "daemon/device/sim.h"
#include "daemon/device/worker_link.h"
#include "proto/gen/wire_gen.h"
#include "proto/wire.h"

#define MAX_EXTENTS       65536
#define SPARE_DESCRIPTORS (4UL * DEVICE_MAX_EXPORTS) /* for requests and answers under way */
#define MAX_THREADS       128
#define HANGUP_MS         1000

struct slot {
	struct idtab_slot head;
	struct extent *extent; /* owner: the table */
};

/* The process has one. */
static struct worker {
	int socket;
	const char *name;
	struct device *device; /* NULL before worker.open; atomic */
	pthread_mutex_t lock;  /* of the table */
	struct idtab extents;
	uint32_t n_threads; /* atomic, as the rest */
	uint32_t n_idle;
	bool is_lost;      /* the device, and with it this process */
	uint64_t n_served; /* see in_order */
} worker = {.lock = PTHREAD_MUTEX_INITIALIZER};
static struct slot slots[MAX_EXTENTS];

/* What a request says, and what is answered. */
struct request {
	const union wire_body *body;
	int fd; /* -1: none; stays the request's */
	union wire_body response;
	int response_fds[DEVICE_MAX_EXPORTS]; /* closed when they are sent */
	uint32_t n_response_fds;
	struct device_info info; /* what a response borrows from */
	struct wire_worker_peer peers[DEVICE_MAX_PEERS];
};

static struct device *opened(void)
{
	return __atomic_load_n(&worker.device, __ATOMIC_ACQUIRE);
}

/* ---- extents ---- */

static int find_extent(uint64_t id, struct extent **ret, struct err *err)
{
	const struct slot *slot;

	(void)pthread_mutex_lock(&worker.lock);
	slot = idtab_find(&worker.extents, id);
	*ret = slot == NULL ? NULL : slot->extent;
	(void)pthread_mutex_unlock(&worker.lock);
	return *ret != NULL ? 0 : err_set(err, WIRE_NOT_FOUND, "no extent %" PRIu64, id);
}

/* A place in the table, before there is an extent: the rest cannot fail. */
static int new_slot(uint64_t *ret_id, struct slot **ret, struct err *err)
{
	(void)pthread_mutex_lock(&worker.lock);
	*ret = idtab_add(&worker.extents, ret_id);
	(void)pthread_mutex_unlock(&worker.lock);
	return *ret != NULL ? 0
			    : err_set(err, WIRE_TOO_MANY, "a device has at most %d extents",
				      MAX_EXTENTS);
}

static void set_slot(struct slot *slot, struct extent *extent)
{
	(void)pthread_mutex_lock(&worker.lock);
	if (extent != NULL) {
		slot->extent = extent;
	} else {
		idtab_remove(&worker.extents, slot);
	}
	(void)pthread_mutex_unlock(&worker.lock);
}

/* ---- methods ---- */

static int check_version(struct wire_str theirs, struct err *err)
{
	char text[64];

	return wire_str_is(theirs, DISTORCH_VERSION)
		       ? 0
		       : err_set(err, WIRE_VERSION,
				 "distorchd-worker is of version " DISTORCH_VERSION
				 " and the daemon of %s: restart the daemon",
				 wire_str_copy(theirs, text, sizeof text));
}

static const struct device_ops *backend_of(const char *name)
{
	char backend[DEVICE_NAME_SIZE];

	(void)snprintf(backend, sizeof backend, "%s", name);
	backend[strcspn(backend, ":")] = '\0';
	return device_backend_find(backend);
}

/* What the device is, with texts and lists that live as long as the request. */
static int describe(struct request *request, struct wire_worker_info *ret, struct err *err)
{
	struct device_info *info = &request->info;
	int code = device_info(opened(), info, err);

	if (code < 0) {
		return code;
	}
	for (uint32_t i = 0; i < info->n_peers; i++) {
		request->peers[i] = (struct wire_worker_peer){.uuid = wire_str(info->peers[i].uuid),
							      .link = info->peers[i].bytes_per_s};
	}
	*ret = (struct wire_worker_info){.total = info->total_bytes,
					 .granularity = info->granularity,
					 .uuid = wire_str(info->uuid),
					 .product = wire_str(info->product),
					 .pci = wire_str(info->pci),
					 .foreign = info->foreign_bytes,
					 .foreign_is_old = info->is_foreign_old,
					 .link = info->bytes_per_s,
					 .temperature = info->temperature,
					 .n_xids = info->n_xids,
					 .last_xid = info->last_xid,
					 .peers = {.count = info->n_peers,
						   .items = request->peers}};
	return 0;
}

static int do_info(struct request *request, struct err *err)
{
	return describe(request, &request->response.worker_info_response.info, err);
}

static void configure_sims(struct wire_list sims)
{
	struct sim_config configs[SIM_MAX_DEVICES];
	struct wire_worker_sim sim;
	uint32_t n_configs = 0;

	while (n_configs < SIM_MAX_DEVICES && wire_list_next(&sims, &wire_type_worker_sim, &sim)) {
		configs[n_configs++] = (struct sim_config){.memory_bytes = sim.memory,
							   .granularity = sim.granularity,
							   .bytes_per_s = sim.link,
							   .latency_ns = sim.latency_ns,
							   .has_peers = sim.peers};
	}
	sim_configure(configs, n_configs);
}

static int do_open(struct request *request, struct err *err)
{
	const struct wire_worker_open_request *wire = &request->body->worker_open_request;
	const struct device_ops *ops = backend_of(worker.name);
	struct device *device = NULL;
	int code = check_version(wire->version, err);

	if (code < 0) {
		return code;
	}
	if (opened() != NULL) {
		return err_set(err, WIRE_BAD_ARGUMENT, "%s is open", worker.name);
	}
	if (ops == NULL) {
		return err_set(err, WIRE_NOT_FOUND, "this distorchd-worker has no backend for %s",
			       worker.name);
	}
	configure_sims(wire->sims);
	code = device_open(ops->name, worker.name, &device, err);
	if (code < 0) {
		return code;
	}
	__atomic_store_n(&worker.device, device, __ATOMIC_RELEASE);
	return describe(request, &request->response.worker_open_response.info, err);
}

/* Only who is asked for the first says why there is none. */
static int why_none(const struct device_ops *ops, struct err *err)
{
	struct device *device = NULL;
	char first[DEVICE_NAME_SIZE];
	int code;

	(void)snprintf(first, sizeof first, "%s:0", ops->name);
	code = device_open(ops->name, first, &device, err);
	if (code == 0) {
		code = err_set(err, WIRE_BUSY, "%s has come just now", first);
		(void)device_close(device);
	}
	return code;
}

static int do_probe(struct request *request, struct err *err)
{
	static char names[SIM_MAX_DEVICES][DEVICE_NAME_SIZE];
	static struct wire_str texts[SIM_MAX_DEVICES];
	const struct device_ops *ops = backend_of(worker.name);
	int code = check_version(request->body->worker_probe_request.version, err);
	uint32_t n_names;

	if (code < 0) {
		return code;
	}
	if (ops == NULL) {
		return err_set(err, WIRE_UNSUPPORTED, "this distorchd-worker has no backend %s",
			       worker.name);
	}
	n_names = ops->probe(names, SIM_MAX_DEVICES);
	n_names = n_names < SIM_MAX_DEVICES ? n_names : SIM_MAX_DEVICES;
	if (n_names == 0) {
		code = why_none(ops, err);
	}
	for (uint32_t i = 0; i < n_names; i++) {
		texts[i] = wire_str(names[i]);
	}
	request->response.worker_probe_response =
		(struct wire_worker_probe_response){.devices = {.count = n_names, .items = texts}};
	return code;
}

/* An extent keeps descriptors; a request whose own finds no place among them would be the end. */
static int check_descriptors(struct err *err)
{
	struct rlimit files;
	const int lowest = sys_fcntl_dup(worker.socket);

	if (lowest >= 0) {
		(void)close(lowest); /* of the socket, which stays */
	}
	if (getrlimit(RLIMIT_NOFILE, &files) == 0 &&
	    (lowest < 0 || (rlim_t)lowest + SPARE_DESCRIPTORS > files.rlim_cur)) {
		return err_set(err, WIRE_TOO_MANY,
			       "its worker has as many descriptors as it may (%llu): have "
			       "LimitNOFILE or ulimit -n of the daemon raised",
			       (unsigned long long)files.rlim_cur);
	}
	return 0;
}

static int do_alloc(struct request *request, struct err *err)
{
	const struct wire_worker_alloc_request *wire = &request->body->worker_alloc_request;
	char name[WIRE_WORKER_ALLOC_REQUEST_NAME_MAX + 1];
	const struct device_alloc alloc = {.name = wire_str_copy(wire->name, name, sizeof name),
					   .bytes = wire->bytes,
					   .hugepages = wire->hugepages};
	struct extent *extent = NULL;
	struct slot *slot = NULL;
	uint64_t id = 0;
	int code = check_descriptors(err);

	code = code < 0 ? code : new_slot(&id, &slot, err);
	if (code < 0) {
		return code;
	}
	code = device_alloc(opened(), &alloc, &extent, err);
	set_slot(slot, code < 0 ? NULL : extent);
	request->response.worker_alloc_response.extent = id;
	return code;
}

static int do_import(struct request *request, struct err *err)
{
	const uint64_t bytes = request->body->worker_import_request.bytes;
	struct extent *extent = NULL;
	struct slot *slot = NULL;
	uint64_t id = 0;
	int code = check_descriptors(err);

	code = code < 0 ? code : new_slot(&id, &slot, err);
	if (code < 0) {
		return code;
	}
	code = device_import(opened(), request->fd, bytes, &extent, err);
	set_slot(slot, code < 0 ? NULL : extent);
	request->response.worker_import_response.extent = id;
	return code;
}

static int do_fill(struct request *request, struct err *err)
{
	const struct wire_worker_fill_request *wire = &request->body->worker_fill_request;
	const struct device_source source = {.fd = request->fd,
					     .offset = wire->from,
					     .bytes = wire->bytes};
	struct extent *extent = NULL;
	uint64_t n_bytes = 0;
	int code = find_extent(wire->extent, &extent, err);

	if (code == 0) {
		code = device_fill(extent, wire->offset, &source, &n_bytes, err);
	}
	request->response.worker_fill_response.bytes = n_bytes;
	return code;
}

static int do_read(struct request *request, struct err *err)
{
	const struct wire_worker_read_request *wire = &request->body->worker_read_request;
	struct extent *extent = NULL;
	void *memory = NULL;
	int code = find_extent(wire->extent, &extent, err);

	if (code == 0) {
		code = memfd_map(request->fd, wire->bytes, PROT_READ | PROT_WRITE, MAP_SHARED,
				 &memory, err);
	}
	if (code == 0) {
		code = device_read(extent, wire->offset, memory, wire->bytes, err);
		memfd_unmap(memory, wire->bytes);
	}
	return code;
}

static int do_seal(struct request *request, struct err *err)
{
	struct extent *extent = NULL;
	int code = find_extent(request->body->worker_seal_request.extent, &extent, err);

	return code < 0 ? code : device_seal(extent, err);
}

static int do_export(struct request *request, struct err *err)
{
	struct wire_list ids = request->body->worker_export_request.extents;
	const struct extent *extents[DEVICE_MAX_EXPORTS];
	uint32_t n_extents = 0;
	uint64_t id;
	int code;

	while (wire_list_next(&ids, NULL, &id)) {
		struct extent *extent = NULL;

		code = find_extent(id, &extent, err);
		if (code < 0) {
			return code;
		}
		extents[n_extents++] = extent; /* the schema bounds them */
	}
	if (n_extents == 0) {
		return err_set(err, WIRE_BAD_ARGUMENT, "no extent is named");
	}
	code = device_export_all(extents, n_extents, request->response_fds, err);
	request->n_response_fds = code == 0 ? n_extents : 0;
	return code;
}

static int do_copy(struct request *request, struct err *err)
{
	const struct wire_worker_copy_request *wire = &request->body->worker_copy_request;
	struct extent *to = NULL;
	struct extent *from = NULL;
	int code = find_extent(wire->to, &to, err);

	if (code == 0) {
		code = find_extent(wire->from, &from, err);
	}
	return code < 0 ? code : device_copy(to, from, err);
}

/* Refused, its bytes stay taken as long as this process lives: who asked ends it. */
static int do_release(struct request *request, struct err *err)
{
	struct slot *slot;
	struct extent *extent = NULL;

	(void)pthread_mutex_lock(&worker.lock);
	slot = idtab_find(&worker.extents, request->body->worker_release_request.extent);
	if (slot != NULL) {
		extent = slot->extent;
		idtab_remove(&worker.extents, slot);
	}
	(void)pthread_mutex_unlock(&worker.lock);
	return device_release(extent, err);
}

#ifdef DISTORCH_TESTING
static int test_call(const char *what, struct err *err)
{
	static const char *const names[SIM_N_CALLS] = {"info",   "alloc",  "fill",
						       "read",   "seal",   "release",
						       "export", "import", "copy"};
	struct sim_fault fault = {0};
	char call[16] = "";
	char word[32] = "";
	char ever[8] = "";

	if (sscanf(what, "%15[a-z]:%" SCNu64 ":%31[a-z-]:%7s", call, &fault.nth, word, ever) < 3) {
		return err_set(err, WIRE_BAD_ARGUMENT, "not understood: %s", what);
	}
	fault.is_forever = strcmp(ever, "ever") == 0;
	fault.hangs = strcmp(word, "hang") == 0;
	fault.code = (int)wire_code_find(wire_str(word));
	for (int i = 0; i < SIM_N_CALLS; i++) {
		if (strcmp(call, names[i]) == 0) {
			sim_fault_set((enum sim_call)i, fault);
			return 0;
		}
	}
	return err_set(err, WIRE_BAD_ARGUMENT, "no call %s", call);
}

static int do_test(struct request *request, struct err *err)
{
	char what[WIRE_WORKER_TEST_REQUEST_WHAT_MAX + 1];
	struct extent *extent = NULL;
	uint64_t id;
	uint64_t number;

	(void)wire_str_copy(request->body->worker_test_request.what, what, sizeof what);
	if (strcmp(what, "abort") == 0) {
		abort();
	}
	if (strcmp(what, "clear") == 0) {
		sim_fault_clear();
		return 0;
	}
	if (sscanf(what, "foreign:%" SCNu64, &number) == 1) {
		sim_set_foreign(number);
		return 0;
	}
	if (sscanf(what, "corrupt:%" SCNu64 ":%" SCNu64, &id, &number) == 2) {
		if (find_extent(id, &extent, err) == 0 && sim_corrupt(extent, number)) {
			return 0;
		}
		return err_set(err, WIRE_BAD_ARGUMENT, "no byte %s", what);
	}
	return test_call(what, err);
}
#else
static int do_test(struct request *request, struct err *err)
{
	(void)request;
	return err_set(err, WIRE_UNSUPPORTED, "not a testing build");
}
#endif

static int carry_out(enum wire_method method, struct request *request, struct err *err)
{
	static int (*const methods[WIRE_N_METHODS])(struct request * request, struct err * err) = {
		[WIRE_METHOD_WORKER_OPEN] = do_open,     [WIRE_METHOD_WORKER_PROBE] = do_probe,
		[WIRE_METHOD_WORKER_INFO] = do_info,     [WIRE_METHOD_WORKER_ALLOC] = do_alloc,
		[WIRE_METHOD_WORKER_FILL] = do_fill,     [WIRE_METHOD_WORKER_READ] = do_read,
		[WIRE_METHOD_WORKER_SEAL] = do_seal,     [WIRE_METHOD_WORKER_RELEASE] = do_release,
		[WIRE_METHOD_WORKER_EXPORT] = do_export, [WIRE_METHOD_WORKER_IMPORT] = do_import,
		[WIRE_METHOD_WORKER_COPY] = do_copy,     [WIRE_METHOD_WORKER_TEST] = do_test,
	};

	if (opened() == NULL && method != WIRE_METHOD_WORKER_OPEN &&
	    method != WIRE_METHOD_WORKER_PROBE) {
		return err_set(err, WIRE_NOT_ALLOWED, "no device is open");
	}
	if (methods[method] == NULL) {
		return err_set(err, WIRE_UNKNOWN_METHOD, "not for workers");
	}
	return methods[method](request, err);
}

/* ---- packets ---- */

/* Whatever other threads do: nothing here has to be put away. */
static void end_with(int exit_code)
{
	_exit(__atomic_load_n(&worker.is_lost, __ATOMIC_ACQUIRE) ? 1 : exit_code);
}

static void send_packet(const struct wire_buffer *buffer, const int *fds, uint32_t n_fds)
{
	struct pollfd poll_fd = {.fd = worker.socket, .events = POLLOUT};
	enum fdpass_status status;
	int error = 0;

	for (;;) {
		status =
			fdpass_send(worker.socket, buffer->bytes, buffer->size, fds, n_fds, &error);
		if (status != FDPASS_AGAIN) {
			break;
		}
		(void)poll(&poll_fd, 1, error == EAGAIN ? -1 : 1);
	}
	if (status != FDPASS_OK) {
		end_with(status == FDPASS_END ? 0 : 1);
	}
}

static __attribute__((noinline)) void send_error(uint32_t id, const struct err *err)
{
	uint8_t bytes[WORKER_PACKET_BYTES];
	struct wire_buffer buffer = {.bytes = bytes, .capacity = sizeof bytes};
	const struct wire_code_info *info = wire_code_info((enum wire_code)err->code);
	const struct wire_error error = {.code = wire_str(info->word),
					 .message = wire_str(err->text),
					 .retryable = info->is_retryable,
					 .has_detail = true,
					 .detail = {.has_errno = err->sys != 0,
						    .errno_ = (uint64_t)(unsigned)err->sys,
						    .has_offset = err->offset != 0,
						    .offset = err->offset}};

	(void)wire_encode_error(&buffer, id, &error); /* fits: the text is bounded */
	send_packet(&buffer, NULL, 0);
}

static __attribute__((noinline)) void send_response(uint32_t id, enum wire_method method,
						    const struct request *request)
{
	uint8_t bytes[WORKER_PACKET_BYTES];
	struct wire_buffer buffer = {.bytes = bytes, .capacity = sizeof bytes};

	if (!wire_encode_response(&buffer, id, method, &request->response,
				  request->n_response_fds)) {
		end_with(1);
	}
	send_packet(&buffer, request->response_fds, request->n_response_fds);
}

/*
 * What the daemon asks after an answer may be served by another thread: all that was written
 * before the one is seen after the other. The socket does that, but says so nowhere.
 */
static void in_order(void)
{
	(void)__atomic_add_fetch(&worker.n_served, 1, __ATOMIC_ACQ_REL);
}

/* Not inlined, as some above: so that packets and bodies are not all on the stack at once. */
static __attribute__((noinline)) void serve(const struct wire_packet *packet,
					    const union wire_body *body, int fd)
{
	const enum wire_method method = (enum wire_method)packet->message->number;
	struct request request = {.body = body, .fd = fd};
	struct pollfd hangup = {.fd = worker.socket, .events = POLLRDHUP};
	struct err err = {0};
	int code;

	in_order();
	code = carry_out(method, &request, &err);
	in_order();
	if (code == -WIRE_DEVICE_LOST) { /* before the daemon hears of it and hangs up */
		__atomic_store_n(&worker.is_lost, true, __ATOMIC_RELEASE);
	}
	if (code == 0) {
		send_response(packet->id, method, &request);
	} else {
		send_error(packet->id, &err);
	}
	fdpass_close_all(request.response_fds, request.n_response_fds); /* they live on in it */
	if (code == -WIRE_DEVICE_LOST) {
		/* The daemon hangs up when it has heard of it: then it knows why we end. */
		(void)poll(&hangup, 1, HANGUP_MS);
		end_with(1);
	}
}

static __attribute__((noinline)) void handle(const uint8_t *bytes, struct fdpass_packet *received)
{
	struct wire_packet packet;
	struct wire_fault fault;
	union wire_body body;

	if (wire_decode_packet(bytes, received->size, &wire_packet_limits, &packet, &fault) < 0 ||
	    packet.kind != WIRE_REQUEST || packet.message == NULL ||
	    packet.message->role != WIRE_ROLE_WORKER || received->n_fds != packet.n_fds ||
	    packet.n_fds < packet.message->request_fds_min ||
	    packet.n_fds > packet.message->request_fds_max ||
	    wire_decode_body(packet.message->request, packet.body, packet.body_size, true, &body,
			     &fault) < 0) {
		end_with(1); /* that is not our daemon */
	}
	serve(&packet, &body, received->n_fds == 1 ? received->fds[0] : -1);
}

static void *serve_requests(void *argument);

/* So that somebody listens while this thread works. */
static void listen_on(void)
{
	pthread_t thread;

	if (__atomic_sub_fetch(&worker.n_idle, 1, __ATOMIC_ACQ_REL) > 0 ||
	    __atomic_load_n(&worker.n_threads, __ATOMIC_RELAXED) >= MAX_THREADS) {
		return;
	}
	(void)__atomic_add_fetch(&worker.n_threads, 1, __ATOMIC_RELAXED);
	(void)__atomic_add_fetch(&worker.n_idle, 1, __ATOMIC_RELAXED);
	if (sys_pthread_create(&thread, serve_requests, NULL) != 0) {
		/* Then requests wait for each other. */
		(void)__atomic_sub_fetch(&worker.n_threads, 1, __ATOMIC_RELAXED);
		(void)__atomic_sub_fetch(&worker.n_idle, 1, __ATOMIC_RELAXED);
		return;
	}
	(void)pthread_detach(thread);
}

static void *serve_requests(void *argument)
{
	struct pollfd poll_fd = {.fd = worker.socket, .events = POLLIN};
	uint8_t bytes[WORKER_PACKET_BYTES];
	struct fdpass_packet received;

	(void)argument;
	for (;;) {
		enum fdpass_status status;

		(void)poll(&poll_fd, 1, -1); /* whatever it says: look */
		status = fdpass_receive(worker.socket, bytes, sizeof bytes, &received);
		if (status == FDPASS_OK) {
			listen_on();
			handle(bytes, &received);
			(void)__atomic_add_fetch(&worker.n_idle, 1, __ATOMIC_ACQ_REL);
		} else if (status != FDPASS_AGAIN) {
			end_with(status == FDPASS_END ? 0 : 1);
		}
		fdpass_close_all(received.fds, received.n_fds);
	}
	return NULL;
}

int worker_serve(int socket, const char *name)
{
	worker.socket = socket;
	worker.name = name;
	idtab_init(&worker.extents, slots, sizeof slots[0], MAX_EXTENTS);
	worker.n_threads = 1;
	worker.n_idle = 1;
	(void)serve_requests(NULL);
	return 0;
}
