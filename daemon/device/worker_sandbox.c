/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a worker may not do. See worker.h. A list of what is refused rather than of what is
 * allowed: the driver of a card calls what it likes, and a C library tomorrow what it does not
 * today; what is refused here no backend has any use for.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "daemon/device/worker.h"

#if defined(__x86_64__)
#	define OUR_ARCH   AUDIT_ARCH_X86_64
#	define FOREIGN_NR 0x40000000U /* x32 */
#elif defined(__aarch64__)
#	define OUR_ARCH   AUDIT_ARCH_AARCH64
#	define FOREIGN_NR 0x80000000U
#endif

#ifdef OUR_ARCH

/* Refused with EPERM to every worker. */
static const uint16_t refused[] = {
	SYS_execve,
	SYS_execveat,
	SYS_ptrace,
	SYS_process_vm_readv,
	SYS_process_vm_writev,
	SYS_mount,
	SYS_umount2,
	SYS_pivot_root,
	SYS_chroot,
	SYS_setns,
	SYS_unshare,
	SYS_bpf,
	SYS_perf_event_open,
	SYS_keyctl,
	SYS_add_key,
	SYS_request_key,
	SYS_init_module,
	SYS_finit_module,
	SYS_delete_module,
	SYS_kexec_load,
	SYS_open_by_handle_at,
	SYS_userfaultfd,
	SYS_reboot,
	SYS_swapon,
	SYS_swapoff,
	SYS_settimeofday,
	SYS_clock_settime,
	SYS_kill, /* of signals tgkill is left, which the C library uses, for this process */
	SYS_tkill,
	SYS_rt_sigqueueinfo,
	SYS_rt_tgsigqueueinfo,
	424 /* pidfd_send_signal */,
	425 /* io_uring_setup */,
	434 /* pidfd_open */,
	438 /* pidfd_getfd */,
#	ifdef SYS_fork
	SYS_fork,
	SYS_vfork,
#	endif
};

/* And to those that drive no card: NVIDIA's driver makes and binds a socket at its start. */
static const uint16_t refused_without_card[] = {
	SYS_bind,    SYS_listen,   SYS_accept,   SYS_accept4,   SYS_socket,   SYS_socketpair,
	SYS_connect, SYS_unlinkat, SYS_mkdirat,  SYS_renameat2, SYS_linkat,   SYS_symlinkat,
	SYS_mknodat, SYS_fchmodat, SYS_fchownat, SYS_truncate,  SYS_setxattr,
#	ifdef SYS_open
	SYS_open,    SYS_creat,    SYS_unlink,   SYS_rename,    SYS_mkdir,    SYS_rmdir,
	SYS_link,    SYS_symlink,  SYS_mknod,    SYS_chmod,     SYS_chown,
#	endif
};

#	define N_REFUSED      (sizeof refused / sizeof refused[0])
#	define N_REFUSED_MORE (sizeof refused_without_card / sizeof refused_without_card[0])
#	define MAX_STEPS      (2 * (N_REFUSED + N_REFUSED_MORE) + 32)

struct program {
	struct sock_filter steps[MAX_STEPS];
	uint16_t n_steps;
};

static void add(struct program *program, struct sock_filter step)
{
	program->steps[program->n_steps++] = step;
}

static void load(struct program *program, size_t offset)
{
	add(program, (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, (uint32_t)offset));
}

static void answer(struct program *program, uint32_t what)
{
	add(program, (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, what));
}

/* The next step only if the word that was loaded compares so. */
static void only_if(struct program *program, uint16_t comparison, uint32_t value)
{
	add(program, (struct sock_filter)BPF_JUMP(BPF_JMP | comparison | BPF_K, value, 0, 1));
}

static void refuse_all(struct program *program, const uint16_t *numbers, size_t n_numbers)
{
	for (size_t i = 0; i < n_numbers; i++) {
		only_if(program, BPF_JEQ, numbers[i]);
		answer(program, SECCOMP_RET_ERRNO | EPERM);
	}
}

/* Where the low half of an argument is. */
static size_t argument(unsigned n)
{
	return offsetof(struct seccomp_data, args) + n * sizeof(uint64_t);
}

static void build(struct program *program, bool has_card)
{
	const uint32_t writing = O_WRONLY | O_RDWR | O_CREAT | O_TRUNC;

	load(program, offsetof(struct seccomp_data, arch));
	add(program, (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, OUR_ARCH, 1, 0));
	answer(program, SECCOMP_RET_KILL_PROCESS);
	load(program, offsetof(struct seccomp_data, nr));
	only_if(program, BPF_JGE, FOREIGN_NR);
	answer(program, SECCOMP_RET_KILL_PROCESS);
	refuse_all(program, refused, N_REFUSED);
	if (!has_card) {
		refuse_all(program, refused_without_card, N_REFUSED_MORE);
		/* Files are opened for reading; there is no way to look into clone3 and openat2. */
		add(program,
		    (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_openat, 0, 4));
		load(program, argument(2));
		only_if(program, BPF_JSET, writing);
		answer(program, SECCOMP_RET_ERRNO | EACCES);
		answer(program, SECCOMP_RET_ALLOW);
		only_if(program, BPF_JEQ, 437 /* openat2 */);
		answer(program, SECCOMP_RET_ERRNO | ENOSYS);
	}
	only_if(program, BPF_JEQ, 435 /* clone3: the C library takes clone then */);
	answer(program, SECCOMP_RET_ERRNO | ENOSYS);
	add(program, (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_tgkill, 0, 4));
	load(program, argument(0));
	only_if(program, BPF_JEQ, (uint32_t)getpid());
	answer(program, SECCOMP_RET_ALLOW);
	answer(program, SECCOMP_RET_ERRNO | EPERM);
	/* Threads, no processes. */
	add(program, (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_clone, 0, 3));
	load(program, argument(0));
	add(program, (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, CLONE_THREAD, 1, 0));
	answer(program, SECCOMP_RET_ERRNO | EPERM);
	answer(program, SECCOMP_RET_ALLOW);
}

static bool filter_calls(bool has_card)
{
	struct program program = {.n_steps = 0};
	struct sock_fprog filter = {.filter = program.steps};

	build(&program, has_card);
	filter.len = program.n_steps;
	return prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter) == 0;
}

#else

static bool filter_calls(bool has_card)
{
	(void)has_card;
	return false; /* no table of numbers for this machine */
}

#endif

static bool drop_capabilities(void)
{
	struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
	const struct __user_cap_data_struct none[2] = {{0}, {0}};
	struct __user_cap_data_struct has[2];

	(void)prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0);
	(void)syscall(SYS_capset, &header, none); /* a service's filter may refuse it */
	return syscall(SYS_capget, &header, has) == 0 && memcmp(has, none, sizeof has) == 0;
}

/*
 * The daemon is of the same user: without this its descriptors and memory could be had by /proc. A
 * domain of Landlock may look into no process outside, whatever it is made for; this one is made for
 * nothing but new block devices. A kernel that has none, or a filter that refuses it, is as it was.
 */
static void enter_domain(void)
{
	const uint64_t made_for = 0x800; /* LANDLOCK_ACCESS_FS_MAKE_BLOCK: of the first version */
	const long ruleset =
		syscall(444 /* landlock_create_ruleset */, &made_for, sizeof made_for, 0);

	if (ruleset >= 0) {
		(void)syscall(446 /* landlock_restrict_self */, ruleset, 0);
		(void)close((int)ruleset);
	}
}

static void limit_resources(void)
{
	const struct rlimit no_core = {0};
	struct rlimit files;

	(void)setrlimit(RLIMIT_CORE, &no_core); /* it would hold the weights */
	if (getrlimit(RLIMIT_NOFILE, &files) == 0) {
		files.rlim_cur = files.rlim_max; /* a descriptor each extent */
		(void)setrlimit(RLIMIT_NOFILE, &files);
	}
}

const char *worker_sandbox(int socket, const char *name)
{
	const bool has_card = strncmp(name, "sim", 3) != 0;

	(void)syscall(SYS_close_range, (unsigned)socket + 1, ~0U, 0); /* none, it is hoped */
	limit_resources();
	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0) {
		return "new privileges";
	}
	enter_domain();
	if (!drop_capabilities()) {
		return "capabilities";
	}
	return filter_calls(has_card) ? NULL : "system calls";
}
