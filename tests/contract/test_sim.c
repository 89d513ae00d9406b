/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What is true of simulated devices, beside the contract: memory that runs out exactly, and links
 * that take their time. How they copy to each other is in test_worker.c.
 */
#include "base/err.h"
#include "base/os/clock.h"
#include "tests/support/scratch.h"
#include "tests/support/unit.h"

#include "daemon/device/device.h"
#include "daemon/device/sim.h"
#include "proto/gen/wire_code.h"

#define MIB     (1ULL << 20)
#define GRANULE (2 * MIB)

static const struct sim_config sims[] = {
	{.memory_bytes = 32 * MIB, .granularity = GRANULE},
	{.memory_bytes = 256 * MIB,
	 .granularity = GRANULE,
	 .bytes_per_s = 256 * MIB,
	 .has_peers = true},
	{.memory_bytes = 256 * MIB,
	 .granularity = GRANULE,
	 .bytes_per_s = 512 * MIB,
	 .has_peers = true},
	{.memory_bytes = 256 * MIB, .granularity = GRANULE, .bytes_per_s = 64 * MIB},
};

static struct device *open_device(uint32_t number)
{
	struct device *device = NULL;
	struct err err = {0};
	char name[16];

	(void)snprintf(name, sizeof name, "sim:%u", number);
	assert_int_equal(device_open("sim", name, &device, &err), 0);
	return device;
}

static struct extent *try_extent(struct device *device, uint64_t bytes, int want)
{
	const struct device_alloc request = {.name = "test", .bytes = bytes};
	struct extent *extent = NULL;
	struct err err = {0};

	assert_int_equal(device_alloc(device, &request, &extent, &err), want);
	assert_true(want == 0 ? extent != NULL : extent == NULL && err.text[0] != '\0');
	return extent;
}

static struct extent *given_extent(struct device *device, uint64_t bytes)
{
	return try_extent(device, bytes, 0);
}

static void release(struct extent *extent)
{
	struct err err = {0};

	assert_int_equal(device_release(extent, &err), 0);
}

static double seconds_since(uint64_t start_ns)
{
	return (double)(clock_mono_ns() - start_ns) / 1e9;
}

static void memory_runs_out_exactly(void **state)
{
	struct device *device = open_device(0);
	struct extent *extents[16];
	struct err err = {0};
	const struct device_alloc more = {.name = "more", .bytes = 1};
	struct extent *none = NULL;

	(void)state;
	release(given_extent(device, 32 * MIB));
	(void)try_extent(device, 32 * MIB + 1, -WIRE_NO_MEMORY);
	for (size_t i = 0; i < 16; i++) { /* a granule each, whatever was asked for */
		extents[i] = given_extent(device, i % 2 == 0 ? 1 : GRANULE);
	}
	assert_int_equal(device_alloc(device, &more, &none, &err), -WIRE_NO_MEMORY);
	assert_non_null(strstr(err.text, "2097152 bytes needed, 0 of 33554432 free on sim:0"));
	release(extents[3]);
	(void)try_extent(device, GRANULE + 1, -WIRE_NO_MEMORY);
	extents[3] = given_extent(device, GRANULE);
	for (size_t i = 0; i < 16; i++) {
		release(extents[i]);
	}
	release(given_extent(device, 32 * MIB));
	(void)device_close(device);
}

static void what_others_take_is_not_there(void **state)
{
	struct device *device = open_device(0);
	struct device_info info;
	struct err err = {0};

	(void)state;
	sim_set_foreign(28 * MIB);
	assert_int_equal(device_info(device, &info, &err), 0);
	assert_int_equal(info.foreign_bytes, 28 * MIB);
	(void)try_extent(device, 6 * MIB, -WIRE_NO_MEMORY);
	release(given_extent(device, 4 * MIB));
	sim_set_foreign(0);
	(void)device_close(device);
}

static void a_device_says_what_it_is(void **state)
{
	struct device *device = open_device(2);
	struct device_info info;
	struct err err = {0};

	(void)state;
	assert_int_equal(device_info(device, &info, &err), 0);
	assert_int_equal(info.total_bytes, 256 * MIB);
	assert_int_equal(info.granularity, GRANULE);
	assert_int_equal(info.bytes_per_s, 512 * MIB);
	assert_string_equal(info.uuid, "SIM-00000000-0000-4000-8000-000000000002");
	assert_int_equal(info.n_peers, 1);
	assert_string_equal(info.peers[0].uuid, "SIM-00000000-0000-4000-8000-000000000001");
	assert_int_equal(info.peers[0].bytes_per_s, 256 * MIB);
	(void)device_close(device);
}

/* Does the fill end well before the link has taken all of it? */
static bool runs_ahead(struct device *device, int file)
{
	struct extent *extent = given_extent(device, 128 * MIB);
	struct device_source source = {.fd = file, .bytes = 8 * MIB};
	struct err err = {0};
	uint64_t start_ns = clock_mono_ns();
	double filled_s;
	double sealed_s;

	for (; source.offset < 128 * MIB; source.offset += 8 * MIB) {
		uint64_t n_bytes = 0;

		assert_int_equal(device_fill(extent, source.offset, &source, &n_bytes, &err), 0);
		assert_int_equal(n_bytes, 8 * MIB);
	}
	filled_s = seconds_since(start_ns);
	assert_int_equal(device_seal(extent, &err), 0);
	sealed_s = seconds_since(start_ns);
	assert_true(sealed_s >= 2); /* 128 MiB at 64 MiB/s */
	assert_true(filled_s >= 1);
	release(extent);
	return filled_s < sealed_s - 0.5;
}

static void a_fill_takes_as_long_as_the_link_and_runs_ahead_of_it(void **state)
{
	struct device *device = open_device(3);
	int file = scratch_open();
	bool is_ahead = false;

	(void)state;
	assert_int_equal(ftruncate(file, 128 * MIB), 0);
	for (int i = 0; i < 5 && !is_ahead; i++) { /* a machine may stand still for a moment */
		is_ahead = runs_ahead(device, file);
	}
	assert_true(is_ahead);
	(void)close(file);
	(void)device_close(device);
}

static void names_that_are_none_are_refused(void **state)
{
	static const char *const names[] = {"sim:4",  "sim:",           "sim", "sim:00", "sim:1x",
					    "sim:-1", "sim:4294967296", "cpu", ""};

	(void)state;
	for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
		struct device *device = NULL;
		struct err err = {0};

		assert_int_equal(device_open("sim", names[i], &device, &err), -WIRE_NOT_FOUND);
		assert_null(device);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(memory_runs_out_exactly),
		cmocka_unit_test(what_others_take_is_not_there),
		cmocka_unit_test(a_device_says_what_it_is),
		cmocka_unit_test(a_fill_takes_as_long_as_the_link_and_runs_ahead_of_it),
		cmocka_unit_test(names_that_are_none_are_refused),
	};

	sim_configure(sims, sizeof sims / sizeof sims[0]);
	device_register(&sim_device_ops);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
