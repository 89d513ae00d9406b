/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The other end of remote.h: serves one device to the daemon, by as many threads as there are
 * requests at once. Of distorchd-worker and of tests.
 */
#ifndef DEVICE_WORKER_H
#define DEVICE_WORKER_H

/*
 * 'name' is a device ("sim:0") or, to be probed, a backend ("cuda"). Returns, with the exit code
 * of the process, only when there is no thread to be had; else the process ends when the daemon
 * closes its end (0) or the device is lost (1).
 *
 * Testing builds, worker.test, for simulated devices:
 *   CALL:N:CODE[:ever]  the N-th CALL (info, alloc, fill, ...) from now on fails; CODE is a word
 *                       of the protocol, or hang
 *   foreign:BYTES       taken by others         corrupt:EXTENT:OFFSET  of a sealed one
 *   clear               no faults any more      abort                  as a fault of a driver's
 */
int worker_serve(int socket, const char *name);

/*
 * Keep this process from what it has no need of: descriptors but 'socket' and the standard
 * streams, privileges, other processes, networks, programs and, for what is no card, files.
 * Returns what could not be done, for people, or NULL.
 */
const char *worker_sandbox(int socket, const char *name);

#endif
