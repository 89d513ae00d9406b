/* SPDX-License-Identifier: Apache-2.0 */
/* Numbers of the long options, and the rows that several verbs share. */
#ifndef CTL_OPTIONS_H
#define CTL_OPTIONS_H

#include "ctl.h"

enum option_number {
	OPTION_FIRST_FLAG = 0x100,
	OPTION_PIN = OPTION_FIRST_FLAG,
	OPTION_KEEP,
	OPTION_NO_WAIT,
	OPTION_ALL,
	OPTION_NOT_KEPT,
	OPTION_MINE,
	OPTION_FORCE,
	OPTION_TENSORS,
	OPTION_CLIENTS,
	OPTION_SAVE,
	OPTION_OFF,
	OPTION_FIRST_TEXT = 0x200,
	OPTION_TO = OPTION_FIRST_TEXT,
	OPTION_COMPUTE,
	OPTION_FORMAT,
	OPTION_BACKING,
	OPTION_DEVICE,
	OPTION_UNDER,
	OPTION_TYPE,
	OPTION_DEVICES,
	OPTION_VIRTUAL_VRAM,
	OPTION_DONORS,
	OPTION_STRATEGY,
	OPTION_GRANULARITY,
	OPTION_FIRST_OTHER = 0x300,
	OPTION_FOR,
	OPTION_IDLE,
	OPTION_SINCE,
	OPTION_RECALL,
	OPTION_PRIORITY,
	OPTION_JSON,
	OPTION_NO_COLOR,
	OPTION_NO_PAGER,
	OPTION_NO_INPUT,
	OPTION_TIMEOUT,
	OPTION_SI,
};

#define OPTIONS_END                       \
	{                                 \
		NULL, 0, NULL, 0, NULL, 0 \
	}

/* The options of every verb, and those that argp adds; both end like every list of options. */
extern const struct argp_option ctl_global_options[], ctl_built_in_options[];
/* Refuse what argp would refuse without JSON, and the abbreviations that it would take. Returns an
 * exit status. */
int flags_check(struct ctl *ctl, const struct verb *verb, int argc, char **argv);
bool option_is_end(const struct argp_option *option);

#endif
