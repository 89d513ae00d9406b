/* SPDX-License-Identifier: Apache-2.0 */
/* The memory of an attached model, and what a daemon may not do to it. */
#include "tests/support/unit.h"
#include "tests/unit/client/peer.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "client/include/distorch.h"

/* What the daemon's answer to attach holds. */
struct offer {
	int table; /* descriptors, -1: none is sent */
	int image;
	uint64_t images; /* as announced */
	uint32_t n_attaches;
};

static void offer_close(struct offer *offer)
{
	if (offer->table >= 0) {
		assert_int_equal(close(offer->table), 0);
	}
	if (offer->image >= 0) {
		assert_int_equal(close(offer->image), 0);
	}
}

static void answer_attach(struct peer *peer)
{
	const struct offer *offer = peer->user;
	const int fds[] = {offer->table, offer->image};
	const struct wire_attach_response response = {.lease = 5,
						      .generation = 3,
						      .images = offer->images,
						      .model = peer_model()};

	for (uint32_t i = 0; i < offer->n_attaches; i++) {
		uint32_t id = peer_expect(peer, WIRE_METHOD_ATTACH);

		peer_respond(peer, id, WIRE_METHOD_ATTACH, &response, fds,
			     offer->image >= 0 ? 2 : 1);
	}
	(void)peer_is_closed(peer);
}

static struct offer good_offer(void)
{
	return (struct offer){.table = peer_make_table(0, PEER_SEALS),
			      .image = peer_make_image(PEER_SEALS),
			      .images = 1,
			      .n_attaches = 1};
}

/* Attach under 'offer'; returns the code. */
static int attach(struct offer *offer, struct distorch_weights **ret_weights,
		  uint32_t *ret_detached)
{
	struct peer *peer = calloc(1, sizeof *peer);
	struct distorch *c = NULL;
	int rc;

	assert_non_null(peer);
	peer_start(peer, answer_attach, offer);
	assert_int_equal(distorch_open(peer->path, NULL, &c), 0);
	rc = distorch_attach(c, "m", ret_weights);
	distorch_close(c);
	peer_stop(peer);
	*ret_detached = peer->n_detached;
	free(peer);
	return rc;
}

static void tensors_are_mapped_and_found(void **state)
{
	struct offer offer = good_offer();
	struct distorch_weights *weights = NULL;
	const struct distorch_tensor *tensor;
	uint32_t n_detached = 0;
	uint64_t bytes = 0;
	size_t size = 0;
	const char *names;
	const uint8_t *base;

	(void)state;
	assert_int_equal(attach(&offer, &weights, &n_detached), 0);
	offer_close(&offer);
	assert_string_equal(distorch_weights_model(weights), "00112233445566778899aabbccddeeff");
	assert_int_equal(distorch_weights_generation(weights), 3);
	assert_int_equal(distorch_weights_lease(weights), 5);
	assert_int_equal(distorch_weights_n_tensors(weights), 4);
	assert_int_equal(distorch_weights_n_shards(weights), 1);

	base = distorch_weights_base(weights, 0, &bytes);
	assert_int_equal(bytes, PEER_IMAGE_BYTES);
	assert_int_equal((uintptr_t)base % (2 << 20), 0); /* else 2 MiB pages cannot back it */
	for (size_t i = 0; i < PEER_IMAGE_BYTES; i += 997) {
		assert_int_equal(base[i], peer_pattern(i));
	}
	assert_null(distorch_weights_base(weights, 1, &bytes));
	assert_int_equal(bytes, 0);

	tensor = distorch_weights_find(weights, "b.weight");
	assert_ptr_equal(tensor, distorch_weights_tensor(weights, 1));
	assert_string_equal(tensor->dtype, "U8");
	assert_int_equal(tensor->rank, 1);
	assert_int_equal(tensor->shape[0], 5);
	assert_int_equal(tensor->bytes, 5);
	assert_ptr_equal(tensor->data, base + 88);
	tensor = distorch_weights_find(weights, "s");
	assert_int_equal(tensor->rank, 0);
	assert_int_equal(tensor->bits, 16);
	assert_int_equal(distorch_weights_find(weights, "empty")->bytes, 0);
	assert_null(distorch_weights_find(weights, NULL));
	assert_null(distorch_weights_find(weights, "b.weigh"));
	assert_null(distorch_weights_tensor(weights, 4));

	names = distorch_weights_names(weights, &size);
	assert_int_equal(size, 2 + 9 + 6 + 2);
	assert_memory_equal(names, "a\0b.weight\0empty\0s", size);
	distorch_weights_unref(weights);
}

static void writing_is_private(void **state)
{
	struct offer offer = good_offer();
	struct distorch_weights *first = NULL;
	struct distorch_weights *second = NULL;
	uint32_t n_detached = 0;
	uint8_t byte = 0;
	uint8_t *a;

	(void)state;
	assert_int_equal(attach(&offer, &first, &n_detached), 0);
	assert_int_equal(attach(&offer, &second, &n_detached), 0);
	a = distorch_weights_find(first, "a")->data;
	a[0] = (uint8_t)~peer_pattern(64);
	assert_int_equal(*(uint8_t *)distorch_weights_find(second, "a")->data, peer_pattern(64));
	assert_int_equal(pread(offer.image, &byte, 1, 64), 1);
	assert_int_equal(byte, peer_pattern(64));
	distorch_weights_unref(first);
	distorch_weights_unref(second);
	offer_close(&offer);
}

static void last_unref_unmaps_and_detaches(void **state)
{
	struct offer offer = good_offer();
	struct peer *peer = calloc(1, sizeof *peer);
	struct distorch *c = NULL;
	struct distorch_weights *weights = NULL;
	int n_fds;

	(void)state;
	assert_non_null(peer);
	peer_start(peer, answer_attach, &offer);
	assert_int_equal(distorch_open(peer->path, NULL, &c), 0);
	n_fds = peer_count_fds();
	assert_int_equal(distorch_attach(c, "m", &weights), 0);
	assert_int_equal(peer_count_fds(), n_fds + 1); /* the image's, for distorch_weights_fd */
	assert_ptr_equal(distorch_weights_ref(weights), weights);
	assert_null(distorch_weights_unref(weights));
	assert_int_equal(*(uint8_t *)distorch_weights_find(weights, "a")->data, peer_pattern(64));
	assert_null(distorch_weights_unref(weights));
	peer_wait_fds(n_fds);
	distorch_close(c);
	peer_stop(peer);
	assert_int_equal(peer->n_detached, 1);
	assert_int_equal(peer->detached, 5);
	free(peer);
	offer_close(&offer);
}

static void weights_outlive_the_connection(void **state)
{
	struct offer offer = good_offer();
	struct distorch_weights *weights = NULL;
	uint32_t n_detached = 0;

	(void)state;
	assert_int_equal(attach(&offer, &weights, &n_detached), 0); /* closed by now */
	offer_close(&offer);
	assert_int_equal(*(uint8_t *)distorch_weights_find(weights, "a")->data, peer_pattern(64));
	distorch_weights_unref(weights);
	assert_int_equal(n_detached, 0);
}

static void image_descriptor_is_readable_and_cannot_be_written(void **state)
{
	struct offer offer = good_offer();
	struct distorch_weights *weights = NULL;
	uint32_t n_detached = 0;
	uint8_t byte = 0;
	int fd;

	(void)state;
	assert_int_equal(attach(&offer, &weights, &n_detached), 0);
	fd = distorch_weights_fd(weights, 0);
	assert_true(fd >= 0);
	assert_int_equal(fcntl(fd, F_GETFD) & FD_CLOEXEC, FD_CLOEXEC);
	assert_int_equal(pread(fd, &byte, 1, 1000), 1);
	assert_int_equal(byte, peer_pattern(1000));
	assert_int_equal(pwrite(fd, &byte, 1, 0), -1);
	assert_int_equal(close(fd), 0);
	assert_int_equal(distorch_weights_fd(weights, 1), -DISTORCH_E_NOT_FOUND);
	distorch_weights_unref(weights);
	offer_close(&offer);
}

/* ---- what is refused; each leaves no descriptor and gives the lease back ---- */

static void refused(struct offer *offer, int code)
{
	struct distorch_weights *weights = NULL;
	uint32_t n_detached = 0;
	int n_fds = peer_count_fds();

	assert_int_equal(attach(offer, &weights, &n_detached), -code);
	assert_null(weights);
	assert_int_equal(n_detached, code == DISTORCH_E_INTERNAL ? 1 : 0);
	assert_int_equal(distorch_error(NULL)->code, code);
	peer_wait_fds(n_fds);
	offer_close(offer);
}

static void image_without_seals_is_refused(void **state)
{
	static const int lacking[] = {0, F_SEAL_GROW | F_SEAL_WRITE, F_SEAL_SHRINK | F_SEAL_WRITE,
				      F_SEAL_SHRINK | F_SEAL_GROW};

	(void)state;
	for (size_t i = 0; i < sizeof lacking / sizeof *lacking; i++) {
		struct offer offer = good_offer();

		assert_int_equal(close(offer.image), 0);
		offer.image = peer_make_image(lacking[i]);
		refused(&offer, DISTORCH_E_INTERNAL);
	}
}

static void image_of_another_length_is_refused(void **state)
{
	struct offer offer = good_offer();

	(void)state;
	assert_int_equal(close(offer.table), 0);
	offer.table = peer_make_table(PEER_IMAGE_BYTES + 4096, PEER_SEALS);
	refused(&offer, DISTORCH_E_INTERNAL);
}

static void image_that_is_no_memfd_is_refused(void **state)
{
	struct offer offer = good_offer();
	char path[] = "/tmp/distorch-test-XXXXXX";

	(void)state;
	assert_int_equal(close(offer.image), 0);
	offer.image = mkstemp(path);
	assert_true(offer.image >= 0);
	assert_int_equal(unlink(path), 0);
	assert_int_equal(ftruncate(offer.image, (off_t)PEER_IMAGE_BYTES), 0);
	refused(&offer, DISTORCH_E_INTERNAL);
}

static void announced_images_that_do_not_come_are_refused(void **state)
{
	struct offer offer = good_offer();

	(void)state;
	offer.images = 2;
	refused(&offer, DISTORCH_E_INTERNAL);
	offer = good_offer();
	assert_int_equal(close(offer.image), 0);
	offer.image = -1;
	refused(&offer, DISTORCH_E_INTERNAL);
}

static void table_that_is_a_pipe_is_refused(void **state)
{
	struct offer offer = good_offer();
	int ends[2];

	(void)state;
	assert_int_equal(close(offer.table), 0);
	assert_int_equal(pipe2(ends, O_CLOEXEC), 0);
	offer.table = ends[0];
	refused(&offer, DISTORCH_E_INTERNAL);
	assert_int_equal(close(ends[1]), 0);
}

static void every_flipped_byte_of_a_table_is_refused(void **state)
{
	_Alignas(8) uint8_t memory[4096];
	size_t size = peer_table_bytes(0, memory, sizeof memory);

	(void)state;
	for (size_t i = 0; i < size; i += 13) {
		struct offer offer = good_offer();

		assert_int_equal(close(offer.table), 0);
		memory[i] ^= 0x41;
		offer.table = peer_memfd(memory, size, PEER_SEALS);
		memory[i] ^= 0x41;
		refused(&offer, DISTORCH_E_INTERNAL);
	}
}

static void cut_tables_are_refused(void **state)
{
	_Alignas(8) uint8_t memory[4096];
	size_t size = peer_table_bytes(0, memory, sizeof memory);

	(void)state;
	for (size_t cut = 1; cut < size; cut += 61) {
		struct offer offer = good_offer();

		assert_int_equal(close(offer.table), 0);
		offer.table = peer_memfd(memory, cut, PEER_SEALS);
		refused(&offer, DISTORCH_E_INTERNAL);
	}
}

static void table_changed_after_the_attach_changes_nothing(void **state)
{
	struct offer offer = good_offer();
	struct distorch_weights *weights = NULL;
	uint32_t n_detached = 0;
	char zeros[4096] = {0};

	(void)state;
	assert_int_equal(close(offer.table), 0);
	offer.table = peer_make_table(0, 0); /* never sealed */
	assert_int_equal(attach(&offer, &weights, &n_detached), 0);
	assert_true(pwrite(offer.table, zeros, sizeof zeros, 0) > 0);
	assert_int_equal(ftruncate(offer.table, 0), 0);
	assert_string_equal(distorch_weights_tensor(weights, 1)->name, "b.weight");
	assert_int_equal(distorch_weights_tensor(weights, 0)->shape[1], 3);
	assert_int_equal(distorch_weights_n_tensors(weights), 4);
	distorch_weights_unref(weights);
	offer_close(&offer);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(tensors_are_mapped_and_found),
		cmocka_unit_test(writing_is_private),
		cmocka_unit_test(last_unref_unmaps_and_detaches),
		cmocka_unit_test(weights_outlive_the_connection),
		cmocka_unit_test(image_descriptor_is_readable_and_cannot_be_written),
		cmocka_unit_test(image_without_seals_is_refused),
		cmocka_unit_test(image_of_another_length_is_refused),
		cmocka_unit_test(image_that_is_no_memfd_is_refused),
		cmocka_unit_test(announced_images_that_do_not_come_are_refused),
		cmocka_unit_test(table_that_is_a_pipe_is_refused),
		cmocka_unit_test(every_flipped_byte_of_a_table_is_refused),
		cmocka_unit_test(cut_tables_are_refused),
		cmocka_unit_test(table_changed_after_the_attach_changes_nothing),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
