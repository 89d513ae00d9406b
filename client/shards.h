/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a path names, opened to be presented to the daemon: a file, or all files of a model with
 * their index. More than one packet takes follow by load.part. Any thread.
 */
#ifndef CLIENT_SHARDS_H
#define CLIENT_SHARDS_H

#include "client/file.h"
#include "proto/gen/wire_gen.h"

struct model_files;

struct source {
	struct file file;  /* the only one, or the index; n_fds 0: there is none */
	uint32_t n_shards; /* 0: a single file */
	uint32_t n_sent;
	struct file *shards;       /* owned */
	struct model_files *files; /* owned; their names */
	struct wire_str *names;    /* owned; borrow from 'files' */
	bool is_direct;            /* two descriptors a file */
	char *called;              /* owned; what people call the model; NULL: a single file */
};

/* Open all that 'path' names; fills the thread's error. */
int source_open(const char *path, struct source *ret);
/* The one file at 'path'. */
int source_open_single(const char *path, struct source *ret);
/* One file, whose descriptor stays the caller's. */
int source_borrow(int fd, struct source *ret);

void source_close(struct source *source);
#define AUTO_SOURCE __attribute__((cleanup(source_close)))

/* Descriptors for the first packet, with that of the index where 'with_index'; returns how many. */
uint32_t source_begin(struct source *source, bool with_index, int fds[WIRE_FDS_PER_PACKET]);
/* Likewise of the files that were not sent yet, one at least, and their names. */
uint32_t source_go_on(struct source *source, int fds[WIRE_FDS_PER_PACKET],
		      struct wire_list *ret_names);

#endif
