/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The CUDA backend where the driver fails or a card is not alone: over the stand-in, since no
 * real driver fails when it is told to. Each test is a process of its own: what a driver has
 * seen lasts as long as the process. What holds for every backend is in test_device.c.
 */
#include "base/err.h"
#include "base/os/sys.h"
#include "tests/support/fakecuda.h"
#include "tests/support/scratch.h"

#include <pthread.h>
#include <signal.h>
#include <sys/wait.h>

#include "daemon/device/cuda_dl.h"
#include "daemon/device/device.h"
#include "proto/gen/wire_code.h"

#define MIB     (1ULL << 20)
#define GRANULE (2 * MIB)
#define SIZE    (5 * MIB + 1234)
#define CARD_0  (128 * MIB)
#define UUID_0  "GPU-fa4ecada-0000-4000-8000-000000000000"
#define UUID_1  "GPU-fa4ecada-0000-4000-8000-000000000001"

static int source_file;

static void must_say(const struct err *err, const char *words)
{
	if (strstr(err->text, words) == NULL) {
		(void)fprintf(stderr, "\"%s\" is not in \"%s\"\n", words, err->text);
		_exit(1);
	}
}

static struct device *open_card(const char *name)
{
	struct device *device = NULL;
	struct err err = {0};

	if (device_open("cuda", name, &device, &err) < 0) {
		(void)fprintf(stderr, "%s\n", err.text);
		_exit(1);
	}
	return device;
}

static int alloc(struct device *device, uint64_t bytes, struct extent **ret, struct err *err)
{
	const struct device_alloc request = {.name = "test", .bytes = bytes};

	return device_alloc(device, &request, ret, err);
}

/* In pieces of 'part', each byte known. */
static int fill_parts(struct extent *extent, uint64_t part, struct err *err)
{
	struct device_source source = {.fd = source_file};
	int code = 0;

	while (code == 0 && source.offset < extent->bytes) {
		uint64_t n_bytes = 0;
		const uint64_t left = extent->bytes - source.offset;

		source.bytes = left < part ? left : part;
		code = device_fill(extent, source.offset, &source, &n_bytes, err);
		source.offset += n_bytes;
	}
	return code;
}

static bool is_known(const struct extent *extent)
{
	uint8_t *bytes = malloc(extent->bytes);
	bool is_right = device_read(extent, 0, bytes, extent->bytes, NULL) == 0;

	for (uint64_t i = 0; is_right && i < extent->bytes; i++) {
		is_right = bytes[i] == scratch_byte(i);
	}
	free(bytes);
	return is_right;
}

static struct extent *given_sealed(struct device *device)
{
	struct extent *extent = NULL;

	MUST(alloc(device, SIZE, &extent, NULL) == 0);
	MUST(fill_parts(extent, 100000, NULL) == 0);
	MUST(device_seal(extent, NULL) == 0);
	return extent;
}

/* With the threads of a test. */
static struct {
	struct device *device;
	struct extent *extent;
	uint64_t at; /* atomic */
} shared;

/* ---- failures ---- */

/* Everything that is done with a card, up to the first failure; what was made is given back. */
static int do_everything(struct err *err, int *ret_release)
{
	struct device *device = NULL;
	struct extent *extents[3] = {NULL};
	int fd = -1;
	uint8_t byte;
	int code = device_open("cuda", "cuda:0", &device, err);

	*ret_release = 0;
	if (code == 0) {
		code = alloc(device, SIZE, &extents[0], err);
	}
	if (code == 0) {
		code = fill_parts(extents[0], SIZE, err);
	}
	if (code == 0) {
		code = device_read(extents[0], 7, &byte, 1, err);
	}
	if (code == 0) {
		code = device_seal(extents[0], err);
	}
	if (code == 0) {
		code = device_read(extents[0], SIZE - 1, &byte, 1, err);
	}
	if (code == 0) {
		code = device_export(extents[0], &fd, err);
	}
	if (code == 0) {
		code = device_import(device, fd, SIZE, &extents[1], err);
		(void)close(fd);
	}
	if (code == 0) {
		code = alloc(device, SIZE, &extents[2], err);
	}
	if (code == 0) {
		code = device_copy(extents[2], extents[0], err);
	}
	for (size_t i = 0; i < 3; i++) {
		struct err later = {0};
		const int released = device_release(extents[i], &later);

		if (released < 0 && code == 0 && *ret_release == 0) {
			*err = later;
		}
		*ret_release = *ret_release < 0 ? *ret_release : released;
	}
	(void)device_close(device);
	return code;
}

static bool takes_back(const char *call)
{
	return strcmp(call, "cuMemUnmap") == 0 || strcmp(call, "cuMemRelease") == 0;
}

/* What is given back with nobody to tell: it goes with the process. */
static bool frees_quietly(const char *call)
{
	static const char *const calls[] = {"cuMemAddressFree", "cuMemFreeHost", "cuEventDestroy",
					    "cuStreamDestroy", "cuDevicePrimaryCtxRelease"};

	for (size_t i = 0; i < sizeof calls / sizeof calls[0]; i++) {
		if (strcmp(call, calls[i]) == 0) {
			return true;
		}
	}
	return false;
}

static bool is_expected(int driver, const char *ever, int code)
{
	static const struct {
		int driver;
		int code;
	} expected[] = {{2, WIRE_NO_MEMORY},     {700, WIRE_DEVICE_LOST}, {999, WIRE_DEVICE_LOST},
			{801, WIRE_UNSUPPORTED}, {46, WIRE_BUSY},         {1, WIRE_INTERNAL},
			{1, WIRE_BAD_FD},        {1, WIRE_UNSUPPORTED}};

	if (driver == 2 && strcmp(fakecuda.struck(), "cuMemHostAlloc") == 0) {
		return code == -WIRE_BUSY; /* the host's memory, not the card's */
	}
	if (code == -WIRE_DEVICE_LOST && (takes_back(fakecuda.struck()) || *ever != '\0')) {
		return true; /* on the way out of another failure */
	}
	for (size_t i = 0; i < sizeof expected / sizeof expected[0]; i++) {
		if (expected[i].driver == driver && expected[i].code == -code) {
			return true;
		}
	}
	return false;
}

/* The nth call fails. Returns false when there was no nth. */
static bool try_nth(uint64_t nth, int driver, const char *ever)
{
	struct err err = {0};
	char fault[64];
	int released;
	int code;

	(void)snprintf(fault, sizeof fault, "*:%llu:%d%s", (unsigned long long)nth, driver, ever);
	fakecuda.fault(fault);
	code = do_everything(&err, &released);
	if (fakecuda.n_hits() == 0) {
		MUST(code == 0 && released == 0 && fakecuda.n_objects() == 0);
		return false;
	}
	if (code == 0) {
		code = released;
	}
	if (code < 0 &&
	    !(is_expected(driver, ever, code) && err.text[0] != '\0' && err.code == -code)) {
		(void)fprintf(stderr, "%s failed with %d: code %d, %s\n", fakecuda.struck(), driver,
			      code, err.text);
		_exit(1);
	}
	if (takes_back(fakecuda.struck()) && *ever == '\0') {
		MUST(code < 0); /* the bytes are not free, and somebody is told */
	} else if (/* memory that a copy may be under way to is not given back, and that is said */
		   !(code < 0 && strcmp(fakecuda.struck(), "cuStreamSynchronize") == 0) &&
		   *ever == '\0' && driver != 700 && driver != 999 &&
		   !frees_quietly(fakecuda.struck())) {
		if (fakecuda.n_objects() != 0) {
			(void)fprintf(stderr, "%s failed with %d: %llu objects are left\n",
				      fakecuda.struck(), driver,
				      (unsigned long long)fakecuda.n_objects());
			_exit(1);
		}
		MUST(fakecuda.used(0) == 0);
	}
	return true;
}

/* A failure of each call in turn, each in a process: a driver that failed is not used again. */
static void fail_each_call(int driver, const char *ever)
{
	bool was_there = true;

	for (uint64_t nth = 1; was_there; nth++) {
		int status = -1;
		const pid_t child = fork();

		if (child == 0) {
			(void)alarm(FAKECUDA_PATIENCE);
			fakecuda_load();
			_exit(try_nth(nth, driver, ever) ? 10 : 11);
		}
		assert_int_equal(waitpid(child, &status, 0), child);
		if (!WIFEXITED(status) || WEXITSTATUS(status) < 10) {
			fail_msg("call %llu, code %d%s", (unsigned long long)nth, driver, ever);
		}
		was_there = WEXITSTATUS(status) == 10;
		assert_true(nth < 1000);
	}
}

/* fault: G02 */
static void no_memory_at_any_call_leaves_nothing(void **state)
{
	(void)state;
	fail_each_call(2, "");
}

/* fault: G04 */
static void a_fatal_fault_at_any_call_is_a_lost_device(void **state)
{
	(void)state;
	fail_each_call(700, "");
}

/* fault: G05 */
static void a_driver_that_goes_away_at_any_call_leaves_nothing(void **state)
{
	(void)state;
	fail_each_call(46, ":ever");
}

/* fault: G07 */
static void any_other_failure_at_any_call_leaves_nothing(void **state)
{
	(void)state;
	fail_each_call(1, "");
}

/* ---- memory ---- */

static void use_up_a_card(void)
{
	struct device *device = open_card("cuda:0");
	struct extent *extents[2] = {NULL};
	struct device_info info;
	struct err err = {0};

	MUST(fakecuda.used(0) == 0); /* what it was tried with is gone */
	MUST(alloc(device, CARD_0 + 1, &extents[0], &err) == -WIRE_NO_MEMORY);
	must_say(&err, "more than it has");
	MUST(alloc(device, CARD_0 - GRANULE, &extents[0], &err) == 0);
	MUST(alloc(device, GRANULE + 1, &extents[1], &err) == -WIRE_NO_MEMORY);
	must_say(&err, "cuda:0: taking 4.0M of 128M: out of memory");
	MUST(err.driver == 2);
	MUST(fakecuda.used(0) == CARD_0 - GRANULE);
	MUST(alloc(device, GRANULE, &extents[1], &err) == 0);
	MUST(device_info(device, &info, &err) == 0);
	MUST(info.foreign_bytes == 0 && info.total_bytes == CARD_0);
	MUST(device_release(extents[0], &err) == 0);
	MUST(device_release(extents[1], &err) == 0);
	MUST(fakecuda.used(0) == 0);
	(void)device_close(device);
	MUST(fakecuda.n_objects() == 0);
}

/* fault: G02 */
static void a_card_is_full_to_the_granule(void **state)
{
	(void)state;
	fakecuda_in_process(use_up_a_card);
}

static void share_with_a_stranger(void)
{
	struct device *device = open_card("cuda:0");
	struct extent *extent = NULL;
	struct device_info info;
	struct err err = {0};

	MUST(device_info(device, &info, &err) == 0 && info.foreign_bytes == 0);
	fakecuda_write(0, "foreign", "104857600");
	MUST(alloc(device, 64 * MIB, &extent, &err) == -WIRE_NO_MEMORY);
	MUST(extent == NULL && fakecuda.used(0) == 100 * MIB);
	MUST(alloc(device, 20 * MIB, &extent, &err) == 0);
	MUST(device_info(device, &info, &err) == 0);
	MUST(info.foreign_bytes == 100 * MIB); /* and not ours */
	MUST(device_release(extent, &err) == 0);
	fakecuda_write(0, "foreign", "0");
	(void)device_close(device);
}

/* fault: G03 */
static void what_others_took_meanwhile_is_not_there(void **state)
{
	(void)state;
	fakecuda_in_process(share_with_a_stranger);
}

static void count_context(void)
{
	struct device *device;
	struct extent *extents[2] = {NULL};
	struct device_info info;

	(void)setenv("FAKECUDA_CONTEXT", "3M", 1);
	fakecuda_write(0, "foreign", "5242880");
	device = open_card("cuda:0");
	MUST(fakecuda.used(0) == 5 * MIB); /* none is there */
	MUST(device_info(device, &info, NULL) == 0 && info.foreign_bytes == 8 * MIB);
	MUST(alloc(device, CARD_0 - 8 * MIB, &extents[0], NULL) == 0);
	MUST(device_info(device, &info, NULL) == 0 && info.foreign_bytes == 8 * MIB);
	MUST(alloc(device, 1, &extents[1], NULL) == -WIRE_NO_MEMORY);
	MUST(device_release(extents[0], NULL) == 0);
	MUST(device_info(device, &info, NULL) == 0 && info.foreign_bytes == 8 * MIB);
	fakecuda_write(0, "foreign", "132120576"); /* two of it are free, which is too little */
	MUST(device_info(device, &info, NULL) == 0 && info.foreign_bytes == CARD_0);
	fakecuda_write(0, "foreign", "0");
	(void)device_close(device);
	MUST(fakecuda.n_objects() == 0 && fakecuda.used(0) == 0);
}

static void a_context_is_counted_whether_it_is_there_or_not(void **state)
{
	(void)state;
	fakecuda_in_process(count_context);
}

static void *alloc_alone(void *argument)
{
	struct extent **ret = argument;

	MUST(alloc(shared.device, 4 * MIB, ret, NULL) == 0);
	return NULL;
}

static void *ask_alone(void *argument)
{
	MUST(device_info(shared.device, argument, NULL) == 0);
	return NULL;
}

/* Memory is taken and given back in the midst of a look, after NVML has counted or before. */
static void change_during_a_look(const char *where)
{
	struct extent *extent = NULL;
	struct device_info info;
	pthread_t thread;

	fakecuda_write(0, where, "1");
	MUST(pthread_create(&thread, NULL, ask_alone, &info) == 0);
	scratch_sleep_ms(50); /* then it has most likely begun */
	MUST(alloc(shared.device, 8 * MIB, &extent, NULL) == 0);
	fakecuda_write(0, where, "0");
	MUST(pthread_join(thread, NULL) == 0);
	MUST(info.foreign_bytes == 6 * MIB && info.is_foreign_old);
	fakecuda_write(0, where, "1");
	MUST(pthread_create(&thread, NULL, ask_alone, &info) == 0);
	scratch_sleep_ms(50);
	MUST(device_release(extent, NULL) == 0);
	fakecuda_write(0, where, "0");
	MUST(pthread_join(thread, NULL) == 0);
	MUST(info.foreign_bytes == 6 * MIB && info.is_foreign_old);
}

/* A look while memory is being taken, and memory that is taken during a look. */
static void look_in_the_midst(void)
{
	struct extent *extent = NULL;
	struct device_info info;
	pthread_t thread;

	shared.device = open_card("cuda:0");
	fakecuda_write(0, "foreign", "6291456");
	MUST(device_info(shared.device, &info, NULL) == 0 && info.foreign_bytes == 6 * MIB);
	fakecuda_write(0, "stop-create", "1");
	MUST(pthread_create(&thread, NULL, alloc_alone, &extent) == 0);
	while (fakecuda.used(0) < 10 * MIB) {
		scratch_sleep_ms(1);
	}
	MUST(device_info(shared.device, &info, NULL) == 0);
	fakecuda_write(0, "stop-create", "0");
	MUST(info.foreign_bytes == 6 * MIB && info.is_foreign_old);
	MUST(pthread_join(thread, NULL) == 0);
	change_during_a_look("stop-look");
	change_during_a_look("stop-counted");
	MUST(device_release(extent, NULL) == 0);
	MUST(device_info(shared.device, &info, NULL) == 0 && info.foreign_bytes == 6 * MIB);
	MUST(!info.is_foreign_old);
	fakecuda_write(0, "foreign", "0");
	(void)device_close(shared.device);
}

static void what_is_being_taken_is_not_taken_by_others(void **state)
{
	(void)state;
	fakecuda_in_process(look_in_the_midst);
}

static void watch_health(void)
{
	struct device *device;
	struct device_info info;

	fakecuda_write(0, "xid", "13");
	device = open_card("cuda:0");
	fakecuda_write(0, "temperature", "71");
	MUST(device_info(device, &info, NULL) == 0);
	MUST(info.temperature == 71);
	MUST(info.n_xids == 0 && info.last_xid == 0); /* 13 was before our time */
	fakecuda_write(0, "xid", "63");
	MUST(device_info(device, &info, NULL) == 0 && info.n_xids == 1 && info.last_xid == 63);
	MUST(device_info(device, &info, NULL) == 0 && info.n_xids == 1 && info.last_xid == 63);
	MUST(strcmp(info.uuid, UUID_0) == 0 && strcmp(info.pci, "0000:01:00.0") == 0);
	MUST(strcmp(info.product, "Stand-in 0") == 0 && info.granularity == GRANULE);
	MUST(info.bytes_per_s > 0);
	MUST(info.n_peers == 1 && strcmp(info.peers[0].uuid, UUID_1) == 0);
	(void)device_close(device);
}

/* fault: G06 */
static void a_card_says_who_it_is_and_how_it_is(void **state)
{
	(void)state;
	fakecuda_in_process(watch_health);
}

static void fail_nvml(void)
{
	struct device *device = open_card("cuda:0");
	struct device_info info;
	struct err err = {0};

	fakecuda_write(0, "foreign", "4194304");
	fakecuda_write(0, "temperature", "71");
	MUST(device_info(device, &info, &err) == 0 && info.foreign_bytes == 4 * MIB);
	fakecuda_write(0, "foreign", "2097152");
	fakecuda_write(0, "temperature", "70");
	fakecuda_write(0, "nvml", "999");
	MUST(device_info(device, &info, &err) == 0); /* that was nothing new */
	MUST(info.foreign_bytes == 4 * MIB && info.temperature == 71);
	fakecuda_write(0, "nvml", "0");
	MUST(device_info(device, &info, &err) == 0);
	MUST(info.foreign_bytes == 2 * MIB && info.temperature == 70);
	fakecuda_write(0, "nvml", "15");
	MUST(device_info(device, &info, &err) == -WIRE_DEVICE_LOST);
	must_say(&err, "NVML says of " UUID_0 ": ");
	fakecuda_write(0, "nvml", "16");
	MUST(device_info(device, &info, &err) == -WIRE_DEVICE_LOST);
	fakecuda_write(0, "nvml", "0");
	fakecuda_write(0, "foreign", "0");
	(void)device_close(device);
}

/* fault: G06 */
static void what_nvml_does_not_say_is_as_it_was_unless_the_card_is_lost(void **state)
{
	(void)state;
	fakecuda_in_process(fail_nvml);
}

static void live_without_nvml(void)
{
	struct device *device;
	struct device_info info;

	(void)setenv("FAKECUDA_NO_NVML", "1", 1);
	device = open_card("cuda:0");
	MUST(device_info(device, &info, NULL) == 0);
	MUST(info.foreign_bytes == 0 && info.temperature == 0 && info.last_xid == 0);
	(void)device_close(device);
}

static void a_card_works_without_nvml(void **state)
{
	(void)state;
	fakecuda_in_process(live_without_nvml);
}

/* ---- which card ---- */

static void name_cards(void)
{
	struct device_info info;
	struct device *device;

	(void)setenv("FAKECUDA_ORDER", "1,0", 1);     /* somebody moved the cards */
	(void)setenv("CUDA_VISIBLE_DEVICES", "0", 1); /* not for us */
	device = open_card("cuda:0");
	MUST(device_info(device, &info, NULL) == 0 && strcmp(info.uuid, UUID_1) == 0);
	(void)device_close(device);
	device = open_card(UUID_0);
	MUST(device_info(device, &info, NULL) == 0 && strcmp(info.pci, "0000:02:00.0") == 0);
	(void)device_close(device);
}

/* fault: G08 */
static void a_card_is_found_by_its_uuid_wherever_it_is(void **state)
{
	(void)state;
	fakecuda_in_process(name_cards);
}

static void refuse_mode(const char *mode, const char *word)
{
	struct device *device = NULL;
	struct err err = {0};

	(void)setenv("FAKECUDA_COMPUTE_MODE", mode, 1);
	MUST(device_open("cuda", "cuda:0", &device, &err) == -WIRE_UNSUPPORTED);
	must_say(&err, word);
	must_say(&err, "nvidia-smi -i " UUID_0 " -c DEFAULT");
	MUST(fakecuda.n_objects() == 0);
}

static void refuse_modes(void)
{
	refuse_mode("2", "Prohibited");
	refuse_mode("3", "Exclusive_Process");
}

/* fault: G13 */
static void a_card_for_one_process_is_refused_and_the_mode_named(void **state)
{
	(void)state;
	fakecuda_in_process(refuse_modes);
}

static void refuse_sharing(void)
{
	static const char *const faults[] = {"cuMemExportToShareableHandle:1:801:ever",
					     "cuMemImportFromShareableHandle:1:1"};

	for (size_t i = 0; i < 2; i++) {
		struct device *device = NULL;
		struct err err = {0};

		fakecuda.fault("");
		MUST(cuda_load(NULL) != NULL);
		fakecuda.fault(faults[i]);
		MUST(device_open("cuda", "cuda:0", &device, &err) == -WIRE_UNSUPPORTED);
		must_say(&err, i == 0 ? "exporting memory" : "cannot share memory");
		MUST(fakecuda.n_objects() == 0 && fakecuda.used(0) == 0);
	}
}

/* fault: G07 */
static void a_card_that_says_it_shares_and_does_not_is_refused(void **state)
{
	(void)state;
	fakecuda_in_process(refuse_sharing);
}

static void open_full_card(void)
{
	struct device *device;
	struct extent *extent = NULL;

	fakecuda_write(0, "foreign", "134217728");
	device = open_card("cuda:0");
	MUST(alloc(device, 1, &extent, NULL) == -WIRE_NO_MEMORY);
	fakecuda_write(0, "foreign", "0");
	MUST(alloc(device, 1, &extent, NULL) == 0);
	MUST(device_release(extent, NULL) == 0);
	(void)device_close(device);
	MUST(fakecuda.n_objects() == 0);
}

static void a_card_that_is_full_is_a_card(void **state)
{
	(void)state;
	fakecuda_in_process(open_full_card);
}

/* ---- bytes ---- */

static void fill_in_small_parts(void)
{
	struct device *device = open_card("cuda:0");
	struct extent *extent = NULL;

	MUST(alloc(device, SIZE, &extent, NULL) == 0);
	MUST(fill_parts(extent, 4097, NULL) == 0); /* many more than there are buffers */
	MUST(is_known(extent));
	MUST(device_seal(extent, NULL) == 0);
	MUST(is_known(extent));
	MUST(device_release(extent, NULL) == 0);
	(void)device_close(device);
	MUST(fakecuda.n_objects() == 0 && fakecuda.used(0) == 0);
}

static void export_again_and_again(void)
{
	struct device *device = open_card("cuda:0");
	struct extent *extent = NULL;
	int fds[3];

	for (int i = 0; i < 2; i++) { /* one that is kept, and one that was refused at the seal */
		MUST(alloc(device, SIZE, &extent, NULL) == 0);
		fakecuda.fault(i == 0 ? "" : "cuMemExportToShareableHandle:1:801");
		MUST(device_seal(extent, NULL) == 0);
		fakecuda.fault(i == 0 ? "cuMemExportToShareableHandle:1:801:ever" : "");
		for (size_t j = 0; j < 3; j++) {
			MUST(device_export(extent, &fds[j], NULL) == 0);
			MUST(fcntl(fds[j], F_GETFD) == FD_CLOEXEC);
			MUST(close(fds[j]) == 0);
		}
		MUST(device_release(extent, NULL) == 0);
		MUST(fakecuda.n_objects() == 0 && fakecuda.used(0) == 0);
	}
	fakecuda.fault("");
	(void)device_close(device);
}

static void the_driver_exports_before_anybody_asks(void **state)
{
	(void)state;
	fakecuda_in_process(export_again_and_again);
}

#define N_KEPT    32 /* in testing builds */
#define N_MANY    50
#define N_REFUSED 8

/* How many of them are handed on without the driver. */
static size_t count_kept(struct extent *const *extents)
{
	size_t count = 0;

	fakecuda.fault("cuMemExportToShareableHandle:1:801:ever");
	for (size_t i = 0; i < N_MANY; i++) {
		int fd = -1;

		if (device_export(extents[i], &fd, NULL) == 0) {
			count++;
			(void)close(fd);
		}
	}
	fakecuda.fault("");
	return count;
}

static void export_of_many(void)
{
	struct device *device = open_card("cuda:0");
	struct extent *extents[N_MANY];
	int fd;

	for (size_t round = 0; round < 3; round++) {
		for (size_t i = 0; i < N_MANY; i++) {
			MUST(alloc(device, 1, &extents[i], NULL) == 0);
			/* Those that were refused are not counted as kept. */
			fakecuda.fault(i < N_REFUSED ? "cuMemExportToShareableHandle:1:801" : "");
			MUST(device_seal(extents[i], NULL) == 0);
		}
		MUST(count_kept(extents) == N_KEPT);
		for (size_t i = 0; i < N_MANY; i++) {
			MUST(device_export(extents[i], &fd, NULL) == 0);
			(void)close(fd);
			MUST(device_release(extents[i], NULL) == 0);
		}
	}
	(void)device_close(device);
	MUST(fakecuda.n_objects() == 0 && fakecuda.used(0) == 0);
}

static void no_more_exports_are_kept_than_a_process_can_have_open(void **state)
{
	(void)state;
	fakecuda_in_process(export_of_many);
}

static void lose_at_the_export(void)
{
	struct device *device = open_card("cuda:0");
	struct extent *extent = NULL;
	struct err err = {0};

	MUST(alloc(device, SIZE, &extent, NULL) == 0);
	fakecuda.fault("cuMemExportToShareableHandle:1:700");
	MUST(device_seal(extent, &err) == -WIRE_DEVICE_LOST);
	must_say(&err, "exporting memory");
}

static void a_card_that_is_lost_at_the_export_is_lost_at_the_seal(void **state)
{
	(void)state;
	fakecuda_in_process(lose_at_the_export);
}

static void no_buffer_is_read_into_while_it_is_copied(void **state)
{
	(void)state;
	fakecuda_in_process(fill_in_small_parts);
}

/* By several threads at once, of which each finds that it has nothing to read into. */
static void fill_without_buffers(void)
{
	struct device *device = open_card("cuda:0");

	fakecuda.fault("cuMemHostAlloc:1:2:ever");
	for (int i = 0; i < 300; i++) {
		struct extent *extent = NULL;
		struct err err = {0};

		MUST(alloc(device, SIZE, &extent, NULL) == 0);
		MUST(fill_parts(extent, SIZE, &err) == -WIRE_BUSY);
		MUST(device_release(extent, NULL) == 0); /* and what is known of buffers with it */
	}
	(void)device_close(device);
}

static void threads_without_memory_to_pin_do_not_wait_for_each_other(void **state)
{
	(void)state;
	fakecuda_in_process(fill_without_buffers);
}

static void fill_with_few_buffers(void)
{
	struct device *device = open_card("cuda:0");
	struct extent *extent = NULL;
	struct err err = {0};

	MUST(alloc(device, SIZE, &extent, NULL) == 0);
	fakecuda.fault("cuMemHostAlloc:1:2:ever");
	MUST(fill_parts(extent, MIB, &err) == -WIRE_BUSY);
	must_say(&err, "cuda:0: the host has no 2 MiB now that can be pinned");
	fakecuda.fault("cuMemHostAlloc:2:2:ever");
	err = (struct err){0};
	MUST(fill_parts(extent, 100000, &err) == 0);
	MUST(fakecuda.n_hits() > 0 && err.code == 0);
	MUST(device_seal(extent, NULL) == 0);
	MUST(is_known(extent));
	MUST(device_release(extent, NULL) == 0);
	fakecuda.fault("");
	(void)device_close(device);
	MUST(fakecuda.n_objects() == 0 && fakecuda.used(0) == 0);
}

/* fault: G02 */
static void a_host_without_memory_to_pin_is_no_full_card(void **state)
{
	(void)state;
	fakecuda_in_process(fill_with_few_buffers);
}

static void *fill_some(void *none)
{
	const uint64_t part = 50000;

	(void)none;
	for (;;) {
		const uint64_t at = __atomic_fetch_add(&shared.at, part, __ATOMIC_RELAXED);
		const uint64_t left = at < SIZE ? SIZE - at : 0;
		const struct device_source source = {.fd = source_file,
						     .offset = at,
						     .bytes = left < part ? left : part};
		uint64_t n_bytes = 0;

		if (left == 0) {
			return NULL;
		}
		MUST(device_fill(shared.extent, at, &source, &n_bytes, NULL) == 0);
		MUST(n_bytes == source.bytes);
	}
}

static void fill_from_threads(void)
{
	struct device *device = open_card("cuda:0");
	pthread_t threads[6];

	MUST(alloc(device, SIZE, &shared.extent, NULL) == 0);
	for (size_t i = 0; i < 6; i++) {
		MUST(pthread_create(&threads[i], NULL, fill_some, NULL) == 0);
	}
	for (size_t i = 0; i < 6; i++) {
		MUST(pthread_join(threads[i], NULL) == 0);
	}
	MUST(device_seal(shared.extent, NULL) == 0);
	MUST(is_known(shared.extent));
	MUST(device_release(shared.extent, NULL) == 0);
	(void)device_close(device);
}

static void several_threads_fill_one_extent(void **state)
{
	(void)state;
	fakecuda_in_process(fill_from_threads);
}

/* 20 MiB of a file, wanted as more: in several parts at once, with and without threads. */
static void fill_in_large_parts(const char *fault)
{
	const uint64_t size = 20 * MIB + 5;
	struct device *device = open_card("cuda:0");
	struct device_source source = {.fd = scratch_open(), .bytes = 40 * MIB};
	struct extent *extent = NULL;
	uint64_t n_bytes = 0;
	uint8_t *bytes = malloc(size);

	MUST(sys_fault_parse(fault));
	scratch_fill(source.fd, 0, size);
	MUST(alloc(device, source.bytes, &extent, NULL) == 0);
	MUST(device_fill(extent, 0, &source, &n_bytes, NULL) == 0 && n_bytes == size);
	MUST(device_read(extent, 0, bytes, size, NULL) == 0);
	for (uint64_t j = 0; j < size; j++) {
		MUST(bytes[j] == scratch_byte(j));
	}
	sys_fault_clear();
	MUST(sys_fault_parse("pread:1:short=1000:ever")); /* what is behind a gap is not there */
	MUST(device_fill(extent, 0, &source, &n_bytes, NULL) == 0 && n_bytes == 1000);
	sys_fault_clear();
	MUST(device_release(extent, NULL) == 0);
	(void)device_close(device);
	MUST(fakecuda.n_objects() == 0);
	free(bytes);
}

static void fill_large_parts_both_ways(void)
{
	fill_in_large_parts("");
	fill_in_large_parts("pthread_create:1:EAGAIN:ever");
}

static void a_large_read_is_whole_up_to_its_end(void **state)
{
	(void)state;
	fakecuda_in_process(fill_large_parts_both_ways);
}

static void stop_half_way(void)
{
	struct device *device = open_card("cuda:0");
	struct device_source source = {.fd = source_file, .bytes = MIB};
	struct extent *extent = NULL;
	uint64_t n_bytes;

	MUST(alloc(device, SIZE, &extent, NULL) == 0);
	MUST(device_fill(extent, 0, &source, &n_bytes, NULL) == 0);
	MUST(device_release(extent, NULL) == 0);
	MUST(fakecuda.used(0) == 0);
	(void)device_close(device);
	MUST(fakecuda.n_objects() == 0);
}

/* fault: G12 */
static void a_fill_that_is_given_up_frees_everything(void **state)
{
	(void)state;
	fakecuda_in_process(stop_half_way);
}

static void copy_between_cards(void)
{
	struct device *first = open_card("cuda:0");
	struct device *second = open_card("cuda:1");
	struct extent *from = given_sealed(first);
	struct extent *to = NULL;
	struct device_info info;
	struct err err = {0};
	uint64_t bytes_per_s;

	MUST(alloc(second, SIZE, &to, &err) == 0);
	MUST(device_copy(to, from, &err) == 0);
	MUST(device_seal(to, &err) == 0);
	MUST(device_release(from, &err) == 0);
	MUST(fakecuda.used(0) == 0);
	MUST(is_known(to));
	MUST(device_release(to, &err) == 0);
	MUST(device_info(second, &info, &err) == 0 && info.n_peers == 1);
	MUST(strcmp(info.peers[0].uuid, UUID_0) == 0);
	MUST(info.peers[0].bytes_per_s == 0); /* that was too little to tell */
	MUST(alloc(first, 16 * MIB, &from, &err) == 0 && device_seal(from, &err) == 0);
	MUST(alloc(second, 16 * MIB, &to, &err) == 0);
	MUST(device_copy(to, from, &err) == 0);
	MUST(device_info(second, &info, &err) == 0 && info.peers[0].bytes_per_s > 0);
	MUST(device_release(from, &err) == 0 && device_release(to, &err) == 0);
	/* A copy on one card says nothing of its peer. */
	MUST(alloc(second, 16 * MIB, &from, &err) == 0 && device_seal(from, &err) == 0);
	MUST(alloc(second, 16 * MIB, &to, &err) == 0);
	bytes_per_s = info.peers[0].bytes_per_s;
	MUST(device_copy(to, from, &err) == 0);
	MUST(device_info(second, &info, &err) == 0 && info.peers[0].bytes_per_s == bytes_per_s);
	MUST(device_release(from, &err) == 0 && device_release(to, &err) == 0);
	(void)device_close(second);
	(void)device_close(first);
	MUST(fakecuda.n_objects() == 0);
}

static void cards_copy_to_each_other(void **state)
{
	(void)state;
	fakecuda_in_process(copy_between_cards);
}

static void refuse_peer(void)
{
	struct device *first;
	struct device *second;
	struct device_info info;
	struct extent *from;
	struct extent *imported = NULL;
	struct err err = {0};
	int fd = -1;

	(void)setenv("FAKECUDA_PEERS", "none", 1);
	first = open_card("cuda:0");
	second = open_card("cuda:1");
	MUST(device_info(first, &info, NULL) == 0 && info.n_peers == 0);
	from = given_sealed(first);
	MUST(device_export(from, &fd, &err) == 0);
	MUST(device_import(second, fd, SIZE, &imported, &err) == -WIRE_UNSUPPORTED);
	(void)close(fd);
	MUST(device_release(from, &err) == 0);
	(void)device_close(second);
	(void)device_close(first);
	MUST(fakecuda.n_objects() == 0 && fakecuda.used(0) == 0);
}

/* fault: G07 */
static void cards_that_do_not_reach_each_other_say_so(void **state)
{
	(void)state;
	fakecuda_in_process(refuse_peer);
}

/* ---- what outlives what ---- */

static void break_a_worker(void)
{
	struct device *device = open_card("cuda:0");
	struct extent *extent = given_sealed(device);
	struct extent *other = NULL;
	struct err err = {0};
	uint8_t byte;
	int fd = -1;

	MUST(device_export(extent, &fd, &err) == 0);
	fakecuda.fault("cuMemcpyDtoHAsync:1:719");
	MUST(device_read(extent, 0, &byte, 1, &err) == -WIRE_DEVICE_LOST);
	must_say(&err, "cuda:0: copying from the card");
	MUST(err.driver == 719);
	/* From here on nothing works, and nothing claims that it did. */
	MUST(alloc(device, 1, &other, &err) == -WIRE_DEVICE_LOST);
	MUST(device_export(extent, &fd, &err) == -WIRE_DEVICE_LOST);
	MUST(device_release(extent, &err) == -WIRE_DEVICE_LOST);
	(void)device_close(device);
	if (fork() == 0) { /* another process does not notice */
		fakecuda.fault("");
		device = open_card("cuda:0");
		MUST(device_import(device, fd, SIZE, &other, &err) == 0);
		MUST(is_known(other));
		_exit(0);
	}
	{
		int status = -1;

		MUST(wait(&status) > 0 && status == 0);
	}
}

/* fault: G04 */
static void after_a_fatal_fault_every_call_says_so_and_nobody_else(void **state)
{
	(void)state;
	fakecuda_in_process(break_a_worker);
}

/* A card's memory is there until the last who has it has gone, killed or not. */
static void memory_goes_with_its_last_user(void **state)
{
	int ends[2];
	int status = -1;
	char byte;
	pid_t child;

	(void)state;
	assert_int_equal(pipe(ends), 0);
	child = fork();
	if (child == 0) {
		struct device *device;

		(void)alarm(FAKECUDA_PATIENCE);
		fakecuda_load();
		device = open_card("cuda:0");
		(void)given_sealed(device);
		MUST(fakecuda.used(0) == 6 * MIB);
		(void)!write(ends[1], "x", 1);
		(void)pause();
	}
	assert_int_equal(read(ends[0], &byte, 1), 1);
	assert_int_equal(kill(child, SIGKILL), 0);
	assert_int_equal(waitpid(child, &status, 0), child);
	(void)close(ends[0]);
	(void)close(ends[1]);
	fakecuda_in_process(use_up_a_card);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_card_is_full_to_the_granule),
		cmocka_unit_test(what_others_took_meanwhile_is_not_there),
		cmocka_unit_test(a_context_is_counted_whether_it_is_there_or_not),
		cmocka_unit_test(what_is_being_taken_is_not_taken_by_others),
		cmocka_unit_test(a_card_says_who_it_is_and_how_it_is),
		cmocka_unit_test(what_nvml_does_not_say_is_as_it_was_unless_the_card_is_lost),
		cmocka_unit_test(a_card_works_without_nvml),
		cmocka_unit_test(a_card_is_found_by_its_uuid_wherever_it_is),
		cmocka_unit_test(a_card_for_one_process_is_refused_and_the_mode_named),
		cmocka_unit_test(a_card_that_says_it_shares_and_does_not_is_refused),
		cmocka_unit_test(a_card_that_is_full_is_a_card),
		cmocka_unit_test(the_driver_exports_before_anybody_asks),
		cmocka_unit_test(no_more_exports_are_kept_than_a_process_can_have_open),
		cmocka_unit_test(a_card_that_is_lost_at_the_export_is_lost_at_the_seal),
		cmocka_unit_test(no_buffer_is_read_into_while_it_is_copied),
		cmocka_unit_test(a_host_without_memory_to_pin_is_no_full_card),
		cmocka_unit_test(threads_without_memory_to_pin_do_not_wait_for_each_other),
		cmocka_unit_test(several_threads_fill_one_extent),
		cmocka_unit_test(a_large_read_is_whole_up_to_its_end),
		cmocka_unit_test(a_fill_that_is_given_up_frees_everything),
		cmocka_unit_test(cards_copy_to_each_other),
		cmocka_unit_test(cards_that_do_not_reach_each_other_say_so),
		cmocka_unit_test(after_a_fatal_fault_every_call_says_so_and_nobody_else),
		cmocka_unit_test(memory_goes_with_its_last_user),
		cmocka_unit_test(no_memory_at_any_call_leaves_nothing),
		cmocka_unit_test(a_fatal_fault_at_any_call_is_a_lost_device),
		cmocka_unit_test(a_driver_that_goes_away_at_any_call_leaves_nothing),
		cmocka_unit_test(any_other_failure_at_any_call_leaves_nothing),
	};
	int n_failed;

	fakecuda_prepare("128M,64M");
	device_register(&cuda_device_ops);
	source_file = scratch_open();
	scratch_fill(source_file, 0, SIZE);
	n_failed = cmocka_run_group_tests(tests, NULL, NULL);
	(void)close(source_file);
	fakecuda_end();
	return n_failed;
}
