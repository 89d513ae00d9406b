/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Which devices there are, and the beginning and the end of their workers. See workers.h. What
 * cards the machine has a worker is asked too: the daemon itself never loads a driver.
 */
#include "base/cleanup.h"
#include "base/err.h"
#include "base/list.h"
#include "base/os/clock.h"
#include "base/os/log.h"
#include "base/os/sys.h"

#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "daemon/config.h"
#include "daemon/daemon.h"
#include "daemon/errand.h"
#include "daemon/testing.h"
#include "daemon/workers.h"
#include "daemon/workers_inside.h"

#define WORKER_SOCKET   3
#define LIMIT_MS        30000       /* for a worker to answer in */
#define START_LIMIT_NS  5000000000U /* the start waits so long for devices */
#define PROBE_MS        30000       /* between two looks for cards, where a driver failed */
#define MAX_KILL_MS     2000
#define SIM_GRANULARITY (2ULL << 20)
#define NS_PER_MS       1000000ULL

uint64_t workers_slept_ns(void)
{
	const uint64_t mono_ns = clock_mono_ns(); /* first: it is never ahead */

	return clock_boot_ns() - mono_ns;
}

/* NVIDIA's driver says whether it saves what lies on cards before the machine sleeps. */
static bool driver_keeps_in_sleep(void)
{
	const char *path =
		testing_text("DISTORCHD_TEST_NVIDIA_PARAMS", "/proc/driver/nvidia/params");
	FILE *file = fopen(path, "re");
	char line[256];
	int value = 0;

	while (file != NULL && value == 0 && fgets(line, sizeof line, file) != NULL) {
		(void)sscanf(line, "PreserveVideoMemoryAllocations: %d", &value);
	}
	if (file != NULL) {
		(void)fclose(file); /* only read */
	}
	return value == 1;
}

const char *workers_no_cards(const struct daemon *daemon)
{
	return daemon->workers == NULL ? "" : daemon->workers->no_cards;
}

void workers_describe_end(int64_t status, int number, char *ret, size_t size)
{
	if (number != 0) {
		(void)snprintf(ret, size, "its worker was ended by signal %d", number);
	} else {
		(void)snprintf(ret, size, "its worker ended with status %d", (int)status);
	}
}

int workers_spawn(struct workers *workers, uv_process_t *process, const char *name,
		  uv_exit_cb on_exit, int *ret_socket)
{
	char program[] = "distorchd-worker";
	char argument[DEVICE_NAME_SIZE];
	char *arguments[] = {program, argument, NULL};
	uv_stdio_container_t streams[WORKER_SOCKET + 1] = {{.flags = UV_IGNORE},
							   {.flags = UV_IGNORE},
							   {.flags = UV_INHERIT_FD},
							   {.flags = UV_INHERIT_FD}};
	uv_process_options_t options = {.file = workers->program,
					.args = arguments,
					.exit_cb = on_exit,
					.stdio = streams,
					.stdio_count = WORKER_SOCKET + 1};
	int ends[2] = {-1, -1};
	int failure = 0;
	int code;

	(void)snprintf(argument, sizeof argument, "%s", name);
	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, ends) < 0) {
		failure = uv_translate_sys_error(errno);
	}
	streams[STDERR_FILENO].data.fd = STDERR_FILENO;
	streams[WORKER_SOCKET].data.fd = ends[1];
	/* Without a socket it is refused, and its handle is to be closed as after any failure. */
	code = uv_spawn(&workers->daemon->loop, process, &options);
	if (ends[1] >= 0) {
		(void)close(ends[1]); /* the worker's */
	}
	if (code < 0 && ends[0] >= 0) {
		(void)close(ends[0]);
	} else {
		*ret_socket = ends[0];
	}
	return code < 0 && failure < 0 ? failure : code;
}

static void find_program(char *ret, size_t size)
{
	static const char *const places[] = {"distorchd-worker", WORKER_PLACE};
	char ours[400];
	ssize_t length = readlink("/proc/self/exe", ours, sizeof ours - 1);
	char *slash;

	ours[length > 0 ? length : 0] = '\0';
	slash = strrchr(ours, '/');
	ret[0] = '\0';
	if (slash == NULL) {
		return;
	}
	slash[1] = '\0';
	for (size_t i = 0; i < sizeof places / sizeof places[0]; i++) {
		(void)snprintf(ret, size, "%s%s", ours, places[i]);
		if (access(ret, X_OK) == 0) {
			return;
		}
	}
	(void)snprintf(ret, size, "%s%s", ours, places[0]); /* what is missed, when it is begun */
}

static void describe_sims(const struct config *config, struct sim_config *ret)
{
	for (uint32_t i = 0; i < config->sim_count; i++) {
		struct config_size memory = {.bytes = config->sim_memory_bytes};
		char number[16];

		(void)snprintf(number, sizeof number, "%u", i);
		(void)config_find_override(config, "sim.memory", NULL, number, &memory);
		ret[i] = (struct sim_config){.memory_bytes = memory.bytes,
					     .granularity = SIM_GRANULARITY,
					     .bytes_per_s = config->sim_link_bytes,
					     .latency_ns = config->sim_latency_ns,
					     .has_peers = config->sim_peers};
	}
}

static bool wants_cards(const struct config *config)
{
#ifdef DISTORCH_WITH_CUDA
	return strcmp(config->gpu_devices, "none") != 0 && config->gpu_devices[0] != '\0';
#else
	(void)config;
	return false;
#endif
}

static uint32_t count_sims(const struct config *config)
{
	return config->sim_count < CORE_MAX_DEVICES - 1 ? config->sim_count : CORE_MAX_DEVICES - 1;
}

uint32_t workers_max_devices(const struct config *config)
{
	return wants_cards(config) ? CORE_MAX_DEVICES : 1 + count_sims(config);
}

/* The next index. False: no memory. */
static bool workers_add(struct daemon *daemon, const char *name)
{
	struct worker *worker = &daemon->workers->workers[daemon->n_devices];
	struct known_device *device = &daemon->devices[daemon->n_devices];

	if (device_open("remote", name, &device->device, NULL) < 0) {
		log_error("no memory for %s", name);
		return false;
	}
	(void)snprintf(device->name, sizeof device->name, "%s", name);
	device->state = DEVICE_STATE_STARTING;
	*worker = (struct worker){.daemon = daemon, .device = daemon->n_devices, .hangup_fd = -1};
	(void)uv_timer_init(&daemon->loop, &worker->timer); /* always succeeds */
	worker->timer.data = worker;
	daemon->n_devices++;
	worker_begin(worker);
	return true;
}

/* ---- which cards there are ---- */

bool workers_is_wanted(const struct config *config, const struct known_device *device,
		       const struct device_info *info)
{
	const char *list = config->gpu_devices;
	const char *found = strstr(list, info->uuid);
	size_t size = strlen(info->uuid);

	return strncmp(device->name, "sim:", 4) == 0 || strcmp(list, "all") == 0 ||
	       (found != NULL && size > 0 && (found == list || strchr(", ", found[-1]) != NULL) &&
		(found[size] == '\0' || strchr(", ", found[size]) != NULL));
}

bool workers_find(const struct daemon *daemon, const char *uuid, uint32_t *ret_device)
{
	for (uint32_t i = 1; i < daemon->n_devices; i++) {
		if (strcmp(daemon->devices[i].info.uuid, uuid) == 0) {
			*ret_device = i;
			return true;
		}
	}
	return false;
}

struct asking {
	struct errand errand;
	struct err err;
	int code;
	int socket;
	uint32_t n_names;
	char names[DEVICE_MAX_CARDS][DEVICE_NAME_SIZE];
	struct remote_options options;
};

static void asking_work(struct errand *errand)
{
	struct asking *asking = container_of(errand, struct asking, errand);

	asking->code = remote_probe(steal_fd(&asking->socket), asking->names, DEVICE_MAX_CARDS,
				    &asking->options, &asking->n_names, &asking->err);
}

static void asking_drop(struct errand *errand)
{
	struct asking *asking = container_of(errand, struct asking, errand);

	cleanup_close(&asking->socket);
	free(asking);
}

static void begin_probe(struct workers *workers);

static void on_probe_due(uv_timer_t *timer)
{
	begin_probe(timer->data);
}

static void say_no_cards(struct workers *workers, const char *why)
{
	if (strcmp(workers->no_cards, why) != 0) { /* and not at each try */
		(void)snprintf(workers->no_cards, sizeof workers->no_cards, "%s", why);
		log_info("no GPU is used: %s", why);
	}
}

static void probe_later(struct workers *workers)
{
	if (!workers->is_stopped) {
		(void)uv_timer_start(&workers->probe.timer, on_probe_due,
				     testing_ms("DISTORCHD_TEST_PROBE_MS", PROBE_MS), 0);
	}
}

static void kill_probe(struct workers *workers)
{
	if (workers->probe.is_running && uv_is_active((uv_handle_t *)&workers->probe.process)) {
		(void)uv_process_kill(&workers->probe.process, SIGKILL);
	}
}

static void on_asked(struct daemon *daemon, struct errand *errand)
{
	struct asking *asking = container_of(errand, struct asking, errand);
	struct workers *workers = daemon->workers;
	bool is_final = asking->code == 0 || asking->code == -WIRE_NOT_FOUND ||
			asking->code == -WIRE_UNSUPPORTED || asking->code == -WIRE_VERSION;

	for (uint32_t i = 0; i < asking->n_names && daemon->n_devices < CORE_MAX_DEVICES; i++) {
		(void)workers_add(daemon, asking->names[i]);
	}
	if (asking->n_names == 0) {
		say_no_cards(workers, asking->code < 0 ? asking->err.text : "there is no card");
	}
	if (asking->code == -WIRE_DEVICE_LOST) {
		kill_probe(workers); /* its time is over, or it has ended */
	}
	if (!is_final) {
		probe_later(workers);
	}
	asking_drop(errand);
}

static void on_probe_closed(uv_handle_t *handle)
{
	((struct workers *)handle->data)->probe.is_running = false;
}

static void on_probe_exit(uv_process_t *process, int64_t status, int number)
{
	(void)status; /* what it answered counts, or that it did not */
	(void)number;
	uv_close((uv_handle_t *)process, on_probe_closed);
}

static void begin_probe(struct workers *workers)
{
	struct daemon *daemon = workers->daemon;
	struct asking *asking = sys_calloc(1, sizeof *asking);
	char why[600];
	int code;

	if (asking == NULL || workers->probe.is_running) {
		free(asking);
		probe_later(workers); /* the last one may yet end */
		return;
	}
	asking->errand =
		(struct errand){.work = asking_work, .done = on_asked, .drop = asking_drop};
	asking->socket = -1;
	asking->options = workers->options;
	workers->probe.process.data = workers;
	workers->probe.is_running = true;
	code = workers_spawn(workers, &workers->probe.process, "cuda", on_probe_exit,
			     &asking->socket);
	if (code < 0) {
		uv_close((uv_handle_t *)&workers->probe.process, on_probe_closed);
		(void)snprintf(why, sizeof why, "%s cannot be begun: %s", workers->program,
			       uv_strerror(code));
		say_no_cards(workers, why);
	}
	if (code < 0 || asking->socket < 0 || !errand_start(daemon->errands, &asking->errand)) {
		asking_drop(&asking->errand);
		kill_probe(workers);
		probe_later(workers);
	}
}

/* ---- the beginning and the end ---- */

static void begin_all(struct daemon *daemon)
{
	struct workers *workers = daemon->workers;
	const uint32_t n_sims = count_sims(daemon->config);
	char name[DEVICE_NAME_SIZE];

	for (uint32_t i = 0; i < n_sims; i++) {
		(void)snprintf(name, sizeof name, "sim:%" PRIu32, i);
		(void)workers_add(daemon, name);
	}
	if (wants_cards(daemon->config)) {
		begin_probe(workers);
		return;
	}
#ifdef DISTORCH_WITH_CUDA
	(void)snprintf(workers->no_cards, sizeof workers->no_cards, "gpu.devices is none");
#else
	(void)snprintf(workers->no_cards, sizeof workers->no_cards,
		       "this distorchd was built without CUDA");
#endif
}

int workers_start(struct daemon *daemon, struct err *err)
{
	struct workers *workers = sys_calloc(1, sizeof *workers);

	if (workers == NULL) {
		return err_set(err, WIRE_NO_MEMORY, "no memory for devices");
	}
	workers->daemon = daemon;
	daemon->workers = workers;
	workers->slept_ns = workers_slept_ns();
	workers->keeps_in_sleep = driver_keeps_in_sleep();
	if (device_backend_find("remote") == NULL) {
		device_register(&remote_device_ops);
	}
	find_program(workers->program, sizeof workers->program);
	describe_sims(daemon->config, workers->sims);
	workers->options =
		(struct remote_options){.sims = workers->sims,
					.n_sims = count_sims(daemon->config),
					.limit_ns =
						NS_PER_MS *
						testing_ms("DISTORCHD_TEST_WORKER_MS", LIMIT_MS)};
	(void)uv_timer_init(&daemon->loop, &workers->probe.timer); /* always succeeds */
	workers->probe.timer.data = workers;
	for (uint32_t i = 1; i < workers_max_devices(daemon->config); i++) {
		struct core_event event = {.type = EV_DEVICE_LOST, .device = {.device = i}};

		(void)daemon_step(daemon, &event); /* until it is there */
	}
	begin_all(daemon);
	errands_settle(daemon->errands, START_LIMIT_NS); /* which cards there are */
	errands_settle(daemon->errands, START_LIMIT_NS); /* and that they are open */
	return 0;
}

/* So that none is left when we are gone; whatever they still do is of no use to anybody. */
static void end_process(uv_process_t *process)
{
	const struct timespec moment = {.tv_nsec = (long)NS_PER_MS};

	(void)uv_process_kill(process, SIGKILL);
	for (int ms = 0; ms < MAX_KILL_MS && waitpid(process->pid, NULL, WNOHANG) == 0; ms++) {
		(void)nanosleep(&moment, NULL);
	}
}

void workers_stop(struct daemon *daemon)
{
	struct workers *workers = daemon->workers;

	if (workers == NULL) {
		return;
	}
	workers->is_stopped = true;
	for (uint32_t i = 1; i < daemon->n_devices; i++) {
		(void)remote_detach(daemon->devices[i].device, "the daemon ends", NULL, 0);
		if (workers->workers[i].is_running) {
			end_process(&workers->workers[i].process);
		}
	}
	if (workers->probe.is_running && uv_is_active((uv_handle_t *)&workers->probe.process)) {
		end_process(&workers->probe.process);
	}
}

void workers_free(struct daemon *daemon)
{
	struct workers *workers = daemon->workers;

	daemon->workers = NULL;
	if (workers == NULL || __atomic_load_n(&workers->n_looks, __ATOMIC_ACQUIRE) > 0) {
		return; /* a thread that is stuck has it still, and the process ends */
	}
	for (uint32_t i = 1; i < daemon->n_devices; i++) {
		cleanup_close(&workers->workers[i].hangup_fd);
		daemon->devices[i].device = device_close(daemon->devices[i].device);
	}
	free(workers);
}
