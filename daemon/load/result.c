/* SPDX-License-Identifier: Apache-2.0 */
/* What came of a submission, also when there was no memory for it. See result.h. */
#include "daemon/load/result.h"

#include "base/list.h"

#include <pthread.h>
#include <stdlib.h>
#include <unistd.h>

#include "daemon/load/thread.h"

#define MAX_SPARES 256 /* under way at once */

/*
 * Every submission is answered, also when there is no memory for an answer. Not in a loader:
 * a result may outlive it. When all are under way the rest waits in the ring; the watch posts
 * them as they come back.
 */
static struct load_result spares[MAX_SPARES];
static bool spare_is_used[MAX_SPARES];
static pthread_mutex_t spares_lock = PTHREAD_MUTEX_INITIALIZER;

struct load_result *result_take_spare(void)
{
	uint32_t i = 0;

	thread_lock(&spares_lock);
	while (i < MAX_SPARES && spare_is_used[i]) {
		i++;
	}
	if (i < MAX_SPARES) {
		spare_is_used[i] = true;
	}
	thread_unlock(&spares_lock);
	if (i == MAX_SPARES) {
		return NULL;
	}
	spares[i] = (struct load_result){.is_spare = true};
	return &spares[i];
}

static void give_spare_back(const struct load_result *result)
{
	thread_lock(&spares_lock);
	spare_is_used[result - spares] = false;
	thread_unlock(&spares_lock);
}

struct load_result *load_result_from_mail(struct mail *mail)
{
	return container_of(mail, struct load_result, mail);
}

struct load_result *load_result_free(struct load_result *result)
{
	if (result == NULL) {
		return NULL;
	}
	tensor_map_free(result->map);
	(void)device_release(result->extent, NULL); /* nobody is left who could be told */
	if (result->table_fd >= 0) {
		(void)close(result->table_fd); /* a small memfd */
	}
	free(result->sums);
	if (result->is_spare) {
		give_spare_back(result);
	} else {
		free(result); /* NOLINT(clang-analyzer-unix.Malloc): no spare */
	}
	return NULL;
}
