/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The end at a bus error. The daemon maps only memory of its own whose size stays, never a file
 * of somebody else; what is left is memory that fails, and then nothing read from it is true.
 */
#ifndef BASE_OS_CRASH_H
#define BASE_OS_CRASH_H

/* From now on SIGBUS writes one line to standard error, naming what the thread notes, and aborts
 * the process. Threads have to leave SIGBUS unblocked for that. */
void crash_watch(void);

/* What this thread works on; NULL: nothing to name. Borrowed until the next note. */
void crash_note(const char *what);

#endif
