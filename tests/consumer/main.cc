// A program outside the project: it has the installed headers and library, and nothing else.

#include <nibble/core.h>
#include <nibble/quantize.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <vector>

int main() {
  constexpr std::int64_t kN = 8;
  constexpr std::int64_t kK = 96;
  std::vector<float> weights(kN * kK);
  for (std::size_t i = 0; i < weights.size(); ++i) weights[i] = std::sin(static_cast<float>(i));
  const nibble::TensorView w{weights.data(), nibble::DType::kF32, {kN, kK}};

  const auto format = nibble::Format::parse("nvfp4");
  if (!format.ok()) {
    std::fprintf(stderr, "%s\n", format.status().message().c_str());
    return 1;
  }
  const auto tensor = nibble::quantize(w, *format);
  if (!tensor.ok()) {
    std::fprintf(stderr, "%s\n", tensor.status().message().c_str());
    return 1;
  }
  const auto error = nibble::relative_error(*tensor, w);
  std::printf("relative error of %s: %.4f\n", format->name().c_str(), error.ok() ? *error : -1.0);
  return !(error.ok() && *error > 0.0 && *error < 0.2);
}
