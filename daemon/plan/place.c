/* SPDX-License-Identifier: Apache-2.0 */
/*
 * plan_make: the numbers are checked, the text is read, each part is cut into runs, what that
 * takes is held against what there is, and then, where it is asked for, the runs are spread.
 * Whether a plan fits is decided before it is spread, so that more memory never makes one fail.
 * See plan.h and place.h.
 */
#include "daemon/plan/place.h"

#include "base/checked.h"
#include "base/err.h"
#include "base/units.h"

#include <stdio.h>
#include <string.h>

#include "daemon/plan/name.h"
#include "proto/gen/wire_code.h"

#define MAX_BYTES     (1ULL << 62)
#define MAX_READ_NAME 128U /* what is an embedding says so before */

/* ---- blocks and devices ---- */

static bool begins_with(const char *text, size_t size, const char *word)
{
	size_t length = strlen(word);

	return size >= length && memcmp(text, word, length) == 0;
}

/* Names of text encoders' embeddings. "conditioner.embedders.0" is a whole encoder. */
static bool is_embedding(const char *part, size_t size)
{
	bool is_other = false;

	for (size_t at = 0; at < size; at++) {
		const char *text = &part[at];
		const size_t left = size - at;

		switch (*text) { /* once through: a file's names are of any length */
		case 'e':
			if (begins_with(text, left, "embed")) {
				return !begins_with(text, left, "embedders");
			}
			break;
		case 'w':
			is_other = is_other || begins_with(text, left, "wte") ||
				   begins_with(text, left, "wpe");
			break;
		case 's':
			is_other = is_other || begins_with(text, left, "shared");
			break;
		default:
			break;
		}
	}
	return is_other;
}

static bool is_number(const char *part, size_t size)
{
	for (size_t i = 0; i < size; i++) {
		if (part[i] < '0' || part[i] > '9') {
			return false;
		}
	}
	return size > 0;
}

bool place_is_head(const struct plan_block *block)
{
	const uint32_t size = block->name_size < MAX_READ_NAME ? block->name_size : MAX_READ_NAME;
	uint32_t start = 0;

	if (block->is_head || block->component != PLAN_CLIP) {
		return block->is_head;
	}
	/* Up to the number: what is behind it is inside of a numbered place. */
	for (uint32_t at = 0; at <= size; at++) {
		if (at < size && block->name[at] != '.') {
			continue;
		}
		if (is_number(&block->name[start], at - start)) {
			return false;
		}
		if (is_embedding(&block->name[start], at - start)) {
			return true;
		}
		start = at + 1;
	}
	return false;
}

bool place_is_in(const struct spec_part *part, const struct plan_block *block)
{
	return (part->components & (1U << block->component)) != 0 && !place_is_head(block);
}

uint64_t place_charge(const struct plan_device *device, const struct plan_block *block)
{
	uint64_t bytes = block->bytes;
	uint64_t granule = device->granularity == 0 ? 1 : device->granularity;

	if (!device->is_host && block->packed > bytes) {
		bytes = block->packed;
	}
	return (bytes + granule - 1) & ~(granule - 1); /* check_numbers: it fits */
}

void place_take(struct place_work *work, uint32_t device, const struct plan_block *block)
{
	struct plan_share *share = &work->shares[device];

	share->bytes += block->bytes;
	share->taken += place_charge(&work->request->devices[device], block);
	share->n_blocks++;
}

void place_give_back(struct place_work *work, uint32_t device, const struct plan_block *block)
{
	struct plan_share *share = &work->shares[device];

	share->bytes -= block->bytes;
	share->taken -= place_charge(&work->request->devices[device], block);
	share->n_blocks--;
}

uint64_t place_room(const struct plan_device *device)
{
	uint64_t room = UINT64_MAX;

	(void)checked_add(device->free, device->evictable, &room);
	return room;
}

void place_warn(struct place_work *work, enum plan_warning_kind kind, uint32_t device, uint64_t a,
		uint64_t b)
{
	struct plan_summary *summary = work->summary;

	if (summary != NULL && summary->n_warnings < PLAN_MAX_WARNINGS) {
		summary->warnings[summary->n_warnings++] =
			(struct plan_warning){.kind = kind, .device = device, .a = a, .b = b};
	}
}

uint64_t place_mul_div(uint64_t a, uint64_t b, uint64_t c)
{
	place_wide product = (place_wide)a * b;
	uint64_t quotient = 0;
	place_wide rest = 0;

	if (c == 0 || (uint64_t)(product >> 64) >= c) {
		return UINT64_MAX;
	}
	/* Bit by bit: a division of this width is a call to the compiler's library. */
	for (int bit = 127; bit >= 0; bit--) {
		rest = rest << 1 | ((product >> bit) & 1);
		quotient <<= 1;
		if (rest >= c) {
			rest -= c;
			quotient |= 1;
		}
	}
	return quotient;
}

/* ---- what comes in ---- */

static int check_device(const struct plan_device *device, uint32_t index, struct err *err)
{
	uint64_t granule = device->granularity == 0 ? 1 : device->granularity;

	if (device->name == NULL) {
		return err_set(err, WIRE_BAD_ARGUMENT, "device %u has no name", index);
	}
	if ((granule & (granule - 1)) != 0 || granule > MAX_BYTES) {
		return err_set(err, WIRE_BAD_ARGUMENT,
			       "device %.24s: a granularity is a power of two, not %llu",
			       device->name, (unsigned long long)device->granularity);
	}
	return 0;
}

/* All sums that are made later fit. */
static int check_numbers(const struct plan_request *request, uint32_t *ret_components,
			 uint64_t *ret_bytes, struct err *err)
{
	uint64_t granule = 1;
	uint64_t bytes = 0;
	uint64_t taken = 0;
	uint32_t components = 0;

	if (request->n_devices == 0 || request->n_devices > PLAN_MAX_DEVICES) {
		return err_set(err, WIRE_BAD_ARGUMENT, "1 to %d devices, not %u", PLAN_MAX_DEVICES,
			       request->n_devices);
	}
	if (request->n_blocks > PLAN_MAX_BLOCKS) {
		return err_set(
			err, WIRE_TOO_LARGE,
			"%u blocks, and at most %u can be placed: let a block be more than a "
			"tensor (no --granularity tensor)",
			request->n_blocks, PLAN_MAX_BLOCKS);
	}
	for (uint32_t i = 0; i < request->n_devices; i++) {
		int code = check_device(&request->devices[i], i, err);

		if (code < 0) {
			return code;
		}
		if (request->devices[i].granularity > granule) {
			granule = request->devices[i].granularity;
		}
	}
	for (uint32_t i = 0; i < request->n_blocks; i++) {
		const struct plan_block *block = &request->blocks[i];
		uint64_t most = block->packed > block->bytes ? block->packed : block->bytes;

		if (block->component >= PLAN_N_COMPONENTS) {
			return err_set(err, WIRE_BAD_ARGUMENT, "block %u has no component", i);
		}
		components |= 1U << block->component;
		if (!checked_add(bytes, block->bytes, &bytes) ||
		    !checked_round_up(most, granule, &most) || !checked_add(taken, most, &taken) ||
		    taken > MAX_BYTES) {
			return err_set(err, WIRE_BAD_ARGUMENT,
				       "blocks of more than 2^62 bytes cannot be planned");
		}
	}
	*ret_components = components;
	*ret_bytes = bytes;
	return 0;
}

int plan_strategy_find(struct plan_text text, enum plan_strategy *ret, struct err *err)
{
	char safe[40];

	text = text_trim(text);
	if (text.size == 0) {
		*ret = PLAN_USUAL;
	} else if (text_is(text, "contiguous")) {
		*ret = PLAN_CONTIGUOUS;
	} else if (text_is(text, "spread")) {
		*ret = PLAN_SPREAD;
	} else {
		return err_set(err, WIRE_BAD_ARGUMENT,
			       "a strategy is contiguous or spread, not \"%s\"",
			       text_print(text, safe, sizeof safe));
	}
	return 0;
}

/* ---- what there is ---- */

/* The item that put something on the device; NULL: none did, as the rest goes there. */
static const struct spec_item *find_item(const struct spec *spec, uint32_t device)
{
	for (uint32_t i = 0; i < spec->n_parts; i++) {
		const struct spec_part *part = &spec->parts[i];

		for (uint32_t j = 0; j < part->n_items; j++) {
			if (part->items[j].device == device && part->items[j].column > 0 &&
			    part->mode != SPEC_AUTO) {
				return &part->items[j];
			}
		}
	}
	return NULL;
}

/* The part that computes there; NULL: none does. */
static const struct spec_part *find_computing(const struct spec *spec, uint32_t device)
{
	for (uint32_t i = 0; i < spec->n_parts; i++) {
		if (spec->parts[i].compute == device) {
			return &spec->parts[i];
		}
	}
	return NULL;
}

/* Is what has to be where a part computes too much for it already? */
static bool is_head_too_large(const struct place_work *work, const struct spec_part *part)
{
	const struct plan_device *device = &work->request->devices[part->compute];
	const uint64_t room = place_room(device);
	uint64_t taken = 0;

	for (uint32_t i = 0; i < work->request->n_blocks; i++) {
		const struct plan_block *block = &work->request->blocks[i];

		if ((part->components & (1U << block->component)) != 0 && place_is_head(block)) {
			taken += place_charge(device, block);
		}
	}
	return taken > room && part->mode != SPEC_DEVICE;
}

/* "2.0G free, 4.0G its own, 3.0G evictable, 19.0G in use or pinned, 1.0G reserved": its own, and
 * what is behind, is told where it is. */
static const char *print_room(const struct plan_device *device, char *buffer, size_t buffer_size)
{
	const struct {
		const char *before, *behind;
		uint64_t bytes;
		bool is_always;
	} rows[] = {
		{"", " free", device->free - device->own, true},
		{", ", " its own", device->own, false},
		{", ", " evictable", device->evictable, true},
		{", ", " in use or pinned", device->held, true},
		{", ", " being loaded", device->loading, false},
		{", ", " reserved", device->reserved, false},
		{", others use ", "", device->foreign, false},
	};
	size_t used = 0;
	char text[24];

	buffer[0] = '\0';
	for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
		const char *bytes = units_format_size(rows[i].bytes, text, sizeof text);
		int size;

		if (rows[i].bytes == 0 && !rows[i].is_always) {
			continue;
		}
		size = snprintf(buffer + used, buffer_size - used, "%s%s%s", rows[i].before, bytes,
				rows[i].behind);
		if (size < 0 || (size_t)size >= buffer_size - used) {
			break;
		}
		used += (size_t)size;
	}
	return buffer;
}

/* By its wildcard, or because sizes without one do. */
static bool leaves_rest_to_host(const struct plan_request *request, const struct spec_part *part)
{
	return part->wildcard == UINT32_MAX
		       ? part->mode == SPEC_BYTES
		       : request->devices[part->items[part->wildcard].device].is_host;
}

/* All parts of which something is to be on the device. */
static bool is_rest_on_host(const struct plan_request *request, const struct spec *spec,
			    uint32_t index)
{
	for (uint32_t i = 0; i < spec->n_parts; i++) {
		const struct spec_part *part = &spec->parts[i];
		bool is_there = part->compute == index;

		for (uint32_t j = 0; j < part->n_items; j++) {
			is_there = is_there || part->items[j].device == index;
		}
		if (is_there && !leaves_rest_to_host(request, part)) {
			return false;
		}
	}
	return true;
}

static int refuse_device(const struct place_work *work, const struct spec *spec, uint32_t index)
{
	const struct plan_device *device = &work->request->devices[index];
	const struct spec_item *item = find_item(spec, index);
	const struct spec_part *part = find_computing(spec, index);
	const uint64_t bytes = work->shares[index].bytes;
	struct plan_shortage *shortage = &work->summary->shortage;
	char named[112] = "";
	char label[PLAN_LABEL_SIZE];
	char room[180];
	char size[2][24];

	*shortage = (struct plan_shortage){.device = index,
					   .need = work->shares[index].taken,
					   .is_head = part != NULL && is_head_too_large(work, part),
					   .is_rest_on_host =
						   is_rest_on_host(work->request, spec, index),
					   .evictable = device->evictable};
	if (item != NULL) {
		(void)spec_print_item(item, named, sizeof named);
	}
	if (part != NULL && part->mode == SPEC_VIRTUAL && !shortage->is_head) {
		shortage->virtual_vram = least_virtual_vram(work->request, index);
	}
	return err_set(work->err, WIRE_NO_MEMORY,
		       "%s%s%s%s of it%s would be on %s, where %s can be had (%s)", named,
		       part != NULL && part->mode == SPEC_AUTO ? "auto: " : "",
		       shortage->is_head ? "with its head, which stays where it computes: " : "",
		       units_format_size(shortage->need, size[0], sizeof size[0]),
		       shortage->need - bytes > bytes / 8 ? ", its blocks rounded up," : "",
		       name_label(device, label, sizeof label),
		       units_format_size(place_room(device), size[1], sizeof size[1]),
		       print_room(device, room, sizeof room));
}

static int check_room(const struct place_work *work, const struct spec *spec)
{
	for (uint32_t i = 0; i < work->request->n_devices; i++) {
		const struct plan_device *device = &work->request->devices[i];
		uint64_t room = UINT64_MAX;

		(void)checked_add(place_room(device), device->later, &room);
		if (work->shares[i].taken > room) {
			return refuse_device(work, spec, i);
		}
	}
	return 0;
}

/* ---- what comes out ---- */

/* How much it takes, whatever there is room for: fixed, all of it or nothing, or as may be. */
enum elasticity { ELASTIC_NOT, ELASTIC_BETWEEN, ELASTIC_ALL };

static enum elasticity elasticity_of(const struct spec_part *part)
{
	if (part->mode == SPEC_AUTO || part->mode == SPEC_VIRTUAL) {
		return ELASTIC_ALL;
	}
	if (part->mode != SPEC_FRACTION || part->n_items == 1) {
		return ELASTIC_NOT; /* a fraction alone has all of it, or is refused */
	}
	return part->wildcard == UINT32_MAX ? ELASTIC_BETWEEN : ELASTIC_ALL;
}

/*
 * Those that take what is free come after those that say how much, and fractions that need all of
 * what they name before those that have somewhere for a rest: of more room the ones in front would
 * take what the others need.
 */
static int lay_parts(struct place_work *work, const struct spec *spec, struct place_layout *layouts,
		     uint8_t *devices)
{
	for (int elastic = ELASTIC_NOT; elastic <= ELASTIC_ALL; elastic++) {
		for (uint32_t i = 0; i < spec->n_parts; i++) {
			const struct spec_part *part = &spec->parts[i];
			int code;

			if ((int)elasticity_of(part) != elastic) {
				continue;
			}
			code = layout_make(work, part, &layouts[i]);
			if (code < 0) {
				return code;
			}
			layout_take(work, &layouts[i]);
			layout_write(work->request, part, &layouts[i], devices);
		}
	}
	return 0;
}

static void spread_parts(struct place_work *work, const struct spec *spec,
			 const struct place_layout *layouts, uint8_t *devices)
{
	for (uint32_t i = 0; i < spec->n_parts; i++) {
		const struct spec_part *part = &spec->parts[i];
		bool is_usual = part->mode == SPEC_AUTO || part->mode == SPEC_VIRTUAL;

		if (layouts[i].n_runs < 2 || work->request->strategy == PLAN_CONTIGUOUS ||
		    (work->request->strategy == PLAN_USUAL && !is_usual)) {
			continue;
		}
		work->summary->strategy = PLAN_SPREAD;
		if (!spread_take(work, part, &layouts[i], devices)) {
			layout_write(work->request, part, &layouts[i], devices);
			place_warn(work, PLAN_NOT_SPREAD, part->compute, 0, 0);
			work->summary->strategy = PLAN_CONTIGUOUS;
		}
	}
}

/* What a pass moves, and how long that takes at the least. */
static void count_moves(struct place_work *work, const struct spec_part *part,
			const uint8_t *devices, bool *is_known)
{
	const struct plan_request *request = work->request;
	uint64_t moved[PLAN_MAX_DEVICES] = {0};
	uint32_t host = 0;
	bool has_host = spec_find_host(request, &host);

	for (uint32_t i = 0; i < request->n_blocks; i++) {
		const struct plan_block *block = &request->blocks[i];

		if ((part->components & (1U << block->component)) != 0 &&
		    devices[i] != part->compute) {
			moved[devices[i]] += block->bytes;
		}
	}
	for (uint32_t i = 0; i < request->n_devices; i++) {
		const struct plan_device *device = &request->devices[i];
		uint64_t link = device->link[part->compute];

		if (moved[i] == 0) {
			continue;
		}
		work->summary->moved += moved[i];
		*is_known = *is_known && link > 0;
		work->summary->floor_ns += link > 0 ? place_mul_div(moved[i], 1000000000, link) : 0;
		if (!device->is_host && !request->devices[part->compute].is_host &&
		    (device->peers & (1U << part->compute)) == 0 &&
		    (!has_host || link == 0 || link < request->devices[host].link[part->compute])) {
			place_warn(work, PLAN_SLOW_DONOR, i, moved[i], 0);
		}
	}
}

/* Is the compute device too full to compute? */
static void check_tight(struct place_work *work, uint32_t compute)
{
	const struct plan_device *device = &work->request->devices[compute];
	uint64_t room = UINT64_MAX; /* what nobody uses */
	uint64_t used;

	if (checked_add(place_room(device), device->later, &room)) {
		(void)checked_add(room, device->spare, &room);
	}
	used = device->total > room ? device->total - room : 0;
	used += work->shares[compute].taken;
	if (device->is_host || work->shares[compute].taken == 0 ||
	    used <= device->total - device->total / 10) {
		return;
	}
	place_warn(work, PLAN_TIGHT, compute, used, device->total);
	work->summary->virtual_vram = least_virtual_vram(work->request, compute);
}

/* Does much less leave the compute device than was asked for? */
static void check_virtual(struct place_work *work, const struct spec_part *part,
			  const struct place_layout *layout)
{
	const uint64_t asked = layout->off_limit;
	uint64_t off = 0;

	for (uint32_t i = 0; i < work->request->n_devices; i++) {
		off += i == part->compute ? 0 : work->shares[i].bytes;
	}
	if (asked != PLACE_NO_LIMIT && off < asked - asked / 8 && off < layout->bytes) {
		place_warn(work, PLAN_SHORT_BLOCKS, part->compute, off, asked);
	}
}

static void check_evictions(struct place_work *work)
{
	for (uint32_t i = 0; i < work->request->n_devices; i++) {
		const uint64_t free = work->request->devices[i].free;

		if (work->shares[i].taken > free) {
			place_warn(work, PLAN_EVICTS, i, work->shares[i].taken - free, 0);
		}
	}
}

static void sum_up(struct place_work *work, const struct spec *spec,
		   const struct place_layout *layouts, const uint8_t *devices)
{
	struct plan_summary *summary = work->summary;
	bool is_known = true;

	summary->compute = spec->parts[0].compute;
	for (uint32_t i = 0; i < spec->n_parts; i++) {
		bool is_new = true;

		count_moves(work, &spec->parts[i], devices, &is_known);
		for (uint32_t j = 0; j < i; j++) {
			is_new = is_new && spec->parts[j].compute != spec->parts[i].compute;
		}
		if (is_new) {
			check_tight(work, spec->parts[i].compute);
		}
	}
	if (!is_known) {
		summary->floor_ns = 0;
	}
	for (uint32_t i = PLAN_UNET; i < PLAN_N_COMPONENTS && spec->not_named != 0; i++) {
		if ((spec->not_named & (1U << i)) != 0) {
			place_warn(work, PLAN_NOT_NAMED, spec->parts[spec->n_parts - 1].compute, i,
				   0);
		}
	}
	check_virtual(work, &spec->parts[0], &layouts[0]); /* there are no parts beside it */
	check_evictions(work);
	for (uint32_t i = 0; i < PLAN_MAX_DEVICES; i++) {
		summary->shares[i] = work->shares[i];
	}
}

int plan_check(const struct plan_request *request, struct err *err)
{
	struct spec spec;

	return spec_parse(request, SPEC_ANY_COMPONENT, &spec, err);
}

int plan_make(const struct plan_request *request, uint8_t *ret_devices,
	      struct plan_summary *ret_summary, struct err *err)
{
	struct place_work work = {.request = request, .summary = ret_summary, .err = err};
	struct place_layout layouts[PLAN_N_COMPONENTS] = {{0}};
	struct spec spec;
	uint32_t components = 0;
	int code;

	*ret_summary = (struct plan_summary){.strategy = PLAN_CONTIGUOUS};
	code = check_numbers(request, &components, &ret_summary->bytes, err);
	if (code == 0) {
		code = spec_parse(request, components, &spec, err);
	}
	if (code == 0) {
		code = lay_parts(&work, &spec, layouts, ret_devices);
	}
	if (code == 0) {
		code = check_room(&work, &spec);
	}
	if (code < 0) {
		return code;
	}
	spread_parts(&work, &spec, layouts, ret_devices);
	sum_up(&work, &spec, layouts, ret_devices);
	return 0;
}
