// SPDX-License-Identifier: Apache-2.0
// Load a model if needed, attach it, and look at its tensors in place. The memory is shared by
// all processes until somebody writes to it.
// C++17: c++ -std=c++17 tensors.cpp $(pkg-config --cflags --libs distorch)
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

// What distorch_error says, kept until it is told.
struct Failure : std::runtime_error {
	explicit Failure(const struct distorch_error *error)
	    : std::runtime_error(error->message), hint(error->hint != nullptr ? error->hint : ""),
	      exit_code(error->exit_code)
	{
	}
	std::string hint;
	int exit_code;
};

void check(int rc)
{
	if (rc < 0) {
		throw Failure(distorch_error(nullptr));
	}
}

// Names come from strangers: what could steer a terminal is shown as \xNN.
std::string harmless(const char *text)
{
	std::string result;
	for (; *text != '\0'; text++) {
		const auto byte = static_cast<unsigned char>(*text);
		char code[8];
		if (byte >= 0x20 && byte < 0x7f && byte != '\\') {
			result += *text;
		} else {
			std::snprintf(code, sizeof code, "\\x%02x", byte);
			result += code;
		}
	}
	return result;
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
			std::printf("%s %s [%s] sum of bytes %u\n", harmless(tensor->name).c_str(),
				    tensor->dtype, shape.c_str(), sum);
		}
	} catch (const Failure &failure) {
		std::fprintf(stderr, "error: %s\n", harmless(failure.what()).c_str());
		if (!failure.hint.empty()) {
			std::fprintf(stderr, "hint:  %s\n", failure.hint.c_str());
		}
		return failure.exit_code;
	} catch (const std::exception &failure) {
		std::fprintf(stderr, "error: %s\n", failure.what());
		return 1;
	}
	return 0;
}
