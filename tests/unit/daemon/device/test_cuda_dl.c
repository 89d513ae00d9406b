/* SPDX-License-Identifier: Apache-2.0 */
/* What is said of a driver that is not there or does not serve. Each in a process of its own. */
#include "base/err.h"
#include "tests/support/fakecuda.h"

#include <sys/wait.h>

#include "daemon/device/cuda_dl.h"
#include "proto/gen/wire_code.h"

/* Load with 'variable' set to 'value' (NULL: as it is): the code, and the text into 'ret_text'. */
static int load_with(bool has_library, const char *variable, const char *value,
		     char ret_text[ERR_TEXT_SIZE])
{
	int ends[2];
	int status = -1;
	pid_t child;
	ssize_t size;

	assert_int_equal(pipe(ends), 0);
	child = fork();
	if (child == 0) {
		struct err err = {0};

		if (variable != NULL) {
			(void)setenv(variable, value, 1);
		}
		if (has_library) {
			fakecuda_load();
		}
		(void)cuda_load(&err);
		(void)!write(ends[1], err.text, sizeof err.text);
		_exit(err.code);
	}
	size = read(ends[0], ret_text, ERR_TEXT_SIZE);
	assert_int_equal(size, ERR_TEXT_SIZE);
	(void)close(ends[0]);
	(void)close(ends[1]);
	assert_int_equal(waitpid(child, &status, 0), child);
	assert_true(WIFEXITED(status));
	return WEXITSTATUS(status);
}

static void assert_says(const char *text, const char *words)
{
	if (strstr(text, words) == NULL) {
		fail_msg("\"%s\" is not in \"%s\"", words, text);
	}
}

/* fault: G01 */
static void what_a_driver_lacks_is_said_in_one_line(void **state)
{
	char text[ERR_TEXT_SIZE];

	(void)state;
	assert_int_equal(load_with(true, NULL, NULL, text), 0);
	if (dlopen("libcuda.so.1", RTLD_NOW) == NULL) { /* this machine has no driver */
		assert_int_equal(load_with(false, NULL, NULL, text), WIRE_NOT_FOUND);
		assert_says(text, "no NVIDIA driver: libcuda.so.1");
	}
	assert_int_equal(load_with(true, "FAKECUDA_VERSION", "11080", text), WIRE_NOT_FOUND);
	assert_says(text, "too old");
	assert_says(text, "driver 525");
	assert_int_equal(load_with(true, "FAKECUDA_MISSING", "cuMemCreate", text), WIRE_NOT_FOUND);
	assert_says(text, "it has no cuMemCreate");
	assert_int_equal(load_with(true, "FAKECUDA_CARDS", "", text), WIRE_NOT_FOUND);
	assert_says(text, "sees no card");
}

/* fault: G05 */
static void a_driver_that_is_not_ready_may_be_asked_again(void **state)
{
	char text[ERR_TEXT_SIZE];

	(void)state;
	assert_int_equal(load_with(true, "FAKECUDA_FAULT", "cuInit:1:802", text), WIRE_BUSY);
	assert_says(text, "starting the NVIDIA driver");
	assert_int_equal(load_with(true, "FAKECUDA_FAULT", "cuInit:1:46", text), WIRE_BUSY);
	assert_int_equal(load_with(true, "FAKECUDA_FAULT", "cuInit:1:4", text), WIRE_BUSY);
}

/* In this process: the first time fails, the second does not. */
static void the_second_try_is_a_real_one(void **state)
{
	struct err err = {0};
	const struct cuda_calls *cuda;
	int n_devices = 0;

	(void)state;
	fakecuda_load();
	fakecuda.fault("cuInit:1:802");
	assert_null(cuda_load(&err));
	assert_int_equal(err.code, WIRE_BUSY);
	assert_int_equal(err.driver, 802);
	assert_int_equal(fakecuda.n_hits(), 1);
	cuda = cuda_load(&err);
	assert_non_null(cuda);
	assert_ptr_equal(cuda_load(&err), cuda);
	assert_int_equal(cuda->cuDeviceGetCount(&n_devices), CUDA_SUCCESS);
	assert_int_equal(n_devices, 2);
	assert_non_null(nvml_load());
}

static void fail_with(int driver, bool is_open, int code)
{
	struct err err = {0};

	assert_int_equal(cuda_fail(&err, (CUresult)driver, is_open, "trying"), -code);
	assert_int_equal(err.code, code);
	assert_int_equal(err.driver, driver);
	assert_says(err.text, "trying: ");
}

/* fault: G04 */
static void each_code_of_the_driver_has_one_of_ours(void **state)
{
	static const struct {
		int driver;
		int code;
	} codes[] = {
		{2, WIRE_NO_MEMORY},     {214, WIRE_DEVICE_LOST}, {220, WIRE_DEVICE_LOST},
		{226, WIRE_DEVICE_LOST}, {700, WIRE_DEVICE_LOST}, {702, WIRE_DEVICE_LOST},
		{709, WIRE_DEVICE_LOST}, {714, WIRE_DEVICE_LOST}, {715, WIRE_DEVICE_LOST},
		{716, WIRE_DEVICE_LOST}, {717, WIRE_DEVICE_LOST}, {718, WIRE_DEVICE_LOST},
		{719, WIRE_DEVICE_LOST}, {999, WIRE_DEVICE_LOST}, {801, WIRE_UNSUPPORTED},
		{1, WIRE_INTERNAL},      {400, WIRE_INTERNAL},    {12345, WIRE_INTERNAL},
	};
	static const struct {
		int driver;
		int code; /* before a card is open; then it is lost */
	} passing[] = {{3, WIRE_BUSY},   {4, WIRE_BUSY},   {46, WIRE_BUSY},        {100, WIRE_BUSY},
		       {201, WIRE_BUSY}, {802, WIRE_BUSY}, {101, WIRE_UNSUPPORTED}};

	(void)state;
	for (size_t i = 0; i < sizeof codes / sizeof codes[0]; i++) {
		fail_with(codes[i].driver, false, codes[i].code);
		fail_with(codes[i].driver, true, codes[i].code);
	}
	for (size_t i = 0; i < sizeof passing / sizeof passing[0]; i++) {
		fail_with(passing[i].driver, false, passing[i].code);
		fail_with(passing[i].driver, true, WIRE_DEVICE_LOST);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(what_a_driver_lacks_is_said_in_one_line),
		cmocka_unit_test(a_driver_that_is_not_ready_may_be_asked_again),
		cmocka_unit_test(the_second_try_is_a_real_one),
		cmocka_unit_test(each_code_of_the_driver_has_one_of_ours),
	};
	int n_failed;

	fakecuda_prepare("64M,32M");
	n_failed = cmocka_run_group_tests(tests, NULL, NULL);
	fakecuda_end();
	return n_failed;
}
