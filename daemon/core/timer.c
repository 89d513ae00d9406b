/* SPDX-License-Identifier: Apache-2.0 */
/* Moments, the soonest first: a binary heap of pointers, each timer knows its place. */
#include "base/require.h"

#include "daemon/core/state.h"

static void put(struct timers *timers, uint32_t place, struct timer *timer)
{
	timers->heap[place] = timer;
	timer->place = place;
}

static void rise(struct timers *timers, struct timer *timer)
{
	uint32_t place = timer->place;

	while (place > 0 && timers->heap[(place - 1) / 2]->at_ns > timer->at_ns) {
		put(timers, place, timers->heap[(place - 1) / 2]);
		place = (place - 1) / 2;
	}
	put(timers, place, timer);
}

static void sink(struct timers *timers, struct timer *timer)
{
	uint32_t place = timer->place;
	uint32_t child = 2 * place + 1;

	while (child < timers->n_timers) {
		if (child + 1 < timers->n_timers &&
		    timers->heap[child + 1]->at_ns < timers->heap[child]->at_ns) {
			child++;
		}
		if (timers->heap[child]->at_ns >= timer->at_ns) {
			break;
		}
		put(timers, place, timers->heap[child]);
		place = child;
		child = 2 * place + 1;
	}
	put(timers, place, timer);
}

static void stop(struct timers *timers, const struct timer *timer)
{
	struct timer *last = timers->heap[--timers->n_timers];

	if (last != timer) {
		put(timers, timer->place, last);
		rise(timers, last);
		sink(timers, last);
	}
}

void timer_set(struct timers *timers, struct timer *timer, uint64_t at_ns)
{
	uint64_t was_ns = timer->at_ns;

	timer->at_ns = at_ns;
	if (was_ns == at_ns) {
		return;
	}
	if (at_ns == NEVER) {
		stop(timers, timer);
		return;
	}
	if (was_ns == NEVER) {
		REQUIRE(timers->n_timers < timers->capacity);
		put(timers, timers->n_timers++, timer);
	}
	rise(timers, timer);
	sink(timers, timer);
}

struct timer *timer_first(const struct timers *timers)
{
	return timers->n_timers == 0 ? NULL : timers->heap[0];
}

uint64_t timer_deadline(const struct timers *timers)
{
	return timers->n_timers == 0 ? NEVER : timers->heap[0]->at_ns;
}
