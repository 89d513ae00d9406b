/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the loader is given to make the copies of a generation: its images, what is there already
 * of the same content, and the devices. A part of execute.c. Loop only.
 */
#ifndef DAEMON_FILL_H
#define DAEMON_FILL_H

#include <stdint.h>

struct core_action;
struct daemon;
struct file;
struct job_info;

/* The open source that the core means. */
struct file *fill_source(const struct daemon *daemon, uint64_t id);
/* Of the action, made where it is new; NULL: no memory. */
struct job_info *fill_job(struct daemon *daemon, const struct core_action *action);

void fill_copy(struct daemon *daemon, const struct core_action *action);
void fill_make_table(struct daemon *daemon, const struct core_action *action);
/* None of its fills is under way: what they could read may go. NULL is fine. */
void fill_end(struct daemon *daemon, struct job_info *job);

#endif
