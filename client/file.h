/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A model's file as it is presented to the daemon: opened privately by us and sent as
 * descriptors, never as a path. Any thread.
 */
#ifndef CLIENT_FILE_H
#define CLIENT_FILE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "proto/gen/wire_gen.h"

/* Descriptors of one file: the plain one, and one with O_DIRECT where that works. */
struct file {
	int fds[2];
	uint32_t n_fds;
	bool is_borrowed; /* fds[0] is the caller's */
};

/* Open the regular file at 'path' for reading; fills the thread's error. */
int file_open(const char *path, struct file *ret);

/* Present a descriptor that stays the caller's. */
int file_borrow(int fd, struct file *ret);

void file_close(struct file *file);

/* Does what may be a path name a file, or the files of a model? */
bool file_exists(const char *text);

/*
 * What people type for a model: where it is the path of a file, its absolute, resolved form
 * goes to 'buffer' (PATH_MAX bytes), as the daemon knows it; else 'text' itself. A model of several
 * files has the path of its index, or of the first of them. Without a slash it is a name, whatever files
 * are here. What is not UTF-8 is refused; fills the thread's error.
 */
int file_model_text(const char *text, char *buffer, struct wire_str *ret);

/* The same for what is a name in any case. */
int file_name_text(const char *text, struct wire_str *ret);

/* The same for a folder: resolved where it exists, slash or not. */
int file_folder_text(const char *text, char *buffer, struct wire_str *ret);

#endif
