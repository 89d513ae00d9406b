/* SPDX-License-Identifier: Apache-2.0 */
/* The public header alone, as C99 and (by the same text) C++17 see it. */
#include <distorch.h>
/* Twice: it guards itself. */
#include <distorch.h>

int header_is_alone(const struct distorch_error *error);

int header_is_alone(const struct distorch_error *error)
{
	return error->code == DISTORCH_E_NO_CONNECTION;
}
