// SPDX-License-Identifier: Apache-2.0
// Load a model if needed, attach it, and look at its tensors in place. The memory is shared by
// all processes until somebody writes to it. C++17: c++ tensors.cpp -ldistorch
#include <cstdio>
#include <distorch.h>
#include <memory>
#include <stdexcept>
#include <string>

namespace
{

struct Closer {
	void operator()(struct distorch *c) const
	{
		distorch_close(c);
	}
	void operator()(struct distorch_weights *weights) const
	{
		distorch_weights_unref(weights);
	}
};

using Connection = std::unique_ptr<struct distorch, Closer>;
using Weights = std::unique_ptr<struct distorch_weights, Closer>;

void check(int rc)
{
	if (rc < 0) {
		throw std::runtime_error(distorch_error(nullptr)->message);
	}
}

Connection connect()
{
	struct distorch *c = nullptr;
	check(distorch_open(nullptr, nullptr, &c));
	return Connection(c);
}

Weights open(const Connection &c, const char *path)
{
	struct distorch_weights *weights = nullptr;
	check(distorch_load(c.get(), path, nullptr, nullptr, &weights));
	return Weights(weights);
}

} // namespace

int main(int argc, char **argv)
{
	if (argc != 2) {
		std::fprintf(stderr, "usage: %s FILE\n", argv[0]);
		return 2;
	}
	try {
		Weights weights = open(connect(), argv[1]); // outlives its connection
		for (uint32_t i = 0; i < distorch_weights_n_tensors(weights.get()); i++) {
			const struct distorch_tensor *tensor =
				distorch_weights_tensor(weights.get(), i);
			std::string shape;
			for (uint32_t d = 0; d < tensor->rank; d++) {
				shape += (d > 0 ? ", " : "") + std::to_string(tensor->shape[d]);
			}
			unsigned sum = 0;
			const auto *bytes = static_cast<const unsigned char *>(tensor->data);
			for (uint64_t at = 0; at < tensor->bytes; at++) {
				sum += bytes[at];
			}
			std::printf("%s %s [%s] sum of bytes %u\n", tensor->name, tensor->dtype,
				    shape.c_str(), sum);
		}
	} catch (const std::exception &failure) {
		std::fprintf(stderr, "error: %s\n", failure.what());
		return 1;
	}
	return 0;
}
