/* SPDX-License-Identifier: Apache-2.0 */
/* See parts.h. */
#include "tests/gpu/parts.h"

#include "base/err.h"
#include "base/os/memfd.h"

#include <dlfcn.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#define PATIENCE 180

const struct cuda_calls *cuda;
bool is_stand_in;

void say(const char *question, const char *format, ...)
{
	va_list arguments;

	(void)printf("%s%-72s ", is_stand_in ? "[stand-in] " : "", question);
	va_start(arguments, format);
	(void)vprintf(format, arguments);
	va_end(arguments);
	(void)putchar('\n');
	(void)fflush(stdout);
}

void refused(const char *question, CUresult result, const char *where)
{
	const char *name = NULL;

	(void)cuda->cuGetErrorName(result, &name);
	say(question, "refused (%d %s, %s)", (int)result, name == NULL ? "" : name, where);
}

void refused_by_us(const char *question, const struct err *err)
{
	say(question, "refused (%d; %s)", err->driver, err->text);
}

void open_driver(void)
{
	struct err err = {0};
	void *library;

	cuda = cuda_load(&err);
	if (cuda == NULL) {
		(void)printf("%s\n", err.text);
		exit(77);
	}
	library = dlopen("libcuda.so.1", RTLD_NOW);
	is_stand_in = library != NULL && dlsym(library, "fakecuda_n_objects") != NULL;
}

struct device *open_card(const char *question)
{
	struct device *device = NULL;
	struct err err = {0};

	open_driver();
	if (device_open("cuda", "cuda:0", &device, &err) < 0) {
		refused_by_us(question, &err);
		exit(0);
	}
	return device;
}

static uint8_t pattern(uint64_t i)
{
	return (uint8_t)((i * 2654435761U) >> 13 ^ (i >> 12) * 7);
}

int make_source(uint64_t bytes, bool is_huge)
{
	void *mapping = NULL;
	uint8_t *memory;
	int fd = -1;

	if (memfd_create_sized("gpu-check", bytes, &fd, NULL) < 0 ||
	    memfd_map(fd, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, &mapping, NULL) < 0) {
		return -1;
	}
	if (is_huge) {
		(void)memfd_take_huge(mapping, bytes);
	}
	memory = mapping;
	for (uint64_t i = 0; i < bytes; i++) {
		memory[i] = pattern(i);
	}
	memfd_unmap(mapping, bytes);
	return memfd_seal(fd, NULL) == 0 ? fd : -1;
}

int fill_all(struct extent *extent, int fd, struct err *err)
{
	struct device_source source = {.fd = fd, .bytes = extent->bytes};
	int code = 0;

	while (code == 0 && source.bytes > 0) {
		uint64_t n_bytes = 0;

		code = device_fill(extent, source.offset, &source, &n_bytes, err);
		source.offset += n_bytes;
		source.bytes -= n_bytes;
	}
	return code == 0 ? device_seal(extent, err) : code;
}

bool is_pattern(const struct extent *extent, struct err *err)
{
	uint8_t *bytes = malloc(extent->bytes);
	bool is_right = bytes != NULL && device_read(extent, 0, bytes, extent->bytes, err) == 0;

	for (uint64_t i = 0; is_right && i < extent->bytes; i++) {
		is_right = bytes[i] == pattern(i);
	}
	free(bytes);
	return is_right;
}

bool send_fd(int socket, int fd)
{
	char control[CMSG_SPACE(sizeof(int))] = {0};
	char byte = 'x';
	struct iovec part = {.iov_base = &byte, .iov_len = 1};
	struct msghdr message = {.msg_iov = &part,
				 .msg_iovlen = 1,
				 .msg_control = control,
				 .msg_controllen = sizeof control};
	struct cmsghdr *header = CMSG_FIRSTHDR(&message);

	header->cmsg_level = SOL_SOCKET;
	header->cmsg_type = SCM_RIGHTS;
	header->cmsg_len = CMSG_LEN(sizeof fd);
	memcpy(CMSG_DATA(header), &fd, sizeof fd);
	return sendmsg(socket, &message, 0) == 1;
}

int receive_fd(int socket)
{
	char control[CMSG_SPACE(sizeof(int))];
	char byte;
	struct iovec part = {.iov_base = &byte, .iov_len = 1};
	struct msghdr message = {.msg_iov = &part,
				 .msg_iovlen = 1,
				 .msg_control = control,
				 .msg_controllen = sizeof control};
	int fd = -1;

	if (recvmsg(socket, &message, 0) == 1 && CMSG_FIRSTHDR(&message) != NULL) {
		memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof fd);
	}
	return fd;
}

pid_t begin(const char *word, int fd, int *ret_socket)
{
	int ends[2] = {-1, -1};
	pid_t child;

	if (ret_socket != NULL && socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) != 0) {
		return -1;
	}
	child = fork();
	if (child == 0) {
		char number[16];
		const int passed = ret_socket != NULL ? dup(ends[1]) : fd < 0 ? -1 : dup(fd);

		(void)snprintf(number, sizeof number, "%d", passed);
		(void)alarm(PATIENCE);
		(void)execl("/proc/self/exe", "gpu_check", word, number, NULL);
		_exit(2);
	}
	if (ret_socket != NULL) {
		(void)close(ends[1]);
		*ret_socket = ends[0];
	}
	return child;
}

int end(pid_t child, int signal_number)
{
	int status = -1;

	if (signal_number != 0) {
		(void)kill(child, signal_number);
	}
	return waitpid(child, &status, 0) == child ? status : -1;
}
