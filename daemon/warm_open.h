/* SPDX-License-Identifier: Apache-2.0 */
/* A model that the daemon opens itself, by its path. Any thread; may block. */
#ifndef DAEMON_WARM_OPEN_H
#define DAEMON_WARM_OPEN_H

struct err;
struct file;

/* All files that 'path' names (base/os/model_path.h), as one source. The caller's. */
int warm_open(const char *path, struct file **ret, struct err *err);

#endif
