/* SPDX-License-Identifier: Apache-2.0 */
/*
 * distorchd-worker: one process a device, begun by the daemon with a socket as descriptor 3.
 * Ends when the daemon closes its end of it, and with the daemon.
 */
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "daemon/device/device.h"
#include "daemon/device/sim.h"
#include "daemon/device/worker.h"

#define WORKER_SOCKET 3
#define EXIT_USAGE    2

static bool is_packet_socket(int fd)
{
	int type = 0;
	socklen_t size = sizeof type;

	return getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &size) == 0 && type == SOCK_SEQPACKET;
}

/* What a terminal or a service manager sends to all at once is the daemon's to act on. */
static void leave_signals_to_the_daemon(void)
{
	static const int signals[] = {SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGPIPE, SIGUSR1, SIGUSR2};

	for (size_t i = 0; i < sizeof signals / sizeof signals[0]; i++) {
		(void)signal(signals[i], SIG_IGN);
	}
}

int main(int argc, char **argv)
{
	char name[16];
	const char *left_open;

	if (argc == 2 && strcmp(argv[1], "--version") == 0) {
		return puts("distorchd-worker " DISTORCH_VERSION) < 0;
	}
	if (argc != 2 || argv[1][0] == '-' || !is_packet_socket(WORKER_SOCKET)) {
		(void)fputs("distorchd-worker is begun by distorchd, one for each device: "
			    "distorchd-worker DEVICE 3<>SOCKET\n",
			    stderr);
		return EXIT_USAGE;
	}
	(void)prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0); /* not needed: the socket says it too */
	(void)snprintf(name, sizeof name, "worker %.8s", argv[1]);
	(void)prctl(PR_SET_NAME, name, 0, 0, 0);
	leave_signals_to_the_daemon();
	device_register(&sim_device_ops);
#ifdef DISTORCH_WITH_CUDA
	device_register(&cuda_device_ops);
#endif
	left_open = worker_sandbox(WORKER_SOCKET, argv[1]);
	if (left_open != NULL) {
		(void)fprintf(stderr, "distorchd-worker %s: cannot give up %s\n", argv[1],
			      left_open);
	}
	return worker_serve(WORKER_SOCKET, argv[1]);
}
