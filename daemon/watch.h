/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Notices that a file which serves as it is (backing "file") has become another: by inotify,
 * and by a look before each use. What is noticed becomes EV_CHANGED. Loop only; a look asks the
 * kernel what it has at hand and does not block.
 */
#ifndef DAEMON_WATCH_H
#define DAEMON_WATCH_H

#include <stdbool.h>
#include <stdint.h>

struct daemon;
struct watch;

/* NULL: no memory. Without inotify files are only looked at before each use. */
struct watch *watch_new(struct daemon *daemon);
void watch_stop(struct watch *watch); /* before the loop's last turn; NULL is fine */
struct watch *watch_free(struct watch *watch);

/* From now on, and looked at once more soon: those copies of the generation that are no images.
 * False: the kernel will not tell of changes of one of them. */
bool watch_add(struct daemon *daemon, uint64_t model, uint64_t generation);
void watch_remove(struct daemon *daemon, uint64_t segment); /* an unknown one is fine */

/* Look at what the model lies in now. Steps. */
void watch_check(struct daemon *daemon, uint64_t model);

#endif
