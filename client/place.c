/* SPDX-License-Identifier: Apache-2.0 */
/* Blocks over devices: moving them, planning that, and room on a device. */
#include <limits.h>
#include <stdlib.h>

#include "client/client.h"
#include "client/convert.h"
#include "client/error.h"
#include "client/file.h"
#include "client/options.h"
#include "client/result.h"

/* What place and plan both ask. The strings are the caller's. */
struct wish {
	struct wire_str donors[DONORS_MAX];
	struct distorch_placement given;
	struct wire_list donor_list;
};

static int wish_take(const struct distorch_placement *placement, struct wish *ret)
{
	int rc = options_need("placement", placement);

	if (rc == 0) {
		rc = options_take(placement, sizeof ret->given, &ret->given);
	}
	if (rc == 0 && ret->given.virtual_vram == 0) {
		rc = options_need("placement->allocation", ret->given.allocation);
	}
	if (rc == 0) {
		rc = options_texts("placement->donors", ret->given.donors, ret->given.n_donors,
				   DONORS_MAX, ret->donors, &ret->donor_list);
	}
	return rc;
}

/* The same members in two generated structs. */
#define WISH_ENCODE(wish, body)                                                                 \
	do {                                                                                    \
		(body)->allocation = wire_str(                                                  \
			(wish)->given.allocation != NULL ? (wish)->given.allocation : "");      \
		options_text((wish)->given.compute, &(body)->has_compute, &(body)->compute);    \
		options_text((wish)->given.strategy, &(body)->has_strategy, &(body)->strategy); \
		options_text((wish)->given.granularity, &(body)->has_granularity,               \
			     &(body)->granularity);                                             \
		(body)->has_virtual_vram = (wish)->given.virtual_vram != 0;                     \
		(body)->virtual_vram = (wish)->given.virtual_vram;                              \
		(body)->has_donors = (wish)->given.n_donors > 0;                                \
		(body)->donors = (wish)->donor_list;                                            \
	} while (false)

/* ---- place ---- */

static struct distorch_moved *moved_convert(const struct wire_place_response *from)
{
	struct distorch_moved *moved = result_new(sizeof *moved);
	struct distorch_model *model;

	if (moved == NULL) {
		return NULL;
	}
	model = result_add(moved, sizeof *model);
	moved->model = model;
	moved->moved_bytes = from->has_moved ? from->moved : DISTORCH_ABSENT;
	moved->duration_ms = from->has_duration_ms ? from->duration_ms : DISTORCH_ABSENT;
	if (model == NULL || !convert_model(moved, &from->model, model) ||
	    (from->has_evicted &&
	     !convert_outcomes(moved, from->evicted, &moved->evicted, &moved->n_evicted)) ||
	    (from->has_warnings &&
	     !convert_texts(moved, from->warnings, &moved->warnings, &moved->n_warnings))) {
		result_free(moved);
		return NULL;
	}
	return moved;
}

int distorch_place(struct distorch *c, const char *model,
		   const struct distorch_placement *placement, struct distorch_moved **ret_moved)
{
	struct wish wish = {0};
	char path[PATH_MAX];
	struct wire_place_request body = {0};
	struct wire_place_response response;
	struct request request = {.method = WIRE_METHOD_PLACE, .body = &body, .is_patient = true};
	AUTO_ANSWER struct answer answer = {0};
	struct distorch_moved *moved;
	int rc;

	failure_clear(c);
	rc = options_need("model", model);
	if (rc == 0) {
		rc = wish_take(placement, &wish);
	}
	if (rc == 0) {
		rc = file_model_text(model, path, &body.model);
	}
	if (rc < 0) {
		return rc;
	}
	WISH_ENCODE(&wish, &body);
	request.tag = wish.given.tag;
	request.progress = wish.given.progress;
	request.user = wish.given.user;
	rc = client_call(c, &request, &answer, &response);
	if (rc < 0 || ret_moved == NULL) {
		return rc;
	}
	moved = moved_convert(&response);
	if (moved == NULL) {
		return failure_memory();
	}
	*ret_moved = moved;
	return 0;
}

void distorch_moved_free(struct distorch_moved *moved)
{
	result_free(moved);
}

/* ---- plan ---- */

static struct distorch_plan *plan_convert(const struct wire_plan_response *from)
{
	struct distorch_plan *plan = result_new(sizeof *plan);

	if (plan == NULL) {
		return NULL;
	}
	plan->moved_per_pass = from->moved_per_pass;
	plan->floor_ns = from->has_floor_ns ? from->floor_ns : DISTORCH_ABSENT;
	if (!convert_text(plan, from->has_compute, from->compute, &plan->compute) ||
	    !convert_shares(plan, from->devices, &plan->devices, &plan->n_devices) ||
	    !convert_planned(plan, from->blocks, &plan->blocks, &plan->n_blocks) ||
	    !convert_texts(plan, from->warnings, &plan->warnings, &plan->n_warnings)) {
		result_free(plan);
		return NULL;
	}
	return plan;
}

/* Of the model or the blocks that are in 'body' already. */
static int ask_plan(struct distorch *c, struct wire_plan_request *body,
		    const struct distorch_placement *placement, struct distorch_plan **ret_plan)
{
	struct wish wish = {0};
	struct wire_plan_response response;
	const struct request request = {.method = WIRE_METHOD_PLAN, .body = body};
	AUTO_ANSWER struct answer answer = {0};
	struct distorch_plan *plan;
	int rc = wish_take(placement, &wish);

	if (rc < 0) {
		return rc;
	}
	WISH_ENCODE(&wish, body);
	rc = client_call(c, &request, &answer, &response);
	if (rc < 0 || ret_plan == NULL) {
		return rc;
	}
	plan = plan_convert(&response);
	if (plan == NULL) {
		return failure_memory();
	}
	*ret_plan = plan;
	return 0;
}

int distorch_plan(struct distorch *c, const char *model, const struct distorch_placement *placement,
		  struct distorch_plan **ret_plan)
{
	struct wire_plan_request body = {.has_model = true};
	char path[PATH_MAX];
	int rc;

	failure_clear(c);
	rc = options_need("model", model);
	if (rc == 0) {
		rc = file_model_text(model, path, &body.model);
	}
	return rc < 0 ? rc : ask_plan(c, &body, placement, ret_plan);
}

int distorch_plan_blocks(struct distorch *c, const char *const *names, const uint64_t *bytes,
			 size_t n_blocks, const struct distorch_placement *placement,
			 struct distorch_plan **ret_plan)
{
	struct wire_plan_request body = {.has_blocks = true};
	struct wire_sized_block *blocks;
	int rc;

	failure_clear(c);
	if (n_blocks > WIRE_PLAN_REQUEST_BLOCKS_MAX) {
		return failure_set(DISTORCH_E_TOO_MANY, 0, NULL,
				   "%zu blocks are given; a plan takes at most %d", n_blocks,
				   WIRE_PLAN_REQUEST_BLOCKS_MAX);
	}
	rc = options_need_all("names", names, n_blocks);
	if (rc == 0 && n_blocks > 0) {
		rc = options_need("bytes", bytes);
	}
	if (rc < 0) {
		return rc;
	}
	blocks = calloc(n_blocks + 1, sizeof *blocks);
	if (blocks == NULL) {
		return failure_memory();
	}
	for (size_t i = 0; i < n_blocks; i++) {
		blocks[i] =
			(struct wire_sized_block){.name = wire_str(names[i]), .bytes = bytes[i]};
	}
	body.blocks = (struct wire_list){.count = (uint32_t)n_blocks, .items = blocks};
	rc = ask_plan(c, &body, placement, ret_plan);
	free(blocks);
	return rc;
}

void distorch_plan_free(struct distorch_plan *plan)
{
	result_free(plan);
}

/* ---- room ---- */

static struct distorch_reservation *reservation_convert(const struct wire_reserve_response *from)
{
	struct distorch_reservation *reservation = result_new(sizeof *reservation);

	if (reservation == NULL) {
		return NULL;
	}
	reservation->token = from->token;
	if (from->has_evicted &&
	    !convert_outcomes(reservation, from->evicted, &reservation->evicted,
			      &reservation->n_evicted)) {
		result_free(reservation);
		return NULL;
	}
	return reservation;
}

int distorch_reserve(struct distorch *c, const char *device, uint64_t bytes,
		     const struct distorch_reserve_options *given,
		     struct distorch_reservation **ret_reservation)
{
	struct distorch_reserve_options options = {0};
	struct wire_reserve_request body = {.bytes = bytes};
	struct wire_reserve_response response;
	const struct request request = {.method = WIRE_METHOD_RESERVE,
					.body = &body,
					.is_patient = true};
	AUTO_ANSWER struct answer answer = {0};
	struct distorch_reservation *reservation;
	int rc;

	failure_clear(c);
	rc = options_need("device", device);
	if (rc == 0) {
		rc = options_need("ret_reservation", ret_reservation);
	}
	if (rc == 0) {
		rc = options_take(given, sizeof options, &options);
	}
	if (rc < 0) {
		return rc;
	}
	body.device = wire_str(device);
	body.has_ttl_ms = options.ttl_ms != 0;
	body.ttl_ms = options.ttl_ms;
	body.has_recall_ms = options.recall_ms != 0;
	body.recall_ms = options.recall_ms;
	rc = client_call(c, &request, &answer, &response);
	if (rc < 0) {
		return rc;
	}
	reservation = reservation_convert(&response);
	if (reservation == NULL) {
		(void)distorch_release(c, response.token); /* nobody would know of it */
		return failure_memory();
	}
	*ret_reservation = reservation;
	return 0;
}

int distorch_release(struct distorch *c, uint64_t token)
{
	const struct wire_release_request body = {.token = token};
	const struct request request = {.method = WIRE_METHOD_RELEASE, .body = &body};
	AUTO_ANSWER struct answer answer = {0};

	failure_clear(c);
	return client_call(c, &request, &answer, NULL);
}

void distorch_reservation_free(struct distorch_reservation *reservation)
{
	result_free(reservation);
}
