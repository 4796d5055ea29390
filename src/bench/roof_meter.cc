// Measures what the hardware allows: the fastest of the roof loops on all threads of a pool.
#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>

#include "kernels/table.h"
#include "nibble/bench.h"

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace nibble {
namespace {

constexpr int64_t kHugePageBytes = 2 << 20;
constexpr int64_t kSmallestReadBytes = 64 << 20;
// One pass takes about half a millisecond: long against handing out work (microseconds), short
// against a time slice of the scheduler, so that a preemption spoils one pass and not the median.
constexpr int64_t kReadPassBytes = 16 << 20;  // of one thread
constexpr double kComputePassSeconds = 5e-4;
constexpr int kTryoutPasses = 25;
constexpr int kNumRoofs = 4;

double seconds_now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

struct FreeDeleter {
  void operator()(uint8_t* p) const { std::free(p); }
};
using HugeBuffer = std::unique_ptr<uint8_t, FreeDeleter>;

// Huge pages where the system gives them: with small ones a roof of page walks would be measured.
HugeBuffer allocate_huge(int64_t bytes) {
  void* p = std::aligned_alloc(static_cast<size_t>(kHugePageBytes), static_cast<size_t>(bytes));
#ifdef __linux__
  if (p != nullptr) (void)madvise(p, static_cast<size_t>(bytes), MADV_HUGEPAGE);
#endif
  return HugeBuffer(static_cast<uint8_t*>(p));
}

RoofKind kind_of(Roof roof) {
  switch (roof) {
    case Roof::kRead:
      return RoofKind::kRead;
    case Roof::kInt8:
      return RoofKind::kInt8;
    case Roof::kBf16:
      return RoofKind::kBf16;
    case Roof::kF32:
      return RoofKind::kF32;
  }
  return RoofKind::kRead;
}

double median(std::vector<double>* values) {
  const auto middle = values->begin() + static_cast<std::ptrdiff_t>(values->size() / 2);
  std::nth_element(values->begin(), middle, values->end());
  return *middle;
}

}  // namespace

struct RoofMeter::State {
  ThreadPool* pool = nullptr;
  uint32_t isas = 0;
  HugeBuffer buffer;
  int64_t part_bytes = 0;     // of one thread, a multiple of kReadPassBytes
  int64_t read_position = 0;  // in every part, where the next read pass begins
  struct Choice {
    bool tried = false;
    const RoofInfo* loop = nullptr;  // null: the device has none of this kind
    int64_t steps = 0;               // of one pass of a compute loop
  };
  std::array<Choice, kNumRoofs> choices;
  // Where the loops leave their results, so that no compiler may drop them.
  std::vector<uint64_t> sinks;

  // Rate of one pass on all threads, in 1e9 bytes or operations per second.
  double pass(const RoofInfo& loop, int64_t steps) {
    const int64_t threads = pool->num_threads();
    const int64_t position = read_position;
    if (loop.kind == RoofKind::kRead) read_position = (position + kReadPassBytes) % part_bytes;
    const double start = seconds_now();
    pool->for_each(threads, [&](int64_t i) {
      sinks[static_cast<size_t>(i) * 8] ^=
          loop.run(buffer.get() + i * part_bytes + position, kReadPassBytes, steps);
    });
    const double elapsed = seconds_now() - start;
    const double work = loop.kind == RoofKind::kRead
                            ? static_cast<double>(kReadPassBytes)
                            : loop.ops_per_step * static_cast<double>(steps);
    return work * static_cast<double>(threads) / elapsed * 1e-9;
  }

  // Steps that keep a compute loop busy for kComputePassSeconds.
  int64_t steps_of_a_pass(const RoofInfo& loop) {
    if (loop.kind == RoofKind::kRead) return 0;
    constexpr int64_t kProbeSteps = 4096;
    pass(loop, kProbeSteps);
    const double start = seconds_now();
    pass(loop, kProbeSteps);
    const double step_seconds = (seconds_now() - start) / static_cast<double>(kProbeSteps);
    return std::max<int64_t>(1, static_cast<int64_t>(kComputePassSeconds / step_seconds));
  }

  // Lets every loop of the kind run a few passes, round by round, and keeps the fastest.
  void choose(RoofKind kind, Choice* choice) {
    struct Candidate {
      const RoofInfo* loop;
      int64_t steps;
      std::vector<double> rates;
    };
    std::vector<Candidate> candidates;
    for (const RoofInfo& loop : cpu_roofs()) {
      if (loop.kind == kind && (isas & bit(loop.isa)) != 0) {
        candidates.push_back({&loop, steps_of_a_pass(loop), {}});
      }
    }
    for (int round = 0; round < kTryoutPasses; ++round) {
      for (Candidate& c : candidates) c.rates.push_back(pass(*c.loop, c.steps));
    }
    double best = 0;
    for (Candidate& c : candidates) {
      const double rate = median(&c.rates);
      if (rate > best) {
        best = rate;
        choice->loop = c.loop;
        choice->steps = c.steps;
      }
    }
    choice->tried = true;
  }
};

RoofMeter::RoofMeter(std::unique_ptr<State> state) : state_(std::move(state)) {}
RoofMeter::RoofMeter(RoofMeter&&) noexcept = default;
RoofMeter::~RoofMeter() = default;

Result<RoofMeter> RoofMeter::create(ThreadPool* pool, const Device& device, int64_t read_bytes) {
  if (pool == nullptr) return invalid_argument("RoofMeter needs a thread pool");
  if (device.backend != Backend::kCpu) {
    return unsupported("device " + device.name + " is no CPU; roofs are measured on CPUs only");
  }
  const uint32_t missing = device.isas & ~Device::this_cpu().isas;
  if (missing != 0) {
    return unsupported("device " + device.name +
                       " has instruction sets that this machine lacks; roofs are measured here");
  }
  if (read_bytes < 0) {
    return invalid_argument("read_bytes = " + std::to_string(read_bytes) + " is negative");
  }
  if (read_bytes == 0) read_bytes = std::max(4 * device.l3_bytes, kSmallestReadBytes);

  const int64_t threads = pool->num_threads();
  auto state = std::make_unique<State>();
  state->pool = pool;
  state->isas = device.isas;
  state->part_bytes = round_up(ceil_div(read_bytes, threads), kReadPassBytes);
  const int64_t bytes = round_up(state->part_bytes * threads, kHugePageBytes);
  state->buffer = allocate_huge(bytes);
  if (state->buffer == nullptr) {
    return out_of_memory("no " + std::to_string(bytes) + " bytes for the read roof");
  }
  state->sinks.assign(static_cast<size_t>(threads) * 8, 0);
  pool->for_each(threads, [&](int64_t i) {
    std::memset(state->buffer.get() + i * state->part_bytes, static_cast<int>(i) + 1,
                static_cast<size_t>(state->part_bytes));
  });
  return RoofMeter(std::move(state));
}

double RoofMeter::measure(Roof roof, double seconds) {
  State::Choice& choice = state_->choices[static_cast<size_t>(roof)];
  if (!choice.tried) state_->choose(kind_of(roof), &choice);
  if (choice.loop == nullptr) return 0;
  std::vector<double> rates;
  const double end = seconds_now() + seconds;
  do {
    rates.push_back(state_->pass(*choice.loop, choice.steps));
  } while (seconds_now() < end);
  return median(&rates);
}

}  // namespace nibble
