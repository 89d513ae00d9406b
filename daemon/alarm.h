/* SPDX-License-Identifier: Apache-2.0 */
/* What wakes the loop when the core's next deadline has come, also one that a sleep of the
 * machine has passed. Loop only. */
#ifndef DAEMON_ALARM_H
#define DAEMON_ALARM_H

struct daemon;
struct err;

int alarm_init(struct daemon *daemon, struct err *err);
void alarm_set(struct daemon *daemon);  /* to daemon::deadline_ns; at rest nothing wakes us */
void alarm_fini(struct daemon *daemon); /* after the loop; daemon::alarm may be -1 */

#endif
