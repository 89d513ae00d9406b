/* SPDX-License-Identifier: Apache-2.0 */
/* distorchctl show: all about one model; with --tensors from the table it is served with. */
#include "options.h"
#include "render.h"

#include <stdio.h>
#include <string.h>

#define HUGE_BYTES ((uint64_t)2 << 20)

static void shape_text(const struct distorch_tensor *tensor, char *buffer, size_t buffer_size)
{
	size_t used = 0;

	text_append(buffer, buffer_size, &used, "[");
	for (uint32_t i = 0; i < tensor->rank; i++) {
		text_append(buffer, buffer_size, &used, "%s%llu", i == 0 ? "" : ", ",
			    (unsigned long long)tensor->shape[i]);
	}
	text_append(buffer, buffer_size, &used, "]");
}

static void add_tensors(cJSON *object, const struct distorch_weights *table)
{
	cJSON *array = json_add_array(object, "tensor_table");

	for (uint32_t i = 0; i < distorch_weights_n_tensors(table); i++) {
		const struct distorch_tensor *tensor = distorch_weights_tensor(table, i);
		cJSON *item = json_add_item(array);
		cJSON *shape;

		json_add_text(item, "name", tensor->name);
		json_add_text(item, "dtype", tensor->dtype);
		shape = json_add_array(item, "shape");
		for (uint32_t j = 0; j < tensor->rank; j++) {
			char text[24];

			(void)snprintf(text, sizeof text, "%llu",
				       (unsigned long long)tensor->shape[j]);
			(void)cJSON_AddItemToArray(shape, cJSON_CreateRaw(text));
		}
		json_add_number(item, "bytes", tensor->bytes);
		json_add_number(item, "block", tensor->block);
	}
}

/* Where the tensor lies. */
static const char *place_of(const struct distorch_detail *detail,
			    const struct distorch_tensor *tensor)
{
	const struct distorch_model *model = detail->model;

	if (tensor->block < detail->n_places) {
		return detail->places[tensor->block];
	}
	if (model->n_where != 1) {
		return "-";
	}
	return strcmp(model->where[0]->backing, "file") == 0 ? "cache" : model->where[0]->device;
}

static int print_tensors(struct ctl *ctl, const struct distorch_detail *detail,
			 const struct distorch_weights *table)
{
	static const struct column columns[] = {
		{.title = "TENSOR", .may_cut = true}, {.title = "DTYPE"}, {.title = "SHAPE"},
		{.title = "SIZE", .is_right = true},  {.title = "WHERE"},
	};
	struct sheet sheet;

	sheet_init(&sheet, columns, 5);
	for (uint32_t i = 0; i < distorch_weights_n_tensors(table); i++) {
		const struct distorch_tensor *tensor = distorch_weights_tensor(table, i);
		char shape[256];
		char size[24];
		const char *cells[5] = {tensor->name, tensor->dtype, shape,
					size_text(ctl, tensor->bytes, size),
					device_cell(ctl, place_of(detail, tensor))};

		shape_text(tensor, shape, sizeof shape);
		sheet_add(&sheet, cells);
	}
	return sheet_print(ctl, &sheet);
}

static int print_json(struct ctl *ctl, const struct distorch_detail *detail,
		      const struct distorch_weights *table)
{
	cJSON *object = json_of_model(json_new(), detail->model);
	cJSON *array;

	json_add_number(object, "page_size", detail->page_size);
	json_add_number(object, "huge_bytes", detail->huge_bytes);
	json_add_text(object, "notice", detail->notice);
	json_add_text(object, "backing", detail->backing);
	json_add_text(object, "loaded_from", detail->loaded_from);
	json_add_number(object, "load_ms", detail->load_ms);
	json_add_text(object, "checksum", detail->checksum);
	array = json_add_array(object, "clients");
	for (size_t i = 0; i < detail->n_clients; i++) {
		(void)json_of_holder(json_add_item(array), detail->clients[i]);
	}
	array = json_add_array(object, "wishes");
	for (size_t i = 0; i < detail->n_wishes; i++) {
		cJSON *wish = json_add_item(array);

		json_add_number(wish, "uid", detail->wishes[i]->uid);
		json_add_bool(wish, "pin", detail->wishes[i]->pin);
		json_add_bool(wish, "keep", detail->wishes[i]->keep);
		json_add_number(wish, "ttl_ms", detail->wishes[i]->ttl_ms);
		(void)cJSON_AddNumberToObject(wish, "priority",
					      (double)detail->wishes[i]->priority);
		json_add_number(wish, "pin_left_ms", detail->wishes[i]->pin_left_ms);
		json_add_number(wish, "keep_left_ms", detail->wishes[i]->keep_left_ms);
	}
	array = json_add_array(object, "files");
	for (size_t i = 0; i < detail->n_shards; i++) {
		cJSON *file = json_add_item(array);

		json_add_text(file, "name", detail->shards[i]->name);
		json_add_number(file, "bytes", detail->shards[i]->bytes);
	}
	array = json_add_array(object, "places");
	for (size_t i = 0; i < detail->n_places; i++) {
		json_add_string(array, detail->places[i]);
	}
	if (table != NULL) {
		add_tensors(object, table);
	}
	return json_print(ctl, object);
}

static void print_image(struct ctl *ctl, const struct distorch_detail *detail)
{
	char page[24];
	char huge[24];
	char text[512];
	char duration[32];

	if (detail->backing != NULL && strcmp(detail->backing, "file") == 0) {
		(void)printf("backing    its file's page cache: changes of the file are not kept "
			     "out\n"
			     "loaded     from %s in %s\n",
			     detail->loaded_from, ms_text(detail->load_ms, duration));
	} else if (detail->page_size != DISTORCH_ABSENT) {
		if (model_image_bytes(detail->model) > 0) {
			(void)printf("image      in pages of %s",
				     size_text(ctl, detail->page_size, page));
			if (detail->page_size < HUGE_BYTES) {
				(void)printf(", %s of it in pages of 2.0M",
					     size_text(ctl, detail->huge_bytes, huge));
			}
			(void)putchar('\n');
		}
		(void)printf("loaded     from %s in %s, XXH3 %s\n", detail->loaded_from,
			     ms_text(detail->load_ms, duration), detail->checksum);
	}
	if (detail->notice != NULL) {
		(void)printf("notice     %s\n", safe_text(detail->notice, text, sizeof text));
	}
}

static void print_files(struct ctl *ctl, const struct distorch_detail *detail)
{
	char size[24];
	char text[512];

	for (size_t i = 0; i < detail->n_shards; i++) {
		(void)printf("file       %s, %s\n",
			     safe_text(detail->shards[i]->name, text, sizeof text),
			     size_text(ctl, detail->shards[i]->bytes, size));
	}
}

/* "pinned for 1h 59m more, kept, stays 30m without use, priority -5"; "": it only loaded the
 * model. */
static const char *wish_text(const struct distorch_wish *wish, char *buffer, size_t buffer_size)
{
	const struct {
		const char *word;
		uint64_t left_ms;
		bool is_said;
	} said[] = {{"pinned", wish->pin_left_ms, wish->pin},
		    {"kept", wish->keep_left_ms, wish->keep}};
	char time[32];
	size_t used = 0;

	buffer[0] = '\0';
	for (size_t i = 0; i < 2; i++) {
		if (said[i].is_said) {
			text_append(buffer, buffer_size, &used, "%s%s", used == 0 ? "" : ", ",
				    said[i].word);
		}
		if (said[i].is_said && said[i].left_ms != DISTORCH_ABSENT) {
			text_append(buffer, buffer_size, &used, " for %s more",
				    ms_text(said[i].left_ms, time));
		}
	}
	if (wish->ttl_ms != DISTORCH_ABSENT) {
		text_append(buffer, buffer_size, &used, "%sstays %s without use",
			    used == 0 ? "" : ", ", ms_text(wish->ttl_ms, time));
	}
	if (wish->priority != 0) {
		text_append(buffer, buffer_size, &used, "%spriority %lld", used == 0 ? "" : ", ",
			    (long long)wish->priority);
	}
	return buffer;
}

static void print_people(struct ctl *ctl, const struct distorch_detail *detail)
{
	char size[24];
	char text[128];

	for (size_t i = 0; i < detail->n_clients; i++) {
		(void)printf("used by    PID %u (%s), uid %u, %s\n", detail->clients[i]->pid,
			     safe_text(detail->clients[i]->comm, text, sizeof text),
			     detail->clients[i]->uid,
			     size_text(ctl, detail->clients[i]->held_bytes, size));
	}
	for (size_t i = 0; i < detail->n_wishes; i++) {
		if (wish_text(detail->wishes[i], text, sizeof text)[0] != '\0') {
			(void)printf("wish       uid %u: %s\n", detail->wishes[i]->uid, text);
		}
	}
}

static int print_text(struct ctl *ctl, const struct distorch_detail *detail,
		      const struct distorch_weights *table)
{
	const struct distorch_model *model = detail->model;
	char text[4200];
	char size[24];
	char last[32];

	(void)printf("%s\n", safe_text(model->name, text, sizeof text));
	(void)printf("id         %s\n", model->id);
	(void)printf("path       %s\n", safe_text(model->path, text, sizeof text));
	(void)printf("size       %s (%llu bytes)", size_text(ctl, model->bytes, size),
		     (unsigned long long)model->bytes);
	if (model->tensors == 0 && strcmp(model->format, "unknown") == 0) {
		(void)printf("; its tensors are known once it is loaded\n");
	} else {
		(void)printf(", %llu tensor%s in %llu block%s, %s\n",
			     (unsigned long long)model->tensors, model->tensors == 1 ? "" : "s",
			     (unsigned long long)model->blocks, model->blocks == 1 ? "" : "s",
			     model->format);
	}
	(void)printf("state      %s, generation %llu, last used %s\n", model->state,
		     (unsigned long long)model->generation, ago_text(model->last_used_ms, last));
	/* Shares of what has arrived so far would be no shares of the model. */
	(void)printf("where      %s\n", strcmp(model->state, "loading") == 0
						? where_now_text(ctl, model, text, sizeof text)
						: where_text(ctl, model, text, sizeof text));
	if (model->n_older > 0) {
		char older[512];

		(void)printf("older      %s\n",
			     safe_text(older_text(ctl, model, older, sizeof older), text,
				       sizeof text));
	}
	(void)printf("stays      %s\n", stays_text(model, text, sizeof text));
	print_image(ctl, detail);
	print_files(ctl, detail);
	print_people(ctl, detail);
	return table == NULL ? EXIT_DONE : print_tensors(ctl, detail, table);
}

static int run(struct ctl *ctl)
{
	struct distorch_detail *detail = NULL;
	struct distorch_weights *table = NULL;
	int status = ctl_connect(ctl);

	if (status != EXIT_DONE) {
		return status;
	}
	if (distorch_show(ctl->c, ctl->arguments.words[0], &detail,
			  ctl->arguments.tensors ? &table : NULL) < 0) {
		return ctl_fail(ctl);
	}
	status = is_json(ctl) ? print_json(ctl, detail, table) : print_text(ctl, detail, table);
	(void)distorch_weights_unref(table);
	distorch_detail_free(detail);
	return status;
}

static const struct argp_option options[] = {
	{"tensors", OPTION_TENSORS, NULL, 0, "Its tensors too, and where each lies", 0},
	{"clients", OPTION_CLIENTS, NULL, 0, "Accepted; who uses it is always shown", 0},
	OPTIONS_END,
};

static const char *const aliases[] = {"inspect", NULL};

const struct verb verb_show = {
	.name = "show",
	.aliases = aliases,
	.group = VERB_MORE,
	.usage = "MODEL",
	.summary = "Show all about one model: where it is, who uses it, who wishes what.",
	.text = "Examples:\n"
		"  distorchctl show flux1-dev.safetensors\n"
		"  distorchctl show 9f31 --tensors\n\n"
		"MODEL is a name, an id or the first digits of one (4 or more), or a path.",
	.options = options,
	.min_words = 1,
	.max_words = 1,
	.words = WORDS_MODELS,
	.run = run,
};
