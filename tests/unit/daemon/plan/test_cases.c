/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Strings that were tried on DisTorch 2 (ComfyUI-MultiGPU 2.6.3), on the same models and devices:
 * what we do with each. With --table it prints the table of docs/allocation-strings.md.
 */
#include "base/err.h"
#include "tests/support/unit.h"
#include "tests/unit/daemon/plan/scene.h"

#include "daemon/plan/explain.h"
#include "proto/gen/wire_code.h"

struct room {
	const char *name;
	uint32_t n_devices;
	struct plan_device devices[12];
};

struct model {
	const char *name;
	const char *text; /* for the table */
	const char *stem; /* NULL: 'blocks' */
	uint32_t n_blocks;
	uint64_t block_bytes;
	struct plan_block blocks[8];
};

static const struct model models[] = {
	{.name = "uni12",
	 .text = "12 blocks of 1000 MiB",
	 .n_blocks = 12,
	 .stem = "blocks",
	 .block_bytes = 1000 * MIB},
	{.name = "uni20",
	 .text = "20 blocks of 1 GiB",
	 .n_blocks = 20,
	 .stem = "blocks",
	 .block_bytes = GIB},
	{.name = "uni40",
	 .text = "40 blocks of 1 GiB",
	 .n_blocks = 40,
	 .stem = "blocks",
	 .block_bytes = GIB},
	{.name = "dit",
	 .text = "head of 67 MiB, 6 blocks of 866 MiB",
	 .n_blocks = 7,
	 .blocks = {{.bytes = 70647808, .name = "(head)", .is_head = true},
		    {.bytes = 908079104, .name = "blocks.0"},
		    {.bytes = 908079104, .name = "blocks.1"},
		    {.bytes = 908079104, .name = "blocks.2"},
		    {.bytes = 908079104, .name = "blocks.3"},
		    {.bytes = 908079104, .name = "blocks.4"},
		    {.bytes = 908079104, .name = "blocks.5"}}},
	{.name = "te_llm",
	 .text = "text encoder: head of 1.0 GiB, 5 blocks of 451 MiB",
	 .n_blocks = 7,
	 .blocks = {{.bytes = 1087373312, .name = "(head)", .is_head = true},
		    {.bytes = 3152896, .name = "(head)#2", .is_head = true},
		    {.bytes = 472914944, .name = "qwen.model.layers.0"},
		    {.bytes = 472914944, .name = "qwen.model.layers.1"},
		    {.bytes = 472914944, .name = "qwen.model.layers.2"},
		    {.bytes = 472914944, .name = "qwen.model.layers.3"},
		    {.bytes = 472914944, .name = "qwen.model.layers.4"}}},
	{.name = "te_dual",
	 .text = "text encoders: head of 323 MiB with T5's shared, 5 blocks",
	 .n_blocks = 6,
	 .blocks = {{.bytes = 338821120, .name = "(head)", .is_head = true},
		    {.bytes = 9437184, .name = "clip_l.transformer.text_model.encoder.layers.0"},
		    {.bytes = 234897408, .name = "t5xxl.transformer.encoder.block.0"},
		    {.bytes = 234889216, .name = "t5xxl.transformer.encoder.block.1"},
		    {.bytes = 234889216, .name = "t5xxl.transformer.encoder.block.2"},
		    {.bytes = 234889216, .name = "t5xxl.transformer.encoder.block.3"}}},
	{.name = "mixed",
	 .text = "blocks of 900, 100, 900, 100, 900, 100 MiB",
	 .n_blocks = 6,
	 .blocks = {{.bytes = 900 * MIB, .name = "a.big0"},
		    {.bytes = 100 * MIB, .name = "a.small0"},
		    {.bytes = 900 * MIB, .name = "b.big1"},
		    {.bytes = 100 * MIB, .name = "b.small1"},
		    {.bytes = 900 * MIB, .name = "c.big2"},
		    {.bytes = 100 * MIB, .name = "c.small2"}}},
};

struct allocation_case {
	const char *id;
	const char *model;
	const char *room;
	const char *compute; /* NULL: not said */
	uint64_t virtual_gib;
	const char *donor;
	const char *allocation;
	int code;
	const char *runs;    /* of blocks; or a piece of the error's text */
	const char *warning; /* a piece of it; NULL: there is none */
	const char *theirs;  /* what DisTorch 2 did; NULL: the same in its intent */
};

#define VIRTUAL(gib, device) .virtual_gib = (gib), .donor = (device), .allocation = ""

static const struct allocation_case cases[] = {
	{.id = "A01",
	 .model = "uni12",
	 .room = "D2",
	 .compute = "cuda:0",
	 VIRTUAL(4, "cpu"),
	 .runs = "cuda:0 1, cpu 1, cuda:0 2, cpu 1, cuda:0 2, cpu 1, cuda:0 2, cpu 1, cuda:0 1",
	 .theirs = "4 blocks on cpu too, all from the front but the first"},
	{.id = "A02",
	 .model = "uni12",
	 .room = "D2",
	 .compute = "cuda:0",
	 VIRTUAL(99, "cpu"),
	 .runs = "cpu 12"},
	{.id = "A04",
	 .model = "uni20",
	 .room = "D2",
	 .compute = "cuda:0",
	 VIRTUAL(16, "cuda:1"),
	 .runs = "cuda:1 1, cuda:0 1, cuda:1 1, cuda:0 1, cuda:1 2, cuda:0 1, cuda:1 1, cuda:0 1, "
		 "cuda:1 2, cuda:0 1, cuda:1 1, cuda:0 1, cuda:1 2, cuda:0 1, cuda:1 1, cuda:0 1, "
		 "cuda:1 1",
	 .warning = "the donors take 12.0G of the 16.0G",
	 .theirs = "the 4 GiB that the donor could not take fell back to compute without a word"},
	{.id = "A05",
	 .model = "uni40",
	 .room = "D2",
	 .compute = "cuda:0",
	 VIRTUAL(4, "cpu"),
	 .code = WIRE_NO_MEMORY,
	 .runs = "36.0G of it would be on cuda:0, where 24.0G can be had",
	 .theirs = "36 GiB put on a card of 24 with a warning; the load ran out of memory"},
	{.id = "A06",
	 .model = "uni12",
	 .room = "D2",
	 .compute = "cuda:0",
	 VIRTUAL(4, "cuda:0"),
	 .code = WIRE_BAD_ARGUMENT,
	 .runs = "donor 1: cuda:0 computes, and cannot be its own donor",
	 .theirs = "everything on cuda:0, silently"},
	{.id = "A07",
	 .model = "te_llm",
	 .room = "D2",
	 .compute = "cpu",
	 VIRTUAL(2, "cpu"),
	 .runs = "cpu 7",
	 .warning = "ram computes: virtual VRAM means nothing there"},
	{.id = "A08",
	 .model = "uni12",
	 .room = "D2",
	 .compute = "None",
	 VIRTUAL(4, "cpu"),
	 .code = WIRE_BAD_ARGUMENT,
	 .runs = "compute: there is no device \"None\"; there are ram, cuda:0, cuda:1",
	 .theirs = "a torch error about the word None, at sampling"},
	{.id = "A10",
	 .model = "uni12",
	 .room = "D1T",
	 .compute = "cuda:0",
	 VIRTUAL(1, "cpu"),
	 .runs = "cuda:0 6, cpu 1, cuda:0 5",
	 .theirs = "the quota of cpu moved in steps of 105 MiB, 0.01 % of 1 TiB"},
	{.id = "A11",
	 .model = "dit",
	 .room = "D2",
	 .compute = "cuda:0",
	 VIRTUAL(99, "cpu"),
	 .runs = "cuda:0 1, cpu 6"},
	{.id = "A13",
	 .model = "uni12",
	 .room = "D2",
	 .compute = "cuda:0",
	 VIRTUAL(4, "cuda:1"),
	 .runs = "cuda:0 1, cuda:1 1, cuda:0 2, cuda:1 1, cuda:0 2, cuda:1 1, cuda:0 2, cuda:1 1, "
		 "cuda:0 1",
	 .theirs = "4 blocks on cuda:1 too, in one run"},
	{.id = "B01",
	 .model = "uni12",
	 .room = "D2",
	 .compute = "cuda:0",
	 .allocation = "cuda:0,2.5gb;cpu,*",
	 .runs = "cuda:0 2, cpu 10",
	 .theirs = "the last 2 blocks and the first on cuda:0: 3000 MiB"},
	{.id = "B03",
	 .model = "uni12",
	 .room = "D2",
	 .compute = "cuda:0",
	 .allocation = "cpu,5gb*;cuda:1,3.0g;cuda:0,500mb",
	 .runs = "cpu 9, cuda:1 3",
	 .warning = "the rest on ram is 8.8G, more than the 5.0G at its *",
	 .theirs = "the order of the items did not matter; a block that fits nowhere on cuda:0"},
	{.id = "B04",
	 .model = "uni12",
	 .room = "D2",
	 .compute = "cuda:0",
	 .allocation = "cuda:0,2gb",
	 .runs = "cuda:0 2, cpu 10",
	 .theirs = "3000 MiB on cuda:0"},
	{.id = "B06",
	 .model = "uni12",
	 .room = "D2",
	 .compute = "cuda:0",
	 .allocation = "cuda:0,*;cuda:1,*",
	 .code = WIRE_BAD_ARGUMENT,
	 .runs = "item 2 (column 10) \"cuda:1,*\": item 1 has the * already",
	 .theirs = "ValueError: could not convert string to float"},
	{.id = "B06b",
	 .model = "uni12",
	 .room = "D2",
	 .compute = "cuda:0",
	 .allocation = "cuda:0,*;cuda:1,*;cpu,1gb",
	 .code = WIRE_BAD_ARGUMENT,
	 .runs = "item 2 (column 10) \"cuda:1,*\": item 1 has the * already",
	 .theirs = "the last * won"},
	{.id = "B08",
	 .model = "uni20",
	 .room = "D2",
	 .compute = "cuda:0",
	 .allocation = "cuda:1,16gb;cpu,*",
	 .code = WIRE_NO_MEMORY,
	 .runs = "item 1 (column 1) \"cuda:1,16gb\": 16.0G of it would be on cuda:1, where 12.0G "
		 "can be had (12.0G free, 0 evictable, 0 in use or pinned)",
	 .theirs = "15 GiB put on a card of 12"},
	{.id = "B09",
	 .model = "uni12",
	 .room = "D2",
	 .compute = "cuda:0",
	 .allocation = "cuda:0,0gb;cpu,*",
	 .runs = "cpu 12",
	 .theirs = "one block on cuda:0 all the same"},
	{.id = "B11",
	 .model = "uni12",
	 .room = "D2",
	 .compute = "cuda:0",
	 .allocation = "cuda:0,2097152kb;cuda:1,3221225472b;cpu,*",
	 .runs = "cuda:0 2, cuda:1 3, cpu 7",
	 .theirs = "one block more on cuda:0"},
	{.id = "B13",
	 .model = "uni12",
	 .room = "D2",
	 .compute = "cuda:0",
	 .allocation = "cuda:0,1tb;cpu,*",
	 .runs = "cuda:0 12",
	 .theirs = "read as 1 byte"},
	{.id = "B14",
	 .model = "uni12",
	 .room = "D2",
	 .compute = "cuda:0",
	 .allocation = "cuda:0,3GiB;cpu,*",
	 .runs = "cuda:0 3, cpu 9",
	 .theirs = "one block more on cuda:0"},
	{.id = "B16",
	 .model = "uni12",
	 .room = "D2",
	 .compute = "cuda:0",
	 .allocation = "cuda:0,-1gb;cpu,*",
	 .code = WIRE_BAD_ARGUMENT,
	 .runs = "item 1 (column 1) \"cuda:0,-1gb\": a share cannot be less than nothing",
	 .theirs = "ValueError: Invalid memory string format"},
	{.id = "B17",
	 .model = "uni12",
	 .room = "D2",
	 .compute = "cuda:0",
	 .allocation = "cuda:0,2gb;cuda:0,3gb;cpu,*",
	 .code = WIRE_BAD_ARGUMENT,
	 .runs = "item 2 (column 12) \"cuda:0,3gb\": that device has item 1 already",
	 .theirs = "the second won, and the first's 2 GiB came back on compute"},
	{.id = "B18",
	 .model = "uni12",
	 .room = "D2",
	 .compute = "cuda:0",
	 .allocation = "cpu,1gb;cpu,*;cuda:0,2gb",
	 .code = WIRE_BAD_ARGUMENT,
	 .runs = "item 2 (column 9) \"cpu,*\": that device has item 1 already",
	 .theirs = "both were added up"},
	{.id = "B20",
	 .model = "uni12",
	 .room = "D2",
	 .compute = "cuda:0",
	 .allocation = "cuda:5,2gb;cpu,*",
	 .code = WIRE_BAD_ARGUMENT,
	 .runs = "item 1 (column 1) \"cuda:5,2gb\": there is no device \"cuda:5\"",
	 .theirs = "a CUDA error at sampling"},
	{.id = "B21",
	 .model = "uni12",
	 .room = "D2",
	 .compute = "cuda:0",
	 .allocation = "gpu0,2gb;cpu,*",
	 .code = WIRE_BAD_ARGUMENT,
	 .runs = "there is no device \"gpu0\"; there are ram, cuda:0, cuda:1",
	 .theirs = "RuntimeError: Invalid device string"},
	{.id = "B22",
	 .model = "uni12",
	 .room = "D2",
	 .compute = "cuda:0",
	 .allocation = "cuda:0,2gb; cpu,*",
	 .runs = "cuda:0 2, cpu 10",
	 .theirs = "RuntimeError: Invalid device string: ' cpu'"},
	{.id = "B23",
	 .model = "uni12",
	 .room = "D2",
	 .compute = "cuda:0",
	 .allocation = "cuda:0,2,5gb;cpu,*",
	 .code = WIRE_BAD_ARGUMENT,
	 .runs = "item 1 (column 1) \"cuda:0,2,5gb\": there are two commas",
	 .theirs = "read as 2 bytes"},
	{.id = "B25",
	 .model = "mixed",
	 .room = "D2",
	 .compute = "cuda:0",
	 .allocation = "cuda:0,1000mb;cuda:1,950mb;cpu,*",
	 .runs = "cuda:0 2, cuda:1 1, cpu 3",
	 .theirs = "1900 MiB on cuda:0, 200 on cuda:1"},
	{.id = "B26",
	 .model = "uni12",
	 .room = "D2",
	 .compute = "cuda:0",
	 .allocation = "cuda:0,*",
	 .runs = "cuda:0 12",
	 .theirs = "ValueError: could not convert string to float"},
	{.id = "B28",
	 .model = "uni12",
	 .room = "D2",
	 .compute = "cuda:0",
	 .allocation = "cuda:0,2gb;cpu,4gb",
	 .runs = "cuda:0 2, cpu 10",
	 .warning = "ram takes the rest, 9.8G, and not the 4.0G",
	 .theirs = "the same on cpu without a word, 3000 MiB on cuda:0"},
	{.id = "C01",
	 .model = "uni12",
	 .room = "D2",
	 .compute = "cuda:0",
	 .allocation = "cuda:0,25%;cpu,75%",
	 .runs = "cuda:0 3, cpu 9",
	 .theirs = "4 and 8, by rounding"},
	{.id = "C03",
	 .model = "uni12",
	 .room = "D2",
	 .compute = "cuda:0",
	 .allocation = "cuda:0,1;cpu,3%",
	 .code = WIRE_BAD_ARGUMENT,
	 .runs = "item 1 (column 1) \"cuda:0,1\": 1 has no unit",
	 .theirs = "read as 1 % and 3 %"},
	{.id = "C04",
	 .model = "uni12",
	 .room = "D2",
	 .compute = "cuda:0",
	 .allocation = "cuda:0,50%;cpu,*",
	 .runs = "cuda:0 6, cpu 6",
	 .theirs = "ValueError, though each help page prints this string"},
	{.id = "C05",
	 .model = "uni12",
	 .room = "D2",
	 .compute = "cuda:0",
	 .allocation = "cuda:0,0%;cpu,0%",
	 .code = WIRE_BAD_ARGUMENT,
	 .runs = "the percentages add up to 0",
	 .theirs = "ZeroDivisionError"},
	{.id = "C07",
	 .model = "uni12",
	 .room = "DMPS",
	 .compute = "mps",
	 .allocation = "mps,50%;cpu,50%",
	 .runs = "mps 6, cpu 6",
	 .theirs = "50 bytes on mps, as its name has an m"},
	{.id = "C09",
	 .model = "uni12",
	 .room = "D2",
	 .compute = "cuda:0",
	 .allocation = "cuda:0,30%;cuda:1,30%",
	 .runs = "cuda:0 6, cuda:1 6"},
	{.id = "D02",
	 .model = "uni40",
	 .room = "D2",
	 .compute = "cuda:0",
	 .allocation = "cuda:0,0.95;cuda:1,0.95;cpu,0.50",
	 .runs = "cuda:0 22, cuda:1 11, cpu 7",
	 .warning = "the least virtual VRAM that is enough is 19.00G",
	 .theirs = "the same from the other end, without a word"},
	{.id = "D03",
	 .model = "uni20",
	 .room = "D2",
	 .compute = "cuda:0",
	 .allocation = "cuda:0,0.1;cuda:1,0.1;cpu,0.05",
	 .code = WIRE_BAD_ARGUMENT,
	 .runs = "14.0G of 20.0G fit in none of the fractions",
	 .theirs = "14 GiB of it on compute"},
	{.id = "D05",
	 .model = "uni12",
	 .room = "D2",
	 .compute = "cuda:0",
	 .allocation = "cuda:0,0.1,0.2;cpu,0.5",
	 .code = WIRE_BAD_ARGUMENT,
	 .runs = "item 1 (column 1) \"cuda:0,0.1,0.2\": there are two commas",
	 .theirs = "ValueError: too many values to unpack"},
	{.id = "D06",
	 .model = "uni12",
	 .room = "D2",
	 .compute = "cuda:0",
	 .allocation = "cuda:0",
	 .runs = "cuda:0 12"},
	{.id = "D08",
	 .model = "uni12",
	 .room = "D2",
	 .allocation = "cuda:1,3gb;cpu,*",
	 .runs = "cuda:1 3, cpu 9",
	 .theirs = "computed on cuda:0, with a block there"},
	{.id = "D09",
	 .model = "uni12",
	 .room = "D2",
	 .compute = "cuda:3",
	 .allocation = "cuda:0,0.1;cpu,0.05",
	 .code = WIRE_BAD_ARGUMENT,
	 .runs = "compute: there is no device \"cuda:3\"",
	 .theirs = "KeyError"},
	{.id = "E01",
	 .model = "te_llm",
	 .room = "D2",
	 .compute = "cuda:0",
	 VIRTUAL(99, "cpu"),
	 .runs = "cuda:0 2, cpu 5"},
	{.id = "E03",
	 .model = "te_dual",
	 .room = "D2",
	 .compute = "cuda:0",
	 VIRTUAL(99, "cpu"),
	 .runs = "cuda:0 1, cpu 5",
	 .theirs = "T5's shared embedding was moved off"},
	{.id = "E05",
	 .model = "uni12",
	 .room = "D2",
	 .compute = "cuda:0",
	 .allocation = "cuda:0,2.5gb;cpu,*",
	 .runs = "cuda:0 2, cpu 10",
	 .theirs = "as B01 (an old list of four fields says it)"},
};

#define N_CASES (sizeof cases / sizeof cases[0])

/* ---- what a case is planned with ---- */

struct scene {
	struct room room;
	struct plan_block blocks[MAX_BLOCKS];
	struct plan_text donor;
	struct plan_request request;
	uint8_t devices[MAX_BLOCKS];
	struct plan_summary summary;
	struct err err;
	int code;
};

static void add_device(struct room *room, const char *name, uint64_t total)
{
	room->devices[room->n_devices++] = device_of(name, total);
}

static void set_room(struct room *room, const char *name)
{
	if (strcmp(name, "D2") == 0) {
		add_device(room, "cpu", 64 * GIB);
		add_device(room, "cuda:0", 24 * GIB);
		add_device(room, "cuda:1", 12 * GIB);
	} else if (strcmp(name, "D1T") == 0) {
		add_device(room, "cpu", 1024 * GIB);
		add_device(room, "cuda:0", 24 * GIB);
	} else {
		assert_string_equal(name, "DMPS");
		add_device(room, "cpu", 32 * GIB);
		add_device(room, "mps", 32 * GIB);
	}
}

static const struct model *find_model(const char *name)
{
	for (size_t i = 0; i < sizeof models / sizeof models[0]; i++) {
		if (strcmp(models[i].name, name) == 0) {
			return &models[i];
		}
	}
	fail_msg("no model %s", name);
	return NULL;
}

static void plan_case(struct scene *scene, const struct allocation_case *row)
{
	const struct model *model = find_model(row->model);

	*scene = (struct scene){0};
	set_room(&scene->room, row->room);
	for (uint32_t i = 0; i < model->n_blocks; i++) {
		scene->blocks[i] = model->stem != NULL
					   ? (struct plan_block){.bytes = model->block_bytes,
								 .name = model->stem}
					   : model->blocks[i];
		scene->blocks[i].name_size = (uint32_t)strlen(scene->blocks[i].name);
	}
	scene->request = (struct plan_request){.blocks = scene->blocks,
					       .n_blocks = model->n_blocks,
					       .devices = scene->room.devices,
					       .n_devices = scene->room.n_devices,
					       .allocation = text_of(row->allocation),
					       .virtual_vram = row->virtual_gib * GIB};
	if (row->compute != NULL) {
		scene->request.compute = text_of(row->compute);
	}
	if (row->donor != NULL) {
		scene->donor = text_of(row->donor);
		scene->request.donors = &scene->donor;
		scene->request.n_donors = 1;
	}
	scene->code = plan_make(&scene->request, scene->devices, &scene->summary, &scene->err);
}

static const char *warning_of(const struct scene *scene, char *buffer, size_t buffer_size)
{
	buffer[0] = '\0';
	if (scene->code == 0 && scene->summary.n_warnings > 0) {
		(void)explain_warning(&scene->request, &scene->summary, &scene->summary.warnings[0],
				      buffer, buffer_size);
	}
	return buffer;
}

static void every_case_comes_out_as_written(void **state)
{
	char got[512];
	char warning[256];
	unsigned n_wrong = 0;

	(void)state;
	for (size_t i = 0; i < N_CASES; i++) {
		const struct allocation_case *row = &cases[i];
		struct scene scene;
		bool is_right;

		plan_case(&scene, row);
		if (scene.code == 0) {
			(void)runs_text(&scene.request, scene.devices, got, sizeof got);
			(void)warning_of(&scene, warning, sizeof warning);
			is_right = row->code == 0 && strcmp(got, row->runs) == 0 &&
				   (row->warning == NULL ? warning[0] == '\0'
							 : strstr(warning, row->warning) != NULL);
		} else {
			(void)snprintf(got, sizeof got, "%s", scene.err.text);
			warning[0] = '\0';
			is_right = scene.code == -row->code && strstr(got, row->runs) != NULL;
		}
		if (!is_right) {
			print_message("%s: %d \"%s\" \"%s\"\n", row->id, scene.code, got, warning);
			n_wrong++;
		}
	}
	assert_int_equal(n_wrong, 0);
}

static void all_cases_are_here(void **state)
{
	(void)state;
	assert_int_equal(N_CASES, 45);
	for (size_t i = 1; i < N_CASES; i++) {
		assert_true(strcmp(cases[i - 1].id, cases[i].id) < 0);
	}
}

/* ---- the table ---- */

static void print_cell(const char *text)
{
	for (; *text != '\0'; text++) {
		(void)printf(*text == '|' ? "\\%c" : "%c", *text);
	}
}

static void print_row(const struct allocation_case *row)
{
	struct scene scene;
	char text[512];

	plan_case(&scene, row);
	(void)printf("| %s | ", row->id);
	if (row->allocation[0] != '\0') {
		(void)printf("`%s`", row->allocation);
	} else {
		(void)printf("virtual VRAM %u GiB, donor `%s`", (unsigned)row->virtual_gib,
			     row->donor);
	}
	(void)printf(" on %s | %s, ", row->compute == NULL ? "-" : row->compute, row->model);
	(void)printf("%s | ", row->room);
	if (scene.code < 0) {
		(void)printf("%s: ",
			     scene.code == -WIRE_NO_MEMORY ? "`no-memory`" : "`bad-argument`");
		print_cell(scene.err.text);
	} else {
		print_cell(runs_text(&scene.request, scene.devices, text, sizeof text));
		if (scene.summary.n_warnings > 0) {
			(void)printf("; warning: ");
			print_cell(warning_of(&scene, text, sizeof text));
		}
	}
	(void)printf(" | %s |\n", row->theirs == NULL ? "" : row->theirs);
}

static int print_table(void)
{
	for (size_t i = 0; i < sizeof models / sizeof models[0]; i++) {
		(void)printf("* `%s`: %s\n", models[i].name, models[i].text);
	}
	(void)printf(
		"\n| | string or virtual VRAM, and where it computes | model, devices | here, in "
		"execution order | DisTorch 2, where it differs |\n|---|---|---|---|---|\n");
	for (size_t i = 0; i < N_CASES; i++) {
		print_row(&cases[i]);
	}
	return 0;
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(all_cases_are_here),
		cmocka_unit_test(every_case_comes_out_as_written),
	};

	if (argc > 1 && strcmp(argv[1], "--table") == 0) {
		return print_table();
	}
	return cmocka_run_group_tests(tests, NULL, NULL);
}
