/* SPDX-License-Identifier: Apache-2.0 */
/*
 * An allocation of any bytes over blocks and devices that the first bytes choose. Oracle: what is
 * refused has a text, which is short and harmless and names a column or says why not; what is
 * planned has every block on a device, sums that agree and nothing over what there is; and the
 * same input comes to the same.
 */
#include "base/err.h"
#include "base/require.h"
#include "tests/fuzz/fuzz.h"

#include <stdlib.h>
#include <string.h>

#include "daemon/plan/explain.h"
#include "proto/gen/wire_code.h"

#define N_BLOCKS  12U
#define N_DEVICES 4U
#define GIB       (1ULL << 30)

struct subject {
	struct plan_block blocks[N_BLOCKS];
	struct plan_device devices[N_DEVICES];
	struct plan_text donor;
	struct plan_request request;
};

static void make_subject(struct subject *subject, const uint8_t *choice)
{
	static const char *const names[] = {"cpu", "cuda:0", "cuda:1", "sim:0"};
	static const char *const products[] = {"", "NVIDIA GeForce RTX 4090", "RTX 4090 D", NULL};
	static const char block_name[] = "conditioner.embed.3";

	*subject = (struct subject){0};
	for (uint32_t i = 0; i < N_BLOCKS; i++) {
		subject->blocks[i] =
			(struct plan_block){.bytes = (i + choice[0]) % 7 * (GIB / 4),
					    .packed = GIB,
					    .name = block_name,
					    .name_size = sizeof block_name - 1,
					    .component = (choice[1] & 1U) != 0 ? i % 4 : 0,
					    .is_head = i == choice[1] % N_BLOCKS};
	}
	for (uint32_t i = 0; i < N_DEVICES; i++) {
		subject->devices[i] = (struct plan_device){.name = names[i],
							   .product = products[i],
							   .uuid = i == 1 ? "GPU-0123456789" : NULL,
							   .pci = i == 2 ? "0000:01:00.0" : NULL,
							   .total = (uint64_t)choice[2] * GIB / 4,
							   .free = (uint64_t)choice[2] * GIB / 8,
							   .evictable = GIB,
							   .granularity = 2 << 20,
							   .is_host = i == 0,
							   .is_lost = i == 3 && choice[3] > 200};
	}
	subject->request = (struct plan_request){.blocks = subject->blocks,
						 .n_blocks = N_BLOCKS,
						 .devices = subject->devices,
						 .n_devices = 1U + choice[3] % N_DEVICES,
						 .strategy = (enum plan_strategy)(choice[4] % 3)};
}

static void check_plan(const struct subject *subject, const uint8_t *devices,
		       const struct plan_summary *summary)
{
	uint64_t bytes = 0;
	char text[256];

	for (uint32_t i = 0; i < N_BLOCKS; i++) {
		REQUIRE(devices[i] < subject->request.n_devices);
		REQUIRE(!subject->devices[devices[i]].is_lost);
	}
	for (uint32_t i = 0; i < N_DEVICES; i++) {
		bytes += summary->shares[i].bytes;
		REQUIRE(summary->shares[i].taken <=
			subject->devices[i].free + subject->devices[i].evictable);
	}
	REQUIRE(bytes == summary->bytes);
	for (uint32_t i = 0; i < summary->n_warnings; i++) {
		(void)explain_warning(&subject->request, summary, &summary->warnings[i], text,
				      sizeof text);
		REQUIRE(text[0] != '\0' && strlen(text) < sizeof text - 1);
	}
}

static void check_text(const char *text)
{
	REQUIRE(text[0] != '\0' && strlen(text) < ERR_TEXT_SIZE);
	for (; *text != '\0'; text++) {
		REQUIRE((unsigned char)*text >= 0x20 && *text != 0x7f);
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size)
{
	struct subject subject;
	uint8_t devices[2][N_BLOCKS] = {{0}};
	struct plan_summary summaries[2];
	struct err errs[2] = {{0}};
	int codes[2];
	char *text;

	if (size < 6) {
		return 0;
	}
	make_subject(&subject, bytes);
	/* A copy of its own size, so that reading past its end is seen. */
	text = malloc(size - 6 == 0 ? 1 : size - 6);
	REQUIRE(text != NULL);
	memcpy(text, &bytes[6], size - 6);
	subject.donor = (struct plan_text){text, (uint32_t)(size - 6)};
	if (bytes[5] > 250) {
		subject.request.virtual_vram = GIB;
		subject.request.donors = &subject.donor;
		subject.request.n_donors = 1;
	} else if (bytes[5] > 240) {
		subject.request.compute = subject.donor;
	} else {
		subject.request.allocation = subject.donor;
	}
	for (int i = 0; i < 2; i++) {
		codes[i] = plan_make(&subject.request, devices[i], &summaries[i], &errs[i]);
	}
	REQUIRE(codes[0] == codes[1] && codes[0] == -errs[0].code);
	REQUIRE(codes[0] == 0 || codes[0] == -WIRE_BAD_ARGUMENT || codes[0] == -WIRE_NO_MEMORY ||
		codes[0] == -WIRE_DEVICE_LOST);
	if (codes[0] == 0) {
		REQUIRE(memcmp(devices[0], devices[1], N_BLOCKS) == 0);
		check_plan(&subject, devices[0], &summaries[0]);
	} else {
		check_text(errs[0].text);
		REQUIRE(strcmp(errs[0].text, errs[1].text) == 0);
	}
	free(text);
	return 0;
}
