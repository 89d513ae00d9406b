/* SPDX-License-Identifier: Apache-2.0 */
/* What the grammar takes, what it refuses and in which words; names of devices; heads and parts. */
#include "base/err.h"
#include "tests/support/unit.h"
#include "tests/unit/daemon/plan/scene.h"

#include "daemon/plan/explain.h"
#include "daemon/plan/name.h"
#include "proto/gen/wire_code.h"

struct scene {
	struct plan_device devices[6];
	struct plan_block blocks[MAX_BLOCKS];
	struct plan_text donors[4];
	struct plan_request request;
	uint8_t placed[MAX_BLOCKS];
	struct plan_summary summary;
	struct err err;
	char text[512];
};

/* A machine with two cards, and a model of 10 blocks of 1 GiB. */
static void given_cards(struct scene *scene)
{
	*scene = (struct scene){
		.devices = {device_of("cpu", 64 * GIB), device_of("cuda:0", 24 * GIB),
			    device_of("cuda:1", 12 * GIB)},
	};
	scene->devices[1].uuid = "GPU-4f0b2c1d-aaaa";
	scene->devices[1].product = "NVIDIA GeForce RTX 4080";
	scene->devices[1].pci = "00000000:01:00.0";
	scene->devices[2].uuid = "GPU-4f0b2c1e-bbbb";
	scene->devices[2].product = "NVIDIA GeForce RTX 4080 SUPER";
	scene->request.n_devices = 3;
	scene->request.n_blocks = 10;
	for (uint32_t i = 0; i < 10; i++) {
		scene->blocks[i] = (struct plan_block){.bytes = GIB, .name = "b.1", .name_size = 3};
	}
}

static int plan(struct scene *scene, const char *allocation)
{
	scene->request.blocks = scene->blocks;
	scene->request.devices = scene->devices;
	scene->request.donors = scene->donors;
	scene->request.allocation = text_of(allocation);
	return plan_make(&scene->request, scene->placed, &scene->summary, &scene->err);
}

static void expect_runs(struct scene *scene, const char *allocation, const char *runs)
{
	if (plan(scene, allocation) < 0) {
		fail_msg("%s: %s", allocation, scene->err.text);
	}
	assert_string_equal(runs_text(&scene->request, scene->placed, scene->text,
				      sizeof scene->text),
			    runs);
}

static void expect_refusal(struct scene *scene, const char *allocation, int code, const char *text)
{
	assert_int_equal(plan(scene, allocation), -code);
	if (strstr(scene->err.text, text) == NULL) {
		fail_msg("%s: \"%s\" and not \"%s\"", allocation, scene->err.text, text);
	}
}

static void expect_warning(struct scene *scene, uint32_t index, const char *text)
{
	assert_true(scene->summary.n_warnings > index);
	(void)explain_warning(&scene->request, &scene->summary, &scene->summary.warnings[index],
			      scene->text, sizeof scene->text);
	if (strstr(scene->text, text) == NULL) {
		fail_msg("\"%s\" and not \"%s\"", scene->text, text);
	}
}

static void blanks_case_and_empty_items_are_fine(void **state)
{
	struct scene scene;

	(void)state;
	given_cards(&scene);
	expect_runs(&scene, "cuda:0,2gb;cpu,*", "cuda:0 2, cpu 8");
	expect_runs(&scene, " ; CUDA:0 , 2 GiB ;; Cpu , * ; ", "cuda:0 2, cpu 8");
	expect_runs(&scene, "\tcuda:0,2048M\n;ram,*", "cuda:0 2, cpu 8");
	expect_runs(&scene, "cuda:0,2147483648;host,*", "cuda:0 2, cpu 8");
	expect_runs(&scene, "", "cpu 10");
	expect_runs(&scene, " ;; ", "cpu 10");
	expect_runs(&scene, "Ram", "cpu 10");
}

static void values_say_what_they_are(void **state)
{
	struct scene scene;

	(void)state;
	given_cards(&scene);
	expect_runs(&scene, "cuda:0,.125;cpu,*", "cuda:0 3, cpu 7");
	expect_runs(&scene, "cuda:1,1.0;cpu,0.0", "cuda:1 10");
	expect_runs(&scene, "cuda:0,0;cuda:1,30%;cpu,70%", "cuda:1 3, cpu 7");
	expect_runs(&scene, "cuda:0,0;cpu,*", "cpu 10");
	expect_runs(&scene, "cuda:0,12.5%;cuda:1,12.5%;cpu,75%", "cuda:0 1, cuda:1 2, cpu 7");
	expect_runs(&scene, "cpu,3gb;cuda:0,2gb", "cpu 8, cuda:0 2");
	expect_warning(&scene, 0, "ram takes the rest, 8.0G, and not the 3.0G");
	expect_runs(&scene, "cuda:0,2gb;cpu,*;cuda:1,3gb", "cuda:0 2, cpu 5, cuda:1 3");
	expect_runs(&scene, "cuda:0,20%;cpu,*;cuda:1,30%", "cuda:0 2, cpu 5, cuda:1 3");
	expect_runs(&scene, "cuda:0,2gb;cpu,8gb*", "cuda:0 2, cpu 8");
	assert_int_equal(scene.summary.n_warnings, 0);
	expect_runs(&scene, "cuda:0,2gb;cpu,7gb*", "cuda:0 2, cpu 8");
	expect_warning(&scene, 0, "the rest on ram is 8.0G, more than the 7.0G at its *");
}

static void what_is_written_wrong_is_named(void **state)
{
	static const struct {
		const char *allocation;
		const char *text;
	} rows[] = {
		{"cuda:0,6gb;cpu", "item 2 (column 12) \"cpu\": there is no value"},
		{"cuda:0,6gb; cuda:9,*", "item 2 (column 13) \"cuda:9,*\": there is no device"},
		{"cuda:0,;cpu,*", "item 1 (column 1) \"cuda:0,\": there is no value behind"},
		{"cuda:0,2gb;cpu,50%", "a percentage, and item 1 has a size: one string"},
		{"cuda:0,0.5;cpu,2gb", "a size, and item 1 has a fraction of the device"},
		{"cuda:0,1;cpu,*", "1 has no unit"},
		{"cuda:0,2.5;cpu,*", "more than 1 needs a unit: 2.5gb or 2.5%?"},
		{"cuda:0,1.0000000001", "at most 9 decimals"},
		{"cuda:0,50%*", "\"50%\" has no unit that is known"},
		{"cuda:0,%", "before the % there is no number"},
		{"cuda:0,2000000%", "before the % there is no number"},
		{"cuda:0,20000000000000000000", "more than 2^64 bytes"},
		{"cuda:0,99999999999999999999t", "\"99999999999999999999t\""},
		{"cuda:0,0.5b", "fraction of a byte"},
		{"cuda:0,000000000000000000000000000000000000000000001gb", "that is no size"},
		{"cuda:0,+1gb", "is not a size"},
		{"cuda:0,60%;cuda:1,50%;cpu,*", "add up to 110.00 %"},
		{"auto;cpu,*", "item 2 (column 6) \"cpu,*\": auto stands alone"},
		{"cpu,*;auto", "item 2 (column 7) \"auto\": auto stands alone"},
		{"cuda:0,2gb;cpu,*#cuda:0", "what is behind the # has its own place"},
		{"ram,*;host,2gb", "item 2 (column 7) \"host,2gb\": that device has item 1"},
		{"caf\xc3\xa9,1gb;x,*", "item 1 (column 1) \"caf\xc3\xa9,1gb\""},
		{"cpu,*;caf\xc3\xa9;x,*", "item 2 (column 7)"},
		{"\xc3\xa9,*", "no device \"\xc3\xa9\""},
		{"cu\x01\xff,*", "\"cu\\x01\\xff,*\""},
		{"cpu,75\x05", "\"75\\x05\" has no unit"},
		{"unet=cuda:0", "column 1 \"unet=\": the file is one part"},
		{"cuda:0,1gb|cpu,*", "column 1: each part"},
		{"|", "names nothing"},
		{"cuda:0,0.05;cpu,0.01", "9.0G of 10.0G fit in none of the fractions"},
	};

	(void)state;
	for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
		struct scene scene;

		given_cards(&scene);
		expect_refusal(&scene, rows[i].allocation, WIRE_BAD_ARGUMENT, rows[i].text);
	}
}

static void a_text_that_is_too_long_is_refused(void **state)
{
	struct scene scene;
	char text[PLAN_MAX_TEXT + 2];

	(void)state;
	given_cards(&scene);
	memset(text, ';', sizeof text);
	text[sizeof text - 1] = '\0';
	expect_refusal(&scene, text, WIRE_BAD_ARGUMENT, "at most 1024 bytes, not 1025");
	text[sizeof text - 2] = '\0';
	expect_runs(&scene, text, "cpu 10");
}

static void cards_are_found_by_uuid_and_by_their_own_name(void **state)
{
	struct scene scene;
	char label[PLAN_LABEL_SIZE];

	(void)state;
	given_cards(&scene);
	expect_runs(&scene, "GPU-4f0b2c1d-aaaa", "cuda:0 10");
	expect_runs(&scene, "gpu-4F0B2C1E", "cuda:1 10");
	expect_refusal(&scene, "GPU-4f0b2c1", WIRE_BAD_ARGUMENT, "2 devices are a \"GPU-4f0b2c1\"");
	expect_refusal(&scene, "GPU-4f", WIRE_BAD_ARGUMENT, "there is no device");
	expect_runs(&scene, "rtx 4080", "cuda:0 10"); /* the end of one name, within the other */
	expect_runs(&scene, "4080 SUPER,9gb;RTX 4080,*", "cuda:1 9, cuda:0 1");
	expect_refusal(&scene, "GeForce", WIRE_BAD_ARGUMENT, "2 devices are a \"GeForce\"");
	expect_refusal(&scene, "RTX 408", WIRE_BAD_ARGUMENT, "there is no device");
	expect_refusal(&scene, "NVIDIA GeForce RTX 4080 SUPER of some other make",
		       WIRE_BAD_ARGUMENT, "there is no device");
	assert_string_equal(name_label(&scene.devices[1], label, sizeof label),
			    "cuda:0 (RTX 4080, PCI 01:00)");
	assert_string_equal(name_label(&scene.devices[2], label, sizeof label),
			    "cuda:1 (RTX 4080 SUPER)");
	assert_string_equal(name_label(&scene.devices[0], label, sizeof label), "ram");
	scene.devices[2].product = "";
	scene.devices[2].pci = "0001:41:00.1"; /* neither the first domain nor function */
	assert_string_equal(name_label(&scene.devices[2], label, sizeof label),
			    "cuda:1 (PCI 0001:41:00.1)");
	scene.devices[2].pci = "0000:c1:00.0";
	assert_string_equal(name_label(&scene.devices[2], label, sizeof label),
			    "cuda:1 (PCI c1:00)");
}

static void what_does_not_fit_says_what_can_be_had(void **state)
{
	struct scene scene;

	(void)state;
	given_cards(&scene);
	scene.devices[1].free = 2 * GIB;
	scene.devices[1].evictable = 3 * GIB;
	scene.devices[1].held = 19 * GIB;
	expect_runs(&scene, "cuda:0,5gb;cpu,*", "cuda:0 5, cpu 5");
	expect_refusal(
		&scene, "cpu,1gb;cuda:0,6gb;cuda:1,*", WIRE_NO_MEMORY,
		"item 2 (column 9) \"cuda:0,6gb\": 6.0G of it would be on cuda:0 (RTX 4080, "
		"PCI 01:00), where 5.0G can be had (2.0G free, 3.0G evictable, 19.0G in use or pinned)");
	assert_int_equal(scene.summary.shortage.device, 1);
	assert_int_equal(scene.summary.shortage.need, 6 * GIB);
	/* What else is there is told where it is. */
	scene.devices[1].reserved = GIB;
	scene.devices[1].loading = 2 * GIB;
	scene.devices[1].foreign = 3 * GIB;
	expect_refusal(
		&scene, "cuda:0,6gb;cpu,*", WIRE_NO_MEMORY,
		"3.0G evictable, 19.0G in use or pinned, 2.0G being loaded, 1.0G reserved, others use "
		"3.0G)");
	scene.devices[1].own = GIB;
	expect_refusal(&scene, "cuda:0,6gb;cpu,*", WIRE_NO_MEMORY,
		       "5.0G can be had (1.0G free, 1.0G its own, 3.0G evictable, ");
	assert_int_equal(scene.summary.shortage.evictable, 3 * GIB);
	/* A fraction is "up to". */
	expect_runs(&scene, "cuda:0,0.5;cpu,*", "cuda:0 5, cpu 5");
	expect_warning(&scene, 0, "takes less than its fraction of 12.0G: only 5.0G can be had");
	scene.devices[1].is_lost = true;
	expect_refusal(&scene, "cpu,*;cuda:0,1gb", WIRE_DEVICE_LOST, "item 2 (column 7)");
	expect_runs(&scene, "auto", "cuda:1 10");
}

/* Fractions that would hold the model were not wrong: it is room that is short. */
static void fractions_without_room_are_refused_as_sizes_are(void **state)
{
	struct scene scene;

	(void)state;
	given_cards(&scene);
	scene.devices[1].free = 2 * GIB;
	scene.devices[1].held = 22 * GIB;
	expect_refusal(
		&scene, "cuda:0,0.5", WIRE_NO_MEMORY,
		"item 1 (column 1) \"cuda:0,0.5\": 10.0G of it would be on cuda:0 (RTX 4080, "
		"PCI 01:00), where 2.0G can be had");
	assert_int_equal(scene.summary.shortage.device, 1);
	assert_int_equal(scene.summary.shortage.need, 10 * GIB);
	expect_runs(&scene, "cuda:0,0.5;cpu,0.5", "cuda:0 2, cpu 8");
	expect_refusal(&scene, "cuda:0,0.2;cuda:1,0.4", WIRE_BAD_ARGUMENT,
		       "2.0G of 10.0G fit in none of the fractions");
	/* What is loaded there now is waited for, where there is not enough without it. */
	scene.devices[1].later = 3 * GIB;
	expect_runs(&scene, "cuda:0,0.5;cuda:1,0.5", "cuda:0 5, cuda:1 5");
	expect_warning(&scene, 0, "takes less than its fraction of 12.0G: only 5.0G can be had");
	expect_runs(&scene, "cuda:0,0.5;cuda:1,0.9", "cuda:0 2, cuda:1 8");
	expect_warning(&scene, 0, "only 2.0G can be had");
	expect_refusal(&scene, "cuda:0,0.5", WIRE_NO_MEMORY, "10.0G of it would be on cuda:0");
	scene.devices[1].later = 8 * GIB;
	expect_runs(&scene, "cuda:0,0.5", "cuda:0 10");
	assert_int_equal(scene.summary.warnings[0].kind, PLAN_TIGHT); /* and not that of a try */
}

static void of_auto_the_head_alone_may_be_too_much(void **state)
{
	struct scene scene;

	(void)state;
	given_cards(&scene);
	scene.blocks[0].is_head = true;
	scene.devices[1].free = GIB / 2;
	expect_refusal(
		&scene, "auto", WIRE_NO_MEMORY,
		"auto: with its head, which stays where it computes: 1.0G of it would be on cuda:0");
	assert_true(scene.summary.shortage.is_head);
	scene.devices[0].free = scene.devices[2].free = 0;
	scene.devices[1].free = 2 * GIB;
	expect_refusal(&scene, "auto", WIRE_NO_MEMORY,
		       "fit nowhere: room for 0 on ram, 2.0G on cuda:0 (");
	assert_true(scene.summary.shortage.device == PLAN_ALL_DEVICES);
}

static void auto_leaves_draining_devices_alone_while_others_do(void **state)
{
	struct scene scene;

	(void)state;
	given_cards(&scene);
	scene.devices[1].is_draining = true;
	expect_runs(&scene, "auto", "cuda:1 10");
	scene.request.strategy = PLAN_CONTIGUOUS;
	scene.devices[2].free = 6 * GIB;
	scene.devices[1].link[2] = 2; /* the faster donor, all the same */
	expect_runs(&scene, "auto", "cuda:1 4, cpu 6");
	scene.devices[0].free = GIB;
	expect_runs(&scene, "auto", "cuda:1 4, cpu 1, cuda:0 5");
	expect_runs(&scene, "cuda:0", "cuda:0 10");
}

static void blocks_take_what_the_device_gives(void **state)
{
	struct scene scene;

	(void)state;
	given_cards(&scene);
	for (uint32_t i = 0; i < 10; i++) {
		scene.blocks[i].bytes = MIB + 1;
		scene.blocks[i].packed = 2 * MIB + 1;
	}
	scene.devices[1].free = 12 * MIB; /* three of 4 MiB each */
	expect_runs(&scene, "cuda:0,3145731;cpu,*", "cuda:0 3, cpu 7");
	assert_int_equal(scene.summary.shares[1].bytes, 3 * (MIB + 1));
	assert_int_equal(scene.summary.shares[1].taken, 12 * MIB);
	assert_int_equal(scene.summary.shares[0].taken, 7 * (MIB + 4096));
	scene.devices[1].free--;
	expect_refusal(&scene, "cuda:0,3145731;cpu,*", WIRE_NO_MEMORY, "12.0M of it");
}

static void the_head_stays_where_the_model_computes(void **state)
{
	struct scene scene;

	(void)state;
	given_cards(&scene);
	scene.blocks[4].is_head = true;
	expect_runs(&scene, "cuda:0,3gb;cpu,*", "cuda:0 2, cpu 2, cuda:0 1, cpu 5");
	expect_runs(&scene, "cpu,*;cuda:0,3gb", "cpu 4, cuda:0 1, cpu 3, cuda:0 2");
	expect_runs(&scene, "cuda:0,30%;cpu,70%", "cuda:0 2, cpu 2, cuda:0 1, cpu 5");
	expect_runs(&scene, "cuda:0,500mb;cpu,*", "cpu 4, cuda:0 1, cpu 5");
	expect_warning(&scene, 0, "the head, 1.0G, stays on cuda:0");
	scene.request.compute = text_of("cuda:1");
	expect_runs(&scene, "cuda:0,5%;cpu,5%", "cuda:0 4, cuda:1 1, cuda:0 1, cpu 4");
	expect_warning(&scene, 0, "the head, 1.0G, stays on cuda:1 (RTX 4080 SUPER)");
	expect_runs(&scene, "cuda:0", "cuda:0 10");
	assert_int_equal(scene.summary.moved, 10 * GIB);
	scene.request.compute = text_of("cuda:7");
	expect_refusal(&scene, "cuda:0", WIRE_BAD_ARGUMENT, "compute: there is no device");
}

static void set_block(struct scene *scene, uint32_t index, const char *name, uint32_t component)
{
	scene->blocks[index].name = name;
	scene->blocks[index].name_size = (uint32_t)strlen(name);
	scene->blocks[index].component = component;
}

static void the_embeddings_of_a_text_encoder_are_head(void **state)
{
	struct scene scene;

	(void)state;
	given_cards(&scene);
	set_block(&scene, 0, "cond_stage_model.token_embeddings.0", PLAN_CLIP);
	set_block(&scene, 1, "text_encoders.wte.3", PLAN_CLIP);
	set_block(&scene, 2, "text_encoders.t5.shared_experts.1", PLAN_CLIP);
	set_block(&scene, 3, "text_encoders.wpe.0", PLAN_CLIP);
	set_block(&scene, 4, "conditioner.embedders.0", PLAN_CLIP);      /* a whole encoder */
	set_block(&scene, 5, "text_encoders.layers.0.embed", PLAN_CLIP); /* behind the number */
	set_block(&scene, 6, "model.diffusion_model.time_embed.0", PLAN_UNET);
	set_block(&scene, 7, "time_embed.0", PLAN_WHOLE);
	scene.request.compute = text_of("cuda:0");
	expect_runs(&scene, "cpu,*", "cuda:0 4, cpu 6");
}

static void each_part_has_an_allocation(void **state)
{
	struct scene scene;

	(void)state;
	given_cards(&scene);
	for (uint32_t i = 0; i < 10; i++) {
		scene.blocks[i].component = i < 6 ? PLAN_UNET : i < 8 ? PLAN_CLIP : PLAN_VAE;
	}
	scene.blocks[0].component = PLAN_WHOLE; /* goes with the unet */
	expect_runs(&scene, "unet=cuda:0,3gb;cpu,*|clip=cuda:1|VAE = cuda:1,1gb;cpu,*",
		    "cuda:0 3, cpu 3, cuda:1 3, cpu 1");
	assert_int_equal(scene.summary.moved, 4 * GIB);
	expect_runs(&scene, "clip=cuda:1|unet=cuda:0", "cuda:0 6, cuda:1 2, cpu 2");
	expect_warning(&scene, 0, "the allocation does not name vae: it goes to ram");
	expect_runs(&scene, "vae=cuda:0", "cpu 8, cuda:0 2");
	/* A string without parts is for all of them. */
	expect_runs(&scene, "cuda:0,7gb;cpu,*", "cuda:0 7, cpu 3");
	expect_refusal(&scene, "unet=cuda:0|unet=cpu", WIRE_BAD_ARGUMENT, "column 13: \"unet=\"");
	expect_refusal(&scene, "unet=cuda:0|te=cpu", WIRE_BAD_ARGUMENT,
		       "column 13 \"te=\": the file has unet, clip and vae");
	expect_refusal(&scene, "unet=cuda:0|clip=", WIRE_BAD_ARGUMENT, "\"clip=\" has no items");
	expect_refusal(&scene, "unet=cuda:0|cpu,*", WIRE_BAD_ARGUMENT, "column 13: each part");
	expect_refusal(&scene, "unet=cuda:0|clip=cuda:5,*", WIRE_BAD_ARGUMENT,
		       "item 1 (column 18) \"cuda:5,*\"");
	/* What they need together is what has to be there. */
	scene.devices[1].free = 7 * GIB;
	expect_runs(&scene, "unet=cuda:0|clip=cpu|vae=cpu", "cuda:0 6, cpu 4");
	expect_refusal(&scene, "unet=cuda:0|clip=cuda:0|vae=cpu", WIRE_NO_MEMORY, "8.0G of it");
	/* Auto takes what the others leave, wherever it stands. */
	expect_runs(&scene, "unet=auto|clip=cuda:0|vae=cpu",
		    "cpu 1, cuda:0 1, cpu 2, cuda:0 1, cpu 1, cuda:0 2, cpu 2");
}

/* Of more room the part in front would take what the one behind it needs. */
static void a_part_that_needs_all_its_fraction_is_laid_first(void **state)
{
	static const char *const strings[] = {"unet=cuda:0,0.59;cpu,*|clip=cuda:0,0.5",
					      "unet=auto|clip=cuda:0,0.5",
					      "unet=cuda:0,0.59;cpu,*|clip=cuda:0,0.5;cuda:1,0.0"};
	struct scene scene;

	(void)state;
	given_cards(&scene);
	scene.request.n_blocks = 4;
	for (uint32_t i = 0; i < 3; i++) {
		set_block(&scene, i, "input_blocks.1", PLAN_UNET);
		scene.blocks[i].bytes = 30 * MIB;
	}
	set_block(&scene, 3, "encoder.1", PLAN_CLIP);
	scene.blocks[3].bytes = 50 * MIB;
	scene.request.compute = text_of("cuda:0");
	for (size_t i = 0; i < sizeof strings / sizeof strings[0]; i++) {
		for (uint64_t mib = 100; mib < 160; mib++) {
			scene.devices[1] = device_of("cuda:0", mib * MIB);
			assert_int_equal(plan(&scene, strings[i]), 0);
			assert_int_equal(scene.placed[3], 1);
		}
	}
}

static void auto_prefers_the_fastest_link(void **state)
{
	struct scene scene;

	(void)state;
	given_cards(&scene);
	scene.devices[1].total = 5 * GIB;
	scene.devices[1].free = 5 * GIB; /* a tenth stays free: four blocks */
	scene.request.strategy = PLAN_CONTIGUOUS;
	expect_runs(&scene, "auto", "cuda:0 4, cpu 6");
	assert_int_equal(scene.summary.floor_ns, 0);
	scene.devices[0].link[1] = 20 * GIB;
	expect_runs(&scene, "auto", "cuda:0 4, cpu 6");
	assert_int_equal(scene.summary.floor_ns, 300000000);
	scene.devices[2].link[1] = 40 * GIB;
	expect_runs(&scene, "auto", "cuda:0 4, cuda:1 6");
	assert_int_equal(scene.summary.floor_ns, 150000000);
	scene.devices[2].free = 2 * GIB;
	expect_runs(&scene, "auto", "cuda:0 4, cuda:1 2, cpu 4");
	scene.request.activations = 3 * GIB;
	expect_runs(&scene, "auto", "cuda:0 2, cuda:1 2, cpu 6");
	scene.request.strategy = PLAN_USUAL;
	expect_runs(&scene, "auto",
		    "cpu 1, cuda:0 1, cpu 1, cuda:1 1, cpu 2, cuda:0 1, cpu 1, cuda:1 1, cpu 1");
	scene.devices[0].free = 5 * GIB;
	expect_refusal(&scene, "auto", WIRE_NO_MEMORY, "auto: 1.0G of 10.0G fit nowhere: room for");
	scene.request.compute = text_of("cpu");
	scene.devices[0].free = 64 * GIB;
	expect_runs(&scene, "auto", "cpu 10");
}

static void blocks_too_unequal_to_be_spread_stay_in_runs(void **state)
{
	struct scene scene;

	(void)state;
	given_cards(&scene);
	scene.request.n_blocks = 3;
	scene.blocks[2].bytes = 6 * GIB;
	scene.devices[1].free = 2 * GIB;
	scene.devices[2].free = 6 * GIB;
	scene.request.strategy = PLAN_SPREAD;
	/* Its even share would put a small block on cuda:1, and then the large one fits nowhere. */
	expect_runs(&scene, "cuda:0,2gb;cuda:1,*", "cuda:0 2, cuda:1 1");
	assert_int_equal(scene.summary.strategy, PLAN_CONTIGUOUS);
	expect_warning(&scene, 0, "too unequal to be spread");
}

/* The last block is small and the one before it larger than most of what was asked for. */
static void given_unequal_blocks(struct scene *scene)
{
	given_cards(scene);
	scene->devices[1].total = scene->devices[1].free = 8 * GIB;
	scene->request.n_blocks = 5;
	scene->blocks[0].bytes = scene->blocks[1].bytes = scene->blocks[2].bytes = 700 * MIB;
	scene->blocks[3].bytes = 3 * GIB;
	scene->blocks[4].bytes = 100 * MIB;
}

static void unequal_blocks_are_spread_to_the_bytes_of_runs(void **state)
{
	struct scene scene;

	(void)state;
	given_unequal_blocks(&scene);
	scene.request.strategy = PLAN_SPREAD;
	expect_runs(&scene, "cuda:0,2200mb;cpu,*", "cuda:0 3, cpu 2");
	scene.blocks[1].bytes = 300 * MIB; /* 1700 MiB on the card in runs */
	expect_runs(&scene, "cuda:0,1700mb;cpu,*", "cuda:0 3, cpu 2");
	assert_int_equal(scene.summary.shares[1].bytes, 1700 * MIB);
}

static void virtual_vram_of_unequal_blocks_is_had_of_any_or_told(void **state)
{
	struct scene scene;

	(void)state;
	given_unequal_blocks(&scene);
	scene.request.virtual_vram = 1500 * MIB;
	scene.request.strategy = PLAN_CONTIGUOUS;
	expect_runs(&scene, "", "cuda:0 4, cpu 1");
	expect_warning(&scene, 0,
		       "only 100M of the 1.5G that were to live off cuda:0 (RTX 4080, PCI 01:00) "
		       "do: blocks move whole");
	scene.request.strategy = PLAN_USUAL;
	assert_int_equal(plan(&scene, ""), 0);
	assert_int_equal(scene.summary.shares[0].bytes, 1500 * MIB);
	assert_int_equal(scene.summary.n_warnings, 0);
	/* The runs have more than any others within the limit. */
	scene.request.virtual_vram = 3900 * MIB;
	expect_runs(&scene, "", "cuda:0 2, cpu 3");
	assert_int_equal(scene.summary.strategy, PLAN_CONTIGUOUS);
	expect_warning(&scene, 0, "too unequal to be spread");
	scene.request.virtual_vram = MIB;
	expect_runs(&scene, "", "cuda:0 5");
	expect_warning(&scene, 0, "only 0 of the 1.0M that were to live off");
	scene.request.virtual_vram = 64 * GIB;
	expect_runs(&scene, "", "cpu 5");
	assert_int_equal(scene.summary.n_warnings, 0);
}

static void virtual_vram_is_filled_in_the_donors_order(void **state)
{
	struct scene scene;

	(void)state;
	given_cards(&scene);
	scene.request.virtual_vram = 4 * GIB;
	scene.request.strategy = PLAN_CONTIGUOUS;
	expect_runs(&scene, "", "cuda:0 6, cpu 4");
	scene.donors[0] = text_of(" cuda:1 ");
	scene.donors[1] = text_of("ram");
	scene.request.n_donors = 2;
	scene.devices[2].free = 3 * GIB;
	expect_runs(&scene, "", "cuda:0 6, cuda:1 3, cpu 1");
	expect_refusal(&scene, "cuda:0", WIRE_BAD_ARGUMENT, "say the same thing twice");
	scene.donors[1] = text_of("cuda:1");
	expect_refusal(&scene, "", WIRE_BAD_ARGUMENT, "donor 2: it is donor 1 already");
	scene.donors[1] = text_of("cuda:0");
	expect_refusal(&scene, "", WIRE_BAD_ARGUMENT,
		       "donor 2: cuda:0 (RTX 4080, PCI 01:00) "
		       "computes, and cannot be its own donor");
	scene.donors[1] = text_of("gpu");
	expect_refusal(&scene, "", WIRE_BAD_ARGUMENT, "donor 2: there is no device \"gpu\"");
	scene.request.n_donors = PLAN_MAX_DONORS + 1;
	expect_refusal(&scene, "", WIRE_BAD_ARGUMENT, "at most 16 donors, not 17");
	scene.request.n_donors = 1;
	expect_runs(&scene, "", "cuda:0 7, cuda:1 3");
	expect_warning(&scene, 0, "the donors take 3.0G of the 4.0G");
}

static void donors_that_are_slower_than_the_host_are_told(void **state)
{
	struct scene scene;

	(void)state;
	given_cards(&scene);
	scene.devices[2].peers = 1; /* the host alone */
	expect_runs(&scene, "cuda:0,5gb;cuda:1,*", "cuda:0 5, cuda:1 5");
	expect_warning(&scene, 0, "cuda:1 (RTX 4080 SUPER) has no peer access");
	scene.devices[2].link[1] = 2;
	scene.devices[0].link[1] = 1;
	expect_runs(&scene, "cuda:0,5gb;cuda:1,*", "cuda:0 5, cuda:1 5");
	assert_int_equal(scene.summary.n_warnings, 0);
}

static void the_least_virtual_vram_is_enough_and_the_least(void **state)
{
	struct scene scene;
	uint64_t least;

	(void)state;
	given_cards(&scene);
	scene.devices[1].total = 10 * GIB;
	scene.devices[1].free = 10 * GIB;
	expect_runs(&scene, "cuda:0,*", "cuda:0 10");
	expect_warning(&scene, 0,
		       "10.0G of 10.0G of cuda:0 (RTX 4080, PCI 01:00) are in use then: "
		       "over 90 %; the least virtual VRAM that is enough is 1.00G");
	least = scene.summary.virtual_vram;
	scene.request.virtual_vram = least;
	assert_int_equal(plan(&scene, ""), 0);
	assert_int_equal(scene.summary.n_warnings, 0);
	scene.request.virtual_vram = least - 1;
	assert_int_equal(plan(&scene, ""), 0);
	expect_warning(&scene, 0, "over 90 %");
	/* What lies beyond the budget is room to compute, unless others have it. */
	scene.request.virtual_vram = 0;
	scene.devices[1].total = 12 * GIB;
	scene.devices[1].spare = 2 * GIB;
	expect_runs(&scene, "cuda:0,*", "cuda:0 10");
	assert_int_equal(scene.summary.n_warnings, 0);
	scene.devices[1].spare = GIB;
	expect_runs(&scene, "cuda:0,*", "cuda:0 10");
	expect_warning(&scene, 0,
		       "11.0G of 12.0G of cuda:0 (RTX 4080, PCI 01:00) are in use then: "
		       "over 90 %; the least virtual VRAM that is enough is 1.00G");
	scene.devices[1].total = 10 * GIB;
	scene.devices[1].spare = 0;
	/* Not of the last blocks alone. */
	given_unequal_blocks(&scene);
	scene.devices[1].total = scene.devices[1].free = 5500 * MIB;
	expect_runs(&scene, "cuda:0", "cuda:0 5");
	assert_in_range(scene.summary.virtual_vram, 700 * MIB, 800 * MIB);
	given_cards(&scene);
	scene.devices[1].total = scene.devices[1].free = 10 * GIB;
	/* Nobody could take it. */
	scene.request.virtual_vram = 0;
	scene.devices[0].free = 0;
	expect_runs(&scene, "cuda:0,*", "cuda:0 10");
	assert_int_equal(scene.summary.virtual_vram, 0);
	expect_warning(&scene, 0, "little is left to compute");
}

static void numbers_that_cannot_be_are_refused(void **state)
{
	struct scene scene;
	enum plan_strategy strategy = PLAN_SPREAD;

	(void)state;
	given_cards(&scene);
	scene.blocks[0].bytes = UINT64_MAX;
	expect_refusal(&scene, "cuda:0", WIRE_BAD_ARGUMENT, "2^62");
	scene.blocks[0].bytes = 1ULL << 61;
	scene.blocks[1].bytes = 1ULL << 61;
	expect_refusal(&scene, "cuda:0", WIRE_BAD_ARGUMENT, "2^62");
	given_cards(&scene);
	scene.blocks[3].component = PLAN_N_COMPONENTS;
	expect_refusal(&scene, "cuda:0", WIRE_BAD_ARGUMENT, "block 3 has no component");
	given_cards(&scene);
	scene.devices[1].granularity = 3;
	expect_refusal(&scene, "cuda:0", WIRE_BAD_ARGUMENT, "a power of two, not 3");
	given_cards(&scene);
	scene.request.n_devices = 0;
	expect_refusal(&scene, "cuda:0", WIRE_BAD_ARGUMENT, "1 to 16 devices, not 0");
	given_cards(&scene);
	scene.devices[2].name = NULL;
	expect_refusal(&scene, "cuda:0", WIRE_BAD_ARGUMENT, "device 2 has no name");
	given_cards(&scene);
	scene.request.n_devices = 17;
	expect_refusal(&scene, "cuda:0", WIRE_BAD_ARGUMENT, "1 to 16 devices, not 17");
	given_cards(&scene);
	scene.devices[0].is_host = false;
	scene.devices[0].name = "sim:0";
	expect_refusal(&scene, "cuda:0,1gb", WIRE_BAD_ARGUMENT, "there is no device cpu");
	expect_runs(&scene, "cuda:0,1gb;cuda:1,*", "cuda:0 1, cuda:1 9");
	expect_refusal(&scene, "", WIRE_BAD_ARGUMENT, "the model goes to cpu, and there is no");
	assert_int_equal(plan_strategy_find(text_of(" Spread "), &strategy, NULL), 0);
	assert_int_equal(strategy, PLAN_SPREAD);
	assert_int_equal(plan_strategy_find(text_of(""), &strategy, NULL), 0);
	assert_int_equal(strategy, PLAN_USUAL);
	assert_int_equal(plan_strategy_find(text_of("CONTIGUOUS"), &strategy, NULL), 0);
	assert_int_equal(strategy, PLAN_CONTIGUOUS);
	assert_int_equal(plan_strategy_find(text_of("best"), &strategy, &scene.err),
			 -WIRE_BAD_ARGUMENT);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(blanks_case_and_empty_items_are_fine),
		cmocka_unit_test(values_say_what_they_are),
		cmocka_unit_test(what_is_written_wrong_is_named),
		cmocka_unit_test(a_text_that_is_too_long_is_refused),
		cmocka_unit_test(cards_are_found_by_uuid_and_by_their_own_name),
		cmocka_unit_test(what_does_not_fit_says_what_can_be_had),
		cmocka_unit_test(fractions_without_room_are_refused_as_sizes_are),
		cmocka_unit_test(of_auto_the_head_alone_may_be_too_much),
		cmocka_unit_test(auto_leaves_draining_devices_alone_while_others_do),
		cmocka_unit_test(blocks_take_what_the_device_gives),
		cmocka_unit_test(the_head_stays_where_the_model_computes),
		cmocka_unit_test(the_embeddings_of_a_text_encoder_are_head),
		cmocka_unit_test(each_part_has_an_allocation),
		cmocka_unit_test(a_part_that_needs_all_its_fraction_is_laid_first),
		cmocka_unit_test(auto_prefers_the_fastest_link),
		cmocka_unit_test(blocks_too_unequal_to_be_spread_stay_in_runs),
		cmocka_unit_test(unequal_blocks_are_spread_to_the_bytes_of_runs),
		cmocka_unit_test(virtual_vram_of_unequal_blocks_is_had_of_any_or_told),
		cmocka_unit_test(virtual_vram_is_filled_in_the_donors_order),
		cmocka_unit_test(donors_that_are_slower_than_the_host_are_told),
		cmocka_unit_test(the_least_virtual_vram_is_enough_and_the_least),
		cmocka_unit_test(numbers_that_cannot_be_are_refused),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
