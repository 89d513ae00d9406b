/* SPDX-License-Identifier: Apache-2.0 */
/* What the questions to a card are made of: answers, known bytes, and other processes. */
#ifndef TESTS_GPU_PARTS_H
#define TESTS_GPU_PARTS_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "daemon/device/cuda_dl.h"
#include "daemon/device/device.h"

#define MIB  (1ULL << 20)
#define SIZE (64 * MIB)

extern const struct cuda_calls *cuda; /* after open_driver */
extern bool is_stand_in;

/* One line; a stand-in's are marked. */
void say(const char *question, const char *format, ...) __attribute__((format(printf, 2, 3)));
void refused(const char *question, CUresult result, const char *where);
void refused_by_us(const char *question, const struct err *err);

/* Ends the process with 77, or with the answer given, where it cannot. */
void open_driver(void);
struct device *open_card(const char *question);

/* A sealed memfd of known bytes, in pages of 2 MiB where that is wanted and the kernel gives them,
 * an extent of them, and whether it still has them. */
int make_source(uint64_t bytes, bool is_huge);
int fill_all(struct extent *extent, int fd, struct err *err);
bool is_pattern(const struct extent *extent, struct err *err);

bool send_fd(int socket, int fd);
int receive_fd(int socket);

/* This program again, with a word, and one more descriptor: a driver does not outlive a fork. Its
 * end of a socket is 'ret_socket'; NULL: 'fd' is what it gets. */
pid_t begin(const char *word, int fd, int *ret_socket);
int end(pid_t child, int signal_number); /* 0: when it wants to; returns its status */

/* memory.c */
int ask_registering(int none);
int ask_registering_huge(int none);
int ask_pinning(int none);
int ask_reading(int none);

#endif
