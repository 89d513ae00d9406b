/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a real card has to say (docs/gpu-notes.md): the questions that no manual answers, and
 * figures. scripts/gpu-check runs it. Each question is a process of its own, since a card's
 * fault ends one; this one only begins them and never opens the driver.
 */
#include "base/err.h"
#include "base/os/clock.h"
#include "tests/gpu/parts.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "daemon/device/cuda_dl.h"
#include "daemon/device/device.h"
#include "proto/gen/wire_code.h"

/* ---- other roles than asking ---- */

/* Have memory with known bytes on the card, hand it out, and wait to be killed. */
static int be_exporter(int socket)
{
	const struct device_alloc request = {.name = "gpu-check", .bytes = SIZE};
	struct device *device = open_card("exporter");
	struct extent *extent = NULL;
	struct err err = {0};
	int fd = -1;
	int code = device_alloc(device, &request, &extent, &err);

	if (code == 0) {
		code = fill_all(extent, make_source(SIZE, false), &err);
	}
	if (code == 0) {
		code = device_export(extent, &fd, &err);
	}
	if (code < 0 || !send_fd(socket, fd)) {
		(void)printf("exporter: %s\n", err.text);
		return 1;
	}
	(void)close(fd);
	for (;;) { /* answer whether the bytes are still as they were */
		char byte;

		if (read(socket, &byte, 1) != 1) {
			return 0;
		}
		byte = is_pattern(extent, &err) ? 'y' : 'n';
		if (write(socket, &byte, 1) != 1) {
			return 0;
		}
	}
}

/* Use the card, and no memory of anybody's. */
static int be_bystander(int socket)
{
	CUcontext context;

	open_driver();
	if (cuda->cuDevicePrimaryCtxRetain(&context, 0) != CUDA_SUCCESS ||
	    write(socket, "x", 1) != 1) {
		return 1;
	}
	(void)pause();
	return 0;
}

static struct extent *import_now(struct device *device, int fd, struct err *err)
{
	struct extent *extent = NULL;

	return device_import(device, fd, SIZE, &extent, err) == 0 ? extent : NULL;
}

/* ---- 1: who keeps memory alive ---- */

static int ask_mapped(int none)
{
	static const char question[] =
		"1a memory survives SIGKILL of its exporter: mapped by another";
	struct err err = {0};
	struct device *device = open_card(question);
	struct extent *extent;
	int socket;
	const pid_t exporter = begin("exporter", -1, &socket);
	const int fd = receive_fd(socket);

	(void)none;
	extent = import_now(device, fd, &err);
	if (extent == NULL || !is_pattern(extent, &err)) {
		refused_by_us(question, &err);
		(void)end(exporter, SIGKILL);
		return 0;
	}
	(void)close(fd);
	(void)end(exporter, SIGKILL);
	if (is_pattern(extent, &err)) {
		say(question, "works");
	} else {
		refused_by_us(question, &err);
	}
	return 0;
}

/* Nothing but a descriptor is left; the question is asked by a new process. */
static int ask_parked_by(const char *question, int fd)
{
	struct err err = {0};
	struct device *device = open_card(question);
	const struct extent *extent = import_now(device, fd, &err);

	if (extent != NULL && is_pattern(extent, &err)) {
		say(question, "works");
	} else {
		refused_by_us(question, &err);
	}
	return 0;
}

static int ask_parked(int fd)
{
	return ask_parked_by("1b ... only a descriptor of it is open, others use the card", fd);
}

static int ask_parked_alone(int fd)
{
	return ask_parked_by("1c ... only a descriptor of it is open, nobody uses the card", fd);
}

static int ask_parked_node(int fd)
{
	static const char question[] = "1d ... a descriptor of it and the card's node are open";

	open_driver();
	if (!is_stand_in && access("/dev/nvidia0", R_OK | W_OK) != 0) {
		say(question, "not tried (/dev/nvidia0: %s)", strerror(errno));
		return 0;
	}
	return ask_parked_by(question, fd);
}

static int park(const char *word, bool has_bystander, int node)
{
	int socket = -1;
	int other = -1;
	char byte;
	const pid_t bystander = has_bystander ? begin("bystander", -1, &other) : -1;
	const pid_t exporter = begin("exporter", -1, &socket);
	const int fd = receive_fd(socket);
	int status;

	if (has_bystander && read(other, &byte, 1) != 1) {
		(void)printf("1b: no second process could use the card\n");
	}
	(void)end(exporter, SIGKILL);
	(void)sleep(1); /* whatever tears a card down has the time to */
	status = end(begin(word, fd, NULL), 0);
	if (has_bystander) {
		(void)end(bystander, SIGKILL);
		(void)close(other);
	}
	if (node >= 0) {
		(void)close(node);
	}
	(void)close(fd);
	(void)close(socket);
	return status;
}

/* ---- 2: contexts ---- */

static uint64_t used_bytes(CUdevice device)
{
	const struct nvml_calls *nvml = nvml_load();
	nvmlMemory_t memory;
	nvmlDevice_t card;
	char text[64] = "GPU";
	CUuuid uuid;
	size_t at = 3;

	if (nvml == NULL || cuda->cuDeviceGetUuid(&uuid, device) != CUDA_SUCCESS) {
		return 0;
	}
	for (size_t i = 0; i < sizeof uuid.bytes; i++) {
		const bool is_dashed = i == 0 || i == 4 || i == 6 || i == 8 || i == 10;

		at += (size_t)snprintf(text + at, sizeof text - at, "%s%02x", is_dashed ? "-" : "",
				       (unsigned char)uuid.bytes[i]);
	}
	if (nvml->nvmlDeviceGetHandleByUUID(text, &card) != NVML_SUCCESS ||
	    nvml->nvmlDeviceGetMemoryInfo(card, &memory) != NVML_SUCCESS) {
		return 0;
	}
	return memory.used;
}

static CUmemAllocationProp on_card(void)
{
	return (CUmemAllocationProp){
		.type = CU_MEM_ALLOCATION_TYPE_PINNED,
		.requestedHandleTypes = CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR,
		.location = {.type = CU_MEM_LOCATION_TYPE_DEVICE},
	};
}

static int ask_context(int none)
{
	const CUmemAllocationProp properties = on_card();
	CUmemGenericAllocationHandle handle;
	CUcontext context;
	uint64_t before;
	uint64_t begun_ns;
	uint64_t ns;
	CUresult result;
	int fd = -1;

	(void)none;
	open_driver();
	before = used_bytes(0);
	result = cuda->cuMemCreate(&handle, 2 * MIB, &properties, 0);
	if (result == CUDA_SUCCESS) {
		result =
			cuda->cuMemExportToShareableHandle(&fd, handle,
							   CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR,
							   0);
		if (result == CUDA_SUCCESS) {
			say("2 create and export without a context", "works (+%llu MiB)",
			    (unsigned long long)((used_bytes(0) - before) / MIB));
		} else {
			refused("2 create and export without a context", result, "export");
		}
	} else {
		refused("2 create and export without a context", result, "create");
	}
	before = used_bytes(0);
	begun_ns = clock_mono_ns();
	result = cuda->cuDevicePrimaryCtxRetain(&context, 0);
	ns = clock_mono_ns() - begun_ns;
	if (result == CUDA_SUCCESS) {
		say("2 a context costs", "%llu MiB, %.1f ms",
		    (unsigned long long)((used_bytes(0) - before) / MIB), (double)ns / 1e6);
	} else {
		refused("2 a context costs", result, "retain");
	}
	return 0;
}

/* ---- 3: may an importer write ---- */

static CUresult write_into(int fd)
{
	const CUmemAccessDesc access = {.location = {.type = CU_MEM_LOCATION_TYPE_DEVICE},
					.flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE};
	CUmemGenericAllocationHandle handle = 0;
	CUdeviceptr address = 0;
	CUcontext context;
	CUstream stream = NULL;
	CUresult result = cuda->cuDevicePrimaryCtxRetain(&context, 0);

	if (result == CUDA_SUCCESS) {
		result = cuda->cuCtxSetCurrent(context);
	}
	if (result == CUDA_SUCCESS) {
		result = cuda->cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING);
	}
	if (result == CUDA_SUCCESS) {
		result = cuda->cuMemImportFromShareableHandle(
			&handle, (void *)(intptr_t)fd, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR);
	}
	if (result == CUDA_SUCCESS) {
		result = cuda->cuMemAddressReserve(&address, SIZE, 0, 0, 0);
	}
	if (result == CUDA_SUCCESS) {
		result = cuda->cuMemMap(address, SIZE, 0, handle, 0);
	}
	if (result == CUDA_SUCCESS) {
		result = cuda->cuMemSetAccess(address, SIZE, &access, 1);
	}
	if (result == CUDA_SUCCESS) {
		result = cuda->cuMemsetD8Async(address, 0xa5, 4096, stream);
	}
	return result == CUDA_SUCCESS ? cuda->cuStreamSynchronize(stream) : result;
}

static int ask_writing(int none)
{
	static const char question[] = "3 an importer maps for writing, and changes the bytes";
	int socket;
	char byte = '?';
	const pid_t exporter = begin("exporter", -1, &socket);
	const int fd = receive_fd(socket);
	CUresult result;

	(void)none;
	open_driver();
	result = write_into(fd);
	if (result != CUDA_SUCCESS) {
		refused(question, result, "writing");
	} else if (write(socket, "?", 1) == 1 && read(socket, &byte, 1) == 1) {
		say(question, byte == 'n' ? "works (so sharing is within one uid only)"
					  : "no error, and the exporter does not see it");
	}
	(void)end(exporter, SIGKILL);
	return 0;
}

/* ---- 5: latencies ---- */

static double microseconds_since(uint64_t *begun_ns)
{
	const uint64_t now_ns = clock_mono_ns();
	const double us = (double)(now_ns - *begun_ns) / 1e3;

	*begun_ns = now_ns;
	return us;
}

/* One round of sharing within this process; where it failed. */
static CUresult share_once(uint64_t size, double us[6], int *ret_flags, const char **ret_where)
{
	const CUmemAllocationProp properties = on_card();
	const CUmemAccessDesc access = {.location = properties.location,
					.flags = CU_MEM_ACCESS_FLAGS_PROT_READ};
	CUmemGenericAllocationHandle ours;
	CUmemGenericAllocationHandle handle;
	CUdeviceptr address = 0;
	uint64_t at_ns = clock_mono_ns();
	CUresult result;
	int fd = -1;

#define STEP(number, call)                       \
	*ret_where = #call;                      \
	result = (call);                         \
	us[number] = microseconds_since(&at_ns); \
	if (result != CUDA_SUCCESS) {            \
		return result;                   \
	}
	STEP(0, cuda->cuMemCreate(&ours, size, &properties, 0))
	STEP(1, cuda->cuMemExportToShareableHandle(&fd, ours,
						   CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR, 0))
	*ret_flags = fcntl(fd, F_GETFD);
	STEP(2, cuda->cuMemImportFromShareableHandle(&handle, (void *)(intptr_t)fd,
						     CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR))
	(void)close(fd);
	STEP(3, cuda->cuMemAddressReserve(&address, size, 0, 0, 0))
	STEP(4, cuda->cuMemMap(address, size, 0, handle, 0))
	STEP(5, cuda->cuMemSetAccess(address, size, &access, 1))
#undef STEP
	(void)cuda->cuMemRelease(handle);
	(void)cuda->cuMemUnmap(address, size);
	(void)cuda->cuMemAddressFree(address, size);
	return cuda->cuMemRelease(ours);
}

/* Twenty-five of 2 MiB as the worker and the library have them: each exported, for the first and for
 * a second client, and mapped; all opened by one call. Means. */
static CUresult share_many(double us[3], const char **ret_where)
{
	enum { N_PARTS = 25 };
	const uint64_t size = 2 * MIB;
	const CUmemAllocationProp properties = on_card();
	const CUmemAccessDesc access = {.location = properties.location,
					.flags = CU_MEM_ACCESS_FLAGS_PROT_READ};
	CUdeviceptr address = 0;
	uint64_t at_ns;
	CUresult result = cuda->cuMemAddressReserve(&address, N_PARTS * size, 0, 0, 0);

	*ret_where = "one of 25";
	us[0] = us[1] = 0;
	for (uint64_t i = 0; result == CUDA_SUCCESS && i < N_PARTS; i++) {
		CUmemGenericAllocationHandle handle;

		result = cuda->cuMemCreate(&handle, size, &properties, 0);
		at_ns = clock_mono_ns();
		for (int k = 0; result == CUDA_SUCCESS && k < 2; k++) {
			int fd = -1;

			result = cuda->cuMemExportToShareableHandle(
				&fd, handle, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR, 0);
			us[k] += microseconds_since(&at_ns) / N_PARTS;
			(void)close(fd);
		}
		if (result == CUDA_SUCCESS) {
			result = cuda->cuMemMap(address + i * size, size, 0, handle, 0);
		}
	}
	if (result == CUDA_SUCCESS) {
		*ret_where = "cuMemSetAccess of 25 at once";
		at_ns = clock_mono_ns();
		result = cuda->cuMemSetAccess(address, N_PARTS * size, &access, 1);
		us[2] = microseconds_since(&at_ns);
	}
	return result; /* what is left goes with this process */
}

static int ask_latency(int none)
{
	static const uint64_t sizes[] = {2 * MIB, 64 * MIB, 512 * MIB};
	const char *where = "";
	CUcontext context;
	CUresult result;
	int flags = 0;
	double us[6];

	(void)none;
	open_driver();
	result = cuda->cuDevicePrimaryCtxRetain(&context, 0);
	if (result == CUDA_SUCCESS) {
		result = cuda->cuCtxSetCurrent(context);
	}
	for (size_t i = 0; result == CUDA_SUCCESS && i < sizeof sizes / sizeof sizes[0]; i++) {
		char question[96];

		(void)share_once(sizes[i], us, &flags, &where); /* the first one is not typical */
		result = share_once(sizes[i], us, &flags, &where);
		if (result == CUDA_SUCCESS) {
			if (i == 0) {
				say("5 the exported descriptor is close-on-exec",
				    (flags & FD_CLOEXEC) != 0 ? "yes" : "no");
			}
			(void)snprintf(
				question, sizeof question,
				"5 us to create, export, import, reserve, map, open %llu MiB",
				(unsigned long long)(sizes[i] / MIB));
			say(question, "%.0f %.0f %.0f %.0f %.0f %.0f", us[0], us[1], us[2], us[3],
			    us[4], us[5]);
		}
	}
	if (result == CUDA_SUCCESS) {
		result = share_many(us, &where);
	}
	if (result == CUDA_SUCCESS) {
		say("5 us to export one of 25 first, again; to open all by one call",
		    "%.0f %.0f %.0f", us[0], us[1], us[2]);
	} else {
		refused("5 latencies", result, where);
	}
	return 0;
}

/* ---- 7: bandwidth ---- */

/* GB/s of a plain copy out of pinned memory that is full already: what the link gives. */
static double plain_copy(CUdeviceptr to, uint64_t size)
{
	const uint64_t part = 64 * MIB;
	uint64_t begun_ns;
	CUstream stream;
	void *bytes;

	if (cuda->cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING) != CUDA_SUCCESS ||
	    cuda->cuMemHostAlloc(&bytes, part, 0) != CUDA_SUCCESS) {
		return 0;
	}
	memset(bytes, 0x5a, part);
	begun_ns = clock_mono_ns();
	for (uint64_t at = 0; at + part <= size; at += part) {
		if (cuda->cuMemcpyHtoDAsync(to + at, bytes, part, stream) != CUDA_SUCCESS) {
			return 0;
		}
	}
	if (cuda->cuStreamSynchronize(stream) != CUDA_SUCCESS) {
		return 0;
	}
	return (double)size / (double)(clock_mono_ns() - begun_ns);
}

static double plain_copy_to_new_memory(uint64_t size)
{
	const CUmemAllocationProp properties = on_card();
	const CUmemAccessDesc access = {.location = properties.location,
					.flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE};
	CUmemGenericAllocationHandle handle;
	CUdeviceptr address = 0;
	CUcontext context;
	double best = 0;

	if (cuda->cuDevicePrimaryCtxRetain(&context, 0) != CUDA_SUCCESS ||
	    cuda->cuCtxSetCurrent(context) != CUDA_SUCCESS ||
	    cuda->cuMemCreate(&handle, size, &properties, 0) != CUDA_SUCCESS ||
	    cuda->cuMemAddressReserve(&address, size, 0, 0, 0) != CUDA_SUCCESS ||
	    cuda->cuMemMap(address, size, 0, handle, 0) != CUDA_SUCCESS ||
	    cuda->cuMemSetAccess(address, size, &access, 1) != CUDA_SUCCESS) {
		return 0;
	}
	for (int i = 0; i < 3; i++) {
		const double rate = plain_copy(address, size);

		best = rate > best ? rate : best;
	}
	(void)cuda->cuMemUnmap(address, size);
	(void)cuda->cuMemAddressFree(address, size);
	(void)cuda->cuMemRelease(handle);
	return best;
}

/* As the daemon fills from memory: windows of 32 MiB, four of them at once. */
struct windows {
	struct extent *extent;
	int fd;
	uint64_t next; /* atomic */
	int code;      /* atomic: a failure, with 'err' */
	struct err err;
};

#define N_LANES 4
#define WINDOW  (32 * MIB)

static void *fill_windows(void *argument)
{
	struct windows *windows = argument;
	uint64_t at;

	while ((at = __atomic_fetch_add(&windows->next, WINDOW, __ATOMIC_RELAXED)) <
	       windows->extent->bytes) {
		struct device_source source = {.fd = windows->fd, .offset = at, .bytes = WINDOW};
		struct err err = {0};
		uint64_t n_bytes = 0;
		const int code = device_fill(windows->extent, at, &source, &n_bytes, &err);

		if ((code < 0 || n_bytes != WINDOW) &&
		    __atomic_exchange_n(&windows->code, code < 0 ? code : -1, __ATOMIC_RELAXED) ==
			    0) {
			windows->err = err;
		}
	}
	return NULL;
}

static int fill_by_windows(struct extent *extent, int fd, struct err *err)
{
	struct windows windows = {.extent = extent, .fd = fd};
	pthread_t threads[N_LANES];

	for (size_t i = 0; i < N_LANES; i++) {
		if (pthread_create(&threads[i], NULL, fill_windows, &windows) != 0) {
			abort();
		}
	}
	for (size_t i = 0; i < N_LANES; i++) {
		(void)pthread_join(threads[i], NULL);
	}
	*err = windows.err;
	return windows.code < 0 ? windows.code : device_seal(extent, err);
}

static int ask_bandwidth(int none)
{
	static const char question[] = "7 fill from memory, against a plain copy of pinned memory";
	struct device *device = open_card(question);
	const uint64_t size = is_stand_in ? 64 * MIB : 1024 * MIB;
	const struct device_alloc request = {.name = "gpu-check", .bytes = size};
	const struct device_alloc little = {.name = "kept", .bytes = 1};
	const int fd = make_source(size, true);
	struct extent *kept = NULL; /* with it the card's context and its buffers stay */
	struct err err = {0};
	double plain;
	double first = 0;
	double best = 0;

	(void)none;
	plain = plain_copy_to_new_memory(size);
	if (device_alloc(device, &little, &kept, &err) < 0) {
		refused_by_us(question, &err);
		return 0;
	}
	for (int i = 0; i < 5; i++) {
		struct extent *extent = NULL;
		uint64_t begun_ns;
		int code = device_alloc(device, &request, &extent, &err);
		double rate;

		begun_ns = clock_mono_ns();
		if (code == 0) {
			code = fill_by_windows(extent, fd, &err);
		}
		rate = (double)size / (double)(clock_mono_ns() - begun_ns);
		if (code < 0 || device_release(extent, &err) < 0) {
			refused_by_us(question, &err);
			return 0;
		}
		first = i == 0 ? rate : first;
		best = rate > best ? rate : best;
	}
	(void)device_release(kept, NULL); /* else it goes with this process */
	if (plain <= 0) {
		say(question, "%.1f GB/s; the plain copy was refused", best);
		return 0;
	}
	say(question, "%.1f of %.1f GB/s (%.2f; the first, which pins buffers: %.1f)", best, plain,
	    best / plain, first);
	return 0;
}

static int show_cards(int none)
{
	const struct device_ops *ops = device_backend_find("cuda");
	char names[16][DEVICE_NAME_SIZE];
	uint32_t n_cards;
	int version = 0;

	(void)none;
	open_driver();
	n_cards = ops->probe(names, 16);
	(void)cuda->cuDriverGetVersion(&version);
	say("driver", "CUDA %d.%d", version / 1000, version % 1000 / 10);
	for (uint32_t i = 0; i < n_cards && i < 16; i++) {
		struct device *device = NULL;
		struct device_info info;
		struct err err = {0};

		if (device_open("cuda", names[i], &device, &err) < 0) {
			refused_by_us(names[i], &err);
			continue;
		}
		(void)device_info(device, &info, &err);
		say(names[i], "%s, %s, %s, %llu MiB, others use %llu MiB, link %.1f GB/s, %u peers",
		    info.product, info.uuid, info.pci, (unsigned long long)(info.total_bytes / MIB),
		    (unsigned long long)(info.foreign_bytes / MIB), (double)info.bytes_per_s / 1e9,
		    info.n_peers);
		(void)device_close(device);
	}
	return 0;
}

/* ---- main ---- */

static const struct role {
	const char *word;
	int (*play)(int fd);
} roles[] = {
	{"cards", show_cards},
	{"exporter", be_exporter},
	{"bystander", be_bystander},
	{"mapped", ask_mapped},
	{"parked", ask_parked},
	{"parked-alone", ask_parked_alone},
	{"parked-node", ask_parked_node},
	{"context", ask_context},
	{"writing", ask_writing},
	{"registering", ask_registering},
	{"registering-huge", ask_registering_huge},
	{"pinning", ask_pinning},
	{"reading", ask_reading},
	{"latency", ask_latency},
	{"bandwidth", ask_bandwidth},
};

static void report(const char *word, int status)
{
	if (status != 0) {
		(void)printf("%s: refused (its process ended with status %#x)\n", word,
			     (unsigned)status);
	}
}

static void ask(const char *word)
{
	report(word, end(begin(word, -1, NULL), 0));
}

int main(int argc, char **argv)
{
	static const char *const questions[] = {"context",          "writing",  "registering",
						"registering-huge", "pinning",  "latency",
						"reading",          "bandwidth"};
	int status;

	(void)setvbuf(stdout, NULL, _IOLBF, 0);
	device_register(&cuda_device_ops);
	for (size_t i = 0; argc == 3 && i < sizeof roles / sizeof roles[0]; i++) {
		if (strcmp(argv[1], roles[i].word) == 0) {
			return roles[i].play(atoi(argv[2]));
		}
	}
	if (argc != 1) {
		(void)fprintf(stderr, "usage: gpu_check\n");
		return 2;
	}
	status = end(begin("cards", -1, NULL), 0);
	if (WIFEXITED(status) && WEXITSTATUS(status) == 77) {
		return 77; /* no driver: it said why */
	}
	ask("mapped");
	report("parked", park("parked", true, -1));
	report("parked-alone", park("parked-alone", false, -1));
	report("parked-node", park("parked-node", false, open("/dev/nvidia0", O_RDWR | O_CLOEXEC)));
	for (size_t i = 0; i < sizeof questions / sizeof questions[0]; i++) {
		ask(questions[i]);
	}
	return 0;
}
