/* SPDX-License-Identifier: Apache-2.0 */
/*
 * From decoded wire structs, which borrow from a packet, to public structures, which own
 * what they point to through their result. Each returns false only without memory. Pure
 * but for memory; any thread.
 */
#ifndef CLIENT_CONVERT_H
#define CLIENT_CONVERT_H

#include <stdbool.h>

#include "client/include/distorch.h"
#include "proto/gen/wire_gen.h"

/* A string; NULL where it is not there. */
bool convert_text(void *result, bool is_there, struct wire_str from, const char **ret);

/* Lists of strings and of numbers. */
bool convert_texts(void *result, struct wire_list from, const char *const **ret, size_t *ret_n);
bool convert_numbers(void *result, struct wire_list from, const uint64_t **ret, size_t *ret_n);

/* One structure, filled in place; its parts go to 'result'. */
bool convert_model(void *result, const struct wire_model *from, struct distorch_model *ret);
bool convert_record(void *result, const struct wire_record *from, struct distorch_record *ret);

/* Lists of structures. */
bool convert_holders(void *result, struct wire_list from, const struct distorch_holder *const **ret,
		     size_t *ret_n);
bool convert_models(void *result, struct wire_list from, const struct distorch_model *const **ret,
		    size_t *ret_n);
bool convert_outcomes(void *result, struct wire_list from,
		      const struct distorch_outcome *const **ret, size_t *ret_n);
bool convert_devices(void *result, struct wire_list from, const struct distorch_device *const **ret,
		     size_t *ret_n);
bool convert_clients(void *result, struct wire_list from, const struct distorch_client *const **ret,
		     size_t *ret_n);
bool convert_records(void *result, struct wire_list from, const struct distorch_record *const **ret,
		     size_t *ret_n);
bool convert_settings(void *result, struct wire_list from,
		      const struct distorch_setting *const **ret, size_t *ret_n);
bool convert_checks(void *result, struct wire_list from, const struct distorch_check *const **ret,
		    size_t *ret_n);
bool convert_warm(void *result, struct wire_list from,
		  const struct distorch_warm_entry *const **ret, size_t *ret_n);
bool convert_parked(void *result, struct wire_list from, const struct distorch_parked *const **ret,
		    size_t *ret_n);
bool convert_shards(void *result, struct wire_list from, const struct distorch_shard *const **ret,
		    size_t *ret_n);
bool convert_shares(void *result, struct wire_list from, const struct distorch_share *const **ret,
		    size_t *ret_n);
bool convert_planned(void *result, struct wire_list from,
		     const struct distorch_planned_block *const **ret, size_t *ret_n);
bool convert_wishes(void *result, struct wire_list from, const struct distorch_wish *const **ret,
		    size_t *ret_n);

#endif
