/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The grammar: parts at '|', items at ';', device and value at the first ','. What a value is
 * shows from its own letters; that the items of a part agree is looked at when all are read.
 * See spec.h.
 */
#include "daemon/plan/spec.h"

#include "base/err.h"

#include <stdio.h>
#include <string.h>

#include "daemon/plan/name.h"
#include "daemon/plan/value.h"
#include "proto/gen/wire_code.h"

/* ---- devices ---- */

bool spec_find_host(const struct plan_request *request, uint32_t *ret)
{
	for (uint32_t i = 0; i < request->n_devices; i++) {
		if (request->devices[i].is_host) {
			*ret = i;
			return true;
		}
	}
	return false;
}

static int find_device(struct spec_parser *parser, struct plan_text text, const char *role,
		       uint32_t *ret)
{
	const struct plan_request *request = parser->request;
	char name[48];
	char known[104];
	char label[PLAN_LABEL_SIZE];
	const uint32_t found = name_find(request->devices, request->n_devices, text);
	uint32_t device;

	(void)text_print(text, name, sizeof name);
	if (name_count(found) > 1) {
		return value_refuse(parser, WIRE_BAD_ARGUMENT, "%s%u devices are a \"%s\": %s",
				    role, name_count(found), name,
				    name_list(request->devices, request->n_devices, found, known,
					      sizeof known));
	}
	if (found == 0) {
		return value_refuse(parser, WIRE_BAD_ARGUMENT,
				    "%sthere is no device \"%s\"; there %s %s", role, name,
				    request->n_devices == 1 ? "is" : "are",
				    name_list(request->devices, request->n_devices, NAME_ALL, known,
					      sizeof known));
	}
	device = name_first(found);
	if (request->devices[device].is_lost) {
		return value_refuse(parser, WIRE_DEVICE_LOST,
				    "%s%s cannot be used now: distorchctl devices %s says why",
				    role,
				    name_label(&request->devices[device], label, sizeof label),
				    request->devices[device].name);
	}
	*ret = device;
	return 0;
}

/* The host, for what nobody named a device. */
static int get_host(struct spec_parser *parser, const char *what, uint32_t *ret)
{
	if (!spec_find_host(parser->request, ret)) {
		return value_refuse(parser, WIRE_BAD_ARGUMENT,
				    "%s goes to cpu, and there is no device cpu", what);
	}
	return 0;
}

/* ---- parts ---- */

static int add_item(struct spec_parser *parser, struct spec_part *part, struct plan_text text,
		    enum value_kind *ret)
{
	struct spec_item *item = &part->items[part->n_items]; /* there is one more */
	struct plan_text name;
	struct plan_text value;
	bool has_value = value_cut(text, ',', &name, &value);
	bool is_auto;
	int code;

	*item = (struct spec_item){.text = text,
				   .number = part->n_items + 1,
				   .column = value_column(parser, text.text)};
	parser->item = item;
	if (value_has(text, '#')) {
		return value_refuse(
			parser, WIRE_BAD_ARGUMENT,
			"what is behind the # has its own place: compute, virtual VRAM and "
			"donors are options");
	}
	is_auto = !has_value && text_is(text, "auto");
	if (part->mode == SPEC_AUTO || (is_auto && part->n_items > 0)) {
		return value_refuse(parser, WIRE_BAD_ARGUMENT, "auto stands alone");
	}
	if (is_auto) {
		part->mode = SPEC_AUTO;
		*ret = VALUE_NONE;
		part->n_items++;
		return 0;
	}
	code = find_device(parser, text_trim(name), "", &item->device);
	if (code < 0) {
		return code;
	}
	for (uint32_t i = 0; i < part->n_items; i++) {
		if (part->items[i].device == item->device) {
			return value_refuse(parser, WIRE_BAD_ARGUMENT,
					    "that device has item %u already: one item a device",
					    i + 1);
		}
	}
	*ret = VALUE_NONE;
	code = has_value ? value_parse(parser, text_trim(value), ret) : 0;
	if (code < 0) {
		return code;
	}
	if (item->is_wildcard && part->wildcard != UINT32_MAX) {
		return value_refuse(parser, WIRE_BAD_ARGUMENT,
				    "item %u has the * already: only one takes the rest",
				    part->wildcard + 1);
	}
	part->wildcard = item->is_wildcard ? part->n_items : part->wildcard;
	part->n_items++; /* one a device */
	return 0;
}

static const char *kind_text(enum value_kind kind)
{
	static const char *const texts[VALUE_N_KINDS] = {
		[VALUE_ZERO] = "0",
		[VALUE_REST] = "the rest",
		[VALUE_SIZE] = "a size",
		[VALUE_PERCENT] = "a percentage",
		[VALUE_FRACTION] = "a fraction of the device",
		[VALUE_NONE] = "a device alone",
	};

	return texts[kind];
}

/* The kind that all items of a part have; zeros and wildcards go with any. */
static int agree(struct spec_parser *parser, struct spec_part *part, const enum value_kind *kinds,
		 enum value_kind *ret)
{
	uint32_t first = part->n_items;

	for (uint32_t i = 0; i < part->n_items; i++) {
		if (kinds[i] == VALUE_ZERO || kinds[i] == VALUE_REST) {
			continue;
		}
		if (first == part->n_items) {
			first = i;
		}
		parser->item = &part->items[i];
		if (kinds[i] == VALUE_NONE && part->n_items > 1) {
			return value_refuse(
				parser, WIRE_BAD_ARGUMENT,
				"there is no value: a size (6gb), a percentage, a fraction "
				"or *");
		}
		if (kinds[i] != kinds[first]) {
			return value_refuse(parser, WIRE_BAD_ARGUMENT,
					    "%s, and item %u has %s: one string has one kind",
					    kind_text(kinds[i]), first + 1,
					    kind_text(kinds[first]));
		}
	}
	parser->item = NULL;
	*ret = first == part->n_items ? VALUE_SIZE : kinds[first];
	return 0;
}

static int check_percents(struct spec_parser *parser, const struct spec_part *part)
{
	uint64_t sum = 0;

	for (uint32_t i = 0; i < part->n_items; i++) {
		sum += part->items[i].value; /* of at most 16 times MAX_PERCENT */
	}
	if (part->wildcard == UINT32_MAX && sum == 0) {
		return value_refuse(
			parser, WIRE_BAD_ARGUMENT,
			"the percentages add up to 0: nothing says where the model goes");
	}
	if (part->wildcard != UINT32_MAX && sum > SPEC_PERCENT) {
		return value_refuse(
			parser, WIRE_BAD_ARGUMENT,
			"the percentages beside the * add up to %llu.%02llu %%, which is "
			"more than the model",
			(unsigned long long)(sum / SPEC_ONE),
			(unsigned long long)(sum % SPEC_ONE / (SPEC_ONE / 100)));
	}
	return 0;
}

static int parse_items(struct spec_parser *parser, struct plan_text text, struct spec_part *part)
{
	enum value_kind kinds[PLAN_MAX_DEVICES + 1] = {0};
	enum value_kind kind = VALUE_SIZE;
	struct plan_text rest = text;
	bool is_more = true;
	int code = 0;

	part->wildcard = UINT32_MAX;
	while (is_more && code == 0) {
		struct plan_text item;

		is_more = value_cut(rest, ';', &item, &rest);
		item = text_trim(item);
		if (item.size > 0) {
			code = add_item(parser, part, item, &kinds[part->n_items]);
		}
	}
	if (code == 0) {
		code = agree(parser, part, kinds, &kind);
	}
	parser->item = NULL;
	if (code < 0 || part->mode == SPEC_AUTO) {
		return code;
	}
	if (kind == VALUE_NONE) {
		part->mode = SPEC_DEVICE;
	} else if (kind == VALUE_FRACTION) {
		part->mode = SPEC_FRACTION;
	} else if (kind == VALUE_PERCENT) {
		part->mode = part->wildcard == UINT32_MAX ? SPEC_RATIO : SPEC_PERCENT_REST;
		code = check_percents(parser, part);
	} else {
		part->mode = SPEC_BYTES;
	}
	return code;
}

static int place_all(struct spec_parser *parser, const char *what, struct spec_part *part)
{
	part->mode = SPEC_DEVICE;
	part->n_items = 1;
	part->wildcard = UINT32_MAX;
	part->items[0] = (struct spec_item){0};
	return get_host(parser, what, &part->items[0].device);
}

/* ---- where a part computes ---- */

static int choose_compute(struct spec_parser *parser, struct spec_part *part)
{
	const struct plan_request *request = parser->request;
	struct plan_text said = text_trim(request->compute);
	bool is_open = part->mode == SPEC_AUTO || part->mode == SPEC_VIRTUAL;

	if (said.size > 0) {
		return find_device(parser, said, "compute: ", &part->compute);
	}
	part->compute = part->items[0].device;
	for (uint32_t i = 0; !is_open && i < part->n_items; i++) {
		if (!request->devices[part->items[i].device].is_host) {
			part->compute = part->items[i].device;
			return 0;
		}
	}
	for (uint32_t i = 0; is_open && i < request->n_devices; i++) {
		const struct plan_device *device = &request->devices[i];

		if (!device->is_host && !device->is_lost && !device->is_draining) {
			part->compute = i;
			return 0;
		}
	}
	return is_open ? get_host(parser, "the model", &part->compute) : 0;
}

static int parse_donors(struct spec_parser *parser, struct spec_part *part)
{
	const struct plan_request *request = parser->request;
	char label[PLAN_LABEL_SIZE];
	int code;

	part->mode = SPEC_VIRTUAL;
	part->wildcard = UINT32_MAX;
	part->n_items = 0;
	code = choose_compute(parser, part);
	if (code == 0 && request->n_donors == 0) {
		part->n_items = 1;
		code = get_host(parser, "what does not stay", &part->items[0].device);
	}
	for (uint32_t i = 0; i < request->n_donors && code == 0; i++) {
		char role[24];

		(void)snprintf(role, sizeof role, "donor %u: ", i + 1);
		code = find_device(parser, text_trim(request->donors[i]), role,
				   &part->items[i].device);
		for (uint32_t j = 0; j < i && code == 0; j++) {
			if (part->items[j].device == part->items[i].device) {
				code = value_refuse(parser, WIRE_BAD_ARGUMENT,
						    "%sit is donor %u already", role, j + 1);
			}
		}
		part->n_items++;
	}
	for (uint32_t i = 0; i < part->n_items && code == 0; i++) {
		/* With everything on the host there is nothing to spare: a warning, no more. */
		if (part->items[i].device == part->compute &&
		    !request->devices[part->compute].is_host) {
			code = value_refuse(parser, WIRE_BAD_ARGUMENT,
					    "donor %u: %s computes, and cannot be its own donor",
					    i + 1,
					    name_label(&request->devices[part->compute], label,
						       sizeof label));
		}
	}
	return code;
}

/* ---- the whole ---- */

static const char *const component_names[PLAN_N_COMPONENTS] = {
	[PLAN_WHOLE] = "the rest",
	[PLAN_UNET] = "unet",
	[PLAN_CLIP] = "clip",
	[PLAN_VAE] = "vae",
};

const char *spec_component_text(uint32_t component)
{
	return component < PLAN_N_COMPONENTS ? component_names[component] : "?";
}

static int find_component(struct spec_parser *parser, struct plan_text name, uint32_t components,
			  uint32_t *ret)
{
	static const char *const sets[] =
		{/* unet 1, clip 2, vae 4 */
		 "",    "unet",         "clip",         "unet and clip",
		 "vae", "unet and vae", "clip and vae", "unet, clip and vae"};
	char safe[32];

	for (uint32_t i = PLAN_UNET; i < PLAN_N_COMPONENTS; i++) {
		if ((components & (1U << i)) != 0 && text_is(name, component_names[i])) {
			*ret = i;
			return 0;
		}
	}
	(void)text_print(name, safe, sizeof safe);
	if (components == SPEC_ANY_COMPONENT) {
		return value_refuse(parser, WIRE_BAD_ARGUMENT,
				    "column %u \"%s=\": a part of a model is unet, clip or vae",
				    value_column(parser, name.text), safe);
	}
	components >>= PLAN_UNET;
	if (components == 0) {
		return value_refuse(
			parser, WIRE_BAD_ARGUMENT,
			"column %u \"%s=\": the file is one part: write the allocation alone",
			value_column(parser, name.text), safe);
	}
	return value_refuse(parser, WIRE_BAD_ARGUMENT, "column %u \"%s=\": the file has %s",
			    value_column(parser, name.text), safe, sets[components & 7]);
}

/* "unet=...": false where there is no = before the first item. */
static bool cut_name(struct plan_text text, struct plan_text *ret_name, struct plan_text *ret_rest)
{
	struct plan_text item;
	struct plan_text unused;

	(void)value_cut(text, ';', &item, &unused);
	(void)value_cut(item, ',', &item, &unused);
	if (!value_has(item, '=')) {
		return false;
	}
	(void)value_cut(text, '=', ret_name, ret_rest);
	*ret_name = text_trim(*ret_name);
	return true;
}

static int parse_part(struct spec_parser *parser, struct plan_text text, uint32_t components,
		      struct spec *spec)
{
	struct spec_part *part = &spec->parts[spec->n_parts];
	struct plan_text name;
	uint32_t component = 0;
	int code;

	if (!cut_name(text, &name, &text)) {
		text = text_trim(text);
		return value_refuse(
			parser, WIRE_BAD_ARGUMENT,
			"column %u: each part of unet=...|clip=...|vae=... begins with its "
			"name",
			value_column(parser, text.size == 0 ? parser->all.text : text.text));
	}
	code = find_component(parser, name, components, &component);
	if (code < 0) {
		return code;
	}
	if ((spec->not_named & (1U << component)) == 0) {
		return value_refuse(parser, WIRE_BAD_ARGUMENT, "column %u: \"%s=\" stands twice",
				    value_column(parser, name.text), component_names[component]);
	}
	spec->n_parts++;
	*part = (struct spec_part){.components = 1U << component};
	spec->not_named &= ~part->components;
	if (component == PLAN_UNET) { /* what has no part's name belongs to the model itself */
		part->components |= components & (1U << PLAN_WHOLE);
		spec->not_named &= ~part->components;
	}
	code = parse_items(parser, text, part);
	if (code == 0 && part->n_items == 0) {
		code = value_refuse(parser, WIRE_BAD_ARGUMENT, "column %u: \"%s=\" has no items",
				    value_column(parser, name.text), component_names[component]);
	}
	return code == 0 ? choose_compute(parser, part) : code;
}

static int parse_parts(struct spec_parser *parser, uint32_t components, struct spec *spec)
{
	struct plan_text rest = parser->all;
	bool is_more = true;
	int code = 0;

	spec->not_named = components;
	while (is_more && code == 0) {
		struct plan_text text;

		is_more = value_cut(rest, '|', &text, &rest);
		if (text_trim(text).size > 0) {
			code = parse_part(parser, text, components, spec);
		}
	}
	if (code == 0 && spec->n_parts == 0) {
		return value_refuse(parser, WIRE_BAD_ARGUMENT, "the allocation names nothing");
	}
	if (code == 0 && spec->not_named != 0) {
		struct spec_part *part = &spec->parts[spec->n_parts++];

		*part = (struct spec_part){.components = spec->not_named};
		code = place_all(parser, "what is not named", part);
		part->compute = part->items[0].device;
	}
	return code;
}

static bool has_items(struct plan_text text)
{
	for (uint32_t i = 0; i < text.size; i++) {
		if (strchr("; \t\r\n", text.text[i]) == NULL || text.text[i] == '\0') {
			return true;
		}
	}
	return false;
}

int spec_parse(const struct plan_request *request, uint32_t components, struct spec *ret,
	       struct err *err)
{
	struct spec_parser parser = {.request = request, .all = request->allocation, .err = err};
	bool is_virtual = request->virtual_vram > 0 || request->n_donors > 0;
	struct plan_text name;
	struct plan_text unused;
	int code;

	*ret = (struct spec){.n_parts = 1};
	ret->parts[0].components = UINT32_MAX;
	if (parser.all.size > PLAN_MAX_TEXT) {
		return value_refuse(&parser, WIRE_BAD_ARGUMENT,
				    "an allocation has at most %u bytes, not %u", PLAN_MAX_TEXT,
				    parser.all.size);
	}
	if (request->n_donors > PLAN_MAX_DONORS) {
		return value_refuse(&parser, WIRE_BAD_ARGUMENT, "at most %u donors, not %u",
				    PLAN_MAX_DONORS, request->n_donors);
	}
	if (!has_items(parser.all)) {
		if (is_virtual) {
			return parse_donors(&parser, &ret->parts[0]);
		}
		code = place_all(&parser, "the model", &ret->parts[0]);
		return code == 0 ? choose_compute(&parser, &ret->parts[0]) : code;
	}
	if (is_virtual) {
		return value_refuse(
			&parser, WIRE_BAD_ARGUMENT,
			request->virtual_vram > 0
				? "an allocation and virtual VRAM say the same thing twice: give one"
				: "donors belong to virtual VRAM (--virtual-vram), and an allocation "
				  "is given instead: leave them out");
	}
	if (value_has(parser.all, '|') || cut_name(parser.all, &name, &unused)) {
		ret->n_parts = 0;
		return parse_parts(&parser, components, ret);
	}
	code = parse_items(&parser, parser.all, &ret->parts[0]);
	return code == 0 ? choose_compute(&parser, &ret->parts[0]) : code;
}
