/* SPDX-License-Identifier: Apache-2.0 */
/* Transfers whose case no load has today. Those of loads are in test_places.c and its fellows. */
#include "base/err.h"
#include "tests/support/scratch.h"
#include "tests/support/unit.h"

#include <string.h>
#include <unistd.h>

#include "daemon/device/device.h"
#include "daemon/load/piece.h"
#include "daemon/load/reader.h"
#include "daemon/load/thread.h"
#include "daemon/load/transfer.h"
#include "daemon/load/window_pool.h"

#define BYTES (24ULL << 20) /* three windows through a buffer, one without */

static struct extent *given_extent(struct device *device)
{
	const struct device_alloc request = {.name = "test", .bytes = BYTES};
	struct extent *extent = NULL;

	assert_int_equal(device_alloc(device, &request, &extent, NULL), 0);
	return extent;
}

/* Its windows are no larger than the buffer that they go through. */
static void an_extent_is_the_source_where_there_is_an_image_too(void **state)
{
	const int image = scratch_open();
	struct piece whole = {.bytes = BYTES};
	const struct piece_list list = {.pieces = &whole, .n_pieces = 1};
	const struct device_source source = {.fd = image, .bytes = BYTES};
	struct read_progress progress = {0};
	struct thread_group group;
	struct window_pool pool;
	struct device *device = NULL;
	struct transfer transfer = {.list = &list,
				    .image_fds = &image,
				    .n_threads = 1,
				    .group = &group,
				    .pool = &pool,
				    .progress = &progress};
	struct extent *from;
	uint64_t n_bytes = 0;
	struct err err = {0};

	(void)state;
	thread_group_init(&group);
	window_pool_init(&pool);
	assert_int_equal(device_open("host", "cpu", &device, NULL), 0);
	from = given_extent(device);
	scratch_fill(image, 0, BYTES);
	assert_int_equal(device_fill(from, 0, &source, &n_bytes, NULL), 0);
	assert_int_equal(n_bytes, BYTES);
	transfer.extent = given_extent(device);
	transfer.from = from;
	window_pool_enter(&pool);
	if (transfer_run(&transfer, NULL, &err) != 0) {
		fail_msg("%s", err.text);
	}
	window_pool_leave(&pool);
	assert_memory_equal(device_bytes(transfer.extent), device_bytes(from), BYTES);
	assert_int_equal(device_release(transfer.extent, NULL), 0);
	assert_int_equal(device_release(from, NULL), 0);
	(void)device_close(device);
	window_pool_fini(&pool);
	thread_group_fini(&group);
	(void)close(image);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(an_extent_is_the_source_where_there_is_an_image_too),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
