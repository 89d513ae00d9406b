/* SPDX-License-Identifier: Apache-2.0 */
/* Actions of the core are carried out, results of the loader become events. Loop only. */
#ifndef DAEMON_EXECUTE_H
#define DAEMON_EXECUTE_H

#include <stdint.h>

struct core_action;
struct daemon;
struct load_result;

void execute(struct daemon *daemon, const struct core_action *action);
/* Of a copy that the core gave up and that nobody holds any more (store_unhold_extent). */
void execute_drop_now(struct daemon *daemon, uint64_t segment);
/* One result of the loader: becomes an event. Takes the result. */
void execute_result(struct daemon *daemon, struct load_result *result);
/* A fill is over and what it brought is parked, or will not be. */
void execute_filled(struct daemon *daemon, uint64_t segment, int code, uint64_t duration_ns);
/* Likewise the table of a generation, where that is made apart. */
void execute_tabled(struct daemon *daemon, uint64_t job, int code);

#endif
