/* SPDX-License-Identifier: Apache-2.0 */
/* Scripts that make a shell complete what follows "distorchctl"; written to 'out'. */
#ifndef CTL_COMPLETION_H
#define CTL_COMPLETION_H

#include <stdio.h>

void completion_bash(FILE *out);
void completion_zsh(FILE *out);
void completion_fish(FILE *out);

#endif
