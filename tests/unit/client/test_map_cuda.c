/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Import of a card's memory, over the stand-in driver (tests/fakecuda). Who exports is another
 * process, as the worker of a daemon is.
 */
#include "tests/support/baseline.h"
#include "tests/support/fakecuda.h"

#include <cuda.h>
#include <signal.h>
#include <sys/socket.h>

#include "client/error.h"
#include "client/map_cuda.h"

#define MIB    (1ULL << 20)
#define SIZE   (4 * MIB)
#define BYTES  (SIZE - 1000) /* of them the segment's */
#define UUID_0 "GPU-fa4ecada-0000-4000-8000-000000000000"
#define UUID_1 "GPU-fa4ecada-0000-4000-8000-000000000001"

/* One call of the stand-in by name, of the header's type. */
#define CALL(name) ((__typeof__(name) *)find_call(#name))

typedef void any_call(void);

static any_call *find_call(const char *name)
{
	static __typeof__(cuGetProcAddress) *ask;
	CUdriverProcAddressQueryResult found;
	any_call *ret;
	void *call = NULL;

	if (ask == NULL) {
		void *library = dlopen("libcuda.so.1", RTLD_NOW);
		void *symbol = dlsym(library, "cuGetProcAddress_v2");

		memcpy(&ask, &symbol, sizeof ask);
	}
	MUST(ask(name, &call, 12000, 0, &found) == CUDA_SUCCESS && call != NULL);
	memcpy(&ret, &call, sizeof ret);
	return ret;
}

/* ---- who has the memory ---- */

struct exporter {
	pid_t pid;
	int fd; /* of its memory */
};

static void export_memory(int socket, int card)
{
	CUmemAllocationProp properties = {.type = CU_MEM_ALLOCATION_TYPE_PINNED,
					  .requestedHandleTypes =
						  CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR,
					  .location = {.type = CU_MEM_LOCATION_TYPE_DEVICE,
						       .id = card}};
	const CUmemAccessDesc access = {.location = properties.location,
					.flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE};
	CUmemGenericAllocationHandle handle;
	CUdeviceptr address;
	char control[CMSG_SPACE(sizeof(int))] = {0};
	char byte = 'x';
	struct iovec part = {.iov_base = &byte, .iov_len = 1};
	struct msghdr message = {.msg_iov = &part,
				 .msg_iovlen = 1,
				 .msg_control = control,
				 .msg_controllen = sizeof control};
	struct cmsghdr *header = CMSG_FIRSTHDR(&message);
	int fd = -1;

	MUST(setenv("CUDA_DEVICE_ORDER", "PCI_BUS_ID", 1) == 0);
	MUST(CALL(cuInit)(0) == CUDA_SUCCESS);
	MUST(CALL(cuMemCreate)(&handle, SIZE, &properties, 0) == CUDA_SUCCESS);
	MUST(CALL(cuMemAddressReserve)(&address, SIZE, 0, 0, 0) == CUDA_SUCCESS);
	MUST(CALL(cuMemMap)(address, SIZE, 0, handle, 0) == CUDA_SUCCESS);
	MUST(CALL(cuMemSetAccess)(address, SIZE, &access, 1) == CUDA_SUCCESS);
	for (uint64_t i = 0; i < SIZE; i++) {
		((uint8_t *)(uintptr_t)address)[i] = (uint8_t)(i * 31 + (i >> 12));
	}
	MUST(CALL(cuMemExportToShareableHandle)(&fd, handle,
						CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR,
						0) == CUDA_SUCCESS);
	header->cmsg_level = SOL_SOCKET;
	header->cmsg_type = SCM_RIGHTS;
	header->cmsg_len = CMSG_LEN(sizeof fd);
	memcpy(CMSG_DATA(header), &fd, sizeof fd);
	MUST(sendmsg(socket, &message, 0) == 1);
	(void)close(fd);
}

static struct exporter begin_exporter(int card)
{
	struct exporter exporter = {.fd = -1};
	char control[CMSG_SPACE(sizeof(int))];
	char byte;
	struct iovec part = {.iov_base = &byte, .iov_len = 1};
	struct msghdr message = {.msg_iov = &part,
				 .msg_iovlen = 1,
				 .msg_control = control,
				 .msg_controllen = sizeof control};
	int ends[2];

	MUST(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) == 0);
	exporter.pid = fork();
	if (exporter.pid == 0) {
		(void)alarm(FAKECUDA_PATIENCE);
		export_memory(ends[1], card);
		(void)pause();
	}
	MUST(recvmsg(ends[0], &message, MSG_CMSG_CLOEXEC) == 1);
	memcpy(&exporter.fd, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof exporter.fd);
	(void)close(ends[0]);
	(void)close(ends[1]);
	return exporter;
}

static void kill_exporter(const struct exporter *exporter)
{
	int status;

	MUST(kill(exporter->pid, SIGKILL) == 0);
	MUST(waitpid(exporter->pid, &status, 0) == exporter->pid);
}

static bool is_known(uint64_t address)
{
	const uint8_t *bytes = (const uint8_t *)(uintptr_t)address; /* the stand-in's pointers */

	for (uint64_t i = 0; i < BYTES; i++) {
		if (bytes[i] != (uint8_t)(i * 31 + (i >> 12))) {
			return false;
		}
	}
	return true;
}

static void must_fail(int rc, int code, const char *words)
{
	const struct distorch_error *error = distorch_error(NULL);

	if (rc != -code || strstr(error->message, words) == NULL) {
		(void)fprintf(stderr, "%d: %s\n", rc, error->message);
		_exit(1);
	}
}

static int import_one(int fd, const char *uuid, uint64_t bytes, struct cuda_range *ret)
{
	return map_cuda_import(uuid, &(struct cuda_source){.fd = fd, .bytes = bytes}, 1, ret);
}

/* ---- tests ---- */

static void import_and_release(void)
{
	const struct exporter exporter = begin_exporter(0);
	struct cuda_range range;
	int status = -1;

	MUST(setenv("CUDA_DEVICE_ORDER", "PCI_BUS_ID", 1) == 0);
	MUST(import_one(exporter.fd, UUID_0, BYTES, &range) == 0);
	MUST(fcntl(exporter.fd, F_GETFD) == -1); /* taken */
	MUST(range.ordinal == 0 && range.size == SIZE);
	MUST(is_known(range.address));
	kill_exporter(&exporter);
	MUST(is_known(range.address)); /* it is there as long as we have it */
	MUST(fakecuda.used(0) == SIZE);
	if (fork() == 0) { /* a write is fatal */
		(void)signal(SIGSEGV, SIG_DFL);
		*(volatile uint8_t *)(uintptr_t)range.address = 1;
		_exit(0);
	}
	MUST(wait(&status) > 0 && WIFSIGNALED(status) && WTERMSIG(status) == SIGSEGV);
	MUST(map_cuda_release(&range) == 0);
	MUST(fakecuda.used(0) == 0 && fakecuda.n_objects() == 0);
}

static void a_segment_is_read_and_outlives_who_exported_it(void **state)
{
	(void)state;
	fakecuda_in_process(import_and_release);
}

static void import_three(void)
{
	const struct exporter exporters[] = {begin_exporter(0), begin_exporter(0),
					     begin_exporter(0)};
	struct cuda_source sources[3];
	struct cuda_range range = {.address = 77};
	const int copy = dup(exporters[0].fd);

	MUST(setenv("CUDA_DEVICE_ORDER", "PCI_BUS_ID", 1) == 0);
	for (size_t i = 0; i < 3; i++) {
		sources[i] = (struct cuda_source){.fd = exporters[i].fd, .bytes = BYTES};
	}
	fakecuda.fault("cuMemSetAccess:2:1"); /* which is what costs: once is enough */
	MUST(map_cuda_import(UUID_0, sources, 3, &range) == 0);
	MUST(fakecuda.n_hits() == 0);
	MUST(range.size == 3 * SIZE && range.n_mapped == 3);
	for (size_t i = 0; i < 3; i++) {
		MUST(range.sizes[i] == SIZE && is_known(range.address + i * SIZE));
		MUST(fcntl(exporters[i].fd, F_GETFD) == -1);
		kill_exporter(&exporters[i]);
	}
	MUST(fakecuda.used(0) == 3 * SIZE);
	MUST(map_cuda_release(&range) == 0);
	MUST(fakecuda.used(0) == SIZE && fakecuda.n_objects() == 0); /* our copy's */
	/* All or none. */
	sources[0].fd = copy;
	sources[1].fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
	range.address = 77;
	must_fail(map_cuda_import(UUID_0, sources, 2, &range), DISTORCH_E_BAD_FD,
		  "importing the card's memory failed");
	MUST(range.address == 77 && fakecuda.n_objects() == 0 && fakecuda.used(0) == 0);
	MUST(fcntl(copy, F_GETFD) == -1 && fcntl(sources[1].fd, F_GETFD) == -1);
}

static void segments_that_come_together_lie_together(void **state)
{
	(void)state;
	fakecuda_in_process(import_three);
}

static void import_by_uuid(void)
{
	struct exporter exporter = begin_exporter(1);
	struct cuda_range range;

	/* The fastest first, and the first one only: the exporter's second card. */
	MUST(setenv("CUDA_VISIBLE_DEVICES", "0", 1) == 0);
	MUST(import_one(exporter.fd, UUID_1, BYTES, &range) == 0);
	MUST(range.ordinal == 0 && is_known(range.address));
	MUST(map_cuda_release(&range) == 0);
	kill_exporter(&exporter);
	exporter = begin_exporter(0);
	must_fail(import_one(exporter.fd, UUID_0, BYTES, &range), DISTORCH_E_UNSUPPORTED,
		  "card " UUID_0
		  " is not among the 1 that this process sees: CUDA_VISIBLE_DEVICES=0");
	MUST(fcntl(exporter.fd, F_GETFD) == -1);
	kill_exporter(&exporter);
	MUST(fakecuda.n_objects() == 0);
}

/* fault: G08 */
static void a_card_is_found_by_its_uuid_or_said_to_be_hidden(void **state)
{
	(void)state;
	fakecuda_in_process(import_by_uuid);
}

static void import_wrong_things(void)
{
	struct exporter exporter = begin_exporter(0);
	struct cuda_range range = {.address = 77};
	const int copy = dup(exporter.fd);
	int other = dup(exporter.fd);

	must_fail(import_one(exporter.fd, UUID_1, BYTES, &range), DISTORCH_E_BAD_FD,
		  "memory of another card");
	must_fail(import_one(copy, UUID_0, SIZE + 1, &range), DISTORCH_E_BAD_FD,
		  "mapping the card's memory failed");
	must_fail(import_one(other, UUID_0, UINT64_MAX, &range), DISTORCH_E_BAD_FD,
		  "18446744073709551615 bytes");
	other = open("/dev/null", O_RDONLY | O_CLOEXEC);
	must_fail(import_one(other, UUID_0, BYTES, &range), DISTORCH_E_BAD_FD,
		  "importing the card's memory failed");
	MUST(fcntl(other, F_GETFD) == -1 && fcntl(copy, F_GETFD) == -1);
	MUST(range.address == 77 && fakecuda.n_objects() == 0);
	kill_exporter(&exporter);
	MUST(fakecuda.used(0) == 0);
}

/* fault: G07 */
static void what_is_not_that_segment_is_refused(void **state)
{
	(void)state;
	fakecuda_in_process(import_wrong_things);
}

/* Not in fakecuda_in_process: nothing is loaded. */
static void a_program_without_a_driver_is_told(void **state)
{
	int status = -1;
	const pid_t child = fork();

	(void)state;
	if (child == 0) {
		struct cuda_range range;
		const int fd = open("/dev/null", O_RDONLY | O_CLOEXEC);

		if (dlopen("libcuda.so.1", RTLD_NOW) != NULL) {
			_exit(0); /* this machine has one */
		}
		must_fail(import_one(fd, UUID_0, BYTES, &range), DISTORCH_E_UNSUPPORTED,
			  "has no driver for the card: libcuda.so.1");
		MUST(fcntl(fd, F_GETFD) == -1);
		_exit(0);
	}
	assert_int_equal(waitpid(child, &status, 0), child);
	assert_int_equal(status, 0);
}

static void copy_then_release(void)
{
	const struct exporter exporter = begin_exporter(0);
	struct cuda_range range;
	CUcontext context = NULL;
	CUcontext current = NULL;
	CUstream stream = NULL;
	void *bytes = NULL;

	MUST(setenv("CUDA_DEVICE_ORDER", "PCI_BUS_ID", 1) == 0);
	MUST(CALL(cuInit)(0) == CUDA_SUCCESS);
	MUST(CALL(cuDevicePrimaryCtxRetain)(&context, 1) == CUDA_SUCCESS);
	MUST(CALL(cuCtxSetCurrent)(context) == CUDA_SUCCESS);
	MUST(CALL(cuStreamCreate)(&stream, 0) == CUDA_SUCCESS);
	MUST(CALL(cuMemHostAlloc)(&bytes, BYTES, 0) == CUDA_SUCCESS);
	MUST(import_one(exporter.fd, UUID_0, BYTES, &range) == 0);
	MUST(CALL(cuMemcpyDtoHAsync)(bytes, range.address, BYTES, stream) == CUDA_SUCCESS);
	MUST(!is_known((uintptr_t)bytes)); /* not yet done */
	MUST(map_cuda_release(&range) == 0);
	MUST(is_known((uintptr_t)bytes));
	MUST(CALL(cuStreamSynchronize)(stream) == CUDA_SUCCESS);
	MUST(CALL(cuCtxGetCurrent)(&current) == CUDA_SUCCESS && current == context);
	kill_exporter(&exporter);
}

static void release_waits_for_the_card_and_leaves_the_context_alone(void **state)
{
	(void)state;
	fakecuda_in_process(copy_then_release);
}

/* ---- failures ---- */

static bool frees_quietly(const char *call)
{
	return strcmp(call, "cuMemAddressFree") == 0 || strcmp(call, "cuMemRelease") == 0 ||
	       strcmp(call, "cuDevicePrimaryCtxRelease") == 0 ||
	       strcmp(call, "cuCtxPopCurrent") == 0;
}

static bool is_expected(int driver, int rc)
{
	return (driver == 2 && rc == -DISTORCH_E_NO_MEMORY) ||
	       (driver == 719 && rc == -DISTORCH_E_DEVICE_LOST) ||
	       (driver == 101 && rc == -DISTORCH_E_UNSUPPORTED) ||
	       (driver == 1 && (rc == -DISTORCH_E_INTERNAL || rc == -DISTORCH_E_BAD_FD));
}

/* False: there was no nth call. */
static bool fail_nth(uint64_t nth, int driver)
{
	const struct exporter exporters[] = {begin_exporter(0), begin_exporter(0)};
	const struct cuda_source sources[] = {{.fd = exporters[0].fd, .bytes = BYTES},
					      {.fd = exporters[1].fd, .bytes = BYTES}};
	const size_t n_fds = baseline_n_fds();
	struct cuda_range range;
	char fault[64];
	int released = 0;
	int rc;

	MUST(setenv("CUDA_DEVICE_ORDER", "PCI_BUS_ID", 1) == 0);
	(void)snprintf(fault, sizeof fault, "*:%llu:%d", (unsigned long long)nth, driver);
	fakecuda.fault(fault);
	rc = map_cuda_import(UUID_0, sources, 2, &range);
	MUST(baseline_n_fds() <= n_fds); /* the descriptors are gone in every case */
	if (rc == 0) {
		MUST(is_known(range.address) && is_known(range.address + SIZE));
		released = map_cuda_release(&range);
	}
	kill_exporter(&exporters[0]);
	kill_exporter(&exporters[1]);
	if (fakecuda.n_hits() == 0) {
		MUST(rc == 0 && released == 0 && fakecuda.n_objects() == 0);
		MUST(fakecuda.used(0) == 0);
		return false;
	}
	MUST(rc == 0 || is_expected(driver, rc));
	MUST(released == 0 || is_expected(driver, released));
	if (released < 0 && driver != 719) { /* said, so it can be tried again */
		MUST(map_cuda_release(&range) == 0);
		released = 0;
	}
	if (driver != 719 && !frees_quietly(fakecuda.struck())) {
		MUST(fakecuda.n_objects() == 0 && fakecuda.used(0) == 0);
	}
	return true;
}

/* fault: G04 G07 */
static void any_call_of_the_driver_that_fails_leaves_nothing(void **state)
{
	static const int codes[] = {1, 2, 101, 719};

	(void)state;
	for (size_t i = 0; i < sizeof codes / sizeof codes[0]; i++) {
		bool was_there = true;

		for (uint64_t nth = 1; was_there; nth++) {
			int status = -1;
			const pid_t child = fork();

			if (child == 0) {
				(void)alarm(FAKECUDA_PATIENCE);
				fakecuda_load();
				_exit(fail_nth(nth, codes[i]) ? 10 : 11);
			}
			assert_int_equal(waitpid(child, &status, 0), child);
			if (!WIFEXITED(status) || WEXITSTATUS(status) < 10) {
				fail_msg("call %llu, code %d", (unsigned long long)nth, codes[i]);
			}
			was_there = WEXITSTATUS(status) == 10;
			assert_true(nth < 100);
		}
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_segment_is_read_and_outlives_who_exported_it),
		cmocka_unit_test(segments_that_come_together_lie_together),
		cmocka_unit_test(a_card_is_found_by_its_uuid_or_said_to_be_hidden),
		cmocka_unit_test(what_is_not_that_segment_is_refused),
		cmocka_unit_test(a_program_without_a_driver_is_told),
		cmocka_unit_test(release_waits_for_the_card_and_leaves_the_context_alone),
		cmocka_unit_test(any_call_of_the_driver_that_fails_leaves_nothing),
	};
	int n_failed;

	fakecuda_prepare("64M,32M");
	n_failed = cmocka_run_group_tests(tests, NULL, NULL);
	fakecuda_end();
	return n_failed;
}
