/* SPDX-License-Identifier: Apache-2.0 */
/*
 * An image of which only parts were filled has holes, and whoever maps it and reads those takes
 * memory for them that stays as long as the image; no seal forbids it. So it is looked at before
 * whatever counts on what is charged: requests, results, the end of a client. Loop only.
 */
#ifndef DAEMON_HOLES_H
#define DAEMON_HOLES_H

struct daemon;

/* What is there beyond the charge becomes EV_GROWN. Not during a step; does not block. */
void holes_look(struct daemon *daemon);

#endif
