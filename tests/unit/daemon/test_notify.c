/* SPDX-License-Identifier: Apache-2.0 */
/* What is said to the service manager, and when it has been taken in. */
#include "base/os/sys.h"
#include "tests/support/unit.h"

#include <errno.h>
#include <stddef.h>
#include <stdio.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "daemon/notify.h"

#define N_WAITING 600 /* more than a socket takes that nobody reads */

struct scene {
	uv_loop_t loop;
	int manager;
	struct notify *notify;
	uint32_t n_done, n_taken;
};

static void on_done(void *context, bool is_taken)
{
	struct scene *scene = context;

	scene->n_done++;
	scene->n_taken += is_taken ? 1 : 0;
}

static void turn(struct scene *scene)
{
	for (int i = 0; i < 3; i++) {
		(void)uv_run(&scene->loop, UV_RUN_NOWAIT);
	}
}

static int set_up(void **state)
{
	static struct scene scene;
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	socklen_t size = sizeof address;
	char path[sizeof address.sun_path + 1];

	scene = (struct scene){.manager = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0)};
	assert_int_equal(uv_loop_init(&scene.loop), 0);
	/* The kernel chooses an abstract name. */
	assert_int_equal(bind(scene.manager, (const struct sockaddr *)&address,
			      sizeof address.sun_family),
			 0);
	assert_int_equal(getsockname(scene.manager, (struct sockaddr *)&address, &size), 0);
	(void)snprintf(path, sizeof path, "@%.*s",
		       (int)(size - offsetof(struct sockaddr_un, sun_path) - 1),
		       address.sun_path + 1);
	scene.notify = notify_new(&scene.loop, path, NULL);
	assert_true(notify_is_heard(scene.notify));
	*state = &scene;
	return 0;
}

static int tear_down(void **state)
{
	struct scene *scene = *state;

	sys_fault_clear();
	(void)notify_free(scene->notify);
	(void)uv_run(&scene->loop, UV_RUN_DEFAULT);
	assert_int_equal(uv_loop_close(&scene->loop), 0);
	assert_int_equal(close(scene->manager), 0);
	return 0;
}

static void a_barrier_is_taken_when_all_before_it_is_read(void **state)
{
	struct scene *scene = *state;
	char byte;

	for (int i = 0; i < N_WAITING; i++) {
		notify_say(scene->notify, "STATUS=x");
	}
	notify_barrier(scene->notify, 0, on_done, scene);
	turn(scene);
	assert_int_equal(scene->n_done, 0);
	while (scene->n_done == 0) { /* its descriptor is dropped by a recv without room for it */
		(void)recv(scene->manager, &byte, 1, MSG_DONTWAIT);
		turn(scene);
	}
	assert_int_equal(scene->n_taken, 1);
}

static void a_barrier_that_cannot_be_sent_is_not_taken(void **state)
{
	struct scene *scene = *state;

	for (int i = 0; i < N_WAITING; i++) {
		notify_say(scene->notify, "STATUS=x");
	}
	/* Its message is the second thing that takes memory. */
	assert_true(sys_fault_set("malloc", (struct sys_fault){.nth = 2, .error = ENOMEM}));
	notify_barrier(scene->notify, 0, on_done, scene);
	assert_int_equal(sys_fault_n_hits("malloc"), 1);
	turn(scene);
	assert_int_equal(scene->n_done, 1);
	assert_int_equal(scene->n_taken, 0);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(a_barrier_is_taken_when_all_before_it_is_read),
		TEST(a_barrier_that_cannot_be_sent_is_not_taken),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
