/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a fault that NVIDIA's driver reports of a card says of our copies there. Numbers by NVIDIA's
 * "Xid Errors". Pure; any thread.
 */
#ifndef DEVICE_XID_H
#define DEVICE_XID_H

#include <stdint.h>

/* Graver ones later. */
enum xid_class {
	XID_OF_PROGRAM, /* somebody's program was ended for what it did; or nobody knows */
	XID_OF_MEMORY,  /* bytes on the card may be others by now */
	XID_OF_CARD     /* it does not answer, or has to be reset */
};

enum xid_class xid_class_of(uint32_t xid);

#endif
