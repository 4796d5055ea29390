#include "bench_case.h"

#include <fmt/format.h>
#include <sys/resource.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <limits>

#include "nibble/pack.h"

namespace nibble::cli {
namespace {

constexpr int kRounds = 12;           // the case's time is split over these
constexpr int kMostRoundsFactor = 3;  // a noisy machine gets this many times more, then it ends
constexpr double kLargestRoofChange = 0.1;
constexpr double kLongestRoofSeconds = 0.05;
constexpr int kFewestCopies = 3;

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

// xorshift: any fixed sequence does; it has to be quick for hundreds of megabytes.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed * 0x9E3779B97F4A7C15u + 1) {}
  uint64_t next() {
    state_ ^= state_ << 13;
    state_ ^= state_ >> 7;
    state_ ^= state_ << 17;
    return state_;
  }
  // In [low, high).
  float uniform(float low, float high) {
    return low + (high - low) * static_cast<float>(next() >> 40) * 0x1p-24f;
  }

 private:
  uint64_t state_;
};

void fill_scales(const Format& format, int64_t count, Random* random, uint8_t* scales) {
  for (int64_t i = 0; i < count; ++i) {
    if (format.scale == DType::kE8M0) {
      scales[i] = static_cast<uint8_t>(118 + random->next() % 5);  // 2^-9 .. 2^-5
    } else {
      // e4m3 scales meet a small tensor scale, as in real nvfp4 files.
      const float unit = format.scale == DType::kE4M3 ? 64.0f : 0.01f;
      store_from_f32(scales, format.scale, i, unit * random->uniform(0.5f, 1.5f));
    }
  }
}

void fill_zeros(const Format& format, int64_t count, Random* random, uint8_t* zeros) {
  const float middle = format.bits() == 4 ? 8.0f : 128.0f;
  for (int64_t i = 0; i < count; ++i) {
    switch (format.zero) {
      case ZeroKind::kNone:
        break;
      case ZeroKind::kInteger:
        zeros[i] = static_cast<uint8_t>(middle + random->uniform(-2, 2));
        break;
      case ZeroKind::kFloatCode:
        store_from_f32(zeros, format.zero_dtype(), i, middle + random->uniform(-2, 2));
        break;
      case ZeroKind::kAdditive:
        store_from_f32(zeros, format.zero_dtype(), i, random->uniform(-0.1f, 0.1f));
        break;
    }
  }
}

Result<QuantizedTensor> random_weight(const Format& format, int64_t n, int64_t k) {
  NIBBLE_ASSIGN_OR_RETURN(QuantizedTensor q, make_quantized_tensor(format, n, k));
  Random random(static_cast<uint64_t>(n * 31 + k));
  uint8_t* codes = q.codes.mutable_data();
  for (int64_t i = 0; i < q.codes.bytes(); ++i) codes[i] = static_cast<uint8_t>(random.next() >> 8);
  if (k * format.bits() % 8 != 0) {  // bits past K stay zero
    const int64_t row_bytes = format.code_row_bytes(k);
    for (int64_t row = 0; row < n; ++row) codes[(row + 1) * row_bytes - 1] &= 0x0F;
  }
  const int64_t count = n * format.groups(k);
  fill_scales(format, count, &random, q.scales.mutable_data());
  fill_zeros(format, count, &random, q.zeros.mutable_data());
  if (format == *Format::parse("nvfp4")) q.tensor_scales = {{0, 1.0f / 8192}};
  if (format.element == Element::kNF4) q.codebook = kNf4Codebook;
  NIBBLE_RETURN_IF_ERROR(q.validate());
  return q;
}

// x [m, k] with values of about unit size.
Result<Buffer> random_x(int64_t m, int64_t k, DType dtype) {
  NIBBLE_ASSIGN_OR_RETURN(Buffer x, Buffer::allocate(m * k * dtype_bytes(dtype)));
  Random random(7);
  for (int64_t i = 0; i < m * k; ++i) {
    store_from_f32(x.mutable_data(), dtype, i, random.uniform(-1.7f, 1.7f));
  }
  return x;
}

// A fast wrong kernel must not make a figure: compares some outputs of the first and last row with
// x times dequantized weights. The bound is wide (5 % of the root of the sum of squares, which int8
// activations stay far below); the tests of kernels have tight ones.
Status check_sample(const QuantizedTensor& tensor, const Buffer& x, const Buffer& y,
                    const BenchCase& bench) {
  constexpr int64_t kSampledOutputs = 37;
  std::vector<float> w(static_cast<size_t>(tensor.k));
  const int64_t step = std::max<int64_t>(1, tensor.n / kSampledOutputs);
  for (int64_t n = 0; n < tensor.n; n += step) {
    tensor.dequantize(n, n + 1, w.data());
    for (const int64_t m : {int64_t{0}, bench.m - 1}) {
      double sum = 0, squares = 0;
      for (int64_t k = 0; k < tensor.k; ++k) {
        const double product = static_cast<double>(w[static_cast<size_t>(k)]) *
                               load_as_f32(x.data(), bench.x_dtype, m * tensor.k + k);
        sum += product;
        squares += product * product;
      }
      const double got = load_as_f32(y.data(), bench.x_dtype, m * tensor.n + n);
      const double bound = 0.05 * std::sqrt(squares) + std::abs(sum) / 128;
      if (!(std::abs(got - sum) <= bound)) {
        return internal_error(
            fmt::format("y[{}, {}] is {:.6g}, x times the weight {:.6g}", m, n, got, sum));
      }
    }
  }
  return ok_status();
}

struct Roofs {
  double read = 0, compute = 0;
};

// Both roofs together take as long as the case's part of a round.
Roofs measure_roofs(const BenchCase& bench, RoofMeter* meter, Roof compute_roof) {
  const double seconds = std::min(bench.seconds / kRounds / 2, kLongestRoofSeconds);
  return {meter->measure(Roof::kRead, seconds), meter->measure(compute_roof, seconds)};
}

bool close(double a, double b) { return std::abs(a - b) <= kLargestRoofChange * std::max(a, b); }

// The peak of the arithmetic that a case could use on its device.
Roof compute_roof_of(const BenchCase& bench) {
  if (bench.compute == Compute::kInt8) return Roof::kInt8;
  const bool bf16 = bench.x_dtype == DType::kBF16 &&
                    (bench.device.has(Isa::kAvx512Bf16) || bench.device.has(Isa::kNeonBf16));
  return bf16 ? Roof::kBf16 : Roof::kF32;
}

// How often the system took a core from one of this process's threads.
int64_t preemptions() {
  rusage usage = {};
  return getrusage(RUSAGE_SELF, &usage) == 0 ? usage.ru_nivcsw : 0;
}

struct Timing {
  double us = 0;
  bool preempted = false;
};

// Everything that one run of the case touches.
struct Runner {
  std::vector<Linear> linears;
  Buffer x, y;
  MatrixView x_view;
  MutableMatrixView y_view;
  size_t next = 0;

  // One product with the next cold copy.
  Result<Timing> run() {
    const Linear& linear = linears[next];
    next = (next + 1) % linears.size();
    const int64_t preemptions_before = preemptions();
    const Clock::time_point start = Clock::now();
    NIBBLE_RETURN_IF_ERROR(linear.run(x_view, y_view));
    const double us = seconds_since(start) * 1e6;
    return Timing{us, preemptions() != preemptions_before};
  }
};

Result<Runner> make_runner(const BenchCase& bench, const ColdWeights& weights, ThreadPool* pool) {
  Runner runner;
  for (const PackedWeight& copy : weights.copies) {
    LinearOptions options;
    options.device = bench.device;
    options.compute = bench.compute;
    options.pool = pool;
    options.kernel = bench.kernel;
    NIBBLE_ASSIGN_OR_RETURN(Linear linear, Linear::create(copy, options));
    runner.linears.push_back(std::move(linear));
  }
  const int64_t n = weights.tensor.n, k = weights.tensor.k;
  NIBBLE_ASSIGN_OR_RETURN(runner.x, random_x(bench.m, k, bench.x_dtype));
  NIBBLE_ASSIGN_OR_RETURN(runner.y, Buffer::allocate(bench.m * n * dtype_bytes(bench.x_dtype)));
  runner.x_view =
      dense_matrix(static_cast<const void*>(runner.x.data()), bench.x_dtype, bench.m, k);
  runner.y_view =
      dense_matrix(static_cast<void*>(runner.y.mutable_data()), bench.x_dtype, bench.m, n);
  return runner;
}

// What the rounds of one case gave.
struct Samples {
  std::vector<double> us;  // every counted run
  int64_t preempted = 0;
  std::vector<double> read_shares, compute_shares;  // one a kept round
  std::vector<double> read_roofs, compute_roofs;
  int dropped = 0;
};

// Microseconds of the runs of one round. A preempted run measures the scheduler: it is left out,
// unless the round has no other, as when every run is longer than a time slice.
Result<std::vector<double>> run_round(double seconds, Runner* runner, int64_t* preempted) {
  std::vector<double> clean, spoiled;
  const Clock::time_point start = Clock::now();
  do {
    NIBBLE_ASSIGN_OR_RETURN(const Timing timing, runner->run());
    (timing.preempted ? spoiled : clean).push_back(timing.us);
  } while (seconds_since(start) < seconds);
  if (clean.empty()) return spoiled;
  *preempted += static_cast<int64_t>(spoiled.size());
  return clean;
}

Result<Samples> run_rounds(const BenchCase& bench, const ColdWeights& weights, Runner* runner,
                           RoofMeter* meter, Roof compute_roof) {
  const double gigabytes = static_cast<double>(weights.weight_bytes) * 1e-9;
  const double gigaflops = 2e-9 * static_cast<double>(bench.m) *
                           static_cast<double>(weights.tensor.n) *
                           static_cast<double>(weights.tensor.k);
  Samples samples;
  Roofs before = measure_roofs(bench, meter, compute_roof);
  for (int round = 0; round < kMostRoundsFactor * kRounds; ++round) {
    if (static_cast<int>(samples.read_shares.size()) >= kRounds) break;
    NIBBLE_ASSIGN_OR_RETURN(const std::vector<double> us,
                            run_round(bench.seconds / kRounds, runner, &samples.preempted));
    samples.us.insert(samples.us.end(), us.begin(), us.end());
    const Roofs after = measure_roofs(bench, meter, compute_roof);
    if (close(before.read, after.read) && close(before.compute, after.compute)) {
      const double seconds = quantile(us, 0.5) * 1e-6;
      const double read = (before.read + after.read) / 2;
      const double compute = (before.compute + after.compute) / 2;
      samples.read_shares.push_back(gigabytes / seconds / read);
      samples.compute_shares.push_back(gigaflops / seconds / compute);
      samples.read_roofs.push_back(read);
      samples.compute_roofs.push_back(compute);
    } else {
      ++samples.dropped;
    }
    before = after;
  }
  return samples;
}

}  // namespace

double quantile(std::vector<double> values, double share) {
  if (values.empty()) return std::numeric_limits<double>::quiet_NaN();
  const auto index =
      static_cast<std::ptrdiff_t>(share * static_cast<double>(values.size() - 1) + 0.5);
  std::nth_element(values.begin(), values.begin() + index, values.end());
  return values[static_cast<size_t>(index)];
}

Result<ColdWeights> make_cold_weights(const Format& format, int64_t n, int64_t k,
                                      const Layout& layout, int64_t cold_bytes, ThreadPool* pool) {
  ColdWeights weights;
  NIBBLE_ASSIGN_OR_RETURN(weights.tensor, random_weight(format, n, k));
  weights.weight_bytes = weights.tensor.stored_bytes();
  NIBBLE_ASSIGN_OR_RETURN(PackedWeight first, pack(weights.tensor, layout, pool));
  const PackedWeightInfo info = first.info;
  const int64_t count = std::max<int64_t>(kFewestCopies, ceil_div(cold_bytes, info.bytes));
  for (int64_t i = 1; i < count; ++i) {
    NIBBLE_ASSIGN_OR_RETURN(Buffer buffer, Buffer::allocate(info.bytes));
    std::memcpy(buffer.mutable_data(), first.buffer.data(), static_cast<size_t>(info.bytes));
    NIBBLE_ASSIGN_OR_RETURN(PackedWeight copy, view(info, std::move(buffer)));
    weights.copies.push_back(std::move(copy));
  }
  weights.copies.push_back(std::move(first));
  return weights;
}

Result<BenchResult> run_bench_case(const BenchCase& bench, const ColdWeights& weights,
                                   ThreadPool* pool, RoofMeter* meter) {
  NIBBLE_ASSIGN_OR_RETURN(Runner runner, make_runner(bench, weights, pool));
  BenchResult result;
  NIBBLE_ASSIGN_OR_RETURN(const Plan plan,
                          runner.linears[0].plan_for(bench.m, bench.x_dtype, bench.x_dtype));
  const KernelRow& row = kernels()[static_cast<size_t>(plan.matmul().kernel)];
  result.kernel = row.name;
  result.isa = row.isa;
  result.compute_roof = compute_roof_of(bench);

  // The first run allocates the workspace; every copy's is made before the clock counts.
  for (size_t i = 0; i < runner.linears.size(); ++i) {
    NIBBLE_ASSIGN_OR_RETURN(const Timing warm_up, runner.run());
    static_cast<void>(warm_up);
    if (i == 0) NIBBLE_RETURN_IF_ERROR(check_sample(weights.tensor, runner.x, runner.y, bench));
  }
  NIBBLE_ASSIGN_OR_RETURN(const Samples samples,
                          run_rounds(bench, weights, &runner, meter, result.compute_roof));
  result.runs = static_cast<int64_t>(samples.us.size());
  result.preempted_runs = samples.preempted;
  result.us_median = quantile(samples.us, 0.5);
  result.us_p10 = quantile(samples.us, 0.1);
  result.us_p90 = quantile(samples.us, 0.9);
  result.weight_gbps = static_cast<double>(weights.weight_bytes) / result.us_median * 1e-3;
  result.gflops = 2e-3 * static_cast<double>(bench.m) * static_cast<double>(weights.tensor.n) *
                  static_cast<double>(weights.tensor.k) / result.us_median;
  result.read_roof_gbps = quantile(samples.read_roofs, 0.5);
  result.compute_roof_gflops = quantile(samples.compute_roofs, 0.5);
  result.share_of_read_roof = quantile(samples.read_shares, 0.5);
  result.share_of_compute_roof = quantile(samples.compute_shares, 0.5);
  result.rounds = static_cast<int>(samples.read_shares.size());
  result.dropped_rounds = samples.dropped;
  return result;
}

}  // namespace nibble::cli
