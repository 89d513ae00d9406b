/* SPDX-License-Identifier: Apache-2.0 */
/* The configuration's layers, values and refusals, under a root folder of the test's own. */
#include "base/err.h"
#include "base/os/sys.h"
#include "base/units.h"
#include "tests/support/fault_loop.h"

#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "daemon/config.h"
#include "daemon/config_saved.h"
#include "proto/gen/wire_code.h"

#define ETC     "/etc/distorchd/distorchd.conf"
#define VENDOR  "/usr/lib/distorchd/distorchd.conf"
#define DROP_IN "/etc/distorchd/distorchd.conf.d/"

static char root[64];

static int set_up(void **state)
{
	(void)state;
	strcpy(root, "/tmp/test_config.XXXXXX");
	return mkdtemp(root) == NULL ? -1 : 0;
}

static int remove_one(const char *path, const struct stat *status, int kind, struct FTW *ftw)
{
	(void)status;
	(void)kind;
	(void)ftw;
	return remove(path);
}

static int tear_down(void **state)
{
	(void)state;
	sys_fault_clear();
	return nftw(root, remove_one, 8, FTW_DEPTH | FTW_PHYS);
}

/* ---- given ---- */

static const char *full_path(const char *path, char buffer[256])
{
	assert_true(snprintf(buffer, 256, "%s%s", root, path) < 256);
	return buffer;
}

static void given_bytes(const char *path, const char *bytes, size_t size)
{
	char full[256];
	FILE *file;

	(void)full_path(path, full);
	for (char *slash = strchr(&full[strlen(root) + 1], '/'); slash != NULL;
	     slash = strchr(&slash[1], '/')) {
		*slash = '\0';
		assert_true(mkdir(full, 0700) == 0 || errno == EEXIST);
		*slash = '/';
	}
	file = fopen(full, "we");
	assert_non_null(file);
	assert_int_equal(fwrite(bytes, 1, size, file), size);
	assert_int_equal(fclose(file), 0);
}

static void given_file(const char *path, const char *text)
{
	given_bytes(path, text, strlen(text));
}

static const char *const no_environment[] = {NULL};

static struct config_request given_request(void)
{
	return (struct config_request){.root = root, .environment = no_environment};
}

static struct config *expect_loads(const struct config_request *request)
{
	struct config *config = NULL;
	struct err err = {0};

	if (config_load(request, &config, &err) < 0) {
		print_error("refused: %s\n", err.text);
	}
	assert_non_null(config);
	return config;
}

static void expect_refused(const struct config_request *request, int code, const char *text)
{
	struct config *config = NULL;
	struct err err = {0};
	int result = config_load(request, &config, &err);

	if (result != -code || strstr(err.text, text) == NULL) {
		print_error("got %d \"%s\", wanted %d \"%s\"\n", result, err.text, -code, text);
	}
	assert_int_equal(result, -code);
	assert_int_equal(err.code, code);
	assert_non_null(strstr(err.text, text));
	assert_null(config);
}

/* The only file; 'text' is what the error says behind its path. */
static void expect_bad_file(const char *content, const char *text)
{
	struct config_request request = given_request();
	char wanted[512];

	given_file(ETC, content);
	(void)snprintf(wanted, sizeof wanted, "%s" ETC "%s", root, text);
	expect_refused(&request, WIRE_BAD_ARGUMENT, wanted);
}

/* "value|source" of a key; the root's name is left out. */
static const char *find_item(const struct config *config, const char *key, char buffer[512])
{
	struct config_item item;
	uint32_t cursor = 0;

	while (config_next(config, &cursor, &item)) {
		const char *source = item.source;

		if (strncmp(source, root, strlen(root)) == 0) {
			source += strlen(root);
		}
		if (strcmp(item.key, key) == 0) {
			(void)snprintf(buffer, 512, "%s|%s", item.value, source);
			return buffer;
		}
	}
	return NULL;
}

static void expect_item(const struct config *config, const char *key, const char *wanted)
{
	char found[512];

	assert_non_null(find_item(config, key, found));
	assert_string_equal(found, wanted);
}

/* ---- values ---- */

static void without_files_everything_is_default(void **state)
{
	struct config_request request = given_request();
	struct config *config = expect_loads(&request);
	struct config_item item;
	uint32_t cursor = 0;
	uint32_t n_items = 0;

	(void)state;
	assert_int_equal(config->memory_ram.kind, CONFIG_SIZE_AUTO);
	assert_int_equal(config->memory_reserve.kind, CONFIG_SIZE_AUTO);
	assert_true(config->memory_hugepages);
	assert_false(config->memory_lock);
	assert_int_equal(config->memory_backing, CONFIG_BACKING_AUTO);
	assert_int_equal(config->memory_idle_evict_ns, 0);
	assert_true(config->memory_pressure_evict);
	assert_string_equal(config->gpu_devices, "all");
	assert_int_equal(config->gpu_budget.kind, CONFIG_SIZE_PERCENT);
	assert_int_equal(config->gpu_budget.milli_pct, 85000);
	assert_int_equal(config->gpu_linger_ns, 300000000000U);
	assert_true(config->gpu_share);
	assert_int_equal(config->sim_count, 0);
	assert_int_equal(config->sim_memory_bytes, 64U << 20);
	assert_int_equal(config->sim_link_bytes, 12ULL << 30);
	assert_int_equal(config->sim_latency_ns, 10000);
	assert_true(config->sim_peers);
	assert_int_equal(config->limits_connections, 1024);
	assert_int_equal(config->limits_connections_per_user, 64);
	assert_int_equal(config->limits_pending_output, 1U << 20);
	assert_int_equal(config->limits_loads_per_user, 2);
	assert_int_equal(config->limits_ram_per_user.milli_pct, 80000);
	assert_string_equal(config->access_group, "distorchd");
	assert_string_equal(config->access_control, "root");
	assert_int_equal(config->load_verify, CONFIG_VERIFY_SIZE);
	assert_int_equal(config->load_threads, 0);
	assert_true(config->load_direct_io);
	assert_true(config->restart_keep);
	assert_int_equal(config->log_level, LOG_LEVEL_INFO);
	assert_int_equal(config->log_format, LOG_FORMAT_AUTO);
	assert_string_equal(config->metrics_listen, "auto");
	assert_int_equal(config->n_warm_models, 0);
	while (config_next(config, &cursor, &item)) {
		assert_string_equal(item.source, "default");
		assert_non_null(strchr(item.key, '.'));
		n_items++;
	}
	assert_int_equal(n_items, 31);
	assert_null(config_free(config));
	assert_null(config_free(NULL));
}

static void where_metrics_are_fetched_is_read_and_checked(void **state)
{
	static const struct {
		const char *text;
		enum config_listen_kind kind;
		uint16_t port;
	} good[] = {
		{"auto", CONFIG_LISTEN_AUTO, 0},
		{"off", CONFIG_LISTEN_OFF, 0},
		{"", CONFIG_LISTEN_OFF, 0},
		{"/run/x/metrics.sock", CONFIG_LISTEN_PATH, 0},
		{"127.0.0.1:9477", CONFIG_LISTEN_TCP4, 9477},
		{"127.8.9.10:1", CONFIG_LISTEN_TCP4, 1},
		{"localhost:65535", CONFIG_LISTEN_TCP4, 65535},
		{"[::1]:9477", CONFIG_LISTEN_TCP6, 9477},
	};
	static const char *const bad[] = {
		"on",
		"metrics.sock",
		"127.0.0.1",
		"127.0.0.1:",
		"127.0.0.1:0",
		":9477",
		"127.0.0.1:65536",
		"127.0.0.1:99999999999",
		"127.0.0.1:9a",
		"127.1:80",
		"[::1]",
		"::1:9477",
		"[]:9477",
		"[::1:9477",
		"a:1",
		"[127.0.0.1]:80",
	};
	static const char *const open_to_others[] = {"0.0.0.0:9477", "192.168.1.1:9477",
						     "[::]:9477", "[::2]:9477",
						     "[::ffff:127.0.0.1]:80"};
	struct config_request request = given_request();
	struct config_listen listen;
	struct err err = {0};
	char longest[120] = "/";

	(void)state;
	for (size_t i = 0; i < sizeof good / sizeof good[0]; i++) {
		assert_int_equal(config_parse_listen(good[i].text, &listen, &err), 0);
		assert_int_equal(listen.kind, good[i].kind);
		assert_int_equal(listen.port, good[i].port);
	}
	for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
		assert_int_equal(config_parse_listen(bad[i], &listen, &err), -WIRE_BAD_ARGUMENT);
		assert_non_null(strstr(err.text, "is none of auto, off"));
	}
	for (size_t i = 0; i < sizeof open_to_others / sizeof open_to_others[0]; i++) {
		assert_int_equal(config_parse_listen(open_to_others[i], &listen, &err),
				 -WIRE_BAD_ARGUMENT);
		assert_non_null(strstr(err.text, "can be reached from elsewhere"));
	}
	memset(&longest[1], 'x', 105);
	assert_int_equal(config_parse_listen(longest, &listen, &err), 0);
	longest[106] = 'x';
	assert_int_equal(config_parse_listen(longest, &listen, &err), -WIRE_BAD_ARGUMENT);
	given_file(ETC, "[metrics]\nlisten = 0.0.0.0:9477\n");
	expect_refused(&request, WIRE_BAD_ARGUMENT, ETC ":2: metrics.listen: 0.0.0.0:9477 can");
}

static void each_kind_of_value_is_understood(void **state)
{
	struct config_request request = given_request();
	struct config *config;

	(void)state;
	given_file(ETC, "[memory]\nram = 40%\nreserve=0\n  hugepages\t=  off  # comment\n"
			"backing = image\nidle-evict = 1h30m\npressure-evict = no ;comment\n"
			"[gpu]\nshare = off\n[limits] # comment\n; comment = 1\n#comment = 2\n"
			"pending-output = 2 MiB\nconnections = 7\n[load]\nthreads = 3\n"
			"verify = size\ndirect-io = off\n[log]\nlevel = debug\nformat = json\n"
			"[access]\ngroup = a#b;c\ncontrol =\n");
	config = expect_loads(&request);
	assert_int_equal(config->memory_ram.kind, CONFIG_SIZE_PERCENT);
	assert_int_equal(config->memory_ram.milli_pct, 40000);
	assert_int_equal(config->memory_reserve.kind, CONFIG_SIZE_BYTES);
	assert_int_equal(config->memory_reserve.bytes, 0);
	assert_false(config->memory_hugepages);
	assert_int_equal(config->memory_backing, CONFIG_BACKING_IMAGE);
	assert_int_equal(config->memory_idle_evict_ns, 5400000000000U);
	assert_false(config->memory_pressure_evict);
	assert_false(config->gpu_share);
	assert_int_equal(config->limits_pending_output, 2U << 20);
	assert_int_equal(config->limits_connections, 7);
	assert_int_equal(config->load_threads, 3);
	assert_int_equal(config->load_verify, CONFIG_VERIFY_SIZE);
	assert_false(config->load_direct_io);
	assert_int_equal(config->log_level, LOG_LEVEL_DEBUG);
	assert_int_equal(config->log_format, LOG_FORMAT_JSON);
	assert_string_equal(config->access_group, "a#b;c");
	assert_string_equal(config->access_control, "");
	expect_item(config, "memory.hugepages", "off|" ETC ":4");
	expect_item(config, "memory.pressure-evict", "no|" ETC ":7");
	expect_item(config, "access.control", "|" ETC ":24");
	(void)config_free(config);
}

static void counts_and_sizes_have_a_range(void **state)
{
	static const struct {
		const char *set;
		bool is_good;
	} rows[] = {
		{"limits.connections=1", true},
		{"limits.connections=0", false},
		{"limits.connections=65536", true},
		{"limits.connections=65537", false},
		{"limits.connections=-1", false},
		{"limits.connections=1.5", false},
		{"limits.connections=", false},
		{"limits.connections=auto", false},
		{"limits.connections=99999999999999999999", false},
		{"limits.connections=0000000001", false},
		{"limits.connections=4k", false},
		{"limits.pending-output=128K", true},
		{"limits.pending-output=131071B", false},
		{"limits.pending-output=1G", true},
		{"limits.pending-output=1025M", false},
		{"limits.pending-output=10%", false},
		{"limits.ram-per-user=auto", false},
		{"limits.ram-per-user=100%", true},
		{"limits.ram-per-user=101%", false},
		{"limits.ram-per-user=0%", false},
		{"limits.ram-per-user=4G", true},
		{"memory.ram=0", false},
		{"memory.ram=48", false},
		{"memory.reserve=0", true},
		{"memory.reserve=1.5", false},
		{"sim.memory=1", false},
		{"gpu.budget.sim:1=20", false},
		{"memory.ram=1B", true},
		{"memory.ram=auto", true},
		{"memory.ram=Auto", false},
		{"memory.ram=5 apples", false},
		{"memory.idle-evict=5", false},
		{"memory.idle-evict=forever", true},
		{"load.threads=auto", true},
		{"load.threads=0", false},
		{"load.threads=65", false},
		{"log.level=loud", false},
		{"memory.pressure-evict=true", true},
		{"memory.pressure-evict=YES", false},
		{"sim.count=15", true},
		{"sim.count=16", false},
	};

	(void)state;
	for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
		struct config_request request = given_request();
		const char *equals = strchr(rows[i].set, '=');
		char key[64] = "--set ";

		request.sets = &rows[i].set;
		request.n_sets = 1;
		if (rows[i].is_good) {
			(void)config_free(expect_loads(&request));
			continue;
		}
		strncat(key, rows[i].set, (size_t)(equals - rows[i].set));
		strcat(key, ": ");
		expect_refused(&request, WIRE_BAD_ARGUMENT, key);
	}
}

static void a_choice_may_come_later(void **state)
{
	struct config_request request = given_request();

	(void)state;
	given_file(ETC, "[load]\nverify = full\n");
	expect_refused(&request, WIRE_UNSUPPORTED, ETC ":2: load.verify: \"full\" comes with");
}

static void a_device_may_have_a_value_of_its_own(void **state)
{
	struct config_request request = given_request();
	struct config *config;
	struct config_size size = {0};

	(void)state;
	given_file(ETC, "[gpu]\nbudget.GPU-1 = 20G\nbudget = 50%\nbudget.GPU-2 = 10%\n"
			"[sim]\nmemory.1 = 128M\n");
	config = expect_loads(&request);
	assert_int_equal(config->gpu_budget.milli_pct, 50000);
	assert_true(config_find_override(config, "gpu.budget", "GPU-1", "cuda:0", &size));
	assert_int_equal(size.kind, CONFIG_SIZE_BYTES);
	assert_int_equal(size.bytes, 20ULL << 30);
	assert_true(config_find_override(config, "gpu.budget", "GPU-2", "cuda:0", &size));
	assert_int_equal(size.milli_pct, 10000);
	assert_false(config_find_override(config, "gpu.budget", "GPU-3", "cuda:0", &size));
	assert_false(config_find_override(config, "gpu.budge", NULL, "t.GPU-1", &size));
	assert_true(config_find_override(config, "sim.memory", NULL, "1", &size));
	assert_int_equal(size.bytes, 128U << 20);
	assert_int_equal(config->sim_memory_bytes, 64U << 20);
	expect_item(config, "gpu.budget.GPU-1", "20G|" ETC ":2");
	(void)config_free(config);
	expect_bad_file("[gpu]\nbudget.G = 1G\nbudget.G = 2G\n", ":3: gpu.budget was set before");
	expect_bad_file("[gpu]\nbudget. = 1G\n", ":2: [gpu] has no key \"budget.\"");
	expect_bad_file("[gpu]\nlinger.G = 1s\n", ":2: [gpu] has no key \"linger.G\"");
	expect_bad_file("[sim]\nmemory.1 = 10%\n", ":2: sim.memory: \"10%\"");
}

static void models_to_warm_are_a_list(void **state)
{
	struct config_request request = given_request();
	static const char *const sets[] = {"warm.model=/d"};
	struct config *config;

	(void)state;
	given_file(VENDOR, "[warm]\nmodel = /a\nmodel = /b\n");
	given_file(ETC, "[warm]\nmodel = /c\n");
	request.sets = sets;
	request.n_sets = 1;
	config = expect_loads(&request);
	assert_int_equal(config->n_warm_models, 4);
	assert_string_equal(config->warm_models[0], "/a");
	assert_string_equal(config->warm_models[1], "/b");
	assert_string_equal(config->warm_models[2], "/c");
	assert_string_equal(config->warm_models[3], "/d");
	(void)config_free(config);
	expect_bad_file("[warm]\nmodel = /a\nmodel = models/b\n",
			":3: warm.model: models/b is no absolute path");
	given_file(ETC, "[warm]\nmodel =\nmodel = /c\n");
	config = expect_loads(&request);
	assert_int_equal(config->n_warm_models, 2);
	assert_string_equal(config->warm_models[0], "/c");
	(void)config_free(config);
}

/* ---- layers ---- */

static void later_layers_win(void **state)
{
	/* Each row sets the next layer; the one before it loses. */
	static const struct {
		const char *path;
		const char *value;
		const char *source;
	} rows[] = {
		{VENDOR, "1B", VENDOR ":2"},
		{ETC, "2B", ETC ":2"},
		{"/usr/lib/distorchd/distorchd.conf.d/10.conf", "3B",
		 "/usr/lib/distorchd/distorchd.conf.d/10.conf:2"},
		{"/etc/distorchd/distorchd.conf.d/20.conf", "4B",
		 "/etc/distorchd/distorchd.conf.d/20.conf:2"},
		{"/run/distorchd/distorchd.conf.d/30.conf", "5B",
		 "/run/distorchd/distorchd.conf.d/30.conf:2"},
		{"/home/config/distorchd/distorchd.conf", "6B",
		 "/home/config/distorchd/distorchd.conf:2"},
		{"/home/config/distorchd/distorchd.conf.d/0.conf", "7B",
		 "/home/config/distorchd/distorchd.conf.d/0.conf:2"},
	};
	char xdg[128];
	const char *environment[] = {"HOME=/nowhere", xdg, NULL, NULL};
	const char *const sets[] = {"memory.ram=9B", "memory.ram=10B"};
	struct config_request request = given_request();
	struct config *config;
	char wanted[128];

	(void)state;
	(void)snprintf(xdg, sizeof xdg, "XDG_CONFIG_HOME=%s/home/config", root);
	request.environment = environment;
	request.is_user = true;
	for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
		char text[64];

		(void)snprintf(text, sizeof text, "[memory]\nram=%s\n", rows[i].value);
		given_file(rows[i].path, text);
		config = expect_loads(&request);
		(void)snprintf(wanted, sizeof wanted, "%s|%s", rows[i].value, rows[i].source);
		expect_item(config, "memory.ram", wanted);
		(void)config_free(config);
	}
	environment[2] = "DISTORCHD_MEMORY_RAM=8B";
	config = expect_loads(&request);
	expect_item(config, "memory.ram", "8B|environment");
	assert_int_equal(config->memory_ram.bytes, 8);
	(void)config_free(config);
	request.sets = sets;
	request.n_sets = 2;
	config = expect_loads(&request);
	expect_item(config, "memory.ram", "10B|command line");
	assert_int_equal(config->memory_ram.bytes, 10);
	(void)config_free(config);
	/* The system's daemon does not look into homes. */
	request.is_user = false;
	request.n_sets = 0;
	environment[2] = NULL;
	config = expect_loads(&request);
	assert_int_equal(config->memory_ram.bytes, 5);
	(void)config_free(config);
}

static void a_drop_in_of_the_same_name_replaces_the_vendors(void **state)
{
	struct config_request request = given_request();
	struct config *config;
	char full[256];

	(void)state;
	given_file("/usr/lib/distorchd/distorchd.conf.d/a.conf", "[memory]\nram = 1B\n");
	given_file("/usr/lib/distorchd/distorchd.conf.d/b.conf", "[limits]\nconnections = 5\n");
	given_file("/run/distorchd/distorchd.conf.d/a.conf", "[memory]\nreserve = 3B\n");
	given_file(DROP_IN ".hidden.conf", "[bad\n");
	given_file(DROP_IN "readme", "[bad\n");
	given_file(DROP_IN ".conf", "[bad\n");
	config = expect_loads(&request);
	assert_int_equal(config->memory_ram.kind, CONFIG_SIZE_AUTO);
	assert_int_equal(config->memory_reserve.bytes, 3);
	assert_int_equal(config->limits_connections, 5);
	(void)config_free(config);
	/* A link to /dev/null switches one off. */
	assert_int_equal(symlink("/dev/null", full_path(DROP_IN "b.conf", full)), 0);
	config = expect_loads(&request);
	assert_int_equal(config->limits_connections, 1024);
	(void)config_free(config);
}

static void one_file_may_stand_for_all(void **state)
{
	struct config_request request = given_request();
	struct config *config;
	char full[256];

	(void)state;
	given_file(ETC, "[memory]\nram = 1B\n");
	given_file("/own.conf", "[memory]\nreserve = 2B\n");
	request.path = full_path("/own.conf", full);
	config = expect_loads(&request);
	assert_int_equal(config->memory_ram.kind, CONFIG_SIZE_AUTO);
	assert_int_equal(config->memory_reserve.bytes, 2);
	(void)config_free(config);
	request.path = "/nowhere/own.conf";
	expect_refused(&request, WIRE_IO, "cannot open /nowhere/own.conf: No such file");
	request.path = root;
	expect_refused(&request, WIRE_IO, "is not a file");
}

static void without_xdg_the_home_is_read(void **state)
{
	char home[128];
	const char *environment[] = {home, "XDG_CONFIG_HOME=relative", NULL};
	struct config_request request = given_request();
	struct config *config;

	(void)state;
	(void)snprintf(home, sizeof home, "HOME=%s/home", root);
	given_file("/home/.config/distorchd/distorchd.conf", "[memory]\nram = 1B\n");
	given_file("/home/.config/distorchd/distorchd.conf.d/x.conf", "[memory]\nreserve = 2B\n");
	request.environment = environment;
	request.is_user = true;
	config = expect_loads(&request);
	assert_int_equal(config->memory_ram.bytes, 1);
	assert_int_equal(config->memory_reserve.bytes, 2);
	(void)config_free(config);
	request.environment = no_environment;
	config = expect_loads(&request);
	assert_int_equal(config->memory_ram.kind, CONFIG_SIZE_AUTO);
	(void)config_free(config);
}

static void variables_are_judged_when_they_mean_us(void **state)
{
	static const struct {
		const char *variable;
		const char *text;
	} rows[] = {
		{"DISTORCHD_MEMORY_RMA=1G", "did you mean DISTORCHD_MEMORY_RAM?"},
		{"DISTORCHD_MEMROY_RAM=1G", "did you mean DISTORCHD_MEMORY_RAM?"},
		{"DISTORCHD_MEMORY_COLOUR=1G", "DISTORCHD_MEMORY_COLOUR: [memory] has no such key"},
		{"DISTORCHD_MEMORY_RAM=lots", "environment: DISTORCHD_MEMORY_RAM: memory.ram: "},
		{"DISTORCHD_MEMORY_RAM=1\n", "control byte"},
		{"DISTORCHD_ACCESS_GROUP=\xff", "not UTF-8"},
	};
	const char *good[] = {"DISTORCHD_CUDA_LIB=/x",
			      "DISTORCHD_",
			      "DISTORCHD",
			      "MEMORY_RAM=1",
			      "DISTORCHD_LIMITS_CONNECTIONS_PER_USER=9",
			      NULL};
	struct config_request request = given_request();
	struct config *config;

	(void)state;
	for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
		const char *environment[] = {rows[i].variable, NULL};

		request.environment = environment;
		expect_refused(&request, WIRE_BAD_ARGUMENT, rows[i].text);
	}
	request.environment = good;
	config = expect_loads(&request);
	assert_int_equal(config->limits_connections_per_user, 9);
	assert_int_equal(config->memory_ram.kind, CONFIG_SIZE_AUTO);
	(void)config_free(config);
	/* The process's own are read where none are given. */
	request.environment = NULL;
	assert_int_equal(setenv("DISTORCHD_SIM_COUNT", "3", 1), 0);
	config = expect_loads(&request);
	assert_int_equal(config->sim_count, 3);
	(void)config_free(config);
	assert_int_equal(unsetenv("DISTORCHD_SIM_COUNT"), 0);
}

static void arguments_are_section_key_and_value(void **state)
{
	static const struct {
		const char *set;
		const char *text;
	} rows[] = {
		{"memory.rma=1",
		 "--set memory.rma: [memory] has no key \"rma\"; did you mean \"ram\"?"},
		{"memroy.ram=1",
		 "--set memroy.ram: there is no section [memroy]; did you mean [memory]?"},
		{"memory.ram", "--set memory.ram: section.key=value is wanted"},
		{"ram=1", "--set ram: section.key=value is wanted"},
		{"=", "section.key=value is wanted"},
		{"", "section.key=value is wanted"},
		{".=", "there is no section []"},
	};
	struct config_request request = given_request();

	(void)state;
	for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
		request.sets = &rows[i].set;
		request.n_sets = 1;
		expect_refused(&request, WIRE_BAD_ARGUMENT, rows[i].text);
	}
}

/* ---- what was saved at run time ---- */

static struct config_saved saved_of(const char *const *texts, uint32_t n_texts)
{
	return (struct config_saved){.source = "/s/state.json", .texts = texts, .n_texts = n_texts};
}

static void what_was_saved_ranks_between_files_and_environment(void **state)
{
	static const char *const environment[] = {"DISTORCHD_LOG_LEVEL=debug", NULL};
	static const char *const texts[] = {"memory.ram=2G", "log.level=error", "log.format=json",
					    "warm.model=/b"};
	static const char *const sets[] = {"log.format=text"};
	const struct config_saved saved = saved_of(texts, 4);
	struct config_request request = given_request();
	struct config *config;

	(void)state;
	given_file(ETC, "[memory]\nram = 1G\n[warm]\nmodel = /a\n");
	request.environment = environment;
	request.saved = &saved;
	request.sets = sets;
	request.n_sets = 1;
	config = expect_loads(&request);
	expect_item(config, "memory.ram", "2G|/s/state.json");
	expect_item(config, "log.level", "debug|environment");
	expect_item(config, "log.format", "text|command line");
	assert_int_equal(config->memory_ram.bytes, 2ULL << 30);
	assert_int_equal(config->n_warm_models, 2);
	assert_string_equal(config->warm_models[1], "/b");
	(void)config_free(config);
}

static void what_is_saved_anew_replaces_what_was_saved_before(void **state)
{
	static const char *const before[] = {"memory.ram=2G", "warm.model=/b", "warm.model=/c"};
	static const char *const now[] = {"warm.model=/c", "memory.ram=3G", "log.level=error",
					  "warm.model=/d", "memory.reserve=1G"};
	static const char *const sets[] = {"log.level=info", "warm.model=/last", "gpu.budget.G=1G"};
	const struct config_saved old = saved_of(before, 3);
	const struct config_saved fresh = saved_of(now, 5);
	const struct config_saved none = saved_of(now, 0);
	struct config_request request = given_request();
	struct config_size size = {0};
	struct config *config;
	struct config *next = NULL;
	struct config *again = NULL;
	struct err err = {0};

	(void)state;
	given_file(ETC, "[memory]\nram = 1G\n[warm]\nmodel = /a\n");
	request.saved = &old;
	request.sets = sets;
	request.n_sets = 3;
	config = expect_loads(&request);
	assert_int_equal(config_resave(config, &fresh, &next, &err), 0);
	(void)config_free(config); /* the copy stands for itself */
	expect_item(next, "memory.ram", "3G|/s/state.json");
	expect_item(next, "memory.reserve", "1G|/s/state.json");
	expect_item(next, "log.level", "info|command line");
	assert_int_equal(next->log_level, LOG_LEVEL_INFO);
	assert_int_equal(next->n_warm_models, 4);
	assert_string_equal(next->warm_models[0], "/a");
	assert_string_equal(next->warm_models[1], "/last");
	assert_string_equal(next->warm_models[2], "/c");
	assert_string_equal(next->warm_models[3], "/d");
	assert_string_equal(next->access_group, "distorchd");
	assert_true(config_find_override(next, "gpu.budget", "G", "cuda:0", &size));
	assert_int_equal(config_resave(next, &none, &again, &err), 0);
	assert_int_equal(again->n_warm_models, 2);
	expect_item(again, "memory.ram", "3G|/s/state.json"); /* until the files are read */
	(void)config_free(again);
	(void)config_free(next);
}

static void a_saved_value_is_judged_as_any_other(void **state)
{
	static const struct {
		const char *text;
		int code;
		const char *part;
	} rows[] = {
		{"memory.ram=1G", 0, ""},
		{"memory.ram=100000001", WIRE_BAD_ARGUMENT, "unit"},
		{"warm.model=/a b", 0, ""},
		{"gpu.budget.GPU-1=1G", 0, ""},
		{"memory.rma=1G", WIRE_BAD_ARGUMENT, "/s/state.json: [memory] has no key \"rma\""},
		{"memory.ram=1Q", WIRE_BAD_ARGUMENT, "/s/state.json: memory.ram"},
		{"memory.ram", WIRE_BAD_ARGUMENT, "is wanted"},
		{"=", WIRE_BAD_ARGUMENT, "is wanted"},
		{"ram=1G", WIRE_BAD_ARGUMENT, "is wanted"},
		{"warm.model=/a\nb", WIRE_BAD_ARGUMENT, "control byte"},
		{"gpu.budget.a\nb=1G", WIRE_BAD_ARGUMENT, "the device's name is too long, holds"},
		{"gpu.budget.\xf8=1G", WIRE_BAD_ARGUMENT, "the device's name is too long, holds"},
	};
	struct err none = {0};

	(void)state;
	for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
		struct err err = {0};

		assert_int_equal(config_check_saved("/s/state.json", rows[i].text, false, &err),
				 -rows[i].code);
		assert_non_null(strstr(err.text, rows[i].part));
	}
	/* As a daemon before this one wrote them. */
	assert_int_equal(config_check_saved("s", "memory.ram=100000001", true, &none), 0);
	assert_int_equal(config_check_saved("s", "gpu.budget.GPU-1=34917580", true, &none), 0);
}

static void an_empty_list_said_above_leaves_out_what_was_saved(void **state)
{
	static const char *const environment[] = {"DISTORCHD_WARM_MODEL=", NULL};
	static const char *const texts[] = {"warm.model=/b"};
	const struct config_saved saved = saved_of(texts, 1);
	struct config_request request = given_request();
	struct config *config;
	struct config *next = NULL;

	(void)state;
	request.environment = environment;
	request.saved = &saved;
	config = expect_loads(&request);
	assert_int_equal(config->n_warm_models, 0);
	assert_int_equal(config_resave(config, &saved, &next, NULL), 0);
	assert_int_equal(next->n_warm_models, 0);
	(void)config_free(next);
	(void)config_free(config);
}

/* ---- a snapshot as text ---- */

static struct config *read_text(const char *text)
{
	struct config *config = NULL;

	(void)config_from_text(text, strlen(text), &config, NULL);
	return config;
}

/* Files, a list of two, an override, variable, argument, what was saved, and what has no effect. */
static struct config *loaded_from_everywhere(void)
{
	static const char *const environment[] = {"DISTORCHD_LOG_LEVEL=debug", NULL};
	static const char *const texts[] = {"memory.reserve=2G", "warm.model=/saved"};
	static const char *const sets[] = {"log.format=json"};
	const struct config_saved saved = saved_of(texts, 2);
	struct config_request request = given_request();

	given_file(ETC, "[memory]\nram = 1G\n[warm]\nmodel = /a = b (last good)\n"
			"[gpu]\nbudget.G = 1G\n");
	request.environment = environment;
	request.saved = &saved;
	request.sets = sets;
	request.n_sets = 1;
	return expect_loads(&request);
}

static void a_snapshot_may_be_had_again_from_its_text(void **state)
{
	struct config *config = loaded_from_everywhere();
	struct config_size override = {0};
	size_t size = 0;
	size_t size_again = 0;
	char *text = config_to_text(config, &size);
	char *text_again;
	struct config *next = read_text(text);

	(void)state;
	assert_int_equal(strlen(text), size);
	assert_non_null(next);
	expect_item(next, "memory.ram", "1G|" ETC ":2 (last good)");
	expect_item(next, "gpu.budget.G", "1G|" ETC ":6 (last good)");
	assert_true(config_find_override(next, "gpu.budget", "G", "cuda:0", &override));
	expect_item(next, "memory.reserve", "2G|/s/state.json (last good)");
	expect_item(next, "log.level", "debug|environment (last good)");
	expect_item(next, "log.format", "json|command line (last good)");
	expect_item(next, "restart.keep", "yes|default");
	assert_int_equal(next->n_warm_models, 2);
	assert_string_equal(next->warm_models[0], "/a = b (last good)");
	assert_string_equal(next->warm_models[1], "/saved");
	text_again = config_to_text(next, &size_again);
	assert_string_equal(text_again, text);
	free(text_again);
	free(text);
	(void)config_free(next);
	(void)config_free(config);
}

static void what_is_saved_goes_on_a_last_good_snapshot_as_on_its_first(void **state)
{
	static const char *const now[] = {"warm.model=/now", "memory.ram=3G", "log.level=error",
					  "memory.reserve=4G"};
	const struct config_saved saved = saved_of(now, 4);
	struct config *config = loaded_from_everywhere();
	size_t size = 0;
	char *text = config_to_text(config, &size);
	struct config *good = read_text(text);
	struct config *next = NULL;

	(void)state;
	assert_int_equal(config_resave(good, &saved, &next, NULL), 0);
	expect_item(next, "memory.ram", "3G|/s/state.json");
	expect_item(next, "memory.reserve", "4G|/s/state.json");
	expect_item(next, "log.level", "debug|environment (last good)"); /* ranks above */
	assert_int_equal(next->n_warm_models, 2);
	assert_string_equal(next->warm_models[1], "/now");
	(void)config_free(next);
	(void)config_free(good);
	(void)config_free(config);
	free(text);
}

static void a_text_of_another_version_gives_what_is_known(void **state)
{
	struct config *config = read_text("memory.ram=1G\n/f:1\nno.such=1\n/f:2\n"
					  "log.level=psychedelic\n/f:3\nlog.format=json\n/f:4\n\n");

	(void)state;
	expect_item(config, "memory.ram", "1G|/f:1 (last good)");
	expect_item(config, "log.level", "info|default");
	expect_item(config, "log.format", "json|/f:4 (last good)");
	(void)config_free(config);
	config = read_text("\n");
	expect_item(config, "memory.ram", "auto|default");
	(void)config_free(config);
}

static void a_text_that_is_no_snapshot_is_refused(void **state)
{
	static const char *const texts[] = {
		"x",
		"memory.ram=1G",
		"memory.ram=1G\n",
		"memory.ram=1G\n/f:1",
		"\n\nmemory.ram=1G\n",
	};
	static const char nul[] = "memory.ram=1G\n\0\n";
	struct config *config = NULL;
	struct err err = {0};
	char many[257 * sizeof "x\n\n"];
	char *end = many;

	(void)state;
	for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++) {
		assert_int_equal(config_from_text(texts[i], strlen(texts[i]), &config, &err),
				 -WIRE_BAD_FILE);
	}
	assert_int_equal(config_from_text(nul, sizeof nul - 1, &config, &err), -WIRE_BAD_FILE);
	for (int i = 0; i < 257; i++) {
		end = stpcpy(end, "x\n\n");
	}
	assert_int_equal(config_from_text(many, strlen(many), &config, &err), -WIRE_BAD_FILE);
	assert_null(config);
	assert_int_equal(err.code, WIRE_BAD_FILE);
	/* One less, though all of them mean nothing. */
	assert_int_equal(config_from_text(many, strlen(many) - 3, &config, &err), 0);
	(void)config_free(config);
}

static void text_without_memory(void *state)
{
	struct config *next = NULL;
	size_t size = 0;
	char *text = config_to_text(state, &size);
	int code = text == NULL ? -WIRE_NO_MEMORY : config_from_text(text, size, &next, NULL);

	assert_int_equal(code, sys_fault_n_hits("malloc") > 0 ? -WIRE_NO_MEMORY : 0);
	(void)config_free(next);
	free(text);
}

static void resave_without_memory(void *state)
{
	static const char *const texts[] = {"memory.ram=2G", "warm.model=/b"};
	const struct config_saved saved = saved_of(texts, 2);
	struct config *next = NULL;
	int code = config_resave(state, &saved, &next, NULL);

	assert_int_equal(code, sys_fault_n_hits("malloc") > 0 ? -WIRE_NO_MEMORY : 0);
	(void)config_free(next);
}

/* ---- refusals ---- */

/* fault: U06 */
static void unknown_keys_are_refused_with_line_and_nearest(void **state)
{
	(void)state;
	expect_bad_file("[memory]\n\n# comment\nrma = 1G\n",
			":4: [memory] has no key \"rma\"; did you mean \"ram\"?");
	expect_bad_file("[limits]\nconections = 1\n",
			":2: [limits] has no key \"conections\"; did you mean \"connections\"?");
	expect_bad_file("[log]\nram = 1G\n",
			":2: [log] has no key \"ram\"; it belongs to [memory]");
	expect_bad_file("[log]\ncolour = red\n", ":2: [log] has no key \"colour\"");
	expect_bad_file("[limit]\n", ":1: there is no section [limit]; did you mean [limits]?");
	expect_bad_file("[something]\n", ":1: there is no section [something]");
	expect_bad_file("[memory]\nRAM = 1G\n", ":2: [memory] has no key \"RAM\"");
}

/* fault: U06 */
static void wrong_values_are_refused_with_their_key(void **state)
{
	(void)state;
	expect_bad_file("[memory]\nram = 4X\n", ":2: memory.ram: \"4X\"");
	expect_bad_file("[memory]\nram =\n", ":2: memory.ram: \"\"");
	/* Without a blank before the mark it is no comment. */
	expect_bad_file("[memory]\npressure-evict = no;x\n", ":2: memory.pressure-evict: ");
	expect_bad_file("[memory]\nidle-evict = 10 minutes\n", ":2: memory.idle-evict: ");
	/* Also where a later layer would replace it. */
	given_file(DROP_IN "z.conf", "[memory]\nram = 1G\n");
	expect_bad_file("[memory]\nram = 4X\n", ":2: memory.ram: ");
}

/* fault: U06 */
static void a_key_twice_in_one_file_is_refused(void **state)
{
	struct config_request request = given_request();
	struct config *config;

	(void)state;
	expect_bad_file("[memory]\nram = 1G\n[log]\nlevel = info\n[memory]\nram = 1G\n",
			":6: memory.ram was set before, at ");
	given_file(ETC, "[memory]\nram = 1G\n[log]\nlevel = info\n[memory]\nreserve = 1G\n");
	given_file(DROP_IN "a.conf", "[memory]\nram = 2G\n");
	config = expect_loads(&request);
	assert_int_equal(config->memory_ram.bytes, 2ULL << 30);
	(void)config_free(config);
}

/* fault: U06 */
static void lines_of_any_editor_are_read(void **state)
{
	static const char *const texts[] = {
		"[memory]\nram = 1G",
		"[memory]\r\nram = 1G\r\n",
		"[memory]\r\nram = 1G\r",
		"\xef\xbb\xbf[memory]\nram = 1G\n",
		"\n\n  [ memory ]  \n\t ram\t=\t1G\t \n\n",
		"[memory]\nram = 1G # 2G\n",
	};
	struct config_request request = given_request();

	(void)state;
	for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++) {
		struct config *config;

		given_file(ETC, texts[i]);
		config = expect_loads(&request);
		assert_int_equal(config->memory_ram.bytes, 1ULL << 30);
		(void)config_free(config);
	}
	given_file(ETC, "");
	(void)config_free(expect_loads(&request));
}

/* fault: U06 */
static void what_is_no_configuration_is_refused_with_its_line(void **state)
{
	static const char nul[] = "[memory]\nram\0 = 1G\n";
	struct config_request request = given_request();
	static char long_line[8192];

	(void)state;
	expect_bad_file("ram = 1G\n", ":1: a key before the first [section]");
	expect_bad_file("[memory]\nram\n", ":2: neither [section] nor key = value");
	expect_bad_file("[memory\nram = 1B\n", ":1: ']' is missing");
	expect_bad_file("[", ":1: ']' is missing");
	expect_bad_file("[]", ":1: there is no section []");
	expect_bad_file("[memory]\n = 1G\n", ":2: [memory] has no key \"\"");
	expect_bad_file("[memory]\nram = 1G\n\x1b[31m\n", ":3: the line is longer than");
	expect_bad_file("[memory]\n# \xff\n", ":2: the line is longer than");
	expect_bad_file("[memory]\nram\r = 1G\n", ":2: the line is longer than");
	given_bytes(ETC, nul, sizeof nul - 1);
	expect_refused(&request, WIRE_BAD_ARGUMENT, ":2: the line is longer than");
	memset(long_line, '#', sizeof long_line);
	memcpy(long_line, "[memory]\n", 9);
	given_bytes(ETC, long_line, 9 + 4096);
	(void)config_free(expect_loads(&request));
	given_bytes(ETC, long_line, 9 + 4097);
	expect_refused(&request, WIRE_BAD_ARGUMENT, ":2: the line is longer than");
}

/* fault: U06 */
static void a_file_of_10_mb_is_refused(void **state)
{
	size_t size = 10U << 20;
	char *text = malloc(size);
	struct config_request request = given_request();

	(void)state;
	assert_non_null(text);
	memset(text, '\n', size);
	given_bytes(ETC, text, size);
	expect_refused(&request, WIRE_BAD_ARGUMENT, "at most 1 MiB");
	given_bytes(ETC, text, 1U << 20);
	(void)config_free(expect_loads(&request));
	given_bytes(ETC, text, (1U << 20) + 1);
	expect_refused(&request, WIRE_BAD_ARGUMENT, "at most 1 MiB");
	free(text);
}

static void when_there_is_no_room_for_more_values_one_may_be_replaced(void **state)
{
	static const char *const sets[] = {"log.level=debug", "gpu.budget.1=2G",
					   "gpu.budget.new=1G"};
	struct config_request request = given_request();
	char *text = malloc(1U << 16);
	char *end = text;
	struct config *config;
	struct config *next = NULL;
	struct config_item item;
	uint32_t n_settings = 0;
	size_t size = 0;

	(void)state;
	config = expect_loads(&request);
	while (config_next(config, &n_settings, &item)) {
	}
	(void)config_free(config);
	assert_non_null(text);
	end = stpcpy(end, "[gpu]\n");
	for (uint32_t i = 0; i < 256 - n_settings; i++) {
		end += sprintf(end, "budget.%u = 1G\n", i);
	}
	given_file(ETC, text);
	free(text);
	request.sets = sets;
	request.n_sets = 2;
	config = expect_loads(&request);
	expect_item(config, "gpu.budget.1", "2G|command line");
	text = config_to_text(config, &size);
	assert_int_equal(config_from_text(text, size, &next, NULL), 0);
	expect_item(next, "log.level", "debug|command line (last good)");
	(void)config_free(next);
	(void)config_free(config);
	free(text);
	request.n_sets = 3;
	expect_refused(&request, WIRE_BAD_ARGUMENT, "--set gpu.budget.new: more than 256");
}

static void values_without_end_are_refused(void **state)
{
	static char text[8192] = "[warm]\n";
	size_t size = strlen(text);

	(void)state;
	for (int i = 0; i < 300; i++) {
		size += (size_t)snprintf(&text[size], sizeof text - size, "model = /m%d\n", i);
		assert_true(size < sizeof text);
	}
	expect_bad_file(text, ":228: more than 256 values are set");
}

/* fault: U06 */
static void a_file_that_cannot_be_read_is_refused_by_name(void **state)
{
	struct config_request request = given_request();
	char full[256];

	(void)state;
	given_file(DROP_IN "a.conf", "[memory]\nram = 1G\n");
	/* The third file that is opened; root may read anything, so the seam says no. */
	assert_true(sys_fault_set("open", (struct sys_fault){.nth = 3, .error = EACCES}));
	expect_refused(&request, WIRE_IO, "/distorchd.conf.d/a.conf: Permission denied");
	sys_fault_clear();
	assert_true(sys_fault_set("pread", (struct sys_fault){.nth = 1, .error = EIO}));
	expect_refused(&request, WIRE_IO, "/distorchd.conf.d/a.conf: Input/output error");
	sys_fault_clear();
	assert_true(sys_fault_set("pread", (struct sys_fault){.nth = 1, .error = EINTR}));
	(void)config_free(expect_loads(&request));
	sys_fault_clear();
	assert_true(sys_fault_set("fstat", (struct sys_fault){.nth = 1, .error = EIO}));
	expect_refused(&request, WIRE_IO, "/distorchd.conf.d/a.conf: Input/output error");
	sys_fault_clear();
	assert_int_equal(mkdir(full_path(DROP_IN "b.conf", full), 0700), 0);
	expect_refused(&request, WIRE_IO, "b.conf is not a file");
	assert_int_equal(rmdir(full), 0);
	assert_int_equal(mkfifo(full, 0600), 0);
	expect_refused(&request, WIRE_IO, "b.conf is not a file");
}

static void short_reads_are_invisible(void **state)
{
	struct config_request request = given_request();
	struct config *config;

	(void)state;
	given_file(ETC, "[memory]\nram = 123M\n");
	assert_true(
		sys_fault_set("pread",
			      (struct sys_fault){.nth = 1, .short_size = 3, .is_forever = true}));
	config = expect_loads(&request);
	assert_int_equal(config->memory_ram.bytes, 123U << 20);
	(void)config_free(config);
	assert_true(sys_fault_n_hits("pread") > 5);
}

static void load_without_memory(void *state)
{
	char home[128];
	const char *environment[] = {home, "DISTORCHD_SIM_COUNT=1", NULL};
	static const char *const sets[] = {"warm.model=/a", "gpu.budget.G=1G"};
	struct config_request request = given_request();
	struct config *config = NULL;
	struct err err = {0};
	int code;

	(void)state;
	(void)snprintf(home, sizeof home, "HOME=%s", root);
	request.environment = environment;
	request.is_user = true;
	request.sets = sets;
	request.n_sets = 2;
	code = config_load(&request, &config, &err);
	if (sys_fault_n_hits("malloc") > 0) {
		assert_int_equal(code, -WIRE_NO_MEMORY);
		assert_int_equal(err.code, WIRE_NO_MEMORY);
		assert_null(config);
	} else {
		assert_int_equal(code, 0);
		assert_int_equal(config->n_warm_models, 2);
	}
	(void)config_free(config);
}

/* fault: M10 */
static void every_failed_allocation_is_no_memory_and_leaves_nothing(void **state)
{
	struct config_request request = given_request();
	struct config *config;

	(void)state;
	given_file(ETC, "[memory]\nram = 1G\n[warm]\nmodel = /b\n");
	given_file(DROP_IN "a.conf", "[memory]\nram = 2G\n");
	assert_true(fault_loop("malloc", ENOMEM, false, load_without_memory, NULL) > 100);
	assert_true(fault_loop("malloc", ENOMEM, true, load_without_memory, NULL) > 100);
	config = expect_loads(&request);
	assert_true(fault_loop("malloc", ENOMEM, false, resave_without_memory, config) > 90);
	assert_true(fault_loop("malloc", ENOMEM, false, text_without_memory, config) > 90);
	(void)config_free(config);
}

/* ---- the reference ---- */

/* What is printed is a configuration file that says what is the default anyway. */
static void the_reference_is_a_configuration_of_defaults(void **state)
{
	struct config_request request = given_request();
	struct config *defaults = expect_loads(&request);
	struct config *config;
	struct config_item item;
	uint32_t cursor = 0;
	char *text = NULL;
	size_t size = 0;
	FILE *file = open_memstream(&text, &size);

	(void)state;
	assert_non_null(file);
	config_print_reference(file);
	assert_int_equal(fclose(file), 0);
	given_bytes(ETC, text, size);
	config = expect_loads(&request);
	while (config_next(config, &cursor, &item)) {
		char found[512];

		assert_non_null(find_item(defaults, item.key, found));
		assert_memory_equal(found, item.value, strlen(item.value));
		assert_true((strcmp(item.source, "default") == 0) ==
			    (strcmp(item.key, "warm.model") == 0));
	}
	assert_non_null(strstr(text, "[memory]\n# Host memory for models"));
	assert_non_null(strstr(text, "\n#model = /srv"));
	assert_int_equal(config->gpu_linger_ns, defaults->gpu_linger_ns);
	(void)config_free(config);
	(void)config_free(defaults);
	free(text);
}

#define CONFIG_TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void)
{
	const struct CMUnitTest tests[] = {
		CONFIG_TEST(without_files_everything_is_default),
		CONFIG_TEST(where_metrics_are_fetched_is_read_and_checked),
		CONFIG_TEST(each_kind_of_value_is_understood),
		CONFIG_TEST(counts_and_sizes_have_a_range),
		CONFIG_TEST(a_choice_may_come_later),
		CONFIG_TEST(a_device_may_have_a_value_of_its_own),
		CONFIG_TEST(models_to_warm_are_a_list),
		CONFIG_TEST(later_layers_win),
		CONFIG_TEST(a_drop_in_of_the_same_name_replaces_the_vendors),
		CONFIG_TEST(one_file_may_stand_for_all),
		CONFIG_TEST(without_xdg_the_home_is_read),
		CONFIG_TEST(variables_are_judged_when_they_mean_us),
		CONFIG_TEST(arguments_are_section_key_and_value),
		CONFIG_TEST(what_was_saved_ranks_between_files_and_environment),
		CONFIG_TEST(what_is_saved_anew_replaces_what_was_saved_before),
		CONFIG_TEST(a_saved_value_is_judged_as_any_other),
		CONFIG_TEST(an_empty_list_said_above_leaves_out_what_was_saved),
		CONFIG_TEST(a_snapshot_may_be_had_again_from_its_text),
		CONFIG_TEST(what_is_saved_goes_on_a_last_good_snapshot_as_on_its_first),
		CONFIG_TEST(a_text_of_another_version_gives_what_is_known),
		CONFIG_TEST(a_text_that_is_no_snapshot_is_refused),
		CONFIG_TEST(unknown_keys_are_refused_with_line_and_nearest),
		CONFIG_TEST(wrong_values_are_refused_with_their_key),
		CONFIG_TEST(a_key_twice_in_one_file_is_refused),
		CONFIG_TEST(lines_of_any_editor_are_read),
		CONFIG_TEST(what_is_no_configuration_is_refused_with_its_line),
		CONFIG_TEST(a_file_of_10_mb_is_refused),
		CONFIG_TEST(values_without_end_are_refused),
		CONFIG_TEST(when_there_is_no_room_for_more_values_one_may_be_replaced),
		CONFIG_TEST(a_file_that_cannot_be_read_is_refused_by_name),
		CONFIG_TEST(short_reads_are_invisible),
		CONFIG_TEST(every_failed_allocation_is_no_memory_and_leaves_nothing),
		CONFIG_TEST(the_reference_is_a_configuration_of_defaults),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
